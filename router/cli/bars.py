"""A device's memory as a bar of characters, which tells its parts without colour."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import Final, Literal, TypeAlias

WIDTH: Final = 24

Part: TypeAlias = Literal["ours", "promised", "others", "margin", "free"]
#: The shades differ in darkness, so that they do in any font; letters where a terminal has no such blocks.
_BLOCKS: Final[Mapping[Part, str]] = {"ours": "█", "promised": "▓", "others": "▒", "margin": "░", "free": "·"}
_LETTERS: Final[Mapping[Part, str]] = {
    "ours": "#",
    "promised": "+",
    "others": "x",
    "margin": "-",
    "free": ".",
}


def bar(parts: Sequence[tuple[Part, int]], width: int = WIDTH) -> str:
    """Return the parts in their order, as long as their bytes; what is there at all has a character."""
    total = sum(max(0, size) for _, size in parts)
    if total <= 0:
        return " " * width
    exact = [max(0, size) * width / total for _, size in parts]
    cells = [max(1, int(size)) if size > 0 else 0 for size in exact]
    while sum(cells) < width:  # to the largest remainder
        cells[max(range(len(cells)), key=lambda at: exact[at] - cells[at])] += 1
    while sum(cells) > width and max(cells) > 1:  # from the longest
        cells[cells.index(max(cells))] -= 1
    signs = _signs()
    return "".join(signs[part] * count for (part, _), count in zip(parts, cells, strict=True))


def legend(names: Mapping[Part, str]) -> str:
    """What each character stands for."""
    signs = _signs()
    return "  ".join(f"{signs[part]} {name}" for part, name in names.items())


def _signs() -> Mapping[Part, str]:
    encoding = getattr(sys.stdout, "encoding", None) or "ascii"
    try:
        "".join(_BLOCKS.values()).encode(encoding)
    except (UnicodeEncodeError, LookupError):
        return _LETTERS
    return _BLOCKS
