"""What outlives the router, in one sqlite file: records of its children, load times, learned footprints,
downloads.

It is never worth stopping for: a database that is damaged or newer than this program is moved aside, and
where nothing can be written (disk full, locked, read-only) the store goes on in memory, after one warning,
and returns to the file as soon as that takes it.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import sqlite3
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self, TypeVar

from router.ids import Definition
from router.scheduler.types import Placement
from router.tasks import Tasks

_logger = logging.getLogger("router.db.store")
_T = TypeVar("_T")

#: Each script leads from one version of the schema to the next: a new file goes through all of them.
_MIGRATIONS: Final = (
    """
CREATE TABLE processes (
    instance    TEXT PRIMARY KEY,
    model       TEXT NOT NULL,
    definition  TEXT NOT NULL,
    placement   TEXT NOT NULL,
    pid         INTEGER,
    start_time  INTEGER,
    boot_id     TEXT NOT NULL,
    argv_hash   TEXT NOT NULL,
    socket      TEXT NOT NULL,
    log         TEXT NOT NULL,
    health_path TEXT NOT NULL,
    is_ready    INTEGER NOT NULL,
    started_at  REAL NOT NULL
) STRICT;
CREATE TABLE load_times (
    definition TEXT PRIMARY KEY,
    seconds    REAL NOT NULL,
    count      INTEGER NOT NULL,
    updated_at REAL NOT NULL
) STRICT;
CREATE TABLE footprints (
    key        TEXT NOT NULL,
    shape      TEXT NOT NULL,
    bytes      TEXT NOT NULL,
    samples    INTEGER NOT NULL,
    updated_at REAL NOT NULL,
    PRIMARY KEY (key, shape)
) STRICT;
""",
    """
DROP TABLE footprints;
CREATE TABLE footprints (
    key        TEXT NOT NULL,
    shape      TEXT NOT NULL,
    peak       TEXT NOT NULL,
    floor      TEXT NOT NULL,
    requests   INTEGER NOT NULL,
    trials     INTEGER NOT NULL,
    files      TEXT NOT NULL,
    updated_at REAL NOT NULL,
    PRIMARY KEY (key, shape)
) STRICT;
""",
    """
CREATE TABLE downloads (
    id         TEXT PRIMARY KEY,
    job        TEXT NOT NULL,
    updated_at REAL NOT NULL
) STRICT;
""",
    """
CREATE TABLE opinions (
    key        TEXT PRIMARY KEY,
    rows       TEXT NOT NULL,
    files      TEXT NOT NULL,
    updated_at REAL NOT NULL
) STRICT;
""",
    """
CREATE TABLE pins (
    model  TEXT PRIMARY KEY,
    pinned INTEGER NOT NULL
) STRICT;
""",
    """
CREATE TABLE load_seconds (
    key        TEXT NOT NULL,
    state      TEXT NOT NULL,
    mode       TEXT NOT NULL,
    seconds    REAL NOT NULL,
    count      INTEGER NOT NULL,
    updated_at REAL NOT NULL,
    PRIMARY KEY (key, state, mode)
) STRICT;
""",
)
SCHEMA_VERSION: Final = len(_MIGRATIONS)


#: Another program that holds a lock on the file is waited for, longer at the start: without what is in it,
#: children of an earlier router are lost.
BUSY_SECONDS: Final = 2.0
LOCK_SECONDS: Final = 10.0
#: How long leaving waits for the last writes, in seconds.
CLOSE_SECONDS: Final = 10.0
#: What sqlite says of a value that it cannot keep, on whatever disk.
_OF_THE_ROW: Final = (sqlite3.InterfaceError, sqlite3.ProgrammingError, sqlite3.DataError)
#: A file that took nothing is tried again this often.
RETURN_SECONDS: Final = 10.0


@dataclass(frozen=True, slots=True)
class ProcessRecord:
    """One child, written before it can hold memory (`pid` None until it is born). Times are Unix time."""

    instance: str
    model: str
    definition: Definition
    placement: Placement
    socket: str
    log: str
    pid: int | None = None
    start_time: int | None = None
    boot_id: str = ""
    argv_hash: str = ""
    health_path: str = "/health"
    is_ready: bool = False
    started_at: float = 0.0


@dataclass(frozen=True, slots=True)
class LoadTime:
    """Seconds from start to ready, averaged so that a new measurement weighs at least a quarter."""

    seconds: float
    count: int


@dataclass(frozen=True, slots=True)
class LoadSeconds:
    """How long loads in one way have taken, averaged so that a new one weighs at least a quarter; infinite
    where the way does not work. `updated_at` is Unix time."""

    seconds: float
    count: int
    updated_at: float


@dataclass(frozen=True, slots=True)
class LearnedFootprint:
    """Measured bytes per place of a placement (not per device id: identical cards share what was learned).

    The numbers are those of `router.memory.estimate.learning.Learned`. `files` are (path, bytes, time of
    change in nanoseconds) of what was loaded. `updated_at` is Unix time; 0 stands for now.
    """

    peak: tuple[int | None, ...]
    floor: tuple[int, ...] = ()
    requests: int = 0
    trials: int = 0
    files: tuple[tuple[str, int, int], ...] = ()
    updated_at: float = field(default=0.0, compare=False)


@dataclass(frozen=True, slots=True)
class KeptOpinion:
    """What llama-fit-params answered: a row per device with bytes for model, context and compute; no row
    where it had no answer. `files` and `updated_at` as of a learned footprint."""

    rows: tuple[tuple[str, int, int, int], ...]
    files: tuple[tuple[str, int, int], ...] = ()
    updated_at: float = field(default=0.0, compare=False)


class Store:
    """An async context manager. All calls run in turn in a thread of its own; none raises for the disk.

    `path` None keeps everything in memory. `is_persistent` tells whether the last write reached the disk.
    """

    def __init__(self, path: Path | None) -> None:
        self.path = path
        self.is_persistent = path is not None
        self._database: sqlite3.Connection | None = None
        self._thread: ThreadPoolExecutor | None = None
        self._is_handed_over = False
        self._tasks = Tasks()

    async def __aenter__(self) -> Self:
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="store")
        self._database = await self._in_thread(self._open)
        await self._tasks.__aenter__()
        self._returning = self._tasks.create_task(self._return_for_ever(), name="store")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._returning.cancel()
        await self._tasks.__aexit__()
        thread, self._thread = self._thread, None
        assert thread is not None, "closed twice"
        closing = thread.submit(self._close)
        thread.shutdown(wait=False)
        # A disk that does not answer holds up neither the loop nor, for longer than this, a shutdown.
        await asyncio.wait({asyncio.wrap_future(closing)}, timeout=CLOSE_SECONDS)

    def hand_over(self) -> None:
        """Another process keeps the records of the children in the file from now on: this one does not return
        to it with its own, which say what was.
        """
        self._is_handed_over = True

    # --- records of children -------------------------------------------------------------------------------

    async def put_process(self, record: ProcessRecord) -> None:
        """Write or replace the record of `record.instance`."""
        placement = json.dumps(
            {
                "host": record.placement.host,
                "footprint": dict(record.placement.footprint),
                "devices": record.placement.devices,
                "args": record.placement.args,
                "tier": record.placement.tier,
                "ctx_size": record.placement.ctx_size,
            }
        )
        row = (
            record.instance, record.model, str(record.definition), placement, record.pid, record.start_time,
            record.boot_id, record.argv_hash, record.socket, record.log, record.health_path,
            int(record.is_ready), record.started_at,
        )  # fmt: skip
        await self._write(f"INSERT OR REPLACE INTO processes VALUES ({','.join('?' * len(row))})", row)

    async def delete_process(self, instance: str) -> None:
        """Forget a child; unknown is fine."""
        await self._write("DELETE FROM processes WHERE instance = ?", (instance,))

    async def processes(self) -> tuple[ProcessRecord, ...]:
        """All records, oldest first. One that cannot be read (a newer program's placement) is left out."""
        rows = await self._read("SELECT * FROM processes ORDER BY started_at, instance")
        return tuple(record for row in rows if (record := _record(row)) is not None)

    # --- load times ----------------------------------------------------------------------------------------

    async def put_load_time(self, definition: Definition, seconds: float) -> None:
        """Add a measurement of how long a model with this definition takes to load."""
        await self._write(
            "INSERT INTO load_times VALUES (?, ?, 1, ?) ON CONFLICT (definition) DO UPDATE SET"
            " seconds = seconds + (excluded.seconds - seconds) / MIN(count + 1, 4),"
            " count = count + 1, updated_at = excluded.updated_at",
            (str(definition), seconds, time.time()),
        )

    async def load_times(self) -> Mapping[Definition, LoadTime]:
        """By definition."""
        rows = await self._read("SELECT definition, seconds, count FROM load_times")
        return {Definition.parse(row[0]): LoadTime(row[1], row[2]) for row in rows}

    async def forget_load_times(self, *, older_than: float) -> None:
        """Drop those of definitions that were not loaded since that Unix time."""
        await self._write("DELETE FROM load_times WHERE updated_at < ?", (older_than,))

    async def put_load_seconds(self, key: str, state: str, mode: str, found: LoadSeconds) -> None:
        """Replace what is known of loads of `key` (files, binary, devices) in this way."""
        row = (key, state, mode, found.seconds, found.count, found.updated_at)
        await self._write("INSERT OR REPLACE INTO load_seconds VALUES (?, ?, ?, ?, ?, ?)", row)

    async def load_seconds(self) -> Mapping[tuple[str, str, str], LoadSeconds]:
        """By (key, state of the page cache, mode)."""
        rows = await self._read("SELECT key, state, mode, seconds, count, updated_at FROM load_seconds")
        return {(row[0], row[1], row[2]): LoadSeconds(*row[3:]) for row in rows}

    async def forget_load_seconds(self, *, older_than: float) -> None:
        """Drop what was not measured since that Unix time."""
        await self._write("DELETE FROM load_seconds WHERE updated_at < ?", (older_than,))

    # --- learned footprints --------------------------------------------------------------------------------

    async def put_footprint(self, key: str, shape: str, learned: LearnedFootprint) -> None:
        """Replace what is known of `key` (files, flags, binary) on devices of this `shape`."""
        texts = (json.dumps(learned.peak), json.dumps(learned.floor))
        counts = (learned.requests, learned.trials)
        row = (key, shape, *texts, *counts, json.dumps(learned.files), learned.updated_at or time.time())
        await self._write("INSERT OR REPLACE INTO footprints VALUES (?, ?, ?, ?, ?, ?, ?, ?)", row)

    async def footprints(self) -> Mapping[tuple[str, str], LearnedFootprint]:
        """By (key, shape), those used last first. What cannot be read is left out."""
        rows = await self._read(
            "SELECT key, shape, peak, floor, requests, trials, files, updated_at FROM footprints"
            " ORDER BY updated_at DESC"
        )
        return {(row[0], row[1]): found for row in rows if (found := _footprint(row[2:])) is not None}

    async def forget_footprint(self, key: str, shape: str) -> None:
        """Drop one; unknown is fine."""
        await self._write("DELETE FROM footprints WHERE key = ? AND shape = ?", (key, shape))

    async def forget_footprints(self, *, older_than: float) -> None:
        """Drop what was not confirmed since that Unix time."""
        await self._write("DELETE FROM footprints WHERE updated_at < ?", (older_than,))

    # --- downloads -----------------------------------------------------------------------------------------

    async def put_download(self, job: str, text: str) -> None:
        """Write or replace a job, which is whatever `router.downloads` makes of it."""
        await self._write("INSERT OR REPLACE INTO downloads VALUES (?, ?, ?)", (job, text, time.time()))

    async def downloads(self) -> Mapping[str, str]:
        """By id, those that changed last at the end."""
        return dict(await self._read("SELECT id, job FROM downloads ORDER BY updated_at, rowid"))

    async def delete_download(self, job: str) -> None:
        """Forget a job; unknown is fine."""
        await self._write("DELETE FROM downloads WHERE id = ?", (job,))

    # --- pins ----------------------------------------------------------------------------------------------

    async def put_pin(self, model: str, pinned: bool | None) -> None:
        """What an operator said of the model; None: nothing any more."""
        if pinned is None:
            await self._write("DELETE FROM pins WHERE model = ?", (model,))
        else:
            await self._write("INSERT OR REPLACE INTO pins VALUES (?, ?)", (model, int(pinned)))

    async def pins(self) -> Mapping[str, bool]:
        """By model."""
        return {row[0]: bool(row[1]) for row in await self._read("SELECT model, pinned FROM pins")}

    # --- second opinions -----------------------------------------------------------------------------------

    async def put_opinion(self, key: str, opinion: KeptOpinion) -> None:
        """Replace what was answered to the question of this key."""
        row = (key, json.dumps(opinion.rows), json.dumps(opinion.files), opinion.updated_at or time.time())
        await self._write("INSERT OR REPLACE INTO opinions VALUES (?, ?, ?, ?)", row)

    async def opinions(self) -> Mapping[str, KeptOpinion]:
        """By key. What cannot be read is left out."""
        rows = await self._read("SELECT key, rows, files, updated_at FROM opinions")
        return {row[0]: found for row in rows if (found := _opinion(row[1:])) is not None}

    async def forget_opinion(self, key: str) -> None:
        """Drop one; unknown is fine."""
        await self._write("DELETE FROM opinions WHERE key = ?", (key,))

    async def forget_opinions(self, *, older_than: float) -> None:
        """Drop what was asked before that Unix time."""
        await self._write("DELETE FROM opinions WHERE updated_at < ?", (older_than,))

    # --- the thread ----------------------------------------------------------------------------------------

    async def _in_thread(self, call: Callable[[], _T]) -> _T:
        assert self._thread is not None, "the store is not open"
        return await asyncio.get_running_loop().run_in_executor(self._thread, call)

    async def _write(self, statement: str, row: tuple[object, ...]) -> None:
        await self._in_thread(lambda: self._try(statement, row))

    async def _read(self, statement: str) -> list[tuple[Any, ...]]:
        return await self._in_thread(lambda: self._try(statement, ()))

    def _try(self, statement: str, row: tuple[object, ...]) -> list[tuple[Any, ...]]:
        """What sqlite does not take in memory either (a name that is no Unicode, a number beyond 64 bits, no
        memory left) is not kept.
        """
        try:
            return self._execute(statement, row)
        except Exception as error:
            _logger.exception("not kept in %s: %s", self.path or "memory", error)
            return []

    def _execute(self, statement: str, row: tuple[object, ...]) -> list[tuple[Any, ...]]:
        assert self._database is not None, "the store is not open"
        try:
            return self._database.execute(statement, row).fetchall()
        except sqlite3.Error as error:
            if not self.is_persistent or isinstance(error, _OF_THE_ROW):
                raise
            self._go_on_in_memory(error)
            return self._database.execute(statement, row).fetchall()

    def _go_on_in_memory(self, error: Exception) -> None:
        _logger.warning(
            "cannot use %s (%s): going on in memory; children of this router will not be adopted by the next",
            self.path,
            error,
        )
        self.is_persistent = False
        on_disk, self._database = self._database, _connect(":memory:")
        try:
            on_disk = on_disk or _reader(self.path)
            on_disk.backup(self._database)
            _check(self._database)
            _migrate(self._database)
        except (sqlite3.Error, _Unusable, OSError):
            self._database.close()
            self._database = _connect(":memory:")
            _migrate(self._database)
        if on_disk is not None:
            on_disk.close()

    async def _return_for_ever(self) -> None:
        while self.path is not None:
            await asyncio.sleep(RETURN_SECONDS)
            if not self.is_persistent and not self._is_handed_over:
                try:
                    await self._in_thread(self._return)
                except Exception:
                    _logger.exception("cannot return to %s", self.path)

    def _return(self) -> None:
        """Write all that is known to the file; if it does not take it, the next time."""
        assert self.path is not None and self._database is not None, "in memory, for want of its file"
        try:
            on_disk = self._open_or_replace(self.path, keep_newer=True)
        except (sqlite3.Error, _Unusable, OSError):
            return
        try:
            _write_all(self._database, on_disk)
        except sqlite3.Error:
            on_disk.close()
            return
        self._database.close()
        self._database, self.is_persistent = on_disk, True
        _logger.warning("%s can be used again: all that is known of children is in it", self.path)

    def _open(self) -> sqlite3.Connection:
        if self.path is None:
            database = _connect(":memory:")
            _migrate(database)
            return database
        try:
            return self._open_or_replace(self.path)
        except (_Unusable, sqlite3.Error, OSError) as error:
            self._go_on_in_memory(error)
        assert self._database is not None, "in memory"
        return self._database

    @staticmethod
    def _open_or_replace(path: Path, *, keep_newer: bool = False) -> sqlite3.Connection:
        """The file, or a new one where its content cannot be used; raises what the disk says of it.
        `keep_newer`: the file of a newer program, which may be about to take over, is left to that program.
        """
        try:
            return _open_file(path)
        except (_Unusable, sqlite3.DatabaseError) as error:
            if isinstance(error, sqlite3.OperationalError):  # not the file's content: disk or permissions
                raise
            if keep_newer and isinstance(error, _Newer):
                raise
            _move_aside(path, error)
        return _open_file(path)

    def _close(self) -> None:
        if self._database is not None:
            self._database.close()
            self._database = None


class _Unusable(Exception):
    """The file's content cannot be used; the message says why."""


class _Newer(_Unusable):
    """The file was written by a newer program."""


def _open_file(path: Path) -> sqlite3.Connection:
    os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))  # sqlite would ask the umask
    database = _connect(str(path), LOCK_SECONDS)
    try:
        _check(database)
        _migrate(database)
        database.execute("PRAGMA journal_mode = WAL")
        # Safe against a crash of the router. A crash of the machine may lose a write, but also the children.
        database.execute("PRAGMA synchronous = NORMAL")
        database.execute(f"PRAGMA busy_timeout = {BUSY_SECONDS * 1000:.0f}")
    except BaseException:
        database.close()
        raise
    return database


def _connect(name: str, lock_seconds: float = BUSY_SECONDS) -> sqlite3.Connection:
    return sqlite3.connect(name, timeout=lock_seconds, isolation_level=None, check_same_thread=False)


def _reader(path: Path | None) -> sqlite3.Connection:
    """What is in a file that takes nothing any more. Raises sqlite3.Error."""
    if path is None:
        raise sqlite3.OperationalError("there is no file")
    return sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True, timeout=BUSY_SECONDS)


def _write_all(source: sqlite3.Connection, target: sqlite3.Connection) -> None:
    """Of children what is known now, of all else what is known more than before. Raises sqlite3.Error, and
    then nothing is written.
    """
    tables = [name for (name,) in source.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
    target.execute("BEGIN IMMEDIATE")
    try:
        target.execute("DELETE FROM processes")
        for table in tables:
            rows = source.execute(f"SELECT * FROM {table}").fetchall()
            for row in rows:
                places = ",".join("?" * len(row))
                target.execute(f"INSERT OR REPLACE INTO {table} VALUES ({places})", row)
        target.execute("COMMIT")
    except sqlite3.Error:
        if target.in_transaction:  # a full disk has rolled it back already
            target.execute("ROLLBACK")
        raise


def _check(database: sqlite3.Connection) -> None:
    if database.execute("PRAGMA quick_check").fetchone() != ("ok",):
        raise _Unusable("it is damaged")


def _migrate(database: sqlite3.Connection) -> None:
    (version,) = database.execute("PRAGMA user_version").fetchone()
    if not 0 <= version <= SCHEMA_VERSION:
        raise _Newer(f"its schema is version {version}, this program knows {SCHEMA_VERSION}")
    if version < SCHEMA_VERSION:
        steps = "".join(_MIGRATIONS[version:])
        database.executescript(f"BEGIN; {steps} PRAGMA user_version = {SCHEMA_VERSION}; COMMIT;")


def _move_aside(path: Path, error: Exception) -> None:
    aside = path.with_name(f"{path.name}.aside-{time.strftime('%Y%m%d-%H%M%S')}")
    _logger.warning("cannot use %s (%s): moved to %s, beginning a new one", path, error, aside.name)
    for suffix in ("-wal", "-shm"):
        path.with_name(path.name + suffix).unlink(missing_ok=True)
    path.replace(aside)


def _record(row: Iterable[Any]) -> ProcessRecord | None:
    values = dict(zip(_COLUMNS, row, strict=True))
    try:
        placement = json.loads(str(values["placement"]))
        values["placement"] = Placement(
            host=placement["host"],
            footprint=placement["footprint"],
            devices=tuple(placement["devices"]),
            args=tuple(placement["args"]),
            tier=placement["tier"],
            ctx_size=placement.get("ctx_size", 0),  # a child of 0.1.x has none
        )
    except (ValueError, KeyError, TypeError):
        return None
    values["definition"] = Definition.parse(str(values["definition"]))
    values["is_ready"] = bool(values["is_ready"])
    return ProcessRecord(**values)


def _footprint(row: Sequence[Any]) -> LearnedFootprint | None:
    peak, floor, requests, trials, files, updated_at = row
    try:
        found = LearnedFootprint(
            tuple(None if size is None else _size(size) for size in json.loads(peak)),
            tuple(_size(size) for size in json.loads(floor)),
            requests,
            trials,
            tuple((str(path), int(size), int(changed_ns)) for path, size, changed_ns in json.loads(files)),
            updated_at,
        )
    except (ValueError, TypeError):
        return None
    return found if len(found.floor) in (0, len(found.peak)) and min(requests, trials) >= 0 else None


def _opinion(row: Sequence[Any]) -> KeptOpinion | None:
    rows, files, updated_at = row
    try:
        return KeptOpinion(
            tuple((str(name), _size(m), _size(c), _size(k)) for name, m, c, k in json.loads(rows)),
            tuple((str(path), int(size), int(changed_ns)) for path, size, changed_ns in json.loads(files)),
            updated_at,
        )
    except (ValueError, TypeError):
        return None


def _size(value: object) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < 1 << 62:
        raise ValueError(f"{value!r} is no number of bytes")
    return value


_COLUMNS: Final = (
    "instance", "model", "definition", "placement", "pid", "start_time", "boot_id", "argv_hash", "socket",
    "log", "health_path", "is_ready", "started_at",
)  # fmt: skip
