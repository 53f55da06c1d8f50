"""One line per request."""

from __future__ import annotations

import asyncio
import json
import logging

import pytest

from router.admin.access_log import ACCESS_LOG
from router.proxy import RequestStats
from tests.admin.conftest import Api
from tests.admin.upstream import Connection, Received
from tests.waiting import until


@pytest.fixture(autouse=True)
def _at_info(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "router.access")


async def test_it_tells_the_model_what_was_done_and_how_long_that_took(api: Api, caplog):
    await api.start()
    await api.post("/v1/completions?x=secret", json={"model": "small"})
    (line,) = [record.getMessage() for record in caplog.records if record.name == "router.access"]
    assert line.startswith("127.0.0.1 POST /v1/completions 200 tiny loaded queue=0ms load=1250ms first=")
    assert "secret" not in line


async def test_it_tells_tokens_evictions_and_the_policy(api: Api, caplog):
    account = RequestStats(
        "tiny",
        "loaded",
        prompt_tokens=12,
        completion_tokens=34,
        error="upstream_failed",
        evicted=("a#1", "b#2"),
    )
    await api.start()
    caplog.clear()
    api.app[ACCESS_LOG].ended("127.0.0.1", "POST", "/v1/completions", account, 200, 0.1)
    (line,) = [record.getMessage() for record in caplog.records if record.name == "router.access"]
    assert line.endswith(" tokens=12+34 error=upstream_failed evicted=a#1,b#2 policy=lru")


async def test_as_json_every_line_is_an_object_with_the_same_keys(api: Api, caplog):
    await api.start(access_log_format="json")
    await api.post("/v1/completions", json={"model": "small"})
    await api.get("/nothing")
    records = [record for record in caplog.records if record.name == "router.access"]
    assert all(record.bare for record in records), "nothing is written before them"
    one, other = (json.loads(record.getMessage()) for record in records)
    assert list(one) == list(other)
    assert (one["model"], one["action"], one["status"], one["load_ms"]) == ("tiny", "loaded", 200, 1250.0)
    assert (other["model"], other["status"], other["policy"]) == (None, 404, "lru")
    assert one["time"].endswith("Z") and one["client"] == "127.0.0.1"


async def test_it_can_be_switched_off_and_metrics_are_counted_all_the_same(api: Api, caplog):
    await api.start(access_log=False)
    await api.post("/v1/completions", json={"model": "small"})
    assert not [record for record in caplog.records if record.name == "router.access"]
    assert b'llama_router_requests_total{action="loaded"' in (await api.get("/metrics")).body


async def test_errors_are_noted_with_their_status(api: Api, caplog):
    await api.start()
    await api.get("/nothing")
    await api.post("/v1/completions", json={"model": "nobody"})
    lines = [record.getMessage() for record in caplog.records if record.name == "router.access"]
    assert [line.split()[3] for line in lines] == ["404", "404"]


async def test_a_client_that_left_is_noted_too(api: Api, caplog):
    begun = asyncio.Event()

    async def script(_: Received, connection: Connection) -> None:
        begun.set()
        await connection.until_client_left()

    await api.start(script=script)
    call = asyncio.get_running_loop().create_task(api.post("/v1/completions", json={"model": "tiny"}))
    await begun.wait()
    call.cancel()
    await until(lambda: "router.access" in {record.name for record in caplog.records})
    assert " 499 tiny loaded " in caplog.text
