"""One footprint for each of several models, so that all fit the devices at once: vector bin packing with
alternatives.

The problem is NP-hard; the cases are small. Up to `EXACT_LIMIT` models every combination is searched, with
bounds that end most branches at once and within an `Effort`; beyond, the largest are placed first, each in
the first way that fits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from router.scheduler.types import DeviceId, Footprint

EXACT_LIMIT: Final = 8
#: Steps of one search in all, about a second of one core.
MOST_STEPS: Final = 100_000


@dataclass(slots=True)
class Effort:
    """What is left of the steps; shared by the searches of one question, so that the question has a bound."""

    steps: int = MOST_STEPS

    def spend(self) -> bool:
        """One step. False: there are none left."""
        self.steps -= 1
        return self.steps >= 0


@dataclass(frozen=True, slots=True)
class Packing:
    """`choice` is the index of the alternative of each demand, None where none was found; that is proven
    where `is_exact`."""

    choice: tuple[int, ...] | None
    is_exact: bool


def pack(
    rooms: Mapping[DeviceId, int], demands: Sequence[Sequence[Footprint]], effort: Effort | None = None
) -> Packing:
    """Choose one footprint of each demand so that on no device their sum is more than its room.

    The footprints of a demand stand best first, and earlier ones are tried first. A device without a room
    has none; needs of nothing are met anywhere.
    """
    fitting = [[at for at, one in enumerate(ways) if _fits(rooms, one)] for ways in demands]
    if not all(fitting):
        return Packing(None, is_exact=True)  # one of them does not even fit alone
    order = sorted(range(len(demands)), key=lambda at: (-_least_total(demands[at], fitting[at]), at))
    if len(demands) <= EXACT_LIMIT:
        search = _Search(rooms, demands, fitting, order, effort or Effort())
        choice = search.run()
        if choice is not None or not search.gave_up:
            return Packing(choice, is_exact=True)
    return Packing(_first_fit(rooms, demands, order), is_exact=False)


def _fits(rooms: Mapping[DeviceId, int], footprint: Footprint) -> bool:
    return all(need <= rooms.get(device, 0) for device, need in footprint.items() if need > 0)


def _least_total(ways: Sequence[Footprint], fitting: Sequence[int]) -> int:
    return min(sum(ways[at].values()) for at in fitting)


def _first_fit(
    rooms: Mapping[DeviceId, int], demands: Sequence[Sequence[Footprint]], order: Sequence[int]
) -> tuple[int, ...] | None:
    """The largest first, each in the best of its ways that fits beside those before it."""
    left = dict(rooms)
    choice: dict[int, int] = {}
    for at in order:
        found = next((way for way, one in enumerate(demands[at]) if _fits(left, one)), None)
        if found is None:
            return None
        choice[at] = found
        for device, need in demands[at][found].items():
            if need > 0:
                left[device] -= need
    return tuple(choice[at] for at in range(len(demands)))


class _Search:
    """Depth first over the demands in `order`. A branch ends where the rest cannot fit even if each of them
    took the least it could: on some device, or of all devices together."""

    def __init__(
        self,
        rooms: Mapping[DeviceId, int],
        demands: Sequence[Sequence[Footprint]],
        fitting: Sequence[Sequence[int]],
        order: Sequence[int],
        effort: Effort,
    ) -> None:
        self._devices = sorted({device for ways in demands for one in ways for device in one})
        self._rooms = tuple(rooms.get(device, 0) for device in self._devices)
        self._ways = [[(way, self._vector(demands[at][way])) for way in fitting[at]] for at in order]
        self._order = order
        self._least = self._least_of_rest()
        self._effort = effort
        self._dead_ends: set[tuple[int, tuple[int, ...]]] = set()
        self._chosen: list[int] = []
        self.gave_up = False

    def run(self) -> tuple[int, ...] | None:
        if not self._place(0, self._rooms):
            return None
        by_demand = dict(zip(self._order, self._chosen, strict=True))
        return tuple(by_demand[at] for at in range(len(self._order)))

    def _place(self, depth: int, left: tuple[int, ...]) -> bool:
        if depth == len(self._ways):
            return True
        if not self._effort.spend():
            self.gave_up = True
        if self.gave_up or self._is_hopeless(depth, left) or (depth, left) in self._dead_ends:
            return False
        for way, needs in self._ways[depth]:
            rest = tuple(room - need for room, need in zip(left, needs, strict=True))
            if min(rest, default=0) < 0:
                continue
            self._chosen.append(way)
            if self._place(depth + 1, rest):
                return True
            self._chosen.pop()
        self._dead_ends.add((depth, left))
        return False

    def _is_hopeless(self, depth: int, left: tuple[int, ...]) -> bool:
        per_device, in_all = self._least[depth]
        return in_all > sum(left) or any(need > room for need, room in zip(per_device, left, strict=True))

    def _least_of_rest(self) -> list[tuple[tuple[int, ...], int]]:
        """Per depth: what it and all after it take at least, on each device, and in all."""
        per_device, in_all = [0] * len(self._devices), 0
        found = []
        for ways in reversed(self._ways):
            vectors = [needs for _, needs in ways]
            per_device = [
                total + least for total, least in zip(per_device, map(min, *vectors, vectors[0]), strict=True)
            ]
            in_all += min(map(sum, vectors))
            found.append((tuple(per_device), in_all))
        return found[::-1]

    def _vector(self, footprint: Footprint) -> tuple[int, ...]:
        return tuple(max(0, footprint.get(device, 0)) for device in self._devices)
