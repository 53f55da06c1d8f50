"""Content codings of a request's body (RFC 9110, 8.4), decoded as it arrives: llama-server reads none.

The output of each step is bounded, and so is that of the whole body: a few bytes may decode to gigabytes."""

from __future__ import annotations

import sys
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Final, Protocol

from multidict import CIMultiDictProxy

from router.errors import BodyTooLarge, InvalidRequest, UnsupportedCoding

try:
    if sys.version_info >= (3, 14):
        from compression import zstd
    else:
        from backports import zstd
except ImportError:  # a Python 3.14 that was built without libzstd
    zstd = None  # type: ignore[assignment]

#: The input and the output of one step, at most.
READ_BYTES: Final = 16 << 10
WRITTEN_BYTES: Final = 64 << 10
#: gzip and zstd data may be several streams in a row, as parallel compressors write them. Each takes a step.
MOST_MEMBERS: Final = 10_000
#: In one body; clients use one.
MOST_CODINGS: Final = 4
#: As RFC 9659 (3) bounds the window of zstd: 8 MiB, which each body being decoded may take of memory.
_ZSTD_WINDOW_LOG: Final = 23

_WRONG: Final[tuple[type[Exception], ...]] = (zlib.error,) if zstd is None else (zlib.error, zstd.ZstdError)


class _Member(Protocol):
    """One compressed stream. `decompress` returns at most `max_length` bytes; without `needs_input` a call
    with no data returns more."""

    @property
    def eof(self) -> bool: ...
    @property
    def needs_input(self) -> bool: ...
    @property
    def unused_data(self) -> bytes: ...
    def decompress(self, data: bytes, max_length: int, /) -> bytes: ...


class _Zlib:
    """zlib's streams with the interface of zstd's. `wbits` as in `zlib.decompressobj`."""

    def __init__(self, wbits: int) -> None:
        self._inner = zlib.decompressobj(wbits)
        self.needs_input = True

    @property
    def eof(self) -> bool:
        return self._inner.eof

    @property
    def unused_data(self) -> bytes:
        return self._inner.unused_data

    def decompress(self, data: bytes, max_length: int, /) -> bytes:
        found = self._inner.decompress(self._inner.unconsumed_tail + data, max_length)
        self.needs_input = not self._inner.unconsumed_tail and len(found) < max_length
        return found


class _Deflate:
    """zlib's format, as RFC 9110 (8.4.1.2) has it, or the bare stream that many send instead."""

    def __init__(self) -> None:
        self._head = b""
        self._inner: _Zlib | None = None

    @property
    def eof(self) -> bool:
        return self._inner is not None and self._inner.eof

    @property
    def unused_data(self) -> bytes:
        return self._inner.unused_data if self._inner is not None else b""

    @property
    def needs_input(self) -> bool:
        return self._inner is None or self._inner.needs_input

    def decompress(self, data: bytes, max_length: int, /) -> bytes:
        if self._inner is None:
            self._head += data
            if len(self._head) < 2:
                return b""
            is_zlib = self._head[0] & 0x0F == 8 and int.from_bytes(self._head[:2], "big") % 31 == 0
            self._inner, data = _Zlib(zlib.MAX_WBITS if is_zlib else -zlib.MAX_WBITS), self._head
        return self._inner.decompress(data, max_length)


def _gzip() -> _Member:
    return _Zlib(16 + zlib.MAX_WBITS)


def _zstd() -> _Member:
    return zstd.ZstdDecompressor(options={zstd.DecompressionParameter.window_log_max: _ZSTD_WINDOW_LOG})


_CODINGS: Final[Mapping[str, Callable[[], _Member]]] = {
    "gzip": _gzip,
    "deflate": _Deflate,
    **({} if zstd is None else {"zstd": _zstd}),
}
_ALIASES: Final = {"x-gzip": "gzip"}
#: For the header Accept-Encoding of an answer that refuses another.
ACCEPTED: Final = ", ".join(_CODINGS)


class Decoder:
    """Decodes one body. `limit` is the most bytes that each of its codings may decode to, 0: no limit."""

    def __init__(self, names: Iterable[str], limit: int) -> None:
        self._layers = [_Layer(name, _CODINGS[name], limit) for name in names]

    def feed(self, data: bytes) -> Iterator[bytes]:
        """Decode what has come. Raises InvalidRequest where that is wrong, BodyTooLarge."""
        yield from _through(self._layers, data)

    def end(self) -> None:
        """Raises InvalidRequest where more should have come."""
        for layer in self._layers:
            layer.end()


class _Layer:
    """One coding."""

    def __init__(self, name: str, make: Callable[[], _Member], limit: int) -> None:
        self._name, self._make, self._limit = name, make, limit
        self._member: _Member | None = None
        self._members = 0
        self._written = 0

    def feed(self, data: bytes) -> Iterator[bytes]:
        for start in range(0, len(data), READ_BYTES):
            yield from self._step(data[start : start + READ_BYTES])

    def end(self) -> None:
        if self._member is not None:
            raise InvalidRequest(f"the body cannot be decoded: its {self._name} data are cut short")

    def _step(self, data: bytes) -> Iterator[bytes]:
        while data or (self._member is not None and not self._member.needs_input):
            member = self._member = self._member or self._next()
            try:
                found = member.decompress(data, WRITTEN_BYTES)
            except _WRONG as error:
                raise InvalidRequest(
                    f"the body cannot be decoded: wrong {self._name} data ({error})"
                ) from error
            data = member.unused_data if member.eof else b""
            if member.eof:
                self._member = None
            self._written += len(found)
            if self._limit and self._written > self._limit:
                raise BodyTooLarge(self._limit, is_decoded=True)
            if found:
                yield found

    def _next(self) -> _Member:
        most = 1 if self._name == "deflate" else MOST_MEMBERS
        self._members += 1
        if self._members > most:
            raise InvalidRequest(
                f"the body cannot be decoded: more follows its {self._name} data (at most {most} in a row)"
            )
        return self._make()


def _through(layers: list[_Layer], data: bytes) -> Iterator[bytes]:
    """From the coding that was applied last to the first."""
    if not layers:
        yield data
        return
    for piece in layers[-1].feed(data):
        yield from _through(layers[:-1], piece)


def decoder_of(headers: CIMultiDictProxy[str], limit: int) -> Decoder | None:
    """None where the body is not encoded. Raises UnsupportedCoding."""
    given = ",".join(headers.getall("Content-Encoding", ()))
    names = [name for one in given.split(",") if (name := one.strip().lower()) not in ("", "identity")]
    names = [_ALIASES.get(name, name) for name in names]
    unknown = [name for name in names if name not in _CODINGS]
    if unknown:
        raise UnsupportedCoding(
            f"Content-Encoding {unknown[0][:40]!r} is not accepted: send {ACCEPTED}, or the body as it is"
        )
    if len(names) > MOST_CODINGS:
        raise UnsupportedCoding(f"at most {MOST_CODINGS} content codings are accepted, not {len(names)}")
    return Decoder(names, limit) if names else None
