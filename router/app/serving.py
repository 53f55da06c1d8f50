"""From the first request to the last: listen, heed signals, and let running requests end."""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import resource
import signal
import socket
import sys
from collections.abc import Callable, Coroutine, Sequence
from contextlib import suppress
from typing import Any, Final, TypeAlias

from router import __version__
from router.admin.allowed_hosts import ALLOWED_HOSTS
from router.app.handover import Predecessor, RestartFailed
from router.app.last_resort import SPARE_SECONDS, exit_after
from router.app.listening import allow_many_files, bind, bind_words, is_answered, is_on_loopback, url_of
from router.app.parts import Router, Setup
from router.app.restart import Restart
from router.app.systemd import Notifier, take_sockets
from router.config import Config, ServerConfig, state_paths
from router.engines.llama_server import find_binary
from router.errors import RouterError, StartupError
from router.http.server import HttpServer, Limits
from router.models.catalog import Catalog
from router.scheduler.types import State

log = logging.getLogger("router.app")

Say: TypeAlias = Callable[[str], None]

#: How long the last bytes of the answers may take to leave once the children are gone, in seconds.
LAST_BYTES_SECONDS: Final = 2.0
#: How long a process that was replaced passes on what comes in on open connections, in seconds; each answer
#: asks its client to come to the new process.
MOVING_SECONDS: Final = 5.0
#: The age of the status that systemd shows, at most, in seconds.
STATUS_SECONDS: Final = 10.0
#: How long a thread that computes may keep the interpreter from the loop, in seconds.
SWITCH_SECONDS: Final = 0.0003


def run(
    config: Config,
    catalog: Catalog,
    read_config: Callable[[], Config],
    *,
    say: Say,
    predecessor: Predecessor | None = None,
) -> None:
    """Serve until a signal says stop. Raises StartupError when the router cannot start."""
    notifier = Notifier.from_environ(os.environ)
    paths = state_paths(config)
    paths.prepare()
    binary = find_binary(config.paths.llama_server)
    inherited = take_sockets(os.environ)
    if predecessor is not None:
        inherited = predecessor.listening
    sockets = inherited or bind(config.server)
    allow_many_files()
    router = Router(Setup(config, catalog, paths, binary, read_config, predecessor))
    tune_gil()
    with notifier.opened() as told, asyncio.Runner(loop_factory=_loop_factory()) as runner:
        runner.run(_Server(router, sockets, told).serve(say))


class _Server:
    """A router on its sockets, until a signal or its restart ends it."""

    def __init__(self, router: Router, sockets: Sequence[socket.socket], notifier: Notifier) -> None:
        self.router = router
        self.notifier = notifier
        #: Those that `server` listens on, and closes.
        self.sockets = sockets
        #: Further descriptors of the same sockets, for the next process.
        self.listening: list[socket.socket] = []
        limits = _limits(router.setup.config.server)
        self.server = HttpServer(router.app, limits, shutdown_seconds=LAST_BYTES_SECONDS)
        self.restart = Restart(router, self.listening, self.server.stop_accepting, notifier)
        #: Set by SIGTERM and SIGINT.
        self.stop = asyncio.Event()

    async def serve(self, say: Say) -> None:
        """Return once all is closed. Raises StartupError, and RestartFailed where no process serves."""
        self._install_signal_handlers()
        try:
            for one in self.sockets:
                self.listening.append(one.dup())
            await self.server.start()
            if not self.stop.is_set():
                await self._listen()
                _settle_memory()
                self._announce(say)
                self.router.has_taken_over()
                self.notifier.ready(self._status())
                self.router.background.spawn(self._notify(), name="notify")
                await _first_of(self.stop, self.restart.done, self.restart.lost)
                await self._end()
        except Exception as error:
            self.router.give_back()
            if isinstance(error, OSError):
                raise StartupError(f"cannot start: {error}") from error
            raise
        finally:
            await self.server.close()
            for one in (*self.sockets, *self.listening):
                one.close()
        if not self.restart.done.is_set():  # else the next process is the service
            self.notifier.exiting(0)

    async def _listen(self) -> None:
        """Raises StartupError."""
        router, app = self.router, self.router.app
        router.context.restart = self.restart
        app[ALLOWED_HOSTS].listen_on(
            str(one.getsockname()[0]) for one in self.sockets if one.family != socket.AF_UNIX
        )
        self.server.proxied = router.proxied_routes()
        for bound in self.sockets:
            try:
                await self.server.listen(sock=bound)
            except OSError as error:  # bound, but another process has begun to listen there since
                raise StartupError(bind_words(url_of(bound), error)) from error

    def _announce(self, say: Say) -> None:
        server, count = self.router.setup.config.server, len(self.router.context.known.catalog.models)
        urls = " and ".join(map(url_of, self.sockets))
        say(f"llama-router {__version__} listens on {urls} ({count} model{'s' * (count != 1)})")
        reached = [url_of(one) for one in self.sockets if not is_on_loopback(one)]
        if reached and not server.api_keys:
            log.warning(
                "ANYBODY WHO REACHES %s MAY USE%s MODELS: set server.api_keys, or listen on 127.0.0.1",
                " OR ".join(reached),
                "" if server.admin_keys else " AND UNLOAD",
            )

    # --- the end ---

    async def _end(self) -> None:
        """Let the running requests end. Raises RestartFailed where another process should serve, and none
        does.
        """
        router, server = self.router, self.router.setup.config.server
        if self.restart.done.is_set():
            await self._finish()
        elif self.restart.failure is not None:
            self.notifier.stopping(self.restart.failure.message)
            self._stop_listening()
            await self._settle(MOVING_SECONDS)
            raise self.restart.failure
        else:
            grace_seconds = server.shutdown_grace_seconds + router.longest_stop_seconds()
            exit_after(grace_seconds + SPARE_SECONDS, router.host.kill_all)
            await self.restart.call_off()
            self.notifier.stopping("waiting for requests to end")
            self.server.stop_accepting()
            self._stop_listening()
            if count := router.requests.count:
                grace = server.shutdown_grace_seconds
                log.info("%d requests may take %g s to end; a second signal ends them now", count, grace)
            await self._settle(server.shutdown_grace_seconds)

    def _stop_listening(self) -> None:
        """New clients are refused, and do not wait in the queue of the socket; the next router can bind."""
        for one in self.listening:
            one.close()

    async def _settle(self, seconds: float) -> None:
        """Refuse requests from now on, and wait for those that run."""
        self.router.requests.drain()
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self.router.requests.settled.wait()

    async def _finish(self) -> None:
        """Another process serves. Clients that come again on their old connections are passed on for a
        moment: one that is idle longer than that may be closed. Then only what runs is waited for, also what
        llama-server works on after its client has left: the next router learns from this process when that
        has ended.
        """
        requests, grace = self.router.requests, self.router.setup.config.server.restart_grace_seconds
        requests.end_endless()
        with suppress(TimeoutError):
            async with asyncio.timeout(min(MOVING_SECONDS, grace)):
                await requests.settled.wait()
        requests.drain(refuse=False)
        with suppress(TimeoutError):
            async with asyncio.timeout(grace):
                await requests.settled.wait()
                await self.router.context.proxy.endings.settled()
        log.info("the last request of this process has ended")

    # --- signals ---

    def _install_signal_handlers(self) -> None:
        """SIGTERM and SIGINT stop, the second one ends the wait for requests; SIGHUP reloads, SIGUSR2
        restarts."""
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGTERM, self._on_stop)
        loop.add_signal_handler(signal.SIGINT, self._on_stop)
        loop.add_signal_handler(signal.SIGHUP, self._spawn_if_serving, self._reload, "reload")
        loop.add_signal_handler(signal.SIGUSR2, self._spawn_if_serving, self._restart, "restart by signal")

    def _on_stop(self) -> None:
        if self.stop.is_set() or self.restart.done.is_set():
            self.router.requests.settled.set()
        if self.restart.done.is_set():
            self.router.context.proxy.endings.close()
        self.stop.set()

    def _spawn_if_serving(self, begin: Callable[[], Coroutine[Any, Any, None]], name: str) -> None:
        if self.router.is_open and not self.stop.is_set() and not self.restart.done.is_set():
            self.router.background.spawn(begin(), name=name)

    async def _restart(self) -> None:
        with suppress(RestartFailed):  # it is in the log
            await self.restart()

    async def _reload(self) -> None:
        self.notifier.reloading("reloading")
        try:
            await self.router.reload()
        except RouterError as error:
            log.error("not reloaded, all stays as it was: %s", error.message)
        finally:  # else the manager waits for it until its timeout
            self.notifier.ready(self._status())

    # --- the service manager ---

    async def _notify(self) -> None:
        """A sign of life comes from this loop, after an answer of the scheduler, and after a request to every
        socket was answered: it means that all of them work. A shutdown, which does not accept, is bounded by
        `exit_after`.
        """
        notifier, loop = self.notifier, asyncio.get_running_loop()
        if not notifier.address:
            return
        is_watched = notifier.watchdog_seconds is not None
        seconds = min(STATUS_SECONDS, (notifier.watchdog_seconds or 2 * STATUS_SECONDS) / 2)
        while True:
            begun = loop.time()
            asked = self.listening if is_watched and not self.stop.is_set() else ()
            are_answered = all(await asyncio.gather(*(is_answered(one, seconds) for one in asked)))
            if self.restart.done.is_set() or self.restart.lost.is_set():
                return  # another process is the service, or this one exits
            if are_answered:
                notifier.alive(self._status())
            else:
                log.error("a request to the router's own socket was not answered within %g s", seconds)
            await asyncio.sleep(max(0.0, begun + seconds - loop.time()))

    def _status(self) -> str:
        snapshot = self.router.context.pool.snapshot()
        loaded = sorted({one.model for one in snapshot.instances if one.state is State.READY})
        waiting = sum(queue.waiting for queue in snapshot.queues)
        running = self.router.requests.count
        names = ", ".join(loaded)
        return f"{len(loaded)} models loaded ({names}), {running} requests, {waiting} of them waiting"


async def _first_of(*events: asyncio.Event) -> None:
    """Return when one of them is set."""
    async with asyncio.TaskGroup() as group:
        waiting = [group.create_task(event.wait()) for event in events]
        await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        for task in waiting:
            task.cancel()


def _limits(server: ServerConfig) -> Limits:
    """One client's share is of what may really be open: each connection is a file."""
    files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = min((one for one in (server.connections_max, files) if one > 0), default=0)
    return Limits(
        server.connections_max,
        max(1, int(most * server.client_share)) if most and server.client_share < 1 else 0,
        server.request_head_seconds,
        server.keepalive_seconds,
        server.client_stall_seconds,
    )


def tune_gil() -> None:
    """The loop hands the interpreter over with every system call, and a thread that computes (a look through
    the catalog, a page of metrics, a plan) keeps it for 5 ms each time, as Python comes. Beside one that is
    busy a fifth of the time one in 100 first bytes took 145 ms so, and takes 3 ms (measured, 300 requests a
    second).
    """
    sys.setswitchinterval(SWITCH_SECONDS)


def _settle_memory() -> None:
    """What is there from the start on is not looked through again for what may be freed: that took 32 ms each
    time (measured), in which nothing passed.
    """
    gc.collect()
    gc.freeze()


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop]:
    try:
        import uvloop
    except ImportError:
        return asyncio.new_event_loop
    return uvloop.new_event_loop
