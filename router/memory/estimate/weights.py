"""Weights: every tensor's bytes, on the device of its layer or where an override puts it.

Source: `create_tensor` in src/llama-model-loader.cpp and the tensor table in src/llama-arch.cpp of llama.cpp
b11434.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from router.gguf import GGML_TYPES, GgufMetadata, TensorInfo
from router.memory.estimate.layout import Layout, layer_devices, split_shares
from router.memory.estimate.shape import ModelShape
from router.memory.estimate.values import LoadSettings, Term

INPUT = -1
"""The slot of tensors that stay on the host whatever is offloaded."""

_INPUT_TENSORS = frozenset(("token_embd", "position_embd", "token_types", "per_layer_token_embd"))
_FIRST_LAYER_TENSORS = frozenset(("token_embd_norm", "rope_freqs", "per_layer_model_proj"))
_BLOCK = re.compile(r"(?:enc\.|dec\.)?blk\.(\d+)\.")
_EXPERTS = r"\.ffn_(up|down|gate|gate_up)_(ch|)exps"
_DENSE_FFN = r"\.ffn_(up|down|gate)\."
"""LLM_FFN_EXPS_REGEX and LLM_FFN_DENSE_REGEX of common/common.h: --n-cpu-moe and --n-cpu-ffn."""
REPACKED_TYPES = frozenset(("Q4_0", "Q4_K", "IQ4_NL", "MXFP4"))
"""Types that the CPU backend copies into an interleaved layout (ggml-cpu/repack.cpp, x86 with AVX2)."""
_CUDA_ALIGNMENT = 128
_CUDA_ROW_PADDING = 512


@dataclass(slots=True)
class _Sum:
    #: Bytes as in the file, and with the padding of CUDA buffers.
    plain: int = 0
    on_gpu: int = 0
    #: The part of `on_gpu`, in bytes, that --split-mode row spreads over all GPUs.
    rows: int = 0
    #: The part of `plain`, in bytes, that the CPU backend copies into its own layout.
    repacked: int = 0
    #: Bytes of the largest tensor, and the number of tensors.
    largest: int = 0
    n: int = 0


@dataclass(frozen=True, slots=True)
class WeightPlan:
    """Sums of tensor bytes by slot and buffer: computed once for a model
    and its overrides, used for many layouts."""

    sums: Mapping[tuple[int, str | None], _Sum] = field(hash=False)
    n_layers: int
    tied: TensorInfo | None
    """The embedding matrix that serves as the output matrix too, and
    is loaded twice where that is elsewhere."""


def plan_weights(metadata: GgufMetadata, shape: ModelShape, settings: LoadSettings) -> WeightPlan:
    """Sort the tensors into slots. Raises ValueError for an override that is no `REGEX=BUFFER`."""
    overrides = parse_overrides(settings)
    sums: dict[tuple[int, str | None], _Sum] = {}
    tied = None
    has_output = False
    for tensor in metadata.tensors:
        slot = _slot(tensor.name, shape)
        if slot is None:
            continue
        buffer = next((target for pattern, target in overrides if pattern.search(tensor.name)), None)
        _add(sums, slot, buffer, tensor)
        if tensor.name == "token_embd.weight":
            tied = tensor
        has_output = has_output or tensor.name == "output.weight"
    return WeightPlan(sums, shape.n_layers_all, None if has_output or not shape.has_cache else tied)


def parse_overrides(settings: LoadSettings) -> list[tuple[re.Pattern[str], str]]:
    """The overrides of -ot, --cpu-moe, ... as (pattern, buffer), in the order in which llama.cpp tries them.

    Raises ValueError for one that has no `=` or whose pattern does not compile.
    """
    overrides = []
    for override in (part for value in settings.override_tensor for part in value.split(",")):
        pattern, separator, buffer = override.partition("=")
        if not separator or not buffer:
            raise ValueError(f"override_tensor {override!r} is not REGEX=BUFFER")
        try:
            overrides.append((re.compile(pattern), buffer))
        except re.error as error:
            raise ValueError(f"override_tensor {override!r}: {error}") from error
    if settings.cpu_moe:
        overrides.append((re.compile(_EXPERTS), "CPU"))
    overrides += [(re.compile(rf"blk\.{i}{_EXPERTS}"), "CPU") for i in range(settings.n_cpu_moe)]
    overrides += [(re.compile(rf"blk\.{i}{_DENSE_FFN}"), "CPU") for i in range(settings.n_cpu_ffn)]
    return overrides


def weight_terms(plan: WeightPlan, settings: LoadSettings, layout: Layout) -> Iterator[Term]:
    """Weights per device for one layout."""
    devices = layer_devices(layout, plan.n_layers)
    backends = ("CUDA", "ROCm", "Vulkan", "SYCL")
    buffers = {f"{name}{k}": gpu.id for name in backends for k, gpu in enumerate(layout.gpus)}
    by_row = (
        split_shares(layout) if settings.split_mode in ("row", "tensor") and len(layout.gpus) > 1 else None
    )
    sizes: Counter[str] = Counter()
    counts: Counter[str] = Counter()
    repacked = 0
    for (slot, buffer), part in plan.sums.items():
        device = layout.host.id if slot == INPUT else devices[slot]
        if buffer is not None:
            device = buffers.get(buffer, layout.host.id)
        counts[device] += part.n
        if device == layout.host.id:
            sizes[device] += part.plain
            repacked += part.repacked if slot != INPUT else 0
        elif by_row:
            sizes[device] += part.on_gpu - part.rows
            for gpu, share in zip(layout.gpus, by_row, strict=True):
                sizes[gpu.id] += round(part.rows * share) + _CUDA_ALIGNMENT * part.n
        else:
            sizes[device] += part.on_gpu
    yield from _tied_terms(plan, settings, layout, devices[-1])
    host = layout.host.id
    repacked = repacked if settings.repack else 0
    for device, size in sizes.items():
        if device != host:
            yield Term(device, "weights", size, f"{counts[device]} tensors, padded to {_CUDA_ALIGNMENT} B")
    if host in sizes:
        what = f"{counts[host]} tensors" + (", less those that are copied" if repacked else "")
        yield Term(host, "weights", sizes[host] - repacked, f"{what}; mapped from the file")
    if repacked:
        yield Term(host, "repacked", repacked, "matrices copied into the CPU's own layout (--repack); "
                   "their pages of the mapped file are read once and can be dropped")  # fmt: skip


def _tied_terms(plan: WeightPlan, settings: LoadSettings, layout: Layout, output: str) -> Iterator[Term]:
    if plan.tied is None:
        return
    if output != layout.host.id:
        yield Term(output, "weights", _on_gpu(plan.tied),
                   "a copy of token_embd as the output matrix (the embeddings are tied)")  # fmt: skip
    elif settings.repack and plan.tied.type_name in REPACKED_TYPES:
        yield Term(output, "repacked", plan.tied.bytes,
                   "a copy of token_embd as the output matrix in the CPU's own layout (tied)")  # fmt: skip


def _slot(name: str, shape: ModelShape) -> int | None:
    """The slot of a tensor: a layer, the output (n_layers_all), INPUT,
    or None when llama.cpp does not load it."""
    match = _BLOCK.match(name)
    if match is not None:
        layer = int(match[1])
        if layer >= shape.n_layers_all:
            return None
        if layer >= len(shape.layers) and not shape.rules.keeps_prediction_layers:
            return None  # prediction layers are skipped unless speculative decoding asks for them
        return layer
    stem = name.split(".", 1)[0]
    if stem in _INPUT_TENSORS:
        return INPUT
    return 0 if stem in _FIRST_LAYER_TENSORS else shape.n_layers_all


def _add(sums: dict[tuple[int, str | None], _Sum], slot: int, buffer: str | None, tensor: TensorInfo) -> None:
    part = sums.setdefault((slot, buffer), _Sum())
    on_gpu = _on_gpu(tensor)
    part.plain += tensor.bytes
    part.on_gpu += on_gpu
    part.largest = max(part.largest, tensor.bytes)
    part.n += 1
    n_dims = sum(1 for dimension in tensor.shape if dimension > 1)
    if n_dims == 2:
        part.rows += on_gpu
    # Matrices (and stacks of them) whose rows come in eights; a bias or a norm never is.
    if n_dims >= 2 and tensor.type_name in REPACKED_TYPES and tensor.shape[1] % 8 == 0:
        part.repacked += tensor.bytes


def _on_gpu(tensor: TensorInfo) -> int:
    """Bytes in a CUDA buffer: the last row of a quantised matrix is
    padded to 512 values, the whole to 128 B."""
    size = tensor.bytes
    known = GGML_TYPES.get(tensor.ggml_type)
    if known is not None and known[1] > 1 and tensor.shape:
        rest = tensor.shape[0] % _CUDA_ROW_PADDING
        if rest:
            size += -(-(_CUDA_ROW_PADDING - rest) // known[1]) * known[2]
    return -(-size // _CUDA_ALIGNMENT) * _CUDA_ALIGNMENT
