"""A child's log: a file, never a pipe (whoever writes to a dead pipe dies), private, and bounded in size."""

from __future__ import annotations

import errno
import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

_logger = logging.getLogger("router.process")

#: What is no fault of the log's disk: files or memory run out, or a link that somebody has put there.
_NOT_OF_THE_DISK: Final = (errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ELOOP)
_TAIL_BYTES: Final = 64 << 10
_HEAD_BYTES: Final = 256 << 10
#: A line that is longer is shown without its middle, in characters: it becomes part of error messages.
_LINE_MAX: Final = 2000
#: So much of what was read last is looked for after a cut.
_MARK_BYTES: Final = 512
_TRIMMED: Final = b"[llama-router: the log was cut here to stay within its limit]\n"


@dataclass(frozen=True, slots=True)
class LogFile:
    """The child holds the file open for appending; we only look at it, and cut it above `max_bytes`."""

    path: Path
    max_bytes: int

    def open_for_child(self) -> int:
        """A descriptor to hand to the child; the caller closes it. Raises OSError.

        A model is worth more than its log: where a disk or a folder takes none it runs without one.
        """
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW
        try:
            return os.open(self.path, flags, 0o600)
        except OSError as error:
            if error.errno in _NOT_OF_THE_DISK:
                raise
            _logger.warning("%s cannot be written (%s): going on without it", self.path, error.strerror)
            return os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC)

    def size(self) -> int:
        """Bytes in the file now; 0 if there is none."""
        try:
            return self.path.stat().st_size
        except OSError:
            return 0

    def trim(self) -> None:
        """Keep the last quarter of `max_bytes` if the file is larger than that.

        The end is copied over the beginning, and what comes meanwhile behind it, before the file is cut: its
        lines stay in their order, and the child, which appends, goes on behind them. Only what it writes
        between the last look and the cut, two system calls, is lost, and what a child that writes faster than
        it can be copied has written beyond `max_bytes`: the price of a child that needs no reader.
        """
        if self.size() <= self.max_bytes:
            return
        with self.path.open("rb+", buffering=0) as file:
            fd = file.fileno()
            tail, end = _read_tail(fd, self.max_bytes // 4)
            kept = 0
            try:
                kept = _write_at(fd, _TRIMMED + _whole_lines(tail), 0)
                while kept < self.max_bytes and (more := os.pread(fd, _TAIL_BYTES, end)):
                    kept, end = _write_at(fd, more, kept), end + len(more)
            finally:  # also where the disk has no room for a copy: then there is some
                os.ftruncate(fd, kept)

    def find(self, texts: Sequence[str]) -> str | None:
        """The first line that has one of the texts, in the first 256 KiB: what a child said as it started."""
        try:
            with self.path.open("rb", buffering=0) as file:
                head = os.pread(file.fileno(), _HEAD_BYTES, 0)
        except OSError:
            return None
        lines = head.decode(errors="replace").splitlines()
        return next((line.strip() for line in lines if any(text in line for text in texts)), None)

    def tail(self, lines: int) -> tuple[str, ...]:
        """The last lines, as far as 64 KiB hold them, none longer than `_LINE_MAX` characters; empty if there
        is no file.
        """
        try:
            with self.path.open("rb", buffering=0) as file:
                data, size = _read_tail(file.fileno(), _TAIL_BYTES)
        except OSError:
            return ()
        if size > len(data):
            data = _whole_lines(data)
        found = data.decode(errors="replace").splitlines()[-lines:] if lines > 0 else []
        return tuple(_shortened(line) for line in found)


class LogReader:
    """Reads a log on, piece by piece, also across a cut: `lines` from its end first, then what comes."""

    def __init__(self, path: Path, lines: int) -> None:
        self._path = path
        self._lines: int | None = lines
        self._offset = 0
        self._last = b""

    def read(self) -> bytes:
        """What there is more than before, 64 KiB at most; empty if nothing, or if there is no file."""
        try:
            with self._path.open("rb", buffering=0) as file:
                data = self._first(file.fileno()) if self._lines is not None else self._next(file.fileno())
        except OSError:
            return b""
        self._last = (self._last + data)[-_MARK_BYTES:]
        return data

    def _first(self, fd: int) -> bytes:
        tail, self._offset = _read_tail(fd, _TAIL_BYTES)
        is_cut = self._offset > len(tail)
        whole = _whole_lines(tail) if is_cut else tail
        lines, self._lines = self._lines or 0, None
        return b"".join(whole.splitlines(keepends=True)[-lines:]) if lines > 0 else b""

    def _next(self, fd: int) -> bytes:
        size = os.fstat(fd).st_size
        if size < self._offset:  # it was cut: go on behind what was read last, if that is still there
            kept = os.pread(fd, size, 0)
            at = kept.rfind(self._last) if self._last else -1
            self._offset = at + len(self._last) if at >= 0 else 0
        data = os.pread(fd, _TAIL_BYTES, self._offset)
        self._offset += len(data)
        return data


def _whole_lines(tail: bytes) -> bytes:
    """Without the line of which it has only the end; but of a line longer than all of it that end is kept."""
    return tail.partition(b"\n")[2] or tail


def _shortened(line: str) -> str:
    if len(line) <= _LINE_MAX:
        return line
    half = _LINE_MAX // 2 - 2
    return f"{line[:half]} … {line[-half:]}"


def _write_at(fd: int, data: bytes, at: int) -> int:
    """Write all of it; returns where it ends."""
    while data:
        written = os.pwrite(fd, data, at)
        data, at = data[written:], at + written
    return at


def _read_tail(fd: int, length: int) -> tuple[bytes, int]:
    """The last bytes, and where they end."""
    size = os.fstat(fd).st_size
    data = os.pread(fd, length, max(0, size - length))
    return data, max(0, size - length) + len(data)
