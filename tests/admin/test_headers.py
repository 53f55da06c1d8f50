"""Headers with bytes that are not text: refused where the router reads them, passed where it does not."""

from __future__ import annotations

import asyncio
import json

import pytest

from tests.admin.conftest import Api
from tests.http.test_inference import PATH, calling, said
from tests.proxy.wire import Message, read_answer

BAD = "\xff\xfe"


async def ask(api: Api, method: str, path: str, header: str, body: bytes = b"") -> Message:
    reader, writer = await asyncio.open_connection("127.0.0.1", int(api.url.rpartition(":")[2]))
    head = f"{method} {path} HTTP/1.1\r\nHost: localhost\r\n{header}\r\nContent-Length: {len(body)}\r\n\r\n"
    writer.write(head.encode("latin-1") + body)
    async with asyncio.timeout(5):
        answer = await read_answer(reader, to_head=method == "HEAD")
    writer.close()
    return answer


@pytest.mark.parametrize(
    "name",
    ["X-Router-Keep-Alive", "x-router-priority", "X-Router-Other", "Origin", "X-Conversation-Id"],
)
@pytest.mark.parametrize("cors_origins", [(), ("*",)])
async def test_bytes_that_are_not_utf_8_are_refused_where_they_would_be_read(
    api: Api, name: str, cors_origins: tuple[str, ...]
):
    await api.start(cors_origins=cors_origins)
    body = b'{"model":"tiny","stream":true}'
    for path in (PATH, "/models/load", "/nowhere"):
        answer = await ask(api, "POST", path, f"{name}: a{BAD}", body)
        assert " 400 " in answer.start, path
        assert f"the header {name} is not UTF-8: byte 1 is 0xff".encode() in answer.body
    assert not api.pool.acquired and not api.pool.instances


async def test_a_preflight_with_such_bytes_is_refused_as_well(api: Api):
    await api.start(cors_origins=("*",))
    answer = await ask(api, "OPTIONS", PATH, f"Origin: http://a\r\nAccess-Control-Request-Headers: {BAD}")
    assert " 400 " in answer.start


@pytest.mark.parametrize("name", ["User-Agent", "Cookie", "X-Own", "Content-Type"])
async def test_any_other_header_passes_on_both_ways_as_it_came(api: Api, name: str):
    await api.start()
    async with calling(api) as caller:
        short = await caller.ask(
            said().replace(b"Host: localhost", f"Host: localhost\r\n{name}: {BAD}".encode("latin-1"))
        )
    long = await ask(
        api, "POST", PATH, f"{name}: {BAD}\r\nX-Router-Priority: low", said().partition(b"\r\n\r\n")[2]
    )
    assert " 200 " in short.start and " 200 " in long.start


async def test_an_error_that_says_such_bytes_again_is_json(api: Api):
    await api.start()
    answer = await ask(api, "POST", PATH, f"Content-Type: a/{BAD}", b"x")
    assert " 400 " in answer.start
    assert json.loads(answer.body)["error"]["message"]


@pytest.mark.parametrize("path", ["/v1/models", "/status", "/metrics", "/explain?model=tiny", "/vram", "/"])
@pytest.mark.parametrize(
    "name",
    ["Accept", "Accept-Language", "Authorization", "x-api-key", "If-None-Match", "Range", "Content-Type",
     "Last-Event-ID", "Upgrade", "Content-Encoding"],
)  # fmt: skip
async def test_what_is_only_compared_is_compared(api: Api, path: str, name: str):
    await api.start()
    assert " 200 " in (await ask(api, "GET", path, f"{name}: {BAD}")).start


@pytest.mark.parametrize(
    "value", ["\xff", "1e999", "9" * 320, "9" * 320 + "h", "-inf", "1e10", "0x10", "\xd9\xa3", "", "1_0"]
)
async def test_a_keep_alive_by_header_is_in_bounds_or_refused(api: Api, value: str):
    await api.start()
    answer = await ask(api, "POST", PATH, f"X-Router-Keep-Alive: {value}", b'{"model":"tiny"}')
    assert " 400 " in answer.start
    assert (await api.get("/status")).status == 200
