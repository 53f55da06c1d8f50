"""Requests of the aiohttp application, on connections where others are proxied."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import pytest
from aiohttp import web

from router.http.server import HttpServer, Limits
from tests.deadline import DEADLINE_SECONDS
from tests.proxy.wire import Message, read_answer

CHUNKED = b"POST /echo HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n"


@dataclass
class Site:
    """An application that notes what it was asked, and one connection to it."""

    seen: list[bytes] = field(default_factory=list)
    begun: asyncio.Event = field(default_factory=asyncio.Event)
    cancelled: asyncio.Event = field(default_factory=asyncio.Event)
    go_on: asyncio.Event = field(default_factory=asyncio.Event)

    async def echo(self, request: web.Request) -> web.StreamResponse:
        self.seen.append(await request.read())
        return web.Response(body=self.seen[-1])

    async def refuse(self, request: web.Request) -> web.StreamResponse:
        """Answers without having read the body."""
        return web.Response(status=409, text="no")

    async def wait(self, request: web.Request) -> web.StreamResponse:
        self.begun.set()
        try:
            await self.go_on.wait()
        except asyncio.CancelledError:
            self.cancelled.set()
            raise
        return web.Response(text="late")

    async def last(self, request: web.Request) -> web.StreamResponse:
        response = web.Response(text="bye")
        response.force_close()
        return response


@dataclass
class Client:
    site: Site
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    async def answer(self) -> Message:
        async with asyncio.timeout(DEADLINE_SECONDS):
            return await read_answer(self.reader, to_head=False)

    async def end(self) -> bytes:
        async with asyncio.timeout(DEADLINE_SECONDS):
            return await self.reader.read()


@asynccontextmanager
async def client_of(site: Site) -> AsyncIterator[Client]:
    app = web.Application(client_max_size=1 << 20)
    for name in ("echo", "refuse", "wait", "last"):
        app.router.add_route("*", f"/{name}", getattr(site, name))
    server = HttpServer(app, Limits(), shutdown_seconds=0.1)
    await server.start()
    await server.listen()
    reader, writer = await asyncio.open_connection(*server.addresses[0][:2])
    try:
        yield Client(site, reader, writer)
    finally:
        writer.close()
        await server.close()


def get(path: str, *headers: str) -> bytes:
    return "\r\n".join([f"GET {path} HTTP/1.1", "Host: h", *headers, "", ""]).encode()


def post(path: str, body: bytes, *headers: str) -> bytes:
    lines = [f"POST {path} HTTP/1.1", "Host: h", f"Content-Length: {len(body)}", *headers, "", ""]
    return "\r\n".join(lines).encode() + body


async def test_several_at_once_are_answered_in_order_whatever_frames_their_bodies():
    async with client_of(Site()) as client:
        chunked = CHUNKED + b"3\r\nabc\r\n2;x=y\r\nde\r\n0\r\nX-Late: 1\r\n\r\n"
        client.writer.write(post("/echo", b"one") + chunked + get("/echo") + post("/echo", b"four"))
        assert [(await client.answer()).body for _ in range(4)] == [b"one", b"abcde", b"", b"four"]


async def test_a_body_may_come_byte_by_byte():
    async with client_of(Site()) as client:
        for byte in CHUNKED + b"3\r\nabc\r\n0\r\n\r\n" + post("/echo", b"next"):
            client.writer.write(bytes([byte]))
            await asyncio.sleep(0)
        assert [(await client.answer()).body for _ in range(2)] == [b"abc", b"next"]


async def test_a_large_body_passes_whole_though_the_application_reads_later():
    async with client_of(Site()) as client:
        body = bytes(range(256)) * 4000
        client.writer.write(post("/echo", body) + get("/echo"))
        assert (await client.answer()).body == body
        assert (await client.answer()).status == 200


async def test_the_rest_of_a_body_that_was_not_read_is_no_request():
    async with client_of(Site()) as client:
        request = post("/refuse", get("/echo") * 20)
        client.writer.write(request[:-100])
        assert (await client.answer()).status == 409
        client.writer.write(request[-100:] + get("/echo"))
        assert (await client.answer()).status == 200
        assert client.site.seen == [b""], "the body was none"


async def test_the_next_request_waits_for_the_answer_to_the_one_before():
    async with client_of(Site()) as client:
        client.writer.write(get("/wait") + get("/echo"))
        async with asyncio.timeout(DEADLINE_SECONDS):
            await client.site.begun.wait()
        assert not client.site.seen
        client.site.go_on.set()
        assert [(await client.answer()).body for _ in range(2)] == [b"late", b""]


async def test_a_client_that_disconnects_cancels_its_handler():
    async with client_of(Site()) as client:
        client.writer.write(get("/wait"))
        async with asyncio.timeout(DEADLINE_SECONDS):
            await client.site.begun.wait()
            client.writer.transport.abort()
            await client.site.cancelled.wait()


async def test_an_answer_that_ends_the_connection_is_the_last():
    async with client_of(Site()) as client:
        client.writer.write(get("/last") + get("/echo"))
        answer = await client.answer()
        assert (answer.body, answer.get("Connection")) == (b"bye", "close")
        assert await client.end() == b""
        assert not client.site.seen


@pytest.mark.parametrize(
    ("request_", "stays"),
    [
        (b"GET /echo HTTP/1.0\r\n\r\n", False),
        (b"GET /echo HTTP/1.0\r\nConnection: keep-alive\r\n\r\n", True),
        (get("/echo", "Connection: close"), False),
        (get("/echo", "Connection: upgrade", "Upgrade: h2c"), True),
    ],
)
async def test_a_connection_stays_where_its_client_asks_for_that(request_: bytes, stays: bool):
    async with client_of(Site()) as client:
        client.writer.write(request_)
        assert (await client.answer()).status == 200
        client.writer.write(get("/echo"))
        if stays:
            assert (await client.answer()).status == 200
        else:
            assert await client.end() == b""


async def test_a_chunk_without_a_size_is_answered_with_400_and_ends_the_connection():
    async with client_of(Site()) as client:
        client.writer.write(CHUNKED + b"3\r\nabc\r\nmany\r\n")
        answer = await client.answer()
        assert (answer.status, json.loads(answer.body)["error"]["code"]) == (400, "malformed_request")
        assert answer.get("Connection") == "close"
        assert await client.end() == b""
        assert not client.site.seen


async def test_a_client_that_waits_for_100_continue_gets_it():
    async with client_of(Site()) as client:
        request = post("/echo", b"body", "Expect: 100-continue")
        client.writer.write(request[:-4])
        async with asyncio.timeout(DEADLINE_SECONDS):
            assert await client.reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
        client.writer.write(request[-4:])
        assert (await client.answer()).body == b"body"
