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

from router.cli.log_lines import AsyncLogHandler, Lines, handler_for
from router.observability.log_record import FULL, Line, Together


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
    handler = AsyncLogHandler(stream)
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
        handler = AsyncLogHandler(stream, room=100)
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
        handler = AsyncLogHandler(stream)
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


class Told(Together[int]):
    def words(self, kept: list[int]) -> list[Line]:
        return [(1.25, f"told {number}") for number in kept]


class Teller:
    """Logs as the access log does."""

    def __init__(self, handler: logging.Handler, kind: type[Told] = Told) -> None:
        self.handler, self.kind = handler, kind
        self.records = list[Told]()

    def tell(self, number: int) -> None:
        if not self.records or not self.records[-1].add(number):
            self.records.append(self.kind(1.25, number))
            self.handler.handle(self.records[-1])


def test_lines_that_come_together_keep_their_place_among_others(pipe):
    with open(pipe[1], "w", closefd=False) as stream:
        handler = handler_for(stream)
        handler.setFormatter(Lines())
        teller = Teller(handler)
        for number in range(300):
            teller.tell(number)
            if number % 50 == 0:
                handler.handle(record(f"usual {number}"))
        handler.flush()
        data = read_until(pipe[0], b"told 299\n")
    words = [line.split(": ")[1] for line in data.decode().splitlines()]
    expected = [[f"told {n}", f"usual {n}"] if n % 50 == 0 else [f"told {n}"] for n in range(300)]
    assert words == [line for lines in expected for line in lines]
    assert len(teller.records) < 300 / 2


class FootprintStatus(io.StringIO):
    """Who reads it stands still until told to go on."""

    def __init__(self) -> None:
        super().__init__()
        self.is_there, self.is_read = threading.Event(), threading.Event()

    def write(self, text: str) -> int:
        self.is_there.set()
        assert self.is_read.wait(20)
        return super().write(text)


def test_lines_that_come_while_the_thread_writes_are_complete_at_the_end():
    stream = FootprintStatus()
    handler = AsyncLogHandler(stream)
    handler.setFormatter(Lines())
    handler.handle(record("the thread has it, and stands still"))
    assert stream.is_there.wait(20)
    teller = Teller(handler)
    for number in range(2 * FULL + 1):
        teller.tell(number)
    assert len(teller.records) == 3
    stream.is_read.set()
    handler.flush()
    lines = stream.getvalue().splitlines()[1:]
    assert [line.split(": ")[1] for line in lines] == [f"told {number}" for number in range(2 * FULL + 1)]
    teller.tell(1000)
    handler.flush()
    assert stream.getvalue().endswith(": told 1000\n")


def test_of_lines_that_come_together_no_more_are_kept_than_there_is_room_for():
    stream = FootprintStatus()
    handler = AsyncLogHandler(stream, room=100)
    handler.setFormatter(Lines())
    handler.handle(record("the thread has it, and stands still"))
    assert stream.is_there.wait(20)
    teller = Teller(handler)
    for number in range(5000):
        teller.tell(number)
    stream.is_read.set()
    handler.flush()
    told = [line for line in stream.getvalue().splitlines() if ": told" in line]
    assert 100 - FULL < len(told) < 100 + FULL
    assert f"({5000 - len(told)} lines of the log were lost" in stream.getvalue()


def test_one_that_cannot_be_put_into_words_keeps_no_other_back(pipe, monkeypatch):
    class Broken(Told):
        def words(self, kept: list[int]) -> list[Line]:
            raise ValueError("no words")

    monkeypatch.setattr(logging, "raiseExceptions", False)
    with open(pipe[1], "w", closefd=False) as stream:
        handler = handler_for(stream)
        handler.setFormatter(Lines())
        handler.handle(Told(1.25, 1))
        broken = Teller(handler, Broken)
        for number in range(FULL + 1):
            broken.tell(number)
        handler.handle(Told(1.25, 3))
        data = read_until(pipe[0], b"told 3\n")
    assert [line.split(": ")[1] for line in data.decode().splitlines()] == ["told 1", "told 3"]


def test_a_line_of_the_access_log_that_is_an_object_stands_alone():
    class Bare(Told):
        bare = True

    for kind, expected in ((Told, " INFO router: told 1"), (Bare, "told 1")):
        one = kind(1.25, 1)
        assert one.add(2)
        first, second = Lines().format(one).splitlines()
        assert first.endswith(expected) and second == first.replace("told 1", "told 2")
