"""How a child is looked at while requests wait for it: real sockets, and processes that do as told."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import pytest

from router.app import stalls
from router.app.stalls import watch_for_stalls
from router.process import LogFile
from router.supervisor.stall import Traffic
from tests.scarcity import few_descriptors
from tests.traffic import passage
from tests.waiting import until

BOUND = 0.3
IDLE = "import time; time.sleep(600)"
BUSY = "while True: pass"
WORKING = [{"id": 0, "is_processing": True, "n_decoded": 0}]


@dataclass
class Child:
    pid: int
    socket: Path
    log: LogFile


@dataclass
class Children:
    """One child, and what was done to it."""

    child: Child | None
    given_up: list[tuple[str, str]] = field(default_factory=list)

    def process_of(self, instance: str) -> Child | None:
        return self.child

    async def give_up(self, instance: str, reason: str) -> None:
        self.given_up.append((instance, reason))
        self.child = None


@pytest.fixture
def child(tmp_path: Path) -> Iterator[Callable[[str], Children]]:
    processes: list[subprocess.Popen[bytes]] = []

    def start(script: str) -> Children:
        process = subprocess.Popen([sys.executable, "-S", "-c", script])
        processes.append(process)
        return Children(Child(process.pid, tmp_path / "s.sock", LogFile(tmp_path / "log", 1 << 20)))

    yield start
    for process in processes:
        process.kill()
        process.wait()


@asynccontextmanager
async def slots(path: Path, answer: Callable[[], object]) -> AsyncIterator[list[str]]:
    """Answers GET /slots; collects what was asked."""
    asked: list[str] = []

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        asked.append(head.split("\r\n")[0])
        writer.write(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n" + json.dumps(answer()).encode())
        writer.close()

    async with await asyncio.start_unix_server(talk, path):
        yield asked


@asynccontextmanager
async def watching(traffic: Traffic, children: Children, bound: float = BOUND) -> AsyncIterator[None]:
    async with asyncio.TaskGroup() as tasks:
        watch = tasks.create_task(watch_for_stalls(traffic, cast(Any, children), lambda: bound))
        try:
            yield
        finally:
            watch.cancel()


async def test_an_idle_child_with_a_request_is_given_up_with_the_reason(child):
    children, traffic = child(IDLE), Traffic()
    async with watching(traffic, children):
        with passage(traffic, "a#1") as flow:
            await until(lambda: children.given_up)
            assert flow.verdict is not None
            assert flow.verdict.startswith("stuck: it neither answered nor worked")
    assert children.given_up == [("a#1", flow.verdict)]


async def test_a_child_that_cannot_be_looked_at_for_want_of_files_is_not_blamed(child):
    children, traffic = child(IDLE), Traffic()
    async with watching(traffic, children):
        with passage(traffic, "a#1"):
            with few_descriptors(0):
                await asyncio.sleep(4 * BOUND)  # longer than a stall may last
            assert not children.given_up
            await until(lambda: children.given_up)


async def test_nobody_is_looked_at_without_a_request_that_waits_for_it(child):
    children, traffic = child(IDLE), Traffic()
    assert children.child is not None
    async with slots(children.child.socket, lambda: WORKING) as asked, watching(traffic, children):
        with passage(traffic, "a#1") as flow:
            flow.held += 1  # and the client does not take it
            await asyncio.sleep(4 * BOUND)  # longer than a stall may last
        await asyncio.sleep(2 * BOUND)  # longer than a stall may last
    assert not children.given_up
    assert not asked


async def test_a_busy_child_is_left_alone_far_beyond_the_bound(child):
    children, traffic = child(BUSY), Traffic()
    async with watching(traffic, children):
        with passage(traffic, "a#1"):
            await asyncio.sleep(6 * BOUND)  # longer than a stall may last
            assert not children.given_up


async def test_slots_that_get_further_are_enough(child):
    children, traffic = child(IDLE), Traffic()
    assert children.child is not None
    count = iter(range(10**6))
    further = lambda: [{"is_processing": True, "n_decoded": next(count)}]  # noqa: E731
    async with slots(children.child.socket, further) as asked, watching(traffic, children):
        with passage(traffic, "a#1"):
            await asyncio.sleep(6 * BOUND)  # longer than a stall may last
    assert not children.given_up
    assert set(asked) == {"GET /slots HTTP/1.1"}


async def test_slots_that_stand_still_in_the_middle_of_work_are_not(child):
    children, traffic = child(IDLE), Traffic()
    assert children.child is not None
    async with slots(children.child.socket, lambda: WORKING), watching(traffic, children):
        with passage(traffic, "a#1"):
            await until(lambda: children.given_up)


async def test_one_whose_slots_are_all_free_waits_for_somebody_else(child):
    children, traffic = child(IDLE), Traffic()
    assert children.child is not None
    async with slots(children.child.socket, lambda: [{"is_processing": False}]), watching(traffic, children):
        with passage(traffic, "a#1"):
            await asyncio.sleep(6 * BOUND)  # longer than a stall may last
    assert not children.given_up


async def test_a_line_in_the_log_is_a_sign_of_life(child):
    children, traffic = child(IDLE), Traffic()
    assert children.child is not None
    path = children.child.log.path
    async with watching(traffic, children):
        with passage(traffic, "a#1"):
            for _ in range(30):
                with path.open("a") as log:
                    log.write("prompt processing progress\n")
                await asyncio.sleep(BOUND / 5)
            assert not children.given_up
            await until(lambda: children.given_up)


async def test_a_bound_of_0_switches_it_off(child, monkeypatch):
    monkeypatch.setattr("router.app.stalls.LONGEST_PAUSE_SECONDS", 0.01)
    children, traffic = child(IDLE), Traffic()
    async with watching(traffic, children, bound=0.0):
        with passage(traffic, "a#1"):
            await asyncio.sleep(0.3)
    assert not children.given_up


async def test_a_child_that_cannot_be_watched_keeps_no_other_from_it(monkeypatch, child, caplog):
    look = stalls._look

    async def fail_for_one(stalls, name, *more):
        if name == "bad#1":
            raise KeyError("rchar")
        await look(stalls, name, *more)

    monkeypatch.setattr(stalls, "_look", fail_for_one)
    children, traffic = child(IDLE), Traffic()
    async with watching(traffic, children):
        with passage(traffic, "bad#1"), passage(traffic, "a#1"):
            await until(lambda: children.given_up)
    assert children.given_up[0][0] == "a#1"
    assert "cannot watch bad#1 for a stall" in caplog.text
