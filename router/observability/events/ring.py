"""The newest events as bytes, numbered: what a reader has not had yet is looked up, never queued for it, so
that a slow reader costs no memory, and one that was away goes on where it was."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Sequence


class Lost(Exception):
    """Some of what this reader has not had yet is not kept any more, or was told by another router."""


class Ring:
    """`epoch` names this ring: numbers of another one mean nothing here."""

    def __init__(self, size: int) -> None:
        self.epoch = f"{time.time_ns() // 1_000_000:x}"
        self.newest = 0
        self._kept: deque[bytes] = deque(maxlen=size)
        self._more = asyncio.Event()

    def append(self, data: bytes) -> None:
        """`data` is one line. Wakes every reader."""
        self.newest += 1
        self._kept.append(self.frame(data, self.newest))
        self._more.set()
        self._more = asyncio.Event()

    def frame(self, data: bytes, number: int) -> bytes:
        """As a server-sent event: who reads it to its end has had all up to `number`."""
        return b"id: %s-%d\ndata: %s\n\n" % (self.epoch.encode(), number, data)

    def after(self, number: int) -> Sequence[bytes]:
        """Everything newer, as it goes out. Raises Lost."""
        missing = self.newest - number
        if missing < 0 or missing > len(self._kept):
            raise Lost
        return [self._kept[at] for at in range(len(self._kept) - missing, len(self._kept))]

    def number_of(self, event_id: str) -> int:
        """The number in the id of an event. Raises Lost for one of another ring."""
        epoch, _, number = event_id.partition("-")
        if epoch != self.epoch or not (number.isascii() and number.isdigit() and len(number) < 19):
            raise Lost
        return int(number)

    async def more(self, number: int) -> None:
        """Return when there is something newer."""
        while self.newest <= number:
            await self._more.wait()
