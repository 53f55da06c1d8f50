"""What llama.cpp hard-codes for an architecture and no header says, as far as memory depends on it.

Source: `load_arch_hparams` in src/models/*.cpp and `create_memory` in src/llama-model.cpp of llama.cpp
b11434. An architecture that is not in the table is taken for a plain transformer with full attention in every
layer, which errs on the large side.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True)
class Architecture:
    """The rules of one architecture; the defaults are those of a plain transformer."""

    has_cache: bool = True
    #: Whether the cache is one that the formula describes, rather than one of its own class: then the formula
    #: is meant as an upper bound.
    is_exact: bool = True
    #: Which layers have a recurrent state in the place of attention. "by heads": those without key and value
    #: heads. "by interval": all but every n-th (`attention_interval`), unless the file gives another interval
    #: or lists its recurrent layers. "by feed-forward": those with neither such heads nor feed-forward, as a
    #: layer is one of the three. "beside": every layer has both.
    recurrent: Literal["none", "all", "beside", "by heads", "by interval", "by feed-forward"] = "none"
    attention_interval: int = 0
    #: Every n-th layer has full attention, the others a sliding window; the first of a period, not the last,
    #: with `is_first_full`. 0: the file lists the layers, or none slides.
    swa_period: int = 0
    is_first_full: bool = False
    #: The window, in tokens, of a file that names none, and the one that is used whatever the file says,
    #: unless it says 0.
    swa_default: int = 0
    swa_fixed: int = 0
    #: The number of layers of the only size of the model in which layers slide; 0: all sizes.
    swa_n_layers: int = 0
    #: "ignored": the file may name a window, llama.cpp does not use it. "attention": a hybrid, whose
    #: attention layers all slide when the file names a window.
    swa_rule: Literal["period", "ignored", "attention"] = "period"
    #: Layers from the start with a cache of their own, which the later ones share; 0: as the file says.
    kv_layers: int = 0
    #: Sparse attention keeps index keys beside its cache: so many rows of them for each cell, in the layers
    #: behind the leading dense blocks alone with `is_dense_unindexed`.
    index_rows: int = 0
    is_dense_unindexed: bool = False
    #: The recurrent state is a square of a head's key for every head (lightning attention).
    has_square_state: bool = False
    has_flash_attention: bool = True
    #: Counts its router among the prediction layers, and loads it.
    keeps_prediction_layers: bool = False


_PLAIN = Architecture()
_ARCHITECTURES: Mapping[str, Architecture] = {
    **dict.fromkeys(
        (
            "bert", "jina-bert-v2", "jina-bert-v3", "nomic-bert", "nomic-bert-moe", "neo-bert", "eurobert",
            "modern-bert", "gemma-embedding", "wavtokenizer-dec", "dream", "llada", "llada-moe", "rnd1",
            "clef", "t5encoder",
        ),
        Architecture(has_cache=False),
    ),
    **dict.fromkeys(
        ("afmoe", "cohere2", "exaone-moe", "mellum", "muse-glimmer", "olmo2"), Architecture(swa_period=4)
    ),
    **dict.fromkeys(("cohere2moe", "laguna"), Architecture(swa_period=4, is_first_full=True)),
    "exaone4": Architecture(swa_period=4, swa_default=4096, swa_n_layers=64),
    "gemma2": Architecture(swa_period=2, swa_default=4096),
    "gemma3": Architecture(swa_period=6),
    "gemma3n": Architecture(swa_period=5, kv_layers=20),
    "gpt-oss": Architecture(swa_period=2),
    "llama4": Architecture(swa_period=4, swa_default=8192, swa_fixed=8192),
    "plamo3": Architecture(swa_period=8),
    "smallthinker": Architecture(swa_period=4, is_first_full=True, swa_fixed=4096),
    **dict.fromkeys(("phi3", "phimoe"), Architecture(swa_rule="ignored")),
    **dict.fromkeys(
        ("mamba", "mamba2", "rwkv6", "rwkv6qwen2", "rwkv7", "arwkv7"), Architecture(recurrent="all")
    ),
    "falcon-h1": Architecture(recurrent="beside"),
    **dict.fromkeys(
        ("jamba", "plamo2", "granitehybrid", "lfm2moe", "kimi-linear", "bailingmoe3", "kimi-k3"),
        Architecture(recurrent="by heads"),
    ),
    "lfm2": Architecture(recurrent="by heads", swa_rule="attention"),
    "glm5-next": Architecture(recurrent="by heads", index_rows=3, is_exact=False),
    **dict.fromkeys(
        ("qwen3next", "qwen35", "qwen35moe"), Architecture(recurrent="by interval", attention_interval=4)
    ),
    "qwen4exp": Architecture(recurrent="by interval", attention_interval=4, index_rows=2, is_exact=False),
    "minimax-01": Architecture(recurrent="by interval", attention_interval=8, has_square_state=True),
    **dict.fromkeys(("nemotron_h", "nemotron_h_moe"), Architecture(recurrent="by feed-forward")),
    **dict.fromkeys(("deepseek32", "glm-dsa"), Architecture(index_rows=1)),
    **dict.fromkeys(("hy_v4", "dots3note"), Architecture(index_rows=1, is_exact=False)),
    "minimax-m3": Architecture(index_rows=1, is_dense_unindexed=True),
    **dict.fromkeys(("deepseek4", "dflash"), Architecture(is_exact=False)),
    "grok": Architecture(has_flash_attention=False),
    "graniteswitch": Architecture(keeps_prediction_layers=True),
}  # fmt: skip


def architecture_of(name: str) -> Architecture:
    """The rules of the architecture that a header names."""
    return _ARCHITECTURES.get(name, _PLAIN)
