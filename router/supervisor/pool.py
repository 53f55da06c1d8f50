"""The pool: the async shell around the scheduler. It carries out commands, reports events, keeps one timer.

It decides nothing. `instances` runs the children, `leases` has what requests hold and wait for, `measuring`
measures when a decision needs it, `handover` has what passes between two router processes.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Self

from router.engines import Launch
from router.errors import ShuttingDown
from router.hosts import Address, Host, HostFull, InstanceRecord, Measurement
from router.ids import Definition
from router.memory.estimate.learning import FootprintStatus
from router.observability.journal import Journal, command_words
from router.scheduler.scheduler import Scheduler
from router.scheduler.types import (
    Acquire,
    Adopted,
    Closed,
    Command,
    Device,
    Event,
    Grant,
    HostId,
    InstanceId,
    LeaseId,
    Model,
    ModelName,
    Pinned,
    Placement,
    Priority,
    Refuse,
    Release,
    Reloaded,
    Start,
    State,
    Stop,
    Tick,
    Unload,
)
from router.scheduler.views import Explanation, Snapshot
from router.supervisor.calibration import Learning
from router.supervisor.handover import HandedOver, Handover, Phase
from router.supervisor.instances import Ending, Instances
from router.supervisor.leases import Granted, Lease, Waiters
from router.supervisor.measuring import Measuring
from router.tasks import Tasks

__all__ = ["Ending", "HandedOver", "Launcher", "Lease", "Pool"]

log = logging.getLogger("router.supervisor.pool")

#: What an engine makes of a model, the placement it was given, and the definition of a load with other
#: settings than its own (else `NO_DEFINITION`). Raises RouterError.
Launcher = Callable[[ModelName, Placement, Definition], Launch]

#: How long closing waits for a child beyond its grace, in seconds: SIGKILL takes the kernel a while with tens
#: of GiB, and the host waits 5 s for that.
STOP_SECONDS = 10.0
#: Stands for the definition of a child that cannot serve: it equals none.
UNUSABLE = Definition("unusable")


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
        learner: Learning | None = None,
        look_again: Callable[[], Awaitable[None]] | None = None,
        measure_max_age_seconds: float = 0.1,
        poll_seconds: float = 5.0,
        stop_grace_seconds: Callable[[ModelName], float] = lambda _: 10.0,
    ) -> None:
        #: The record of every event and command.
        self.journal = journal
        self._scheduler = scheduler
        #: Where children run, by id.
        self._hosts: dict[HostId, Host] = {host.id: host for host in hosts}
        #: Makes the command line of an instance.
        self._launcher = launcher
        #: The models as they are defined now.
        self._definitions = dict(definitions or {})
        #: Looks whether the files of a model are there; raises RouterError. May block.
        self._check = check
        #: Corrects reservations; None: estimates are taken as they are.
        self._learner = learner
        #: Seconds from SIGTERM to SIGKILL for a model.
        self._grace = stop_grace_seconds
        #: The tasks of the pool and of its parts.
        self._tasks = Tasks()
        self._handover = Handover()
        self._waiters = Waiters()
        self._measuring = Measuring(
            self._hosts,
            scheduler,
            learner,
            self.tell,
            self._handover,
            self._tasks,
            look_again=look_again,
            max_age_seconds=measure_max_age_seconds,
            poll_seconds=poll_seconds,
        )
        self._instances = Instances(
            self._hosts, self._prepare_start, self.tell, self._measuring, self._handover, self._tasks
        )
        #: The scheduler's next deadline, and the timer that is set for it.
        self._timer_at = math.inf
        self._timer: asyncio.TimerHandle | None = None

    def __repr__(self) -> str:
        return f"<Pool {self._handover.phase.value}, {self._instances}, {self._waiters}>"

    async def __aenter__(self) -> Self:
        self._loop = asyncio.get_running_loop()
        self._time = self._loop.time
        self._is_debugging = log.isEnabledFor(logging.DEBUG)
        await self.measure()
        self._measuring_task = self._tasks.create_task(self._measuring.run(), name="measure")
        return self

    async def __aexit__(self, *_: object) -> None:
        """Refuse every request that waits, stop every child at once and wait until all have exited, except
        those handed over. A child that not even SIGKILL ends is waited for until its grace and `STOP_SECONDS`
        have passed: its host deals with it.
        """
        self._handover.close()
        if self._timer is not None:
            self._timer.cancel()
        self.tell(Closed())
        instances = [] if self._handover.is_over else list(self._instances)
        grace_seconds = max((self._grace(one.start.model) for one in instances), default=0.0)
        try:
            async with asyncio.timeout(grace_seconds + STOP_SECONDS):
                await asyncio.gather(*(one.ending.over.wait() for one in instances))
        except TimeoutError:
            left = ", ".join(one.start.instance for one in instances if not one.ending.over.is_set())
            log.error("%s not ended within %g s", left, grace_seconds + STOP_SECONDS)
        await self._tasks.cancel()

    # --- requests ---

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
        match self._handover.phase:
            case Phase.CLOSING:
                raise ShuttingDown("the router is shutting down", retry_after_seconds=5.0)
            case Phase.HANDED_OVER:
                raise HandedOver
        if overrides is None:
            lease = self.acquire_nowait(
                model, priority=priority, keep_alive=keep_alive, size=size, timeout=timeout
            )
            if lease is not None:
                return lease
        since = self._time()
        await self._prepare_decision(model)
        if self._handover.is_over:
            raise HandedOver
        name = self._waiters.new_id()
        try:
            with self._waiters.waiting(name) as granted:
                self.tell(Acquire(name, model, priority, keep_alive, size, timeout, overrides))
                await granted
        except BaseException:
            # Refused, timed out, cancelled, granted in the very turn in which the waiter was cancelled.
            self._end_lease(name)
            raise
        return granted.result().lease(model, since, self._time())

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
        if self._handover.phase is not Phase.SERVING or not self._scheduler.is_open(model):
            return None
        name, now = self._waiters.new_id(), self._time()
        event = Acquire(name, model, priority, keep_alive, size, timeout)
        commands = self._scheduler.handle(event, now)
        if not self._scheduler.was_routine:  # more comes of it than the lease
            with self._waiters.waiting(name) as granted:
                self._follow(event, commands, now)
                return granted.result().lease(model, now, now)
        (grant,) = commands
        assert isinstance(grant, Grant), f"{grant} instead of a lease"
        instance = self._instances[grant.instance]
        assert instance.address is not None, f"{instance} was granted before it was ready"
        self.journal.record(now, event, commands, is_routine=True)
        if self._is_debugging:
            log.debug("%s", command_words(grant))
        return Lease(name, model, grant.instance, instance.address, instance.ending)

    def release(self, lease: Lease) -> None:
        """The end of a lease; once."""
        if self._handover.is_over:
            self._handover.lease_ended(lease.id)
            return
        event, now = Release(lease.id), self._time()
        commands = self._scheduler.handle(event, now)
        if self._scheduler.was_routine:
            self.journal.record(now, event, commands, is_routine=True)
        else:
            self._follow(event, commands, now)

    def _end_lease(self, lease: LeaseId) -> None:
        self.tell(Release(lease))
        self._handover.lease_ended(lease)

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
        running = self._instances.of_model(model)
        planned = any(one.state is State.PLANNED for one in self.snapshot().of_model(model))
        self.tell(Unload(model, force, deadline))
        for instance in running:
            await instance.ending.over.wait()
        if self._handover.is_over:
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

    def adopt(self, record: InstanceRecord, leases: Iterable[LeaseId] = ()) -> None:
        """Take over a child that its host has found. `leases` are those that the earlier router still
        holds: `end_adopted` ends each. One that does not answer, or stands on a device that
        is gone, is stopped as soon as it has none.
        """
        there = {device.id for device in self.snapshot().devices}
        is_usable = record.ready and there.issuperset(record.placement.footprint)
        self._instances.adopt(record)
        held = tuple(leases)
        self._handover.take_over(held)
        definition = record.definition if is_usable else UNUSABLE
        self.tell(Adopted(record.instance, record.model, record.placement, definition, held))

    def end_adopted(self, lease: LeaseId) -> None:
        """A lease of the earlier router is over. One that is not known was on a child that has exited."""
        if self._handover.take_back(lease):
            self._end_lease(lease)

    def is_changing(self) -> bool:
        """Whether a child is on its way up or down: no time to hand over."""
        return any(one.state in (State.STARTING, State.STOPPING) for one in self.snapshot().instances)

    async def hand_over(self, on_lease_end: Callable[[LeaseId], None]) -> Mapping[LeaseId, InstanceId]:
        """From now on decide nothing and touch no child: the next router will. Returns the leases that are
        held, and calls `on_lease_end` with each as it ends. Requests that wait raise HandedOver; a load that
        has not ended is called off.
        """
        held = {lease: one.id for one in self.snapshot().instances for lease in one.leases}
        self._handover.begin(held, on_lease_end)
        self._measuring_task.cancel()
        if self._timer is not None:
            self._timer.cancel()
        self._waiters.refuse_all(HandedOver)
        loading = [instance for instance in self._instances if instance.address is None]
        for instance in loading:
            self._instances.stop(instance, self._grace(instance.start.model))
        await asyncio.gather(*(instance.ending.over.wait() for instance in loading))
        if self._learner is not None:
            await self._learner.hand_over()
        return self._handover.left

    # --- what there is ---

    def snapshot(self) -> Snapshot:
        return self._scheduler.snapshot(self._time())

    def explain(self, model: ModelName, overrides: Model | None = None) -> Explanation:
        """`overrides`: as if the model were defined so. Raises ModelNotFound."""
        return self._scheduler.explain(model, self._time(), overrides)

    def standing(self, instance: InstanceId) -> FootprintStatus | None:
        """How well the footprint of a running instance is known; None without calibration."""
        return self._learner.of_instance(instance) if self._learner is not None else None

    def standings(self, model: ModelName) -> Sequence[FootprintStatus]:
        """The same for each placement of a model, loaded or not, in the order of its definition."""
        return self._learner.of_model(model) if self._learner is not None else ()

    def warnings(self, model: ModelName) -> tuple[str, ...]:
        """Why a model runs, or would run, on the CPU though there is a GPU."""
        names = {instance.start.instance for instance in self._instances.of_model(model)}
        found: list[str] = []
        for taken in self.measurements.values():
            found += taken.warnings
            found += (text for instance, text in taken.fallbacks.items() if instance in names)
        return tuple(found)

    @property
    def measurements(self) -> Mapping[HostId, Measurement]:
        """The last one of each host."""
        return self._measuring.last

    def address(self, instance: InstanceId) -> Address | None:
        """Where a ready instance answers; None for one that does not yet, or does no more."""
        found = self._instances.get(instance)
        return found.address if found is not None and not found.is_stopping else None

    def newest(self, model: ModelName) -> InstanceId | None:
        """The instance that was started last, also when it has exited."""
        return self._instances.newest.get(model)

    def log_path(self, instance: InstanceId) -> Path | None:
        """The log of a child, also after its exit; None when it is not kept (any more)."""
        paths = (host.log_path(instance) for host in self._hosts.values())
        return next((path for path in paths if path is not None), None)

    def log_tail(self, instance: InstanceId, lines: int = 20) -> tuple[str, ...]:
        """The last lines of that log."""
        tails = (host.log_tail(instance, lines) for host in self._hosts.values())
        return next((tail for tail in tails if tail), ())

    async def measure(self) -> None:
        """Measure every host now and tell the scheduler."""
        await self._measuring.measure()

    # --- the one way in ---

    def tell(self, event: Event) -> None:
        """Tell the scheduler one event and begin to carry out what it answers. Never waits."""
        if self._handover.is_over:
            return  # the next router decides
        now = self._time()
        self._follow(event, self._scheduler.handle(event, now), now)

    def _follow(self, event: Event, commands: Sequence[Command], now: float) -> None:
        self.journal.record(now, event, commands)
        for command in commands:
            level = logging.DEBUG if isinstance(command, Grant) else logging.INFO
            if log.isEnabledFor(level):
                log.log(level, "%s", command_words(command))
            self._carry_out(command)
        self._rearm(self._scheduler.next_deadline())
        if self._scheduler.is_expecting_memory():
            self._measuring.wake()
        for learned in self._learned(event, commands):
            self.tell(learned)

    def _learned(self, event: Event, commands: Sequence[Command]) -> Iterable[Event]:
        """What is learned of one model is no reason not to tell the next: a failure is logged."""
        if self._learner is None:
            return ()
        try:
            return self._learner.on_event(event, commands)
        except Exception:
            log.exception("nothing is learned from %s", type(event).__name__)
            return ()

    def _carry_out(self, command: Command) -> None:
        match command:
            case Grant():
                self._waiters.grant(Granted(command, self._instances[command.instance]))
            case Start():
                self._instances.start(command)
                self._measuring.wake()
            case Stop():
                instance = self._instances[command.instance]
                instance.ending.cause = command.cause
                self._instances.stop(instance, self._grace(instance.start.model))
            case Refuse(lease, error):
                self._waiters.refuse(lease, error.copy())

    def _rearm(self, due: float | None) -> None:
        """One that is set for earlier may stay: nothing is due then, and it is set anew."""
        if due is None or due >= self._timer_at or self._handover.phase is not Phase.SERVING:
            return
        if self._timer is not None:
            self._timer.cancel()
        self._timer, self._timer_at = self._loop.call_at(due, self._tick), due

    def _tick(self) -> None:
        # The loop may call up to its clock's resolution early: then nothing is due yet and it is set anew.
        self._timer, self._timer_at = None, math.inf
        self.tell(Tick())

    # --- before a decision, and before a start ---

    async def _prepare_decision(self, model: ModelName) -> None:
        """Before a decision that may evict models: see that the model can be started at all, and that the
        figures are fresh, also as to which devices there are. A resident model needs none of that. Raises
        RouterError.
        """
        if any(instance.address for instance in self._instances.of_model(model)):
            return
        await asyncio.gather(self._look_at_files(model), self._measuring.be_fresh())
        await self._measuring.see_devices()

    async def _look_at_files(self, model: ModelName) -> None:
        if self._check is not None:
            await asyncio.to_thread(self._check, model)  # a disk may be slow

    async def _prepare_start(self, start: Start) -> tuple[Launch, Definition]:
        """How to start an instance, by which definition. Raises HostFull where too little is reserved: the
        next plan reserves enough.
        """
        raised = [] if self._learner is None else await self._learner.consult(start.instance)
        for event in raised:
            self.tell(event)
        if raised:
            raise HostFull(f"{start.model} takes more than was reserved for it, by a second opinion")
        definition = start.definition
        if not definition.overrides and (own := self._definitions.get(start.model)) is not None:
            definition = own.definition
        return self._launcher(start.model, start.placement, start.definition), definition
