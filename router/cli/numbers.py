"""Numbers of a command line, refused there when no router could take them."""

from __future__ import annotations

import math
import re
from typing import Any, Final

import click

#: As `router.admin.head` bounds idle times, whose import would cost each command aiohttp's.
LONGEST_SECONDS: Final = 10**9
#: As the router bounds counts of tokens and layers (router.config.Count).
MOST: Final = 1 << 40
_DIGITS: Final = re.compile(r"[0-9]+", re.ASCII)


class FiniteRange(click.FloatRange):
    """As click's, which lets "nan" through: it is neither below a minimum nor above a maximum."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        number: float = super().convert(value, param, ctx)
        if not math.isfinite(number):
            self.fail(f"{value} is no finite number.", param, ctx)
        return number


class CountOr(click.ParamType[int | str]):
    """A whole number from 0 to MOST, or one of `words`."""

    name = "count"

    def __init__(self, *words: str) -> None:
        self._words = words

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int | str:
        text = str(value)
        if text in self._words:
            return text
        if _DIGITS.fullmatch(text) and len(text) <= len(str(MOST)) and int(text) <= MOST:
            return int(text)
        words = " or ".join(self._words)
        message = f"{text[:40]!r} is neither a whole number from 0 to {MOST} nor {words}."
        raise click.BadParameter(message, ctx=ctx, param=param)


#: An idle time: negative is for ever.
IDLE_SECONDS: Final = FiniteRange(min=-LONGEST_SECONDS, max=LONGEST_SECONDS)
SECONDS: Final = FiniteRange(min=0, max=LONGEST_SECONDS)
