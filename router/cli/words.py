"""Numbers and tables as people read them in a terminal."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeAlias

import click

#: A table by its columns: what stands above each, and the text of an item in it.
Columns: TypeAlias = Mapping[str, Callable[[Any], str]]


def gib(bytes_: float | None) -> str:
    """Bytes with the unit that suits their size; a dash for what is not known."""
    if bytes_ is None:
        return "-"
    if abs(bytes_) >= 2**30 // 10:
        return f"{bytes_ / 2**30:.1f} GiB"
    return f"{bytes_ / 2**20:.0f} MiB"


def duration(seconds: float | None) -> str:
    """Seconds as "42s", "5m 10s", "3h 5m"; a dash for what is not known or never comes."""
    if seconds is None:
        return "-"
    whole = max(0, round(seconds))
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m {whole % 60}s"
    return f"{whole // 3600}h {whole % 3600 // 60}m"


def size(key: str) -> Callable[[Mapping[str, Any]], str]:
    """Return the column of a field in bytes."""
    return lambda item: gib(item[key])


def print_items(columns: Columns, items: Iterable[Any]) -> None:
    """Print a row for each item."""
    print_table(tuple(columns), [[cell(item) for cell in columns.values()] for item in items])


def print_table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Columns as wide as they must be, the last one as it comes."""
    widths = [max(len(row[at]) for row in (heads, *rows)) for at in range(len(heads))]
    for row in (heads, *rows):
        cells = [cell.ljust(width) for cell, width in zip(row, widths, strict=True)]
        click.echo("  ".join(cells).rstrip())
