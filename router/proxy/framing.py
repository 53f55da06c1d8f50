"""Where a child's body ends: counted by its length, in chunks, or with the connection.

Each is fed what came and says which parts of it are body (`spans`), how much of it belongs to the answer at
all, and whether the answer is complete."""

from __future__ import annotations

import re
from typing import Final, Protocol

import msgspec

Spans = list[tuple[int, int]]

#: The line before a chunk: its size in hex and maybe extensions, which nobody uses.
_SIZE_LINE: Final = re.compile(rb"([0-9A-Fa-f]{1,15})[ \t]*(?:;[^\r\n]*)?\r\n")
#: A longer line, or longer trailers, are no answer of a sane server.
LINE_LIMIT: Final = 16 << 10
_END: Final = b"0\r\n\r\n"
#: Fields that this router alone sets: who may read an answer in a browser, what became of a request here.
OWN_FIELDS: Final = (b"access-control-", b"x-router-")


#: What was once understood is looked up: events of a stream have a few sizes, which come again and again.
_SIZES: Final[dict[bytes, int]] = {}
_MOST_SIZES: Final = 4096
_SHORT_LINE: Final = 12


class Malformed(Exception):
    """What the child sent is no HTTP."""


class Framing(Protocol):
    #: Complete: nothing more belongs to the answer.
    is_over: bool
    #: Whether what was fed is, from its first byte to its last, also good for a client that is answered in
    #: chunks.
    is_verbatim: bool
    #: Whether the end of the connection is the end of the answer.
    ends_with_connection: bool

    def feed(self, data: bytes) -> tuple[Spans, int]:
        """The parts of `data` that are body, and how much of `data` belongs to the answer. Raises
        Malformed."""


class Counted:
    """So many bytes."""

    __slots__ = ("ends_with_connection", "is_over", "is_verbatim", "left")

    def __init__(self, length: int) -> None:
        #: In bytes.
        self.left = length
        self.is_over = not length
        self.is_verbatim = self.ends_with_connection = False

    def feed(self, data: bytes) -> tuple[Spans, int]:
        taken = min(self.left, len(data))
        self.left -= taken
        self.is_over = not self.left
        return [(0, taken)] if taken else [], taken


class UntilClosed:
    """Whatever comes, until nothing comes any more."""

    __slots__ = ("ends_with_connection", "is_over", "is_verbatim")

    def __init__(self) -> None:
        self.is_over = self.is_verbatim = False
        self.ends_with_connection = True

    def feed(self, data: bytes) -> tuple[Spans, int]:
        return [(0, len(data))], len(data)


class Chunked(msgspec.Struct, eq=False):
    """Chunks, a last one of size 0, and maybe trailers (kept in `trailers`, as they stood)."""

    trailers: bytes = b""
    is_over: bool = False
    is_verbatim: bool = False
    ends_with_connection: bool = False
    _left: int = 0  # of the data of a chunk
    _needs_crlf: bool = False  # at the end of a chunk
    _line: bytes = b""  # the beginning of a line that is not whole yet
    _in_trailers: bool = False

    def whole_chunk(self, data: bytes) -> int:
        """The size of the one chunk that `data` is, from its first byte to its last: what each event of a
        stream comes as. 0: it is something else, or not from its first byte; then `feed` it.
        """
        if self._left or self._line or self._needs_crlf or self._in_trailers:
            return 0
        end = data.find(b"\n", 0, _SHORT_LINE) + 1
        size = _SIZES.get(data[:end], 0) or _size_of(data[:end])
        return size if end + size + 2 == len(data) and data.endswith(b"\r\n") else 0

    def feed(self, data: bytes) -> tuple[Spans, int]:
        spans: Spans = []
        at, size = 0, len(data)
        # One or more whole chunks are what a stream of events consists of.
        is_verbatim = not (self._left or self._needs_crlf or self._line or self._in_trailers)
        if is_verbatim:
            while at < size and (line := _SIZE_LINE.match(data, at)) is not None:
                start = line.end()
                end = start + int(line[1], 16)
                if end == start or data[end : end + 2] != b"\r\n":
                    break
                spans.append((start, end))
                at = end + 2
            if at < size and data.startswith(_END, at):
                at += len(_END)
                self.is_over = True
            if at == size:
                self.is_verbatim = True
                return spans, at
        self.is_verbatim = False
        while at < size and not self.is_over:
            at = self._step(data, at, spans)
        return spans, at

    def _step(self, data: bytes, at: int, spans: Spans) -> int:
        """Take the next part of `data` from `at` on; returns where it ends."""
        if self._left:
            taken = min(self._left, len(data) - at)
            spans.append((at, at + taken))
            self._left -= taken
            self._needs_crlf = not self._left
            return at + taken
        # Lines are short, and most are whole: what is left of one is put before what came.
        end = data.find(b"\n", at)
        part = data[at:] if end < 0 else data[at : end + 1]
        self._line += part
        if len(self._line) + len(self.trailers) > LINE_LIMIT:
            raise Malformed("a line of its body never ends")
        if end < 0:
            if self._needs_crlf and self._line != b"\r":
                raise Malformed("a chunk is longer than it said")
            return len(data)
        line, self._line = self._line, b""
        if self._needs_crlf:
            if line != b"\r\n":
                raise Malformed("a chunk is longer than it said")
            self._needs_crlf = False
        elif self._in_trailers:
            self._trailer(line)
        else:
            self._size(line)
        return end + 1

    def _size(self, line: bytes) -> None:
        found = _SIZE_LINE.fullmatch(line)
        if found is None:
            raise Malformed(f"no size of a chunk: {line[:40]!r}")
        self._left = int(found[1], 16)
        self._in_trailers = not self._left

    def _trailer(self, line: bytes) -> None:
        if line == b"\r\n":
            self.is_over = True
        elif not line.endswith(b"\r\n") or b":" not in line:
            raise Malformed(f"no trailer: {line[:40]!r}")
        elif not line.lower().startswith(OWN_FIELDS):
            self.trailers += line


def _size_of(line: bytes) -> int:
    """0: it is not the line before a chunk."""
    found = _SIZE_LINE.fullmatch(line)
    size = int(found[1], 16) if found is not None else 0
    if size and len(_SIZES) < _MOST_SIZES:
        _SIZES[line] = size
    return size
