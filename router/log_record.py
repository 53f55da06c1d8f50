"""A record of the log for what is told of every request: cheap to make, and put into words later. Between
the steps of requests that takes several times as long as for many records in a row."""

from __future__ import annotations

import logging
from typing import Any


class Lasting(logging.LogRecord):
    """Says the same whenever it is asked: a handler may keep it, and write it later with others.

    What all of a kind have in common stands in its class. `bare`: the words are a line by themselves, before
    which nothing is written. `said` is its line, once a handler has made it.
    """

    name = "router"
    levelno, levelname = logging.INFO, logging.getLevelName(logging.INFO)
    args = exc_info = exc_text = stack_info = None
    bare = False
    said: str | None = None

    def __init__(self, at: float) -> None:
        """`at` is Unix time. Not what `logging` makes of one: see `getMessage`."""
        self.created = at

    def words(self) -> str:
        """The line."""
        raise NotImplementedError

    def getMessage(self) -> str:  # noqa: N802
        """For handlers that know nothing of this: after it they find whatever a pattern may name."""
        words = self.words()
        usual = logging.LogRecord(self.name, self.levelno, __file__, 0, words, None, None).__dict__
        told: dict[str, Any] = {"created": self.created, "msecs": self.created % 1 * 1e3}
        self.__dict__.update({**usual, **self.__dict__, **told})
        return words
