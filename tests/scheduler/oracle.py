"""What the scheduler has promised, checked against the truth of the world after every event.

Where a rule leaves the scheduler a choice, the oracle alarms only when no reading of the rule allows what was
done. Its arithmetic is its own: `tests.scheduler.reckoning`.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from math import inf
from typing import TYPE_CHECKING

import pytest

from router.errors import (
    LoadFailed,
    ModelNotFound,
    ModelTooLarge,
    NoRoom,
    QueueFull,
    RouterError,
    Unloaded,
    WaitTimeout,
)
from router.scheduler.types import (
    TRANSITIONS,
    Acquire,
    Adopted,
    Cause,
    Command,
    Event,
    Exited,
    Grant,
    HostId,
    InstanceId,
    LeaseId,
    Measured,
    ModelName,
    Placement,
    Priority,
    Ready,
    Refuse,
    Release,
    Reloaded,
    Start,
    State,
    Stop,
)
from router.scheduler.views import InstanceView, ModelView
from tests.scheduler.reckoning import Reckoning, Room

if TYPE_CHECKING:
    from tests.scheduler.world import World

#: Causes for which an instance in use may be stopped: an operator's word, after his deadline or with force.
_MAY_KILL = frozenset({Cause.UNLOADED})
#: Causes for which an idle pinned model may be stopped.
_MAY_END_PINNED = frozenset({Cause.UNLOADED, Cause.RELOADED, Cause.SHUTDOWN})


@dataclass(slots=True)
class Lease:
    """A request as its client sees it."""

    id: LeaseId
    model: ModelName
    asked_at: float
    deadline: float
    priority: Priority | None
    hold: float
    then: Callable[[], None] | None = None
    state: str = "waiting"
    instance: InstanceId | None = None
    error: RouterError | None = None
    answered_at: float | None = None

    @property
    def is_waiting(self) -> bool:
        return self.state == "waiting"

    @property
    def is_open(self) -> bool:
        return self.state in ("waiting", "granted")


class Oracle:
    """Follows every lease and every child, and judges each command and each state after it."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.leases: dict[LeaseId, Lease] = {}
        self._open: dict[LeaseId, Lease] = {}
        self.reckoning = Reckoning(world)
        self._kill_from: dict[ModelName, float] = {}
        self._unloads: set[ModelName] = set()
        self._failed: set[ModelName] = set()
        self._grown: dict[ModelName, float] = {}
        self._no_room: dict[ModelName, float] = {}
        self._before: dict[InstanceId, InstanceView] = {}
        self._after: dict[InstanceId, InstanceView] = {}
        self._models: dict[ModelName, ModelView] = {}
        self._order: dict[InstanceId, int] = {}
        self._waiting_before: dict[ModelName, float] = {}
        self._stopped: list[Stop] = []
        self._started: list[Start] = []
        self._from_the_queue: list[Grant] = []

    # --- what the world tells it ---

    def asks(self, lease: Lease) -> None:
        self.leases[lease.id] = self._open[lease.id] = lease

    def open_leases(self) -> list[Lease]:
        return list(self._open.values())

    def leaves(self, lease: LeaseId) -> None:
        held = self._open.pop(lease, None)
        if held is not None:
            held.state = "left" if held.is_waiting else "over"

    def operator_unloads(self, model: ModelName, force: bool, deadline: float | None) -> None:
        patience = self.world.scene.settings.unload_deadline if deadline is None else deadline
        until = self.world.now + (0.0 if force else patience)
        self._kill_from[model] = min(until, self._kill_from.get(model, inf))
        self._unloads.add(model)

    def host_goes(self, host: HostId) -> None:
        self.reckoning.host_goes(host, {n for n, view in self._before.items() if view.placement.host == host})

    def before(self, event: Event) -> None:
        self._stopped, self._started, self._from_the_queue = [], [], []
        self._waiting_before = self._oldest_waiting()
        match event:
            case Acquire(_, model):
                # The one who asks now waits as well, but behind whoever waited before.
                self._waiting_before.setdefault(model, self.world.now)
            case Exited(instance, error, no_room, out_of_memory):
                model = self.world.children[instance].model
                # A child that ends before it was of any use failed, whatever its exit said.
                if error is not None:
                    self._failed.add(model)
                was = self._before.get(instance)
                if (no_room or out_of_memory) and was is not None and was.state is State.STARTING:
                    self._no_room[model] = self.world.now
                if out_of_memory:
                    self._grown[model] = self._grown.get(model, 1.0) * 1.16
            case Measured():
                latest = max(self.reckoning.told_at.values(), default=-inf)
                self._no_room = {name: since for name, since in self._no_room.items() if since > latest}
            case _:
                pass

    # --- one command ---

    def answered(self) -> None:
        """The scheduler has decided; its commands have not been carried out yet."""
        views = self.world.scheduler.snapshot(self.world.now).instances
        self._after = {view.id: view for view in views}

    def judge(self, command: Command, event: Event) -> None:
        match command:
            case Start():
                self._judge_start(command)
            case Stop():
                self._judge_stop(command, event)
            case Grant():
                self._judge_grant(command, event)
            case Refuse():
                self._judge_refusal(command)

    def _judge_start(self, start: Start) -> None:
        world, now = self.world, self.world.now
        self._claim(start.instance not in world.children, f"{start.instance} is started twice")
        model = world.models.get(start.model)
        self._claim(model is not None, f"{start} is not in the catalog")
        assert model is not None
        planned = self._before.get(start.instance)
        allowed = any(self._is_way(start.placement, way, start.model) for way in model.placements)
        allowed = allowed or (planned is not None and planned.placement == start.placement)
        self._claim(allowed, f"{start} is not one of {model.placements}")
        self._claim(model.error is None, f"{start.model} cannot be loaded, it says so itself")
        self._claim(self.reckoning.fits_in_truth(start.placement.footprint), f"{start} overcommits")
        alive = world.alive()
        limit = world.scene.settings.models_max
        self._claim(limit <= 0 or len(alive) < limit, f"{start} makes more than {limit} instances")
        for child in alive:
            rival = world.models.get(child.model)
            clash = rival is not None and child.model != start.model and rival.exclusive & model.exclusive
            self._claim(not clash, f"{start} beside {child.instance}, though they exclude each other")
        mine = [c for c in alive if c.model == start.model and not c.stop_told]
        serving = [c for c in mine if c.instance not in self._draining()]
        copies = max(1, model.replicas, model.replica_max)
        self._claim(len(serving) < copies, f"{start} is instance {len(serving) + 1} of at most {copies}")
        view = self._models.get(start.model)
        backing_off = view is not None and view.retry_at is not None and view.retry_at > now
        self._claim(not backing_off, f"{start} during the back-off")
        ahead = {n for n, view in self._after.items() if self._is_older_plan(view, start.instance)}
        beside = self._room(claims=ahead, trust_returning=False).holds(start.placement.footprint)
        self._claim(beside, f"{start} takes what is claimed by {ahead}")
        self._claim(
            start.model not in self._no_room, f"{start} before the host that had no room was measured again"
        )
        self._started.append(start)

    def _is_way(self, place: Placement, way: Placement, model: ModelName) -> bool:
        """The placement of the catalog, or the same one with more where a load ran out of memory."""
        most = self._grown.get(model, 1.0)
        bounds = ((way.footprint.get(d, 0), bytes_) for d, bytes_ in place.footprint.items())
        return place.devices == way.devices and all(least <= b <= least * most for least, b in bounds)

    def _is_older_plan(self, view: InstanceView, than: InstanceId) -> bool:
        order = self._order.get(than, len(self._order))
        return view.state is State.PLANNED and self._order.get(view.id, order) < order

    def _judge_stop(self, stop: Stop, event: Event) -> None:
        world, now = self.world, self.world.now
        child = world.children.get(stop.instance)
        self._claim(child is not None and child.is_alive, f"{stop} of nothing")
        assert child is not None
        self._claim(not child.stop_told, f"{stop}, a second time")
        in_use = [
            lease.id
            for lease in self._open.values()
            if lease.state == "granted" and lease.instance == stop.instance
        ]
        killing = stop.cause in _MAY_KILL and now >= self._kill_from.get(child.model, inf)
        self._claim(not in_use or killing, f"{stop}, though {in_use} hold it")
        before = self._before.get(stop.instance)
        model = world.models.get(child.model)
        pinned = model is not None and model.pinned and child.ready_at is not None
        self._claim(not pinned or stop.cause in _MAY_END_PINNED, f"{stop} of a pinned model")
        if before is not None and stop.cause in (Cause.EVICTED, Cause.ABORTED, Cause.EXPIRED):
            self._judge_victim(stop, before, event)
        if before is not None and stop.cause is Cause.YIELDED:
            self._judge_yielding(stop, before)
        self._stopped.append(stop)

    def _judge_victim(self, stop: Stop, before: InstanceView, event: Event) -> None:
        state, now = before.state, self.world.now
        wanted = self._waiters(before.model)
        evicts = self.world.policy not in ("no-evict", "ttl")
        match stop.cause:
            case Cause.EVICTED:
                self._claim(evicts, f"{stop} under {self.world.policy}")
                self._claim(stop.for_model is not None, f"{stop} for nobody")
                came_up = isinstance(event, Ready) and event.instance == stop.instance
                self._claim(state in (State.READY, State.DRAINING) or came_up, f"{stop} while {state.name}")
                self._claim(state is State.DRAINING or not wanted, f"{stop}, though {wanted} wait for it")
            case Cause.ABORTED:
                self._claim(state is State.STARTING, f"{stop} while {state.name}")
                self._claim(not wanted, f"{stop}, though {wanted} wait for it")
                self._claim(stop.for_model is not None, f"{stop}, though nobody needs its room")
            case _:
                # On Ready and Release the idleness begins in this very event, a reload may shorten it:
                # not to be seen before.
                begins = isinstance(event, Release | Ready | Reloaded)
                due = before.expires_at is not None and before.expires_at <= now
                served = state is State.READY or (
                    isinstance(event, Ready) and event.instance == stop.instance
                )
                self._claim(served and not wanted, f"{stop} while {state.name}, wanted by {wanted}")
                self._claim(due or begins, f"{stop} before {before.expires_at}")
        spare = any(
            v.model == stop.for_model and v.state is State.READY and v.id not in self._stopped_ids()
            for v in self._before.values()
        )
        self._claim(stop.cause is Cause.EXPIRED or not spare, f"{stop} for a mere replica")

    def _judge_yielding(self, stop: Stop, before: InstanceView) -> None:
        """An idle one is given up for other programs only where the margin is broken."""
        self._claim(self.world.scene.settings.evict_on_memory_pressure, f"{stop}, which nobody asked for")
        self._claim(not self._waiters(before.model), f"{stop}, though it is wanted")
        margins = {d: self.world.devices[d].margin for d, bytes_ in before.reserved.items() if bytes_ > 0}
        broken = [d for d, margin in margins.items() if (self.reckoning.told_free.get(d) or 0) < margin]
        self._claim(broken, f"{stop}, though no margin is broken")

    def _judge_grant(self, grant: Grant, event: Event) -> None:
        lease = self.leases.get(grant.lease)
        self._claim(lease is not None and lease.is_waiting, f"{grant} of {lease}")
        assert lease is not None
        child = self.world.children.get(grant.instance)
        self._claim(child is not None, f"{grant} on nothing")
        assert child is not None
        ready = child.is_alive and child.ready_at is not None and not child.stop_told
        self._claim(
            ready and child.instance not in self.reckoning.lost, f"{grant} on a child that is not there"
        )
        self._claim(child.model == lease.model, f"{grant} for {lease.model}")
        # Piggyback is offered at the door only; who waits already is not served by a victim.
        if not (isinstance(event, Acquire) and event.lease == grant.lease):
            self._from_the_queue.append(grant)
        lease.state, lease.instance, lease.answered_at = "granted", grant.instance, self.world.now

    def _judge_refusal(self, refusal: Refuse) -> None:
        world, now = self.world, self.world.now
        lease = self.leases.get(refusal.lease)
        self._claim(lease is not None and lease.is_waiting, f"{refusal} of {lease}")
        assert lease is not None
        model = world.models.get(lease.model)
        match refusal.error:
            case WaitTimeout():
                self._claim(now >= lease.deadline, f"{refusal} before {lease.deadline}")
            case QueueFull():
                others = sum(1 for one in self._open.values() if one.is_waiting and one is not lease)
                self._claim(others >= world.scene.settings.queue_limit, f"{refusal} with {others} waiting")
            case ModelTooLarge():
                self._claim(model is not None, f"{refusal} of no model")
                assert model is not None
                ways = [
                    p
                    for p in model.placements
                    if self.reckoning.could_ever_fit(p) and lease.model not in self._grown
                ]
                self._claim(not ways, f"{refusal}, though an empty machine could hold {ways}")
            case NoRoom():
                self._judge_no_room(refusal, lease)
            case LoadFailed():
                self._claim(lease.model in self._failed, f"{refusal}, though nothing failed")
            case Unloaded():
                self._claim(lease.model in self._unloads, f"{refusal}, though nobody unloaded it")
            case ModelNotFound():
                self._claim(model is None, f"{refusal}, though it is there")
            case error:
                own = model is not None and error == model.error
                self._claim(own or self.reckoning.lost, f"{refusal} for no reason")
        lease.state, lease.error, lease.answered_at = "refused", refusal.error, now
        del self._open[lease.id]

    def _judge_no_room(self, refusal: Refuse, lease: Lease) -> None:
        model = self.world.models[lease.model]
        if model.exclusive or self.world.scene.settings.models_max > 0:
            return
        room = self._room(trust_returning=False)
        fits = [p for p in model.placements if room.holds(p.footprint) and lease.model not in self._grown]
        self._claim(not fits or lease.model in self._no_room, f"{refusal}, though it fits: {fits}")

    # --- the state after it ---

    def after(self, event: Event, commands: list[Command]) -> None:
        snapshot = self.world.scheduler.snapshot(self.world.now)
        after = {view.id: view for view in snapshot.instances}
        for name in after:
            self._order.setdefault(name, len(self._order))
        models = {view.name: view for view in snapshot.models}
        try:
            self.world.scheduler.check()
        except AssertionError as broken:
            raise AssertionError(f"check(): {broken}\n{self.world.story()}") from broken
        self._check_states(event, after)
        for grant in self._from_the_queue:
            self._check_was_open(grant, after)
        self._check_leases(after, snapshot.queues)
        self._check_deadlines()
        self._check_victims(after, models)
        self._check_nobody_idles(after, models)
        self._check_arrival_order(after, models)
        if isinstance(event, Exited) and event.out_of_memory:
            # The second time in a row is a failed load: those who waited were told, the next may ask again.
            model = self.world.children[event.instance].model
            if not self._waiters(model):
                self._no_room.pop(model, None)
        if isinstance(event, Exited) and event.instance in self.reckoning.lost:
            self.reckoning.lost.discard(event.instance)
        self._before, self._models = after, models

    def _check_was_open(self, grant: Grant, after: Mapping[InstanceId, InstanceView]) -> None:
        """Who waited is served by an open instance; a gate may open and, for the next challenger, close
        again within one event.
        """
        view = after.get(grant.instance)
        plans = [v for v in after.values() if v.state is State.PLANNED and grant.instance in v.victims]
        closed_before = any(plan.id in self._before for plan in plans)
        open_ = view is not None and view.state in (State.READY, State.DRAINING) and not closed_before
        self._claim(open_, f"{grant} on an instance that is not open")

    def _check_states(self, event: Event, after: Mapping[InstanceId, InstanceView]) -> None:
        """Only the transitions of the table, and the states the commands and events speak of."""
        stopped, started = self._stopped_ids(), {s.instance for s in self._started}
        for name in self._before.keys() | after.keys():
            was = self._before[name].state if name in self._before else None
            now = after[name].state if name in after else None
            self._claim(_reachable(was, now, adopted=isinstance(event, Adopted)), f"{name}: {was} -> {now}")
            if name in stopped:
                self._claim(now is State.STOPPING, f"{name} was told to stop and is {now}")
            if name in started:
                self._claim(now in (State.STARTING, State.STOPPING), f"{name} was started and is {now}")
            child = self.world.children.get(name)
            if child is None:
                self._claim(now in (None, State.PLANNED), f"{name} is {now} and was never started")
            elif name not in self.reckoning.lost:
                self._claim(child.is_alive == (now is not None), f"{name} is {now}, alive: {child.is_alive}")
                self._claim(
                    not (child.stop_told and now is not State.STOPPING and child.is_alive), f"{name} revived"
                )
            if was is State.READY and now is State.STARTING:
                self._claim(False, f"{name} went back to loading")
            if was is State.DRAINING and now is State.READY:
                self._check_revival(name, event, after)
            if was is State.READY and now is State.DRAINING:
                self._check_drain(after[name], after)

    def _check_revival(
        self, name: InstanceId, event: Event, after: Mapping[InstanceId, InstanceView]
    ) -> None:
        asked = isinstance(event, Acquire) and event.model == after[name].model
        self._claim(not asked, f"{name} is revived by a request")
        condemned = any(name in view.victims for view in after.values() if view.state is State.PLANNED)
        self._claim(not condemned, f"{name} is revived though a plan still counts on it")
        cause = self._before[name].cause
        self._claim(cause is Cause.EVICTED, f"{name} is revived though it drains for {cause}")

    def _check_drain(self, view: InstanceView, after: Mapping[InstanceId, InstanceView]) -> None:
        """A busy one closes its gate only after its quantum, and never while idle ones would do."""
        if view.cause is not Cause.EVICTED:
            return
        world, now = self.world, self.world.now
        challenger = view.for_model
        self._claim(challenger is not None, f"{view.id} drains for nobody")
        assert challenger is not None
        owed = self._owed_wait(challenger, world.children[view.id].ready_at or 0.0)
        self._claim(now >= owed - 1e-6, f"{view.id} drains at {now}, its quantum lasts until {owed}")
        plans = [v for v in after.values() if v.state is State.PLANNED and view.id in v.victims]
        self._claim(bool(plans), f"{view.id} drains, but no plan counts on it")
        for plan in plans:
            idle = {v.id for v in self._before.values() if self._is_surely_evictable(v)}
            model = world.models.get(plan.model)
            if model is None or self._blocked_by_count_or_rivals(plan, idle):
                continue
            enough = self._room(gone=idle, without=plan.id).holds(plan.placement.footprint)
            self._claim(not enough, f"{view.id} is drained for {plan.id} though idle ones suffice: {idle}")

    def _owed_wait(self, challenger: ModelName, ready_at: float) -> float:
        """Until when a busy one may serve on at least: the quantum times the challenger's load, the
        drain not counted.
        """
        settings = self.world.scene.settings
        load = self._models[challenger].load_seconds
        until = inf
        for lease in self._open.values():
            if lease.model == challenger and lease.is_waiting:
                quantum = settings.quantum * load / self._priority(lease).weight
                # Nobody is made to wait beyond half of what he can wait at all for the sake of the quantum.
                patience = min(quantum, max(load, (lease.deadline - lease.asked_at) / 2))
                until = min(until, max(lease.asked_at, ready_at) + patience)
        return until

    def _check_leases(self, after: Mapping[InstanceId, InstanceView], queues: Iterable[object]) -> None:
        """Leases and queue as the scheduler shows them are those the clients know."""
        held: dict[InstanceId, set[LeaseId]] = {}
        for lease in self._open.values():
            if lease.state == "granted" and lease.instance is not None and lease.instance in after:
                held.setdefault(lease.instance, set()).add(lease.id)
        for name, view in after.items():
            shown, known = set(view.leases), held.get(name, set())
            self._claim(shown == known, f"{name} shows {shown}, but {known} hold it")
        waiting = sum(1 for lease in self._open.values() if lease.is_waiting)
        shown_waiting = sum(queue.waiting for queue in queues)  # type: ignore[attr-defined]
        self._claim(shown_waiting == waiting, f"{shown_waiting} shown as waiting, {waiting} do")

    def _check_deadlines(self) -> None:
        """Every wait ends at its deadline: nobody is overlooked, and the timer is set early enough."""
        waits = [lease for lease in self._open.values() if lease.is_waiting]
        if not waits:
            return
        first = min(waits, key=lambda lease: lease.deadline)
        due = self.world.scheduler.next_deadline()
        self._claim(
            due is not None and due <= first.deadline, f"the timer is set for {due}, {first} ends earlier"
        )

    def _check_victims(
        self, after: Mapping[InstanceId, InstanceView], models: Mapping[ModelName, ModelView]
    ) -> None:
        """No victim is needless, and among equals the least recently used goes."""
        for plan in after.values():
            earlier = self._before.get(plan.id)
            fresh = plan.victims and (earlier is None or set(plan.victims) - set(earlier.victims))
            if plan.state is State.PLANNED and fresh:
                self._check_not_needless(plan, after)
        for stop in self._stopped:
            view = self._before.get(stop.instance)
            if stop.cause is Cause.EVICTED and view is not None and view.state is State.READY:
                self._check_recency(view, after, models)

    def _check_not_needless(self, plan: InstanceView, after: Mapping[InstanceId, InstanceView]) -> None:
        victims = {v for v in plan.victims if v in after}
        for spared in victims:
            gone = victims - {spared}
            if self._blocked_by_count_or_rivals(plan, gone, spared):
                continue
            enough = self._room(gone=gone, stays=spared, without=plan.id).holds(plan.placement.footprint)
            self._claim(
                not enough, f"{spared} leaves needlessly for {plan.id}: {gone or 'what is free'} would do"
            )

    def _check_recency(
        self,
        victim: InstanceView,
        after: Mapping[InstanceId, InstanceView],
        models: Mapping[ModelName, ModelView],
    ) -> None:
        if self.world.policy not in ("lru", "lru-ttl") or victim.idle_since is None:
            return
        mine = self.world.models.get(victim.model)
        for other in self._before.values():
            twin = self.world.models.get(other.model)
            if mine is None or twin is None or other.id == victim.id or twin.exclusive != mine.exclusive:
                continue
            same = (
                other.placement.footprint == victim.placement.footprint and other.reserved == victim.reserved
            )
            stays = other.id in after and after[other.id].state is State.READY
            if same and stays and other.idle_since is not None and other.idle_since < victim.idle_since:
                self._claim(
                    not self._is_surely_evictable(other), f"{victim.id} goes, {other.id} was idle longer"
                )

    def _check_nobody_idles(
        self, after: Mapping[InstanceId, InstanceView], models: Mapping[ModelName, ModelView]
    ) -> None:
        """Whoever waits for a model that serves is served; whoever would fit beside everything is loading."""
        waiting = self._oldest_waiting()
        for name, since in waiting.items():
            mine = [view for view in after.values() if view.model == name]
            open_ = [view for view in mine if view.state is State.READY]
            self._claim(not open_, f"{name} is ready and {since} still waits")
            if any(view.state in (State.PLANNED, State.STARTING) for view in mine):
                continue
            model = self.world.models.get(name)
            self._claim(model is not None, f"somebody waits for {name}, which does not exist")
            assert model is not None
            retry_at = models[name].retry_at if name in models else None
            if (retry_at is not None and retry_at > self.world.now) or model.exclusive:
                continue
            if name in self._no_room or name in self._grown:
                continue
            limit = self.world.scene.settings.models_max
            if limit > 0 and len(after) + 1 > limit:
                continue
            room = self._room(trust_returning=False)
            fits = [p for p in model.placements if room.holds(p.footprint)]
            # It may have to stand back behind the claim of somebody who waits with more weight.
            urgent = [n for n in waiting if n != name and self._pressing(n) >= self._pressing(name)]
            self._claim(not fits or urgent, f"{name} waits though it fits: {fits}")

    def _check_arrival_order(
        self, after: Mapping[InstanceId, InstanceView], models: Mapping[ModelName, ModelView]
    ) -> None:
        """Among models that differ in nothing but arrival, the first come is planned first."""
        fresh = {
            v.model
            for n, v in after.items()
            if n not in self._before and v.state in (State.PLANNED, State.STARTING)
        }
        resident = {v.model for v in self._before.values()} | {v.model for v in after.values()}
        for later in fresh:
            for earlier, since in self._oldest_waiting().items():
                if earlier in resident or since >= self._waiting_before.get(later, self.world.now):
                    continue
                self._claim(
                    not self._are_equals(earlier, later, models),
                    f"{later} is planned before {earlier}, who came first",
                )

    def _are_equals(self, one: ModelName, other: ModelName, models: Mapping[ModelName, ModelView]) -> bool:
        a, b = self.world.models.get(one), self.world.models.get(other)
        if a is None or b is None or one not in models or other not in models or one in self._no_room:
            return False
        if one in self._grown or other in self._grown:
            return False
        # Who can wait less long is patient for less long: a deadline of one's own is a difference too.
        usual = self.world.scene.settings.queue_timeout
        plain = all(
            self._priority(lease) is Priority.NORMAL
            and lease.deadline - lease.asked_at == pytest.approx(usual)
            for lease in self._open.values()
            if lease.model in (one, other)
        )
        same = (a.placements, a.exclusive, a.pinned) == (b.placements, b.exclusive, b.pinned)
        free_to_load = models[one].retry_at is None
        return plain and same and free_to_load and models[one].load_seconds == models[other].load_seconds

    # --- what stands in the way ---

    def _blocked_by_count_or_rivals(
        self, plan: InstanceView, gone: Collection[InstanceId], stays: InstanceId | None = None
    ) -> bool:
        world = self.world
        model = world.models.get(plan.model)
        views = world.scheduler.snapshot(world.now).instances
        leaving = {v.id for v in views if v.state is State.STOPPING or v.id == plan.id} | set(gone)
        staying = [v for v in views if v.id == stays or v.id not in leaving]
        limit = world.scene.settings.models_max
        if limit > 0 and len(staying) + 1 > limit:
            return True
        for view in staying:
            rival = world.models.get(view.model)
            if (
                model is None
                or rival is None
                or (view.model != plan.model and rival.exclusive & model.exclusive)
            ):
                return True
        return False

    def _is_surely_evictable(self, view: InstanceView) -> bool:
        """Idle, wanted by nobody, not pinned, and idle for longer than any linger lasts."""
        model = self.world.models.get(view.model)
        if (
            view.state is not State.READY
            or view.leases
            or model is None
            or model.pinned
            or view.idle_since is None
        ):
            return False
        if self._waiters(view.model) or view.id in self._stopped_ids() or view.id in self.reckoning.lost:
            return False
        linger = self._models[view.model].load_seconds if self.world.scene.settings.linger > 0 else 0.0
        return self.world.now - view.idle_since > linger

    def _room(
        self,
        *,
        gone: Collection[InstanceId] = (),
        stays: InstanceId | None = None,
        without: InstanceId | None = None,
        claims: Collection[InstanceId] | None = None,
        trust_returning: bool = True,
    ) -> Room:
        """The room a newcomer finds with every claim counted, or only those of `claims`."""
        shown = {**self._before, **{v.id: v for v in self.world.scheduler.snapshot(self.world.now).instances}}
        # Plans, and those whose Start stands further down in the same answer.
        booked = [v.reserved for v in shown.values() if v.id != without and v.id not in self.world.children]
        if claims is not None:
            booked = [shown[name].reserved for name in claims]
        return self.reckoning.room(gone=gone, stays=stays, claims=booked, trust_returning=trust_returning)

    # --- small questions ---

    def _claim(self, truth: object, otherwise: str) -> None:
        assert truth, f"{otherwise}\n{self.world.story()}"

    def _waiters(self, model: ModelName) -> list[LeaseId]:
        return [lease.id for lease in self._open.values() if lease.is_waiting and lease.model == model]

    def _oldest_waiting(self) -> dict[ModelName, float]:
        oldest: dict[ModelName, float] = {}
        for lease in self._open.values():
            if lease.is_waiting:
                oldest[lease.model] = min(oldest.get(lease.model, inf), lease.asked_at)
        return oldest

    def _pressing(self, model: ModelName) -> float:
        now = self.world.now
        return max(
            self._priority(x).weight * (now - x.asked_at)
            for x in self._open.values()
            if x.is_waiting and x.model == model
        )

    def _priority(self, lease: Lease) -> Priority:
        model = self.world.models.get(lease.model)
        return lease.priority or (model.priority if model is not None else Priority.NORMAL)

    def _draining(self) -> set[InstanceId]:
        return {name for name, view in self._before.items() if view.state is State.DRAINING}

    def _stopped_ids(self) -> set[InstanceId]:
        return {stop.instance for stop in self._stopped}


def _reachable(was: State | None, now: State | None, *, adopted: bool) -> bool:
    """Whether the table leads from one to the other within one event (a new plan may start or be given
    up at once).
    """
    if was is now:
        return True
    if was is None:
        return now in (State.PLANNED, State.STARTING) or (adopted and now is not None)
    seen: set[State | None] = {was}
    edge: set[State | None] = {was}
    while edge:
        edge = {to for state in edge if state is not None for to in TRANSITIONS[state]} - seen
        seen |= edge
    return now in seen
