"""The instances: one task for each child process, from its start to its exit."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final

from router.engines import Launch
from router.errors import LoadFailed, RouterError
from router.hosts import Address, Exit, Host, HostFull, InstanceRecord
from router.ids import Definition
from router.scheduler.types import (
    Cause,
    Event,
    Exited,
    HostId,
    InstanceId,
    ModelName,
    Placement,
    Ready,
    Start,
)
from router.supervisor.handover import Handover, Phase
from router.supervisor.measuring import Measuring
from router.tasks import Tasks

log = logging.getLogger("router.supervisor.pool")


@dataclass(slots=True, eq=False)
class Ending:
    """How one instance ends; every lease on the instance has it."""

    #: Set when the router stops the instance; None where it exits by itself.
    cause: Cause | None = None
    #: The last lines of its log, from `over` on: all requests that failed with the instance quote them.
    log_tail: tuple[str, ...] | None = None
    #: Set when the scheduler has been told of the exit.
    over: asyncio.Event = field(default_factory=asyncio.Event)


@dataclass(slots=True, eq=False, repr=False)
class Instance:
    """One Start carried out, or one child adopted."""

    #: What the scheduler has decided.
    start: Start
    #: Where the child runs.
    host: Host
    #: When the scheduler decided that, or when the child was adopted, by the loop's clock in seconds.
    started_at: float
    #: Where it answers; None until it is ready.
    address: Address | None = None
    #: Whether the host knows of it: it is adopted, or its task has begun to start it.
    has_begun: bool = False
    #: Whether the scheduler wants it stopped, or the pool closes or hands over while it loads.
    is_stopping: bool = False
    #: Why it has exited; None where it was told to.
    error: RouterError | None = None
    ending: Ending = field(default_factory=Ending)
    #: Runs it; set as soon as the instance is known.
    task: asyncio.Task[None] | None = None

    def __repr__(self) -> str:
        if self.ending.over.is_set():
            state = "exited"
        elif self.is_stopping:
            state = "stopping"
        else:
            state = "loading" if self.address is None else f"ready at {self.address.socket}"
        return f"<Instance {self.start.instance} {state}>"


class Instances:
    """The instances that have not exited, and the one way in which each of them starts and ends."""

    def __init__(
        self,
        hosts: Mapping[HostId, Host],
        prepare: Callable[[Start], Awaitable[tuple[Launch, Definition]]],
        tell: Callable[[Event], None],
        measuring: Measuring,
        handover: Handover,
        tasks: Tasks,
    ) -> None:
        #: By id; once handed over also those that have exited: leases still look up their addresses.
        self._running: dict[InstanceId, Instance] = {}
        #: Where children run, by id.
        self._hosts = hosts
        #: How to start an instance, as late as can be. Raises RouterError.
        self._prepare = prepare
        #: Passes an event to the scheduler.
        self._tell = tell
        #: Told of every start and exit.
        self._measuring = measuring
        #: Whether anything may be started or stopped.
        self._handover = handover
        #: The owner of the task of each instance.
        self._tasks = tasks
        #: The instance of each model that was started last, also when it has exited.
        self.newest: Final[dict[ModelName, InstanceId]] = {}

    def __repr__(self) -> str:
        return f"<Instances {list(self._running.values())}>"

    def __getitem__(self, instance: InstanceId) -> Instance:
        return self._running[instance]

    def __iter__(self) -> Iterator[Instance]:
        return iter(list(self._running.values()))

    def get(self, instance: InstanceId) -> Instance | None:
        return self._running.get(instance)

    def of_model(self, model: ModelName) -> list[Instance]:
        return [one for one in self._running.values() if one.start.model == model]

    def start(self, start: Start) -> None:
        """Carry out a Start. Once closing, nothing is started: the instance only tells that it never was."""
        is_closing = self._handover.phase is Phase.CLOSING
        self._run(Instance(start, self._hosts[start.placement.host], now(), is_stopping=is_closing))

    def adopt(self, record: InstanceRecord) -> None:
        """Run an instance that its host has found."""
        start, host = Start(record.instance, record.model, record.placement), record.placement.host
        self._run(Instance(start, self._hosts[host], now(), address=record.address, has_begun=True))

    def stop(self, instance: Instance, grace_seconds: float) -> None:
        """Cancel a load (the host ends its child then), or have a ready child stopped. Never waits."""
        if instance.is_stopping:
            return
        instance.is_stopping = True
        if not instance.has_begun:
            return  # its task sees that when it begins: cancelled before that it would never tell its exit
        if instance.address is None:
            assert instance.task is not None, "an instance has its task from the moment it is known"
            instance.task.cancel()
        else:
            name = instance.start.instance
            stopping = instance.host.stop(name, grace_seconds=grace_seconds)
            self._tasks.create_task(stopping, name=f"stop {name}")

    def _run(self, instance: Instance) -> None:
        name = instance.start.instance
        self._running[name] = instance
        self.newest[instance.start.model] = name
        instance.task = self._tasks.create_task(self._run_instance(instance), name=name)

    async def _run_instance(self, instance: Instance) -> None:
        """The task of one instance. It tells exactly one Exited, whatever happens."""
        name, host = instance.start.instance, instance.host
        event = Exited(name)
        try:
            if instance.address is None and not instance.is_stopping:
                instance.has_begun = True
                instance.address = await self._start(instance)
                self._tell(Ready(name))
                self._measuring.after_ready(host, name)
            if instance.address is not None:
                event = _exited(instance, await host.wait(name))
        except HostFull as full:
            event = Exited(name, full.copy(), no_room=True)
        except RouterError as error:
            wanted_more = bool(error.details.get("out_of_memory"))
            told = _with_numbers(error, instance.start.placement) if wanted_more else error
            event = Exited(name, told.copy(), out_of_memory=wanted_more)
        except asyncio.CancelledError:
            if not instance.is_stopping:
                raise
        except Exception as error:
            log.exception("%s: its task failed", name)
            event = Exited(name, LoadFailed(f"internal error: {error!r}"))
            if not self._handover.is_over:
                await host.stop(name, grace_seconds=0.0)  # what failed may not have been its start
        finally:
            if not self._handover.is_over:
                del self._running[name]
            instance.error = event.error
            instance.ending.over.set()
            self._tell(event)
            self._measuring.after_exit(host)

    async def _start(self, instance: Instance) -> Address:
        start = instance.start
        launch, definition = await self._prepare(start)
        return await instance.host.start(
            start.instance, start.model, start.placement, launch, definition=definition
        )


def now() -> float:
    """The time of the loop's clock, in seconds."""
    return asyncio.get_running_loop().time()


def _exited(instance: Instance, ended: Exit) -> Exited:
    """The exit of an instance that was ready; without an error where it was told to exit."""
    name = instance.start.instance
    if instance.is_stopping:
        return Exited(name)
    details = {"log": list(ended.log_tail), "returncode": ended.returncode}
    error = LoadFailed(f"its llama-server ended: {ended.reason}", details=details)
    return Exited(name, error, out_of_memory=ended.out_of_memory)


def _with_numbers(error: RouterError, placement: Placement) -> LoadFailed:
    """A load that wanted more than was reserved says how much that was."""
    reserved = {device.partition("/")[2]: size for device, size in placement.footprint.items()}
    words = " and ".join(f"{size / 2**30:.2f} GiB on {device}" for device, size in reserved.items())
    return LoadFailed(
        f"{error.message}; it ran out of memory with {words} reserved for it",
        details={**error.details, "reserved": reserved},
    )
