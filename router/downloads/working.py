"""The router's side of a worker: started, read from, and killed whenever the reader stops."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import sys
from asyncio.subprocess import DEVNULL, PIPE, Process
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing, suppress
from pathlib import Path
from typing import Final

import msgspec

from router.descriptors import check_left
from router.downloads.protocol import Answer, Failed, Progress, Request

log = logging.getLogger("router.downloads")

#: The list of a repository with a hundred thousand files is one line.
_LINE_BYTES: Final = 64 << 20
#: One that is stuck in the kernel (a dead network disk) does not exit even when killed.
_EXIT_SECONDS: Final = 2.0
_NOT_FOR_WORKERS: Final = ("LLAMA_", "NOTIFY_", "WATCHDOG_", "LISTEN_")


def worker_environ(environ: Mapping[str, str]) -> dict[str, str]:
    """The router's own, with HF_TOKEN and proxies; without what makes the library draw, phone home or print
    requests with their headers."""
    own = str(Path(__file__).resolve().parents[2])
    path = [own, environ["PYTHONPATH"]] if environ.get("PYTHONPATH") else [own]
    kept = {name: value for name, value in environ.items() if not name.startswith(_NOT_FOR_WORKERS)}
    kept.pop("HF_DEBUG", None)
    return {
        **kept,
        "PYTHONPATH": os.pathsep.join(path),
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HUB_DISABLE_UPDATE_CHECK": "1",
    }


async def ask(request: Request, environ: Mapping[str, str], *, stall_seconds: float) -> Answer:
    """The only answer of a worker to `Look` or `Sweep`."""
    async with aclosing(answers(request, environ, stall_seconds=stall_seconds)) as found:
        return await anext(found)


async def answers(
    request: Request, environ: Mapping[str, str], *, stall_seconds: float
) -> AsyncGenerator[Answer, None]:
    """What a worker answers to `request`, at last `Failed` if it sends nothing for `stall_seconds` or exits
    early. The worker is gone when the generator is closed (`contextlib.aclosing`)."""
    try:
        check_left()
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-P", "-m", "router.downloads.worker"),
            stdin=PIPE,
            stdout=PIPE,
            stderr=DEVNULL,
            env=worker_environ(environ),
            limit=_LINE_BYTES,
            start_new_session=True,  # a Ctrl-C in the terminal is for the router
        )
    except OSError as error:
        message = f"cannot start a process to download with: {error}"
        yield Failed("download_failed", message, "later")
        return
    try:
        assert process.stdin is not None, "it is a pipe"
        with suppress(ConnectionError):
            process.stdin.write(msgspec.json.encode(request) + b"\n")
            await process.stdin.drain()
        while True:
            answer = await _next_answer(process, stall_seconds)
            yield answer
            if not isinstance(answer, Progress):
                return
    finally:
        await _kill(process)


async def _next_answer(process: Process, stall_seconds: float) -> Answer:
    assert process.stdout is not None, "it is a pipe"
    try:
        async with asyncio.timeout(stall_seconds):
            line = await process.stdout.readline()
    except TimeoutError:
        return Failed("hub_unreachable", f"nothing has come for {stall_seconds:g} s", "later")
    except ValueError:  # longer than _LINE_BYTES
        return Failed("hub_misbehaves", "the repository has more files than can be listed")
    if line.endswith(b"\n"):
        answer: Answer = msgspec.json.decode(line, type=Answer)
        return answer
    with suppress(TimeoutError):
        async with asyncio.timeout(1.0):
            await process.wait()
    status = process.returncode
    if status is not None and status < 0:
        how = f"was ended by {signal.Signals(-status).name}"
    else:
        how = f"has ended with status {status}"
    return Failed("download_failed", f"the process that downloads {how}", "later")


async def _kill(process: Process) -> None:
    with suppress(ProcessLookupError):
        process.kill()
    if process.stdin is not None:
        process.stdin.close()
    try:
        async with asyncio.timeout(_EXIT_SECONDS):
            await process.wait()
    except TimeoutError:
        log.warning("process %d, which downloads, does not end", process.pid)
