"""Brings the files of a model into the page cache before its llama-server asks for them.

A plan is known long before the child reads: a victim drains and ends, a process starts, a driver wakes. The
disk would be idle meanwhile, and it is the slowest part of a cold load."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Final

#: So much is asked of the disk at a time: enough for it to be busy, little enough to stop soon.
PIECE_BYTES: Final = 16 << 20
#: Of one advice the kernel heeds only what a disk takes at once, and forgets the rest; this it always heeds.
_ADVICE_BYTES: Final = 128 << 10


def read_ahead(files: Iterable[Path], is_wanted: Callable[[], bool]) -> int:
    """A thread's work. Returns how many bytes it went through; it ends early when nobody wants it any more,
    and at a file that cannot be read: who needs that says so.
    """
    done = 0
    for file in files:
        try:
            descriptor = os.open(file, os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            return done
        try:
            done += _read(descriptor, is_wanted)
        except OSError:
            return done
        finally:
            os.close(descriptor)
        if not is_wanted():
            break
    return done


def _read(descriptor: int, is_wanted: Callable[[], bool]) -> int:
    """The kernel reads without copying to us. One piece is under way while the one before is awaited: asked
    for all at once, it could not be stopped.
    """
    size = os.fstat(descriptor).st_size
    offset = 0
    while offset < size and is_wanted():
        for start in range(offset, min(offset + PIECE_BYTES, size), _ADVICE_BYTES):
            os.posix_fadvise(descriptor, start, _ADVICE_BYTES, os.POSIX_FADV_WILLNEED)
        if offset:
            os.pread(descriptor, 1, offset - 1)  # waits for the last byte of the piece before
        offset += PIECE_BYTES
    return min(offset, size)


def total_bytes(files: Iterable[Path]) -> int:
    """Of those that are there."""
    total = 0
    for file in files:
        try:
            total += file.stat().st_size
        except OSError:
            continue
    return total
