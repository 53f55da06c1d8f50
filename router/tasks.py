"""The tasks of one owner: none can end another, and the owner's end waits for them a bounded time."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine
from typing import Any, Final, Protocol, Self, TypeVar

_logger = logging.getLogger("router.tasks")
_T = TypeVar("_T")

#: How long the end of an owner waits for its tasks before they are cancelled, in seconds. A write to sqlite
#: may wait 10 s for a lock (`store.LOCK_SECONDS`).
END_SECONDS: Final = 15.0
#: How long tasks may take to end once they are cancelled, in seconds; then they are left behind.
CANCEL_SECONDS: Final = 2.0


class Spawner(Protocol):
    """What a part needs of the owner of its tasks; asyncio.TaskGroup has it, too."""

    def create_task(self, coro: Coroutine[Any, Any, _T], *, name: str | None = None) -> asyncio.Task[_T]:
        """As asyncio.TaskGroup.create_task."""


class Tasks:
    """An async context manager. Unlike in an asyncio.TaskGroup, a task that fails is logged and cancels
    neither its neighbours nor the task that entered the group: one child's housekeeping must not end the
    router. `len` is how many run.

    Leaving waits `end_seconds` for the tasks, then cancels them, and returns at the latest `CANCEL_SECONDS`
    later; a task that is cancelled while it waits for a thread ends, though the thread does not.
    """

    def __init__(self, *, end_seconds: float = END_SECONDS) -> None:
        self._end_seconds = end_seconds
        self._tasks: set[asyncio.Task[Any]] = set()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        try:
            await _ended(self._tasks, self._end_seconds)
        finally:  # also when this is itself cancelled
            await self.cancel()

    def create_task(self, coro: Coroutine[Any, Any, _T], *, name: str | None = None) -> asyncio.Task[_T]:
        """Start a task and keep it until it ends."""
        task = asyncio.get_running_loop().create_task(coro, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._note_end)
        return task

    def __len__(self) -> int:
        return len(self._tasks)

    async def cancel(self) -> None:
        """Cancel all tasks; return when they have ended, or after `CANCEL_SECONDS` with an error logged."""
        for task in self._tasks:
            task.cancel()
        await _ended(self._tasks, CANCEL_SECONDS)
        for task in self._tasks:
            _logger.error(
                "task %s did not end within %g s of being cancelled", task.get_name(), CANCEL_SECONDS
            )

    def _note_end(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and task.exception() is not None:
            _logger.error("task %s failed", task.get_name(), exc_info=task.exception())


async def _ended(tasks: set[asyncio.Task[Any]], within_seconds: float) -> None:
    """Return when all have ended, those that were added meanwhile among them, or after the time."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + within_seconds
    while tasks and (left := deadline - loop.time()) > 0:
        await asyncio.wait(tasks.copy(), timeout=left)
