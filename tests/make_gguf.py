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

CHAT_TEMPLATE = (
    "{% for message in messages %}{{ message['role'] }}: {{ message['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant:{% endif %}"
)

_WORDS = ["▁" + letter for letter in string.ascii_lowercase] + [
    "▁the", "▁of", "▁and", "▁to", "▁in", "▁is", "▁model", "▁router", "▁memory", "▁token", "▁hello", "▁world",
]  # fmt: skip
_TEXT_TOKENS = ["▁", *string.ascii_letters, *string.digits, *".,:;!?-_'\"()[]{}<>/\\+=*&^%$#@|~`", *_WORDS]
_CONTROL_TOKENS = ["<unk>", "<s>", "</s>"]
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
    # A block repeated is as good as fresh numbers for a model that means nothing, and 50 times faster.
    size = int(np.prod(shape, dtype=np.int64))
    block = random.standard_normal(min(size, 1 << 18), np.float32)
    data = np.resize(block, size).reshape(shape) / np.float32(np.sqrt(tensor.shape[0]))
    if tensor.fill == "vocab":
        data[:_FIRST_TEXT_TOKEN] = 0
        data[MIN_VOCAB:] = 0
        data *= np.float32(8.0)  # sharp logits: sampling at temperature 1 stays with the printable tokens
    return data
