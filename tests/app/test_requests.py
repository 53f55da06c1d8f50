"""Counting requests, so that a shutdown can wait for them."""

from __future__ import annotations

import asyncio

import pytest
from aiohttp import web
from aiohttp.test_utils import make_mocked_request

from router.admin.route import ROUTE_OF
from router.app.requests import Requests
from router.errors import ShuttingDown


def some_request() -> web.Request:
    app = web.Application()
    app[ROUTE_OF] = {}
    return make_mocked_request("GET", "/", app=app)


async def test_a_drain_with_nobody_there_is_over_at_once():
    requests = Requests()
    requests.drain()
    assert requests.settled.is_set()


async def test_a_drain_waits_for_the_last_request_also_when_that_fails():
    requests, gate = Requests(), asyncio.Event()

    async def handle(_: web.Request) -> web.Response:
        await gate.wait()
        raise KeyError

    running = asyncio.get_running_loop().create_task(requests.count_request(some_request(), handle))
    await asyncio.sleep(0)
    assert requests.count == 1
    requests.drain()
    assert not requests.settled.is_set()
    gate.set()
    with pytest.raises(KeyError):
        await running
    assert requests.settled.is_set()


async def test_without_a_drain_nothing_is_settled():
    requests = Requests()

    async def handle(_: web.Request) -> web.Response:
        return web.Response()

    await requests.count_request(some_request(), handle)
    assert not requests.settled.is_set()


async def test_whoever_comes_during_a_drain_is_told_to_come_later():
    requests = Requests()
    requests.drain()

    async def handle(_: web.Request) -> web.Response:
        pytest.fail("it must not be served")

    with pytest.raises(ShuttingDown) as refused:
        await requests.count_request(some_request(), handle)
    assert refused.value.retry_after_seconds
    assert requests.count == 0
