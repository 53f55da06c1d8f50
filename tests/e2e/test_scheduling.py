"""Who is loaded, waits and leaves, with real llama-servers: all answer, with the fewest possible swaps."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from itertools import pairwise
from pathlib import Path

import pytest

from router.scheduler.types import Grant, Ready, Start, Stop
from tests.e2e.running import Answer, Running, running
from tests.stub_nvml.build import build, library_environment
from tests.stub_nvml.state import StubGpu, StubNvml

pytestmark = pytest.mark.e2e

MIB = 1 << 20
#: What one of the small models is expected to take on a GPU: a CUDA context, and a few MiB of its own.
ONE_MODEL_MIB = 660


@pytest.fixture(params=["by number", "by bytes"])
def limit(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Room is limited by `models_max`, or by the bytes of a GPU that the NVML library tells of."""
    if request.param == "by bytes":
        library = build()
        if library is None:
            pytest.skip("no C compiler for the NVML library")
        for name, value in library_environment(tmp_path / "stub", library).items():
            monkeypatch.setenv(name, value)
    return str(request.param)


def room_for(models: int, limit: str, tmp_path: Path) -> str:
    if limit == "by number":
        return f"[scheduler]\nmodels_max = {models}\n"
    total = (models * ONE_MODEL_MIB + ONE_MODEL_MIB // 2 + 256) * MIB
    StubNvml(tmp_path / "stub", StubGpu("GPU-e2e", "NVIDIA Stub", "00000000:01:00.0", total, 0))
    return "[memory]\nmargin_mib = 256\n"


async def all_of(*requests: AsyncIterator[Answer] | object) -> list[Answer]:
    answers = await asyncio.gather(*requests)  # type: ignore[call-overload]
    assert [answer.status for answer in answers] == [200] * len(answers), answers
    return list(answers)


async def test_two_models_that_do_not_fit_together_with_three_requests_each_swap_once(
    limit: str, tmp_path: Path
) -> None:
    async with running(tmp_path, ["a", "b"], room_for(1, limit, tmp_path)) as router:
        await all_of(*(router.chat(name) for _ in range(3) for name in ("a", "b")))
        assert sorted(router.starts()) == ["a", "b"]
        assert len(router.stops()) == 1


async def test_three_models_in_room_for_two_cost_one_eviction(limit: str, tmp_path: Path) -> None:
    async with running(tmp_path, ["a", "b", "c"], room_for(2, limit, tmp_path)) as router:
        await all_of(*(router.chat(name) for name in ("a", "b", "c")))
        assert sorted(router.starts()) == ["a", "b", "c"]
        assert len(router.stops()) == 1 and len(router.resident()) == 2


async def test_alternating_requests_swap_each_time_and_no_more(limit: str, tmp_path: Path) -> None:
    async with running(tmp_path, ["a", "b"], room_for(1, limit, tmp_path)) as router:
        for name in ("a", "b", "a", "b"):
            await all_of(router.chat(name))
        assert router.starts() == ["a", "b", "a", "b"]


async def test_alternating_requests_with_room_for_both_never_swap(limit: str, tmp_path: Path) -> None:
    async with running(tmp_path, ["a", "b"], room_for(2, limit, tmp_path)) as router:
        for name in ("a", "b", "a", "b"):
            await all_of(router.chat(name))
        assert router.starts() == ["a", "b"] and not router.stops()


async def test_six_simultaneous_requests_for_one_model_load_it_once(limit: str, tmp_path: Path) -> None:
    async with running(tmp_path, ["a"], room_for(1, limit, tmp_path)) as router:
        answers = await all_of(*(router.chat("a") for _ in range(6)))
        assert router.starts() == ["a"]
        assert {answer.action for answer in answers} == {"loaded"}


# --- fairness without thrash ---


@asynccontextmanager
async def endless(router: Running, model: str, tokens: int) -> AsyncIterator[list[Answer]]:
    """Two overlapping streams of requests: the model is never idle. Leaving lets the last ones end."""
    answers: list[Answer] = []
    over = asyncio.Event()

    async def client(pause: float) -> None:
        await asyncio.sleep(pause)
        while not over.is_set():
            answers.append(await router.stream(model, tokens))

    async with asyncio.TaskGroup() as clients:
        clients.create_task(client(0.0))
        clients.create_task(client(0.1))
        try:
            yield answers
        finally:
            over.set()


async def test_one_request_beside_two_endless_streams_is_served_within_its_quantum(tmp_path: Path) -> None:
    quantum = 2.0
    config = f"[scheduler]\nmodels_max = 1\nquantum = {quantum}\n"
    async with running(tmp_path, ["a", "b"], config) as router:
        async with endless(router, "a", tokens=400) as answers:
            await router.until(lambda: len(answers) >= 4)
            hold = max(answer.seconds for answer in answers)
            expected_load = next(m.load_seconds for m in router.pool.snapshot().models if m.name == "b")
            (lone,) = await all_of(router.chat("b"))
            served_at = len(answers)
            await router.until(lambda: len(answers) >= served_at + 4)
        # The quantum, then the drain and the load themselves, on a machine that may be busy with others.
        assert lone.seconds <= 1.5 * (quantum * (hold + expected_load) + hold + expected_load) + 5.0
        assert lone.action == "queued"
        assert all(answer.status == 200 and answer.ended for answer in answers), "no stream was cut"
        assert router.starts()[:3] == ["a", "b", "a"], "a went on afterwards"


async def test_four_clients_on_each_of_two_models_spend_little_time_swapping(tmp_path: Path) -> None:
    """A closed loop; others were measured at 80 % of the time."""
    async with running(tmp_path, ["a", "b"], "[scheduler]\nmodels_max = 1\n") as router:
        await all_of(router.chat("a"), router.chat("b"))  # the load times are known from here on
        end = time.monotonic() + 15.0
        served = {"a": 0, "b": 0}

        async def client(model: str) -> None:
            while time.monotonic() < end:
                await all_of(router.chat(model, tokens=150))
                served[model] += 1

        begun = asyncio.get_running_loop().time()
        await asyncio.gather(*(client(model) for model in ("a", "b") for _ in range(4)))
        share = swapping_seconds(router, begun) / (asyncio.get_running_loop().time() - begun)
        assert share < 0.15, f"{share:.0%} of the time went into swapping, {router.starts()}"
        assert min(served.values()) >= 4, f"both are served: {served}"


def swapping_seconds(router: Running, begun: float) -> float:
    """Time in which no model served: from the end of one to the readiness of the next."""
    moments: list[tuple[float, str]] = []
    for entry in router.entries:
        if entry.now >= begun:
            moments += [(entry.now, "stop") for c in entry.commands if isinstance(c, Stop)]
            moments += [(entry.now, "ready")] if isinstance(entry.event, Ready) else []
    return sum(b[0] - a[0] for a, b in pairwise(moments) if (a[1], b[1]) == ("stop", "ready"))


async def test_every_start_is_answered_for_in_the_journal(tmp_path: Path) -> None:
    async with running(tmp_path, ["a", "b"], "[scheduler]\nmodels_max = 1\n") as router:
        await all_of(router.chat("a"), router.chat("b"), router.chat("a"))
        commands = [c for entry in router.entries for c in entry.commands]
        granted = {c.instance for c in commands if isinstance(c, Grant)}
        assert granted == {c.instance for c in commands if isinstance(c, Start)}, (
            "nobody was loaded for nothing"
        )
