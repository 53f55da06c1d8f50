"""Learning that a process has exited, from a pidfd: without polling, and also if it is not our child."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from typing import Final

from router.process.identity import identify

_POLL_SECONDS: Final = 0.05


class ExitWatch:
    """Calls `on_exit` once, from the event loop, when the process has exited (a zombie has). Must be closed.

    Without a pidfd it looks every 50 ms: a seccomp filter may forbid them, or fs.epoll.max_user_watches be
    reached.
    """

    def __init__(self, pid: int, on_exit: Callable[[], None]) -> None:
        self._pid = pid
        self._on_exit = on_exit
        self._loop = asyncio.get_running_loop()
        #: Of the next look, where the process is polled.
        self._timer: asyncio.TimerHandle | None = None
        #: None where the process is polled, and after `close`.
        self._pidfd: int | None = None
        try:
            self._pidfd = os.pidfd_open(pid)
            self._loop.add_reader(self._pidfd, self._exited)
        except (OSError, AttributeError):  # AttributeError: Python was built for an older kernel
            self.close()
            self._poll()

    def close(self) -> None:
        """Stop watching. Safe to call twice."""
        if self._timer is not None:
            self._timer.cancel()
        if self._pidfd is not None:
            self._loop.remove_reader(self._pidfd)
            os.close(self._pidfd)
            self._pidfd = None

    def _exited(self) -> None:
        self.close()
        self._on_exit()

    def _poll(self) -> None:
        try:
            has_exited = _has_exited(self._pid)
        except OSError:  # out of file descriptors: the process counts as alive until the next look
            has_exited = False
        self._timer = self._loop.call_later(
            *((0, self._exited) if has_exited else (_POLL_SECONDS, self._poll))
        )


def _has_exited(pid: int) -> bool:
    """Raises OSError where it cannot be told. /proc calls a child a zombie as soon as its first thread has
    ended, while others still hold its memory: of our own children the kernel tells when all is over, and that
    it may be reaped.
    """
    try:
        return os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None
    except ChildProcessError:  # a child of an earlier router, or one that is reaped already
        return identify(pid) is None
