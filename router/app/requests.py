"""The requests in flight, counted for a shutdown, which waits for all that end by themselves."""

from __future__ import annotations

import asyncio
from typing import Any

from aiohttp import web

from router.admin.route import ROUTE_OF, Handler
from router.errors import ShuttingDown


class Requests:
    """The requests in flight."""

    def __init__(self) -> None:
        #: How many a shutdown waits for.
        self.count = 0
        #: Whether a shutdown or a handover waits for them.
        self.is_draining = False
        #: Whether new ones are refused.
        self.is_refusing = False
        #: Set when a shutdown need not wait any longer, or must not.
        self.settled = asyncio.Event()
        #: The tasks of those whose answers end only with their clients.
        self._endless: set[asyncio.Task[Any]] = set()

    def drain(self, *, refuse: bool = True) -> None:
        self.is_draining, self.is_refusing = True, refuse
        self.end_endless()
        self._settle()

    def end_endless(self) -> None:
        """End those that end only with their clients, which come again and find the process that serves."""
        for task in self._endless:
            task.cancel()

    @web.middleware
    async def count_request(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        if self.is_refusing:  # on a connection that was open before
            raise ShuttingDown("the router is shutting down", retry_after_seconds=5.0)
        route = request.app[ROUTE_OF].get(request.match_info.route)
        if route is not None and route.endless:
            task = asyncio.current_task()
            assert task is not None, "a request is handled in a task"
            self._endless.add(task)
            try:
                return await handler(request)
            finally:
                self._endless.discard(task)
        self.begun()
        try:
            return await handler(request)
        finally:
            self.ended()

    def begun(self) -> None:
        self.count += 1

    def ended(self) -> None:
        self.count -= 1
        self._settle()

    def _settle(self) -> None:
        if self.is_draining and not self.count:
            self.settled.set()
