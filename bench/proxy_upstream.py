"""What stands behind every proxy of `bench/proxy`: a llama-server without a model, as cheap as Python can be.

It takes llama-server's command line, so that a router can start it, and listens where `--host` says: a Unix
socket, or an address with `--port`. Like llama-server it ends a connection after 100 requests or 5 idle
seconds. What it answers, the request's body says in the field "wish"; without one it is a small chat
completion. Every event of a stream bears the moment at which it was written, in nanoseconds of
CLOCK_MONOTONIC.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import random
import re
import signal
import sys
import time
from typing import Any, Final

import uvloop

MAX_REQUESTS: Final = 100
IDLE_SECONDS: Final = 5.0
#: How many bytes of a long answer are written at a time.
PIECE_BYTES: Final = 1 << 16

_LENGTH = re.compile(rb"\r\ncontent-length:\s*(\d+)", re.IGNORECASE)
_KEPT = b"Server: llama.cpp\r\nKeep-Alive: timeout=5, max=100\r\n"
_CLOSED = b"Server: llama.cpp\r\nConnection: close\r\n"
_COMPLETION = json.dumps(
    {
        "choices": [
            {
                "finish_reason": "stop",
                "index": 0,
                "message": {"role": "assistant", "content": "The quiet river borrows a lantern. " * 4},
            }
        ],
        "created": 0,
        "model": "bench",
        "object": "chat.completion",
        "usage": {"completion_tokens": 32, "prompt_tokens": 8, "total_tokens": 40},
        "id": "chatcmpl-bench",
        "timings": {"prompt_n": 8, "prompt_ms": 9.9, "predicted_n": 32, "predicted_ms": 99.9},
    }
).encode()
_EVENT = (
    b'data: {"choices":[{"finish_reason":null,"index":0,"delta":{"content":" lantern"}}],"created":0,'
    b'"id":"chatcmpl-bench","model":"bench","system_fingerprint":"b0-bench","object":"chat.completion.chunk",'
    b'"t":%020d}\n\n'
)
_EVENT_SIZE = len(_EVENT % 0)
_CHUNK = b"%x\r\n%s\r\n" % (_EVENT_SIZE, _EVENT)
#: Large events: a thousand buffers are to be filled soon, and it is about memory then.
_FLOOD = b"4000\r\ndata: " + b"x" * (0x4000 - 8) + b"\n\n\r\n"
_END = b"e\r\ndata: [DONE]\n\n\r\n0\r\n\r\n"


def _head(headers: bytes, kind: bytes, framing: bytes) -> bytes:
    return b"HTTP/1.1 200 OK\r\n" + headers + b"Content-Type: " + kind + b"\r\n" + framing + b"\r\n\r\n"


def _sized(headers: bytes, body: bytes) -> bytes:
    return _head(headers, b"application/json; charset=utf-8", b"Content-Length: %d" % len(body)) + body


_PLAIN, _LAST_PLAIN = _sized(_KEPT, _COMPLETION), _sized(_CLOSED, _COMPLETION)
_STREAM = _head(_KEPT, b"text/event-stream", b"Transfer-Encoding: chunked")
_LAST_STREAM = _head(_CLOSED, b"text/event-stream", b"Transfer-Encoding: chunked")
_HEALTH = _sized(_CLOSED, b'{"status":"ok"}')

_open: set[Connection] = set()


class Connection(asyncio.Protocol):
    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self.buffer = b""
        self.answered = 0
        self.is_paused = False
        self.is_idle = True
        self.idle_since = loop.time()
        self.resume: Any = None
        self.lengths: dict[bytes, int] = {}

    def connection_made(self, transport: Any) -> None:
        self.transport = transport
        _open.add(self)

    def connection_lost(self, _error: Exception | None) -> None:
        _open.discard(self)
        self.is_idle = False
        self.resume = None

    def pause_writing(self) -> None:
        self.is_paused = True

    def resume_writing(self) -> None:
        self.is_paused = False
        if self.resume is not None:
            self.resume()

    def data_received(self, data: bytes) -> None:
        self.buffer = data = self.buffer + data if self.buffer else data
        end = data.find(b"\r\n\r\n") + 4
        if end < 4:
            return
        head = data[:end]
        length = self.lengths.get(head)
        if length is None:
            found = _LENGTH.search(head)
            length = self.lengths[head] = int(found[1]) if found else 0
            if len(self.lengths) > 4:  # a proxy may number its requests
                self.lengths.clear()
        if len(data) < end + length:
            return
        body, self.buffer = data[end : end + length], data[end + length :]
        self.idle_since = self.loop.time()
        if head.startswith(b"GET"):
            self.transport.write(_HEALTH)
            self.transport.close()
            return
        self.answered += 1
        is_last = self.answered == MAX_REQUESTS
        if b'"wish":' in body:
            self.is_idle = False
            self.answer(json.loads(body)["wish"], is_last)
            return
        self.transport.write(_LAST_PLAIN if is_last else _PLAIN)
        if is_last:
            self.transport.close()

    def answer(self, wish: dict[str, Any], is_last: bool) -> None:
        """{"bytes": n}: so many, of a JSON string; {"events": n, "per_second": r}: a stream; n 0 without an
        end; r 0 as fast as they are taken."""
        if "bytes" in wish:
            self.send_bytes(wish["bytes"], is_last)
            return
        self.transport.write(_LAST_STREAM if is_last else _STREAM)
        events, per_second = wish.get("events", 0), wish.get("per_second", 0)
        if per_second:
            interval = 1 / per_second
            first = 0.0 if events else interval * random.random()
            self.tick(self.loop.time() + first, interval, events, is_last)
        elif events:
            self.transport.write(b"".join(_CHUNK % time.monotonic_ns() for _ in range(events)))
            self.end(is_last)
        else:
            self.resume = self.flood
            self.flood()

    def tick(self, due: float, interval: float, left: int, is_last: bool) -> None:
        if self.transport.is_closing():
            return
        if self.loop.time() >= due:
            self.transport.write(_CHUNK % time.monotonic_ns())
            left -= 1
            if left == 0:
                self.end(is_last)
                return
            due += interval
        self.loop.call_at(due, self.tick, due, interval, left, is_last)

    def flood(self) -> None:
        for _ in range(4):
            if self.is_paused or self.transport.is_closing():
                return
            self.transport.write(_FLOOD)
        self.loop.call_soon(self.flood)

    def send_bytes(self, size: int, is_last: bool) -> None:
        headers = _CLOSED if is_last else _KEPT
        self.transport.write(_head(headers, b"application/json", b"Content-Length: %d" % (size + 2)) + b'"')
        piece = b"x" * PIECE_BYTES
        left = size

        def more() -> None:
            nonlocal left
            while left and not self.is_paused and not self.transport.is_closing():
                self.transport.write(piece[:left])
                left -= min(left, PIECE_BYTES)
            if not left and self.resume is not None:
                self.resume = None
                self.transport.write(b'"')
                self.finish(is_last)

        self.resume = more
        more()

    def end(self, is_last: bool) -> None:
        self.transport.write(_END)
        self.finish(is_last)

    def finish(self, is_last: bool) -> None:
        self.is_idle = True
        self.idle_since = self.loop.time()
        if is_last:
            self.transport.close()


async def serve(host: str, port: int) -> None:
    loop = asyncio.get_running_loop()

    def accept() -> Connection:
        return Connection(loop)

    if host.endswith(".sock"):
        await loop.create_unix_server(accept, host, backlog=4096)
    if port or not host.endswith(".sock"):
        await loop.create_server(accept, "127.0.0.1", port, backlog=4096)
    if "LLAMA_SERVER_ROUTER_PORT" in os.environ:  # llama.cpp's router waits for this line
        ready = {"id": "bench", "aliases": [], "tags": [], "object": "model", "created": 0, "meta": {}}
        state = json.dumps({"state": "ready", "payload": ready})
        sys.stdout.write(f"cmd_child_to_router:state:{state}\n")
        sys.stdout.flush()
    while True:
        await asyncio.sleep(1.0)
        for connection in list(_open):
            if connection.is_idle and loop.time() - connection.idle_since > IDLE_SECONDS:
                connection.transport.close()


def main() -> None:
    arguments = sys.argv[1:]
    if "--version" in arguments:
        sys.stdout.write("version: bench (build 0, commit bench)\n")
        return
    if "--list-devices" in arguments:
        sys.stdout.write("Available devices:\n  (none)\n")
        return
    given = dict(itertools.pairwise(arguments))
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
    uvloop.run(serve(given.get("--host", "127.0.0.1"), int(given.get("--port", 0))))


if __name__ == "__main__":
    main()
