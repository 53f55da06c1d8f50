"""The data plane between a real client socket and a child on a real Unix socket that does what the test
says."""

from __future__ import annotations

import asyncio
import json

import aiohttp
import pytest

from router.errors import LoadFailed, NoRoom
from router.proxy import Dialect, RequestInfo
from router.scheduler.types import Cause, Priority
from tests.admin.upstream import Connection, Received
from tests.proxy.bench import DEADLINE, Bench, echo
from tests.waiting import until

# --- what passes ---


async def test_the_body_passes_byte_for_byte_with_its_path_and_query(bench: Bench):
    child = await bench.child(echo)
    body = '{ "model":"an alias",\n "unknown":[1.10,{"ü":null}], "model":"an alias" }'.encode()
    async with bench.post(body, "/v1/chat/completions?a=1&b=%2F+x&a=2") as answer:
        assert await answer.read() == body
    assert child.requests[0].body == body
    assert child.requests[0].line == "POST /v1/chat/completions?a=1&b=%2F+x&a=2 HTTP/1.1"


async def test_headers_pass_in_both_directions_but_for_those_of_the_connection(bench: Bench):
    async def script(_: Received, connection: Connection) -> None:
        head = "Content-Type: application/json\r\nX-One: 1\r\nX-Two: a\r\nX-Two: b\r\nServer: llama.cpp\r\n"
        head += "Keep-Alive: timeout=5\r\nAccess-Control-Allow-Origin: *\r\nX-Hop: 1\r\nConnection: X-Hop"
        await connection.answer(b"{}", head=head)

    child = await bench.child(script)
    sent = {"X-Trace": "7", "Accept-Encoding": "zstd", "TE": "trailers", "Connection": "close, X-Private"}
    async with bench.post(headers=sent | {"X-Private": "1", "User-Agent": "mine"}) as answer:
        assert answer.headers["X-One"] == "1"
        assert answer.headers.getall("X-Two") == ["a", "b"]
        assert answer.headers["Server"] == "llama.cpp"
        for gone in ("Keep-Alive", "Access-Control-Allow-Origin", "X-Hop"):
            assert gone not in answer.headers
    received = child.requests[0]
    assert received.all("X-Trace") == ["7"]
    assert received.all("Accept-Encoding") == ["zstd"]
    assert received.all("User-Agent") == ["mine"]
    assert not received.all("TE")
    assert not received.all("X-Private")


async def test_nothing_is_added_to_a_request_that_says_little(bench: Bench):
    child = await bench.child(echo)
    _, writer = await bench.raw()
    await until(lambda: child.requests)
    names = {name.lower() for name, _ in child.requests[0].headers}
    assert names <= {"host", "content-length", "connection"}
    writer.close()


async def test_the_keys_of_the_client_never_reach_the_child(bench: Bench):
    child = await bench.child(echo)
    keys = {"Authorization": "Bearer secret", "x-api-key": "secret", "Proxy-Authorization": "Basic secret"}
    async with bench.post(headers=keys) as answer:
        await answer.read()
    assert not [pair for pair in child.requests[0].headers if "secret" in pair[1]]


async def test_the_status_and_the_error_body_of_the_child_pass_unchanged(bench: Bench):
    async def script(_: Received, connection: Connection) -> None:
        body = b'{"error":{"code":400,"message":"too long","type":"exceed_context_size_error"}}'
        await connection.send(b"HTTP/1.1 400 Bad Request\r\nContent-Length: %d\r\n\r\n" % len(body) + body)

    await bench.child(script)
    async with bench.post() as answer:
        assert answer.status == 400
        assert (await answer.json(content_type=None))["error"]["type"] == "exceed_context_size_error"


async def test_a_compressed_answer_is_passed_as_it_is(bench: Bench):
    async def script(_: Received, connection: Connection) -> None:
        await connection.answer(b"\x1f\x8bnot really", head="Content-Encoding: gzip")

    await bench.child(script)
    async with aiohttp.ClientSession(auto_decompress=False) as client, client.post(bench.base) as answer:
        assert answer.headers["Content-Encoding"] == "gzip"
        assert await answer.read() == b"\x1f\x8bnot really"


async def test_an_empty_body_passes_as_one(bench: Bench):
    child = await bench.child(echo)
    async with bench.post(b"") as answer:
        assert await answer.read() == b""
    assert child.requests[0].all("Content-Length") == ["0"]


async def test_a_body_of_many_megabytes_passes_whole_with_its_length(bench: Bench):
    child = await bench.child(echo)
    body = bytes(range(256)) * (20 << 12)
    async with bench.post(body) as answer:
        assert await answer.read() == body
    assert child.requests[0].all("Content-Length") == [str(len(body))]
    assert not child.requests[0].all("Transfer-Encoding")


async def test_every_chunk_is_passed_on_before_the_next_one_comes(bench: Bench):
    heard = asyncio.Event()

    async def script(_: Received, connection: Connection) -> None:
        await connection.begin_stream()
        for number in range(3):
            await connection.chunk(b"data: %d\n\n" % number)
            await heard.wait()
            heard.clear()
        await connection.end_stream()

    await bench.child(script)
    async with asyncio.timeout(DEADLINE), bench.post() as answer:
        for number in range(3):
            assert await answer.content.readany() == b"data: %d\n\n" % number
            heard.set()
        assert await answer.content.readany() == b""
        assert answer.headers["X-Accel-Buffering"] == "no"


async def test_an_answer_says_what_it_took(bench: Bench):
    await bench.child(echo)
    async with bench.post() as cold, bench.post() as warm:
        assert cold.headers["X-Router-Action"] == "loaded"
        assert cold.headers["X-Router-Load-Ms"] == "1250"
        assert warm.headers["X-Router-Action"] == "already_loaded"
        assert warm.headers["X-Router-Queue-Ms"] == "0"


async def test_the_pool_is_told_what_the_request_asks_for(bench: Bench):
    await bench.child(echo)
    bench.ask = RequestInfo("qwen", Priority.HIGH, keep_alive=-1.0, size=64.0)
    async with bench.post() as answer:
        await answer.read()
    asked = bench.pool.acquired[0]
    assert (asked.model, asked.priority, asked.keep_alive, asked.size) == ("qwen", Priority.HIGH, -1.0, 64.0)


async def test_every_request_has_a_connection_of_its_own(bench: Bench):
    child = await bench.child(echo)
    for _ in range(3):
        async with bench.post() as answer:
            await answer.read()
    assert child.connections == 3


async def test_a_client_that_waits_to_be_asked_for_its_body_is_asked(bench: Bench):
    child = await bench.child(echo)
    reader, writer = await bench.connect()
    writer.write(b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 2\r\nExpect: 100-continue\r\n\r\n")
    async with asyncio.timeout(DEADLINE):
        assert await reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
        writer.write(b"{}")
        assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 200 OK")
    assert not child.requests[0].all("Expect")


async def test_an_old_client_gets_a_stream_that_ends_with_the_connection(bench: Bench):
    async def script(_: Received, connection: Connection) -> None:
        await connection.begin_stream()
        await connection.chunk(b"data: 1\n\n")
        await connection.end_stream()

    await bench.child(script)
    reader, writer = await bench.connect()
    writer.write(b"POST / HTTP/1.0\r\nContent-Length: 2\r\n\r\n{}")
    async with asyncio.timeout(DEADLINE):
        head, _, body = (await reader.read()).partition(b"\r\n\r\n")
    assert body == b"data: 1\n\n"
    assert b"chunked" not in head.lower()


async def test_a_header_that_is_no_utf_8_does_no_harm(bench: Bench):
    child = await bench.child(echo)
    reader, writer = await bench.connect()
    writer.write(b"POST / HTTP/1.1\r\nHost: h\r\nX-Name: \xe9\r\nContent-Length: 2\r\n\r\n{}")
    async with asyncio.timeout(DEADLINE):
        assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 200 OK")
        assert await reader.readexactly(2) == b"{}"
    assert child.requests[0].body == b"{}"


# --- clients that leave ---


async def test_a_client_that_leaves_in_mid_stream_closes_the_upstream_within_100_ms(bench: Bench):
    left_after: list[float] = []
    hung_up = asyncio.Event()
    loop = asyncio.get_running_loop()

    async def script(_: Received, connection: Connection) -> None:
        await connection.begin_stream()
        await connection.chunk(b"data: 1\n\n")
        await hung_up.wait()
        begun = loop.time()
        await connection.until_client_left()
        left_after.append(loop.time() - begun)

    await bench.child(script)
    reader, writer = await bench.raw()
    await reader.readuntil(b"data: 1\n\n")
    writer.close()
    hung_up.set()
    await until(lambda: left_after)
    assert left_after[0] < 0.1
    await until(lambda: bench.pool.released)


async def test_a_client_that_leaves_before_the_answer_closes_the_upstream(bench: Bench):
    left = asyncio.Event()

    async def script(received: Received, connection: Connection) -> None:
        if received.line.startswith("GET /slots "):
            await connection.answer(b"[]")
            return
        await connection.until_client_left()
        left.set()

    child = await bench.child(script)
    _, writer = await bench.raw()
    await until(lambda: child.requests)
    writer.close()
    async with asyncio.timeout(DEADLINE):
        await left.wait()
    await until(lambda: bench.pool.released)


async def test_a_client_that_leaves_while_the_model_loads_gives_up_its_lease(bench: Bench):
    await bench.child(echo)
    bench.pool.load_gate = asyncio.Event()
    _, writer = await bench.raw()
    await until(lambda: bench.pool.waiting)
    writer.close()
    await until(lambda: not bench.pool.waiting)


async def test_a_client_that_does_not_read_holds_the_child_back(bench: Bench):
    written = 0
    stalled = asyncio.Event()

    async def script(_: Received, connection: Connection) -> None:
        nonlocal written
        await connection.begin_stream("Content-Type: application/octet-stream")
        try:
            async with asyncio.timeout(DEADLINE):
                while True:
                    async with asyncio.timeout(0.3):  # nobody takes anything for so long: held back
                        await connection.chunk(bytes(1 << 16))
                    written += 1 << 16
        except TimeoutError:
            stalled.set()

    await bench.child(script)
    _, writer = await bench.raw()
    async with asyncio.timeout(2 * DEADLINE):
        await stalled.wait()
    assert written < 64 << 20
    writer.transport.abort()
    await until(lambda: bench.pool.released)


# --- children that die ---


async def test_a_child_that_dies_before_its_answer_is_replaced_once(bench: Bench):
    async def script(_: Received, connection: Connection) -> None:
        bench.pool.exit("qwen#1")
        connection.die()

    await bench.child(script)
    second = await bench.child(echo)
    async with bench.post(b'{"model":"qwen","n":1}') as answer:
        assert answer.status == 200
        assert await answer.read() == b'{"model":"qwen","n":1}'
    assert len(second.requests) == 1
    assert len(bench.pool.released) == 2


async def test_the_exit_may_be_told_a_moment_after_the_connection_broke(bench: Bench):
    async def script(_: Received, connection: Connection) -> None:
        connection.die()
        await asyncio.sleep(0.05)  # the moment
        bench.pool.exit("qwen#1")

    await bench.child(script)
    await bench.child(echo)
    async with bench.post() as answer:
        assert answer.status == 200


async def test_a_second_death_is_told_with_the_last_lines_of_the_child(bench: Bench):
    async def script(_: Received, connection: Connection) -> None:
        for instance in list(bench.pool.instances):
            bench.pool.logs[instance] = ("loading", "GGML_ASSERT(false) failed")
            bench.pool.exit(instance)
        connection.die()

    await bench.child(script)
    await bench.child(script)
    async with bench.post() as answer:
        error = (await answer.json())["error"]
        assert answer.status == 502
        assert error["code"] == "upstream_failed"
        assert error["type"] == "server_error"
        assert error["log_tail"] == ["loading", "GGML_ASSERT(false) failed"]
        assert "GGML_ASSERT(false) failed" in error["message"]
        assert answer.headers["X-Router-Action"] == "loaded"
    assert len(bench.pool.acquired) == 2


async def test_a_retry_waits_out_the_pause_of_a_model_that_just_failed(bench: Bench):
    async def script(_: Received, connection: Connection) -> None:
        bench.pool.exit("qwen#1")
        connection.die()

    await bench.child(script)
    await bench.child(echo)
    bench.pool.refusals = [None, LoadFailed("qwen failed once", retry_after_seconds=0.01)]
    async with bench.post() as answer:
        assert answer.status == 200
    assert len(bench.pool.acquired) == 3


async def test_a_retry_that_is_refused_tells_both_reasons(bench: Bench):
    async def script(_: Received, connection: Connection) -> None:
        bench.pool.exit("qwen#1")
        connection.die()

    await bench.child(script)
    bench.pool.refusals = [None, NoRoom("no room for qwen", retry_after_seconds=7.5)]
    async with bench.post() as answer:
        error = (await answer.json())["error"]
        assert answer.status == 502
        assert answer.headers["Retry-After"] == "8"
        assert "before its answer began" in error["message"]
        assert "no room for qwen" in error["message"]


async def test_a_child_that_hangs_up_but_lives_is_not_asked_twice(bench: Bench, monkeypatch):
    monkeypatch.setattr("router.proxy.failures.EXIT_NOTICE_SECONDS", 0.05)

    async def script(_: Received, connection: Connection) -> None:
        connection.die()

    child = await bench.child(script)
    async with bench.post() as answer:
        assert answer.status == 502
    assert len(child.requests) == 1


async def test_a_stream_whose_child_dies_ends_with_an_error_event_and_no_done(bench: Bench):
    async def script(_: Received, connection: Connection) -> None:
        await connection.begin_stream()
        await connection.chunk(b'data: {"choices":[]}\n\n')
        bench.pool.logs["qwen#1"] = ("CUDA error: out of memory",)
        bench.pool.exit("qwen#1")
        connection.die()

    await bench.child(script)
    async with bench.post() as answer:
        events = (await answer.read()).split(b"\n\n")
    assert events[0] == b'data: {"choices":[]}'
    assert events[2] == b""
    error = json.loads(events[1].removeprefix(b"data: "))["error"]
    assert error["code"] == "upstream_failed"
    assert error["log_tail"] == ["CUDA error: out of memory"]
    assert len(bench.pool.acquired) == 1, "what has begun is not begun again"


async def test_an_event_cut_in_half_does_not_swallow_the_error(bench: Bench):
    async def script(_: Received, connection: Connection) -> None:
        await connection.begin_stream()
        await connection.chunk(b'data: {"cho')
        bench.pool.exit("qwen#1")
        connection.die()

    await bench.child(script)
    async with bench.post() as answer:
        events = (await answer.read()).split(b"\n\n")
    assert events[0] == b'data: {"cho'
    assert "error" in json.loads(events[1].removeprefix(b"data: "))


async def test_anthropic_clients_get_their_own_error_event(bench: Bench):
    async def script(_: Received, connection: Connection) -> None:
        await connection.begin_stream()
        bench.pool.exit("qwen#1")
        connection.die()

    await bench.child(script)
    bench.ask = RequestInfo("qwen", dialect=Dialect.ANTHROPIC)
    async with bench.post() as answer:
        name, data = (await answer.read()).decode().strip().split("\n")
    assert name == "event: error"
    assert json.loads(data.removeprefix("data: "))["error"]["type"] == "api_error"


@pytest.mark.parametrize("head", ["Content-Length: 100", "Transfer-Encoding: chunked"])
async def test_a_body_that_is_no_stream_of_events_is_cut_off_and_not_ended(bench: Bench, head: str):
    async def script(_: Received, connection: Connection) -> None:
        start = f"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n{head}\r\n\r\n".encode()
        await connection.send(start + (b'{"par' if "Length" in head else b'5\r\n{"par\r\n'))
        await asyncio.sleep(0)
        bench.pool.exit("qwen#1")
        connection.die()

    await bench.child(script)
    reader, _ = await bench.raw()
    async with asyncio.timeout(DEADLINE):
        answer = await reader.read()
    assert answer.startswith(b"HTTP/1.1 200")
    assert b'{"par' in answer
    assert not answer.endswith(b"0\r\n\r\n")
    assert b"error" not in answer


@pytest.mark.parametrize(("cause", "code"), [(Cause.UNLOADED, "unloaded"), (Cause.SHUTDOWN, "shutting_down")])
async def test_a_child_that_the_router_stopped_itself_is_not_started_again(
    bench: Bench, cause: Cause, code: str
):
    async def script(_: Received, connection: Connection) -> None:
        bench.pool.stop("qwen#1", cause)
        connection.die()

    await bench.child(script)
    await bench.child(echo)
    async with bench.post() as answer:
        assert answer.status == 503
        assert (await answer.json())["error"]["code"] == code
    assert len(bench.pool.acquired) == 1


async def test_a_refusal_of_the_pool_is_the_answer(bench: Bench):
    bench.pool.refusals = [NoRoom("no room for qwen: needs 21.4 GiB", retry_after_seconds=2.0)]
    async with bench.post() as answer:
        error = (await answer.json())["error"]
        assert answer.status == 503
        assert answer.headers["Retry-After"] == "2"
        assert answer.headers["X-Router-Action"] == "rejected"
        assert error == {
            "message": "no room for qwen: needs 21.4 GiB",
            "type": "unavailable_error",
            "code": "no_room",
            "param": None,
        }


# --- an input that is too long for one step ---

TOO_LONG = (
    b'{"error":{"code":500,"message":"input (600 tokens) is too large to process. '
    b'increase the physical batch size (current batch size: 512)","type":"server_error"}}'
)


def refusing(body: bytes, *, pieces: int = 1, framing: str = "length"):
    async def script(_: Received, connection: Connection) -> None:
        size = -(-len(body) // pieces)
        parts = [body[at : at + size] for at in range(0, len(body), size)]
        head = "Content-Type: application/json\r\n"
        head += "Transfer-Encoding: chunked" if framing == "chunked" else f"Content-Length: {len(body)}"
        await connection.send(f"HTTP/1.1 500 Internal Server Error\r\n{head}\r\n\r\n".encode())
        for part in parts:
            await (connection.chunk(part) if framing == "chunked" else connection.send(part))
        if framing == "chunked":
            await connection.end_stream()

    return script


@pytest.mark.parametrize("pieces", [1, 7])
async def test_it_is_refused_with_400_though_llama_server_says_500(bench: Bench, pieces: int):
    await bench.child(refusing(TOO_LONG, pieces=pieces))
    for _ in range(2):  # the connections are used again
        async with bench.post() as answer:
            assert answer.status == 400
            error = (await answer.json())["error"]
            assert (error["code"], error["type"]) == (400, "exceed_context_size_error")
            assert answer.headers["Content-Type"] == "application/json"


@pytest.mark.parametrize("framing", ["length", "chunked"])
async def test_another_failure_of_llama_server_passes_unchanged(bench: Bench, framing: str):
    body = b'{"error":{"code":500,"message":"failed to decode","type":"server_error"}}'
    await bench.child(refusing(body, pieces=3, framing=framing))
    async with bench.post() as answer:
        assert (answer.status, await answer.read()) == (500, body)


async def test_a_long_failure_is_not_kept(bench: Bench):
    body = b"x" * 100_000
    await bench.child(refusing(body, pieces=3))
    async with bench.post() as answer:
        assert (answer.status, await answer.read()) == (500, body)


async def test_a_failure_that_breaks_off_is_no_complete_answer(bench: Bench):
    async def script(_: Received, connection: Connection) -> None:
        await connection.send(b"HTTP/1.1 500 Internal Server Error\r\nContent-Length: 100\r\n\r\nhalf")
        connection.die()

    await bench.child(script)
    with pytest.raises(aiohttp.ClientError):
        async with bench.post() as answer:
            assert answer.status == 500
            await answer.read()
