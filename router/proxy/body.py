"""The body of a request: held once, in the pieces in which it came.

It is held whole because it may have to be sent twice (to the instance that replaces one that died), and
because the last `model` in it counts, which may be its last word."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from typing import Final, Self

import msgspec
from aiohttp import web

from router.errors import BodyTooLarge, RequestTooSlow
from router.proxy.coding import Decoder, decoder_of

#: An instance is handed at most this much at a time.
SLICE_BYTES: Final = 1 << 18
#: Slower than any line that a conversation with a model is fun on; a body that drips is stopped by it.
BYTES_PER_SECOND: Final = 16 << 10


class Body(msgspec.Struct, eq=False):
    pieces: list[bytes] = []
    #: In bytes.
    size: int = 0

    @classmethod
    def of(cls, data: bytes) -> Self:
        return cls([data] if data else [], len(data))

    def add(self, piece: bytes) -> None:
        self.pieces.append(piece)
        self.size += len(piece)

    def joined(self) -> bytes:
        """All of the body as one piece; from then on it is held so."""
        if len(self.pieces) > 1:
            self.pieces = [b"".join(self.pieces)]
        return self.pieces[0] if self.pieces else b""

    def forget(self) -> None:
        """Drop the pieces: the traceback of an error keeps all it has passed through for a while."""
        self.pieces = []

    def slices(self) -> Iterator[bytes | memoryview]:
        for piece in self.pieces:
            if len(piece) <= SLICE_BYTES:
                yield piece
            else:
                view = memoryview(piece)
                for start in range(0, len(piece), SLICE_BYTES):
                    yield view[start : start + SLICE_BYTES]


@dataclass(frozen=True, slots=True)
class BodyLimits:
    """`seconds`: the most that any body may take to arrive, with one more for each `BYTES_PER_SECOND` of it.
    `max_bytes` of it are accepted, as sent and decoded; 0: any size."""

    seconds: float = 60.0
    max_bytes: int = 0

    def check(self, size: int, *, is_decoded: bool = False) -> None:
        """Raises BodyTooLarge."""
        if self.max_bytes and size > self.max_bytes:
            raise BodyTooLarge(self.max_bytes, is_decoded=is_decoded)


async def receive_body(
    read: Callable[[], Awaitable[bytes]],
    limits: BodyLimits,
    decoder: Decoder | None = None,
    each: Callable[[bytes], object] | None = None,
) -> Body:
    """A body whose pieces `read` returns as they come, b"" at its end; decoded, and shown to `each` piece by
    piece. Raises BodyTooLarge before more is read or decoded than accepted, RequestTooSlow, and
    InvalidRequest where the body cannot be decoded."""
    body, received, begun = Body(), 0, asyncio.get_running_loop().time()

    def add(piece: bytes) -> None:
        body.add(piece)
        limits.check(body.size, is_decoded=decoder is not None)
        if each is not None:
            each(piece)

    while True:
        try:
            async with asyncio.timeout_at(begun + limits.seconds + received / BYTES_PER_SECOND):
                piece = await read()
        except TimeoutError:
            seconds = asyncio.get_running_loop().time() - begun
            raise RequestTooSlow(
                f"{received} bytes of the body came in {seconds:.0f} s, and no end"
            ) from None
        if not piece:
            break
        received += len(piece)
        limits.check(received)
        if decoder is None:
            add(piece)
            continue
        for decoded in decoder.feed(piece):
            add(decoded)
            await asyncio.sleep(0)  # what came may stand for a thousand times as much
    if decoder is not None:
        decoder.end()
    return body


BODY = web.RequestKey("body", Body)
BODY_LIMITS = web.AppKey("body_limits", BodyLimits)


async def read_body(request: web.Request) -> Body:
    """The body of a request that aiohttp's server has read, as `receive_body`; the same each time. Raises
    also UnsupportedCoding."""
    known: Body | None = request.get(BODY)
    if known is not None:
        return known
    limits = request.app.get(BODY_LIMITS) or BodyLimits()
    decoder = decoder_of(request.headers, limits.max_bytes) if request.body_exists else None
    limits.check(request.content_length or 0)
    body = request[BODY] = await receive_body(request.content.readany, limits, decoder)
    return body
