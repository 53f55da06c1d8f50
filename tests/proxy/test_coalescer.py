"""What is written together is written in order, at once, and not to who has gone."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path

import pytest

from router.proxy.coalescer import WriteCoalescer
from router.proxy.upstream import Upstream, open_upstream
from tests.proxy.wire import connect
from tests.waiting import until


class Heard:
    def __init__(self) -> None:
        self.data = b""
        self.error: list[Exception | None] = []

    def received(self, data: bytes) -> None:
        self.data += data

    def lost(self, error: Exception | None) -> None:
        self.error.append(error)


async def test_all_of_a_turn_is_written_in_order_before_what_is_scheduled_later():
    coalescer, seen = WriteCoalescer(), list[int]()
    for number in range(3):
        coalescer.put(partial(seen.append, number))
        asyncio.get_running_loop().call_soon(lambda: seen.append(-1))
    assert seen == []
    await asyncio.sleep(0)
    assert seen == [0, 1, 2, -1, -1, -1]
    coalescer.put(lambda: seen.append(3))
    await asyncio.sleep(0)
    assert seen[-1] == 3


class Told(asyncio.Transport):
    """A client that may have left."""

    def __init__(self) -> None:
        super().__init__()
        self.heard: list[bytes] = []
        self.has_left = False

    def write(self, data: bytes | bytearray | memoryview) -> None:
        assert not self.has_left
        self.heard.append(bytes(data))

    def is_closing(self) -> bool:
        return self.has_left


async def test_answers_are_said_in_order_behind_all_requests_and_not_to_who_has_left():
    coalescer, stays, leaves = WriteCoalescer(), Told(), Told()
    coalescer.write_last(stays, b"1")
    coalescer.write_last(leaves, b"1")
    coalescer.write_last(stays, b"2")
    coalescer.put(lambda: stays.heard.append(b"asked"))
    leaves.has_left = True
    assert not stays.heard
    await asyncio.sleep(0)
    assert stays.heard == [b"asked", b"1", b"2"]
    assert not leaves.heard
    coalescer.write_last(stays, b"3")
    await asyncio.sleep(0)
    assert stays.heard[-1] == b"3"


@pytest.fixture
async def child(tmp_path: Path) -> AsyncIterator[tuple[Upstream, socket.socket]]:
    """A connection, and its other end."""
    path = str(tmp_path / "s")
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(path)
        listening.listen()
        upstream = await connect(path)
        end, _ = listening.accept()
    end.setblocking(False)
    with end:
        yield upstream, end
        upstream.close()
        await asyncio.sleep(0)


async def test_a_request_waits_in_it_and_reaches_the_child_once(child: tuple[Upstream, socket.socket]):
    upstream, end = child
    coalescer = WriteCoalescer()
    upstream.begin(Heard())
    upstream.write(b"asked", coalescer)
    with pytest.raises(BlockingIOError):
        end.recv(9)
    for _ in range(3):
        await asyncio.sleep(0)
    assert end.recv(9) == b"asked"


async def test_a_child_that_closes_before_it_was_asked_can_be_asked_again(
    child: tuple[Upstream, socket.socket],
):
    upstream, _ = child
    heard = Heard()
    upstream.begin(heard)
    upstream.write(b"asked", WriteCoalescer())
    upstream.eof_received()
    (error,) = heard.error
    assert isinstance(error, ConnectionError), "by which it is known that it has begun nothing"


async def test_what_nobody_waits_for_any_more_is_not_written(child: tuple[Upstream, socket.socket]):
    upstream, end = child
    upstream.begin(Heard())
    upstream.write(b"asked", WriteCoalescer())
    upstream.close()
    for _ in range(3):
        await asyncio.sleep(0)
    assert end.recv(9) == b""


@pytest.mark.parametrize("size", [5, 1 << 20])
async def test_a_new_connection_is_written_to_before_the_loop_has_it(tmp_path: Path, size: int):
    asked, heard = b"x" * size, Heard()
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(tmp_path / "s"))
        listening.listen()
        upstream = open_upstream(str(tmp_path / "s"), asked, heard)
        end, _ = listening.accept()
        with end:
            end.setblocking(False)
            got = end.recv(size)
            assert got, "it is there already"
            async with asyncio.timeout(5):
                while len(got) < size:
                    got += await asyncio.get_running_loop().sock_recv(end, size)
            assert got == asked
            end.send(b"answered")
            await until(lambda: heard.data == b"answered")
        upstream.close()
        await asyncio.sleep(0)
