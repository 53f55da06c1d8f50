"""The models of `gpu_check`: real shapes without their data, written in no time."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.make_gguf import make_gemma3, make_llama, make_qwen3


@dataclass(frozen=True, slots=True)
class Shape:
    """A model to write. `ctx_size` is what it is loaded with."""

    name: str
    make: Callable[..., Path]
    ctx_size: int
    sizes: Mapping[str, Any]

    def write(self, folder: Path) -> None:
        """A sparse file: its tensors are zeros, so that it computes nothing of sense, but all of it."""
        path = folder / f"{self.name}.gguf"
        if not path.exists():
            self.make(path, name=self.name, n_ctx_train=131072, sparse=True, **self.sizes)


def _sized(layers: int, embd: int, ff: int, heads: int, kv: int, vocab: int, **more: Any) -> dict[str, Any]:
    sizes = {"n_layers": layers, "n_embd": embd, "n_ff": ff, "n_heads": heads, "n_heads_kv": kv}
    return {**sizes, "n_vocab": vocab, **more}


_EXPERTS = {"n_experts": 64, "n_experts_used": 8, "n_ff_expert": 768}

#: From 1 to about 35 GiB: the first go onto any card, the last only onto large ones.
SHAPES = (
    Shape(
        "llama-1b-q8",
        make_llama,
        8192,
        _sized(16, 2048, 8192, 32, 8, 128256, tied=True, weight_type="q8_0"),
    ),
    Shape(
        "llama-3b-q4",
        make_llama,
        16384,
        _sized(28, 3072, 8192, 24, 8, 128256, tied=True, weight_type="q4_0"),
    ),
    Shape(
        "gemma3-4b-q4",
        make_gemma3,
        16384,
        _sized(34, 2560, 10240, 8, 4, 262144, head=256, n_swa=1024, weight_type="q4_0"),
    ),
    Shape(
        "qwen3-moe-q4",
        make_qwen3,
        32768,
        _sized(24, 2048, 6144, 32, 4, 151936, head=128, weight_type="q4_0", **_EXPERTS),
    ),
    Shape(
        "llama-8b-f16",
        make_llama,
        32768,
        _sized(32, 4096, 14336, 32, 8, 128256, weight_type="f16"),
    ),
    Shape(
        "llama-30b-q8",
        make_llama,
        65536,
        _sized(40, 6144, 32768, 48, 8, 131072, weight_type="q8_0"),
    ),
)
