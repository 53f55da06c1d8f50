"""The tests of the core catch faults: each is seeded into a copy, and its tests must fail there."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.scheduler.mutations import FAULTS, Fault, survives


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_the_tests_catch(fault: Fault, tmp_path: Path) -> None:
    assert survives(fault, tmp_path) is None


def test_the_list_is_long_enough_and_names_each_fault_once() -> None:
    assert len(FAULTS) >= 15
    assert len({fault.name for fault in FAULTS}) == len(FAULTS)
