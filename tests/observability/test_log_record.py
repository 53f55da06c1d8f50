"""Many lines in one record, put into words late, also by handlers that know nothing of it."""

from __future__ import annotations

import io
import logging
import threading

import pytest

from router.cli.log_lines import Lines
from router.observability.log_record import FULL, Line, Together


class Told(Together[int]):
    name = "router.test"

    def __init__(self, at: float, first: int = 100) -> None:
        super().__init__(at, first)

    def words(self, kept: list[int]) -> list[Line]:
        return [(self.created, f"{one} % told") for one in kept]


def told(record: Told) -> list[str]:
    return [words for _, words in record.lines()]


@pytest.mark.parametrize("at", [1.0, 1.25, 1.999, 86_399.5])
def test_any_handler_writes_it_as_it_would_write_another(at: float):
    pattern = "%(asctime)s %(levelname)s %(name)s %(module)s %(lineno)d %(process)d: %(message)s"
    usual = logging.LogRecord("router.test", logging.INFO, "log_record.py", 0, "100 % told", None, None)
    usual.created, usual.msecs = at, at % 1 * 1e3
    written = []
    for record in (Told(at), usual):
        stream = io.StringIO()
        handler = logging.StreamHandler(stream)
        handler.setFormatter(logging.Formatter(pattern))
        handler.handle(record)
        written.append(stream.getvalue())
    assert written[0] == written[1]


def test_our_own_formatter_writes_it_as_any_other():
    usual = logging.LogRecord("router.test", logging.INFO, "", 0, "100 % told", None, None)
    told = Told(usual.created)
    assert Lines().format(told) == Lines().format(usual)


def test_what_is_added_before_somebody_reads_it_is_in_it_and_nothing_after():
    record = Told(1.0, 1)
    assert record.add(2) and record.add(3)
    assert record.close() == 3
    assert not record.add(4) and not record.add(5)
    assert record.close() == 3
    assert record._kept == [1, 2, 3], "nothing piles up that came too late"
    assert told(record) == ["1 % told", "2 % told", "3 % told"]


def test_who_reads_it_closes_it():
    record = Told(1.0, 1)
    assert told(record) == ["1 % told"]
    assert not record.add(2)
    assert told(record) == ["1 % told"]


def test_whoever_fills_it_puts_it_into_words():
    asked_in = list[str]()

    class Noted(Told):
        def words(self, kept: list[int]) -> list[Line]:
            asked_in.append(threading.current_thread().name)
            return super().words(kept)

    record = Noted(1.0, 0)
    for number in range(1, FULL):
        assert not asked_in
        assert record.add(number)
    assert asked_in == [threading.current_thread().name]
    assert not record.add(FULL)
    assert len(told(record)) == FULL and len(asked_in) == 1


def test_a_line_that_is_added_while_another_thread_closes_it_is_in_this_one_or_the_next():
    added = list[bool]()
    record = Told(1.0, 1)
    adding = threading.Thread(target=lambda: added.append(record.add(2)))

    class Counted(list[int]):
        """Another is added in the very moment in which they have been counted."""

        is_in = threading.Event()

        def __len__(self) -> int:
            count = super().__len__()
            if not self.is_in.is_set() and threading.current_thread() is not adding:
                adding.start()
                assert self.is_in.wait(20)
            return count

        def append(self, one: int) -> None:
            super().append(one)
            self.is_in.set()

    record._kept = Counted([1])
    closed = record.close()
    adding.join()
    assert (closed, added) == (1, [False])
    assert told(record) == ["1 % told"]
