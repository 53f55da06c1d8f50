"""A blocking read with a deadline: in a thread of its own, at most one at a time, given up when it is
late."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import threading
from collections.abc import Callable
from typing import Generic, ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")


class Late(Exception):
    """The read did not end in time, or an earlier one still hangs."""

    def __init__(self, seconds: float) -> None:
        super().__init__(f"no answer for {seconds:.1f} s")


class BlockingRead(Generic[P, T]):
    """Calls `read` in a daemon thread.

    A read of sysfs or of another process's maps can hang in the kernel for as long as a driver or a lock is
    stuck. A thread pool would lose one worker per attempt and would hold up the end of the program; this
    loses one thread, once.
    """

    def __init__(self, name: str, read: Callable[P, T], timeout_seconds: float) -> None:
        self._name = name
        self._read = read
        self._timeout_seconds = timeout_seconds
        #: The call that runs or has hung, and when it began by the clock of the loop.
        self._pending: asyncio.Future[T] | None = None
        self._since = 0.0

    async def __call__(self, *args: P.args, **kwargs: P.kwargs) -> T:
        """The result of `read`, or what it raised. Raises Late after the deadline, and at once while an old
        call hangs."""
        loop = asyncio.get_running_loop()
        if self._pending is not None and not self._pending.done():
            raise Late(loop.time() - self._since)
        pending: asyncio.Future[T] = loop.create_future()
        self._pending, self._since = pending, loop.time()

        def run() -> None:
            try:
                settle = functools.partial(pending.set_result, self._read(*args, **kwargs))
            except Exception as error:  # noqa: BLE001 - the thread ends here; the caller gets what was raised
                settle = functools.partial(_fail, pending, error)
            with contextlib.suppress(RuntimeError):  # the loop was closed while the read hung
                loop.call_soon_threadsafe(settle)

        threading.Thread(target=run, name=self._name, daemon=True).start()
        done, _ = await asyncio.wait({pending}, timeout=self._timeout_seconds)
        if not done:
            raise Late(self._timeout_seconds)
        self._pending = None
        return pending.result()


def _fail(pending: asyncio.Future[T], error: Exception) -> None:
    pending.set_exception(error)
    pending.exception()  # the caller may have given up: then it is not to be logged as never retrieved
