"""Placements: one GPU, else a split, else a part, else the host; best first, and none that could never hold
it."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from router.memory.estimate import (
    Companions,
    DeviceBudget,
    EstimatedPlacement,
    Layout,
    LoadSettings,
    Prepared,
    estimate,
    placements,
)
from router.memory.estimate.splitting import capacity
from tests.memory.estimate.made_up import GIB, HOST, gpu, llama, metadata

# 6.6 GiB of weights, and 0.25 GiB of cache for 8192 cells.
MODEL = llama(n_layers=32, n_embd=4096, n_ff=5504, n_head=32, n_head_kv=2, n_ctx_train=131_072)
N = 33


def place(*devices: DeviceBudget, host: DeviceBudget = HOST, **kwargs) -> tuple[EstimatedPlacement, ...]:
    options = kwargs.pop("settings", LoadSettings())
    return placements(MODEL, options, (*devices, host), **kwargs)


def where(found: tuple[EstimatedPlacement, ...], tier: int) -> list[tuple[str, ...]]:
    return [tuple(d.split("/")[1] for d in p.devices) for p in found if p.tier == tier]


def test_the_model_is_as_large_as_these_tests_assume() -> None:
    assert 6 * GIB < MODEL.tensor_bytes < 7 * GIB


def test_every_gpu_that_could_hold_it_is_a_placement_of_its_own() -> None:
    found = place(gpu(0, 24), gpu(1, 6), gpu(2, 16))
    assert where(found, 0) == [("cuda:2",), ("cuda:0",)]
    assert all(p.n_gpu_layers == N and p.tensor_split == () for p in found if p.tier == 0)
    assert where(found, 1) == []
    assert where(found, 2) == []
    assert where(found, 3) == [("host",)]


def test_best_fit_leaves_the_least_and_spread_the_most() -> None:
    gpus = gpu(0, 24), gpu(1, 12), gpu(2, 16)
    assert where(place(*gpus), 0) == [("cuda:1",), ("cuda:2",), ("cuda:0",)]
    assert where(place(*gpus, preference="spread"), 0) == [("cuda:0",), ("cuda:2",), ("cuda:1",)]


def test_what_fits_now_comes_before_what_could_fit() -> None:
    assert where(place(gpu(0, 12, free_gib=4), gpu(1, 24), gpu(2, 16, free_gib=8)), 0) == [
        ("cuda:1",), ("cuda:2",), ("cuda:0",),
    ]  # fmt: skip


def test_margins_are_kept() -> None:
    needed = place(gpu(0, 24))[0].footprint["box/cuda:0"]
    just = DeviceBudget("box/cuda:0", "cuda", needed + GIB, needed + GIB, GIB)
    short = DeviceBudget("box/cuda:0", "cuda", needed + GIB - 1, needed + GIB, GIB)
    assert where(place(just), 0) == [("cuda:0",)]
    assert where(place(short), 0) == []


def test_a_split_is_offered_where_no_gpu_is_large_enough() -> None:
    found = place(gpu(0, 8), gpu(1, 4), gpu(2, 6))
    first = found[0]
    assert first.tier == 1
    assert first.n_gpu_layers == N == sum(first.tensor_split)
    assert all(len(p.devices) == 2 for p in found if p.tier == 1), "no more GPUs than are needed"
    for placement in found:
        for device in (gpu(0, 8), gpu(1, 4), gpu(2, 6)):
            assert placement.footprint.get(device.id, 0) <= capacity(device)


def test_a_split_takes_three_where_two_do_not_suffice() -> None:
    found = place(gpu(0, 5), gpu(1, 5), gpu(2, 5))
    assert where(found, 1) == [("cuda:0", "cuda:1", "cuda:2")]


def test_a_split_never_mixes_backends() -> None:
    assert where(place(gpu(0, 8), gpu(0, 8, kind="rocm")), 1) == []


def test_a_split_by_hand_is_kept() -> None:
    found = place(gpu(0, 24), gpu(1, 24), settings=LoadSettings(tensor_split=(0.75, 0.25)))
    assert where(found, 0) == []
    assert [(p.devices, p.tensor_split) for p in found if p.tier == 1] == [
        (("box/cuda:0", "box/cuda:1"), (25, 8))
    ]


def test_split_mode_none_forbids_a_split() -> None:
    assert where(place(gpu(0, 8), gpu(1, 8), settings=LoadSettings(split_mode="none")), 1) == []


def test_partial_offload_takes_as_many_layers_as_fit() -> None:
    found = place(gpu(0, 6))
    first = found[0]
    assert first.tier == 2
    assert 0 < first.n_gpu_layers < N
    prepared = Prepared.of(MODEL, LoadSettings())
    one_more = Layout(HOST, (gpu(0, 6),), first.n_gpu_layers + 1, (), first.ctx_size)
    assert estimate(prepared, one_more).footprint["box/cuda:0"] > capacity(gpu(0, 6))


def test_partial_offload_prefers_more_layers() -> None:
    found = place(gpu(0, 3), gpu(1, 4))
    layers = [p.n_gpu_layers for p in found if p.tier == 2]
    assert layers == sorted(layers, reverse=True)
    assert where(found, 2)[0] == ("cuda:1", "cuda:0"), "both together hold the most"
    assert sum(found[0].tensor_split) == found[0].n_gpu_layers


def test_a_fixed_number_of_layers_is_not_searched() -> None:
    found = place(gpu(0, 6), settings=LoadSettings(n_gpu_layers=10))
    assert [(p.tier, p.n_gpu_layers) for p in found] == [(0, 10), (3, 0)]


def test_without_a_gpu_the_host_is_tier_0() -> None:
    assert [(p.tier, p.devices, p.n_gpu_layers) for p in place()] == [(0, (HOST.id,), 0)]
    assert [p.tier for p in place(gpu(0, 24), settings=LoadSettings(n_gpu_layers=0))] == [0]


def test_the_preset_says_what_is_allowed() -> None:
    gpus = gpu(0, 6), gpu(1, 7)
    assert where(place(*gpus, allow=frozenset({"gpu", "host"})), 0) == []
    assert [p.tier for p in place(*gpus, allow=frozenset({"gpu", "host"}))] == [3]
    assert place(gpu(0, 24), allow=frozenset({"split"})) == ()
    assert {p.tier for p in place(*gpus, allow=frozenset({"partial"}))} == {2}


def test_only_the_devices_that_are_named_are_used() -> None:
    found = place(gpu(0, 24), gpu(1, 24), settings=LoadSettings(devices=("box/cuda:1",)))
    assert where(found, 0) == [("cuda:1",)]


def test_what_no_empty_machine_can_hold_has_no_placement() -> None:
    small = DeviceBudget("box/host", "host", 4 * GIB, 4 * GIB, GIB)
    assert place(gpu(0, 4), host=small) == ()


def test_a_refusal_can_have_the_numbers() -> None:
    small = DeviceBudget("box/host", "host", 4 * GIB, 4 * GIB, GIB)
    found = place(gpu(0, 4), host=small, must_fit=False)
    assert [p.tier for p in found] == [0, 3]
    assert found[0].footprint["box/cuda:0"] > 7 * GIB


def test_a_host_that_is_too_small_for_its_part_rules_a_placement_out() -> None:
    crowded = DeviceBudget("box/host", "host", 1 * GIB, 1 * GIB, GIB)
    assert place(gpu(0, 24), host=crowded) == ()


def test_the_host_must_be_there() -> None:
    with pytest.raises(ValueError, match="host"):
        placements(MODEL, LoadSettings(), (gpu(0, 24),))


# --- context
# ---------------------------------------------------------------------------------------------------------


def test_the_default_context_is_8192_or_what_the_model_was_trained_on() -> None:
    assert place(gpu(0, 24))[0].ctx_size == 8192
    small = llama(n_ctx_train=2048)
    assert placements(small, LoadSettings(), (HOST,))[0].ctx_size == 2048


def test_auto_is_the_largest_context_that_fits_with_its_margin() -> None:
    auto = LoadSettings(ctx_size="auto")
    device = gpu(0, 12)
    best = place(device, settings=auto)[0]
    assert best.ctx_size % 256 == 0
    assert best.footprint[device.id] <= capacity(device)
    prepared = Prepared.of(MODEL, auto)
    more = estimate(prepared, Layout(HOST, (device,), N, (), best.ctx_size + 256))
    assert more.footprint[device.id] > capacity(device)


def test_auto_stops_at_the_training_context() -> None:
    assert place(gpu(0, 80), settings=LoadSettings(ctx_size="auto"))[0].ctx_size == 131_072
    odd = llama(n_ctx_train=5000)
    assert placements(odd, LoadSettings(ctx_size="auto"), (HOST,))[0].ctx_size == 5000


def test_auto_tries_another_placement_before_a_tiny_context() -> None:
    needed = place(gpu(0, 24), settings=LoadSettings(ctx_size=4096))[0].footprint["box/cuda:0"]
    tight = DeviceBudget("box/cuda:0", "cuda", needed - 1 + GIB, needed + GIB, GIB)
    found = place(tight, settings=LoadSettings(ctx_size="auto"))
    assert found[0].tier == 2
    assert found[0].ctx_size >= 4096


def test_auto_prefers_the_larger_context() -> None:
    found = place(gpu(0, 12), gpu(1, 24), settings=LoadSettings(ctx_size="auto"))
    sizes = [p.ctx_size for p in found if p.tier == 0]
    assert sizes == sorted(sizes, reverse=True)


def test_a_header_that_is_not_understood_is_placed_by_its_size() -> None:
    strange = metadata("quantum", {}, file_size_bytes=10 * GIB)
    found = placements(strange, LoadSettings(ctx_size="auto"), (gpu(0, 24), gpu(1, 8), HOST))
    assert [(p.tier, p.devices[0]) for p in found] == [(0, "box/cuda:0"), (3, HOST.id)]
    assert found[0].estimate.is_guess


# --- any machine
# -----------------------------------------------------------------------------------------------------


@given(
    gibs=st.lists(st.tuples(st.floats(1, 40), st.floats(0, 1)), max_size=4),
    ctx=st.sampled_from([None, "auto", 16_384]),
    preference=st.sampled_from(["best-fit", "spread"]),
    draft=st.booleans(),
)
@settings(max_examples=60, deadline=None)
def test_every_placement_fits_an_empty_machine_and_says_how_it_is_started(
    gibs, ctx, preference, draft
) -> None:
    gpus = [gpu(i, gib, free_gib=gib * part) for i, (gib, part) in enumerate(gibs)]
    companions = Companions(draft=llama(n_layers=2) if draft else None)
    found = placements(MODEL, LoadSettings(ctx_size=ctx), (*gpus, HOST), preference, companions=companions)
    assert [p.tier for p in found] == sorted(p.tier for p in found)
    by_id = {d.id: d for d in (*gpus, HOST)}
    for placement in found:
        assert set(placement.devices) <= set(placement.footprint) <= set(by_id)
        assert all(size <= capacity(by_id[device]) for device, size in placement.footprint.items())
        assert placement.footprint == placement.estimate.footprint
        if len(placement.devices) > 1:
            assert len(placement.tensor_split) == len(placement.devices)
            assert sum(placement.tensor_split) == placement.n_gpu_layers
        else:
            assert placement.tensor_split == ()
        layout = Layout(
            HOST, tuple(by_id[d] for d in placement.devices if d != HOST.id), placement.n_gpu_layers,
            placement.tensor_split, placement.ctx_size,
        )  # fmt: skip
        again = estimate(Prepared.of(MODEL, LoadSettings(ctx_size=ctx), companions), layout)
        assert again.footprint == placement.footprint, "the flags alone give the same footprint"


# --- GPUs that share the host's memory, and resorts ---


def shared(gib: float, limit: float | None = None) -> DeviceBudget:
    """A GPU whose memory is the host's, of which it may have up to `limit`."""
    most = int((gib if limit is None else limit) * GIB)
    return DeviceBudget("box/cuda:0", "cuda", most, most, 2 * GIB, pool="box/host")


def small_host(gib: float) -> DeviceBudget:
    return DeviceBudget("box/host", "host", int(gib * GIB), int(gib * GIB), 2 * GIB)


def test_what_a_gpu_takes_of_the_hosts_memory_is_counted_there_once() -> None:
    whole, host_only = place(shared(64), host=small_host(64))
    assert (whole.devices, whole.n_gpu_layers, whole.tier) == (("box/cuda:0",), N, 0)
    assert host_only.devices == ("box/host",)
    assert set(whole.footprint) == {"box/host"}
    apart = place(gpu(0, 64), host=small_host(64))[0]
    assert whole.footprint["box/host"] == sum(apart.footprint.values())
    assert whole.estimate.on_device("box/cuda:0") == apart.footprint["box/cuda:0"]


def test_a_shared_memory_must_hold_both_parts_at_once() -> None:
    need = place(shared(64), host=small_host(64))[0].footprint["box/host"]
    just = (need + 2 * GIB) / GIB
    assert where(place(shared(just + 0.01), host=small_host(just + 0.01)), 0) == [("cuda:0",)]
    assert where(place(shared(just - 0.01), host=small_host(just - 0.01)), 0) == []


def test_a_limit_of_the_gpu_within_the_shared_memory_is_kept() -> None:
    """An APU may have a part of the memory only: some layers go to it, the rest is the host's."""
    found = place(shared(64, limit=7), host=small_host(64))
    assert where(found, 0) == []
    (part,) = (p for p in found if p.tier == 2)
    assert 0 < part.n_gpu_layers < N
    assert part.estimate.on_device("box/cuda:0") <= 5 * GIB


def test_a_gpu_with_memory_of_its_own_is_preferred_and_never_split_with_one_without() -> None:
    apu = DeviceBudget("box/cuda:9", "cuda", 64 * GIB, 64 * GIB, 2 * GIB, pool="box/host")
    assert {d for p in place(gpu(0, 24), apu) for d in p.devices} == {"box/cuda:0", "box/host"}
    assert {d for p in place(gpu(0, 4), apu) for d in p.devices} <= {"box/cuda:0", "box/host"}
    named = place(gpu(0, 24), apu, settings=LoadSettings(devices=("box/cuda:9",)))
    assert named[0].devices == ("box/cuda:9",)


def test_slower_ways_leave_room_for_what_was_not_estimated() -> None:
    device = gpu(0, 12)
    whole = place(device)
    assert where(whole, 0) == [("cuda:0",)]
    slower = place(device, slower_than="gpu")
    assert [p.tier for p in slower] == [2, 3]
    assert 0 < slower[0].n_gpu_layers < N
    assert slower[0].footprint[device.id] <= capacity(device) * 4 // 5
    assert where(place(gpu(0, 12), gpu(1, 12), slower_than="gpu"), 1) != []
    assert [p.tier for p in place(gpu(0, 4), gpu(1, 6), slower_than="split")][-1] == 3
