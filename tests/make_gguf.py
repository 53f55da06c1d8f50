"""Small GGUF models, written by the `gguf` package, that the real llama-server loads and generates with.

Every `make_*` writes one file (or the shards of one) and returns its path. Weights are random but seeded: the
same arguments give the same bytes. Control, byte and padding tokens have zero rows in the output matrix, so
that generation yields printable text and does not stop by itself before `n_predict`.
"""

from __future__ import annotations

import string
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import gguf
import numpy as np
from gguf import GGMLQuantizationType, quants

KvValue = str | int | float | bool | Sequence[int] | Sequence[bool] | Sequence[str] | Sequence[float]
"""An int is written as u32, a float as f32; a sequence as an array of the type of its items."""

WEIGHT_TYPES: Mapping[str, GGMLQuantizationType] = {
    "f32": GGMLQuantizationType.F32,
    "f16": GGMLQuantizationType.F16,
    "bf16": GGMLQuantizationType.BF16,
    "q8_0": GGMLQuantizationType.Q8_0,
    "q4_0": GGMLQuantizationType.Q4_0,
}

FILE_TYPES: Mapping[str, int] = {"f32": 0, "f16": 1, "q4_0": 2, "q8_0": 7, "bf16": 32}
"""`general.file_type` (llama_ftype) of a file whose matrices have that type."""

MEAN, CLS, LAST, RANK = 1, 2, 3, 4
"""`pooling_type` of a file."""

CHAT_TEMPLATE = (
    "{% for message in messages %}{{ message['role'] }}: {{ message['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant:{% endif %}"
)

_WORDS = ["▁" + letter for letter in string.ascii_lowercase] + [
    "▁the", "▁of", "▁and", "▁to", "▁in", "▁is", "▁model", "▁router", "▁memory", "▁token", "▁hello", "▁world",
]  # fmt: skip
_TEXT_TOKENS = ["▁", *string.ascii_letters, *string.digits, *".,:;!?-_'\"()[]{}<>/\\+=*&^%$#@|~`", *_WORDS]
_CONTROL_TOKENS = ["<unk>", "<s>", "</s>"]
_END_TOKEN = 2
_BYTE_TOKENS = [f"<0x{byte:02X}>" for byte in range(256)]
_FIRST_TEXT_TOKEN = len(_CONTROL_TOKENS) + len(_BYTE_TOKENS)
MIN_VOCAB = _FIRST_TEXT_TOKEN + len(_TEXT_TOKENS)
"""The smallest vocabulary these models have; a larger one is padded with unused tokens."""


@dataclass(frozen=True, slots=True)
class Tensor:
    """One tensor to write. `shape` is ggml's: the fastest dimension first."""

    name: str
    shape: tuple[int, ...]
    type: str = "f32"
    fill: str = "normal"  # normal | ones | zeros | vocab (normal, but zero rows for tokens that are no text)
    # hears, answers: the two matrices of `make_speaker`


def make_llama(
    path: Path | str,
    *,
    name: str = "tiny",
    seed: int = 0,
    n_layers: int = 2,
    n_embd: int = 64,
    n_ff: int = 128,
    n_heads: int = 4,
    n_heads_kv: int = 2,
    n_vocab: int = MIN_VOCAB,
    n_ctx_train: int = 2048,
    tied: bool = False,
    weight_type: str = "f32",
    approx_mib: float | None = None,
    sparse: bool = False,
    shards: int = 1,
    extra: Mapping[str, KvValue] | None = None,
) -> Path:
    """A dense model of the llama architecture (GQA when `n_heads_kv` < `n_heads`).

    `approx_mib` widens the feed-forward layers until the file has about that size, for tests of load time.
    `sparse` writes the header and leaves the data as a hole of zeros: a model of any size in no time, for
    tests that never generate. `shards` > 1 writes `NAME-00001-of-N.gguf`... and returns the first.
    """
    if approx_mib is not None:
        n_ff = _ff_for_size(approx_mib, weight_type, n_layers=n_layers, n_embd=n_embd, n_vocab=n_vocab)
    head = n_embd // n_heads
    tensors = _embedding_tensors(n_embd, n_vocab, tied, weight_type)
    for i in range(n_layers):
        tensors += _attention(i, n_embd, n_heads * head, n_heads_kv * head, weight_type)
        tensors += _feed_forward(i, n_embd, n_ff, weight_type)
    kv = _common("llama", name, n_layers, n_embd, n_ff, n_heads, n_heads_kv, n_ctx_train, weight_type)
    kv |= {"llama.rope.dimension_count": head, "llama.vocab_size": n_vocab}
    kv |= spm_vocabulary(n_vocab) | dict(extra or {})
    return write_gguf(path, "llama", kv, tensors, seed=seed, sparse=sparse, shards=shards)


def make_speaker(
    path: Path | str, says: str, *, name: str = "speaker", template: str = CHAT_TEMPLATE
) -> Path:
    """A model that says `says`, and nothing else, whatever it is asked: for what a client makes of answers.

    All that it says is one token. Every other token looks alike to it, and makes it say that one; after
    which it ends.
    """
    n_embd = n_ff = 32
    kv = _common("llama", name, 1, n_embd, n_ff, 1, 1, 2048, "f32")
    vocabulary = spm_vocabulary(MIN_VOCAB)
    lists: dict[str, list] = {
        key: [*vocabulary[f"tokenizer.ggml.{key}"], last]  # type: ignore[misc]
        for key, last in (("tokens", says), ("scores", 0.0), ("token_type", 4))  # 4: user-defined
    }
    n_vocab = MIN_VOCAB + 1
    kv |= {"llama.rope.dimension_count": n_embd, "llama.vocab_size": n_vocab} | vocabulary
    kv |= {f"tokenizer.ggml.{key}": values for key, values in lists.items()}
    kv |= {"tokenizer.chat_template": template}
    attention = [
        Tensor(one.name, one.shape, fill=one.fill if one.fill == "ones" else "zeros")
        for one in (*_attention(0, n_embd, n_embd, n_embd, "f32"), *_feed_forward(0, n_embd, n_ff, "f32"))
    ]
    tensors = [
        Tensor("token_embd.weight", (n_embd, n_vocab), fill="hears"),
        Tensor("output_norm.weight", (n_embd,), fill="ones"),
        Tensor("output.weight", (n_embd, n_vocab), fill="answers"),
    ]
    return write_gguf(path, "llama", kv, [*tensors, *attention])


def make_gemma3(
    path: Path | str,
    *,
    name: str = "tiny-gemma3",
    seed: int = 0,
    n_layers: int = 6,
    n_embd: int = 64,
    n_ff: int = 128,
    n_heads: int = 4,
    n_heads_kv: int = 2,
    head: int = 16,
    n_vocab: int = MIN_VOCAB,
    n_ctx_train: int = 4096,
    n_swa: int = 512,
    weight_type: str = "f32",
    sparse: bool = False,
    architecture: str = "gemma3",
    extra: Mapping[str, KvValue] | None = None,
) -> Path:
    """Tied embeddings and sliding-window attention: every sixth layer is full, the others see `n_swa`
    tokens. The encoder "gemma-embedding" has the same tensors."""
    tensors = _embedding_tensors(n_embd, n_vocab, True, weight_type)
    for i in range(n_layers):
        tensors += _attention(i, n_embd, n_heads * head, n_heads_kv * head, weight_type)
        tensors += _qk_norms(i, head)
        tensors += [Tensor(f"blk.{i}.post_attention_norm.weight", (n_embd,), fill="ones")]
        tensors += _feed_forward(i, n_embd, n_ff, weight_type)
        tensors += [Tensor(f"blk.{i}.post_ffw_norm.weight", (n_embd,), fill="ones")]
    kv = _common(architecture, name, n_layers, n_embd, n_ff, n_heads, n_heads_kv, n_ctx_train, weight_type)
    kv |= {
        f"{architecture}.attention.key_length": head,
        f"{architecture}.attention.value_length": head,
        f"{architecture}.attention.sliding_window": n_swa,
    }
    kv |= spm_vocabulary(n_vocab) | dict(extra or {})
    return write_gguf(path, architecture, kv, tensors, seed=seed, sparse=sparse)


def make_qwen3(
    path: Path | str,
    *,
    name: str = "tiny-qwen3",
    seed: int = 0,
    n_layers: int = 2,
    n_embd: int = 64,
    n_ff: int = 128,
    n_heads: int = 4,
    n_heads_kv: int = 2,
    head: int = 32,
    n_vocab: int = MIN_VOCAB,
    n_ctx_train: int = 2048,
    n_experts: int = 0,
    n_experts_used: int = 2,
    n_ff_expert: int = 32,
    tied: bool = True,
    weight_type: str = "f32",
    sparse: bool = False,
    extra: Mapping[str, KvValue] | None = None,
) -> Path:
    """Heads wider than n_embd / n_heads and tied embeddings; with `n_experts` the mixture-of-experts
    qwen3moe."""
    arch = "qwen3moe" if n_experts else "qwen3"
    tensors = _embedding_tensors(n_embd, n_vocab, tied, weight_type)
    for i in range(n_layers):
        tensors += _attention(i, n_embd, n_heads * head, n_heads_kv * head, weight_type) + _qk_norms(i, head)
        if n_experts:
            tensors += [Tensor(f"blk.{i}.ffn_norm.weight", (n_embd,), fill="ones")]
            tensors += _experts(i, n_embd, n_ff_expert, n_experts, weight_type)
        else:
            tensors += _feed_forward(i, n_embd, n_ff, weight_type)
    kv = _common(arch, name, n_layers, n_embd, n_ff, n_heads, n_heads_kv, n_ctx_train, weight_type)
    kv |= {f"{arch}.attention.key_length": head, f"{arch}.attention.value_length": head}
    if n_experts:
        kv |= _expert_keys(arch, n_experts, n_experts_used, n_ff_expert)
    return write_gguf(
        path, arch, kv | spm_vocabulary(n_vocab) | dict(extra or {}), tensors, seed=seed, sparse=sparse
    )


def make_deepseek2(
    path: Path | str,
    *,
    name: str = "tiny-mla",
    seed: int = 0,
    n_layers: int = 3,
    n_embd: int = 64,
    n_ff: int = 128,
    n_heads: int = 4,
    q_rank: int = 32,
    kv_rank: int = 32,
    head_nope: int = 16,
    head_rope: int = 16,
    head_value: int = 16,
    n_dense: int = 1,
    n_experts: int = 4,
    n_experts_used: int = 2,
    n_experts_shared: int = 1,
    n_ff_expert: int = 32,
    n_vocab: int = MIN_VOCAB,
    n_ctx_train: int = 2048,
    weight_type: str = "f32",
    sparse: bool = False,
    extra: Mapping[str, KvValue] | None = None,
) -> Path:
    """Multi-head latent attention: one compressed key per cell and no values; experts after `n_dense`
    layers."""
    tensors = _embedding_tensors(n_embd, n_vocab, False, weight_type)
    head_key = head_nope + head_rope
    for i in range(n_layers):
        tensors += [
            Tensor(f"blk.{i}.attn_norm.weight", (n_embd,), fill="ones"),
            Tensor(f"blk.{i}.attn_q_a_norm.weight", (q_rank,), fill="ones"),
            Tensor(f"blk.{i}.attn_kv_a_norm.weight", (kv_rank,), fill="ones"),
            Tensor(f"blk.{i}.attn_q_a.weight", (n_embd, q_rank), weight_type),
            Tensor(f"blk.{i}.attn_q_b.weight", (q_rank, n_heads * head_key), weight_type),
            Tensor(f"blk.{i}.attn_kv_a_mqa.weight", (n_embd, kv_rank + head_rope), weight_type),
            Tensor(f"blk.{i}.attn_k_b.weight", (head_nope, kv_rank, n_heads), "f32"),
            Tensor(f"blk.{i}.attn_v_b.weight", (kv_rank, head_value, n_heads), weight_type),
            Tensor(f"blk.{i}.attn_output.weight", (n_heads * head_value, n_embd), weight_type),
        ]
        if i < n_dense:
            tensors += _feed_forward(i, n_embd, n_ff, weight_type)
            continue
        shared = n_ff_expert * n_experts_shared
        tensors += [Tensor(f"blk.{i}.ffn_norm.weight", (n_embd,), fill="ones")]
        tensors += _experts(i, n_embd, n_ff_expert, n_experts, weight_type)
        tensors += [
            Tensor(f"blk.{i}.ffn_gate_shexp.weight", (n_embd, shared), weight_type),
            Tensor(f"blk.{i}.ffn_up_shexp.weight", (n_embd, shared), weight_type),
            Tensor(f"blk.{i}.ffn_down_shexp.weight", (shared, n_embd), weight_type),
        ]
    kv = _common("deepseek2", name, n_layers, n_embd, n_ff, n_heads, 1, n_ctx_train, weight_type)
    kv |= _expert_keys("deepseek2", n_experts, n_experts_used, n_ff_expert)
    kv |= {
        "deepseek2.leading_dense_block_count": n_dense,
        "deepseek2.expert_shared_count": n_experts_shared,
        "deepseek2.attention.q_lora_rank": q_rank,
        "deepseek2.attention.kv_lora_rank": kv_rank,
        "deepseek2.attention.key_length": kv_rank + head_rope,
        "deepseek2.attention.value_length": kv_rank,
        "deepseek2.attention.key_length_mla": head_key,
        "deepseek2.attention.value_length_mla": head_value,
        "deepseek2.rope.dimension_count": head_rope,
    }
    return write_gguf(
        path, "deepseek2", kv | spm_vocabulary(n_vocab) | dict(extra or {}), tensors, seed=seed, sparse=sparse
    )


def make_mamba2(
    path: Path | str,
    *,
    name: str = "tiny-mamba2",
    seed: int = 0,
    n_layers: int = 2,
    n_embd: int = 64,
    d_conv: int = 4,
    d_state: int = 16,
    head: int = 16,
    n_groups: int = 1,
    n_vocab: int = MIN_VOCAB,
    n_ctx_train: int = 4096,
    weight_type: str = "f32",
    sparse: bool = False,
) -> Path:
    """A recurrent model: a fixed state for every sequence, and no cache that grows with the context."""
    d_inner = 2 * n_embd
    tensors = _embedding_tensors(n_embd, n_vocab, True, weight_type)
    for i in range(n_layers):
        tensors += _mamba2(i, n_embd, d_inner, d_conv, d_state, d_inner // head, n_groups, weight_type)
    kv = _common("mamba2", name, n_layers, n_embd, 0, 0, 0, n_ctx_train, weight_type)
    kv |= _ssm_keys("mamba2", d_inner, d_conv, d_state, d_inner // head, n_groups)
    return write_gguf(path, "mamba2", kv | spm_vocabulary(n_vocab), tensors, seed=seed, sparse=sparse)


def make_granite_hybrid(
    path: Path | str,
    *,
    name: str = "tiny-hybrid",
    seed: int = 0,
    n_layers: int = 4,
    attention_every: int = 4,
    n_embd: int = 64,
    n_ff: int = 128,
    n_heads: int = 4,
    n_heads_kv: int = 2,
    d_conv: int = 4,
    d_state: int = 16,
    head_ssm: int = 16,
    n_groups: int = 1,
    n_vocab: int = MIN_VOCAB,
    n_ctx_train: int = 4096,
    weight_type: str = "f32",
    sparse: bool = False,
) -> Path:
    """A hybrid: recurrent layers, and attention in the last of every `attention_every` layers."""
    d_inner = 2 * n_embd
    head = n_embd // n_heads
    heads_kv = [n_heads_kv if (i + 1) % attention_every == 0 else 0 for i in range(n_layers)]
    tensors = _embedding_tensors(n_embd, n_vocab, False, weight_type)
    for i, kv_heads in enumerate(heads_kv):
        if kv_heads:
            tensors += _attention(i, n_embd, n_heads * head, kv_heads * head, weight_type)
        else:
            tensors += _mamba2(
                i, n_embd, d_inner, d_conv, d_state, d_inner // head_ssm, n_groups, weight_type
            )
        tensors += _feed_forward(i, n_embd, n_ff, weight_type)
    kv = _common("granitehybrid", name, n_layers, n_embd, n_ff, n_heads, heads_kv, n_ctx_train, weight_type)
    kv |= _ssm_keys("granitehybrid", d_inner, d_conv, d_state, d_inner // head_ssm, n_groups)
    return write_gguf(path, "granitehybrid", kv | spm_vocabulary(n_vocab), tensors, seed=seed, sparse=sparse)


def make_qwen3next(
    path: Path | str,
    *,
    name: str = "tiny-deltanet",
    seed: int = 0,
    n_layers: int = 4,
    n_embd: int = 64,
    n_heads: int = 4,
    n_heads_kv: int = 2,
    head: int = 32,
    n_experts: int = 8,
    n_experts_used: int = 2,
    n_ff_expert: int = 32,
    d_state: int = 32,
    n_heads_key: int = 2,
    n_heads_value: int = 4,
    d_conv: int = 4,
    n_vocab: int = MIN_VOCAB,
    n_ctx_train: int = 4096,
    weight_type: str = "f32",
    sparse: bool = False,
) -> Path:
    """A hybrid of gated delta nets and attention (in every fourth layer), with experts and a shared one."""
    d_inner = n_heads_value * d_state
    conv = 2 * n_heads_key * d_state + d_inner
    tensors = _embedding_tensors(n_embd, n_vocab, False, weight_type)
    for i in range(n_layers):
        if (i + 1) % 4 == 0:
            tensors += _attention(i, n_embd, n_heads * head, n_heads_kv * head, weight_type)[:1]
            tensors += [
                Tensor(f"blk.{i}.attn_q.weight", (n_embd, 2 * n_heads * head), weight_type),
                Tensor(f"blk.{i}.attn_k.weight", (n_embd, n_heads_kv * head), weight_type),
                Tensor(f"blk.{i}.attn_v.weight", (n_embd, n_heads_kv * head), weight_type),
                Tensor(f"blk.{i}.attn_output.weight", (n_heads * head, n_embd), weight_type),
                *_qk_norms(i, head),
            ]
        else:
            tensors += [
                Tensor(f"blk.{i}.attn_norm.weight", (n_embd,), fill="ones"),
                Tensor(f"blk.{i}.attn_qkv.weight", (n_embd, conv), weight_type),
                Tensor(f"blk.{i}.attn_gate.weight", (n_embd, d_inner), weight_type),
                Tensor(f"blk.{i}.ssm_conv1d.weight", (d_conv, conv)),
                Tensor(f"blk.{i}.ssm_dt.bias", (n_heads_value,), fill="zeros"),
                Tensor(f"blk.{i}.ssm_a", (n_heads_value,), fill="zeros"),
                Tensor(f"blk.{i}.ssm_ba.weight", (n_embd, 2 * n_heads_value), weight_type),
                Tensor(f"blk.{i}.ssm_norm.weight", (d_state,), fill="ones"),
                Tensor(f"blk.{i}.ssm_out.weight", (d_inner, n_embd), weight_type),
            ]
        tensors += [Tensor(f"blk.{i}.post_attention_norm.weight", (n_embd,), fill="ones")]
        tensors += _experts(i, n_embd, n_ff_expert, n_experts, weight_type)
        tensors += [
            Tensor(f"blk.{i}.ffn_gate_inp_shexp.weight", (n_embd,)),
            Tensor(f"blk.{i}.ffn_gate_shexp.weight", (n_embd, n_ff_expert), weight_type),
            Tensor(f"blk.{i}.ffn_up_shexp.weight", (n_embd, n_ff_expert), weight_type),
            Tensor(f"blk.{i}.ffn_down_shexp.weight", (n_ff_expert, n_embd), weight_type),
        ]
    kv = _common(
        "qwen3next", name, n_layers, n_embd, n_ff_expert, n_heads, n_heads_kv, n_ctx_train, weight_type
    )
    kv |= _expert_keys("qwen3next", n_experts, n_experts_used, n_ff_expert)
    kv |= _ssm_keys("qwen3next", d_inner, d_conv, d_state, n_heads_value, n_heads_key)
    kv |= {
        "qwen3next.attention.key_length": head,
        "qwen3next.attention.value_length": head,
        "qwen3next.expert_shared_feed_forward_length": n_ff_expert,
    }
    return write_gguf(path, "qwen3next", kv | spm_vocabulary(n_vocab), tensors, seed=seed, sparse=sparse)


def make_gpt_oss(
    path: Path | str,
    *,
    name: str = "tiny-gpt-oss",
    seed: int = 0,
    n_layers: int = 4,
    n_embd: int = 64,
    n_heads: int = 4,
    n_heads_kv: int = 2,
    head: int = 32,
    n_experts: int = 4,
    n_experts_used: int = 2,
    n_ff_expert: int = 64,
    n_swa: int = 128,
    n_vocab: int = MIN_VOCAB,
    n_ctx_train: int = 4096,
    weight_type: str = "f32",
    sparse: bool = False,
) -> Path:
    """Experts, and a short sliding window in every other layer."""
    tensors = _embedding_tensors(n_embd, n_vocab, False, weight_type)
    for i in range(n_layers):
        n_q, n_kv = n_heads * head, n_heads_kv * head
        tensors += _attention(i, n_embd, n_q, n_kv, weight_type)
        biases = {
            "attn_q": n_q,
            "attn_k": n_kv,
            "attn_v": n_kv,
            "attn_output": n_embd,
            "ffn_gate_inp": n_experts,
        }
        tensors += [Tensor(f"blk.{i}.{part}.bias", (n,), fill="zeros") for part, n in biases.items()]
        tensors += [
            Tensor(f"blk.{i}.attn_sinks.weight", (n_heads,), fill="zeros"),
            Tensor(f"blk.{i}.post_attention_norm.weight", (n_embd,), fill="ones"),
            *_experts(i, n_embd, n_ff_expert, n_experts, weight_type),
            Tensor(f"blk.{i}.ffn_gate_exps.bias", (n_ff_expert, n_experts), fill="zeros"),
            Tensor(f"blk.{i}.ffn_up_exps.bias", (n_ff_expert, n_experts), fill="zeros"),
            Tensor(f"blk.{i}.ffn_down_exps.bias", (n_embd, n_experts), fill="zeros"),
        ]
    kv = _common(
        "gpt-oss", name, n_layers, n_embd, n_ff_expert, n_heads, n_heads_kv, n_ctx_train, weight_type
    )
    kv |= _expert_keys("gpt-oss", n_experts, n_experts_used, n_ff_expert)
    kv |= {
        "gpt-oss.attention.key_length": head,
        "gpt-oss.attention.value_length": head,
        "gpt-oss.attention.sliding_window": n_swa,
        "gpt-oss.rope.dimension_count": head,
    }
    return write_gguf(path, "gpt-oss", kv | spm_vocabulary(n_vocab), tensors, seed=seed, sparse=sparse)


def make_bert(
    path: Path | str,
    *,
    name: str = "tiny-embedding",
    seed: int = 0,
    n_layers: int = 2,
    n_embd: int = 64,
    n_ff: int = 128,
    n_heads: int = 4,
    n_ctx_train: int = 512,
    n_vocab: int = 256,
    weight_type: str = "f32",
    sparse: bool = False,
    pooling: int = MEAN,
) -> Path:
    """An embedding model without a KV cache (start the server with --embedding); with `pooling` RANK it has
    the classifier of a reranker."""
    words = [word.lstrip("▁") for word in _WORDS if len(word) > 2]
    tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    # llama.cpp's WordPiece marks the start of a word with ▁ and its continuation with nothing.
    tokens += ["▁" + text for text in [*string.ascii_lowercase, *string.digits, *words]]
    tokens += [*string.ascii_lowercase, *string.digits]
    tokens += [f"[unused{i}]" for i in range(n_vocab - len(tokens))]
    tensors = [
        Tensor("token_embd.weight", (n_embd, n_vocab), weight_type),
        Tensor("token_types.weight", (n_embd, 2), "f32"),
        Tensor("position_embd.weight", (n_embd, n_ctx_train), "f32"),
        Tensor("token_embd_norm.weight", (n_embd,), fill="ones"),
        Tensor("token_embd_norm.bias", (n_embd,), fill="zeros"),
    ]
    for i in range(n_layers):
        for part, shape in (
            ("attn_q", (n_embd, n_embd)),
            ("attn_k", (n_embd, n_embd)),
            ("attn_v", (n_embd, n_embd)),
            ("attn_output", (n_embd, n_embd)),
            ("ffn_up", (n_embd, n_ff)),
            ("ffn_down", (n_ff, n_embd)),
        ):
            tensors.append(Tensor(f"blk.{i}.{part}.weight", shape, weight_type))
            tensors.append(Tensor(f"blk.{i}.{part}.bias", shape[1:], fill="zeros"))
        for part in ("attn_output_norm", "layer_output_norm"):
            tensors.append(Tensor(f"blk.{i}.{part}.weight", (n_embd,), fill="ones"))
            tensors.append(Tensor(f"blk.{i}.{part}.bias", (n_embd,), fill="zeros"))
    if pooling == RANK:
        tensors += [Tensor("cls.output.weight", (n_embd, 1)), Tensor("cls.output.bias", (1,), fill="zeros")]
    kv = _common("bert", name, n_layers, n_embd, n_ff, n_heads, n_heads, n_ctx_train, weight_type)
    kv |= {
        "bert.attention.layer_norm_epsilon": 1e-12,
        "bert.attention.causal": False,
        "bert.pooling_type": pooling,
        "tokenizer.ggml.model": "bert",
        "tokenizer.ggml.pre": "jina-v2-en",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [3] * 5 + [1] * (len(tokens) - 5),
        "tokenizer.ggml.token_type_count": 2,
        "tokenizer.ggml.padding_token_id": 0,
        "tokenizer.ggml.unknown_token_id": 1,
        "tokenizer.ggml.cls_token_id": 2,
        "tokenizer.ggml.bos_token_id": 2,
        "tokenizer.ggml.seperator_token_id": 3,
        "tokenizer.ggml.mask_token_id": 4,
    }
    return write_gguf(path, "bert", kv, tensors, seed=seed, sparse=sparse)


def make_mmproj(
    path: Path | str,
    *,
    name: str = "tiny-mmproj",
    seed: int = 0,
    n_layers: int = 2,
    n_embd: int = 64,
    n_ff: int = 128,
    n_heads: int = 4,
    image_size: int = 64,
    patch_size: int = 16,
    projection: int = 64,
) -> Path:
    """A LLaVA projector (CLIP encoder and two-layer MLP) for a text model whose n_embd is `projection`."""
    n_patches = (image_size // patch_size) ** 2
    tensors = [
        Tensor("v.class_embd", (n_embd,)),
        Tensor("v.patch_embd.weight", (patch_size, patch_size, 3, n_embd)),
        Tensor("v.position_embd.weight", (n_embd, n_patches + 1)),
        Tensor("v.pre_ln.weight", (n_embd,), fill="ones"),
        Tensor("v.pre_ln.bias", (n_embd,), fill="zeros"),
        Tensor("mm.0.weight", (n_embd, projection)),
        Tensor("mm.0.bias", (projection,), fill="zeros"),
        Tensor("mm.2.weight", (projection, projection)),
        Tensor("mm.2.bias", (projection,), fill="zeros"),
    ]
    for i in range(n_layers):
        parts = {
            "attn_q": (n_embd, n_embd),
            "attn_k": (n_embd, n_embd),
            "attn_v": (n_embd, n_embd),
            "attn_out": (n_embd, n_embd),
            "ffn_up": (n_embd, n_ff),
            "ffn_down": (n_ff, n_embd),
        }
        for part, shape in parts.items():
            tensors.append(Tensor(f"v.blk.{i}.{part}.weight", shape))
            tensors.append(Tensor(f"v.blk.{i}.{part}.bias", shape[1:], fill="zeros"))
        for part in ("ln1", "ln2"):
            tensors.append(Tensor(f"v.blk.{i}.{part}.weight", (n_embd,), fill="ones"))
            tensors.append(Tensor(f"v.blk.{i}.{part}.bias", (n_embd,), fill="zeros"))
    kv: dict[str, KvValue] = {
        "general.type": "mmproj",
        "general.name": name,
        "general.file_type": 0,
        "clip.has_vision_encoder": True,
        "clip.projector_type": "mlp",
        "clip.use_gelu": True,
        "clip.vision.embedding_length": n_embd,
        "clip.vision.feed_forward_length": n_ff,
        "clip.vision.block_count": n_layers,
        "clip.vision.attention.head_count": n_heads,
        "clip.vision.attention.layer_norm_epsilon": 1e-5,
        "clip.vision.projection_dim": projection,
        "clip.vision.image_size": image_size,
        "clip.vision.patch_size": patch_size,
        "clip.vision.image_mean": [0.5, 0.5, 0.5],
        "clip.vision.image_std": [0.5, 0.5, 0.5],
    }
    return write_gguf(path, "clip", kv, tensors, seed=seed)


# --- parts shared by the architectures --------------------------------------------------------------------


def spm_vocabulary(n_vocab: int) -> dict[str, KvValue]:
    """Keys of a SentencePiece vocabulary: control, byte and text tokens, then unused ones up to `n_vocab`."""
    assert n_vocab >= MIN_VOCAB, f"a vocabulary needs at least {MIN_VOCAB} tokens"
    padding = [f"[unused{i}]" for i in range(n_vocab - MIN_VOCAB)]
    tokens = [*_CONTROL_TOKENS, *_BYTE_TOKENS, *_TEXT_TOKENS, *padding]
    # llama_token_type: 1 normal, 2 unknown, 3 control, 5 unused, 6 byte
    types = [2, 3, 3] + [6] * len(_BYTE_TOKENS) + [1] * len(_TEXT_TOKENS) + [5] * len(padding)
    # Longer pieces must score higher or the tokenizer never joins letters into words.
    scores = (
        [0.0] * _FIRST_TEXT_TOKEN + [float(len(t)) - 10.0 for t in _TEXT_TOKENS] + [-100.0] * len(padding)
    )
    return {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.pre": "default",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.scores": scores,
        "tokenizer.ggml.token_type": types,
        "tokenizer.ggml.unknown_token_id": 0,
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.add_bos_token": True,
        "tokenizer.chat_template": CHAT_TEMPLATE,
    }


def _common(
    arch: str,
    name: str,
    n_layers: int,
    n_embd: int,
    n_ff: int | Sequence[int],
    n_heads: int | Sequence[int],
    n_heads_kv: int | Sequence[int],
    n_ctx_train: int,
    weight_type: str,
) -> dict[str, KvValue]:
    return {
        "general.name": name,
        "general.file_type": FILE_TYPES[weight_type],
        f"{arch}.block_count": n_layers,
        f"{arch}.context_length": n_ctx_train,
        f"{arch}.embedding_length": n_embd,
        f"{arch}.feed_forward_length": n_ff,
        f"{arch}.attention.head_count": n_heads,
        f"{arch}.attention.head_count_kv": n_heads_kv,
        f"{arch}.attention.layer_norm_rms_epsilon": 1e-5,
    }


def _embedding_tensors(n_embd: int, n_vocab: int, tied: bool, weight_type: str) -> list[Tensor]:
    tensors = [
        Tensor("token_embd.weight", (n_embd, n_vocab), weight_type, "vocab"),
        Tensor("output_norm.weight", (n_embd,), fill="ones"),
    ]
    if not tied:
        tensors.append(Tensor("output.weight", (n_embd, n_vocab), weight_type, "vocab"))
    return tensors


def _attention(i: int, n_embd: int, n_q: int, n_kv: int, weight_type: str) -> list[Tensor]:
    return [
        Tensor(f"blk.{i}.attn_norm.weight", (n_embd,), fill="ones"),
        Tensor(f"blk.{i}.attn_q.weight", (n_embd, n_q), weight_type),
        Tensor(f"blk.{i}.attn_k.weight", (n_embd, n_kv), weight_type),
        Tensor(f"blk.{i}.attn_v.weight", (n_embd, n_kv), weight_type),
        Tensor(f"blk.{i}.attn_output.weight", (n_q, n_embd), weight_type),
    ]


def _feed_forward(i: int, n_embd: int, n_ff: int, weight_type: str) -> list[Tensor]:
    return [
        Tensor(f"blk.{i}.ffn_norm.weight", (n_embd,), fill="ones"),
        Tensor(f"blk.{i}.ffn_gate.weight", (n_embd, n_ff), weight_type),
        Tensor(f"blk.{i}.ffn_up.weight", (n_embd, n_ff), weight_type),
        Tensor(f"blk.{i}.ffn_down.weight", (n_ff, n_embd), weight_type),
    ]


def _qk_norms(i: int, head: int) -> list[Tensor]:
    return [
        Tensor(f"blk.{i}.attn_q_norm.weight", (head,), fill="ones"),
        Tensor(f"blk.{i}.attn_k_norm.weight", (head,), fill="ones"),
    ]


def _experts(i: int, n_embd: int, n_ff: int, n_experts: int, weight_type: str) -> list[Tensor]:
    return [
        Tensor(f"blk.{i}.ffn_gate_inp.weight", (n_embd, n_experts)),
        Tensor(f"blk.{i}.ffn_gate_exps.weight", (n_embd, n_ff, n_experts), weight_type),
        Tensor(f"blk.{i}.ffn_up_exps.weight", (n_embd, n_ff, n_experts), weight_type),
        Tensor(f"blk.{i}.ffn_down_exps.weight", (n_ff, n_embd, n_experts), weight_type),
    ]


def _expert_keys(arch: str, n_experts: int, n_used: int, n_ff: int) -> dict[str, KvValue]:
    return {
        f"{arch}.expert_count": n_experts,
        f"{arch}.expert_used_count": n_used,
        f"{arch}.expert_feed_forward_length": n_ff,
    }


def _mamba2(
    i: int,
    n_embd: int,
    d_inner: int,
    d_conv: int,
    d_state: int,
    n_heads: int,
    n_groups: int,
    weight_type: str,
) -> list[Tensor]:
    conv = d_inner + 2 * n_groups * d_state
    return [
        Tensor(f"blk.{i}.attn_norm.weight", (n_embd,), fill="ones"),
        Tensor(f"blk.{i}.ssm_in.weight", (n_embd, d_inner + conv + n_heads), weight_type),
        Tensor(f"blk.{i}.ssm_conv1d.weight", (d_conv, conv)),
        Tensor(f"blk.{i}.ssm_conv1d.bias", (conv,), fill="zeros"),
        Tensor(f"blk.{i}.ssm_dt.bias", (n_heads,), fill="zeros"),
        # Negative in a trained model, where the state must fade; zero keeps it, which is stable enough here.
        Tensor(f"blk.{i}.ssm_a", (1, n_heads), fill="zeros"),
        Tensor(f"blk.{i}.ssm_d", (1, n_heads), fill="ones"),
        Tensor(f"blk.{i}.ssm_norm.weight", (d_inner // n_groups, n_groups), fill="ones"),
        Tensor(f"blk.{i}.ssm_out.weight", (d_inner, n_embd), weight_type),
    ]


def _ssm_keys(
    arch: str, d_inner: int, d_conv: int, d_state: int, n_heads: int, n_groups: int
) -> dict[str, KvValue]:
    return {
        f"{arch}.ssm.inner_size": d_inner,
        f"{arch}.ssm.conv_kernel": d_conv,
        f"{arch}.ssm.state_size": d_state,
        f"{arch}.ssm.time_step_rank": n_heads,
        f"{arch}.ssm.group_count": n_groups,
    }


def _ff_for_size(approx_mib: float, weight_type: str, *, n_layers: int, n_embd: int, n_vocab: int) -> int:
    block, type_size = gguf.GGML_QUANT_SIZES[WEIGHT_TYPES[weight_type]]
    weights = approx_mib * 2**20 * block / type_size - 2 * n_embd * n_vocab
    return max(32, round(weights / (3 * n_embd * n_layers) / 32) * 32)


# --- writing -----------------------------------------------------------------------------------------------


def write_gguf(
    path: Path | str,
    arch: str,
    kv: Mapping[str, KvValue],
    tensors: Iterable[Tensor],
    *,
    seed: int = 0,
    sparse: bool = False,
    shards: int = 1,
) -> Path:
    """Write a GGUF v3 file; `sparse` leaves the data as a hole that reads as zeros."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    tensors = list(tensors)
    per_shard = -(-len(tensors) // shards) if shards > 1 else 0
    writer = gguf.GGUFWriter(path, arch, split_max_tensors=per_shard)
    for key, value in kv.items():
        _add_kv(writer, key, value)
    random = np.random.default_rng(seed)
    for tensor in tensors:
        qtype = WEIGHT_TYPES[tensor.type]
        if sparse:
            rows = tensor.shape[:0:-1]
            block, type_size = gguf.GGML_QUANT_SIZES[qtype]
            shape = (*rows, tensor.shape[0] // block * type_size)
            writer.add_tensor_info(
                tensor.name, shape, np.dtype(np.uint8), int(np.prod(shape, dtype=np.int64)), raw_dtype=qtype
            )
        else:
            data = _fill(tensor, random)
            writer.add_tensor(tensor.name, quants.quantize(data, qtype), raw_dtype=qtype)
    if sparse:
        assert shards == 1, "a sparse model has one file"
        _write_sparse(writer, tensors, path)
    else:
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
    return shard_path(path, 1, shards) if shards > 1 else path


def shard_path(path: Path, number: int, count: int) -> Path:
    """llama.cpp's name of shard `number` (from 1) of `count`: `NAME-00001-of-00003.gguf`."""
    return path.with_name(f"{path.stem}-{number:05d}-of-{count:05d}.gguf")


def _write_sparse(writer: gguf.GGUFWriter, tensors: Sequence[Tensor], path: Path) -> None:
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    writer.close()
    header_bytes = _pad(path.stat().st_size, 32)
    data_bytes = sum(_pad(tensor_bytes(t), 32) for t in tensors)
    with path.open("r+b") as file:
        file.truncate(header_bytes + data_bytes)


def tensor_bytes(tensor: Tensor) -> int:
    """Bytes of a tensor in the file."""
    block, type_size = gguf.GGML_QUANT_SIZES[WEIGHT_TYPES[tensor.type]]
    return int(np.prod(tensor.shape, dtype=np.int64)) // block * type_size


def _pad(n: int, align: int) -> int:
    return -(-n // align) * align


def _add_kv(writer: gguf.GGUFWriter, key: str, value: KvValue) -> None:
    match value:
        case bool():
            writer.add_bool(key, value)
        case int():
            writer.add_uint32(key, value)
        case float():
            writer.add_float32(key, value)
        case str():
            writer.add_string(key, value)
        case _:
            writer.add_array(key, list(value))


def _fill(tensor: Tensor, random: np.random.Generator) -> np.ndarray:
    shape = tensor.shape[::-1]  # numpy's order: the fastest dimension last
    if tensor.fill == "ones":
        return np.ones(shape, np.float32)
    if tensor.fill == "zeros":
        return np.zeros(shape, np.float32)
    if tensor.fill in ("hears", "answers"):
        data = np.zeros(shape, np.float32)
        if tensor.fill == "hears":
            data[:, 0] = 1
            data[-1] = np.eye(1, shape[1], 1)
        else:
            data[-1, 0] = data[_END_TOKEN, 1] = 50
        return data
    # A block repeated is as good as fresh numbers for a model that means nothing, and 50 times faster.
    size = int(np.prod(shape, dtype=np.int64))
    block = random.standard_normal(min(size, 1 << 18), np.float32)
    data = np.resize(block, size).reshape(shape) / np.float32(np.sqrt(tensor.shape[0]))
    if tensor.fill == "vocab":
        data[:_FIRST_TEXT_TOKEN] = 0
        data[MIN_VOCAB:] = 0
        data *= np.float32(8.0)  # sharp logits: sampling at temperature 1 stays with the printable tokens
    return data
