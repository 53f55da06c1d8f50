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
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Final, TypeAlias

from aiohttp import web

from router import __version__
from router.admin import CONTEXT
from router.admin.allowed_hosts import ALLOWED_HOSTS
from router.app.background import BACKGROUND
from router.app.handover import Predecessor, RestartFailed
from router.app.last_resort import SPARE_SECONDS, exit_after
from router.app.listening import allow_many_files, bind, bind_words, is_answered, is_on_loopback, url_of
from router.app.parts import HOST, MODELS, SETUP, Setup, build, express, give_back, longest_stop_seconds
from router.app.requests import REQUESTS
from router.app.restart import Restart
from router.app.systemd import Notifier, take_sockets
from router.config import Config, ServerConfig, state_paths
from router.engines.llama_server import find_binary
from router.errors import StartupError
from router.http.connections import Limits
from router.http.front import Runner
from router.models.catalog import Catalog
from router.scheduler.types import State

log = logging.getLogger("router.app")

Say: TypeAlias = Callable[[str], None]

#: Once the children are gone every answer ends by itself; so long is waited for its last bytes to leave.
LAST_BYTES_SECONDS: Final = 2.0
#: So long a process that was replaced passes on what comes in on open connections; each answer asks its
#: client to come to the new one.
MOVING_SECONDS: Final = 5.0
#: The status that systemd shows is not older than this.
STATUS_SECONDS: Final = 10.0
BACKLOG: Final = 1024
#: So long a thread that computes may keep the interpreter from the loop.
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
    app = build(Setup(config, catalog, paths, binary, read_config, predecessor))
    tune_gil()
    with notifier.opened() as told, asyncio.Runner(loop_factory=_loop_factory()) as runner:
        runner.run(_serve(app, sockets, told, say))


async def _serve(
    app: web.Application, sockets: Sequence[socket.socket], notifier: Notifier, say: Say
) -> None:
    runner = Runner(
        app,
        _limits(app[SETUP].config.server),
        handler_cancellation=True,  # off by default; without it a stream whose client left would go on
        auto_decompress=False,  # bodies pass as they are
        access_log=None,  # `note_access` sees more
        shutdown_timeout=LAST_BYTES_SECONDS,
    )
    listening: list[socket.socket] = []
    restart = Restart(app, listening, lambda: _stop_accepting(runner), notifier)
    stop = install_signal_handlers(app, restart, notifier)
    has_taken_over = False
    try:
        for one in sockets:
            listening.append(one.dup())  # noqa: PERF401 - what was opened is closed; a site closes its own
        await runner.setup()
        if not stop.is_set():
            app[CONTEXT].restart = restart
            app[ALLOWED_HOSTS].listen_on(
                str(one.getsockname()[0]) for one in sockets if one.family != socket.AF_UNIX
            )
            runner.front.express = express(app)
            for one in sockets:
                await _listen(runner, one)
            _settle_memory()
            _announce(app, sockets, say)
            if (predecessor := app[SETUP].predecessor) is not None:
                predecessor.serving()
            has_taken_over = True
            notifier.ready(_status(app))
            telling = _tell_that_it_lives(app, notifier, restart, listening, stop)
            app[BACKGROUND].spawn(telling, name="notify")
            await _first_of(stop, restart.done, restart.lost)
            if restart.done.is_set():
                await _finish(app)
            elif restart.failure is not None:
                notifier.stopping(restart.failure.message)
                for one in listening:  # clients are refused, and the next router can bind
                    one.close()
                await _settle(app, MOVING_SECONDS)
                raise restart.failure
            else:
                await _shut_down(app, runner, restart, notifier, listening)
    except Exception as error:
        if not has_taken_over:
            give_back(app)
        if isinstance(error, OSError):
            raise StartupError(f"cannot start: {error}") from error
        raise
    finally:
        await runner.cleanup()
        for one in (*sockets, *listening):
            one.close()
    if not restart.done.is_set():  # else the next process is the service
        notifier.exiting(0)


async def _shut_down(
    app: web.Application,
    runner: Runner,
    restart: Restart,
    notifier: Notifier,
    listening: Sequence[socket.socket],
) -> None:
    """Refuse new connections and wait for the requests in flight, within `server.shutdown_grace_seconds`."""
    grace_seconds = app[SETUP].config.server.shutdown_grace_seconds + longest_stop_seconds(app[CONTEXT])
    exit_after(grace_seconds + SPARE_SECONDS, app[HOST].kill_all)
    await restart.call_off()
    notifier.stopping("waiting for requests to end")
    await _stop_accepting(runner)
    for one in listening:  # else a new client waits until the last request has ended
        one.close()
    await _drain(app)


async def _listen(runner: web.AppRunner, bound: socket.socket) -> None:
    """Raises StartupError."""
    try:
        await web.SockSite(runner, bound, backlog=BACKLOG).start()
    except OSError as error:  # bound, but another process has begun to listen there since
        raise StartupError(bind_words(url_of(bound), error)) from error


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


async def _stop_accepting(runner: web.AppRunner) -> None:
    for site in runner.sites:
        await site.stop()


async def _finish(app: web.Application) -> None:
    """Another process serves. Clients that come again on their old connections are passed on for a moment:
    one that is idle longer than that may be closed. Then only what runs is waited for, also what llama-server
    works on after its client has left: the next router learns from this process when that has ended.
    """
    requests, grace = app[REQUESTS], app[SETUP].config.server.restart_grace_seconds
    requests.end_endless()
    with suppress(TimeoutError):
        async with asyncio.timeout(min(MOVING_SECONDS, grace)):
            await requests.settled.wait()
    requests.drain(refuse=False)
    with suppress(TimeoutError):
        async with asyncio.timeout(grace):
            await requests.settled.wait()
            await app[CONTEXT].proxy.endings.settled()
    log.info("the last request of this process has ended")


async def _drain(app: web.Application) -> None:
    requests, grace = app[REQUESTS], app[SETUP].config.server.shutdown_grace_seconds
    if requests.count:
        log.info("%d requests may take %g s to end; a second signal ends them now", requests.count, grace)
    await _settle(app, grace)


async def _settle(app: web.Application, seconds: float) -> None:
    """Refuse requests from now on, and wait for those that run."""
    app[REQUESTS].drain()
    with suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await app[REQUESTS].settled.wait()


def install_signal_handlers(app: web.Application, restart: Restart, notifier: Notifier) -> asyncio.Event:
    """SIGTERM and SIGINT set the event returned, the second one ends the wait for requests; SIGHUP
    reloads, SIGUSR2 restarts."""
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()

    def on_stop() -> None:
        if stop.is_set() or restart.done.is_set():
            app[REQUESTS].settled.set()
        if restart.done.is_set():
            app[CONTEXT].proxy.endings.close()
        stop.set()

    async def reload() -> None:
        notifier.reloading("reloading")
        try:
            await app[MODELS].try_reload(app[CONTEXT])
        finally:  # else the manager waits for it until its timeout
            notifier.ready(_status(app))

    def on_hangup() -> None:
        if _is_serving():
            app[BACKGROUND].spawn(reload(), name="reload")

    def on_user_signal() -> None:
        if _is_serving():
            app[BACKGROUND].spawn(_asked(restart), name="restart by signal")

    def _is_serving() -> bool:
        return CONTEXT in app and not stop.is_set() and not restart.done.is_set()

    loop.add_signal_handler(signal.SIGTERM, on_stop)
    loop.add_signal_handler(signal.SIGINT, on_stop)
    loop.add_signal_handler(signal.SIGHUP, on_hangup)
    loop.add_signal_handler(signal.SIGUSR2, on_user_signal)
    return stop


async def _asked(restart: Restart) -> None:
    with suppress(RestartFailed):  # it is in the log
        await restart()


async def _first_of(*events: asyncio.Event) -> None:
    """Return when one of them is set."""
    async with asyncio.TaskGroup() as group:
        waiting = [group.create_task(event.wait()) for event in events]
        await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        for task in waiting:
            task.cancel()


async def _tell_that_it_lives(
    app: web.Application,
    notifier: Notifier,
    restart: Restart,
    listening: Sequence[socket.socket],
    stop: asyncio.Event,
) -> None:
    """A sign of life comes from this loop, after an answer of the scheduler, and after a request to every
    socket was answered: it means that all of them work. A shutdown, which does not accept, is bounded by
    `exit_after`.
    """
    if not notifier.address:
        return
    seconds = STATUS_SECONDS if notifier.watchdog_seconds is None else notifier.watchdog_seconds / 2
    seconds = min(seconds, STATUS_SECONDS)
    loop = asyncio.get_running_loop()
    while True:
        begun = loop.time()
        is_asked = notifier.watchdog_seconds is not None and not stop.is_set()
        asked = [is_answered(one, seconds) for one in listening] if is_asked else []
        are_answered = all(await asyncio.gather(*asked))
        if restart.done.is_set() or restart.lost.is_set():
            return  # another process is the service, or this one exits
        if are_answered:
            notifier.alive(_status(app))
        else:
            log.error("a request to the router's own socket was not answered within %g s", seconds)
        await asyncio.sleep(max(0.0, begun + seconds - loop.time()))


def _status(app: web.Application) -> str:
    snapshot = app[CONTEXT].pool.snapshot()
    loaded = sorted({one.model for one in snapshot.instances if one.state is State.READY})
    waiting = sum(queue.waiting for queue in snapshot.queues)
    running = app[REQUESTS].count
    return f"{len(loaded)} models loaded ({', '.join(loaded)}), {running} requests, {waiting} of them waiting"


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


def _announce(app: web.Application, sockets: Sequence[socket.socket], say: Say) -> None:
    server, count = app[SETUP].config.server, len(app[CONTEXT].known.catalog.models)
    urls = " and ".join(url_of(one) for one in sockets)
    say(f"llama-router {__version__} listens on {urls} ({count} model{'s' * (count != 1)})")
    reached = [url_of(one) for one in sockets if not is_on_loopback(one)]
    if reached and not server.api_keys:
        log.warning(
            "ANYBODY WHO REACHES %s MAY USE%s MODELS: set server.api_keys, or listen on 127.0.0.1",
            " OR ".join(reached),
            "" if server.admin_keys else " AND UNLOAD",
        )


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop]:
    try:
        import uvloop
    except ImportError:
        return asyncio.new_event_loop
    return uvloop.new_event_loop
