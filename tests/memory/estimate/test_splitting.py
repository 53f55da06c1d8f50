"""Layers are divided so that every GPU fills to about the same part."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from router.memory.estimate import LoadSettings, Prepared, estimate
from router.memory.estimate.splitting import capacity, divide, divide_layers, proportional
from tests.memory.estimate.made_up import GIB, gpu, llama, on_gpus


def test_equal_devices_get_equal_parts() -> None:
    assert divide([10] * 8, [0, 0], [100, 100]) == (4, 4)


def test_a_device_that_is_half_full_already_gets_less() -> None:
    assert divide([10] * 9, [0, 30], [100, 100]) == (6, 3)


def test_the_larger_device_gets_more() -> None:
    assert divide([10] * 9, [0, 0], [200, 100]) == (6, 3)


def test_no_division_where_they_do_not_fit() -> None:
    assert divide([10] * 9, [0, 0], [40, 40]) is None
    assert divide([10] * 2, [0, 100], [100, 100]) is None


@given(
    costs=st.lists(st.integers(1, 50), min_size=3, max_size=60),
    devices=st.lists(st.tuples(st.integers(0, 100), st.integers(1, 1000)), min_size=1, max_size=3),
)
def test_a_division_fits_and_leaves_no_layer_out(costs: list[int], devices: list[tuple[int, int]]) -> None:
    fixed, capacities = [d[0] for d in devices], [d[1] for d in devices]
    counts = divide(costs, fixed, capacities)
    if counts is None:
        return
    assert sum(counts) == len(costs)
    start = 0
    for count, base, limit in zip(counts, fixed, capacities, strict=True):
        assert count >= 1
        assert base + sum(costs[start : start + count]) <= limit
        start += count


@given(gibs=st.lists(st.integers(2, 80), min_size=1, max_size=6), n=st.integers(6, 100))
def test_proportional_parts_add_up(gibs: list[int], n: int) -> None:
    counts = proportional([gpu(i, gib) for i, gib in enumerate(gibs)], n)
    assert sum(counts) == n
    assert min(counts) >= 1


def test_a_real_model_is_divided_with_all_that_is_on_each_gpu() -> None:
    prepared = Prepared.of(
        llama(n_layers=40, n_embd=4096, n_ff=11_008, n_head=32, n_head_kv=32), LoadSettings()
    )
    gpus = (gpu(0, 16), gpu(1, 12))
    layout = on_gpus(*gpus, n_gpu_layers=41, ctx_size=8192)
    counts = divide_layers(prepared, layout)
    assert counts is not None
    found = estimate(prepared, on_gpus(*gpus, n_gpu_layers=41, split=counts, ctx_size=8192)).footprint
    fills = [found[g.id] / capacity(g) for g in gpus]
    assert max(fills) <= 1
    assert max(fills) - min(fills) < 0.06, "no finer than a layer, which is 3 % here"


def test_too_few_layers_for_so_many_gpus() -> None:
    prepared = Prepared.of(llama(n_layers=2), LoadSettings())
    layout = on_gpus(*(gpu(i, 8) for i in range(4)), n_gpu_layers=3)
    assert divide_layers(prepared, layout) is None


def test_a_model_larger_than_all_gpus_is_not_divided() -> None:
    prepared = Prepared.of(llama(n_layers=40, n_embd=8192, n_ff=28_672, n_head=64), LoadSettings())
    assert prepared.metadata.tensor_bytes > 30 * GIB
    assert divide_layers(prepared, on_gpus(gpu(0, 16), gpu(1, 12), n_gpu_layers=41)) is None
