"""A router that is nothing but the proxy, between a real client socket and children on real Unix sockets that
do what the test says."""

from __future__ import annotations

import asyncio
import io
from collections.abc import Callable
from contextlib import AsyncExitStack
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import aiohttp
from aiohttp import web
from yarl import URL

from router.admin.allowed_hosts import AllowedHosts
from router.admin.cors import Origins
from router.admin.keys import Keys
from router.admin.route import Pending, ProxiedRoute
from router.config import ServerConfig
from router.http.inference import ProxiedRoutes
from router.http.server import HttpServer, Limits
from router.proxy import HeartbeatConfig, ProxiedRequest, ProxyContext, RequestInfo
from router.proxy.body import BodyLimits
from router.supervisor.pool import Pool
from tests.admin.fake_pool import FakePool
from tests.admin.upstream import Connection, Received, Script, Upstream
from tests.deadline import DEADLINE_SECONDS

DEADLINE = DEADLINE_SECONDS


class Counted:
    """Of requests: how many have begun and not ended, and how many were logged."""

    is_refusing = False

    def __init__(self) -> None:
        self.count = 0
        self.logged = 0

    def begun(self) -> None:
        self.count += 1

    def ended(self, *logged: object) -> None:
        if logged:
            self.logged += 1
        else:
            self.count -= 1


def proxy_server(
    proxy: ProxyContext, plan: Callable[[Pending], RequestInfo], counted: Counted, **options: Any
) -> HttpServer:
    """A server that proxies every request, as `plan` says."""
    server = HttpServer(web.Application(), Limits(), **options)
    context = cast(Any, SimpleNamespace())
    server.proxied = ProxiedRoutes(
        [ProxiedRoute("*", "/{path:.*}", plan=plan)],
        context,
        proxy,
        keys=Keys(),
        hosts=AllowedHosts(ServerConfig(allowed_hosts=("*",))),
        origins=Origins(),
        counting=counted,
        access_log=cast(Any, counted),
        body_limits=BodyLimits(max_bytes=64 << 20),
    )
    return server


class Bench:
    """A router that is nothing but the proxy, its fake pool, and as many children as a test scripts."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._stack = AsyncExitStack()
        self.pool = FakePool()
        self.children: list[Upstream] = []
        self.ask = RequestInfo("qwen")
        self.base = ""
        self.requests: list[ProxiedRequest] = []
        self.patience = HeartbeatConfig()
        self.slots: int | None = None
        self.proxy = ProxyContext(cast(Pool, self.pool), lambda: self.patience, lambda _: self.slots)

    async def child(self, script: Script) -> Upstream:
        upstream = Upstream(self._folder / f"{len(self.children)}.sock", script)
        self.children.append(await self._stack.enter_async_context(upstream))
        self.pool.sockets.setdefault("qwen", []).append(upstream.path)
        return upstream

    async def start(self) -> None:
        enter = self.proxy.in_flight.enter

        def note(request: ProxiedRequest) -> None:
            self.requests.append(request)
            enter(request)

        self.proxy.in_flight.enter = note  # type: ignore[method-assign]
        server = proxy_server(self.proxy, lambda _: self.ask, Counted(), shutdown_seconds=0.1)
        await server.start()
        self._stack.push_async_callback(server.close)
        await server.listen()
        self.port = int(server.addresses[0][1])
        self.base = f"http://127.0.0.1:{self.port}"
        self.client = await self._stack.enter_async_context(aiohttp.ClientSession())

    def post(self, body: bytes = b'{"model":"qwen"}', path: str = "/v1/chat/completions", **options):
        # Encoded already: the client would write the query anew.
        return self.client.post(URL(self.base + path, encoded=True), data=io.BytesIO(body), **options)

    async def raw(self, body: bytes = b"{}") -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """A POST on a bare socket, for tests that look at what aiohttp's client would hide."""
        reader, writer = await self.connect()
        writer.write(b"POST /v1/completions HTTP/1.1\r\nHost: here\r\nContent-Length: %d\r\n\r\n" % len(body))
        writer.write(body)
        return reader, writer

    async def connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        self._stack.callback(writer.close)
        return reader, writer

    async def close(self) -> None:
        await self._stack.aclose()


async def echo(received: Received, connection: Connection) -> None:
    await connection.answer(received.body)
