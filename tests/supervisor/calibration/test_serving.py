"""A whole router with fake llama-servers on a GPU that the stub of NVML makes up."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path

import pytest

from router.app import parts
from router.memory.estimate.learning import PROVEN_SLACK_BYTES, UNPROVEN_SLACK_BYTES
from router.scheduler.types import Exited, Start
from router.supervisor.calibration import Learning
from tests.e2e.running import Running, running
from tests.fake_binary import make_fake_binary
from tests.stub_nvml.build import build, library_environment
from tests.stub_nvml.state import Stranger, StubGpu, StubNvml
from tests.waiting import until

MIB = 1 << 20
GPU = "local/cuda:GPU-only-0000"
MARGIN_MIB, TOTAL_MIB = 256, 4096

Router = Callable[..., AbstractAsyncContextManager[Running]]


@pytest.fixture
def stub(tmp_path: Path) -> StubNvml:
    return StubNvml(tmp_path / "stub", StubGpu("GPU-only-0000", "Stub 4G", total=TOTAL_MIB * MIB, reserved=0))


@pytest.fixture
def router(tmp_path: Path, stub: StubNvml, monkeypatch: pytest.MonkeyPatch) -> Router:
    """`router(a=1000, b=2000)` serves models that take so many MiB; each call works on the same state."""
    library = build()
    if library is None:
        pytest.skip("no C compiler")
    for name, value in library_environment(stub.folder, library).items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setenv("LLAMA_SERVER", str(make_fake_binary(tmp_path)))
    monkeypatch.setattr(parts, "Learning", functools.partial(Learning, trial_seconds=0.02))

    def open_one(
        further: str = "",
        *,
        yields: bool = True,
        second_opinion: bool = True,
        load_mode: str = "auto",
        grow_mib: int = 0,
        **takes_mib: int,
    ) -> AbstractAsyncContextManager[Running]:
        config = f"[memory]\nmargin_mib = {MARGIN_MIB}\npoll_seconds = 0.05\n"
        config += "" if yields else "evict_on_memory_pressure = false\n"  # true is the default
        config += "" if second_opinion else "use_llama_fit_params = false\n"
        config += "" if load_mode == "auto" else f'load_mode = "{load_mode}"\n'
        config += "[scheduler]\nlinger = 0.0\n"
        config += "backoff_initial_seconds = 0.05\nbackoff_max_seconds = 0.05\n"
        for name, mib in takes_mib.items():
            env = f'LLAMA_ROUTER_STUB_NVML = "{stub.folder}", FAKE_LLAMA_ALLOC_MIB = "{mib}"'
            env += f', FAKE_LLAMA_GROW_MIB = "{grow_mib}"'
            config += f"[models.{name}]\nenv = {{ {env} }}\n"
        return running(tmp_path, sorted(takes_mib), config + further)

    return open_one


def view(router: Running, model: str):
    (one,) = router.pool.snapshot().of_model(model)
    return one


def on_gpu(router: Running, model: str) -> int:
    return view(router, model).reserved[GPU]


def starts(router: Running, model: str) -> list[int]:
    commands = (command for entry in router.entries for command in entry.commands)
    return [c.placement.footprint[GPU] for c in commands if isinstance(c, Start) and c.model == model]


def taken(mib: int) -> int:
    """What the fake takes of `mib`: it allocates in ten equal steps."""
    return mib * MIB // 10 * 10


async def prove(router: Running, model: str) -> int:
    """Use it until its peak is proven; what is reserved for it then."""
    async with asyncio.timeout(60):
        while router.pool.standings(model)[0].confidence != "proven":
            assert (await router.chat(model)).status == 200
        proven = taken(int(view(router, model).used[GPU]) // MIB)
        await until(lambda: on_gpu(router, model) <= proven + PROVEN_SLACK_BYTES + proven // 100 + 2 * MIB)
    return on_gpu(router, model)


async def test_the_estimate_is_reserved_first_then_what_it_takes_and_a_new_router_knows_that(router):
    async with router(a=300) as first:
        predicted = first.pool.standings("a")[0].predicted[GPU]
        assert predicted > 600 * MIB, "a CUDA context at least"
        assert (await first.chat("a")).status == 200
        assert starts(first, "a") == [predicted]
        learned = await prove(first, "a")
        assert taken(300) <= learned <= taken(300) + PROVEN_SLACK_BYTES + 3 * MIB + 2 * MIB
        shown = first.pool.standing("a#1")
        assert shown is not None
        assert (shown.confidence, shown.measured[GPU]) == ("proven", taken(300))
        assert shown.reserved == view(first, "a").reserved
    async with router(a=300) as second:
        assert second.pool.standings("a")[0].confidence == "proven"
        assert (await second.chat("a")).status == 200
        assert starts(second, "a") == [pytest.approx(learned, abs=MIB)]


async def test_what_an_earlier_router_kept_may_be_damaged(router, tmp_path):
    async with router(a=300) as first:
        await prove(first, "a")
    (database,) = (tmp_path / "state").glob("*.sqlite*")
    database.write_bytes(b"this is no database\n" * 1000)
    async with router(a=300) as second:
        standing = second.pool.standings("a")[0]
        assert standing.confidence == "estimated"
        assert (await second.chat("a")).status == 200
        assert starts(second, "a") == [standing.predicted[GPU]]


async def test_growth_with_use_is_covered(router):
    async with router(grow_mib=400, a=900) as one:
        assert (await one.chat("a")).status == 200
        await one.until(lambda: on_gpu(one, "a") >= taken(900) + 400 * MIB + UNPROVEN_SLACK_BYTES)
        assert view(one, "a").used[GPU] == taken(900) + 400 * MIB


async def test_a_model_predicted_too_low_is_tried_again_with_more_and_somebody_leaves_for_it(router, stub):
    """a takes 1000 MiB, a stranger all but 50 MiB more than is predicted for b, which takes 1450: the first
    load of b seems to fit beside a, and runs out of memory."""
    async with router(a=1000, b=1450) as one:
        assert (await one.chat("a")).status == 200
        predicted = one.pool.standings("b")[0].predicted[GPU]
        await one.until(lambda: on_gpu(one, "a") == taken(1000) + UNPROVEN_SLACK_BYTES)
        (device,) = (d for d in one.pool.snapshot().devices if d.id == GPU)
        assert device.room is not None
        stub.gpu(0, used=device.room - predicted - 50 * MIB)
        await one.pool.measure()
        answer = await one.chat("b")
        assert answer.status == 200, answer.body
        first, second = starts(one, "b")
        assert first == predicted
        assert second >= int(predicted * 1.15), "more, where it was seen to take more"
        assert one.stops() == [("a", "evicted")]
        ran_out = [e.event for e in one.entries if isinstance(e.event, Exited) and e.event.out_of_memory]
        assert [event.instance for event in ran_out] == ["b#1"]
        # The next load reserves what it was seen to take.
        await one.until(lambda: on_gpu(one, "b") >= taken(1450) + UNPROVEN_SLACK_BYTES)


async def test_a_model_that_never_fits_fails_with_the_numbers_and_backs_off(router):
    async with router(b=5000) as one:
        answer = await one.chat("b")
        assert answer.status == 503
        error = answer.body["error"]
        assert error["code"] == "load_failed"
        first, second = starts(one, "b")
        assert int(first * 1.15) <= second <= (TOTAL_MIB - MARGIN_MIB) * MIB
        assert "out of memory" in error["message"]
        assert f"{second / 2**30:.2f} GiB on cuda:GPU-only-0000" in error["message"]
        assert error["out_of_memory"] is True
        assert "cudaMalloc failed" in "\n".join(error["log_tail"])
        assert one.resident() == []


async def test_idle_models_yield_to_a_stranger_but_neither_busy_nor_pinned_ones(router, stub):
    # What follows the last table of the configuration belongs to it, and that is the model `pinned`.
    async with router("pinned = true\n", idle=600, pinned=600) as one:
        assert (await one.chat("idle")).status == 200
        assert (await one.chat("pinned")).status == 200
        async with one.pool.lease("idle"):
            stub.gpu(0, used=2800 * MIB)
            for _ in range(2):
                await one.pool.measure()
            assert one.stops() == [], "busy and pinned ones stay whatever others take"
        await one.until(lambda: one.resident() == ["pinned"])
        assert one.stops() == [("idle", "yielded")]
        stub.gpu(0, used=0)
        await one.pool.measure()
        assert (await one.chat("idle")).status == 200, "it comes back by itself"


async def test_nobody_yields_where_the_configuration_says_so(router, stub):
    async with router(yields=False, idle=600) as one:
        assert (await one.chat("idle")).status == 200
        stub.gpu(0, used=3400 * MIB)
        for _ in range(3):
            await one.pool.measure()
        assert one.resident() == ["idle"] and one.stops() == []


async def test_a_real_stranger_that_comes_and_goes_is_made_way_for(router, stub):
    async with router(idle=600) as one:
        assert (await one.chat("idle")).status == 200
        stranger = Stranger(stub.folder, {0: 3300 * MIB})
        try:
            await one.until(lambda: not one.resident())
            assert one.stops() == [("idle", "yielded")]
        finally:
            stranger.close()
        await one.pool.measure()
        assert (await one.chat("idle")).status == 200


def fit_params(folder: Path, gpu_mib: int, host_mib: int) -> Path:
    """A llama-fit-params beside the server that counts so much; returns where it notes what it was asked."""
    noted, program = folder / "asked", folder / "llama-fit-params"
    program.write_text(
        f'#!/bin/sh\necho "$CUDA_VISIBLE_DEVICES $*" >> {noted}\n'
        f'echo "CUDA0 {gpu_mib} 0 0"\necho "Host {host_mib} 0 0"\n'
    )
    program.chmod(0o755)
    return noted


async def way_of(router: Running, model: str) -> dict:
    async with router.session.get(f"/vram?model={model}") as answer:
        return (await answer.json())["placements"][0]


async def test_what_llama_fit_params_counts_more_is_reserved_and_told_as_a_term(router, tmp_path):
    noted = fit_params(tmp_path, gpu_mib=1500, host_mib=1)
    async with router(a=300) as running_one:
        way = await way_of(running_one, "a")
        assert way["second_opinion"]["state"] == "open"
        assert not noted.exists(), "no GPU is touched before a load"
        estimated = way["footprint"][GPU]
        assert (await running_one.chat("a")).status == 200
        (asked,) = noted.read_text().splitlines()
        assert asked.startswith("GPU-only-0000 -m "), "it sees the device of the placement and no other"
        assert "--alias" not in asked
        way = await way_of(running_one, "a")
        assert way["second_opinion"]["state"] == "more"
        (term,) = [term for term in way["terms"] if term["kind"] == "second-opinion"]
        assert term["device"] == GPU
        assert starts(running_one, "a") == [estimated, estimated + term["bytes"]]
        for device, size in way["footprint"].items():
            assert sum(t["bytes"] for t in way["terms"] if t["device"] == device) == size
        async with running_one.session.get("/explain?model=a") as answer:
            assert "counts" in (await answer.json())["second_opinion"]
    async with router(a=300) as later:
        assert (await later.chat("a")).status == 200
    assert len(noted.read_text().splitlines()) == 1, "it is asked once"


@pytest.mark.parametrize(
    ("program", "is_wanted", "state"),
    [(None, True, "missing"), ("kill -ABRT $$", True, "none"), ("kill -ABRT $$", False, "off")],
)
async def test_without_a_second_opinion_the_estimate_stands_and_it_is_said(
    router, tmp_path, program, is_wanted, state
):
    if program is not None:
        (tmp_path / "llama-fit-params").write_text(f"#!/bin/sh\n{program}\n")
        (tmp_path / "llama-fit-params").chmod(0o755)
    async with router(second_opinion=is_wanted, a=300) as running_one:
        estimated = (await way_of(running_one, "a"))["footprint"][GPU]
        assert (await running_one.chat("a")).status == 200
        assert starts(running_one, "a") == [estimated]
        opinion = (await way_of(running_one, "a"))["second_opinion"]
        assert opinion["state"] == state
        assert "llama-fit-params" in opinion["text"]


async def test_a_model_that_runs_out_of_all_its_gpu_has_ends_up_in_a_slower_way_and_stays_there(router):
    async with router(a=2 * TOTAL_MIB) as first:
        answers = []
        async with asyncio.timeout(60):
            while 200 not in answers:
                answers.append((await first.chat("a")).status)
                await asyncio.sleep(0.06)  # the pause after a failure
        assert view(first, "a").placement.devices == ("local/host",)
        commands = (command for entry in first.entries for command in entry.commands)
        tried = [c.placement for c in commands if isinstance(c, Start)]
        assert [place.tier for place in tried] == sorted(place.tier for place in tried)
        assert max(place.footprint.get(GPU, 0) for place in tried) <= (TOTAL_MIB - MARGIN_MIB) * MIB
        way = await way_of(first, "a")
        assert way["missing_if_empty"], "the fast way is still told, with what it lacks"
    async with router(a=2 * TOTAL_MIB) as later:
        assert (await later.chat("a")).status == 200
        assert later.starts() == ["a"], "at once: what was learned is kept"
