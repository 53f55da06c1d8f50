"""A program run for what it prints: told whole, bounded, and gone afterwards with all that it has started."""

from __future__ import annotations

import asyncio
import os
import time
from pathlib import Path

import pytest

from router.process import output_of
from router.process.output import OUTPUT_BYTES
from tests.waiting import until

ENV = {"PATH": os.defpath}


def sh(script: str) -> list[str]:
    return ["/bin/sh", "-c", script]


async def test_what_it_prints_comes_whole_with_its_status():
    said = await output_of(sh("echo one; sleep 0.05; echo two; exit 3"), ENV, timeout_seconds=10)
    assert (said.status, said.data) == (3, b"one\ntwo\n")


async def test_what_it_says_on_stderr_belongs_to_it_only_where_that_is_wanted():
    both = sh("echo out; echo err >&2")
    assert (await output_of(both, ENV, timeout_seconds=10)).data == b"out\n"
    assert (await output_of(both, ENV, timeout_seconds=10, with_errors=True)).data == b"out\nerr\n"


async def test_it_has_the_environment_it_is_given_and_no_more(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("SECRET", "x")
    said = await output_of(sh('echo "$OWN$SECRET"'), {**ENV, "OWN": "y"}, timeout_seconds=10)
    assert said.data == b"y\n"


async def test_one_that_is_not_there_cannot_be_started(tmp_path: Path):
    with pytest.raises(FileNotFoundError):
        await output_of([tmp_path / "nope"], ENV, timeout_seconds=10)


async def test_one_that_is_late_is_gone_with_all_that_it_has_started(tmp_path: Path):
    pids = tmp_path / "pids"
    with pytest.raises(TimeoutError):
        await output_of(
            sh(f"sleep 600 & echo $! > {pids}; echo $$ >> {pids}; wait"), ENV, timeout_seconds=0.5
        )
    await _until_gone(pids)


async def test_whoever_asks_may_leave_and_it_is_gone(tmp_path: Path):
    pids = tmp_path / "pids"
    asking = asyncio.ensure_future(
        output_of(sh(f"echo $$ > {pids}; exec sleep 600"), ENV, timeout_seconds=60)
    )
    await until(lambda: pids.exists() and pids.read_text())
    asking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asking
    await _until_gone(pids)


async def test_whoever_leaves_before_it_has_begun_leaves_nothing_behind(tmp_path: Path):
    pids = tmp_path / "pids"
    for _ in range(20):
        asking = asyncio.ensure_future(
            output_of(sh(f"echo $$ >> {pids}; exec sleep 600"), ENV, timeout_seconds=60)
        )
        await asyncio.sleep(0)  # begun is only the thread
        asking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asking
    if pids.exists():  # some were quicker than their end
        await _until_gone(pids)


async def test_one_that_never_stops_talking_is_ended():
    said = await output_of(["/usr/bin/yes"], ENV, timeout_seconds=30)
    assert said.status < 0
    assert len(said.data) == OUTPUT_BYTES + 1


async def test_one_that_nobody_hurries_for_leaves_the_processor_to_others():
    said = await output_of(sh("sleep 0.1; nice"), ENV, timeout_seconds=10, niceness=10)
    assert int(said.data) == min(19, os.getpriority(os.PRIO_PROCESS, 0) + 10)


async def test_the_loop_goes_on_while_it_begins():
    """uvloop's own way takes 5 ms and more of it for each."""
    uvloop = pytest.importorskip("uvloop")

    def spent_by_the_loop() -> float:
        async def start() -> float:
            before = time.thread_time()
            for _ in range(20):
                await output_of(["/bin/true"], ENV, timeout_seconds=10)
            return time.thread_time() - before

        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            return runner.run(start())

    assert await asyncio.to_thread(spent_by_the_loop) < 20 * 0.002


async def _until_gone(pids: Path) -> None:
    await until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in pids.read_text().split()))
