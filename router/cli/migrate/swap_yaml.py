"""The text of a llama-swap.yaml as a document, read as llama-swap reads it: its types, and its macros."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final

import msgspec
import yaml
from msgspec import Struct

from router.cli.migrate.child_args import NotCarriedOver

_TAG: Final = "tag:yaml.org,2002:"
#: What is no text without quotes, in YAML 1.2: `on` and `no` are texts, as are dates and 12:30.
_PLAIN: Final = (
    ("null", r"(?:~|null|Null|NULL|)", "~nN"),
    ("bool", r"(?:true|True|TRUE|false|False|FALSE)", "tTfF"),
    ("int", r"[-+]?(?:0|[1-9]\d{0,18})", "-+0123456789"),
    ("float", r"[-+]?(?:\d+\.\d*|\.\d+)(?:[eE][-+]?\d+)?", "-+.0123456789"),
    ("merge", r"<<", "<"),
)
_MACRO: Final = re.compile(r"\$\{([a-zA-Z0-9_.-]+)\}")
#: A macro may be made of others; what goes deeper than this goes round in a circle.
_DEPTH: Final = 20


class _Loader(yaml.SafeLoader):  # type: ignore[misc]  # PyYAML has no types
    """Keys are texts whatever they look like: a model may be called 7, or on."""

    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}  # noqa: RUF012 - PyYAML's

    def construct_mapping(self, node: Any, deep: bool = False) -> Any:
        if isinstance(node, yaml.MappingNode):
            self.flatten_mapping(node)
            for key, _ in node.value:
                if isinstance(key, yaml.ScalarNode):
                    key.tag = f"{_TAG}str"
        return super().construct_mapping(node, deep=deep)


for _name, _pattern, _first in _PLAIN:
    _Loader.add_implicit_resolver(f"{_TAG}{_name}", re.compile(f"{_pattern}$"), [*_first])
_Loader.add_implicit_resolver(f"{_TAG}null", re.compile("$"), [""])


class _Filters(Struct):
    by_id: dict[str, Any] | None = msgspec.field(name="setParamsByID", default=None)


class Macros(Struct):
    macros: dict[str, Any] | None = None


class SwapModel(Struct):
    """What is read of a model whose macros are replaced, as llama-swap has its types."""

    cmd: str | int | float | None = None
    env: list[str | int | float] | None = None
    aliases: list[Any] | None = None
    filters: _Filters | None = None
    ttl: float | None = None
    unload_timeout: float | None = msgspec.field(name="unloadTimeout", default=None)


class _Group(Struct):
    swap: bool = True
    exclusive: bool = True
    persistent: bool = False
    members: list[str] | None = None


class _Startup(Struct):
    preload: list[str] | None = None


class _Hooks(Struct):
    on_startup: _Startup | None = None


class _Router(Struct):
    use: str | None = None
    settings: dict[str, Any] | None = None


class _Routing(Struct):
    router: _Router | None = None


class _Selector(Struct):
    targets: list[str] | None = None


class _File(Struct):
    models: dict[str, Any] | None
    macros: dict[str, Any] | None = None
    groups: dict[str, _Group | None] | None = None
    hooks: _Hooks | None = None
    routing: _Routing | None = None
    selectors: dict[str, _Selector] | None = None
    api_keys: list[Any] | None = msgspec.field(name="apiKeys", default=None)
    ttl: float | None = msgspec.field(name="globalTTL", default=None)
    unload_timeout: float | None = msgspec.field(name="unloadTimeout", default=None)


def read_document(text: str) -> dict[str, Any]:
    """Models are not looked at: a wrong one costs itself alone. Raises ValueError."""
    try:
        document = yaml.load(text, _Loader)
    except (yaml.YAMLError, RecursionError) as error:
        raise ValueError(str(error)) from error
    if not isinstance(document, dict) or not isinstance(document.get("models", ""), dict | type(None)):
        raise ValueError("this is no llama-swap configuration: it has no table of models")
    try:
        msgspec.convert(document, _File)
    except (msgspec.ValidationError, RecursionError) as error:
        raise ValueError(f"llama-swap does not take this either: {error}") from error
    return document


def expand(value: Any, macros: Mapping[str, Any], environ: Mapping[str, str]) -> Any:
    """Return the value with its macros replaced, in lists and tables too: `${name}` and `${env.NAME}`.

    A text that is one macro and nothing else keeps the macro's type. Raises NotCarriedOver for a macro that
    is not defined, a variable that is not set, and macros that contain each other.
    """
    match value:
        case str():
            return _expanded(value, macros, environ, _DEPTH)
        case list():
            return [expand(item, macros, environ) for item in value]
        case dict():
            return {
                expand(key, macros, environ): expand(item, macros, environ) for key, item in value.items()
            }
        case _:
            return value


def _expanded(text: str, macros: Mapping[str, Any], environ: Mapping[str, str], depth: int) -> Any:
    def value_of(name: str) -> Any:
        try:
            return environ[name.removeprefix("env.")] if name.startswith("env.") else macros[name]
        except KeyError:
            raise NotCarriedOver(f"${{{name}}} is not defined") from None

    def text_of(value: Any) -> str:
        return str(value).lower() if isinstance(value, bool) else str(value)

    if depth == 0:
        raise NotCarriedOver(f"${{{text}}} is not defined")
    whole = _MACRO.fullmatch(text)
    replaced = value_of(whole[1]) if whole else _MACRO.sub(lambda found: text_of(value_of(found[1])), text)
    if not isinstance(replaced, str) or not (whole or _MACRO.search(replaced)):
        return replaced
    return _expanded(replaced, macros, environ, depth - 1)
