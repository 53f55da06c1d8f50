"""Bringing files into the page cache: real files, and the kernel's own word for what is there."""

from __future__ import annotations

import ctypes
import mmap
import os
from pathlib import Path

import pytest

from router.hosts.read_ahead import PIECE_BYTES, read_ahead, total_bytes

SIZE = 48 * PIECE_BYTES + 4096


@pytest.fixture
def cold(tmp_path: Path) -> Path:
    """A file of which nothing is in memory."""
    file = tmp_path / "model.gguf"
    with open(file, "wb") as written:
        written.write(os.urandom(1 << 20) * (SIZE >> 20) + bytes(SIZE % (1 << 20)))
        written.flush()
        os.fsync(written.fileno())
        os.posix_fadvise(written.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    if resident_share(file) > 0.01:
        pytest.skip("this file system keeps its files in memory")
    return file


def resident_share(file: Path) -> float:
    """What mincore says of all pages."""
    size = file.stat().st_size
    pages = -(-size // mmap.PAGESIZE)
    with open(file, "r+b") as opened, mmap.mmap(opened.fileno(), size) as mapped:
        address = ctypes.addressof(ctypes.c_char.from_buffer(mapped))
        there = (ctypes.c_ubyte * pages)()
        assert ctypes.CDLL(None).mincore(ctypes.c_void_p(address), ctypes.c_size_t(size), there) == 0
        return sum(one & 1 for one in there) / pages


def test_a_file_is_in_memory_afterwards(cold: Path) -> None:
    assert read_ahead([cold], lambda: True) == SIZE
    assert resident_share(cold) == 1.0


def test_what_is_in_memory_is_not_read_again(cold: Path) -> None:
    read_ahead([cold], lambda: True)
    assert read_ahead([cold], lambda: True) == 0


def test_it_stops_when_nobody_wants_it_any_more(cold: Path) -> None:
    answers = iter([True, True, False, False])
    assert read_ahead([cold, cold], lambda: next(answers)) == 2 * PIECE_BYTES
    assert resident_share(cold) < 1.0  # the kernel was ahead by some of it


def test_files_are_taken_in_their_order_up_to_one_that_is_gone(cold: Path, tmp_path: Path) -> None:
    assert read_ahead([cold, tmp_path / "gone", cold], lambda: True) == SIZE


def test_only_files_that_are_there_are_counted(cold: Path, tmp_path: Path) -> None:
    assert total_bytes([cold, tmp_path / "gone", cold]) == 2 * SIZE
