"""The imitations of other routers do what was measured of the originals, computed by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest

from router.scheduler.types import Cause, Start, Stop
from router.simulate.baselines import CountFifo, DrainOnMiss, FifoNoGate, SwapWhenIdle, group_statically
from router.simulate.machine import GIB
from router.simulate.world import Outcome, World
from tests.simulate.build import ask, machine, trace, ttfts

EVERY = {
    "fifo": CountFifo,
    "drain": DrainOnMiss,
    "swap": lambda models, devices: SwapWhenIdle(models, devices, dict.fromkeys(models, 1 / len(models))),
    "ollama": FifoNoGate,
}


def run(name, on, *requests, **more):
    world = World(trace(on, *requests, **more), EVERY[name](on.models(), on.devices))
    world.run()
    return world


class Told:
    """Passes everything on and keeps the commands."""

    def __init__(self, decider):
        self.decider, self.commands = decider, []

    def handle(self, event, now):
        commands = self.decider.handle(event, now)
        self.commands += [(now, command) for command in commands]
        return commands

    def next_deadline(self):
        return self.decider.next_deadline()

    def of(self, kind):
        return [(round(now, 3), c.instance) for now, c in self.commands if isinstance(c, kind)]


def told(name, on, *requests):
    decider = Told(EVERY[name](on.models(), on.devices))
    World(trace(on, *requests), decider).run()
    return decider


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        # A load is 11.2 s, an answer 1 + 10 s, a stop 0.3 s, memory is back 0.5 s after that.
        ("fifo", (12.2, 33.5, 1.0)),  # the second request for a keeps b waiting until 26.0
        ("drain", (12.2, 29.7, 42.2)),  # a is closed to it, so it comes after b
        (
            "swap",
            (12.25, 33.55, 1.0),
        ),  # like fifo, but ready is seen at the next look: 0.25 s, then each second
        ("ollama", (12.2, 34.0, 1.0)),  # like fifo, but the memory is waited for: looks at 26.55 and 26.8 s
    ],
)
def test_two_models_that_exclude_each_other(name, expected):
    world = run(name, machine(a=20, b=20), ask(0, "a"), ask(1, "b", 5), ask(2, "a", 15))
    assert ttfts(world) == pytest.approx(expected)


@pytest.mark.parametrize("name", ["fifo", "swap", "ollama"])
def test_a_stream_of_overlapping_requests_starves_another_model(name):
    stream = [ask(n, "a", 6.0 * n) for n in range(50)]
    world = run(name, machine(a=20, b=20), *stream, ask(50, "b", 20.0, patience=250.0))
    assert world.outcome[50] == Outcome.GAVE_UP


def test_a_drain_closes_the_gate_and_the_other_model_is_served():
    stream = [ask(n, "a", 6.0 * n) for n in range(50)]
    world = run("drain", machine(a=20, b=20), *stream, ask(50, "b", 20.0, patience=250.0))
    assert world.outcome[50] == Outcome.DONE
    assert ttfts(world)[50] < 30


def test_loads_wait_for_each_other_in_llama_cpp_though_there_is_room():
    world = run("fifo", machine(a=6, b=2), ask(0, "a"), ask(1, "b"))
    assert ttfts(world) == pytest.approx([5.2, 4.2 + 2.2 + 1.0])


@pytest.mark.parametrize(("name", "loads"), [("fifo", 2), ("drain", 2), ("swap", 2), ("ollama", 6)])
def test_a_burst_for_two_models_is_collated_except_by_who_keeps_one_queue_for_all(name, loads):
    burst = [ask(n, "ab"[n % 2], 0.1 * n) for n in range(6)]
    assert run(name, machine(a=20, b=20), *burst).tally.loads == loads


def test_llama_cpp_evicts_the_least_recently_used_and_ollama_the_first_by_name():
    asked = (ask(0, "b"), ask(1, "a", 20), ask(2, "a", 40), ask(3, "c", 60))
    on = machine(a=9, b=9, c=9)
    assert told("fifo", on, *asked).of(Stop) == [(60.0, "b#1")]
    # By name a goes first; even without a, c is more than 80 % of what is free, so b goes as well.
    assert told("ollama", on, *asked).of(Stop)[0] == (60.0, "a#2")


def test_llama_cpp_may_evict_on_the_wrong_device():
    on = machine(devices=(24, 12), big=20, small=10, other=20)
    asked = (ask(0, "small"), ask(1, "big", 30), ask(2, "other", 60))
    assert told("fifo", on, *asked).of(Stop) == [(60.0, "small#1"), (60.0, "big#2")]


def test_llama_cpp_never_evicts_what_is_waited_for_or_busy():
    on = machine(a=12, b=12, c=12)
    decider = told("fifo", on, ask(0, "a"), ask(1, "b", 0), ask(2, "c", 1))
    # b is loaded at 7.2 + 7.2 s; a is busy until 18.2 s.
    assert decider.of(Stop) == [(18.2, "a#1")]


def test_llama_swap_swaps_as_soon_as_nothing_is_in_flight():
    on = machine(a=20, b=20)
    one = [ask(2 * n, "a", 100.0 * n) for n in range(2)]
    other = [ask(2 * n + 1, "b", 100.0 * n + 50) for n in range(2)]
    every = sorted([*one, *other], key=lambda r: r.id)
    assert run("swap", on, *every).tally.loads == 4


def test_llama_swap_swaps_at_the_same_time_where_nothing_is_shared():
    on = machine(devices=(24, 12), a=20, b=10)
    assert ttfts(run("swap", on, ask(0, "a"), ask(1, "b"))) == pytest.approx([12.25, 7.25])


def test_the_static_grouping_lets_what_is_asked_most_stay_beside_the_largest_of_the_others():
    on = machine(big=16, large=15, mid=6, small=2)
    places, staying = group_statically(
        on.models(), {"sim/gpu0": 24 * GIB}, {"big": 0.3, "large": 0.3, "mid": 0.3, "small": 0.1}
    )
    assert staying == {"mid", "small"}
    assert places["big"].devices == ("sim/gpu0",)


def test_the_static_grouping_spreads_rivals_over_devices():
    on = machine(devices=(24, 24), a=20, b=20)
    places, _ = group_statically(
        on.models(), dict.fromkeys(("sim/gpu0", "sim/gpu1"), 24 * GIB), {"a": 0.5, "b": 0.5}
    )
    assert places["a"].devices != places["b"].devices


def test_ollama_loads_in_the_order_of_the_queue_and_nobody_passes():
    # b is loaded when a is; the second request for a, behind b in the queue, comes after b's load.
    world = run("ollama", machine(a=6, b=6), ask(0, "a"), ask(1, "b", 1), ask(2, "a", 2))
    assert ttfts(world) == pytest.approx([5.2, 4.2 + 4.2 + 1 - 1, 4.2 + 4.2 + 1 - 2])


def test_ollama_aborts_a_load_when_the_client_that_began_it_leaves():
    decider = told("ollama", machine(a=6), ask(0, "a", cancel=2.0), ask(1, "a", 1))
    assert decider.of(Start) == [(0.0, "a#1"), (2.3, "a#2")]
    assert [c.cause for _, c in decider.commands if isinstance(c, Stop)] == [Cause.ABORTED]


def test_ollama_refuses_beyond_its_queue():
    on = machine(a=6)
    world = run("ollama", on, *(ask(n, "a", 0.001 * n, tokens=(1, 1)) for n in range(514)))
    assert world.tally.refusals == {"queue_full": 2}


def test_ollama_unloads_after_five_idle_minutes():
    decider = told("ollama", machine(a=6), ask(0, "a"), ask(1, "a", 400.0))
    assert decider.of(Stop) == [(15.2 + 300.0, "a#1")]


def test_ollama_goes_on_after_five_seconds_though_the_memory_did_not_come_back():
    on = replace(machine(a=20, b=20), return_seconds=7.0)
    assert told("ollama", on, ask(0, "a"), ask(1, "b", 30)).of(Start)[1] == (30 + 0.3 + 5.0, "b#2")


def test_ollama_adds_up_the_memory_of_all_devices_and_splits_by_what_is_free():
    on = machine(devices=(12, 12), a=8, b=11)
    decider = told("ollama", on, ask(0, "a"), ask(1, "b", 10))
    footprints = [c.placement.footprint for _, c in decider.commands if isinstance(c, Start)]
    # Beside a there are 4 and 12 GiB: 80 % of 12 do not hold b, 80 % of 16 do.
    assert footprints == [{"sim/gpu0": 8 * GIB}, {"sim/gpu0": 2.75 * GIB, "sim/gpu1": 8.25 * GIB}]
