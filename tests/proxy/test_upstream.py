"""The connection to a child, on both kinds of loop."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
import uvloop

from router.proxy.body import Body
from tests.deadline import DEADLINE_SECONDS
from tests.proxy.wire import connect, send
from tests.waiting import until

DEADLINE = DEADLINE_SECONDS
LOOPS = pytest.mark.parametrize(
    "loop_factory", [asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"]
)
LoopFactory = Callable[[], asyncio.AbstractEventLoop]


class Hearing:
    """Keeps what comes."""

    def __init__(self) -> None:
        self.heard = b""
        self.over = asyncio.Event()
        self.error: Exception | None = None

    def received(self, data: bytes) -> None:
        self.heard += data

    def lost(self, error: Exception | None) -> None:
        self.error = error
        self.over.set()


@LOOPS
def test_an_answer_is_heard_though_its_child_closed_before_it_had_read_the_request(
    tmp_path: Path, loop_factory: LoopFactory
):
    path = str(tmp_path / "child.sock")

    def serve(listening: socket.socket, closed: threading.Event) -> None:
        connection, _ = listening.accept()
        with connection:
            connection.recv(100)
            connection.sendall(b"HTTP/1.1 413 Too Large\r\nContent-Length: 0\r\n\r\n")
        closed.set()

    async def ask(closed: threading.Event) -> Hearing:
        upstream, hearing = await connect(path), Hearing()
        upstream.begin(hearing)
        await send(upstream, b"POST / HTTP/1.1\r\n", Body())
        closed.wait(DEADLINE)  # the loop has no chance to look before more is written
        async with asyncio.timeout(DEADLINE):
            await send(upstream, b"\r\n", Body.of(bytes(3 << 20)))
            await hearing.over.wait()
        upstream.close()
        return hearing

    with asyncio.Runner(loop_factory=loop_factory) as runner, socket.socket(socket.AF_UNIX) as listening:
        listening.bind(path)
        listening.listen()
        closed = threading.Event()
        child = threading.Thread(target=serve, args=(listening, closed))
        child.start()
        hearing = runner.run(ask(closed))
        child.join()
    assert hearing.heard.startswith(b"HTTP/1.1 413"), hearing.error


@LOOPS
def test_a_request_is_held_back_while_its_child_does_not_read(tmp_path: Path, loop_factory: LoopFactory):
    async def ask() -> None:
        read_on, ended = asyncio.Event(), asyncio.Event()
        read = 0

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            nonlocal read
            writer.transport.pause_reading()  # type: ignore[attr-defined]
            await read_on.wait()
            writer.transport.resume_reading()  # type: ignore[attr-defined]
            while piece := await reader.read(1 << 16):
                read += len(piece)
            writer.close()
            ended.set()

        server = await asyncio.start_unix_server(serve, tmp_path / "child.sock")
        upstream, hearing = await connect(str(tmp_path / "child.sock")), Hearing()
        upstream.begin(hearing)
        body = Body.of(bytes(8 << 20))
        sending = asyncio.get_running_loop().create_task(send(upstream, b"HEAD", body))
        await asyncio.sleep(0.05)  # in which it must not end
        assert not sending.done(), "it waits for the child"
        read_on.set()
        async with asyncio.timeout(DEADLINE):
            await sending
            await until(upstream.end)
        upstream.close()
        async with asyncio.timeout(DEADLINE):
            await until(lambda: read >= body.size + 4)
            await ended.wait()
        server.close()

    with asyncio.Runner(loop_factory=loop_factory) as runner:
        runner.run(ask())


@LOOPS
def test_who_begins_on_a_connection_that_is_lost_by_then_is_told_so(
    tmp_path: Path, loop_factory: LoopFactory
):
    """Its child may die between the turn of the loop in which it is connected and the one that goes on."""
    path = str(tmp_path / "child.sock")

    async def ask(listening: socket.socket, turns: int) -> None:
        upstream, hearing = await connect(path), Hearing()
        listening.accept()[0].close()
        async with asyncio.timeout(DEADLINE):
            await until(lambda: not upstream.is_open)
            for _ in range(turns):
                await asyncio.sleep(0)
            upstream.begin(hearing)
            await send(upstream, b"POST / HTTP/1.1\r\n", Body())
            await hearing.over.wait()

    with socket.socket(socket.AF_UNIX) as listening, asyncio.Runner(loop_factory=loop_factory) as runner:
        listening.bind(path)
        listening.listen()
        for turns in range(8):
            runner.run(ask(listening, turns))


@LOOPS
def test_an_abandoned_request_has_ended_when_its_child_closes(tmp_path: Path, loop_factory: LoopFactory):
    async def abandon() -> None:
        path, go_on, heard = str(tmp_path / "child.sock"), asyncio.Event(), bytearray()

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            heard.extend(await reader.read())  # up to the end of what it is sent
            await go_on.wait()
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
            writer.close()

        async with await asyncio.start_unix_server(serve, path), asyncio.timeout(DEADLINE):
            upstream, hearing = await connect(path), Hearing()
            upstream.begin(hearing)
            await send(upstream, b"POST / HTTP/1.1\r\n\r\n", Body())
            upstream.pause()  # as for a client that does not read
            ended = upstream.abandon()
            assert ended is not None
            await until(lambda: heard)
            assert not ended.done()
            go_on.set()
            await ended
            upstream.close()
            assert not hearing.heard and not hearing.over.is_set()

    with asyncio.Runner(loop_factory=loop_factory) as runner:
        runner.run(abandon())


@LOOPS
def test_a_request_that_its_child_has_not_got_whole_is_no_work_of_its(
    tmp_path: Path, loop_factory: LoopFactory
):
    async def abandon() -> None:
        path, lost = str(tmp_path / "child.sock"), asyncio.Event()

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await lost.wait()
            writer.close()

        async with await asyncio.start_unix_server(serve, path), asyncio.timeout(DEADLINE):
            upstream = await connect(path)
            upstream.begin(Hearing())
            body = Body.of(bytes(8 << 20))
            sending = asyncio.get_running_loop().create_task(send(upstream, b"POST", body))
            await asyncio.sleep(0)
            assert not sending.done(), "it waits for the child"
            assert upstream.abandon() is None
            assert not upstream.is_open
            await sending
            lost.set()

    with asyncio.Runner(loop_factory=loop_factory) as runner:
        runner.run(abandon())
