"""Whatever goes wrong is one JSON object in OpenAI's shape."""

from __future__ import annotations

import asyncio
import io
import json
from typing import Any, cast
from urllib.parse import urlsplit

from router.errors import LoadFailed, QueueFull
from router.supervisor.pool import Pool
from tests.admin.conftest import Api


async def test_an_unknown_path_names_the_nearest(api: Api):
    await api.start()
    answer = await api.post("/v1/chat/completion")
    assert (answer.status, answer.error["type"]) == (404, "not_found_error")
    assert "Did you mean /v1/chat/completions?" in answer.error["message"]
    assert "Did you mean" not in (await api.get("/qqqqq")).error["message"]


async def test_a_wrong_method_names_the_right_ones(api: Api):
    await api.start()
    answer = await api.get("/v1/chat/completions")
    assert (answer.status, answer.headers["Allow"]) == (405, "POST")
    assert answer.error["message"] == "/v1/chat/completions takes POST, not GET"


async def test_a_body_that_is_too_large_is_413_with_the_limit(api: Api):
    await api.start(max_body_mib=1)
    answer = await api.post("/v1/completions", data=io.BytesIO(b" " * ((1 << 20) + 1)))
    assert (answer.status, answer.error["code"]) == (413, "body_too_large")
    assert "1 MiB (server.max_body_mib)" in answer.error["message"]


async def test_the_details_of_an_error_stand_beside_its_message(api: Api):
    await api.start()
    log = ["loading", "cudaMalloc failed: out of memory"]
    api.pool.refusals = [
        LoadFailed("tiny failed to load", retry_after_seconds=0.2, details={"log_tail": log})
    ]
    answer = await api.post("/v1/completions", json={"model": "tiny"})
    assert answer.error["log_tail"] == log
    assert answer.headers["Retry-After"] == "1"


async def test_a_full_queue_is_429(api: Api):
    await api.start()
    api.pool.refusals = [QueueFull("512 requests are waiting already", retry_after_seconds=10.0)]
    answer = await api.post("/v1/completions", json={"model": "tiny"})
    assert (answer.status, answer.error["type"]) == (429, "rate_limit_error")


async def test_what_nobody_expected_is_500_and_tells_no_secrets(api: Api, monkeypatch, caplog):
    await api.start()

    def fail() -> None:
        raise KeyError("a secret")

    monkeypatch.setattr(cast(Pool, api.pool), "snapshot", fail)
    answer = await api.get("/vram")
    assert (answer.status, answer.error["code"]) == (500, "internal_error")
    assert b"secret" not in answer.body
    assert "GET /vram failed" in caplog.text


async def test_odd_requests_are_answered_and_not_crashed_on(api: Api):
    await api.start()
    for path in (
        "/%",
        "/%ff",
        "/../../etc/passwd",
        "//v1/nothing",
        "/v1/models/%2e%2e%2f",
        "/v1/models/" + "x" * 4000,
    ):
        assert (await api.get(path)).status in (400, 404)


async def test_on_anthropics_paths_errors_have_anthropics_shape(api: Api):
    await api.start(api_keys=("secret",))
    key = {"x-api-key": "secret"}
    for path in ("/v1/messages", "/v1/messages/count_tokens"):
        seen = {}
        asked: dict[str, dict[str, Any]] = {
            "authentication_error": {},
            "not_found_error": {"json": {"model": "nobody"}, "headers": key},
            "invalid_request_error": {"data": b"{", "headers": key},
        }
        for kind, options in asked.items():
            answer = (await api.post(path, **options)).json()
            assert answer["type"] == "error"
            seen[kind] = answer["error"]["type"]
            assert answer["error"]["message"]
        assert list(seen) == list(seen.values())
    api.pool.refusals = [LoadFailed("no", retry_after_seconds=3), QueueFull("full", retry_after_seconds=1)]
    for kind, status in (("overloaded_error", 503), ("rate_limit_error", 429)):
        refused = await api.post("/v1/messages", json={"model": "tiny"}, headers=key)
        assert (refused.status, refused.json()["error"]["type"]) == (status, kind)
        assert "Retry-After" in refused.headers
    wrong = await api.get("/v1/messages", headers=key)
    assert (wrong.status, wrong.json()["error"]["type"]) == (405, "invalid_request_error")


async def test_who_asks_first_is_let_on_unless_the_body_is_too_large_or_something_else_is_expected(api: Api):
    await api.start(max_body_mib=1)
    where = urlsplit(api.url)

    async def asked(expected: str, length: int) -> bytes:
        reader, writer = await asyncio.open_connection(where.hostname, where.port)
        fields = f"Host: localhost\r\nExpect: {expected}\r\nContent-Length: {length}\r\n"
        writer.write(f"POST /v1/completions HTTP/1.1\r\n{fields}\r\n".encode())
        answer = await reader.readuntil(b"\r\n\r\n")
        if answer.startswith(b"HTTP/1.1 100 "):
            writer.write(b'{"model":"tiny"}'.ljust(length))
            answer = await reader.readuntil(b"\r\n\r\n")
        writer.close()
        return answer.split(b" ")[1]

    assert await asked("100-continue", 1000) == b"200"
    assert await asked("100-Continue", 1 << 21) == b"413"
    assert await asked("200-ok", 1000) == b"417"


async def test_a_body_nested_too_deeply_is_refused_and_no_crash(api: Api):
    await api.start()
    for path in ("/models/load", "/v1/completions", "/v1/streams/lookup"):
        answer = await api.post(path, data=b'{"conversation_ids":' + b"[" * 100_000)
        assert answer.status == 400


async def test_a_body_that_does_not_come_is_408_in_the_words_of_its_path_and_ends_the_connection(api: Api):
    await api.start(request_body_seconds=0.2)
    where = urlsplit(api.url)
    for path, shape in (("/v1/completions", "error"), ("/models/load", "error"), ("/v1/messages", "type")):
        reader, writer = await asyncio.open_connection(where.hostname, where.port)
        writer.write(
            f'POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n\r\n{{"model":'.encode()
        )
        head = await reader.readuntil(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 408 ")
        assert b"Connection: close" in head
        length = next(int(line.split(b":")[1]) for line in head.split(b"\r\n") if b"Content-Length" in line)
        body = json.loads(await reader.readexactly(length))
        assert shape in body
        assert "9 bytes of the body came" in body["error"]["message"]
        writer.close()
    assert not api.pool.acquired
