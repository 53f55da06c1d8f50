"""Clients that hardly read an endless stream: what is held for each is bounded, and nobody else waits for
them."""

from __future__ import annotations

import asyncio
import resource
import socket

from tests.admin.upstream import Connection, Received
from tests.deadline import FACTOR
from tests.proxy.bench import Bench
from tests.waiting import until

READERS = 100
#: What a client may have on its way in this process: up to the mark at which it counts as slow, and one read.
HELD_BYTES = (16 << 10) + (32 << 10) + 1024


async def test_what_slow_readers_leave_is_held_back_at_the_child_and_others_pass(bench: Bench):
    chunk = b'data: {"choices":[]}\n\n' + b":" + b" " * 8000 + b"\n\n"
    begun = 0

    async def script(received: Received, connection: Connection) -> None:
        nonlocal begun
        if received.body == b"quick":
            await connection.answer(b"here")
            return
        await connection.begin_stream()
        begun += 1
        while True:
            await connection.chunk(chunk)

    child = await bench.child(script)
    before = _peak_kib()
    slow = []
    for _ in range(READERS):
        own = socket.socket()
        own.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        own.setblocking(False)
        await asyncio.get_running_loop().sock_connect(own, ("127.0.0.1", bench.port))
        own.send(b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 2\r\n\r\n{}")
        slow.append(own)
    await until(lambda: not (begun < READERS or not all(_is_held(request) for request in bench.requests)))
    held = [_held(request) for request in bench.requests]
    assert max(held) <= HELD_BYTES
    # The child is in this process, too, and holds as much.
    assert _peak_kib() - before < 2 * READERS * HELD_BYTES // 1024 + (32 << 10)
    loop = asyncio.get_running_loop()
    asked_at = loop.time()
    async with bench.post(b"quick") as answer:
        assert await answer.read() == b"here"
    assert loop.time() - asked_at < 1.0 * FACTOR
    assert [flow.held for flow in bench.proxy.traffic.flows.values()] == [READERS], (
        "none of them is the child's fault"
    )
    for own in slow:
        own.close()
    await until(lambda: not bench.proxy.traffic.flows)
    await until(lambda: len(bench.pool.released) > READERS)
    assert child.connections == READERS + 1


def _is_held(request) -> bool:
    return request.transport is not None and request.connection.writing_paused


def _held(request) -> int:
    return request.transport.get_write_buffer_size() if request.transport is not None else 0


def _peak_kib() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
