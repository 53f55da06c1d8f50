"""Brings the files of a model into the page cache before its llama-server asks for them.

A plan is known long before the child reads: a victim drains and ends, a process starts, a driver wakes. The
disk would be idle meanwhile, and it is the slowest part of a cold load."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Final

#: So much is read at a time: the kernel goes on by itself meanwhile.
PIECE_BYTES: Final = 1 << 20
#: So many places of a file are looked at to see whether it is in memory.
_SAMPLES: Final = 64


def read_ahead(files: Iterable[Path], is_wanted: Callable[[], bool]) -> int:
    """A thread's work. Returns how many bytes it read; a file that is in memory already is passed over. It
    ends early when nobody wants it any more, and at a file that cannot be read: who needs that says so.
    """
    done = 0
    for file in files:
        try:
            descriptor = os.open(file, os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            return done
        try:
            if not _is_there(descriptor):
                done += _read(descriptor, is_wanted)
        except OSError:
            return done
        finally:
            os.close(descriptor)
        if not is_wanted():
            break
    return done


def _is_there(descriptor: int) -> bool:
    """By samples: to read what is in memory would cost the processor as much as a load. Up to the first that
    is not: to be asked for one makes the kernel read it.
    """
    size, byte = os.fstat(descriptor).st_size, bytearray(1)
    try:
        for sample in range(_SAMPLES):
            os.preadv(descriptor, [byte], (size - 1) * sample // (_SAMPLES - 1), os.RWF_NOWAIT)
    except OSError:  # EAGAIN: it would have to be read; or this file system cannot say
        return False
    return True


def _read(descriptor: int, is_wanted: Callable[[], bool]) -> int:
    """Plain reads in a row, which the kernel runs ahead of. Asked for piece by piece with WILLNEED instead it
    took three times the processor time, and not less time, and all at once it could not be stopped.
    """
    os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_SEQUENTIAL)
    piece = bytearray(PIECE_BYTES)
    done = 0
    while is_wanted() and (size := os.readv(descriptor, [piece])):
        done += size
    return done


def total_bytes(files: Iterable[Path]) -> int:
    """Of those that are there."""
    total = 0
    for file in files:
        try:
            total += file.stat().st_size
        except OSError:
            continue
    return total
