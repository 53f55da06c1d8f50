"""The table of models and settings by which the estimator is held against the real llama-server."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from router.gguf import read_gguf
from router.memory.estimate import (
    Companions,
    DeviceBudget,
    Estimate,
    Layout,
    LoadSettings,
    Prepared,
    estimate,
)
from tests.make_gguf import (
    MEAN,
    make_bert,
    make_deepseek2,
    make_gemma3,
    make_gpt_oss,
    make_granite_hybrid,
    make_llama,
    make_mamba2,
    make_mmproj,
    make_qwen3,
    make_qwen3next,
)

HOST = DeviceBudget("local/host", "host", 1 << 40, 1 << 40)

Make = Callable[[Path], Path]


@dataclass(frozen=True, slots=True)
class Case:
    """One row: a model, the context, the settings, and the same settings as arguments of llama-server."""

    name: str
    make: Make
    ctx_size: int
    settings: LoadSettings
    args: tuple[str, ...] = ()
    make_mmproj: Make | None = None
    make_draft: Make | None = None
    argv: tuple[str, ...] = field(init=False)

    def __post_init__(self) -> None:
        repack = () if self.settings.repack else ("--no-repack",)
        # A warm-up reads every weight; it is needed only where an encoder's buffer comes with it.
        warm_up = ("--no-warmup",) if self.make_mmproj is None else ()
        argv = ("-c", str(self.ctx_size), *warm_up, "-cram", "0", *repack, *self.args)
        object.__setattr__(self, "argv", argv)

    def predict(self, folder: Path) -> tuple[Estimate, Path, tuple[str, ...]]:
        """Write the model; return the estimate, the model and the arguments to start a server with."""
        model = self.make(folder / "model.gguf")
        argv = list(self.argv)
        mmproj = draft = None
        if self.make_mmproj is not None:
            path = self.make_mmproj(folder / "mmproj.gguf")
            mmproj, argv = read_gguf(path), [*argv, "--mmproj", str(path)]
        if self.make_draft is not None:
            path = self.make_draft(folder / "draft.gguf")
            draft = read_gguf(path)
            argv += ["--spec-type", "draft-simple", "--spec-draft-model", str(path)]
        prepared = Prepared.of(read_gguf(model), self.settings, Companions(mmproj, draft))
        return estimate(prepared, Layout(HOST, (), 0, (), self.ctx_size)), model, tuple(argv)


def _settings(**changes: object) -> LoadSettings:
    return LoadSettings(**{"repack": False, **changes})  # type: ignore[arg-type]


def _dense(path: Path, n_heads_kv: int = 4, weight_type: str = "q8_0", shards: int = 1) -> Path:
    return make_llama(
        path, n_layers=4, n_embd=1024, n_ff=2816, n_heads=16, n_heads_kv=n_heads_kv, n_vocab=8192,
        n_ctx_train=32768, weight_type=weight_type, sparse=shards == 1, shards=shards,
    )  # fmt: skip


def _gemma(path: Path) -> Path:
    return make_gemma3(
        path, n_layers=12, n_embd=640, n_ff=2048, n_heads=4, n_heads_kv=1, head=256, n_vocab=8192,
        n_ctx_train=32768, weight_type="q8_0", sparse=True,
    )  # fmt: skip


def _qwen(path: Path, weight_type: str = "q8_0") -> Path:
    return make_qwen3(
        path, n_layers=4, n_embd=1024, n_ff=3072, n_heads=16, n_heads_kv=8, head=128, n_vocab=8192,
        n_ctx_train=32768, weight_type=weight_type, sparse=True,
    )  # fmt: skip


def _many_experts(path: Path) -> Path:
    return make_qwen3(
        path, n_layers=3, n_embd=1024, n_heads=16, n_heads_kv=4, head=64, n_experts=32, n_experts_used=8,
        n_ff_expert=384, n_vocab=8192, tied=False, weight_type="q4_0", sparse=True,
    )  # fmt: skip


def _wide_experts(path: Path) -> Path:
    return make_qwen3(
        path, n_layers=2, n_embd=1024, n_heads=16, n_heads_kv=4, head=64, n_experts=4, n_experts_used=2,
        n_ff_expert=3584, n_vocab=8192, tied=False, weight_type="q4_0", sparse=True,
    )  # fmt: skip


def _mla(path: Path) -> Path:
    return make_deepseek2(
        path, n_layers=4, n_embd=1024, n_ff=4096, n_heads=16, q_rank=512, kv_rank=256, head_nope=64,
        head_rope=32, head_value=64, n_experts=16, n_experts_used=4, n_ff_expert=512, n_vocab=8192,
        weight_type="q8_0", sparse=True,
    )  # fmt: skip


def _mamba(path: Path) -> Path:
    return make_mamba2(
        path, n_layers=8, n_embd=1024, d_state=128, head=64, n_vocab=8192, weight_type="q8_0", sparse=True
    )


def _hybrid(path: Path) -> Path:
    return make_granite_hybrid(
        path, n_layers=8, attention_every=4, n_embd=1024, n_ff=2048, n_heads=16, n_heads_kv=4, d_state=128,
        head_ssm=64, n_vocab=8192, weight_type="q8_0", sparse=True,
    )  # fmt: skip


def _delta_net(path: Path) -> Path:
    return make_qwen3next(
        path, n_layers=4, n_embd=1024, n_heads=8, n_heads_kv=2, head=256, n_experts=16, n_experts_used=4,
        n_ff_expert=512, d_state=128, n_heads_key=16, n_heads_value=32, n_vocab=8192, weight_type="q8_0",
        sparse=True,
    )  # fmt: skip


def _short_windows(path: Path) -> Path:
    return make_gpt_oss(
        path, n_layers=4, n_embd=1440, n_heads=32, n_heads_kv=4, head=64, n_experts=8, n_experts_used=4,
        n_ff_expert=1440, n_vocab=8192, weight_type="q8_0", sparse=True,
    )  # fmt: skip


def _projector(path: Path) -> Path:
    return make_mmproj(path, n_embd=512, n_ff=2048, n_heads=8, image_size=336, patch_size=14)


def _bert(path: Path) -> Path:
    return make_bert(path, n_layers=6, n_embd=512, n_ff=2048, n_heads=8, n_vocab=8192, sparse=True)


def _long_bert(path: Path) -> Path:
    return make_bert(
        path, n_layers=4, n_embd=512, n_ff=2048, n_heads=8, n_ctx_train=8192, n_vocab=8192, sparse=True
    )


def _windowed_encoder(path: Path) -> Path:
    return make_gemma3(
        path, architecture="gemma-embedding", n_layers=12, n_embd=640, n_ff=2048, n_heads=4, n_heads_kv=1,
        head=256, n_vocab=8192, n_ctx_train=32768, weight_type="q8_0", sparse=True,
        extra={"gemma-embedding.pooling_type": MEAN},
    )  # fmt: skip


def _embeds(name: str, make: Make, ctx_size: int, step: int, *args: str, **changes: object) -> Case:
    """An embedding model that takes an input whole."""
    flags = ("--embedding", "-b", str(step), "-ub", str(step), *args)
    return Case(name, make, ctx_size, _settings(embedding=True, **changes), flags)


def _split(path: Path) -> Path:
    return _dense(path, shards=3)


CASES: tuple[Case, ...] = (
    Case("dense, all heads, f16", lambda p: _dense(p, 16, "f16"), 4096, _settings()),
    Case("grouped-query, one slot", _dense, 8192, _settings(parallel=1), ("-np", "1")),
    Case("grouped-query, 8 slots", _dense, 8192, _settings(parallel=8), ("-np", "8")),
    Case("two slots, one cache", _dense, 3000, _settings(parallel=2, kv_unified=True), ("-np", "2", "-kvu")),
    Case(
        "cache q8_0",
        _dense,
        8192,
        _settings(cache_type_k="q8_0", cache_type_v="q8_0"),
        ("-ctk", "q8_0", "-ctv", "q8_0"),
    ),
    Case(
        "cache q4_0/q5_1, flash",
        _qwen,
        8192,
        _settings(cache_type_k="q4_0", cache_type_v="q5_1", flash_attn="on"),
        ("-ctk", "q4_0", "-ctv", "q5_1", "-fa", "on"),
    ),
    Case("no flash attention", _dense, 8192, _settings(flash_attn="off"), ("-fa", "off")),
    Case("step of 2048 tokens", _dense, 16384, _settings(ubatch=2048), ("-ub", "2048")),
    Case("tied embeddings", _qwen, 4096, _settings()),
    Case("sliding window", _gemma, 16384, _settings()),
    Case("sliding window, 3 slots", _gemma, 12288, _settings(parallel=3), ("-np", "3")),
    Case(
        "sliding window kept whole",
        _gemma,
        8192,
        _settings(parallel=2, swa_full=True),
        ("-np", "2", "--swa-full"),
    ),
    Case(
        "sliding window, cache q8_0",
        _gemma,
        8192,
        _settings(cache_type_k="q8_0", cache_type_v="q8_0"),
        ("-ctk", "q8_0", "-ctv", "q8_0"),
    ),
    Case("32 experts, 8 used", _many_experts, 4096, _settings()),
    Case("4 wide experts, 2 used", _wide_experts, 4096, _settings(ubatch=1024), ("-ub", "1024")),
    Case("latent attention", _mla, 8192, _settings(parallel=2), ("-np", "2")),
    Case("recurrent, 3 slots", _mamba, 8192, _settings(parallel=3), ("-np", "3")),
    Case("recurrent, 8 slots", _mamba, 2048, _settings(parallel=8), ("-np", "8")),
    Case("hybrid", _hybrid, 16384, _settings()),
    Case("hybrid, 6 slots", _hybrid, 6144, _settings(parallel=6), ("-np", "6")),
    Case("delta nets, experts", _delta_net, 8192, _settings()),
    Case("delta nets, 5 slots", _delta_net, 5120, _settings(parallel=5), ("-np", "5")),
    Case("short windows, experts", _short_windows, 8192, _settings()),
    Case("short windows, 2 slots", _short_windows, 8192, _settings(parallel=2), ("-np", "2")),
    Case("embedding model", _bert, 512, _settings(embedding=True), ("--embedding",)),
    _embeds("embeddings by a decoder", _qwen, 2048, 2048),
    _embeds("encoder, long inputs", _long_bert, 8192, 8192, "-np", "1", parallel=1),
    _embeds("encoder, 4 slots", _long_bert, 8192, 2048, "-np", "4", "-no-kvu", parallel=4),
    _embeds("encoder, no flash", _long_bert, 2048, 2048, "-fa", "off", flash_attn="off"),
    _embeds("encoder with windows", _windowed_encoder, 4096, 4096, "-np", "1", parallel=1),
    _embeds("decoder, windows, mean", _gemma, 4096, 4096, "--pooling", "mean", pooling="mean"),
    Case(
        "decoder, last token",
        _gemma,
        4096,
        _settings(embedding=True, pooling="last"),
        ("--embedding", "--pooling", "last"),
    ),
    Case("three shards", _split, 4096, _settings()),
    Case("with a projector", make_llama, 2048, _settings(), make_mmproj=make_mmproj),
    Case("with a larger projector", make_llama, 2048, _settings(), make_mmproj=_projector),
    Case("with a draft model", _dense, 4096, _settings(), make_draft=lambda p: make_llama(p, n_vocab=8192)),
)

REPACKED_CASES: tuple[Case, ...] = (
    Case("repacked q4_0", lambda p: _dense(p, 4, "q4_0"), 4096, LoadSettings()),
    Case("repacked q4_0, tied", lambda p: _qwen(p, "q4_0"), 4096, LoadSettings()),
    Case("repacked experts", _many_experts, 4096, LoadSettings()),
    Case("nothing to repack (q8_0)", _dense, 4096, LoadSettings()),
)
