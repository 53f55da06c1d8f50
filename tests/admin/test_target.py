"""Targets are tidied before a route is looked for: slashes that clients double or add, and raw UTF-8."""

from __future__ import annotations

import asyncio

import pytest

from router.admin.target import encode_line, tidy
from tests.admin.conftest import Api
from tests.admin.upstream import Connection, Received
from tests.http.test_inference import ASKED, calling, said
from tests.proxy.wire import Message, read_answer
from tests.waiting import until


@pytest.mark.parametrize(
    ("target", "tidied"),
    [
        ("//v1/models", "/v1/models"),
        ("///v1//models//", "/v1/models"),
        ("/v1/models/", "/v1/models"),
        ("/v1//chat/completions?x=//a/", "/v1/chat/completions?x=//a/"),
        ("//", "/"),
        ("/", "/"),
        ("/?a=/", "/?a=/"),
        ("//v1/models?", "/v1/models?"),
        ("/v1/v1/models", "/v1/v1/models"),
        ("/v1/models/a%2F%2Fb/", "/v1/models/a%2F%2Fb"),
        ("//upstream//tiny//a//b/?q=//", "/upstream/tiny//a//b/?q=//"),
        ("/upstream/tiny/", "/upstream/tiny/"),
        ("http://here//v1/models/?a=/", "http://here/v1/models?a=/"),
        ("*", "*"),
    ],
)
def test_slashes_of_the_path_are_tidied_and_the_query_is_not(target: str, tidied: str):
    assert tidy(target) == tidied
    assert tidy(tidied) == tidied


def test_a_line_is_encoded_byte_by_byte():
    assert encode_line("GET /größe?%20=ö HTTP/1.1".encode()) == b"GET /gr%C3%B6%C3%9Fe?%20=%C3%B6 HTTP/1.1"
    assert encode_line(b"GET /\xff HTTP/1.1") == b"GET /%FF HTTP/1.1"
    plain = b"GET /%ff?a HTTP/1.1"
    assert encode_line(plain) is plain


@pytest.mark.parametrize(
    "path", ["//v1/models", "/v1/models/", "/models/", "/v1//models", "//models//?reload=0"]
)
async def test_a_list_is_found_behind_too_many_slashes(api: Api, path: str):
    await api.start()
    async with asyncio.timeout(5):
        answer = await talk(api, f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
    assert " 200 " in answer.start and b'"tiny"' in answer.body


@pytest.mark.parametrize(
    "path", ["//v1/chat/completions", "/v1/chat/completions/", "/v1//chat/completions?a=//"]
)
async def test_inference_is_found_so_and_the_child_is_asked_for_the_tidy_path(api: Api, path: str):
    async def script(received: Received, connection: Connection) -> None:
        await connection.answer(received.line.encode())

    await api.start(script=script)
    async with calling(api) as caller:
        answer = await caller.ask(said(ASKED, path=path))
    query = "?a=//" if "?" in path else ""
    assert answer.body == f"POST /v1/chat/completions{query} HTTP/1.1".encode()


@pytest.mark.parametrize("path", ["//models/load", "/models/load/", "/models//load"])
async def test_keys_are_asked_for_however_the_path_is_written(api: Api, path: str):
    await api.start(api_keys=("k",), admin_keys=("a",))
    request = (
        f"POST {path} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer k\r\nContent-Length: 2\r\n\r\n{{}}"
    )
    assert " 403 " in (await talk(api, request.encode())).start


async def test_v1_twice_is_not_found_and_told_what_to_change(api: Api):
    await api.start()
    answer = await api.post("/v1/v1/chat/completions", json=ASKED)
    assert answer.status == 404
    assert "Did you mean /v1/chat/completions?" in answer.error["message"]
    assert "/v1 stands there twice" in answer.error["message"]


@pytest.mark.parametrize("cut", [None, 3, 16, 17, 22])
async def test_a_name_in_raw_utf_8_is_found_in_whatever_pieces_the_line_comes(api: Api, cut: int | None):
    await api.start()
    data = "GET /v1/models/größe HTTP/1.1\r\nHost: localhost\r\n\r\n".encode()
    answer = await talk(api, *([data] if cut is None else [data[:cut], data[cut:]]))
    assert " 404 " in answer.start
    assert "model 'größe' not found".encode() in answer.body


async def test_raw_utf_8_on_a_connection_that_goes_on(api: Api):
    await api.start()
    async with calling(api) as caller:
        for _ in range(2):
            get = "GET /metrics?model=größe HTTP/1.1\r\nHost: localhost\r\n\r\n".encode()
            assert "größe".encode() in (await caller.ask(get)).body
            assert " 200 " in (await caller.ask(said())).start
            strange = await caller.ask(said(b'{"model":"\xff"}', path="/v1/models/\xf6"))
            assert " 405 " in strange.start
        assert " 200 " in (await caller.ask(said(ASKED, path="/v1/chat/completions?größe"))).start


async def test_raw_utf_8_in_a_later_request_of_several_said_at_once(api: Api):
    await api.start()
    named = "GET /v1/models/größe HTTP/1.1\r\nHost: localhost\r\n\r\n".encode()
    plain = b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n"
    load = said('{"model":"größe"}'.encode(), path="/models/load")
    for several in ((plain, named), (named, named), (load, named, plain, named), (said(), load, named)):
        async with calling(api) as caller:
            answers = [await caller.ask(b"".join(several))]
            answers += [await caller.answer() for _ in several[1:]]
        for asked, answer in zip(several, answers, strict=True):
            expected = "größe".encode() in asked
            assert ("model 'größe' not found".encode() in answer.body) is expected, several


@pytest.mark.parametrize("head", ["CONTENT-LENGTH: 19", "X: " + "x" * 5000 + "\r\nContent-Length: 19"])
async def test_a_body_whose_length_is_said_in_an_unusual_way_stays_as_it_is(api: Api, head: str):
    await api.start()
    body = '{"model":"größe"}'.encode()
    assert len(body) == 19
    load = f"POST /models/load HTTP/1.1\r\nHost: localhost\r\n{head}\r\n\r\n".encode() + body
    async with calling(api) as caller:
        first = await caller.ask(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n" + load)
        assert " 200 " in first.start
        assert "model 'größe' not found".encode() in (await caller.answer()).body


async def talk(api: Api, *pieces: bytes) -> Message:
    """Say `pieces` one after another, each when the one before has been read."""
    reader, writer = await asyncio.open_connection("127.0.0.1", int(api.url.rpartition(":")[2]))
    for number, piece in enumerate(pieces):
        if number:
            await until(
                lambda: any(connection._held for connection in api.server.connections),
                "the first is read",
            )
        writer.write(piece)
    async with asyncio.timeout(5):
        answer = await read_answer(reader, to_head=False)
    writer.close()
    return answer
