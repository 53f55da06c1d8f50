"""The async shell around the scheduler: carries out its commands, reports events, keeps its one timer.

It decides nothing. Each child has one task for its whole life (start, ready, wait, exited), each lease is
an `async with` whose end is always told, and a measurement is taken when a decision needs one."""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import (
    AsyncIterator,
    Awaitable,
    Callable,
    Collection,
    Coroutine,
    Iterable,
    Mapping,
    Sequence,
)
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Protocol, Self

import msgspec

from router.engines import Launch
from router.errors import LoadFailed, RouterError, ShuttingDown
from router.hosts import Address, Exit, Host, HostFull, InstanceRecord, Measurement
from router.ids import Definition
from router.memory.estimate.learning import FootprintStatus
from router.observability.journal import Journal, command_words
from router.scheduler.scheduler import Scheduler
from router.scheduler.types import (
    Acquire,
    Adopted,
    Cause,
    Closed,
    Command,
    Device,
    Event,
    Exited,
    Footprint,
    Grant,
    HostId,
    InstanceId,
    LeaseId,
    Measured,
    Model,
    ModelName,
    Pinned,
    Placement,
    Priority,
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
from router.tasks import Tasks

log = logging.getLogger("router.supervisor.pool")

#: What a backend makes of a model, the placement it was given, and the definition of a load with other
#: settings than its own (else `NO_DEFINITION`). Raises RouterError.
Launcher = Callable[[ModelName, Placement, Definition], Launch]

#: While memory is on its way back it is measured this often: fast for the first second, when it usually
#: comes, and once its holder is gone after a part of the time that has passed since.
RETURN_POLL_SECONDS = 0.05
LEAST_RETURN_POLL_SECONDS = 0.01
RETURN_POLL_SHARE = 0.2
SLOW_RETURN_POLL_SECONDS = 0.25
FAST_RETURN_SECONDS = 1.0
#: So long after a child has become ready it is measured, unless that has been done since.
NEWCOMER_SECONDS = 0.05
#: How long closing waits for a child beyond its grace, in seconds: SIGKILL takes the kernel a while with tens
#: of GiB, and the host waits 5 s for that.
STOP_SECONDS = 10.0
#: Stands for the definition of a child that cannot serve: it equals none.
UNUSABLE = Definition("unusable")
#: While a child loads, so that a request that comes meanwhile finds the figures fresh.
LOAD_POLL_SECONDS = 1.0


class Learner(Protocol):
    """Corrects what is reserved by what is measured (router.supervisor.calibration). Only `consult` waits."""

    def heard(self, event: Event, commands: Sequence[Command]) -> Iterable[Event]:
        """Told all that the scheduler is told and answers, but for requests that find their model ready;
        returns what it is to be told in turn.
        """

    async def consult(self, instance: InstanceId) -> Iterable[Event]:
        """Asked before a child is started; what it says means that too little is reserved. Bounded."""

    def corrections(
        self, taken: Measurement, use: Mapping[InstanceId, Use]
    ) -> Mapping[InstanceId, Footprint]:
        """The reservations that a measurement changes."""

    async def hand_over(self) -> None:
        """Start no process any more; returns when none of its own runs."""

    def of_instance(self, instance: InstanceId) -> FootprintStatus | None:
        """What was predicted and measured of a running instance."""

    def of_model(self, model: ModelName) -> Sequence[FootprintStatus]:
        """What a load would reserve, for each placement of the model."""


class HandedOver(Exception):
    """Another process has the children from now on, and serves: ask there."""


@dataclass(slots=True, eq=False)
class Ending:
    """How one instance ends. `cause` is set when the router stops it, and stays None where it exits by
    itself; `over` is set when the scheduler has been told of its exit. `log_tail` is for its last lines from
    then on: all requests that failed with it quote them.
    """

    cause: Cause | None = None
    log_tail: tuple[str, ...] | None = None
    over: asyncio.Event = field(default_factory=asyncio.Event)


class Lease(msgspec.Struct, frozen=True, gc=False):
    """A granted request. `queue_seconds` passed before its model's load began, `load_seconds` until it was
    ready. `ending` is that of its instance.
    """

    id: LeaseId
    model: ModelName
    instance: InstanceId
    address: Address
    ending: Ending
    action: str = "already_loaded"
    queue_seconds: float = 0.0
    load_seconds: float = 0.0
    evicted: tuple[InstanceId, ...] = ()


@dataclass(slots=True, eq=False)
class _Child:
    """One Start carried out."""

    start: Start
    started_at: float
    task: asyncio.Task[None] | None = None
    address: Address | None = None
    stop_wanted: bool = False
    begun: bool = False
    error: RouterError | None = None
    ending: Ending = field(default_factory=Ending)


class _Granted(msgspec.Struct, frozen=True):
    grant: Grant
    child: _Child


class Pool:
    """`async with Pool(...)` runs it; leaving stops every child. All methods belong to the loop it was
    entered in.
    """

    def __init__(
        self,
        scheduler: Scheduler,
        hosts: Collection[Host],
        launcher: Launcher,
        journal: Journal,
        *,
        definitions: Mapping[ModelName, Model] | None = None,
        check: Callable[[ModelName], None] | None = None,
        learner: Learner | None = None,
        look_again: Callable[[], Awaitable[None]] | None = None,
        measure_max_age_seconds: float = 0.1,
        poll_seconds: float = 5.0,
        stop_grace_seconds: Callable[[ModelName], float] = lambda _: 10.0,
    ) -> None:
        self._scheduler = scheduler
        self._hosts: dict[HostId, Host] = {host.id: host for host in hosts}
        self._launcher = launcher
        self._definitions = dict(definitions or {})
        self._check = check
        self._learner = learner
        self.journal = journal
        self._look_again = look_again
        self._max_age = measure_max_age_seconds
        self._poll = poll_seconds
        self._grace = stop_grace_seconds
        self._children: dict[InstanceId, _Child] = {}
        self._newest: dict[ModelName, InstanceId] = {}
        self._futures: dict[LeaseId, asyncio.Future[_Granted]] = {}  # of those who wait
        self._numbers = count(1)  # of leases
        self._tasks = Tasks()
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = math.inf
        self._measure_soon = asyncio.Event()
        self._expecting_since: float | None = None
        self._exited_at: float | None = None  # the last child of which memory is expected
        self._measured_at: float | None = None
        self._measurements: dict[HostId, Measurement] = {}
        self._closing = False
        self._on_lease_end: Callable[[str], None] | None = None  # set once it is handed over
        self._left: dict[LeaseId, InstanceId] = {}  # leases that are still held then
        self._earlier: set[LeaseId] = set()  # leases that an earlier router holds

    async def __aenter__(self) -> Self:
        self._loop = asyncio.get_running_loop()
        self._time = self._loop.time
        self._is_debugging = log.isEnabledFor(logging.DEBUG)
        await self.measure()
        self._measuring = self._spawn(self._measure_for_ever(), "measure")
        return self

    async def __aexit__(self, *_: object) -> None:
        """Refuse whoever waits, stop every child at once, and wait until all are gone; but those handed
        over. A child that not even SIGKILL ends is waited for until its grace and `STOP_SECONDS` have
        passed: its host deals with it.
        """
        self._closing = True
        if self._timer is not None:
            self._timer.cancel()
        self.tell(Closed())
        children = list(self._children.values()) if self._on_lease_end is None else []
        grace_seconds = max((self._grace(child.start.model) for child in children), default=0.0)
        try:
            async with asyncio.timeout(grace_seconds + STOP_SECONDS):
                await asyncio.gather(*(child.ending.over.wait() for child in children))
        except TimeoutError:
            left = ", ".join(child.start.instance for child in children if not child.ending.over.is_set())
            log.error("%s not ended within %g s", left, grace_seconds + STOP_SECONDS)
        await self._tasks.cancel()

    # --- for those who serve requests ---

    @asynccontextmanager
    async def lease(
        self,
        model: ModelName,
        *,
        priority: Priority | None = None,
        keep_alive: float | None = None,
        size: float | None = None,
        timeout: float | None = None,  # noqa: ASYNC109 - of the place in the queue, not of this coroutine
        overrides: Model | None = None,
    ) -> AsyncIterator[Lease]:
        """Hold a ready instance of `model` for as long as the block runs. As `acquire` and `release`."""
        lease = await self.acquire(
            model, priority=priority, keep_alive=keep_alive, size=size, timeout=timeout, overrides=overrides
        )
        try:
            yield lease
        finally:
            self.release(lease)

    async def acquire(
        self,
        model: ModelName,
        *,
        priority: Priority | None = None,
        keep_alive: float | None = None,
        size: float | None = None,
        timeout: float | None = None,  # noqa: ASYNC109 - of the place in the queue, not of this coroutine
        overrides: Model | None = None,
    ) -> Lease:
        """Wait for a ready instance of `model`; `release` the lease, whatever happens. Raises RouterError
        when it is refused, HandedOver when another process serves by now.
        """
        if self._closing:
            raise ShuttingDown("the router is shutting down", retry_after_seconds=5.0)
        if overrides is None:
            lease = self.acquire_nowait(
                model, priority=priority, keep_alive=keep_alive, size=size, timeout=timeout
            )
            if lease is not None:
                return lease
        begun = self._loop.time()
        await self._prepare(model)
        if self._on_lease_end is not None:
            raise HandedOver
        name = f"r{next(self._numbers)}"
        future: asyncio.Future[_Granted] = self._loop.create_future()
        self._futures[name] = future
        try:
            self.tell(Acquire(name, model, priority, keep_alive, size, timeout, overrides))
            granted = await future
        except BaseException:
            # Refused, timed out, cancelled, granted in the very turn in which the waiter was cancelled.
            del self._futures[name]
            self._end_lease(name)
            raise
        del self._futures[name]
        return self._lease(granted, model, begun)

    def acquire_nowait(
        self,
        model: ModelName,
        *,
        priority: Priority | None = None,
        keep_alive: float | None = None,
        size: float | None = None,
        timeout: float | None = None,
    ) -> Lease | None:
        """A lease at once, where the model is ready and takes requests; else None, and nothing is told: ask
        with `acquire`. `release` it, whatever happens.
        """
        if self._closing or self._on_lease_end is not None:
            return None
        if not self._scheduler.is_open(model):
            return None
        name, now = f"r{next(self._numbers)}", self._time()
        event = Acquire(name, model, priority, keep_alive, size, timeout)
        commands = self._scheduler.handle(event, now)
        if not self._scheduler.was_routine:  # more comes of it than the lease
            future = self._futures[name] = self._loop.create_future()
            try:
                self._follow(event, commands, now)
                return self._lease(future.result(), model, now)
            finally:
                del self._futures[name]
        (grant,) = commands
        assert isinstance(grant, Grant), f"{grant} instead of a lease"
        child = self._children[grant.instance]
        assert child.address is not None, f"{grant.instance} was granted before it was ready"
        self.journal.record(now, event, commands, is_routine=True)
        if self._is_debugging:
            log.debug("%s", command_words(grant))
        return Lease(name, model, grant.instance, child.address, child.ending)

    def release(self, lease: Lease) -> None:
        """The end of a lease; once."""
        if self._on_lease_end is not None:
            self._end_lease(lease.id)
            return
        event, now = Release(lease.id), self._time()
        commands = self._scheduler.handle(event, now)
        if self._scheduler.was_routine:
            self.journal.record(now, event, commands, is_routine=True)
        else:
            self._follow(event, commands, now)

    def _end_lease(self, lease: LeaseId) -> None:
        self.tell(Release(lease))
        if self._on_lease_end is not None:
            self._left.pop(lease, None)
            self._on_lease_end(lease)

    async def load(
        self, model: ModelName, *, overrides: Model | None = None, keep_alive: float | None = None
    ) -> None:
        """Return when the model is ready. Raises RouterError. A caller that leaves does not abort what
        others wait for. `overrides`: with other settings than its own, until it leaves.
        """
        async with self.lease(model, keep_alive=keep_alive, overrides=overrides):
            pass

    def pin(self, model: ModelName, pinned: bool | None) -> None:
        """From now on, whatever its preset says; None: as that says."""
        self.tell(Pinned(model, pinned))

    async def unload(self, model: ModelName, *, force: bool = False, deadline: float | None = None) -> bool:
        """Drain and stop the model; returns when it is gone. False: there was nothing to stop."""
        running = [child for child in self._children.values() if child.start.model == model]
        planned = any(i.state is State.PLANNED for i in self.snapshot().of_model(model))
        self.tell(Unload(model, force, deadline))
        for child in running:
            await child.ending.over.wait()
        if self._on_lease_end is not None:
            raise HandedOver  # it has ended for this process only
        return bool(running) or planned

    async def reload(
        self, models: Mapping[ModelName, Model], devices: tuple[Device, ...] | None = None
    ) -> None:
        """Take new definitions: what did not change keeps serving."""
        former = self._definitions
        # What is equal stays the same object: the journal keeps what each reload told, and a program that
        # asks for one every minute would fill the memory with copies.
        same = {name: former[name] if former.get(name) == model else model for name, model in models.items()}
        self._definitions = former if same == former else same
        self.tell(Reloaded(self._definitions, devices))

    # --- before and after this process ---

    def adopt(self, record: InstanceRecord, leases: Iterable[str] = ()) -> None:
        """Take over a child that its host has found. `leases` are those that the earlier router still
        holds: `end_adopted` ends each. One that does not answer, or stands on a device that
        is gone, is stopped as soon as it has none.
        """
        there = {device.id for device in self.snapshot().devices}
        is_usable = record.ready and there.issuperset(record.placement.footprint)
        start = Start(record.instance, record.model, record.placement)
        child = _Child(start, self._loop.time(), address=record.address, begun=True)
        self._children[record.instance] = child
        self._newest[record.model] = record.instance
        child.task = self._spawn(self._run_instance(child), record.instance)
        definition = record.definition if is_usable else UNUSABLE
        held = tuple(leases)
        self._earlier.update(held)
        self.tell(Adopted(record.instance, record.model, record.placement, definition, held))

    def end_adopted(self, lease: str) -> None:
        """A lease of the earlier router is over. One that is not known was on a child that has gone."""
        if lease in self._earlier:
            self._earlier.discard(lease)
            self._end_lease(lease)

    def is_changing(self) -> bool:
        """Whether a child is on its way up or down: no time to hand over."""
        changing = (State.STARTING, State.STOPPING)
        return any(one.state in changing for one in self.snapshot().instances)

    async def hand_over(self, on_lease_end: Callable[[str], None]) -> Mapping[str, InstanceId]:
        """From now on decide nothing and touch no child: the next router will. Returns the leases that are
        held, and tells the end of each. Whoever waits is told HandedOver; a load that has not ended is
        called off.
        """
        self._on_lease_end = on_lease_end
        self._left = {lease: one.id for one in self.snapshot().instances for lease in one.leases}
        self._measuring.cancel()
        if self._timer is not None:
            self._timer.cancel()
        for future in self._futures.values():
            if not future.done():
                future.set_exception(HandedOver())
        loading = [child for child in self._children.values() if child.address is None]
        for child in loading:
            self._begin_stop(child)
        await asyncio.gather(*(child.ending.over.wait() for child in loading))
        if self._learner is not None:
            await self._learner.hand_over()
        return self._left

    # --- for those who look ---

    def snapshot(self) -> Snapshot:
        return self._scheduler.snapshot(self._loop.time())

    def explain(self, model: ModelName, overrides: Model | None = None) -> Explanation:
        """`overrides`: as if the model were defined so. Raises ModelNotFound."""
        return self._scheduler.explain(model, self._loop.time(), overrides)

    def standing(self, instance: InstanceId) -> FootprintStatus | None:
        """How well the footprint of a running instance is known; None where nobody learns it."""
        return self._learner.of_instance(instance) if self._learner is not None else None

    def standings(self, model: ModelName) -> Sequence[FootprintStatus]:
        """The same for each placement of a model, loaded or not, in the order of its definition."""
        return self._learner.of_model(model) if self._learner is not None else ()

    def warnings(self, model: ModelName) -> tuple[str, ...]:
        """Why a model runs, or would run, on the CPU though there is a GPU."""
        found: list[str] = []
        for taken in self._measurements.values():
            found += taken.warnings
            found += (
                text
                for instance, text in taken.fallbacks.items()
                if instance in self._children and self._children[instance].start.model == model
            )
        return tuple(found)

    @property
    def measurements(self) -> Mapping[HostId, Measurement]:
        """The last one of each host: for people, who want to know what is wrong with a device."""
        return self._measurements

    def address(self, instance: InstanceId) -> Address | None:
        """Where a ready instance answers; None for one that does not yet, or does no more."""
        child = self._children.get(instance)
        return child.address if child is not None and not child.stop_wanted else None

    def newest(self, model: ModelName) -> InstanceId | None:
        """The instance that was started last, also when it is gone."""
        return self._newest.get(model)

    def log_path(self, instance: InstanceId) -> Path | None:
        """The log of a child, also after its death; None when it is not kept (any more)."""
        paths = (host.log_path(instance) for host in self._hosts.values())
        return next((path for path in paths if path is not None), None)

    def log_tail(self, instance: InstanceId, lines: int = 20) -> tuple[str, ...]:
        child = self._children.get(instance)
        hosts = self._hosts.values() if child is None else [self._hosts[child.start.placement.host]]
        for host in hosts:
            if tail := host.log_tail(instance, lines):
                return tail
        return ()

    async def measure(self) -> None:
        """Measure every host now and tell the scheduler."""
        await asyncio.gather(*(self._measure(host, 0.0) for host in self._hosts.values()))

    # --- the one way in ---

    def tell(self, event: Event) -> None:
        """Tell the scheduler one event and begin to carry out what it answers. Never waits."""
        if self._on_lease_end is not None:
            return  # its books are those of the next router
        now = self._time()
        self._follow(event, self._scheduler.handle(event, now), now)

    def _follow(self, event: Event, commands: Sequence[Command], now: float) -> None:
        self.journal.record(now, event, commands)
        for command in commands:
            level = logging.DEBUG if isinstance(command, Grant) else logging.INFO
            if log.isEnabledFor(level):
                log.log(level, "%s", command_words(command))
            self._carry_out(command, now)
        self._rearm(self._scheduler.next_deadline())
        if self._scheduler.is_expecting_memory():
            self._measure_soon.set()
        for learned in self._learned(event, commands):
            self.tell(learned)

    def _learned(self, event: Event, commands: Sequence[Command]) -> Iterable[Event]:
        """What is learned of one model is no reason not to tell the next: a failure is logged."""
        if self._learner is None:
            return ()
        try:
            return self._learner.heard(event, commands)
        except Exception:
            log.exception("nothing is learned from %s", type(event).__name__)
            return ()

    def _carry_out(self, command: Command, now: float) -> None:
        match command:
            case Grant(lease, instance):
                # With its child: by the time the waiter runs, that may be dead and forgotten.
                future = self._futures[lease]
                if not future.done():
                    future.set_result(_Granted(command, self._children[instance]))
            case Start():
                # Once closing, nothing is started any more: such a child only tells that it never was.
                child = self._children[command.instance] = _Child(command, now, stop_wanted=self._closing)
                self._newest[command.model] = command.instance
                child.task = self._spawn(self._run_instance(child), command.instance)
                self._measure_soon.set()  # with nothing loaded, nothing was measured, and no time was set to
            case Stop(instance, cause):
                child = self._children[instance]
                child.ending.cause = cause
                self._begin_stop(child)
            case Refuse(lease, error):
                future = self._futures[lease]
                if not future.done():
                    future.set_exception(error.copy())

    def _rearm(self, due: float | None) -> None:
        """One that is set for earlier may stay: nothing is due then, and it is set anew."""
        if due is None or due >= self._timer_at or self._closing:
            return
        if self._timer is not None:
            self._timer.cancel()
        self._timer, self._timer_at = self._loop.call_at(due, self._tick), due

    def _tick(self) -> None:
        # The loop may call up to its clock's resolution early: then nothing is due yet and it is set anew.
        self._timer, self._timer_at = None, math.inf
        self.tell(Tick())

    # --- a child, from birth to death ---

    async def _run_instance(self, child: _Child) -> None:
        """The task of one child. It tells exactly one Exited, whatever happens."""
        instance, host = child.start.instance, self._hosts[child.start.placement.host]
        event = Exited(instance)
        try:
            if child.address is None and not child.stop_wanted:
                child.begun = True
                child.address = await self._start(child, host)
                self.tell(Ready(instance))
                self._spawn(self._see_newcomer(host), f"measure {instance}")
            if child.address is not None:
                ended = await host.wait(instance)
                event = Exited(instance, _death(child, ended), out_of_memory=_ran_out(child, ended))
        except HostFull as full:
            event = Exited(instance, full.copy(), no_room=True)
        except RouterError as error:
            wanted_more = bool(error.details.get("out_of_memory"))
            told = _with_numbers(error, child.start.placement) if wanted_more else error
            event = Exited(instance, told.copy(), out_of_memory=wanted_more)
        except asyncio.CancelledError:
            if not child.stop_wanted:
                raise
        except Exception as error:
            log.exception("%s: its task failed", instance)
            event = Exited(instance, LoadFailed(f"internal error: {error!r}"))
            if self._on_lease_end is None:
                await host.stop(instance, grace_seconds=0.0)  # what failed may not have been its start
        finally:
            if self._on_lease_end is None:  # else leases still look up its address
                del self._children[instance]
            child.error = event.error
            child.ending.over.set()
            self.tell(event)
            self._see_return(host)

    async def _start(self, child: _Child, host: Host) -> Address:
        start = child.start
        await self._consult(start)
        definition = start.definition
        if not definition.overrides and (own := self._definitions.get(start.model)) is not None:
            definition = own.definition
        launch = self._launcher(start.model, start.placement, start.definition)
        return await host.start(start.instance, start.model, start.placement, launch, definition=definition)

    async def _consult(self, start: Start) -> None:
        """Raises HostFull where too little is reserved: the next plan reserves enough."""
        news = [] if self._learner is None else list(await self._learner.consult(start.instance))
        for event in news:
            self.tell(event)
        if news:
            raise HostFull(f"{start.model} takes more than was reserved for it, by a second opinion")

    def _begin_stop(self, child: _Child) -> None:
        """Cancel a load (the host ends its child then), or have a ready child stopped."""
        if child.stop_wanted:
            return
        child.stop_wanted = True
        if not child.begun:
            return  # its task sees the wish when it begins: cancelled before that it would never tell its end
        if child.address is None:
            assert child.task is not None, "a child has its task from the moment it is known"
            child.task.cancel()
        else:
            self._spawn(self._stop(child), f"stop {child.start.instance}")

    async def _stop(self, child: _Child) -> None:
        host = self._hosts[child.start.placement.host]
        await host.stop(child.start.instance, grace_seconds=self._grace(child.start.model))

    # --- measuring ---

    async def _prepare(self, model: ModelName) -> None:
        """Before a decision that may cost others their place: the model can be started at all, and the
        figures are fresh, also as to which devices there are. A resident model needs none of that. Raises
        RouterError.
        """
        if any(child.start.model == model and child.address for child in self._children.values()):
            return
        await asyncio.gather(self._look_at_files(model), self._be_fresh())
        await self._see_devices()

    async def _look_at_files(self, model: ModelName) -> None:
        if self._check is not None:
            await asyncio.to_thread(self._check, model)  # a disk may be slow

    async def _be_fresh(self) -> None:
        if self._age() > self._max_age:
            await asyncio.gather(*(self._measure(host, self._max_age) for host in self._hosts.values()))

    async def _see_devices(self) -> None:
        """Those who wait for memory are placed anew when it comes from a device that is new."""
        if self._look_again is None or self._closing:
            return
        try:
            await self._look_again()
        except Exception:
            log.exception("cannot look again at the devices")  # and whoever measures must go on

    async def _measure(self, host: Host, max_age: float) -> None:
        try:
            taken: Measurement = await host.measure(max_age_seconds=max_age)
        except RouterError as error:
            log.warning("%s cannot be measured: %s", host.id, error.message)
            return
        except Exception:  # the next measurement may succeed: whoever measures must go on
            log.exception("%s cannot be measured", host.id)
            return
        before = self._measurements.get(host.id)
        for warning in taken.warnings:
            if before is None or warning not in before.warnings:
                log.warning("%s", warning)
        self._measured_at = taken.taken_at
        self._measurements[host.id] = taken
        reserve = self._corrections(taken)
        host.reserve(reserve)
        self.tell(Measured(taken.free, taken.used, taken.taken_at, reserve))

    def _corrections(self, taken: Measurement) -> Mapping[InstanceId, Footprint]:
        """None where what was measured cannot be learned from: the scheduler is told all the same."""
        if self._learner is None:
            return {}
        try:
            return self._learner.corrections(taken, self._scheduler.use())
        except Exception:
            log.exception("nothing is learned from a measurement")
            return {}

    async def _see_newcomer(self, host: Host) -> None:
        """Who waits for a model does not wait for what it took: until that is known all that was reserved for
        it counts. The first requests have the processor first.
        """
        ready_at = self._loop.time()
        await asyncio.sleep(NEWCOMER_SECONDS)
        await self._measure(host, self._loop.time() - ready_at)

    def _see_return(self, host: Host) -> None:
        """A child is gone. Most of its memory is back by now, and somebody may wait for it: look at once, and
        for the rest often.
        """
        if self._closing or self._on_lease_end is not None or not self._scheduler.is_expecting_memory():
            return
        self._exited_at = self._loop.time()
        self._spawn(self._measure(host, 0.0), f"measure {host.id}")

    async def _measure_for_ever(self) -> None:
        looked_at = self._loop.time()
        while True:
            self._measure_soon.clear()
            interval = self._measure_interval()
            # `_see_return` has just begun to look, maybe.
            last = max(at for at in (looked_at, self._measured_at, self._exited_at) if at is not None)
            try:
                # Not wait_for: before Python 3.12 it loses a cancellation that meets the event.
                async with asyncio.timeout_at(None if interval is None else last + interval):
                    await self._measure_soon.wait()
            except TimeoutError:
                await self.measure()
                await self._see_devices()
                looked_at = self._loop.time()

    def _measure_interval(self) -> float | None:
        """Seconds until the next measurement; None with nothing loaded, so that a sleeping GPU is left
        asleep.
        """
        if self._scheduler.is_expecting_memory():
            return self._return_interval()
        self._expecting_since = self._exited_at = None
        if not self._children:
            return None
        loading = any(child.address is None for child in self._children.values())
        return min(LOAD_POLL_SECONDS, self._poll) if loading else self._poll

    def _return_interval(self) -> float:
        now = self._loop.time()
        if self._expecting_since is None:
            self._expecting_since = now
        elapsed = now - (self._expecting_since if self._exited_at is None else self._exited_at)
        if elapsed > FAST_RETURN_SECONDS:
            return SLOW_RETURN_POLL_SECONDS
        if self._exited_at is None:
            return RETURN_POLL_SECONDS
        return min(RETURN_POLL_SECONDS, max(LEAST_RETURN_POLL_SECONDS, elapsed * RETURN_POLL_SHARE))

    def _age(self) -> float:
        return float("inf") if self._measured_at is None else self._loop.time() - self._measured_at

    # --- small steps ---

    def _lease(self, granted: _Granted, model: ModelName, begun: float) -> Lease:
        grant, child = granted.grant, granted.child
        assert child.address is not None, f"{grant.instance} was granted before it was ready"
        if child.ending.over.is_set():
            if child.error is not None:
                raise child.error.copy()
            raise LoadFailed(f"{model} ended in the moment in which it was ready")
        waited = grant.action != "already_loaded"
        queue = max(0.0, child.started_at - begun) if waited else 0.0
        return Lease(
            id=grant.lease,
            model=model,
            instance=grant.instance,
            address=child.address,
            ending=child.ending,
            action=grant.action,
            queue_seconds=queue,
            load_seconds=max(0.0, self._loop.time() - begun - queue) if waited else 0.0,
            evicted=child.start.evicted if waited else (),
        )

    def _spawn(self, coroutine: Coroutine[object, object, None], name: str) -> asyncio.Task[None]:
        return self._tasks.create_task(coroutine, name=name)


def _death(child: _Child, exit_: Exit) -> RouterError | None:
    """Why a child that was ready is gone; None when it was told to go."""
    if child.stop_wanted:
        return None
    return LoadFailed(
        f"its llama-server ended: {exit_.reason}",
        details={"log": list(exit_.log_tail), "returncode": exit_.returncode},
    )


def _ran_out(child: _Child, exit_: Exit) -> bool:
    return exit_.out_of_memory and not child.stop_wanted


def _with_numbers(error: RouterError, placement: Placement) -> LoadFailed:
    """A load that wanted more than was reserved says how much that was."""
    reserved = {device.partition("/")[2]: size for device, size in placement.footprint.items()}
    words = " and ".join(f"{size / 2**30:.2f} GiB on {device}" for device, size in reserved.items())
    return LoadFailed(
        f"{error.message}; it ran out of memory with {words} reserved for it",
        details={**error.details, "reserved": reserved},
    )
