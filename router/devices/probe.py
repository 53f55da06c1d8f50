"""The router's side of the NVML probe: one child process, asked with a deadline."""

from __future__ import annotations

import asyncio
import contextlib
import signal
from asyncio.subprocess import DEVNULL, PIPE, Process
from collections.abc import Mapping, Sequence
from typing import Final, TypeVar

import msgspec

from router.devices.protocol import Hello, Reading, Request

#: The longest line a probe may say: a card with thousands of processes fits.
_LINE_BYTES: Final = 4 << 20

#: How much of the deadline the probe itself may wait for a card, so that its answer about the others is in
#: time.
_PATIENCE: Final = 0.75

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


class Probe:
    """A probe that runs. After any ProbeFailed it is of no use any more."""

    def __init__(self, process: Process) -> None:
        self._process = process
        self._serial = 0
        self.driver = ""

    @classmethod
    async def spawn(cls, argv: Sequence[str], environ: Mapping[str, str]) -> Probe:
        """Starts the process, in a session of its own: a Ctrl-C in the terminal is for the router. Raises
        ProbeFailed."""
        try:
            process = await asyncio.create_subprocess_exec(
                *argv,
                stdin=PIPE,
                stdout=PIPE,
                stderr=DEVNULL,
                env=dict(environ),
                limit=_LINE_BYTES,
                start_new_session=True,
            )
        except OSError as error:
            raise ProbeFailed(f"the probe cannot be started: {error}", is_absent=True) from error
        return cls(process)

    @property
    def pid(self) -> int:
        return self._process.pid

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
        stdin = self._process.stdin
        assert stdin is not None, "spawned with a pipe"
        try:
            async with asyncio.timeout(timeout_seconds):
                with contextlib.suppress(ConnectionError):  # its end will be read, and says more
                    stdin.write(msgspec.json.encode(request) + b"\n")
                    await stdin.drain()
                while (reading := await self._read(Reading)).id != request.id:
                    pass
        except TimeoutError:
            raise ProbeFailed(f"the driver gave no answer for {timeout_seconds:.1f} s") from None
        return reading

    def close(self) -> None:
        """Lets it end by itself; `wait` until it has, or `kill` it."""
        assert self._process.stdin is not None, "spawned with a pipe"
        self._process.stdin.close()

    def kill(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            self._process.kill()

    async def wait(self, timeout_seconds: float) -> bool:
        """Is it gone? Waits for that; one that is stuck in the kernel does not go even when killed."""
        try:
            async with asyncio.timeout(timeout_seconds):
                await self._process.wait()
        except TimeoutError:
            return False
        return True

    async def _read(self, kind: type[T]) -> T:
        assert self._process.stdout is not None, "spawned with a pipe"
        try:
            line = await self._process.stdout.readline()
        except (ValueError, ConnectionError) as error:
            raise ProbeFailed(f"the probe's answer cannot be read: {error}", is_dead=True) from error
        if not line.endswith(b"\n"):
            raise ProbeFailed(await self._last_words(), is_dead=True)
        try:
            return msgspec.json.decode(line, type=kind)
        except msgspec.DecodeError as error:
            raise ProbeFailed(f"the probe's answer makes no sense: {error}", is_dead=True) from error

    async def _last_words(self) -> str:
        if not await self.wait(1.0) or self._process.returncode is None:
            return "the probe closed its pipe"
        status = self._process.returncode
        if status >= 0:
            return f"the probe ended with status {status}"
        name = signal.Signals(-status).name
        return (
            f"the driver library crashed ({name})" if status in _CRASHES else f"the probe was killed ({name})"
        )


_CRASHES: Final = (-signal.SIGSEGV, -signal.SIGBUS, -signal.SIGABRT, -signal.SIGILL, -signal.SIGFPE)
