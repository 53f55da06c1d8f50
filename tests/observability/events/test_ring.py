"""The newest events, numbered: what is kept, what is lost, and who is woken."""

from __future__ import annotations

import asyncio

import pytest

from router.observability.events import Lost, Ring
from tests.deadline import DEADLINE_SECONDS


def test_a_reader_gets_what_it_has_not_had_and_no_more() -> None:
    ring = Ring(3)
    assert ring.after(0) == []
    for data in (b"1", b"2", b"3"):
        ring.append(data)
    assert [frame.split(b"\n")[1] for frame in ring.after(1)] == [b"data: 2", b"data: 3"]
    assert ring.after(3) == []


def test_what_is_not_kept_any_more_is_lost_and_so_is_what_never_was() -> None:
    ring = Ring(2)
    for data in (b"1", b"2", b"3"):
        ring.append(data)
    assert len(ring.after(1)) == 2
    with pytest.raises(Lost):
        ring.after(0)
    with pytest.raises(Lost):
        ring.after(4)


def test_an_id_leads_back_to_where_it_was_and_that_of_another_router_nowhere() -> None:
    ring = Ring(9)
    ring.append(b"1")
    id_ = ring.after(0)[0].split(b"\n")[0].removeprefix(b"id: ").decode()
    assert ring.number_of(id_) == 1
    for wrong in ("", "1", "-1", "0000-1", f"{ring.epoch}-", f"{ring.epoch}-x", f"{ring.epoch}-{'9' * 30}"):
        with pytest.raises(Lost):
            ring.number_of(wrong)


async def test_every_reader_is_woken_by_what_is_newer() -> None:
    ring = Ring(9)
    async with asyncio.timeout(DEADLINE_SECONDS), asyncio.TaskGroup() as group:
        for _ in range(3):
            group.create_task(ring.more(0))
        await asyncio.sleep(0)
        ring.append(b"1")
    await ring.more(0)
