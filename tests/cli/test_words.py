"""Numbers as people read them."""

from __future__ import annotations

import pytest

from router.cli.words import duration, gib, print_table


@pytest.mark.parametrize(
    ("bytes_", "words"),
    [(None, "-"), (0, "0 MiB"), (20 << 20, "20 MiB"), (6 << 30, "6.0 GiB"), (-(2 << 30), "-2.0 GiB")],
)
def test_bytes(bytes_: float | None, words: str):
    assert gib(bytes_) == words


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(None, "-"), (-3, "0s"), (41.6, "42s"), (59.6, "1m 0s"), (310, "5m 10s"), (11_100, "3h 5m")],
)
def test_durations(seconds: float | None, words: str):
    assert duration(seconds) == words


def test_columns_are_as_wide_as_their_widest_cell(capsys):
    print_table(("A", "B"), [("long cell", "x"), ("s", "y")])
    assert capsys.readouterr().out == "A          B\nlong cell  x\ns          y\n"
