"""Giving place to a new process of the same command: nobody is refused, no stream cut, nothing unloaded."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from typing import Final

from aiohttp import web

from router.admin import CONTEXT
from router.app.background import BACKGROUND
from router.app.handover import RestartFailed, Successor
from router.app.parts import HOST, SETUP
from router.app.relay import RELAY
from router.app.systemd import Notifier
from router.db.store import ProcessRecord

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


class Restart:
    """Called, it returns the pid of the process that serves from then on. `done` is set then, too. `lost` is
    set where none does and this one cannot any more, for the reason `failure`: it must exit, so that its
    supervisor starts another, which adopts the models.

    `listening` are held for the next process; `stop_accepting` is told when it is about to take over.
    """

    def __init__(
        self,
        app: web.Application,
        listening: Sequence[socket.socket],
        stop_accepting: Callable[[], Awaitable[None]],
        notifier: Notifier,
    ) -> None:
        self._app = app
        self._listening = listening
        self._stop_accepting = stop_accepting
        self._notifier = notifier
        self._successor: Successor | None = None
        self._held: dict[str, str] | None = None  # leases that still run, once the children are let go of
        self._children: tuple[ProcessRecord, ...] = ()
        self._running: asyncio.Future[int] | None = None
        self._task: asyncio.Task[None] | None = None
        self._deadline: float | None = None  # once this process has stopped accepting
        self._has_let_go = False
        self.done = asyncio.Event()
        self.lost = asyncio.Event()
        self.failure: RestartFailed | None = None

    async def __call__(self) -> int:
        """Raises RestartFailed, and then all stays as it was, unless `lost` is set. A second call joins
        the first, and a caller that is cancelled cancels nothing.
        """
        if self._running is None:
            running: asyncio.Future[int] = asyncio.get_running_loop().create_future()
            self._task = self._app[BACKGROUND].spawn(self._run(running), name="restart")
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
            if self._held is None:
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
        if not self._has_let_go:
            self._app[
                HOST
            ].hand_over()  # in whichever step it failed: the exit of this process stops no child
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
                if not self._has_let_go or self._left_seconds() <= pause_seconds:
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
            successor.end(signal.SIGTERM if self._held is not None else signal.SIGKILL)
            raise
        return successor.pid

    def _left_seconds(self) -> float:
        """How long a next process may take for its next step."""
        if self._deadline is None:
            return START_SECONDS
        return min(START_SECONDS, self._deadline - asyncio.get_running_loop().time())

    async def _let_go(self, successor: Successor) -> None:
        self._successor = successor
        if self._held is None:
            await self._until_quiet()
            self._held = {}
            self._deadline = asyncio.get_running_loop().time() + TAKEOVER_SECONDS
            async with asyncio.timeout(LET_GO_SECONDS):
                await self._stop_accepting()
                self._app[RELAY].begin(self._listening[0])
                await self._app[CONTEXT].downloads.suspend()  # the next process goes on with them
                self._held |= await self._app[CONTEXT].pool.hand_over(self._lease_ended)
            self._children = self._app[HOST].hand_over()
            self._has_let_go = True
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
            async with asyncio.timeout(self._app[SETUP].config.server.shutdown_grace_seconds):
                while self._app[CONTEXT].pool.is_changing():  # noqa: ASYNC110 - the core has no events
                    await asyncio.sleep(_QUIET_POLL_SECONDS)

    def _lease_ended(self, lease: str) -> None:
        assert self._held is not None and self._successor is not None, "let go of"
        if self._held.pop(lease, None) is not None:
            self._successor.lease_ended(lease)


def _as_failure(error: Exception) -> RestartFailed:
    if isinstance(error, RestartFailed):
        return error
    log.error("a step of the restart failed", exc_info=error)
    return RestartFailed(f"a step of the restart failed: {error!r}")
