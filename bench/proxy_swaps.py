"""What `bench/proxy` measures with the real llama-server: how long a client waits for a model that is not
loaded, beyond what llama-server itself needs with the same arguments."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import psutil

from bench.proxy_bounds import Failed
from bench.proxy_contestants import Contestant, Setting, end, spawn
from bench.proxy_rows import PATH, Metric, Values

DEADLINE_SECONDS: Final = 60.0
POLL_SECONDS: Final = 0.001

METRICS: Final = (
    Metric("cold", "cold model: request to first token", "ms"),
    Metric("cold_over", "  over llama-server's own", "ms"),
    Metric("swap", "swap A to B to A, each, to first token", "ms"),
    Metric("swap_over", "  over llama-server's own", "ms"),
    Metric("disk", "cold model whose file is not in memory", "ms"),
    Metric("disk_over", "  over llama-server's own", "ms"),
    Metric("seen", "ready model: to first token, over its own", "ms"),
    Metric("warm", "loaded model: request to first token", "ms"),
)


@dataclass(frozen=True, slots=True)
class Own:
    """llama-server by itself: from its start to /health 200, and from a request to the first token: of the
    first request that it ever has, and of the next."""

    healthy_ms: float
    first_ms: float
    warm_ms: float

    @property
    def total_ms(self) -> float:
        return self.healthy_ms + self.first_ms


def own(setting: Setting, model: Path, argv: list[str] | None) -> Own:
    """`argv` is how a router started it, if that is known: its socket is replaced."""
    path = setting.folder / "own.sock"
    path.unlink(missing_ok=True)
    command = argv or [
        str(setting.server),
        "--host",
        "?",
        "-m",
        str(model),
        "-c",
        "2048",
        "-np",
        "4",
        *setting.args,
    ]
    command[command.index("--host") + 1] = str(path)
    begun = time.monotonic()
    process = spawn(command, setting.folder / "own-output")
    try:
        while not _is_healthy(str(path)):
            if process.poll() is not None or time.monotonic() - begun > DEADLINE_SECONDS:
                raise Failed("llama-server did not start")
            time.sleep(POLL_SECONDS)
        healthy = time.monotonic()
        first, warm = (first_token_ms(str(path), model.stem) for _ in range(2))
        return Own(1e3 * (healthy - begun), first, warm)
    finally:
        end(process)


def argv_of(contestant: Contestant) -> list[str] | None:
    """Of the model that it has loaded, if that is started on a socket as we start it."""
    for child in contestant.children():
        command: list[str] = child.cmdline()
        if "--host" in command and command[command.index("--host") + 1].endswith(".sock"):
            return command
    return None


def swaps(contestant: Contestant, reference: Own, from_disk: Own) -> Values:
    """It may have one model at a time, and has none now. `from_disk` is what llama-server itself takes for a
    file of which nothing is in memory."""
    first, second = contestant.setting.names[:2]
    cold = first_token_ms(contestant.port, first)
    warm = first_token_ms(contestant.port, first)
    swap = (first_token_ms(contestant.port, second) + first_token_ms(contestant.port, first)) / 2
    contestant.unload(first)
    forget(contestant.setting.models[0])
    disk = first_token_ms(contestant.port, first)
    contestant.unload(first)
    seen = ready_to_first_token_ms(contestant, first) - reference.first_ms
    contestant.unload(first)
    return {
        "cold": cold,
        "cold_over": cold - reference.total_ms,
        "swap": swap,
        "swap_over": swap - reference.total_ms,
        "disk": disk,
        "disk_over": disk - from_disk.total_ms,
        "seen": seen,
        "warm": warm,
    }


def ready_to_first_token_ms(contestant: Contestant, model: str) -> float:
    """Of a load: from the moment in which its process answers that it is ready, as somebody sees who asks it
    himself all the time."""
    with ThreadPoolExecutor(1) as pool:
        asking = pool.submit(_ready_at, contestant)
        begun = time.monotonic()
        first_ms = first_token_ms(contestant.port, model)
        return 1e3 * (begun - asking.result()) + first_ms


def _ready_at(contestant: Contestant) -> float:
    deadline = time.monotonic() + DEADLINE_SECONDS
    while time.monotonic() < deadline:
        for child in contestant.children():
            with contextlib.suppress(psutil.Error, ValueError, IndexError):
                address = _address(child.cmdline())
                # Between its fork and its exec it is called as its parent is.
                while address != contestant.port and child.is_running() and time.monotonic() < deadline:
                    if _is_healthy(address):
                        return time.monotonic()
                    time.sleep(POLL_SECONDS)
        time.sleep(POLL_SECONDS)
    raise Failed("no model became ready")


def _address(command: list[str]) -> int | str:
    """Where a llama-server listens that was started so."""
    host = command[command.index("--host") + 1]
    return host if host.endswith(".sock") else int(command[command.index("--port") + 1])


def forget(file: Path) -> None:
    """Nothing of it is in the page cache afterwards, as long as nobody has it mapped."""
    with open(file, "rb") as opened:
        os.fsync(opened.fileno())
        os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def first_token_ms(address: int | str, model: str) -> float:
    """From the request to the first event that bears a token; the answer is read to its end."""
    asked: dict[str, Any] = {"model": model, "stream": True, "max_tokens": 4, "ignore_eos": True}
    body = json.dumps({**asked, "messages": [{"role": "user", "content": "hello"}]}).encode()
    head = (
        f"POST {PATH} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nConnection: close\r\n"
    )
    request = head.encode() + b"Content-Length: %d\r\n\r\n" % len(body) + body
    with _connected(address) as connection:
        begun = time.monotonic()
        connection.sendall(request)
        answer, seen = b"", 0.0
        while data := connection.recv(1 << 16):
            answer += data
            if not seen and b'"content":"' in answer:
                seen = time.monotonic()
    if not answer.startswith(b"HTTP/1.1 200") or b"[DONE]" not in answer:
        raise Failed(answer[:300].decode(errors="replace"))
    return 1e3 * (seen - begun)


@contextlib.contextmanager
def _connected(address: int | str) -> Iterator[socket.socket]:
    family = socket.AF_UNIX if isinstance(address, str) else socket.AF_INET
    with socket.socket(family) as connection:
        connection.settimeout(DEADLINE_SECONDS)
        connection.connect(address if isinstance(address, str) else ("127.0.0.1", address))
        yield connection


def _is_healthy(address: int | str) -> bool:
    try:
        with _connected(address) as connection:
            connection.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
            return connection.recv(64).startswith(b"HTTP/1.1 200")
    except OSError:
        return False
