"""The proxied requests in flight, by id: from the moment their model is known until their instance has ended
them."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from router.proxy.request import ProxiedRequest


class InFlight:
    def __init__(self) -> None:
        #: Oldest first.
        self.requests: dict[int, ProxiedRequest] = {}
        self._ids = itertools.count(1)

    def enter(self, request: ProxiedRequest) -> None:
        """The request has its id from here."""
        request.id = next(self._ids)
        self.requests[request.id] = request

    def find(self, id_: str) -> ProxiedRequest | None:
        is_number = id_.isdecimal() and len(id_) < 20
        return self.requests.get(int(id_)) if is_number else None

    def leave(self, request: ProxiedRequest) -> None:
        """The client has its answer, or has disconnected; the request stays for as long as its instance works
        on it."""
        ending = request.stats.ending
        if ending is None:
            del self.requests[request.id]
        else:
            ending.add_done_callback(lambda _: self.requests.pop(request.id))
