"""Tasks that outlive their request."""

from __future__ import annotations

import asyncio
import logging

import pytest

from router.app.background import Background
from router.errors import LoadFailed


async def test_a_task_has_a_name_and_goes_on_alone():
    done = asyncio.Event()

    async def work() -> None:
        done.set()

    background = Background()
    async with background:
        task = background.spawn(work(), name="load tiny")
        assert task.get_name() == "load tiny"
        await task
    assert done.is_set()


async def test_leaving_ends_what_still_runs():
    ended = asyncio.Event()
    begun = asyncio.Event()

    async def work() -> None:
        begun.set()
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()

    background = Background()
    async with background:
        background.spawn(work(), name="endless")
        await begun.wait()
    assert ended.is_set()


@pytest.mark.parametrize(
    ("error", "level"), [(LoadFailed("tiny failed to load"), "WARNING"), (KeyError("bug"), "ERROR")]
)
async def test_one_that_fails_is_logged_and_takes_nobody_along(error: Exception, level: str, caplog):
    caplog.set_level(logging.INFO)

    async def fail() -> None:
        raise error

    async def work() -> None:
        await asyncio.sleep(0)

    background = Background()
    async with background:
        await background.spawn(fail(), name="load tiny")
        await background.spawn(work(), name="another")
    (record,) = caplog.records
    assert (record.levelname, "load tiny" in record.getMessage()) == (level, True)
