"""Tasks that outlive the request they came with: loads that nobody waits for, reloads by signal."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine

from router.errors import RouterError
from router.supervisor.pool import HandedOver
from router.tasks import Tasks

log = logging.getLogger("router.app")


class Background(Tasks):
    """The tasks of the router: leaving cancels them."""

    def __init__(self) -> None:
        super().__init__(end_seconds=0.0)

    def spawn(self, coroutine: Coroutine[object, object, None], *, name: str) -> asyncio.Task[None]:
        return self.create_task(_to_the_end(coroutine, name), name=name)


async def _to_the_end(coroutine: Coroutine[object, object, None], name: str) -> None:
    """Log a failure: an expected one in one line."""
    try:
        await coroutine
    except RouterError as error:
        log.warning("%s: %s", name, error.message)
    except HandedOver:
        log.warning("%s: not done; another process serves by now", name)
    except Exception:
        log.exception("%s failed", name)
