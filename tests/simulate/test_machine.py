"""Machines: where a model may run and how long it takes to be there."""

from __future__ import annotations

import pytest

from router.simulate.machine import GIB, MACHINES, Spec
from tests.simulate.build import machine


def test_a_model_loads_in_its_startup_plus_its_size_at_two_gib_per_second():
    home = machine(a=20)
    assert home.load_seconds(home.spec("a")) == pytest.approx(11.2)
    assert home.models()["a"].load_seconds == pytest.approx(11.2)


def test_a_model_may_run_on_every_single_device_that_holds_it():
    two = machine(devices=(24, 12), small=6, large=20)
    assert [p.devices for p in two.models()["small"].placements] == [("sim/gpu0",), ("sim/gpu1",)]
    assert [p.devices for p in two.models()["large"].placements] == [("sim/gpu0",)]


def test_a_model_too_large_for_one_device_is_split_without_losing_a_byte():
    two = machine(devices=(12, 24), huge=30)
    (placement,) = two.models()["huge"].placements
    assert placement.devices == ("sim/gpu0", "sim/gpu1")
    assert sum(placement.footprint.values()) == 30 * GIB
    assert placement.footprint["sim/gpu1"] == 20 * GIB


def test_a_split_takes_no_more_devices_than_it_needs_and_may_take_any_of_them():
    four = machine(devices=(24, 24, 24, 12), huge=40)
    pairs = [p.devices for p in four.models()["huge"].placements]
    assert pairs == [("sim/gpu0", "sim/gpu1"), ("sim/gpu0", "sim/gpu2"), ("sim/gpu1", "sim/gpu2")]


def test_a_model_that_fits_nowhere_is_named():
    with pytest.raises(ValueError, match=r"huge \(40\.0 GiB\) fits no placement"):
        machine(huge=40).models()


def test_larger_models_are_slower_and_small_ones_are_not_infinitely_fast():
    small, large = Spec.of_size("s", 0.5), Spec.of_size("l", 20)
    assert (small.prefill_rate, small.decode_rate) == (6000, 150)
    assert (large.prefill_rate, large.decode_rate) == (1000, 24)


@pytest.mark.parametrize("name", MACHINES)
def test_every_named_machine_holds_each_of_its_models_but_not_all_at_once(name):
    named = MACHINES[name]
    assert set(named.models()) == {spec.name for spec in named.specs}
    assert sum(s.size_bytes for s in named.specs) > sum(d.total - d.margin for d in named.devices)
