"""Requests that are proxied, from a client's bytes on a real port to an instance on a real socket."""

from __future__ import annotations

import asyncio
import gc
import itertools
import json
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, cast

import pytest

from router.http.connection import ClientConnection
from router.http.server import Limits
from router.proxy.answer import Answer
from router.proxy.request import ProxiedRequest
from router.proxy.upstream import Upstream
from router.scheduler.types import Cause, State
from tests.admin.conftest import Api, echo
from tests.admin.upstream import Connection, Received
from tests.deadline import DEADLINE_SECONDS
from tests.proxy.wire import Message, read_answer
from tests.waiting import until

PATH = "/v1/chat/completions"
ASKED = {"model": "tiny", "messages": []}
ONE = json.dumps(ASKED).encode()


def said(asked: object = ASKED, *headers: str, path: str = PATH) -> bytes:
    body = asked if isinstance(asked, bytes) else json.dumps(asked).encode()
    lines = [f"POST {path} HTTP/1.1", "Host: localhost", *headers, f"Content-Length: {len(body)}", "", ""]
    return "\r\n".join(lines).encode() + body


@dataclass
class Caller:
    """One connection."""

    api: Api
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    async def ask(self, request: bytes) -> Message:
        self.writer.write(request)
        return await self.answer()

    async def answer(self) -> Message:
        async with asyncio.timeout(DEADLINE_SECONDS):
            return await read_answer(self.reader, to_head=False)


@asynccontextmanager
async def calling(api: Api) -> AsyncIterator[Caller]:
    """On a connection whose model is ready."""
    reader, writer = await asyncio.open_connection("127.0.0.1", int(api.url.rpartition(":")[2]))
    caller = Caller(api, reader, writer)
    try:
        await caller.ask(said())
        yield caller
    finally:
        writer.close()


async def endless(received: Received, connection: Connection) -> None:
    if b"stream" not in received.body:
        await connection.answer(b"{}")
        return
    await connection.begin_stream()
    await connection.chunk(b'data: {"n": 1}\n\n')
    await connection.until_client_left()


async def test_headers_for_the_router_change_nothing_of_the_answer(api: Api):
    await api.start()
    async with calling(api) as caller:
        with_own = await caller.ask(said(ASKED, "X-Router-Keep-Alive: 5m", "X-More: 1"))
        without = await caller.ask(said(ASKED, "X-More: 1"))
    assert (without.start, without.headers, without.body) == (with_own.start, with_own.headers, with_own.body)
    assert without.get("X-Router-Action") == "already_loaded"


async def test_keys_and_headers_for_the_router_do_not_reach_the_instance(api: Api):
    heard: list[list[str]] = []

    async def script(received: Received, connection: Connection) -> None:
        heard.append(sorted(f"{k}: {v}" for k, v in received.headers if not k.startswith("X-Router")))
        await connection.answer(received.body)

    await api.start(script=script)
    async with calling(api) as caller:
        more = ("Authorization: Bearer mine", "x-api-key: mine", "User-Agent: it", "Accept: */*")
        await caller.ask(said(ASKED, *more, "X-Router-Keep-Alive: 5m"))
        await caller.ask(said(ASKED, *more))
    assert heard[-1] == heard[-2]
    assert not any("mine" in line for line in heard[-1])


@pytest.mark.parametrize(
    "header",
    [
        "Origin: http://elsewhere", "Expect: 100-continue", "Connection: keep-alive, x", "Upgrade: h2c",
        "X-Router-Keep-Alive: 5m", "Content-Encoding: identity", "TE: trailers", "X-A: 1\r\n folded",
        "X-Conversation-Id: c", "X-Long: " + "x" * 5000, "Host: twice",
    ],
)  # fmt: skip
async def test_what_is_unusual_is_answered_or_refused_on_the_same_connection(api: Api, header: str):
    await api.start()
    async with calling(api) as caller:
        answer = await caller.ask(said(ASKED, header))
        assert answer.status in (200, 400, 403)


async def test_two_lengths_are_refused(api: Api):
    await api.start()
    async with calling(api) as caller:
        answer = await caller.ask(said(ASKED, "Content-Length: 3"))
        assert (answer.status, json.loads(answer.body)["error"]["code"]) == (400, "malformed_request")


@pytest.mark.parametrize(
    ("asked", "status"),
    [
        ({"model": "none"}, 404), ({}, 400), (b"[]", 400), (b"{", 400), (b'{"model": 1}', 400),
        ({"model": "tiny", "keep_alive": "soon"}, 400), (b'{"model": "tiny", "x": "\xff"}', 200),
    ],
)  # fmt: skip
async def test_what_is_wrong_is_told_as_ever(api: Api, asked: object, status: int):
    await api.start()
    async with calling(api) as caller:
        assert (await caller.ask(said(asked))).status == status
        assert (await caller.ask(said())).status == 200


async def test_a_model_that_is_not_ready_is_waited_for(api: Api):
    await api.start()
    async with calling(api) as caller:
        assert (await caller.ask(said({"model": "other"}))).get("X-Router-Action") == "loaded"
        assert (await caller.ask(said({"model": "other"}))).get("X-Router-Action") == "already_loaded"


async def test_keys_are_asked_for(api: Api):
    await api.start(api_keys=("right",), admin_keys=("admin",))
    async with calling(api) as caller:
        await caller.ask(said(ASKED, "Authorization: Bearer right"))
        for header, status in (
            ("Authorization: Bearer right", 200), ("x-api-key: right", 200), ("Authorization: right", 200),
            ("x-api-key: admin", 200), ("Authorization: Bearer wrong", 401), ("x-api-key: wrong", 401),
        ):  # fmt: skip
            answer = await caller.ask(said(ASKED, header))
            assert answer.status == status, header
        assert (await caller.ask(said())).status == 401


async def test_a_body_may_come_later_and_in_pieces(api: Api):
    await api.start()
    asked = said({"model": "tiny", "messages": ["x" * 3000]})
    head = asked.index(b"\r\n\r\n") + 4
    async with calling(api) as caller:
        for cuts in ((0, head, None), (0, head, head + 7, None)):
            for start, end in itertools.pairwise(cuts):
                caller.writer.write(asked[start:end])
                await asyncio.sleep(0.01)  # so that the pieces come apart
            assert (await caller.answer()).body == asked[head:]
        caller.writer.write(asked[:9])
        await asyncio.sleep(0.01)  # so that the pieces come apart
        assert (await caller.ask(asked[9:])).body == asked[head:], "the head came in two pieces"


async def test_a_body_that_drips_is_refused_in_time(api: Api):
    await api.start(request_body_seconds=0.05)
    async with calling(api) as caller:
        caller.writer.write(said()[:-5])
        answer = await caller.answer()
    assert (answer.status, json.loads(answer.body)["error"]["code"]) == (408, "request_too_slow")
    assert answer.get("Connection") == "close"


async def test_a_refusal_before_the_body_has_come_is_read_and_ends_the_connection(api: Api):
    await api.start(api_keys=("right",))
    reader, writer = await asyncio.open_connection("127.0.0.1", int(api.url.rpartition(":")[2]))
    asked = said({"model": "tiny", "x": "y" * 1_000_000}).replace(
        b"Content-Length: 1", b"Content-Length: 991"
    )
    writer.write(asked[:1000])
    async with asyncio.timeout(DEADLINE_SECONDS):
        answer = await read_answer(reader, to_head=False)
        assert (answer.status, answer.get("Connection")) == (401, "close")
        writer.write(asked[1000:200_000])  # what is still on its way does not reset the connection
        assert await reader.read() == b""
    writer.close()


async def test_the_rest_of_a_body_that_was_refused_is_no_request(api: Api):
    """Behind a request of the application, which takes bodies as they are framed."""
    await api.start(max_body_mib=1)
    large = said({"model": "tiny", "x": "GET / HTTP/1.1\r\n\r\n" * 100_000})
    async with calling(api) as caller:
        for _ in range(2):
            assert (await caller.ask(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")).status == 200
            caller.writer.write(large + said())
            answer = await caller.answer()
            assert (answer.status, json.loads(answer.body)["error"]["code"]) == (413, "body_too_large")
            assert (await caller.answer()).status == 200
    assert len(api.pool.acquired) == 3


async def test_a_client_that_waits_for_100_continue_gets_it_or_the_refusal(api: Api):
    await api.start(max_body_mib=1)
    async with calling(api) as caller:
        asked = said(ASKED, "Expect: 100-continue")
        caller.writer.write(asked[: asked.index(b"{")])
        async with asyncio.timeout(DEADLINE_SECONDS):
            assert await caller.reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
        assert (await caller.ask(asked[asked.index(b"{") :])).status == 200
        large = b" HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9999999\r\nExpect: 100-continue\r\n\r\n"
        answer = await caller.ask(b"POST " + PATH.encode() + large)
        assert (answer.status, json.loads(answer.body)["error"]["code"]) == (413, "body_too_large")


async def test_a_body_in_chunks_is_one_for_its_instance(api: Api):
    received: list[Received] = []

    async def script(one: Received, connection: Connection) -> None:
        received.append(one)
        await connection.answer(one.body)

    await api.start(script=script)
    head = f"POST {PATH} HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n".encode()
    async with calling(api) as caller:
        for wrong, status in ((b"", 200), (b"x", 400)):
            body = b"%x\r\n%b\r\n" % (len(ONE), ONE) + wrong + b"0\r\n\r\n"
            answer = await caller.ask(head + body)
            assert answer.status == status
    assert received[-1].body == ONE
    assert received[-1].all("Content-Length") == [str(len(ONE))]
    assert not received[-1].all("Transfer-Encoding")


async def test_several_said_at_once_are_answered_in_order(api: Api):
    await api.start()
    asked = [said({"model": "tiny", "n": n}) for n in range(6)]
    async with calling(api) as caller:
        caller.writer.write(b"".join(asked))
        assert [json.loads((await caller.answer()).body)["n"] for _ in asked] == list(range(6))
        assert (await caller.ask(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n" + asked[0])).status == 200
        assert json.loads((await caller.answer()).body)["n"] == 0


async def test_one_said_before_the_other_is_answered_waits_for_that(api: Api):
    gate = asyncio.Event()

    async def script(received: Received, connection: Connection) -> None:
        if b'"n": 0' in received.body:
            await gate.wait()
        await connection.answer(received.body)

    await api.start(script=script)
    async with calling(api) as caller:
        caller.writer.write(said({"model": "tiny", "n": 0}))
        await asyncio.sleep(0.01)
        caller.writer.write(said({"model": "tiny", "n": 1}))
        caller.writer.write(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
        await asyncio.sleep(0.01)
        gate.set()
        assert [json.loads((await caller.answer()).body)["n"] for _ in range(2)] == [0, 1]
        assert (await caller.answer()).status == 200


async def test_proxied_requests_and_others_take_turns_on_one_connection(api: Api):
    await api.start()
    async with calling(api) as caller:
        for number in range(20):
            if number % 3 == 0:
                assert (await caller.ask(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")).status == 200
            large = {"model": "tiny", "x": "y" * (100_000 if number % 5 == 0 else 10)}
            assert json.loads((await caller.ask(said(large))).body) == large


async def test_who_wants_the_connection_closed_gets_that(api: Api):
    await api.start()
    async with calling(api) as caller:
        answer = await caller.ask(said(ASKED, "Connection: close"))
        assert (answer.status, answer.get("Connection")) == (200, "close")
        async with asyncio.timeout(DEADLINE_SECONDS):
            assert await caller.reader.read() == b""


async def test_many_at_a_time_get_all_of_their_answers_also_who_wants_the_connection_closed(api: Api):
    await api.start()

    async def ask(number: int) -> None:
        async with calling(api) as caller:
            for turn in range(20):
                asked = {"model": "tiny", "n": number, "turn": turn, "x": "y" * (turn * 1000)}
                assert json.loads((await caller.ask(said(asked))).body) == asked
            answer = await caller.ask(said(ASKED, "Connection: close"))
            assert answer.is_complete
            async with asyncio.timeout(DEADLINE_SECONDS):
                assert await caller.reader.read() == b""

    async with asyncio.TaskGroup() as group:
        for number in range(12):
            group.create_task(ask(number))
    assert api.pool.open_leases == 0
    assert api.app_context.proxy.coalescer.requests == 0


async def test_a_client_that_leaves_ends_it_at_the_child(api: Api, caplog: pytest.LogCaptureFixture):
    caplog.set_level(logging.INFO, "router.access")
    left = asyncio.Event()

    async def script(received: Received, connection: Connection) -> None:
        await endless(received, connection)
        if b"stream" in received.body:
            left.set()

    await api.start(script=script, access_log=True)
    async with calling(api) as caller:
        caller.writer.write(said({"model": "tiny", "stream": True}))
        async with asyncio.timeout(DEADLINE_SECONDS):
            await caller.reader.readuntil(b'data: {"n": 1}\n\n')
        caller.writer.close()
        async with asyncio.timeout(DEADLINE_SECONDS):
            await left.wait()
    await until(lambda: api.pool.open_leases == 0, "its lease is held")
    assert "499 tiny already_loaded" in caplog.messages[-1]
    assert (await api.get("/requests")).json()["data"] == []


@pytest.mark.parametrize("is_early", [False, True])
async def test_a_stream_does_not_hold_what_was_asked(api: Api, is_early: bool):
    gate = asyncio.Event()

    async def script(received: Received, connection: Connection) -> None:
        if is_early and b"stream" in received.body:
            await gate.wait()
        await endless(received, connection)

    await api.start(script=script, stream_head_seconds=0.02 if is_early else 60.0)
    async with calling(api) as caller:
        asked = said({"model": "tiny", "stream": True, "x": "y" * 60_000})
        caller.writer.write(asked)
        async with asyncio.timeout(DEADLINE_SECONDS):
            await caller.reader.readuntil(b"\r\n\r\n")
            gate.set()
            await caller.reader.readuntil(b'data: {"n": 1}\n\n')
        (request,) = api.app_context.proxy.in_flight.requests.values()
        assert (request.body.pieces, request.head_lines) == ([], b"")


async def test_it_is_listed_and_an_operator_can_end_it_at_any_time(api: Api):
    gate = asyncio.Event()

    async def script(received: Received, connection: Connection) -> None:
        if b"quiet" in received.body:
            gate.set()
            await connection.until_client_left()
        await endless(received, connection)

    await api.start(script=script)
    async with calling(api) as caller:
        caller.writer.write(said({"model": "tiny", "stream": True}))
        async with asyncio.timeout(DEADLINE_SECONDS):
            await caller.reader.readuntil(b'data: {"n": 1}\n\n')
        (row,) = (await api.get("/requests")).json()["data"]
        assert (row["model"], row["path"], row["client"]) == ("tiny", PATH, "127.0.0.1")
        assert (row["state"], row["action"], row["bytes"]) == ("answering", "already_loaded", 16)
        assert 0 <= row["age_seconds"] < 5
        await api.call("DELETE", f"/requests/{row['id']}")
        async with asyncio.timeout(DEADLINE_SECONDS):
            rest = await caller.reader.readuntil(b"0\r\n\r\n")
        assert b"request_ended" in rest
        caller.writer.write(said({"model": "tiny", "quiet": True}))
        async with asyncio.timeout(DEADLINE_SECONDS):
            await gate.wait()
        (row,) = (await api.get("/requests")).json()["data"]
        await api.call("DELETE", f"/requests/{row['id']}")
        answer = await caller.answer()
        assert (answer.status, json.loads(answer.body)["error"]["code"]) == (503, "request_ended")
        assert (await caller.ask(said())).status == 200
    await until(lambda: api.pool.open_leases == 0, "a lease is held")


async def test_a_child_that_dies_before_its_answer_is_replaced_once(api: Api):
    asked: list[str] = []

    async def script(received: Received, connection: Connection) -> None:
        asked.append(received.line)
        if len(asked) == 2:  # the one after the load
            (one,) = api.pool.instances.values()
            api.pool.exit(one.id)
            connection.die()
            return
        await connection.answer(received.body)

    await api.start(script=script)
    async with calling(api) as caller:
        answer = await caller.ask(said())
        assert (answer.status, answer.get("X-Router-Action")) == (200, "loaded")
    assert len(asked) == 3


@pytest.mark.parametrize("is_pipelined", [False, True])
async def test_a_failed_attempt_is_told_to_its_own_request_only(api: Api, is_pipelined: bool):
    async def script(received: Received, connection: Connection) -> None:
        if b"fatal" not in received.body:
            await connection.answer(received.body)
            return
        if is_pipelined:
            caller.writer.write(said(ASKED | {"n": 2}))
            (request,) = api.app_context.proxy.in_flight.requests.values()
            await until(lambda: cast(ClientConnection, request.connection)._held, "nothing is held")
        api.pool.stop(next(iter(api.pool.instances)), Cause.UNLOADED)
        connection.die()

    await api.start(script=script)
    async with calling(api) as caller:
        caller.writer.write(said({"model": "tiny", "fatal": True}))
        failed = await caller.answer()
        assert (failed.status, json.loads(failed.body)["error"]["code"]) == (503, "unloaded")
        if not is_pipelined:
            caller.writer.write(said(ASKED | {"n": 2}))
        answer = await caller.answer()
        assert (answer.status, json.loads(answer.body)["n"]) == (200, 2)


STREAMED = {"model": "tiny", "stream": True}
SOON: dict[str, Any] = {"stream_head_seconds": 0.05, "stream_heartbeat_seconds": 0.02}


@pytest.mark.parametrize(("path", "sign"), [(PATH, b": llama-router {"), ("/v1/messages", b"event: ping")])
async def test_a_stream_that_hears_nothing_is_begun_and_told_its_place(api: Api, path: str, sign: bytes):
    gate = asyncio.Event()

    async def script(received: Received, connection: Connection) -> None:
        if b"stream" in received.body:
            await gate.wait()
            await connection.begin_stream()
            await connection.chunk(b"data: [DONE]\n\n")
            await connection.end_stream()
        else:
            await connection.answer(b"{}")

    await api.start(script=script, **SOON)
    async with calling(api) as caller:
        caller.writer.write(said(STREAMED, path=path))
        async with asyncio.timeout(DEADLINE_SECONDS):
            head = await caller.reader.readuntil(b"\r\n\r\n")
            assert head.startswith(b"HTTP/1.1 200 OK\r\n") and b"text/event-stream" in head
            assert b"X-Router-Action: already_loaded" in head
            for _ in range(2):
                event = await caller.reader.readuntil(b"\n\n\r\n")
                assert b'"state":"processing"' in event and sign in event
            gate.set()
            rest = await caller.reader.readuntil(b"0\r\n\r\n")
            assert rest.endswith(b"e\r\ndata: [DONE]\n\n\r\n0\r\n\r\n")
        assert (await caller.ask(said())).status == 200, "the connection goes on"
    assert api.app_context.proxy.coalescer.requests == 0


async def test_a_refusal_after_that_is_told_within_the_stream(api: Api):
    gate = asyncio.Event()

    async def script(received: Received, connection: Connection) -> None:
        if b"stream" in received.body:
            await gate.wait()
            body = b'{"error":{"code":400,"message":"too long"}}'
            await connection.send(b"HTTP/1.1 400 Bad\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
        else:
            await connection.answer(b"{}")

    await api.start(script=script, **SOON)
    async with calling(api) as caller:
        caller.writer.write(said(STREAMED))
        async with asyncio.timeout(DEADLINE_SECONDS):
            await caller.reader.readuntil(b"\r\n\r\n")
            gate.set()
            assert b'"message":"too long"' in await caller.reader.readuntil(b"0\r\n\r\n")
        assert (await caller.ask(said())).status == 200


@pytest.mark.parametrize("dies_again", [False, True])
async def test_a_child_that_dies_after_that_is_replaced_once_too(api: Api, dies_again: bool):
    gate, asked = asyncio.Event(), 0

    async def script(received: Received, connection: Connection) -> None:
        nonlocal asked
        if b"stream" not in received.body:
            await connection.answer(b"{}")
            return
        asked += 1
        if asked == 1 or dies_again:
            await gate.wait()
            api.pool.exit_all()
            connection.die()
            return
        assert received.body == json.dumps(STREAMED).encode()
        await connection.begin_stream()
        await connection.chunk(b"data: [DONE]\n\n")
        await connection.end_stream()

    await api.start(script=script, **SOON)
    async with calling(api) as caller:
        caller.writer.write(said(STREAMED))
        async with asyncio.timeout(DEADLINE_SECONDS):
            await caller.reader.readuntil(b"\r\n\r\n")
            gate.set()
            rest = await caller.reader.readuntil(b"0\r\n\r\n")
        assert (b"upstream_failed" in rest) is dies_again
        assert (b"data: [DONE]" in rest) is not dies_again
        assert asked == 2
        assert (await caller.ask(said())).status == 200
    assert (await api.get("/requests")).json()["data"] == []


@pytest.mark.parametrize(
    ("path", "asked"), [(PATH, {"model": "tiny"}), ("/v1/embeddings", STREAMED), ("/tokenize", STREAMED)]
)
async def test_what_is_no_stream_hears_nothing_before_its_answer(api: Api, path: str, asked: object):
    gate = asyncio.Event()

    async def script(received: Received, connection: Connection) -> None:
        if not received.line.startswith(f"POST {PATH} ") or b"messages" not in received.body:
            await gate.wait()
        await connection.answer(b"{}")

    await api.start(script=script, **SOON)
    for more in ((), ("X-Router-Priority: high",)):
        gate.clear()
        async with calling(api) as caller:
            caller.writer.write(said(asked, *more, path=path))
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.2):
                    await caller.reader.read(1)
            gate.set()
            answer = await caller.answer()
            assert (answer.status, answer.body) == (200, b"{}")


async def test_a_client_that_leaves_after_that_gives_its_lease_back(api: Api):
    async def script(received: Received, connection: Connection) -> None:
        if received.line.startswith("GET /slots") or b"stream" not in received.body:
            await connection.answer(b"[]")
            return
        await connection.until_client_left()

    await api.start(script=script, **SOON)
    async with calling(api) as caller:
        caller.writer.write(said(STREAMED))
        async with asyncio.timeout(DEADLINE_SECONDS):
            await caller.reader.readuntil(b": llama-router")
    await until(lambda: not api.pool.open_leases, "its lease is held")


async def test_an_operator_who_ends_one_after_that_tells_it_within_the_stream(api: Api):
    async def script(received: Received, connection: Connection) -> None:
        if received.line.startswith("GET /slots") or b"stream" not in received.body:
            await connection.answer(b"[]")
            return
        await connection.until_client_left()

    await api.start(script=script, **SOON)
    async with calling(api) as caller:
        caller.writer.write(said(STREAMED))
        async with asyncio.timeout(DEADLINE_SECONDS):
            await caller.reader.readuntil(b": llama-router")
            (row,) = (await api.get("/requests")).json()["data"]
            await api.call("DELETE", f"/requests/{row['id']}")
            assert b"request_ended" in await caller.reader.readuntil(b"0\r\n\r\n")


async def test_it_ends_whatever_fails_in_telling_why(api: Api, monkeypatch: pytest.MonkeyPatch):
    async def script(received: Received, connection: Connection) -> None:
        if b"stream" in received.body:
            connection.die()
            return
        await connection.answer(b"{}")

    def fail(_: object) -> None:
        raise ZeroDivisionError

    await api.start(script=script)
    async with calling(api) as caller:
        monkeypatch.setattr(api.app_context.proxy.failures, "_verdict", fail)
        caller.writer.write(said({"model": "tiny", "stream": True}))
        async with asyncio.timeout(DEADLINE_SECONDS):
            assert await caller.reader.read() == b""
    assert api.pool.open_leases == 0
    assert (await api.get("/requests")).json()["data"] == []


async def test_who_is_tried_again_is_told_to_wait_by_one_clock(api: Api):
    """And by none when it is answered: what else is said then would be the beginning of the next answer."""
    asked: list[str] = []

    async def script(received: Received, connection: Connection) -> None:
        asked.append(received.line)
        if len(asked) == 2:
            api.pool.exit_all()
            connection.die()
            return
        await connection.answer(received.body)

    await api.start(script=script, stream_head_seconds=0.05, stream_heartbeat_seconds=0.05)
    async with calling(api) as caller:
        assert (await caller.ask(said({"model": "tiny", "stream": True}))).status == 200
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.2):
                await caller.reader.read(1)
    assert len(asked) == 3


async def test_a_request_that_kills_each_child_is_not_tried_a_third_time(api: Api):
    asked: list[str] = []

    async def script(received: Received, connection: Connection) -> None:
        asked.append(received.line)
        if b"poison" in received.body:
            (one,) = api.pool.instances.values()
            api.pool.exit(one.id)
            connection.die()
            return
        await connection.answer(received.body)

    await api.start(script=script)
    async with calling(api) as caller:
        answer = await caller.ask(said({"model": "tiny", "poison": 1}))
        assert (answer.status, json.loads(answer.body)["error"]["code"]) == (502, "upstream_failed")
        assert len(asked) == 3
        await caller.ask(said({"model": "tiny", "poison": 2}))
        assert len(asked) == 5, "what was tried counts for one request"


async def test_a_kept_connection_that_its_child_closes_is_replaced(api: Api):
    connections = 0

    async def script(received: Received, connection: Connection) -> bool:
        nonlocal connections
        connections += 1
        await connection.answer(received.body, head="Content-Type: a/b\r\nKeep-Alive: timeout=5, max=100")
        return connections % 2 == 0

    await api.start(script=script)
    async with calling(api) as caller:
        for _ in range(9):
            assert (await caller.ask(said())).status == 200


async def test_an_answer_that_breaks_off_ends_with_an_error_event(api: Api):
    async def script(received: Received, connection: Connection) -> None:
        if b"stream" not in received.body:
            await connection.answer(b"{}")
            return
        await connection.begin_stream()
        await connection.chunk(b'data: {"n": 1}\n\n')
        api.pool.exit("tiny#1")
        connection.die()

    await api.start(script=script)
    async with calling(api) as caller:
        answer = await caller.ask(said({"model": "tiny", "stream": True}))
    assert b'"upstream_failed"' in answer.body
    assert b"[DONE]" not in answer.body


async def test_a_client_that_does_not_read_is_waited_for_and_gets_all(api: Api):
    size = 8 << 20

    async def script(received: Received, connection: Connection) -> None:
        await connection.answer(b"x" * size if b"much" in received.body else b"{}")

    await api.start(script=script)
    async with calling(api) as caller:
        caller.reader._transport.pause_reading()  # type: ignore[attr-defined]
        flows = api.app_context.proxy.traffic.flows
        for _ in range(2):  # the second is not answered before the first is taken
            caller.writer.write(said({"model": "tiny", "much": True}))
            await until(lambda: [flow.held for flow in flows.values()] == [1])
        assert [flow.requests for flow in flows.values()] == [1]
        (row,) = (await api.get("/requests")).json()["data"]
        assert row["bytes"] < size / 2
        caller.reader._transport.resume_reading()  # type: ignore[attr-defined]
        for _ in range(2):
            assert len((await caller.answer()).body) == size


async def test_an_answer_outlives_the_time_that_a_connection_may_be_idle(api: Api):
    gate = asyncio.Event()

    async def script(received: Received, connection: Connection) -> None:
        if b"slow" in received.body:
            await gate.wait()
        await connection.answer(received.body)

    await api.start(script=script, limits=Limits(idle_seconds=0.1))
    async with calling(api) as caller:
        caller.writer.write(said({"model": "tiny", "slow": True}))
        await asyncio.sleep(0.4)  # longer than a connection may be idle
        gate.set()
        assert (await caller.answer()).status == 200
        async with asyncio.timeout(DEADLINE_SECONDS):
            assert await caller.reader.read() == b"", "an idle one ends"


async def test_a_shutdown_waits_for_it_and_refuses_the_next(api: Api):
    gate = asyncio.Event()

    async def script(received: Received, connection: Connection) -> None:
        if b"slow" in received.body:
            await gate.wait()
        await connection.answer(received.body)

    await api.start(script=script, shutdown_seconds=5.0)
    async with calling(api) as caller:
        caller.writer.write(said({"model": "tiny", "slow": True}))
        await until(lambda: api.requests.count == 1, "it is not counted")
        ending = asyncio.create_task(api.server.close())
        await asyncio.sleep(0.05)  # in which it must not end
        assert not ending.done()
        gate.set()
        assert (await caller.answer()).status == 200
        await ending
    assert api.requests.count == 0


async def test_nothing_new_takes_it_while_the_router_ends(api: Api):
    await api.start()
    async with calling(api) as caller:
        api.requests.drain()
        await caller.ask(said())


async def test_an_instance_that_leaves_takes_no_more_of_them(api: Api):
    await api.start()
    async with calling(api) as caller:
        assert (await caller.ask(said())).status == 200
        for one in api.pool.instances.values():
            one.state = State.DRAINING
        await caller.ask(said())


async def test_its_line_in_the_log_is_that_of_any_other(api: Api, caplog: pytest.LogCaptureFixture):
    caplog.set_level(logging.INFO, "router.access")
    await api.start(script=echo, access_log=True)
    async with calling(api) as caller:
        await caller.ask(said(ASKED, "X-Router-Keep-Alive: 5m"))
        await caller.ask(said())
    await until(lambda: len(caplog.messages) == 3, "a line is missing")
    with_own, without = ([w for w in line.split() if "ms" not in w] for line in caplog.messages[1:])
    assert without == with_own


async def test_what_is_no_chunk_from_its_first_byte_on_is_told_behind_the_head(api: Api):
    async def script(received: Received, connection: Connection) -> None:
        if b"stream" not in received.body:
            await connection.answer(b"{}")
            return
        head = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
        await connection.send(head + b"never a size\r\n")
        api.pool.exit_all()

    await api.start(script=script)
    async with calling(api) as caller:
        for headers in ((), ("X-Router-Keep-Alive: 5m",)):
            await caller.ask(said())
            answer = await caller.ask(said({"model": "tiny", "stream": True}, *headers))
            assert (answer.status, answer.is_complete) == (200, True)
            assert b'"upstream_failed"' in answer.body


def of_requests() -> list[object]:
    return [one for one in gc.get_objects() if isinstance(one, ProxiedRequest | Answer | Upstream)]


async def test_it_leaves_nothing_for_the_garbage_collector(api: Api):
    await api.start()
    async with calling(api) as caller:
        await caller.ask(said())
        gc.collect()
        gc.disable()
        before = {id(one) for one in of_requests()}  # a test that ran earlier in this process may hold some
        try:
            for _ in range(20):
                await caller.ask(said())
            left = [one for one in of_requests() if id(one) not in before]
        finally:
            gc.enable()
    assert len(left) <= 2, left


@pytest.mark.parametrize("field", ["keep_alive", "max_tokens", "max_completion_tokens", "n_predict"])
@pytest.mark.parametrize("number", ["1" + "0" * 320, "-1" + "0" * 400, "1" + "0" * 4299, "1e400"])
async def test_a_number_out_of_bounds_is_refused_and_the_connection_goes_on(
    api: Api, field: str, number: str
):
    await api.start()
    async with calling(api) as caller:
        asked = f'{{"model":"tiny","messages":[],"{field}":{number}}}'.encode()
        assert (await caller.ask(said(asked))).status == 400
        assert (await caller.ask(said())).status == 200
    assert (await api.get("/status")).status == 200


@pytest.mark.parametrize("asked", [b"\xef\xbb\xbf" + ONE, ONE + b"\0"], ids=["a byte order mark", "a NUL"])
async def test_an_unusual_body_passes_as_it_is(api: Api, asked: bytes):
    await api.start()
    async with calling(api) as caller:
        answer = await caller.ask(said(asked))
        assert (answer.status, answer.body) == (200, asked)


async def test_an_input_that_is_too_long_for_one_step_is_refused_with_400(api: Api):
    message = (
        "input (9 tokens) is too large to process. increase the physical batch size (current batch size: 8)"
    )
    body = json.dumps({"error": {"code": 500, "message": message}}).encode()

    async def script(received: Received, connection: Connection) -> None:
        if b"input" not in received.body:
            await connection.answer(b"{}")
            return
        await connection.send(
            b"HTTP/1.1 500 Internal Server Error\r\nContent-Length: %d\r\n\r\n" % len(body) + body
        )

    await api.start(script=script)
    async with calling(api) as caller:
        for _ in range(2):
            refused = await caller.ask(said({"model": "tiny", "input": "a b"}, path="/v1/embeddings"))
            assert " 400 " in refused.start and b'"exceed_context_size_error"' in refused.body
            assert refused.get("X-Router-Action") == "already_loaded"
