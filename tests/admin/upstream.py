"""A child that does what a test says: a raw HTTP server on a Unix socket that shows the very bytes it
was sent."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Self


@dataclass(slots=True)
class Received:
    """One request as it stood on the wire."""

    line: str
    headers: list[tuple[str, str]]
    body: bytes

    def all(self, name: str) -> list[str]:
        return [value for key, value in self.headers if key.lower() == name.lower()]


class Connection:
    """What a script writes its answer to."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    async def send(self, data: bytes) -> None:
        self._writer.write(data)
        await self._writer.drain()

    async def answer(self, body: bytes, *, head: str = "Content-Type: application/json") -> None:
        start = f"HTTP/1.1 200 OK\r\n{head}\r\nContent-Length: {len(body)}\r\n\r\n".encode()
        await self.send(start + body)

    async def begin_stream(self, head: str = "Content-Type: text/event-stream") -> None:
        await self.send(f"HTTP/1.1 200 OK\r\n{head}\r\nTransfer-Encoding: chunked\r\n\r\n".encode())

    async def chunk(self, data: bytes) -> None:
        await self.send(f"{len(data):x}\r\n".encode() + data + b"\r\n")

    async def end_stream(self) -> None:
        await self.send(b"0\r\n\r\n")

    def die(self) -> None:
        """Close as a killed process does: in the middle of whatever was being said."""
        self._writer.transport.abort()

    async def until_client_left(self) -> None:
        while await self._reader.read(1 << 16):
            pass


#: True: the connection stays open for the next request.
Script = Callable[[Received, Connection], Awaitable[bool | None]]


class Upstream:
    """`async with Upstream(path, script)` listens; the script answers each request."""

    def __init__(self, path: Path, script: Script) -> None:
        self.path = str(path)
        self.requests: list[Received] = []
        self.connections = 0
        self._script = script
        self._tasks: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_unix_server(self._serve, self.path)
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        try:
            is_kept: bool | None = True
            while is_kept:
                received = await _read_request(reader)
                self.requests.append(received)
                is_kept = await self._script(received, Connection(reader, writer))
        except (ConnectionError, asyncio.IncompleteReadError):
            pass  # the router hung up: whether it should is for the test to say
        finally:
            writer.close()


async def _read_request(reader: asyncio.StreamReader) -> Received:
    head = (await reader.readuntil(b"\r\n\r\n")).decode("utf-8", "surrogateescape")
    line, *rest = head.rstrip("\r\n").split("\r\n")
    headers = [(name, value.strip()) for name, _, value in (one.partition(":") for one in rest)]
    received = Received(line, headers, b"")
    if lengths := received.all("Content-Length"):
        received.body = await reader.readexactly(int(lengths[0]))
    return received


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
