"""Every key of config.toml, and every setting of a model."""

from __future__ import annotations

import re
import types
from collections.abc import Iterator, Mapping
from dataclasses import MISSING, fields, is_dataclass
from pathlib import Path
from typing import Annotated, Any, Final, Literal, Union, get_args, get_origin, get_type_hints

from msgspec import Meta

from docs.generator.markdown import MADE, code, table
from router.config import Config
from router.config.tree import DeviceConfig
from router.presets import shipped_presets_dir
from router.presets.layer import FIELDS, options_of_field

_SECTIONS: Final = ("server", "paths", "memory", "scheduler", "child", "downloads")
_KEY: Final = re.compile(r"(?P<key>[a-z_]+) = (?P<value>.*?)\s+# (?P<about>.*)")
_MORE: Final = re.compile(r"\s+# (?P<about>.*)")

#: What a setting of a model does, where no option of llama-server says so.
ABOUT: Final[Mapping[str, str]] = {
    "aliases": "further names that it answers to; `*` in one stands for any text (`claude-sonnet-*`)",
    "tags": "words that /v1/models shows",
    "hidden": "left out of lists; who knows the name may use it",
    "dedup_cache_models": "leave a model of the Hugging Face cache that is this one's draft out of lists",
    "description": "a sentence for people",
    "devices": 'the only devices it may use, by id, UUID or place ("cuda:0"); else wherever there is room',
    "env": "environment variables of its llama-server",
    "args": "more arguments of llama-server, as on a command line",
    "ttl_seconds": "idle time after which it leaves; 0: at once; -1: never; not set: as the policy says",
    "pinned": "never evicted, never expires",
    "priority": "how much a second of waiting weighs when models compete for room",
    "replicas": "so many llama-servers of it at a time, as room allows",
    "replica_max": "up to so many when all of them are full",
    "target_inflight": "requests at which one of them counts as full",
    "exclusive": "names of sets of which only one model is loaded at a time",
    "load_on_startup": "loaded when the router starts",
    "stop_grace_seconds": "between asking its llama-server to end and ending it",
    "draft_hf_repo": "a draft model of the Hugging Face cache, for speculative decoding",
    "mmproj_auto": "take the projector that lies beside the model",
}


def configuration_page() -> str:
    comments = _comments((shipped_presets_dir().parent / "config.toml").read_text())
    sections = "\n".join(_section(name, comments) for name in _SECTIONS)
    return f"""{MADE}# Configuration

`config.toml` is read from `--config`, else `$LLAMA_ROUTER_CONFIG`, else `~/.config/llama-router/config.toml`.
Write down only what differs. The command line has the last word. In paths `~` and `$NAME` are replaced; a
relative path is relative to the file. `llama-router config check` tells mistakes with their line, and what
differs from the defaults.

{sections}
## [memory.devices."NAME"]

What differs for one device, by its id or place (`"cuda:0"`, `"host"`).

{table(("key", "default", "takes", ""), _device_rows())}
## [models."NAME"]

Settings of one model. The same keys stand in preset files (`paths.presets`): below `[models."NAME"]` for one
model, `[defaults]` for all, `[families.NAME]` with `match` or `architectures` for those that match. Any other
option of llama-server goes into the table `flags` by its name (`flags = {{ temp = 0.7 }}`) or into `args`.
llama.cpp's INI presets are read as they are. From below to above: `[child]`, shipped families, `[defaults]`
and `[*]`, families, models of preset files, `[models]` of config.toml.

{table(("key", "takes", "llama-server", ""), _model_rows())}"""


def _section(name: str, comments: Mapping[tuple[str, str], str]) -> str:
    kind = type(getattr(Config(), name))
    hints = get_type_hints(kind, include_extras=True)
    rows = [
        (code(each.name), code(_default(each)), _takes(hints[each.name]), comments[name, each.name])
        for each in fields(kind)
        if not (get_origin(hints[each.name]) and is_dataclass(get_args(hints[each.name])[-1]))
    ]
    return f"## [{name}]\n\n{table(('key', 'default', 'takes', ''), rows)}"


def _device_rows() -> Iterator[tuple[str, ...]]:
    hints = get_type_hints(DeviceConfig, include_extras=True)
    about = {"margin_mib": "instead of that of [memory]", "enabled": "false: no model goes there"}
    for each in fields(DeviceConfig):
        yield code(each.name), code(_default(each)), _takes(hints[each.name]), about[each.name]


def _model_rows() -> Iterator[tuple[str, ...]]:
    for name, hint in FIELDS.items():
        options = ", ".join(code(option) for option in options_of_field(name))
        yield code(name), _takes(hint), options, ABOUT.get(name, "")


def _default(each: Any) -> str:
    value = each.default if each.default is not MISSING else each.default_factory()
    match value:
        case None:
            return '""'
        case bool():
            return str(value).lower()
        case str():
            return f'"{value}"'
        case tuple():
            return "[]" if not value else repr(list(value))
        case Mapping():
            return "{}"
        case _:
            return str(value)


def _takes(hint: Any) -> str:
    """A type and its bounds in words."""
    origin = get_origin(hint)
    if origin is Annotated:
        inner, *metas = get_args(hint)
        found = [words for meta in metas if isinstance(meta, Meta) for words in _bounds(meta)]
        described = [meta.description for meta in metas if isinstance(meta, Meta) and meta.description]
        return described[0] if described else " ".join((_takes(inner), *found))
    if origin is Literal:
        return ", ".join(code(f'"{choice}"') for choice in get_args(hint))
    if origin in (Union, types.UnionType):
        return " or ".join(_takes(part) for part in get_args(hint) if part is not type(None))
    if origin is tuple:
        return f"list of: {_takes(get_args(hint)[0])}"
    if origin is not None:  # a mapping
        return "table of texts"
    return {bool: "true or false", int: "whole number", float: "number", str: "text", Path: "path"}[hint]


def _bounds(meta: Meta) -> Iterator[str]:
    """Those that somebody might meet."""
    if meta.gt is not None:
        yield f"above {meta.gt}"
    if meta.ge is not None:
        yield f"from {meta.ge}"
    if meta.le is not None and meta.le < 1e6:
        yield f"to {meta.le}"


def _comments(text: str) -> Mapping[tuple[str, str], str]:
    """(section, key) -> what the default configuration says of it."""
    found: dict[tuple[str, str], str] = {}
    section, last = "", None
    for line in text.splitlines():
        if header := re.match(r"\[([a-z.]+)\]", line):
            section, last = header[1], None
        elif key := _KEY.fullmatch(line):
            last = (section, key["key"])
            found[last] = key["about"]
        elif (more := _MORE.fullmatch(line)) and last is not None:
            found[last] += " " + more["about"]
        elif plain := re.match(r"([a-z_]+) = ", line):
            last = None
            found[section, plain[1]] = ""
    return found
