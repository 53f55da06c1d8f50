"""A router that is nothing but the proxy, between a real client socket and children on real Unix sockets that
do what the test says."""

from __future__ import annotations

import asyncio
import io
from collections.abc import Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import cast

import aiohttp
from aiohttp import web
from yarl import URL

from router.admin.errors import tell_errors
from router.proxy import HeartbeatConfig, Proxy, RequestInfo
from router.supervisor.pool import Pool
from tests.admin.fake_pool import FakePool
from tests.admin.upstream import Connection, Received, Script, Upstream
from tests.deadline import DEADLINE_SECONDS

DEADLINE = DEADLINE_SECONDS


class Bench:
    """A router that is nothing but the proxy, its fake pool, and as many children as a test scripts."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._stack = AsyncExitStack()
        self.pool = FakePool()
        self.children: list[Upstream] = []
        self.ask = RequestInfo("qwen")
        self.base = ""
        self.requests: list[tuple[web.Request, asyncio.Task[object]]] = []
        self.patience = HeartbeatConfig()
        self.slots: int | None = None
        self.proxy = Proxy(cast(Pool, self.pool), lambda: self.patience, lambda _: self.slots)

    async def child(self, script: Script) -> Upstream:
        upstream = Upstream(self._folder / f"{len(self.children)}.sock", script)
        self.children.append(await self._stack.enter_async_context(upstream))
        self.pool.sockets.setdefault("qwen", []).append(upstream.path)
        return upstream

    async def start(self) -> None:
        async def handle(request: web.Request) -> web.StreamResponse:
            task = asyncio.current_task()
            assert task is not None
            self.requests.append((request, task))
            return await self.proxy.forward(request, await request.read(), self.ask)

        app = web.Application(middlewares=[tell_errors], client_max_size=64 << 20)
        app.router.add_route("*", "/{path:.*}", handle)
        runner = web.AppRunner(
            app, handler_cancellation=True, auto_decompress=False, access_log=None, shutdown_timeout=0.1
        )
        await runner.setup()
        self._stack.push_async_callback(runner.cleanup)
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        self.port = int(runner.addresses[0][1])
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


async def eventually(is_true: Callable[[], object], what: str = "") -> None:
    async with asyncio.timeout(DEADLINE):
        while not is_true():
            await asyncio.sleep(0.005)


async def echo(received: Received, connection: Connection) -> None:
    await connection.answer(received.body)
