"""The entries of what was learned: read at the start, written behind by one task, forgotten in time."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Final, Self, TypeAlias, TypeVar

import msgspec

from router.db.store import Store, Table
from router.memory.estimate.learning import FORGET_SECONDS, Learned, Stamp, has_grown
from router.models.catalog.candidate import stamp_of
from router.tasks import Tasks

log = logging.getLogger("router.supervisor.calibration")

_Id = TypeVar("_Id")
EntryId: TypeAlias = tuple[str, str]
"""(key, shape)."""

#: Entries read at most; what is older is forgotten. One is some hundred bytes.
ENTRIES_MAX: Final = 4096
#: What is not pressing is written so late, and anything not more often than this.
SAVE_SECONDS: Final = 60.0
PRESSING_SAVE_SECONDS: Final = 1.0


class Footprint(msgspec.Struct, frozen=True):
    """What is kept of an entry. A row that makes no sense does not decode."""

    learned: Learned
    files: tuple[Stamp, ...] = ()

    def __post_init__(self) -> None:
        learned = self.learned
        sizes = [size for size in (*learned.peak, *learned.floor) if size is not None]
        if min([learned.requests, learned.trials, *sizes]) < 0:
            raise ValueError("a number below 0")
        if len(learned.floor) not in (0, len(learned.peak)):
            raise ValueError("peak and floor are of different devices")


#: By (key, shape). Bytes are per place of a placement, not per device id: identical cards share what was
#: learned.
FOOTPRINTS: Final = Table("footprints", tuple[str, str], Footprint)


@dataclass(slots=True)
class _Entry:
    learned: Learned
    files: tuple[Stamp, ...] = ()
    saved: Learned | None = None
    is_lasting: bool = False


class Kept:
    """An async context manager: entering reads, leaving writes what is not written yet. Reading and setting
    an entry never waits.
    """

    def __init__(self, store: Store, *, now: Callable[[], float] = time.time) -> None:
        self._store = store
        self._now = now
        self._entries: dict[EntryId, _Entry] = {}
        self._dirty: set[EntryId] = set()
        self._changed, self._pressing = asyncio.Event(), asyncio.Event()
        self._tasks = Tasks()
        self._saving: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        await self._read()
        await self._tasks.__aenter__()
        self._saving = self._tasks.create_task(self._save_behind(), name="keep learned footprints")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._saving is not None, "left before it was entered"
        self._saving.cancel()
        await self._tasks.__aexit__()
        await self.save()

    def get(self, entry: EntryId) -> Learned | None:
        found = self._entries.get(entry)
        return found.learned if found is not None else None

    def put(
        self, entry: EntryId, learned: Learned, files: tuple[Stamp, ...], *, is_lasting: bool = False
    ) -> None:
        """Set an entry. It is written soon if the peak or the floor has changed, else some time."""
        kept = self._entries.setdefault(entry, _Entry(learned))
        kept.is_lasting = kept.is_lasting or is_lasting
        kept.learned, kept.files = learned, files
        if kept.saved is None or _differs(kept.saved, learned):
            self.touch(entry)
        elif learned != kept.saved:
            self._dirty.add(entry)
            self._changed.set()

    def touch(self, entry: EntryId) -> None:
        """Write it soon, though it may be what it was: it is in use."""
        if entry in self._entries:
            self._dirty.add(entry)
            self._changed.set()
            self._pressing.set()

    async def save(self) -> None:
        """Write what has changed. What has only a floor ends with the router, unless that is to last: nobody
        has seen it run."""
        while self._dirty:
            entry = next(iter(self._dirty))
            kept = self._entries[entry]
            learned = kept.learned
            if learned.is_measured or kept.is_lasting:
                await self._store.put(FOOTPRINTS, entry, Footprint(learned, kept.files), self._now())
                kept.saved = learned
            if kept.learned is learned:  # else it has changed while it was written; cancelled, it stays dirty
                self._dirty.discard(entry)

    async def _save_behind(self) -> None:
        try:
            while True:
                await self._changed.wait()
                try:
                    async with asyncio.timeout(SAVE_SECONDS):
                        await self._pressing.wait()
                except TimeoutError:
                    pass
                self._changed.clear()
                self._pressing.clear()
                await self.save()
                await asyncio.sleep(PRESSING_SAVE_SECONDS)
        except Exception:
            log.exception("what is learned of models is not kept any more")

    async def _read(self) -> None:
        await self._store.delete_old(FOOTPRINTS, older_than=self._now() - FORGET_SECONDS)
        rows = await self._store.rows(FOOTPRINTS)
        ids = list(rows)[-ENTRIES_MAX:]
        gone = await asyncio.to_thread(lambda: set(stale((i, rows[i].files) for i in ids)))
        for entry in [*gone, *list(rows)[:-ENTRIES_MAX]]:
            await self._store.delete(FOOTPRINTS, entry)
        for entry in ids:
            if entry not in gone:
                row = rows[entry]
                self._entries[entry] = _Entry(row.learned, row.files, row.learned)


def stale(entries: Iterable[tuple[_Id, tuple[Stamp, ...]]]) -> Iterator[_Id]:
    """Those whose files are gone, or are others by now: their key will never be asked for again."""
    for entry, files in entries:
        if any(stamp_of(Path(stamp[0])) != stamp for stamp in files):
            yield entry


def _differs(old: Learned, new: Learned) -> bool:
    grown = any(has_grown(was, now) for was, now in zip(old.peak, new.peak, strict=True))
    return grown or old.floor != new.floor or old.is_proven != new.is_proven
