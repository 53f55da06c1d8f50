"""A log that nobody reads: real pipes."""

from __future__ import annotations

import contextlib
import io
import logging
import os
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from router.cli.log_lines import BATCH, Lines, Unhurried, handler_for
from router.log_record import Lasting


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    ends = os.pipe()
    yield ends
    for end in ends:
        with contextlib.suppress(OSError):
            os.close(end)


def record(text: str) -> logging.LogRecord:
    return logging.LogRecord("router", logging.INFO, "", 0, text, None, None)


def read_until(end: int, wanted: bytes) -> bytes:
    data, deadline = b"", time.monotonic() + 20
    while wanted not in data and time.monotonic() < deadline:
        data += os.read(end, 1 << 16)
    return data


def test_lines_come_in_their_order(pipe):
    with open(pipe[1], "w", closefd=False) as stream:
        handler = handler_for(stream)
        for number in range(100):
            handler.emit(record(f"line {number}"))
        data = read_until(pipe[0], b"line 99\n")
    assert data.decode().splitlines() == [f"line {number}" for number in range(100)]


def test_what_comes_soon_after_a_line_is_written_in_one_go_and_a_warning_does_not_wait():
    class Stream(io.StringIO):
        flushed = 0

        def flush(self) -> None:
            self.flushed += 1

    stream = Stream()
    handler = Unhurried(stream)
    for number in range(1000):
        handler.emit(record(f"line {number}"))
    handler.emit(logging.LogRecord("router", logging.WARNING, "", 0, "the last", None, None))
    deadline = time.monotonic() + 20
    while "the last" not in stream.getvalue() and time.monotonic() < deadline:
        time.sleep(0.001)
    assert stream.getvalue().splitlines() == [*(f"line {number}" for number in range(1000)), "the last"]
    assert stream.flushed < 100


def test_a_reader_who_stands_still_holds_nobody_up_and_hears_how_much_he_missed(pipe):
    with open(pipe[1], "w", closefd=False) as stream:
        handler = Unhurried(stream, room=100)
        begun = time.monotonic()
        for _ in range(5000):  # of 100 bytes each: the pipe takes 64 KiB
            handler.emit(record("x" * 99))
        assert time.monotonic() - begun < 5
        os.set_blocking(pipe[0], True)
        # It is told as soon as there is room again, and that may be in what is read first.
        data = read_until(pipe[0], b"x" * 99)
        deadline = time.monotonic() + 20
        while b"lines of the log were lost" not in data and time.monotonic() < deadline:
            handler.emit(record("more"))
            data += os.read(pipe[0], 1 << 16)
    assert b"lines of the log were lost: nobody read them in time" in data


def test_the_end_waits_for_a_reader_but_not_for_one_who_is_gone(pipe):
    with contextlib.suppress(BrokenPipeError), open(pipe[1], "w", closefd=False) as stream:
        handler = Unhurried(stream)
        handler.emit(record("last words"))
        handler.flush()
        assert os.read(pipe[0], 100) == b"last words\n"
        os.close(pipe[0])
        handler.emit(record("to nobody"))
        begun = time.monotonic()
        handler.flush()
        assert time.monotonic() - begun < 5
        handler.emit(record("and again"))


def test_a_file_is_complete_at_the_end(tmp_path: Path):
    with (tmp_path / "log").open("w") as stream:
        handler = handler_for(stream)
        handler.emit(record("here"))
        handler.emit(record("and there"))
        handler.flush()
        assert (tmp_path / "log").read_text() == "here\nand there\n"


def test_what_nobody_can_flush_by_its_descriptor_is_written_at_once():
    stream = io.StringIO()
    handler_for(stream).emit(record("here"))
    assert stream.getvalue() == "here\n"


def test_a_line_is_as_logging_would_write_it():
    pattern = "%(asctime)s %(levelname)s %(name)s: %(message)s"
    ours, theirs = Lines(), logging.Formatter(pattern)
    for at in (1.0, 1.25, 1.999, 86_399.5, 86_400.0, 1.5):
        told = {"name": "router", "levelname": "INFO", "msg": "%d x", "args": (3,)}
        made = logging.makeLogRecord({**told, "created": at, "msecs": at % 1 * 1000})
        assert ours.format(made) == theirs.format(made)
    try:
        raise ValueError("broken")
    except ValueError:
        failed = logging.makeLogRecord({"msg": "no", "exc_info": sys.exc_info()})
    assert ours.format(failed) == theirs.format(failed)
    assert "ValueError: broken" in ours.format(failed)


class Told(Lasting):
    """Of which it is noted when it is put into words."""

    def __init__(self, number: int, at: float = 1.25) -> None:
        super().__init__(at)
        self.number = number
        self.asked_in = list[str]()

    def words(self) -> str:
        self.asked_in.append(threading.current_thread().name)
        return f"told {self.number}"


def test_what_lasts_keeps_its_place_whoever_puts_it_into_words(pipe):
    with open(pipe[1], "w", closefd=False) as stream:
        handler = handler_for(stream)
        handler.setFormatter(Lines())
        lasting = [Told(number) for number in range(300)]
        for one in lasting:
            handler.handle(one)
            if one.number % 50 == 0:
                handler.handle(record(f"usual {one.number}"))
        handler.flush()
        data = read_until(pipe[0], b"told 299\n")
    words = [line.split(": ")[1] for line in data.decode().splitlines()]
    expected = [[f"told {n}", f"usual {n}"] if n % 50 == 0 else [f"told {n}"] for n in range(300)]
    assert words == [line for lines in expected for line in lines]


def test_what_lasts_is_put_into_words_many_at_a_time_and_what_is_left_over_by_the_thread():
    class Stream(io.StringIO):
        is_there, is_read = threading.Event(), threading.Event()

        def write(self, text: str) -> int:
            self.is_there.set()
            assert self.is_read.wait(20)
            return super().write(text)

    stream, lasting = Stream(), [Told(number) for number in range(2 * BATCH + 1)]
    handler = Unhurried(stream)
    handler.setFormatter(Lines())
    handler.handle(record("the thread has it, and stands still"))
    assert stream.is_there.wait(20)
    for one in lasting:
        handler.handle(one)
        assert not one.asked_in or one.number % BATCH == BATCH - 1
    stream.is_read.set()
    handler.flush()
    assert stream.getvalue().endswith(f": told {2 * BATCH}\n")
    main = threading.main_thread().name
    assert [one.asked_in for one in lasting] == [[main]] * 2 * BATCH + [["log"]]


def test_one_that_cannot_be_put_into_words_keeps_no_other_back(pipe, monkeypatch):
    class Broken(Told):
        def words(self) -> str:
            raise ValueError("no words")

    monkeypatch.setattr(logging, "raiseExceptions", False)
    with open(pipe[1], "w", closefd=False) as stream:
        handler = handler_for(stream)
        for one in (Told(1), Broken(2), Told(3)):
            handler.handle(one)
        data = read_until(pipe[0], b"told 3\n")
    assert data.decode().splitlines() == ["told 1", "told 3"]


def test_a_line_of_the_access_log_that_is_an_object_stands_alone():
    class Bare(Told):
        bare = True

    assert Lines().format(Told(1)).endswith(" INFO router: told 1")
    assert Lines().format(Bare(2)) == "told 2"
