"""The arithmetic of bytes: every term of the admission rule, and memory that comes back late."""

from __future__ import annotations

from router.scheduler.ledger import UNBOUNDED, Ledger
from router.scheduler.types import Device

GIB = 1 << 30
GPU, CPU = "local/cuda:0", "local/host"


def ledger(total: int = 24, margin: int = 1, free: int | None = None) -> Ledger:
    state = Ledger({GPU: Device(GPU, total * GIB, margin * GIB)}, recovery=10.0)
    state.measure({GPU: (total if free is None else free) * GIB}, {}, at=0.0, now=0.0)
    return state


def room(state: Ledger) -> float | None:
    left = state.room(GPU)
    return None if left is None else left / GIB


def test_room_is_free_minus_margin_minus_what_is_promised_and_not_taken() -> None:
    state = ledger()
    state.reserve("a#1", {GPU: 10 * GIB})
    assert room(state) == 13
    state.measure({GPU: 18 * GIB}, {"a#1": {GPU: 6 * GIB}}, at=1.0, now=1.0)
    assert (room(state), state.promised(GPU) // GIB) == (13, 4)
    assert state.fits({GPU: 13 * GIB}) and not state.fits({GPU: 13 * GIB + 1})


def test_memory_taken_by_strangers_is_missing_from_free_and_named_as_theirs() -> None:
    state = ledger()
    state.reserve("a#1", {GPU: 10 * GIB})
    state.measure({GPU: 9 * GIB}, {"a#1": {GPU: 10 * GIB}}, at=1.0, now=1.0)
    assert (room(state), state.others(GPU)) == (8, 5 * GIB)


def test_what_is_promised_and_what_strangers_took_both_count() -> None:
    state = ledger()
    state.reserve("a#1", {GPU: 10 * GIB})
    state.measure({GPU: 13 * GIB}, {"a#1": {GPU: 6 * GIB}}, at=1.0, now=1.0)
    assert (room(state), state.others(GPU)) == (8, 5 * GIB)


def test_a_measurement_that_reports_too_much_free_does_not_overbook() -> None:
    state = ledger()
    state.reserve("a#1", {GPU: 10 * GIB})
    state.measure({GPU: 24 * GIB}, {"a#1": {GPU: 10 * GIB}}, at=1.0, now=1.0)
    assert room(state) == 13


def test_a_reservation_is_never_below_what_is_measured() -> None:
    state = ledger()
    state.reserve("a#1", {GPU: 4 * GIB})
    state.measure({GPU: 18 * GIB}, {"a#1": {GPU: 6 * GIB}}, at=1.0, now=1.0)
    assert state.reserved("a#1") == {GPU: 6 * GIB}
    state.settle("a#1", {GPU: 5 * GIB})
    assert state.reserved("a#1") == {GPU: 6 * GIB}
    state.check()


def test_memory_of_the_dead_is_not_free_before_it_is_measured_free() -> None:
    state = ledger()
    state.reserve("a#1", {GPU: 20 * GIB})
    state.measure({GPU: 4 * GIB}, {"a#1": {GPU: 20 * GIB}}, at=1.0, now=1.0)
    state.exited("a#1", now=2.0)
    assert (room(state), state.returning(GPU)) == (3, 20 * GIB)
    assert not state.shortfall({GPU: 23 * GIB}, leaving=()), "a plan may count on it"
    state.measure({GPU: 24 * GIB}, {}, at=2.5, now=2.5)
    assert (room(state), state.returning(GPU), state.next_deadline()) == (23, 0, None)


def test_a_measurement_begun_before_an_exit_proves_nothing_about_it() -> None:
    state = ledger()
    state.reserve("a#1", {GPU: 20 * GIB})
    state.exited("a#1", now=2.0)
    state.measure({GPU: 24 * GIB}, {}, at=1.9, now=2.1)
    assert room(state) == 3, "what it may have taken unseen still counts"
    state.measure({GPU: 24 * GIB}, {}, at=2.0, now=2.2)
    assert room(state) == 23


def test_an_older_measurement_never_replaces_a_newer_one() -> None:
    state = ledger()
    state.measure({GPU: 5 * GIB}, {}, at=3.0, now=3.0)
    state.measure({GPU: 24 * GIB}, {}, at=2.0, now=3.1)
    assert room(state) == 4


def test_bytes_that_come_back_are_counted_for_one_of_those_who_left_together() -> None:
    state = ledger()
    state.reserve("a#1", {GPU: 11 * GIB})
    state.reserve("b#1", {GPU: 6 * GIB})
    state.measure({GPU: 7 * GIB}, {"a#1": {GPU: 11 * GIB}, "b#1": {GPU: 6 * GIB}}, at=1.0, now=1.0)
    state.exited("a#1", now=2.0)
    state.exited("b#1", now=2.0)
    state.measure({GPU: 18 * GIB}, {}, at=2.5, now=2.5)
    assert state.returning(GPU) == 6 * GIB, "only a is back"
    assert not state.shortfall({GPU: 20 * GIB}, leaving=()), "a plan still counts on what b gives back"
    state.measure({GPU: 24 * GIB}, {}, at=3.0, now=3.0)
    assert state.returning(GPU) == 0


def test_memory_that_does_not_come_back_is_given_up_at_the_recovery_deadline() -> None:
    state = ledger()
    state.reserve("a#1", {GPU: 20 * GIB})
    state.measure({GPU: 4 * GIB}, {"a#1": {GPU: 20 * GIB}}, at=1.0, now=1.0)
    state.exited("a#1", now=2.0)
    assert state.next_deadline() == 12.0
    state.expire(11.9)
    assert state.returning(GPU) == 20 * GIB
    state.expire(12.0)
    assert state.returning(GPU) == 0 and state.shortfall({GPU: 23 * GIB}, leaving=())


def test_a_claim_counts_for_newcomers_and_younger_claims_but_not_for_older_ones() -> None:
    state = ledger()
    state.claim("a#1", {GPU: 20 * GIB}, order=1)
    state.claim("b#1", {GPU: 2 * GIB}, order=2)
    assert room(state) == 1
    assert state.fits({GPU: 20 * GIB}, before=1)
    assert state.fits({GPU: 3 * GIB}, before=2) and not state.fits({GPU: 4 * GIB}, before=2)


def test_a_placement_is_admitted_on_all_its_devices_or_not_at_all() -> None:
    state = Ledger({GPU: Device(GPU, 24 * GIB, GIB), CPU: Device(CPU, 8 * GIB, GIB)})
    state.measure({GPU: 24 * GIB, CPU: 8 * GIB}, {}, at=0.0, now=0.0)
    assert state.fits({GPU: 20 * GIB, CPU: 7 * GIB})
    assert not state.fits({GPU: 20 * GIB, CPU: 8 * GIB})
    assert state.shortfall({GPU: 20 * GIB, CPU: 8 * GIB}, leaving=()) == {CPU: GIB}


def test_nothing_fits_on_a_device_that_is_unhealthy_or_unknown() -> None:
    state = ledger()
    state.lose([GPU])
    assert state.room(GPU) is None and not state.fits({GPU: 1})
    assert not state.fits({"local/cuda:9": 1}) and state.impossible({"local/cuda:9": 1})


def test_a_margin_of_zero_switches_the_check_off() -> None:
    state = ledger(total=8, margin=0)
    assert state.room(GPU) == UNBOUNDED
    assert state.fits({GPU: 100 * GIB}) and not state.impossible({GPU: 100 * GIB})


def test_impossible_means_an_empty_machine_could_not_hold_it() -> None:
    state = ledger(free=2)
    assert not state.impossible({GPU: 23 * GIB})
    assert state.impossible({GPU: 23 * GIB + 1})
