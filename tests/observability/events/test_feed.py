"""What readers of the feed get: entries of the journal, what changes between two looks, and a whole picture
first."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import pytest

from router.errors import LoadFailed
from router.ids import Definition
from router.observability.events import Feed, Reader, feed
from router.observability.journal import Entry
from router.scheduler.types import (
    Acquire,
    Adopted,
    Cause,
    Event,
    Exited,
    Grant,
    Pinned,
    Placement,
    Ready,
    Reloaded,
    Start,
    State,
    Stop,
)
from router.scheduler.views import InstanceView, QueueView, Snapshot
from tests.deadline import DEADLINE_SECONDS

PLACE = Placement("local", {"local/cuda:0": 3 << 30}, ("local/cuda:0",))


class Table:
    """A feed over a snapshot that a test changes."""

    def __init__(self, kept: int = 100) -> None:
        self.now = Snapshot(100.0, "lru", (), (), (), (), 0)
        self.feed = Feed(lambda: self.now, lambda model: {"id": model}, lambda: ["a", "b"], kept=kept)
        self._id = 0

    def happens(self, event: Event, *commands: Any, now: float = 100.0) -> None:
        self._id += 1
        self.feed.heard(Entry(self._id, 1e9, now, event, commands))

    def runs(self, *ones: InstanceView) -> None:
        self.now = replace(self.now, now=self.now.now + 1, instances=ones)


def view(name: str, state: State, **more: Any) -> InstanceView:
    model = name.rpartition("#")[0]
    fixed: dict[str, Any] = {
        "placement": PLACE,
        "leases": (),
        "reserved": PLACE.footprint,
        "used": {},
        "since": 90.0,
        "idle_since": None,
        "expires_at": None,
        "pinned": False,
        "cause": None,
        "for_model": None,
    }
    return InstanceView(name, model, state, **{**fixed, **more})


def events(data: bytes) -> list[dict[str, Any]]:
    lines = data.decode().splitlines()
    return [json.loads(line[6:]) for line in lines if line.startswith("data: ")]


def last_id(data: bytes) -> str:
    return [line[4:] for line in data.decode().splitlines() if line.startswith("id: ")][-1]


def taken(reader: Reader) -> list[tuple[str, str]]:
    return [(one["model"], one["event"]) for one in events(reader.take())]


def test_a_new_reader_gets_a_picture_of_all_models_first() -> None:
    table = Table()
    queue = QueueView("b", 2, 90.0, 1, "room", 3.5)
    table.runs(view("a#1", State.READY, leases=("r1",)))
    table.now = replace(table.now, queues=(queue,))
    (snapshot,) = events(Reader(table.feed, None).take())
    assert (snapshot["model"], snapshot["event"]) == ("*", "snapshot")
    a, b = snapshot["data"]["models"]
    assert (a["id"], a["status"], a["instances"][0]["leases"]) == ("a", "loaded", 1)
    assert (b["status"], b["instances"], b["queue"]["waiting"]) == ("unloaded", [], 2)


def test_a_load_is_told_in_llama_cpps_words() -> None:
    table = Table()
    reader = Reader(table.feed, None)
    reader.take()
    table.happens(Acquire("r1", "a"), Start("a#1", "a", PLACE, ("b#1",), Definition("3f", '{"ctx_size":9}')))
    table.happens(Ready("a#1"), Grant("r1", "a#1"), now=102.5)
    begun, ready = events(reader.take())
    assert (begun["model"], begun["event"], begun["data"]["status"]) == ("a", "model_status", "loading")
    assert begun["data"]["evicted"] == ["b#1"]
    assert begun["data"]["settings"] == {"ctx_size": 9}
    assert (ready["event"], ready["data"]["status"]) == ("status_change", "loaded")
    assert (ready["data"]["load_seconds"], ready["data"]["info"]) == (2.5, {"id": "a"})


def test_who_leaves_is_told_with_the_cause_and_its_end_with_the_exit_code() -> None:
    table = Table()
    reader = Reader(table.feed, None)
    reader.take()
    table.happens(Acquire("r1", "b"), Stop("a#1", Cause.EVICTED, "b"))
    table.happens(Exited("a#1"))
    table.happens(Exited("b#1", LoadFailed("killed by SIGKILL", details={"returncode": -9})))
    evict, gone, failed = events(reader.take())
    assert (evict["event"], evict["data"]) == ("evict", {"instance": "a#1", "cause": "evicted", "for": "b"})
    assert (gone["data"]["status"], gone["data"]["exit_code"]) == ("unloaded", 0)
    assert (failed["data"]["exit_code"], failed["data"]["error"]) == (-9, "killed by SIGKILL")


def test_a_model_of_which_another_instance_runs_is_not_told_to_be_unloaded() -> None:
    table = Table()
    reader = Reader(table.feed, None)
    reader.take()
    table.runs(view("a#2", State.READY))
    table.happens(Exited("a#1"))
    assert events(reader.take())[0]["data"]["status"] == "loaded"


def test_what_an_operator_does_is_told() -> None:
    table = Table()
    reader = Reader(table.feed, None)
    reader.take()
    table.happens(Pinned("a", True))
    table.happens(Reloaded({}))
    table.happens(Adopted("a#1", "a", PLACE))
    table.happens(Exited("a#1"), Stop("b#1", Cause.EXPIRED))
    assert taken(reader) == [
        ("a", "pin"),
        ("*", "models_reload"),
        ("a", "status_change"),
        ("a", "status_change"),
        ("b", "stop"),
    ]


def test_requests_that_find_their_model_say_nothing() -> None:
    table = Table()
    table.happens(Acquire("r1", "a"), Grant("r1", "a#1"))
    assert table.feed.ring.newest == 0


def test_who_comes_again_gets_what_it_missed_and_then_the_picture() -> None:
    table = Table()
    reader = Reader(table.feed, None)
    table.happens(Pinned("a", True))
    id_ = last_id(reader.take())
    table.happens(Pinned("b", True))
    again = Reader(table.feed, id_)
    assert taken(again) == [("b", "pin"), ("*", "snapshot")]
    table.happens(Pinned("a", False))
    assert taken(again) == [("a", "pin")]


@pytest.mark.parametrize("id_", ["nonsense", "0-1", "{epoch}-99", "{epoch}-0"])
def test_who_was_away_for_too_long_is_told_to_begin_anew(id_: str) -> None:
    table = Table(kept=2)
    for _ in range(3):
        table.happens(Pinned("a", True))
    reader = Reader(table.feed, id_.format(epoch=table.feed.ring.epoch))
    assert taken(reader) == [("*", "reset"), ("*", "snapshot")]


def test_a_reader_that_is_too_slow_gets_a_picture_instead_of_what_it_missed() -> None:
    table = Table(kept=5)
    reader = Reader(table.feed, None)
    reader.take()
    for _ in range(1000):
        table.happens(Pinned("a", True))
    data = reader.take()
    assert [one["event"] for one in events(data)] == ["reset", "snapshot"]
    assert last_id(data).endswith("-1000")
    assert reader.take() == b""


@pytest.fixture
async def looking(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Table]:
    monkeypatch.setattr(feed, "LOOK_SECONDS", 0.0)
    monkeypatch.setattr(feed, "MEMORY_SECONDS", 1.0)
    table = Table()
    task = asyncio.create_task(table.feed.look())
    yield table
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def told(table: Table, reader: Reader, event: str) -> dict[str, Any]:
    """The next event of that name."""
    async with asyncio.timeout(DEADLINE_SECONDS):
        while True:
            for one in events(reader.take()):
                if one["event"] == event:
                    return one
            await reader.more()


async def test_what_is_no_entry_is_told_while_somebody_reads(looking: Table) -> None:
    reader = Reader(looking.feed, None)
    with looking.feed.reading():
        await asyncio.sleep(0)
        looking.now = replace(looking.now, queues=(QueueView("a", 2, 90.0, 1, "room", 3.5),))
        queue = await told(looking, reader, "queue")
        assert (queue["model"], queue["data"]["waiting"], queue["data"]["reason"]) == ("a", 2, "room")
        looking.runs(view("a#1", State.PLANNED, victims=("b#1",)))
        assert (await told(looking, reader, "plan"))["data"]["leave"] == ["b#1"]
        looking.runs(view("a#1", State.STARTING, started_at=100.0))
        progress = (await told(looking, reader, "status_change"))["data"]["progress"]
        assert progress["stages"] == ["text_model"] and 0 <= progress["value"] < 1
        looking.runs(view("a#1", State.READY, leases=("r1", "r2")))
        assert (await told(looking, reader, "activity"))["data"] == {"instance": "a#1", "leases": 2}
        draining = view("a#1", State.DRAINING, leases=("r1",), cause=Cause.EVICTED, for_model="b")
        looking.runs(draining)
        assert (await told(looking, reader, "drain"))["data"]["for"] == "b"
        looking.now = replace(looking.now, queues=())
        assert (await told(looking, reader, "queue"))["data"] == {"waiting": 0}


async def test_nobody_looks_while_nobody_reads(looking: Table) -> None:
    for _ in range(5):
        await asyncio.sleep(0)
    looking.runs(view("a#1", State.READY, leases=("r1",)))
    for _ in range(5):
        await asyncio.sleep(0)
    assert looking.feed.ring.newest == 0
