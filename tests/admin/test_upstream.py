"""Any path of a model's own server, under the model's name."""

from __future__ import annotations

import asyncio
from urllib.parse import urlsplit

import pytest

from tests.admin.conftest import Api
from tests.admin.test_loaded import say_what_was_asked
from tests.admin.upstream import Connection, Received

TINY = {"json": {"model": "tiny"}}


async def on_the_wire(api: Api, head: str) -> bytes:
    where = urlsplit(api.url)
    reader, writer = await asyncio.open_connection(where.hostname, where.port)
    writer.write(head.encode() + b"Host: localhost\r\nConnection: close\r\n\r\n")
    answer = await reader.read()
    writer.close()
    return answer


@pytest.mark.parametrize(
    ("asked", "passed"),
    [
        ("/upstream/tiny/health", "/health"),
        ("/upstream/small/v1/models?x=1&y=%2F%20", "/v1/models?x=1&y=%2F%20"),
        ("/upstream/org/tiny/slots", "/slots"),
        ("/upstream/org%2Ftiny/a%2Fb/%C3%A9//c/", "/a%2Fb/%C3%A9//c/"),
        ("/upstream/org/tiny", "/"),
        ("/upstream/tiny/", "/"),
        ("/upstream/tiny/../../etc/passwd", "/../../etc/passwd"),
    ],
)
async def test_the_rest_of_the_path_passes_encoded_as_it_is(api: Api, asked: str, passed: str):
    await api.start(script=say_what_was_asked)
    await api.post("/v1/completions", **TINY)
    answer = await on_the_wire(api, f"GET {asked} HTTP/1.1\r\n")
    assert answer.endswith(f"\r\n\r\nGET {passed} HTTP/1.1".encode()), answer
    assert {one.model for one in api.pool.acquired} == {"tiny"}


@pytest.mark.parametrize("method", ["GET", "POST", "PUT", "PATCH", "DELETE"])
async def test_every_method_passes_with_its_body(api: Api, method: str):
    async def script(received: Received, connection: Connection) -> None:
        await connection.answer(received.line.encode() + b"|" + received.body)

    await api.start(script=script)
    await api.post("/v1/completions", **TINY)
    answer = await api.call(method, "/upstream/tiny/any", data=b"\x00\xff body")
    assert answer.body == f"{method} /any HTTP/1.1|".encode() + b"\x00\xff body"


async def test_a_get_loads_nothing_unless_it_asks_for_it_and_a_post_as_configured(api: Api):
    await api.start(script=say_what_was_asked)
    refused = await api.get("/upstream/tiny/health")
    assert (refused.status, refused.error["code"]) == (400, "model_not_loaded")
    assert (await api.call("HEAD", "/upstream/tiny/health")).status == 400
    assert (await api.post("/upstream/tiny/tokenize?autoload=0")).status == 400
    assert not api.pool.acquired
    assert (await api.get("/upstream/tiny/health?autoload=1")).status == 200
    assert (await api.post("/upstream/other/tokenize")).status == 200


async def test_an_unknown_model_is_404_with_the_nearest(api: Api):
    await api.start()
    answer = await api.get("/upstream/tinny/health")
    assert (answer.status, answer.error["code"]) == (404, "model_not_found")
    assert "did you mean 'tiny'?" in answer.error["message"]
    assert (await api.get("/upstream/" + "/".join("x" * 3000))).status == 404


async def test_it_is_for_admins(api: Api):
    await api.start(api_keys=("user",), admin_keys=("admin",))
    answer = await api.post("/upstream/tiny/x", headers={"Authorization": "Bearer user"})
    assert (answer.status, answer.error["type"]) == (403, "permission_error")


async def test_and_not_for_foreign_pages(api: Api):
    await api.start(cors_origins=("*",))
    answer = await api.post("/upstream/tiny/x", headers={"Origin": "https://evil.example"})
    assert answer.status == 403
    assert not api.pool.acquired


async def test_a_websocket_is_refused_with_a_word(api: Api):
    await api.start(script=say_what_was_asked)
    head = "GET /upstream/tiny/ws HTTP/1.1\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    answer = await on_the_wire(api, head + "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: eA==\r\n")
    assert answer.startswith(b"HTTP/1.1 501 ")
    assert b"server-sent events" in answer
    assert not api.pool.acquired


async def test_errors_on_anthropics_paths_behind_it_have_anthropics_shape(api: Api):
    await api.start()
    answer = (await api.post("/upstream/nobody/v1/messages")).json()
    assert (answer["type"], answer["error"]["type"]) == ("error", "not_found_error")
