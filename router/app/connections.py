"""The connections of clients: how many there may be, how long one may take to say what it wants, and a word
for each that is refused. What they then ask is aiohttp's and the application's business."""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any, Final, cast

import msgspec
from aiohttp import web
from aiohttp.http import HttpProcessingError

from router.errors import InvalidRequest, RequestTooSlow, RouterError, Unavailable
from router.proxy import error_body

log = logging.getLogger("router.app")

#: A refused client may read so long what it was told; a close at once could take the words from it.
LAST_WORD_SECONDS: Final = 2.0


class Malformed(InvalidRequest):
    """What was sent is no HTTP request, or one that two readers may understand in two ways."""

    code = "malformed_request"


@dataclass(frozen=True, slots=True)
class Limits:
    """`connections` 0: as many as come. `head_seconds` bounds the head of a request from its first byte, and
    the first byte of a new connection; `idle_seconds` the silence between two requests; `stall_seconds` how
    long a client may take nothing of an answer that is ready for it, 0: for ever.
    """

    connections: int = 0
    head_seconds: float = 30.0
    idle_seconds: float = 630.0
    stall_seconds: float = 300.0


class Connection(web.RequestHandler):
    """One client. Its first request, and each that has begun, must be said whole in time; and it must go on
    taking what it is answered.
    """

    __slots__ = ("_has_begun", "_head_timer", "_limits", "_requests_seen", "_stall_timer")

    def __init__(self, server: Server, limits: Limits, **options: Any) -> None:
        super().__init__(server, **options)
        self._limits = limits
        self._head_timer: asyncio.TimerHandle | None = None
        self._stall_timer: asyncio.TimerHandle | None = None
        self._requests_seen = 0
        self._has_begun = False  # to say a head

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        manager, limit = self._manager, self._limits.connections
        assert isinstance(manager, Server)
        if limit and manager.count >= limit:
            # uvloop's transports are no subclasses of asyncio's.
            self._refuse(cast(asyncio.Transport, transport), limit)
            return
        super().connection_made(transport)
        self._watch_head()

    def connection_lost(self, exc: BaseException | None) -> None:
        self._stop_watching()
        self._is_taking()
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
        why = exc.message if isinstance(exc, HttpProcessingError) else (message or "bad request")
        response = web.Response(
            body=msgspec.json.encode(error_body(Malformed(why.partition("\n")[0][:200]))),
            status=status,
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

    def _refuse(self, transport: asyncio.Transport, limit: int) -> None:
        self._force_close = True  # from now on nothing is read of it
        why = f"{limit} connections are open, and not more may be (server.connections_max)"
        transport.write(_answer(Unavailable(why, retry_after_seconds=1.0)))
        if transport.can_write_eof():
            transport.write_eof()
        self._loop.call_later(LAST_WORD_SECONDS, transport.abort)


class Server(web.Server):
    """As aiohttp's, but for what it makes of a connection."""

    limits: Limits = Limits()

    @property
    def count(self) -> int:
        return len(self._connections)

    def __call__(self) -> web.RequestHandler:
        return Connection(self, self.limits, loop=self._loop, **self._kwargs)


def _answer(error: RouterError) -> bytes:
    body = msgspec.json.encode(error_body(error))
    retry = "" if error.retry_after_seconds is None else f"Retry-After: {error.retry_after_seconds:.0f}\r\n"
    head = (
        f"HTTP/1.1 {error.status} {HTTPStatus(error.status).phrase}\r\nContent-Type: application/json\r\n"
        f"{retry}Content-Length: {len(body)}\r\nConnection: close\r\n\r\n"
    )
    return head.encode() + body
