"""How a model that has waiters could get its room: a pure reading of the books that changes nothing.

`plan` answers with a `Plan` (book this placement, these leave for it), a `Wait` (for what, and until when
it is worth asking again) or a `Reject`. Its decision tree is numbered in its docstring and in its code.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby

from router.core import refusals
from router.core.state import Books, Instance, Record, Waiter
from router.core.types import NOTHING, DeviceId, Footprint, InstanceId, Placement, State
from router.core.victims import Leaver, Need, choose
from router.errors import RouterError

ABANDONED, SPARE, IDLE, BUSY = range(4)


@dataclass(frozen=True, slots=True)
class Plan:
    """Book `placement`; stop the idle `stop` and close the gates of the busy `drain`."""

    placement: Placement
    stop: tuple[InstanceId, ...] = ()
    drain: tuple[InstanceId, ...] = ()


@dataclass(frozen=True, slots=True)
class Wait:
    """`kind`: busy (its blockers hold leases), linger (they are likely to be asked for again), behind (an
    older request's claim), expiry (nobody is evicted, they leave by themselves), foreign (other programs
    hold the memory).
    """

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


def plan(books: Books, record: Record, now: float, ahead: Sequence[Claim] = ()) -> Plan | Wait | Reject:
    """Decide for one model without an instance.

    1. A placement that not even an empty machine could hold is no placement; none left: rejected, with the
       numbers.
    2. An older overdue request claims what this one would take: wait behind it.
    3. Better tiers first: it fits beside what stays (counting what is on its way out), or when idle ones
       leave: planned.
    4. Nobody leaves for it under this policy, ever (no-evict; pinned): rejected at once.
    5. The memory is held by other programs: wait a little, then rejected.
    6. Overdue against busy ones: planned, they are drained.
    7. Wait for the busy, the lingering, or those that expire.
    """
    possible = [p for p in record.model.placements if not books.ledger.impossible(p.footprint)]
    if not possible:
        return Reject(refusals.too_large(books, record))  # 1
    open_ = [p for p in possible if not any(_is_claimed(books, record, p, claim) for claim in ahead)]
    if not open_:
        behind = tuple(name for claim in ahead for name in claim.record.instances)
        return Wait("behind", possible[0], blockers=behind)  # 2
    best = _first_tier(books, record, open_, now)
    if best is not None:
        return best  # 3
    stuck = _never(books, record, possible, now)
    if stuck is not None:
        return stuck  # 4, 5
    drained = _by_draining(books, record, open_, now)
    if drained is not None:
        return drained  # 6
    return _wait(books, record, open_, now)  # 7


def is_overdue(books: Books, record: Record, now: float) -> tuple[bool, float | None]:
    """Whether a demand has waited long enough to claim its room ahead of younger ones, and else from when
    on it will have.
    """
    cost = record.forecast.load_seconds
    due = min((w.since + _patience(books, w, cost) for w in record.heads()), default=None)
    return (due is not None and due <= now, due)


def overdue_at(books: Books, record: Record, victim: Instance) -> float | None:
    """From when on `victim` is turned out although it is in use or likely to be: the waiting must outweigh
    `quantum` times the cost of the switch, counted from the victim's own readiness at the earliest, or
    overload would end in first-come-first-served.
    """
    cost = books.record_of(victim).forecast.hold_seconds() + record.forecast.load_seconds
    ready = victim.ready_at if victim.ready_at is not None else victim.since
    return min(
        (max(w.since, ready) + _patience(books, w, cost) for w in record.heads()),
        default=None,
    )


def _patience(books: Books, waiter: Waiter, cost: float) -> float:
    """Seconds of waiting that outweigh a switch of that cost: the quantum, but no more than half of what
    the waiter can wait at all (else a costly switch would never come before its deadline), and never less
    than the cost.
    """
    budget = max(cost, (waiter.deadline - waiter.since) / 2)
    return min(books.settings.quantum * cost / waiter.priority.weight, budget)


def slots_missing(books: Books, *, before: int | None = None) -> int:
    """How many instances too many there would be with one more, once all that leave have left."""
    if books.settings.models_max <= 0:
        return 0
    staying = sum(
        1
        for one in books.instances.values()
        if not one.is_leaving and (one.is_live or before is None or one.order < before)
    )
    return max(0, staying + 1 - books.settings.models_max)


def leaving(books: Books) -> set[InstanceId]:
    return {one.id for one in books.instances.values() if one.is_leaving}


# --- 2: claims of older demands ---


def _is_claimed(books: Books, record: Record, placement: Placement, claim: Claim) -> bool:
    if claim.record.model.exclusive & record.model.exclusive:
        return True
    movable = {one.id for one in books.instances.values() if one.is_leaving or may_leave(books, one, 0.0)}
    limit = books.settings.models_max
    if limit > 0 and len(books.instances) - len(movable) + 2 > limit:
        return True
    for device, need in placement.footprint.items():
        wanted = claim.placement.footprint.get(device, 0)
        if need > 0 and wanted > 0:
            together = {device: need + wanted}
            if books.ledger.shortfall(together, leaving=movable):
                return True
    return False


def may_leave(books: Books, one: Instance, now: float) -> bool:
    """Whether it can be expected to leave some day: evictable, or with an end of its own."""
    if one.state is State.PLANNED:
        return False
    return books.rank(one, now) is not None or books.ttl(one) is not None


# --- 3: beside what stays, or when idle ones leave ---


def _first_tier(books: Books, record: Record, placements: Sequence[Placement], now: float) -> Plan | None:
    ordered = sorted(placements, key=lambda p: p.tier)
    for _, tier in groupby(ordered, key=lambda p: p.tier):
        options = [
            (_preference(books, place, leavers), index, place, leavers)
            for index, place in enumerate(tier)
            if (leavers := _idle_victims(books, record, place, now)) is not None
        ]
        if options:
            _, _, place, leavers = min(options, key=lambda option: option[:2])
            return Plan(place, stop=tuple(one.id for one in leavers))
    return None


def _preference(books: Books, place: Placement, leavers: Sequence[Leaver]) -> tuple[float, ...]:
    """Nobody leaves before somebody; room that is real before room to come; then the fewest and cheapest;
    then the best fit.
    """
    left = sum((books.ledger.room(d) or 0) - need for d, need in place.footprint.items() if need > 0)
    spread = -left if books.settings.placement == "spread" else left
    worst = max(((one.group, one.rank) for one in leavers), default=(0, 0.0))
    return (
        len(leavers) > 0,
        not books.ledger.fits(place.footprint),
        worst[0],
        len(leavers),
        worst[1],
        spread,
    )


def _idle_victims(books: Books, record: Record, place: Placement, now: float) -> tuple[Leaver, ...] | None:
    need = _need(books, place)
    always = []
    for one in books.conflicts(record.model):
        if one.is_leaving:
            continue
        leaver = _as_idle(books, record, one, now)
        if leaver is None:
            return None
        always.append(leaver)
    if not always and need.met_by(()):
        return ()
    useful = (_as_idle(books, record, one, now) for one in books.instances.values())
    leavers = [one for one in useful if one is not None]
    return choose(leavers, need, always=always, additive=books.policy.additive)


def _need(books: Books, place: Placement) -> Need:
    return Need(books.ledger.shortfall(place.footprint, leaving=leaving(books)), slots_missing(books))


def _as_idle(books: Books, record: Record, one: Instance, now: float) -> Leaver | None:
    """The instance as one that may be stopped now, or None."""
    if one.leases or one.state not in (State.STARTING, State.READY):
        return None
    rank = books.rank(one, now)
    if rank is None:
        return None
    if one.state is State.STARTING:
        if books.record_of(one).waiting:
            return None
        return Leaver(one.id, books.ledger.reserved(one.id), ABANDONED, one.since)
    if (until := lingers_until(books, record, one)) is not None and until > now:
        return None
    return Leaver(one.id, books.ledger.reserved(one.id), SPARE if _is_spare(books, one) else IDLE, rank)


def lingers_until(books: Books, record: Record, one: Instance) -> float | None:
    """Until when an idle instance is left alone, because its own clients usually come back sooner than a
    swap would take.
    """
    linger = books.record_of(one).forecast.linger_seconds(books.settings.linger)
    if linger <= 0:
        return None
    due = overdue_at(books, record, one)
    until = one.last_used + linger
    return until if due is None else min(until, due)


def _is_spare(books: Books, one: Instance) -> bool:
    """Whether a better used replica of the same model stays."""

    def use(each: Instance) -> tuple[int, float, int]:
        return (len(each.leases), each.last_used, each.order)

    replicas = (each for each in books.record_of(one).instances.values() if each.state is State.READY)
    return any(use(other) > use(one) for other in replicas)


# --- 4 and 5: it would never fit ---


def _never(books: Books, record: Record, placements: Sequence[Placement], now: float) -> Wait | Reject | None:
    if books.policy.refuses_when_full:
        return Reject(refusals.full(books, record, placements[0]))  # 4
    movable = {one.id for one in books.instances.values() if one.is_leaving or may_leave(books, one, now)}
    planned = {one.id for one in books.instances.values() if one.state is State.PLANNED}
    if any(_could_fit(books, record, place, movable | planned) for place in placements):
        return None
    everyone = set(books.instances)
    if any(_could_fit(books, record, place, everyone) for place in placements):
        return Reject(refusals.full(books, record, placements[0]))  # 4
    since = record.starved_since if record.starved_since is not None else now
    until = since + books.settings.foreign_wait
    if until <= now:
        return Reject(refusals.held_by_others(books, placements[0]))  # 5
    short = books.ledger.shortfall(placements[0].footprint, leaving=everyone)
    return Wait("foreign", placements[0], until=until, short=short)


def _could_fit(books: Books, record: Record, place: Placement, gone: set[InstanceId]) -> bool:
    if any(one.id not in gone for one in books.conflicts(record.model)):
        return False
    limit = books.settings.models_max
    if limit > 0 and len(books.instances.keys() - gone) + 1 > limit:
        return False
    return not books.ledger.shortfall(place.footprint, leaving=gone)


# --- 6: the busy are drained ---


def _by_draining(books: Books, record: Record, placements: Sequence[Placement], now: float) -> Plan | None:
    if not books.policy.evicts:
        return None
    for place in sorted(placements, key=lambda p: p.tier):
        leavers: list[Leaver] = []
        for one in books.instances.values():
            leaver = _as_idle(books, record, one, now) or _as_busy(books, record, one, now)
            if leaver is not None:
                leavers.append(leaver)
        rivals = {one.id for one in books.conflicts(record.model) if not one.is_leaving}
        always = [one for one in leavers if one.id in rivals]
        if len(always) < len(rivals):
            continue
        chosen = choose(leavers, _need(books, place), always=always, additive=books.policy.additive)
        if chosen is not None:
            return Plan(
                place,
                stop=tuple(one.id for one in chosen if one.group != BUSY),
                drain=tuple(one.id for one in chosen if one.group == BUSY),
            )
    return None


def _as_busy(books: Books, record: Record, one: Instance, now: float) -> Leaver | None:
    if one.state is not State.READY or not one.leases:
        return None
    rank = books.rank(one, now)
    due = overdue_at(books, record, one)
    if rank is None or due is None or due > now:
        return None
    return Leaver(one.id, books.ledger.reserved(one.id), BUSY, rank)


# --- 7: wait ---


def _wait(books: Books, record: Record, placements: Sequence[Placement], now: float) -> Wait:
    place = placements[0]
    short = books.ledger.shortfall(place.footprint, leaving=leaving(books))
    blockers = tuple(_in_the_way(books, record, place, short))
    if not books.policy.evicts:
        return Wait("expiry", place, blockers=tuple(one.id for one in blockers), short=short)
    times = [t for one in blockers if (t := _worth_asking_at(books, record, one)) is not None and t > now]
    busy = any(one.leases for one in blockers)
    return Wait(
        "busy" if busy or not blockers else "linger",
        place,
        until=min(times, default=None),
        blockers=tuple(one.id for one in blockers),
        short=short,
    )


def _in_the_way(
    books: Books, record: Record, place: Placement, short: Mapping[DeviceId, int]
) -> Iterator[Instance]:
    rivals = {one.id for one in books.conflicts(record.model)}
    for one in books.instances.values():
        if one.is_leaving or one.state is State.PLANNED:
            continue
        holds = any(books.ledger.reserved(one.id).get(device, 0) > 0 for device in place.footprint)
        if one.id in rivals or holds or books.settings.models_max > 0:
            yield one


def _worth_asking_at(books: Books, record: Record, one: Instance) -> float | None:
    if books.rank(one, 0.0) is None or one.state is not State.READY:
        return None
    if one.is_idle:
        return lingers_until(books, record, one)
    return overdue_at(books, record, one)
