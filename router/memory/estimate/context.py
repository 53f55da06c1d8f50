"""The context: keys and values of every cell, and the states of recurrent layers, on the devices of their
layers.

Source: src/llama-kv-cache.cpp, llama-kv-cache-iswa.cpp, llama-kv-cache-dsa.cpp and
llama-memory-recurrent.cpp of llama.cpp b11434.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from router.gguf import GGML_TYPES
from router.memory.estimate.layout import Layout, layer_devices
from router.memory.estimate.shape import Layer, ModelShape
from router.memory.estimate.values import BATCH, DEFAULT_CTX_SIZE, MIB, UBATCH, LoadSettings, Term

#: Name of a --cache-type: (bytes of a block, values in it).
CACHE_TYPES: Mapping[str, tuple[int, int]] = {
    name.lower(): next((size, n) for known, n, size in GGML_TYPES.values() if known == name)
    for name in ("F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "IQ4_NL", "Q5_0", "Q5_1")
}
MOST_CHECKPOINTS = 32
"""For each slot: llama-server's own number. A conversation adds one with every turn."""
CHECKPOINT_BYTES = 512 * MIB
"""For all slots of a server together, but at least one checkpoint for each."""


@dataclass(frozen=True, slots=True)
class Cells:
    """How many cells a cache has: `full` or `swa` of them in each of `n_streams` streams."""

    full: int
    swa: int
    n_streams: int


def default_ctx_size(shape: ModelShape) -> int:
    """-c when none is asked for: 8192, or what the model was trained on if that is less."""
    return min(DEFAULT_CTX_SIZE, shape.n_ctx_train)


def cells(shape: ModelShape, settings: LoadSettings, ctx_size: int) -> Cells:
    """Cells of the caches. `ctx_size` is shared by all slots, or
    divided among them unless the cache is unified."""
    n_slots = settings.n_slots
    full = _pad256(ctx_size) if settings.is_unified else _pad256(_pad256(ctx_size) // n_slots)
    window = shape.n_swa * (n_slots if settings.is_unified else 1) + ubatch(shape, settings, ctx_size)
    swa = full if settings.swa_full else _pad256(min(full, window))
    return Cells(full, swa, 1 if settings.is_unified else n_slots)


def takes_input_whole(shape: ModelShape, settings: LoadSettings) -> bool:
    """Whether an input must fit one step (-ub), because llama-server cannot split it.

    The rule of `can_split` in tools/server/server-context.cpp: without a cache nothing can be split; with
    one, an embedding only where the last token alone is read. Attention that is not causal is added: an
    early part that is computed alone does not see the later ones.
    """
    if not shape.has_cache:
        return True
    if not settings.embedding:
        return False
    pooling = settings.pooling or shape.pooling
    return not shape.is_causal or pooling not in ("last", "rank")


def slot_context(shape: ModelShape, settings: LoadSettings, ctx_size: int) -> int:
    """The longest input of one slot, in tokens: `n_ctx_slot` of tools/server/server-context.cpp."""
    padded = _pad256(ctx_size)
    own = padded if settings.is_unified else _pad256(padded // settings.n_slots)
    return min(own, shape.n_ctx_train)


def ubatch(shape: ModelShape, settings: LoadSettings, ctx_size: int) -> int:
    """Tokens of one step: no more than a batch, nor than the context; all of the longest input where that
    cannot be split and neither number is set."""
    said = [number for number in (settings.batch, settings.ubatch) if number is not None]
    most = _pad256(ctx_size)
    if not takes_input_whole(shape, settings):
        return max(1, min(settings.batch or BATCH, settings.ubatch or UBATCH, most))
    step = min(*said, most) if said else min(slot_context(shape, settings, ctx_size), most)
    if (settings.pooling or shape.pooling) == "mean":
        return _multiple(step, settings.n_slots, step if said else most)
    return max(1, step)


def _multiple(step: int, n_slots: int, most: int) -> int:
    """The next multiple of `n_slots` from `step` on, or the last one up to `most`: with mean pooling
    llama-server aborts at its start where a step is none (GGML_ASSERT(ggml_can_mul_mat(a, b)), measured with
    b11434 and 3, 4 and 5 slots)."""
    next_one = -(-step // n_slots) * n_slots
    return next_one if next_one <= most else max(n_slots, most // n_slots * n_slots)


def uses_flash_attention(shape: ModelShape, settings: LoadSettings) -> bool:
    return settings.flash_attn != "off" and shape.rules.has_flash_attention


def context_terms(shape: ModelShape, settings: LoadSettings, layout: Layout) -> Iterator[Term]:
    """Caches and states per device. Raises ValueError for an unknown cache type."""
    devices = layer_devices(layout, shape.n_layers_all)
    if not settings.kv_offload:
        devices = [layout.host.id] * len(devices)
    if shape.has_cache:
        yield from _cache_terms(shape, settings, layout.ctx_size, devices)
    yield from _state_terms(shape, settings, devices)
    yield from _checkpoint_terms(shape, settings, layout)


def cell_bytes(shape: ModelShape, layer: Layer, settings: LoadSettings) -> int:
    """Bytes of one cell of one layer: its keys, its values (none with latent attention), its index keys."""
    n_values = layer.n_head_kv * layer.value_length
    if not uses_flash_attention(shape, settings):
        # Without flash attention the values lie transposed, and every layer's are as wide as the widest's.
        n_values = max(other.n_head_kv * other.value_length for other in shape.layers)
    keys = layer.n_head_kv * layer.key_length + layer.index_key_length
    values = (0 if shape.is_mla else n_values) + layer.index_value_length
    return row_bytes(settings.cache_type_k, keys) + row_bytes(settings.cache_type_v, values)


def row_bytes(cache_type: str, n: int) -> int:
    """Bytes of `n` values in a cache of that type. Raises ValueError
    for a type llama-server does not have."""
    if cache_type not in CACHE_TYPES:
        raise ValueError(f"cache type {cache_type!r} is none of {', '.join(CACHE_TYPES)}")
    block_bytes, block = CACHE_TYPES[cache_type]
    return -(-n // block) * block_bytes


def state_bytes(shape: ModelShape) -> int:
    """Bytes of the state of one sequence in one recurrent layer, always F32."""
    return 4 * (shape.conv_state + shape.recurrent_state)


def _cache_terms(
    shape: ModelShape, settings: LoadSettings, ctx_size: int, devices: list[str]
) -> Iterator[Term]:
    size = cells(shape, settings, ctx_size)
    sums: dict[tuple[str, bool], tuple[int, int]] = {}
    for layer, device in zip(shape.layers, devices, strict=False):
        if layer.has_kv:
            n_cells = (size.swa if layer.is_swa else size.full) * size.n_streams
            before, n = sums.get((device, layer.is_swa), (0, 0))
            sums[device, layer.is_swa] = before + n_cells * cell_bytes(shape, layer, settings), n + 1
    types = f"{settings.cache_type_k}/{settings.cache_type_v}"
    doubt = "" if shape.rules.is_exact else "; an upper bound, this architecture's cache has no formula"
    for (device, is_swa), (total, n) in sums.items():
        n_cells = size.swa if is_swa else size.full
        kind = f"sliding-window (of {shape.n_swa}) " if is_swa else ""
        streams = f" x {size.n_streams} slots" if size.n_streams > 1 else ""
        what = f"{n} {kind}layers x {n_cells} cells{streams}, {types}{doubt}"
        yield Term(device, "kv", total, what)


def _state_terms(shape: ModelShape, settings: LoadSettings, devices: list[str]) -> Iterator[Term]:
    counts: dict[str, int] = {}
    for layer, device in zip(shape.layers, devices, strict=False):
        if layer.is_recurrent:
            counts[device] = counts.get(device, 0) + 1
    for device, n in counts.items():
        size = settings.n_slots * n * state_bytes(shape)
        yield Term(device, "state", size, f"{n} recurrent layers x {settings.n_slots} slots, F32")


def checkpoints(shape: ModelShape, settings: LoadSettings, ctx_size: int) -> tuple[int, int]:
    """How many checkpoints each slot may keep, and the bytes of one: copies, on the host, of what cannot be
    rolled back, which are recurrent states, and caches of a sliding window. (0, 0) where there is no such
    thing.

    llama-server alone keeps up to 32 per slot, which is gigabytes; where no number is asked for it is told to
    keep as many of them as `CHECKPOINT_BYTES` hold, and that is what is reserved.
    """
    if settings.embedding or settings.ctx_checkpoints == 0 or not shape.has_cache:
        return 0, 0
    one = sum(state_bytes(shape) for layer in shape.layers if layer.is_recurrent)
    if shape.n_swa and not settings.swa_full:
        n_cells = min(shape.n_swa, cells(shape, settings, ctx_size).full)
        windows = (layer for layer in shape.layers if layer.is_swa and layer.has_kv)
        one += n_cells * sum(cell_bytes(shape, layer, settings) for layer in windows)
    if not one:
        return 0, 0
    if settings.ctx_checkpoints is not None:
        return settings.ctx_checkpoints, one
    return max(1, min(MOST_CHECKPOINTS, CHECKPOINT_BYTES // (one * settings.n_slots))), one


def _checkpoint_terms(shape: ModelShape, settings: LoadSettings, layout: Layout) -> Iterator[Term]:
    n, one = checkpoints(shape, settings, layout.ctx_size)
    what = f"{n} context checkpoints of {one / MIB:.1f} MiB x {settings.n_slots} slots, filled with use"
    yield Term(layout.host.id, "checkpoints", n * one * settings.n_slots, what)


def _pad256(n: int) -> int:
    return -(-n // 256) * 256
