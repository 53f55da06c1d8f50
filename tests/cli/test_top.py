"""`top`"""

from __future__ import annotations

import asyncio
import json
import os
import pty
import select
import signal
import subprocess
import sys
from typing import Any

from rich.console import Console

from router.cli.client import Client
from router.cli.top import MOMENTS_SHOWN, _look_again, screen
from router.scheduler.types import Adopted, Cause, Placement, Stop, Tick
from router.scheduler.views import QueueView
from tests.admin.fake_pool import Instance
from tests.cli.conftest import Terminal


def drawn(told: Any, width: int = 160) -> str:
    console = Console(width=width, height=40, color_system=None)
    with console.capture() as capture:
        console.print(screen(told, width))
    return capture.get()


async def test_where_there_is_no_terminal_it_is_shown_once(terminal: Terminal):
    pool = terminal.api.pool
    pool.instances["tiny#1"] = Instance("tiny#1", "tiny", "", leases=["r1"])
    pool.queues = (QueueView("other", 3, 90.0, 1, "tiny to become idle", None),)
    pool.journal.record(1.0, Adopted("tiny#1", "tiny", Placement("local", {})), [])
    told = json.loads((await terminal.run("top", "--json")).output)
    text = drawn(told)
    assert "policy lru  1 of 4 models loaded, " in text
    assert "NVIDIA H200" in text and "█" in text
    assert "tiny lives on from an earlier router" in text
    assert "waits for tiny to become idle" in text
    assert "broken" in text, "what is wrong is shown, too"
    narrow = drawn(told, width=80)
    assert "…" not in narrow.partition("TIME")[0].partition("MODEL")[2], "nothing is cut off"
    assert (await terminal.run("top", "--once")).output.startswith("llama-router ")


def test_what_does_not_fit_is_counted():
    model = {
        "id": "m", "states": [], "waiting": 0, "error": None, "reason": None, "last": None, "predicted": 1,
        "measured": None, "leases": 0, "idle_since": None, "expires_at": None, "pinned": False,
    }  # fmt: skip
    request = {
        "id": "1", "model": "m", "state": "answering", "client": None, "path": "/v1",
        "age_seconds": 3.0, "bytes": 2048,
    }  # fmt: skip
    state = {"version": "1", "policy": "lru", "devices": [], "models": [model] * 5, "notes": ["a note"]}
    download = {
        "models": ["org/repo:Q4_K_M"], "repo": "org/repo", "state": "downloading", "done_bytes": 1 << 30,
        "total_bytes": 4 << 30, "bytes_per_second": 10 << 20, "expected_seconds": 307.2,
    }  # fmt: skip
    downloads = [download, {**download, "state": "finished"}]
    told = {"at": 1e9, "state": state, "requests": [request] * 11, "moments": [], "downloads": downloads}
    text = drawn(told)
    assert text.count("org/repo:Q4_K_M") == 1, "what is over is not shown"
    assert "██████··" in text and "5m 7s" in text
    assert "5 more are not loaded" in text
    assert "3 more" in text
    assert "2.0 KiB" in text
    assert "! a note" in text


async def test_a_router_that_is_away_is_waited_for(terminal: Terminal):
    class Away:
        def get(self, path: str, query: Any) -> Any:
            from router.cli.client import NoRouter

            raise NoRouter("http://nowhere")

    told = json.loads((await terminal.run("top", "--json")).output)
    text = drawn(_look_again(Away(), told))  # type: ignore[arg-type]
    assert "no router answers at http://nowhere" in text
    assert "NVIDIA H200" in text


async def test_each_look_asks_for_no_more_than_is_shown(terminal: Terminal):
    terminal.api.app_context.history.note(terminal.api.pool.snapshot(), 1.0)
    for number in range(MOMENTS_SHOWN + 1):
        terminal.api.pool.journal.record(1.0, Tick(), [Stop(f"tiny#{number}", Cause.EXPIRED)])
    whole = json.loads((await terminal.run("top", "--json")).output)
    assert whole["history"] and len(whole["moments"]) == MOMENTS_SHOWN + 1
    told = await asyncio.to_thread(_look_again, Client(terminal.api.url, None), whole)
    assert told["moments"] == whole["moments"][1:]
    assert "history" not in told


async def test_on_a_terminal_it_goes_on_until_ctrl_c(terminal: Terminal):
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "router", "top", "--url", terminal.api.url, "-d", "0.2"],
        stdin=theirs, stdout=theirs, stderr=theirs,
        env={**os.environ, "TERM": "xterm", "COLUMNS": "120", "LINES": "30"},
    )  # fmt: skip
    os.close(theirs)

    def read_until(text: str) -> None:
        seen = ""
        while text not in seen:
            assert select.select([ours], [], [], 30)[0], seen
            seen += os.read(ours, 1 << 16).decode(errors="replace")

    try:
        await asyncio.to_thread(read_until, "models loaded")
        terminal.api.pool.instances["tiny#1"] = Instance("tiny#1", "tiny", "")
        await asyncio.to_thread(read_until, "1 of 4")
        process.send_signal(signal.SIGINT)
        await asyncio.to_thread(read_until, "\x1b[?1049l")  # the screen is as it was
        assert await asyncio.to_thread(process.wait, 30) == 0
    finally:
        process.kill()
        process.wait()
        os.close(ours)
