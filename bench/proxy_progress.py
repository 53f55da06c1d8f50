"""What `bench/proxy` says on stderr while it measures: row by row, how long it takes, and who failed."""

from __future__ import annotations

import sys
import time


class Progress:
    """A line for each row of each round; on a terminal also whose turn it is."""

    def __init__(self) -> None:
        self.begun = time.monotonic()
        self.doing = "before the first round"

    def row(self, number: int, rounds: int, row: str) -> None:
        self.doing = f"round {number + 1} of {rounds}, {row}"
        self.say(self.doing)

    def turn(self, contestant: str) -> None:
        if sys.stderr.isatty():
            sys.stderr.write(f"\r\033[K      {contestant}")
            sys.stderr.flush()

    def say(self, text: str) -> None:
        seconds = round(time.monotonic() - self.begun)
        start = "\r\033[K" if sys.stderr.isatty() else ""
        sys.stderr.write(f"{start}{seconds // 60:2}:{seconds % 60:02} {text}\n")
        sys.stderr.flush()


def rough(seconds: float) -> str:
    return f"about {seconds / 60:.0f} minutes" if seconds >= 90 else f"about {max(1.0, seconds):.0f} seconds"
