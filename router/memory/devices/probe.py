"""The router's side of the NVML probe: one child process, asked with a deadline."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import Mapping, Sequence
from subprocess import DEVNULL
from typing import Final, TypeVar, cast

import msgspec

from router.descriptors import check_left
from router.memory.devices.protocol import Hello, Reading, Request

#: The longest answer a probe may give: cards with thousands of processes fit.
_ANSWER_BYTES: Final = 4 << 20

#: How much of the deadline the probe itself may wait for a card, so that its answer about the others is in
#: time.
_PATIENCE: Final = 0.75

_CRASHES: Final = (signal.SIGSEGV, signal.SIGBUS, signal.SIGABRT, signal.SIGILL, signal.SIGFPE)

T = TypeVar("T", Hello, Reading)


class ProbeFailed(Exception):
    """There are no figures now. The message says why, in words.

    `is_dead`: the process is gone (it crashed, somebody killed it), so that a new one may well do better.
    Otherwise the driver does not answer, and would not answer a new one either. `is_absent`: there is no
    driver to speak of.
    """

    def __init__(self, message: str, *, is_dead: bool = False, is_absent: bool = False) -> None:
        super().__init__(message)
        self.is_dead = is_dead
        self.is_absent = is_absent

    def copy(self) -> ProbeFailed:
        """The same to be raised: one that is kept holds every frame that it has ever passed."""
        return ProbeFailed(str(self), is_dead=self.is_dead, is_absent=self.is_absent)


class Probe(asyncio.SubprocessProtocol):
    """A probe that runs. After any ProbeFailed it is of no use any more, and must be killed."""

    _transport: asyncio.SubprocessTransport

    def __init__(self) -> None:
        self.driver = ""
        self._serial = 0
        self._output = asyncio.StreamReader(limit=_ANSWER_BYTES)
        self._exited = asyncio.Event()
        self._closed = asyncio.Event()

    @classmethod
    async def spawn(cls, argv: Sequence[str], environ: Mapping[str, str]) -> Probe:
        """Starts the process, in a session of its own: a Ctrl-C in the terminal is for the router.

        Raises ProbeFailed where there is nothing to start.
        """
        loop = asyncio.get_running_loop()
        try:
            check_left()
            _, probe = await loop.subprocess_exec(
                cls, *argv, stderr=DEVNULL, env=dict(environ), start_new_session=True
            )
        except OSError as error:
            raise ProbeFailed(f"the probe cannot be started: {error}", is_absent=True) from error
        return probe

    @property
    def pid(self) -> int:
        return self._transport.get_pid()

    async def greet(self) -> None:
        """Waits until it has opened the driver, which may take seconds per GPU. Raises ProbeFailed."""
        hello = await self._read(Hello)
        if hello.error is not None:
            raise ProbeFailed(hello.error, is_absent=True)
        self.driver = hello.driver

    async def ask(self, timeout_seconds: float) -> Reading:
        """A reading that begins now. Raises ProbeFailed after the timeout, or where the process died."""
        self._serial += 1
        request = Request(self._serial, timeout_seconds * _PATIENCE)
        stdin = cast(asyncio.WriteTransport, self._transport.get_pipe_transport(0))
        if not stdin.is_closing():  # if it is, the end of its output is read below, which says more
            stdin.write(msgspec.json.encode(request) + b"\n")
        try:
            async with asyncio.timeout(timeout_seconds):
                reading = await self._read(Reading)
        except TimeoutError:
            raise ProbeFailed(f"the driver gave no answer for {timeout_seconds:.1f} s") from None
        if reading.id != request.id:
            raise ProbeFailed("the probe's answer is to another question", is_dead=True)
        return reading

    def close(self) -> None:
        """Close its input, whose end it takes for its own."""
        cast(asyncio.BaseTransport, self._transport.get_pipe_transport(0)).close()

    def kill(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            if not self._exited.is_set():
                os.killpg(self.pid, signal.SIGKILL)
        # Not the transport as a whole: closing that polls the process, and may take its status away from the
        # loop.
        for fd in (0, 1):
            cast(asyncio.BaseTransport, self._transport.get_pipe_transport(fd)).close()

    async def wait(self, timeout_seconds: float) -> bool:
        """Is it gone? Waits for that; one that is stuck in the kernel does not go even when killed."""
        try:
            async with asyncio.timeout(timeout_seconds):
                await self._closed.wait()
        except TimeoutError:
            return False
        self._transport.close()
        return True

    async def _read(self, kind: type[T]) -> T:
        try:
            line = await self._output.readline()
            if not line.endswith(b"\n"):
                raise ProbeFailed(await self._describe_end(), is_dead=True)
            return msgspec.json.decode(line, type=kind)
        except ValueError as error:  # of readline: too long; of msgspec: no such message
            raise ProbeFailed(f"the probe's answer makes no sense: {error}", is_dead=True) from error

    async def _describe_end(self) -> str:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(1.0):
                await self._exited.wait()
        status = self._transport.get_returncode()
        if status is None:
            return "the probe closed its pipe"
        if status >= 0:
            return f"the probe ended with status {status}"
        name = signal.Signals(-status).name
        return (
            f"the driver library crashed ({name})"
            if -status in _CRASHES
            else f"the probe was killed ({name})"
        )

    # --- what the event loop calls --------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.SubprocessTransport, transport)  # uvloop's is no subclass of it

    def pipe_data_received(self, fd: int, data: bytes) -> None:
        self._output.feed_data(data)

    def pipe_connection_lost(self, fd: int, exc: Exception | None) -> None:
        if fd == 1:
            self._output.feed_eof()

    def process_exited(self) -> None:
        self._exited.set()

    def connection_lost(self, exc: Exception | None) -> None:
        self._closed.set()
