"""What a client hears while its model is not there, and how it hears of what goes wrong meanwhile."""

from __future__ import annotations

import asyncio
import json

import aiohttp
import pytest

from router.errors import LoadFailed, RouterError
from router.proxy import Dialect, HeartbeatConfig, RequestInfo
from router.scheduler.views import ModelView, QueueView, Snapshot
from tests.admin.upstream import Connection, Received
from tests.proxy.bench import DEADLINE, Bench, echo
from tests.waiting import until

SOON = HeartbeatConfig(head_seconds=0.01, beat_seconds=0.02)


@pytest.fixture
def waiting(bench: Bench) -> Bench:
    """Streams are asked for, and the model takes as long as the test wants."""
    bench.ask = RequestInfo("qwen", stream=True)
    bench.patience = SOON
    bench.pool.load_gate = asyncio.Event()
    bench.pool.queues = (QueueView("qwen", 1, 0.0, 2, "room, until b#1 has ended its 1 requests", 12.34),)
    return bench


def go_on(bench: Bench) -> None:
    assert bench.pool.load_gate is not None
    bench.pool.load_gate.set()


async def stream(_: Received, connection: Connection) -> None:
    await connection.begin_stream()
    await connection.chunk(b'data: {"n":1}\n\n')
    await connection.chunk(b"data: [DONE]\n\n")
    await connection.end_stream()


async def test_the_head_comes_before_the_model_with_its_place_and_then_signs_of_life(waiting: Bench):
    await waiting.child(stream)
    async with asyncio.timeout(DEADLINE), waiting.post() as answer:
        assert answer.status == 200
        assert answer.content_type == "text/event-stream"
        assert answer.headers["X-Router-Action"] == "queued"
        assert int(answer.headers["X-Router-Queue-Ms"]) >= 10
        beats = [await answer.content.readuntil(b"\n\n") for _ in range(3)]
        go_on(waiting)
        rest = await answer.content.read()
    for beat in beats:
        told = json.loads(beat.removeprefix(b": llama-router "))
        assert (told["model"], told["state"], told["position"]) == ("qwen", "queued", 2)
        assert told["expected_seconds"] == 12.3
        assert told["waits_for"].startswith("room")
    events = [event for event in rest.split(b"\n\n") if event and not event.startswith(b":")]
    assert events == [b'data: {"n":1}', b"data: [DONE]"], "the child's own body, without its head"


async def test_anthropic_clients_are_pinged(waiting: Bench):
    await waiting.child(stream)
    waiting.ask = RequestInfo("qwen", dialect=Dialect.ANTHROPIC, stream=True)
    async with asyncio.timeout(DEADLINE), waiting.post() as answer:
        comment, name, data = (await answer.content.readuntil(b"\n\n")).strip().split(b"\n")
        go_on(waiting)
        await answer.read()
    assert comment.startswith(b": ")
    assert name == b"event: ping"
    assert json.loads(data.removeprefix(b"data: ")) == {"type": "ping"}


@pytest.mark.parametrize("dialect", Dialect)
async def test_a_load_that_fails_is_told_as_an_event_and_never_as_done(waiting: Bench, dialect: Dialect):
    await waiting.child(echo)
    waiting.ask = RequestInfo("qwen", dialect=dialect, stream=True)
    failing = waiting.pool._start

    async def fail(model: str) -> None:
        await failing(model)
        raise LoadFailed("qwen is broken", retry_after_seconds=4.0)

    waiting.pool._start = fail  # type: ignore[assignment,method-assign]
    async with asyncio.timeout(DEADLINE), waiting.post() as answer:
        assert answer.status == 200
        go_on(waiting)
        last = (await answer.read()).rstrip(b"\n").split(b"\n\n")[-1]
    error = json.loads(last.rpartition(b"data: ")[2])["error"]
    match dialect:
        case Dialect.OPENAI:
            assert (error["code"], error["retry_after_seconds"]) == ("load_failed", 4.0)
        case Dialect.ANTHROPIC:
            assert last.startswith(b"event: error\n")
            assert error == {"type": "overloaded_error", "message": "qwen is broken"}


async def test_a_refusal_of_the_child_is_told_as_an_event_too(waiting: Bench):
    async def refuse(_: Received, connection: Connection) -> None:
        body = b'{"error":{"code":400,"message":"too long","type":"exceed_context_size_error","n_ctx":512}}'
        await connection.send(b"HTTP/1.1 400 Bad Request\r\nContent-Length: %d\r\n\r\n" % len(body) + body)

    await waiting.child(refuse)
    async with asyncio.timeout(DEADLINE), waiting.post() as answer:
        assert answer.status == 200
        go_on(waiting)
        last = (await answer.read()).rstrip(b"\n").split(b"\n\n")[-1]
    error = json.loads(last.removeprefix(b"data: "))["error"]
    assert (error["message"], error["type"], error["n_ctx"]) == ("too long", "exceed_context_size_error", 512)


async def test_an_input_that_is_too_long_for_one_step_is_told_as_an_event_with_400(waiting: Bench):
    async def refuse(_: Received, connection: Connection) -> None:
        message = "input (9 tokens) is too large to process. increase the physical batch size "
        body = json.dumps({"error": {"code": 500, "message": f"{message}(current batch size: 8)"}}).encode()
        await connection.send(b"HTTP/1.1 500 Oh\r\nContent-Length: %d\r\n\r\n" % len(body) + body)

    await waiting.child(refuse)
    async with asyncio.timeout(DEADLINE), waiting.post() as answer:
        go_on(waiting)
        last = (await answer.read()).rstrip(b"\n").split(b"\n\n")[-1]
    error = json.loads(last.removeprefix(b"data: "))["error"]
    assert (error["code"], error["type"], error["n_ctx"]) == (400, "exceed_context_size_error", 8)


async def test_a_stream_that_its_child_counts_or_ends_by_closing_is_framed_anew(waiting: Bench):
    async def closing(_: Received, connection: Connection) -> None:
        await connection.send(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\ndata: 1\n\n")

    await waiting.child(closing)
    reader, _ = await waiting.raw()
    async with asyncio.timeout(DEADLINE):
        assert b"chunked" in await reader.readuntil(b"\r\n\r\n")
        go_on(waiting)
        assert await reader.readuntil(b"9\r\ndata: 1\n\n\r\n0\r\n\r\n")


async def test_who_does_not_stream_hears_nothing_before_the_answer(waiting: Bench):
    await waiting.child(echo)
    waiting.ask = RequestInfo("qwen")
    reader, _ = await waiting.raw()
    await until(lambda: waiting.pool.waiting)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(10 * SOON.beat_seconds):
            await reader.read(1)
    go_on(waiting)
    async with asyncio.timeout(DEADLINE):
        assert await reader.readuntil(b"\r\n\r\n")


async def test_it_can_be_switched_off(waiting: Bench):
    await waiting.child(stream)
    waiting.patience = HeartbeatConfig(head_seconds=0)
    reader, _ = await waiting.raw()
    await until(lambda: waiting.pool.waiting)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.1):
            await reader.read(1)
    go_on(waiting)
    async with asyncio.timeout(DEADLINE):
        assert b"X-Router-Action: loaded" in await reader.readuntil(b"\r\n\r\n")


async def test_a_client_that_leaves_while_it_is_told_gives_up_its_place(waiting: Bench):
    await waiting.child(stream)
    reader, writer = await waiting.raw()
    async with asyncio.timeout(DEADLINE):
        await reader.readuntil(b"\r\n\r\n")
    writer.close()
    await until(lambda: not waiting.pool.waiting)


async def test_an_old_client_is_told_without_chunks(waiting: Bench):
    await waiting.child(stream)
    reader, writer = await waiting.connect()
    writer.write(b"POST / HTTP/1.0\r\nContent-Length: 2\r\n\r\n{}")
    async with asyncio.timeout(DEADLINE):
        assert b"chunked" not in await reader.readuntil(b"\r\n\r\n")
        assert (await reader.readuntil(b"\n\n")).startswith(b": llama-router {")
        go_on(waiting)
        assert (await reader.read()).endswith(b'data: {"n":1}\n\ndata: [DONE]\n\n')


async def test_who_is_ended_by_an_operator_is_told_so(waiting: Bench):
    await waiting.child(stream)
    async with asyncio.timeout(DEADLINE), waiting.post() as answer:
        assert answer.status == 200
        waiting.requests[0].end_by(RouterError("an operator ended it"))
        last = (await answer.read()).rstrip(b"\n").split(b"\n\n")[-1]
    assert json.loads(last.removeprefix(b"data: "))["error"]["message"] == "an operator ended it"


async def test_all_who_wait_share_one_picture_of_the_scheduler(waiting: Bench):
    for _ in range(2):
        await waiting.child(stream)
    taken = 0
    snapshot = waiting.pool.snapshot

    def counted() -> Snapshot:
        nonlocal taken
        taken += 1
        return snapshot()

    waiting.pool.snapshot = counted  # type: ignore[method-assign]
    readers = [(await waiting.raw())[0] for _ in range(20)]
    async with asyncio.timeout(DEADLINE):
        for reader in readers:
            assert b"llama-router" in await reader.readuntil(b"\n\n\r\n")
    assert taken < len(readers)


# --- with its model there ---


@pytest.fixture
def busy(bench: Bench) -> Bench:
    """The model is ready, and streams are asked for."""
    bench.ask = RequestInfo("qwen", stream=True)
    bench.patience = SOON
    return bench


class Silent:
    """Says nothing, then after `go_on` a head, and after `speak` the rest; `begun` requests are with it."""

    def __init__(self) -> None:
        self.begun = 0
        self.go_on, self.speak = asyncio.Event(), asyncio.Event()

    async def __call__(self, _: Received, connection: Connection) -> None:
        self.begun += 1
        await self.go_on.wait()
        await connection.begin_stream()
        await self.speak.wait()
        await connection.chunk(b'data: {"n":1}\n\n')
        await connection.chunk(b"data: [DONE]\n\n")
        await connection.end_stream()


async def beat(answer: aiohttp.ClientResponse) -> dict[str, object]:
    told = await answer.content.readuntil(b"\n\n")
    return dict(json.loads(told.removeprefix(b": llama-router ")))


async def test_a_stream_without_a_slot_hears_its_place_and_then_that_its_prompt_is_processed(busy: Bench):
    child = Silent()
    await busy.child(child)
    busy.slots = 1
    busy.pool.views["qwen"] = model_view(hold_seconds=100.0)
    async with asyncio.timeout(DEADLINE), busy.post() as first, busy.post() as second, busy.post() as third:
        assert second.headers["X-Router-Action"] == "already_loaded"
        assert second.content_type == "text/event-stream"
        one, two, three = [await beat(answer) for answer in (first, second, third)]
        assert one["state"] == "processing" and "position" not in one
        assert (two["state"], two["position"]) == ("queued", 1)
        assert (three["state"], three["position"]) == ("queued", 2)
        assert 99.0 < float(str(two["expected_seconds"])) <= 100.0
        assert 199.0 < float(str(three["expected_seconds"])) <= 200.0
        assert "2 requests came before" in str(three["waits_for"])
        child.go_on.set()
        while (told := await beat(third))["state"] != "processing":
            assert "position" in told
        child.speak.set()
        for answer in (first, second, third):
            rest = await answer.read()
            events = [event for event in rest.split(b"\n\n") if event and not event.startswith(b":")]
            assert events == [b'data: {"n":1}', b"data: [DONE]"], "the child's own body, and nothing in it"


async def test_nothing_is_expected_of_what_was_never_measured(busy: Bench):
    child = Silent()
    await busy.child(child)
    busy.slots = 1
    async with asyncio.timeout(DEADLINE), busy.post(), busy.post() as second:
        told = await beat(second)
        assert told["position"] == 1 and "expected_seconds" not in told
        child.go_on.set()
        child.speak.set()


async def test_a_long_prompt_is_told_of_behind_the_head_of_the_child(busy: Bench):
    child = Silent()
    child.go_on.set()
    await busy.child(child)
    busy.patience = HeartbeatConfig(head_seconds=0.5, beat_seconds=0.02)
    async with asyncio.timeout(DEADLINE), busy.post() as answer:
        assert "Cache-Control" not in answer.headers, "the head is the child's"
        told = [await beat(answer) for _ in range(2)]
        assert {one["state"] for one in told} == {"processing"}
        child.speak.set()
        rest = await answer.read()
    assert rest.endswith(b'data: {"n":1}\n\ndata: [DONE]\n\n')


async def test_the_pings_of_the_child_itself_are_not_taken_for_its_answer(busy: Bench):
    gate = asyncio.Event()

    async def pinging(_: Received, connection: Connection) -> None:
        await connection.begin_stream()
        await connection.chunk(b":\n\n")
        await gate.wait()
        await connection.chunk(b'data: {"n":1}\n\n')
        await connection.end_stream()

    await busy.child(pinging)
    busy.patience = HeartbeatConfig(head_seconds=0.05, beat_seconds=0.02)
    async with asyncio.timeout(DEADLINE), busy.post() as answer:
        assert await answer.content.readuntil(b"\n\n") == b":\n\n"
        assert [(await beat(answer))["state"] for _ in range(2)] == ["processing"] * 2
        gate.set()
        rest = await answer.read()
    assert rest.endswith(b'data: {"n":1}\n\n')


async def test_anthropic_clients_are_pinged_while_they_wait_for_a_slot(busy: Bench):
    child = Silent()
    await busy.child(child)
    busy.ask = RequestInfo("qwen", dialect=Dialect.ANTHROPIC, stream=True)
    async with asyncio.timeout(DEADLINE), busy.post() as answer:
        comment, name, data = (await answer.content.readuntil(b"\n\n")).strip().split(b"\n")
        child.go_on.set()
        child.speak.set()
    assert comment.startswith(b": llama-router ")
    assert (name, data) == (b"event: ping", b'data: {"type": "ping"}')


async def test_a_refusal_of_a_child_that_was_busy_is_told_as_an_event(busy: Bench):
    gate = asyncio.Event()

    async def refuse(_: Received, connection: Connection) -> None:
        await gate.wait()
        body = b'{"error":{"code":400,"message":"too long","type":"exceed_context_size_error"}}'
        await connection.send(b"HTTP/1.1 400 Bad Request\r\nContent-Length: %d\r\n\r\n" % len(body) + body)

    await busy.child(refuse)
    async with asyncio.timeout(DEADLINE), busy.post() as answer:
        assert answer.status == 200
        gate.set()
        last = (await answer.read()).rstrip(b"\n").split(b"\n\n")[-1]
    assert json.loads(last.removeprefix(b"data: "))["error"]["message"] == "too long"


async def test_nothing_is_said_within_an_answer_that_is_no_stream_of_events(busy: Bench):
    gate = asyncio.Event()

    async def slow(_: Received, connection: Connection) -> None:
        await connection.send(b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: 4\r\n\r\n")
        await gate.wait()
        await connection.send(b"text")

    await busy.child(slow)
    async with asyncio.timeout(DEADLINE), busy.post() as answer:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(5 * SOON.beat_seconds):
                await answer.content.readexactly(1)
        gate.set()
        assert await answer.read() == b"text"


async def test_who_does_not_stream_hears_nothing_from_a_busy_child(busy: Bench):
    child = Silent()
    await busy.child(child)
    busy.ask = RequestInfo("qwen")
    reader, _ = await busy.raw()
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(10 * SOON.beat_seconds):
            await reader.read(1)
    child.go_on.set()
    child.speak.set()


def model_view(hold_seconds: float) -> ModelView:
    return ModelView("qwen", 1.0, 1, 0, 0, None, None, None, None, hold_seconds=hold_seconds)
