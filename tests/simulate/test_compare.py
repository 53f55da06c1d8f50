"""Everybody on the same traces: no rule is broken, nobody is lost, and the same seed gives the same table."""

from __future__ import annotations

import pytest

from router.errors import StartupError
from router.scheduler.scheduler import Settings
from router.simulate.clairvoyant import best_goodput
from router.simulate.clients import TRACES, generate
from router.simulate.compare import BEST, CONTESTANTS, average, compare
from router.simulate.report import measure
from router.simulate.world import Outcome, World


@pytest.mark.parametrize("name", TRACES)
@pytest.mark.parametrize("contestant", CONTESTANTS)
def test_every_request_ends_once_and_no_device_is_overcommitted(name, contestant):
    """The world raises on a second answer, on bytes that are not there and on a child cut off."""
    trace = generate(name, 4, 8)
    world = World(trace, CONTESTANTS[contestant].build(trace, Settings()))
    world.run()
    ends = [Outcome(how) for how in world.outcome]
    assert not {Outcome.WAITING, Outcome.GRANTED} & set(ends)
    sent = [r for r, how in zip(trace.requests, ends, strict=True) if how is not Outcome.UNSENT]
    assert len(sent) > 0
    for request in sent:
        assert world.sent[request.id] <= trace.seconds
        assert world.ended[request.id] >= world.sent[request.id]
        if request.after is not None:
            assert world.sent[request.id] >= world.ended[request.after] + request.delay - 1e-9
    if world.outcome.count(Outcome.UNSENT):  # whatever was not sent follows something, or comes too late
        for request, how in zip(trace.requests, ends, strict=True):
            if how is Outcome.UNSENT and request.after is None:
                assert request.timestamp > trace.seconds


def test_the_same_seed_gives_the_same_comparison():
    assert compare(generate("home", 2, 5)) == compare(generate("home", 2, 5))


@pytest.mark.parametrize("name", TRACES)
def test_nobody_is_better_than_the_best_that_is_known(name):
    rows = compare(generate(name, 1, 5)).rows
    assert rows[BEST].of_best == 1.0
    assert all(0.0 <= figures.of_best <= 1.0 for figures in rows.values())


def test_the_search_does_not_do_worse_than_first_come_first_served():
    trace = generate("agents", 1, 15)
    searched = measure(best_goodput(trace))
    served = compare(trace, ["drain-on-miss"], with_best=False).rows["drain-on-miss (llama.cpp, proposed)"]
    assert searched.goodput_per_hour > served.goodput_per_hour


def test_only_the_chosen_take_part():
    rows = compare(generate("home", 1, 5), ["lru", "fifo"], with_best=False).rows
    assert list(rows) == ["llama-router lru", "fifo (llama.cpp)"]


def test_an_unknown_policy_is_answered_with_those_there_are():
    with pytest.raises(StartupError, match="no policy 'lfu'; there are lru, no-evict"):
        compare(generate("home", 1, 5), ["lfu"])


def test_several_seeds_are_averaged_row_by_row():
    every = [compare(generate("home", seed, 5), ["fifo"], with_best=False) for seed in (1, 2)]
    (label,) = every[0].rows
    middle = sum(one.rows[label].goodput_per_hour for one in every) / 2
    assert average(every).rows[label].goodput_per_hour == pytest.approx(middle)
