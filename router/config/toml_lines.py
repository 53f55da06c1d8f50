"""On which line each key of a TOML text stands, which tomllib does not tell: for messages only."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping

_BLANK = re.compile(r"(?:[ \t\r\n]+|#[^\n]*)*")
_KEY = re.compile(r"""(?:[^\s"'=\[\]#.]+|"(?:[^"\\\n]|\\.)*"|'[^'\n]*'|[ \t]*\.[ \t]*)+""")
_VALUE = re.compile(
    r'''"""(?:[^\\]|\\.)*?"{3,5}|\'\'\'.*?\'{3,5}'''  # strings over several lines
    r"""|"(?:[^"\\\n]|\\.)*"|'[^'\n]*'|\#[^\n]*|[\[\]{}\n]|[^"'\#\[\]{}\n]+""",
    re.DOTALL,
)


def toml_lines(text: str) -> Mapping[tuple[str, ...], int]:
    """The line (from 1) of every table header and key of `text`, which must be valid TOML; {} if it is not.

    What stands inside an inline table or an array has no line of its own: look for the longest known
    prefix of its path.
    """
    try:
        tomllib.loads(text)
    except tomllib.TOMLDecodeError:
        return {}
    lines: dict[tuple[str, ...], int] = {}
    table: tuple[str, ...] = ()
    at, line, counted = 0, 1, 0
    while (at := _end(_BLANK, text, at)) < len(text):
        line, counted = line + text.count("\n", counted, at), at
        if text[at] == "[":
            start = _end(re.compile(r"\[+[ \t]*"), text, at)
            at = _end(_KEY, text, start)
            table = _parts(text[start:at])
            lines.setdefault(table, line)
            at = _end(re.compile(r"[ \t]*\]+"), text, at)
        else:
            start, at = at, _end(_KEY, text, at)
            key = table + _parts(text[start:at])
            for length in range(len(table) + 1, len(key) + 1):
                lines.setdefault(key[:length], line)
            at = _end_of_value(text, _end(re.compile(r"[ \t]*="), text, at))
    return lines


def _end(pattern: re.Pattern[str], text: str, at: int) -> int:
    match = pattern.match(text, at)
    assert match is not None, f"valid TOML, but not understood at offset {at}"
    return match.end()


def _end_of_value(text: str, at: int) -> int:
    """The end of the line on which the value that begins at `at` is complete."""
    depth = 0
    while at < len(text):
        match = _VALUE.match(text, at)
        assert match is not None, f"valid TOML, but not understood at offset {at}"
        token, at = match[0], match.end()
        if token in "[{":
            depth += 1
        elif token in "]}":
            depth -= 1
        elif token == "\n" and depth == 0:
            break
    return at


def _parts(key: str) -> tuple[str, ...]:
    """`a."b.c"` -> ("a", "b.c"), by the parser itself: it alone knows all the escapes."""
    parts: list[str] = []
    node: object = tomllib.loads(f"{key.strip()} = 0")
    while isinstance(node, dict):
        ((part, node),) = node.items()
        parts.append(part)
    return tuple(parts)
