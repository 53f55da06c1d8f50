"""A world in which devices really fill and processes really die: it carries out the scheduler's commands in
virtual time.

Children allocate gradually while they load, grow after they are ready, lie a little, refuse to come up, die
in any state; their memory comes back late; strangers take and return memory; measurements are late, torn
(an allocation between the two readings) or missing. The world knows the truth; `tests.scheduler.oracle` holds
the scheduler to its promises after every event.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import count
from math import inf

from router.errors import LoadFailed, UpstreamFailed
from router.ids import Definition
from router.scheduler.policy import make_policy
from router.scheduler.scheduler import Scheduler, Settings
from router.scheduler.types import (
    Acquire,
    Adopted,
    Command,
    Device,
    DeviceId,
    Event,
    Exited,
    Footprint,
    Grant,
    HostId,
    HostLost,
    InstanceId,
    Learned,
    LeaseId,
    Measured,
    Model,
    ModelName,
    Placement,
    Priority,
    Ready,
    Refuse,
    Release,
    Reloaded,
    Start,
    Stop,
    Tick,
    Unload,
)
from tests.scheduler.oracle import Lease, Oracle
from tests.scheduler.telling import tell

GIB = 2**30

#: An allocation may fall between reading the processes and reading the device: this far apart in time.
TORN_SECONDS = 0.02


@dataclass(frozen=True, slots=True)
class Nature:
    """How a model's children really behave, whatever its definition promises.

    `at_ready` is the part of its need held when the child answers, the rest comes with use; `need` is the
    part of the footprint it will ever take. `overshoot` is what a liar takes beyond that on every device,
    in bytes. `fails` loads end in an error before one succeeds. With `is_measured` its host corrects the
    reservation when it is ready.
    """

    load_seconds: float = 2.0
    at_ready: float = 0.9
    need: float = 1.0
    is_measured: bool = False
    grow_seconds: float = 3.0
    overshoot: int = 0
    stop_seconds: float = 0.1
    return_seconds: float = 0.5
    fails: int = 0


@dataclass(frozen=True, slots=True)
class Scene:
    """Where a history takes place. Devices are looked at every `look_seconds` while anything moves, as
    the pool does.
    """

    name: str
    devices: tuple[Device, ...]
    models: Mapping[ModelName, Model]
    natures: Mapping[ModelName, Nature]
    settings: Settings = field(default_factory=Settings)
    ttl: float = 20.0
    look_seconds: float = 0.5


@dataclass(slots=True)
class Child:
    """One process and the truth about its memory."""

    instance: InstanceId
    model: ModelName
    placement: Placement
    nature: Nature
    reserved: dict[DeviceId, int]
    born: float
    ready_at: float | None = None
    exited_at: float | None = None
    stop_told: bool = False
    held_until: float = inf

    def use(self, device: DeviceId, now: float) -> int:
        """Bytes this child really holds on a device, its own lag after death included."""
        promised = self.placement.footprint.get(device, 0)
        if promised == 0 or now < self.born or now >= self.held_until:
            return 0
        until = now if self.exited_at is None else min(now, self.exited_at)
        warm = promised * self.nature.need * self.nature.at_ready
        if self.ready_at is None or until < self.ready_at:
            span = self.nature.load_seconds or 1.0
            return int(warm * min(1.0, max(0.0, until - self.born) / span))
        full = self.need(device)
        grown = min(1.0, (until - self.ready_at) / (self.nature.grow_seconds or 1.0))
        return int(warm + (full - warm) * grown)

    def need(self, device: DeviceId) -> int:
        """Bytes it will have taken in the end."""
        promised = self.placement.footprint.get(device, 0)
        return int(promised * self.nature.need) + (self.nature.overshoot if promised else 0)

    @property
    def is_alive(self) -> bool:
        return self.exited_at is None


@dataclass(slots=True)
class Sample:
    """A measurement of one host under way: what it saw, and of which strangers."""

    host: HostId
    at: float
    used: dict[InstanceId, dict[DeviceId, int]]
    free: dict[DeviceId, int | None]
    strangers: dict[DeviceId, int]
    seen: dict[InstanceId, dict[DeviceId, int]]


class World:
    """Verbs make things happen; time moves only in `pass_time` and `run_until_quiet`."""

    def __init__(self, scene: Scene, policy: str) -> None:
        self.scene = scene
        self.policy = policy
        self.now = 0.0
        self.models = dict(scene.models)
        self.natures = dict(scene.natures)
        self.devices = {d.id: d for d in scene.devices}
        self.strangers: dict[DeviceId, int] = dict.fromkeys(self.devices, 0)
        self.sick: set[DeviceId] = set()
        self.children: dict[InstanceId, Child] = {}
        #: Those alive, and the dead until their memory was measured back.
        self.holding: dict[InstanceId, Child] = {}
        self.fails: dict[ModelName, int] = {name: nature.fails for name, nature in self.natures.items()}
        self.refuse_next_start = False
        self.delivery_lag = 0.0
        self.history: list[tuple[Event, float, list[Command]]] = []
        self._agenda: list[tuple[float, int, Callable[[], None]]] = []
        self._order = count()
        self._names = count(1)
        self._next_delivery: dict[HostId, float] = {}
        self._idle_ticks = 0
        self.scheduler = self._new_scheduler()
        self.oracle = Oracle(self)
        self._look()
        self.pass_time(TORN_SECONDS)

    def _new_scheduler(self) -> Scheduler:
        policy = make_policy(self.policy, ttl=self.scene.ttl)
        return Scheduler(dict(self.scene.models), self.scene.devices, policy, self.scene.settings)

    # --- verbs ---

    def ask(
        self,
        model: ModelName,
        hold: float = 1.0,
        *,
        priority: Priority | None = None,
        keep_alive: float | None = None,
        size: float | None = None,
        timeout: float | None = None,
        then: Callable[[], None] | None = None,
    ) -> LeaseId:
        """A client asks; once granted it holds for `hold` seconds, releases, and does `then`."""
        lease = f"r{next(self._names)}"
        wait = self.scene.settings.queue_timeout if timeout is None else timeout
        self.oracle.asks(Lease(lease, model, self.now, self.now + wait, priority, hold, then))
        self.tell(Acquire(lease, model, priority, keep_alive, size, timeout))
        return lease

    def hang_up(self, lease: LeaseId) -> None:
        """The client leaves, whether it was served or still waits."""
        self.oracle.leaves(lease)
        self.tell(Release(lease))

    def crash(self, instance: InstanceId) -> None:
        """A child dies by itself, in whatever state it is."""
        child = self.children[instance]
        if child.is_alive:
            self._finalize(child, UpstreamFailed("died by signal 11"))

    def take(self, device: DeviceId, amount: int) -> None:
        """A stranger takes memory, as far as there is any, or returns it (negative)."""
        free = self.true_free(device)
        self.strangers[device] += max(-self.strangers[device], min(amount, max(0, free)))

    def unload(self, model: ModelName, *, force: bool = False, deadline: float | None = None) -> None:
        self.oracle.operator_unloads(model, force, deadline)
        self.tell(Unload(model, force, deadline))

    def reload(self, models: Mapping[ModelName, Model], devices: tuple[Device, ...] | None = None) -> None:
        for name in models:
            self.natures.setdefault(name, Nature())
        self.models = dict(models)
        if devices is not None:
            self.devices = {device.id: device for device in devices}
        self.tell(Reloaded(dict(models), devices))

    def lose(self, host: HostId) -> None:
        """A host goes away with everything on it; it comes back empty with the next look."""
        for child in self.holding.values():
            if child.placement.host == host and child.is_alive:
                child.exited_at = child.held_until = self.now
        self.oracle.host_goes(host)
        self.tell(HostLost(host, UpstreamFailed(f"{host} is gone")))

    def adopt(self, model: ModelName, placement: Placement, *, stale: bool = False) -> InstanceId:
        """A child of an earlier router is found, grown up and healthy; `stale`: of a definition that is
        no more.
        """
        instance = f"{model}#old{next(self._names)}"
        nature = self.natures[model]
        child = Child(instance, model, placement, nature, dict(placement.footprint), self.now - 60.0)
        child.ready_at = self.now - 50.0
        self.children[instance] = self.holding[instance] = child
        definition = Definition("no more") if stale else self.models[model].definition
        self.tell(Adopted(instance, model, placement, definition))
        return instance

    def learn(self, model: ModelName) -> None:
        """What a model needs was learned: its children's reservations and its placements are corrected."""
        known, nature = self.models[model], self.natures[model]
        children = [
            c for c in self.alive() if c.model == model and c.ready_at is not None and not c.stop_told
        ]
        reserve = {c.instance: {d: c.need(d) for d in c.placement.footprint} for c in children}
        for child in children:
            self.oracle.reckoning.corrects(child, reserve[child.instance])
        self.tell(Measured({}, {}, None, reserve))
        if nature.need < 1.0 and known == self.scene.models.get(model):
            places = tuple(
                replace(p, footprint={d: int(b * nature.need) for d, b in p.footprint.items()})
                for p in known.placements
            )
            self.natures[model] = replace(nature, need=1.0)
            self.models[model] = replace(known, placements=places)
            self.tell(Learned(self.models[model]))

    def look(self) -> None:
        """Measure each host now, torn as ever; delivered `delivery_lag` later, for one host never out of
        order.
        """
        for host in sorted({device.host for device in self.devices.values()}):
            sample = Sample(host, self.now, {}, {}, {}, {})
            for child in self.holding.values():
                if child.is_alive and child.placement.host == host:
                    sample.used[child.instance] = {
                        d: child.use(d, self.now) for d in child.placement.footprint
                    }
            self._at(self.now + TORN_SECONDS, partial(self._finish_look, sample))

    # --- time ---

    def pass_time(self, seconds: float) -> None:
        """Let everything happen that is due within `seconds`, timers exactly at their deadline."""
        end = self.now + seconds
        while True:
            due = self.scheduler.next_deadline()
            tick_at = inf if due is None else max(self.now, due)
            happens_at = self._agenda[0][0] if self._agenda else inf
            if min(tick_at, happens_at) > end:
                break
            if happens_at <= tick_at:
                at, _, happen = heapq.heappop(self._agenda)
                self.now = max(self.now, at)
                happen()
            else:
                self.now = tick_at
                self._tick()
        self.now = max(self.now, end)

    def run_until_quiet(self, limit: float) -> float:
        """Nobody asks any more: run on until every lease is answered and over; the seconds it took.

        AssertionError if it is not quiet after `limit` seconds: somebody waits for ever.
        """
        begun = self.now
        while not self.is_quiet():
            assert self.now - begun <= limit, f"not quiet after {limit} s\n{self.story()}"
            self.pass_time(self.scene.look_seconds)
        return self.now - begun

    def is_quiet(self) -> bool:
        """No lease is open, no child is on its way up or down, all memory of the dead is back and was
        seen.
        """
        if self.oracle.open_leases():
            return False
        return all(c.is_alive and not c.stop_told and c.ready_at is not None for c in self.holding.values())

    # --- truth ---

    def true_free(self, device: DeviceId, at: float | None = None) -> int:
        now = self.now if at is None else at
        held = sum(child.use(device, now) for child in self.holding.values())
        return self.devices[device].total - self.strangers[device] - held

    def alive(self) -> list[Child]:
        return [child for child in self.holding.values() if child.is_alive]

    def story(self, last: int = 60) -> str:
        """What happened, for a person who has to understand a failure."""
        lines = [f"scene {self.scene.name}, policy {self.policy}, t={self.now:.3f}"]
        for event, now, commands in self.history[-last:]:
            lines.append(f"{now:10.3f}  {event}")
            lines += [f"{'':14}-> {command}" for command in commands]
        seen = self.scheduler.snapshot(self.now)
        for view in seen.instances:
            since, why = f"idle since {view.idle_since}", f"{view.cause} {view.for_model}"
            lines.append(f"  {view!r} {since}, victims {view.victims}, {why}")
        lines += [f"  {queue}" for queue in seen.queues]
        lines += [f"  {device}" for device in seen.devices]
        return "\n".join(lines)

    def replay(self) -> None:
        """Tell a second scheduler the same history: it must answer the same. The first one was also
        looked at on the way, and knew when something is due next: the second one, which nobody asked for
        that, goes over everything at each event.
        """
        twin = self._new_scheduler()
        for number, (event, now, commands) in enumerate(self.history):
            again = twin.handle(event, now)
            assert again == commands, (
                f"replay differs at {number} {event}:\n{commands}\n{again}\n{self.story()}"
            )

    # --- telling and doing ---

    def tell(self, event: Event) -> list[Command]:
        """Tell the scheduler, carry out what it answers, and hold it to its promises."""
        if not isinstance(event, Tick):
            self._idle_ticks = 0
        self.oracle.before(event)
        try:
            commands = tell(self.scheduler, event, self.now)
            self.scheduler.next_deadline()  # as the shell asks
        except AssertionError as impossible:
            self.history.append((event, self.now, []))
            raise AssertionError(
                f"the scheduler contradicts itself: {impossible}\n{self.story()}"
            ) from impossible
        self.history.append((event, self.now, commands))
        self.oracle.answered()
        for command in commands:
            self.oracle.judge(command, event)
            self._carry_out(command)
        self.oracle.after(event, commands)
        return commands

    def _tick(self) -> None:
        commands = self.tell(Tick())
        due = self.scheduler.next_deadline()
        self._idle_ticks = 0 if commands else self._idle_ticks + 1
        bound = 20 + 4 * (len(self.holding) + len(self.oracle.open_leases()))
        assert self._idle_ticks <= bound, f"{self._idle_ticks} ticks in a row changed nothing\n{self.story()}"
        late = due is not None and due <= self.now and not commands
        assert not late, f"a tick at its deadline {due} left it in the past\n{self.story()}"

    def _carry_out(self, command: Command) -> None:
        match command:
            case Start(instance, model, placement):
                self._spawn(instance, model, placement)
            case Stop(instance):
                child = self.children[instance]
                child.stop_told = True
                self._at(self.now + child.nature.stop_seconds, lambda: self._finalize(child, None))
            case Grant(lease):
                held = self.oracle.leases[lease]
                self._at(self.now + held.hold, lambda: self._finish(held))
            case Refuse():
                pass

    def _spawn(self, instance: InstanceId, model: ModelName, placement: Placement) -> None:
        nature = self.natures[model]
        child = Child(instance, model, placement, nature, dict(placement.footprint), self.now)
        self.children[instance] = self.holding[instance] = child
        if self.refuse_next_start:
            self.refuse_next_start = False
            child.held_until = self.now
            self._at(self.now + 0.01, lambda: self._finalize(child, None, no_room=True))
        elif self.fails.get(model, 0) > 0:
            self.fails[model] -= 1
            self._at(
                self.now + nature.load_seconds / 2, lambda: self._finalize(child, LoadFailed("exit status 1"))
            )
        else:
            self._at(self.now + nature.load_seconds, lambda: self._come_up(child))

    def _come_up(self, child: Child) -> None:
        # A Ready may already be on its way when the Stop is given: the scheduler has to live with that.
        if not child.is_alive:
            return
        child.ready_at = self.now
        if any(self.true_free(d) < 0 for d in child.placement.footprint):
            self._finalize(child, LoadFailed("out of memory"), out_of_memory=True)
            return
        footprint = (
            {d: child.need(d) for d in child.placement.footprint} if child.nature.is_measured else None
        )
        if footprint is not None and not child.stop_told:
            self.oracle.reckoning.corrects(child, footprint)
        self.tell(Ready(child.instance, footprint))

    def _finalize(
        self,
        child: Child,
        error: LoadFailed | UpstreamFailed | None,
        *,
        no_room: bool = False,
        out_of_memory: bool = False,
    ) -> None:
        if not child.is_alive:
            return
        child.exited_at = self.now
        child.held_until = min(child.held_until, self.now + child.nature.return_seconds)
        self.tell(Exited(child.instance, error, no_room, out_of_memory))

    def _finish(self, lease: Lease) -> None:
        if not lease.is_open:
            return
        self.hang_up(lease.id)
        if lease.then is not None:
            lease.then()

    # --- looking at the devices ---

    def _look(self) -> None:
        self._at(self.now + self.scene.look_seconds, self._look)
        if self.now == 0.0 or not self.is_quiet():
            self.look()

    def _finish_look(self, sample: Sample) -> None:
        for device in self.devices.values():
            if device.host == sample.host:
                sample.free[device.id] = None if device.id in self.sick else max(0, self.true_free(device.id))
                sample.strangers[device.id] = self.strangers[device.id]
        for child in self.holding.values():
            if child.placement.host == sample.host:
                sample.seen[child.instance] = {d: child.use(d, self.now) for d in child.placement.footprint}
        lag = self.delivery_lag if sample.host == "local" else self.delivery_lag / 2
        self._next_delivery[sample.host] = max(self.now + lag, self._next_delivery.get(sample.host, 0.0))
        self._at(self._next_delivery[sample.host], lambda: self._deliver(sample))

    def _deliver(self, sample: Sample) -> None:
        self.holding = {
            name: child
            for name, child in self.holding.items()
            if child.is_alive or child.held_until >= sample.at or child.placement.host != sample.host
        }
        self.oracle.reckoning.sees(sample)
        self.tell(Measured(sample.free, sample.used, sample.at))

    def _at(self, when: float, happen: Callable[[], None]) -> None:
        heapq.heappush(self._agenda, (when, next(self._order), happen))


def changed(model: Model, definition: Definition, **changes: object) -> Model:
    """The same model with another definition."""
    return replace(model, definition=definition, **changes)  # type: ignore[arg-type]


def footprint(**gib: float) -> Footprint:
    """Bytes per device of host `local`, given in GiB: footprint(gpu0=6, host=2)."""
    return {f"local/{device}": int(amount * GIB) for device, amount in gib.items()}
