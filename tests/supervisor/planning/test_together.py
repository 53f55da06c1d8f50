"""Several models at once: smaller contexts where they must be, and the largest sets where not all fit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations, product

from hypothesis import given, settings
from hypothesis import strategies as st

from router.supervisor.planning.packing import EXACT_LIMIT
from router.supervisor.planning.together import Fit, ModelDemand, Way, fit_together
from router.supervisor.planning.words import together_words

A, B = "local/a", "local/b"


def wish(name: str, *needs: int, on: Sequence[str] = (A,), exclusive: str = "") -> ModelDemand:
    """Each of `needs` is what it takes at 8192 tokens, at 4096, and so on, on any of the devices."""
    steps = tuple(
        tuple(Way(8192 >> step, (device,), {device: need}) for device in on)
        for step, need in enumerate(needs)
    )
    return ModelDemand(name, steps, frozenset({exclusive} - {""}))


def contexts(fit: Fit | None) -> dict[str, int]:
    assert fit is not None
    return {name: way.ctx_size for name, way in fit.ways.items()}


def taken(fit: Fit) -> dict[str, int]:
    sums: dict[str, int] = {}
    for way in fit.ways.values():
        for device, need in way.footprint.items():
            sums[device] = sums.get(device, 0) + need
    return sums


def test_what_fits_as_it_is_keeps_its_context():
    found = fit_together({A: 10}, [wish("x", 6, 4), wish("y", 4, 3)])
    assert contexts(found.all) == {"x": 8192, "y": 8192}
    assert found.all is not None and not found.all.is_reduced


def test_what_does_not_is_halved_for_all_and_given_back_to_whom_it_can_be():
    found = fit_together({A: 10}, [wish("x", 8, 6, 5), wish("y", 5, 4, 2)])
    assert contexts(found.all) == {"x": 4096, "y": 4096}
    found = fit_together({A: 10}, [wish("x", 8, 6, 5), wish("y", 3, 3, 1)])
    assert contexts(found.all) == {"x": 4096, "y": 8192}
    assert found.all is not None and (found.all.common, found.all.is_reduced) == (1, True)


def test_a_model_that_cannot_be_smaller_stays_while_others_are():
    found = fit_together({A: 10}, [wish("small", 2), wish("x", 12, 9, 8)])
    assert contexts(found.all) == {"small": 8192, "x": 2048}


def test_where_not_all_fit_the_largest_sets_are_told():
    found = fit_together({A: 10}, [wish("x", 8, 7), wish("y", 5, 4), wish("z", 5, 3)])
    assert found.all is None and found.is_exact
    assert [contexts(fit) for fit in found.sets] == [
        {"y": 8192, "z": 8192},
        {"x": 4096, "z": 4096},
    ]


def test_what_fits_nowhere_leaves_no_set_at_all():
    found = fit_together({A: 3}, [wish("x", 8), wish("y", 5)])
    assert (found.all, found.sets) == (None, ())


def test_a_limit_on_their_number_and_exclusive_groups_are_obeyed():
    wishes = [wish("x", 1), wish("y", 1), wish("z", 1)]
    found = fit_together({A: 10}, wishes, most=2)
    assert found.all is None and [set(fit.ways) for fit in found.sets] == [{"x", "y"}, {"x", "z"}, {"y", "z"}]
    rivals = [wish("x", 1, exclusive="g"), wish("y", 1, exclusive="g"), wish("z", 1)]
    found = fit_together({A: 10}, rivals)
    assert found.all is None and [set(fit.ways) for fit in found.sets] == [{"x", "z"}, {"y", "z"}]


def test_of_many_models_the_smallest_are_kept_and_nothing_is_called_proven():
    wishes = [wish(f"m{n}", n + 1) for n in range(EXACT_LIMIT + 2)]
    found = fit_together({A: 10}, wishes)
    (fit,) = found.sets
    assert set(fit.ways) == {"m0", "m1", "m2", "m3"} and not found.is_exact


@settings(max_examples=150, deadline=None)
@given(
    st.fixed_dictionaries({A: st.integers(0, 12), B: st.integers(0, 12)}),
    st.lists(st.lists(st.integers(0, 8), min_size=1, max_size=3), min_size=1, max_size=4),
)
def test_it_is_right_about_which_contexts_fit_and_about_the_largest_sets(
    room: dict[str, int], needs: list[list[int]]
):
    wishes = [wish(f"m{n}", *sorted(one, reverse=True), on=(A, B)) for n, one in enumerate(needs)]
    found = fit_together(room, wishes)
    assert found.is_exact
    assert (found.all is not None) == _any_fits(room, wishes)
    for fit in [found.all, *found.sets]:
        if fit is not None:
            assert all(size <= room[device] for device, size in taken(fit).items())
            assert _is_as_large_as_can_be(room, [one for one in wishes if one.model in fit.ways], fit)
    if found.all is None:
        size = len(found.sets[0].ways) if found.sets else 0
        larger = combinations(wishes, size + 1)
        assert not any(_any_fits(room, some) for some in larger), "there is a larger set"


def _any_fits(room: Mapping[str, int], wishes: Sequence[ModelDemand]) -> bool:
    """By brute force: every step of every model on every device."""
    ways = [[way for step in one.steps for way in step] for one in wishes]
    return any(_sums_fit(room, chosen) for chosen in product(*ways))


def _is_as_large_as_can_be(room: Mapping[str, int], wishes: Sequence[ModelDemand], fit: Fit) -> bool:
    """No single model could have its next larger context while the others keep theirs."""
    for one in wishes:
        step = fit.steps[one.model]
        if step == 0:
            continue
        ways = [other.steps[fit.steps[other.model] - (other is one)] for other in wishes]
        if any(_sums_fit(room, chosen) for chosen in product(*ways)):
            return False
    return True


def _sums_fit(room: Mapping[str, int], chosen: Sequence[Way]) -> bool:
    return all(sum(way.footprint.get(device, 0) for way in chosen) <= room[device] for device in room)


def words(room: int, *wishes: ModelDemand, most: int = 0) -> str:
    return together_words(fit_together({A: room}, wishes, most=most), wishes, most=most)


def test_it_is_told_in_words():
    x, y = wish("x", 8, 6), wish("y", 4, 3)
    assert words(12, x, y) == "x and y fit together, at the contexts they ask for: x with 8192, y with 8192."
    assert words(9, x, y) == (
        "x and y fit together with smaller contexts only: x with 4096 (reduced), y with 4096 (reduced)."
    )
    assert words(6, x, y) == (
        "x and y do not fit together, not even with the smallest contexts. "
        "What does fit together: y with 8192 alone; x with 4096 (reduced) alone."
    )
    assert words(1, x, y).endswith("None of them fits even alone.")
    assert words(1, x) == "x does not fit, not even with the smallest contexts."
    assert "scheduler.models_max is 1" in words(20, x, y, most=1)
    rivals = wish("x", 1, exclusive="g"), wish("y", 1, exclusive="g")
    assert "the configuration excludes x beside y" in words(20, *rivals)
    many = [wish(f"m{n}", 1) for n in range(EXACT_LIMIT + 1)]
    assert words(3, *many).startswith("No way was found to load m0, ")
