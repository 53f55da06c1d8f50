"""The router as the soak starts it: the same command, which on SIGUSR2 also writes down what it holds.

With LLAMA_ROUTER_SOAK_TRACE=FILE it notes where memory is taken, too, which makes it several times slower.
"""

from __future__ import annotations

import asyncio
import ctypes
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
        if tracemalloc.is_tracing():
            tracemalloc.take_snapshot().dump(os.environ["LLAMA_ROUTER_SOAK_TRACE"])
        _write(file, json.dumps(_holdings()))


def _holdings() -> dict[str, Any]:
    """`blocks` and `taken_bytes` are what is in use, whatever the allocators keep beside it: objects up to
    512 bytes by number, and all that malloc has given out.
    """
    objects = gc.get_objects()
    tasks = sorted(_name(one) for one in objects if type(one) is asyncio.Task and not one.done())
    kinds = Counter(f"{type(one).__module__}.{type(one).__qualname__}" for one in objects)
    del objects
    found = {"tasks": tasks, "kinds": kinds, "blocks": sys.getallocatedblocks()}
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallinfo2"):  # glibc's
        libc.mallinfo2.restype = MallInfo
        info = libc.mallinfo2()
        found |= {"taken_bytes": info.uordblks + info.hblkhd, "kept_bytes": info.fordblks}
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

    if "LLAMA_ROUTER_SOAK_TRACE" in os.environ:
        tracemalloc.start(4)
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR2})
    threading.Thread(target=note_holdings, daemon=True).start()
    main()
