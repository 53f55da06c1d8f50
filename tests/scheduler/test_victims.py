"""Whom a newcomer turns out: enough on every short device, nobody needlessly, the least valuable first."""

from __future__ import annotations

from itertools import combinations

from hypothesis import given
from hypothesis import strategies as st

from router.scheduler.victims import BUSY, IDLE, EvictionCandidate, Need, choose

candidates = st.lists(
    st.tuples(st.integers(0, 9), st.integers(0, 9), st.integers(2, 3), st.integers(0, 5)),
    min_size=1,
    max_size=7,
).map(
    lambda rows: [
        EvictionCandidate(f"m#{i}", {"x": x, "y": y}, group, float(rank))
        for i, (x, y, group, rank) in enumerate(rows)
    ]
)
needs = st.tuples(st.integers(0, 20), st.integers(0, 20), st.integers(0, 2)).map(
    lambda n: Need({d: b for d, b in (("x", n[0]), ("y", n[1])) if b}, n[2])
)


def ids(chosen: tuple[EvictionCandidate, ...] | None) -> list[str] | None:
    return None if chosen is None else sorted(one.id for one in chosen)


@given(candidates, needs, st.booleans())
def test_the_chosen_suffice_and_none_of_them_is_needless(
    all_of_them: list[EvictionCandidate], need: Need, additive: bool
) -> None:
    chosen = choose(all_of_them, need, additive=additive)
    if chosen is None:
        assert not need.met_by(all_of_them)
        return
    assert need.met_by(chosen)
    assert all(not need.met_by([o for o in chosen if o is not one]) for one in chosen)


@given(candidates, needs)
def test_additive_ranks_give_the_cheapest_sum_with_as_few_busy_ones_as_possible(
    all_of_them: list[EvictionCandidate], need: Need
) -> None:
    chosen = choose(all_of_them, need, additive=True)
    if chosen is None:
        return
    worst = max((one.group for one in chosen), default=IDLE)

    def cost(some: tuple[EvictionCandidate, ...]) -> tuple[int, float]:
        return (sum(one.group == BUSY for one in some), sum(one.rank for one in some))

    sets = (s for n in range(len(all_of_them) + 1) for s in combinations(all_of_them, n))
    best = min(cost(s) for s in sets if need.met_by(s) and all(one.group <= worst for one in s))
    assert cost(chosen) == best


def test_the_least_recently_used_leaves_first_whatever_its_size() -> None:
    old, big = EvictionCandidate("old", {"x": 5}, 2, 1.0), EvictionCandidate("big", {"x": 9}, 2, 2.0)
    assert ids(choose([big, old], Need({"x": 4}))) == ["old"]


def test_one_that_frees_nothing_where_it_is_short_stays() -> None:
    elsewhere, here = (
        EvictionCandidate("elsewhere", {"y": 9}, 2, 1.0),
        EvictionCandidate("here", {"x": 9}, 2, 2.0),
    )
    assert ids(choose([elsewhere, here], Need({"x": 4}))) == ["here"]


def test_a_small_old_one_is_spared_when_the_newer_is_needed_and_suffices() -> None:
    small, large = EvictionCandidate("small", {"x": 1}, 2, 1.0), EvictionCandidate("large", {"x": 9}, 2, 2.0)
    assert ids(choose([small, large], Need({"x": 9}))) == ["large"]


def test_room_must_be_made_on_every_device() -> None:
    on_x, on_y = EvictionCandidate("on_x", {"x": 9}, 2, 1.0), EvictionCandidate("on_y", {"y": 9}, 2, 2.0)
    assert ids(choose([on_x, on_y], Need({"x": 4, "y": 4}))) == ["on_x", "on_y"]
    assert choose([on_x], Need({"x": 4, "y": 4})) is None


def test_idle_ones_go_before_any_busy_one_is_drained() -> None:
    idle = [EvictionCandidate(f"idle{n}", {"x": 3}, 2, 9.0) for n in range(3)]
    busy = EvictionCandidate("busy", {"x": 9}, 3, 0.0)
    for additive in (False, True):
        assert ids(choose([busy, *idle], Need({"x": 9}), additive=additive)) == ["idle0", "idle1", "idle2"]


def test_those_who_must_go_count_and_may_be_enough() -> None:
    rival, other = EvictionCandidate("rival", {"x": 5}, 2, 9.0), EvictionCandidate("other", {"x": 5}, 2, 1.0)
    assert ids(choose([rival, other], Need({"x": 4}), always=[rival])) == ["rival"]
    assert ids(choose([rival, other], Need({"x": 9}), always=[rival])) == ["other", "rival"]
    assert ids(choose([rival], Need({}), always=[rival])) == ["rival"]


def test_a_limit_on_the_number_is_met_by_anyone() -> None:
    first, second = (
        EvictionCandidate("first", {"x": 1}, 2, 1.0),
        EvictionCandidate("second", {"y": 1}, 2, 2.0),
    )
    assert ids(choose([second, first], Need({}, slots=1))) == ["first"]


def test_among_many_candidates_cost_is_weighed_by_the_bytes_it_frees() -> None:
    crowd = [EvictionCandidate(f"small{n:02}", {"x": 1}, 2, 1.0) for n in range(20)]
    large = EvictionCandidate("large", {"x": 10}, 2, 3.0)
    assert ids(choose([*crowd, large], Need({"x": 10}), additive=True)) == ["large"]
