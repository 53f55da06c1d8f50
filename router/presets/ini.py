"""llama.cpp's INI presets as text: sections of keys and values with their lines, whatever the keys mean.

The grammar is that of llama.cpp (common/preset.cpp), without its traps: a `;` or `#` begins a comment only
after a blank and never inside a JSON value, a section that comes again continues, its name is trimmed, a
key may be indented, and a line that cannot be understood spoils its own section instead of the whole file.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field

DEFAULTS = "*"
"""The name of the section that holds for all models."""

_HEADER = re.compile(r"\[(?P<name>[^\]]*)\]\s*(?:[;#].*)?")
_COMMENT = re.compile(r"(?:^|\s)[;#].*")


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
            section.entries.append(IniEntry(key, _without_comment(value.strip()), number))
    return IniFile(sections, lost)


def _without_comment(value: str) -> str:
    if value.startswith(("{", "[")):
        try:
            _, end = json.JSONDecoder().raw_decode(value)
        except (ValueError, RecursionError):
            pass
        else:
            if not value[end:].strip() or value[end:].lstrip()[0] in ";#":
                return value[:end]
    return _COMMENT.sub("", value, count=1).rstrip()
