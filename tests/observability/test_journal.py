"""The ring of decisions: bounded, readable as data and words, and never held up by a slow reader."""

from __future__ import annotations

import asyncio
import gc
import json
from collections.abc import Callable
from typing import cast

import pytest
from msgspec.structs import replace

from router.admin.recent import Timeline
from router.errors import LoadFailed, NoRoom
from router.ids import Definition
from router.metrics.decisions import DecisionMetrics
from router.observability.events import Feed
from router.observability.journal import Entry, Journal, Kind, command_words, entry_lines
from router.observability.stats import Stats
from router.scheduler.types import (
    Acquire,
    Adopted,
    Cause,
    Closed,
    Command,
    Event,
    Exited,
    Grant,
    HostLost,
    Learned,
    Measured,
    Model,
    Pinned,
    Placement,
    Priority,
    Ready,
    Refuse,
    Release,
    Reloaded,
    Start,
    Stop,
    Tick,
    Unload,
)
from router.scheduler.views import Snapshot
from tests.deadline import DEADLINE_SECONDS

PLACE = Placement("local", {"local/cuda:0": 3 << 30})
EVENTS: tuple[Event, ...] = (
    Acquire("r1", "a", Priority.HIGH, -1.0, 100.0),
    Release("r1"),
    Ready("a#1"),
    Exited("a#1", NoRoom("full")),
    Adopted("a#1", "a", PLACE),
    Measured({"local/cuda:0": None}),
    Unload("a", force=True),
    Pinned("a", True),
    HostLost("local"),
    Reloaded({}),
    Learned(Model("a", (PLACE,))),
    Closed(),
    Tick(),
)
COMMANDS: tuple[Command, ...] = (
    Start("a#1", "a", PLACE),
    Stop("a#1", Cause.EVICTED, "b"),
    Grant("r1", "a#1", "loaded"),
    Refuse("r1", NoRoom("full")),
)


def test_measurements_and_ticks_that_led_to_nothing_are_left_out() -> None:
    journal = Journal()
    assert journal.record(1.0, Tick(), []) is None
    assert journal.record(1.0, Measured({}), []) is None
    assert journal.record(1.0, Tick(), [Stop("a#1", Cause.EXPIRED)]) is not None
    assert journal.record(2.0, Release("r1"), []) is not None
    assert [entry.id for entry in journal.entries()] == [1, 2]
    assert [entry.id for entry in journal.entries(after=1)] == [2]


def test_a_follower_hears_the_kinds_it_asked_for_and_one_that_asked_for_none_hears_all() -> None:
    journal, some, stops, everything = Journal(), list[int](), list[int](), list[int]()
    journal.follow(lambda entry: some.append(entry.id), Acquire, Start)
    journal.follow(lambda entry: stops.append(entry.id), Stop)
    journal.record(1.0, Release("r0"), [])
    journal.follow(lambda entry: everything.append(entry.id))
    start, stop = Start("b#1", "b", PLACE), Stop("a#1", Cause.EVICTED, "b")
    journal.record(1.0, Acquire("r1", "a"), [Grant("r1", "a#1")])
    journal.record(2.0, Release("r1"), [])
    journal.record(3.0, Acquire("r2", "b"), [stop])
    journal.record(4.0, Exited("a#1"), [start])
    journal.record(5.0, Exited("a#1"), [Grant("r1", "a#1"), Grant("r2", "a#1"), stop])
    journal.record(6.0, Exited("a#1"), [Grant("r1", "a#1"), Grant("r2", "a#1"), start])
    journal.record(7.0, Release("r2"), [])
    assert (some, stops, everything) == ([2, 4, 5, 7], [4, 6], [2, 3, 4, 5, 6, 7, 8])


def test_what_a_follower_does_not_ask_for_would_tell_it_nothing() -> None:
    feed, stats, decisions, timeline = (
        Feed(lambda: cast(Snapshot, None), lambda _: None, list),
        Stats({}, clock=lambda: 0.0),
        DecisionMetrics(),
        Timeline(),
    )
    followers: list[tuple[Callable[[Entry], None], tuple[Kind, ...]]] = [
        (feed.heard, feed.HEARD),
        (stats.heard, stats.HEARD),
        (decisions.heard, decisions.HEARD),
        (lambda entry: timeline.note([entry], str), timeline.HEARD),
    ]

    def state() -> object:
        return (
            feed.ring.newest,
            stats.told(),
            timeline.after(0),
            repr(vars(decisions)),
        )

    entries = [Entry(1, 0.0, 0.0, event, ()) for event in EVENTS]
    entries += [Entry(1, 0.0, 0.0, Tick(), (command,)) for command in COMMANDS]
    before, unheard = state(), 0
    for heard, wanted in followers:
        for entry in entries:
            if not {type(entry.event), *map(type, entry.commands)} & set(wanted):
                heard(entry)
                unheard += 1
    assert state() == before
    assert unheard > len(entries)


def test_a_follower_that_fails_is_logged_and_keeps_nobody_from_hearing(caplog) -> None:
    journal, heard = Journal(), list[int]()

    def fail(entry: Entry) -> None:
        raise ValueError(entry.id)

    journal.follow(fail, Release)
    journal.follow(lambda entry: heard.append(entry.id))
    assert journal.record(1.0, Release("r1"), []) is not None
    assert heard == [1]
    assert "a follower failed at Release" in caplog.text


def test_requests_in_the_ring_are_nothing_to_look_through_for_cycles() -> None:
    journal = Journal()
    for number in range(100):
        lease = f"r{number}"
        journal.record(1.0, Acquire(lease, "a", size=8.0, timeout=30.0), [Grant(lease, "a#1")])
        journal.record(2.0, Release(lease), [])
    gc.collect()  # which is when a tuple of such things is seen to be none
    kept = [part for one in journal.entries() for part in (one, one.event, one.commands, *one.commands)]
    assert len(kept) == 200 * 3 + 100
    assert not any(gc.is_tracked(part) for part in kept)


def test_requests_that_wait_for_nothing_push_no_decision_out() -> None:
    journal = Journal(size=3, passing=4)
    journal.record(1.0, Tick(), [Stop("a#1", Cause.EVICTED, "b")])
    for number in range(50):
        lease = f"r{number}"
        journal.record(2.0, Acquire(lease, "b"), [Grant(lease, "b#1", "already_loaded")])
        journal.record(3.0, Release(lease), [])
    journal.record(4.0, Acquire("late", "a"), [])
    journal.record(5.0, Ready("a#2"), [Grant("late", "a#2", "loaded")])
    assert [entry.id for entry in journal.entries()] == [1, 98, 99, 100, 101, 102, 103]
    assert [entry.id for entry in journal.entries(after=100)] == [101, 102, 103]


async def test_a_routine_request_is_noted_as_any_other() -> None:
    whole, short = Journal(size=3, passing=4), Journal(size=3, passing=4)
    with whole.subscribe() as of_whole, short.subscribe() as of_short:
        for number in range(5):
            lease = f"r{number}"
            whole.record(2.0, Acquire(lease, "b"), [Grant(lease, "b#1")])
            short.record(2.0, Acquire(lease, "b"), [Grant(lease, "b#1")], is_routine=True)
            whole.record(3.0, Release(lease), [])
            short.record(3.0, Release(lease), [], is_routine=True)
        for _ in range(10):
            one, other = await anext(of_whole), await anext(of_short)
            assert replace(one, at=0.0) == replace(other, at=0.0)
    kept, same = ([replace(entry, at=0.0) for entry in each.entries()] for each in (whole, short))
    assert kept == same and [entry.id for entry in kept] == [7, 8, 9, 10]


def test_followers_are_called_for_all_but_routine_requests_which_are_counted() -> None:
    journal, heard = Journal(), list[int]()
    journal.follow(lambda entry: heard.append(entry.id))
    journal.record(1.0, Acquire("r1", "a"), [Grant("r1", "a#1")], is_routine=True)
    journal.record(2.0, Acquire("r2", "b"), [])
    journal.record(3.0, Release("r1"), [], is_routine=True)
    journal.record(4.0, Release("r2"), [])
    assert heard == [2, 4]
    assert journal.routine_requests == {"a": 1}


def test_the_ring_keeps_the_newest() -> None:
    journal = Journal(size=3)
    for number in range(10):
        journal.record(float(number), Unload(f"m{number}"), [])
    assert [entry.id for entry in journal.entries()] == [8, 9, 10]


async def test_a_reader_sees_all_from_its_begin_on_and_a_slow_one_sees_the_gap_in_the_ids() -> None:
    journal = Journal(backlog=2)
    journal.record(0.0, Release("before"), [])
    with journal.subscribe() as reader:
        journal.record(1.0, Release("r1"), [])
        async with asyncio.timeout(DEADLINE_SECONDS):
            assert (await anext(reader)).event == Release("r1")
        for number in range(5):
            journal.record(2.0, Release(f"s{number}"), [])
        async with asyncio.timeout(DEADLINE_SECONDS):
            assert [(await anext(reader)).id, (await anext(reader)).id] == [6, 7]
        waiting = asyncio.ensure_future(anext(reader))
        await asyncio.sleep(0)
        assert not waiting.done()
        journal.record(3.0, Release("late"), [])
        async with asyncio.timeout(DEADLINE_SECONDS):
            assert (await waiting).event == Release("late")
    assert not journal._readers


@pytest.mark.parametrize("event", EVENTS)
def test_every_event_and_command_is_plain_data_that_names_itself(event: Event) -> None:
    commands: list[Command] = [
        Grant("r1", "a#1"),
        Start("b#1", "b", PLACE, ("a#1",)),
        Stop("a#1", Cause.EVICTED, "b"),
    ]
    entry = Journal().record(1.5, event, commands)
    assert entry is not None
    lines = json.loads(json.dumps(list(entry_lines(entry))))
    assert [line["event"] for line in lines] == [type(event).__name__, "Grant", "Start", "Stop"]
    assert {(line["id"], line["now"]) for line in lines} == {(entry.id, 1.5)}


def test_what_is_exported_has_no_text_of_an_error_no_settings_and_no_device_id() -> None:
    error = LoadFailed("llama-server said: /home/me/secret.gguf", details={"log": ["my prompt"]})
    varied = Start("a#1", "a", PLACE, (), Definition("3f", '{"ctx_size":512}'))
    entry = Journal().record(1.0, Exited("a#1", error), [Refuse("r1", error), varied])
    assert entry is not None
    text = json.dumps(list(entry_lines(entry)))
    for private in ("secret", "prompt", "ctx_size", "cuda"):
        assert private not in text
    assert text.count('"code": "load_failed"') == 2


def test_the_complete_part_begins_behind_the_last_entry_that_was_dropped() -> None:
    journal = Journal(size=10, passing=3)
    assert journal.complete() == ()
    journal.record(0.0, Unload("early"), [])
    for number in range(5):
        journal.record(1.0, Release(f"r{number}"), [], is_routine=True)
    journal.record(2.0, Unload("late"), [])
    assert [entry.id for entry in journal.entries()] == [1, 4, 5, 6, 7]
    assert [entry.id for entry in journal.complete()] == [4, 5, 6, 7]


def test_commands_read_as_one_line_each() -> None:
    assert (
        command_words(Start("a#1", "a", PLACE, ("b#2",)))
        == "start a#1 on local/cuda:0 3072 MiB after b#2 left"
    )
    varied = Start("a#1", "a", PLACE, (), Definition("3f", '{"ctx_size":512}'))
    assert command_words(varied) == 'start a#1 on local/cuda:0 3072 MiB with {"ctx_size":512}'
    assert command_words(Stop("b#2", Cause.EVICTED, "a")) == "stop b#2: evicted for a"
    assert command_words(Grant("r1", "a#1", "queued")) == "grant r1 on a#1: queued"
    assert command_words(Refuse("r2", NoRoom("no room for c"))) == "refuse r2: no room for c"
