"""The requests in flight, counted, so that a shutdown can wait for them; but for those that never end."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from aiohttp import web

from router.admin.route import ENDLESS, Handler
from router.errors import ShuttingDown


class Requests:
    """`settled` is set when a shutdown need not wait any longer, or must not."""

    def __init__(self) -> None:
        self.count = 0
        self.is_draining = False
        self.is_refusing = False
        self.settled = asyncio.Event()
        self._endless: set[asyncio.Task[Any]] = set()

    def drain(self, *, refuse: bool = True) -> None:
        self.is_draining, self.is_refusing = True, refuse
        self.end_endless()
        self._settle()

    @contextmanager
    def endless(self) -> Iterator[None]:
        """Around a request that ends only with its client, or with `end_endless`."""
        task = asyncio.current_task()
        assert task is not None, "a request is handled in a task"
        self._endless.add(task)
        try:
            yield
        finally:
            self._endless.discard(task)

    def end_endless(self) -> None:
        """Their clients come again, and find who serves then."""
        for task in self._endless:
            task.cancel()

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
    if request.match_info.route in request.app[ENDLESS]:
        with requests.endless():
            return await handler(request)
    requests.begun()
    try:
        return await handler(request)
    finally:
        requests.ended()
