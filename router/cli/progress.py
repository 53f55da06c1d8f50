"""One line on the terminal that changes while something is waited for; nothing where there is no terminal."""

from __future__ import annotations

import shutil
import sys
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import Any, Final, TypeVar

import click

from router.cli.bars import bar

_T = TypeVar("_T")

POLL_SECONDS: Final = 0.2
_CLEAR: Final = "\r\x1b[K"


def while_waiting(work: Callable[[], _T], words: Callable[[float], str]) -> _T:
    """What `work` returns or raises. Meanwhile `words(seconds since the start)` stand on a terminal."""
    if not sys.stderr.isatty():
        return work()
    begun = time.monotonic()
    # Not `with`: Ctrl-C must not wait for the work to end.
    executor = ThreadPoolExecutor(1)
    future = executor.submit(work)
    try:
        while not _done(future):
            show_line(words(time.monotonic() - begun))
        return future.result()
    finally:
        click.echo(_CLEAR, err=True, nl=False)
        executor.shutdown(wait=False, cancel_futures=True)


def share_bar(share: float) -> str:
    """How far something is, from 0 to 1; it never says that it is done."""
    share = min(0.99, max(0.0, share))
    return bar((("ours", round(share * 1000)), ("free", round((1 - share) * 1000))))


def _done(future: Future[Any]) -> bool:
    return bool(wait([future], timeout=POLL_SECONDS).done)


def show_line(text: str) -> None:
    """In the place of what stood there."""
    width = shutil.get_terminal_size().columns
    click.echo(_CLEAR + text[: width - 1], err=True, nl=False)
