"""Wait until something has happened, instead of sleeping for as long as it should take."""

from __future__ import annotations

import asyncio
import inspect
import time
from collections.abc import Callable
from typing import Any, Final

import aiohttp

from tests.deadline import DEADLINE_SECONDS

#: How often a condition is asked, in seconds. Short against whatever is waited for, and long enough to leave
#: the processor to the program under test.
PAUSE_SECONDS: Final = 0.005
#: Turns of the event loop, each of which is asked about before there are pauses: what needs a few turns is
#: found in the turn in which it happens.
TURNS: Final = 100


async def until(
    read: Callable[[], Any],
    what: str = "what is waited for",
    *,
    holds: Callable[[Any], object] = bool,
    seconds: float = DEADLINE_SECONDS,
) -> Any:
    """Return what `read` returns, awaited if need be, as soon as that `holds`: by itself, that it is true.
    After `seconds` the test fails, with `what` did not happen.
    """
    result, deadline = None, asyncio.timeout(seconds)
    try:
        async with deadline:
            turns = 0
            while True:
                result = read()
                if inspect.isawaitable(result):
                    result = await result
                if holds(result):
                    return result
                await asyncio.sleep(0 if turns < TURNS else PAUSE_SECONDS)
                turns += 1
    except TimeoutError:
        assert not deadline.expired(), _failure(what, seconds, result)
        raise


def wait_until(
    read: Callable[[], Any], what: str = "what is waited for", *, seconds: float = DEADLINE_SECONDS
) -> Any:
    """`until` without an event loop: for what happens in another process or thread."""
    deadline = time.monotonic() + seconds
    while not (result := read()):
        assert time.monotonic() < deadline, _failure(what, seconds, result)
        time.sleep(PAUSE_SECONDS)
    return result


async def is_healthy(session: aiohttp.ClientSession) -> bool:
    """Whether the server at the base of the session's addresses answers `/health` with 200."""
    try:
        async with session.get("/health") as answer:
            return answer.status == 200
    except aiohttp.ClientError:
        return False


def _failure(what: str, seconds: float, result: object) -> str:
    return f"{what}: not within {seconds:g} s; last seen: {result!r}"
