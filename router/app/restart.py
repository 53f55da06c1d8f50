"""Giving place to a new process of the same command: nobody is refused, no stream cut, nothing unloaded."""

from __future__ import annotations

import asyncio
import logging
import signal
import socket
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from typing import Final

from aiohttp import web

from router.api import CONTEXT
from router.app.background import BACKGROUND
from router.app.handover import RestartFailed, Successor
from router.app.parts import HOST, SETUP
from router.app.relay import RELAY
from router.app.systemd import Notifier
from router.store import ProcessRecord

log = logging.getLogger("router.app")

#: So long may the next process read, check and define; a cold disk with many models takes its time.
START_SECONDS: Final = 300.0
#: Once our children are let go of there is no way back: a next process that dies then is followed by another.
TRIES: Final = 3
_QUIET_POLL_SECONDS: Final = 0.02


class Restart:
    """Called, it returns the pid of the process that serves from then on. `done` is set then, too.

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
        self.done = asyncio.Event()

    async def __call__(self) -> int:
        """Raises RestartFailed, and then all stays as it was. Who asks twice, or leaves, changes nothing."""
        if self._running is None:
            self._running = asyncio.get_running_loop().create_future()
            self._task = self._app[BACKGROUND].spawn(self._run(self._running), name="restart")
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
        except RestartFailed as failure:
            log.error("not restarted, all stays as it was: %s", failure.message)
            self._notifier.ready(f"not restarted: {failure.message}")
            self._running = None
            told.set_exception(failure)
            told.exception()  # after a signal nobody asks
        else:
            log.info("the router is pid %d from now on", pid)
            self._notifier.ready("serving", main_pid=pid)
            told.set_result(pid)
            self.done.set()
        finally:
            if not told.done():  # a shutdown came between
                told.cancel()

    async def _replace(self) -> int:
        for tried in range(1, TRIES + 1):
            successor = await Successor.start(self._listening, self._notifier.variables())
            try:
                async with asyncio.timeout(START_SECONDS):
                    await successor.says("ready")
                await self._let_go(successor)
                async with asyncio.timeout(START_SECONDS):
                    await successor.says("serving")
                return successor.pid
            except (RestartFailed, TimeoutError) as error:
                await successor.give_up()
                late = RestartFailed("the next router did not start in time")
                failure = error if isinstance(error, RestartFailed) else late
                if self._held is None or tried == TRIES:
                    raise failure from error
                log.error("%s; trying once more", failure.message)
            except BaseException:
                successor.end(signal.SIGTERM if self._held is not None else signal.SIGKILL)
                raise
        raise AssertionError("the last try returns or raises")

    async def _let_go(self, successor: Successor) -> None:
        self._successor = successor
        if self._held is None:
            await self._until_quiet()
            await self._stop_accepting()
            self._app[RELAY].begin(self._listening[0])
            self._held = {}
            await self._app[CONTEXT].downloads.suspend()  # the next process goes on with them
            self._held |= await self._app[CONTEXT].pool.hand_over(self._lease_ended)
            self._children = self._app[HOST].hand_over()
            # They are still this process's children in the kernel's eyes, and nobody here waits for them.
            signal.signal(signal.SIGCHLD, signal.SIG_IGN)
        successor.let_go(self._held, self._children)

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
