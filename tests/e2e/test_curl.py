"""What `curl` gets from the router is, byte for byte, what it gets from the llama-server behind it."""

from __future__ import annotations

import asyncio
import json
import re
import shutil
from dataclasses import dataclass
from typing import Any

import pytest

from tests.e2e.conftest import Start
from tests.router_process import RouterProcess

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.skipif(shutil.which("curl") is None, reason="needs curl"),
]

#: Headers that the router adds to what a child says, and those that it leaves out.
ADDED = {"x-router-action", "x-router-queue-ms", "x-router-load-ms"}
ADDED_TO_STREAMS = ADDED | {"x-accel-buffering"}
LEFT_OUT = {"keep-alive", "access-control-allow-origin", "access-control-allow-credentials"}
#: Whether and how long a connection stays is a matter of each connection.
OF_THE_CONNECTION = {"connection"}
#: Drawn anew, or measured, for every answer.
OF_THE_MOMENT = re.compile(
    rb'"(?:id|created|created_at|completed_at|prompt_ms|prompt_per_token_ms|prompt_per_second|predicted_ms|'
    rb'predicted_per_token_ms|predicted_per_second|t_start|item_id|cache_n|prompt_n)":(?:"[^"]*"|[\d.e+-]+)'
)

HELLO: dict[str, Any] = {"model": "one", "messages": [{"role": "user", "content": "hello"}]}
SURE = {"max_tokens": 6, "seed": 1, "temperature": 0, "cache_prompt": False}
ASKED: dict[str, tuple[str, dict[str, Any]]] = {
    "chat": ("/v1/chat/completions", HELLO | SURE),
    "chat streamed": ("/v1/chat/completions", HELLO | SURE | {"stream": True}),
    "messages": ("/v1/messages", HELLO | SURE),
    "messages streamed": ("/v1/messages", HELLO | SURE | {"stream": True}),
    "completion": ("/completion", {"model": "one", "prompt": "hello", "n_predict": 6} | SURE),
    "completion streamed": ("/v1/completions", {"model": "one", "prompt": "hello", "stream": True} | SURE),
    "responses streamed": ("/v1/responses", {"model": "one", "input": "hello", "stream": True} | SURE),
    "count_tokens": ("/v1/messages/count_tokens", HELLO),
    "tokenize": ("/tokenize", {"model": "one", "content": "hello, world"}),
    "detokenize": ("/detokenize", {"model": "one", "tokens": [300, 301, 302]}),
    "apply-template": ("/apply-template", HELLO),
    "what the child refuses": ("/v1/chat/completions", {"model": "one", "messages": "hello"}),
    "a path for other models": ("/v1/embeddings", {"model": "one", "input": "hello"}),
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Got:
    status: str
    headers: dict[str, str]
    body: bytes


async def curl(*arguments: str) -> Got:
    process = await asyncio.create_subprocess_exec(
        "curl", "-sS", "-i", "--http1.1", "--max-time", "30", *arguments,
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    output, errors = await process.communicate()
    assert process.returncode == 0, errors.decode()
    head, _, body = output.partition(b"\r\n\r\n")
    status, *lines = head.decode().split("\r\n")
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    return Got(status, headers, body)


async def both(up: RouterProcess, path: str, *more: str) -> tuple[Got, Got]:
    """From the router, and from the child itself."""
    (name,) = up.sockets()
    through = await curl(up.url + path, *more)
    direct = await curl("--unix-socket", str(up.state / "run" / name), f"http://localhost{path}", *more)
    return through, direct


def steady(got: Got) -> bytes:
    return OF_THE_MOMENT.sub(b'"":0', got.body)


async def test_bodies_are_the_same_and_headers_differ_only_as_listed(router: Start):
    async with router("one") as up:
        assert (await up.chat("one"))[0] == 200
        for what, (path, body) in ASKED.items():
            posted = ("-H", "Content-Type: application/json", "-d", json.dumps(body))
            through, direct = await both(up, path, *posted)
            assert through.status == direct.status, what
            assert steady(through) == steady(direct), what
            assert len(steady(through)) > 10, what
            is_stream = through.headers["content-type"].startswith("text/event-stream")
            added = ADDED_TO_STREAMS if is_stream else ADDED
            theirs = direct.headers.keys() - LEFT_OUT - OF_THE_CONNECTION
            assert through.headers.keys() - OF_THE_CONNECTION == theirs | added, what
            for name in theirs - {"content-length"}:
                assert through.headers[name] == direct.headers[name], (what, name)


async def test_what_is_looked_at_is_the_same_too(router: Start):
    async with router("one") as up:
        assert (await up.chat("one"))[0] == 200
        for path in ("/props?model=one", "/slots?model=one", "/lora-adapters?model=one"):
            through, direct = await both(up, path)
            assert (through.status, through.body) == (direct.status, direct.body)
            assert through.headers["content-type"] == direct.headers["content-type"]


async def test_the_rest_is_the_same_behind_upstream(router: Start):
    async with router("one") as up:
        assert (await up.chat("one"))[0] == 200
        (name,) = up.sockets()
        socket = str(up.state / "run" / name)
        for path in ("/health", "/v1/models", "/nothing/at%20all?x=%2F"):
            through = await curl(f"{up.url}/upstream/one{path}")
            direct = await curl("--unix-socket", socket, f"http://localhost{path}")
            assert (through.status, steady(through)) == (direct.status, steady(direct))
