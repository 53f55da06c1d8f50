"""What `gpu_check` does to each model on the device, through the router, and what it writes down."""

from __future__ import annotations

import asyncio
import os
import select
import signal
import statistics
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from bench.gpu_shapes import Shape
from router.errors import RouterError, StartupError
from router.memory.devices import DeviceInfo, Devices
from router.memory.devices.nvidia import probe_argv, probe_environ
from router.memory.devices.probe_line import LineTiming, ProbeLine
from tests.e2e.running import Running

POLLS = 200
#: Memory is back when at least this share of what the process held is free again.
RETURNED_SHARE = 0.98
RETURN_DEADLINE_SECONDS = 20.0


@dataclass(slots=True)
class Row:
    """One model on one device, in bytes. `context` is the share of the prediction that stands for the CUDA
    context and all else that llama.cpp does not count. `back_seconds`: from the end of the process until its
    memory was free, by the signal that ended it."""

    model: str
    predicted: int
    context: int
    load_seconds: float
    ready: int | None = None
    worked: int | None = None
    back_seconds: dict[str, float | None] = field(default_factory=dict)

    @property
    def learned_context(self) -> int | None:
        """What a context really took, if all that llama.cpp counts was predicted to the byte."""
        return None if self.worked is None else self.worked - (self.predicted - self.context)


@dataclass(slots=True)
class Report:
    device: str
    driver: str
    llama_server: str
    rows: list[Row] = field(default_factory=list)
    left_out: dict[str, str] = field(default_factory=dict)
    together: dict[str, int] = field(default_factory=dict)
    poll_milliseconds: dict[str, dict[str, float]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    @property
    def too_low(self) -> list[str]:
        return [row.model for row in self.rows if row.worked is not None and row.worked > row.predicted]


class Check:
    """What is done to each model. `gpu` is the core's id of the device."""

    def __init__(self, router: Running, devices: Devices, gpu: DeviceInfo, report: Report) -> None:
        self._router = router
        self._devices = devices
        self._gpu = gpu
        self._id = f"local/{gpu.id}"
        self._report = report

    async def one(self, shape: Shape) -> None:
        """Load, work, end; and once more, to be killed."""
        try:
            row = await self._load(shape)
        except RouterError as error:
            self._report.left_out[shape.name] = error.message
            return
        self._report.rows.append(row)
        row.ready = (await self._measured()).get(shape.name) or None
        await self._work(shape)
        row.worked = max((await self._measured()).get(shape.name) or 0, row.ready or 0) or None
        row.back_seconds["SIGTERM"] = await self._end(shape, self._unload)
        await self._router.pool.load(shape.name)
        row.back_seconds["SIGKILL"] = await self._end(shape, self._kill)

    async def together(self, shapes: Sequence[Shape]) -> None:
        """All that fit: do the sizes of the processes add up to what the device has lost?"""
        before = await self._free()
        for shape in shapes:
            await self._router.pool.load(shape.name)
            await self._work(shape)
        measured = await self._measured()
        self._report.together = {
            "models": len(measured),
            "processes": sum(size or 0 for size in measured.values()),
            "device": before - await self._free(),
        }

    async def _load(self, shape: Shape) -> Row:
        async with self._router.session.get("/vram", params={"model": shape.name}) as answer:
            plan = await answer.json()
        if answer.status != 200 or not plan["placements"]:
            raise StartupError(f"it cannot be planned: {plan}")
        way = plan["placements"][plan["chosen"] or 0]
        if set(way["devices"]) != {self._id}:
            raise StartupError(f"it would go to {', '.join(way['devices'])}")
        contexts = [t["bytes"] for t in way["terms"] if t["device"] == self._id and t["kind"] == "context"]
        begun = time.monotonic()
        await self._router.pool.load(shape.name)
        predicted = way["predicted"][self._id]
        return Row(shape.name, predicted, sum(contexts), time.monotonic() - begun)

    async def _measured(self) -> dict[str, int | None]:
        """Bytes on the device per model, as `/vram` tells them."""
        async with self._router.session.get("/vram?measure=1") as answer:
            told = await answer.json()
        self._report.notes = list(dict.fromkeys([*self._report.notes, *told["notes"]]))
        return {one["model"]: one["devices"].get(self._id, {}).get("measured") for one in told["models"]}

    async def _work(self, shape: Shape) -> None:
        """A prompt of several batches, and all slots at once: whatever is allocated late is allocated now."""
        long = [{"role": "user", "content": "memory " * 600}]
        answers = [await self._router.chat(shape.name, 32, messages=long)]
        answers += await asyncio.gather(*(self._router.chat(shape.name, 64) for _ in range(4)))
        for answer in answers:
            if answer.status != 200:
                self._report.notes.append(f"{shape.name} answered {answer.status}: {answer.body}")

    async def _end(self, shape: Shape, end: Callable[[str, int], Awaitable[object]]) -> float | None:
        """Seconds from the end of its process until its memory was free; 0 when it was by then. None: that
        cannot be told, or it did not come back."""
        pid = await self._pid_of(shape.name)
        free, held = await self._free(), (await self._measured()).get(shape.name)
        pidfd = os.pidfd_open(pid)
        async with asyncio.TaskGroup() as tasks:
            died = tasks.create_task(asyncio.to_thread(_wait_for_death, pidfd), name="died")
            back = tasks.create_task(self._free_again(free, held), name="free again")
            await end(shape.name, pid)
        back_at = back.result()
        return None if back_at is None else max(0.0, back_at - died.result())

    async def _free_again(self, free: int, held: int | None) -> float | None:
        """When it was; looked for without a pause, so that the answer is as exact as one poll is long."""
        if not held:
            return None
        deadline = time.monotonic() + RETURN_DEADLINE_SECONDS
        while time.monotonic() < deadline:
            if await self._free() >= free + int(held * RETURNED_SHARE):
                return time.monotonic()
        return None

    async def _pid_of(self, model: str) -> int:
        records = await self._router.pool._hosts["local"].instances()
        return next(one.pid for one in records if one.model == model and one.pid is not None)

    async def _unload(self, model: str, _pid: int) -> None:
        await self._router.pool.unload(model)

    async def _kill(self, _model: str, pid: int) -> None:
        os.kill(pid, signal.SIGKILL)

    async def _free(self) -> int:
        sample = await self._devices.sample(now=time.monotonic())
        free = sample.devices[self._gpu.id].free_bytes
        if free is None:
            raise StartupError(f"{self._gpu.label}: {sample.devices[self._gpu.id].error}")
        return free


def _wait_for_death(pidfd: int) -> float:
    try:
        select.select([pidfd], [], [])
        return time.monotonic()
    finally:
        os.close(pidfd)


async def poll_costs(pids: Sequence[int]) -> dict[str, dict[str, float]]:
    """Milliseconds: of the driver alone, asked through the probe; of a whole sample with these processes."""
    async with asyncio.TaskGroup() as tasks:
        line = ProbeLine(tasks, probe_argv(), probe_environ(os.environ), LineTiming())
        await line.ask()
        driver = [await _timed(line.ask) for _ in range(POLLS)]
        await line.close()
    async with Devices(enabled={"amd": False}) as devices:
        await devices.sample(now=time.monotonic())
        whole = [await _timed(lambda: devices.sample(pids, now=time.monotonic())) for _ in range(POLLS)]
    return {"driver": _summary(driver), "whole sample": _summary(whole)}


async def _timed(ask: Callable[[], Any]) -> float:
    begun = time.perf_counter()
    await ask()
    return (time.perf_counter() - begun) * 1000


def _summary(milliseconds: Sequence[float]) -> dict[str, float]:
    ordered = sorted(milliseconds)
    return {
        "median": statistics.median(ordered),
        "p99": ordered[int(len(ordered) * 0.99) - 1],
        "max": ordered[-1],
    }
