"""The router's side of a worker: started, listened to, and killed whenever whoever listens stops."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import sys
from asyncio.subprocess import DEVNULL, PIPE, Process
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Final

import msgspec

from router.descriptors import check_left
from router.downloads.protocol import Failed, Request, Said

log = logging.getLogger("router.downloads")

#: The list of a repository with a hundred thousand files is one line.
_LINE_BYTES: Final = 64 << 20
#: One that is stuck in the kernel (a dead network disk) does not go even when killed.
_GONE_SECONDS: Final = 2.0
_NOT_FOR_IT: Final = ("LLAMA_", "NOTIFY_", "WATCHDOG_", "LISTEN_")


def worker_environ(environ: Mapping[str, str]) -> dict[str, str]:
    """The router's own, with HF_TOKEN and proxies; without what makes the library draw, phone home or print
    requests with their headers."""
    own = str(Path(__file__).resolve().parents[2])
    path = [own, environ["PYTHONPATH"]] if environ.get("PYTHONPATH") else [own]
    kept = {name: value for name, value in environ.items() if not name.startswith(_NOT_FOR_IT)}
    kept.pop("HF_DEBUG", None)
    return {
        **kept,
        "PYTHONPATH": os.pathsep.join(path),
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HUB_DISABLE_UPDATE_CHECK": "1",
    }


@asynccontextmanager
async def working(
    request: Request, environ: Mapping[str, str], *, stall_seconds: float
) -> AsyncIterator[AsyncIterator[Said]]:
    """What a worker says of `request`, the last of it `Listed`, `Fetched` or `Failed`. It is gone at the end
    of the block. One that is silent for `stall_seconds` is said to have failed."""
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
        yield _only(Failed("unexpected", f"cannot start a process to download with: {error}", True))
        return
    try:
        yield _heard(process, request, stall_seconds)
    finally:
        await _end(process)


async def _heard(process: Process, request: Request, stall_seconds: float) -> AsyncIterator[Said]:
    assert process.stdin is not None and process.stdout is not None, "they are pipes"
    with suppress(ConnectionError):
        process.stdin.write(msgspec.json.encode(request) + b"\n")
        await process.stdin.drain()
    while True:
        try:
            async with asyncio.timeout(stall_seconds):
                line = await process.stdout.readline()
        except TimeoutError:
            yield Failed("unreachable", f"nothing has come for {stall_seconds:g} s", is_transient=True)
            return
        except ValueError:
            yield Failed("misbehaves", "the repository has more files than can be listed")
            return
        if not line.endswith(b"\n"):
            yield Failed("unexpected", await _end_of(process), is_transient=True)
            return
        said: Said = msgspec.json.decode(line, type=Said)
        yield said
        if type(said).__name__ != "Progress":
            return


async def _only(said: Said) -> AsyncIterator[Said]:
    yield said


async def _end_of(process: Process) -> str:
    """It should have said more."""
    with suppress(TimeoutError):
        async with asyncio.timeout(1.0):
            await process.wait()
    status = process.returncode
    if status is not None and status < 0:
        return f"the process that downloads was ended by {signal.Signals(-status).name}"
    return f"the process that downloads has ended with status {status}"


async def _end(process: Process) -> None:
    with suppress(ProcessLookupError):
        process.kill()
    if process.stdin is not None:
        process.stdin.close()
    with suppress(TimeoutError):
        async with asyncio.timeout(_GONE_SECONDS):
            await process.wait()
            return
    log.warning("process %d, which downloads, does not end", process.pid)
