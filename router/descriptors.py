"""File descriptors may run out: whether an error says so, and whether enough are left to begin something.

An error that says so tells of this process and not of what it looked at: who takes it for "there is no such
file" or "nothing is used" forgets models, and gives memory away twice.
"""

from __future__ import annotations

import errno
import os
from typing import Final

_SPAWN: Final = 16


def is_out_of_files(error: BaseException | None) -> bool:
    """Whether it was raised for want of a descriptor, of this process or of the whole system."""
    return isinstance(error, OSError) and error.errno in (errno.EMFILE, errno.ENFILE)


def check_left(count: int = _SPAWN) -> None:
    """Raises OSError unless `count` more can be opened; the default is more than it takes to start a process
    with three pipes.

    To be called right before a process is started: where uvloop finds too few on its way, it leaves those
    open that it has opened (0.23: one or two for each try, for ever), and so does `subprocess` of Python
    before 3.11.4.
    """
    taken: list[int] = []
    try:
        for _ in range(count):
            taken.append(os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC))  # noqa: PERF401 - must be closed
    finally:
        for fd in taken:
            os.close(fd)
