"""Whoever comes to a process that has been replaced is served by the next one: two real servers, one before
the other."""

from __future__ import annotations

import asyncio
import gzip
import socket
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import cast

import aiohttp
import pytest
from aiohttp import web

from router.admin.errors import tell_errors
from router.app.relay import Relay
from router.http.server import HttpServer
from router.proxy import HeartbeatConfig, ProxyContext, RequestInfo
from router.supervisor.pool import HandedOver, Lease, Pool
from tests.admin.fake_pool import FakePool
from tests.proxy.bench import Counted, proxy_server

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


@asynccontextmanager
async def serving(handler: Handler, listening: socket.socket) -> AsyncIterator[None]:
    """The next process."""
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", handler)
    runner = web.AppRunner(app, handler_cancellation=True, auto_decompress=False)
    await runner.setup()
    await web.SockSite(runner, listening).start()
    try:
        yield
    finally:
        await runner.cleanup()


class HandedOverPool(FakePool):
    """Its children belong to another process once `gate` is set."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = asyncio.Event()

    async def acquire(self, model: str, **_: object) -> Lease:
        await self.gate.wait()
        raise HandedOver


class Pair:
    """A former process whose requests are answered by `former` until it is replaced, and the next one. Where
    `former` is None they are proxied, and wait for their model."""

    def __init__(self, former: Handler | None, following: Handler) -> None:
        self._former, self._following = former, following
        self.next_address = socket.create_server(("127.0.0.1", 0))
        self.relay, self.pool = Relay(), HandedOverPool()
        self.proxy = ProxyContext(cast(Pool, self.pool), lambda: HeartbeatConfig(0.01, 60.0))

    async def __aenter__(self) -> Pair:
        if self._former is None:
            info = RequestInfo("m", stream=True)
            self.server = proxy_server(self.proxy, lambda _: info, Counted(), shutdown_seconds=0.1)
        else:
            app = web.Application(middlewares=[tell_errors, self.relay.after_handover])
            app.router.add_route("*", "/{path:.*}", self._former)
            self.server = HttpServer(app, shutdown_seconds=0.1)
        await self.server.start()
        await self.server.listen()
        self.address = self.server.addresses[0][:2]
        self._end = serving(self._following, self.next_address)
        await self._end.__aenter__()
        self.client = aiohttp.ClientSession(f"http://127.0.0.1:{self.address[1]}", auto_decompress=False)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.client.close()
        await self.server.close()
        await self._end.__aexit__(None, None, None)

    def replace(self, to: socket.socket | None = None) -> None:
        self.relay.begin(to or self.next_address)
        self.proxy.relay = self.relay
        self.pool.gate.set()


async def told_by_the_former(request: web.Request) -> web.StreamResponse:
    return web.Response(text="the former")


#: Who answers in the former process: the application, or the proxy.
FORMERS = pytest.mark.parametrize("former", [told_by_the_former, None], ids=["application", "proxied"])


async def echo(request: web.Request) -> web.StreamResponse:
    """What was asked, in the answer."""
    body = await request.read()
    headers = {f"X-Had-{name}": value for name, value in request.headers.items() if name != "Host"}
    return web.Response(
        body=gzip.compress(body or b"nothing"), status=207, reason="As You Like",
        headers={**headers, "Content-Encoding": "gzip", "X-Was": f"{request.method} {request.raw_path}"},
    )  # fmt: skip


async def test_before_the_handover_it_does_nothing():
    async with Pair(told_by_the_former, echo) as pair, pair.client.get("/") as answer:
        assert await answer.text() == "the former"
        assert "Connection" not in answer.headers


@FORMERS
async def test_afterwards_a_request_passes_as_it_is_and_its_answer_too_and_the_connection_ends(
    former: Handler | None,
):
    async with Pair(former, echo) as pair:
        pair.replace()
        sent = {"Authorization": "Bearer k", "X-Own": "1", "User-Agent": "me", "Accept": "*/*"}
        async with pair.client.put("/a%2Fb?q=%20x", data=b"body" * 50_000, headers=sent) as answer:
            assert (answer.status, answer.reason) == (207, "As You Like")
            assert answer.headers["X-Was"] == "PUT /a%2Fb?q=%20x"
            assert answer.headers["X-Had-Authorization"] == "Bearer k"
            assert answer.headers["X-Had-X-Own"] == "1"
            assert answer.headers["X-Had-User-Agent"] == "me"
            assert gzip.decompress(await answer.read()) == b"body" * 50_000, "encoded as it came"
            assert answer.headers["Connection"] == "close", "the client comes to the next process then"


@FORMERS
async def test_a_compressed_body_passes_decoded(former: Handler | None):
    async with Pair(former, echo) as pair:
        pair.replace()
        sent = {"Content-Encoding": "gzip"}
        async with pair.client.put("/", data=gzip.compress(b"body" * 50_000), headers=sent) as answer:
            assert gzip.decompress(await answer.read()) == b"body" * 50_000
            assert "X-Had-Content-Encoding" not in answer.headers


@FORMERS
async def test_a_header_that_is_not_utf_8_stays_behind_and_the_request_passes(former: Handler | None):
    async with Pair(former, echo) as pair:
        pair.replace()
        reader, writer = await asyncio.open_connection(*pair.address)
        writer.write(b"GET / HTTP/1.1\r\nHost: x\r\nX-Own: \xff\r\nX-More: gr\xc3\xb6\xc3\x9fe\r\n\r\n")
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        writer.close()
    assert " 207 " in head.partition("\r\n")[0]
    assert "X-Had-X-More: größe" in head and "X-Had-X-Own" not in head


@FORMERS
@pytest.mark.parametrize("method", ["HEAD", "DELETE", "OPTIONS"])
async def test_requests_without_a_body_pass(method: str, former: Handler | None):
    if method == "OPTIONS":
        former = told_by_the_former  # a preflight is never proxied
    async with Pair(former, echo) as pair:
        pair.replace()
        async with pair.client.request(method, "/x") as answer:
            assert answer.status == 207
            assert answer.headers["X-Was"] == f"{method} /x"
            body = await answer.read()
        assert body == b"" if method == "HEAD" else gzip.decompress(body) == b"nothing"


@FORMERS
async def test_a_stream_passes_piece_by_piece(former: Handler | None):
    go_on = asyncio.Event()

    async def stream(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        await response.write(b"data: 1\n\n")
        await go_on.wait()
        await response.write(b"data: 2\n\n")
        return response

    async with Pair(former, stream) as pair:
        pair.replace()
        async with pair.client.post("/v1/chat/completions", json={}) as answer:
            assert await answer.content.readany() == b"data: 1\n\n"
            go_on.set()
            assert await answer.content.read() == b"data: 2\n\n"


@FORMERS
async def test_a_client_that_leaves_ends_the_request_there_too(former: Handler | None):
    begun, cancelled = asyncio.Event(), asyncio.Event()

    async def endless(request: web.Request) -> web.StreamResponse:
        begun.set()
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.set()
        raise AssertionError

    async with Pair(former, endless) as pair:
        pair.replace()
        asking = asyncio.ensure_future(pair.client.get("/"))
        await begun.wait()
        asking.cancel()
        async with asyncio.timeout(10):
            await cancelled.wait()


@FORMERS
async def test_an_answer_that_is_cut_is_cut_for_its_client(former: Handler | None):
    async def dying(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        response.content_length = 100
        await response.prepare(request)
        await response.write(b"half")
        assert request.transport is not None
        request.transport.close()
        return response

    async with Pair(former, dying) as pair:
        pair.replace()
        with pytest.raises(aiohttp.ClientPayloadError):
            async with pair.client.get("/") as answer:
                await answer.read()


@FORMERS
async def test_when_nobody_serves_any_more_the_client_is_told(former: Handler | None):
    async with Pair(former, echo) as pair:
        with socket.create_server(("127.0.0.1", 0)) as gone:
            pair.replace(gone)
        async with pair.client.get("/") as answer:
            assert answer.status == 503
            assert answer.headers["Retry-After"] == "1"
            assert (await answer.json())["error"]["code"] == "shutting_down"


@FORMERS
async def test_while_nobody_accepts_yet_it_waits(former: Handler | None):
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        async with Pair(former, echo) as pair:
            pair.replace(listening)
            asking = asyncio.ensure_future(pair.client.get("/x"))
            await asyncio.sleep(0.1)  # in which it must not be answered
            assert not asking.done()
            async with serving(echo, listening), await asking as answer:
                assert answer.status == 207


@FORMERS
async def test_a_unix_socket_is_found_by_its_path(former: Handler | None):
    with tempfile.TemporaryDirectory() as folder:
        listening = socket.socket(socket.AF_UNIX)
        listening.bind(str(Path(folder) / "s"))
        async with Pair(former, echo) as pair, serving(echo, listening):
            pair.replace(listening)
            async with pair.client.get("/x") as answer:
                assert answer.headers["X-Was"] == "GET /x"


@pytest.mark.parametrize(("bound", "url"), [("0.0.0.0", "http://127.0.0.1:{}"), ("::", "http://[::1]:{}")])
def test_who_listens_everywhere_is_asked_here(bound: str, url: str):
    family = socket.AF_INET6 if ":" in bound else socket.AF_INET
    with socket.socket(family) as listening:
        listening.bind((bound, 0))
        relay = Relay()
        relay.begin(listening)
        assert relay._base == url.format(listening.getsockname()[1])


async def test_a_request_that_waited_for_its_model_goes_along_with_its_body():
    waiting, handed_over = asyncio.Event(), asyncio.Event()

    async def wait(request: web.Request) -> web.StreamResponse:
        await request.read()
        waiting.set()
        await handed_over.wait()
        raise HandedOver

    async with Pair(wait, echo) as pair:
        asking = asyncio.ensure_future(pair.client.post("/x", data=b"asked"))
        await waiting.wait()
        pair.replace()
        handed_over.set()
        async with await asking as answer:
            assert gzip.decompress(await answer.read()) == b"asked"


# --- a stream whose head was sent ---


async def events(request: web.Request) -> web.StreamResponse:
    response = web.StreamResponse(headers={"Content-Type": "text/event-stream; charset=utf-8"})
    await response.prepare(request)
    for number in range(3):
        await response.write(b"data: %d\n\n" % number)
    return response


async def refusal(request: web.Request) -> web.StreamResponse:
    return web.json_response({"error": {"message": "no room", "code": "no_room"}}, status=503)


async def cut(request: web.Request) -> web.StreamResponse:
    response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
    await response.prepare(request)
    await response.write(b"data: 0\n\n")
    assert request.transport is not None
    request.transport.abort()
    return response


@asynccontextmanager
async def waiting(following: Handler, *, is_gone: bool = False) -> AsyncIterator[aiohttp.ClientResponse]:
    """A client that has had a heartbeat when the former process is replaced."""
    async with Pair(None, following) as pair, pair.client.post("/x", data=b"{}") as answer:
        assert answer.status == 200
        assert (await answer.content.readuntil(b"\n\n")).startswith(b": llama-router {")
        if is_gone:
            with socket.create_server(("127.0.0.1", 0)) as gone:
                pair.replace(gone)
        else:
            pair.replace()
        yield answer


async def test_a_stream_that_has_begun_goes_on_with_the_next_process():
    async with waiting(events) as answer:
        assert await answer.read() == b"data: 0\n\ndata: 1\n\ndata: 2\n\n"


async def test_if_the_next_process_refuses_that_is_an_event():
    async with waiting(refusal) as answer:
        text = await answer.text()
        assert text.startswith("data: {")
        assert '"code":"no_room"' in text


async def test_if_nobody_serves_any_more_that_is_an_event():
    async with waiting(events, is_gone=True) as answer:
        assert '"code":"shutting_down"' in await answer.text()


async def test_if_its_rest_is_cut_nobody_takes_it_for_complete():
    async with waiting(cut) as answer:
        with pytest.raises(aiohttp.ClientPayloadError):
            await answer.read()
