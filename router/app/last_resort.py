"""A shutdown always ends: after its deadline the process exits, and what still runs is in the log."""

from __future__ import annotations

import asyncio
import logging
import os
import threading
from collections.abc import Callable
from typing import Final

log = logging.getLogger("router.app")

#: Beyond every grace that a shutdown grants, in seconds: for what is written last and for the last bytes.
SPARE_SECONDS: Final = 40.0
#: EX_SOFTWARE of sysexits.h: the shutdown itself has failed.
EXIT_STATUS: Final = 70


def exit_after(seconds: float, end_children: Callable[[], None]) -> None:
    """Exit `seconds` from now whatever hangs: a disk that does not answer holds the event loop, or a thread
    for which the interpreter waits at its end. `end_children` is called first, from another thread.
    """
    loop = asyncio.get_running_loop()
    names = [task.get_name() for task in asyncio.all_tasks(loop)]

    def end() -> None:
        threads = ", ".join(thread.name for thread in threading.enumerate() if not thread.daemon)
        log.critical(
            "the shutdown has not ended within %g s: exiting; threads: %s; tasks at its beginning: %s",
            seconds,
            threads,
            ", ".join(sorted(names)),
        )
        try:
            end_children()
        finally:
            for handler in logging.getLogger().handlers:
                handler.flush()  # bounded (`log_lines.AsyncLogHandler`)
            os._exit(EXIT_STATUS)

    timer = threading.Timer(seconds, end)
    timer.name, timer.daemon = "last resort", True
    timer.start()
