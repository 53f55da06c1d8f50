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

    Where there are no pidfds (macOS, a seccomp filter) it looks every 50 ms instead.
    """

    def __init__(self, pid: int, on_exit: Callable[[], None]) -> None:
        self._pid = pid
        self._on_exit = on_exit
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None
        self._pidfd = _pidfd_open(pid)
        if self._pidfd is not None:
            try:
                self._loop.add_reader(self._pidfd, self._exited)
            except OSError:  # the kernel watches no more descriptors (fs.epoll.max_user_watches)
                os.close(self._pidfd)
                self._pidfd = None
        if self._pidfd is None:
            self._poll()

    def close(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
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
        except OSError:  # no file left to look with: it counts as alive until somebody can look
            has_exited = False
        if has_exited:
            self._timer = self._loop.call_later(0, self._exited)
        else:
            self._timer = self._loop.call_later(_POLL_SECONDS, self._poll)


def _has_exited(pid: int) -> bool:
    """Raises OSError where it cannot be told. /proc calls a child a zombie as soon as its first thread has
    ended, while others still hold its memory: of our own children the kernel tells when all is over, and that
    it may be reaped.
    """
    if hasattr(os, "waitid"):  # macOS has none
        try:
            return os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None
        except ChildProcessError:  # a child of an earlier router, or one that somebody has reaped
            pass
    return identify(pid) is None


def _pidfd_open(pid: int) -> int | None:
    if not hasattr(os, "pidfd_open"):
        return None
    try:
        return os.pidfd_open(pid)
    except OSError:  # no such process any more (polling will tell), no such system call, not allowed
        return None
