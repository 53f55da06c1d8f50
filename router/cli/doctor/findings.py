"""One thing that was looked at."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from enum import Enum
from typing import Final

from msgspec import Struct

#: Models that cannot be used are one finding each; a folder of broken files needs not all of them.
_MODELS_SHOWN: Final = 5


class Level(Enum):
    """OK needs nothing; WARN works, but not as well as it could; FAIL keeps the router from its work."""

    OK = "ok"
    WARN = "warn"
    FAIL = "fail"


class Finding(Struct, frozen=True):
    """What `doctor --json` prints of one thing."""

    level: Level
    #: A word or two.
    about: str
    #: A sentence.
    found: str
    #: What to do, where it is not well.
    do: str = ""


def ok(about: str, found: str) -> Finding:
    return Finding(Level.OK, about, found)


def warn(about: str, found: str, do: str) -> Finding:
    return Finding(Level.WARN, about, found, do)


def fail(about: str, found: str, do: str) -> Finding:
    return Finding(Level.FAIL, about, found, do)


def look_at_broken(broken: Sequence[tuple[str, str]], what: str) -> Iterator[Finding]:
    """Yield a finding for each of the first models in `broken` (its finding, and what to do), and one that
    counts the rest.
    """
    for found, do in broken[:_MODELS_SHOWN]:
        yield warn("models", found, do)
    if len(broken) > _MODELS_SHOWN:
        yield warn("models", f"{len(broken) - _MODELS_SHOWN} {what}", "see `llama-router models`")


def look_at_count(count: int, where: str, put: str) -> Finding:
    """Return how many models can be used."""
    if count:
        return ok("models", f"{count} model{'s' * (count != 1)}{where}")
    return warn("models", "none that can be used", f"{put}, or `llama-router pull` one")
