"""The way out of a misspelt key: how a path of keys is written, and which valid key is nearest to it."""

from __future__ import annotations

import difflib
import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import is_dataclass
from typing import Any, TypeAlias, get_args, get_origin

from router.config.values import hints_of

KeyPath: TypeAlias = tuple[str, ...]


def dotted(path: Sequence[str]) -> str:
    """A path as TOML writes it: parts that are not bare keys are quoted."""
    return ".".join(part if _is_bare(part) else json.dumps(part, ensure_ascii=False) for part in path)


def did_you_mean(path: KeyPath, value: Any, keys: Collection[KeyPath]) -> str:
    """The end of a message: the nearest of `keys` in the same section, else the nearest of any, so that
    `port` at the top is server.port.
    """
    *section, key = path
    if isinstance(value, Mapping) and not section:
        return _did_you_mean_section(key, sorted({known[0] for known in keys if len(known) > 1}))
    here = [known for known in keys if _fits(known[:-1], section)]
    if near := difflib.get_close_matches(key, [known[-1] for known in here], n=1):
        return f"; did you mean {dotted((*section, near[0]))}?"
    if near := difflib.get_close_matches(key, [known[-1] for known in keys], n=1, cutoff=0.75):
        return f"; did you mean {dotted(next(known for known in keys if known[-1] == near[0]))}?"
    return f"; [{dotted(section)}] has {', '.join(known[-1] for known in here)}" if here and section else ""


def nearest_of(key: str, keys: Collection[str]) -> str | None:
    """The one of `keys` that is nearest to `key`, if any is near."""
    return next(iter(difflib.get_close_matches(key, keys, n=1)), None)


def valid_keys(cls: Any, path: KeyPath = ()) -> Iterator[KeyPath]:
    """Every key of a tree of dataclasses; `*` stands for any name."""
    for name, hint in hints_of(cls).items():
        if is_dataclass(hint):
            yield from valid_keys(hint, (*path, name))
            continue
        yield (*path, name)
        if get_origin(hint) is not None and is_dataclass(get_args(hint)[-1]):
            yield from valid_keys(get_args(hint)[-1], (*path, name, "*"))


def _did_you_mean_section(name: str, sections: Sequence[str]) -> str:
    if near := difflib.get_close_matches(name, sections, n=1):
        return f"; did you mean [{near[0]}]?"
    return f"; there are {', '.join(f'[{section}]' for section in sections)}"


def _fits(pattern: Sequence[str], path: Sequence[str]) -> bool:
    return len(pattern) == len(path) and all(a in ("*", b) for a, b in zip(pattern, path, strict=True))


def _is_bare(part: str) -> bool:
    return bool(part) and part.isascii() and part.replace("-", "").replace("_", "").isalnum()
