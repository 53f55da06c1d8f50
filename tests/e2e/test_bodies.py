"""Bodies in unusual forms: the router accepts what llama-server accepts, and refuses what it refuses."""

from __future__ import annotations

import asyncio
import gzip
import json
import sys
import zlib
from collections.abc import Callable

import pytest

from tests.e2e.conftest import Start

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

pytestmark = pytest.mark.e2e

BOM = b"\xef\xbb\xbf"
BODY = json.dumps({"model": "one", "content": "größe"}, ensure_ascii=False).encode()
ACCEPTED = {
    "plain": BODY,
    "a byte order mark": BOM + BODY,
    "a NUL": BODY + b"\0",
    "both": BOM + BODY + b"\0\0",
    "more behind a NUL": BODY + b"\0{",
}
REFUSED = {
    "two byte order marks": BOM + BOM + BODY,
    "a NUL first": b"\0" + BODY,
    "UTF-16": BODY.decode().encode("utf-16"),
    "UTF-32": BODY.decode().encode("utf-32-le"),
    "a lone surrogate": rb'{"model":"one\ud800","content":"x"}',
    "not UTF-8": b'{"model":"one\xff","content":"x"}',
    "a number beyond all": b'{"model":"one","content":"x","max_tokens":1e400}',
}


@pytest.mark.parametrize("path", ["/tokenize", "/upstream/one/tokenize"], ids=["router", "llama-server"])
async def test_both_accept_and_refuse_the_same(router: Start, path: str):
    async with router("one") as up:
        await up.chat("one")
        for name, body in ACCEPTED.items():
            async with up.client.post(path, data=body) as answer:
                assert (answer.status, name) == (200, name), await answer.text()
                assert (await answer.json())["tokens"]
        for name, body in REFUSED.items():
            async with up.client.post(path, data=body) as answer:
                # llama-server answers its parser's errors with 500 at some paths.
                assert answer.status in ((400,) if path == "/tokenize" else (400, 500)), name


async def test_compressed_bodies_are_understood_at_every_kind_of_path(router: Start):
    codings: dict[str, Callable[[bytes], bytes]] = {
        "gzip": gzip.compress,
        "deflate": zlib.compress,
        "zstd": zstd.compress,
    }
    async with router("one") as up:
        for coding, encode in codings.items():
            headers = {"Content-Encoding": coding, "Content-Type": "application/json"}
            chat = {"model": "one", "messages": [{"role": "user", "content": "x" * 2000}], "max_tokens": 2}
            for path, body in (
                ("/models/load", {"model": "one"}),
                ("//v1/chat/completions", chat),
                ("/v1/chat/completions/", chat),
                ("/upstream/one/tokenize", {"content": "x"}),
            ):
                async with up.client.post(
                    up.url + path, data=encode(json.dumps(body).encode()), headers=headers
                ) as answer:
                    assert answer.status == 200, await answer.text()


async def test_a_model_whose_name_is_no_ascii_is_reached_by_raw_utf_8(router: Start):
    async with router("größe") as up:
        where = up.url.removeprefix("http://").split(":")
        reader, writer = await asyncio.open_connection(where[0], int(where[1]))
        writer.write(
            "GET /upstream/größe/health?autoload=1 HTTP/1.1\r\n".encode()
            + b"Host: 127.0.0.1\r\nConnection: close\r\n\r\n"
        )
        async with asyncio.timeout(60):
            answer = await reader.read()
        writer.close()
        assert b" 200 " in answer.partition(b"\r\n")[0], answer
        async with up.client.get("/v1/models/größe") as found:
            assert found.status == 200
