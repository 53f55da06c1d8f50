"""Connections kept for the next request to the same child.

llama-server closes a kept connection after 100 requests and after 5 s of idleness, and after every streamed
answer, whatever that promised. So one is used again only when its last answer was counted and promised it,
for less than half of the promised time, for fewer than 100 requests, and only after the kernel was asked
whether it is still open, but where it was used a moment ago. A request that meets the close all the same gets
a reset, which proves that the child has not read all of it: `Proxy` then says it once more on a new
connection."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from time import monotonic
from typing import Final

from router.proxy.upstream import Upstream

#: llama-server ends a connection with its 100th answer.
MOST_SERVED: Final = 95
#: Of the time that the child promised, and never more than so many seconds.
SHARE: Final = 0.4
LONGEST_SECONDS: Final = 2.0
#: One that was used so short a time ago is taken for open.
JUST_NOW_SECONDS: Final = 0.01
#: So many of one child are kept: each occupies one of its threads.
MOST_KEPT: Final = 64


class IdleConnections:
    """The idle connections of all children, by socket. The one used last is used next."""

    def __init__(self) -> None:
        self._kept: defaultdict[str, list[tuple[float, float, Upstream]]] = defaultdict(list)
        self._sweep: asyncio.TimerHandle | None = None
        self._is_closed = False

    def take(self, path: str, now: float) -> Upstream | None:
        """`now` is monotonic time."""
        kept = self._kept.get(path)
        if not kept:
            return None
        while kept:
            since, until, upstream = kept.pop()
            if now < since + JUST_NOW_SECONDS:
                if upstream.is_open:
                    return upstream
            elif now < until and upstream.is_silent():
                return upstream
            upstream.close()
        return None

    def put(self, path: str, upstream: Upstream, promised_seconds: float, now: float) -> None:
        """Keep it, or close it; one that was closed meanwhile is found out when it is to be used again."""
        if promised_seconds <= 0 or upstream.served >= MOST_SERVED or self._is_closed:
            upstream.close()
            return
        kept = self._kept[path]
        if len(kept) >= MOST_KEPT:
            kept.pop(0)[2].close()
        kept.append((now, now + min(LONGEST_SECONDS, SHARE * promised_seconds), upstream))
        if self._sweep is None:
            loop = asyncio.get_running_loop()
            self._sweep = loop.call_later(LONGEST_SECONDS, self._close_expired)

    def close(self) -> None:
        """From then on nothing is kept."""
        self._is_closed = True
        if self._sweep is not None:
            self._sweep.cancel()
            self._sweep = None
        for kept in self._kept.values():
            for _, _, upstream in kept:
                upstream.close()
        self._kept.clear()

    def __len__(self) -> int:
        return sum(map(len, self._kept.values()))

    def _close_expired(self) -> None:
        loop, now = asyncio.get_running_loop(), monotonic()
        for path, kept in list(self._kept.items()):
            for _, until, upstream in kept:
                if until <= now:
                    upstream.close()
            kept[:] = [one for one in kept if one[1] > now]
            if not kept:
                del self._kept[path]
        self._sweep = loop.call_later(LONGEST_SECONDS, self._close_expired) if self._kept else None
