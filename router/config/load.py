"""From a file and the command line to the tree, or every problem of both at once."""

from __future__ import annotations

import os
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import is_dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final, TypeVar, get_args

import msgspec

from router.config.nearest import KeyPath
from router.config.reader import Reader
from router.config.toml_lines import toml_lines
from router.config.tree import Config, SchedulerConfig
from router.config.values import hints_of
from router.errors import ConfigError
from router.text_file import NotText, read_text_file

COMMAND_LINE: Final = "command line"
_NO_OVERRIDES: Final[Mapping[str, object]] = MappingProxyType({})

T = TypeVar("T")


def find_config() -> Path | None:
    """The file to read when none is named: $LLAMA_ROUTER_CONFIG, else llama-router/config.toml in
    $XDG_CONFIG_HOME (~/.config). None when there is neither.

    Raises ConfigError when LLAMA_ROUTER_CONFIG names a file that is not there.
    """
    if named := os.environ.get("LLAMA_ROUTER_CONFIG", ""):
        path = Path(named).expanduser().absolute()
        if not path.is_file():
            raise ConfigError(f"{path}: LLAMA_ROUTER_CONFIG names it, but there is no such file")
        return path
    base = os.environ.get("XDG_CONFIG_HOME", "")
    home = Path(base) if base.startswith("/") else Path.home() / ".config"
    path = home / "llama-router" / "config.toml"
    return path if path.is_file() else None


def load_config(path: Path | None, overrides: Mapping[str, object] = _NO_OVERRIDES) -> Config:
    """The configuration of `path` (None: that of `find_config`, else the defaults) with `overrides` on top.

    `overrides` maps dotted keys ("server.port") to values, which obey the same rules; a None counts as not
    given. `child.args` is appended to the file's, everything else replaces. Relative paths are relative to
    the file, in an override to the working directory.

    Raises ConfigError: a line per problem, with file, line, key, value and the nearest valid key.
    """
    source = path.expanduser().absolute() if path is not None else find_config()
    table, lines = _read(source) if source is not None else ({}, {})
    problems: list[str] = []
    file = Reader(str(source), lines, source.parent if source is not None else Path.cwd(), problems)
    command_line = Reader(COMMAND_LINE, {}, Path.cwd(), problems)
    tree: dict[str, Any] = {}
    file.read(table, tree)
    command_line.read(_nested(overrides), tree)
    if not problems:
        problems.extend(_contradictions(tree, file))
    if problems:
        raise ConfigError("\n".join(problems))
    return replace(_instance(Config, tree), source=source, lines=MappingProxyType(dict(lines)))


def parse_override(text: str) -> tuple[str, object]:
    """`server.port=9000` -> ("server.port", 9000). What is not a TOML value is taken as a string.

    Raises ConfigError when there is no `=`.
    """
    key, equals, value = text.partition("=")
    if not equals or not key.strip():
        raise ConfigError(f"{COMMAND_LINE}: {text!r} is not of the form KEY=VALUE")
    try:
        parsed = tomllib.loads(f"value = {value}")
    except tomllib.TOMLDecodeError:
        return key.strip(), value.strip()
    return key.strip(), parsed["value"] if len(parsed) == 1 else value.strip()


def _read(source: Path) -> tuple[dict[str, Any], Mapping[KeyPath, int]]:
    try:
        text = read_text_file(source)
        return tomllib.loads(text), toml_lines(text)
    except OSError as error:
        raise ConfigError(f"{source}: {error.strerror or error}") from error
    except NotText as error:
        raise ConfigError(f"{source}: {error}") from error
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{source}: {error}") from error


# --- the command line ---------------------------------------------------------------------------------


def _nested(overrides: Mapping[str, object]) -> dict[str, Any]:
    """{"a.b": 1} -> {"a": {"b": 1}}, with values as TOML would give them."""
    nested: dict[str, Any] = {}
    for key, value in overrides.items():
        if value is None:
            continue
        *tables, last = _split(key)
        node = nested
        for part in tables:
            node = node.setdefault(part, {})
            if not isinstance(node, dict):
                raise ConfigError(f"{COMMAND_LINE}: {key}: another option sets {part} as a whole")
        node[last] = msgspec.to_builtins(value, enc_hook=os.fspath)
    return nested


def _split(key: str) -> list[str]:
    """By TOML's own rules, so that a name with dots can be quoted; what is not TOML is split at every dot."""
    try:
        node: object = tomllib.loads(f"{key} = 0")
    except tomllib.TOMLDecodeError:
        return key.split(".")
    parts = []
    while isinstance(node, dict) and len(node) == 1:
        ((part, node),) = node.items()
        parts.append(part)
    return parts if node == 0 else key.split(".")  # else it is a comment, or more than a key


# --- the whole ----------------------------------------------------------------------------------------


def _contradictions(tree: Mapping[str, Any], file: Reader) -> Iterator[str]:
    """What is wrong only together."""
    scheduler = _instance(SchedulerConfig, tree.get("scheduler", {}))
    if scheduler.backoff_initial_seconds > scheduler.backoff_max_seconds:
        more = f"is more than scheduler.backoff_max_seconds = {scheduler.backoff_max_seconds}"
        path = ("scheduler", "backoff_initial_seconds")
        yield file.describe(path, f" = {scheduler.backoff_initial_seconds}: {more}")
    for group in scheduler.exclusive:
        if len(set(group)) < 2:
            yield file.describe(
                ("scheduler", "exclusive"), f": the group {list(group)} needs two models or more"
            )


def _instance(cls: type[T], tree: Mapping[str, Any]) -> T:
    hints = hints_of(cls)
    return cls(**{key: _frozen(hints[key], value) for key, value in tree.items()})


def _frozen(hint: Any, value: Any) -> Any:
    if isinstance(hint, type) and is_dataclass(hint):
        return _instance(hint, value)
    if isinstance(value, dict):
        item = get_args(hint)[1] if get_args(hint) else Any
        return MappingProxyType({key: _frozen(item, each) for key, each in value.items()})
    return value
