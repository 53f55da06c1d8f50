"""A family finds its models by what they are called and by what they are."""

from __future__ import annotations

import pytest

from router.presets import Family
from router.presets.layer import Layer

QWEN = Family("qwen", ("*qwen3-*", "exact"), ("qwen3moe",), Layer())


@pytest.mark.parametrize(
    ("names", "architecture", "found"),
    [
        (("unsloth/Qwen3-8B-GGUF:Q4_K_M",), None, True),
        (("chat", "QWEN3-8B"), None, True),
        (("chat",), "qwen3moe", True),
        (("chat",), "qwen3", False),
        (("qwen3.5-9b",), None, False),
        (("inexact",), None, False),
        ((), None, False),
    ],
)
def test_any_name_or_the_architecture_is_enough(names, architecture, found):
    assert QWEN.has(names, architecture) is found
