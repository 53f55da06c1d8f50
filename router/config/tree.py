"""The configuration as values: a frozen dataclass per section, with the default and the bounds of each key.

Attribute names are the keys of config.toml, which describes them; tests/config/test_tree.py holds the two
together.
The bounds in `Annotated` are checked where text becomes a tree (`load`), not when code builds a tree.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any, Literal, TypeAlias

from msgspec import Meta

from router.config.web import listen_addresses

Port: TypeAlias = Annotated[int, Meta(ge=0, le=65535)]
Count: TypeAlias = Annotated[int, Meta(ge=0, le=1 << 40)]
Positive: TypeAlias = Annotated[int, Meta(ge=1, le=1 << 40)]
Seconds: TypeAlias = Annotated[float, Meta(ge=0, le=1e9)]
PositiveSeconds: TypeAlias = Annotated[float, Meta(gt=0, le=1e9)]
Share: TypeAlias = Annotated[float, Meta(gt=0, le=1)]
Factor: TypeAlias = Annotated[float, Meta(ge=0, le=1e6)]
Layers: TypeAlias = Count | Literal["all", "auto"]
Context: TypeAlias = Count | Literal["auto"]
Policy: TypeAlias = Literal["lru", "no-evict", "ttl", "lru-ttl", "cost"]


def no_entries() -> Mapping[Any, Any]:
    return MappingProxyType({})


@dataclass(frozen=True, slots=True)
class ServerConfig:
    """[server]: the address of the router and who may use it."""

    host: str | tuple[str, ...] = "127.0.0.1"
    port: Port = 8080
    api_keys: tuple[str, ...] = field(default=(), repr=False)
    admin_keys: tuple[str, ...] = field(default=(), repr=False)
    allowed_hosts: tuple[str, ...] = ()
    cors_origins: tuple[str, ...] = ()
    default_model: str = ""
    max_body_mib: Positive = 128
    connections_max: Count = 4096
    client_share: Share = 0.75
    request_head_seconds: PositiveSeconds = 30.0
    request_body_seconds: PositiveSeconds = 60.0
    keepalive_seconds: PositiveSeconds = 630.0
    client_stall_seconds: Seconds = 300.0
    shutdown_grace_seconds: Seconds = 30.0
    restart_grace_seconds: Seconds = 3600.0
    access_log: bool = True
    access_log_format: Literal["text", "json"] = "text"
    stream_head_seconds: Seconds = 1.5
    stream_heartbeat_seconds: Seconds = 5.0
    load_args: tuple[str, ...] = ()

    @property
    def hosts(self) -> tuple[str, ...]:
        """The addresses to listen on, each once; IPv6 without brackets."""
        return listen_addresses(self.host)


@dataclass(frozen=True, slots=True)
class PathsConfig:
    """[paths]: where things are, absolute. None and an empty `models_dirs` mean the default place."""

    llama_server: Path | None = None
    models_dirs: tuple[Path, ...] = ()
    presets: tuple[Path, ...] = ()
    hf_cache: bool = True
    state_dir: Path | None = None


@dataclass(frozen=True, slots=True)
class DeviceConfig:
    """[memory.devices."NAME"]: `margin_mib` None = that of [memory]; not enabled = never used."""

    margin_mib: Count | None = None
    enabled: bool = True


@dataclass(frozen=True, slots=True)
class MemoryConfig:
    """[memory]: what stays free on each device. A margin of 0 switches the check off."""

    margin_mib: Count = 1024
    devices: Mapping[str, DeviceConfig] = field(default_factory=no_entries)
    measure_max_age_ms: Count = 100
    poll_seconds: PositiveSeconds = 5.0
    recovery_seconds: Seconds = 10.0
    external_memory_wait_seconds: Seconds = 10.0
    context_overhead_mib: Count = 600
    evict_on_memory_pressure: bool = True
    use_llama_fit_params: bool = True
    read_ahead: bool = True
    load_mode: Literal["auto", "mmap", "none", "dio"] = "auto"


@dataclass(frozen=True, slots=True)
class SchedulerConfig:
    """[scheduler]: who is loaded, who leaves, who waits. `models_max` 0 = no limit by number."""

    policy: Policy = "lru"
    ttl_seconds: Seconds = 300.0
    models_max: Count = 0
    autoload: bool = True
    queue_limit: Positive = 512
    queue_timeout_seconds: PositiveSeconds = 600.0
    quantum: Factor = 8.0
    linger: Factor = 0.5
    placement: Literal["best-fit", "spread"] = "best-fit"
    exclusive: tuple[tuple[str, ...], ...] = ()
    backoff_initial_seconds: PositiveSeconds = 1.0
    backoff_max_seconds: PositiveSeconds = 60.0
    unload_deadline_seconds: PositiveSeconds = 60.0


@dataclass(frozen=True, slots=True)
class ChildConfig:
    """[child]: how every llama-server is started; a preset overrides what concerns its model."""

    args: tuple[str, ...] = ()
    env: Mapping[str, str] = field(default_factory=no_entries)
    ctx_size: Context = 8192
    parallel: Positive = 4
    kv_unified: bool = True
    cache_ram_mib: Annotated[int, Meta(ge=-1, le=1 << 40)] = 0
    n_gpu_layers: Layers = "all"
    startup_stall_seconds: PositiveSeconds = 120.0
    startup_timeout_seconds: PositiveSeconds = 1800.0
    serving_stall_seconds: Seconds = 120.0
    health_poll_ms: Positive = 20
    health_timeout_ms: Positive = 1000
    stop_grace_seconds: Seconds = 10.0
    log_max_mib: Positive = 16


@dataclass(frozen=True, slots=True)
class DownloadsConfig:
    """[downloads]: how models are fetched from a Hugging Face hub."""

    concurrent: Positive = 2
    min_free_mib: Count = 1024
    retry_seconds: Seconds = 600.0
    stall_seconds: PositiveSeconds = 60.0


@dataclass(frozen=True, slots=True)
class Config:
    """All of it. `models` holds the tables of [models."NAME"] as written; `lines` says where each key stands
    in `source`, the file it came from.
    """

    server: ServerConfig = ServerConfig()
    paths: PathsConfig = PathsConfig()
    memory: MemoryConfig = MemoryConfig()
    scheduler: SchedulerConfig = SchedulerConfig()
    child: ChildConfig = ChildConfig()
    downloads: DownloadsConfig = DownloadsConfig()
    models: Mapping[str, Mapping[str, Any]] = field(default_factory=no_entries)
    source: Path | None = field(default=None, compare=False)
    lines: Mapping[tuple[str, ...], int] = field(default_factory=no_entries, repr=False, compare=False)
