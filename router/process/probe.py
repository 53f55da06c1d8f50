"""Waiting until a child is ready: its health path over the Unix socket, and whether it makes progress."""

from __future__ import annotations

import asyncio
import re
import socket
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from router.process.identity import Progress, progress
from router.process.log import LogFile

_PROGRESS_SECONDS: Final = 0.5
_LEAST_PAUSE_SECONDS: Final = 0.002
_PAUSE_SHARE: Final = 0.03
#: Growth below this is noise: an allocator's arena, a thread's stack.
_NOISE_BYTES: Final = 256 << 10


@dataclass(frozen=True, slots=True)
class Health:
    """How to ask, and how long to wait. `stall_seconds` without growth of log, memory or reads means hung;
    `timeout_seconds` bounds the whole wait; `probe_timeout_seconds` one question."""

    path: str = "/health"
    poll_seconds: float = 0.02
    probe_timeout_seconds: float = 1.0
    stall_seconds: float = 120.0
    timeout_seconds: float = 1800.0


class NotReady(Exception):
    """The child lives, but will not become ready; the message says why."""


async def wait_ready(pid: int, socket_path: Path, log: LogFile, health: Health) -> None:
    """Return when it answers 200. Raises NotReady when it hangs or time is up. Does not notice its death."""
    loop = asyncio.get_running_loop()
    begun = loop.time()
    deadline = begun + health.timeout_seconds
    stall = _Stall(pid, log, begun)
    while True:
        status = await get_status(socket_path, health.path, timeout_seconds=health.probe_timeout_seconds)
        if status == 200:
            return
        now = loop.time()
        idle_seconds = stall.idle_seconds(now)
        if idle_seconds >= health.stall_seconds:
            raise NotReady(
                f"hung while loading: no progress in its log, memory or reads for {idle_seconds:.0f} s"
            )
        if now >= deadline:
            raise NotReady(f"was not ready after {health.timeout_seconds:.0f} s")
        await asyncio.sleep(pause_seconds(now - begun, health.poll_seconds))


def pause_seconds(elapsed_seconds: float, poll_seconds: float) -> float:
    """Until the next question: a small part of the load so far, so that a short one is not made longer by the
    wait for its end, and `poll_seconds` at most. Before there is a socket a question costs next to nothing.
    """
    return min(poll_seconds, max(_LEAST_PAUSE_SECONDS, elapsed_seconds * _PAUSE_SHARE))


async def get_status(socket_path: Path, path: str, *, timeout_seconds: float) -> int | None:
    """The status of one GET over a Unix socket; None if no answer comes within the time."""
    return await get_status_at(socket.AF_UNIX, str(socket_path), path, timeout_seconds=timeout_seconds)


async def get_status_at(
    family: int, address: str | bytes | tuple[Any, ...], path: str, *, timeout_seconds: float
) -> int | None:
    """The same over a socket of any family, to an address as `socket.connect` takes it."""
    answer = await _get(family, address, path, timeout_seconds, enough_bytes=len(b"HTTP/1.1 200"))
    found = re.match(rb"HTTP/\S+\s+(\d{3})(?!\S)", answer)
    return int(found[1]) if found is not None else None


async def get_answer(
    socket_path: Path, path: str, *, timeout_seconds: float, max_bytes: int = 1 << 20
) -> bytes | None:
    """The body of what one GET was answered with status 200; None where that did not come in time."""
    answer = await _get(socket.AF_UNIX, str(socket_path), path, timeout_seconds, enough_bytes=max_bytes)
    head, _, body = answer.partition(b"\r\n\r\n")
    return body if head.startswith(b"HTTP/1.") and head[8:12] == b" 200" else None


async def _get(
    family: int, address: str | bytes | tuple[Any, ...], path: str, timeout_seconds: float, enough_bytes: int
) -> bytes:
    """Return what a GET is answered with, until the server closes or `enough_bytes` have come; nothing
    where that takes longer than the timeout.

    Plain socket calls: at 50 questions a second a protocol and a transport would be most of the cost.
    """
    loop, answer = asyncio.get_running_loop(), b""
    try:
        async with asyncio.timeout(timeout_seconds):
            with socket.socket(family, socket.SOCK_STREAM) as connection:
                connection.setblocking(False)
                await loop.sock_connect(connection, address)
                request = f"GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
                await loop.sock_sendall(connection, request.encode("ascii"))
                while len(answer) < enough_bytes and (chunk := await loop.sock_recv(connection, 1 << 16)):
                    answer += chunk
    except OSError:  # TimeoutError is one
        return b""
    return answer


class _Stall:
    """Remembers when a loading child last got further."""

    def __init__(self, pid: int, log: LogFile, now: float) -> None:
        self._pid, self._log = pid, log
        self._best = Progress()
        self._log_bytes = -1
        self._looked_at = self._moved_at = now

    def idle_seconds(self, now: float) -> float:
        """Seconds since it last got further, looking at most twice a second."""
        if now - self._looked_at >= _PROGRESS_SECONDS:
            self._looked_at = now
            if self._has_moved():
                self._moved_at = now
        return now - self._moved_at

    def _has_moved(self) -> bool:
        try:
            seen = progress(self._pid)
        except OSError:  # nobody can tell: that is not held against it
            return True
        best, log_bytes = self._best, self._log.size()
        moved = (
            log_bytes != self._log_bytes
            or seen.resident_bytes > best.resident_bytes + _NOISE_BYTES
            or seen.io_bytes > best.io_bytes + _NOISE_BYTES
            or seen.major_faults > best.major_faults
        )
        if moved:
            self._best, self._log_bytes = seen, log_bytes
        return moved
