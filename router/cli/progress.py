"""One line on the terminal that changes while something is waited for; nothing where there is no terminal."""

from __future__ import annotations

import shutil
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, wait
from typing import Final, TypeVar

import click

from router.cli.bars import bar

_T = TypeVar("_T")

POLL_SECONDS: Final = 0.2
_CLEAR: Final = "\r\x1b[K"


def while_waiting(work: Callable[[], _T], words: Callable[[float], str]) -> _T:
    """Return or raise what `work` does. Meanwhile a terminal shows `words(seconds since the start)`."""
    if not sys.stderr.isatty():
        return work()
    begun = time.monotonic()
    future: Future[_T] = Future()

    def run() -> None:
        try:
            future.set_result(work())
        except BaseException as error:  # noqa: BLE001 - it is raised where it is waited for
            future.set_exception(error)

    # No executor: it would wait for the work when the process ends, also after Ctrl-C.
    threading.Thread(target=run, daemon=True).start()
    try:
        while not wait([future], timeout=POLL_SECONDS).done:
            show_line(words(time.monotonic() - begun))
        return future.result()
    finally:
        show_line("")


def share_bar(share: float) -> str:
    """How far something is, from 0 to 1; it never says that it is done."""
    share = min(0.99, max(0.0, share))
    return bar((("ours", round(share * 1000)), ("free", round((1 - share) * 1000))))


def show_line(text: str) -> None:
    """Put a text in the place of what stood there."""
    width = shutil.get_terminal_size().columns
    click.echo(_CLEAR + text[: width - 1], err=True, nl=False)
