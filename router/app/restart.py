"""Giving place to a new process of the same command: nobody is refused, no stream cut, nothing unloaded."""

from __future__ import annotations

import asyncio
import logging
import math
import os
import signal
import socket
from collections.abc import Callable, Sequence
from contextlib import suppress
from enum import Enum
from typing import Final

from router.app.handover import RestartFailed, Successor
from router.app.parts import Router
from router.app.systemd import Notifier
from router.hosts.records import ProcessRecord

log = logging.getLogger("router.app")

#: So long may the next process read, check and define; a cold disk with many models takes its time.
START_SECONDS: Final = 300.0
#: Once this process has stopped accepting there is no way back: a next process that fails then is followed
#: by others, after these pauses in seconds, ...
PAUSES_SECONDS: Final = (0.0, 1.0, 2.0, 4.0, 8.0)
#: ... until this time has passed, in seconds: until then no process accepts, and clients wait in the queue of
#: the socket.
TAKEOVER_SECONDS: Final = 120.0
#: How long letting go of the models may take, in seconds: what loads is cancelled, and has 5 s to exit.
LET_GO_SECONDS: Final = 60.0
_QUIET_POLL_SECONDS: Final = 0.02


class Phase(Enum):
    """How far this process is with letting go."""

    #: It has everything: a restart that fails changes nothing.
    SERVING = "serving"
    #: It stops accepting, and lets go of leases and children: there is no way back.
    LETTING_GO = "letting go"
    #: The children are the next process's; while one after the other fails to take over, none accepts.
    LET_GO = "let go"


class Restart:
    """Called, it returns the pid of the process that serves from then on.

    `listening` are held for the next process; `stop_accepting` is called when it is about to take over.
    """

    def __init__(
        self,
        router: Router,
        listening: Sequence[socket.socket],
        stop_accepting: Callable[[], None],
        notifier: Notifier,
    ) -> None:
        self._router = router
        self._listening = listening
        self._stop_accepting = stop_accepting
        self._notifier = notifier
        self._phase = Phase.SERVING
        #: The next process that was told last of the children.
        self._successor: Successor | None = None
        #: Lease -> instance, of the leases that still run here after LETTING_GO.
        self._held: dict[str, str] = {}
        #: What the next process adopts.
        self._children: tuple[ProcessRecord, ...] = ()
        #: The pid that all callers of the restart wait for; None while there is no restart.
        self._running: asyncio.Future[int] | None = None
        self._task: asyncio.Task[None] | None = None
        #: When the next process must serve, on the loop's clock; only after SERVING.
        self._deadline = math.inf
        #: Set once another process serves.
        self.done = asyncio.Event()
        #: Set where none does and this one cannot any more, for the reason `failure`: it must exit, so that
        #: its supervisor starts another, which adopts the models.
        self.lost = asyncio.Event()
        self.failure: RestartFailed | None = None

    async def __call__(self) -> int:
        """Raises RestartFailed, and then all stays as it was, unless `lost` is set. A second call joins
        the first, and a caller that is cancelled cancels nothing.
        """
        if self._running is None:
            running: asyncio.Future[int] = asyncio.get_running_loop().create_future()
            self._task = self._router.background.spawn(self._run(running), name="restart")
            self._running = running
        return await asyncio.shield(self._running)

    async def call_off(self) -> None:
        """This router is to end, and no other shall begin. One that has taken over already ends, too."""
        if self._task is not None and not self._task.done():
            self._task.cancel()
            await asyncio.wait({self._task})
        if self.done.is_set() and self._successor is not None:
            self._successor.end(signal.SIGTERM)

    async def _run(self, told: asyncio.Future[int]) -> None:
        self._notifier.reloading("restarting")
        try:
            pid = await self._replace()
        except Exception as error:  # noqa: BLE001 - whatever it is: the next restart must be possible
            failure = _as_failure(error)
            if self._phase is Phase.SERVING:
                log.error("not restarted, all stays as it was: %s", failure.message)
                self._notifier.ready(f"not restarted: {failure.message}")
                self._running = None
            else:
                failure = self._lose(failure)
            told.set_exception(failure)
            told.exception()  # after a signal nobody asks
        else:
            self._forget_children()
            log.info("the router is pid %d from now on", pid)
            self._notifier.ready("serving", main_pid=pid)
            told.set_result(pid)
            self.done.set()
        finally:
            if not told.done():  # a shutdown came between
                told.cancel()

    def _lose(self, failure: RestartFailed) -> RestartFailed:
        if self._phase is not Phase.LET_GO:  # in whichever step it failed: the exit stops no child
            self._router.host.hand_over()
        self.failure = RestartFailed(
            f"no next router serves, and this one exits: {failure.message}. The models run on; the router"
            " that is started next adopts them"
        )
        log.critical("%s", self.failure.message)
        self.lost.set()
        return self.failure

    async def _replace(self) -> int:
        for pause_seconds in PAUSES_SECONDS:
            try:
                return await self._try()
            except RestartFailed as failure:
                if self._phase is not Phase.LET_GO or self._left_seconds() <= pause_seconds:
                    raise
                log.error("%s; trying again in %g s", failure.message, pause_seconds)
                await asyncio.sleep(pause_seconds)
        return await self._try()

    async def _try(self) -> int:
        """Raises RestartFailed where this next process does not serve; it is gone then."""
        successor = await Successor.start(self._listening, self._notifier.variables())
        try:
            async with asyncio.timeout(self._left_seconds()):
                await successor.says("ready")
            await self._let_go(successor)
            async with asyncio.timeout(self._left_seconds()):
                await successor.says("serving")
        except Exception as error:
            await successor.give_up()
            if isinstance(error, TimeoutError):
                raise RestartFailed("the next router did not start in time") from error
            raise _as_failure(error) from error
        except BaseException:
            successor.end(signal.SIGKILL if self._phase is Phase.SERVING else signal.SIGTERM)
            raise
        return successor.pid

    def _left_seconds(self) -> float:
        """How long a next process may take for its next step."""
        return min(START_SECONDS, self._deadline - asyncio.get_running_loop().time())

    async def _let_go(self, successor: Successor) -> None:
        router, self._successor = self._router, successor
        if self._phase is Phase.SERVING:
            await self._until_quiet()
            self._phase = Phase.LETTING_GO
            self._deadline = asyncio.get_running_loop().time() + TAKEOVER_SECONDS
            async with asyncio.timeout(LET_GO_SECONDS):
                self._stop_accepting()
                router.relay.begin(self._listening[0])
                router.context.proxy.relay = router.relay
                await router.context.downloads.suspend()  # the next process goes on with them
                self._held |= await router.context.pool.hand_over(self._lease_ended)
            self._children = router.host.hand_over()
            self._phase = Phase.LET_GO
        successor.let_go(self._held, self._children)

    def _forget_children(self) -> None:
        """They are still this process's children in the kernel's eyes, and nobody here waits for them. Not
        before another process serves: how a next process ended could not be told.
        """
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)
        for record in self._children:  # those that have exited since they were let go of
            with suppress(ChildProcessError):
                os.waitpid(record.pid or 0, os.WNOHANG)

    async def _until_quiet(self) -> None:
        """A load in progress would be lost, a child that is being stopped would be found alive."""
        with suppress(TimeoutError):
            async with asyncio.timeout(self._router.setup.config.server.shutdown_grace_seconds):
                while self._router.context.pool.is_changing():  # noqa: ASYNC110 - the core has no events
                    await asyncio.sleep(_QUIET_POLL_SECONDS)

    def _lease_ended(self, lease: str) -> None:
        assert self._successor is not None, "let go of"
        if self._held.pop(lease, None) is not None:
            self._successor.lease_ended(lease)


def _as_failure(error: Exception) -> RestartFailed:
    if isinstance(error, RestartFailed):
        return error
    log.error("a step of the restart failed", exc_info=error)
    return RestartFailed(f"a step of the restart failed: {error!r}")
