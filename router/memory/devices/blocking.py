"""A blocking read with a deadline: in a thread of its own, at most one at a time, given up when it is
late."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable
from typing import Generic, ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")


class Late(Exception):
    """The read did not end in time, or an earlier one still hangs. `seconds` says for how long."""

    def __init__(self, seconds: float) -> None:
        super().__init__(f"no answer for {seconds:.1f} s")
        self.seconds = seconds


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
        threading.Thread(
            target=self._run, args=(loop, pending, args, kwargs), name=self._name, daemon=True
        ).start()
        done, _ = await asyncio.wait({pending}, timeout=self._timeout_seconds)
        if not done:
            raise Late(self._timeout_seconds)
        self._pending = None
        return pending.result()

    def _run(
        self,
        loop: asyncio.AbstractEventLoop,
        pending: asyncio.Future[T],
        args: tuple[object, ...],
        kwargs: dict[str, object],
    ) -> None:
        result: T | None = None
        error: Exception | None = None
        try:
            result = self._read(*args, **kwargs)  # type: ignore[arg-type]
        except Exception as raised:  # noqa: BLE001 - the thread ends here; whoever waits gets what was raised
            error = raised

        def settle() -> None:
            if pending.cancelled():
                return
            if error is not None:
                pending.set_exception(error)
                pending.exception()  # nobody may be waiting any more: that is no news
            else:
                pending.set_result(result)  # type: ignore[arg-type]

        with contextlib.suppress(RuntimeError):  # the loop was closed while the read hung
            loop.call_soon_threadsafe(settle)
