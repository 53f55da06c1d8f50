"""The shape of a model as far as memory depends on it, read from a header the way llama.cpp's `load_hparams`
does."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeGuard

from router.gguf import GgufMetadata, KvValue
from router.memory.estimate.architectures import Architecture, architecture_of

MAX_LAYERS = 1024
_MAX_DIMENSION = 1 << 24


@dataclass(frozen=True, slots=True)
class Layer:
    """What one block contributes to the caches and to the width of the graph; lengths are per head."""

    n_head: int
    n_head_kv: int
    n_ff: int
    key_length: int
    value_length: int
    has_kv: bool
    is_swa: bool
    is_recurrent: bool
    index_key_length: int
    index_value_length: int


@dataclass(frozen=True, slots=True)
class ModelShape:
    """The dimensions of a model. `layers` are those it runs;
    `n_layers_all` counts its prediction layers too."""

    architecture: str
    rules: Architecture
    layers: tuple[Layer, ...]
    n_layers_all: int
    n_ctx_train: int
    n_embd: int
    n_vocab: int
    n_swa: int
    mla_key_length: int
    """Keys per head before compression, with multi-head latent attention; else 0."""
    pooling: str | None
    """How the file says that the outputs of an input become one: mean, cls, last, rank or none."""
    is_causal: bool
    is_gated: bool
    """The feed-forward layer multiplies by a gate, as nearly all do but BERT and its time."""
    n_expert_used: int
    n_ff_expert: int
    conv_state: int
    """Values of the rolling state of one sequence in one recurrent layer (llama.cpp's n_embd_r)."""
    recurrent_state: int
    """Values of its recurrent state (n_embd_s)."""
    ssm_inner: int
    ssm_conv: int
    ssm_projection: int
    """Values per token of a state-space layer: its inner size, its
    convolution, the projection it begins with."""

    @property
    def has_cache(self) -> bool:
        return self.rules.has_cache

    @property
    def is_mla(self) -> bool:
        """Latent attention: one compressed key per cell, and no values."""
        return self.mla_key_length > 0

    @property
    def n_head_max(self) -> int:
        return max(layer.n_head for layer in self.layers)

    @property
    def n_ff_max(self) -> int:
        return max(layer.n_ff for layer in self.layers)

    @property
    def has_state(self) -> bool:
        return any(layer.is_recurrent for layer in self.layers)


def read_shape(metadata: GgufMetadata) -> ModelShape | None:
    """The shape of a model; None when its header lacks what every language model has, or is absurd."""
    keys = _Keys(metadata)
    n_all = keys.integer("block_count")
    n_embd = keys.integer("embedding_length")
    n_ctx_train = keys.integer("context_length")
    if not 0 < n_all <= MAX_LAYERS or not 0 < n_embd <= _MAX_DIMENSION or n_ctx_train <= 0:
        return None
    n_predict = keys.integer("nextn_predict_layers")
    # A file of prediction layers alone is a draft model, and runs them all.
    n = n_all - n_predict if n_predict < n_all else n_all
    mla_key = keys.integer("attention.key_length_mla") if keys.integer("attention.value_length_mla") else 0
    layers = _layers(keys, n, n_all, n_embd, mla_key > 0)
    n_expert = keys.integer("expert_count")
    n_used = min(max(keys.per_layer("expert_used_count", n_all), default=0), n_expert)
    n_ff_expert = max(keys.per_layer("expert_feed_forward_length", n_all), default=0)
    conv_state, recurrent_state = _state_sizes(keys, n_embd, layers)
    inner = keys.integer("ssm.inner_size")
    conv = inner + 2 * keys.integer("ssm.group_count") * keys.integer("ssm.state_size")
    shape = ModelShape(
        architecture=metadata.architecture,
        rules=keys.rules,
        layers=layers,
        n_layers_all=n_all,
        n_ctx_train=n_ctx_train,
        n_embd=n_embd,
        n_vocab=metadata.n_vocab or 0,
        n_swa=_window(keys) if not keys.rules.has_cache or any(layer.is_swa for layer in layers) else 0,
        mla_key_length=mla_key,
        pooling=metadata.pooling,
        is_causal=keys.value("attention.causal") is not False,
        is_gated=_is_gated(metadata, layers),
        n_expert_used=n_used,
        n_ff_expert=n_ff_expert or (max(layer.n_ff for layer in layers) if n_used else 0),
        conv_state=conv_state,
        recurrent_state=recurrent_state,
        ssm_inner=inner,
        ssm_conv=conv,
        ssm_projection=inner + conv + keys.integer("ssm.time_step_rank"),
    )
    return shape if _is_plausible(shape) else None


class _Keys:
    """The keys of the model's architecture; whatever is not a sensible number counts as absent."""

    def __init__(self, metadata: GgufMetadata) -> None:
        self.rules = architecture_of(metadata.architecture)
        self._prefix = metadata.architecture
        self._kv = metadata.kv

    def value(self, key: str) -> KvValue | None:
        return self._kv.get(f"{self._prefix}.{key}")

    def integer(self, key: str, default: int = 0) -> int:
        value = self.value(key)
        return value if _is_size(value) else default

    def per_layer(self, key: str, n: int) -> list[int]:
        """A value for each of `n` layers, from one number or from an array; empty when the key is absent."""
        value = self.value(key)
        if _is_size(value):
            return [value] * n
        if not isinstance(value, tuple) or not value:
            return []
        numbers = [int(item) if isinstance(item, bool) or _is_size(item) else 0 for item in value[:n]]
        return numbers + [numbers[-1]] * (n - len(numbers))


def _is_size(value: object) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 40


def _layers(keys: _Keys, n: int, n_all: int, n_embd: int, is_mla: bool) -> tuple[Layer, ...]:
    heads = keys.per_layer("attention.head_count", n_all) or [0] * n_all
    heads_kv = keys.per_layer("attention.head_count_kv", n_all) or heads
    n_ff = keys.per_layer("feed_forward_length", n_all) or [0] * n_all
    default = n_embd // heads[0] if heads[0] else 0
    key = keys.integer("attention.key_length", default) if heads[0] else 0
    value = keys.integer("attention.value_length", default) if heads[0] else 0
    key_swa = keys.integer("attention.key_length_swa", key)
    value_swa = keys.integer("attention.value_length_swa", value)
    is_recurrent, has_attention = _kinds(keys, n, heads_kv, n_ff)
    is_swa = _sliding(keys, n, is_recurrent)
    n_own = keys.rules.kv_layers or n_all - keys.integer("attention.shared_kv_layers")
    index = _index_lengths(keys, n)
    return tuple(
        Layer(
            n_head=heads[i],
            n_head_kv=heads_kv[i],
            n_ff=n_ff[i],
            key_length=key_swa if is_swa[i] else key,
            value_length=value_swa if is_swa[i] else value,
            has_kv=has_attention[i] and i < n_own,
            is_swa=is_swa[i],
            is_recurrent=is_recurrent[i],
            index_key_length=index[i] if has_attention[i] else 0,
            index_value_length=value if index[i] and has_attention[i] and not is_mla else 0,
        )
        for i in range(n)
    )


def _kinds(keys: _Keys, n: int, heads_kv: list[int], n_ff: list[int]) -> tuple[list[bool], list[bool]]:
    """For each layer: has it a recurrent state, and has it attention?"""
    is_recurrent, has_attention = [False] * n, [True] * n
    match keys.rules.recurrent:
        case "all":
            is_recurrent, has_attention = [True] * n, [False] * n
        case "beside":
            is_recurrent = [True] * n
        case "by heads":
            has_attention = [heads_kv[i] != 0 for i in range(n)]
            is_recurrent = [not attends for attends in has_attention]
        case "by interval":
            listed = keys.per_layer("attention.recurrent_layers", n)
            interval = keys.integer("full_attention_interval") or keys.rules.attention_interval
            is_recurrent = [bool(x) for x in listed] or [(i + 1) % interval != 0 for i in range(n)]
            has_attention = [not recurrent for recurrent in is_recurrent]
        case "by feed-forward":
            is_recurrent = [heads_kv[i] == 0 and n_ff[i] == 0 for i in range(n)]
            has_attention = [not is_recurrent[i] and n_ff[i] == 0 for i in range(n)]
    return is_recurrent, has_attention


def _sliding(keys: _Keys, n: int, is_recurrent: list[bool]) -> list[bool]:
    """For each layer: does its attention see a window only?"""
    rules = keys.rules
    if rules.swa_rule == "ignored" or not rules.has_cache or _window(keys) == 0:
        return [False] * n
    if rules.swa_rule == "attention":
        return [not recurrent for recurrent in is_recurrent]
    pattern = keys.value("attention.sliding_window_pattern")
    if isinstance(pattern, tuple):
        return [bool(x) for x in keys.per_layer("attention.sliding_window_pattern", n)]
    if not rules.swa_period or rules.swa_n_layers not in (0, n):
        return [False] * n
    period = pattern if _is_size(pattern) else rules.swa_period
    full = 0 if rules.is_first_full else period - 1
    return [period == 0 or i % period != full for i in range(n)]


def _window(keys: _Keys) -> int:
    stated = keys.value("attention.sliding_window")
    if not _is_size(stated):
        return keys.rules.swa_default
    return (keys.rules.swa_fixed or stated) if stated else 0


def _index_lengths(keys: _Keys, n: int) -> list[int]:
    length = keys.integer("attention.indexer.key_length") * keys.rules.index_rows
    n_dense = keys.integer("leading_dense_block_count") if keys.rules.is_dense_unindexed else 0
    types = keys.per_layer("attention.indexer.types", n)
    return [length if i >= n_dense and (not types or types[i]) else 0 for i in range(n)]


def _is_gated(metadata: GgufMetadata, layers: tuple[Layer, ...]) -> bool:
    by_name = {tensor.name: tensor for tensor in metadata.tensors}
    up = by_name.get("blk.0.ffn_up.weight")
    if up is None or "blk.0.ffn_gate.weight" in by_name:
        return True
    return len(up.shape) > 1 and up.shape[1] > layers[0].n_ff  # gate and value fused, as in phi3


def _state_sizes(keys: _Keys, n_embd: int, layers: tuple[Layer, ...]) -> tuple[int, int]:
    """Values of the convolution state and of the recurrent state: n_embd_r and n_embd_s of
    llama-hparams.cpp."""
    n_head = layers[0].n_head
    kernel = keys.integer("ssm.conv_kernel")
    inner, state = keys.integer("ssm.inner_size"), keys.integer("ssm.state_size")
    if wkv := keys.integer("wkv.head_size"):
        return keys.integer("token_shift_count", 2) * n_embd, n_embd * wkv
    if cached := keys.integer("shortconv.l_cache"):
        return n_embd * (cached - 1), state * inner
    if kda := keys.integer("kda.head_dim"):
        return 3 * (kernel - 1 if kernel else 3) * n_head * kda, kda * kda * n_head
    conv = max(0, kernel - 1) * (inner + 2 * keys.integer("ssm.group_count") * state)
    if keys.rules.has_square_state:
        return conv, layers[0].key_length ** 2 * n_head
    return conv, state * inner


def _is_plausible(shape: ModelShape) -> bool:
    widths = [
        shape.n_vocab,
        shape.n_ff_expert * max(1, shape.n_expert_used),
        shape.conv_state,
        shape.ssm_conv,
        shape.ssm_projection,
    ]
    for layer in shape.layers:
        widths += [layer.n_ff, layer.n_head * max(layer.key_length, 1), layer.n_head_kv * layer.value_length]
    return max(widths) <= _MAX_DIMENSION and shape.recurrent_state <= _MAX_DIMENSION * 64
