"""The five policies: whom each ranks lowest, what expires, who is never evicted."""

from __future__ import annotations

import pytest

from router.scheduler.policy import POLICIES, Candidate, make_policy


def candidate(**more: float) -> Candidate:
    values = {"last_used": 0.0, "load_seconds": 5.0, "requests_per_second": 0.01, "bytes": 1 << 30, **more}
    return Candidate("m", **values)  # type: ignore[arg-type]


def test_every_policy_of_the_configuration_exists_under_its_name() -> None:
    assert set(POLICIES) == {"lru", "no-evict", "ttl", "lru-ttl", "cost"}
    assert all(make_policy(name).name == name for name in POLICIES)


@pytest.mark.parametrize("name", ["lru", "lru-ttl"])
def test_lru_ranks_by_the_end_of_the_last_use_alone(name: str) -> None:
    rank = make_policy(name).rank
    old, young = candidate(last_used=1.0, load_seconds=90.0), candidate(last_used=2.0, load_seconds=0.1)
    assert rank(old, 9.0) < rank(young, 9.0)  # type: ignore[operator]


@pytest.mark.parametrize(
    ("name", "ttl"), [("lru", None), ("no-evict", None), ("ttl", 60.0), ("lru-ttl", 60.0), ("cost", None)]
)
def test_only_the_ttl_policies_let_a_model_expire(name: str, ttl: float | None) -> None:
    assert make_policy(name, ttl=60.0).ttl == ttl


@pytest.mark.parametrize(
    ("name", "evicts", "refuses"), [("no-evict", False, True), ("ttl", False, False), ("lru", True, False)]
)
def test_who_evicts_and_who_refuses_at_once(name: str, evicts: bool, refuses: bool) -> None:
    policy = make_policy(name)
    assert (policy.evicts, policy.refuses_when_full) == (evicts, refuses)
    assert (policy.rank(candidate(), 0.0) is not None) == evicts


def test_cost_is_the_expected_time_of_reloading() -> None:
    rank = make_policy("cost").rank
    base = rank(candidate(), 0.0)
    assert base is not None
    assert base < rank(candidate(load_seconds=50.0), 0.0)  # type: ignore[operator]
    assert base < rank(candidate(requests_per_second=0.1), 0.0)  # type: ignore[operator]
    assert rank(candidate(requests_per_second=0.0), 0.0) == 0.0
    assert rank(candidate(requests_per_second=1e6), 0.0) == pytest.approx(5.0)
