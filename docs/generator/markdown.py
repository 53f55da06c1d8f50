"""Tables and texts as Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final

#: At the head of every page that is made.
MADE: Final = "<!-- Made of the code by bin/generate-docs: change it there. -->\n\n"


def table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [heads, ["---"] * len(heads), *rows]
    return "".join(f"| {' | '.join(map(_cell, line))} |\n" for line in lines)


def code(text: str) -> str:
    return f"`{text}`"


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")
