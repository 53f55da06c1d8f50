"""The router as the soak starts it: the same command, which on SIGUSR2 also writes down what it holds.

With LLAMA_ROUTER_SOAK_TRACE=FILE it also notes where the memory was taken that was not there the first time,
which makes it several times slower.
"""

from __future__ import annotations

import asyncio
import ctypes
import faulthandler
import gc
import json
import os
import signal
import sys
import threading
import tracemalloc
from collections import Counter
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))


#: glibc, maybe.
_LIBC = ctypes.CDLL(None)


class MallInfo(ctypes.Structure):
    """glibc's struct mallinfo2."""

    _fields_ = tuple(
        (name, ctypes.c_size_t)
        for name in ("arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks", "fsmblks", "uordblks",
                     "fordblks", "keepcost")
    )  # fmt: skip


def note_holdings() -> None:
    """A thread's work: the loop is not to be asked how it is."""
    file = Path(os.environ["LLAMA_ROUTER_SOAK_HOLDINGS"])
    while signal.sigwait({signal.SIGUSR2}):
        gc.collect()
        if (trace := os.environ.get("LLAMA_ROUTER_SOAK_TRACE")) is not None:
            if not tracemalloc.is_tracing():
                tracemalloc.start(4)
            tracemalloc.take_snapshot().dump(trace)
        told = json.dumps(_holdings())
        if hasattr(_LIBC, "malloc_trim"):
            _LIBC.malloc_trim(0)  # what looking has taken, and what else is free, is not resident any more
        _write(file, told)


def _holdings() -> dict[str, Any]:
    """`blocks` and `taken_bytes` are what is in use, whatever the allocators keep beside it: objects up to
    512 bytes by number, and all that malloc has given out.
    """
    objects = gc.get_objects()
    tasks = sorted(_name(one) for one in objects if type(one) is asyncio.Task and not one.done())
    kinds = Counter(f"{type(one).__module__}.{type(one).__qualname__}" for one in objects)
    del objects
    found = {"tasks": tasks, "kinds": kinds, "blocks": sys.getallocatedblocks()}
    found["taken_bytes"] = 0
    if hasattr(_LIBC, "mallinfo2"):
        _LIBC.mallinfo2.restype = MallInfo
        info = _LIBC.mallinfo2()
        found["taken_bytes"] = info.uordblks + info.hblkhd
    return found


def _write(file: Path, text: str) -> None:
    new = file.with_suffix(".new")
    new.write_text(text)
    new.replace(file)


def _name(task: asyncio.Task[object]) -> str:
    """One that was given none is called after what it runs: its number says nothing."""
    name, runs = task.get_name(), task.get_coro()
    return getattr(runs, "__qualname__", str(runs)) if name.startswith("Task-") else name


if __name__ == "__main__":
    from router.__main__ import main

    faulthandler.register(signal.SIGUSR1)
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR2})
    threading.Thread(target=note_holdings, daemon=True).start()
    main()
