"""Rows that outlive the router, in one sqlite file. Each owner defines its `Table` and its values beside its
own code; the store knows nothing of either.

The file is never worth stopping for: a database that is damaged or newer than this program is moved aside,
and where nothing can be written (disk full, locked, read-only) the store goes on in memory, after one
warning, and returns to the file as soon as that takes its rows.
"""

from __future__ import annotations

import asyncio
import logging
import os
import sqlite3
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Generic, Self, TypeVar

import msgspec

from router.tasks import Tasks

_logger = logging.getLogger("router.db.store")
_T = TypeVar("_T")
_K = TypeVar("_K")
_V = TypeVar("_V")

#: Older files (router 0.1) had a table for each owner, and their own versions: what an operator said and what
#: still runs is moved. What was measured is left behind, and is measured again.
_OLD_TABLES: Final = {
    "processes": """
INSERT INTO rows SELECT 'children', json_quote(instance), json_object(
    'instance', instance, 'model', model, 'definition', json_object(
        'hash', substr(definition || ' ', 1, instr(definition || ' ', ' ') - 1),
        'overrides', substr(definition, instr(definition || ' ', ' ') + 1)),
    'placement', json(placement), 'socket', socket, 'log', log, 'pid', pid, 'start_time', start_time,
    'boot_id', boot_id, 'argv_hash', argv_hash, 'health_path', health_path,
    'is_ready', json(iif(is_ready, 'true', 'false')), 'started_at', started_at), started_at
    FROM processes WHERE json_valid(placement);""",
    "downloads": """
INSERT INTO rows SELECT 'downloads', json_quote(id), job, updated_at FROM downloads;""",
    "pins": """
INSERT INTO rows SELECT 'pins', json_quote(model), iif(pinned, 'true', 'false'), 0 FROM pins;""",
    "load_times": "",
    "load_seconds": "",
    "footprints": "",
    "opinions": "",
}
_CREATE_ROWS: Final = """
CREATE TABLE rows (
    owner      TEXT NOT NULL,
    key        TEXT NOT NULL,
    value      TEXT NOT NULL,
    updated_at REAL NOT NULL,
    PRIMARY KEY (owner, key)
) STRICT, WITHOUT ROWID;
"""
#: Of the table `rows`. What is in a value has no version: a value that does not decode is left out.
SCHEMA_VERSION: Final = 7

#: Another program that holds a lock on the file is waited for, longer at the start: without the rows in it,
#: children of an earlier router are lost.
BUSY_SECONDS: Final = 2.0
LOCK_SECONDS: Final = 10.0
#: How long leaving waits for the last writes, in seconds.
CLOSE_SECONDS: Final = 10.0
#: A file that took nothing is tried again this often.
RETURN_SECONDS: Final = 10.0
#: What sqlite raises for a value that it cannot keep, on whatever disk.
_OF_THE_ROW: Final = (sqlite3.InterfaceError, sqlite3.ProgrammingError, sqlite3.DataError)


@dataclass(frozen=True, slots=True)
class Table(Generic[_K, _V]):
    """The rows of one owner: key -> value, both of any type that msgspec encodes as JSON and decodes. To
    change the type of the values is to lose those rows that do not decode to the new one.
    """

    owner: str
    key: type[_K]
    value: type[_V]


class Store:
    """An async context manager. All calls run in turn in a thread of its own; none raises for the disk.

    `path` None keeps everything in memory. `is_persistent` tells whether the last write reached the disk.
    """

    def __init__(self, path: Path | None) -> None:
        self.path = path
        self.is_persistent = path is not None
        self._database: sqlite3.Connection | None = None
        self._thread: ThreadPoolExecutor | None = None
        #: In memory, the rows began as those of the file: a row that is not there any more was deleted.
        self._is_copy = False
        self._is_handed_over = False
        self._tasks = Tasks()

    async def __aenter__(self) -> Self:
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="store")
        await self._in_thread(self._open)
        await self._tasks.__aenter__()
        self._returning = self._tasks.create_task(self._return_for_ever(), name="store")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._returning.cancel()
        await self._tasks.__aexit__()
        thread, self._thread = self._thread, None
        assert thread is not None and self._database is not None, "closed twice"
        closed = thread.submit(self._database.close)
        thread.shutdown(wait=False)
        # A disk that does not answer holds up neither the loop nor, for longer than this, a shutdown.
        await asyncio.wait({asyncio.wrap_future(closed)}, timeout=CLOSE_SECONDS)

    def hand_over(self) -> None:
        """Another process keeps the rows in the file from now on: this one does not return to the file with
        its own, which are out of date.
        """
        self._is_handed_over = True

    # --- rows ----------------------------------------------------------------------------------------------

    async def put(self, table: Table[_K, _V], key: _K, value: _V, updated_at: float | None = None) -> None:
        """Write or replace one row. `updated_at` is Unix time, None for now."""
        at = time.time() if updated_at is None else updated_at
        await self._run(
            "INSERT OR REPLACE INTO rows VALUES (?, ?, ?, ?)",
            lambda: (table.owner, _encode(key), _encode(value), at),
        )

    async def delete(self, table: Table[_K, _V], key: _K) -> None:
        """Delete one row; unknown is fine."""
        await self._run("DELETE FROM rows WHERE owner = ? AND key = ?", lambda: (table.owner, _encode(key)))

    async def delete_old(self, table: Table[_K, _V], *, older_than: float) -> None:
        """Delete the rows that were written last before that Unix time."""
        await self._run(
            "DELETE FROM rows WHERE owner = ? AND updated_at < ?", lambda: (table.owner, older_than)
        )

    async def rows(self, table: Table[_K, _V]) -> dict[_K, _V]:
        """All rows, those that were written last at the end. One that does not decode (a newer program's, or
        damaged) is left out.
        """
        found: dict[_K, _V] = {}
        statement = "SELECT key, value FROM rows WHERE owner = ? ORDER BY updated_at, key"
        for key, value in await self._run(statement, lambda: (table.owner,)):
            try:
                decoded = msgspec.json.decode(value, type=table.value)
                found[msgspec.json.decode(key, type=table.key)] = decoded
            except msgspec.DecodeError:
                _logger.info("a row of %s is left out, it does not decode: %s", table.owner, key)
        return found

    # --- the thread ----------------------------------------------------------------------------------------

    async def _in_thread(self, call: Callable[[], _T]) -> _T:
        assert self._thread is not None, "the store is not open"
        return await asyncio.get_running_loop().run_in_executor(self._thread, call)

    async def _run(self, statement: str, row: Callable[[], tuple[object, ...]]) -> list[tuple[Any, ...]]:
        """What sqlite does not take in memory either (a name that is no Unicode, a number beyond 64 bits, no
        memory left) is not kept.
        """

        def run() -> list[tuple[Any, ...]]:
            try:
                return self._execute(statement, row())
            except Exception as error:
                _logger.exception("not kept in %s: %s", self.path or "memory", error)
                return []

        return await self._in_thread(run)

    def _execute(self, statement: str, row: tuple[object, ...]) -> list[tuple[Any, ...]]:
        assert self._database is not None, "the store is not open"
        try:
            return self._database.execute(statement, row).fetchall()
        except sqlite3.Error as error:
            if not self.is_persistent or isinstance(error, _OF_THE_ROW):
                raise
            self._database = self._go_on_in_memory(error, self._database)
            return self._database.execute(statement, row).fetchall()

    def _open(self) -> None:
        try:
            self._database = _open_or_replace(self.path) if self.path else _in_memory()
        except (_Unusable, sqlite3.Error, OSError) as error:
            self._database = self._go_on_in_memory(error, None)

    def _go_on_in_memory(self, error: Exception, on_disk: sqlite3.Connection | None) -> sqlite3.Connection:
        """A database with the rows of the file, as far as that can be read."""
        assert self.path is not None, "only a file fails"
        _logger.warning(
            "cannot use %s (%s): going on in memory; children of this router will not be adopted by the next",
            self.path,
            error,
        )
        self.is_persistent = False
        try:
            with closing(on_disk or _connect(f"{self.path.absolute().as_uri()}?mode=ro", uri=True)) as source:
                database = _in_memory(source)
            self._is_copy = True
        except (sqlite3.Error, _Unusable):
            database = _in_memory()
            self._is_copy = False
        return database

    async def _return_for_ever(self) -> None:
        while self.path is not None:
            await asyncio.sleep(RETURN_SECONDS)
            if not self.is_persistent and not self._is_handed_over:
                try:
                    await self._in_thread(self._return)
                except Exception:
                    _logger.exception("cannot return to %s", self.path)

    def _return(self) -> None:
        """Write all rows to the file; if it does not take them, the next time."""
        assert self.path is not None and self._database is not None, "in memory, for want of its file"
        try:
            on_disk = _open_or_replace(self.path, keep_newer=True)
        except (sqlite3.Error, _Unusable, OSError):
            return
        try:
            on_disk.execute("BEGIN IMMEDIATE")
            if self._is_handed_over:  # while the lock was waited for
                on_disk.close()
                return
            if self._is_copy:
                on_disk.execute("DELETE FROM rows")
            rows = self._database.execute("SELECT * FROM rows")
            on_disk.executemany("INSERT OR REPLACE INTO rows VALUES (?, ?, ?, ?)", rows)
            on_disk.execute("COMMIT")
        except sqlite3.Error:
            on_disk.close()  # which rolls back
            return
        self._database.close()
        self._database, self.is_persistent = on_disk, True
        _logger.warning("%s can be used again: all that is known of children is in it", self.path)


class _Unusable(Exception):
    """The file's content cannot be used; the message says why."""


class _Newer(_Unusable):
    """The file was written by a newer program."""


def _encode(value: object) -> str:
    return msgspec.json.encode(value).decode()


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


def _open_file(path: Path) -> sqlite3.Connection:
    os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))  # sqlite would ask the umask
    database = _connect(str(path), lock_seconds=LOCK_SECONDS)
    try:
        _check_and_migrate(database)
        database.execute("PRAGMA journal_mode = WAL")
        # Safe against a crash of the router. A crash of the machine may lose a write, but also the children.
        database.execute("PRAGMA synchronous = NORMAL")
        database.execute(f"PRAGMA busy_timeout = {BUSY_SECONDS * 1000:.0f}")
    except BaseException:
        database.close()
        raise
    return database


def _in_memory(source: sqlite3.Connection | None = None) -> sqlite3.Connection:
    """A database in memory, with the rows of `source`. Raises what is wrong with those."""
    database = _connect(":memory:")
    try:
        if source is not None:
            source.backup(database)
        _check_and_migrate(database)
    except BaseException:
        database.close()
        raise
    return database


def _connect(name: str, *, uri: bool = False, lock_seconds: float = BUSY_SECONDS) -> sqlite3.Connection:
    return sqlite3.connect(name, lock_seconds, isolation_level=None, check_same_thread=False, uri=uri)


def _check_and_migrate(database: sqlite3.Connection) -> None:
    if database.execute("PRAGMA quick_check").fetchone() != ("ok",):
        raise _Unusable("it is damaged")
    (version,) = database.execute("PRAGMA user_version").fetchone()
    if not 0 <= version <= SCHEMA_VERSION:
        raise _Newer(f"its schema is version {version}, this program knows {SCHEMA_VERSION}")
    if version < SCHEMA_VERSION:
        names = {name for (name,) in database.execute("SELECT name FROM sqlite_master")}
        old = [f"{move} DROP TABLE {name};" for name, move in _OLD_TABLES.items() if name in names]
        steps = f"{_CREATE_ROWS} {''.join(old)} PRAGMA user_version = {SCHEMA_VERSION}"
        database.executescript(f"BEGIN IMMEDIATE; {steps}; COMMIT;")


def _move_aside(path: Path, error: Exception) -> None:
    aside = path.with_name(f"{path.name}.aside-{time.strftime('%Y%m%d-%H%M%S')}")
    _logger.warning("cannot use %s (%s): moved to %s, beginning a new one", path, error, aside.name)
    for suffix in ("-wal", "-shm"):
        path.with_name(path.name + suffix).unlink(missing_ok=True)
    path.replace(aside)
