"""A program that is run to its end for what it prints.

Not one of asyncio's: uvloop forks for those, which copies the page tables of all that this process holds and
stops every stream for 5 to 8 ms (measured). Popen lends them until the program begins: 0.3 ms, in a thread.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from router.descriptors import check_left

#: Whoever prints more than this is ended.
OUTPUT_BYTES: Final = 1 << 20


@dataclass(frozen=True, slots=True)
class Output:
    """`status` as the shell knows it, below 0 for a signal; `data` is what it wrote."""

    status: int
    data: bytes


async def output_of(
    argv: Sequence[str | Path],
    env: Mapping[str, str],
    *,
    timeout_seconds: float,
    with_errors: bool = False,
    niceness: int = 0,
) -> Output:
    """What it prints on stdout, `with_errors` also on stderr. Raises OSError where it cannot be started, and
    TimeoutError. However this ends, the program is gone then, with all that it has started. It leaves the
    processor to others by so much `niceness` more than this process.
    """
    running = _Running(argv, env, subprocess.STDOUT if with_errors else subprocess.DEVNULL, niceness)
    ended = asyncio.get_running_loop().run_in_executor(None, running.to_its_end)
    try:
        async with asyncio.timeout(timeout_seconds):
            return await asyncio.shield(ended)
    finally:
        if not ended.done():
            running.kill()
            await asyncio.wait({ended})
            ended.exception()  # whoever was waiting has been told otherwise


class _Running:
    """A thread runs it `to_its_end`; the event loop may `kill` it at any moment, also before it began."""

    def __init__(
        self, argv: Sequence[str | Path], env: Mapping[str, str], stderr: int, niceness: int
    ) -> None:
        self._argv, self._env, self._stderr, self._niceness = argv, env, stderr, niceness
        self._process: subprocess.Popen[bytes] | None = None
        self._is_unwanted = False

    def to_its_end(self) -> Output:
        check_left()
        process = self._process = subprocess.Popen(
            self._argv,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=self._stderr,
            env=self._env,
            start_new_session=True,
        )
        with process:
            if self._is_unwanted:  # set while it began: one of the two has seen the other
                self.kill()
            if self._niceness:
                with contextlib.suppress(OSError):
                    own = os.getpriority(os.PRIO_PROCESS, 0)
                    os.setpriority(os.PRIO_PROCESS, process.pid, own + self._niceness)
            assert process.stdout is not None, "stdout is a pipe"
            data = process.stdout.read(OUTPUT_BYTES + 1)
            if len(data) > OUTPUT_BYTES:
                self.kill()
        return Output(process.returncode, data)

    def kill(self) -> None:
        self._is_unwanted = True
        if self._process is not None and self._process.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
