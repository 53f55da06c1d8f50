"""Compute buffers: what the largest step of the graph needs at once, one buffer per device.

Fitted, not derived: llama.cpp's graph allocator reuses memory between operations, so a buffer is the maximum
over the graph, not a sum. The formula was fitted to the CPU build of llama.cpp b11434 (see
tests/memory/estimate) and is meant to err on the large side.
"""

from __future__ import annotations

from collections.abc import Iterator

from router.memory.estimate.context import cells, state_bytes, ubatch, uses_flash_attention
from router.memory.estimate.layout import Layout, layer_devices
from router.memory.estimate.shape import Layer, ModelShape
from router.memory.estimate.values import MIB, LoadSettings, Term
from router.memory.estimate.weights import WeightPlan

_PIPELINE_COPIES = 4
"""Copies of the graph's inputs on every GPU of a layer split (GGML_SCHED_MAX_COPIES)."""
_SLACK_BYTES = MIB // 2
"""Small tensors, alignment."""
_PLAIN_TYPES = frozenset(("f32", "f16", "bf16"))


def compute_terms(
    shape: ModelShape, settings: LoadSettings, layout: Layout, plan: WeightPlan
) -> Iterator[Term]:
    """The compute buffer of every device that takes part, and the output buffer on the host."""
    devices = layer_devices(layout, shape.n_layers_all)
    n_tokens = ubatch(shape, settings, layout.ctx_size)
    block = _block_bytes(shape, settings, layout, n_tokens)
    output = _output_bytes(shape, settings, layout, n_tokens)
    masks = _mask_bytes(shape, settings, layout, n_tokens)
    host = layout.host.id
    has_overrides = any(buffer is not None for _, buffer in plan.sums)
    is_whole = host not in devices and settings.kv_offload and not has_overrides
    inputs = masks + 8 * n_tokens * shape.n_embd
    copies = (
        _PIPELINE_COPIES - 1 if is_whole and len(layout.gpus) > 1 and settings.split_mode == "layer" else 0
    )
    for device in dict.fromkeys([*layout.device_ids, host]):
        runs_blocks = device in devices[: len(shape.layers)]
        parts = [block] if runs_blocks else []
        parts += [output] if device == devices[-1] else []
        if device == host and layout.gpus and not runs_blocks:
            yield Term(host, "compute", inputs + _SLACK_BYTES, f"inputs of a step of {n_tokens} tokens")
            continue
        if not parts and device != host:
            parts = [inputs]
        size = max(parts, default=inputs) + copies * inputs + _SLACK_BYTES
        what = f"the widest part of a step of {n_tokens} tokens"
        if copies:
            what += f", {_PIPELINE_COPIES} copies of its inputs (pipeline over {len(layout.gpus)} GPUs)"
        yield Term(device, "compute", size, what)
    yield from _op_offload_terms(settings, layout, plan, devices)
    # For an embedding every token of a step is an output, with a row of logits that nobody reads.
    is_pooled = settings.embedding or not shape.has_cache
    rows = max(settings.n_slots, n_tokens if is_pooled else 0)
    width = shape.n_vocab + (shape.n_embd if is_pooled else 0)
    yield Term(host, "output", 4 * rows * width, f"{rows} rows of {width} outputs, F32")


def _block_bytes(shape: ModelShape, settings: LoadSettings, layout: Layout, n_tokens: int) -> int:
    """The widest point within a block: feed-forward, experts, attention, or the state space."""
    n_embd, n_ff, n_used = shape.n_embd, shape.n_ff_expert, shape.n_expert_used
    dense = (3 if shape.is_gated else 2) * shape.n_ff_max + 5 * n_embd
    experts = max(n_used * (2 * n_embd + 2 * n_ff), n_used * 3 * n_ff + 5 * n_embd)
    masks = _mask_bytes(shape, settings, layout, n_tokens)
    return max(
        4 * n_tokens * max(dense, experts) + masks,
        _attention_bytes(shape, settings, layout, n_tokens) + masks,
        _state_space_bytes(shape, settings, n_tokens) + masks,
    )


def _attention_bytes(shape: ModelShape, settings: LoadSettings, layout: Layout, n_tokens: int) -> int:
    """The residual, queries, keys, values and their product; without
    flash attention the scores too, in F32."""
    has_flash = uses_flash_attention(shape, settings)
    size = (
        4 * n_tokens * max(3 * shape.n_embd + _heads_width(shape, layer, has_flash) for layer in shape.layers)
    )
    if has_flash:
        return size
    return size + 4 * n_tokens * shape.n_head_max * max(_cells_seen(shape, settings, layout))


def _heads_width(shape: ModelShape, layer: Layer, has_flash: bool) -> int:
    queries, product = layer.n_head * layer.key_length, layer.n_head * layer.value_length
    cached = layer.n_head_kv * (layer.key_length + layer.value_length)
    if shape.is_mla:  # queries and product in the compressed space, and before and after it
        return queries + product + 2 * layer.n_head * shape.mla_key_length + cached
    return 2 * queries + cached if has_flash else 4 * max(queries, product) + 3 * cached


def _state_space_bytes(shape: ModelShape, settings: LoadSettings, n_tokens: int) -> int:
    """A Mamba-2 block: its projection, convolution and scan, and two copies of the state of every slot."""
    if not shape.has_state:
        return 0
    width = shape.ssm_projection + 2 * shape.ssm_conv + 3 * shape.ssm_inner + 3 * shape.n_embd
    return 4 * n_tokens * width + 2 * settings.n_slots * state_bytes(shape)


def _output_bytes(shape: ModelShape, settings: LoadSettings, layout: Layout, n_tokens: int) -> int:
    """The end of the graph: logits of as many tokens as are asked for, beside what leads to them. A decoder
    computes them for embeddings too, where every token is an output; an encoder has none."""
    n_out = n_tokens if settings.embedding else min(settings.n_slots, n_tokens)
    logits = 4 * n_out * shape.n_vocab if shape.has_cache else 0
    return logits + 24 * n_tokens * shape.n_embd + _mask_bytes(shape, settings, layout, n_tokens)


def _mask_bytes(shape: ModelShape, settings: LoadSettings, layout: Layout, n_tokens: int) -> int:
    """Inputs of attention, for each kind of cache: a mask (F16 with flash attention, else F32), and with
    quantised caches the matrix of a head's size by which keys and values are rotated."""
    seen = _cells_seen(shape, settings, layout)
    item = 2 if uses_flash_attention(shape, settings) else 4
    size = item * n_tokens * sum(seen)
    if not {settings.cache_type_k, settings.cache_type_v} <= _PLAIN_TYPES:
        size += 4 * len(seen) * max(layer.key_length for layer in shape.layers) ** 2
    return size


def _cells_seen(shape: ModelShape, settings: LoadSettings, layout: Layout) -> list[int]:
    """How many cells a token may attend to, for each kind of attention (full, sliding window);
    without a cache the tokens of its step."""
    if not shape.has_cache:
        return [ubatch(shape, settings, layout.ctx_size)] * (2 if shape.n_swa else 1)
    size = cells(shape, settings, layout.ctx_size)
    kinds = {layer.is_swa for layer in shape.layers if layer.has_kv}
    return [size.swa if is_swa else size.full for is_swa in kinds] or [0]


def _op_offload_terms(
    settings: LoadSettings, layout: Layout, plan: WeightPlan, devices: list[str]
) -> Iterator[Term]:
    """Weights of the host that a GPU borrows for large batches (op
    offload): the largest part of a layer at once."""
    if not settings.op_offload or not layout.gpus:
        return
    borrowed = [
        part.largest
        for (slot, buffer), part in plan.sums.items()
        if slot >= 0 and (buffer == "CPU" or (buffer is None and devices[slot] == layout.host.id))
    ]
    if borrowed:
        yield Term(layout.gpus[0].id, "compute", 2 * max(borrowed),
                   "room to copy weights of the host to for batches of 32 tokens or more")  # fmt: skip
