"""Bytes per device: who is admitted, when memory counts as free, and what happens when it does not come
back.
"""

from __future__ import annotations

from dataclasses import replace

import pytest

from router.ids import Definition
from router.scheduler.types import Acquire, Device, Learned, Measured, Release
from tests.scheduler.playbook import GIB, Table, at, device, model, on


def test_a_model_that_fits_is_started_at_once_and_its_waiter_served_when_it_is_ready() -> None:
    table = Table(gpu=10, a=6)
    assert table.asks("r1", "a") == ["start a"]
    assert table.state("a") == "starting"
    assert table.ready("a") == ["grant r1 on a"]
    assert table.asks("r2", "a") == ["grant r2 on a"]
    assert [c.action for c in table.commands] == ["already_loaded"]  # type: ignore[union-attr]


def test_room_is_counted_to_the_byte() -> None:
    byte = 1 / GIB
    table = Table(gpu=10, policy="no-evict", a=4, b=6, c=byte)
    assert table.asks("r1", "a") == ["start a"]
    assert table.asks("r2", "b") == ["start b"]
    assert table.asks("r3", "c") == ["refuse r3: NoRoom"]


def test_one_byte_too_many_does_not_fit() -> None:
    table = Table(gpu=10, policy="no-evict", a=4, b=6 + 1 / GIB)
    assert table.asks("r1", "a") == ["start a"]
    assert table.asks("r2", "b") == ["refuse r2: NoRoom"]


def test_what_is_promised_to_a_loading_child_is_not_free_though_the_driver_says_so() -> None:
    table = Table(gpu=10, policy="no-evict", a=6, b=6)
    table.asks("r1", "a")
    assert table.measure() == []
    assert table.free("local/gpu") == 11 * GIB
    assert table.asks("r2", "b") == ["refuse r2: NoRoom"]


def test_what_a_loading_child_has_taken_is_not_counted_twice() -> None:
    table = Table(gpu=10, policy="no-evict", a=6, b=4)
    table.asks("r1", "a")
    table.holds("a", gpu=5)
    table.measure()
    assert table.asks("r2", "b") == ["start b"]


def test_every_device_of_a_placement_must_have_the_room() -> None:
    table = Table(
        devices=[device("gpu0", 10), device("gpu1", 10)],
        models=[model("split", on(gpu0=6, gpu1=6)), model("one", on(gpu1=5))],
        policy="no-evict",
    )
    table.asks("r1", "one")
    assert table.asks("r2", "split") == ["refuse r2: NoRoom"]


def test_a_split_model_takes_all_its_devices_at_once() -> None:
    table = Table(
        devices=[device("gpu0", 10), device("gpu1", 10)],
        models=[model("split", on(gpu0=6, gpu1=6)), model("x", on(gpu0=5)), model("y", on(gpu1=5))],
        policy="no-evict",
    )
    assert table.asks("r1", "split") == ["start split"]
    assert table.asks("r2", "x") == ["refuse r2: NoRoom"]
    assert table.asks("r3", "y") == ["refuse r3: NoRoom"]


def test_a_booking_ends_with_the_exit_and_not_with_the_order_to_stop() -> None:
    table = Table(gpu=10, a=6, b=6)
    table.serves("a")
    assert table.asks("r1", "b") == ["stop a: evicted for b"]
    assert table.measure() == []
    assert table.states() == ["a stopping", "b planned"]
    assert table.exits("a") == ["start b"]


def test_memory_of_the_dead_counts_when_it_is_measured_back_and_not_before() -> None:
    table = Table(gpu=10, a=6, b=6)
    table.serves("a")
    table.measure()
    table.asks("r1", "b")
    assert table.exits("a", returns=False) == []
    table.wait(0.5)
    assert table.measure() == []
    table.wait(0.5)
    assert table.returns("a") == ["start b"]


def test_what_a_child_had_been_promised_when_it_died_counts_until_a_look_that_began_after_its_death() -> None:
    table = Table(gpu=10, a=6, b=6)
    table.asks("r1", "a")
    before = table.now
    table.wait(1.0)
    # It had taken nothing when last seen, and everything when it died: the old look must not vouch for
    # the room.
    assert table.exits("a", returns=False) == ["refuse r1: LoadFailed"]
    assert table.asks("r2", "b") == []
    assert table.measure(at=before) == []
    assert table.returns("a") == ["start b"]


def test_without_a_look_at_the_device_time_alone_frees_nothing() -> None:
    """What the dead one had been promised was last seen as free: nobody has looked since it died."""
    table = Table(gpu=10, a=6, b=6)
    table.asks("r1", "a")
    table.holds("a", gpu=2)
    table.measure()
    table.wait(1.0)
    table.exits("a", returns=False)
    table.wait(11.0)
    assert table.asks("r2", "b") == []
    assert table.returns("a") == ["start b"]


def test_a_look_that_is_older_than_the_last_one_is_ignored() -> None:
    table = Table(gpu=10, policy="no-evict", a=6)
    table.wait(5.0)
    table.stranger(gpu=5)
    table.strangers["local/gpu"] = 0
    table.measure(at=3.0)
    table.strangers["local/gpu"] = 5 * GIB
    assert table.asks("r1", "a") == ["refuse r1: NoRoom"]


def test_a_look_at_one_host_says_nothing_of_the_memory_of_another() -> None:
    """What a child on `far` had been promised when it died is unknown until `far` itself was measured
    again.
    """
    table = Table(
        gpu=10,
        devices=[Device("far/gpu", 11 * GIB, GIB)],
        models=[model("a", at("far/gpu", 6)), model("b", at("far/gpu", 6)), model("near", on(gpu=1))],
    )
    table.asks("r1", "a")
    table.wait(1.0)
    table.exits("a", returns=False)
    assert table.asks("r2", "b") == []
    assert table.tell(Measured({"local/gpu": 11 * GIB}, {}, table.now)) == []
    assert table.tell(Measured({"far/gpu": 11 * GIB}, {}, table.now)) == ["start b"]


def test_a_look_at_one_host_is_not_made_stale_by_a_later_look_at_another() -> None:
    table = Table(gpu=10, devices=[Device("far/gpu", 11 * GIB, GIB)], models=[model("a", at("far/gpu", 6))])
    table.tell(Measured({"far/gpu": None}, {}, 0.0))
    table.wait(2.0)
    table.tell(Measured({"local/gpu": 11 * GIB}, {}, 2.0))
    table.asks("r1", "a")
    assert table.tell(Measured({"far/gpu": 11 * GIB}, {}, 1.5)) == ["start a"]


def test_memory_that_is_late_costs_no_second_victim() -> None:
    table = Table(gpu=12, a=6, b=6, c=6)
    table.serves("a")
    table.serves("b")
    table.measure()
    assert table.asks("r1", "c") == ["stop a: evicted for c"]
    assert table.exits("a", returns=False) == []
    for _ in range(9):
        assert table.wait(1.0) + table.measure() == []
    assert table.returns("a") == ["start c"]
    assert table.state("b") == "ready"


def test_memory_that_never_comes_back_belongs_to_strangers_after_the_recovery_time() -> None:
    table = Table(gpu=12, a=6, b=6, c=6)
    table.serves("a")
    table.serves("b")
    table.measure()
    table.asks("r1", "c")
    table.exits("a", returns=False)
    table.measure()
    assert table.wait(9.9) == []
    assert table.wait(0.2) == ["stop b: evicted for c"]
    assert table.exits("b") == ["start c"]


def test_what_an_exited_child_had_taken_is_learned_from_a_look_that_was_under_way() -> None:
    """The look began before the exit and arrives after it: its free bytes lack what the dead one still
    had.
    """
    table = Table(gpu=12, a=6, b=6, c=6)
    table.asks("r1", "a")
    table.serves("b")
    table.holds("a", gpu=5)
    began = table.now
    table.wait(0.1)
    seen = Measured(
        {"local/gpu": table.free("local/gpu")},
        {"a#1": {"local/gpu": 5 * GIB}, "b#1": {"local/gpu": 6 * GIB}},
        began,
    )
    table.exits("a", returns=False)
    table.tell(seen)
    assert table.asks("r2", "c") == []
    assert table.returns("a") == ["start c"]


def test_memory_that_strangers_hold_is_waited_for_a_little_and_then_refused() -> None:
    table = Table(gpu=10, a=6)
    table.stranger(gpu=5)
    assert table.asks("r1", "a") == []
    assert table.wait(9.9) == []
    assert table.wait(0.2) == ["refuse r1: NoRoom"]
    assert table.errors["r1"].retry_after_seconds
    assert table.asks("r2", "a") == []
    assert table.stranger(gpu=4) == ["start a"]


def test_nobody_is_evicted_where_strangers_would_still_be_in_the_way() -> None:
    table = Table(gpu=10, a=4, b=7)
    table.serves("a")
    table.stranger(gpu=4)
    assert table.asks("r1", "b") == []
    assert table.wait(11.0) == ["refuse r1: NoRoom"]
    assert table.state("a") == "ready"


def test_a_placement_that_no_empty_machine_could_hold_is_refused_at_once_with_the_numbers() -> None:
    table = Table(gpu=10, a=6, b=10.5)
    table.serves("a")
    assert table.asks("r1", "b") == ["refuse r1: ModelTooLarge"]
    assert "10.5 GiB" in table.errors["r1"].message
    assert "11.0 GiB" in table.errors["r1"].message
    assert table.state("a") == "ready"


def test_a_model_as_large_as_the_machine_is_not_too_large() -> None:
    table = Table(gpu=10, a=10)
    assert table.asks("r1", "a") == ["start a"]


def test_an_impossible_placement_is_passed_over_for_a_possible_one() -> None:
    table = Table(
        devices=[device("gpu", 10), device("host", 60)], models=[model("a", on(gpu=20), on(tier=1, host=20))]
    )
    assert table.asks("r1", "a") == ["start a"]
    assert table.place("a") == "host"


def test_without_a_margin_there_is_no_memory_check() -> None:
    table = Table(
        devices=[Device("local/gpu", 8 * GIB, 0)],
        models=[model(name, on(gpu=20)) for name in "abc"],
        settings={"models_max": 2},
    )
    assert table.asks("r1", "a") == ["start a"]
    assert table.asks("r2", "b") == ["start b"]
    assert table.asks("r3", "c") == []


def test_nothing_is_admitted_on_a_device_that_is_not_healthy() -> None:
    table = Table(
        devices=[device("gpu0", 10), device("gpu1", 20)], models=[model("a", on(gpu0=6), on(gpu1=6))]
    )
    table.measure(without=["local/gpu0"])
    table.asks("r1", "a")
    assert table.place("a") == "gpu1"


def test_a_sick_device_is_waited_for_like_one_that_others_hold() -> None:
    table = Table(gpu=10, a=6)
    table.measure(without=["local/gpu"])
    assert table.asks("r1", "a") == []
    assert table.measure() == ["start a"]


def test_nobody_is_evicted_from_a_device_whose_health_is_unknown() -> None:
    table = Table(gpu=10, a=6, b=6)
    table.serves("a")
    table.measure(without=["local/gpu"])
    assert table.asks("r1", "b") == []
    assert table.wait(9.0) == []
    assert table.measure() == ["stop a: evicted for b"]


def test_nobody_is_drained_on_a_device_whose_health_is_unknown() -> None:
    table = Table(gpu=10, a=6, b=6)
    table.serves("a")
    table.wait(100.0)
    table.asks("r1", "a")
    table.asks("r2", "b")
    table.wait(15.0)
    table.measure(without=["local/gpu"])
    table.wait(2.0)
    assert table.state("a") == "ready"


def test_a_child_that_takes_more_than_it_said_is_counted_with_what_it_took() -> None:
    table = Table(gpu=10, policy="no-evict", a=4, b=5)
    table.serves("a")
    table.holds("a", gpu=5.5)
    table.measure()
    assert table.asks("r1", "b") == ["refuse r1: NoRoom"]


def test_what_the_host_says_at_ready_replaces_the_estimate() -> None:
    table = Table(gpu=10, policy="no-evict", a=6, b=5)
    table.asks("r1", "a")
    table.ready("a", {"local/gpu": 5 * GIB})
    table.measure()
    assert table.asks("r2", "b") == ["start b"]


def test_a_reservation_may_be_corrected_but_not_below_what_was_measured() -> None:
    table = Table(gpu=10, policy="no-evict", a=6, b=5, c=1)
    table.serves("a")
    table.holds("a", gpu=4)
    table.measure()
    assert table.asks("r1", "b") == ["refuse r1: NoRoom"]
    table.tell(Measured({}, {}, table.now, {"a#1": {"local/gpu": 2 * GIB}}))
    assert table.view("a").reserved == {"local/gpu": 4 * GIB}
    assert table.asks("r2", "b") == ["start b"]
    assert table.asks("r3", "c") == ["start c"]


def test_the_smallest_hole_that_fits_is_filled_first() -> None:
    table = Table(
        devices=[device("gpu0", 20), device("gpu1", 10)], models=[model("a", on(gpu0=6), on(gpu1=6))]
    )
    table.asks("r1", "a")
    assert table.place("a") == "gpu1"


def test_spread_takes_the_largest_hole() -> None:
    table = Table(
        devices=[device("gpu0", 20), device("gpu1", 10)],
        models=[model("a", on(gpu0=6), on(gpu1=6))],
        settings={"placement": "spread"},  # type: ignore[dict-item]
    )
    table.asks("r1", "a")
    assert table.place("a") == "gpu0"


def test_a_better_tier_is_cleared_before_a_worse_one_is_used() -> None:
    table = Table(
        devices=[device("gpu", 10), device("host", 60)],
        models=[model("a", on(gpu=6)), model("b", on(gpu=6), on(tier=1, host=6))],
    )
    table.serves("a")
    assert table.asks("r1", "b") == ["stop a: evicted for b"]


def test_a_worse_tier_serves_while_the_better_one_is_busy() -> None:
    table = Table(
        devices=[device("gpu", 10), device("host", 60)],
        models=[model("a", on(gpu=6)), model("b", on(gpu=6), on(tier=1, host=6))],
    )
    table.asks("r1", "a")
    table.ready("a")
    assert table.asks("r2", "b") == ["start b"]
    assert table.place("b") == "host"


def test_room_without_a_victim_is_better_than_room_with_one() -> None:
    table = Table(
        devices=[device("gpu0", 10), device("gpu1", 20)],
        models=[model("a", on(gpu0=6)), model("b", on(gpu0=6), on(gpu1=6))],
    )
    table.serves("a")
    assert table.asks("r1", "b") == ["start b"]
    assert table.place("b") == "gpu1"


def test_no_host_is_cleared_to_make_room_on_another() -> None:
    table = Table(
        gpu=10,
        devices=[Device("far/gpu", 11 * GIB, GIB)],
        models=[model("near", on(gpu=6)), model("far", at("far/gpu", 6)), model("far2", at("far/gpu", 6))],
    )
    table.serves("near")
    table.wait(1.0)
    table.serves("far")
    assert table.asks("r1", "far2") == ["stop far: evicted for far2"]


def test_a_child_that_ran_out_of_memory_is_tried_once_more_with_more() -> None:
    table = Table(gpu=10, a=6)
    table.asks("r1", "a")
    table.wait(1.0)
    assert table.exits("a", out_of_memory=True) == ["start a.2"]
    assert table.view("a.2").reserved["local/gpu"] == pytest.approx(6 * GIB * 1.15, abs=2)
    assert table.exits("a.2", out_of_memory=True) == ["refuse r1: LoadFailed"]


def test_idle_models_yield_to_other_programs_until_the_margin_is_whole_again() -> None:
    table = Table(gpu=12, a=4, b=4, c=4, settings={"evict_on_memory_pressure": True})
    for name in "abc":
        table.serves(name)
    table.asks("r1", "a")
    assert table.stranger(gpu=3) == ["stop b: yielded"]
    assert table.exits("b") == []
    assert table.states() == ["a ready", "c ready"]


def test_a_model_in_use_yields_as_soon_as_it_is_idle() -> None:
    table = Table(gpu=12, a=4, b=4, settings={"evict_on_memory_pressure": True})
    table.serves("a")
    table.asks("r1", "a")
    table.asks("r2", "a")
    assert table.stranger(gpu=9) == []
    assert table.ends("r1") == []
    assert table.ends("r2") == ["stop a: yielded"]


def test_nothing_comes_of_a_request_where_nobody_has_to_yield() -> None:
    """One after another is the usual case, and each of them would cost a look at everything."""
    table = Table(gpu=12, a=4, settings={"evict_on_memory_pressure": True})
    table.serves("a")
    scheduler = table.scheduler
    for number in range(2):
        table.now += 1.0
        assert len(scheduler.handle(Acquire(f"r{number}", "a"), table.now)) == 1 and scheduler.was_routine
        assert scheduler.handle(Release(f"r{number}"), table.now) == [] and scheduler.was_routine


def test_an_exactly_full_device_yields_nothing_to_a_torn_look() -> None:
    """A child allocated between the reading of the processes and that of the memory: nobody else took a
    byte.
    """
    table = Table(gpu=10, a=4, b=6, settings={"evict_on_memory_pressure": True})
    table.serves("a")
    table.asks("r1", "b")
    used = {"a#1": {"local/gpu": 4 * GIB}, "b#1": {"local/gpu": 2 * GIB}}
    assert table.tell(Measured({"local/gpu": 4 * GIB}, used, table.now)) == []


def test_a_model_that_grows_into_its_own_reservation_makes_nobody_yield() -> None:
    table = Table(gpu=10, a=4, b=6, settings={"evict_on_memory_pressure": True})
    table.serves("a")
    table.asks("r1", "b")
    table.ready("b")
    used = {"a#1": {"local/gpu": 4 * GIB}, "b#1": {"local/gpu": 5 * GIB}}
    assert table.tell(Measured({"local/gpu": 1 * GIB + GIB // 2}, used, table.now)) == []


def test_nobody_yields_unless_asked_to() -> None:
    table = Table(gpu=10, a=4)
    table.serves("a")
    assert table.stranger(gpu=8) == []


def test_a_resort_is_no_way_to_load_a_model_that_could_be_loaded_otherwise() -> None:
    table = Table(
        devices=[device("gpu", 10), device("host", 64)],
        models=[
            model("busy", on(gpu=8)),
            model("a", on(gpu=8), replace(on(tier=3, host=8), is_fallback=True)),
        ],
    )
    table.serves("busy")
    table.asks("held", "busy")
    assert table.asks("r1", "a") == [], "it waits for the GPU, though the host is empty"
    assert table.ends("held") == ["stop busy: evicted for a"]


def test_a_resort_is_the_way_for_a_model_that_no_empty_machine_could_load_otherwise() -> None:
    resort = replace(on(tier=3, host=8), is_fallback=True)
    table = Table(devices=[device("gpu", 10), device("host", 64)], models=[model("a", on(gpu=8), resort)])
    table.tell(Learned(model("a", on(gpu=12), resort)))
    assert table.asks("r1", "a") == ["start a"]
    assert table.place("a") == "host"


def test_what_was_learned_counts_for_a_load_that_waits_with_other_settings() -> None:
    table = Table(gpu=10, busy=8, a=1)
    table.serves("busy")
    table.asks("held", "busy")
    other = replace(model("a", on(gpu=9)), definition=Definition("1", "ctx_size=7"))
    assert table.tell(Acquire("r1", "a", overrides=other)) == []
    assert table.tell(Learned(replace(other, placements=(on(gpu=2),)))) == ["start a"]
