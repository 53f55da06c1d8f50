"""A pattern stands for the names that it says, and two that share a name are found to."""

from __future__ import annotations

import time
from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.presets.alias_patterns import common_name, is_pattern, matches


@pytest.mark.parametrize(
    ("pattern", "name", "is_one"),
    [
        ("claude-sonnet-*", "claude-sonnet-4-20250514", True),
        ("claude-sonnet-*", "claude-sonnet-", True),
        ("claude-sonnet-*", "claude-sonnet", False),
        ("claude-sonnet-*", "my-claude-sonnet-4", False),
        ("claude-sonnet-*", "Claude-Sonnet-4", False),
        ("*-mini", "gpt-5-mini", True),
        ("gpt-*-mini", "gpt-mini", False),
        ("gpt-*-mini", "gpt--mini", True),
        ("a*b*a", "aba", True),
        ("a*a", "a", False),
        ("a*b*b", "ab", False),
        ("*", "any/thing:at all", True),
        ("plain", "plain", True),
        ("[a-z]?", "b", False),
        ("a.c*", "abc", False),
    ],
)
def test_a_star_is_any_text_and_nothing_else_is_special(pattern, name, is_one):
    assert matches(pattern, name) is is_one


def test_a_long_name_takes_no_time():
    begun = time.perf_counter()
    assert not matches("*a" * 100 + "*b", "a" * 1_000_000)
    assert time.perf_counter() - begun < 1.0


@pytest.mark.parametrize(
    ("one", "other", "name"),
    [
        ("claude-*", "claude-sonnet-*", "claude-sonnet-"),
        ("claude-*", "*-sonnet", "claude-sonnet"),
        ("a*c", "*b*", "abc"),
        ("*", "*", "x"),
        ("a*", "b*", None),
        ("*a", "*b", None),
        ("a*b", "a*c", None),
        ("a*b*c", "*cb*", "acbc"),
        ("claude-sonnet-*", "claude-opus-*", None),
        ("gpt-4*", "gpt-4o*", "gpt-4o"),
        ("a*a", "a", None),
        ("a*", "a", "a"),
    ],
)
def test_the_shortest_common_name_is_found(one, other, name):
    assert common_name(one, other) == common_name(other, one) == name


PATTERNS = st.text(alphabet="ab*", min_size=1, max_size=5)


@given(PATTERNS, PATTERNS)
def test_patterns_have_a_common_name_just_where_some_name_is_of_both(one, other):
    found = common_name(one, other)
    if found is not None and not set(one) == set(other) == {"*"}:
        assert matches(one, found) and matches(other, found)
    # Of patterns of at most 5 signs a common name has at most 8 letters.
    names = ("".join(letters) for size in range(9) for letters in product("ab", repeat=size))
    is_shared = any(matches(one, name) and matches(other, name) for name in names)
    assert is_shared == (found is not None)


def test_only_what_has_a_star_is_a_pattern():
    assert is_pattern("a*") and not is_pattern("a?[b]")
