"""One source of configuration, a file or the command line: its tables checked key by key against the tree."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, is_dataclass
from pathlib import Path
from typing import Any, Final, get_args, get_origin

from router.config.nearest import KeyPath, did_you_mean, dotted, valid_keys
from router.config.tree import Config
from router.config.values import Wrong, absolute, convert, hints_of, shown
from router.config.web import OriginPattern, host_pattern, listen_addresses
from router.text_file import NotText, read_text_file

_SECRETS: Final = frozenset({("server", "api_keys"), ("server", "admin_keys")})
#: What a type alone does not say of a value: each raises ValueError.
_CHECKS: Final[Mapping[KeyPath, Callable[[Any], object]]] = {
    ("server", "host"): listen_addresses,
    ("server", "allowed_hosts"): lambda hosts: [host_pattern(one) for one in hosts],
    ("server", "cors_origins"): lambda origins: [OriginPattern.parse(one) for one in origins],
}
_NOT_KEYS: Final = frozenset({"source", "lines"})
_KEYS: Final = tuple(key for key in valid_keys(Config) if key[0] not in _NOT_KEYS)
#: Keys of earlier versions, with their names of today.
_RENAMED: Final[Mapping[KeyPath, str]] = {
    ("memory", "foreign_wait_seconds"): "external_memory_wait_seconds",
    ("memory", "yield_to_others"): "evict_on_memory_pressure",
    ("memory", "second_opinion"): "use_llama_fit_params",
}
#: What a later source adds to, instead of replacing it.
_APPENDED: Final = ("child", "args")


@dataclass(frozen=True, slots=True)
class Reader:
    """Reads the tables of one source into the tree of values: those of a later source replace earlier ones.

    What is wrong is left out and described in `problems`: `SOURCE:LINE: KEY = VALUE: REASON; WAY OUT`.
    """

    source: str
    lines: Mapping[KeyPath, int]
    folder: Path
    problems: list[str]

    def read(self, table: Mapping[str, Any], tree: dict[str, Any]) -> None:
        self._section(Config, table, tree, ())

    def describe(self, path: KeyPath, problem: str) -> str:
        """`problem` of the key at `path`, with the line of that key or of the nearest table around it."""
        known = (path[:length] for length in range(len(path), 0, -1))
        line = next((self.lines[path] for path in known if path in self.lines), None)
        where = self.source if line is None else f"{self.source}:{line}"
        return f"{where}: {dotted(path)}{problem}"

    def _section(self, cls: Any, table: Mapping[str, Any], tree: dict[str, Any], path: KeyPath) -> None:
        hints = {name: hint for name, hint in hints_of(cls).items() if path or name not in _NOT_KEYS}
        for key, value in table.items():
            at = (*path, key)
            if key in hints:
                self._value(hints[key], value, tree, at)
            elif at in _RENAMED:
                self._note(at, f": this key is called {dotted((*path, _RENAMED[at]))} now")
            else:
                kind = "section" if isinstance(value, Mapping) else "key"
                self._note(at, f": there is no such {kind}{did_you_mean(at, value, _KEYS)}")

    def _value(self, hint: Any, value: Any, tree: dict[str, Any], path: KeyPath) -> None:
        key = path[-1]
        # What stands in [models."NAME"] is Any here: `router.presets` knows what it means.
        if is_dataclass(hint) or get_origin(hint) is Mapping or (hint is Any and isinstance(value, Mapping)):
            if not isinstance(value, Mapping):
                self._note(path, f" = {shown(value)}: expected a table, [{dotted(path)}]")
                return
            if not isinstance(tree.get(key), dict):
                tree[key] = {}
            if is_dataclass(hint):
                self._section(hint, value, tree[key], path)
                return
            item = Any if hint is Any else get_args(hint)[1]
            for name, each in value.items():
                self._value(item, each, tree[key], (*path, name))
        elif hint is Any:
            tree[key] = value
        else:
            try:
                tree[key] = self._converted(hint, value, tree.get(key, ()), path)
            except (Wrong, ValueError) as wrong:
                given = "" if path in _SECRETS else f" = {shown(value)}"  # a message ends up in logs
                self._note(path, f"{given}: {wrong}")

    def _converted(self, hint: Any, value: Any, before: Any, path: KeyPath) -> Any:
        if path in _SECRETS:
            return tuple(self._secrets(value))
        converted = convert(hint, value, self.folder)
        if path in _CHECKS:
            _CHECKS[path](converted)
        return before + converted if path == _APPENDED else converted

    def _note(self, path: KeyPath, problem: str) -> None:
        self.problems.append(self.describe(path, problem))

    def _secrets(self, value: Any) -> Iterator[str]:
        """Keys as they are, or from where they are kept, so that the file itself can be shown to others."""
        for number, secret in enumerate(convert(tuple[str, ...], value, self.folder), start=1):
            match secret.partition(":"):
                case ("env", ":", name):
                    found = [os.environ.get(name, "").strip()]
                    reason = f"the environment variable {name} is empty or not set"
                case ("file", ":", name):
                    found = _lines_of(absolute(name, self.folder))
                    reason = f"{absolute(name, self.folder)} holds no key"
                case _:
                    found, reason = [secret.strip()], f"number {number} is empty"
            if not found or not all(found):
                raise Wrong(reason)
            yield from found


def _lines_of(file: Path) -> list[str]:
    """One key per line, as in llama-server's --api-key-file; lines that begin with # are comments."""
    try:
        lines = [line.strip() for line in read_text_file(file).splitlines()]
    except OSError as error:
        raise Wrong(f"{file}: {error.strerror or error}") from error
    except NotText as error:
        raise Wrong(f"{file}: {error}") from error
    return [line for line in lines if line and not line.startswith("#")]
