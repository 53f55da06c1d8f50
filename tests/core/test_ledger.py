"""The arithmetic of bytes: every term of the admission rule, and memory that comes back late."""

from __future__ import annotations

from router.core.ledger import UNBOUNDED, Ledger
from router.core.types import Device

GIB = 1 << 30
GPU, CPU = "local/cuda:0", "local/host"


def ledger(total: int = 24, margin: int = 1, free: int | None = None) -> Ledger:
    books = Ledger({GPU: Device(GPU, total * GIB, margin * GIB)}, recovery=10.0)
    books.measure({GPU: (total if free is None else free) * GIB}, {}, at=0.0, now=0.0)
    return books


def room(books: Ledger) -> float | None:
    left = books.room(GPU)
    return None if left is None else left / GIB


def test_room_is_free_minus_margin_minus_what_is_promised_and_not_taken() -> None:
    books = ledger()
    books.reserve("a#1", {GPU: 10 * GIB})
    assert room(books) == 13
    books.measure({GPU: 18 * GIB}, {"a#1": {GPU: 6 * GIB}}, at=1.0, now=1.0)
    assert (room(books), books.promised(GPU) // GIB) == (13, 4)
    assert books.fits({GPU: 13 * GIB}) and not books.fits({GPU: 13 * GIB + 1})


def test_memory_taken_by_strangers_is_missing_from_free_and_named_as_theirs() -> None:
    books = ledger()
    books.reserve("a#1", {GPU: 10 * GIB})
    books.measure({GPU: 9 * GIB}, {"a#1": {GPU: 10 * GIB}}, at=1.0, now=1.0)
    assert (room(books), books.others(GPU)) == (8, 5 * GIB)


def test_what_is_promised_and_what_strangers_took_both_count() -> None:
    books = ledger()
    books.reserve("a#1", {GPU: 10 * GIB})
    books.measure({GPU: 13 * GIB}, {"a#1": {GPU: 6 * GIB}}, at=1.0, now=1.0)
    assert (room(books), books.others(GPU)) == (8, 5 * GIB)


def test_a_measurement_that_reports_too_much_free_does_not_overbook() -> None:
    books = ledger()
    books.reserve("a#1", {GPU: 10 * GIB})
    books.measure({GPU: 24 * GIB}, {"a#1": {GPU: 10 * GIB}}, at=1.0, now=1.0)
    assert room(books) == 13


def test_a_reservation_is_never_below_what_is_measured() -> None:
    books = ledger()
    books.reserve("a#1", {GPU: 4 * GIB})
    books.measure({GPU: 18 * GIB}, {"a#1": {GPU: 6 * GIB}}, at=1.0, now=1.0)
    assert books.reserved("a#1") == {GPU: 6 * GIB}
    books.settle("a#1", {GPU: 5 * GIB})
    assert books.reserved("a#1") == {GPU: 6 * GIB}
    books.check()


def test_memory_of_the_dead_is_not_free_before_it_is_measured_free() -> None:
    books = ledger()
    books.reserve("a#1", {GPU: 20 * GIB})
    books.measure({GPU: 4 * GIB}, {"a#1": {GPU: 20 * GIB}}, at=1.0, now=1.0)
    books.exited("a#1", now=2.0)
    assert (room(books), books.returning(GPU)) == (3, 20 * GIB)
    assert not books.shortfall({GPU: 23 * GIB}, leaving=()), "a plan may count on it"
    books.measure({GPU: 24 * GIB}, {}, at=2.5, now=2.5)
    assert (room(books), books.returning(GPU), books.next_deadline()) == (23, 0, None)


def test_a_measurement_begun_before_an_exit_proves_nothing_about_it() -> None:
    books = ledger()
    books.reserve("a#1", {GPU: 20 * GIB})
    books.exited("a#1", now=2.0)
    books.measure({GPU: 24 * GIB}, {}, at=1.9, now=2.1)
    assert room(books) == 3, "what it may have taken unseen still counts"
    books.measure({GPU: 24 * GIB}, {}, at=2.0, now=2.2)
    assert room(books) == 23


def test_an_older_measurement_never_replaces_a_newer_one() -> None:
    books = ledger()
    books.measure({GPU: 5 * GIB}, {}, at=3.0, now=3.0)
    books.measure({GPU: 24 * GIB}, {}, at=2.0, now=3.1)
    assert room(books) == 4


def test_bytes_that_come_back_are_counted_for_one_of_those_who_left_together() -> None:
    books = ledger()
    books.reserve("a#1", {GPU: 11 * GIB})
    books.reserve("b#1", {GPU: 6 * GIB})
    books.measure({GPU: 7 * GIB}, {"a#1": {GPU: 11 * GIB}, "b#1": {GPU: 6 * GIB}}, at=1.0, now=1.0)
    books.exited("a#1", now=2.0)
    books.exited("b#1", now=2.0)
    books.measure({GPU: 18 * GIB}, {}, at=2.5, now=2.5)
    assert books.returning(GPU) == 6 * GIB, "only a is back"
    assert not books.shortfall({GPU: 20 * GIB}, leaving=()), "a plan still counts on what b gives back"
    books.measure({GPU: 24 * GIB}, {}, at=3.0, now=3.0)
    assert books.returning(GPU) == 0


def test_memory_that_does_not_come_back_is_given_up_at_the_recovery_deadline() -> None:
    books = ledger()
    books.reserve("a#1", {GPU: 20 * GIB})
    books.measure({GPU: 4 * GIB}, {"a#1": {GPU: 20 * GIB}}, at=1.0, now=1.0)
    books.exited("a#1", now=2.0)
    assert books.next_deadline() == 12.0
    books.expire(11.9)
    assert books.returning(GPU) == 20 * GIB
    books.expire(12.0)
    assert books.returning(GPU) == 0 and books.shortfall({GPU: 23 * GIB}, leaving=())


def test_a_claim_counts_for_newcomers_and_younger_claims_but_not_for_older_ones() -> None:
    books = ledger()
    books.claim("a#1", {GPU: 20 * GIB}, order=1)
    books.claim("b#1", {GPU: 2 * GIB}, order=2)
    assert room(books) == 1
    assert books.fits({GPU: 20 * GIB}, before=1)
    assert books.fits({GPU: 3 * GIB}, before=2) and not books.fits({GPU: 4 * GIB}, before=2)


def test_a_placement_is_admitted_on_all_its_devices_or_not_at_all() -> None:
    books = Ledger({GPU: Device(GPU, 24 * GIB, GIB), CPU: Device(CPU, 8 * GIB, GIB)})
    books.measure({GPU: 24 * GIB, CPU: 8 * GIB}, {}, at=0.0, now=0.0)
    assert books.fits({GPU: 20 * GIB, CPU: 7 * GIB})
    assert not books.fits({GPU: 20 * GIB, CPU: 8 * GIB})
    assert books.shortfall({GPU: 20 * GIB, CPU: 8 * GIB}, leaving=()) == {CPU: GIB}


def test_nothing_fits_on_a_device_that_is_unhealthy_or_unknown() -> None:
    books = ledger()
    books.lose([GPU])
    assert books.room(GPU) is None and not books.fits({GPU: 1})
    assert not books.fits({"local/cuda:9": 1}) and books.impossible({"local/cuda:9": 1})


def test_a_margin_of_zero_switches_the_check_off() -> None:
    books = ledger(total=8, margin=0)
    assert books.room(GPU) == UNBOUNDED
    assert books.fits({GPU: 100 * GIB}) and not books.impossible({GPU: 100 * GIB})


def test_impossible_means_an_empty_machine_could_not_hold_it() -> None:
    books = ledger(free=2)
    assert not books.impossible({GPU: 23 * GIB})
    assert books.impossible({GPU: 23 * GIB + 1})
