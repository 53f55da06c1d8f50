"""The connection that an answer goes to: written to directly, also behind the back of aiohttp's server where
that has read the request, keeps the order and says when the client has left."""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import Callable
from enum import Enum
from typing import Final, Protocol, Self

import msgspec
from aiohttp import HttpVersion11, web
from aiohttp.abc import AbstractStreamWriter

from router.proxy.ask import RequestStats
from router.proxy.framing import Chunked, Framing
from router.proxy.heads import CHUNKS, Head

_LAST_CHUNK: Final = b"0\r\n\r\n"
_EARLY_HEAD: Final = (
    b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nCache-Control: no-cache\r\n"
    b"X-Accel-Buffering: no\r\n"
)
#: A client that leaves so much untaken is slow: nothing more is read for it until it has taken most of that.
HELD_BYTES: Final = 16 << 10
#: A closed connection says so with a reset, and not with what an end looks like.
_RESET: Final = struct.pack("ii", 1, 0)


class AlreadySentResponse(web.StreamResponse):
    """For aiohttp: an answer that has already been sent."""

    def __init__(self) -> None:
        super().__init__()
        self._keep_alive = True

    @property
    def prepared(self) -> bool:
        return True

    async def prepare(self, request: web.BaseRequest) -> None:
        return None

    async def write_eof(self, data: bytes = b"") -> None:
        return None

    def sent(self, status: int, *, keeps_alive: bool) -> None:
        self._set_status(status, None)
        self._keep_alive = keeps_alive


class _Mode(Enum):
    """How the body is framed for the client."""

    AS_IT_IS = "as it is"
    CHUNKS = "chunks"
    UNTIL_CLOSED = "until closed"


class Connected(Protocol):
    """Who is told by the transport how it fares."""

    @property
    def writing_paused(self) -> bool: ...


class Client(msgspec.Struct, eq=False):
    """One request's side of the answer. `more_head` are header lines of ours for every answer to it, `is_new`
    that it speaks HTTP/1.1.
    """

    _transport: asyncio.Transport
    _protocol: Connected
    _account: RequestStats
    _more_head: bytes = b""
    keeps_alive: bool = True
    _is_new: bool = True
    is_head_request: bool = False
    has_begun: bool = False
    is_early: bool = False
    status: int = 0
    _mode: _Mode = _Mode.AS_IT_IS

    # --- an answer ---

    def early_head(self) -> bytes:
        """Begin a stream of events before it is known what its child will say; it gets to say all but the
        head.
        """
        self.is_early = True
        self._begin(200)
        self._frame_anew()
        return _EARLY_HEAD + self._own_lines()

    def interim(self, head: Head) -> None:
        """An answer before the answer (1xx). The child's word that it wants the body is not for the client:
        we have it.
        """
        if self._is_new and not self.has_begun and head.status != 100:
            # Not counted: the answer itself has not begun.
            self._transport.write(b"HTTP/1.1 %d %b\r\n%b\r\n" % (head.status, head.reason, head.lines))

    def head(self, head: Head) -> bytes:
        """The child's head, as the client gets it."""
        self._begin(head.status)
        is_bodiless = self.is_head_request or head.status in (204, 304)
        if head.is_chunked:
            if not is_bodiless:
                self._frame_anew()
        elif head.length is None and not is_bodiless:
            self._mode, self.keeps_alive = _Mode.UNTIL_CLOSED, False
        is_usual = self.keeps_alive and self._is_new and not is_bodiless and not self._more_head
        if is_usual and self._account.action == "already_loaded":
            return head.warm
        lines = head.lines
        if head.is_chunked:
            lines += CHUNKS if is_bodiless and self._is_new and head.status != 204 else b""
        elif head.length is not None:
            lines += b"Content-Length: %d\r\n" % head.length
        return b"HTTP/1.1 %d %b\r\n%b" % (head.status, head.reason, lines) + self._own_lines()

    def framed(self, data: bytes, spans: list[tuple[int, int]], framing: Framing) -> bytes:
        """What to write for the `spans` of `data` that are body, and for the end, if this is it."""
        match self._mode:
            case _Mode.CHUNKS:
                parts = [b"%x\r\n%b\r\n" % (end - start, data[start:end]) for start, end in spans]
                if framing.is_over:
                    trailers = framing.trailers if isinstance(framing, Chunked) else b""
                    parts.append(b"0\r\n" + trailers + b"\r\n")
                return b"".join(parts)
            case _:
                if spans == [(0, len(data))]:
                    return data
                return b"".join([data[start:end] for start, end in spans])

    @property
    def takes_chunks(self) -> bool:
        return self._mode is _Mode.CHUNKS

    def say(self, event: bytes) -> None:
        """Something of our own, between two events of a stream that has begun."""
        self.write(b"%x\r\n%b\r\n" % (len(event), event) if self._mode is _Mode.CHUNKS else event)

    def end(self) -> None:
        """The stream is over, and complete as far as it goes."""
        if self._mode is _Mode.CHUNKS:
            self.write(_LAST_CHUNK)
        else:
            self.keeps_alive = False

    @property
    def can_be_told(self) -> bool:
        """Whether more than what the child announced can still be said."""
        return self._mode is not _Mode.AS_IT_IS

    def cut(self) -> None:
        """Nobody shall take what was sent for complete."""
        self.keeps_alive = False
        if self._mode is not _Mode.UNTIL_CLOSED:
            self._transport.close()  # what was written is still sent, but nothing that says "complete"
            return
        with_linger = self._transport.get_extra_info("socket")
        if with_linger is not None:
            with_linger.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
        self._transport.abort()

    # --- the connection ---

    def write(self, data: bytes) -> bool:
        """Whether it `is_full` now."""
        if not self._transport.is_closing():
            self._transport.write(data)
        return self._protocol.writing_paused

    def write_last(self, data: bytes) -> None:
        """The same; it is the end of the answer."""
        self.write(data)

    @property
    def is_full(self) -> bool:
        """Whether it takes more slowly than it is given."""
        return self._protocol.writing_paused

    def on_drain(self, told: Callable[[], object]) -> None:
        """Call `told` once, when it has taken most of what it was given; never, if it has left by then."""
        raise NotImplementedError

    def cancel_on_drain(self) -> None:
        """Nobody wants to be told any more."""
        raise NotImplementedError

    def _begin(self, status: int) -> None:
        self.has_begun, self.status = True, status

    def _frame_anew(self) -> None:
        self._mode = _Mode.CHUNKS if self._is_new else _Mode.UNTIL_CLOSED
        self.keeps_alive = self.keeps_alive and self._is_new

    def _own_lines(self) -> bytes:
        account = self._account
        framing = CHUNKS if self._mode is _Mode.CHUNKS else b""
        connection = b""
        if not self.keeps_alive:
            connection = b"Connection: close\r\n"
        elif not self._is_new:
            connection = b"Connection: keep-alive\r\n"
        return b"%bX-Router-Action: %b\r\nX-Router-Queue-Ms: %.0f\r\nX-Router-Load-Ms: %.0f\r\n%b%b\r\n" % (
            framing,
            account.action.encode(),
            account.queue_seconds * 1e3,
            account.load_seconds * 1e3,
            self._more_head,
            connection,
        )


class AiohttpClient(Client, kw_only=True):
    """The client of a request that aiohttp's server has read."""

    _writer: AbstractStreamWriter
    _draining: asyncio.Task[None] | None = None
    _told: Callable[[], object] | None = None

    @classmethod
    def of(cls, request: web.Request, account: RequestStats, more_head: bytes = b"") -> Self:
        """Raises ConnectionResetError."""
        if request.transport is None:
            raise ConnectionResetError("the client has left")
        request.transport.set_write_buffer_limits(HELD_BYTES)
        return cls(
            request.transport,
            request.protocol,
            account,
            more_head,
            request.keep_alive,
            request.version >= HttpVersion11,
            request.method == "HEAD",
            _writer=request.writer,
        )

    async def drain(self) -> None:
        await self._writer.drain()

    def on_drain(self, told: Callable[[], object]) -> None:
        self._told = told
        self._draining = asyncio.get_running_loop().create_task(self.drain(), name="drain")
        self._draining.add_done_callback(self._drained)

    def cancel_on_drain(self) -> None:
        self._told = None
        if self._draining is not None:
            self._draining.cancel()

    def _drained(self, draining: asyncio.Task[None]) -> None:
        told, self._told, self._draining = self._told, None, None
        if told is not None and not draining.cancelled() and draining.exception() is None:
            told()

    def _begin(self, status: int) -> None:
        super()._begin(status)
        self._writer.output_size += 1  # by which aiohttp tells that an answer has begun
