"""What became of a child that failed a request: whether it died, was stopped or was given up, in words for
the client."""

from __future__ import annotations

import asyncio
import errno
import logging
from typing import Final

from router.errors import RouterError, ShuttingDown, Unavailable, Unloaded, UpstreamFailed
from router.proxy.framing import Malformed
from router.proxy.upstream import ClosedEarly
from router.scheduler.types import Cause, State, Unload
from router.supervisor.pool import Lease, Pool
from router.supervisor.stall import Traffic

log = logging.getLogger("router.proxy")

#: A child's death is seen on its connections a moment before the pool is told of it.
EXIT_NOTICE_SECONDS = 1.0

_OUT_OF_FILES: Final = "the router has as many files and connections open as it may (ulimit -n)"
#: What else keeps one from connecting passes: a queue that is full, no file left.
_NOBODY_LISTENS: Final = (ConnectionRefusedError, FileNotFoundError)


class AttemptFailed(Exception):
    """An attempt ended before anything of its answer was sent to the client."""

    def __init__(self, error: RouterError, *, may_retry: bool) -> None:
        super().__init__(error.message)
        self.error = error
        self.may_retry = may_retry


class Failures:
    """To be asked under the lease: the scheduler then sees the child die in service."""

    def __init__(self, pool: Pool, traffic: Traffic) -> None:
        self._pool = pool
        self._traffic = traffic

    async def before_answer(self, lease: Lease, error: Exception, *, was_connected: bool) -> AttemptFailed:
        """Nothing was sent yet."""
        if isinstance(error, OSError) and error.errno in (errno.EMFILE, errno.ENFILE):
            return AttemptFailed(Unavailable(_OUT_OF_FILES, retry_after_seconds=1.0), may_retry=False)
        is_gone = await _is_gone(lease)
        is_own_death = lease.ending.cause is None and self._verdict(lease) is None
        failure = self._failure(lease, _words(error, was_connected), "before its answer began")
        if not is_gone and not was_connected and isinstance(error, _NOBODY_LISTENS):
            self._retire(lease)
        return AttemptFailed(failure, may_retry=is_own_death and (is_gone or not was_connected))

    def _retire(self, lease: Lease) -> None:
        """It lives and nobody reaches it: it was told to end by somebody else, or its socket is gone. Whom it
        still answers it may answer to the end; the next request loads it anew.
        """
        ready = (one.id for one in self._pool.snapshot().instances if one.state is State.READY)
        if lease.instance in ready:  # and nobody has done so before
            log.warning("%s cannot be reached any more; it is replaced", lease.instance)
            self._pool.tell(Unload(lease.model))

    async def within_answer(self, lease: Lease, error: Exception) -> RouterError:
        """Its status was sent: what is left of it is a line in the log."""
        await _is_gone(lease)
        is_cut = isinstance(error, ClosedEarly | ConnectionError)
        words = "its connection broke off" if is_cut else _words(error, was_connected=True)
        failure = self._failure(lease, words, "in the middle of its answer")
        log.warning("%s", failure.message)
        return failure

    def _verdict(self, lease: Lease) -> str | None:
        """Why the instance was given up as stuck, if it was. Its next request loads it anew; this one is not
        tried again, as it may be what the instance was stuck in.
        """
        flow = self._traffic.flows.get(lease.instance)
        return flow.verdict if flow is not None else None

    def _failure(self, lease: Lease, words: str, when: str) -> RouterError:
        match lease.ending.cause:
            case None:
                tail = self._log_tail(lease)
                last = f"; its last line: {tail[-1]}" if tail else ""
                return UpstreamFailed(
                    f"the llama-server of {lease.model} failed {when}: {self._verdict(lease) or words}{last}",
                    details={"instance": lease.instance, "log_tail": list(tail)},
                )
            case Cause.SHUTDOWN:
                return ShuttingDown(f"the router shut down {when}", retry_after_seconds=5.0)
            case cause:
                return Unloaded(f"{lease.model} was stopped {when}: {cause.value}", retry_after_seconds=1.0)

    def _log_tail(self, lease: Lease) -> tuple[str, ...]:
        """Read once of a child that is gone: the file is read in the loop, 0.2 ms each time."""
        ending = lease.ending
        if not ending.over.is_set():
            return self._pool.log_tail(lease.instance)
        if ending.log_tail is None:
            ending.log_tail = self._pool.log_tail(lease.instance)
        return ending.log_tail


async def _is_gone(lease: Lease) -> bool:
    """Wait a moment for the pool to be told of the child's exit; False: it still lives."""
    try:
        async with asyncio.timeout(EXIT_NOTICE_SECONDS):
            await lease.ending.over.wait()
    except TimeoutError:
        return False
    return True


def _words(error: Exception, was_connected: bool) -> str:
    match error:
        case OSError() if not was_connected:
            return f"cannot connect to it: {error.strerror or error}"
        case ConnectionError():
            return "it closed the connection"
        case Malformed():
            return f"its answer is no HTTP: {error}"
        case _:
            return str(error) or type(error).__name__
