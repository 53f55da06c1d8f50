"""How a restart goes wrong after the point of no return; tests/test_app_restart.py has how it goes right."""

from __future__ import annotations

import asyncio
import signal
import socket
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import product
from types import SimpleNamespace
from typing import Any, cast

import pytest

from router.app import handover
from router.app.background import Background
from router.app.handover import RestartFailed
from router.app.relay import Relay
from router.app.restart import Restart
from router.app.systemd import Notifier
from router.config import Config
from router.hosts.records import ProcessRecord
from tests.hosts.test_records import RECORD


class Next:
    """A next process by script: the words it says before it ends."""

    def __init__(self, *words: str) -> None:
        self.words = list(words)
        self.pid = 0
        self.told: list[object] = []
        self.is_given_up = False

    async def says(self, word: str) -> None:
        if not self.words or self.words.pop(0) != word:
            raise RestartFailed("the next router ended")

    def let_go(self, held: Mapping[str, str], children: Sequence[ProcessRecord]) -> None:
        assert list(children) == [RECORD]
        self.told.append(dict(held))

    def lease_ended(self, lease: str) -> None:
        self.told.append(lease)

    async def give_up(self) -> None:
        self.is_given_up = True


class FakePool:
    """Holds two leases; `end` ends one."""

    def __init__(self) -> None:
        self.handed_over = 0

    def is_changing(self) -> bool:
        return False

    async def hand_over(self, on_lease_end: Callable[[str], None]) -> dict[str, str]:
        self.handed_over += 1
        self.end = on_lease_end
        return {"r1": "a#1", "r2": "a#1"}


class FakeDownloads:
    async def suspend(self) -> None:
        pass


class FakeHost:
    handed_over = 0

    def hand_over(self) -> tuple[ProcessRecord, ...]:
        self.handed_over += 1
        return (RECORD,)


@pytest.fixture(autouse=True)
def children_signal() -> Iterator[None]:
    before = signal.getsignal(signal.SIGCHLD)
    yield
    signal.signal(signal.SIGCHLD, before)


class Bench:
    """A Restart over parts that do nothing, and next processes by script."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *processes: Next) -> None:
        self.pool, self.host = FakePool(), FakeHost()
        self.router = cast(
            Any,
            SimpleNamespace(
                relay=Relay(),
                background=Background(),
                context=SimpleNamespace(
                    pool=self.pool, downloads=FakeDownloads(), proxy=SimpleNamespace(relay=None)
                ),
                host=self.host,
                setup=SimpleNamespace(config=Config()),
            ),
        )
        self.stops = 0
        self.listening = socket.create_server(("127.0.0.1", 0))
        script = iter(processes)

        async def start(*_: object) -> Next:
            return next(script)

        monkeypatch.setattr("router.app.restart.Successor.start", start)
        self.restart = Restart(self.router, [self.listening], self._stop_accepting, Notifier())

    def _stop_accepting(self) -> None:
        self.stops += 1

    async def __aenter__(self) -> Bench:
        await self.router.background.__aenter__()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.router.background.__aexit__()
        self.listening.close()


async def test_one_that_fails_before_it_takes_over_leaves_everything_as_it_is(monkeypatch):
    failing = Next()
    async with Bench(monkeypatch, failing, Next("ready", "serving")) as bench:
        with pytest.raises(RestartFailed):
            await bench.restart()
        assert (bench.stops, bench.pool.handed_over, bench.router.relay._base) == (0, 0, "")
        assert failing.is_given_up
        assert not bench.restart.done.is_set()
        await bench.restart()
        assert bench.restart.done.is_set()


async def test_one_that_dies_after_it_took_over_is_followed_by_another_with_the_leases_of_then(monkeypatch):
    dying, living = Next("ready"), Next("ready", "serving")
    async with Bench(monkeypatch, dying, living) as bench:
        told = dying.told

        async def give_up() -> None:
            bench.pool.end("r1")  # a stream ends while there is nobody to be told

        dying.give_up = give_up  # type: ignore[method-assign]
        await bench.restart()
        assert told == [{"r1": "a#1", "r2": "a#1"}, "r1"]
        assert living.told == [{"r2": "a#1"}]
        assert (bench.stops, bench.pool.handed_over) == (1, 1)
        bench.pool.end("r2")
        bench.pool.end("r2")
        bench.pool.end("one that was never granted")
        assert living.told[1:] == ["r2"]


async def test_it_is_not_tried_for_ever(monkeypatch):
    monkeypatch.setattr("router.app.restart.PAUSES_SECONDS", (0.0, 0.001, 0.002))
    tried = [Next("ready") for _ in range(5)]
    async with Bench(monkeypatch, *tried) as bench:
        with pytest.raises(RestartFailed, match="this one exits: the next router ended") as failed:
            await bench.restart()
        assert "all stays as it was" not in failed.value.message
        assert not bench.restart.done.is_set()
        assert bench.restart.lost.is_set(), "it cannot serve any more: it must exit"
        assert [one.is_given_up for one in tried] == [True] * 4 + [False]


async def test_who_asks_twice_or_leaves_changes_nothing(monkeypatch):
    async with Bench(monkeypatch, Next("ready", "serving")) as bench:
        first = asyncio.ensure_future(bench.restart())
        second = asyncio.ensure_future(bench.restart())
        await asyncio.sleep(0)
        first.cancel()
        assert await second == 0
        assert bench.pool.handed_over == 1


@pytest.mark.parametrize(
    "error", [OSError(24, "Too many open files"), RuntimeError("can't start new thread")]
)
async def test_a_step_that_fails_before_there_is_no_way_back_disables_no_later_restart(monkeypatch, error):
    async with Bench(monkeypatch, Next("ready", "serving")) as bench:
        started = handover.Successor.start

        async def fail(*_: object) -> Next:
            raise error

        monkeypatch.setattr("router.app.restart.Successor.start", fail)
        for _ in range(2):
            with pytest.raises(RestartFailed, match="a step of the restart failed"):
                async with asyncio.timeout(20):
                    await bench.restart()
        assert not bench.restart.lost.is_set()
        monkeypatch.setattr("router.app.restart.Successor.start", started)
        await bench.restart()
        assert bench.restart.done.is_set()


async def test_a_service_manager_that_cannot_be_told_for_want_of_files_disables_no_restart(
    monkeypatch, caplog
):
    async with Bench(monkeypatch, Next(), Next("ready", "serving")) as bench:
        bench.restart._notifier = Notifier("/no/manager")

        def none_left(*_: object) -> None:
            raise OSError(24, "Too many open files")

        with monkeypatch.context() as patch, pytest.raises(RestartFailed):
            patch.setattr("router.app.systemd.socket.socket", none_left)
            async with asyncio.timeout(20):
                await bench.restart()
        assert "Too many open files" in caplog.text
        await bench.restart()


@pytest.mark.parametrize(
    ("step", "how"), [("stop accepting", "fails"), *product(["suspend", "hand over"], ["fails", "hangs"])]
)
async def test_a_step_after_which_there_is_no_way_back_ends_this_router_and_leaves_its_children(
    monkeypatch, step, how
):
    monkeypatch.setattr("router.app.restart.LET_GO_SECONDS", 0.05)

    def fail(*_: object) -> None:
        raise OSError(5, "Input/output error")

    async def broken(*_: object) -> None:
        if how == "hangs":
            await asyncio.Event().wait()
        fail()

    async with Bench(monkeypatch, Next("ready", "serving"), Next("ready", "serving")) as bench:
        target: tuple[Any, str] = {
            "stop accepting": (bench.restart, "_stop_accepting"),
            "suspend": (bench.router.context.downloads, "suspend"),
            "hand over": (bench.pool, "hand_over"),
        }[step]
        monkeypatch.setattr(*target, fail if step == "stop accepting" else broken)
        with pytest.raises(RestartFailed, match=r"this one exits: .* The models run on"):
            async with asyncio.timeout(20):
                await bench.restart()
        assert bench.restart.lost.is_set()
        assert bench.host.handed_over == 1, "the exit of this process stops no child"


async def test_a_next_process_that_hangs_after_it_took_over_is_given_up_in_bounded_time(monkeypatch):
    class Hanging(Next):
        async def says(self, word: str) -> None:
            if word == "serving":
                await asyncio.Event().wait()

    monkeypatch.setattr("router.app.restart.TAKEOVER_SECONDS", 0.2)
    hanging = Hanging()
    async with Bench(monkeypatch, hanging, Next("ready", "serving")) as bench:
        with pytest.raises(RestartFailed, match="did not start in time"):
            async with asyncio.timeout(20):
                await bench.restart()
        assert hanging.is_given_up
        assert bench.restart.lost.is_set()
