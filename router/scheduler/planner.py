"""How a model that has waiters could get its room: a pure reading of the books that changes nothing.

`plan` answers with a `Plan` (book this placement, these leave for it), a `Wait` (for what, and until when
it is worth asking again) or a `Reject`. Its decision tree is numbered in its docstring and in its code.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import groupby

from router.errors import RouterError
from router.scheduler import refusals
from router.scheduler.planning_view import Idle, PlanningView
from router.scheduler.state import Instance, Record, SchedulerState, Waiter
from router.scheduler.types import NOTHING, Footprint, InstanceId, Placement, State
from router.scheduler.victims import BUSY, EvictionCandidate, Need, choose


@dataclass(frozen=True, slots=True)
class Plan:
    """Book `placement`; stop the idle `stop` and close the gates of the busy `drain`."""

    placement: Placement
    stop: tuple[InstanceId, ...] = ()
    drain: tuple[InstanceId, ...] = ()


@dataclass(frozen=True, slots=True)
class Wait:
    """`kind`: busy (its blockers hold leases), linger (they are likely to be asked for again), behind
    (an older request's claim), expiry (nobody is evicted, they leave by themselves), foreign (other
    programs hold the memory), measure."""

    kind: str
    placement: Placement | None = None
    until: float | None = None
    blockers: tuple[InstanceId, ...] = ()
    short: Footprint = field(default_factory=lambda: NOTHING)


@dataclass(frozen=True, slots=True)
class Reject:
    error: RouterError


@dataclass(frozen=True, slots=True)
class Claim:
    """An overdue demand that cannot be planned yet: younger ones may not take what it will need."""

    record: Record
    placement: Placement


def plan(seen: PlanningView, record: Record, ahead: Sequence[Claim] = ()) -> Plan | Wait | Reject:
    """Decide for one model without an instance.

    1. A placement that not even an empty machine could hold is no placement; none left: rejected, with the
    numbers. 2. An older overdue request claims what this one would take: wait behind it. 3. Better tiers
    first: it fits beside what stays (counting what is on its way out), or when idle ones leave: planned. 4.
    Nobody leaves for it under this policy, ever (no-evict; pinned): rejected at once. 5. The memory is held
    by other programs: wait a little, then rejected. 6. Overdue against busy ones: planned, they are
    drained. 7. Wait for the busy, the lingering, or those that expire.
    """
    possible = seen.state.ledger.possible(record.wanted.placements)
    if not possible:
        return Reject(refusals.too_large(seen.state, record))  # 1
    open_ = [p for p in possible if not any(_is_claimed(seen, record, p, claim) for claim in ahead)]
    if not open_:
        behind = tuple(name for claim in ahead for name in claim.record.instances)
        return Wait("behind", possible[0], blockers=behind)  # 2
    best = _first_tier(seen, record, open_)
    if best is not None:
        return best  # 3
    stuck = _never(seen, record, possible)
    if stuck is not None:
        return stuck  # 4, 5
    drained = _by_draining(seen, record, open_)
    if drained is not None:
        return drained  # 6
    return _wait(seen, record, open_[0])  # 7


def claims_at(record: Record, quantum: float) -> float | None:
    """From when on a demand has waited long enough to claim its room ahead of younger ones."""
    cost = record.forecast.load_seconds
    return min((w.since + _patience(w, cost, quantum) for w in record.heads()), default=None)


def overdue_at(state: SchedulerState, record: Record, victim: Instance) -> float | None:
    """From when on `victim` is turned out although it is in use or likely to be: the waiting must
    outweigh the cost of the switch, counted from the victim's own readiness at the earliest, or overload
    would end in first-come-first-served."""
    cost = state.record_of(victim).forecast.hold_seconds() + record.forecast.load_seconds
    ready = victim.ready_at if victim.ready_at is not None else victim.since
    quantum = state.settings.quantum
    return min((max(w.since, ready) + _patience(w, cost, quantum) for w in record.heads()), default=None)


def _patience(waiter: Waiter, cost: float, quantum: float) -> float:
    """Seconds of waiting that outweigh a switch of that cost: the quantum, but no more than half of what
    the waiter can wait at all (else a costly switch would never come before its deadline) unless the
    switch itself takes longer."""
    budget = max(cost, (waiter.deadline - waiter.since) / 2)
    return min(quantum * cost / waiter.priority.weight, budget)


# --- 2: claims of older demands ---


def _is_claimed(seen: PlanningView, record: Record, placement: Placement, claim: Claim) -> bool:
    """Whether the claim could not be met any more with this one loaded too, even if all left that may."""
    if claim.record.model.exclusive & record.model.exclusive:
        return True
    if seen.slots_missing("movable", newcomers=2):
        return True
    wanted = claim.placement.footprint
    return any(
        need > 0 and wanted.get(device, 0) > 0 and need + wanted[device] > (seen.room(device, "movable") or 0)
        for device, need in placement.footprint.items()
    )


# --- 3: beside what stays, or when idle ones leave ---


def _first_tier(seen: PlanningView, record: Record, placements: Sequence[Placement]) -> Plan | None:
    idle = [one.candidate for one in seen.idle if not _lingers(seen, record, one)]
    for _, tier in groupby(sorted(placements, key=lambda p: p.tier), key=lambda p: p.tier):
        options = [
            (_preference(seen, place, candidates), index, place, candidates)
            for index, place in enumerate(tier)
            if (candidates := _victims(seen, record, place, idle)) is not None
        ]
        if options:
            _, _, place, candidates = min(options, key=lambda option: option[:2])
            return Plan(place, stop=tuple(one.id for one in candidates))
    return None


def _preference(
    seen: PlanningView, place: Placement, candidates: Sequence[EvictionCandidate]
) -> tuple[float, ...]:
    """Nobody leaves before somebody; room that is real before room to come; then the fewest and
    cheapest; then the fit."""
    ledger = seen.state.ledger
    left = sum((ledger.room(d) or 0) - need for d, need in place.footprint.items() if need > 0)
    spread = -left if seen.state.settings.placement == "spread" else left
    worst = max(((one.group, one.rank) for one in candidates), default=(0, 0.0))
    return (
        len(candidates) > 0,
        not ledger.fits(place.footprint),
        worst[0],
        len(candidates),
        worst[1],
        spread,
    )


def _victims(
    seen: PlanningView, record: Record, place: Placement, candidates: Sequence[EvictionCandidate]
) -> tuple[EvictionCandidate, ...] | None:
    """Who of `candidates` makes the room; () when it is there or on its way; None when they cannot."""
    if not seen.is_healthy(place):
        return None  # nobody leaves for a place of which nothing is known
    short, slots = seen.short(place), seen.slots_missing()
    rivals = {one.id for one in seen.rivals(record)}
    if not short and not slots and not rivals:
        return ()
    if not candidates or any(missing > seen.at_most(device) for device, missing in short.items()):
        return None  # most blocked demands end here, without a look at anyone
    always = [one for one in candidates if one.id in rivals]
    if len(always) < len(rivals):
        return None
    return choose(candidates, Need(short, slots), always=always, additive=seen.state.policy.additive)


def _lingers(seen: PlanningView, record: Record, one: Idle) -> bool:
    """Whether it is left alone: its own clients usually come back sooner than a swap would take."""
    until = _lingers_until(seen, record, one)
    return until is not None and until > seen.now


def _lingers_until(seen: PlanningView, record: Record, one: Idle) -> float | None:
    if one.lingers_until is None:
        return None
    due = overdue_at(seen.state, record, one.instance)
    return one.lingers_until if due is None else min(one.lingers_until, due)


# --- 4 and 5: it would never fit ---


def _never(seen: PlanningView, record: Record, placements: Sequence[Placement]) -> Wait | Reject | None:
    state = seen.state
    if state.policy.refuses_when_full:
        return Reject(refusals.full(state, record, placements[0]))  # 4
    if any(_could_fit(seen, record, place, "movable") for place in placements):
        return None
    if any(_could_fit(seen, record, place, "everyone") for place in placements):
        coming = any(one.state is State.PLANNED for one in state.instances.values())
        return None if coming else Reject(refusals.full(state, record, placements[0]))  # 4
    since = record.blocked_externally_since if record.blocked_externally_since is not None else seen.now
    until = since + state.settings.external_memory_wait
    if until <= seen.now:
        return Reject(refusals.held_by_others(state, placements[0]))  # 5
    return Wait("foreign", placements[0], until=until, short=seen.short(placements[0], "everyone"))


def _could_fit(seen: PlanningView, record: Record, place: Placement, gone: str) -> bool:
    left = seen.everyone - getattr(seen, gone)
    if any(one.id in left for one in seen.rivals(record)):
        return False
    return seen.is_healthy(place) and not seen.slots_missing(gone) and not seen.short(place, gone)


# --- 6: the busy are drained ---


def _by_draining(seen: PlanningView, record: Record, placements: Sequence[Placement]) -> Plan | None:
    due = [candidate for one, candidate in seen.busy if _is_due(seen, record, one)]
    if not due:
        return None
    # Idle ones that linger would be spared by a fixed rule only; a busy one is never drained in their stead.
    candidates = [one.candidate for one in seen.idle] + due
    for place in sorted(placements, key=lambda p: p.tier):
        chosen = _victims(seen, record, place, candidates)
        if chosen is not None:
            return Plan(
                place,
                stop=tuple(one.id for one in chosen if one.group != BUSY),
                drain=tuple(one.id for one in chosen if one.group == BUSY),
            )
    return None


def _is_due(seen: PlanningView, record: Record, one: Instance) -> bool:
    due = overdue_at(seen.state, record, one)
    return due is not None and due <= seen.now


# --- 7: wait ---


def _wait(seen: PlanningView, record: Record, place: Placement) -> Wait:
    blockers = tuple(_in_the_way(seen, record, place))
    names = tuple(one.id for one in blockers)
    short = seen.short(place)
    if not seen.state.policy.evicts:
        return Wait("expiry", place, blockers=names, short=short)
    busy = any(one.leases for one in blockers)
    return Wait(
        "busy" if busy or not blockers else "linger",
        place,
        until=min((t for t in _moments(seen, record) if t > seen.now), default=None),
        blockers=names,
        short=short,
    )


def _in_the_way(seen: PlanningView, record: Record, place: Placement) -> Iterator[Instance]:
    rivals = {one.id for one in seen.rivals(record)}
    by_number = seen.slots_missing() > 0
    for one in seen.state.instances.values():
        if one.is_leaving or one.state is State.PLANNED:
            continue
        reserved = seen.state.ledger.reserved(one.id)
        if by_number or one.id in rivals or any(reserved.get(d, 0) > 0 for d in place.footprint):
            yield one


def _moments(seen: PlanningView, record: Record) -> Iterator[float]:
    """When somebody stops lingering, or becomes due to be drained for this one."""
    for one in seen.idle:
        until = _lingers_until(seen, record, one)
        if until is not None:
            yield until
    for instance, _ in seen.busy:
        due = overdue_at(seen.state, record, instance)
        if due is not None:
            yield due
