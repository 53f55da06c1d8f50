"""The requests in flight, counted, so that a shutdown can wait for them."""

from __future__ import annotations

import asyncio

from aiohttp import web

from router.api.route import Handler
from router.errors import ShuttingDown


class Requests:
    """`settled` is set when a shutdown need not wait any longer, or must not."""

    def __init__(self) -> None:
        self.count = 0
        self.is_draining = False
        self.is_refusing = False
        self.settled = asyncio.Event()

    def drain(self, *, refuse: bool = True) -> None:
        self.is_draining, self.is_refusing = True, refuse
        self._settle()

    def begun(self) -> None:
        self.count += 1

    def ended(self) -> None:
        self.count -= 1
        self._settle()

    def _settle(self) -> None:
        if self.is_draining and not self.count:
            self.settled.set()


REQUESTS = web.AppKey("requests", Requests)


@web.middleware
async def count_requests(request: web.Request, handler: Handler) -> web.StreamResponse:
    requests = request.app[REQUESTS]
    if requests.is_refusing:  # on a connection that was open before
        raise ShuttingDown("the router is shutting down", retry_after_seconds=5.0)
    requests.begun()
    try:
        return await handler(request)
    finally:
        requests.ended()
