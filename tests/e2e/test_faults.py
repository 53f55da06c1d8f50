"""What the NVIDIA driver does to a router that serves: nothing that its clients notice, and `/vram` tells it.

The router is whole, on a real port; the driver is the stub of NVML with its faults; children are fake
llama-servers that take their memory from it."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from router.app import parts
from router.memory.devices import Devices
from router.scheduler.types import Start
from tests.e2e.running import DEADLINE_SECONDS, Running, running
from tests.e2e.stub_machine import child_environment, make_stub_machine
from tests.stub_nvml.state import Stranger, StubGpu, StubNvml, Taking, read_takings
from tests.waiting import until

MIB, GIB = 1 << 20, 1 << 30
A, B = "local/cuda:GPU-a", "local/cuda:GPU-b"
MARGIN_MIB = 256
#: Less than what the small models are expected to take: a context, and a few MiB of their own.
ALLOCATED_MIB, GROWN_MIB = 560, 20
ROOM_FOR_TWO = 2 * 660 + 330 + MARGIN_MIB

NOT_SUPPORTED, DRIVER_NOT_LOADED, LIBRARY_NOT_FOUND, GPU_IS_LOST, UNKNOWN = 3, 9, 12, 15, 999
#: A call that hangs that long is much longer than anything here may take.
HANG_MS = 30_000
HANG_SECONDS = HANG_MS / 1000


@pytest.fixture
def stub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> StubNvml:
    """Two cards, on which the child processes of this router see the fake llama-server allocate."""
    # A driver that fails is opened anew every 30 s; here nobody waits for that.
    monkeypatch.setattr(parts, "Devices", partial(Devices, renew_seconds=0.2))
    return make_stub_machine(
        tmp_path,
        monkeypatch,
        StubGpu("GPU-a", "NVIDIA Stub A", "00000000:01:00.0", 24 * GIB, 256 * MIB),
        StubGpu("GPU-b", "NVIDIA Stub B", "00000000:02:00.0", 16 * GIB, 256 * MIB),
    )


@dataclass
class Rig:
    """A running router, and the words it has for its memory."""

    router: Running
    stub: StubNvml

    async def vram(self, *, measure: bool = False) -> dict[str, Any]:
        async with self.router.session.get("/vram" + ("?measure=1" if measure else "")) as answer:
            assert answer.status == 200
            return await answer.json()

    async def device(self, device: str, **how: bool) -> dict[str, Any]:
        return next(one for one in (await self.vram(**how))["devices"] if one["id"] == device)

    async def until_vram(self, is_so: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
        """/vram as a person sees it: not measured for the asking."""
        return await until(self.vram, holds=is_so)

    def placed(self, after: int = 0) -> dict[str, set[str]]:
        """On which GPUs each model was started (on the host without one), by the journal's entries after that
        many."""
        found: dict[str, set[str]] = {}
        for entry in self.router.entries[after:]:
            for command in entry.commands:
                if isinstance(command, Start):
                    found.setdefault(command.model, set()).update(command.placement.devices)
        return found

    def takings(self) -> list[Taking]:
        return read_takings(self.stub.folder)

    @asynccontextmanager
    async def traffic(self, *models: str) -> AsyncIterator[None]:
        """Requests to these models, one after the other, as long as the block runs; every one is answered."""
        answers: list[tuple[str, int]] = []
        is_over = asyncio.Event()

        async def ask(model: str) -> None:
            while not is_over.is_set():
                answers.append((model, (await self.router.chat(model)).status))
                await asyncio.sleep(0.01)

        async with asyncio.TaskGroup() as tasks:
            for model in models:
                tasks.create_task(ask(model), name=f"traffic {model}")
            yield
            is_over.set()
        assert {model for model, _ in answers} == set(models)
        assert {status for _, status in answers} == {200}


def is_healthy(device: str) -> Callable[[dict[str, Any]], bool]:
    return lambda vram: next(one for one in vram["devices"] if one["id"] == device)["healthy"]


def is_sick(device: str) -> Callable[[dict[str, Any]], bool]:
    return lambda vram: not is_healthy(device)(vram)


def error_of(vram: dict[str, Any], device: str) -> str:
    return next(one for one in vram["devices"] if one["id"] == device)["error"]


@pytest.fixture
def rig(stub: StubNvml, tmp_path: Path) -> Callable[..., contextlib.AbstractAsyncContextManager[Rig]]:
    """Opens a router with these models; `on` says which of them must be on which card. `patience`: seconds
    that a request waits for memory which others hold, or which nobody can reach."""

    @asynccontextmanager
    async def open_rig(
        *models: str, on: dict[str, str] | None = None, patience: float = 0.3
    ) -> AsyncIterator[Rig]:
        config = f"[memory]\nmargin_mib = {MARGIN_MIB}\npoll_seconds = 0.1\n"
        config += f"external_memory_wait_seconds = {patience}\n"
        config += child_environment(stub, alloc_mib=ALLOCATED_MIB, grow_mib=GROWN_MIB)
        for name, gpu in (on or {}).items():
            config += f'[models."{name}"]\ndevices = ["{gpu.rpartition(":")[2]}"]\n'
        async with running(tmp_path, models, config) as router:
            yield Rig(router, stub)

    return open_rig


# --- no driver --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("status", "words"),
    [(LIBRARY_NOT_FOUND, "no driver library"), (DRIVER_NOT_LOADED, "driver not loaded")],
)
async def test_without_a_driver_it_serves_from_host_memory_and_says_why(
    rig, stub: StubNvml, status: int, words: str
) -> None:
    stub.change(init_err=status)
    async with rig("x", "y") as here:
        assert [(await here.router.chat(name)).status for name in ("x", "y")] == [200, 200]
        vram = await here.vram()
        assert [device["id"] for device in vram["devices"]] == ["local/host"]
        assert any(words in note for note in vram["notes"]), vram["notes"]
        assert here.placed() == {"x": {"local/host"}, "y": {"local/host"}}
        assert not here.takings(), "a GPU was touched"


async def test_a_driver_that_goes_away_is_told_and_used_again_when_it_comes_back(rig, stub: StubNvml) -> None:
    async with rig("a", "x", on={"a": A, "x": A}) as here:
        assert (await here.router.chat("a")).status == 200
        stub.change(
            init_err=DRIVER_NOT_LOADED, gpus=tuple(replace(gpu, err=UNKNOWN) for gpu in stub.state.gpus)
        )
        async with here.traffic("a"):
            vram = await here.until_vram(is_sick(A))
            assert "unknown error" in error_of(vram, A) or "driver not loaded" in error_of(vram, A)
            assert (await here.router.chat("x")).status == 503
            assert here.router.starts() == ["a"]
            stub.change(init_err=0, gpus=tuple(replace(gpu, err=0) for gpu in stub.state.gpus))
            await here.until_vram(is_healthy(A))
            assert (await here.router.chat("x")).status == 200


# --- a lost device ----------------------------------------------------------------------------------------


async def test_a_device_lost_while_serving_takes_nothing_more_and_is_used_when_it_is_back(
    rig, stub: StubNvml
) -> None:
    async with rig("a", "b", "only-a", "x", "y", on={"a": A, "b": B, "only-a": A}) as here:
        assert [(await here.router.chat(name)).status for name in ("a", "b")] == [200, 200]
        async with here.traffic("a", "b"):
            stub.gpu(0, err=GPU_IS_LOST)
            vram = await here.until_vram(is_sick(A))
            assert "GPU is lost" in error_of(vram, A) and is_healthy(B)(vram)
            before = len(here.router.entries)
            assert [(await here.router.chat(name)).status for name in ("x", "y")] == [200, 200]
            refused = await here.router.chat("only-a")
            assert refused.status == 503 and "not healthy" in refused.body["error"]["message"]
            assert here.placed(before) == {"x": {B}, "y": {B}}
            assert here.router.stops() == [], "for a lost device nobody leaves"
            stub.gpu(0, err=0)
            await here.until_vram(is_healthy(A))
            assert (await here.router.chat("only-a")).status == 200
        assert here.placed()["only-a"] == {A}


async def test_nobody_leaves_for_a_model_that_can_only_go_to_a_lost_device(rig, stub: StubNvml) -> None:
    async with rig("a", "only-a", on={"a": A, "only-a": A}) as here:
        assert (await here.router.chat("a")).status == 200
        stub.gpu(0, memerr=GPU_IS_LOST)
        await here.until_vram(is_sick(A))
        assert (await here.router.chat("only-a")).status == 503
        assert here.router.stops() == []
        assert (await here.router.chat("a")).action == "already_loaded"
        stub.gpu(0, memerr=0)
        await here.until_vram(is_healthy(A))
        assert (await here.router.chat("only-a")).status == 200


@pytest.mark.parametrize("resident", [True, False], ids=["beside another model", "with nothing loaded"])
async def test_a_request_that_waits_for_a_lost_device_is_served_once_it_is_back(
    rig, stub: StubNvml, resident: bool
) -> None:
    async with rig("a", "only-a", on={"a": B, "only-a": A}, patience=HANG_SECONDS) as here:
        if resident:
            assert (await here.router.chat("a")).status == 200
        stub.gpu(0, err=GPU_IS_LOST)
        async with asyncio.TaskGroup() as tasks:
            waiting = tasks.create_task(here.router.chat("only-a"), name="waits")
            await here.router.until(lambda: here.router.pool.snapshot().queues)
            assert not waiting.done()
            stub.gpu(0, err=0)
        assert waiting.result().status == 200
        assert here.placed()["only-a"] == {A}


@pytest.mark.parametrize("resident", [True, False], ids=["beside another model", "with nothing loaded"])
async def test_a_request_that_waits_for_other_programs_is_served_once_they_leave(
    rig, stub: StubNvml, resident: bool
) -> None:
    async with rig("a", "only-a", on={"a": B, "only-a": A}, patience=HANG_SECONDS) as here:
        if resident:
            assert (await here.router.chat("a")).status == 200
        game = await asyncio.to_thread(Stranger, stub.folder, {0: 23 * GIB})
        try:
            async with asyncio.TaskGroup() as tasks:
                waiting = tasks.create_task(here.router.chat("only-a"), name="waits")
                await here.router.until(lambda: here.router.pool.snapshot().queues)
                await asyncio.to_thread(game.close)
            assert waiting.result().status == 200
        finally:
            await asyncio.to_thread(game.close)


async def test_a_driver_library_that_crashes_costs_no_request_and_its_end_is_told(
    rig, stub: StubNvml
) -> None:
    async with rig("a", "b", "x", on={"a": A, "b": B}) as here:
        assert [(await here.router.chat(name)).status for name in ("a", "b")] == [200, 200]
        async with here.traffic("a", "b"):
            stub.gpu(0, crash=1)
            vram = await here.until_vram(lambda seen: is_sick(A)(seen) and is_sick(B)(seen))
            assert "crashed (SIGSEGV)" in error_of(vram, A)
            before = len(here.router.entries)
            assert (await here.router.chat("x")).status == 503
            assert not here.placed(before)
            stub.gpu(0, crash=0)
            await here.until_vram(lambda seen: is_healthy(A)(seen) and is_healthy(B)(seen))
            assert (await here.router.chat("x")).status == 200


# --- a call that hangs ------------------------------------------------------------------------------------


async def test_a_call_that_hangs_holds_up_neither_requests_nor_loads_elsewhere_nor_vram(
    rig, stub: StubNvml
) -> None:
    async with rig("a", "b", "x", "only-a", on={"a": A, "b": B, "only-a": A}) as here:
        assert [(await here.router.chat(name)).status for name in ("a", "b")] == [200, 200]
        stub.gpu(0, hang_ms=HANG_MS)
        begun = time.monotonic()
        async with here.traffic("a", "b"):
            vram = await here.until_vram(is_sick(A))
            assert "no answer from the driver for" in error_of(vram, A) and is_healthy(B)(vram)
            before = len(here.router.entries)
            assert (await here.router.chat("x")).status == 200
            assert here.placed(before) == {"x": {B}}
            refused = await here.router.chat("only-a")
            assert refused.status == 503 and "not healthy" in refused.body["error"]["message"]
        # What waits for the call would take at least as long as it hangs.
        assert time.monotonic() - begun < HANG_SECONDS
        stub.gpu(0, hang_ms=0)
        await here.until_vram(is_healthy(A))
        assert (await here.router.chat("only-a")).status == 200


async def test_vram_answers_while_a_measurement_hangs(rig, stub: StubNvml) -> None:
    async with rig("a", on={"a": A}) as here:
        assert (await here.router.chat("a")).status == 200
        stub.gpu(0, hang_ms=HANG_MS)
        stub.gpu(1, hang_ms=HANG_MS)
        async with asyncio.TaskGroup() as tasks:
            measuring = tasks.create_task(here.vram(measure=True), name="measured vram")
            answered = 0
            while not measuring.done():
                await here.vram()
                answered += 1
            assert answered > 10, "each waited for the measurement"
        for device in (A, B):
            assert "no answer from the driver for" in error_of(measuring.result(), device)


async def test_a_driver_that_hangs_at_the_start_does_not_keep_it_from_serving(
    rig, stub: StubNvml, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parts, "Devices", partial(Devices, start_patience_seconds=0.5))
    stub.change(init_hang_ms=HANG_MS)
    begun = time.monotonic()
    async with rig("x") as here:
        assert (await here.router.chat("x")).status == 200
        vram = await here.vram()
        assert any("the driver is being opened" in note for note in vram["notes"]), vram["notes"]
        assert time.monotonic() - begun < HANG_SECONDS


# --- figures per process that are not there, or are lies --------------------------------------------------

LIES: dict[str, dict[str, int]] = {
    "the list fails": {"procerr": UNKNOWN},
    "there is no list": {"procerr": NOT_SUPPORTED},
    "all sizes are None": {"procna": 1},
    "all sizes are zero": {"proczero": 1},
}


@pytest.fixture(params=[*LIES, "the list is empty"])
def lie(request: pytest.FixtureRequest) -> Callable[[StubNvml], None]:
    def tell(stub: StubNvml) -> None:
        if request.param == "the list is empty":
            stub.change(hide_pids=1)
        for index in range(2):
            stub.gpu(index, total=ROOM_FOR_TWO * MIB, reserved=0, **LIES.get(request.param, {}))

    return tell


async def test_without_figures_per_process_it_swaps_models_and_keeps_the_margin(
    rig, stub: StubNvml, lie: Callable[[StubNvml], None]
) -> None:
    lie(stub)
    async with rig("p", "q", "r", "s", "t", "u") as here:
        for _ in range(2):
            answers = await asyncio.gather(*(here.router.chat(name) for name in "pqrstu"))
            assert [answer.status for answer in answers] == [200] * 6
        vram = await here.vram(measure=True)
        assert all(device["healthy"] for device in vram["devices"])
        assert any("what each process uses cannot be told" in note for note in vram["notes"]), vram["notes"]
        assert here.router.stops(), "six models do not fit where four do"
        assert all(one.is_granted and one.free_after >= MARGIN_MIB * MIB for one in here.takings())
        used_by_ours = sum(device["ours"] for device in vram["devices"])
        assert used_by_ours > 0, "what a card lost while a model was loaded is that model's"


async def test_figures_that_vanish_while_it_serves_are_done_without(rig, stub: StubNvml) -> None:
    for index in range(2):
        stub.gpu(index, total=ROOM_FOR_TWO * MIB, reserved=0)
    async with rig("p", "q", "r", "s", "t") as here:
        assert [(await here.router.chat(name)).status for name in "pq"] == [200, 200]
        async with here.traffic("p"):
            for change in ({"procerr": UNKNOWN}, {"procerr": 0, "procna": 1}, {"procna": 0, "proczero": 1}):
                stub.gpu(0, **change)
                stub.gpu(1, **change)
                await here.until_vram(lambda seen: any("cannot be told" in note for note in seen["notes"]))
                assert [(await here.router.chat(name)).status for name in "rst"] == [200] * 3
            stub.gpu(0, proczero=0)
            stub.gpu(1, proczero=0)
            await here.until_vram(lambda seen: not seen["notes"])
        assert all(one.is_granted and one.free_after >= MARGIN_MIB * MIB for one in here.takings())


# --- late, and without memory of its own ------------------------------------------------------------------


async def test_a_driver_that_opens_late_is_used_by_the_next_load(rig, stub: StubNvml) -> None:
    stub.change(init_err=DRIVER_NOT_LOADED)
    async with rig("x", "y") as here:
        assert (await here.router.chat("x")).status == 200
        stub.change(init_err=0)
        async with asyncio.timeout(DEADLINE_SECONDS):
            while here.placed().get("y", {"local/host"}) == {"local/host"}:
                await here.router.pool.unload("y")
                assert (await here.router.chat("y")).status == 200
        assert here.placed()["y"] & {A, B}
        assert (await here.router.chat("x")).action == "already_loaded", "who runs goes on where it is"
        assert is_healthy(A)(await here.vram())


async def test_a_gpu_without_memory_of_its_own_is_used_and_counted_as_the_hosts(rig, stub: StubNvml) -> None:
    stub.change(gpus=(replace(stub.state.gpus[0], memerr=NOT_SUPPORTED),))
    async with rig("x") as here:
        assert (await here.router.chat("x")).status == 200
        assert here.placed() == {"x": {A}}
        assert {taking.device for taking in here.takings()} == {0}, "its child works on the GPU"
        vram = await here.vram(measure=True)
        (device,) = vram["devices"]
        assert device["id"] == "local/host"
        assert any("Stub A" in label for label in device["shared_with"])
        (loaded,) = vram["models"]
        assert set(loaded["devices"]) == {"local/host"}
        assert ALLOCATED_MIB * MIB // 2 < loaded["measured"] <= loaded["reserved"]
        assert device["reserved"] == loaded["reserved"], "its bytes count once"
        async with here.router.session.get("/vram?model=x") as answer:
            way = (await answer.json())["placements"][0]
        assert way["devices"] == [A]
        assert sum(term["bytes"] for term in way["terms"]) == way["footprint"]["local/host"] == way["bytes"]
