"""The whole decision: `handle(event, now)` changes the books and answers with commands.

An event is told in three steps: what it changes by itself; then one pass that brings everything up to date
(what expired, whose plan is forsaken, who is granted, which plan's room is real, who can be planned); then
the commands, in the order in which they were decided. Nothing here waits, reads a clock or calls back.
`planner` decides who makes room for whom."""

from __future__ import annotations

import heapq
import math
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import replace

from router.errors import RouterError
from router.ids import NO_DEFINITION, instance_id, number_of
from router.scheduler import explain, planner, refusals
from router.scheduler.forecast import Forecast
from router.scheduler.ledger import Ledger
from router.scheduler.planner import Claim, Plan, Reject, Wait
from router.scheduler.planning_view import PlanningView
from router.scheduler.policy import Policy
from router.scheduler.state import ActiveLease, Instance, Record, SchedulerState, Settings, Waiter
from router.scheduler.types import (
    READY,
    Acquire,
    Adopted,
    Cause,
    Closed,
    Command,
    Device,
    DeviceId,
    Event,
    Exited,
    Grant,
    HostLost,
    InstanceId,
    Learned,
    LeaseId,
    Measured,
    Model,
    ModelName,
    Pinned,
    Placement,
    Ready,
    Refuse,
    Release,
    Reloaded,
    Start,
    State,
    Stop,
    Tick,
    Unload,
)
from router.scheduler.views import Explanation, Snapshot, Use

__all__ = ["Scheduler", "Settings"]

#: How much more is reserved for a model that ran out of memory while it loaded.
OUT_OF_MEMORY_FACTOR = 1.15
#: Reasons to drain that outlive the plan of whoever wanted the room.
_FINAL = (Cause.UNLOADED, Cause.RELOADED)


class Scheduler:
    """Told events in order with a clock that does not go back; single-threaded, synchronous,
    deterministic.
    """

    def __init__(
        self,
        models: Mapping[ModelName, Model],
        devices: Iterable[Device],
        policy: Policy,
        settings: Settings | None = None,
    ) -> None:
        settings = settings or Settings()
        ledger = Ledger({d.id: d for d in devices}, settings.recovery)
        self._state = SchedulerState(ledger, policy, settings)
        for model in models.values():
            self._state.records[model.name] = Record(model, Forecast.of(model))
        #: Time of the last event, in seconds of the caller's clock.
        self._now = 0.0
        #: Number of the last waiter or instance, counted together: the order in which they came.
        self._order = 0
        #: The last number given to an instance of each model. It outlives the model's record.
        self._ids: dict[ModelName, int] = {}
        #: Heap of (deadline in seconds, order, lease) of all waiters, and of some that have left the queue.
        self._deadlines: list[tuple[float, int, LeaseId]] = []
        #: The models with waiters.
        self._demands: dict[ModelName, Record] = {}
        #: The instances that are PLANNED, in the order in which they were planned.
        self._plans: dict[InstanceId, Instance] = {}
        #: Why the last planning left a model waiting.
        self._waits: dict[ModelName, Wait] = {}
        #: When planning anew may come to another result without an event, in seconds; None: never.
        self._wake: float | None = None
        #: Whether something happened that may change what can be planned. Most events (a grant, the end of
        #: one of several leases) cannot, and planning every demand anew for each would cost more than all
        #: the rest.
        self._dirty = True
        #: The next deadline, in seconds: before it, routine can change nothing else. `-inf` where it is not
        #: known, `inf` where there is none.
        self._due = -math.inf
        #: The instance that serves a model, of each model that has only this one, until an event that is not
        #: routine.
        self._open: dict[ModelName, tuple[Record, Instance]] = {}
        #: The models that may have more than one instance.
        self._replicated: tuple[Record, ...] = ()
        #: What is to be done for the event that is being handled, in order.
        self._commands: list[Command] = []
        #: Whether the last event changed nothing but the leases: no deadline, no plan, no other command.
        self.was_routine = False
        self._note_replicated()

    def __repr__(self) -> str:
        states = Counter(one.state.name for one in self._state.instances.values())
        counts = ", ".join(f"{count} {name}" for name, count in sorted(states.items())) or "no instance"
        leases, waiters = len(self._state.leases), len(self._state.waiters)
        return f"<Scheduler at {self._now:.3f} s: {counts}; {leases} leases, {waiters} waiters>"

    # --- what is told and asked ---

    def handle(self, event: Event, now: float) -> list[Command]:  # noqa: C901 - a case per event
        """Take one event and return what to do about it, in order.

        Nearly all events are requests that find their model ready, and their ends: those are decided first,
        and `was_routine` is True behind them.
        """
        if now < self._due:
            if type(event) is Acquire and event.overrides is None:
                found = self._open.get(event.model) or self._find_open(event.model)
                if found is not None:
                    record, one = found
                    record.forecast.requested(now)
                    self._hold(event.lease, record, one, now, event.keep_alive, event.size)
                    self.was_routine = True
                    return [Grant(event.lease, one.id)]
            elif type(event) is Release and (held := self._state.leases.get(event.lease)) is not None:
                is_routine = self._end(held, now)
                if is_routine and not self._dirty and not self._replicated:
                    self.was_routine = True
                    return []
                return self._conclude(is_routine, self._begin(now))
        now = self._begin(now)
        is_routine = False
        match event:
            case Release():
                is_routine = self._released(event, now)
            case Acquire():
                is_routine = self._acquired(event, now)
            case Ready():
                self._became_ready(event, now)
            case Exited():
                self._exited(event, now)
            case Measured():
                self._measured(event, now)
            case Adopted():
                self._adopted(event, now)
            case Unload():
                self._unloaded(event, now)
            case Pinned():
                self._pinned(event)
            case HostLost():
                self._host_lost(event, now)
            case Reloaded():
                self._reloaded(event, now)
            case Learned():
                self._learned(event)
            case Closed():
                self._closed()
            case Tick():
                pass
        return self._conclude(is_routine, now)

    def is_open(self, model: ModelName) -> bool:
        """Whether a request for the model as it is defined is granted in the step in which it is told."""
        if model in self._open:
            return True
        record = self._state.records.get(model)
        return record is not None and record.open_instance() is not None

    def _find_open(self, model: ModelName) -> tuple[Record, Instance] | None:
        """Whom a request is granted, where nothing else comes of that."""
        record = self._state.records.get(model)
        one = record.open_instance() if record is not None else None
        if record is None or one is None or self._dirty or self._replicated:
            return None
        if len(record.instances) == 1:  # else the next one may go to another
            self._open[model] = record, one
        return record, one

    def _begin(self, now: float) -> float:
        """The time of the event that is told."""
        self._now = max(now, self._now)
        self.was_routine = False
        self._commands = []
        self._open.clear()
        return self._now

    def _conclude(self, is_routine: bool, now: float) -> list[Command]:
        """What follows of the event, and all that is to be done."""
        if is_routine and now < self._due and not self._dirty:
            self._add_replicas(now)
        else:
            self._bring_up_to_date(now)
            self._due = -math.inf
        return self._commands

    def use(self) -> dict[InstanceId, Use]:
        """How much each child is used."""
        return {one.id: Use(len(one.leases), one.completed) for one in self._state.instances.values()}

    def next_deadline(self) -> float | None:
        """When `Tick` is due at the latest, or None. The shell re-arms one timer after every `handle`. It may
        be earlier than anything happens: a model that was to leave may have been asked for since.
        """
        if self._due == -math.inf:
            self._due = self._first_deadline()
        return None if self._due == math.inf else self._due

    def _first_deadline(self) -> float:
        while self._deadlines and self._deadlines[0][2] not in self._state.waiters:
            heapq.heappop(self._deadlines)
        times = [self._wake, self._state.ledger.next_deadline()]
        if self._deadlines:
            times.append(self._deadlines[0][0])
        for one in self._state.instances.values():
            times.append(self._state.expires_at(one))
            times.append(one.kill_at)
        return min((t for t in times if t is not None), default=math.inf)

    def is_expecting_memory(self) -> bool:
        """Whether a plan waits for a measurement, or a model that its host refused or for which other
        programs hold the memory: the shell measures often.
        """
        if self._plans or self._state.ledger.next_deadline() is not None:
            return True
        return bool(self._demands) and any(
            r.hold_until_measured is not None or r.blocked_externally_since is not None
            for r in self._demands.values()
        )

    def snapshot(self, now: float) -> Snapshot:
        return explain.snapshot(self._state, self._ordered_demands(now), self._waits, now)

    def explain(self, model: ModelName, now: float, overrides: Model | None = None) -> Explanation:
        """Why a model is where it is, and what a request for it would do, also if it were defined as
        `overrides`. Raises ModelNotFound."""
        record = self._state.records.get(model)
        if record is None or record.vanished:
            raise refusals.unknown(model, self._names())
        if overrides is not None:
            record = replace(record, model=overrides, varied={})
        return explain.explain(self._state, record, self._waits.get(model), now)

    # --- what an event changes by itself ---

    def _acquired(self, event: Acquire, now: float) -> bool:
        """1 unknown, 2 unusable, or there with other settings than a load asks for, 3 resident: granted now,
        4 backing off, 5 queue full, 6 piggyback on a drain, 7 waits. True: routine, of which nothing follows.
        """
        state = self._state
        is_known = event.lease in state.waiters or event.lease in state.leases
        assert not is_known, f"lease {event.lease} was asked for twice"
        record = state.records.get(event.model)
        if record is None or record.vanished:
            self._refuse(event.lease, refusals.unknown(event.model, self._names()))  # 1
            return False
        record.forecast.requested(now)
        if record.model.error is not None:
            self._refuse(event.lease, record.model.error)  # 2
            return False
        if event.overrides is not None and _has_other_settings(record, event.overrides):
            self._refuse(event.lease, refusals.settings_conflict(event.model))  # 2
            return False
        instance = record.open_instance()
        if instance is not None:
            self._grant(event, record, instance, now, "already_loaded")  # 3
            return True
        is_paused = record.retry_at is not None and record.retry_at > now and not record.has_coming()
        if is_paused and event.overrides is None:  # other settings may be what it needs
            self._refuse(event.lease, refusals.backing_off(record, now))  # 4
            return False
        if self._queue_length() >= state.settings.queue_limit:
            self._refuse(event.lease, refusals.queue_full(state.settings.queue_limit))  # 5
            return False
        draining = self._piggyback(record, event, now) if event.overrides is None else None
        if draining is not None:
            self._grant(event, record, draining, now, "already_loaded")  # 6
            return False
        waiter = self._waiter(event, record, now)
        state.waiters[event.lease] = waiter  # 7
        record.join(waiter)
        self._demands[event.model] = record
        if len(record.lines[waiter.priority]) == 1 or waiter.overrides is not None:
            self._dirty = True
        heapq.heappush(self._deadlines, (waiter.deadline, waiter.order, waiter.lease))
        return False

    def _released(self, event: Release, now: float) -> bool:
        """True: routine, of which nothing follows."""
        held = self._state.leases.get(event.lease)
        if held is not None:
            return self._end(held, now)
        waiter = self._state.waiters.get(event.lease)
        if waiter is not None:  # else refused already: the shell releases always
            self._leave_queue(waiter)
        return False

    def _became_ready(self, event: Ready, now: float) -> None:
        one = self._state.instances.get(event.instance)
        if one is None or one.state is not State.STARTING:
            return  # it was told to stop while it loaded
        one.move(State.READY)
        self._dirty = True
        one.ready_at = one.last_used = now
        self._state.record_of(one).enlarged = False
        assert one.started_at is not None, "it was STARTING"
        self._state.record_of(one).forecast.loaded(now - one.started_at)
        if event.footprint is not None:
            self._state.ledger.settle(one.id, event.footprint)

    def _exited(self, event: Exited, now: float) -> None:
        """1 refused by its host for memory, 2 wanted more than was reserved: once more, with more, 3 died
        while loading; with other settings than its own that says nothing of the model, 4 died in service
        before it served anyone, 5 ended as told.
        """
        one = self._state.instances.get(event.instance)
        if one is None:
            return
        assert one.is_live, f"{one.id} exited before it was started"
        record, was = self._state.record_of(one), one.state
        self._remove(one, now)
        if event.no_room and was is State.STARTING:
            record.hold_until_measured = now  # 1
        elif was is State.STARTING and one.has_overrides:
            self._refuse_varied(record, event.error)  # 3
        elif was is State.STARTING and event.out_of_memory and self._enlarge(record):
            record.hold_until_measured = now  # 2
        elif was is State.STARTING:
            self._count_failure(record, event.error, now)  # 3
            self._refuse_failed(record, event.error, now)
        elif was in (State.READY, State.DRAINING) and one.completed == 0 and not one.is_adopted:
            self._count_failure(record, event.error, now)  # 4
        self._forget_vanished(record)  # 5

    def _measured(self, event: Measured, now: float) -> None:
        at = event.at if event.at is not None else now
        if self._state.ledger.measure(event.free, event.used, at, now):
            self._dirty = True
        for name, footprint in event.reserve.items():
            one = self._state.instances.get(name)
            if one is not None and one.state in (State.READY, State.DRAINING):
                self._state.ledger.settle(name, footprint)
        for record in self._state.records.values():
            held = record.hold_until_measured
            if (
                held is not None
                and held <= at
                and any(p.footprint.keys() & event.free for p in record.wanted.placements)
            ):
                record.hold_until_measured = None

    def _adopted(self, event: Adopted, now: float) -> None:
        if event.instance in self._state.instances:
            return
        self._dirty = True
        record = self._state.records.get(event.model)
        if record is None:
            # It is ours to end, so it is ours to count until it has ended.
            model = Model(event.model, (event.placement,), event.definition)
            record = self._state.records[event.model] = Record(model, Forecast.of(model), vanished=True)
        order = self._next_order()
        model = record.model
        if event.definition.overrides:
            model = replace(model, placements=(event.placement,), definition=event.definition)
        one = Instance(event.instance, model, event.placement, order, now, state=State.READY)
        one.started_at = one.ready_at = one.last_used = now
        one.is_adopted = True
        self._state.instances[one.id] = record.instances[one.id] = one
        self._state.ledger.reserve(one.id, event.placement.footprint)
        for lease in event.leases:
            self._hold(lease, record, one, now, None, None)
        # No later instance may have the same id.
        self._ids[event.model] = max(self._ids.get(event.model, 0), number_of(one.id))
        if record.vanished or record.model.definition != event.definition.plain:
            self._retire(one, Cause.RELOADED)

    def _unloaded(self, event: Unload, now: float) -> None:
        record = self._state.records.get(event.model)
        if record is None:
            return
        limit = self._state.settings.unload_deadline if event.deadline is None else event.deadline
        for one in list(record.instances.values()):
            match one.state:
                case State.PLANNED:
                    self._cancel(one)
                    self._refuse_all(record, refusals.unloaded(event.model))
                case State.STARTING:
                    self._stop(one, Cause.UNLOADED)
                    self._refuse_all(record, refusals.unloaded(event.model))
                case State.READY | State.DRAINING:
                    self._retire(one, Cause.UNLOADED)
                    if one.state is State.DRAINING:
                        one.kill_at = now + limit if one.kill_at is None else min(one.kill_at, now + limit)
                        if event.force:
                            self._stop(one, Cause.UNLOADED)
                case State.STOPPING:
                    pass

    def _pinned(self, event: Pinned) -> None:
        record = self._state.records.get(event.model)
        if record is not None:
            record.pin = event.pinned
            self._dirty = True

    def _host_lost(self, event: HostLost, now: float) -> None:
        """Its children are gone; whoever waited for one there is planned anew, on what is left."""
        for one in list(self._state.instances.values()):
            if one.placement.host == event.host:
                if one.is_live:
                    self._remove(one, now)
                else:
                    self._cancel(one)
        self._dirty = True
        self._state.ledger.lose(
            d for d, known in self._state.ledger.devices.items() if known.host == event.host
        )

    def _reloaded(self, event: Reloaded, now: float) -> None:
        self._dirty = True
        if event.devices is not None:
            self._state.ledger.replace_devices(event.devices)
        for name, record in list(self._state.records.items()):
            new = event.models.get(name)
            if new is None:
                record.vanished = True
                self._refuse_all(record, refusals.unknown(name, event.models))
            elif new.definition != record.model.definition:
                record.failures, record.retry_at, record.last_error = 0, None, None
                record.forecast.recall(new)
            if new is None or new.definition != record.model.definition or record.vanished:
                for one in list(record.instances.values()):
                    self._retire(one, Cause.RELOADED)
            if new is not None:
                record.model, record.vanished = new, False
                if new.error is not None:
                    self._refuse_all(record, new.error)
            self._forget_vanished(record)
        for name, model in event.models.items():
            if name not in self._state.records:
                self._state.records[name] = Record(model, Forecast.of(model))
        self._note_replicated()

    def _closed(self) -> None:
        for record in list(self._state.records.values()):
            self._refuse_all(record, refusals.closed())
            for one in list(record.instances.values()):
                match one.state:
                    case State.PLANNED:
                        self._cancel(one)
                    case State.STARTING | State.READY | State.DRAINING:
                        self._stop(one, Cause.SHUTDOWN)
                    case State.STOPPING:
                        pass

    def _learned(self, event: Learned) -> None:
        record, model = self._state.records.get(event.model.name), event.model
        if record is None:
            return
        self._dirty = True
        alike = [lease for lease, one in record.varied.items() if one.definition == model.definition]
        record.varied |= dict.fromkeys(alike, model)
        if record.model.definition == model.definition:
            record.model = model
        self._note_replicated()

    # --- the pass ---

    def _bring_up_to_date(self, now: float) -> None:
        self._refuse_overdue(now)
        if self._state.ledger.expire(now) or (self._wake is not None and self._wake <= now):
            self._dirty = True
        self._cancel_unwanted_plans()
        self._grant_waiters(now)
        self._end_what_is_over(now)
        if self._dirty:
            self._dirty = False
            self._evict_on_memory_pressure(now)
            self._start_plans(now)
            self._plan_demands(now)
            self._start_plans(now)
            self._grant_waiters(now)  # of those whose gate a plan that was given up has opened again
        self._add_replicas(now)

    def _refuse_overdue(self, now: float) -> None:
        while self._deadlines and self._deadlines[0][0] <= now:
            _, _, name = heapq.heappop(self._deadlines)
            waiter = self._state.waiters.get(name)
            if waiter is not None:
                record = self._state.records[waiter.model]
                words = explain.waits_for(self._state, record, self._waits.get(waiter.model))
                self._leave_queue(waiter)
                self._refuse(name, refusals.timed_out(waiter, now, words))

    def _end_what_is_over(self, now: float) -> None:
        """Drained and empty, past an operator's deadline, or idle longer than its TTL."""
        for one in list(self._state.instances.values()):
            if one.state is State.DRAINING:
                assert one.cause is not None, "whoever drains has a cause"
                if not one.leases or (one.kill_at is not None and one.kill_at <= now):
                    self._stop(one, one.cause, one.for_model)
            elif (expires := self._state.expires_at(one)) is not None and expires <= now:
                self._stop(one, Cause.EXPIRED)

    def _evict_on_memory_pressure(self, now: float) -> None:
        """Another program took memory and the margin is broken: give up idle models, one after another,
        until it is whole again. Only where nobody of ours is on the way in or out, who may be about to give
        back enough.
        """
        for device in self._crowded():
            if self._is_moving(device):
                continue
            holders = [
                one.candidate
                for one in PlanningView(self._state, now).idle
                if one.candidate.frees.get(device, 0) > 0
            ]
            if holders:
                first = min(holders, key=lambda candidate: (candidate.group, candidate.rank, candidate.id))
                self._stop(self._state.instances[first.id], Cause.YIELDED)

    def _crowded(self) -> list[DeviceId]:
        """Where idle models give way."""
        return self._state.ledger.crowded() if self._state.settings.evict_on_memory_pressure else []

    def _is_moving(self, device: DeviceId) -> bool:
        """Whether somebody of ours is about to take memory there, or to give it back."""
        return self._state.ledger.is_returning(device) or any(
            one.state is not State.READY and one.placement.footprint.get(device, 0) > 0
            for one in self._state.instances.values()
        )

    def _cancel_unwanted_plans(self) -> None:
        """A plan nobody waits for any more is given up, and one for other settings than are wanted now; the
        victims it only drained serve on.
        """
        for one in list(self._plans.values()):
            record = self._state.record_of(one)
            if not record.waiting or one.model.definition != record.wanted.definition:
                self._cancel(one)

    def _grant_waiters(self, now: float) -> None:
        """A resident model's waiters are all granted at once, whoever else waits."""
        for record in list(self._demands.values()):
            if record.open_instance() is None:
                continue
            for waiter in sorted(record.waiters(), key=lambda w: (-w.priority.weight, w.order)):
                instance = record.open_instance()
                assert instance is not None, "granting closes nobody"
                self._leave_queue(waiter)
                if waiter.overrides is not None and _has_other_settings(record, waiter.overrides):
                    self._refuse(waiter.lease, refusals.settings_conflict(waiter.model))
                    continue
                started = instance.started_at if instance.started_at is not None else now
                action = "queued" if waiter.since < started else "loaded"
                self._grant(waiter, record, instance, now, action)

    def _start_plans(self, now: float) -> None:
        """Start the plans whose room is real, the oldest first; give up those whose room will not come
        after all.
        """
        for one in list(self._plans.values()):
            if self._room_is_real(one):
                self._start(one, now)
            elif not self._room_will_come(one):
                self._cancel(one)

    def _plan_demands(self, now: float) -> None:
        """Ask the planner for every demand without an instance, the most pressing first."""
        while self._plan_next(now):
            pass

    def _plan_next(self, now: float) -> bool:
        """One round over the demands, until one is planned that turns somebody out: what else becomes free
        by that is for whoever is the most pressing, so the round begins anew (True).
        """
        self._wake = None
        self._waits = {}
        ahead: list[Claim] = []
        seen = PlanningView(self._state, now)
        for record in self._ordered_demands(now):
            if record.has_coming():
                continue
            if record.hold_until_measured is not None:
                self._waits[record.model.name] = Wait("measure")
                continue
            decision = planner.plan(seen, record, ahead)
            match decision:
                case Plan():
                    record.blocked_externally_since = None
                    self._book(record, decision, now)
                    if decision.stop or decision.drain:
                        return True
                    seen = PlanningView(self._state, now)
                case Reject(error):
                    record.blocked_externally_since = None
                    self._refuse_all(record, error)
                case Wait():
                    self._waits[record.model.name] = decision
                    self._note_wait(record, decision, ahead, now)
        return False

    def _add_replicas(self, now: float) -> None:
        """A further replica only into room that is free now, and only while nobody waits for room."""
        if not self._replicated or self._plans or self._demands:
            return
        for record in self._replicated:
            if self._wants_replica(record, now):
                model = record.model
                places = sorted(self._state.ledger.possible(model.placements), key=lambda p: p.tier)
                place = next((p for p in places if self._has_room_beside(model, p)), None)
                if place is not None:
                    self._start(self._new_instance(record, place, frozenset(), now), now)

    # --- steps of the pass ---

    def _note_wait(self, record: Record, wait: Wait, ahead: list[Claim], now: float) -> None:
        if wait.kind == "foreign":
            record.blocked_externally_since = (
                now if record.blocked_externally_since is None else record.blocked_externally_since
            )
        else:
            record.blocked_externally_since = None
        self._wake_at(wait.until)
        if not self._state.policy.evicts:
            return
        due = planner.claims_at(record, self._state.settings.quantum)
        if due is not None and due > now:
            self._wake_at(due)
        elif wait.placement is not None and wait.kind == "busy":
            ahead.append(Claim(record, wait.placement))

    def _book(self, record: Record, decision: Plan, now: float) -> None:
        name = record.model.name
        victims = frozenset(decision.stop + decision.drain)
        one = self._new_instance(record, decision.placement, victims, now)
        for victim in decision.stop:
            candidate = self._state.instances[victim]
            cause = Cause.ABORTED if candidate.state is State.STARTING else Cause.EVICTED
            self._stop(candidate, cause, name)
        for victim in decision.drain:
            self._drain(self._state.instances[victim], Cause.EVICTED, one.model.name)

    def _new_instance(
        self, record: Record, place: Placement, victims: frozenset[InstanceId], now: float
    ) -> Instance:
        name = record.model.name
        self._ids[name] = number = self._ids.get(name, 0) + 1
        one = Instance(
            instance_id(name, number), record.wanted, place, self._next_order(), now, victims=victims
        )
        self._state.instances[one.id] = record.instances[one.id] = self._plans[one.id] = one
        self._state.ledger.claim(one.id, place.footprint, one.order)
        return one

    def _has_room_beside(self, model: Model, place: Placement) -> bool:
        """Whether a further instance fits beside all there are, now."""
        limit = self._state.settings.models_max
        if limit > 0 and len(self._state.instances) + 1 > limit:
            return False
        return not any(self._state.conflicts(model)) and self._state.ledger.fits(place.footprint)

    def _room_is_real(self, one: Instance) -> bool:
        state = self._state
        limit = state.settings.models_max
        before = sum(1 for o in state.instances.values() if o.is_live or (o.order < one.order))
        if limit > 0 and before + 1 > limit:
            return False
        if any(rival.is_live or rival.order < one.order for rival in state.conflicts(one.model)):
            return False
        return state.ledger.fits(one.placement.footprint, before=one.order)

    def _room_will_come(self, one: Instance) -> bool:
        """Whether those who leave make the room that the plan counts on; a stranger may have taken it
        meanwhile.
        """
        state = self._state
        stay = [
            o for o in state.instances.values() if not o.is_leaving and (o.is_live or o.order < one.order)
        ]
        limit = state.settings.models_max
        if limit > 0 and len(stay) + 1 > limit:
            return False
        if any(rival in stay for rival in state.conflicts(one.model)):
            return False
        leaving = {o.id for o in state.instances.values() if o.is_leaving}
        return not state.ledger.shortfall(one.placement.footprint, leaving=leaving, before=one.order)

    def _start(self, one: Instance, now: float) -> None:
        one.move(State.STARTING)
        one.started_at = now
        del self._plans[one.id]
        self._reopen(one.victims)  # of those it does not need any more
        self._state.ledger.reserve(one.id)
        victims = tuple(sorted(one.victims))
        definition = one.model.definition if one.has_overrides else NO_DEFINITION
        self._commands.append(Start(one.id, one.model.name, one.placement, victims, definition))

    def _cancel(self, plan: Instance) -> None:
        """Give a plan up: its claim goes, and the victims that only drain for it open their gates again."""
        assert plan.state is State.PLANNED, f"{plan.id} is no plan any more"
        self._state.ledger.forget(plan.id)
        self._delete(plan)
        self._dirty = True
        self._reopen(plan.victims)

    def _reopen(self, victims: frozenset[InstanceId]) -> None:
        """The plan that drains them needs them no more: whoever still serves, serves on."""
        wanted: set[InstanceId] = set().union(*(other.victims for other in self._plans.values()))
        for victim in sorted(victims - wanted):
            one = self._state.instances.get(victim)
            if one is not None and one.state is State.DRAINING and one.cause not in _FINAL:
                one.move(State.READY)
                one.cause = one.for_model = one.drain_end = None

    def _stop(self, one: Instance, cause: Cause, for_model: ModelName | None = None) -> None:
        one.move(State.STOPPING)
        self._dirty = True
        one.cause, one.for_model, one.kill_at = cause, for_model, None
        if cause is Cause.EVICTED:
            record = self._state.record_of(one)
            record.evictions += 1
            record.evicted_at, record.evicted_for = self._now, for_model
        self._commands.append(Stop(one.id, cause, for_model))

    def _drain(self, one: Instance, cause: Cause, for_model: ModelName | None = None) -> None:
        one.move(State.DRAINING)
        self._dirty = True
        one.cause, one.for_model = cause, for_model
        one.drain_end = max((held.expected_end for held in one.leases.values()), default=self._now)

    def _retire(self, one: Instance, cause: Cause) -> None:
        """It shall go for good, but nobody who uses it is cut off."""
        match one.state:
            case State.PLANNED:
                self._cancel(one)
            case State.STARTING:
                self._stop(one, cause)
            case State.READY if one.leases:
                self._drain(one, cause)
            case State.READY:
                self._stop(one, cause)
            case State.DRAINING:
                one.cause, one.for_model = cause, None
            case State.STOPPING:
                pass

    def _remove(self, one: Instance, now: float) -> None:
        """The child is gone, and its leases with it: their ends are nothing any more."""
        self._state.ledger.exited(one.id, now)
        self._delete(one)
        self._dirty = True
        for lease in one.leases:
            del self._state.leases[lease]
        self._note_idle(self._state.record_of(one), now)

    def _delete(self, one: Instance) -> None:
        del self._state.instances[one.id]
        del self._state.record_of(one).instances[one.id]
        self._plans.pop(one.id, None)

    # --- leases and waiters ---

    def _waiter(self, event: Acquire, record: Record, now: float) -> Waiter:
        timeout = self._state.settings.queue_timeout if event.timeout is None else event.timeout
        return Waiter(
            lease=event.lease,
            model=event.model,
            since=now,
            deadline=now + timeout,
            priority=event.priority or record.model.priority,
            order=self._next_order(),
            keep_alive=event.keep_alive,
            size=event.size,
            overrides=event.overrides,
        )

    def _grant(self, asked: Acquire | Waiter, record: Record, one: Instance, now: float, action: str) -> None:
        self._hold(asked.lease, record, one, now, asked.keep_alive, asked.size)
        self._commands.append(Grant(asked.lease, one.id, action))

    def _hold(
        self,
        lease: LeaseId,
        record: Record,
        one: Instance,
        now: float,
        keep_alive: float | None,
        size: float | None,
    ) -> None:
        held = ActiveLease(lease, record, one, now, size)
        one.leases[lease] = self._state.leases[lease] = held
        one.last_used = now
        if keep_alive is not None:
            one.keep_alive = keep_alive

    def _end(self, held: ActiveLease, now: float) -> bool:
        """True: routine. Who becomes idle is news to those who wait for room, and may leave some day."""
        del self._state.leases[held.lease]
        one, record = held.instance, held.record
        del one.leases[held.lease]
        one.last_used = now
        one.completed += 1
        if record.failures and one.ready_at is not None and one.ready_at >= record.failed_at:
            # A replica that keeps failing is not forgiven for what the first instance serves.
            record.failures, record.retry_at, record.last_error = 0, None, None
        record.forecast.held(now - held.granted_at, held.size)
        if one.leases:
            return True
        self._note_idle(record, now)
        if self._demands or self._plans or self._crowded():
            self._dirty = True
        if one.state is not READY:
            return False
        ttl = self._state.ttl(one, record)
        return ttl is None or now + ttl >= self._due

    def _leave_queue(self, waiter: Waiter) -> None:
        record = self._state.records[waiter.model]
        record.leave(waiter)
        del self._state.waiters[waiter.lease]
        self._dirty = True
        if not record.waiting:
            record.blocked_externally_since = None
            self._demands.pop(waiter.model, None)
            self._forget_vanished(record)

    def _refuse(self, lease: LeaseId, error: RouterError) -> None:
        self._commands.append(Refuse(lease, error))

    def _refuse_all(self, record: Record, error: RouterError) -> None:
        for waiter in sorted(record.waiters(), key=lambda w: w.order):
            self._leave_queue(waiter)
            self._refuse(waiter.lease, error)

    def _refuse_varied(self, record: Record, error: RouterError | None) -> None:
        """Whoever asked for these settings learns why they failed; others get the model as it is defined."""
        record.failures += 1
        record.last_error = error
        for waiter in [one for one in record.waiters() if one.overrides is not None]:
            self._leave_queue(waiter)
            self._refuse(waiter.lease, refusals.load_failed(record.model.name, error, 0.0))

    def _refuse_failed(self, record: Record, error: RouterError | None, now: float) -> None:
        """All who waited for the load learn why it failed, unless another instance will serve them."""
        if not record.has_coming():
            retry_after = max(0.0, (record.retry_at or now) - now)
            self._refuse_all(record, refusals.load_failed(record.model.name, error, retry_after))

    def _piggyback(self, record: Record, event: Acquire, now: float) -> Instance | None:
        """A draining instance that this request, as predicted, leaves before its last lease does: it costs
        the drain nothing.
        """
        end = now + record.forecast.hold_seconds(event.size)
        for one in record.instances.values():
            is_drained_for_another = one.state is State.DRAINING and one.leases and one.cause not in _FINAL
            if is_drained_for_another and one.drain_end is not None and end <= one.drain_end:
                return one
        return None

    def _wants_replica(self, record: Record, now: float) -> bool:
        ready = [one for one in record.instances.values() if one.state is State.READY]
        if not ready or record.vanished or len(ready) < len(record.instances):
            return False  # none yet, or one is on its way up or down
        if any(one.has_overrides for one in ready):
            return False  # it would be another one beside it
        if record.hold_until_measured is not None or (record.retry_at is not None and record.retry_at > now):
            return False
        if len(ready) < record.model.replicas:
            return True
        full = record.model.target_inflight
        return (
            len(ready) < record.model.replica_max
            and full > 0
            and all(len(one.leases) >= full for one in ready)
        )

    # --- bookkeeping ---

    def _count_failure(self, record: Record, error: RouterError | None, now: float) -> None:
        settings = self._state.settings
        record.failures += 1
        record.failed_at = now
        record.last_error = error
        pause = settings.backoff_initial * 2.0 ** min(record.failures - 1, 32)
        record.retry_at = now + min(pause, settings.backoff_max)

    def _enlarge(self, record: Record) -> bool:
        """Reserve more on the next try; False if that was done already, or no empty machine could hold
        it then."""
        if record.enlarged:
            return False
        larger = tuple(
            replace(
                place, footprint={d: math.ceil(b * OUT_OF_MEMORY_FACTOR) for d, b in place.footprint.items()}
            )
            for place in record.model.placements
        )
        if all(self._state.ledger.impossible(place.footprint) for place in larger):
            return False
        record.enlarged = True
        record.model = replace(record.model, placements=larger)
        return True

    def _note_idle(self, record: Record, now: float) -> None:
        if record.waiting:
            return
        for one in record.instances.values():
            if one.leases:
                return
        record.forecast.became_idle(now)

    def _note_replicated(self) -> None:
        records = self._state.records.values()
        self._replicated = tuple(r for r in records if r.model.replica_max > 1 or r.model.replicas > 1)

    def _forget_vanished(self, record: Record) -> None:
        if record.vanished and not record.instances and not record.waiting:
            self._state.records.pop(record.model.name, None)

    def _ordered_demands(self, now: float) -> list[Record]:
        """The most pressing first: the longest weighted wait, then the order of arrival."""

        def pressure(record: Record) -> tuple[float, int]:
            heads = list(record.heads())
            weighted = max(w.priority.weight * (now - w.since) for w in heads)
            return (-weighted, min(w.order for w in heads))

        return sorted(self._demands.values(), key=pressure)

    def _wake_at(self, when: float | None) -> None:
        if when is not None and (self._wake is None or when < self._wake):
            self._wake = when

    def _queue_length(self) -> int:
        return sum(record.waiting for record in self._demands.values())

    def _next_order(self) -> int:
        self._order += 1
        return self._order

    def _names(self) -> list[str]:
        return [name for name, record in self._state.records.items() if not record.vanished]

    def check(self) -> None:
        """Every invariant, or AssertionError."""
        explain.check(self._state, self._demands, self._plans)


def _has_other_settings(record: Record, wanted: Model) -> bool:
    """Whether it is there, or about to be, with other settings than these."""
    coming = [one.model for one in record.instances.values() if one.is_live and not one.is_leaving]
    return any(one.definition != wanted.definition for one in (*coming, *record.varied.values()))
