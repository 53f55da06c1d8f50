"""Aliases with `*`, which stands for any text: `claude-sonnet-*` is every name that begins so."""

from __future__ import annotations

from collections import deque


def is_pattern(alias: str) -> bool:
    return "*" in alias


def matches(pattern: str, name: str) -> bool:
    """Whether `name` is one that `pattern` stands for.

    Takes time in proportion to the length of `name`, which a client chooses.
    """
    first, *rest = pattern.split("*")
    if not rest:
        return name == pattern
    *middle, last = rest
    at, end = len(first), len(name) - len(last)
    if at > end or not name.startswith(first) or not name.endswith(last):
        return False
    for part in middle:
        at = name.find(part, at, end)
        if at < 0:
            return False
        at += len(part)
    return True


def common_name(one: str, other: str) -> str | None:
    """The shortest name that both patterns stand for, None where there is none.

    A search over pairs of places, one in each pattern: a `*` may end, or take what the other has next.
    """
    ways = deque([(0, 0, "")])
    seen = {(0, 0)}
    while ways:
        at, there, text = ways.popleft()
        if at == len(one) and there == len(other):
            return text or "x"  # two patterns of nothing but `*`
        a, b = one[at : at + 1], other[there : there + 1]
        steps = []
        if a == "*":
            steps.append((at + 1, there, ""))
            if b not in ("", "*"):
                steps.append((at, there + 1, b))
        if b == "*":
            steps.append((at, there + 1, ""))
            if a not in ("", "*"):
                steps.append((at + 1, there, a))
        if a == b and a not in ("", "*"):
            steps.append((at + 1, there + 1, a))
        for further, further_there, taken in steps:
            if (further, further_there) not in seen:
                seen.add((further, further_there))
                ways.append((further, further_there, text + taken))
    return None
