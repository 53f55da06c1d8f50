"""JSON bodies are accepted as llama-server accepts them, and refused with what is wrong."""

from __future__ import annotations

import json
import re
from contextlib import suppress

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.admin.json_body import json_text, read_json_body
from router.errors import InvalidRequest
from tests.admin.conftest import Api

BOM = b"\xef\xbb\xbf"
BODY = b'{"model":"tiny"}'
_decoder = msgspec.json.Decoder(dict[str, object])


def read(body: bytes) -> dict[str, object]:
    return read_json_body(_decoder, body)


@pytest.mark.parametrize(
    "body", [BOM + BODY, BODY + b"\0", BOM + BODY + b"\0\0\0", BODY + b"\n\0", BODY + b"\0 and more"]
)
def test_a_byte_order_mark_and_what_follows_a_nul_are_passed_over(body: bytes):
    assert read(body) == {"model": "tiny"}


def test_a_body_without_either_is_not_copied():
    assert json_text(BODY) is BODY


@pytest.mark.parametrize("body", [BOM + BOM + BODY, b"\0" + BODY, b" " + BOM + BODY, BODY[:-1] + b"\0}"])
def test_elsewhere_they_are_refused_as_llama_server_refuses_them(body: bytes):
    with pytest.raises(InvalidRequest, match="not a JSON object"):
        read(body)


@pytest.mark.parametrize(
    ("escaped", "says"),
    [
        (r"\ud800", r"\ud800 is a lone surrogate"),
        (r"\uD83D x", r"\uD83D is a lone surrogate"),
        (r"\udc00", r"\udc00 is a lone surrogate"),
        (r"\ud83d\ud83d\ude00", r"\ud83d is a lone surrogate"),
        (r"\\\ud83d\u0041", r"\ud83d is a lone surrogate"),
        (r"\ud83d\ude00\ude00", r"\ude00 is a lone surrogate"),
    ],
)
def test_a_lone_surrogate_is_called_what_it_is(escaped: str, says: str):
    with pytest.raises(InvalidRequest, match=re.escape(says)):
        read(b'{"model":"' + escaped.encode() + b'"}')


def test_a_pair_and_an_escaped_backslash_are_no_lone_surrogates():
    assert read(rb'{"model":"\ud83d\ude00 \\ud800"}') == {"model": "\U0001f600 \\ud800"}
    with pytest.raises(InvalidRequest, match="truncated"):
        read(rb'{"model":"\ud83d\ude00 \\ud800')


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-32-le", "utf-32-be"])
def test_another_unicode_is_named(encoding: str):
    with pytest.raises(InvalidRequest, match=f"in UTF-8: it is {encoding[:6].upper()}"):
        read(BODY.decode().encode(encoding))


@pytest.mark.parametrize(
    ("body", "says"),
    [
        (b"", "the body is empty"),
        (BOM, "the body is empty"),
        (b"\0\0", "it begins with a NUL"),
        (b'{"model":"a\xff"}', "byte 0xff"),
        (b'{"model":"\xed\xa0\x80"}', "byte 0xed"),
        (b'{"model":"gr\xf6\xdfe"}', "byte 0xf6"),
        (b'{"model":' * 100_000, "nested too deeply"),
        (b"[1]", "not a JSON object"),
        (b'{"model":', "truncated"),
    ],
)
def test_what_is_wrong_is_said(body: bytes, says: str):
    with pytest.raises(InvalidRequest, match=re.escape(says)):
        read(body)


@given(st.binary(max_size=40))
def test_any_bytes_are_read_or_refused(body: bytes):
    for data in (body, b'{"model":"' + body + b'"}', b'{"' + body):
        with suppress(InvalidRequest):
            read(data)


@pytest.mark.parametrize(
    "path", ["/v1/chat/completions", "/models/load", "/lora-adapters", "/v1/streams/lookup"]
)
@pytest.mark.parametrize("model", ["tiny", "small"])
async def test_every_path_reads_them_alike(api: Api, path: str, model: str):
    await api.start()
    body = json.dumps({"model": model} if "lookup" not in path else {"conversation_ids": []}).encode()
    for data in (body, BOM + body, body + b"\0"):
        answer = await api.post(path, data=data)
        assert answer.status == 200, answer.body
    wrong = await api.post(path, data=body.replace(b":", rb':"\ud800",', 1))
    assert wrong.status == 400
    assert "lone surrogate" in wrong.error["message"]


async def test_the_child_gets_the_body_as_it_came_for_it_takes_it_so(api: Api):
    await api.start()
    data = BOM + BODY + b"\0"
    assert (await api.post("/v1/chat/completions", data=data)).body == data


@pytest.mark.parametrize("filler", [b"", b'"x":"' + b"a" * 100_000 + b'",'], ids=["small", "large"])
async def test_a_large_body_is_read_as_a_small_one(api: Api, filler: bytes):
    await api.start()
    body = b"{" + filler + b'"model":"tiny"}'
    for data in (body, BOM + body, body + b"\0", BOM + body + b"\0\0{"):
        answer = await api.post("/v1/chat/completions", data=data)
        assert (answer.status, answer.body == data) == (200, True)
    for wrong, says in (
        (body.replace(b"tiny", rb"\ud800"), "is a lone surrogate"),
        (body.replace(b"tiny", b"\xff"), "in UTF-8: byte 0xff"),
        (body.decode().encode("utf-16"), "it is UTF-16"),
        (body[:-1] + b',"keep_alive":1' + b"0" * 400 + b"}", "at most 1000000000 s"),
        (body[:-1] + b',"max_tokens":1' + b"0" * 400 + b"}", "at most 18446744073709551615"),
    ):
        answer = await api.post("/v1/chat/completions", data=wrong)
        assert answer.status == 400
        assert says in answer.error["message"]
