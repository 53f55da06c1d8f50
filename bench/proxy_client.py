"""The clients of `bench/proxy`, in a process of their own: `python -m bench.proxy_client JSON`.

The JSON is a `Load`; what was seen is printed as one line of JSON. A uvloop Protocol without a parser: as
cheap as it can be, so that it does not measure itself.
"""

from __future__ import annotations

import asyncio
import json
import re
import socket
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

import msgspec
import uvloop

#: How often it is looked at how many have begun.
LOOK_SECONDS: Final = 0.2
#: A slow reader takes so many bytes at a time, and its kernel keeps as little as it may.
SLOW_BYTES: Final = 4096
SLOW_SECONDS: Final = 0.5

_LENGTH = re.compile(rb"\r\ncontent-length:\s*(\d+)", re.IGNORECASE)
_WRITTEN_AT = re.compile(rb'"t":(\d{20})')


class Load(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """`requests`: one after the other on each connection, `per_second` of them together, 0: as fast as they
    are answered. `streams`: each connection reads one endless stream. `slow`: the same, hardly read at all,
    until standard input ends. `big`: one answer per connection, looked at only after `seconds`.

    `pids` are the processes whose processor time is counted while it lasts. Nobody waits longer than
    `deadline_seconds` until all streams have begun or all big answers have come, nor than `stall_seconds`
    for one more stream to begin.
    """

    mode: Literal["requests", "streams", "slow", "big"]
    port: int
    path: str = "/v1/chat/completions"
    model: str = "bench"
    wish: dict[str, int | float] | None = None
    connections: int = 1
    per_second: float = 0.0
    seconds: float = 1.0
    warm_seconds: float = 0.2
    deadline_seconds: float = 60.0
    stall_seconds: float = 10.0
    pids: tuple[int, ...] = ()

    def request(self) -> bytes:
        asked: dict[str, Any] = {"model": self.model, "messages": [{"role": "user", "content": "hello"}]}
        if self.wish is not None:
            asked |= {"stream": "events" in self.wish, "wish": self.wish}
        body = json.dumps(asked, separators=(",", ":")).encode()
        head = (
            f"POST {self.path} HTTP/1.1\r\nHost: 127.0.0.1:{self.port}\r\nContent-Type: application/json\r\n"
        )
        return head.encode() + b"Content-Length: %d\r\n\r\n" % len(body) + body


class Seen(msgspec.Struct, kw_only=True):
    """Times are in microseconds: to the first byte, to the last, and of an event on its way. `failed` answers
    had another status than 200, or were cut off; `missing` is how much was done when it was late."""

    count: int = 0
    failed: int = 0
    seconds: float = 0.0
    cpu_seconds: float = 0.0
    first_us: dict[str, float] = {}
    whole_us: dict[str, float] = {}
    delay_us: dict[str, float] = {}
    said: str = ""
    missing: str = ""


def percentiles(values: Sequence[float]) -> dict[str, float]:
    ordered = sorted(values)
    if not ordered:
        return {}
    return {name: ordered[int((len(ordered) - 1) * share)] for name, share in (("50", 0.5), ("99", 0.99))}


def cpu_seconds(pids: Sequence[int]) -> float:
    """Of all their threads, also of those that have ended, by the scheduler's own clock (see
    clock_getcpuclockid)."""
    return sum(time.clock_gettime((~pid << 3) | 2) for pid in pids)


@dataclass(slots=True)
class Window:
    """What counts is what happens in it."""

    begin: float
    end: float

    def has(self, moment: float) -> bool:
        return self.begin <= moment < self.end


class Asking(asyncio.Protocol):
    """One connection that asks again and again. It opens a new one when the server has closed it."""

    def __init__(self, load: Load, window: Window, seen: Tally, number: int) -> None:
        self.request, self.window, self.seen = load.request(), window, seen
        self.port = load.port
        self.loop = asyncio.get_running_loop()
        self.interval = load.connections / load.per_second if load.per_second else 0.0
        self.due = self.loop.time() + self.interval * number / load.connections
        self.data = b""
        self.first = 0.0
        self.asked: float | None = None
        self.transport: Any = None
        self.reconnecting: asyncio.Task[None] | None = None
        self.is_over = False

    def close(self) -> None:
        self.is_over = True
        if self.transport is not None:
            self.transport.abort()
        if self.reconnecting is not None:
            self.reconnecting.cancel()  # it may be that nobody lets it in

    def connection_made(self, transport: Any) -> None:
        self.transport = transport
        self.next()

    def connection_lost(self, _error: Exception | None) -> None:
        if self.is_over:
            return
        if self.asked is not None and self.data:
            self.seen.fail("cut off")
        self.asked, self.transport = None, None
        self.reconnecting = self.seen.tasks.create_task(self.connect())

    async def connect(self) -> None:
        await self.loop.create_connection(lambda: self, "127.0.0.1", self.port)

    def next(self) -> None:
        wait = self.due - self.loop.time() if self.interval else 0.0
        if wait > 0:
            self.loop.call_later(wait, self.ask)
        else:
            self.ask()

    def ask(self) -> None:
        if self.transport is None or self.transport.is_closing() or self.asked is not None:
            return
        self.due += self.interval
        self.data, self.first = b"", 0.0
        self.asked = time.perf_counter()
        self.transport.write(self.request)

    def data_received(self, data: bytes) -> None:
        if self.asked is None:
            return
        now = time.perf_counter()
        self.first = self.first or now
        self.data = data = self.data + data if self.data else data
        end = data.find(b"\r\n\r\n") + 4
        if end < 4:
            return
        found = _LENGTH.search(data, 0, end)
        # An answer of unknown length ends with an empty chunk; a head may end with a 0 too.
        if len(data) < end + int(found[1]) if found else not data.endswith(b"\r\n0\r\n\r\n"):
            return
        asked, self.asked = self.asked, None
        if self.window.has(now):
            if data.startswith(b"HTTP/1.1 200"):
                self.seen.first.append((self.first - asked) * 1e6)
                self.seen.whole.append((now - asked) * 1e6)
            else:
                self.seen.fail(data[:300].decode(errors="replace"))
        if b"\r\nconnection: close" in data[:end].lower():
            self.transport.close()
        else:
            self.next()


class Reading(asyncio.Protocol):
    """One connection that reads one stream without an end."""

    def __init__(self, load: Load, window: Window, seen: Tally) -> None:
        self.request, self.window, self.seen = load.request(), window, seen
        self.begun: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.rest = b""
        self.is_over = False

    def close(self) -> None:
        self.is_over = True
        self.transport.abort()

    def connection_made(self, transport: Any) -> None:
        self.transport = transport
        transport.write(self.request)

    def connection_lost(self, _error: Exception | None) -> None:
        if not self.is_over:
            self.seen.fail("cut off")
        if not self.begun.done():
            self.begun.set_result(None)

    def data_received(self, data: bytes) -> None:
        now = time.monotonic_ns()
        if not self.begun.done():
            if not data.startswith(b"HTTP/1.1 200"):
                self.seen.fail(data[:300].decode(errors="replace"))
            self.begun.set_result(None)
        data = self.rest + data
        last = 0
        is_counted = self.window.has(time.perf_counter())
        for found in _WRITTEN_AT.finditer(data):
            last = found.end()
            if is_counted:
                self.seen.delays.append((now - int(found[1])) / 1e3)
        self.rest = data[max(last, len(data) - 24) :]


class Tally:
    def __init__(self, tasks: asyncio.TaskGroup) -> None:
        self.tasks = tasks
        self.first: list[float] = []
        self.whole: list[float] = []
        self.delays: list[float] = []
        self.failed = 0
        self.said = ""

    def fail(self, why: str) -> None:
        self.failed += 1
        self.said = self.said or why


async def _all(begun: Sequence[asyncio.Future[Any]], load: Load) -> None:
    """Returns when all are done. Raises Late."""
    now = asyncio.get_running_loop().time
    count, since, deadline = 0, now(), now() + load.deadline_seconds
    while (done := sum(one.done() for one in begun)) < len(begun):
        if done > count:
            count, since = done, now()
        if now() > min(since + load.stall_seconds, deadline):
            raise Late(f"{done}/{len(begun)} began")
        await asyncio.wait(begun, timeout=LOOK_SECONDS)


class Late(Exception):
    """The message is what was done in time."""


async def _connected(load: Load, number: int, receive_bytes: int = 0) -> socket.socket:
    """Raises Late when nobody lets it in, after `number` others."""
    raw = socket.socket()
    raw.setblocking(False)
    if receive_bytes:
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_bytes)
    try:
        async with asyncio.timeout(load.stall_seconds):
            await asyncio.get_running_loop().sock_connect(raw, ("127.0.0.1", load.port))
    except TimeoutError:
        raise Late(f"{number} connected") from None
    return raw


async def _open(load: Load, make: Callable[[int], Any]) -> list[Any]:
    loop = asyncio.get_running_loop()
    made = []
    for number in range(load.connections):
        raw = await _connected(load, number)
        _, protocol = await loop.create_connection(lambda n=number: make(n), sock=raw)  # type: ignore[misc]
        made.append(protocol)
    return made


async def measure(load: Load) -> Seen:
    window = Window(float("inf"), float("inf"))
    async with asyncio.TaskGroup() as tasks:
        tally = Tally(tasks)
        if load.mode == "requests":
            made = await _open(load, lambda number: Asking(load, window, tally, number))
        else:
            made = await _open(load, lambda _: Reading(load, window, tally))
            await _all([one.begun for one in made], load)
        await asyncio.sleep(load.warm_seconds)
        window.begin = time.perf_counter()
        window.end = window.begin + load.seconds
        before = cpu_seconds(load.pids)
        await asyncio.sleep(load.seconds)
        spent = cpu_seconds(load.pids) - before
        seconds = time.perf_counter() - window.begin
        for one in made:
            one.close()
    return Seen(
        count=len(tally.whole) or len(tally.delays),
        failed=tally.failed,
        seconds=seconds,
        cpu_seconds=spent,
        first_us=percentiles(tally.first),
        whole_us=percentiles(tally.whole),
        delay_us=percentiles(tally.delays),
        said=tally.said,
    )


async def hold_slow(load: Load) -> Seen:
    """Says "ready" when every stream has begun; from then on each takes a little now and then."""
    loop = asyncio.get_running_loop()
    sockets = []
    seen = Seen()
    for number in range(load.connections):
        raw = await _connected(load, number, SLOW_BYTES)
        await loop.sock_sendall(raw, load.request())
        sockets.append(raw)
    heads = [loop.create_task(loop.sock_recv(raw, SLOW_BYTES)) for raw in sockets]
    await _all(heads, load)
    for task in heads:
        head = task.result()
        if not head.startswith(b"HTTP/1.1 200"):
            seen.failed += 1
            seen.said = seen.said or head[:300].decode(errors="replace")
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    over = loop.run_in_executor(None, sys.stdin.read)
    while not over.done():
        await asyncio.wait([over], timeout=SLOW_SECONDS)
        for raw in sockets:
            try:
                taken = raw.recv(SLOW_BYTES)
            except BlockingIOError:
                continue
            except OSError:
                taken = b""
            if taken:
                seen.count += len(taken)
            else:
                seen.failed += 1
    return seen


async def take_big(load: Load) -> Seen:
    loop = asyncio.get_running_loop()
    seen = Seen()
    before = cpu_seconds(load.pids)

    async def one() -> None:
        raw = socket.socket()
        raw.setblocking(False)
        with raw:
            await loop.sock_connect(raw, ("127.0.0.1", load.port))
            await loop.sock_sendall(raw, load.request())
            head = await loop.sock_recv(raw, SLOW_BYTES)
            await asyncio.sleep(load.seconds)
            found = _LENGTH.search(head)
            if not head.startswith(b"HTTP/1.1 200"):
                seen.failed += 1
                seen.said = head[:300].decode(errors="replace")
                return
            left = (int(found[1]) if found else -1) - len(head[head.find(b"\r\n\r\n") + 4 :])
            last = head[-8:]
            while left > 0 or (found is None and not last.endswith(b"\r\n0\r\n\r\n")):
                data = await loop.sock_recv(raw, 1 << 18)
                if not data:
                    seen.failed += 1
                    return
                left -= len(data)
                last = (last + data)[-8:]
                seen.count += len(data)

    begun = time.perf_counter()
    try:
        async with asyncio.timeout(load.deadline_seconds):
            await asyncio.gather(*(one() for _ in range(load.connections)))
    except TimeoutError:
        raise Late(f"{seen.count >> 20} MiB came") from None
    seen.seconds = time.perf_counter() - begun - load.seconds
    seen.cpu_seconds = cpu_seconds(load.pids) - before
    return seen


def _first(group: BaseExceptionGroup[Late]) -> str:
    one = group.exceptions[0]
    return _first(one) if isinstance(one, BaseExceptionGroup) else str(one)


def main() -> None:
    load = msgspec.json.decode(sys.argv[1], type=Load)
    try:
        match load.mode:
            case "slow":
                seen = uvloop.run(hold_slow(load))
            case "big":
                seen = uvloop.run(take_big(load))
            case _:
                seen = uvloop.run(measure(load))
    except* Late as late:  # a TaskGroup puts it into a group
        seen = Seen(missing=_first(late))
    sys.stdout.buffer.write(msgspec.json.encode(seen) + b"\n")


if __name__ == "__main__":
    main()
