"""The tasks of one owner: none ends another, and leaving them is bounded."""

from __future__ import annotations

import asyncio
import sqlite3

import pytest

from router import tasks
from router.tasks import Tasks


async def test_a_task_that_fails_is_logged_and_ends_neither_another_nor_the_owner(caplog):
    async def fail(error: Exception) -> None:
        raise error

    is_done = asyncio.Event()
    async with Tasks() as group:
        for error in (OSError("read-only"), sqlite3.OperationalError("locked"), UnicodeError("a name")):
            group.create_task(fail(error), name=f"fails with {error}")
        other = group.create_task(is_done.wait(), name="other")
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert not other.done()
        is_done.set()
    assert other.result()
    assert len(group) == 0
    assert [record.getMessage() for record in caplog.records] == [
        "task fails with read-only failed",
        "task fails with locked failed",
        "task fails with a name failed",
    ]


async def test_what_hangs_is_cancelled_and_what_is_not_to_be_cancelled_is_left_behind(monkeypatch, caplog):
    monkeypatch.setattr(tasks, "CANCEL_SECONDS", 0.05)

    async def stubborn(over: asyncio.Event) -> None:
        while not over.is_set():
            try:
                await over.wait()
            except asyncio.CancelledError:
                continue

    over = asyncio.Event()
    async with asyncio.timeout(20), Tasks(end_seconds=0.05) as group:
        hanging = group.create_task(asyncio.Event().wait(), name="hangs")
        left = group.create_task(stubborn(over), name="stubborn")
    assert hanging.cancelled()
    assert not left.done()
    assert "task stubborn did not end" in caplog.text
    over.set()
    await left


async def test_leaving_waits_for_tasks_that_others_have_begun_meanwhile():
    async with Tasks() as group:

        async def begin() -> None:
            await asyncio.sleep(0)
            seconds.append(group.create_task(asyncio.sleep(0.02), name="second"))

        seconds: list[asyncio.Task[None]] = []
        group.create_task(begin(), name="first")
    assert seconds[0].done() and not seconds[0].cancelled()


async def test_a_leaving_that_is_cancelled_cancels_what_it_would_have_waited_for():
    group = Tasks(end_seconds=1e6)

    async def leave() -> None:
        async with group:
            group.create_task(asyncio.Event().wait(), name="hangs")

    leaving = asyncio.ensure_future(leave())
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    leaving.cancel()
    with pytest.raises(asyncio.CancelledError):
        async with asyncio.timeout(20):
            await leaving
    assert len(group) == 0
