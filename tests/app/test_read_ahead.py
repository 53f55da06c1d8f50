"""When a model's files are read ahead, and when not: told by a journal, read by a reader that waits."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Sequence
from functools import partial
from pathlib import Path

import pytest

from router.app.read_ahead import ReadAhead, spare_bytes
from router.errors import QueueFull
from router.hosts import Measurement
from router.memory.devices import DeviceInfo
from router.observability.journal import Journal
from router.scheduler.types import (
    Acquire,
    Command,
    Event,
    Exited,
    Grant,
    Placement,
    Ready,
    Refuse,
    Release,
    Start,
)
from tests.waiting import until

PLACE = Placement("local", {"local/host": 1}, ("local/host",))


class Disk:
    """Files of a given size, and a reader that goes on until it is told to stop or to finish."""

    def __init__(self, folder: Path, **sizes: int) -> None:
        self.sizes, self.folder = sizes, folder
        self.begun: list[str] = []
        self.ended: list[str] = []
        self.finish = threading.Event()
        for name, size in sizes.items():
            (folder / name).write_bytes(bytes(size))

    def files_of(self, model: str) -> Sequence[Path]:
        return [self.folder / model] if model in self.sizes else []

    def read(self, files: Sequence[Path], is_wanted: Callable[[], bool]) -> int:
        name = files[0].name
        self.begun.append(name)
        while is_wanted() and not self.finish.wait(0.002):
            pass
        self.ended.append(name)
        return 0


class World:
    def __init__(self, disk: Disk, spare: int) -> None:
        self.disk = disk
        self.journal = Journal()
        self.ahead = ReadAhead(disk.files_of, lambda: spare, disk.read)
        self.journal.follow(self.ahead.heard)
        self.task = asyncio.ensure_future(self.ahead.run())

    def told(self, event: Event, *commands: Command) -> None:
        self.journal.record(0.0, event, list(commands))

    def has_ended(self, times: int) -> bool:
        return len(self.disk.ended) == times

    async def settled(self) -> None:
        """Whatever it would begin by now has begun: it looks at sizes in threads."""
        for _ in range(20):
            await asyncio.sleep(0.001)  # what must not begin cannot be waited for


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    made = World(Disk(tmp_path, a=100, b=100, big=900), spare=1000)
    yield made
    made.disk.finish.set()
    made.task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await made.task


async def test_a_model_that_somebody_waits_for_is_read_until_it_is_ready(world: World) -> None:
    world.told(Acquire("r1", "a"))
    await until(lambda: world.disk.begun == ["a"])
    world.told(Exited("b#1"), Start("a#1", "a", PLACE))
    await world.settled()
    assert world.disk.ended == []
    world.told(Ready("a#1"), Grant("r1", "a#1", "loaded"))
    await until(lambda: world.disk.ended == ["a"])
    assert world.disk.begun == ["a"]


async def test_a_model_that_is_there_is_not_read(world: World) -> None:
    world.told(Acquire("r1", "a"), Grant("r1", "a#1", "already_loaded"))
    await world.settled()
    assert world.disk.begun == []


async def test_it_ends_with_the_last_who_waited(world: World) -> None:
    world.told(Acquire("r1", "a"))
    world.told(Acquire("r2", "a"))
    await until(lambda: world.disk.begun == ["a"])
    world.told(Release("r1"))
    await world.settled()
    assert world.disk.ended == []
    world.told(Release("r2"))
    await until(lambda: world.disk.ended == ["a"])


async def test_it_ends_when_the_request_is_refused(world: World) -> None:
    world.told(Acquire("r1", "a"))
    await until(lambda: world.disk.begun == ["a"])
    world.told(Acquire("r2", "b"), Refuse("r1", QueueFull("full")), Refuse("r2", QueueFull("full")))
    await until(lambda: world.disk.ended == ["a"])
    await world.settled()
    assert world.disk.begun == ["a"]


async def test_a_model_larger_than_spare_memory_is_left_to_its_child(world: World) -> None:
    world.told(Acquire("r1", "big"))
    world.told(Acquire("r2", "a"))
    await until(lambda: world.disk.begun == ["a"])
    assert "big" not in world.disk.begun


async def test_models_that_do_not_fit_together_are_not_both_read(tmp_path: Path) -> None:
    world = World(Disk(tmp_path, a=500, b=500), spare=1000)
    world.disk.finish.set()
    world.told(Acquire("r1", "a"))
    world.told(Acquire("r2", "b"))
    await until(lambda: world.disk.ended == ["a"])
    await world.settled()
    assert world.disk.begun == ["a"]
    world.task.cancel()


async def test_one_that_is_started_goes_before_one_that_waits(world: World) -> None:
    world.told(Acquire("r1", "a"))
    await until(lambda: world.disk.begun == ["a"])
    world.told(Acquire("r2", "b"), Start("b#1", "b", PLACE))
    await until(lambda: world.disk.begun == ["a", "b"])
    assert world.disk.ended == ["a"]
    world.told(Ready("b#1"), Grant("r2", "b#1", "loaded"))
    await until(lambda: world.disk.begun == ["a", "b", "a"])


async def test_a_model_is_read_anew_for_its_next_load(world: World) -> None:
    world.disk.finish.set()
    for number in (1, 2):
        world.told(Acquire(f"r{number}", "a"), Start(f"a#{number}", "a", PLACE))
        await until(partial(world.has_ended, number))
        world.told(Ready(f"a#{number}"), Grant(f"r{number}", f"a#{number}", "loaded"))
        world.told(Exited(f"a#{number}"))


def test_spare_is_what_is_free_of_main_memory() -> None:
    host = DeviceInfo("host", "host", "main memory", "", 100, 60, 0, None, None, None, "host")
    gpu = DeviceInfo("cuda:0", "cuda", "a GPU", "GPU-0", 1000, 900, 0, None, None, None, "cuda:0")
    measured = Measurement(0.0, {}, {}, infos={"local/host": host, "local/cuda:0": gpu})
    assert spare_bytes({"local": measured}) == 60
    assert spare_bytes({}) == 0
