"""Models and machines for tests of the estimator: headers made of a few numbers, without a file."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from router.gguf import GGML_TYPES, GgufMetadata, KvValue, TensorInfo
from router.memory.estimate import DeviceBudget, Layout

MIB = 1 << 20
GIB = 1 << 30
TYPE_IDS = {name: type_id for type_id, (name, _, _) in GGML_TYPES.items()}

HOST = DeviceBudget("box/host", "host", 64 * GIB, 60 * GIB, 2 * GIB)


def gpu(number: int, gib: float, free_gib: float | None = None, kind: str = "cuda") -> DeviceBudget:
    """A GPU with 1 GiB of margin."""
    free = gib if free_gib is None else free_gib
    return DeviceBudget(f"box/{kind}:{number}", kind, int(gib * GIB), int(free * GIB), GIB)


def on_host(ctx_size: int = 4096) -> Layout:
    return Layout(HOST, (), 0, (), ctx_size)


def on_gpus(
    *gpus: DeviceBudget, n_gpu_layers: int = 999, split: tuple[float, ...] = (), ctx_size: int = 4096
) -> Layout:
    return Layout(HOST, gpus, n_gpu_layers, split, ctx_size)


def tensor(name: str, *shape: int, type_name: str = "F16") -> TensorInfo:
    type_id = TYPE_IDS[type_name]
    _, block, size = GGML_TYPES[type_id]
    n = 1
    for dimension in shape:
        n *= dimension
    return TensorInfo(name, shape, type_id, n // block * size)


def metadata(
    architecture: str,
    kv: Mapping[str, KvValue],
    tensors: tuple[TensorInfo, ...] = (),
    n_vocab: int = 32_000,
    file_size_bytes: int | None = None,
) -> GgufMetadata:
    """A header; keys without a dot in front are those of the architecture."""
    full = {
        key if "." in key and key.startswith("general.") else f"{architecture}.{key}": v
        for key, v in kv.items()
    }
    size = sum(t.bytes for t in tensors)
    return GgufMetadata(
        path=Path("/models/made-up.gguf"),
        file_size_bytes=size if file_size_bytes is None else file_size_bytes,
        architecture=architecture,
        kv=full,
        array_lengths={"tokenizer.ggml.tokens": n_vocab},
        tensors=tensors,
    )


def llama(
    n_layers: int = 4,
    n_embd: int = 1024,
    n_ff: int = 4096,
    n_head: int = 8,
    n_head_kv: int = 8,
    n_ctx_train: int = 32_768,
    n_vocab: int = 32_000,
    tied: bool = False,
    type_name: str = "F16",
    architecture: str = "llama",
    **extra: KvValue,
) -> GgufMetadata:
    """A dense transformer with its tensors."""
    kv: dict[str, KvValue] = {
        "block_count": n_layers,
        "embedding_length": n_embd,
        "context_length": n_ctx_train,
        "feed_forward_length": n_ff,
        "attention.head_count": n_head,
        "attention.head_count_kv": n_head_kv,
    }
    kv |= {key.replace("__", "."): value for key, value in extra.items()}
    n_kv = n_embd // n_head * n_head_kv
    tensors = [tensor("token_embd.weight", n_embd, n_vocab, type_name=type_name)]
    for i in range(n_layers):
        tensors += [
            tensor(f"blk.{i}.attn_norm.weight", n_embd, type_name="F32"),
            tensor(f"blk.{i}.attn_q.weight", n_embd, n_embd, type_name=type_name),
            tensor(f"blk.{i}.attn_k.weight", n_embd, n_kv, type_name=type_name),
            tensor(f"blk.{i}.attn_v.weight", n_embd, n_kv, type_name=type_name),
            tensor(f"blk.{i}.attn_output.weight", n_embd, n_embd, type_name=type_name),
            tensor(f"blk.{i}.ffn_norm.weight", n_embd, type_name="F32"),
            tensor(f"blk.{i}.ffn_gate.weight", n_embd, n_ff, type_name=type_name),
            tensor(f"blk.{i}.ffn_up.weight", n_embd, n_ff, type_name=type_name),
            tensor(f"blk.{i}.ffn_down.weight", n_ff, n_embd, type_name=type_name),
        ]
    tensors.append(tensor("output_norm.weight", n_embd, type_name="F32"))
    if not tied:
        tensors.append(tensor("output.weight", n_embd, n_vocab, type_name=type_name))
    return metadata(architecture, kv, tuple(tensors), n_vocab)
