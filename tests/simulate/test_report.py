"""Figures: what counts, what does not, and that the table shows it."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import pytest

from router.errors import QueueFull
from router.scheduler.types import Acquire, Refuse
from router.simulate.baselines import CountFifo
from router.simulate.report import Figures, as_json, jain, mean, measure, quantile, table
from router.simulate.world import World
from tests.simulate.build import ask, machine, trace


def finished(*requests, seconds=600.0, decider=None, **sizes):
    on = machine(**(sizes or {"a": 8}))
    world = World(trace(on, *requests, seconds=seconds), decider or CountFifo(on.models(), on.devices))
    world.run()
    return world


def test_a_run_by_hand():
    figures = measure(
        finished(
            ask(0, "a", client="x"), ask(1, "a", 20, client="x"), ask(2, "b", 20, client="y"), a=20, b=20
        ),
        slo_seconds=10.0,
    )
    # r0: 11.2 load + 1; r1: 1; r2: waits 11 s for r1, 0.3 + 11.2 + 1.
    assert (figures.sent, figures.answered, figures.refused, figures.gave_up) == (3, 3, 0, 0)
    assert figures.mean_ttft == pytest.approx((12.2 + 1.0 + 23.5) / 3)
    assert figures.p95_ttft == figures.p99_ttft == figures.longest_wait == pytest.approx(23.5)
    assert figures.within_slo == pytest.approx(1 / 3)
    assert figures.goodput_per_hour == pytest.approx(6.0)
    assert figures.swaps_per_100 == pytest.approx(200 / 3)
    assert figures.loading_share == pytest.approx(2 * 11.2 / (20 + 23.5 + 10))
    assert figures.fairness == pytest.approx(0.5)  # x half, y none: (0.5)^2 / (2 * 0.25)


def test_who_gives_up_counts_with_the_wait_and_not_as_good():
    figures = measure(finished(ask(0, "a", patience=2.0)))
    assert (figures.gave_up, figures.mean_ttft, figures.within_slo) == (1, 2.0, 0.0)


def test_who_meant_to_cancel_counts_nowhere():
    figures = measure(finished(ask(0, "a", cancel=1.0), ask(1, "a", 0.0)))
    assert (figures.sent, figures.cancelled, figures.answered) == (2, 1, 1)
    assert figures.within_slo == 1.0
    assert figures.mean_ttft == pytest.approx(5.2 + 1.0)


def test_the_refused_are_not_good_and_their_wait_is_no_time_to_first_token():
    class No:
        def handle(self, event, now):
            return [Refuse(event.lease, QueueFull("no"))] if isinstance(event, Acquire) else []

        def next_deadline(self):
            return None

    figures = measure(finished(ask(0, "a"), decider=No()))
    assert (figures.refused, figures.mean_ttft, figures.within_slo) == (1, 0.0, 0.0)


@pytest.mark.parametrize(("share", "value"), [(0.5, 2), (0.75, 3), (0.95, 4), (0.0, 1), (1.0, 4)])
def test_a_quantile_is_a_value_that_was_seen(share, value):
    assert quantile([1, 2, 3, 4], share) == value


def test_jain_is_one_for_equals_and_one_nth_for_a_tyrant():
    assert jain([0.3, 0.3, 0.3]) == pytest.approx(1.0)
    assert jain([1.0, 0.0, 0.0, 0.0]) == 0.25
    assert jain([]) == jain([0.0]) == 1.0


def test_the_mean_keeps_the_longest_wait():
    one = measure(finished(ask(0, "a")))
    other = replace(one, longest_wait=99.0, mean_ttft=one.mean_ttft + 2, sent=3)
    both = mean([one, other])
    assert both.longest_wait == 99.0
    assert both.mean_ttft == pytest.approx(one.mean_ttft + 1)
    assert both.sent == 2


def test_the_table_shows_every_row_aligned_and_json_has_no_nan():
    figures = measure(finished(ask(0, "a")))
    lines = table({"one": figures, "the other": replace(figures, of_best=0.876)}).splitlines()
    assert len(lines) == 5
    assert len({len(line) for line in lines[2:]}) == 1
    assert "87.6" in lines[4]
    encoded = as_json(figures)
    assert encoded["of_best"] is None
    assert json.loads(json.dumps(encoded))["answered"] == 1
    assert math.isnan(figures.of_best)
    assert set(encoded) == set(Figures.__dataclass_fields__)
