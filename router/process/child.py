"""A child process: spawned or adopted, watched, ended with all that it forked, and reaped."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import math
import os
import signal
import subprocess
from collections.abc import Awaitable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from router.errors import LoadFailed
from router.installation import build_command
from router.process.exits import Exit, describe_exit, oom_kill_count
from router.process.identity import MARKER, Identity, find_marked, identify
from router.process.log import LogFile
from router.process.probe import Health, NotReady, wait_ready
from router.process.watch import ExitWatch
from router.tasks import Spawner

_logger = logging.getLogger("router.process")

#: sun_path of sockaddr_un has 108 bytes on Linux, one of them for the final zero (104 on macOS).
SOCKET_PATH_MAX_BYTES: Final = 107
_LOG_TAIL_LINES: Final = 30
#: The longest time, in seconds, between two looks at the size of the log.
_LOOK_SECONDS: Final = 0.5
#: How far back, in seconds, the kernel's kills for memory count as evidence: it may take seconds to take down
#: a large process that it has chosen.
_OOM_EVIDENCE_SECONDS: Final = 10.0
#: How long, in seconds, a task that is being cancelled waits for its child to exit from SIGKILL.
_KILL_SECONDS: Final = 5.0
#: How often, and how many seconds apart, /proc is searched for what has escaped the group of a child. It
#: fails without a free file descriptor. What is left after the last is ended by the next router.
_CLEAR_TRIES: Final = 60
_CLEAR_SECONDS: Final = 1.0

#: What to do about an errno of exec. `{binary}`, `{strerror}` and `{build}` (the command that builds
#: llama-server) are filled in.
_CANNOT_RUN: Final[Mapping[int | None, str]] = {
    errno.ENOENT: "no such file; run {build}, or configure another path",
    errno.EACCES: "permission denied; make it executable (chmod +x {binary})",
    errno.ENOEXEC: "not a program for this machine; run {build}",
    errno.ETXTBSY: "it is being written; wait until the build is done",
    errno.EMFILE: "{strerror}; allow the router more of them (ulimit -n)",
    errno.ENFILE: "{strerror}; allow the router more of them (ulimit -n)",
    errno.EAGAIN: "{strerror}; out of processes (ulimit -u) or memory",
    errno.ENOMEM: "{strerror}; out of processes (ulimit -u) or memory",
}


@dataclass(frozen=True, slots=True)
class Command:
    """What to run. `env` is the whole environment; `socket` is where the child will listen."""

    argv: tuple[str, ...]
    socket: Path
    log: LogFile
    cwd: Path
    env: Mapping[str, str] = field(default_factory=dict)
    out_of_memory_texts: tuple[str, ...] = ()


class NotAlive(Exception):
    """The process to adopt has exited, or its pid is that of another process by now."""


class Process:
    """A child and the task that owns it until it has exited, and ends it also when every other task was
    cancelled.

    Made by `spawn` or `adopt`; from then on there is no difference but for the return code.
    """

    def __init__(self, name: str, command: Command, identity: Identity | None, tasks: Spawner) -> None:
        self.name = name
        self.socket = command.socket
        self.log = command.log
        #: Whether `detach` was called: the process goes on for the next router.
        self.is_detached = False
        self._command = command
        self._loop = asyncio.get_running_loop()
        #: None until the process is spawned; that of an adopted one is known from the beginning.
        self._identity = identity
        #: Only a process that we have spawned can be reaped, and its pid cannot be reused before that.
        self._is_ours = identity is None
        #: Set when the process runs, with the error if it does not.
        self._started: asyncio.Future[None] = self._loop.create_future()
        #: Set when all is over for those who wait; what has escaped the group is ended after that.
        self._ended: asyncio.Future[Exit] = self._loop.create_future()
        #: Set to make `_until_exit` look again.
        self._wake = asyncio.Event()
        self._has_exited = False
        #: The time of the loop's clock at which SIGKILL is due; None: the process is not being stopped.
        self._kill_at: float | None = None
        #: Which signals were sent.
        self._termed = self._killed = False
        self._oom_kills = _OomKills(self._loop.time())
        #: The thread that cuts the log, while it has not ended.
        self._trimming: asyncio.Future[None] | None = None
        self._task = tasks.create_task(self._own(), name=f"process {name}")

    def __repr__(self) -> str:
        state = "ended" if self._ended.done() else "stopping" if self._kill_at is not None else "running"
        return f"<Process {self.name} pid {self._identity.pid if self._identity else None} {state}>"

    @property
    def identity(self) -> Identity:
        """Pid and start time, also after the end."""
        assert self._identity is not None, f"{self.name} was never started"
        return self._identity

    @property
    def pid(self) -> int:
        return self.identity.pid

    @property
    def ended(self) -> bool:
        return self._ended.done()

    @property
    def has_died(self) -> bool:
        """False also after the end of one that was detached, or that not even SIGKILL ends."""
        return self._ended.done() and self._has_exited

    # --- start ---------------------------------------------------------------------------------------------

    @classmethod
    async def spawn(cls, name: str, command: Command, tasks: Spawner) -> Process:
        """Start a child in a session of its own. Raises LoadFailed. Cancelling it leaves nothing behind."""
        return await cls(name, command, None, tasks)._until_started()

    @classmethod
    async def adopt(cls, name: str, identity: Identity, command: Command, tasks: Spawner) -> Process:
        """Take over a child of an earlier router. Raises NotAlive unless it is exactly the one meant."""
        return await cls(name, command, identity, tasks)._until_started()

    async def _until_started(self) -> Process:
        try:
            await asyncio.shield(self._started)
        except asyncio.CancelledError:
            # A spawn in its thread cannot be interrupted; the owner ends whatever comes of it.
            self.end(grace_seconds=0.0)
            await asyncio.wait({self._task})
            raise
        return self

    async def _own(self) -> None:
        """The task of the process: it never raises but when it is cancelled."""
        try:
            if self._is_ours:
                self._identity = await self._spawn_in_thread()
            await self._watch()
        except (LoadFailed, NotAlive) as error:
            self._fail_spawn(error)
        except Exception as error:
            # The task ends here: a failure must neither go unheard nor take the other children along.
            _logger.exception("the owner of %s failed", self.name)
            if not self._started.done():
                if self._identity is not None:
                    self._signal(signal.SIGKILL)
                self._fail_spawn(LoadFailed(f"{self.name}: {error}"))
        finally:
            if not self._ended.done():  # a step of `_finalize` failed: those who wait for it must not hang
                self._ended.set_result(Exit(None, "ended; how is not known (the router's log says why)"))

    async def _spawn_in_thread(self) -> Identity:
        # In a thread: exec may wait for a disk, and closing descriptors takes a millisecond.
        spawning = self._loop.run_in_executor(None, _spawn, self._command)
        while not spawning.done():
            try:
                await asyncio.wait({spawning})
            except asyncio.CancelledError:
                self.end(grace_seconds=0.0)  # the thread cannot be interrupted; what it starts is ended
        if isinstance(error := spawning.exception(), OSError):  # of its log
            raise LoadFailed(f"{self.name}: {error}") from error
        return spawning.result()

    def _fail_spawn(self, error: Exception) -> None:
        self._has_exited = True
        self._started.set_exception(error)
        self._started.exception()  # read here, as `spawn` may have been cancelled
        self._ended.set_result(Exit(None, str(error)))

    # --- run -----------------------------------------------------------------------------------------------

    async def _watch(self) -> None:
        with contextlib.closing(ExitWatch(self.pid, self._exited)):
            # After opening the pidfd: from here on the pid cannot come to mean another process unnoticed.
            if not self._is_ours and identify(self.pid) != self.identity:
                raise NotAlive(f"pid {self.pid} is gone, or another process by now")
            self._started.set_result(None)
            try:
                await self._until_exit()
            except asyncio.CancelledError:
                if not self.is_detached:
                    await self._kill()
                    self._finalize()
                    self._clear()
                raise
            except Exception:
                await self._kill()
                raise
            finally:
                self._finalize()
        await self._clear_in_time()

    async def _until_exit(self) -> None:
        log_bytes, look_seconds = self.log.size(), 0.1
        while not self._has_exited:
            now = self._loop.time()
            if self._kill_at is not None and now >= self._kill_at and not self._killed:
                self._signal(signal.SIGKILL)
            kill_at = math.inf if self._kill_at is None or self._killed else self._kill_at
            await self._woken(min(now + look_seconds, kill_at))
            if not self._has_exited:
                log_bytes, look_seconds = await self._look(log_bytes, self._loop.time() - now)

    async def _woken(self, deadline: float) -> None:
        self._wake.clear()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout_at(deadline):
                await self._wake.wait()

    async def _look(self, log_bytes: int, elapsed_seconds: float) -> tuple[int, float]:
        """Keep the log within its bound; look again before it can have doubled, at the speed it has now."""
        self._oom_kills.look(self._loop.time())
        size = self.log.size()
        if size > self.log.max_bytes and not await self._trim():
            return size, _LOOK_SECONDS
        grown_per_second = max(0, size - log_bytes) / max(elapsed_seconds, 1e-3)
        room = max(self.log.max_bytes - size, self.log.max_bytes // 4)
        next_look = room / grown_per_second / 2 if grown_per_second else _LOOK_SECONDS
        return self.log.size(), min(_LOOK_SECONDS, max(0.02, next_look))

    async def _trim(self) -> bool:
        """Cut the log. False: that failed, or a disk that does not answer has not done it yet; the owner of
        the child must go on to notice its exit and to kill it in time.
        """
        try:
            if self._trimming is None:
                self._trimming = self._loop.run_in_executor(None, self.log.trim)
            await asyncio.wait({self._trimming}, timeout=_LOOK_SECONDS)
            if not self._trimming.done():
                return False
            trimming, self._trimming = self._trimming, None
            trimming.result()
        except Exception as error:  # noqa: BLE001 - whatever it is (no thread can be started): no child ends for it
            _logger.warning("%s: cannot cut its log: %s", self.name, error)
            return False
        return True

    def _exited(self) -> None:
        self._has_exited = True
        self._wake.set()

    async def ready(self, health: Health) -> None:
        """Return when it answers its health path.

        Raises LoadFailed, with the last log lines, when it exits (noticed at once), hangs, or is not ready in
        time; a child that hangs still lives then, and the caller ends it.
        """
        async with asyncio.TaskGroup() as tasks:
            waiting = tasks.create_task(_caught(wait_ready(self.pid, self.socket, self.log, health)))
            self._ended.add_done_callback(lambda _: waiting.cancel())
        if self._ended.done():
            raise self._load_failed(self._ended.result())
        problem = waiting.result()
        if problem is not None:
            raise self._load_failed(Exit(None, problem, self.log.tail(_LOG_TAIL_LINES)))

    def _load_failed(self, ended: Exit) -> LoadFailed:
        """The error for those who waited for this child."""
        last = f"; its last line: {ended.log_tail[-1]}" if ended.log_tail else ""
        details = {
            "returncode": ended.returncode,
            "reason": ended.reason,
            "out_of_memory": ended.out_of_memory,
            "log_tail": list(ended.log_tail),
        }
        return LoadFailed(f"{self.name} {ended.reason}{last}", details=details)

    # --- end -----------------------------------------------------------------------------------------------

    async def wait(self) -> Exit:
        """Return when it is gone and reaped."""
        return await asyncio.shield(self._ended)

    async def stop(self, grace_seconds: float) -> Exit:
        """SIGTERM, the grace, SIGKILL to its whole group; returns when it is gone.

        A grace of 0 kills at once. A second call may shorten it. Cancelling does not call off the stop.
        """
        self.end(grace_seconds)
        return await self.wait()

    def end(self, grace_seconds: float) -> None:
        """The same without waiting for it."""
        if self.is_detached:
            return
        at = self._loop.time() + grace_seconds
        self._kill_at = at if self._kill_at is None else min(at, self._kill_at)
        if self._identity is not None:
            if grace_seconds <= 0:
                self._signal(signal.SIGKILL)
            elif not self._termed:
                self._termed = True
                self._signal(signal.SIGTERM)
        self._wake.set()

    def kill(self) -> None:
        """SIGKILL at once, from any thread; but not to one that was detached."""
        if self._identity is not None and not self.is_detached:
            self._signal(signal.SIGKILL)

    async def cleared(self) -> None:
        """Return when also what had escaped its session has been ended."""
        await asyncio.wait({self._task})

    def detach(self) -> None:
        """Stop watching the process without ending it: the next router adopts it."""
        self.is_detached = True
        self._task.cancel()

    def _signal(self, number: signal.Signals) -> None:
        """To the group it leads. Its number cannot be another's: a child of ours is not reaped yet."""
        self._killed |= number == signal.SIGKILL
        if self._has_exited or not (self._is_ours or self._is_still_itself()):
            return
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, number)

    def _is_still_itself(self) -> bool:
        try:
            return identify(self.pid) == self.identity
        except OSError:  # cannot look now; the watch on it has not told of its end
            return True

    async def _kill(self) -> None:
        """End it though this task is being cancelled, maybe twice; bounded: it may be stuck in the kernel."""
        self._signal(signal.SIGKILL)
        deadline = self._loop.time() + _KILL_SECONDS
        while not self._has_exited and self._loop.time() < deadline:
            with contextlib.suppress(asyncio.CancelledError):
                await self._woken(deadline)

    def _finalize(self) -> None:
        """What must be done at once when it is dead: its group, its zombie, its socket, its last words."""
        if self._ended.done():
            return
        if self.is_detached:
            self._ended.set_result(Exit(None, "left to the next router"))
            return
        if not self._has_exited:
            _logger.error("%s: pid %d does not die of SIGKILL; it is left behind", self.name, self.pid)
            self._ended.set_result(Exit(None, "does not die of SIGKILL (stuck in the kernel)"))
            return
        returncode = None
        if self._is_ours:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self.pid, signal.SIGKILL)  # before reaping: afterwards the number may be given away
            returncode = _reap(self.pid)
        with contextlib.suppress(OSError):
            self.socket.unlink()
        self._ended.set_result(
            describe_exit(
                returncode,
                self.log.tail(_LOG_TAIL_LINES),
                asked=self._kill_at is not None,
                oom_kills=self._oom_kills.since_last_looks(),
                out_of_memory_texts=self._command.out_of_memory_texts,
            )
        )

    async def _clear_in_time(self) -> None:
        """As soon as there are files to look with: what escaped would hold its memory for ever."""
        for _ in range(_CLEAR_TRIES):
            try:
                if await asyncio.to_thread(self._clear):
                    return
            except RuntimeError as error:  # no thread can be started (ulimit -u)
                _logger.warning("%s: cannot look for what it has left behind: %s", self.name, error)
            await asyncio.sleep(_CLEAR_SECONDS)

    def _clear(self) -> bool:
        """End what escaped its group, cut its log. After the notice of its death: this reads all of /proc.
        False: it could not look.
        """
        try:
            left = find_marked(str(self.socket))
        except OSError as error:
            _logger.warning("%s: cannot look for what it has left behind: %s", self.name, error.strerror)
            return False
        for stray, marker in left.items():
            if marker == str(self.socket):
                _logger.warning("%s left pid %d behind; killing it", self.name, stray.pid)
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.kill(stray.pid, signal.SIGKILL)
        with contextlib.suppress(OSError):
            self.log.trim()
        return True


class _OomKills:
    """The kernel's count of out-of-memory kills, now against some seconds ago."""

    def __init__(self, now: float) -> None:
        self._before = self._last = oom_kill_count()
        self._looked_at = now

    def look(self, now: float) -> None:
        if now - self._looked_at >= _OOM_EVIDENCE_SECONDS:
            self._looked_at = now
            self._before, self._last = self._last, oom_kill_count()

    def since_last_looks(self) -> int:
        return oom_kill_count() - self._before


def _spawn(command: Command) -> Identity:
    """A thread's work. Raises LoadFailed with what to do about it, OSError if the log cannot be made."""
    if len(os.fsencode(command.socket)) > SOCKET_PATH_MAX_BYTES:
        raise LoadFailed(
            f"{command.socket} has more than the {SOCKET_PATH_MAX_BYTES} bytes of a socket path: "
            "use a shorter --state-dir"
        )
    try:
        command.socket.unlink(missing_ok=True)
    except OSError as error:
        raise LoadFailed(f"{command.socket.parent} takes no socket: {error.strerror}") from error
    log = command.log.open_for_child()
    try:
        process = subprocess.Popen(
            command.argv,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env={**command.env, MARKER: str(command.socket)},
            cwd=str(command.cwd),
            close_fds=True,
            start_new_session=True,
            umask=0o077,
        )
    except OSError as error:
        raise LoadFailed(_cannot_run(command, error)) from error
    finally:
        os.close(log)
    process.returncode = 0  # we reap it through the pidfd; without this Popen would also try, and warn
    try:
        identity = identify(process.pid, also_zombie=True)
    except OSError as error:  # out of files; nobody could own what nobody can name
        os.killpg(process.pid, signal.SIGKILL)
        os.waitpid(process.pid, 0)
        raise LoadFailed(_cannot_run(command, error)) from error
    assert identity is not None, "a child that nobody has reaped has a start time"
    return identity


def _cannot_run(command: Command, error: OSError) -> str:
    binary, hint = command.argv[0], _CANNOT_RUN.get(error.errno, "{strerror}")
    if error.errno == errno.ENOENT and error.filename == str(command.cwd):
        return f"the runtime folder {command.cwd} is gone; restart the router"
    if error.errno == errno.ENOENT and Path(binary).exists():
        hint = "its interpreter or loader is missing (built for another system?)"
    hint = hint.format(binary=binary, strerror=error.strerror or error, build=build_command())
    return f"cannot run {binary}: {hint}"


def _reap(pid: int) -> int | None:
    try:
        reaped, status = os.waitpid(pid, os.WNOHANG)
    except ChildProcessError:  # somebody else in this process reaped it
        return None
    return os.waitstatus_to_exitcode(status) if reaped == pid else None


async def _caught(waiting: Awaitable[None]) -> str | None:
    try:
        await waiting
    except NotReady as problem:
        return str(problem)
    return None
