"""llama-swap's macros: `${name}`, `${env.NAME}` and what it fills in itself."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final

_MACRO: Final = re.compile(r"\$\{([a-zA-Z0-9_.-]+)\}")
#: A macro may be made of others; what goes deeper than this goes round in a circle.
_DEPTH: Final = 20


class Unknown(Exception):
    """A macro that is not defined, or an environment variable that is not set: its name."""


def expand(value: Any, macros: Mapping[str, Any], environ: Mapping[str, str]) -> Any:
    """The value with its macros replaced, in lists and tables too. A text that is one macro and nothing else
    keeps the macro's type. Raises Unknown."""
    match value:
        case str():
            return _expanded(value, macros, environ, _DEPTH)
        case list():
            return [expand(one, macros, environ) for one in value]
        case dict():
            return {expand(key, macros, environ): expand(one, macros, environ) for key, one in value.items()}
        case _:
            return value


def _expanded(text: str, macros: Mapping[str, Any], environ: Mapping[str, str], depth: int) -> Any:
    if depth == 0:
        raise Unknown(text)
    whole = _MACRO.fullmatch(text)
    if whole is not None:
        value = _value(whole[1], macros, environ)
        return _expanded(value, macros, environ, depth - 1) if isinstance(value, str) else value
    replaced = _MACRO.sub(lambda found: _text(_value(found[1], macros, environ)), text)
    return _expanded(replaced, macros, environ, depth - 1) if _MACRO.search(replaced) else replaced


def _value(name: str, macros: Mapping[str, Any], environ: Mapping[str, str]) -> Any:
    try:
        return environ[name.removeprefix("env.")] if name.startswith("env.") else macros[name]
    except KeyError:
        raise Unknown(name) from None


def _text(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
