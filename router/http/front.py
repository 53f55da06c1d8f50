"""What stands in front of aiohttp's server on each connection: a request that may take the short way is read
and answered here, every other is passed on as it came, byte for byte.

A connection changes between the two from one request to the next. It must be known where aiohttp's request
ends: who says more than one at a time (pipelining) is left to aiohttp for good."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Any, Final

from aiohttp import web
from yarl import URL

from router.admin.client_address import shown_address
from router.admin.target import encode_line, tidy
from router.http.connections import Connection, Limits, Server, with_known_versions
from router.http.express import Coming, Express
from router.proxy.client import HELD_BYTES
from router.proxy.express import TRIED, Exchange
from router.proxy.failures import Broken
from router.proxy.heads import END_OF_HEAD
from router.proxy.plain import split

#: What is held of a next request, said before the answer to this one is complete.
HELD_REQUEST_BYTES: Final = 64 << 10
#: A body that takes longer is waited for by aiohttp, which has rules for that.
BODY_SECONDS: Final = 5.0


class Front(Connection):
    """One client."""

    __slots__ = (
        "_body_timer", "_coming", "_exchange", "_has_passed_on", "_held", "_is_in_line", "_is_paused",
        "_is_strange", "_over", "_owed", "_server", "_tried", "on_taken", "peer",
    )  # fmt: skip

    def __init__(self, server: FrontServer, limits: Limits, **options: Any) -> None:
        super().__init__(server, limits, **options)
        self._server = server
        self._exchange: Exchange | None = None
        self._coming: Coming | None = None
        self._held = b""
        self._owed = 0  # of aiohttp's request, so many bytes are still to come
        self._has_passed_on = False  # anything to aiohttp
        self._is_strange = False  # where its requests end is not known here
        self._is_in_line = False  # aiohttp has a part of a request's first line
        self._is_paused = False
        self._body_timer: asyncio.TimerHandle | None = None
        self._over: asyncio.Future[None] | None = None
        self.peer: str | None = None
        self.on_taken: Callable[[], object] | None = None
        self._tried: Broken | None = None  # of the request that aiohttp's server makes next

    # --- from the client ---

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        name = transport.get_extra_info("peername")
        address = str(name[0]) if isinstance(name, tuple) else None if name is None else str(name)
        self.peer = shown_address(address)
        if self.transport is not None:
            self.transport.set_write_buffer_limits(HELD_BYTES)

    def connection_lost(self, exc: BaseException | None) -> None:
        exchange, self._coming, self._held, self.on_taken = self._exchange, None, b"", None
        self._stop_body_timer()
        if exchange is not None:
            exchange.left()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._exchange is not None:
            self._hold(data)
            return
        express = self._server.express
        if express is None or self._close or (self._has_passed_on and not self._is_between_requests()):
            self._pass_on(data)
            return
        if self._held:
            data, self._held = self._held + data, b""
        coming = self._coming
        if coming is None:
            coming = express.look(data)
        if coming is None or len(data) > coming.end:
            self._pass_on(data)
        elif len(data) < coming.end:
            self._wait_for_body(coming, data)
        else:
            if self._coming is not None:
                self._stop_body_timer()
                self._coming = None
            assert self.transport is not None, "it has just been read from"
            exchange = self._exchange = express.begin(coming, data, self, self.transport)
            if exchange is None:
                self._pass_on(data)
            elif self._head_timer is not None:
                self._stop_watching()

    def _wait_for_body(self, coming: Coming, data: bytes) -> None:
        self._coming, self._held = coming, data
        self._stop_watching()
        if self._body_timer is None:
            self._body_timer = self._loop.call_later(BODY_SECONDS, self._pass_on_held)

    def _pass_on_held(self) -> None:
        data, self._held = self._held, b""
        self._pass_on(data)

    def _pass_on(self, data: bytes) -> None:
        """To aiohttp's server."""
        self._stop_body_timer()
        self._coming, self._has_passed_on = None, True
        readable = self._with_ascii_lines(data)
        self._note(data)
        super().data_received(readable)

    def _with_ascii_lines(self, data: bytes) -> bytes:
        """`data` with targets as aiohttp's parser takes them, if a request begins there or its first line
        goes on: that of the first request, and those of the next as far as each one's end is known."""
        if not self._is_in_line and not self._is_between_requests():
            return data
        readable, start = [], 0
        while True:
            rest = data[start:]
            end_of_line = rest.find(b"\n")
            self._is_in_line = end_of_line < 0
            end_of_line = len(rest) if end_of_line < 0 else end_of_line
            readable += [encode_line(rest[:end_of_line]), rest[end_of_line:]]
            size = _size_of_request(rest)
            if size is None or size >= len(rest):
                return b"".join(readable)
            readable[-1] = rest[end_of_line:size]
            start += size

    def _note(self, data: bytes) -> None:
        """Where aiohttp's request ends."""
        if self._is_strange:
            return
        if self._owed or not self._is_between_requests():
            self._owed -= len(data)
        else:
            size = _size_of_request(data)
            self._owed = -1 if size is None else size - len(data)
        self._is_strange = self._owed < 0

    def _is_between_requests(self) -> bool:
        """Also before aiohttp's server begins to wait for a first one."""
        if self._is_strange or self._has_begun or self._owed:
            return False
        waiter = self._waiter
        return not self._request_count if waiter is None else not waiter.done()

    def _hold(self, data: bytes) -> None:
        """The next request, said before this one is answered."""
        self._held += data
        if len(self._held) > HELD_REQUEST_BYTES:
            self._pause()

    def _go_on(self) -> None:
        if self.transport is None or self.transport.is_closing():
            return
        if self._is_paused:
            self._is_paused = False
            self.transport.resume_reading()
        held, self._held = self._held, b""
        if held:
            self.data_received(held)

    def _pause(self) -> None:
        if not self._is_paused and self.transport is not None and not self.transport.is_closing():
            self._is_paused = True
            self.transport.pause_reading()

    def _stop_body_timer(self) -> None:
        if self._body_timer is not None:
            self._body_timer.cancel()
            self._body_timer = None

    # --- told by the exchange ---

    def begun(self) -> None:
        if self._exchange is not None:
            self._exchange.forget_request()

    def answered(self, *, keeps_alive: bool) -> None:
        self._let_go()
        if not keeps_alive or self._close:
            self._close = True
            self._loop.call_soon(self.force_close)  # behind what is still to be written in this turn
            return
        self._next_keepalive_close_time = self._loop.time() + self._keepalive_timeout
        if self._paused:  # one who asks again and again without reading is not answered without end
            self._pause()
            self.on_taken = self._go_on
        elif self._held:
            self._loop.call_soon(self._go_on)

    def give_up(self, asked: bytes, tried: Broken) -> None:
        self._let_go()
        if self.transport is not None and not self.transport.is_closing():
            self._tried = tried
            self._pass_on(asked)
            self._go_on()

    def take_tried(self) -> Broken | None:
        """The attempt that was made at the request that is made now; once."""
        tried, self._tried = self._tried, None
        return tried

    def _let_go(self) -> None:
        """The exchange is over."""
        self._exchange = None
        if self._over is not None and not self._over.done():
            self._over.set_result(None)

    # --- the rest of a connection's life ---

    def resume_writing(self) -> None:
        super().resume_writing()
        told, self.on_taken = self.on_taken, None
        if told is not None:
            told()

    def _process_keepalive(self) -> None:
        if self._exchange is None and self._coming is None:
            super()._process_keepalive()
        else:  # aiohttp's server takes it for idle
            seconds = max(self._keepalive_timeout, 1.0)
            self._keepalive_handle = self._loop.call_later(seconds, self._process_keepalive)

    async def shutdown(self, timeout: float | None = 15.0) -> None:  # noqa: ASYNC109 - as aiohttp's
        self._close = True
        if self._exchange is not None:
            self._over = self._loop.create_future()
            with suppress(TimeoutError):
                async with asyncio.timeout(timeout):
                    await self._over
        await super().shutdown(timeout)


def _size_of_request(data: bytes) -> int | None:
    """Head and body of the request that `data` begins with, in bytes; None: the head does not tell, or is not
    whole."""
    found = split(data)
    if found is not None:
        _, size, body_at = found
    else:
        size, body_at = 0, data.find(END_OF_HEAD) + len(END_OF_HEAD)
    head = data[:body_at].lower()
    is_clear = body_at >= len(END_OF_HEAD) and b"transfer-encoding" not in head
    if not is_clear or (found is None and b"content-length" in head):
        return None
    return body_at + size


class FrontServer(Server):
    """Takes the short way from when `express` is set."""

    express: Express | None = None

    def __init__(self, handler: Any, *, request_factory: Any, **options: Any) -> None:
        super().__init__(handler, request_factory=partial(_make_request, request_factory), **options)

    def __call__(self) -> web.RequestHandler:
        return Front(self, self.limits, loop=self._loop, **self._kwargs)


def _make_request(
    make: Callable[..., web.Request], message: Any, payload: Any, front: Front, *more: Any
) -> web.Request:
    """A failed attempt belongs to one request, however that is answered, also before it reaches the proxy.
    aiohttp's server was between two requests when it was given that one (`Front.data_received`), so that it
    is the one that is made next.
    """
    request = make(message, payload, front, *more)
    tried = front.take_tried()
    if tried is not None:
        request[TRIED] = tried
    return request


class Runner(web.AppRunner):
    """Runs an application behind such connections. `front` is what they belong to, once it is set up."""

    __slots__ = ("_limits", "front")
    front: FrontServer

    def __init__(self, app: web.Application, limits: Limits, **options: Any) -> None:
        super().__init__(app, keepalive_timeout=limits.idle_seconds, **options)
        self._limits = limits

    async def _make_server(self) -> FrontServer:
        made = await super()._make_server()
        server = self.front = FrontServer(
            made.request_handler,
            request_factory=with_known_versions(partial(_tidied, made.request_factory)),
            handler_cancellation=made.handler_cancellation,
            loop=asyncio.get_running_loop(),
            **made._kwargs,
        )
        server.limits = self._limits
        return server


def _tidied(make: Callable[..., web.BaseRequest], message: Any, *rest: Any) -> web.BaseRequest:
    """`make` a request of aiohttp's `message`, whose target is tidied first."""
    target = tidy(message.path)
    if target != message.path:
        path, _, query = target.partition("?")
        is_path = target.startswith("/")  # yarl would read an authority in "//v1"
        url = URL.build(path=path, query_string=query, encoded=True) if is_path else URL(target, encoded=True)
        message = message._replace(path=target, url=url)
    return make(message, *rest)
