"""Bars that tell their parts without colour."""

from __future__ import annotations

import io

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.cli import bars
from router.cli.bars import Part, bar, legend

PARTS: tuple[Part, ...] = ("ours", "promised", "others", "margin", "free")


def test_parts_are_as_long_as_their_bytes():
    assert bar((("ours", 6), ("others", 3), ("free", 3)), width=12) == "██████▒▒▒···"


@given(st.lists(st.integers(0, 1 << 40), min_size=5, max_size=5))
def test_it_is_always_as_wide_as_it_should_be_and_shows_whatever_is_there(sizes: list[int]):
    drawn = bar(tuple(zip(PARTS, sizes, strict=True)), width=16)
    assert len(drawn) == 16
    if any(sizes):
        assert set(drawn) == {bars._BLOCKS[part] for part, size in zip(PARTS, sizes, strict=True) if size > 0}


def test_nothing_is_drawn_of_a_device_without_memory():
    assert bar((("free", 0),), width=4) == "    "


def test_where_a_terminal_has_no_blocks_it_is_drawn_with_letters(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("sys.stdout", io.TextIOWrapper(io.BytesIO(), encoding="ascii"))
    assert bar((("ours", 1), ("promised", 1), ("others", 1), ("margin", 1), ("free", 1)), width=5) == "#+x-."
    assert legend({"ours": "models", "free": "free"}) == "# models  . free"
