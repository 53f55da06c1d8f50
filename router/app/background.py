"""Tasks that outlive the request they came with: loads that nobody waits for, reloads by signal."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine

from router.errors import RouterError
from router.supervisor.pool import HandedOver

log = logging.getLogger("router.app")


class Background:
    """Owns them: they end with the router."""

    def __init__(self) -> None:
        self._group = asyncio.TaskGroup()
        self._tasks: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> None:
        await self._group.__aenter__()

    async def __aexit__(self, *_: object) -> None:
        for task in self._tasks:
            task.cancel()
        await self._group.__aexit__(None, None, None)

    def spawn(self, coroutine: Coroutine[object, object, None], *, name: str) -> asyncio.Task[None]:
        task = self._group.create_task(_to_the_end(coroutine, name), name=name)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task


async def _to_the_end(coroutine: Coroutine[object, object, None], name: str) -> None:
    """One that fails must not take the group with it."""
    try:
        await coroutine
    except RouterError as error:
        log.warning("%s: %s", name, error.message)
    except HandedOver:
        log.warning("%s: not done; another process serves by now", name)
    except Exception:
        log.exception("%s failed", name)
