"""The judgement on a child that requests wait for, look by look."""

from __future__ import annotations

import dataclasses

import pytest

from router.supervisor.stall import SPINNING_FACTOR, ProgressSample, Stall, Traffic
from tests.traffic import passage

BOUND = 10.0


def stall_after(looks: list[ProgressSample], *, step: float = 1.0, longest: float = 1.5) -> Stall:
    stall = Stall(ProgressSample(), 0.0)
    for number, signs in enumerate(looks, start=1):
        stall.look(signs, number * step, longest_step_seconds=longest)
    return stall


def test_a_child_that_does_nothing_is_stuck_when_its_time_is_over_and_not_before():
    assert stall_after([ProgressSample()] * 9).verdict(BOUND) is None
    verdict = stall_after([ProgressSample()] * 10).verdict(BOUND)
    assert verdict == "stuck: it neither answered nor worked for 10 s"


@pytest.mark.parametrize(
    "sign",
    [
        {"begun": 1},
        {"moved_bytes": 1},
        {"log_bytes": 1},
        {"cpu_seconds": 0.02},
        {"io_bytes": 1 << 20},
        {"major_faults": 1},
        {"slots": b"further"},
        {"is_between_requests": True},
    ],
    ids=lambda sign: next(iter(sign)),
)
def test_a_single_sign_of_work_begins_its_time_anew(sign):
    idle = [ProgressSample()] * 9
    assert stall_after([*idle, ProgressSample(**sign), ProgressSample(**sign)]).verdict(BOUND) is None


def test_a_long_prompt_that_uses_the_processor_and_says_nothing_is_work():
    looks = [ProgressSample(cpu_seconds=number * 0.5) for number in range(1, 200)]
    assert stall_after(looks).verdict(BOUND) is None


def test_waking_up_now_and_then_is_not_work():
    looks = [ProgressSample(cpu_seconds=number * 0.001, io_bytes=number * 100) for number in range(1, 11)]
    assert stall_after(looks).verdict(BOUND) is not None


def test_a_child_that_spins_for_ever_without_anything_to_show_is_stuck_too():
    count = int(BOUND * SPINNING_FACTOR)
    looks = [ProgressSample(cpu_seconds=float(number)) for number in range(1, count + 1)]
    assert stall_after(looks[:-1]).verdict(BOUND) is None
    verdict = stall_after(looks).verdict(BOUND)
    assert verdict == "stuck: it was busy for 300 s, and nothing came of it"


def test_slots_that_get_further_are_fruit_and_an_answer_that_is_the_same_is_not():
    same = [ProgressSample(slots=b"one")] * 11
    assert stall_after(same).verdict(BOUND) is not None
    further = [ProgressSample(slots=b"%d" % number) for number in range(11)]
    assert stall_after(further).verdict(BOUND) is None


def test_an_answer_that_is_missing_is_not_a_change():
    looks = [ProgressSample(slots=b"one" if number % 2 else None) for number in range(12)]
    assert stall_after(looks).verdict(BOUND) is not None


def test_a_router_that_was_stopped_itself_does_not_blame_the_child():
    stall = Stall(ProgressSample(), 0.0)
    stall.look(ProgressSample(), 3600.0, longest_step_seconds=1.5)
    assert stall.verdict(BOUND) is None
    assert stall.idle_seconds == 1.5


def test_traffic_is_counted_as_long_as_requests_are_there():
    traffic = Traffic()
    with passage(traffic, "a#1") as one:
        with passage(traffic, "a#1") as two, passage(traffic, "b#1"):
            two.moved_bytes += 5
            assert dataclasses.astuple(traffic.flows["a#1"])[:5] == (2, 0, 2, 5, None)
            assert set(traffic.flows) == {"a#1", "b#1"}
        assert dataclasses.astuple(traffic.flows["a#1"])[:5] == (1, 0, 2, 5, None)
        one.verdict = "stuck"
        assert two.verdict == "stuck"
    assert not traffic.flows
