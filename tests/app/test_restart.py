"""How a restart goes wrong after the point of no return; tests/test_app_restart.py has how it goes right."""

from __future__ import annotations

import asyncio
import signal
import socket
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import pytest
from aiohttp import web

from router.api import CONTEXT
from router.app.background import BACKGROUND, Background
from router.app.handover import RestartFailed
from router.app.parts import HOST, SETUP
from router.app.relay import RELAY, Relay
from router.app.restart import TRIES, Restart
from router.app.systemd import Notifier
from router.config import Config
from router.store import ProcessRecord
from tests.test_store import RECORD


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
    def hand_over(self) -> tuple[ProcessRecord, ...]:
        return (RECORD,)


@pytest.fixture(autouse=True)
def children_signal() -> Iterator[None]:
    before = signal.getsignal(signal.SIGCHLD)
    yield
    signal.signal(signal.SIGCHLD, before)


class Bench:
    """A Restart over parts that do nothing, and next processes by script."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *processes: Next) -> None:
        self.app = web.Application()
        self.pool = FakePool()
        self.app[RELAY], self.app[BACKGROUND] = Relay(), Background()
        parts: dict[Any, Any] = {
            CONTEXT: type("Context", (), {"pool": self.pool, "downloads": FakeDownloads()})(),
            HOST: FakeHost(),
            SETUP: type("Setup", (), {"config": Config()})(),
        }
        for key, part in parts.items():
            self.app[key] = part
        self.stops = 0
        self.listening = socket.create_server(("127.0.0.1", 0))
        script = iter(processes)

        async def start(*_: object) -> Next:
            return next(script)

        monkeypatch.setattr("router.app.restart.Successor.start", start)
        self.restart = Restart(self.app, [self.listening], self._stop_accepting, Notifier())

    async def _stop_accepting(self) -> None:
        self.stops += 1

    async def __aenter__(self) -> Bench:
        await self.app[BACKGROUND].__aenter__()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.app[BACKGROUND].__aexit__()
        self.listening.close()


async def test_one_that_fails_before_it_takes_over_leaves_everything_as_it_is(monkeypatch):
    failing = Next()
    async with Bench(monkeypatch, failing, Next("ready", "serving")) as bench:
        with pytest.raises(RestartFailed):
            await bench.restart()
        assert (bench.stops, bench.pool.handed_over, bench.app[RELAY].is_on) == (0, 0, False)
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
    async with Bench(monkeypatch, *(Next("ready") for _ in range(TRIES + 1))) as bench:
        with pytest.raises(RestartFailed):
            await bench.restart()
        assert not bench.restart.done.is_set()


async def test_who_asks_twice_or_leaves_changes_nothing(monkeypatch):
    async with Bench(monkeypatch, Next("ready", "serving")) as bench:
        first = asyncio.ensure_future(bench.restart())
        second = asyncio.ensure_future(bench.restart())
        await asyncio.sleep(0)
        first.cancel()
        assert await second == 0
        assert bench.pool.handed_over == 1
