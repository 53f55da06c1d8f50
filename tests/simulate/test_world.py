"""The world: time, memory, slots and clients behave; a decider that breaks a rule is caught."""

from __future__ import annotations

import pytest

from router.errors import QueueFull
from router.scheduler.types import (
    Cause,
    Exited,
    Grant,
    Measured,
    Placement,
    Ready,
    Refuse,
    Release,
    Start,
    Stop,
)
from router.simulate.baselines import CountFifo
from router.simulate.machine import GIB
from router.simulate.world import BrokenRule, Outcome, Overcommitted, World
from tests.simulate.build import Scripted, ask, machine, trace, ttfts


def start(instance, gib):
    return Start(instance, instance[0], Placement("sim", {"sim/gpu0": gib * GIB}))


def fifo(on, *requests, **more):
    world = World(trace(on, *requests, **more), CountFifo(on.models(), on.devices))
    world.run()
    return world


def test_memory_is_taken_step_by_step_and_comes_back_late():
    on = machine(a=8)
    decider = Scripted(
        Acquire=[[start("a#1", 8)]],
        Ready=[[Grant("r0", "a#1")]],
        Release=[[Stop("a#1", Cause.EXPIRED)]],
    )
    asked = [ask(0, "a"), ask(1, "a", 30, cancel=1.0)]
    World(trace(on, *asked), decider).run()
    told = [(now, e.free["sim/gpu0"], e.used) for now, e in decider.heard if isinstance(e, Measured)]
    times, free, used = zip(*told, strict=True)
    assert times == pytest.approx((0.0, 2.2, 3.2, 4.2, 5.2, 17.0))
    assert free == tuple(
        gib * GIB for gib in (24, 22, 20, 18, 16, 24)
    )  # the exit at 16.5 s is half a second earlier
    assert used[-2:] == ({"a#1": {"sim/gpu0": 8 * GIB}}, {})
    assert decider.times(Ready) == pytest.approx([5.2])
    assert decider.times(Exited) == pytest.approx([16.5])


def test_taking_more_than_a_device_has_ends_the_simulation():
    on = machine(a=14, b=14)
    decider = Scripted(Acquire=[[start("a#1", 14)], [start("b#1", 14)]])
    with pytest.raises(Overcommitted, match=r"at 8.200 s a#1 takes sim/gpu0 536870912 bytes beyond"):
        World(trace(on, ask(0, "a"), ask(1, "b", 1)), decider).run()


@pytest.mark.parametrize(
    ("decider", "complaint"),
    [
        (Scripted(Acquire=[[Grant("r0", "a#1")]]), "granted a#1, not ready"),
        (Scripted(Acquire=[[start("a#1", 8), Grant("r0", "a#1")]]), "granted a#1, not ready"),
        (Scripted(Acquire=[[start("b#1", 8)]], Ready=[[Grant("r0", "b#1")]]), "r0 is granted b#1"),
        (
            Scripted(Acquire=[[start("a#1", 8)]], Ready=[[Grant("r0", "a#1")] * 2]),
            "r0 is answered, but does not wait",
        ),
        (Scripted(Acquire=[[Refuse("r0", QueueFull("no"))] * 2]), "r0 is answered, but does not wait"),
        (Scripted(Acquire=[[start("a#1", 8)] * 2]), "a#1 is started twice"),
        (Scripted(Acquire=[[Stop("a#1", Cause.EVICTED)]]), "a#1 is stopped, but does not live"),
        (
            Scripted(Acquire=[[start("a#1", 8)]], Ready=[[Grant("r0", "a#1"), Stop("a#1", Cause.EVICTED)]]),
            "a#1 is stopped with 1 leases",
        ),
        (Scripted(), r"nothing can happen any more, and 1 requests \(r0\) wait"),
    ],
)  # fmt: skip
def test_a_decider_that_breaks_a_rule_is_caught(decider, complaint):
    with pytest.raises(BrokenRule, match=complaint):
        World(trace(machine(a=8, b=8), ask(0, "a")), decider).run()


def test_a_deadline_that_stays_due_is_caught():
    class Stubborn(Scripted):
        def next_deadline(self):
            return 3.0

    with pytest.raises(BrokenRule, match=r"a deadline at 3.000 s stays due for ever"):
        World(trace(machine(a=8), ask(0, "a")), Stubborn()).run()


def test_a_deadline_is_told_when_it_is_due_after_all_else_that_happens_then():
    no = QueueFull("no")
    decider = Scripted(Tick=[[Refuse("r0", no), Refuse("r1", no)]])
    decider.deadline = 3.0
    World(trace(machine(a=8), ask(0, "a"), ask(1, "a", 3.0)), decider).run()
    at_three = [type(event).__name__ for now, event in decider.heard if now == 3.0]
    assert at_three == ["Acquire", "Tick"]


def test_a_client_sends_its_next_request_the_think_time_after_its_answer_ended():
    on = machine(a=8)
    world = fifo(
        on, ask(0, "a", 1.0), ask(1, "a", 0.0, after=0, delay=7.5), ask(2, "a", 0.0, after=1, delay=0.0)
    )
    assert world.sent == pytest.approx([1.0, 24.7, 35.7])  # 5.2 s load, 1 s to read, 10 s to write
    assert world.ended == pytest.approx([17.2, 35.7, 46.7])


def test_two_that_follow_the_same_answer_are_both_sent():
    world = fifo(machine(a=8), ask(0, "a"), ask(1, "a", after=0, delay=1), ask(2, "a", after=0, delay=2))
    assert world.sent == pytest.approx([0.0, 17.2, 18.2])


def test_beyond_its_slots_a_child_serves_in_the_order_of_arrival():
    world = fifo(machine(a=8), *(ask(n, "a") for n in range(6)))
    assert ttfts(world) == pytest.approx([6.2] * 4 + [17.2] * 2)


def test_a_prefix_is_read_once_as_long_as_its_instance_lives():
    on = machine(a=20, b=20)
    world = fifo(
        on,
        ask(0, "a", session="s", tokens=(3000, 100)),
        ask(1, "a", session="s", tokens=(4000, 100), after=0),
        ask(2, "b", after=1),
        ask(3, "a", session="s", tokens=(5000, 100), after=2),
    )
    swap = 0.3 + 11.2
    assert ttfts(world) == pytest.approx([11.2 + 3.0, 0.9, swap + 1.0, swap + 5.0])


def test_a_client_whose_patience_ends_leaves_the_queue_and_the_lease_is_released():
    on = machine(a=8)
    decider = Scripted(Acquire=[[start("a#1", 8)]])
    world = World(trace(on, ask(0, "a", patience=4.0)), decider)
    world.run()
    assert world.outcome[0] == Outcome.GAVE_UP
    assert decider.times(Release) == [4.0]


def test_patience_ends_with_the_first_token():
    world = fifo(machine(a=8), ask(0, "a", patience=6.5))
    assert (world.outcome[0], world.ended[0]) == (Outcome.DONE, pytest.approx(16.2))


def test_a_cancelled_completion_frees_its_slot_for_the_next_in_line():
    asked = [ask(n, "a", 6) for n in range(4)] + [ask(4, "a", 6)]
    world = fifo(machine(a=8), ask(0, "a", 6, cancel=8.0), *asked[1:])
    assert world.outcome[0] == Outcome.CANCELLED
    assert ttfts(world)[4] == pytest.approx(8.0 + 1.0)


def test_a_request_that_leaves_before_its_first_token_never_had_one():
    world = fifo(machine(a=8), ask(0, "a", 0, cancel=5.7))
    assert world.outcome[0] == Outcome.CANCELLED
    assert world.first[0] == float("inf")


def test_a_refused_client_comes_back_after_a_pause_and_its_lease_is_released():
    no = QueueFull("no")
    decider = Scripted(Acquire=[[Refuse("r0", no)], [Refuse("r1", no)]])
    world = World(trace(machine(a=8), ask(0, "a", 2.0), ask(1, "a", after=0, delay=0.5)), decider)
    world.run()
    assert world.sent == [2.0, 32.0]
    assert world.tally.refusals == {"queue_full": 2}
    assert decider.times(Release)[0] == 2.0


def test_nothing_is_sent_after_the_end_but_what_was_sent_is_answered():
    world = fifo(machine(a=8), ask(0, "a"), ask(1, "a", after=0, delay=1), ask(2, "a", 50), seconds=10)
    assert [Outcome(how) for how in world.outcome] == [Outcome.DONE, Outcome.UNSENT, Outcome.UNSENT]


def test_loading_is_counted_per_device_and_overlapping_loads_once():
    on = machine(devices=(24,), a=8, b=8)
    decider = Scripted(
        Acquire=[[start("a#1", 8)], [start("b#1", 8)]],
        Ready=[[Grant("r0", "a#1")], [Grant("r1", "b#1")]],
    )
    world = World(trace(on, ask(0, "a"), ask(1, "b", 2.0)), decider)
    world.run()
    assert world.tally.loading_seconds == {"sim/gpu0": pytest.approx(7.2)}


def test_a_fork_goes_its_own_way():
    on = machine(a=20, b=20)
    asked = trace(on, ask(0, "a"), ask(1, "b", 5), ask(2, "a", 60))
    alone = World(asked, CountFifo(on.models(), on.devices))
    alone.run()

    class Forking(CountFifo):
        def fork(self):
            copy = Forking(self.models, ())
            self.copy_into(copy)
            return copy

    first = World(asked, one := Forking(on.models(), on.devices))
    first.run(20.0)
    second = first.fork(one.fork())
    second.run()
    assert first.now == 20.0
    assert Outcome(first.outcome[1]) is Outcome.WAITING
    first.run()
    assert first.ended == second.ended == alone.ended
    assert first.tally.loading_seconds == second.tally.loading_seconds == alone.tally.loading_seconds


def test_the_future_is_known_as_far_as_it_is_settled():
    on = machine(a=8, b=8)
    world = World(
        trace(on, ask(0, "a"), ask(1, "b", after=0, delay=3.0), ask(2, "a", 40.0)),
        CountFifo(on.models(), on.devices),
    )
    world.run(10.0)
    assert world.next_use("a") == 10.0  # it serves
    assert world.next_use("b") == pytest.approx(16.2 + 3.0)
    assert world.leaves_at("a#1") == pytest.approx(16.2)
    world.run(30.0)
    assert world.next_use("a") == 40.0
