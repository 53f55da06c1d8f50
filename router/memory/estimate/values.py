"""The words of an estimate: how a model is to be loaded, onto what, and the bytes that this takes, term by
term."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Literal

from router.gguf import GgufMetadata

MIB = 1 << 20
GIB = 1 << 30

DEFAULT_CTX_SIZE = 8192
BATCH = 2048
UBATCH = 512
"""llama-server's own -b and -ub, in tokens."""
GPU_CONTEXT_BYTES = 600 * MIB
"""What a process takes on every GPU it touches before its first buffer, until it is learned for the card:
CUDA's primary context is 120 to 550 MiB (llama.cpp pull request 20595), lazily loaded kernels and cuBLAS add
tens."""
PROCESS_BYTES = 200 * MIB
"""Anonymous memory of a llama-server beside its buffers; 10 to 40 MiB when ready, more with a long prompt."""

SplitMode = Literal["layer", "row", "none", "tensor"]
Tier = Literal["gpu", "split", "partial", "host"]
ALL_TIERS: frozenset[Tier] = frozenset(("gpu", "split", "partial", "host"))


@dataclass(frozen=True, slots=True)
class LoadSettings:
    """The settings of a llama-server that decide its memory; the defaults are llama-server's own."""

    ctx_size: int | Literal["auto"] | None = None
    """-c, for all slots together. None: 8192, or the training context
    if that is smaller. "auto": all that fits."""
    n_gpu_layers: int | Literal["all"] = "all"
    parallel: int | None = None
    """-np. None: four slots that share one cache, as llama-server chooses by itself."""
    kv_unified: bool | None = None
    """-kvu. None: one cache for all slots only when `parallel` is None too."""
    tensor_split: tuple[float, ...] | None = None
    split_mode: SplitMode = "layer"
    override_tensor: tuple[str, ...] = ()
    """-ot, each `REGEX=BUFFER`; the first that matches a tensor's name decides."""
    cpu_moe: bool = False
    n_cpu_moe: int = 0
    n_cpu_ffn: int = 0
    cache_type_k: str = "f16"
    cache_type_v: str = "f16"
    flash_attn: Literal["auto", "on", "off"] = "auto"
    batch: int | None = None
    """-b. None: llama-server's own `BATCH`, or all of an input that cannot be split."""
    ubatch: int | None = None
    """-ub. None: llama-server's own `UBATCH`, or all of an input that cannot be split."""
    swa_full: bool = False
    kv_offload: bool = True
    op_offload: bool = True
    repack: bool = True
    embedding: bool = False
    pooling: str | None = None
    """--pooling, "rank" with --reranking. None: what the file says."""
    cache_ram_bytes: int = 0
    """-cram, which llama-router always passes; llama-server alone would take 8192 MiB."""
    ctx_checkpoints: int | None = None
    """-ctxcp, per slot. None: as many as half a gigabyte holds, at most llama-server's own 32."""
    devices: tuple[str, ...] | None = None
    """The GPUs it may be placed on, by id. None: any."""

    @property
    def n_slots(self) -> int:
        return max(1, self.parallel if self.parallel is not None else 4)

    @property
    def is_unified(self) -> bool:
        return self.kv_unified if self.kv_unified is not None else self.parallel is None


@dataclass(frozen=True, slots=True)
class DeviceBudget:
    """One pool of memory. The host's id ends in `/host`; every other device is a GPU.

    `total_bytes` is what a model could ever have (less what the driver reserves), `free_bytes` what it could
    have now. `context_bytes` is what a process takes there before its first buffer; None for the default of
    its kind. `pool` is the id of the memory it draws from where that is not its own: a GPU that shares the
    host's memory has the host's margin, and both of its sizes are within the host's.
    """

    id: str
    kind: str
    total_bytes: int
    free_bytes: int
    margin_bytes: int = 0
    context_bytes: int | None = None
    pool: str = ""

    @property
    def pool_id(self) -> str:
        return self.pool or self.id

    @property
    def is_host(self) -> bool:
        return self.id.endswith("/host")

    @property
    def overhead_bytes(self) -> int:
        if self.context_bytes is not None:
            return self.context_bytes
        return PROCESS_BYTES if self.is_host else GPU_CONTEXT_BYTES


@dataclass(frozen=True, slots=True)
class Companions:
    """What is loaded beside the model: a multimodal projector, a
    draft model, LoRA adapters (by file size)."""

    mmproj: GgufMetadata | None = None
    draft: GgufMetadata | None = None
    draft_settings: LoadSettings = field(default_factory=LoadSettings)
    """Only placement and cache types matter; slots, batches and context are those of the target."""
    lora_bytes: tuple[int, ...] = ()
    mmproj_offload: bool = True


@dataclass(frozen=True, slots=True)
class Term:
    """One summand of an estimate: `bytes` on `device`, and in words how they come about.

    `kind` is one of weights, repacked (anonymous copies of weights on the host; the mapped originals are
    then cold and not counted), kv, state, compute, output, mmproj, draft, lora, context, process, cache,
    checkpoints, unknown.
    """

    device: str
    kind: str
    bytes: int
    explanation: str


@dataclass(frozen=True, slots=True)
class Estimate:
    """Bytes per memory pool, and the terms they are the sums of. `is_guess` when the header was not
    understood. `pools` names the pool of each device that has none of its own."""

    terms: tuple[Term, ...]
    footprint: Mapping[str, int] = field(hash=False)
    is_guess: bool = False
    pools: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}), hash=False)

    @classmethod
    def of(
        cls, terms: Iterable[Term], *, is_guess: bool = False, pools: Mapping[str, str] | None = None
    ) -> Estimate:
        kept = tuple(term for term in terms if term.bytes > 0)
        pools = pools or {}
        sums: dict[str, int] = {}
        for term in kept:
            pool = pools.get(term.device, term.device)
            sums[pool] = sums.get(pool, 0) + term.bytes
        return cls(kept, MappingProxyType(sums), is_guess, MappingProxyType(dict(pools)))

    def pool_of(self, device: str) -> str:
        return self.pools.get(device, device)

    def on_device(self, device: str) -> int:
        """All that a device itself holds, of whichever pool."""
        return sum(term.bytes for term in self.terms if term.device == device)

    def bytes_of(self, *kinds: str, device: str | None = None) -> int:
        """The sum of the terms of these kinds, on one device or on all."""
        return sum(t.bytes for t in self.terms if t.kind in kinds and device in (None, t.device))


@dataclass(frozen=True, slots=True)
class Counted:
    """What `llama-fit-params` should count on one device if an estimate is right: `bytes`, and what it counts
    in its columns for context and compute that the server does not reserve."""

    bytes: int
    surplus_context: int = 0
    surplus_compute: int = 0


@dataclass(frozen=True, slots=True)
class EstimatedPlacement:
    """One way to load the model: on which devices, with which explicit flags, at which cost.

    `devices` are the GPUs in the order in which the child must see them (`CUDA_VISIBLE_DEVICES`), or the
    host alone. `tensor_split` are whole layers per GPU, the output counting as one; empty unless there are
    several. A resort is for when all others turn out to take more than the machine has. An `attempt` is what
    to reserve, once, of an estimate that the machine cannot hold but may be too high.
    """

    tier: int
    devices: tuple[str, ...]
    n_gpu_layers: int
    tensor_split: tuple[int, ...]
    ctx_size: int
    footprint: Mapping[str, int] = field(hash=False)
    estimate: Estimate
    counted: tuple[Counted, ...] = ()
    """For a second opinion: on `devices` and then on the host."""
    ctx_checkpoints: int = 0
    """-ctxcp; 0 where there is nothing to say."""
    batch: int = 0
    """-b and -ub of a model that takes an input whole; 0 where the settings decide."""
    is_fallback: bool = False
    attempt: Mapping[str, int] | None = field(default=None, hash=False)

    @property
    def reserved(self) -> Mapping[str, int]:
        """What a first load reserves per pool."""
        return self.footprint if self.attempt is None else self.attempt
