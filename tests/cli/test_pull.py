"""`pull` and `rm`, against a router that fetches from a hub on loopback."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

from router.cli import pull
from tests.admin.test_downloads import MODEL, Q4, Q8, REPO, fetching, hub
from tests.cli.conftest import Terminal
from tests.waiting import until

__all__ = ["fetching", "hub"]


async def test_a_model_is_fetched_and_may_be_used(fetching, hub):
    hub.add(REPO, {Q4: MODEL, Q8: MODEL})
    result = await Terminal(fetching).run("pull", REPO)
    assert result.stdout == f"{REPO}:Q4_K_M: 1 MiB, ready to be used\n"
    assert f"{REPO}:Q4_K_M" in result.stderr, "without a terminal it tells line by line"
    again = json.loads((await Terminal(fetching).run("pull", f"{REPO}:Q8_0", "--json")).stdout)
    assert (again["state"], again["models"]) == ("finished", [f"{REPO}:Q8_0"])


async def test_it_need_not_wait_and_what_runs_is_listed(fetching, hub):
    terminal = Terminal(fetching)
    assert (await terminal.run("pull")).output == "There are no downloads.\n"
    hub.add(REPO, {Q4: MODEL})
    hub.faults.hold_after = 100_000
    begun = await terminal.run("pull", REPO, "--no-wait")
    assert begun.output.startswith(f"{REPO}:Q4_K_M: ")
    listed = (await terminal.run("pull")).output.splitlines()
    assert listed[0].split() == ["MODEL", "STATE", "DONE", "SIZE", "NOTE"]
    assert listed[1].startswith(f"{REPO}:Q4_K_M  downloading")


async def test_what_there_is_is_told_without_fetching_it(fetching, hub):
    hub.add(REPO, {Q4: MODEL, Q8: MODEL})
    output = (await Terminal(fetching).run("pull", REPO, "--look", "--exclude", "*Q4*")).output
    assert "Q4_K_M" in output and f"  {Q8} (1 MiB)" in output and "Would fetch 1 MiB into" in output
    assert hub.content_requests() == []


async def test_a_failure_is_told_in_the_routers_words(fetching, hub):
    terminal = Terminal(fetching)
    assert "has no repository org/none" in (await terminal.run("pull", "org/none", status=1)).output
    repo = hub.add(REPO, {Q4: MODEL})
    repo.served[Q4] = MODEL[::-1]
    assert "is not what the hub has listed" in (await terminal.run("pull", REPO, status=1)).output


async def test_ctrl_c_stops_the_download_and_the_same_command_goes_on(fetching, hub, tmp_path):
    hub.add(REPO, {Q4: MODEL})
    hub.faults.hold_after = 900_000
    command = [sys.executable, "-m", "router", "pull", REPO, "--url", fetching.url]
    process = await asyncio.create_subprocess_exec(
        *command, cwd=Path(__file__).parents[2], env=dict(os.environ)
    )
    async with asyncio.timeout(30.0):
        await hub.faults.holding.wait()
        await until(lambda: any(part.stat().st_size for part in tmp_path.rglob("*.incomplete")))
        process.send_signal(signal.SIGINT)
        assert await process.wait() == 130
    assert (await fetching.get("/models/downloads")).json()["data"][0]["state"] == "cancelled"
    hub.faults.hold_after = None
    hub.faults.go.set()
    await Terminal(fetching).run("pull", REPO)
    assert hub.content_requests()[-1].range is not None


def job(**changes: Any) -> dict[str, Any]:
    plain = {
        "models": ["m"],
        "state": "downloading",
        "done_bytes": 3 << 30,
        "total_bytes": 4 << 30,
        "bytes_per_second": 100 << 20,
        "expected_seconds": 10.2,
    }
    return plain | changes


def test_the_line_tells_share_pace_and_what_is_left():
    words = pull._progress(job())
    assert words.startswith("m ") and words.endswith("75 % of 4.0 GiB, 100 MiB/s, 10s left")
    assert pull._progress(job(state="queued")) == "m: waits for other downloads"
    waiting = job(state="waiting", retry_at=0.0, error={"message": "the hub answers 503"})
    assert pull._progress(waiting) == "m: the hub answers 503; tried again in 0s"


async def test_on_a_terminal_a_bar_tells_how_far_it_is(fetching, hub):
    hub.add(REPO, {Q4: MODEL})
    hub.faults.hold_after = 800_000
    here, there = os.openpty()
    command = [sys.executable, "-m", "router", "pull", REPO, "--url", fetching.url]
    process = await asyncio.create_subprocess_exec(
        *command, cwd=Path(__file__).parents[2], stdin=there, stdout=there, stderr=there
    )
    os.close(there)
    os.set_blocking(here, False)
    seen = b""
    async with asyncio.timeout(30.0):
        while process.returncode is None or b"ready to be used" not in seen:
            with suppress(BlockingIOError, OSError):  # the other end closes it with an error
                seen += os.read(here, 65536)
            if b" 75 % of 1 MiB" in seen:
                hub.faults.go.set()
            await asyncio.sleep(0.01)
    os.close(here)
    assert process.returncode == 0 and b"\r\x1b[K" in seen
