"""One thing that was looked at."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum


class Level(Enum):
    """OK needs nothing; WARN works, but not as well as it could; FAIL keeps the router from its work."""

    OK = "ok"
    WARN = "warn"
    FAIL = "fail"


@dataclass(frozen=True, slots=True)
class Finding:
    """`about` in a word or two, `found` in a sentence, and `do` where it is not well."""

    level: Level
    about: str
    found: str
    do: str = ""


def ok(about: str, found: str) -> Finding:
    return Finding(Level.OK, about, found)


def warn(about: str, found: str, do: str) -> Finding:
    return Finding(Level.WARN, about, found, do)


def fail(about: str, found: str, do: str) -> Finding:
    return Finding(Level.FAIL, about, found, do)
