"""The masks that the router itself was started with."""

from __future__ import annotations

import pytest

from router.memory.devices.protocol import GpuReading
from router.memory.devices.visible import visible, visible_amd

CARDS = [
    GpuReading("GPU-aa11", "0", "NVIDIA RTX 3090", ""),
    GpuReading("GPU-aa22", "1", "NVIDIA RTX 3090", ""),
    GpuReading("MIG-bb33", "2.0", "NVIDIA A100 MIG 1g.5gb", ""),
    GpuReading("MIG-cc44", "2.1", "NVIDIA A100 MIG 1g.5gb", ""),
]


@pytest.mark.parametrize(
    ("mask", "left"),
    [
        ("0", {"GPU-aa11"}),
        ("1,0", {"GPU-aa11", "GPU-aa22"}),
        (" 1 , 0 ", {"GPU-aa11", "GPU-aa22"}),
        ("2", {"MIG-bb33"}),  # a process sees one instance of a card
        ("GPU-aa2", {"GPU-aa22"}),
        ("gpu-aa22", set()),
        ("MIG-cc44,0", {"MIG-cc44", "GPU-aa11"}),
        ("GPU-aa", set()),  # names two
        ("0,9,1", {"GPU-aa11"}),  # what names nothing ends the list
        ("-1", set()),
        ("0,-1,1", {"GPU-aa11"}),
        ("", set()),
        ("NoDevFiles", set()),
        ("²", set()),
    ],
)
def test_the_mask_is_read_as_cuda_reads_it(mask, left):
    assert visible({"CUDA_VISIBLE_DEVICES": mask}, CARDS)[0] == left


def test_without_a_mask_all_are_left():
    assert visible({}, CARDS)[0] is None


def test_indices_between_unlike_cards_are_doubtful_unless_their_order_is_said():
    mask = {"CUDA_VISIBLE_DEVICES": "1"}
    assert "PCI order" in visible(mask, CARDS)[1]
    assert visible(mask | {"CUDA_DEVICE_ORDER": "PCI_BUS_ID"}, CARDS)[1] == ""
    assert visible(mask, CARDS[:2])[1] == ""
    assert visible({"CUDA_VISIBLE_DEVICES": "GPU-aa11"}, CARDS)[1] == ""


@pytest.mark.parametrize(
    ("environ", "left"),
    [
        ({}, [0, 1, 2]),
        ({"ROCR_VISIBLE_DEVICES": "2,0"}, [2, 0]),
        ({"ROCR_VISIBLE_DEVICES": "GPU-00000000000000bb"}, [1]),
        ({"HIP_VISIBLE_DEVICES": "1"}, [1]),
        ({"ROCR_VISIBLE_DEVICES": "2,0", "HIP_VISIBLE_DEVICES": "1"}, [0]),
        ({"ROCR_VISIBLE_DEVICES": ""}, []),
        ({"ROCR_VISIBLE_DEVICES": "1", "HIP_VISIBLE_DEVICES": "1"}, []),
        ({"CUDA_VISIBLE_DEVICES": "0"}, [0, 1, 2]),
    ],
)
def test_hip_numbers_what_rocr_left(environ, left):
    assert visible_amd(environ, ["GPU-00000000000000aa", "GPU-00000000000000bb", "2"]) == left
