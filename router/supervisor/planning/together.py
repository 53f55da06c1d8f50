"""Which of several models can be loaded at the same time, and with how much context each."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from types import MappingProxyType
from typing import Final

from router.scheduler.types import DeviceId, Footprint, ModelName
from router.supervisor.planning.packing import EXACT_LIMIT, Effort, pack

#: Of sets of the same size, so many are told.
MOST_SETS: Final = 6


@dataclass(frozen=True, slots=True)
class Way:
    """One way to load a model: the context it has then, the devices it runs on, and what it takes."""

    ctx_size: int
    devices: tuple[DeviceId, ...]
    footprint: Footprint


@dataclass(frozen=True, slots=True)
class ModelDemand:
    """A model that is to be loaded. `steps` are its ways, best first, with the context that is wished for,
    then with less and less. Two models that share a group of `exclusive` are never loaded together."""

    model: ModelName
    steps: tuple[tuple[Way, ...], ...]
    exclusive: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Fit:
    """Models that fit together. `steps` tells which of its steps each one takes: 0 is what was wished for.
    `common` is the first step with which all of them fit when all take the same."""

    ways: Mapping[ModelName, Way]
    steps: Mapping[ModelName, int]
    common: int

    @property
    def is_reduced(self) -> bool:
        return any(self.steps.values())


@dataclass(frozen=True, slots=True)
class Together:
    """`all` is None where not all fit; then `sets` are the largest that do. `is_exact`: what is not said to
    fit does not; otherwise the search was cut short, and there may be a way that it did not find."""

    all: Fit | None
    sets: tuple[Fit, ...] = ()
    is_exact: bool = True


def fit_together(rooms: Mapping[DeviceId, int], wishes: Sequence[ModelDemand], *, most: int = 0) -> Together:
    """Try all with what they wish for; then all with one step less, and so on; then the largest sets of them.

    From the step with which all fit, one after the other is given back as much as still fits, in the order
    of `wishes`. `most` bounds the number of models that may be loaded at a time (0: no bound). Above
    `EXACT_LIMIT` wishes one set is looked for instead of all, smallest models first.
    """
    question = _Question(rooms, most, Effort())
    found = question.fit(wishes)
    if found is not None:
        return Together(found, is_exact=True)
    sets = tuple(question.largest_sets(wishes))
    return Together(None, sets, question.is_exact)


class _Question:
    def __init__(self, rooms: Mapping[DeviceId, int], most: int, effort: Effort) -> None:
        self._rooms = rooms
        self._most = most
        self._effort = effort
        self.is_exact = True

    def fit(self, wishes: Sequence[ModelDemand]) -> Fit | None:
        if not self._is_allowed(wishes) or not all(any(wish.steps) for wish in wishes):
            return None
        for step in range(max((len(wish.steps) for wish in wishes), default=1)):
            steps = [min(step, len(wish.steps) - 1) for wish in wishes]
            ways = self._pack(wishes, steps)
            if ways is not None:
                return self._given_back(wishes, steps, ways, step)
        return None

    def largest_sets(self, wishes: Sequence[ModelDemand]) -> Iterator[Fit]:
        usable = [wish for wish in wishes if any(wish.steps)]
        if len(usable) > EXACT_LIMIT:
            yield from self._greedy_set(usable)
            return
        for size in range(min(len(usable), self._most or len(usable)), 0, -1):
            fits = [fit for some in combinations(usable, size) if (fit := self.fit(some)) is not None]
            if fits:
                yield from sorted(fits, key=lambda fit: sum(fit.steps.values()))[:MOST_SETS]
                return

    def _greedy_set(self, wishes: Sequence[ModelDemand]) -> Iterator[Fit]:
        """The smallest first, as long as they fit beside those before."""
        self.is_exact = False
        kept: list[ModelDemand] = []
        for wish in sorted(wishes, key=_least_bytes):
            some = [*kept, wish]
            if self._is_allowed(some) and self._pack(some, [len(one.steps) - 1 for one in some]) is not None:
                kept = some
        kept.sort(key=wishes.index)
        fit = self.fit(kept) if kept else None
        if fit is not None:
            yield fit

    def _given_back(
        self, wishes: Sequence[ModelDemand], steps: list[int], ways: Sequence[Way], common: int
    ) -> Fit:
        for at in range(len(wishes)):
            while steps[at] > 0:
                tried = [*steps[:at], steps[at] - 1, *steps[at + 1 :]]
                better = self._pack(wishes, tried)
                if better is None:
                    break
                steps, ways = tried, better
        names = [wish.model for wish in wishes]
        return Fit(
            MappingProxyType(dict(zip(names, ways, strict=True))),
            MappingProxyType(dict(zip(names, steps, strict=True))),
            common,
        )

    def _pack(self, wishes: Sequence[ModelDemand], steps: Sequence[int]) -> tuple[Way, ...] | None:
        ways = [wish.steps[step] for wish, step in zip(wishes, steps, strict=True)]
        found = pack(self._rooms, [[way.footprint for way in some] for some in ways], self._effort)
        self.is_exact = self.is_exact and found.is_exact
        if found.choice is None:
            return None
        return tuple(some[at] for some, at in zip(ways, found.choice, strict=True))

    def _is_allowed(self, wishes: Sequence[ModelDemand]) -> bool:
        if self._most and len(wishes) > self._most:
            return False
        return not any(one.exclusive & other.exclusive for one, other in combinations(wishes, 2))


def exclusive_pairs(wishes: Collection[ModelDemand]) -> list[tuple[ModelName, ModelName]]:
    """Those that are never loaded together, whatever room there is."""
    return [(a.model, b.model) for a, b in combinations(wishes, 2) if a.exclusive & b.exclusive]


def _least_bytes(wish: ModelDemand) -> int:
    return min(sum(way.footprint.values()) for way in wish.steps[-1])
