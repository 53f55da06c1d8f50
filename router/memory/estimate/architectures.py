"""What llama.cpp hard-codes for an architecture and no header says, as far as memory depends on it.

Source: `load_arch_hparams` in src/models/*.cpp and `create_memory` in src/llama-model.cpp of llama.cpp
b11434. An architecture that is in none of these tables is taken for a plain transformer with full attention
in every layer, which errs on the large side.
"""

from __future__ import annotations

from collections.abc import Mapping

SWA_PERIODS: Mapping[str, tuple[int, bool]] = {
    # Every n-th layer has full attention, the others a sliding window; True: the first of a period, not the
    # last.
    "afmoe": (4, False),
    "cohere2": (4, False),
    "cohere2moe": (4, True),
    "exaone-moe": (4, False),
    "exaone4": (4, False),
    "gemma2": (2, False),
    "gemma3": (6, False),
    "gemma3n": (5, False),
    "gpt-oss": (2, False),
    "laguna": (4, True),
    "llama4": (4, False),
    "mellum": (4, False),
    "muse-glimmer": (4, False),
    "olmo2": (4, False),
    "plamo3": (8, False),
    "smallthinker": (4, True),
}
SWA_FIXED: Mapping[str, int] = {"llama4": 8192, "smallthinker": 4096}
"""Windows that llama.cpp sets whatever the file says, unless it says 0."""
SWA_DEFAULTS: Mapping[str, int] = {"gemma2": 4096, "llama4": 8192, "exaone4": 4096}
"""Windows of files that do not name one."""
SWA_IGNORED = frozenset(("phi3", "phimoe"))
"""Their files may name a window; llama.cpp does not use it."""
SWA_ON_ATTENTION = frozenset(("lfm2",))
"""Hybrids whose attention layers all slide when the file names a window."""

NO_CACHE = frozenset((
    "bert", "jina-bert-v2", "jina-bert-v3", "nomic-bert", "nomic-bert-moe", "neo-bert", "eurobert",
    "modern-bert", "gemma-embedding", "wavtokenizer-dec", "dream", "llada", "llada-moe", "rnd1", "clef",
    "t5encoder",
))  # fmt: skip
RECURRENT = frozenset(("mamba", "mamba2", "rwkv6", "rwkv6qwen2", "rwkv7", "arwkv7"))
PARALLEL_HYBRID = frozenset(("falcon-h1",))
"""Every layer has attention and a recurrent state."""
HYBRID_BY_HEADS = frozenset((
    "jamba", "plamo2", "granitehybrid", "lfm2", "lfm2moe", "kimi-linear", "bailingmoe3", "kimi-k3",
    "glm5-next",
))  # fmt: skip
"""Recurrent are the layers without key and value heads."""
HYBRID_BY_INTERVAL: Mapping[str, int] = {
    "qwen3next": 4,
    "qwen35": 4,
    "qwen35moe": 4,
    "qwen4exp": 4,
    "minimax-01": 8,
}
"""Attention in every n-th layer, unless the file gives another interval or lists its recurrent layers."""
HYBRID_BY_FFN = frozenset(("nemotron_h", "nemotron_h_moe"))
"""A layer is one of feed-forward, attention (key and value heads) or recurrent (neither)."""

KV_LAYERS_FROM_START: Mapping[str, int] = {"gemma3n": 20}
"""Later layers use the cache of an earlier one."""

INDEX_ROWS: Mapping[str, int] = {
    # Sparse attention keeps index keys beside its cache: so many rows of them for each cell.
    "deepseek32": 1,
    "glm-dsa": 1,
    "hy_v4": 1,
    "dots3note": 1,
    "minimax-m3": 1,
    "qwen4exp": 2,
    "glm5-next": 3,
}
INEXACT_CACHE = frozenset(("deepseek4", "dflash", "qwen4exp", "glm5-next", "dots3note", "hy_v4"))
"""Caches of their own class, for which the formula here is meant as an upper bound."""

NO_FLASH_ATTENTION = frozenset(("grok",))
KEEPS_PREDICTION_LAYERS = frozenset(("graniteswitch",))
"""Count their router among the prediction layers, and load it."""
