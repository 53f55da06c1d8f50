"""config.toml -> one frozen tree. Only `StatePaths.prepare` has an effect: it makes the folders.

    config = load_config(path, {"server.port": 9000})     # raises ConfigError that lists every problem
    paths = state_paths(config)
    paths.prepare()                                       # raises StartupError

`[models."NAME"]` is kept as written: `router.presets` knows what may stand in it, and a mistake there
disables that model alone.
"""

from __future__ import annotations

from router.config.load import find_config, load_config, parse_override
from router.config.state_paths import StatePaths, models_dirs, state_paths
from router.config.toml_lines import toml_lines
from router.config.tree import (
    ChildConfig,
    Config,
    Context,
    Count,
    DeviceConfig,
    DownloadsConfig,
    Layers,
    MemoryConfig,
    PathsConfig,
    Positive,
    SchedulerConfig,
    Seconds,
    ServerConfig,
)

__all__ = [
    "ChildConfig",
    "Config",
    "Context",
    "Count",
    "DeviceConfig",
    "DownloadsConfig",
    "Layers",
    "MemoryConfig",
    "PathsConfig",
    "Positive",
    "SchedulerConfig",
    "Seconds",
    "ServerConfig",
    "StatePaths",
    "find_config",
    "load_config",
    "models_dirs",
    "parse_override",
    "state_paths",
    "toml_lines",
]
