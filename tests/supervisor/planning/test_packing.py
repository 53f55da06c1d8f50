"""What is said to fit does fit, and what is said not to fit does not: held against brute force."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from router.scheduler.ledger import Ledger
from router.scheduler.types import Device
from router.supervisor.planning.packing import EXACT_LIMIT, Effort, pack

A, B, HOST = "local/a", "local/b", "local/host"
Ways = Sequence[Mapping[str, int]]

sizes = st.integers(0, 12)
footprints = st.dictionaries(st.sampled_from([A, B, HOST]), sizes, min_size=1)
rooms = st.fixed_dictionaries({A: sizes, B: sizes, HOST: sizes})


def demands(most: int) -> st.SearchStrategy[list[list[dict[str, int]]]]:
    return st.lists(st.lists(footprints, min_size=1, max_size=4), max_size=most)


def fits(room: Mapping[str, int], chosen: Sequence[Mapping[str, int]]) -> bool:
    return all(sum(one.get(device, 0) for one in chosen) <= room[device] for device in room)


def is_possible(room: Mapping[str, int], asked: Sequence[Ways]) -> bool:
    return any(fits(room, chosen) for chosen in product(*asked))


@settings(max_examples=250, deadline=None)
@given(rooms, demands(5))
def test_it_finds_a_way_exactly_where_brute_force_finds_one(room: dict[str, int], asked: list[Ways]):
    found = pack(room, asked)
    assert found.is_exact
    assert (found.choice is not None) == is_possible(room, asked)
    if found.choice is not None:
        assert fits(room, [ways[at] for ways, at in zip(asked, found.choice, strict=True)])


@settings(max_examples=150, deadline=None)
@given(rooms, demands(EXACT_LIMIT + 4), st.integers(0, 5))
def test_whatever_it_says_to_fit_fits_however_little_it_may_search(
    room: dict[str, int], asked: list[Ways], steps: int
):
    found = pack(room, asked, Effort(steps))
    if found.choice is not None:
        assert fits(room, [ways[at] for ways, at in zip(asked, found.choice, strict=True)])
    elif found.is_exact and len(asked) <= 5:
        assert not is_possible(room, asked)


@settings(max_examples=150, deadline=None)
@given(
    st.fixed_dictionaries({A: st.integers(1, 30), B: st.integers(1, 30)}),
    st.fixed_dictionaries({A: st.integers(0, 8), B: st.integers(0, 8)}),
    st.integers(1, 4),
    st.lists(
        st.lists(st.dictionaries(st.sampled_from([A, B]), sizes, min_size=1), min_size=1, max_size=3),
        max_size=4,
    ),
)
def test_the_scheduler_admits_what_it_says_to_fit_one_after_the_other(
    total: dict[str, int], others: dict[str, int], margin: int, asked: list[Ways]
):
    """By the books of the scheduler itself, margins and other programs included."""
    ledger = Ledger({name: Device(name, size, margin) for name, size in total.items()})
    ledger.measure({name: max(0, size - others[name]) for name, size in total.items()}, {}, 0.0, 0.0)
    room = {name: max(0, size - margin - others[name]) for name, size in total.items()}
    found = pack(room, asked)
    for number, ways in enumerate(asked):
        if found.choice is not None:
            footprint = ways[found.choice[number]]
            assert ledger.fits(footprint)
            ledger.reserve(f"m#{number}", footprint)
    if found.choice is None and len(asked) == 1:
        assert not any(ledger.fits(footprint) for footprint in asked[0])


def test_earlier_ways_are_better_and_taken_where_they_can_be():
    assert pack({A: 10, B: 10}, [[{B: 5}, {A: 5}]]).choice == (0,)
    assert pack({A: 10, B: 4}, [[{B: 5}, {A: 5}]]).choice == (1,)


def test_a_large_model_is_moved_aside_for_another_that_fits_one_device_only():
    """First come first served would put the first on A, and the second nowhere."""
    assert pack({A: 8, B: 8}, [[{A: 5}, {B: 5}], [{A: 6}]]).choice == (1, 0)


def test_needs_of_nothing_are_met_also_on_a_device_that_is_not_there():
    assert pack({A: 1}, [[{A: 1, "local/gone": 0}]]).choice == (0,)
    assert pack({A: 1}, [[{"local/gone": 1}]]).choice is None
    assert pack({A: 0}, []).choice == ()


def test_a_model_without_any_way_fits_nowhere():
    assert pack({A: 1}, [[]]).choice is None


@pytest.mark.parametrize("n", [EXACT_LIMIT - 1, 2 * EXACT_LIMIT])
def test_many_alike_are_answered_within_the_effort(n: int):
    """Every one could go to every device, and there is room for all but one: the hard case for a search."""
    devices = [f"local/{number}" for number in range(n)]
    effort = Effort()
    found = pack(dict.fromkeys(devices, 7), [[{device: 4} for device in devices]] * (n + 1), effort)
    assert found.choice is None
    assert found.is_exact == (n < EXACT_LIMIT)
    assert effort.steps > 0
    found = pack(dict.fromkeys(devices, 7), [[{device: 4} for device in devices]] * n, effort)
    assert found.choice is not None and sorted(found.choice) == list(range(n))


def test_what_was_not_searched_to_the_end_is_not_called_proven():
    """Biggest first in the first way that fits fails here, and there was no step left to search."""
    asked: list[Ways] = [[{A: 6}, {B: 6}], [{A: 5}]]
    assert pack({A: 6, B: 6}, asked).choice == (1, 0)
    unproven = pack({A: 6, B: 6}, asked, Effort(0))
    assert (unproven.choice, unproven.is_exact) == (None, False)
