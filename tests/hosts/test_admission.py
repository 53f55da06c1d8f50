"""The arithmetic of a host, without processes or devices."""

from __future__ import annotations

from dataclasses import replace

import pytest

from router.config import DeviceConfig, MemoryConfig
from router.hosts.admission import Admission, Claim
from router.memory.devices import DeviceInfo, Sample
from router.scheduler.types import Placement

GIB = 1 << 30
GPU, HOST = "local/cuda:GPU-1", "local/host"


def info(device: str, free: int | None = 20 * GIB, pool: str = "", error: str | None = None) -> DeviceInfo:
    return DeviceInfo(
        id=device,
        kind=device.partition(":")[0],
        label=f"{device.partition(':')[0]}:0 A Card",
        uuid=device.partition(":")[2],
        total_bytes=24 * GIB,
        free_bytes=free,
        reserved_bytes=0,
        utilisation_percent=None,
        temperature_celsius=None,
        error=error,
        pool=pool or device,
    )


def sample(*devices: DeviceInfo, used=None, attributed=True) -> Sample:
    return Sample(
        1.0, {d.id: d for d in devices}, used or {}, {d.id: attributed for d in devices}, ("a note",)
    )


def admission(**memory) -> Admission:
    return Admission("local", MemoryConfig(**{"margin_mib": 1024, **memory}))


def claim(size: int, instance: str = "a#1", **fields) -> Claim:
    return Claim(instance, Placement("local", {GPU: size}), **fields)


def refusal(need: int, one: Sample, *loading: Claim, **memory) -> str | None:
    house = admission(**memory)
    measured = house.measurement(one, loading, 0)
    return house.refusal(Placement("local", {GPU: need}), measured, one, loading)


def test_what_is_still_promised_to_one_that_serves_is_kept_for_it_until_that_is_corrected():
    one = sample(info("cuda:GPU-1"), used={7: {"cuda:GPU-1": 4 * GIB}})
    grows = claim(6 * GIB, pid=7, is_ready=True)
    assert refusal(17 * GIB, one, grows) is None
    assert refusal(17 * GIB + 1, one, grows) is not None
    grows.corrected = {GPU: 5 * GIB}
    assert refusal(18 * GIB, one, grows) is None
    assert refusal(18 * GIB + 1, one, grows) is not None


def test_it_fits_to_the_last_byte_and_no_further():
    one = sample(info("cuda:GPU-1"))
    assert refusal(19 * GIB, one) is None
    assert refusal(19 * GIB + 1, one) is not None


def test_what_a_loading_child_has_taken_is_not_promised_any_more():
    loading = claim(10 * GIB, pid=7)
    assert refusal(9 * GIB + 1, sample(info("cuda:GPU-1")), loading) is not None
    taken = sample(info("cuda:GPU-1", free=14 * GIB), used={7: {"cuda:GPU-1": 6 * GIB}})
    assert refusal(9 * GIB, taken, loading) is None
    assert refusal(9 * GIB + 1, taken, loading) is not None


def test_a_child_that_took_more_than_it_reserved_gives_nothing_back():
    greedy = claim(1 * GIB, pid=7)
    one = sample(info("cuda:GPU-1", free=14 * GIB), used={7: {"cuda:GPU-1": 6 * GIB}})
    assert refusal(13 * GIB, one, greedy) is None
    assert refusal(13 * GIB + 1, one, greedy) is not None


def test_without_attribution_what_it_took_while_loading_counts_twice():
    one = sample(info("cuda:GPU-1", free=14 * GIB), attributed=False)
    assert refusal(3 * GIB, one, claim(10 * GIB, pid=7)) is None
    assert refusal(3 * GIB + 1, one, claim(10 * GIB, pid=7)) is not None


def test_a_margin_of_zero_admits_everything_and_a_need_of_zero_always_fits():
    assert refusal(1000 * GIB, sample(info("cuda:GPU-1", free=0)), margin_mib=0) is None
    assert refusal(1000 * GIB, sample(info("cuda:GPU-1", free=None)), margin_mib=0) is None
    assert refusal(0, sample(info("cuda:GPU-1", free=None))) is None


def test_an_unhealthy_device_refuses_with_its_reason():
    lost = sample(info("cuda:GPU-1", free=None, error="GPU is lost"))
    assert refusal(1, lost) == "cuda:0 A Card is unhealthy: GPU is lost"


@pytest.mark.parametrize("name", ["cuda:GPU-1", "GPU-1", "gpu-1", "cuda:0", "cuda:0 A Card"])
def test_a_device_is_configured_by_any_of_its_names(name):
    one = sample(info("cuda:GPU-1"), info("host"))
    own_margin = admission(devices={name: DeviceConfig(margin_mib=5)}).devices(one)
    assert {device.id: device.margin for device in own_margin} == {GPU: 5 << 20, HOST: 1024 << 20}
    switched_off = admission(devices={name: DeviceConfig(enabled=False)})
    assert [device.id for device in switched_off.devices(one)] == [HOST]
    assert set(switched_off.measurement(one, (), 0).free) == {HOST}
    assert (
        refusal(1, one, devices={name: DeviceConfig(enabled=False)}) == f"{GPU} is not there, or switched off"
    )


def test_a_gpu_that_shares_the_machines_memory_is_no_pool_of_its_own():
    one = sample(info("cuda:GPU-1", pool="host"), info("host"), used={7: {"host": 3}})
    assert [device.id for device in admission().devices(one)] == [HOST]
    assert set(admission().infos(one)) == {GPU, HOST}, "but children are told of it"
    measured = admission().measurement(one, [claim(1, pid=7)], 0)
    assert measured.used == {"a#1": {HOST: 3}}


def test_without_attribution_a_ready_child_counts_with_what_the_device_lost():
    ready = claim(5 * GIB, pid=7, is_ready=True, free_before={GPU: 20 * GIB}, changes=3)
    one = sample(info("cuda:GPU-1", free=14 * GIB), attributed=False)
    assert admission().measurement(one, [ready], 3).used["a#1"] == {GPU: 6 * GIB}
    later = replace_free(one, 1 * GIB)
    assert admission().measurement(later, [ready], 4).used["a#1"] == {GPU: 6 * GIB}, "once known, it stays"


@pytest.mark.parametrize("changes", [2, None])
def test_without_attribution_and_with_company_the_reservation_is_taken_for_true(changes):
    ready = claim(5 * GIB, pid=7, is_ready=True, free_before={GPU: 20 * GIB}, changes=changes)
    one = sample(info("cuda:GPU-1", free=3 * GIB), attributed=False)
    assert admission().measurement(one, [ready], 3).used["a#1"] == {GPU: 5 * GIB}


def test_where_a_stranger_gave_memory_back_meanwhile_nothing_is_taken():
    ready = claim(5 * GIB, pid=7, is_ready=True, free_before={GPU: 2 * GIB}, changes=3)
    one = sample(info("cuda:GPU-1", free=14 * GIB), attributed=False)
    assert admission().measurement(one, [ready], 3).used["a#1"] == {}


def test_what_a_driver_told_of_a_child_is_told_apart_from_what_is_taken_for_true():
    one = sample(info("cuda:GPU-1"), info("host"), used={7: {"cuda:GPU-1": 4 * GIB}})
    placed = Placement("local", {GPU: 5 * GIB, HOST: GIB})
    child = Claim("a#1", placed, is_ready=True, pid=7, free_before={GPU: 20 * GIB}, changes=3)
    measured = admission().measurement(one, [child], 3)
    assert measured.told["a#1"] == {GPU: 4 * GIB, HOST: 0}
    assert measured.lost["a#1"] == {}
    silent = replace(one, attributed={"cuda:GPU-1": False, "host": True})
    child = Claim("a#1", placed, is_ready=True, pid=7, free_before={GPU: 26 * GIB}, changes=3)
    measured = admission().measurement(silent, [child], 3)
    assert (measured.told["a#1"], measured.lost["a#1"]) == ({HOST: 0}, {GPU: 6 * GIB})


def test_a_difference_that_others_had_a_part_in_is_nothing_to_learn_from():
    silent = sample(info("cuda:GPU-1", free=14 * GIB), attributed=False)
    for changes in (2, None):
        child = claim(5 * GIB, pid=7, is_ready=True, free_before={GPU: 20 * GIB}, changes=changes)
        measured = admission().measurement(silent, [child], 3)
        assert measured.used["a#1"] == {GPU: 5 * GIB}
        assert measured.told["a#1"] == measured.lost["a#1"] == {}


def test_notes_and_time_are_passed_on():
    measured = admission().measurement(sample(info("host")), (), 0)
    assert (measured.taken_at, measured.notes) == (1.0, ("a note",))


def replace_free(one: Sample, free: int) -> Sample:
    return replace(one, devices={"cuda:GPU-1": info("cuda:GPU-1", free=free)})


def test_a_measurement_tells_people_every_device_as_it_was_found_and_why_it_is_unhealthy():
    lost = info("cuda:GPU-1", free=None, error="the GPU is lost")
    measured = admission().measurement(sample(lost, info("host")), (), 0)
    assert measured.free[GPU] is None
    assert measured.infos[GPU].error == "the GPU is lost"
    assert measured.infos.keys() == {GPU, HOST}
    assert measured.notes == ("a note",)
