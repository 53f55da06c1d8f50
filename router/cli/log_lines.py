"""Log lines on their way out, by a thread of their own: a terminal that was stopped, a pager, a journal that
hangs must hold up no request. Lines that find no room are counted, and their number is told later.
"""

from __future__ import annotations

import atexit
import logging
import os
import stat
import threading
import time
from collections import deque
from typing import Final, TextIO

ROOM: Final = 10_000
#: So long lines wait for one another.
TOGETHER_SECONDS: Final = 0.1
#: So long the end of the process waits for a reader.
LAST_WORDS_SECONDS: Final = 1.0


def handler_for(stream: TextIO) -> logging.Handler:
    """A file takes lines at once; whatever else stands behind `stream` may make a writer wait."""
    try:
        is_file = stat.S_ISREG(os.fstat(stream.fileno()).st_mode)
    except (OSError, ValueError):  # no descriptor behind it: a test reads it
        is_file = True
    return logging.StreamHandler(stream) if is_file else Unhurried(stream)


class Lines(logging.Formatter):
    """A record that is `bare` is a line by itself: an object of the access log. As one is written for every
    request, how a second is written is worked out once, and nothing is looked up in a pattern.
    """

    _second, _words = -1, ""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s %(name)s: %(message)s")

    def format(self, record: logging.LogRecord) -> str:
        if getattr(record, "bare", False):
            return record.getMessage()
        if record.exc_info or record.exc_text or record.stack_info:
            return super().format(record)
        return f"{self.formatTime(record)} {record.levelname} {record.name}: {record.getMessage()}"

    def formatTime(self, record: logging.LogRecord, datefmt: str | None = None) -> str:  # noqa: N802
        second = int(record.created)
        if second != self._second:
            self._words = time.strftime(datefmt or self.default_time_format, time.localtime(second))
            self._second = second
        return f"{self._words},{int(record.msecs):03d}"


class Unhurried(logging.Handler):
    """Never waits. `room` lines may be on their way. The first is written at once, what comes soon after it
    together: to wake the thread for each line takes longer than to write it. A warning does not wait.
    """

    def __init__(self, stream: TextIO, room: int = ROOM) -> None:
        super().__init__()
        self._stream, self._room = stream, room
        self._lines: deque[str] = deque()
        self._taken = self._written = self._lost = 0
        self._is_there, self._is_urgent = threading.Event(), threading.Event()
        self._progress = threading.Condition()
        threading.Thread(target=self._write_for_ever, name="log", daemon=True).start()
        atexit.register(self.flush)

    def emit(self, record: logging.LogRecord) -> None:
        try:
            line = self.format(record)
        except Exception:  # noqa: BLE001 - as every handler of logging does
            self.handleError(record)
            return
        if self._taken - self._written >= self._room:
            self._lost += 1
            return
        self._taken += 1
        self._lines.append(line)
        if not self._is_there.is_set():
            self._is_there.set()
        if record.levelno >= logging.WARNING:
            self._is_urgent.set()

    def flush(self) -> None:
        """Wait for the reader, but not for long."""
        wanted = self._taken
        if self._written < wanted:
            self._is_urgent.set()
            with self._progress:
                self._progress.wait_for(lambda: self._written >= wanted, LAST_WORDS_SECONDS)

    def _write_for_ever(self) -> None:
        while True:
            self._is_there.wait()
            self._is_there.clear()
            self._is_urgent.clear()
            self._write()
            self._is_urgent.wait(TOGETHER_SECONDS)

    def _write(self) -> None:
        lines = [self._lines.popleft() for _ in range(len(self._lines))]
        lost, self._lost = self._lost, 0
        if lost:
            lines.append(f"({lost} lines of the log were lost: nobody read them in time)")
        try:
            self._stream.write("\n".join([*lines, ""]))
            self._stream.flush()
        except (OSError, ValueError):  # nobody reads any more
            pass
        with self._progress:
            self._written += len(lines) - bool(lost)
            self._progress.notify_all()
