"""Log lines on their way out, by a thread of their own: a terminal that was stopped, a pager, a journal that
hangs must hold up no request. Lines that find no room are counted, and their number is told later.
"""

from __future__ import annotations

import atexit
import logging
import os
import queue
import stat
import threading
from typing import Final, TextIO

ROOM: Final = 10_000
#: So long the end of the process waits for a reader.
LAST_WORDS_SECONDS: Final = 1.0


def handler_for(stream: TextIO) -> logging.Handler:
    """A file takes lines at once; whatever else stands behind `stream` may make a writer wait."""
    try:
        is_file = stat.S_ISREG(os.fstat(stream.fileno()).st_mode)
    except (OSError, ValueError):  # no descriptor behind it: a test reads it
        is_file = True
    return logging.StreamHandler(stream) if is_file else Unhurried(stream)


class Unhurried(logging.Handler):
    """Never waits. `room` lines may be on their way."""

    def __init__(self, stream: TextIO, room: int = ROOM) -> None:
        super().__init__()
        self._stream = stream
        self._lines: queue.Queue[str] = queue.Queue(room)
        self._lost = 0
        self._is_written = threading.Event()
        threading.Thread(target=self._write_for_ever, name="log", daemon=True).start()
        atexit.register(self.flush)

    def emit(self, record: logging.LogRecord) -> None:
        try:
            line = self.format(record)
        except Exception:  # noqa: BLE001 - as every handler of logging does
            self.handleError(record)
            return
        self._is_written.clear()
        try:
            self._lines.put_nowait(line)
        except queue.Full:
            self._lost += 1

    def flush(self) -> None:
        """Wait for the reader, but not for long."""
        if not self._lines.empty() or self._lines.unfinished_tasks:
            self._is_written.wait(LAST_WORDS_SECONDS)

    def _write_for_ever(self) -> None:
        while True:
            line = self._lines.get()
            lost, self._lost = self._lost, 0
            if lost:
                line = f"{line}\n({lost} lines of the log were lost: nobody read them in time)"
            try:
                self._stream.write(line + "\n")
                self._stream.flush()
            except (OSError, ValueError):  # nobody reads any more
                pass
            self._lines.task_done()
            if self._lines.empty():
                self._is_written.set()
