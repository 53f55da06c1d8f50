"""Clients that take their time, that speak no HTTP, and one too many."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager, closing
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any, cast

import pytest
from aiohttp import web

from router.admin import CONTEXT, Context, application
from router.config import Config, ServerConfig
from router.http.server import HttpServer, Limits
from router.proxy.body import BODY_LIMITS, BodyLimits, read_body

Opened = tuple[asyncio.StreamReader, asyncio.StreamWriter]


@dataclass
class Guarded:
    """A server behind a guard that answers with what it was sent."""

    port: int
    seen: list[bytes] = field(default_factory=list)
    left: asyncio.Event = field(default_factory=asyncio.Event)
    stack: AsyncExitStack = field(default_factory=AsyncExitStack)

    async def open(self) -> Opened:
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        self.stack.callback(writer.close)
        return reader, writer


@pytest.fixture
def guarded() -> Callable:
    @asynccontextmanager
    async def start(limits: Limits, body_seconds: float = 60.0) -> AsyncIterator[Guarded]:
        async def zeros(request: web.Request) -> web.StreamResponse:
            response = web.StreamResponse()
            response.content_length = left = int(request.match_info["size"])
            try:
                await response.prepare(request)
                while left > 0:
                    await response.write(bytes(min(left, 1 << 16)))
                    left -= 1 << 16
            except (asyncio.CancelledError, ConnectionError):
                made.left.set()
                raise
            return response

        async def echo(request: web.Request) -> web.Response:
            made.seen.append((await read_body(request)).joined())
            return web.Response(body=made.seen[-1])

        app = web.Application()
        app[BODY_LIMITS] = BodyLimits(body_seconds)
        app.router.add_get("/zeros/{size}", zeros)
        app.router.add_route("*", "/{any:.*}", echo)
        server = HttpServer(app, limits, shutdown_seconds=0.1)
        await server.start()
        await server.listen()
        made = Guarded(server.addresses[0][1])
        try:
            async with asyncio.timeout(20), made.stack:
                yield made
        finally:
            await server.close()

    return start


def error(answer: bytes) -> tuple[int, str]:
    head, _, body = answer.partition(b"\r\n\r\n")
    assert b"\r\nConnection: close" in head or head.startswith(b"HTTP/1.0 ")
    return int(head.split()[1]), json.loads(body)["error"]["code"]


async def test_a_head_that_drips_is_refused_in_time(guarded):
    async with guarded(Limits(head_seconds=0.3)) as up:
        reader, writer = await up.open()

        async def drip() -> None:
            for letter in b"GET / HTTP/1.1\r\nX: " + b"y" * 10_000:
                writer.write(bytes([letter]))
                await asyncio.sleep(0.02)  # a slow client

        dripping = asyncio.create_task(drip())
        assert error(await reader.read()) == (408, "request_too_slow")
        dripping.cancel()
        assert not up.seen


async def test_who_connects_and_says_nothing_is_let_go_without_a_word(guarded):
    async with guarded(Limits(head_seconds=0.2)) as up:
        reader, _ = await up.open()
        assert await reader.read() == b""


async def test_a_second_head_on_a_connection_is_watched_like_the_first(guarded):
    async with guarded(Limits(head_seconds=0.3)) as up:
        reader, writer = await up.open()
        writer.write(b"GET /a HTTP/1.1\r\nHost: x\r\n\r\n")
        assert b"200 OK" in await reader.readuntil(b"\r\n\r\n")
        writer.write(b"GET /b HT")
        assert error(await reader.read()) == (408, "request_too_slow")


async def test_one_who_waits_between_requests_is_not_hurried(guarded):
    async with guarded(Limits(head_seconds=0.2, idle_seconds=1.0)) as up:
        reader, writer = await up.open()
        for _ in range(2):
            writer.write(b"GET /a HTTP/1.1\r\nHost: x\r\n\r\n")
            assert b"200 OK" in await reader.readuntil(b"\r\n\r\n")
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.4):
                    await reader.read()
        assert await reader.read() == b"", "and is let go in the end"


async def test_a_long_body_is_no_long_head(guarded):
    async with guarded(Limits(head_seconds=0.2)) as up:
        reader, writer = await up.open()
        writer.write(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 6\r\n\r\n")
        for letter in b"abcdef":
            writer.write(bytes([letter]))
            await asyncio.sleep(0.08)  # in sum longer than a head may take
        assert b"200 OK" in await reader.readuntil(b"\r\n\r\n")
        assert up.seen == [b"abcdef"]


@pytest.mark.parametrize(
    "framing", [b"Content-Length: 1000000\r\n\r\n", b"Transfer-Encoding: chunked\r\n\r\n"]
)
async def test_a_body_that_drips_is_refused_in_time(guarded, framing: bytes):
    async with guarded(Limits(), body_seconds=0.3) as up:
        reader, writer = await up.open()
        writer.write(b"POST / HTTP/1.1\r\nHost: x\r\n" + framing)
        drop = b"x" if b"Length" in framing else b"1\r\nx\r\n"

        async def drip() -> None:
            while True:
                writer.write(drop)
                await asyncio.sleep(0.02)  # a slow client

        dripping = asyncio.create_task(drip())
        head = await reader.readuntil(b"\r\n\r\n")
        dripping.cancel()
        # Told as the application tells its errors; here nothing translates them.
        assert head.startswith((b"HTTP/1.1 408", b"HTTP/1.1 500"))
        assert not up.seen


async def test_one_connection_too_many_is_told_so_and_the_others_go_on(guarded):
    async with guarded(Limits(connections=3)) as up:
        kept = [await up.open() for _ in range(3)]
        for reader, writer in kept:
            writer.write(b"GET /a HTTP/1.1\r\nHost: x\r\n\r\n")
            assert b"200 OK" in await reader.readuntil(b"\r\n\r\n")
        reader, writer = await up.open()
        writer.write(b"GET /a HTTP/1.1\r\nHost: x\r\n\r\n")
        answer = await reader.read()
        assert error(answer) == (503, "unavailable")
        assert b"Retry-After: 1\r\n" in answer
        assert b"server.connections_max" in answer
        kept[0][1].close()
        while True:  # until its end has been noticed
            reader, writer = await up.open()
            writer.write(b"GET /a HTTP/1.1\r\nHost: x\r\n\r\n")
            if b"200 OK" in await reader.readuntil(b"\r\n\r\n"):
                break


async def test_a_client_that_takes_nothing_of_its_answer_is_let_go(guarded):
    async with guarded(Limits(stall_seconds=0.3)) as up:
        where = socket.create_connection(("127.0.0.1", up.port))
        with where:
            size = 64 << 20  # more than any buffer between us holds
            where.sendall(b"GET /zeros/%d HTTP/1.1\r\nHost: x\r\n\r\n" % size)
            await up.left.wait()


async def test_one_that_takes_its_answer_slowly_gets_all_of_it(guarded):
    async with guarded(Limits(stall_seconds=1.0)) as up:
        reader, writer = await up.open()
        writer.write(b"GET /zeros/%d HTTP/1.1\r\nHost: x\r\n\r\n" % (16 << 20))
        head = await reader.readuntil(b"\r\n\r\n")
        got = 0
        while got < 16 << 20:
            got += len(await reader.read(1 << 19))
            await asyncio.sleep(0.02)  # a slow client
        assert b"200 OK" in head
        assert not up.left.is_set()


@pytest.mark.parametrize(
    "said",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n",
        b"GET / HTTP/1.1 \r\n\r\n",
        b"GET / HTTP/1.1\r\nno colon\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\nContent-Length: 4\r\n\r\nabcd",
        b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: -3\r\n\r\nabcd",
    ],
    ids=[
        "TLS",
        "a request line",
        "a header",
        "two lengths",
        "length and chunks",
        "a negative length",
    ],
)
async def test_what_is_no_request_is_told_so_as_json_and_fills_no_log(guarded, said: bytes, caplog):
    async with guarded(Limits()) as up:
        reader, writer = await up.open()
        writer.write(said)
        assert error(await reader.read()) == (400, "malformed_request")
        assert not up.seen
        assert not caplog.records


async def test_a_head_that_does_not_end_is_refused_as_too_large(guarded):
    async with guarded(Limits()) as up:
        for said in (b"GET / HTTP/1.1\r\nX: " + b"y" * 40_000 + b"\r\n\r\n", b"GET /" + b"y" * 40_000):
            reader, writer = await up.open()
            writer.write(said)
            assert error(await reader.read()) == (431, "request_head_too_large")


@pytest.mark.parametrize(
    ("said", "version"),
    [
        (b"GET / HTTP/2.0\r\nHost: localhost\r\n\r\n", "2.0"),
        (b"POST /v1/chat/completions HTTP/2.0\r\nHost: localhost\r\nContent-Length: 2\r\n\r\n{}", "2.0"),
        (b"GET /nothing HTTP/0.9\r\nHost: localhost\r\n\r\n", "0.9"),
        (b"GET /\r\n\r\n", "0.9"),
        (b"GET / HTTP/1.2\r\nHost: localhost\r\n\r\n", "1.2"),
        (b"GET / HTTP/9.9\r\nHost: localhost\r\n\r\n", "9.9"),
        (b"GET / HTTP/2\r\nHost: localhost\r\n\r\n", "2"),
        (b"GET / HTTP/3\r\n\r\n", "3"),
        (b"GET / HTTP/11.1\r\nHost: localhost\r\n\r\n", "11.1"),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", "2.0"),
    ],
)
async def test_another_version_of_http_is_505_and_ends_the_connection(said: bytes, version: str, caplog):
    async with serving() as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        with closing(writer):
            writer.write(said)
            async with asyncio.timeout(5):
                answer = await reader.read()
    assert error(answer) == (505, "http_version_not_supported")
    assert answer.startswith((b"HTTP/1.1 505 ", b"HTTP/1.0 505 "))
    assert f"HTTP/{version} is not supported".encode() in answer
    assert not [record for record in caplog.records if record.name != "router.access"]


# --- one client's share ---


@asynccontextmanager
async def serving(**limits: Any) -> AsyncIterator[int]:
    """The application itself behind connections; yields its port."""
    server = HttpServer(application(ServerConfig(access_log=False)), Limits(**limits), shutdown_seconds=0.1)
    server.app[CONTEXT] = cast(Context, SimpleNamespace(config=Config()))
    await server.start()
    await server.listen(host="0.0.0.0")
    try:
        yield server.addresses[0][1]
    finally:
        await server.close()


async def ask_health(port: int, source: str) -> tuple[bytes, asyncio.StreamWriter]:
    reader, writer = await asyncio.open_connection("127.0.0.1", port, local_addr=(source, 0))
    writer.write(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
    async with asyncio.timeout(5):
        head = await reader.readuntil(b"\r\n\r\n")
        body = await reader.read(1000)
    return head + body, writer


async def test_one_client_does_not_hold_all_connections():
    async with serving(connections=4, client_connections=3) as port, AsyncExitStack() as stack:
        for _ in range(3):
            answer, writer = await ask_health(port, "127.0.0.1")
            stack.callback(writer.close)
            assert answer.startswith(b"HTTP/1.1 200 ")
        refused, writer = await ask_health(port, "127.0.0.1")
        stack.callback(writer.close)
        assert error(refused) == (429, "client_limit")
        assert b"Retry-After: 1\r\n" in refused
        assert b"127.0.0.1 has 3 connections open" in refused and b"server.client_share" in refused
        answer, other = await ask_health(port, "127.0.0.2")
        stack.callback(other.close)
        assert answer.startswith(b"HTTP/1.1 200 "), "the others have the rest"
        refused, writer = await ask_health(port, "127.0.0.3")
        stack.callback(writer.close)
        assert error(refused) == (503, "unavailable")


async def test_a_place_is_free_again_once_its_connection_is_closed():
    async with serving(client_connections=1) as port, asyncio.timeout(10):
        for _ in range(3):
            answer = b""
            while not answer.startswith(b"HTTP/1.1 200 "):  # until the end of the one before has been noticed
                answer, writer = await ask_health(port, "127.0.0.1")
                writer.close()
