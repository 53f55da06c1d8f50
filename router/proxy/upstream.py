"""A connection to an instance, for one exchange after another: requests are written here, and a listener gets
what comes of the answer."""

from __future__ import annotations

import asyncio
import select
import socket
from contextlib import suppress
from typing import Final, Protocol, cast

from router.proxy.body import Body
from router.proxy.coalescer import WriteCoalescer

#: All connections read into one buffer: what was read is copied out before the next one reads. It bounds what
#: a client that does not read makes us hold.
_BUFFER: Final = memoryview(bytearray(1 << 15))
#: How often a child that has more connections waiting than it allows is tried again.
CONNECT_AGAIN_SECONDS: Final = 0.002
_NO_WAITING: Final = socket.SOCK_STREAM | socket.SOCK_NONBLOCK
#: A request up to this size is written with its head in one piece.
ONE_WRITE_BYTES: Final = 1 << 16
#: A child that sends more than this of an abandoned answer does not look whether its client is there: the
#: connection is aborted, so that the next write fails.
DISCARDED_BYTES: Final = 1 << 16


class ClosedEarly(Exception):
    """The child closed the connection in the middle of an exchange."""


class Listener(Protocol):
    """Who waits for an answer."""

    def received(self, data: bytes) -> None: ...
    def lost(self, error: Exception | None) -> None:
        """Nothing more will come. None: the child ended the connection properly."""


class _Abandoned:
    """Discards the rest of an answer, and resolves `ended` when the child closes the connection."""

    __slots__ = ("_discarded", "_ended", "_upstream")

    def __init__(self, upstream: Upstream, ended: asyncio.Future[None]) -> None:
        self._upstream = upstream
        self._ended = ended
        self._discarded = 0

    def received(self, data: bytes) -> None:
        self._discarded += len(data)
        if self._discarded > DISCARDED_BYTES:
            self._upstream.close()
            self.lost(None)

    def lost(self, error: Exception | None) -> None:
        if not self._ended.done():
            self._ended.set_result(None)


class Upstream(asyncio.BufferedProtocol):
    """One connection. `served` counts its exchanges."""

    __slots__ = (
        "_is_abandoned", "_is_full", "_is_lost", "_is_unwanted", "_listener", "_look", "_room", "_socket",
        "_transport", "_unsent", "served", "was_connected",
    )  # fmt: skip

    def __init__(self, own: socket.socket | None = None) -> None:
        """`own` None: it is not there yet."""
        self._socket = own
        self._look: select.poll | None = None
        self._unsent = b""
        self._is_unwanted = self._is_lost = self._is_abandoned = False
        self.was_connected = False
        self._transport: asyncio.Transport | None = None
        self._listener: Listener | None = None
        self._is_full = False
        self._room: asyncio.Future[None] | None = None
        self.served = 0

    # --- an exchange ---

    def begin(self, listener: Listener) -> None:
        """Of a connection that is lost by now the listener is told at once: nothing else would tell it."""
        assert self._listener is None, "one exchange at a time"
        self._listener = listener
        self.served += 1
        if self._is_lost:
            self._end(ConnectionResetError("it closed the connection before it was asked"))

    async def write_body(self, body: Body) -> None:
        """Hand over a body behind its head, which was written, as fast as the instance reads it. Returns
        early where the exchange ends before."""
        for piece in body.slices():
            while self._transport is None or self._is_full:
                if self._listener is None or self._is_lost:
                    return
                self._room = asyncio.get_running_loop().create_future()
                await self._room
            if self._listener is None:
                return
            self._transport.write(piece)

    def write(self, request: bytes, outbox: WriteCoalescer | None = None) -> None:
        """Hand over a short request, whole; also before the connection is there. With `outbox` a little
        later.
        """
        self._unsent = request
        if self._transport is None:
            self._send_before_the_loop_has_it()
        elif outbox is None:
            self._write_unsent()
        else:
            outbox.put(self._write_unsent)

    def _send_before_the_loop_has_it(self) -> None:
        """The loop takes some turns to take a connection over: the child need not wait for that."""
        if self._socket is not None:
            with suppress(OSError):  # the loop meets the same, and tells it
                self._unsent = self._unsent[self._socket.send(self._unsent) :]

    def _write_unsent(self) -> None:
        unsent, self._unsent = self._unsent, b""
        if unsent and self._transport is not None:
            self._transport.write(unsent)

    def hand_on(self, listener: Listener) -> None:
        """Another one listens from now on."""
        self._listener = listener

    def end(self) -> bool:
        """The answer is complete. Whether it may be asked again, as the kernel has all of the request: a
        child may answer before it has read that far.
        """
        self._listener = None
        if self._room is not None:
            self._make_room()
            return False
        transport = self._transport
        return transport is not None and not transport.get_write_buffer_size()

    def pause(self) -> None:
        if self._transport is not None:
            self._transport.pause_reading()

    def resume(self) -> None:
        if self._transport is not None:
            self._transport.resume_reading()

    def abandon(self) -> asyncio.Future[None] | None:
        """End an exchange whose answer is not wanted any more. Returns a future that resolves when the child
        has ended the request; None, with the connection closed, where the child does not work on one.

        Only our half of the connection is closed. llama-server takes that for a client that has left (it
        peeks for the end of what it is sent) and closes its half when its handler returns: after the work was
        cancelled, or was completed, where nothing cancels it. An aborted connection would not show when.
        """
        transport = self._transport
        has_all = not self._unsent and self._room is None  # of the request; else it has not begun it
        if transport is not None:
            has_all = has_all and not transport.is_closing() and not transport.get_write_buffer_size()
        if self._is_lost or self._is_unwanted or not has_all:
            self.close()
            return None
        ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._listener, self._is_abandoned = _Abandoned(self, ended), True
        if transport is not None:
            self._end_our_half(transport)
        return ended

    def _end_our_half(self, transport: asyncio.Transport) -> None:
        if not transport.is_reading():
            transport.resume_reading()
        transport.write_eof()

    def close(self) -> None:
        """At once: what is not written yet is not wanted any more."""
        self._listener = None
        self._unsent = b""
        self._is_unwanted = True
        self._make_room()
        if self._transport is not None:
            self._transport.abort()
            self._transport = None

    @property
    def is_open(self) -> bool:
        """As far as the loop has looked."""
        transport = self._transport
        return transport is not None and not transport.is_closing()

    def is_silent(self) -> bool:
        """Whether the child has neither closed the connection nor said anything: asked of the kernel, since
        the loop may not have looked yet.
        """
        if not self.is_open or self._socket is None:
            return False
        if self._look is None:
            self._look = select.poll()  # an object of ours: it takes no file
            self._look.register(self._socket, select.POLLIN)
        return not self._look.poll(0)

    # --- asyncio.BufferedProtocol ---

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's are not of that class
        self.was_connected = True
        if self._is_unwanted:
            self.close()
        elif self._is_abandoned:
            self._end_our_half(self._transport)
        else:
            self._write_unsent()
            self._make_room()

    def get_buffer(self, _: int) -> memoryview:
        return _BUFFER

    def buffer_updated(self, size: int) -> None:
        listener = self._listener
        if listener is not None:
            listener.received(_BUFFER[:size].tobytes())
        else:
            self.close()  # an answer to nothing

    def eof_received(self) -> bool:
        self._end(None)
        return False

    def connection_lost(self, error: Exception | None) -> None:
        self._transport, self._is_lost = None, True
        if isinstance(error, ConnectionError):
            self._hear_last_words()
        self._end(error)

    def pause_writing(self) -> None:
        self._is_full = True

    def resume_writing(self) -> None:
        self._is_full = False
        self._make_room()

    def _end(self, error: Exception | None) -> None:
        listener, self._listener = self._listener, None
        self._make_room()
        if self._unsent and error is None:  # as if it had met the close on its way
            error = ConnectionResetError("it closed the connection before it was asked")
        self._unsent = b""
        if listener is not None:
            listener.lost(error)

    def _hear_last_words(self) -> None:
        """A write failed. A child that answers and closes before it has read all of a request has been heard
        by the kernel, but the loop looks no more.
        """
        with suppress(OSError):
            while (
                self._listener is not None
                and self._socket is not None
                and (data := self._socket.recv(len(_BUFFER)))
            ):
                self._listener.received(data)

    def _make_room(self) -> None:
        room, self._room = self._room, None
        if room is not None and not room.done():
            room.set_result(None)


def open_upstream(path: str, request: bytes, listener: Listener) -> Upstream:
    """A new connection on which a short `request` is sent at once, before the loop has the connection: the
    instance works meanwhile. The listener's `lost` is called if the connection cannot be made.
    """
    own = _connected_at_once(path)
    upstream = Upstream(own)
    upstream.was_connected = own is not None
    upstream.begin(listener)
    upstream.write(request)
    opening = asyncio.get_running_loop().create_task(
        _open_later(upstream, path, own), name="connect to an instance"
    )
    _OPENING.add(opening)
    opening.add_done_callback(_OPENING.discard)
    return upstream


#: The loop itself keeps weak references only.
_OPENING: Final[set[asyncio.Task[None]]] = set()


async def _open_later(upstream: Upstream, path: str, own: socket.socket | None) -> None:
    try:
        if own is None:
            own = upstream._socket = await _connected(path)
        await asyncio.get_running_loop().create_unix_connection(lambda: upstream, sock=own)
    except OSError as error:
        upstream.connection_lost(error)


def _connected_at_once(path: str) -> socket.socket | None:
    """None: it has to be waited for, or it cannot be, which who waits finds out."""
    try:
        own = socket.socket(socket.AF_UNIX, _NO_WAITING)
    except OSError:
        return None
    try:
        own.connect(path)
    except OSError:
        own.close()
        return None
    return own


async def _connected(path: str) -> socket.socket:
    """Raises OSError. Waits for a child that has as many waiting as it allows: a Unix socket refuses then
    with EAGAIN, where one of TCP would wait.
    """
    own = socket.socket(socket.AF_UNIX, _NO_WAITING)
    try:
        while True:
            try:
                own.connect(path)
                return own
            except BlockingIOError:
                await asyncio.sleep(CONNECT_AGAIN_SECONDS)
    except BaseException:
        own.close()
        raise
