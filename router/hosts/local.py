"""The machine the router runs on: children are processes, devices are measured, records allow adoption."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

from router.config import MemoryConfig, StatePaths
from router.db.store import Store
from router.engines import Launch
from router.errors import LoadFailed, ShuttingDown, Unavailable
from router.hosts import Address, Exit, HostFull, InstanceRecord, Measurement
from router.hosts.admission import Admission, Claim
from router.hosts.records import CHILDREN, ProcessRecord, keep_load_time, keep_record
from router.hosts.runtime_dir import LOGS_KEPT, RuntimeDir
from router.ids import NO_DEFINITION, Definition
from router.memory.devices import DeviceInfo, Devices, Sample
from router.process import (
    Command,
    Identity,
    LogFile,
    NotAlive,
    Process,
    argv_hash,
    find_marked,
    get_status,
)
from router.scheduler.types import Device, DeviceId, Footprint, HostId, InstanceId, ModelName, Placement
from router.tasks import Tasks

_logger = logging.getLogger("router.hosts.local")

#: A start rests on the figures of its plan when they are no older: in more time other programs may come.
JUST_NOW_SECONDS: Final = 0.02
#: How long leaving waits, in seconds, for the exit of children that were killed, and then for their records.
_KILL_SECONDS: Final = 5.0
_ADOPTED_LOG_MAX_BYTES: Final = 16 << 20
_ADOPTION_PROBE_SECONDS: Final = 1.0
#: One that was ready answers within milliseconds, and on a machine in trouble is worth a longer wait.
_READY_PROBE_SECONDS: Final = 5.0


def _future() -> asyncio.Future[Any]:
    return asyncio.get_running_loop().create_future()


@dataclass(slots=True, eq=False)
class _Child:
    """A child from its reservation to its end."""

    record: ProcessRecord
    claim: Claim
    log: LogFile
    #: What `start` returns or raises.
    answered: asyncio.Future[Address] = field(default_factory=_future, repr=False)
    #: Set when the process has been reaped, or will never be.
    gone: asyncio.Future[Exit] = field(default_factory=_future, repr=False)
    #: None until it is spawned.
    process: Process | None = None
    #: Whether it was stopped; a start that has not spawned yet ends then.
    is_unwanted: bool = False
    #: The reason of `give_up`.
    given_up: str | None = None
    #: The line of its log that says that it runs on the CPU, though it was placed on a GPU.
    fallback: str | None = None

    @property
    def address(self) -> Address:
        return Address(self.record.socket)


@dataclass(frozen=True, slots=True)
class _Figures:
    """One look at the devices. `changes` is the count of starts and exits then, `is_awake` whether sleeping
    drivers were asked, too.
    """

    sample: Sample
    measurement: Measurement
    changes: int
    is_awake: bool


class LocalHost:
    """An async context manager. Leaving it stops every child, in parallel and within bounds; but after
    `hand_over` none.

    `stop_grace_seconds` is the grace of that last stop. `fallback_texts`: one of them in what a child says as
    it starts means that it runs on the CPU, wherever it was placed. Entering raises StartupError where
    another router works in the same runtime folder.
    """

    def __init__(
        self,
        devices: Devices,
        store: Store,
        paths: StatePaths,
        memory: MemoryConfig = MemoryConfig(),  # noqa: B008 - frozen
        *,
        id: HostId = "local",  # noqa: A002 - the protocol's name
        stop_grace_seconds: float = 10.0,
        fallback_texts: Sequence[str] = (),
    ) -> None:
        self.id = id
        self._devices = devices
        self._store = store
        self._runtime = RuntimeDir(paths)
        self._admission = Admission(id, memory)
        self._grace_seconds = stop_grace_seconds
        self._fallback_texts = fallback_texts
        self._children: dict[InstanceId, _Child] = {}
        #: The logs of children that have exited, the first of them first; `LOGS_KEPT` at most.
        self._dead: dict[InstanceId, tuple[LogFile, Exit]] = {}
        #: Starts and exits so far: figures from before the last one are stale.
        self._changes = 0
        self._figures: _Figures | None = None
        self._adopting = asyncio.Lock()
        #: Whether the host is being left or handed over: nothing is started any more.
        self._is_leaving = False
        self._tasks = Tasks(end_seconds=_KILL_SECONDS)

    async def __aenter__(self) -> Self:
        self._runtime.claim()
        await self._tasks.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._is_leaving = True
        try:
            await self._stop_all(self._grace_seconds, within_seconds=self._grace_seconds + _KILL_SECONDS)
        finally:  # also when leaving is itself cancelled
            await self._stop_all(0.0, within_seconds=_KILL_SECONDS)
            for child in self._children.values():
                if child.process is not None:  # not even SIGKILL ends it; the next router finds its record
                    child.process.detach()
            await self._tasks.__aexit__()
            self._runtime.release()

    async def _stop_all(self, grace_seconds: float, *, within_seconds: float) -> None:
        for child in self._children.values():
            self._end(child, grace_seconds)
        gone = [child.gone for child in self._children.values()]
        if gone:
            await asyncio.wait(gone, timeout=within_seconds)

    # --- memory --------------------------------------------------------------------------------------------

    async def devices(self) -> tuple[Device, ...]:
        """The memory pools that the configuration leaves enabled, with their margins."""
        return self._admission.devices((await self._look()).sample)

    @property
    def infos(self) -> Mapping[DeviceId, DeviceInfo]:
        """All enabled devices as last sampled: what an engine needs to name them to a child."""
        return self._admission.infos(self._figures.sample) if self._figures is not None else {}

    async def measure(self, *, max_age_seconds: float = 0.0) -> Measurement:
        """Live figures; older ones only if nothing was started or ended since."""
        if (recent := self._recent(max_age_seconds)) is not None:
            return recent.measurement
        # While there are no children a driver is left asleep: `start` wakes it, and has the last word. But
        # the last one's memory is waited for while that driver is still at hand.
        is_new = self._figures is not None and self._figures.changes != self._changes
        return (await self._look(wake=bool(self._children) or is_new)).measurement

    def reserve(self, reserved: Mapping[InstanceId, Footprint]) -> None:
        """See Host."""
        for instance, footprint in reserved.items():
            if instance in self._children:
                self._children[instance].claim.corrected = footprint

    def _recent(self, max_age_seconds: float) -> _Figures | None:
        """The last figures, unless they are older or anything was started or ended since."""
        figures, now = self._figures, asyncio.get_running_loop().time()
        if figures is None or figures.changes != self._changes:
            return None
        return figures if now - figures.measurement.taken_at <= max_age_seconds else None

    async def _look(self, *, wake: bool = True) -> _Figures:
        """Sample all devices. Raises Unavailable without a file descriptor for that."""
        claims = [child.claim for child in self._children.values()]
        pids = {claim.pid: claim for claim in claims if claim.pid is not None}
        loading = [pid for pid, claim in pids.items() if not claim.is_ready]
        changes, now = self._changes, asyncio.get_running_loop().time()
        try:
            sample = await self._devices.sample(list(pids), now=now, loading=loading, wake=wake)
        except OSError as error:  # an older measurement is better than none
            raise Unavailable(f"cannot measure memory: {error}", retry_after_seconds=1.0) from error
        claims = [child.claim for child in self._children.values()]
        measured = self._admission.measurement(sample, claims, self._changes)
        fallbacks = {name: child.fallback for name, child in self._children.items() if child.fallback}
        self._figures = _Figures(sample, replace(measured, fallbacks=fallbacks), changes, wake)
        return self._figures

    # --- start ---------------------------------------------------------------------------------------------

    async def start(
        self,
        instance: InstanceId,
        model: ModelName,
        placement: Placement,
        launch: Launch,
        *,
        definition: Definition = NO_DEFINITION,
    ) -> Address:
        """See Host. A second call for the same instance waits for what became of the first."""
        if instance in self._children:
            return await asyncio.shield(self._children[instance].answered)
        if self._is_leaving:
            raise ShuttingDown("the router is shutting down")
        # Reserved before the first await: from here on every other start counts what this one needs.
        socket = self._runtime.new_socket(instance)
        log = LogFile(self._runtime.log_of(socket), launch.log_max_bytes)
        record = ProcessRecord(
            instance,
            model,
            definition,
            placement,
            str(socket),
            str(log.path),
            health_path=launch.health.path,
            started_at=time.time(),
        )
        child = self._children[instance] = _Child(record, Claim(instance, placement), log)
        try:
            await self._spawn(child, launch)
            assert child.process is not None, "spawned"
            begun_at = asyncio.get_running_loop().time()
            await child.process.ready(launch.health)
        except BaseException as error:
            await self._fail(child, error)
            raise
        child.claim.is_ready = True
        child.answered.set_result(child.address)
        load_seconds = asyncio.get_running_loop().time() - begun_at
        self._tasks.create_task(self._note_ready(child, load_seconds), name=f"record {instance}")
        return child.address

    async def _spawn(self, child: _Child, launch: Launch) -> None:
        self._runtime.restore()
        await self._check_memory(child)
        await keep_record(self._store, child.record)
        if child.is_unwanted:
            raise LoadFailed(f"{child.record.instance} was stopped before it was started")
        socket = child.record.socket
        command = Command(
            argv=tuple(socket if arg == "{socket}" else arg for arg in launch.argv),
            env=launch.env,
            socket=Path(socket),
            log=child.log,
            cwd=self._runtime.path,
            out_of_memory_texts=launch.out_of_memory_texts,
        )
        self._changes += 1
        is_alone = all(other.claim.is_ready for other in self._children.values() if other is not child)
        child.claim.changes = self._changes if is_alone else None
        child.process = await Process.spawn(child.record.instance, command, self._tasks)
        self._own(child)
        await self._record_identity(child)

    async def _check_memory(self, child: _Child) -> None:
        """The host's own numbers have the last word: those of the plan, where they are no older than
        `JUST_NOW_SECONDS`. What is promised to children that serve counts, too: they grow with use. Of those
        that load, only the earlier ones count: two newcomers must not both step back for each other.
        """
        figures = self._recent(JUST_NOW_SECONDS)
        if figures is None or not figures.is_awake:
            figures = await self._look()
        claims = [other.claim for other in self._children.values()]
        at = claims.index(child.claim)
        counted = [*claims[:at], *(later for later in claims[at + 1 :] if later.is_ready)]
        refusal = self._admission.refusal(child.claim.placement, figures.measurement, figures.sample, counted)
        if refusal is not None:
            raise HostFull(f"{child.record.model} {refusal}", retry_after_seconds=1.0)
        child.claim.free_before = figures.measurement.free

    def _own(self, child: _Child) -> None:
        assert child.process is not None, "owned from its birth on"
        child.claim.pid = child.process.pid
        self._tasks.create_task(self._tend(child, child.process), name=f"tend {child.record.instance}")
        if child.is_unwanted:
            child.process.end(grace_seconds=0)

    async def _tend(self, child: _Child, process: Process) -> None:
        """Wait for its end, then forget it."""
        ended = await process.wait()
        if child.given_up is not None:
            ended = replace(ended, reason=child.given_up)
        self._finalize(child, ended)
        if process.has_died:  # else the next router must find it
            await self._forget_record(child.record.instance)
        await self._remove_old_logs()

    def _finalize(self, child: _Child, ended: Exit) -> None:
        """Only what cannot fail: the requests that wait for the end of the child depend on nothing else."""
        self._changes += 1
        self._children.pop(child.record.instance, None)
        self._dead[child.record.instance] = (child.log, ended)
        if not child.gone.done():
            child.gone.set_result(ended)

    async def _forget_record(self, instance: InstanceId) -> None:
        try:
            await self._store.delete(CHILDREN, instance)
        except Exception:  # a failing disk is no reason to tell another end of the child, nor of its start
            _logger.exception("cannot delete the record of %s", instance)

    async def _remove_old_logs(self) -> None:
        """Of the children that ended first, beyond `LOGS_KEPT`. A log that cannot be removed is left to the
        next router (`RuntimeDir.remove_leftovers`).
        """
        old = []
        while len(self._dead) > LOGS_KEPT:
            log, _ = self._dead.pop(next(iter(self._dead)))
            old.append(log.path)
        if old:
            await asyncio.to_thread(_remove, old)

    async def _fail(self, child: _Child, error: BaseException) -> None:
        """A start that failed or was cancelled leaves no process, no reservation, no record."""
        if not child.answered.done():
            told = error if isinstance(error, Exception) else LoadFailed("the start was called off")
            child.answered.set_exception(told)
            child.answered.exception()
        if child.process is not None:
            child.process.end(grace_seconds=0)
            await asyncio.shield(child.gone)
        elif not child.gone.done():
            self._finalize(child, Exit(None, str(error) or "the start was called off"))
            await self._forget_record(child.record.instance)
            await self._remove_old_logs()

    async def _record_identity(self, child: _Child, *, is_ready: bool = False) -> None:
        process = child.process
        if process is None or process.ended or process.is_detached:
            return
        child.record = replace(
            child.record,
            pid=process.identity.pid,
            start_time=process.identity.start_time,
            boot_id=process.identity.boot_id,
            argv_hash=argv_hash(process.pid) or "",
            is_ready=is_ready,
        )
        await keep_record(self._store, child.record)
        if process.has_died:  # meanwhile, and its record may have been deleted before this one was written
            await self._store.delete(CHILDREN, child.record.instance)

    async def _note_ready(self, child: _Child, load_seconds: float) -> None:
        await self._look_for_fallback(child)
        # Once more with its command line: a wrapper script has become llama-server only by now.
        await self._record_identity(child, is_ready=True)
        if child.record.definition.hash:
            await keep_load_time(self._store, child.record.definition, load_seconds)

    async def _look_for_fallback(self, child: _Child) -> None:
        """A driver that cannot be used makes llama-server go on without it, and says so in its log only."""
        gpus = [one for one in child.record.placement.devices if one in self.infos]
        gpus = [one for one in gpus if self.infos[one].kind != "host"]
        if not gpus or not self._fallback_texts:
            return
        line = await asyncio.to_thread(child.log.find, self._fallback_texts)
        if line is not None:
            where = " and ".join(self.infos[one].label for one in gpus)
            child.fallback = f"{child.record.model} runs on the CPU, though it was placed on {where}: {line}"
            self._changes += 1  # the next measurement tells it
            _logger.warning("%s; see docs/troubleshooting.md", child.fallback)

    # --- adoption ------------------------------------------------------------------------------------------

    async def instances(self) -> tuple[InstanceRecord, ...]:
        """Children that live, those of an earlier router among them: proven by pid, start time, command line.

        They are this host's from now on: `wait`, `stop` and `measure` know them. `ready` says whether they
        answer; one that does not is for the caller to stop. What an earlier router left without a usable
        record is ended here.
        """
        async with self._adopting:
            records = (await self._store.rows(CHILDREN)).values()
            found = [record for record in records if record.instance not in self._children]
            adopted = await asyncio.gather(*(self._try_adopt(record) for record in found))
            for record, is_ours in zip(found, adopted, strict=True):
                if not is_ours:
                    await self._forget_record(record.instance)
            await self._end_strays()
        alive = [Path(child.record.socket) for child in self._children.values()]
        await asyncio.to_thread(self._runtime.remove_leftovers, alive)
        return tuple(
            _instance_record(child) for child in self._children.values() if child.process is not None
        )

    async def _try_adopt(self, record: ProcessRecord) -> bool:
        """False: it cannot be adopted, for whatever reason; then it is ended, and the others are served."""
        try:
            return await self._adopt(record)
        except Exception:
            _logger.exception("cannot adopt %s (pid %s)", record.instance, record.pid)
            return record.instance in self._children

    async def _adopt(self, record: ProcessRecord) -> bool:
        if record.pid is None or record.start_time is None:
            return False
        if record.is_ready and argv_hash(record.pid) != record.argv_hash:
            return False  # while it loads it may still be the script that becomes llama-server
        log = LogFile(Path(record.log), _ADOPTED_LOG_MAX_BYTES)
        identity = Identity(record.pid, record.start_time, record.boot_id)
        command = Command(argv=(), socket=Path(record.socket), log=log, cwd=self._runtime.path)
        try:
            process = await Process.adopt(record.instance, identity, command, self._tasks)
        except NotAlive:
            return False
        claim = Claim(record.instance, record.placement)
        child = _Child(record, claim, log, process=process)
        self._children[record.instance] = child
        self._changes += 1
        self._own(child)
        patience = _READY_PROBE_SECONDS if record.is_ready else _ADOPTION_PROBE_SECONDS
        status = await get_status(Path(record.socket), record.health_path, timeout_seconds=patience)
        claim.is_ready = status == 200
        self._tasks.create_task(self._look_for_fallback(child), name=f"look at {record.instance}")
        child.answered.set_result(child.address)
        return True

    async def _end_strays(self) -> None:
        """Children without a record, and what dead children have forked: nobody can vouch for them."""
        known = {child.record.socket for child in self._children.values()}
        try:
            marked = await asyncio.to_thread(find_marked, f"{self._runtime.path}/")
        except OSError as error:
            _logger.warning("cannot look for what earlier routers left behind: %s", error)
            return
        for identity, marker in marked.items():
            if Path(marker).parent == self._runtime.path and marker not in known:
                _logger.warning("ending pid %d, left by an earlier router (%s)", identity.pid, marker)
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.kill(identity.pid, signal.SIGKILL)

    def hand_over(self) -> tuple[ProcessRecord, ...]:
        """Let go of all children and of the runtime folder: the next router adopts them, by these records."""
        self._is_leaving = True
        for child in self._children.values():
            if child.process is not None:
                child.process.detach()
        self._store.hand_over()
        self._runtime.release()
        return tuple(child.record for child in self._children.values() if child.process is not None)

    # --- end -----------------------------------------------------------------------------------------------

    async def wait(self, instance: InstanceId) -> Exit:
        """See Host. An instance that was never there has ended, too."""
        child = self._children.get(instance)
        if child is not None:
            return await asyncio.shield(child.gone)
        return self._dead[instance][1] if instance in self._dead else Exit(None, "was never started")

    async def stop(self, instance: InstanceId, *, grace_seconds: float) -> None:
        """See Host."""
        child = self._children.get(instance)
        if child is None:
            return
        self._end(child, grace_seconds)
        await asyncio.shield(child.gone)

    async def give_up(self, instance: InstanceId, reason: str) -> None:
        """End a child that is of no use any more, at once; `reason` is told as the way it ended."""
        child = self._children.get(instance)
        if child is not None:
            child.given_up = reason
            await self.stop(instance, grace_seconds=0.0)

    def kill_all(self) -> None:
        """SIGKILL to every child, at once and from whatever thread: where the event loop does not run."""
        for child in list(self._children.values()):
            if child.process is not None:
                child.process.kill()

    def process_of(self, instance: InstanceId) -> Process | None:
        """What runs for an instance now, to be looked at."""
        child = self._children.get(instance)
        return child.process if child is not None else None

    def _end(self, child: _Child, grace_seconds: float) -> None:
        child.is_unwanted = True  # where it has no process yet, its start looks at this
        if child.process is not None:
            child.process.end(grace_seconds)

    def log_tail(self, instance: InstanceId, lines: int = 20) -> tuple[str, ...]:
        """See Host."""
        path = self.log_path(instance)
        return LogFile(path, 0).tail(lines) if path is not None else ()

    def log_path(self, instance: InstanceId) -> Path | None:
        """The child's log file, also after its death; None if it is not known (any more)."""
        child = self._children.get(instance)
        if child is not None:
            return child.log.path
        return self._dead[instance][0].path if instance in self._dead else None


def _remove(logs: list[Path]) -> None:
    """A thread's work."""
    for log in logs:
        try:
            log.unlink(missing_ok=True)
        except OSError as error:
            _logger.warning("cannot remove the old log %s: %s", log, error.strerror or error)


def _instance_record(child: _Child) -> InstanceRecord:
    return InstanceRecord(
        instance=child.record.instance,
        model=child.record.model,
        placement=child.record.placement,
        definition=child.record.definition,
        address=child.address,
        pid=child.claim.pid,
        ready=child.claim.is_ready,
    )
