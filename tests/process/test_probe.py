from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest

from router.process import Health, LogFile, get_status
from router.process.probe import NotReady, pause_seconds, wait_ready
from tests.scarcity import few_descriptors

Talk = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@contextlib.asynccontextmanager
async def serving(socket: Path, talk: Talk) -> AsyncIterator[None]:
    async def close_after(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await talk(reader, writer)
        finally:
            writer.close()

    server = await asyncio.start_unix_server(close_after, socket)
    async with server:
        yield


async def asked(socket: Path, *chunks: bytes) -> int | None:
    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"GET /health HTTP/1.1\r\n")
        for chunk in chunks:
            writer.write(chunk)
            await writer.drain()

    async with serving(socket, talk):
        return await get_status(socket, "/health", timeout_seconds=10)


@pytest.mark.parametrize(
    ("chunks", "status"),
    [
        ((b"HTTP/1.1 200 OK\r\n\r\n",), 200),
        ((b"HTTP/1.1 503 Service Unavailable\r\n\r\nloading",), 503),
        ((b"HTTP", b"/1.1 2", b"00 OK\r\n\r\n"), 200),
        ((b"HTTP/1.1 200",), 200),
        ((b"",), None),
        ((b"HTTP/1.1 2",), None),
        ((b"SSH-2.0-OpenSSH_9.2p1\r\n",), None),
        ((b"HTTP/1.1 OK 200\r\n\r\n",), None),
        ((b"\x00" * 100,), None),
    ],
)
async def test_the_status_is_read_from_whatever_comes(tmp_path, chunks, status):
    assert await asked(tmp_path / "s.sock", *chunks) == status


async def test_nobody_there_is_no_status(tmp_path):
    assert await get_status(tmp_path / "none.sock", "/health", timeout_seconds=10) is None
    (tmp_path / "file.sock").write_text("no socket")
    assert await get_status(tmp_path / "file.sock", "/health", timeout_seconds=10) is None


async def test_a_peer_that_never_answers_costs_only_its_time(tmp_path):
    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()

    async with serving(tmp_path / "s.sock", talk):
        assert await get_status(tmp_path / "s.sock", "/health", timeout_seconds=0.05) is None


async def test_a_load_that_cannot_be_looked_at_for_want_of_files_is_not_called_hung(tmp_path):
    log = LogFile(tmp_path / "log", 1 << 20)
    health = Health(stall_seconds=0.8, timeout_seconds=2.0)
    with few_descriptors(0), pytest.raises(NotReady, match="was not ready after"):
        await wait_ready(os.getpid(), tmp_path / "none.sock", log, health)


def test_a_short_load_is_asked_after_often_and_a_long_one_as_configured() -> None:
    """Its end is seen within 3 % of its length, or within the configured poll where that is less."""
    pauses = [pause_seconds(elapsed, 0.02) for elapsed in (0.0, 0.1, 0.3, 0.5, 1.0, 100.0)]
    assert pauses == pytest.approx([0.002, 0.003, 0.009, 0.015, 0.02, 0.02])
    assert pause_seconds(100.0, 0.001) == 0.001
