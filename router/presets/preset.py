"""The settings of one model as a value: what decides its memory and place by name, all else as arguments."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal, TypeAlias

from msgspec import Meta

from router.config import Context, Count, Layers, Positive, Seconds
from router.config.tree import no_entries

Name: TypeAlias = Annotated[
    str,
    Meta(
        min_length=1,
        max_length=256,
        pattern=r"^[^\x00-\x1f\x7f]*$",
        description="a text without control codes",
    ),
]
CacheType: TypeAlias = Literal["f32", "f16", "bf16", "q8_0", "q4_0", "q4_1", "iq4_nl", "q5_0", "q5_1"]
HfRepo: TypeAlias = Annotated[
    str,
    Meta(
        pattern=r"^[A-Za-z0-9_.-]+/[A-Za-z0-9_.-]+(:[^\x00-\x1f\x7f:]+)?$",
        description="user/repo or user/repo:QUANTISATION",
    ),
]
Share: TypeAlias = Annotated[float, Meta(ge=0, le=1e9)]


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelPreset:
    """How one model is run. From `Presets.for_model` it is complete: what [child] says is merged in, `args`
    and `env` too, and None leaves the decision to llama-server, or of the router's own settings to the
    scheduler. What is named as an option of llama-server means the same.

    `args` are passed to llama-server as they are; none of them decides memory, those are fields.
    `error` says why the model cannot be run with these settings; `origin` where they are ("FILE:LINE").
    """

    name: str
    # what is run; the catalog turns repositories of the Hugging Face cache into paths
    model: Path | None = None
    hf_repo: HfRepo | None = None
    hf_file: str | None = None
    mmproj: Path | None = None
    mmproj_auto: bool = True
    draft_model: Path | None = None
    draft_hf_repo: HfRepo | None = None
    lora: tuple[Path, ...] = ()
    # how it is listed
    aliases: tuple[Name, ...] = ()
    tags: tuple[Name, ...] = ()
    hidden: bool = False
    dedup_cache_models: bool = False
    description: str = ""
    # memory
    ctx_size: Context | None = None
    parallel: Positive | None = None
    kv_unified: bool | None = None
    batch_size: Positive | None = None
    ubatch_size: Positive | None = None
    cache_type_k: CacheType | None = None
    cache_type_v: CacheType | None = None
    flash_attn: Literal["on", "off", "auto"] | None = None
    swa_full: bool | None = None
    cache_ram_mib: Annotated[int, Meta(ge=-1, le=1 << 40)] | None = None
    # place
    n_gpu_layers: Layers | None = None
    split_mode: Literal["none", "layer", "row", "tensor"] | None = None
    tensor_split: tuple[Share, ...] = ()
    main_gpu: Count | None = None
    devices: tuple[str, ...] = ()
    cpu_moe: bool = False
    n_cpu_moe: Count | None = None
    n_cpu_ffn: Count | None = None
    override_tensor: tuple[str, ...] = ()
    kv_offload: bool | None = None
    mmproj_offload: bool | None = None
    draft_n_gpu_layers: Layers | None = None
    # use
    embedding: bool = False
    reranking: bool = False
    pooling: Literal["none", "mean", "cls", "last", "rank"] | None = None
    env: Mapping[str, str] = field(default_factory=no_entries)
    args: tuple[str, ...] = ()
    # the scheduler: ttl_seconds None = as the policy says, negative = never, 0 = as soon as idle
    ttl_seconds: Annotated[float, Meta(ge=-1, le=1e9)] | None = None
    pinned: bool = False
    priority: Literal["high", "normal", "low"] = "normal"
    replicas: Positive = 1
    replica_max: Positive = 1
    target_inflight: Positive | None = None
    exclusive: tuple[Name, ...] = ()
    load_on_startup: bool = False
    stop_grace_seconds: Seconds | None = None
    # what the reader found
    error: str | None = None
    origin: str | None = field(default=None, compare=False)
