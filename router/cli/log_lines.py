"""Log lines on their way out, by a thread of their own: a terminal that was stopped, a pager, a journal or a
disk that hangs must hold up no request. Lines that find no room are counted, and their number is told later.
"""

from __future__ import annotations

import atexit
import logging
import threading
from collections import deque
from functools import lru_cache
from time import localtime, strftime
from typing import Any, Final, TextIO, TypeAlias

from router.observability.log_record import Together

ROOM: Final = 10_000
#: So long lines wait for one another.
TOGETHER_SECONDS: Final = 0.1
#: So long the end of the process waits for a reader.
LAST_WORDS_SECONDS: Final = 1.0

#: To write a number with noughts before it takes as long as all the rest of a line.
_THOUSANDTHS: Final = tuple(f"{number:03d}" for number in range(1000))
#: As it is written; lines to which others are added, maybe; or to be told that all before it is written.
_Line: TypeAlias = str | Together[Any] | threading.Event


def handler_for(stream: TextIO) -> logging.Handler:
    """Whatever stands behind `stream` may make a writer wait; where no descriptor does, a test reads it."""
    try:
        stream.fileno()
    except (OSError, ValueError):
        return logging.StreamHandler(stream)
    return AsyncLogHandler(stream)


class Lines(logging.Formatter):
    """As a line of the access log is written for every request, how a second is written is worked out once,
    and nothing is looked up in a pattern. From any thread.
    """

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s %(name)s: %(message)s")

    def format(self, record: logging.LogRecord) -> str:
        if isinstance(record, Together):
            return self._together(record)
        if record.exc_info or record.exc_text or record.stack_info:
            return super().format(record)
        return f"{self.formatTime(record)} {record.levelname} {record.name}: {record.getMessage()}"

    def formatTime(self, record: logging.LogRecord, datefmt: str | None = None) -> str:  # noqa: N802
        return f"{_second(int(record.created))},{int(record.msecs):03d}"

    def _together(self, record: Together[Any]) -> str:
        if record.bare:
            return "\n".join([words for _, words in record.lines()])
        kind = f"{record.levelname} {record.name}:"
        lines = record.lines()
        return "\n".join(
            [f"{_second(int(at))},{_THOUSANDTHS[int(at % 1 * 1e3)]} {kind} {words}" for at, words in lines]
        )


@lru_cache(maxsize=4)
def _second(at: int) -> str:
    """As logging writes it, in local time."""
    return strftime(logging.Formatter.default_time_format, localtime(at))


class AsyncLogHandler(logging.Handler):
    """Never waits. `room` lines may be on their way. The first is written at once, what comes soon after it
    together: to wake the thread for each line takes longer than to write it. A warning does not wait.
    """

    def __init__(self, stream: TextIO, room: int = ROOM) -> None:
        super().__init__()
        self._stream, self._room = stream, room
        self._lines: deque[_Line] = deque()
        self._last: Together[Any] | None = None  # to which others are added, maybe
        self._put_in = self._written = 0  # so many lines so far, all that are closed
        self._lost = 0
        self._is_awake = False  # the thread has still to look at the lines
        self._is_there, self._is_urgent = threading.Event(), threading.Event()
        threading.Thread(target=self._write_for_ever, name="log", daemon=True).start()
        atexit.register(self.flush)

    def emit(self, record: logging.LogRecord) -> None:
        self._close_last()
        if self._put_in - self._written >= self._room:
            self._lost += 1
            if isinstance(record, Together):
                record.close()
        elif isinstance(record, Together):
            self._last = record
            self._put(record)
        else:
            try:
                self._put(self.format(record))
            except Exception:  # noqa: BLE001 - as every handler of logging does
                self.handleError(record)
                return
        if record.levelno >= logging.WARNING:
            self._is_urgent.set()

    def flush(self) -> None:
        """Wait for the reader, but not for long."""
        written = threading.Event()
        self._lines.append(written)
        self._wake()
        self._is_urgent.set()
        written.wait(LAST_WORDS_SECONDS)

    def _put(self, line: str | Together[Any]) -> None:
        self._lines.append(line)
        self._put_in += 1
        if not self._is_awake:
            self._wake()

    def _close_last(self) -> None:
        """What comes now stands behind it."""
        if self._last is not None:
            self._put_in += self._last.close() - 1
            self._last = None

    def _wake(self) -> None:
        self._is_awake = True
        self._is_there.set()

    def _write_for_ever(self) -> None:
        while True:
            self._is_there.wait()
            self._is_there.clear()
            self._is_urgent.clear()
            self._is_awake = False  # behind what it stands for: who wakes us now is heard
            self._write()
            self._is_urgent.wait(TOGETHER_SECONDS)

    def _write(self) -> None:
        taken = [self._lines.popleft() for _ in range(len(self._lines))]
        lines, awaited, count = [], [], 0
        for line in taken:
            match line:
                case str():
                    lines.append(line)
                    count += 1
                case Together():
                    count += line.close()
                    try:
                        lines.append(self.format(line))
                    except Exception:  # noqa: BLE001 - as every handler of logging does
                        self.handleError(line)
                case _:
                    awaited.append(line)
        lost, self._lost = self._lost, 0
        if lost:
            lines.append(f"({lost} lines of the log were lost: nobody read them in time)")
        try:
            self._stream.write("\n".join([*lines, ""]))
            self._stream.flush()
        except (OSError, ValueError):  # nobody reads any more
            pass
        self._written += count
        for written in awaited:
            written.set()
