"""From the first request to the last: listen, heed signals, and let running requests end."""

from __future__ import annotations

import asyncio
import logging
import signal
import socket
from collections.abc import Callable, Sequence
from contextlib import suppress
from ipaddress import ip_address
from typing import Final, TypeAlias

from aiohttp import web

from router import __version__
from router.api import CONTEXT
from router.app.background import BACKGROUND
from router.app.listening import allow_many_files, bind, url_of
from router.app.parts import MODELS, SETUP, Setup, build
from router.app.requests import REQUESTS
from router.backends.llama_server import find_binary
from router.catalog import Catalog
from router.config import Config, state_paths
from router.errors import StartupError

log = logging.getLogger("router.app")

Say: TypeAlias = Callable[[str], None]

#: Once the children are gone every answer ends by itself; so long is waited for its last bytes to leave.
LAST_BYTES_SECONDS: Final = 2.0
BACKLOG: Final = 1024


def run(config: Config, catalog: Catalog, read_config: Callable[[], Config], *, say: Say) -> None:
    """Serve until a signal says stop. Raises StartupError when the router cannot start."""
    paths = state_paths(config)
    paths.prepare()
    binary = find_binary(config.paths.llama_server)
    sockets = bind(config.server)
    allow_many_files()
    app = build(Setup(config, catalog, paths, binary, read_config))
    with asyncio.Runner(loop_factory=_loop_factory()) as runner:
        runner.run(_serve(app, sockets, say))


async def _serve(app: web.Application, sockets: Sequence[socket.socket], say: Say) -> None:
    stop = _heed_signals(app)
    runner = web.AppRunner(
        app,
        handler_cancellation=True,  # off by default; without it a stream whose client left would go on
        auto_decompress=False,  # bodies pass as they are
        access_log=None,  # `note_access` sees more
        shutdown_timeout=LAST_BYTES_SECONDS,
    )
    try:
        await runner.setup()
        if not stop.is_set():
            for one in sockets:
                await web.SockSite(runner, one, backlog=BACKLOG).start()
            _announce(app, sockets, say)
            await stop.wait()
            await _drain(app, runner)
    except OSError as error:
        raise StartupError(f"cannot start: {error}") from error
    finally:
        await runner.cleanup()
        for one in sockets:
            one.close()


async def _drain(app: web.Application, runner: web.AppRunner) -> None:
    for site in runner.sites:
        await site.stop()
    requests, grace = app[REQUESTS], app[SETUP].config.server.shutdown_grace_seconds
    if requests.count:
        log.info("%d requests may take %g s to end; a second signal ends them now", requests.count, grace)
    requests.drain()
    with suppress(TimeoutError):
        async with asyncio.timeout(grace):
            await requests.settled.wait()


def _heed_signals(app: web.Application) -> asyncio.Event:
    """SIGTERM and SIGINT set the event returned, the second one ends the wait for requests; SIGHUP
    reloads."""
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()

    def on_stop() -> None:
        if stop.is_set():
            app[REQUESTS].settled.set()
        stop.set()

    def on_hangup() -> None:
        if CONTEXT in app and not stop.is_set():
            app[BACKGROUND].spawn(app[MODELS].try_reload(app[CONTEXT]), name="reload")

    loop.add_signal_handler(signal.SIGTERM, on_stop)
    loop.add_signal_handler(signal.SIGINT, on_stop)
    loop.add_signal_handler(signal.SIGHUP, on_hangup)
    return stop


def _announce(app: web.Application, sockets: Sequence[socket.socket], say: Say) -> None:
    server, count = app[SETUP].config.server, len(app[CONTEXT].known.catalog.entries)
    urls = [url_of(one) for one in sockets]
    say(f"llama-router {__version__} listens on {' and '.join(urls)} ({count} model{'s' * (count != 1)})")
    if not server.api_keys and not all(ip_address(one.getsockname()[0]).is_loopback for one in sockets):
        log.warning(
            "ANYBODY WHO REACHES %s MAY USE AND UNLOAD MODELS: set server.api_keys, or listen on 127.0.0.1",
            urls[0],
        )


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop]:
    try:
        import uvloop
    except ImportError:
        return asyncio.new_event_loop
    return uvloop.new_event_loop
