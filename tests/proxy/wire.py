"""Both ends of a conversation, as bytes: a child that follows scripts, and a client that reads what it gets
as RFC 9112 says, neither of them with a library."""

from __future__ import annotations

import asyncio
import itertools
import socket
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

from router.proxy.body import Body
from router.proxy.upstream import Upstream
from tests.proxy.exchanges import NAME, Request

Headers = list[tuple[str, str]]


@dataclass(slots=True)
class Message:
    """A request or an answer as it was read. Not `is_complete`: the connection ended before it did."""

    start: str = ""
    headers: Headers = field(default_factory=list)
    body: bytes = b""
    trailers: bytes = b""
    interim: list[str] = field(default_factory=list)
    is_complete: bool = False
    is_reset: bool = False

    @property
    def has_head(self) -> bool:
        return bool(self.start)

    @property
    def status(self) -> int:
        return int(self.start.split(" ")[1])

    def get(self, name: str) -> str:
        return next((value for key, value in self.headers if key.lower() == name.lower()), "")


async def connect(path: str) -> Upstream:
    """A connection to an instance on which nothing was sent yet."""
    own = socket.socket(socket.AF_UNIX)
    own.setblocking(False)
    own.connect(path)
    upstream = Upstream(own)
    await asyncio.get_running_loop().create_unix_connection(lambda: upstream, sock=own)
    return upstream


async def send(upstream: Upstream, head: bytes, body: Body) -> None:
    upstream.write(head)
    await upstream.write_body(body)


class ScriptedChild:
    """Answers each request on a connection as its script says. `connections` are those that are open."""

    def __init__(self, path: Path, scripts: Mapping[str, Request]) -> None:
        self.path = str(path)
        self.heard: dict[str, list[Message]] = {}
        self.served = 0
        self.opened = 0
        self.connections = 0
        self._scripts = scripts
        self._tasks: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_unix_server(self._serve, self.path, limit=1 << 22)
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        self.connections += 1
        self.opened += 1
        try:
            for count in itertools.count(1):
                request = await read_request(reader)
                if not request.is_complete:
                    break
                if not await self._answer(request, writer, count):
                    break
        except (ConnectionError, asyncio.CancelledError):
            pass
        finally:
            self.connections -= 1
            self._tasks.discard(task)
            writer.close()

    async def _answer(self, request: Message, writer: asyncio.StreamWriter, count: int) -> bool:
        """False: the connection ends here."""
        name = request.get(NAME)
        self.heard.setdefault(name, []).append(request)
        self.served += 1
        answer = self._scripts[name].answer
        left = answer.dies_after
        for part in answer.parts:
            if left is not None and left < len(part):
                writer.write(part[:left])
                await asyncio.sleep(0)
                writer.transport.abort()
                return False
            left = left - len(part) if left is not None else None
            writer.write(part)
            await writer.drain()
            await asyncio.sleep(0)
        return answer.keeps_connection and count < 100


async def read_request(reader: asyncio.StreamReader) -> Message:
    found = Message()
    await _read_head(reader, found)
    if found.has_head:
        await _read_body(reader, found, is_answer=False)
    return found


async def read_answer(reader: asyncio.StreamReader, *, to_head: bool = False) -> Message:
    found = Message()
    try:
        while True:
            await _read_head(reader, found)
            if not found.has_head or found.status >= 200:
                break
            found.interim.append(found.start)
            found.start, found.headers = "", []
        if found.has_head:
            if to_head or found.status in (204, 304):
                found.is_complete = True
            else:
                await _read_body(reader, found, is_answer=True)
    except ConnectionError:
        found.is_reset = True
    return found


async def _read_head(reader: asyncio.StreamReader, into: Message) -> None:
    try:
        head = await reader.readuntil(b"\r\n\r\n")
    except asyncio.IncompleteReadError:
        return
    into.start, *lines = head.decode("latin-1")[:-4].split("\r\n")
    into.headers = [(k, v.strip(" \t")) for k, _, v in (line.partition(":") for line in lines)]


async def _read_body(reader: asyncio.StreamReader, into: Message, *, is_answer: bool) -> None:
    if into.get("Transfer-Encoding").lower() == "chunked":
        await _read_chunks(reader, into)
    elif into.get("Content-Length"):
        await _read_counted(reader, into, int(into.get("Content-Length")))
        into.is_complete = len(into.body) == int(into.get("Content-Length"))
    elif is_answer:
        while piece := await reader.read(1 << 16):
            into.body += piece
        into.is_complete = True
    else:
        into.is_complete = True


async def _read_counted(reader: asyncio.StreamReader, into: Message, size: int) -> None:
    pieces = []
    while size and (piece := await reader.read(min(size, 1 << 16))):
        pieces.append(piece)
        size -= len(piece)
    into.body += b"".join(pieces)


async def _read_chunks(reader: asyncio.StreamReader, into: Message) -> None:
    while True:
        line = await reader.readline()
        if not line.endswith(b"\r\n"):
            return
        size = int(line.split(b";")[0].strip(), 16)
        if size == 0:
            break
        before = len(into.body)
        await _read_counted(reader, into, size)
        if len(into.body) - before < size or await reader.read(1) != b"\r" or await reader.read(1) != b"\n":
            return
    while (line := await reader.readline()).endswith(b"\r\n"):
        if line == b"\r\n":
            into.is_complete = True
            return
        into.trailers += line
