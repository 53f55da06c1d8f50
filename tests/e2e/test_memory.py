"""The proof that memory is right, in small: `bench/memory_seeds` does the same with sixty seeds."""

from __future__ import annotations

from collections.abc import Mapping

import pytest

from bench.memory_audit import Admission as Start
from bench.memory_audit import Holding, holdings, judge
from bench.memory_machine import Admission
from bench.memory_seeds import is_right, run_seeds, summary
from bench.memory_work import draw
from tests.stub_nvml.state import Taking

MIB = 1 << 20
MARGIN = 1000 * MIB


async def test_random_work_never_runs_out_of_memory_and_never_breaks_a_margin_by_our_fault() -> None:
    outcomes = await run_seeds(range(4), Admission.LEDGER, jobs=4, seconds=2.0, requests=30)
    found = summary(outcomes)
    said = [line for one in outcomes for line in (*one.verdict.blamed, *one.broken)]
    assert is_right(outcomes), (found, said)
    assert found["requests"] == 4 * 30
    assert found["out of memory, explained by others"] == 0, "the others left alone what was promised"
    assert found["served"] > 4 * 30 / 2 and found["loads ready"] >= 4 * 4, found


async def test_the_same_work_admitted_by_file_size_does_run_out_of_memory() -> None:
    outcomes = await run_seeds(range(2), Admission.FILE_SIZE, jobs=2, seconds=2.0, requests=30)
    found = summary(outcomes)
    assert found["out of memory, our fault"] > 0 and found["margin broken, our fault"] > 0, found
    assert not is_right(outcomes)


def test_a_seed_draws_the_same_work_again_and_another_seed_does_not() -> None:
    assert draw(7) == draw(7) != draw(8)


# --- the auditor ------------------------------------------------------------------------------------------

OURS, OTHER = 100, 200


def verdict_on(
    *takings: Taking, closed: Mapping[int, tuple[float, float]] | None = None, starts: tuple[Start, ...] = ()
) -> dict[str, int]:
    closed = closed or {}
    held = holdings(takings, closed, lag_seconds=0.5)
    found = judge(takings, closed.keys(), held, starts, {"gpu": 0, "other": 1}, MARGIN)
    names = ("out_of_memory", "out_of_memory_explained", "violations", "violations_explained")
    return {name: value for name in names if (value := getattr(found, name))}


def took(at: float, left_mib: int, *, pid: int = OURS, mib: int = 10, is_granted: bool = True) -> Taking:
    return Taking(at, pid, 0, mib * MIB, left_mib * MIB, is_granted)


def test_an_allocation_that_leaves_the_margin_is_right() -> None:
    assert verdict_on(took(1, 1000), took(2, 1001)) == {}


def test_one_that_leaves_less_is_our_fault_once_per_child_and_a_refused_one_each_time() -> None:
    assert verdict_on(took(1, 999), took(2, 998)) == {"violations": 1}
    assert verdict_on(took(1, 999), took(2, 999, pid=101)) == {"violations": 2}
    refused = took(2, -1, is_granted=False)
    assert verdict_on(refused, refused) == {"out_of_memory": 2}


@pytest.mark.parametrize(
    ("measured_at", "expected"), [(0.5, "violations_explained"), (1.5, "violations")], ids=["later", "before"]
)
def test_what_another_program_took_explains_it_only_after_our_last_admission(
    measured_at: float, expected: str
) -> None:
    stranger = took(1, 700, pid=OTHER, mib=300)
    start = Start("gpu", measured_at, measured_at + 0.1)
    found = verdict_on(stranger, took(2, 700, mib=5), closed={OTHER: (9, 9)}, starts=(start,))
    assert found == {expected: 1}
    elsewhere = Start("other", 1.5, 1.6)
    found = verdict_on(
        stranger, took(2, 700, mib=5), closed={OTHER: (9, 9)}, starts=(Start("gpu", 0.5, 0.6), elsewhere)
    )
    assert found == {"violations_explained": 1}


def test_others_explain_no_more_than_they_took_and_nothing_once_it_is_back() -> None:
    start = Start("gpu", 0.5, 0.6)
    stranger = took(1, 700, pid=OTHER, mib=300)
    assert verdict_on(stranger, took(2, 699), closed={OTHER: (9, 9)}, starts=(start,)) == {"violations": 1}
    # Given back at 2, reported as free at 2.5.
    late = took(2.4, 700)
    assert verdict_on(stranger, late, closed={OTHER: (2, 2)}, starts=(start,)) == {"violations_explained": 1}
    later = took(2.6, 700)
    assert verdict_on(stranger, later, closed={OTHER: (2, 2)}, starts=(start,)) == {"violations": 1}


def test_what_came_back_while_it_was_decided_is_not_held_against_those_who_take_it_again() -> None:
    start = Start("gpu", 1.0, 3.0)  # measured when it was there, or when it was not: nobody knows
    first = took(0.5, 700, pid=OTHER, mib=300)
    again = took(4, 700, pid=OTHER + 1, mib=300)
    closed = {OTHER: (1.2, 1.3), OTHER + 1: (9.0, 9.0)}
    assert verdict_on(first, again, took(5, 700), closed=closed, starts=(start,)) == {
        "violations_explained": 1
    }
    assert Holding(0, 300 * MIB, 0.5, 1.7, 1.8) in holdings([first], closed, 0.5)
