"""One line per request."""

from __future__ import annotations

import asyncio
import logging

import pytest

from tests.api.conftest import Api
from tests.api.upstream import Connection, Received


@pytest.fixture(autouse=True)
def _at_info(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "router.access")


async def test_it_tells_the_model_what_was_done_and_how_long_that_took(api: Api, caplog):
    await api.start()
    await api.post("/v1/completions?x=secret", json={"model": "small"})
    (line,) = [record.getMessage() for record in caplog.records if record.name == "router.access"]
    assert line.startswith("127.0.0.1 POST /v1/completions 200 tiny loaded queue=0ms load=1250ms first=")
    assert "secret" not in line


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
    async with asyncio.timeout(5):
        while "router.access" not in {record.name for record in caplog.records}:
            await asyncio.sleep(0.005)
    assert " 499 tiny loaded " in caplog.text
