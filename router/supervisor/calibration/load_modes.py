"""How the files of a model are read when it is loaded: as llama-server does it by itself, or in another way
where that was measured to be faster.

By itself llama-server maps them into memory. Plain reads (`none`) fill the page cache as well, and are often
faster; direct ones (`dio`) go past it: better for files that it cannot hold, worse for all others. Another
way is tried only where seconds can be gained, with few loads, and falls back to the usual one in the same
load. What a model takes does not depend on it: `Reading`s are of models whose weights are all on GPUs."""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
import time
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Final, Literal, Self, TypeAlias

from router.db.store import Store, Table
from router.engines import Launch
from router.errors import LoadFailed
from router.hosts import Address
from router.hosts.read_ahead import are_in_memory
from router.hosts.records import LOAD_TIMES
from router.memory.estimate.learning import FORGET_SECONDS
from router.models.definitions import Reading
from router.scheduler.types import ModelName, Start

log = logging.getLogger("router.supervisor.calibration")

Mode: TypeAlias = Literal["mmap", "none", "dio"]
#: Where the files are when a load begins: in the page cache, not (all) there, or too large for it.
State: TypeAlias = Literal["warm", "cold", "large"]

USUAL: Final[Mode] = "mmap"
#: What may be better than that.
OTHER: Final[dict[State, Mode]] = {"warm": "none", "cold": "none", "large": "dio"}
#: Smaller files are not worth a look.
WORTH_BYTES: Final = 1 << 30
#: A model that loads faster has nothing to gain that anybody would notice.
WORTH_SECONDS: Final = 4.0
#: Each way is measured so often before they are compared. One that is so much worse at once is given up.
LOADS: Final = 2
FAR_WORSE: Final = 1.25
#: The other way is taken where it needs no more than this share of the usual one's time.
BETTER_SHARE: Final = 0.9
#: After so long the way that is not taken is measured once more.
RECHECK_SECONDS: Final = 30 * 24 * 3600.0
#: Stands for a load that fails: a row is JSON, which has no infinity.
NEVER: Final = 1e9

_READ: Final[dict[Mode, str]] = {"mmap": "mapped", "none": "read", "dio": "read directly"}
_FROM: Final[dict[State, str]] = {
    "warm": "from the page cache",
    "cold": "from the disk",
    "large": "from the disk, too large for the page cache",
}


@dataclass(frozen=True, slots=True)
class LoadSeconds:
    """How long loads in one way have taken, averaged so that a new one weighs at least a quarter; NEVER
    where the way does not work. `updated_at` is Unix time."""

    seconds: float
    count: int
    updated_at: float


#: By (key of the files, binary and devices; state of the page cache; mode).
LOAD_SECONDS: Final = Table("load_seconds", tuple[str, str, str], LoadSeconds)


@dataclass(frozen=True, slots=True)
class Choice:
    """`is_trial`: it is to be measured, and is not known to be better."""

    mode: Mode
    why: str
    is_trial: bool = False


def choose(
    usual: LoadSeconds | None, mode: Mode, other: LoadSeconds | None, now: float, *, may_try: bool = True
) -> Choice:
    """Between the usual way and `mode`, by how long loads have taken in either.

    1 the other has failed once, 2 the usual one is not known well yet, 3 nothing to gain, 4 the other is not
    known well yet, 5 what is not in use was measured too long ago, 6 the faster one.
    """
    if other is not None and other.seconds >= NEVER:
        return Choice(USUAL, f"{_READ[mode]}, it could not be loaded")  # 1
    if usual is None or usual.count < LOADS:
        count = usual.count if usual is not None else 0
        return Choice(USUAL, f"{count} of {LOADS} loads measured before another way is tried")  # 2
    if usual.seconds < WORTH_SECONDS:
        return Choice(USUAL, f"that takes {usual.seconds:.1f} s: nothing to gain")  # 3
    if other is None or (other.count < LOADS and other.seconds <= usual.seconds * FAR_WORSE):
        known = other.count if other is not None else 0
        if not may_try:
            return Choice(USUAL, f"{_READ[mode]} is tried when no other model is being loaded")  # 4
        return Choice(mode, f"trial {known + 1} of {LOADS}; mapped it takes {usual.seconds:.1f} s", True)  # 4
    is_better = other.seconds <= usual.seconds * BETTER_SHARE
    taken, left = (mode, usual) if is_better else (USUAL, other)
    if may_try and now - left.updated_at > RECHECK_SECONDS:
        again: Mode = USUAL if is_better else mode
        return Choice(again, f"once more, after {(now - left.updated_at) / 86400:.0f} days", True)  # 5
    return Choice(taken, f"mapped {usual.seconds:.1f} s, {_READ[mode]} {other.seconds:.1f} s")  # 6


class LoadModes:
    """An async context manager: entering reads what was measured. `reading_of` what a start reads, None where
    how is not the router's to choose; `page_cache_bytes` how much the page cache can hold now.
    """

    def __init__(
        self,
        store: Store,
        reading_of: Callable[[Start], Reading | None],
        page_cache_bytes: Callable[[], float],
        *,
        are_in_memory: Callable[[Iterable[Path]], bool] = are_in_memory,
        worth_bytes: int = WORTH_BYTES,
        now: Callable[[], float] = time.time,
    ) -> None:
        self._store = store
        self._reading_of = reading_of
        self._page_cache_bytes = page_cache_bytes
        self._are_in_memory = are_in_memory
        self._worth_bytes = worth_bytes
        self._now = now
        self._known: dict[tuple[str, str, str], LoadSeconds] = {}
        self._choices: dict[ModelName, tuple[State, Choice]] = {}
        self._begun = self._loading = 0

    async def __aenter__(self) -> Self:
        oldest = self._now() - FORGET_SECONDS
        await self._store.delete_old(LOAD_SECONDS, older_than=oldest)
        await self._store.delete_old(LOAD_TIMES, older_than=oldest)
        self._known = await self._store.rows(LOAD_SECONDS)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """What was measured is kept already."""

    async def load(
        self, start: Start, launch: Launch, begin: Callable[[Launch], Awaitable[Address]]
    ) -> Address:
        """What `begin` returns and raises, begun in the way that is the fastest as far as is known. A way
        other than the usual one that fails is not taken again, and the load begins anew in the usual one.
        """
        self._begun += 1
        self._loading += 1
        try:
            reading = self._reading_of(start)
            if reading is None or reading.size_bytes < self._worth_bytes:
                self._choices.pop(start.model, None)
                return await begin(launch)
            return await self._load(start.model, reading, launch, begin)
        finally:
            self._loading -= 1

    def words(self, model: ModelName) -> str | None:
        """How its files were read the last time and why; None where there was nothing to choose."""
        if model not in self._choices:
            return None
        state, choice = self._choices[model]
        return f"Its files were {_READ[choice.mode]} ({_FROM[state]}): {choice.why}."

    def goes_past_page_cache(self, model: ModelName) -> bool:
        """Whether it was read in a way that what is in memory is of no use for."""
        return model in self._choices and self._choices[model][1].mode == "dio"

    async def _load(
        self,
        model: ModelName,
        reading: Reading,
        launch: Launch,
        begin: Callable[[Launch], Awaitable[Address]],
    ) -> Address:
        state = await self._state(reading)
        key, other = _key(reading), OTHER[state]
        known = {mode: self._known.get((key, state, mode)) for mode in (USUAL, other)}
        # What is read beside another model says nothing of either way.
        is_alone, begun = self._loading == 1, self._begun
        choice = choose(known[USUAL], other, known[other], self._now(), may_try=is_alone)
        self._choices[model] = state, choice
        log.info("%s is %s %s: %s", model, _READ[choice.mode], _FROM[state], choice.why)
        clock = asyncio.get_running_loop().time
        since = clock()
        if choice.mode == USUAL:
            address = await begin(launch)
        else:
            try:
                address = await begin(replace(launch, argv=(*launch.argv, "--load-mode", choice.mode)))
            except LoadFailed as error:
                log.warning("%s cannot be %s: %s", model, _READ[choice.mode], error.message)
                await self._note(key, state, choice.mode, NEVER)
                self._choices[model] = state, Choice(USUAL, f"{_READ[choice.mode]}, it could not be loaded")
                return await begin(launch)
        if is_alone and self._begun == begun:
            await self._note(key, state, choice.mode, clock() - since)
        return address

    async def _state(self, reading: Reading) -> State:
        if reading.size_bytes > self._page_cache_bytes():
            return "large"
        return "warm" if await asyncio.to_thread(self._are_in_memory, reading.paths) else "cold"

    async def _note(self, key: str, state: State, mode: Mode, seconds: float) -> None:
        """A new measurement weighs at least a quarter."""
        old = self._known.get((key, state, mode))
        count = old.count + 1 if old is not None else 1
        if old is not None and max(seconds, old.seconds) < NEVER:
            seconds = old.seconds + (seconds - old.seconds) / min(count, 4)
        found = self._known[key, state, mode] = LoadSeconds(seconds, count, self._now())
        await self._store.put(LOAD_SECONDS, (key, state, mode), found, found.updated_at)


def _key(reading: Reading) -> str:
    told = [sorted(reading.files), reading.binary, reading.devices]
    return hashlib.sha256(json.dumps(told).encode()).hexdigest()
