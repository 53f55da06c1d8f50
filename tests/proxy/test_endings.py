"""Requests whose client is gone hold their lease until the child has ended them."""

from __future__ import annotations

import asyncio
import json

from router.proxy import RequestInfo, RequestStats
from router.proxy.request import RequestState
from tests.admin.upstream import Connection, Received
from tests.proxy.bench import DEADLINE, Bench
from tests.waiting import until


class Child:
    """Works on a plain request until `done`, whether its client is there or not; then `working` slots are
    busy until `idle`.
    """

    def __init__(self, working: int = 0) -> None:
        self.done, self.idle, self.saw_the_end = asyncio.Event(), asyncio.Event(), asyncio.Event()
        self.working = working
        self.asked_for_slots = 0

    async def __call__(self, received: Received, connection: Connection) -> None:
        if received.line.startswith("GET /slots "):
            self.asked_for_slots += 1
            busy = 0 if self.idle.is_set() else self.working
            await connection.answer(json.dumps([{"is_processing": n < busy} for n in range(2)]).encode())
            return
        await connection.until_client_left()
        self.saw_the_end.set()
        await self.done.wait()


async def abandon(bench: Bench, child: Child) -> None:
    upstream = await bench.child(child)
    _, writer = await bench.raw()
    await until(lambda: upstream.requests)
    writer.close()
    async with asyncio.timeout(DEADLINE):
        await child.saw_the_end.wait()


async def test_a_request_that_is_abandoned_holds_its_lease_until_its_child_closes(bench: Bench):
    child = Child()
    await abandon(bench, child)
    (request,) = bench.requests
    await until(lambda: request.state is RequestState.DONE)
    assert bench.pool.open_leases == 1
    assert [flow.requests for flow in bench.proxy.traffic.flows.values()] == [1], "a stall is still seen"
    ending = request.stats.ending
    assert ending is not None and not ending.done()
    child.done.set()
    await until(lambda: not bench.pool.open_leases and not len(bench.proxy.endings))
    assert not bench.proxy.traffic.flows


async def test_its_lease_is_held_until_no_slot_works_on_it(bench: Bench):
    """The child closes when the cancellation is asked for, which is carried out after the batch."""
    child = Child(working=1)
    await abandon(bench, child)
    child.done.set()
    await until(lambda: child.asked_for_slots > 2)
    assert bench.pool.open_leases == 1
    child.idle.set()
    await until(lambda: not bench.pool.open_leases)


async def test_a_stream_that_told_of_its_prompt_alone_is_held_until_no_slot_works_on_it(bench: Bench):
    """Progress and pings come before the batch that the cancellation waits for."""
    idle, asked = asyncio.Event(), 0

    async def processes(received: Received, connection: Connection) -> None:
        nonlocal asked
        if received.line.startswith("GET /slots "):
            asked += 1
            await connection.answer(json.dumps([{"is_processing": not idle.is_set()}]).encode())
            return
        await connection.begin_stream()
        await connection.chunk(b'data: {"prompt_progress":{"total":9000,"processed":2048}}\n\n')
        await connection.until_client_left()

    await bench.child(processes)
    reader, writer = await bench.raw()
    async with asyncio.timeout(DEADLINE):
        await reader.readuntil(b"prompt_progress")
    writer.close()
    await until(lambda: asked > 2)
    assert bench.pool.open_leases == 1
    idle.set()
    await until(lambda: not bench.pool.open_leases)


async def test_a_child_that_answers_after_a_long_batch_is_waited_for(bench: Bench):
    computed, asked = asyncio.Event(), 0

    async def computes(received: Received, connection: Connection) -> None:
        nonlocal asked
        if received.line.startswith("GET /slots "):
            asked += 1
            await computed.wait()
            await connection.answer(b'[{"is_processing":false}]')
            return
        await connection.until_client_left()

    upstream = await bench.child(computes)
    _, writer = await bench.raw()
    await until(lambda: upstream.requests)
    writer.close()
    await until(lambda: asked)
    await asyncio.sleep(3.5)  # longer than a child was waited for before
    assert (bench.pool.open_leases, asked) == (1, 1)
    computed.set()
    await until(lambda: not bench.pool.open_leases)


async def test_slots_that_work_for_others_hold_nothing(bench: Bench):
    child = Child(working=1)
    await abandon(bench, child)
    _, other = await bench.raw()
    await until(lambda: len(bench.children[0].requests) == 2)
    child.done.set()
    await until(lambda: bench.pool.open_leases == 1)
    child.idle.set()
    other.close()


async def test_a_child_that_is_gone_holds_nothing(bench: Bench):
    child = Child(working=1)
    await abandon(bench, child)
    await bench.children[0].__aexit__()
    await until(lambda: not bench.pool.open_leases)


async def test_a_stream_whose_child_does_not_look_for_its_client_is_aborted(bench: Bench):
    sent = 0

    async def endless(_: Received, connection: Connection) -> None:
        nonlocal sent
        await connection.begin_stream()
        while True:
            await connection.chunk(b"data: " + b"x" * 4000 + b"\n\n")
            sent += 1

    await bench.child(endless)
    reader, writer = await bench.raw()
    await reader.readuntil(b"data: ")
    writer.close()
    await until(lambda: not bench.pool.open_leases)
    await asyncio.sleep(0)
    before = sent
    await asyncio.sleep(0)
    assert sent - before <= 1


async def test_a_stream_that_is_to_outlive_its_client_is_held_by_whoever_asked_for_that(bench: Bench):
    child = Child()
    held: list[RequestStats] = []
    bench.ask = RequestInfo("qwen", stream=True, on_abandoned=held.append)
    await abandon(bench, child)
    await until(lambda: not bench.pool.open_leases)
    assert [stats.instance for stats in held] == ["qwen#1"]


async def test_a_router_that_ends_counts_them_no_longer(bench: Bench):
    child = Child()
    await abandon(bench, child)
    await until(lambda: len(bench.proxy.endings) == 1)
    bench.proxy.close()
    await bench.proxy.endings.settled()
    assert not bench.pool.open_leases
