"""A record of the log for what is told of every request: many lines in one record, put into words later.
Between the steps of requests that takes several times as long as for many lines in a row."""

from __future__ import annotations

import logging
import threading
from contextlib import suppress
from typing import Any, Final, Generic, TypeVar

#: So many lines are a full record.
FULL: Final = 32

One = TypeVar("One")
#: When it was, in Unix time, and the words.
Line = tuple[float, str]


class Together(logging.LogRecord, Generic[One]):
    """Lines that come one soon after another: who logs them goes on to `add` to the record until somebody
    reads it. For a handler that reads at once, as most do, each is a record by itself; one that writes later
    gets them together.

    What all of a kind have in common stands in its class. `bare`: the words are a line by themselves, before
    which nothing is written.
    """

    name = "router"
    levelno, levelname = logging.INFO, logging.getLevelName(logging.INFO)
    args = exc_info = exc_text = stack_info = None
    bare = False

    _closing: Final = threading.RLock()  # what is thrown away meanwhile may have something to log

    def __init__(self, at: float, first: One) -> None:
        """`at` is Unix time. Not what `logging` makes of one: see `getMessage`."""
        self.created = at
        self._kept = [first]
        self._is_closed = False
        self._count = 0  # of lines, once it is closed
        self._said: list[Line] | None = None

    def words(self, kept: list[One]) -> list[Line]:
        """The lines. From any thread."""
        raise NotImplementedError

    def add(self, one: One) -> bool:
        """One line more. False: it was closed, and another is to begin with this one. By one thread."""
        kept = self._kept
        kept.append(one)
        if self._is_closed and len(kept) > self.close():  # else it was added in the very moment
            kept.pop()
            return False
        if len(kept) >= FULL:
            self._say()
        return True

    def close(self) -> int:
        """Nothing is added from now on. Returns how many lines it has. From any thread."""
        with self._closing:
            if not self._is_closed:
                self._is_closed = True  # before they are counted: who does not see it yet is counted
                self._count = len(self._kept)
        return self._count

    def lines(self) -> list[Line]:
        """Closes it. From any thread."""
        if self._said is None:
            self._said = self.words(self._kept[: self.close()])
        return self._said

    def getMessage(self) -> str:  # noqa: N802
        """For handlers that know nothing of this: after it they find whatever a pattern may name."""
        words = "\n".join(words for _, words in self.lines())
        usual = logging.LogRecord(self.name, self.levelno, __file__, 0, words, None, None).__dict__
        told: dict[str, Any] = {"created": self.created, "msecs": self.created % 1 * 1e3}
        self.__dict__.update({**usual, **self.__dict__, **told})
        return words

    def _say(self) -> None:
        """Whoever brings the last line puts all into words: while another thread does it nobody runs."""
        with suppress(Exception):  # it fails again where it is written, and is told there
            self.lines()
