"""One HTTP/1.1 connection of a client. It finds the head and the body of each request, and dispatches by
path: inference goes to `router.proxy`, whether its model is ready or not, everything else to the aiohttp
application.

One request is answered after the other; what comes meanwhile is held (pipelining)."""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Callable
from http import HTTPStatus
from time import monotonic
from typing import TYPE_CHECKING, Protocol, cast

import msgspec

from router.admin.client_address import client_of, shown_address
from router.errors import RequestTooSlow, RouterError
from router.http.application import ApplicationTransport
from router.http.head import Malformed, RequestHead, check_beginning, take_head
from router.proxy import error_body
from router.proxy.client import HELD_BYTES
from router.proxy.errors import error_headers
from router.proxy.framing import Chunked, Counted, Framing
from router.proxy.framing import Malformed as MalformedBody

if TYPE_CHECKING:
    from router.http.server import HttpServer

log = logging.getLogger("router.app")

#: What is held of further requests while one is being answered; then reading pauses.
HELD_REQUEST_BYTES = 64 << 10
#: After a connection's last answer the client may read for this long: a close at once, with bytes of the
#: client
#: unread, would be a reset, which can take the answer away from it (as nginx's `lingering_timeout`).
LINGER_SECONDS = 2.0


class CurrentRequest(Protocol):
    """The request that a connection is answering."""

    def client_lost(self) -> None: ...


class BodyReceiver(Protocol):
    """Takes the body of the current request."""

    #: Whether the body is wanted as it is framed.
    takes_framing: bool

    def body_received(self, data: bytes) -> None: ...
    def body_ended(self) -> None: ...
    def body_failed(self, error: RouterError) -> bool:
        """The framing of the body is wrong. Returns whether the client was told."""


class ClientConnection(asyncio.Protocol):
    """Made for each connection by `HttpServer`. `answered` ends the answer to one request."""

    def __init__(self, server: HttpServer) -> None:
        self._server = server
        self._loop = asyncio.get_running_loop()
        self.transport: asyncio.Transport | None = None
        #: The client's address, as logs show it.
        self.peer: str | None = None
        #: As which it is counted; None: it was refused.
        self._client: str | None = None
        #: What came behind the current request, or the beginning of a head.
        self._held = b""
        #: Of the current request's body; None: all of it has come.
        self._framing: Framing | None = None
        self._current: CurrentRequest | None = None
        self._body: BodyReceiver | None = None
        #: Whether the current request's answer is complete, and only its body is waited for.
        self._is_answered = False
        #: No further request is read.
        self._is_closing = False
        self._application: ApplicationTransport | None = None
        #: Runs while a head is waited for: the first, or one that has begun.
        self._timer: asyncio.TimerHandle | None = None
        #: When the last answer was complete, in monotonic time.
        self._idle_since = 0.0
        #: Closes a connection that is idle between two requests. One timer serves all requests of the
        #: connection.
        self._idle_timer: asyncio.TimerHandle | None = None
        self._stall_timer: asyncio.TimerHandle | None = None
        #: Why reading is paused.
        self._pauses: set[str] = set()
        self.writing_paused = False
        self.on_drain: Callable[[], object] | None = None

    # --- asyncio.Protocol ---

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        own = self.transport = cast(asyncio.Transport, transport)  # uvloop's are no subclasses of asyncio's
        name = transport.get_extra_info("peername")
        client = client_of(name)
        if (refusal := self._server.refusal_of(client)) is not None:
            self._is_closing = True
            self._write_error(refusal)
            self._linger()
            return
        self._client = client
        address = str(name[0]) if isinstance(name, tuple) else None if name is None else str(name)
        self.peer = shown_address(address)
        self._server.opened(self, client)
        own.set_write_buffer_limits(HELD_BYTES)
        self._timer = self._loop.call_later(self._server.limits.head_seconds, self._head_timed_out)

    def connection_lost(self, error: Exception | None) -> None:
        current, self._current, self._held, self.on_drain = self._current, None, b"", None
        self._is_closing = True
        self._stop_timer()
        self._stop_stall_timer()
        if self._idle_timer is not None:
            self._idle_timer.cancel()
        if current is not None:
            current.client_lost()
        if self._application is not None:
            self._application.connection_lost(error)
        self.transport = None
        if self._client is not None:
            self._server.closed(self, self._client)

    def data_received(self, data: bytes) -> None:
        if self._framing is not None:
            data = self._take_body(data)
        if not data or self._is_closing:
            return
        if self._current is not None:
            self._held += data
            if len(self._held) > HELD_REQUEST_BYTES:
                self.pause_reading("held")
        else:
            self._take_head(self._held + data if self._held else data)

    def pause_writing(self) -> None:
        self.writing_paused = True
        if self._server.limits.stall_seconds and self._stall_timer is None:
            self._watch_for_stall()
        if self._application is not None:
            self._application.pause_writing()

    def resume_writing(self) -> None:
        self.writing_paused = False
        self._stop_stall_timer()
        if self._application is not None:
            self._application.resume_writing()
        drained, self.on_drain = self.on_drain, None
        if drained is not None:
            drained()

    # --- a request ---

    def _take_head(self, data: bytes) -> None:
        """Begin the request that `data` begins with, as far as its head has come."""
        if data[0] < 32:  # RFC 9112, 2.2: empty lines before a request are skipped
            data = data.lstrip(b"\r\n")
        try:
            found = take_head(data)
            if found is None:
                self._held = data
                if data:
                    check_beginning(data)
                    self._watch_head()
                return
        except RouterError as error:
            self.refuse(error)
            return
        self._stop_timer()
        self._body = None
        head, length, body_at = found
        proxied = self._server.proxied
        known = proxied.find(head) if proxied is not None else None
        end = body_at + (length or 0)
        body: bytes | None = None
        if head.is_chunked:
            self._framing = Chunked()
        elif len(data) < end:
            self._framing = Counted(end - body_at)
        else:  # the usual case: all of it is here
            body = data[body_at:end]
        self._held = b"" if body is None else data[end:]
        if known is not None and proxied is not None:
            proxied.begin(known, head, self, length, body)
        else:
            self._pass_on(head, length, body)
        if body is None and len(data) > body_at:
            self.data_received(data[body_at:])

    def _pass_on(self, head: RequestHead, length: int | None, body: bytes | None) -> None:
        """Hand a request to the application."""
        if self._application is None:
            self._application = ApplicationTransport(self, self._server.make_protocol())
        self.serve(self._application, self._application)
        self._application.begin(head, length, body)

    def serve(self, request: CurrentRequest, body: BodyReceiver | None = None) -> None:
        """`request` is the current one from now on, and what is still to come of its body is for `body`."""
        self._current, self._body = request, body

    def _take_body(self, data: bytes) -> bytes:
        """Hand the body of the current request on; returns what comes behind it."""
        framing, body = self._framing, self._body
        assert framing is not None, "a body is expected"
        try:
            spans, taken = framing.feed(data)
        except MalformedBody as error:
            self._framing = None
            failure = Malformed(f"the body of the request is malformed: {error}")
            if body is None or not body.body_failed(failure):
                self._close_now()
            return b""
        if body is not None:
            for start, end in [(0, taken)] if body.takes_framing else spans:
                body.body_received(data[start:end])
        if framing.is_over:
            self._framing = None
            if body is not None:
                body.body_ended()
            if self._is_answered:
                self._is_answered, self._current = False, None
                self._stop_timer()
        return data[taken:]

    @property
    def left_bytes(self) -> float:
        """What is still to come of the current request's body; infinite where that is not known."""
        framing = self._framing
        if framing is None:
            return 0
        return framing.left if isinstance(framing, Counted) else math.inf

    def answered(self, *, keeps_alive: bool) -> None:
        """The answer to the current request is complete as far as it goes; without `keeps_alive` the
        connection is closed behind it."""
        if not keeps_alive or self._is_closing:
            self._current, self._is_closing = None, True
            self._loop.call_soon(self._close)  # behind what is still to be written in this turn
            return
        if self._framing is not None:
            self._is_answered = True
            self._watch_head()  # the rest of the body has as long as a head
            return
        self._current = None
        if (
            self.writing_paused
        ):  # a client that asks again and again without reading is not answered without end
            self.pause_reading("answers")
            self.on_drain = self._next
        elif self._held:
            self._loop.call_soon(self._next)
        else:
            self._idle_since = monotonic()
            if self._idle_timer is None:
                self._check_idle()

    def _next(self) -> None:
        """Go on with what has come behind the last request."""
        if self._is_closing or self._current is not None:
            return
        self.resume_reading("answers")
        self.resume_reading("held")
        held, self._held = self._held, b""
        if held:
            self._take_head(held)

    # --- reading ---

    def pause_reading(self, why: str) -> None:
        if not self._pauses and self.transport is not None and not self.transport.is_closing():
            self.transport.pause_reading()
        self._pauses.add(why)

    def resume_reading(self, why: str) -> None:
        if why in self._pauses:
            self._pauses.discard(why)
            if not self._pauses and self.transport is not None and not self.transport.is_closing():
                self.transport.resume_reading()

    # --- the end of a connection ---

    @property
    def is_proxying(self) -> bool:
        """Whether a request is being answered that is not the application's."""
        return self._current is not None and self._current is not self._application

    def close_when_idle(self) -> None:
        """Answer no further request."""
        if self._current is None:
            self._close_now()
        else:
            self._is_closing = True

    def close(self) -> None:
        """Close at once, also a connection whose request is being answered."""
        self._close_now()

    def abort(self) -> None:
        self._is_closing = True
        if self.transport is not None:
            self.transport.abort()

    def _close(self) -> None:
        if self._framing is not None:
            self._linger()
        else:
            self._close_now()

    def _close_now(self) -> None:
        self._is_closing = True
        if self.transport is not None:
            self.transport.close()

    def _linger(self) -> None:
        if self.transport is None or self.transport.is_closing():
            return
        if self.transport.can_write_eof():
            self.transport.write_eof()
        self._loop.call_later(LINGER_SECONDS, self.abort)

    def refuse(self, error: RouterError) -> None:
        """Answer what is no request, or no whole one, and close the connection."""
        self._stop_timer()
        self._is_closing = True
        self._write_error(error)
        self._linger()

    def _write_error(self, error: RouterError) -> None:
        if self.transport is None or self.transport.is_closing():
            return
        body = msgspec.json.encode(error_body(error))
        headers = {"Content-Type": "application/json", **error_headers(error), "Connection": "close"}
        lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
        head = f"HTTP/1.1 {error.status} {HTTPStatus(error.status).phrase}\r\n{lines}"
        self.transport.write(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)

    # --- timers ---

    def _watch_head(self) -> None:
        """A head that has begun must be whole in time."""
        if self._timer is None:
            self._timer = self._loop.call_later(self._server.limits.head_seconds, self._head_timed_out)

    def _head_timed_out(self) -> None:
        self._timer = None
        if self._is_answered:
            self._close_now()
        if self._current is not None or self._is_closing:
            return
        if self._held:
            seconds = self._server.limits.head_seconds
            self.refuse(RequestTooSlow(f"the head of a request must come within {seconds:g} s"))
        else:  # nothing is sent to a client that has sent nothing: a browser connects in advance
            self._close_now()

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _check_idle(self) -> None:
        """Close the connection if no request has come for `idle_seconds`. The timer is not set anew for each
        request, but when it has run down: 0.6 us less for each."""
        self._idle_timer = None
        seconds = self._server.limits.idle_seconds
        is_idle = self._current is None and not self._held
        left = self._idle_since + seconds - monotonic() if is_idle else seconds
        if left <= 0:
            self._close_now()
        elif not self._is_closing:
            self._idle_timer = self._loop.call_later(left, self._check_idle)

    def _watch_for_stall(self) -> None:
        assert self.transport is not None, "it has just been written to"
        left = self.transport.get_write_buffer_size()
        self._stall_timer = self._loop.call_later(self._server.limits.stall_seconds, self._check_stall, left)

    def _check_stall(self, left: int) -> None:
        self._stall_timer = None
        if self.transport is None or self.transport.is_closing():
            return
        if self.transport.get_write_buffer_size() < left:
            self._watch_for_stall()
            return
        # Its model is free again once the request ends.
        log.warning("%s reads nothing of its answer; its connection is closed", self.peer or "a client")
        self.transport.abort()

    def _stop_stall_timer(self) -> None:
        if self._stall_timer is not None:
            self._stall_timer.cancel()
            self._stall_timer = None
