"""The books read aloud: snapshots, the answer to "why is it where it is", and the invariants that must
always hold.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Literal

from router.errors import RouterError
from router.scheduler import planner
from router.scheduler.planner import Plan, Reject, Wait
from router.scheduler.planning_view import PlanningView
from router.scheduler.refusals import gib
from router.scheduler.state import Instance, Record, SchedulerState
from router.scheduler.types import NOTHING, Footprint, InstanceId, ModelName, Placement, State
from router.scheduler.views import DeviceView, Explanation, InstanceView, ModelView, QueueView, Snapshot


def snapshot(
    state: SchedulerState, demands: Sequence[Record], waits: Mapping[ModelName, Wait], now: float
) -> Snapshot:
    return Snapshot(
        now=now,
        policy=state.policy.name,
        instances=tuple(_instance(state, one) for one in state.instances.values()),
        queues=tuple(_queue(state, r, waits.get(r.model.name), i, now) for i, r in enumerate(demands, 1)),
        devices=tuple(_device(state, name) for name in state.ledger.devices),
        models=tuple(_model(record) for record in state.records.values() if not record.vanished),
        models_max=state.settings.models_max,
    )


def waits_for(state: SchedulerState, record: Record, wait: Wait | None) -> str:
    """What the waiters of a model wait for, in words."""
    for one in record.instances.values():
        if one.state is State.STARTING:
            return "its llama-server, which is loading"
        if one.state is State.PLANNED:
            victims = [state.instances[v] for v in sorted(one.victims) if v in state.instances]
            candidates = victims or _leaving(state)
            return (
                "room: " + _and(_leaving_words(v) for v in candidates)
                if candidates
                else "memory that is on its way back"
            )
    if wait is None:
        return "its turn"
    names = _and(sorted({_name(state, name) for name in wait.blockers}))
    match wait.kind:
        case "busy":
            return f"{names or 'others'} to become idle, or its own turn to have them drained"
        case "linger":
            return f"{names}, which is likely to be asked for again at once"
        case "behind":
            return "an older request that needs the same room"
        case "expiry":
            policy = state.policy.name
            return f"{names or 'others'} to leave after their idle time: {policy!r} evicts nobody"
        case "foreign":
            return "memory that other programs hold: " + _short_words(state, wait.short)
        case _:
            return "a fresh measurement of the memory"


def explain(state: SchedulerState, record: Record, wait: Wait | None, now: float) -> Explanation:
    """Residence, what its waiters wait for, what would leave for it now, and its last eviction."""
    name = record.model.name
    residence_state = _state_of(record)
    sentences = [_residence(record, now)]
    evict: tuple[InstanceId, ...] = ()
    placement: Placement | None = None
    short: Footprint = NOTHING
    would: Literal["start", "wait", "refuse"] | None = None
    refusal: RouterError | None = None
    if record.waiting:
        verb = "waits" if record.waiting == 1 else "wait"
        sentences.append(f"{_requests(record.waiting)} {verb} for {waits_for(state, record, wait)}.")
    if record.model.error is not None:
        sentences.append(_unusable(name, record.model.error.message))
    elif not record.has_coming():
        match planner.plan(PlanningView(state, now), record):
            case Plan(place, stop, drain):
                would, placement, evict = "start", place, stop + drain
                where = _and(
                    state.ledger.devices[d].label or d for d in place.footprint if d in state.ledger.devices
                )
                actions = [f"{verb} {_and(_name(state, v) for v in some)}"
                           for verb, some in (("stops", stop), ("drains", drain)) if some]  # fmt: skip
                sentences.append(f"A load would go to {where}; it {_and(actions) or 'evicts nothing'}.")
            case Reject(error):
                would, refusal = "refuse", error
                sentences.append(_sentence(f"A request for it is refused now: {error.message}"))
            case Wait(_, place_, _, blockers, missing):
                would, placement, evict, short = "wait", place_, blockers, missing
                leaving = [f"{one.id}, which is leaving" for one in _leaving(state)]
                way = _and([_name(state, b) for b in blockers] or leaving) or "no model of this router"
                short_words = _short_words(state, missing)
                sentences.append(f"A request for it would wait: {short_words}; in the way: {way}.")
    elif any(one.state is State.PLANNED for one in record.instances.values()):
        plan = next(one for one in record.instances.values() if one.state is State.PLANNED)
        placement, evict = plan.placement, tuple(sorted(plan.victims))
    if record.last_error is not None:
        times = "once" if record.failures == 1 else f"{record.failures} times in a row"
        sentences.append(_sentence(f"Its load failed {times}, last: {record.last_error.message}"))
        if record.retry_at is not None and record.retry_at > now and not record.has_coming():
            pause = record.retry_at - now
            sentences.append(
                f"Requests for it are refused for another {pause:.0f} s, before it is tried again."
            )
    if record.is_pinned:
        sentences.append("It is pinned: it is neither evicted nor does it leave by itself.")
    if record.evicted_at is not None:
        for_whom = f" for {record.evicted_for}" if record.evicted_for else ""
        sentences.append(f"It was last evicted {now - record.evicted_at:.0f} s ago{for_whom}.")
    return Explanation(
        model=name,
        state=residence_state,
        text=" ".join(sentences),
        waiting=record.waiting,
        waits_for=waits_for(state, record, wait) if record.waiting else None,
        would_evict=evict,
        placement=placement,
        shortfall=short,
        last_evicted_for=record.evicted_for,
        last_evicted_at=record.evicted_at,
        would=would,
        refusal=refusal,
    )


def check(
    state: SchedulerState, demands: Mapping[ModelName, Record], plans: Mapping[InstanceId, Instance]
) -> None:
    """Every invariant of the books, or AssertionError: asked after every event in tests."""
    state.ledger.check()
    assert set(state.ledger.holders()) == set(state.instances), "the ledger and the instances disagree"
    assert set(plans) == {i for i, one in state.instances.items() if one.state is State.PLANNED}, (
        "plans disagree"
    )
    for record in state.records.values():
        waiting = list(record.waiters())
        assert record.waiting == len(waiting), f"{record.model.name} miscounts its waiters"
        assert (record.model.name in demands) == bool(waiting), (
            f"{record.model.name} is no demand, or one without waiters"
        )
        assert not waiting or record.open_instance() is None, (
            f"{record.model.name} is ready and keeps {len(waiting)} waiting"
        )
        for waiter in waiting:
            assert state.waiters.get(waiter.lease) is waiter, f"{waiter.lease} waits unknown to the books"
    for name, one in state.instances.items():
        assert state.record_of(one).instances.get(name) is one, f"{name} is unknown to its record"
        if one.state in (State.PLANNED, State.STARTING):
            assert not one.leases, f"{name} is leased before it is ready"
        for lease, held in one.leases.items():
            assert lease not in state.waiters, f"{lease} is held and waits"
            assert state.leases.get(lease) is held, f"{lease} is held twice"
            assert held.instance is one, f"{lease} is held by another than {name}"
            assert held.record is state.record_of(one), f"{lease} is of another model than {name}"
    for lease, waiter in state.waiters.items():
        line = state.records[waiter.model].lines[waiter.priority]
        assert line.get(lease) is waiter, f"{lease} stands in no line"
    limit = state.settings.models_max
    live = sum(1 for one in state.instances.values() if one.is_live and not one.is_adopted)
    assert not limit or live <= limit, f"{live} of {limit} are live"


# --- pictures ---


def _instance(state: SchedulerState, one: Instance) -> InstanceView:
    return InstanceView(
        id=one.id,
        model=one.model.name,
        state=one.state,
        placement=one.placement,
        leases=tuple(one.leases),
        reserved=dict(state.ledger.reserved(one.id)),
        used=dict(state.ledger.used(one.id)),
        since=one.ready_at if one.ready_at is not None else one.since,
        idle_since=one.last_used if one.is_idle else None,
        expires_at=state.expires_at(one),
        pinned=state.is_pinned(one),
        cause=one.cause,
        for_model=one.for_model,
        victims=tuple(sorted(one.victims)),
        definition=one.model.definition,
        started_at=one.started_at,
    )


def _queue(state: SchedulerState, record: Record, wait: Wait | None, position: int, now: float) -> QueueView:
    return QueueView(
        model=record.model.name,
        waiting=record.waiting,
        oldest_since=min(w.since for w in record.waiters()),
        position=position,
        reason=waits_for(state, record, wait),
        expected_seconds=_expected_seconds(state, record, wait, now),
    )


def _expected_seconds(state: SchedulerState, record: Record, wait: Wait | None, now: float) -> float | None:
    """Until ready, from the measured load and lease times; None where it depends on what others will do."""
    load = record.forecast.load_seconds
    for one in record.instances.values():
        if one.state is State.STARTING and one.started_at is not None:
            return max(0.0, one.started_at + load - now)
        if one.state is State.PLANNED:
            ends = [
                h.expected_end
                for v in one.victims
                if v in state.instances
                for h in state.instances[v].leases.values()
            ]
            return max([0.0, *(end - now for end in ends)]) + load
    if wait is None or wait.until is None:
        return None
    return max(0.0, wait.until - now) + load


def _device(state: SchedulerState, name: str) -> DeviceView:
    ledger = state.ledger
    known = ledger.devices[name]
    return DeviceView(
        id=name,
        label=known.label or name,
        total=known.total,
        margin=known.margin,
        free=ledger.free.get(name),
        reserved=ledger.booked(name),
        used=ledger.used_by_ours(name),
        promised=ledger.promised(name),
        returning=ledger.returning(name),
        others=ledger.others(name),
        room=ledger.room(name),
    )


def _model(record: Record) -> ModelView:
    """A catalog may have a thousand models of which a few were ever asked for: the others look the same each
    time.
    """
    was_used = record.evictions or record.failures or record.forecast.loads
    if was_used or record.pin is not None or record.last_error is not None:
        return _model_anew(record)
    if record.unused is None or record.unused[0] is not record.model:
        record.unused = record.model, _model_anew(record)
    return record.unused[1]


def _model_anew(record: Record) -> ModelView:
    return ModelView(
        name=record.model.name,
        load_seconds=record.forecast.load_seconds,
        loads=record.forecast.loads,
        evictions=record.evictions,
        failures=record.failures,
        retry_at=record.retry_at,
        error=record.last_error.message if record.last_error is not None else None,
        last_evicted_at=record.evicted_at,
        last_evicted_for=record.evicted_for,
        pinned=record.model.pinned if record.pin is None else record.pin,
        exit_code=_exit_code(record.last_error),
        is_load_measured=record.forecast.is_measured,
        hold_seconds=record.forecast.measured_hold_seconds,
    )


def _exit_code(error: RouterError | None) -> int | None:
    code = error.details.get("returncode") if error is not None else None
    return code if isinstance(code, int) else None


# --- words ---


def _state_of(record: Record) -> str:
    order = (State.READY, State.STARTING, State.PLANNED, State.DRAINING, State.STOPPING)
    present = {one.state for one in record.instances.values()}
    return next((state.value for state in order if state in present), "unloaded")


def _residence(record: Record, now: float) -> str:
    parts = []
    for one in record.instances.values():
        match one.state:
            case State.PLANNED:
                parts.append(f"{one.id} is started as soon as there is room for it")
            case State.STARTING:
                parts.append(f"{one.id} has been loading for {now - (one.started_at or one.since):.0f} s")
            case State.READY if one.leases:
                parts.append(f"{one.id} is loaded and serves {_requests(len(one.leases))}")
            case State.READY:
                parts.append(f"{one.id} is loaded and idle for {now - one.last_used:.0f} s")
            case State.DRAINING | State.STOPPING:
                parts.append(_leaving_words(one))
    return (_and(parts) if parts else f"{record.model.name} is not loaded") + "."


def _leaving(state: SchedulerState) -> list[Instance]:
    """Those that are on their way out, for whatever cause."""
    return [one for one in state.instances.values() if one.state in (State.DRAINING, State.STOPPING)]


def _leaving_words(one: Instance) -> str:
    """What is still to happen until an instance that drains or is stopped is gone, and why it goes."""
    assert one.cause is not None, f"{one.id} is {one.state.value} for no cause"
    why = one.cause.value + (f" for {one.for_model}" if one.for_model else "")
    running = _requests(len(one.leases))
    if one.state is not State.DRAINING:
        still = f", with {running} running" if one.leases else ""
        return f"{one.id} is being stopped{still} ({why})"
    if not one.leases:
        return f"{one.id} takes no new requests and is stopped next ({why})"
    ends = "has ended" if len(one.leases) == 1 else "have ended"
    return f"{one.id} takes no new requests and is stopped when its {running} {ends} ({why})"


def _requests(count: int) -> str:
    return "1 request" if count == 1 else f"{count} requests"


def _unusable(name: ModelName, message: str) -> str:
    """Most messages begin with the same words."""
    begun = f"{name} cannot be loaded: "
    return _sentence(f"It cannot be loaded: {message.removeprefix(begun)}")


def _sentence(text: str) -> str:
    return text if text.endswith((".", "!", "?")) else f"{text}."


def _short_words(state: SchedulerState, short: Footprint) -> str:
    words = [
        f"{gib(b)} short on {state.ledger.devices[d].label or d}"
        for d, b in short.items()
        if d in state.ledger.devices
    ]
    return _and(words) or "the number of models is at its limit"


def _name(state: SchedulerState, instance: InstanceId) -> str:
    one = state.instances.get(instance)
    return one.model.name if one is not None else instance


def _and(words: Iterable[str]) -> str:
    items = list(words)
    if len(items) <= 1:
        return "".join(items)
    return ", ".join(items[:-1]) + " and " + items[-1]
