"""Who leaves for whom, and when: idle before busy, the quantum, draining, arrival order, priorities."""

from __future__ import annotations

import pytest

from router.ids import Definition
from router.scheduler.types import Measured, Priority, Reloaded, State
from tests.scheduler.playbook import GIB, Table, device, model, on

#: A resident is expected to serve for 1 s, a newcomer to load for 1 s: eight times that is its quantum.
QUANTUM = 16.0


def busy_table(**settings: float) -> Table:
    """`a` is resident and in use by r1, asked for now; `b` and `c` do not fit beside it."""
    table = Table(gpu=10, a=6, b=6, c=6, settings=settings)
    table.serves("a")
    table.wait(100.0)
    table.asks("r1", "a")
    return table


# --- one load, many waiters ---


def test_requests_for_one_model_share_its_load_and_are_all_granted_at_once_in_order() -> None:
    table = Table(gpu=10, a=6)
    assert table.asks("r1", "a") == ["start a"]
    assert table.asks("r2", "a") == []
    assert table.asks("r3", "a") == []
    assert table.waiting() == {"a": 3}
    assert table.ready("a") == ["grant r1 on a", "grant r2 on a", "grant r3 on a"]


def test_loads_that_fit_beside_each_other_run_in_parallel() -> None:
    table = Table(gpu=10, a=4, b=6)
    assert table.asks("r1", "a") == ["start a"]
    assert table.asks("r2", "b") == ["start b"]


def test_a_client_that_leaves_does_not_abort_a_load_that_others_wait_for() -> None:
    table = Table(gpu=10, a=6)
    table.asks("r1", "a")
    table.asks("r2", "a")
    assert table.ends("r1") == []
    assert table.ready("a") == ["grant r2 on a"]


def test_a_load_nobody_waits_for_any_more_goes_on_while_nobody_needs_its_room() -> None:
    table = Table(gpu=10, a=6)
    table.asks("r1", "a")
    assert table.ends("r1") == []
    assert table.wait(5.0) == []
    assert table.ready("a") == []
    assert table.asks("r2", "a") == ["grant r2 on a"]


def test_a_load_nobody_waits_for_is_aborted_when_somebody_needs_its_room() -> None:
    table = Table(gpu=10, a=6, b=6)
    table.asks("r1", "a")
    table.ends("r1")
    assert table.asks("r2", "b") == ["stop a: aborted for b"]
    assert table.ready("a") == []  # it came up just before it got the signal
    assert table.exits("a") == ["start b"]


def test_an_abandoned_load_goes_before_an_idle_model_that_has_proved_useful() -> None:
    table = Table(gpu=12, a=6, b=6, c=6)
    table.serves("a")
    table.wait(50.0)
    table.asks("r1", "b")
    table.ends("r1")
    assert table.asks("r2", "c") == ["stop b: aborted for c"]


def test_a_load_somebody_waits_for_is_nobodys_victim() -> None:
    table = Table(gpu=10, a=6, b=6)
    table.asks("r1", "a")
    assert table.asks("r2", "b") == []
    assert table.wait(60.0) == []
    assert table.ready("a") == ["grant r1 on a"]


# --- whom ---


def test_the_least_recently_used_goes() -> None:
    table = Table(gpu=12, a=4, b=4, c=4, d=4)
    for name in "abc":
        table.serves(name)
    table.wait(100.0)
    table.serves("a")
    table.wait(100.0)
    assert table.asks("r1", "d") == ["stop b: evicted for d"]


def test_recency_counts_from_the_end_of_the_last_use() -> None:
    table = Table(gpu=12, a=6, b=6, c=6)
    table.asks("r1", "a")
    table.ready("a")
    table.wait(1.0)
    table.serves("b")
    table.wait(1.0)
    table.ends("r1")
    table.wait(1.0)
    assert table.asks("r2", "c") == ["stop b: evicted for c"]


def test_recency_decides_and_not_size_or_name() -> None:
    table = Table(gpu=16, z=8, m=4, a=4, new=4)
    for name in "zma":
        table.serves(name)
    assert table.asks("r1", "new") == ["stop z: evicted for new"]


def test_nobody_leaves_who_is_not_needed_for_the_room() -> None:
    table = Table(gpu=10, a=2, b=8, c=8)
    table.serves("a")
    table.serves("b")
    assert table.asks("r1", "c") == ["stop b: evicted for c"]


def test_as_many_leave_as_are_needed_and_no_more() -> None:
    table = Table(gpu=12, a=3, b=3, c=3, d=3, new=6)
    for name in "abcd":
        table.serves(name)
    assert table.asks("r1", "new") == ["stop a: evicted for new", "stop b: evicted for new"]


def test_only_those_on_a_device_that_is_short_can_help() -> None:
    table = Table(
        devices=[device("gpu0", 10), device("gpu1", 10)],
        models=[model("a", on(gpu0=6)), model("b", on(gpu1=6)), model("c", on(gpu1=6))],
    )
    table.serves("a")
    table.serves("b")
    assert table.asks("r1", "c") == ["stop b: evicted for c"]


def test_a_split_model_clears_every_device_it_needs() -> None:
    table = Table(
        devices=[device("gpu0", 10), device("gpu1", 10)],
        models=[model("a", on(gpu0=6)), model("b", on(gpu1=6)), model("split", on(gpu0=8, gpu1=8))],
    )
    table.serves("a")
    table.serves("b")
    assert table.asks("r1", "split") == ["stop a: evicted for split", "stop b: evicted for split"]
    assert table.exits("a") == []
    assert table.exits("b") == ["start split"]


def test_memory_on_its_way_out_is_used_before_another_one_is_evicted() -> None:
    table = Table(gpu=12, a=6, b=6, c=6)
    table.serves("a")
    table.serves("b")
    assert table.unloads("a") == ["stop a: unloaded"]
    assert table.asks("r1", "c") == []
    assert table.states() == ["a stopping", "b ready", "c planned"]
    assert table.exits("a") == ["start c"]


# --- when ---


def test_an_idle_model_is_taken_before_a_busy_one_is_drained() -> None:
    table = Table(gpu=12, a=6, b=6, c=6)
    table.serves("a")
    table.serves("b")
    table.wait(100.0)
    table.asks("r1", "a")
    assert table.asks("r2", "c") == ["stop b: evicted for c"]


def test_a_busy_model_serves_its_quantum_before_it_is_drained() -> None:
    table = busy_table()
    assert table.asks("r2", "b") == []
    table.wait(QUANTUM - 0.01)
    assert table.state("a") == "ready"
    assert table.asks("r3", "a") == ["grant r3 on a"]
    table.wait(0.02)
    assert table.state("a") == "draining"
    assert table.states() == ["a draining", "b planned"]
    assert table.ends("r1") == []
    assert table.ends("r3") == ["stop a: evicted for b"]
    assert table.exits("a") == ["start b"]
    assert table.ready("b") == ["grant r2 on b"]


def test_the_quantum_grows_with_what_the_switch_costs() -> None:
    table = Table(gpu=10, a=6, models=[model("slow", on(gpu=6), load=20.0)])
    table.serves("a")
    table.wait(100.0)
    table.asks("r1", "a")
    table.asks("r2", "slow")
    table.wait(8 * 21.0 - 0.01)
    assert table.state("a") == "ready"
    table.wait(0.02)
    assert table.state("a") == "draining"


def test_the_quantum_is_counted_from_when_the_resident_was_ready() -> None:
    """Who has waited long before the other came up does not turn it out at once, or overload ends in
    first come, first served.
    """
    table = Table(gpu=10, a=6, b=6)
    table.asks("r1", "a")
    table.asks("r2", "b")
    table.wait(100.0)
    table.ready("a")
    served_for_two_and_loads_in_one = 8 * (2.0 + 1.0)
    table.wait(served_for_two_and_loads_in_one - 0.01)
    assert table.state("a") == "ready"
    table.wait(0.02)
    assert table.state("a") == "draining"


def test_a_switch_that_costs_much_comes_before_its_waiter_gives_up() -> None:
    table = Table(gpu=10, a=6, models=[model("slow", on(gpu=6), load=100.0)])
    table.serves("a")
    table.wait(100.0)
    table.asks("r1", "a")
    table.asks("r2", "slow")
    table.wait(300.1)
    assert table.state("a") == "draining"


def test_when_the_resident_becomes_idle_it_leaves_at_once() -> None:
    table = busy_table()
    table.asks("r2", "b")
    assert table.wait(3.0) == []
    assert table.ends("r1") == ["stop a: evicted for b"]


def test_an_idle_model_whose_clients_come_back_soon_lingers() -> None:
    table = Table(gpu=10, models=[model("a", on(gpu=6), load=5.0), model("b", on(gpu=6))])
    table.asks("r1", "a")
    table.wait(5.0)
    table.ready("a")
    table.ends("r1")
    for number in range(5):  # a client that comes back half a second after each answer
        table.wait(0.5)
        assert table.asks(f"again{number}", "a") == [f"grant again{number} on a"]
        table.wait(0.1)
        table.ends(f"again{number}")
    assert table.asks("r2", "b") == []
    assert table.wait(2.4) == []  # half of its load time
    assert table.wait(0.2) == ["stop a: evicted for b"]


def test_lingering_never_lasts_longer_than_the_load_it_could_save() -> None:
    models = [model("a", on(gpu=6), load=1.0), model("b", on(gpu=6))]
    table = Table(gpu=10, models=models, settings={"linger": 7.0})
    table.asks("r1", "a")
    table.wait(1.0)
    table.ready("a")
    table.ends("r1")
    for number in range(5):
        table.wait(0.9)
        table.asks(f"again{number}", "a")
        table.ends(f"again{number}")
    table.asks("r2", "b")
    assert table.wait(0.9) == []
    assert table.wait(0.2) == ["stop a: evicted for b"]


def test_a_model_whose_clients_come_back_late_does_not_linger() -> None:
    table = Table(gpu=10, models=[model("a", on(gpu=6), load=1.0), model("b", on(gpu=6))])
    table.asks("r1", "a")
    table.wait(1.0)
    table.ready("a")
    table.ends("r1")
    table.wait(30.0)
    table.asks("r2", "a")
    table.ends("r2")
    assert table.asks("r3", "b") == ["stop a: evicted for b"]


# --- draining ---


def drained_table() -> Table:
    """`a` drains for `b`; r1 still holds it."""
    table = busy_table()
    table.asks("r2", "b")
    table.wait(QUANTUM + 0.1)
    assert table.state("a") == "draining"
    return table


def test_a_request_for_a_draining_model_waits_for_its_next_load() -> None:
    table = drained_table()
    assert table.asks("r3", "a") == []
    assert table.state("a") == "draining"
    assert table.ends("r1") == ["stop a: evicted for b"]
    assert table.exits("a") == ["start b"]
    assert table.ready("b") == ["grant r2 on b"]
    assert table.ends("r2") == ["stop b: evicted for a"]
    assert table.exits("b") == ["start a.2"]
    assert table.ready("a.2") == ["grant r3 on a.2"]


def draining_of_a_long_one() -> Table:
    """`a` answers 10 tokens a second; `long`, 1000 tokens from now, holds it while it drains for `b`."""
    table = Table(gpu=10, a=6, b=6, settings={"quantum": 0.1})
    table.asks("learned from", "a", size=1000.0)
    table.ready("a")
    table.wait(100.0)
    table.ends("learned from")
    table.asks("long", "a", size=1000.0)
    table.asks("challenger", "b")
    table.wait(0.1 * (100.0 + 1.0) + 0.1)
    assert table.state("a") == "draining"
    return table


def test_a_request_that_will_end_before_the_drain_does_may_still_come_in() -> None:
    table = draining_of_a_long_one()
    assert table.asks("short", "a", size=10.0) == ["grant short on a"]
    assert table.asks("as long", "a", size=1000.0) == []
    assert table.ends("long") == []
    assert table.ends("short") == ["stop a: evicted for b"]


def test_who_comes_in_beside_a_drain_does_not_prolong_it() -> None:
    table = draining_of_a_long_one()
    table.wait(60.0)
    assert table.asks("r1", "a", size=250.0) == ["grant r1 on a"]
    table.wait(10.0)
    assert table.asks("r2", "a", size=250.0) == []


def test_nobody_comes_in_beside_a_drain_that_an_operator_wants() -> None:
    table = draining_of_a_long_one()
    table.unloads("a")
    assert table.asks("short", "a", size=10.0) == []


def test_the_challenger_that_leaves_reopens_the_gate_and_whoever_waited_there_is_served() -> None:
    table = drained_table()
    table.asks("r3", "a")
    assert table.ends("r2") == ["grant r3 on a"]
    assert table.states() == ["a ready"]


def test_a_victim_that_was_told_to_stop_is_gone_even_if_the_challenger_leaves() -> None:
    table = Table(gpu=10, a=6, b=6)
    table.serves("a")
    table.asks("r1", "b")
    assert table.state("a") == "stopping"
    table.ends("r1")
    assert table.states() == ["a stopping"]
    assert table.asks("r2", "a") == []
    assert table.exits("a") == ["start a.2"]


def test_a_plan_that_finds_its_room_elsewhere_reopens_the_gate_of_the_busy_one() -> None:
    table = drained_table()
    table.asks("r3", "a")
    table.holds("a", gpu=4)  # what the child needs turns out to be less: both fit
    learned = {"a#1": {"local/gpu": 4 * GIB}}
    done = table.tell(Measured({"local/gpu": table.free("local/gpu")}, learned, table.now, learned))
    assert sorted(done) == ["grant r3 on a", "start b"]
    assert table.state("a") == "ready"


def test_a_plan_whose_room_a_stranger_takes_is_given_up_and_its_victim_serves_on() -> None:
    table = drained_table()
    table.asks("r3", "a")
    assert table.stranger(gpu=4.5) == ["grant r3 on a"]
    assert table.states() == ["a ready"]


def test_a_victim_that_dies_while_it_drains_makes_its_room() -> None:
    table = drained_table()
    assert table.exits("a") == ["start b"]
    assert table.ends("r1") == []


# --- who first ---


def test_a_small_load_passes_a_big_one_that_waits_only_where_both_will_fit() -> None:
    table = Table(gpu=12, a=6, big=8, small=2, middle=5, settings={"quantum": 4.0})
    table.serves("a")
    table.wait(100.0)
    table.asks("r1", "a")
    assert table.asks("r2", "big") == []
    assert table.asks("r3", "small") == ["start small"]
    table.ready("small")
    table.wait(8.1)  # big is overdue now, and a drains for it
    assert table.states() == ["a draining", "big planned", "small ready"]
    assert table.asks("r4", "middle") == []
    assert table.ends("r1") == ["stop a: evicted for big"]
    assert table.exits("a") == ["start big"]


def test_what_was_evicted_for_one_is_not_taken_by_another_who_came_later() -> None:
    table = Table(gpu=12, a=12, first=8, second=8)
    table.serves("a")
    assert table.asks("r1", "first") == ["stop a: evicted for first"]
    assert table.asks("r2", "second") == []
    assert table.exits("a") == ["start first"]
    assert table.waiting() == {"first": 1, "second": 1}


def test_a_later_plan_starts_first_only_where_it_takes_nothing_from_an_earlier_one() -> None:
    table = Table(
        devices=[device("gpu0", 10), device("gpu1", 10)],
        models=[
            model("a", on(gpu0=6)),
            model("b", on(gpu1=6)),
            model("split", on(gpu0=8, gpu1=8)),
            model("small", on(gpu1=2)),
            model("mid", on(gpu1=4)),
        ],
    )
    table.serves("a")
    table.serves("b")
    table.asks("r1", "split")
    table.exits("b")  # gpu1 is free, but split still waits for gpu0
    assert table.asks("r2", "mid") == []
    assert table.asks("r3", "small") == ["start small"]
    assert table.exits("a") == ["start split"]


def test_among_equals_the_first_come_is_loaded_first() -> None:
    table = busy_table()
    table.asks("r2", "c")
    table.wait(0.5)
    table.asks("r3", "b")
    assert table.ends("r1") == ["stop a: evicted for c"]
    assert table.exits("a") == ["start c"]


def test_arrival_order_holds_among_those_whom_one_eviction_makes_room_for() -> None:
    """`tiny` may turn out the lingering `a` before the others may; what else fits then goes to who came
    first.
    """
    table = Table(
        gpu=12,
        models=[
            model("a", on(gpu=12), load=10.0),
            model("tiny", on(gpu=2), load=0.1),
            model("b", on(gpu=8), load=3.0),
            model("c", on(gpu=8), load=3.0),
        ],
        settings={"quantum": 1.0},
    )
    table.asks("r1", "a")
    table.wait(10.0)
    table.ready("a")
    table.ends("r1")
    for number in range(3):
        table.wait(4.0)
        table.asks(f"again{number}", "a")
        table.ends(f"again{number}")
    table.asks("r2", "b")
    table.wait(0.01)
    table.asks("r3", "tiny")
    table.wait(0.01)
    table.asks("r4", "c")
    assert table.wait(2.0) == ["stop a: evicted for tiny"]
    assert table.states() == ["a stopping", "b planned", "tiny planned"]


def test_alternating_requests_are_served_model_by_model() -> None:
    """A B A B A B comes as A A A B B B: two loads, not six."""
    table = Table(gpu=10, a=6, b=6)
    for number in range(3):
        table.asks(f"a{number}", "a")
        table.asks(f"b{number}", "b")
    assert table.ready("a") == ["grant a0 on a", "grant a1 on a", "grant a2 on a"]
    assert table.ends("a0") + table.ends("a1") == []
    assert table.ends("a2") == ["stop a: evicted for b"]
    assert table.exits("a") == ["start b"]
    assert table.ready("b") == ["grant b0 on b", "grant b1 on b", "grant b2 on b"]


def test_four_models_that_want_one_place_get_it_in_turn() -> None:
    table = Table(gpu=10, a=6, b=6, c=6, d=6)
    for number, name in enumerate("abcd"):
        table.asks(f"r{number}", name)
        table.wait(0.1)
    for number, (name, following) in enumerate(zip("abcd", "bcd", strict=False)):
        assert table.ready(name) == [f"grant r{number} on {name}"]
        assert table.ends(f"r{number}") == [f"stop {name}: evicted for {following}"]
        assert table.exits(name) == [f"start {following}"]


# --- priorities ---


@pytest.mark.parametrize(
    ("priority", "seconds"), [(Priority.HIGH, 2.0), (Priority.NORMAL, 16.0), (Priority.LOW, 128.0)]
)
def test_a_second_of_waiting_weighs_by_priority(priority: Priority, seconds: float) -> None:
    table = busy_table()
    table.asks("r2", "b", priority=priority)
    table.wait(seconds - 0.01)
    assert table.state("a") == "ready"
    table.wait(0.02)
    assert table.state("a") == "draining"


def test_the_models_own_priority_counts_where_the_request_names_none() -> None:
    table = Table(gpu=10, a=6, models=[model("b", on(gpu=6), priority=Priority.HIGH)])
    table.serves("a")
    table.wait(100.0)
    table.asks("r1", "a")
    table.asks("r2", "b")
    table.wait(2.01)
    assert table.state("a") == "draining"


def test_the_more_urgent_is_loaded_first_though_it_came_later() -> None:
    table = busy_table()
    table.asks("r2", "b")
    table.wait(1.0)
    table.asks("r3", "c", priority=Priority.HIGH)
    table.wait(1.0)
    assert table.ends("r1") == ["stop a: evicted for c"]


def test_who_has_waited_much_longer_goes_before_the_more_urgent() -> None:
    table = busy_table()
    table.asks("r2", "b")
    table.wait(10.0)
    table.asks("r3", "c", priority=Priority.HIGH)
    table.wait(1.0)
    assert table.ends("r1") == ["stop a: evicted for b"]


# --- load times that an earlier router measured ---


def test_they_decide_from_the_start_how_long_a_challenger_waits() -> None:
    for measured, has_waited_enough in ((None, True), (10.0, False)):
        known = [model("a", on(gpu=6)), model("b", on(gpu=6), measured_load_seconds=measured)]
        table = Table(gpu=10, models=known)
        table.serves("a")
        table.wait(100.0)
        table.asks("r1", "a")
        table.asks("r2", "b")
        table.wait(2 * QUANTUM)
        (resident,) = table.scheduler.snapshot(table.now).of_model("a")
        assert (resident.state is State.DRAINING) is has_waited_enough


def test_they_decide_from_the_start_whom_the_policy_cost_evicts() -> None:
    for slow, victim in (("a", "b"), ("b", "a")):
        known = [
            model(name, on(gpu=5), load=1.0, measured_load_seconds=60.0 if name == slow else 2.0)
            for name in ("a", "b", "c")
        ]
        table = Table(gpu=10, models=known, policy="cost")
        table.serves("a")
        table.serves("b")
        table.wait(100.0)
        assert table.asks("r", "c")[0] == f"stop {victim}: evicted for c"


def test_a_reload_with_another_definition_brings_the_time_of_that_one() -> None:
    table = Table(gpu=10, models=[model("a", on(gpu=6), measured_load_seconds=2.0)])

    def expected() -> float:
        return table.scheduler.snapshot(table.now).models[0].load_seconds

    def reload(definition: str, seconds: float | None) -> None:
        known = model("a", on(gpu=6), definition=Definition(definition), measured_load_seconds=seconds)
        table.tell(Reloaded({"a": known}))

    reload("1", 9.0)
    assert expected() == 2.0, "the same definition keeps what this router knows of it"
    reload("2", None)
    assert expected() == 2.0, "nothing better is known"
    reload("3", 30.0)
    assert expected() == 30.0
