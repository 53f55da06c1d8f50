"""How many streams of one kind there may be at a time, and how many of them may be one client's."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from aiohttp import web

from router.admin.client_address import client_of
from router.errors import ClientLimit, Unavailable

#: A client that is refused comes again after this time.
RETRY_SECONDS = 5.0


class Streams:
    """The streams of one kind that are open. `share` is the part of all that one client may have (0 to 1)."""

    def __init__(self, share: float) -> None:
        self._share = share
        self._held: Counter[str] = Counter()

    def __len__(self) -> int:
        return self._held.total()

    @contextmanager
    def hold(self, request: web.Request, most: int, full: str) -> Iterator[None]:
        """Around one stream. Raises Unavailable when there are `most`, where `full` completes "32 ...", and
        ClientLimit when this client has its share of them.
        """
        transport = request.transport
        client = client_of(transport.get_extra_info("peername") if transport is not None else None)
        if len(self) >= most:
            raise Unavailable(f"{most} {full}", retry_after_seconds=RETRY_SECONDS)
        own = max(1, int(most * self._share))
        if self._held[client] >= own:
            raise ClientLimit(
                f"{client} has {own} of the {most} streams of this kind, and no client may have more "
                "(server.client_share)",
                retry_after_seconds=RETRY_SECONDS,
            )
        self._held[client] += 1
        try:
            yield
        finally:
            self._held[client] -= 1
            if not self._held[client]:
                del self._held[client]
