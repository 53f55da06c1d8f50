"""llama.cpp's INI presets as text: sections of keys and values with their lines, whatever the keys mean.

The grammar is that of llama.cpp (common/preset.cpp), without its traps: a `;` or `#` begins a comment only
after a blank and never inside quotes or a JSON value, quotes around a whole value are no part of it, a
section that comes again continues, its name is trimmed, a key may be indented, and a line that cannot be
understood spoils its own section instead of the whole file.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field

DEFAULTS = "*"
"""The name of the section that holds for all models."""

_HEADER = re.compile(r"\[(?P<name>[^\]]*)\]\s*(?:[;#].*)?")
_QUOTED = {
    '"': re.compile(r'"(?:[^"\\]|\\.)*+"'),
    "'": re.compile(r"'[^']*+(?:'\w[^']*+)*+'"),  # the apostrophe of "it's" ends nothing
}
_OPENS_NOTHING = re.compile(r"[\w\\]")


@dataclass(frozen=True, slots=True)
class IniEntry:
    key: str
    value: str
    line: int


@dataclass(slots=True)
class IniSection:
    """`entries` in the order of the file; `problems` maps lines to what is wrong there."""

    name: str
    line: int
    entries: list[IniEntry] = field(default_factory=list)
    problems: dict[int, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class IniFile:
    """`problems` are those outside of any section."""

    sections: Mapping[str, IniSection]
    problems: Mapping[int, str]


def parse_ini(text: str) -> IniFile:
    """Never fails: what cannot be understood becomes a problem of its line."""
    sections: dict[str, IniSection] = {}
    lost: dict[int, str] = {}
    section: IniSection | None = None
    for number, line in enumerate(re.split(r"\r\n|\n|\r", text.removeprefix("\ufeff")), start=1):
        line = line.strip()
        problems = lost if section is None else section.problems
        if not line or line[0] in ";#":
            continue
        if line[0] == "[":
            match = _HEADER.fullmatch(line)
            name = match["name"].strip() if match else ""
            if not name:
                problems[number] = f"{line!r} is not a section header such as [name]"
                continue
            section = sections.setdefault(name, IniSection(name, number))
            continue
        key, equals, value = line.partition("=")
        key = key.strip()
        if not equals or not key:
            problems[number] = f"{line!r} is not of the form key = value"
        elif section is None:
            if key == "version":  # reserved by llama.cpp, and put at the top by its examples
                continue
            problems[number] = f"{key} stands before any section; settings for all models belong into [*]"
        else:
            section.entries.append(IniEntry(key, _value(value.strip()), number))
    return IniFile(sections, lost)


def _value(text: str) -> str:
    """What stands behind `key =`, without its comment, and without one pair of quotes around all of it."""
    if text.startswith(("{", "[")):
        try:
            _, end = json.JSONDecoder().raw_decode(text)
        except (ValueError, RecursionError):
            pass
        else:
            if not text[end:].strip() or text[end:].lstrip()[0] in ";#":
                return text[:end]
    return _without_quotes(text[: _comment_of(text)].rstrip())


def _comment_of(text: str) -> int:
    """Where its comment begins: behind a blank, and not inside quotes. A quote that is never closed, or that
    stands in a word, opens nothing."""
    at, quotes = 0, dict(_QUOTED)
    while at < len(text):
        before = text[at - 1] if at else " "
        if text[at] in ";#" and before.isspace():
            return at
        pattern = quotes.get(text[at])
        if pattern is not None and not _OPENS_NOTHING.match(before):
            quoted = pattern.match(text, at)
            if quoted is None:
                del quotes[text[at]]
            elif not text[quoted.end() : quoted.end() + 1].isalnum():
                at = quoted.end()
                continue
        at += 1
    return len(text)


def _without_quotes(value: str) -> str:
    """Several quoted parts, `"a","b"`, stay as they are; JSON may have its own quotes inside of the pair."""
    inner = value[1:-1]
    pattern = _QUOTED.get(value[:1])
    if pattern is not None and pattern.fullmatch(value):
        return inner.replace('\\"', '"') if value[0] == '"' else inner
    if len(value) > 1 and value[0] == value[-1] == '"' and inner.startswith(("{", "[")):
        try:
            json.loads(inner)
        except (ValueError, RecursionError):
            return value
        return inner
    return value
