"""What each model was asked for, counted from the journal."""

from __future__ import annotations

import asyncio
from itertools import count

from router.errors import LoadFailed, NoRoom, QueueFull
from router.observability.journal import Entry
from router.observability.stats import Stats
from router.scheduler.types import (
    Acquire,
    Cause,
    Command,
    Event,
    Exited,
    Grant,
    Placement,
    Ready,
    Refuse,
    Start,
    Stop,
)
from tests.fake_host import FakeHost
from tests.supervisor.test_pool import model, pool_of

PLACE = Placement("local", {})
_ids = count(1)


def entry(event: Event, *commands: Command, now: float = 0.0) -> Entry:
    return Entry(next(_ids), 0.0, now, event, commands)


def test_hits_and_misses_are_counted_as_they_are_granted() -> None:
    taken = {"a": 1}
    stats = Stats(taken, clock=lambda: 1.5)
    stats.heard(entry(Acquire("r1", "a"), Start("a#1", "a", PLACE)))
    stats.heard(entry(Ready("a#1"), Grant("r1", "a#1", "loaded"), now=2.0))
    stats.heard(entry(Acquire("r2", "a"), Grant("r2", "a#1")))
    stats.heard(entry(Acquire("r4", "b"), Refuse("r4", QueueFull("full"))))
    told = stats.told()
    a = told.models["a"]
    assert (told.since, a.requests, a.hits, a.misses, a.hit_rate) == (1.5, 3, 2, 1, 0.6667)
    assert (told.models["b"].requests, told.models["b"].misses) == (1, 1)
    assert (told.total.requests, told.total.hits, told.total.hit_rate) == (4, 2, 0.5)
    taken["c"] = 3
    told = stats.told()
    assert (told.models["c"].requests, told.models["c"].hits) == (3, 3)
    assert (told.models["a"].requests, told.total.requests) == (3, 7), "asking changes nothing"


def test_load_times_are_those_from_start_to_ready() -> None:
    stats = Stats({})
    for at, seconds in ((0.0, 4.0), (10.0, 2.0)):
        stats.heard(entry(Acquire("r", "a"), Start("a#1", "a", PLACE), now=at))
        stats.heard(entry(Ready("a#1"), now=at + seconds))
        stats.heard(entry(Exited("a#1")))
    loads = stats.told().models["a"].load_seconds
    assert (loads.last, loads.mean, loads.max) == (2.0, 3.0, 4.0)
    nothing = stats.told().total.load_seconds
    assert (nothing.last, nothing.mean, nothing.max) == (None, 3.0, 4.0), "of all there is no last one"


def test_swaps_evictions_failures_and_crashes_are_told_apart() -> None:
    stats = Stats({})
    stats.heard(entry(Acquire("r1", "a"), Stop("b#1", Cause.EVICTED, "a"), Stop("c#1", Cause.EXPIRED)))
    stats.heard(entry(Exited("b#1"), Start("a#1", "a", PLACE, ("b#1",))))
    stats.heard(entry(Exited("a#1", LoadFailed("exit status 1"))))
    stats.heard(entry(Acquire("r2", "a"), Start("a#2", "a", PLACE)))
    stats.heard(entry(Exited("a#2", NoRoom("another program was faster"), no_room=True)))
    stats.heard(entry(Acquire("r3", "a"), Start("a#3", "a", PLACE)))
    stats.heard(entry(Ready("a#3")))
    stats.heard(entry(Exited("a#3", LoadFailed("killed by SIGSEGV"))))
    told = stats.told()
    a, b = told.models["a"], told.models["b"]
    assert (a.swaps, a.failures, a.crashes, a.loads) == (1, 1, 1, 1)
    assert (b.evictions, told.models["c"].evictions, told.total.evictions) == (1, 0, 1)


async def test_they_agree_with_a_pool_at_work() -> None:
    async with pool_of(FakeHost(), model("a", 12), model("b", 12)) as pool:
        stats = Stats(pool.journal.routine_requests)
        pool.journal.follow(stats.heard)
        for name in ("a", "a", "b", "a"):
            async with pool.lease(name):
                await asyncio.sleep(0)
    told = stats.told()
    assert (told.total.requests, told.total.hits, told.total.swaps) == (4, 1, 2)
    assert (told.models["a"].loads, told.models["a"].evictions) == (2, 1)
