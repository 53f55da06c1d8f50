"""How files are read: as usual until seconds can be gained, then in the way that is measured to be faster."""

from __future__ import annotations

import asyncio
import functools
import math
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from router.app import parts
from router.db.store import Store
from router.engines import Launch
from router.errors import LoadFailed
from router.hosts import Address, HostFull
from router.models.definitions import Reading
from router.scheduler.types import Placement, Start
from router.supervisor.calibration import LoadModes, load_modes
from router.supervisor.calibration.load_modes import (
    LOAD_SECONDS,
    LOADS,
    RECHECK_SECONDS,
    WORTH_SECONDS,
    LoadSeconds,
    choose,
)
from tests.e2e.running import Running, llama_servers
from tests.fake_binary import make_fake_binary
from tests.supervisor.calibration.test_serving import router, stub

__all__ = ["router", "stub"]  # fixtures

GIB = 1 << 30
DAY = 86400.0
START = Start("a#1", "a", Placement("local", {"local/cuda:0": GIB}, ("local/cuda:0",)))
LAUNCH = Launch(("llama-server", "-m", "a.gguf"))


def taken(seconds: float, count: int = LOADS, at: float = 0.0) -> LoadSeconds:
    return LoadSeconds(seconds, count, at)


@pytest.mark.parametrize(
    ("usual", "other", "expected"),
    [
        (None, None, ("mmap", False)),
        (taken(20, 1), None, ("mmap", False)),
        (taken(WORTH_SECONDS - 0.1), None, ("mmap", False)),
        (taken(20), None, ("none", True)),
        (taken(20), taken(10, 1), ("none", True)),
        (taken(20), taken(26, 1), ("mmap", False)),
        (taken(20), taken(17), ("none", False)),
        (taken(20), taken(19), ("mmap", False)),
        (taken(20), taken(math.inf, 1), ("mmap", False)),
    ],
)
def test_another_way_is_tried_where_seconds_can_be_gained_and_taken_where_it_is_faster(
    usual: LoadSeconds | None, other: LoadSeconds | None, expected: tuple[str, bool]
) -> None:
    choice = choose(usual, "none", other, now=1.0)
    assert (choice.mode, choice.is_trial) == expected
    assert choice.why


def test_nothing_is_tried_beside_another_load() -> None:
    assert choose(taken(20), "none", None, now=1.0, may_try=False).mode == "mmap"
    late = 2 * RECHECK_SECONDS
    assert not choose(taken(20), "none", taken(30), now=late, may_try=False).is_trial


def test_the_way_that_is_not_taken_is_measured_once_more_after_a_long_time() -> None:
    late = RECHECK_SECONDS + DAY
    slower, faster = taken(20), taken(10)
    again = choose(taken(20, at=late), "none", taken(30), now=late)
    assert (again.mode, again.is_trial) == ("none", True)
    assert choose(slower, "none", taken(10, at=late), now=late).mode == "mmap"
    assert choose(taken(20, at=late), "none", faster, now=late).mode == "none"


class Bench:
    """Loads that take as long as the test says, on a clock of its own."""

    def __init__(self, modes: LoadModes, monkeypatch: pytest.MonkeyPatch) -> None:
        self.modes = modes
        self.seconds = {"mmap": 20.0, "none": 10.0, "dio": 10.0}
        self.fails: set[str] = set()
        self.tried: list[str] = []
        self.now = 0.0
        monkeypatch.setattr(asyncio.get_running_loop(), "time", lambda: self.now)

    async def load(self) -> str:
        """The way in which it was loaded in the end."""
        await self.modes.load(START, LAUNCH, self.begin)
        return self.tried[-1]

    async def begin(self, launch: Launch) -> Address:
        further = launch.argv[len(LAUNCH.argv) :]
        mode = further[1] if further else "mmap"
        assert further in ((), ("--load-mode", mode))
        self.tried.append(mode)
        if mode in self.fails:
            raise LoadFailed("error: invalid argument: --load-mode")
        self.now += self.seconds[mode]
        return Address("/run/a.sock")


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch):
    @asynccontextmanager
    async def opened(
        store: Store | None = None, *, size: int = 8 * GIB, cache: int = 32 * GIB, warm: bool = True
    ):
        reading = Reading((("/models/a.gguf", size, 1),), "llama-server 1 2", ("card",))
        async with Store(None) as memory:
            kept = store or memory
            modes = LoadModes(
                kept, lambda _: reading, lambda: cache, are_in_memory=lambda _: warm, now=lambda: DAY
            )
            async with modes:
                with monkeypatch.context() as patch:
                    yield Bench(modes, patch)

    return opened


async def test_what_was_measured_to_be_faster_is_kept_for_the_next_start(bench, tmp_path: Path) -> None:
    async with Store(tmp_path / "db") as store, bench(store) as one:
        assert [await one.load() for _ in range(6)] == ["mmap", "mmap", "none", "none", "none", "none"]
        assert one.modes.words("a") == (
            "Its files were read (from the page cache): mapped 20.0 s, read 10.0 s."
        )
    async with Store(tmp_path / "db") as store, bench(store) as one:
        assert one.modes.words("a") is None
        assert await one.load() == "none"
        one.seconds["none"] = 60.0
        assert [await one.load() for _ in range(3)] == ["none", "mmap", "mmap"]


async def test_warm_and_cold_files_are_told_apart(bench, tmp_path: Path) -> None:
    async with Store(tmp_path / "db") as store:
        async with bench(store) as one:
            assert [await one.load() for _ in range(3)] == ["mmap", "mmap", "none"]
        async with bench(store, warm=False) as one:
            one.seconds["none"] = 40.0
            assert [await one.load() for _ in range(4)] == ["mmap", "mmap", "none", "mmap"]
        async with bench(store) as one:
            assert await one.load() == "none"


async def test_past_the_page_cache_goes_only_what_it_cannot_hold(bench) -> None:
    async with bench(size=64 * GIB) as one:
        assert [await one.load() for _ in range(5)] == ["mmap", "mmap", "dio", "dio", "dio"]
        assert one.modes.goes_past_page_cache("a")
    async with bench() as one:
        for _ in range(5):
            await one.load()
        assert "dio" not in one.tried and not one.modes.goes_past_page_cache("a")


async def test_a_way_that_fails_costs_nobody_the_load_and_is_not_taken_again(bench) -> None:
    async with bench() as one:
        one.fails = {"none"}
        assert [await one.load() for _ in range(4)] == ["mmap"] * 4
        assert one.tried == ["mmap", "mmap", "none", "mmap", "mmap"]
        assert "could not be loaded" in (one.modes.words("a") or "")


async def test_a_load_that_fails_as_usual_is_not_begun_again(bench) -> None:
    async with bench() as one:
        one.fails = {"mmap"}
        with pytest.raises(LoadFailed):
            await one.load()
        assert one.tried == ["mmap"]


async def test_a_host_without_room_says_nothing_of_the_way(bench) -> None:
    async def full(_: Launch) -> Address:
        raise HostFull("no room")

    async with bench() as one:
        for _ in range(LOADS):
            await one.load()
        with pytest.raises(HostFull):
            await one.modes.load(START, LAUNCH, full)
        assert await one.load() == "none"


async def test_what_is_loaded_beside_another_model_is_not_measured(bench) -> None:
    async with bench() as one:
        going = asyncio.Barrier(2)

        async def slow(launch: Launch) -> Address:
            await going.wait()
            return await one.begin(launch)

        both = [one.modes.load(START, LAUNCH, slow) for _ in range(2)]
        await asyncio.gather(*both)
        assert [await one.load() for _ in range(3)] == ["mmap", "mmap", "none"]


async def test_small_files_and_those_that_are_not_ours_to_choose_for_are_not_looked_at() -> None:
    async def begin(launch: Launch) -> Address:
        assert launch == LAUNCH
        return Address("/run/a.sock")

    def look(_: object) -> bool:
        raise AssertionError("nobody needs to know")

    small = Reading((("/models/a.gguf", 1 << 20, 1),), "", ())
    async with Store(None) as store:
        for reading in (None, small):
            found = functools.partial(lambda found, _: found, reading)
            async with LoadModes(store, found, lambda: 1.0, are_in_memory=look) as modes:
                await modes.load(START, LAUNCH, begin)
                assert modes.words("a") is None
        assert not await store.rows(LOAD_SECONDS)


# --- in a whole router ---


def modes_given(model: str) -> list[str]:
    """--load-mode as its child was given it."""
    (child,) = [one.cmdline() for one in llama_servers() if model in one.cmdline()]
    return [child[at + 1] for at, arg in enumerate(child) if arg == "--load-mode"]


@pytest.fixture
def eager(monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything is worth a trial."""
    monkeypatch.setattr(parts, "LoadModes", functools.partial(LoadModes, worth_bytes=0))
    monkeypatch.setattr(load_modes, "WORTH_SECONDS", 0.0)
    monkeypatch.setattr(load_modes, "FAR_WORSE", math.inf)


async def reload(one: Running) -> None:
    await one.pool.unload("a")
    assert (await one.chat("a")).status == 200


async def test_the_other_way_is_tried_and_what_is_known_of_its_memory_stays(router, eager) -> None:
    async with router(a=300) as one:
        assert (await one.chat("a")).status == 200
        await reload(one)
        assert modes_given("a") == []
        known = one.pool.standings("a")[0]
        await reload(one)
        assert modes_given("a") == ["none"]
        assert one.pool.standings("a")[0].measured == known.measured
        assert "trial 1 of 2" in (one.pool.reading_words("a") or "")


async def test_a_server_that_does_not_know_the_option_serves_all_the_same(
    router, eager, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    older = tmp_path / "older"
    older.write_text(
        '#!/bin/sh\ncase "$*" in *--load-mode*) echo "error: invalid argument" >&2; exit 1;; esac\n'
        f'exec {make_fake_binary(tmp_path)} "$@"\n'
    )
    older.chmod(0o755)
    monkeypatch.setenv("LLAMA_SERVER", str(older))
    async with router(a=300) as one:
        assert (await one.chat("a")).status == 200
        for _ in range(3):
            await reload(one)
        assert modes_given("a") == []
        assert "could not be loaded" in (one.pool.reading_words("a") or "")


@pytest.mark.parametrize("mode", ["mmap", "none"])
async def test_what_the_configuration_says_is_done_and_nothing_else_is_tried(router, eager, mode) -> None:
    async with router(load_mode=mode, a=300) as one:
        assert (await one.chat("a")).status == 200
        for _ in range(2):
            await reload(one)
        assert modes_given("a") == [mode]
        assert one.pool.reading_words("a") is None
