"""Short writes of one turn of the loop, done together at its end.

A write wakes the process that reads. Done one by one, between two requests' worth of the router's own work,
every write finds its reader asleep again: with 64 clients that cost a third of all that a request costs
(4,300 against 6,400 requests per second, measured by `bench/proxy`). With few requests at a time there is
nothing to gain, and a turn of the loop to lose."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final

#: With fewer requests at a time each writes at once.
MIN_REQUESTS: Final = 4


class WriteCoalescer:
    """What is put here is written in this turn of the loop, before whatever is scheduled from then on."""

    __slots__ = ("_last_writes", "_loop", "_writes", "requests")

    def __init__(self) -> None:
        #: Requests to instances, written first.
        self._writes: list[Callable[[], object]] = []
        #: The ends of answers.
        self._last_writes: list[tuple[asyncio.Transport, bytes]] = []
        #: None: no write is due.
        self._loop: asyncio.AbstractEventLoop | None = None
        #: How many requests are being answered; kept by `ProxiedRequest`.
        self.requests = 0

    def put(self, write: Callable[[], object]) -> None:
        """`write` must not fail."""
        if self._loop is None:
            self._schedule()
        self._writes.append(write)

    def write_last(self, transport: asyncio.Transport, data: bytes) -> None:
        """The end of an answer: in order with others that are put here for this client, and behind what was
        written to it."""
        if self._loop is None:
            self._schedule()
        self._last_writes.append((transport, data))

    def _schedule(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._loop.call_soon(self._flush)

    def _flush(self) -> None:
        writes, self._writes = self._writes, []
        last, self._last_writes = self._last_writes, []
        self._loop = None
        for write in writes:
            write()
        for transport, data in last:
            if not transport.is_closing():
                transport.write(data)
