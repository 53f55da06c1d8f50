"""One value: from what TOML gives to what a field's type wants, or in words why not. For presets too."""

from __future__ import annotations

import difflib
import math
import os
from collections.abc import Mapping
from dataclasses import fields
from functools import cache
from pathlib import Path
from types import MappingProxyType, NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

import msgspec
from msgspec import Meta


class Wrong(Exception):
    """A value that is not what its key wants: the reason, without the key and the value."""


def hints_of(cls: Any) -> Mapping[str, Any]:
    """The fields of a dataclass with their types, bounds included."""
    return _hints_of(cls)  # mypy takes a class for unhashable


@cache
def _hints_of(cls: Any) -> Mapping[str, Any]:
    hints = get_type_hints(cls, include_extras=True)
    return MappingProxyType({each.name: hints[each.name] for each in fields(cls)})


def convert(hint: Any, value: Any, folder: Path) -> Any:
    """`value` as the type `hint` wants it, strictly; paths become absolute, from `folder`. Raises Wrong."""
    if _is_optional(hint) and value == "":  # TOML has no null: an empty string is "not set"
        return None
    choices = choices_of(hint)
    if choices and isinstance(value, str) and value not in choices:
        raise Wrong(_not_one_of(choices, value, has_numbers=get_origin(hint) in (Union, UnionType)))
    try:
        converted = msgspec.convert(value, hint, dec_hook=lambda _, text: _path(text, folder))
    except msgspec.ValidationError as error:
        raise Wrong(_in_words(str(error), _description(hint))) from error
    if isinstance(converted, float) and not math.isfinite(converted):
        raise Wrong("expected a finite number")
    return converted


def absolute(text: str, folder: Path) -> Path:
    """`~`, `$NAME` and relative paths resolved, links not: a link is a name that somebody chose.

    Raises Wrong.
    """
    if not text.strip() or "\0" in text:
        raise Wrong("expected a path")
    try:
        return Path(os.path.normpath(folder / Path(os.path.expandvars(text)).expanduser()))
    except RuntimeError as error:  # ~nobody
        raise Wrong(str(error)) from error


def shown(value: Any) -> str:
    """The value as a message shows it: as TOML would write it, and not all of a long one."""
    text = str(value).lower() if isinstance(value, bool) else repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def choices_of(hint: Any) -> list[str]:
    """The strings a value of this type may be; [] where any will do."""
    origin = get_origin(hint)
    if origin is Literal:
        return [str(choice) for choice in get_args(hint)]
    if origin is Annotated:
        return choices_of(get_args(hint)[0])
    if origin in (Union, UnionType):
        return [choice for part in get_args(hint) for choice in choices_of(part)]
    return []


def _not_one_of(choices: list[str], value: str, *, has_numbers: bool) -> str:
    near = difflib.get_close_matches(value, choices, n=1)
    expected = ", ".join(repr(choice) for choice in choices)
    if len(choices) > 1:
        expected = f"one of {expected}"
    return f"expected {'a number or ' * has_numbers}{expected}" + (
        f"; did you mean {near[0]!r}?" if near else ""
    )


def _path(text: object, folder: Path) -> Path:
    if not isinstance(text, str):
        raise Wrong("expected a path")
    return absolute(text, folder)


def _is_optional(hint: Any) -> bool:
    return get_origin(hint) in (Union, UnionType) and NoneType in get_args(hint)


def _description(hint: Any) -> str | None:
    """What a value of this type is, where the type says so: a pattern alone explains nothing."""
    if isinstance(hint, Meta):
        return hint.description
    return next(filter(None, map(_description, get_args(hint))), None)


def _in_words(message: str, description: str | None) -> str:
    """msgspec's "Expected `int` <= 65535 - at `$[0]`" as a part of our line."""
    reason, _, where = message.partition(" - at ")
    reason = reason.replace("`", "").replace("Expected ", "expected ", 1)
    if description is not None and "matching regex" in reason:
        reason = f"expected {description}"
    place = where.strip("`").removeprefix("$")
    return f"{reason} at {place}" if place else reason
