"""Inference paths: the head is read, the alias resolved, the body passed on."""

from __future__ import annotations

import asyncio
import gzip
import json
import sys
import zlib
from collections.abc import AsyncIterator, Callable

import pytest

from router.admin.openai import FORM_PATHS, INFERENCE_PATHS
from router.errors import WaitTimeout
from router.scheduler.types import Priority, State
from tests.admin.conftest import Api
from tests.admin.fake_pool import Instance
from tests.admin.upstream import Connection, Received

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd


@pytest.mark.parametrize("path", INFERENCE_PATHS)
async def test_every_inference_path_reaches_the_child(api: Api, path: str):
    await api.start()
    answer = await api.post(path, json={"model": "tiny", "x": 1})
    assert answer.status == 200
    assert answer.json() == {"model": "tiny", "x": 1}


async def test_an_alias_is_resolved_for_the_pool_and_stays_in_the_body(api: Api):
    await api.start()
    answer = await api.post("/v1/completions", json={"model": "org/tiny"})
    assert answer.json()["model"] == "org/tiny"
    assert api.pool.acquired[0].model == "tiny"


async def test_the_head_reaches_the_pool(api: Api):
    await api.start()
    body = {"model": "tiny", "keep_alive": "10m", "max_tokens": 32}
    await api.post("/v1/chat/completions", json=body, headers={"X-Router-Priority": "low"})
    asked = api.pool.acquired[0]
    assert (asked.keep_alive, asked.size, asked.priority) == (600.0, 32.0, Priority.LOW)


async def test_an_unknown_model_is_404_with_the_names_and_the_nearest(api: Api):
    await api.start()
    answer = await api.post("/v1/chat/completions", json={"model": "tinny"})
    assert answer.status == 404
    assert answer.error["type"] == "not_found_error"
    assert answer.error["code"] == "model_not_found"
    assert "did you mean 'tiny'?" in answer.error["message"]
    assert "other" in answer.error["message"]
    assert "hidden" not in answer.error["message"]


async def test_a_hidden_model_answers_whoever_knows_its_name(api: Api):
    await api.start()
    assert (await api.post("/v1/completions", json={"model": "hidden"})).status == 200


async def test_a_wrong_request_does_not_reach_the_pool(api: Api):
    await api.start()
    for body in (b"", b"{", b"[]", b'{"model":1}', b'{"model":"tiny","keep_alive":"soon"}'):
        answer = await api.post("/v1/chat/completions", data=body)
        assert answer.status == 400
        assert answer.error["type"] == "invalid_request_error"
    assert not api.pool.acquired


async def test_without_autoload_a_model_must_be_loaded_first(api: Api):
    await api.start(autoload=False)
    answer = await api.post("/v1/completions", json={"model": "small"})
    assert answer.status == 400
    assert answer.error["code"] == "model_not_loaded"
    assert 'POST /models/load {"model": "tiny"}' in answer.error["message"]
    assert (await api.post("/models/load?wait=1", json={"model": "small"})).status == 200
    assert (await api.post("/v1/completions", json={"model": "small"})).status == 200


async def test_without_autoload_a_model_on_its_way_out_counts_as_not_loaded(api: Api):
    await api.start(autoload=False)
    api.pool.instances["tiny#1"] = Instance("tiny#1", "tiny", "", State.DRAINING)
    assert (await api.post("/v1/completions", json={"model": "tiny"})).status == 400


async def test_a_refusal_says_when_to_come_again(api: Api):
    await api.start()
    api.pool.refusals = [WaitTimeout("tiny was not available within 600 s", retry_after_seconds=9.2)]
    answer = await api.post("/v1/completions", json={"model": "tiny"})
    assert (answer.status, answer.headers["Retry-After"]) == (503, "10")


async def test_anthropic_streams_break_off_in_their_own_dialect(api: Api):
    async def script(_: Received, connection: Connection) -> None:
        await connection.begin_stream()
        await connection.chunk(b"event: ping\ndata: {}\n\n")
        api.pool.exit("tiny#1")
        connection.die()

    await api.start(script=script)
    answer = await api.post("/v1/messages", json={"model": "tiny"})
    assert b"event: error\ndata: " in answer.body


async def test_ten_requests_at_once_are_ten_answers(api: Api):
    await api.start()
    bodies = [{"model": "tiny", "n": number} for number in range(10)]
    answers = await asyncio.gather(*(api.post("/v1/completions", json=body) for body in bodies))
    assert [answer.json() for answer in answers] == bodies


def form(boundary: str = "xYz") -> tuple[bytes, dict[str, str]]:
    """As a client writes it: the file first, binary, and the model behind it."""
    body = (
        f'--{boundary}\r\nContent-Disposition: form-data; name="file"; filename="a.wav"\r\n'
        "Content-Type: audio/wav\r\n\r\n"
    ).encode()
    body += bytes(range(256)) * 3000 + f"\r\n--{boundary}\r\n".encode()
    body += f'Content-Disposition: form-data; name="model"\r\n\r\nsmall\r\n--{boundary}--\r\n'.encode()
    return body, {"Content-Type": f"multipart/form-data; boundary={boundary}"}


@pytest.mark.parametrize("path", FORM_PATHS)
async def test_a_form_passes_byte_for_byte_to_the_model_it_names(api: Api, path: str):
    async def script(received: Received, connection: Connection) -> None:
        assert received.all("Content-Type") == ["multipart/form-data; boundary=xYz"]
        await connection.answer(received.body)

    await api.start(script=script)
    body, headers = form()
    answer = await api.post(path, data=body, headers=headers)
    assert answer.body == body
    assert api.pool.acquired[0].model == "tiny"


async def test_a_form_without_a_model_says_so_and_one_with_a_query_needs_none(api: Api):
    await api.start()
    body, headers = form()
    body = body.replace(b'name="model"', b'name="other"')
    answer = await api.post("/v1/audio/transcriptions", data=body, headers=headers)
    assert (answer.status, answer.error["type"]) == (400, "invalid_request_error")
    assert not api.pool.acquired
    answer = await api.post("/v1/audio/transcriptions?model=tiny", data=body, headers=headers)
    assert answer.body == body


async def test_a_request_may_say_itself_whether_it_loads(api: Api):
    await api.start(autoload=False)
    assert (await api.post("/v1/completions?autoload=1", json={"model": "tiny"})).status == 200
    assert (await api.post("/v1/completions?autoload=0", json={"model": "other"})).status == 400


# --- compressed bodies ---

ENCODE: dict[str, Callable[[bytes], bytes]] = {
    "gzip": gzip.compress,
    "deflate": zlib.compress,
    "zstd": zstd.compress,
    "gzip, zstd": lambda data: zstd.compress(gzip.compress(data)),
}


@pytest.mark.parametrize("coding", ENCODE)
@pytest.mark.parametrize("size", [10, 300_000])
async def test_a_compressed_body_reaches_the_child_decoded(api: Api, coding: str, size: int):
    heard: list[Received] = []

    async def script(received: Received, connection: Connection) -> None:
        heard.append(received)
        await connection.answer(received.body)

    await api.start(script=script)
    body = json.dumps({"messages": "x" * size, "model": "tiny"}).encode()
    headers = {"Content-Encoding": coding, "Content-Type": "application/json"}
    answer = await api.post("/v1/chat/completions", data=ENCODE[coding](body), headers=headers)
    assert (answer.status, answer.body) == (200, body)
    (received,) = heard
    fields = {name.lower(): value for name, value in received.headers}
    assert fields["content-length"] == str(len(body))
    assert "content-encoding" not in fields


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/models/load", b'{"model":"tiny"}'),
        ("/upstream/tiny/any", b"anything"),
        ("/lora-adapters?model=tiny", b"[]"),
        ("/v1/streams/lookup", b'{"conversation_ids":[]}'),
    ],
)
async def test_every_path_takes_a_compressed_body(api: Api, path: str, body: bytes):
    await api.start()
    for coding, encode in ENCODE.items():
        answer = await api.post(path, data=encode(body), headers={"Content-Encoding": coding})
        assert answer.status == 200, answer.body


async def test_a_compressed_body_of_unknown_length_is_decoded_too(api: Api):
    await api.start()
    body = json.dumps({"model": "tiny", "messages": "x" * 300_000}).encode()
    encoded = zstd.compress(body)

    async def pieces() -> AsyncIterator[bytes]:
        for at in range(0, len(encoded), 7):
            yield encoded[at : at + 7]

    answer = await api.post("/v1/chat/completions", data=pieces(), headers={"Content-Encoding": "zstd"})
    assert (answer.status, answer.body) == (200, body)


@pytest.mark.parametrize("keep_alive", ["9" * 320, "9" * 320 + "h", "1e10", "nan"])
async def test_a_number_in_a_form_is_in_bounds_or_refused(api: Api, keep_alive: str):
    await api.start()
    form = "".join(
        f"--b\r\nContent-Disposition: form-data; name={name}\r\n\r\n{value}\r\n"
        for name, value in (("keep_alive", keep_alive), ("model", "tiny"))
    )
    headers = {"Content-Type": "multipart/form-data; boundary=b"}
    answer = await api.post("/v1/audio/transcriptions", data=f"{form}--b--\r\n".encode(), headers=headers)
    assert answer.status == 400
    assert "at most 1000000000 s" in answer.error["message"]


async def test_a_compressed_form_is_read_too(api: Api):
    await api.start()
    form = b'--b\r\nContent-Disposition: form-data; name="model"\r\n\r\ntiny\r\n--b--\r\n'
    headers = {"Content-Type": "multipart/form-data; boundary=b", "Content-Encoding": "gzip"}
    answer = await api.post("/v1/audio/transcriptions", data=gzip.compress(form), headers=headers)
    assert (answer.status, answer.body) == (200, form)


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/messages", "/models/load"])
async def test_an_unknown_coding_is_refused_with_those_that_are_known(api: Api, path: str):
    await api.start()
    answer = await api.post(path, data=b"x", headers={"Content-Encoding": "br"})
    assert answer.status == 415
    assert answer.headers["Accept-Encoding"] == "gzip, deflate, zstd"
    assert answer.json()["error"]["code"] == "unsupported_content_encoding"
    assert not api.pool.acquired


@pytest.mark.parametrize(
    "path", ["/v1/models", "/slots?model=tiny&autoload=1", "/upstream/tiny/any?autoload=1"]
)
async def test_without_a_body_there_is_nothing_to_decode(api: Api, path: str):
    await api.start()
    assert (await api.get(path, headers={"Content-Encoding": "br"})).status == 200


@pytest.mark.parametrize("coding", ["gzip", "deflate", "zstd"])
async def test_the_bound_of_a_body_holds_for_what_is_decoded(api: Api, coding: str):
    await api.start(max_body_mib=1)
    bomb = ENCODE[coding](b" " * (64 << 20))
    assert len(bomb) < 1 << 20
    answer = await api.post("/v1/chat/completions", data=bomb, headers={"Content-Encoding": coding})
    assert (answer.status, answer.error["code"]) == (413, "body_too_large")
    assert "the decoded body is larger than 1 MiB" in answer.error["message"]


@pytest.mark.parametrize("coding", ["gzip", "deflate", "zstd"])
async def test_broken_data_are_refused_and_the_connection_goes_on(api: Api, coding: str):
    await api.start()
    body = ENCODE[coding](b'{"model":"tiny"}')
    for data in (body[:-1], b"nothing of the kind", b'{"model":"tiny"}'):
        answer = await api.post("/v1/chat/completions", data=data, headers={"Content-Encoding": coding})
        assert answer.status == 400
        assert "cannot be decoded" in answer.error["message"]
    assert not api.pool.acquired
