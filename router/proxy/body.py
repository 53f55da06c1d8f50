"""The body of a request: held once, in the pieces in which it came.

It is held whole because it may have to be said twice (to the child that replaces one that died), and because
the last `model` in it counts, which may be its last word."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field
from typing import Final, Self

from aiohttp import web

from router.errors import RequestTooSlow
from router.proxy.coding import Decoder, decoder_of

#: A child is handed so much at a time.
SLICE_BYTES: Final = 1 << 18


@dataclass(slots=True, eq=False)
class Body:
    pieces: list[bytes] = field(default_factory=list)
    size: int = 0

    @classmethod
    def of(cls, data: bytes) -> Self:
        return cls([data] if data else [], len(data))

    def add(self, piece: bytes) -> None:
        self.pieces.append(piece)
        self.size += len(piece)

    def joined(self) -> bytes:
        """All of it as one; from then on it is held so."""
        if len(self.pieces) > 1:
            self.pieces = [b"".join(self.pieces)]
        return self.pieces[0] if self.pieces else b""

    def forget(self) -> None:
        """Nobody needs it any more; an error that is told keeps all it has passed through for a while."""
        self.pieces = []

    def slices(self) -> Iterator[bytes | memoryview]:
        for piece in self.pieces:
            if len(piece) <= SLICE_BYTES:
                yield piece
            else:
                view = memoryview(piece)
                for start in range(0, len(piece), SLICE_BYTES):
                    yield view[start : start + SLICE_BYTES]


BODY = web.RequestKey("body", Body)


@dataclass(frozen=True, slots=True)
class Pace:
    """How slowly a body may come: `seconds` for any, and one more for each `BYTES_PER_SECOND` of it."""

    seconds: float = 60.0


PACE = web.AppKey("pace", Pace)
#: Slower than any line that a conversation with a model is fun on; a body that drips is stopped by it.
BYTES_PER_SECOND: Final = 16 << 10


async def read_body(request: web.Request, each: Callable[[bytes], object] | None = None) -> Body:
    """All of the request's body, decoded; `each` is shown every piece as it comes. Raises
    HTTPRequestEntityTooLarge before more is read, or decoded, than `client_max_size` bytes, RequestTooSlow,
    UnsupportedCoding, and InvalidRequest where it cannot be decoded.
    """
    known: Body | None = request.get(BODY)
    if known is not None:
        return known
    limit, body = request.client_max_size, Body()
    decoder = decoder_of(request) if request.body_exists else None
    if limit and (declared := request.content_length) is not None and declared > limit:
        raise web.HTTPRequestEntityTooLarge(max_size=limit, actual_size=declared)

    def add(piece: bytes) -> None:
        body.add(piece)
        if limit and body.size > limit:
            raise web.HTTPRequestEntityTooLarge(max_size=limit, actual_size=body.size)
        if each is not None:
            each(piece)

    if decoder is not None:
        await _decode(request, decoder, add)
    elif request.content.is_eof():  # it came with its head, as most do, or there is none
        if piece := request.content.read_nowait():
            add(piece)
    elif request.can_read_body:
        async for piece in _in_time(request):
            add(piece)
    request[BODY] = body
    return body


async def _decode(request: web.Request, decoder: Decoder, add: Callable[[bytes], object]) -> None:
    received = 0
    async for received_piece in _in_time(request):
        received += len(received_piece)
        if request.client_max_size and received > request.client_max_size:
            raise web.HTTPRequestEntityTooLarge(max_size=request.client_max_size, actual_size=received)
        for piece in decoder.feed(received_piece):
            add(piece)
            await asyncio.sleep(0)  # what came may stand for a thousand times as much
    decoder.end()


async def _in_time(request: web.Request) -> AsyncIterator[bytes]:
    """The pieces of the body as they come. Raises RequestTooSlow."""
    if request.content.is_eof():  # as most are, that came with their head: there is nothing to wait for
        while piece := request.content.read_nowait():
            yield piece
        return
    pace = request.app.get(PACE) or Pace()
    begun, size = asyncio.get_running_loop().time(), 0
    while True:
        try:
            async with asyncio.timeout_at(begun + pace.seconds + size / BYTES_PER_SECOND):
                piece = await request.content.readany()
        except TimeoutError:
            seconds = asyncio.get_running_loop().time() - begun
            raise RequestTooSlow(f"{size} bytes of the body came in {seconds:.0f} s, and no end") from None
        if not piece:
            return
        size += len(piece)
        yield piece
