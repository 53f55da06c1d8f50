"""The connections of clients: how many there may be, how long one may take to say what it wants, and a word
for each that is refused. What they then ask is aiohttp's and the application's business."""

from __future__ import annotations

import asyncio
import logging
import re
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any, Final, cast

import msgspec
from aiohttp import HttpVersion10, HttpVersion11, web
from aiohttp.http import HttpProcessingError, RawRequestMessage

from router.admin.client_address import client_of
from router.admin.errors import UNKNOWN_VERSION, VersionNotSupported
from router.errors import ClientLimit, InvalidRequest, RequestTooSlow, RouterError, Unavailable
from router.proxy import error_body

log = logging.getLogger("router.app")

#: The version in a request line that the parser refuses, as its message shows the line.
_VERSION: Final = re.compile(r" HTTP/(\d+(?:\.\d+)?)['\"]\n")
#: How HTTP/2 begins (RFC 9113, 3.4), as the parser's message names it.
_HTTP_2_PREFACE: Final = "Pause on PRI"
#: A refused client may read so long what it was told; a close at once could take the words from it.
LAST_WORD_SECONDS: Final = 2.0


class Malformed(InvalidRequest):
    """What was sent is no HTTP request, or one that two readers may understand in two ways."""

    code = "malformed_request"


@dataclass(frozen=True, slots=True)
class Limits:
    """`connections` 0: as many as come; `client_connections`: as many of them as one client may have, 0: all.
    `head_seconds` bounds the head of a request from its first byte, and
    the first byte of a new connection; `idle_seconds` the silence between two requests; `stall_seconds` how
    long a client may take nothing of an answer that is ready for it, 0: for ever.
    """

    connections: int = 0
    client_connections: int = 0
    head_seconds: float = 30.0
    idle_seconds: float = 630.0
    stall_seconds: float = 300.0


class Connection(web.RequestHandler):
    """One client. Its first request, and each that has begun, must be said whole in time; and it must go on
    taking what it is answered.
    """

    __slots__ = ("_client", "_has_begun", "_head_timer", "_limits", "_requests_seen", "_stall_timer")

    def __init__(self, server: Server, limits: Limits, **options: Any) -> None:
        super().__init__(server, **options)
        self._limits = limits
        self._client: str | None = None  # None: it was refused
        self._head_timer: asyncio.TimerHandle | None = None
        self._stall_timer: asyncio.TimerHandle | None = None
        self._requests_seen = 0
        self._has_begun = False  # to say a head

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        manager = self._manager
        assert isinstance(manager, Server)
        client = client_of(transport.get_extra_info("peername"))
        if (refusal := manager.refusal_of(client, self._limits)) is not None:
            # uvloop's transports are no subclasses of asyncio's.
            self._refuse(cast(asyncio.Transport, transport), refusal)
            return
        self._client = client
        manager.opened(client)
        super().connection_made(transport)
        self._watch_head()

    def connection_lost(self, exc: BaseException | None) -> None:
        self._stop_watching()
        self._is_taking()
        if self._client is not None:
            assert isinstance(self._manager, Server)
            self._manager.closed(self._client)
            self._client = None
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self._request_count != self._requests_seen:
            self._requests_seen = self._request_count
            self._stop_watching()
        elif self._is_waiting():
            self._has_begun = True
            if self._head_timer is None:
                self._watch_head()

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """Only what is no request comes here: the application answers for its own errors. It is nothing to
        fill a log with.
        """
        if status != HTTPStatus.BAD_REQUEST or request.writer.output_size > 0:
            return super().handle_error(request, status, exc, message)
        refusal = _refusal_of(
            exc.message if isinstance(exc, HttpProcessingError) else message or "bad request"
        )
        response = web.Response(
            body=msgspec.json.encode(error_body(refusal)),
            status=refusal.status,
            content_type="application/json",
        )
        response.force_close()
        return response

    # --- a head that does not come ---

    def _is_waiting(self) -> bool:
        """Nothing is being answered: what comes is the head of a request."""
        return self._waiter is not None and not self._waiter.done()

    def _watch_head(self) -> None:
        self._head_timer = self._loop.call_later(self._limits.head_seconds, self._give_up)

    def _stop_watching(self) -> None:
        self._has_begun = False
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _give_up(self) -> None:
        self._head_timer = None
        if self._is_waiting() and self.transport is not None:
            if self._has_begun:  # who has said nothing is not spoken to: a browser connects in advance
                why = f"the head of a request must come within {self._limits.head_seconds:g} s"
                self.transport.write(_answer(RequestTooSlow(why)))
            self.force_close()

    # --- an answer that is not taken ---

    def pause_writing(self) -> None:
        super().pause_writing()
        if self._limits.stall_seconds and self._stall_timer is None:
            self._watch_taking()

    def resume_writing(self) -> None:
        super().resume_writing()
        self._is_taking()

    def _watch_taking(self) -> None:
        assert self.transport is not None
        left = self.transport.get_write_buffer_size()
        self._stall_timer = self._loop.call_later(self._limits.stall_seconds, self._has_taken, left)

    def _is_taking(self) -> None:
        if self._stall_timer is not None:
            self._stall_timer.cancel()
            self._stall_timer = None

    def _has_taken(self, left: int) -> None:
        self._stall_timer = None
        if self.transport is None or self.transport.is_closing():
            return
        if self.transport.get_write_buffer_size() < left:
            self._watch_taking()
            return
        # Its model is free again: whoever answers it is told that it has left.
        log.warning("%s takes nothing of its answer and is let go", self.peername or "a client")
        self.transport.abort()

    # --- one too many ---

    def _refuse(self, transport: asyncio.Transport, refusal: RouterError) -> None:
        self._force_close = True  # from now on nothing is read of it
        transport.write(_answer(refusal))
        if transport.can_write_eof():
            transport.write_eof()
        self._loop.call_later(LAST_WORD_SECONDS, transport.abort)


class Server(web.Server):
    """As aiohttp's, but for what it makes of a connection."""

    limits: Limits = Limits()

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._count = 0
        self._by_client: Counter[str] = Counter()  # open connections, as `client_of` tells clients apart

    def refusal_of(self, client: str, limits: Limits) -> RouterError | None:
        """Why another connection of this client is one too many; None: it is not."""
        if limits.connections and self._count >= limits.connections:
            why = f"{limits.connections} connections are open, and not more may be (server.connections_max)"
            return Unavailable(why, retry_after_seconds=1.0)
        if limits.client_connections and self._by_client[client] >= limits.client_connections:
            why = (
                f"{client} has {limits.client_connections} connections open, and no client may have more "
                "(server.client_share of server.connections_max)"
            )
            return ClientLimit(why, retry_after_seconds=1.0)
        return None

    def opened(self, client: str) -> None:
        self._count += 1
        self._by_client[client] += 1

    def closed(self, client: str) -> None:
        self._count -= 1
        self._by_client[client] -= 1
        if not self._by_client[client]:
            del self._by_client[client]

    def __call__(self) -> web.RequestHandler:
        return Connection(self, self.limits, loop=self._loop, **self._kwargs)


def with_known_versions(make: Callable[..., web.BaseRequest]) -> Callable[..., web.BaseRequest]:
    """A request factory as `make`, for a server of HTTP/1.1 and HTTP/1.0. The parser accepts HTTP/0.9 and
    HTTP/2.0 in a request line as well, and aiohttp would answer under that version.
    """

    def make_request(message: RawRequestMessage, *more: Any) -> web.BaseRequest:
        if message.version in (HttpVersion11, HttpVersion10):
            return make(message, *more)
        request = make(message._replace(version=HttpVersion11, should_close=True), *more)
        request[UNKNOWN_VERSION] = f"{message.version.major}.{message.version.minor}"
        return request

    return make_request


def _refusal_of(why: str) -> RouterError:
    """`why` is what the parser says of what is no request."""
    if why.startswith(_HTTP_2_PREFACE):
        return VersionNotSupported("2.0")
    if (version := _VERSION.search(why)) is not None and version[1] not in ("1.0", "1.1"):
        return VersionNotSupported(version[1])
    return Malformed(why.partition("\n")[0][:200])


def _answer(error: RouterError) -> bytes:
    body = msgspec.json.encode(error_body(error))
    retry = "" if error.retry_after_seconds is None else f"Retry-After: {error.retry_after_seconds:.0f}\r\n"
    head = (
        f"HTTP/1.1 {error.status} {HTTPStatus(error.status).phrase}\r\nContent-Type: application/json\r\n"
        f"{retry}Content-Length: {len(body)}\r\nConnection: close\r\n\r\n"
    )
    return head.encode() + body
