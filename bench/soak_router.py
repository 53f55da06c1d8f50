"""The router as the soak starts it: the same command, which on SIGUSR2 also writes down its living tasks."""

from __future__ import annotations

import asyncio
import gc
import json
import os
import signal
import sys
import threading
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))


def note_tasks() -> None:
    """A thread's work: the loop is not to be asked how it is."""
    file = Path(os.environ["LLAMA_ROUTER_SOAK_TASKS"])
    while signal.sigwait({signal.SIGUSR2}):
        gc.collect()
        tasks = [one for one in gc.get_objects() if type(one) is asyncio.Task and not one.done()]
        new = file.with_suffix(".new")
        new.write_text(json.dumps(sorted(_name(task) for task in tasks)))
        new.replace(file)


def _name(task: asyncio.Task[object]) -> str:
    """One that was given none is called after what it runs: its number says nothing."""
    name, runs = task.get_name(), task.get_coro()
    return getattr(runs, "__qualname__", str(runs)) if name.startswith("Task-") else name


if __name__ == "__main__":
    from router.__main__ import main

    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR2})
    threading.Thread(target=note_tasks, daemon=True).start()
    main()
