"""Connections that are used again: never one that may be closed, and no request lost or said twice by it."""

from __future__ import annotations

import asyncio
import errno
import socket
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from router.proxy import idle
from tests.admin.upstream import Connection, Received
from tests.proxy.bench import DEADLINE, Bench
from tests.waiting import until

KEPT = "Content-Type: application/json\r\nKeep-Alive: timeout=5, max=100"


async def keep(received: Received, connection: Connection) -> bool:
    await connection.answer(received.body, head=KEPT)
    return True


async def ask(bench: Bench, body: bytes = b"{}") -> bytes:
    async with asyncio.timeout(DEADLINE), bench.post(body) as answer:
        assert answer.status == 200, await answer.text()
        return await answer.read()


async def test_a_connection_that_its_child_promises_to_keep_is_used_again(bench: Bench):
    child = await bench.child(keep)
    assert [await ask(bench, body) for body in (b"1", b"2", b"3")] == [b"1", b"2", b"3"]
    assert child.connections == 1


async def test_simultaneous_requests_have_connections_of_their_own(bench: Bench):
    together = asyncio.Barrier(3)

    async def wait(received: Received, connection: Connection) -> bool:
        await together.wait()
        return await keep(received, connection)

    child = await bench.child(wait)
    await asyncio.gather(ask(bench), ask(bench), ask(bench))
    assert child.connections == 3


async def test_no_connection_is_used_again_after_a_stream_whatever_that_promised(bench: Bench):
    async def stream(_: Received, connection: Connection) -> bool:
        await connection.begin_stream("Content-Type: text/event-stream\r\nKeep-Alive: timeout=5, max=100")
        await connection.end_stream()
        return True

    child = await bench.child(stream)
    await ask(bench)
    await ask(bench)
    assert child.connections == 2


async def test_no_connection_is_used_again_after_an_answer_that_came_before_the_request_was_read(
    bench: Bench,
):
    async def hasty(received: Received, connection: Connection) -> bool:
        return await keep(received, connection)

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.transport.pause_reading()  # type: ignore[attr-defined]
        writer.write(f"HTTP/1.1 413 Too Large\r\n{KEPT}\r\nContent-Length: 2\r\n\r\n{{}}".encode())
        opened.append(writer)

    opened: list[asyncio.StreamWriter] = []
    child = await bench.child(hasty)
    Path(child.path).unlink()
    server = await asyncio.start_unix_server(serve, child.path)
    for _ in range(2):
        async with asyncio.timeout(DEADLINE), bench.post(bytes(4 << 20)) as answer:
            assert answer.status == 413
    assert len(opened) == 2
    server.close()
    for writer in opened:
        writer.close()


async def test_a_connection_that_was_closed_meanwhile_costs_nothing(bench: Bench):
    closing: list[Connection] = []

    async def script(received: Received, connection: Connection) -> bool:
        closing.append(connection)
        return await keep(received, connection)

    child = await bench.child(script)
    await ask(bench)
    closing[0].die()
    assert await ask(bench, b"again") == b"again"
    assert child.connections == 2


async def test_a_connection_is_given_up_before_its_child_ends_it(bench: Bench, monkeypatch):
    monkeypatch.setattr(idle, "MOST_SERVED", 3)
    child = await bench.child(keep)
    for _ in range(7):
        await ask(bench)
    assert child.connections == 3


async def test_a_connection_that_nobody_needs_is_closed(bench: Bench, monkeypatch):
    monkeypatch.setattr(idle, "LONGEST_SECONDS", 0.02)
    left = asyncio.Event()

    async def script(received: Received, connection: Connection) -> bool:
        if left.is_set():
            return False
        await keep(received, connection)
        await connection.until_client_left()
        left.set()
        return False

    await bench.child(script)
    await ask(bench)
    async with asyncio.timeout(DEADLINE):
        await left.wait()


Serve = Callable[[asyncio.AbstractEventLoop, socket.socket, int], Awaitable[bool]]


async def with_child(bench: Bench, serve: Serve) -> int:
    """Two requests to a child that reads no more than `serve` does; how many connections it had."""
    child = await bench.child(keep)
    Path(child.path).unlink()
    loop, count = asyncio.get_running_loop(), 0
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(child.path)
        listening.listen()
        listening.setblocking(False)

        async def accept() -> None:
            nonlocal count
            while True:
                connection, _ = await loop.sock_accept(listening)
                count += 1
                with connection:
                    while await serve(loop, connection, count):
                        pass

        accepting = loop.create_task(accept())
        try:
            assert await ask(bench, b"1") == b"{}"
            async with asyncio.timeout(DEADLINE), bench.post(b"2") as answer:
                assert answer.status in (200, 502)
                return count if answer.status == 200 else -count
        finally:
            accepting.cancel()
            await asyncio.gather(accepting, return_exceptions=True)


async def answer_one(loop: asyncio.AbstractEventLoop, connection: socket.socket) -> None:
    await loop.sock_recv(connection, 1 << 16)
    await loop.sock_sendall(
        connection, f"HTTP/1.1 200 OK\r\n{KEPT}\r\nContent-Length: 2\r\n\r\n{{}}".encode()
    )


async def until_readable(loop: asyncio.AbstractEventLoop, connection: socket.socket) -> None:
    readable = asyncio.Event()
    loop.add_reader(connection, readable.set)
    await readable.wait()
    loop.remove_reader(connection)


async def test_a_request_that_meets_the_close_is_said_again_as_it_was_not_read(bench: Bench):
    answered: list[int] = []

    async def serve(loop: asyncio.AbstractEventLoop, connection: socket.socket, number: int) -> bool:
        if number == 1 and answered:
            await until_readable(loop, connection)
            return False  # closed with the request unread
        await answer_one(loop, connection)
        answered.append(number)
        return True

    assert await with_child(bench, serve) == 2
    assert answered == [1, 2]


async def test_a_request_that_was_read_is_not_said_again(bench: Bench, monkeypatch):
    monkeypatch.setattr("router.proxy.failures.EXIT_NOTICE_SECONDS", 0.02)
    answered: list[int] = []

    async def serve(loop: asyncio.AbstractEventLoop, connection: socket.socket, number: int) -> bool:
        if answered:
            await loop.sock_recv(connection, 1 << 16)
            return False  # closed when it may have been begun
        await answer_one(loop, connection)
        answered.append(number)
        return True

    assert await with_child(bench, serve) == -1


async def test_a_child_with_too_many_waiting_for_it_is_tried_again(bench: Bench):
    child = await bench.child(keep)
    Path(child.path).unlink()
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(child.path)
        listening.listen(0)
        waiting = []
        with pytest.raises(BlockingIOError) as refused:
            while True:
                waiting.append(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK))
                waiting[-1].connect(child.path)
        assert refused.value.errno == errno.EAGAIN
        asking = asyncio.get_running_loop().create_task(ask(bench))
        await until(lambda: bench.pool.granted)
        listening.setblocking(False)
        loop = asyncio.get_running_loop()
        accepted = []
        async with asyncio.timeout(DEADLINE):
            while not asking.done():
                connection, _ = await loop.sock_accept(listening)
                accepted.append(connection)
                if len(accepted) == len(
                    waiting
                ):  # all but ours had been there before; one of them was refused
                    await answer_one(loop, connection)
                    assert await asking == b"{}"
        for one in (*waiting, *accepted):
            one.close()
