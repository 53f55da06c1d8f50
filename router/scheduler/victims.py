"""Which instances leave so that another fits: a set that makes room on *every* short device, and no member
of it needless.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from router.scheduler.types import DeviceId, Footprint, InstanceId

#: The groups of those that may leave, in the order in which they are taken.
ABANDONED, SPARE, IDLE, BUSY = range(4)
#: Up to this many candidates the cheapest sum is searched for exactly (2^n sets with pruning); beyond,
#: greedily.
EXACT_LIMIT: Final = 12


@dataclass(frozen=True, slots=True)
class EvictionCandidate:
    """One that may leave. `group` comes before `rank`: abandoned loads, spare replicas, idle ones, busy
    ones to drain.
    """

    id: InstanceId
    frees: Footprint
    group: int
    rank: float


@dataclass(frozen=True, slots=True)
class Need:
    """What is missing: bytes per device, and instances under the limit on their number."""

    short: Mapping[DeviceId, int]
    slots: int = 0

    def met_by(self, candidates: Sequence[EvictionCandidate]) -> bool:
        return len(candidates) >= self.slots and all(
            sum(candidate.frees.get(device, 0) for candidate in candidates) >= missing
            for device, missing in self.short.items()
        )

    def served_by(self, candidate: EvictionCandidate) -> bool:
        return self.slots > 0 or any(candidate.frees.get(device, 0) > 0 for device in self.short)


def choose(
    candidates: Sequence[EvictionCandidate],
    need: Need,
    *,
    always: Sequence[EvictionCandidate] = (),
    additive: bool = False,
) -> tuple[EvictionCandidate, ...] | None:
    """The victims, or None if all of them together do not make room. `always` must go whatever they free.

    Lowest (group, rank) first until it suffices, then the highest is spared wherever the rest suffices:
    the most valuable victim is as cheap as can be, and none is needless. With `additive` ranks the
    cheapest sum is taken instead, within the lowest group that suffices."""
    useful = sorted(
        (one for one in candidates if one not in always and need.served_by(one)),
        key=lambda one: (one.group, one.rank, one.id),
    )
    chosen = list(always)
    if not need.met_by(chosen):
        for one in useful:
            chosen.append(one)
            if need.met_by(chosen):
                break
        else:
            return None
    if additive and len(chosen) > len(always):
        worst = max(one.group for one in chosen[len(always) :])
        allowed = [one for one in useful if one.group <= worst]
        chosen = _cheapest_sum(allowed, need, list(always))
    return tuple(_spare(chosen, need, always))


def _spare(
    chosen: list[EvictionCandidate], need: Need, always: Sequence[EvictionCandidate]
) -> list[EvictionCandidate]:
    """Drop whoever is not needed, the most valuable first."""
    for one in sorted(chosen, key=lambda one: (one.group, one.rank, one.id), reverse=True):
        if one in always:
            continue
        rest = [other for other in chosen if other is not one]
        if need.met_by(rest):
            chosen = rest
    return chosen


def _cheapest_sum(
    useful: list[EvictionCandidate], need: Need, always: list[EvictionCandidate]
) -> list[EvictionCandidate]:
    def cost(one: EvictionCandidate) -> tuple[int, float]:
        # One that is busy costs more than any number of idle ones.
        return (1 if one.group == BUSY else 0, one.rank)

    if len(useful) > EXACT_LIMIT:
        return _greedy_by_density(useful, need, always)
    best: tuple[tuple[int, float], list[EvictionCandidate]] | None = None

    def search(index: int, taken: list[EvictionCandidate], spent: tuple[int, float]) -> None:
        nonlocal best
        if best is not None and spent >= best[0]:
            return
        if need.met_by(always + taken):
            best = (spent, list(taken))
            return
        if index == len(useful):
            return
        price = cost(useful[index])
        search(index + 1, [*taken, useful[index]], (spent[0] + price[0], spent[1] + price[1]))
        search(index + 1, taken, spent)

    search(0, [], (0, 0.0))
    assert best is not None, "all of them together suffice: the caller has seen it"
    return always + best[1]


def _greedy_by_density(
    useful: list[EvictionCandidate], need: Need, always: list[EvictionCandidate]
) -> list[EvictionCandidate]:
    """Cheapest per byte freed where bytes are short first: the usual approximation of weighted set cover."""

    def density(one: EvictionCandidate) -> tuple[int, float, str]:
        freed = sum(min(one.frees.get(d, 0), missing) for d, missing in need.short.items()) + 1
        return (one.group, one.rank / freed, one.id)

    chosen = list(always)
    for one in sorted(useful, key=density):
        if need.met_by(chosen):
            break
        chosen.append(one)
    return chosen
