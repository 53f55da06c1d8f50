"""Layers go to devices by llama.cpp's rule: the last ones to GPUs, along the cumulative split."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.memory.estimate.layout import layer_devices, split_shares
from tests.memory.estimate.made_up import gpu, on_gpus, on_host

A, B, C = gpu(0, 24), gpu(1, 12), gpu(2, 8)


def letters(devices: list[str]) -> str:
    return "".join(
        {"host": "h", "cuda:0": "A", "cuda:1": "B", "cuda:2": "C"}[d.split("/")[1]] for d in devices
    )


def test_without_gpus_everything_is_on_the_host() -> None:
    assert letters(layer_devices(on_host(), 4)) == "hhhhh"


@pytest.mark.parametrize(
    ("n_gpu_layers", "expected"), [(0, "hhhhh"), (1, "hhhhA"), (3, "hhAAA"), (5, "AAAAA"), (99, "AAAAA")]
)
def test_the_last_layers_are_offloaded_and_the_output_is_one_of_them(
    n_gpu_layers: int, expected: str
) -> None:
    assert letters(layer_devices(on_gpus(A, n_gpu_layers=n_gpu_layers), 4)) == expected


def test_whole_numbers_in_a_split_are_numbers_of_layers() -> None:
    layout = on_gpus(A, B, C, n_gpu_layers=10, split=(5, 3, 2))
    assert letters(layer_devices(layout, 9)) == "AAAAABBBCC"


def test_a_split_divides_what_is_offloaded() -> None:
    layout = on_gpus(A, B, n_gpu_layers=4, split=(3, 1))
    assert letters(layer_devices(layout, 7)) == "hhhhAAAB"


def test_a_device_with_weight_zero_gets_nothing() -> None:
    layout = on_gpus(A, B, C, split=(1, 0, 1))
    assert letters(layer_devices(layout, 7)) == "AAAACCCC"


def test_without_a_split_parts_are_equal() -> None:
    assert letters(layer_devices(on_gpus(A, B), 7)) == "AAAABBBB"
    assert split_shares(on_gpus(A, B)) == [0.5, 0.5]


@given(counts=st.lists(st.integers(1, 60), min_size=2, max_size=8))
def test_any_whole_split_gives_exactly_these_numbers_of_layers(counts: list[int]) -> None:
    gpus = [gpu(i, 8) for i in range(len(counts))]
    devices = layer_devices(on_gpus(*gpus, n_gpu_layers=sum(counts), split=tuple(counts)), sum(counts) - 1)
    assert [devices.count(g.id) for g in gpus] == counts
