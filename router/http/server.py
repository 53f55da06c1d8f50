"""Listens for clients: makes a `ClientConnection` for each, and bounds how many there are."""

from __future__ import annotations

import asyncio
import logging
import socket
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final, cast

from aiohttp import web

from router.errors import ClientLimit, RouterError, Unavailable
from router.http.application import AnswerNotifier
from router.http.connection import ClientConnection
from router.http.head import HEAD_LIMIT
from router.http.inference import ProxiedRoutes

log = logging.getLogger("router.http")

BACKLOG: Final = 1024
#: aiohttp's own timer for idle connections never fires: `Limits.idle_seconds` is the one that counts.
_NEVER_SECONDS: Final = 10.0**7


@dataclass(frozen=True, slots=True)
class Limits:
    """`connections` 0: any number; `client_connections`: as many of them as one client may have, 0: all.
    `head_seconds` bounds the head of a request from its first byte, and the first byte of a new connection;
    `idle_seconds` the silence between two requests; `stall_seconds` how long a client may read nothing of an
    answer that is ready for it, 0: for ever.
    """

    connections: int = 0
    client_connections: int = 0
    head_seconds: float = 30.0
    idle_seconds: float = 630.0
    stall_seconds: float = 300.0


class HttpServer:
    """Serves an application, and the proxied routes from when `proxied` is set. `start` it, `listen`, and
    `close` it, which ends the application."""

    def __init__(
        self, app: web.Application, limits: Limits | None = None, *, shutdown_seconds: float = 2.0
    ) -> None:
        """`shutdown_seconds`: how long the last bytes may take once the application has shut down."""
        self.limits = limits or Limits()
        self.proxied: ProxiedRoutes | None = None
        self._shutdown_seconds = shutdown_seconds
        self._runner = web.AppRunner(
            app,
            handler_cancellation=True,  # off by default; without it a stream whose client left would go on
            auto_decompress=False,  # bodies are decoded by router.proxy.coding, within bounds
            access_log=log,
            access_log_class=AnswerNotifier,
            keepalive_timeout=_NEVER_SECONDS,
            max_line_size=HEAD_LIMIT,
            max_field_size=HEAD_LIMIT,
            shutdown_timeout=shutdown_seconds,
        )
        app.on_shutdown.append(self._finish_connections)
        self._listening: list[asyncio.Server] = []
        self._connections: set[ClientConnection] = set()
        #: Open connections, by client (router.admin.client_address.client_of).
        self._by_client: Counter[str] = Counter()
        #: Set while the last connections are waited for.
        self._all_closed: asyncio.Event | None = None

    @property
    def app(self) -> web.Application:
        return self._runner.app

    async def start(self) -> None:
        """Start the application. Raises what its parts raise."""
        await self._runner.setup()

    async def listen(
        self, *, sock: socket.socket | None = None, host: str = "127.0.0.1", port: int = 0
    ) -> None:
        """Accept connections on a bound socket, or on an address. Raises OSError."""
        loop = asyncio.get_running_loop()
        if sock is None:
            server = await loop.create_server(self._connect, host, port, backlog=BACKLOG)
        else:  # also a Unix socket: from Python 3.13 on create_unix_server removes its path when it is closed
            server = await loop.create_server(self._connect, sock=sock, backlog=BACKLOG)
        self._listening.append(server)

    @property
    def addresses(self) -> list[Any]:
        """Those of the listening sockets."""
        return [own.getsockname() for server in self._listening for own in server.sockets]

    @property
    def connections(self) -> frozenset[ClientConnection]:
        return frozenset(self._connections)

    def stop_accepting(self) -> None:
        for server in self._listening:
            server.close()
        self._listening.clear()

    async def close(self) -> None:
        """Accept nothing more, shut the application down, and close every connection."""
        self.stop_accepting()
        await asyncio.sleep(0)  # requests that have come by now are begun
        for connection in list(self._connections):
            connection.close_when_idle()
        await self._runner.cleanup()
        for connection in list(self._connections):
            connection.abort()

    async def _finish_connections(self, _: web.Application) -> None:
        """Wait for the last bytes of the answers that are being sent, but not for long."""
        busy = [one for one in self._connections if one.is_proxying]
        if not busy:
            return
        self._all_closed = asyncio.Event()
        with suppress(TimeoutError):
            async with asyncio.timeout(self._shutdown_seconds):
                while any(one.is_proxying for one in self._connections):
                    self._all_closed.clear()
                    await self._all_closed.wait()

    # --- from the connections ---

    def make_protocol(self) -> asyncio.Protocol:
        """aiohttp's side of a connection."""
        server = self._runner.server
        assert server is not None, "the application has been started"
        return cast(Callable[[], asyncio.Protocol], server)()

    def refusal_of(self, client: str) -> RouterError | None:
        """Why another connection of this client is one too many; None: it is not."""
        limits, count = self.limits, len(self._connections)
        if limits.connections and count >= limits.connections:
            why = f"{limits.connections} connections are open, and not more may be (server.connections_max)"
            return Unavailable(why, retry_after_seconds=1.0)
        if limits.client_connections and self._by_client[client] >= limits.client_connections:
            why = (
                f"{client} has {limits.client_connections} connections open, and no client may have more "
                "(server.client_share of server.connections_max)"
            )
            return ClientLimit(why, retry_after_seconds=1.0)
        return None

    def opened(self, connection: ClientConnection, client: str) -> None:
        self._connections.add(connection)
        self._by_client[client] += 1

    def closed(self, connection: ClientConnection, client: str) -> None:
        self._connections.discard(connection)
        self._by_client[client] -= 1
        if not self._by_client[client]:
            del self._by_client[client]
        if self._all_closed is not None:
            self._all_closed.set()

    def _connect(self) -> ClientConnection:
        return ClientConnection(self)
