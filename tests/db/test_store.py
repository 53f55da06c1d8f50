"""A real sqlite file: what is written is read again, and nothing that happens to the disk stops the store."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import os
import signal
import sqlite3
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from router.db.store import SCHEMA_VERSION, Store, Table
from tests.waiting import until


@dataclasses.dataclass(frozen=True)
class Row:
    size: int
    where: tuple[str, ...] = ()


ROW = Row(17, ("local", "host"))
ROWS = Table("owner", str, Row)
NUMBERS = Table("another owner", tuple[str, str], int)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "router.sqlite"


async def test_a_row_comes_back_as_it_was_written(path):
    async with Store(path) as store:
        await store.put(ROWS, "a", ROW)
    async with Store(path) as store:
        assert await store.rows(ROWS) == {"a": ROW}


async def test_a_row_is_replaced_and_deleted_by_its_key_and_those_written_last_are_at_the_end(path):
    async with Store(path) as store:
        await store.put(ROWS, "a", Row(1))
        await store.put(ROWS, "a", ROW)
        await store.put(ROWS, "older", ROW, 1.0)
        await store.put(NUMBERS, ("a", "b"), 1)
        assert list(await store.rows(ROWS)) == ["older", "a"]
        await store.delete(ROWS, "older")
        await store.delete(ROWS, "nobody")
        assert await store.rows(ROWS) == {"a": ROW}
        assert await store.rows(NUMBERS) == {("a", "b"): 1}


async def test_old_rows_of_one_owner_are_deleted(path):
    async with Store(path) as store:
        await store.put(ROWS, "old", ROW, 10.0)
        await store.put(NUMBERS, ("old", ""), 1, 10.0)
        await store.put(ROWS, "new", ROW)
        await store.delete_old(ROWS, older_than=11.0)
        assert set(await store.rows(ROWS)) == {"new"}
        assert set(await store.rows(NUMBERS)) == {("old", "")}


@pytest.mark.parametrize(
    "value", ["", "x", "[]", '{"size": true}', '{"size": 1e300}', '{"size": 1, "where": 2}']
)
async def test_a_row_that_does_not_decode_is_left_out(path, value):
    async with Store(path) as store:
        await store.put(ROWS, "good", ROW)
        await store.put(ROWS, "bad", ROW)
        statement = "UPDATE rows SET value = ? WHERE key = '\"bad\"'"
        await store._in_thread(lambda: store._execute(statement, (value,)))
        assert await store.rows(ROWS) == {"good": ROW}


async def test_what_was_written_survives_the_death_of_the_writer(path):
    script = f"""
import asyncio, os, signal
from pathlib import Path
from router.db.store import Store
from tests.db.test_store import ROW, ROWS
async def main():
    async with Store(Path({str(path)!r})) as store:
        await store.put(ROWS, "a", ROW)
        os.kill(os.getpid(), signal.SIGKILL)
asyncio.run(main())
"""
    died = subprocess.run([sys.executable, "-c", script], cwd=Path(__file__).parents[1])
    assert died.returncode == -signal.SIGKILL
    async with Store(path) as store:
        assert await store.rows(ROWS) == {"a": ROW}


async def test_the_file_is_private(path):
    async with Store(path) as store:
        await store.put(ROWS, "a", ROW)
        for file in path.parent.iterdir():
            assert file.stat().st_mode & 0o777 == 0o600, file


@pytest.mark.parametrize("damage", ["no database", "torn", "newer"])
async def test_a_file_that_cannot_be_used_is_moved_aside_and_a_new_one_begun(path, damage, caplog):
    async with Store(path) as store:
        for i in range(200):
            await store.put(ROWS, f"a#{i}", ROW)
    match damage:
        case "no database":
            path.write_bytes(b"this is no database\n" * 1000)
        case "torn":
            data = bytearray(path.read_bytes())
            data[4096:] = os.urandom(len(data) - 4096)
            path.write_bytes(data)
        case "newer":
            with sqlite3.connect(path) as database:
                database.execute(f"PRAGMA user_version = {SCHEMA_VERSION + 1}")
            database.close()
    before = path.read_bytes()
    async with Store(path) as store:
        assert store.is_persistent
        assert await store.rows(ROWS) == {}
        await store.put(ROWS, "a", ROW)
    async with Store(path) as store:
        assert await store.rows(ROWS) == {"a": ROW}
    (aside,) = path.parent.glob("router.sqlite.aside-*")
    assert aside.read_bytes() == before
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert str(path) in caplog.text


async def test_a_folder_that_cannot_be_written_leaves_a_store_in_memory(tmp_path, caplog):
    (tmp_path / "file").touch()
    async with Store(tmp_path / "file" / "router.sqlite") as store:
        assert not store.is_persistent
        await store.put(ROWS, "a", ROW)
        assert await store.rows(ROWS) == {"a": ROW}
    assert [record.levelname for record in caplog.records] == ["WARNING"]


async def test_a_disk_that_fills_up_is_told_once_and_nothing_known_is_lost(path, caplog):
    async with Store(path) as store:
        await store.put(ROWS, "a", ROW)
        await store._in_thread(lambda: store._execute("PRAGMA max_page_count = 1", ()))
        for i in range(300):
            await store.put(ROWS, f"filling#{i}", ROW)
        assert not store.is_persistent
        assert len(await store.rows(ROWS)) == 301
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "full" in caplog.text


async def test_a_file_that_turns_read_only_is_told_once(path, caplog):
    async with Store(path) as store:
        await store.put(ROWS, "a", ROW)
        await store._in_thread(lambda: store._execute("PRAGMA query_only = 1", ()))
        await store.put(NUMBERS, ("d", ""), 1)
        await store.put(NUMBERS, ("d", ""), 2)
        assert await store.rows(NUMBERS) == {("d", ""): 2}
        assert await store.rows(ROWS) == {"a": ROW}
    assert [record.levelname for record in caplog.records] == ["WARNING"]


async def test_a_store_without_a_path_lives_in_memory():
    async with Store(None) as store:
        await store.put(ROWS, "a", ROW)
        assert await store.rows(ROWS) == {"a": ROW}
        assert not store.is_persistent


async def test_two_stores_on_one_file_do_not_block_each_other_for_long(path):
    async with Store(path) as first, Store(path) as second:
        for i in range(20):
            await first.put(NUMBERS, ("a", str(i)), i)
            await second.put(NUMBERS, ("b", str(i)), i)
        assert first.is_persistent
        assert second.is_persistent
        assert len(await first.rows(NUMBERS)) == 40


async def test_it_returns_to_its_file_as_soon_as_that_takes_it(path, monkeypatch, caplog):
    monkeypatch.setattr("router.db.store.RETURN_SECONDS", 0.02)
    async with Store(path) as store:
        await store.put(ROWS, "a", ROW)
        await store.put(ROWS, "gone#1", ROW)
        await store.put(NUMBERS, ("before", ""), 1)
        with path.with_name("router.sqlite").open("rb") as file, contextlib.closing(_locked(path)):
            assert file.read(6) == b"SQLite"
            await store.put(NUMBERS, ("meanwhile", ""), 2)
            assert not store.is_persistent
            await store.delete(ROWS, "gone#1")
            await store.put(ROWS, "new#1", ROW)
        await until(lambda: store.is_persistent)
        await store.put(ROWS, "later#1", ROW)
        assert store.is_persistent
        with contextlib.closing(sqlite3.connect(path)) as reader:
            assert _keys(reader) == {'"a"', '"new#1"', '"later#1"', '["before",""]', '["meanwhile",""]'}
    assert [record.levelname for record in caplog.records] == ["WARNING", "WARNING"]
    assert "can be used again" in caplog.text


async def _until_persistent(store: Store) -> None:
    await until(lambda: store.is_persistent)


async def test_a_file_that_is_damaged_while_it_is_used_is_replaced_and_what_comes_is_kept(
    path, monkeypatch, caplog
):
    monkeypatch.setattr("router.db.store.RETURN_SECONDS", 0.05)
    async with Store(path) as store:
        for number in range(200):
            await store.put(ROWS, f"a#{number}", ROW)
        with contextlib.closing(sqlite3.connect(path)) as other:  # what the store has read is no longer valid
            other.execute("DELETE FROM rows WHERE key = '\"a#1\"'")
            other.commit()
            other.execute("PRAGMA wal_checkpoint(TRUNCATE)")
            with path.open("rb+") as file:
                file.seek(100)
                file.write(b"garbage" * 4000)
        for number in range(3):
            await store.put(ROWS, f"new#{number}", ROW)
        known = set(await store.rows(ROWS))
        assert {"new#1", "new#2"} <= known
        await _until_persistent(store)
        with contextlib.closing(sqlite3.connect(path)) as reader:
            assert _keys(reader) == {f'"{name}"' for name in known}
    assert "Traceback" not in caplog.text


async def test_one_that_was_handed_over_does_not_write_its_old_records_over_those_of_the_next(
    path, monkeypatch
):
    monkeypatch.setattr("router.db.store.RETURN_SECONDS", 0.01)
    async with Store(path) as former:
        with contextlib.closing(_locked(path)):
            await former.put(ROWS, "a", ROW)
        assert not former.is_persistent
        former.hand_over()
        async with Store(path) as following:
            await following.put(ROWS, "later#1", ROW)
            await asyncio.sleep(0.1)  # in which it would return to the file
            with contextlib.closing(sqlite3.connect(path)) as reader:
                assert _keys(reader) == {'"later#1"'}


def _keys(reader: sqlite3.Connection) -> set[str]:
    return {key for (key,) in reader.execute("SELECT key FROM rows")}


def _locked(path: Path) -> sqlite3.Connection:
    """Somebody with a shell, who forgot that he writes."""
    somebody = sqlite3.connect(path, isolation_level=None)
    somebody.execute("BEGIN IMMEDIATE")
    return somebody


async def test_a_file_that_is_locked_at_the_start_is_waited_for(path):
    async with Store(path) as store:
        await store.put(ROWS, "a", ROW)
    with contextlib.closing(sqlite3.connect(path, isolation_level=None, check_same_thread=False)) as somebody:
        somebody.execute("PRAGMA locking_mode = EXCLUSIVE")
        somebody.execute("BEGIN EXCLUSIVE")
        asyncio.get_running_loop().call_later(0.3, somebody.close)
        async with Store(path) as store:
            assert store.is_persistent
            assert await store.rows(ROWS) == {"a": ROW}


async def test_what_is_in_a_file_that_takes_nothing_at_the_start_is_known_all_the_same(path, monkeypatch):
    """A full disk must not cost the children of a router that was killed on it."""
    async with Store(path) as store:
        await store.put(ROWS, "a", ROW)

        def full(_: object) -> sqlite3.Connection:
            raise sqlite3.OperationalError("disk I/O error")

        monkeypatch.setattr("router.db.store._open_file", full)
        async with Store(path) as another:
            assert not another.is_persistent
            assert await another.rows(ROWS) == {"a": ROW}
            await another.delete(ROWS, "a")
            assert await another.rows(ROWS) == {}


async def test_what_sqlite_does_not_take_is_told_and_costs_neither_the_caller_nor_the_file(path, caplog):
    async with Store(path) as store:
        await store.put(ROWS, "\udcff#1", ROW)  # the name of a file that is no Unicode
        await store.put(ROWS, "late#1", ROW, 1 << 70)
        await store.put(ROWS, "a", ROW)
        assert await store.rows(ROWS) == {"a": ROW}
        assert store.is_persistent, "another record is kept in the file as before"
    assert caplog.text.count("not kept in") == 2


async def test_a_damaged_file_that_cannot_be_moved_aside_leaves_a_store_in_memory(path, monkeypatch, caplog):
    path.write_bytes(b"no database" * 1000)

    def cannot(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "replace", cannot)
    async with Store(path) as store:
        assert not store.is_persistent
        await store.put(ROWS, "a", ROW)
        assert await store.rows(ROWS) == {"a": ROW}
    assert "Permission denied" in caplog.text


async def test_a_return_to_the_file_that_fails_ends_neither_the_store_nor_its_owner(
    path, monkeypatch, caplog
):
    monkeypatch.setattr("router.db.store.RETURN_SECONDS", 0.01)
    async with Store(path) as store:
        with monkeypatch.context() as patch:
            patch.setattr(store, "_return", lambda: 1 / 0)
            store.is_persistent = False
            await until(lambda: "cannot return" in caplog.text)
        await until(lambda: store.is_persistent)


async def test_a_database_that_hangs_does_not_hold_up_the_end_of_the_store(path, monkeypatch):
    monkeypatch.setattr("router.db.store.CLOSE_SECONDS", 0.1)
    is_over = threading.Event()
    async with asyncio.timeout(20), Store(path) as store:
        hanging = asyncio.ensure_future(store._in_thread(lambda: is_over.wait(60)))
        await asyncio.sleep(0)
    is_over.set()
    await hanging
