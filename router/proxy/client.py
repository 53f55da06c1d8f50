"""What a client gets of its answer, framed for it, on the connection that its request came on."""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import Callable, Iterable
from enum import Enum
from http import HTTPStatus
from typing import Final, Protocol

import msgspec

from router.proxy.coalescer import MIN_REQUESTS, WriteCoalescer
from router.proxy.framing import Chunked, Framing
from router.proxy.heads import CHUNKS, Head
from router.proxy.info import RequestStats

_LAST_CHUNK: Final = b"0\r\n\r\n"
_EARLY_HEAD: Final = (
    b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nCache-Control: no-cache\r\n"
    b"X-Accel-Buffering: no\r\n"
)
#: A client that leaves more than this of its answer unread is slow: nothing more is read for it until it has
#: read
#: most of that.
HELD_BYTES: Final = 16 << 10
#: Closes a connection by a reset: an answer that is framed by the end of the connection would look complete.
_RESET: Final = struct.pack("ii", 1, 0)


class _Mode(Enum):
    """How the body is framed for the client."""

    AS_IT_IS = "as it is"
    CHUNKS = "chunks"
    UNTIL_CLOSED = "until closed"


class Connection(Protocol):
    """The connection that a request came on (router.http.connection)."""

    #: Called once when the client has read most of what it was sent; never, if it disconnects before.
    on_drain: Callable[[], object] | None

    @property
    def transport(self) -> asyncio.Transport | None: ...
    @property
    def writing_paused(self) -> bool: ...
    @property
    def peer(self) -> str | None: ...
    def answered(self, *, keeps_alive: bool) -> None:
        """The answer is over; without `keeps_alive` the connection is to be closed behind it."""


class ClientResponse(msgspec.Struct, eq=False):
    """`is_http_11`: the client speaks HTTP/1.1, and can read chunks. `more_head` are header lines of the
    router for every answer to this client (CORS)."""

    _transport: asyncio.Transport
    _connection: Connection
    _account: RequestStats
    _coalescer: WriteCoalescer
    keeps_alive: bool = True
    is_http_11: bool = True
    is_head_request: bool = False
    more_head: bytes = b""
    #: Whether `Head.warm` is what the client gets of a head where its model was ready: it speaks HTTP/1.1,
    #: keeps the connection, and there is no `more_head`.
    is_plain: bool = False
    #: Whether anything was sent.
    has_begun: bool = False
    #: Whether the head was sent before the instance had answered.
    is_early: bool = False
    #: 0 until the head is sent.
    status: int = 0
    _mode: _Mode = _Mode.AS_IT_IS

    # --- the answer of an instance ---

    def write_whole(self, head: Head, body: bytes) -> bool:
        """Write all of an answer at once, where what the client gets is `Head.warm`. Returns False, with
        nothing written, for any other client."""
        if not self.is_plain or self.has_begun or self._account.action != "already_loaded":
            return False
        self.has_begun, self.status = True, head.status
        if self._coalescer.requests >= MIN_REQUESTS:
            self._coalescer.write_last(self._transport, head.warm + body)
        elif not self._transport.is_closing():
            self._transport.write(head.warm + body)
        return True

    def early_head(self) -> bytes:
        """Begin a stream of events before the instance has answered; what it answers then follows without its
        head."""
        self.is_early = True
        self.has_begun, self.status = True, 200
        self._reframe()
        return _EARLY_HEAD + self._own_lines()

    def interim(self, head: Head) -> None:
        """Pass an informational answer (1xx) on, but for 100: the router has the body already."""
        if self.is_http_11 and not self.has_begun and head.status != 100:
            self._transport.write(b"HTTP/1.1 %d %b\r\n%b\r\n" % (head.status, head.reason, head.lines))

    def head(self, head: Head) -> bytes:
        """The head of an instance's answer, as the client gets it."""
        is_plain = self.is_plain and self._account.action == "already_loaded"
        self.has_begun, self.status = True, head.status
        is_bodiless = self.is_head_request or head.status in (204, 304)
        if head.is_chunked:
            if not is_bodiless:
                self._reframe()
        elif head.length is None and not is_bodiless:
            self._mode, self.keeps_alive = _Mode.UNTIL_CLOSED, False
        if is_plain and self.keeps_alive and not is_bodiless:
            return head.warm
        lines = head.lines
        if head.is_chunked:
            lines += CHUNKS if is_bodiless and self.is_http_11 and head.status != 204 else b""
        elif head.length is not None:
            lines += b"Content-Length: %d\r\n" % head.length
        return b"HTTP/1.1 %d %b\r\n%b" % (head.status, head.reason, lines) + self._own_lines()

    def framed(self, data: bytes, spans: list[tuple[int, int]], framing: Framing) -> bytes:
        """What to write for the `spans` of `data` that are body, and for the end, if `framing` is over."""
        if self._mode is _Mode.CHUNKS:
            parts = [b"%x\r\n%b\r\n" % (end - start, data[start:end]) for start, end in spans]
            if framing.is_over:
                trailers = framing.trailers if isinstance(framing, Chunked) else b""
                parts.append(b"0\r\n" + trailers + b"\r\n")
            return b"".join(parts)
        if spans == [(0, len(data))]:
            return data
        return b"".join([data[start:end] for start, end in spans])

    @property
    def takes_chunks(self) -> bool:
        return self._mode is _Mode.CHUNKS

    # --- what the router itself sends ---

    def send_event(self, event: bytes) -> None:
        """An event of the router, between two of a stream that has begun."""
        self.write(b"%x\r\n%b\r\n" % (len(event), event) if self._mode is _Mode.CHUNKS else event)

    def end(self) -> None:
        """End a stream, as complete."""
        if self._mode is _Mode.CHUNKS:
            self.write(_LAST_CHUNK)
        else:
            self.keeps_alive = False

    def begin(
        self, status: int, reason: bytes, headers: Iterable[tuple[str, str]], length: int | None
    ) -> None:
        """Begin an answer whose `headers` are complete but for the framing; `length` None: it is a stream."""
        self.has_begun, self.status = True, status
        lines = [f"{name}: {value}\r\n".encode("utf-8", "surrogateescape") for name, value in headers]
        if length is not None:
            lines.append(b"Content-Length: %d\r\n" % length)
        elif not self.is_head_request:
            self._reframe()
        lines.append(CHUNKS if self._mode is _Mode.CHUNKS else b"")
        self.write(
            b"HTTP/1.1 %d %b\r\n%b%b%b\r\n"
            % (status, reason, b"".join(lines), self.more_head, self._connection_line())
        )

    def send(self, status: int, headers: Iterable[tuple[str, str]], body: bytes) -> None:
        """A whole answer."""
        self.begin(status, HTTPStatus(status).phrase.encode(), headers, len(body))
        if not self.is_head_request:
            self.write(body)

    @property
    def can_add(self) -> bool:
        """Whether more than what the instance announced can still be sent."""
        return self._mode is not _Mode.AS_IT_IS

    def cut(self) -> None:
        """Close the connection so that the client does not take what it got for complete."""
        self.keeps_alive = False
        if self._mode is not _Mode.UNTIL_CLOSED:
            self._transport.close()  # what was written is still sent, but not the end of its framing
            return
        own = self._transport.get_extra_info("socket")
        if own is not None:
            own.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
        self._transport.abort()

    # --- the connection ---

    def write(self, data: bytes) -> bool:
        """Returns whether the client is behind now (`is_full`)."""
        if not self._transport.is_closing():
            self._transport.write(data)
        return self._connection.writing_paused

    def write_last(self, data: bytes) -> None:
        """Write the end of an answer, with those of other requests that end in this turn of the loop."""
        if self._coalescer.requests >= MIN_REQUESTS:
            self._coalescer.write_last(self._transport, data)
        else:
            self.write(data)

    @property
    def is_full(self) -> bool:
        """Whether the client reads more slowly than it is sent."""
        return self._connection.writing_paused

    def on_drain(self, drained: Callable[[], object] | None) -> None:
        """Call `drained` once when the client has caught up; None: no more."""
        self._connection.on_drain = drained

    async def drain(self) -> None:
        """Return when the client has caught up. Cancelled with its request where the client disconnects."""
        if self.is_full:
            drained = asyncio.get_running_loop().create_future()
            self.on_drain(lambda: None if drained.done() else drained.set_result(None))
            await drained

    def _reframe(self) -> None:
        self._mode = _Mode.CHUNKS if self.is_http_11 else _Mode.UNTIL_CLOSED
        self.keeps_alive = self.keeps_alive and self.is_http_11

    def _connection_line(self) -> bytes:
        if not self.keeps_alive:
            return b"Connection: close\r\n"
        return b"" if self.is_http_11 else b"Connection: keep-alive\r\n"

    def _own_lines(self) -> bytes:
        account = self._account
        return b"%bX-Router-Action: %b\r\nX-Router-Queue-Ms: %.0f\r\nX-Router-Load-Ms: %.0f\r\n%b%b\r\n" % (
            CHUNKS if self._mode is _Mode.CHUNKS else b"",
            account.action.encode(),
            account.queue_seconds * 1e3,
            account.load_seconds * 1e3,
            self.more_head,
            self._connection_line(),
        )
