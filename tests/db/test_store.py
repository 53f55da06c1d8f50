"""A real sqlite file: what is written is read again, and nothing that happens to the disk stops the store."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import math
import os
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from router.db.store import (
    _MIGRATIONS,
    SCHEMA_VERSION,
    LearnedFootprint,
    LoadSeconds,
    ProcessRecord,
    Store,
)
from router.ids import Definition
from router.scheduler.types import Placement

PLACEMENT = Placement(
    "local", {"local/cuda:GPU-1": 5 << 30, "local/host": 7}, ("local/cuda:GPU-1",), ("-ngl", "9"), 2
)
RECORD = ProcessRecord(
    "qwen3-8b#4",
    "qwen3-8b",
    Definition("definition"),
    PLACEMENT,
    "/run/a.sock",
    "/state/a.log",
    pid=17,
    start_time=12345,
    boot_id="boot",
    argv_hash="hash",
    is_ready=True,
    started_at=1000.5,
)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "router.sqlite"


async def test_a_record_comes_back_as_it_was_written(path):
    async with Store(path) as store:
        await store.put_process(RECORD)
    async with Store(path) as store:
        assert await store.processes() == (RECORD,)


async def test_a_record_is_replaced_and_forgotten_by_its_instance(path):
    async with Store(path) as store:
        await store.put_process(dataclasses.replace(RECORD, pid=None, start_time=None, is_ready=False))
        await store.put_process(RECORD)
        await store.put_process(dataclasses.replace(RECORD, instance="older#1", started_at=1.0))
        assert [record.instance for record in await store.processes()] == ["older#1", "qwen3-8b#4"]
        await store.delete_process("older#1")
        await store.delete_process("nobody#1")
        assert await store.processes() == (RECORD,)


async def test_load_times_follow_what_is_measured_now(path):
    async with Store(path) as store:
        for seconds in (10.0, 20.0):
            await store.put_load_time(Definition("d"), seconds)
        assert (await store.load_times())[Definition("d")].seconds == 15.0
        for _ in range(20):
            await store.put_load_time(Definition("d"), 2.0)
        assert (await store.load_times())[Definition("d")].seconds == pytest.approx(2.0, abs=0.1)
        assert (await store.load_times())[Definition("d")].count == 22
        await store.forget_load_times(older_than=time.time() - 60)
        assert (await store.load_times())[Definition("d")].count == 22
        await store.forget_load_times(older_than=time.time() + 60)
        assert not await store.load_times()


async def test_seconds_of_loads_are_known_by_key_state_and_mode_also_where_one_does_not_work(path):
    usual, never = LoadSeconds(20.5, 3, 100.0), LoadSeconds(math.inf, 1, 200.0)
    async with Store(path) as store:
        await store.put_load_seconds("key", "warm", "mmap", LoadSeconds(30.0, 2, 50.0))
        await store.put_load_seconds("key", "warm", "mmap", usual)
        await store.put_load_seconds("key", "cold", "none", never)
    async with Store(path) as store:
        known = {("key", "warm", "mmap"): usual, ("key", "cold", "none"): never}
        assert await store.load_seconds() == known
        await store.forget_load_seconds(older_than=150.0)
        assert set(await store.load_seconds()) == {("key", "cold", "none")}


async def test_footprints_are_known_by_key_and_shape(path):
    files = (("/models/a.gguf", 5 << 30, 17),)
    learned = LearnedFootprint((5 << 30, None), (6 << 30, 1), requests=3, trials=2, files=files)
    async with Store(path) as store:
        await store.put_footprint("key", "2x24G", learned)
        await store.put_footprint("key", "1x48G", LearnedFootprint((11 << 30,), updated_at=10.0))
        await store.put_footprint("key", "host", LearnedFootprint((1 << 30,)))
    async with Store(path) as store:
        footprints = await store.footprints()
        assert footprints["key", "2x24G"] == learned
        assert list(footprints)[-1] == ("key", "1x48G"), "the one used last comes first"
        await store.forget_footprint("key", "host")
        await store.forget_footprint("key", "never heard of")
        await store.forget_footprints(older_than=11.0)
        assert set(await store.footprints()) == {("key", "2x24G")}


@pytest.mark.parametrize(
    "damage",
    [
        "peak = 'x'",
        "peak = '[-1]'",
        "peak = '[1e300]'",
        "peak = '7'",
        "floor = '[1, 2, 3]'",
        "floor = '[true]'",
        "files = '[[1]]'",
        "requests = -1",
    ],
)
async def test_a_footprint_that_makes_no_sense_is_left_out(path, damage):
    async with Store(path) as store:
        await store.put_footprint("key", "good", LearnedFootprint((1,)))
        await store.put_footprint("key", "bad", LearnedFootprint((1,)))
        await store._in_thread(
            lambda: store._execute(f"UPDATE footprints SET {damage} WHERE shape = 'bad'", ())
        )
        assert set(await store.footprints()) == {("key", "good")}


async def test_an_older_file_is_brought_up_to_date_and_keeps_its_children(path):
    with sqlite3.connect(path) as database:
        database.executescript(f"{_MIGRATIONS[0]} PRAGMA user_version = 1;")
    database.close()
    async with Store(path) as store:
        await store.put_process(RECORD)
        await store.put_footprint("key", "shape", LearnedFootprint((1,)))
        assert store.is_persistent and not list(path.parent.glob("*.aside-*"))
    async with Store(path) as store:
        assert await store.processes() == (RECORD,)
        assert set(await store.footprints()) == {("key", "shape")}


async def test_what_was_written_survives_the_death_of_the_writer(path):
    script = f"""
import asyncio, os, signal
from pathlib import Path
from router.db.store import Store
from tests.db.test_store import RECORD
async def main():
    async with Store(Path({str(path)!r})) as store:
        await store.put_process(RECORD)
        os.kill(os.getpid(), signal.SIGKILL)
asyncio.run(main())
"""
    died = subprocess.run([sys.executable, "-c", script], cwd=Path(__file__).parents[1])
    assert died.returncode == -signal.SIGKILL
    async with Store(path) as store:
        assert await store.processes() == (RECORD,)


async def test_the_file_is_private(path):
    async with Store(path) as store:
        await store.put_process(RECORD)
        for file in path.parent.iterdir():
            assert file.stat().st_mode & 0o777 == 0o600, file


@pytest.mark.parametrize("damage", ["no database", "torn", "newer"])
async def test_a_file_that_cannot_be_used_is_moved_aside_and_a_new_one_begun(path, damage, caplog):
    async with Store(path) as store:
        for i in range(200):
            await store.put_process(dataclasses.replace(RECORD, instance=f"a#{i}"))
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
        assert await store.processes() == ()
        await store.put_process(RECORD)
    async with Store(path) as store:
        assert await store.processes() == (RECORD,)
    (aside,) = path.parent.glob("router.sqlite.aside-*")
    assert aside.read_bytes() == before
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert str(path) in caplog.text


async def test_a_folder_that_cannot_be_written_leaves_a_store_in_memory(tmp_path, caplog):
    (tmp_path / "file").touch()
    async with Store(tmp_path / "file" / "router.sqlite") as store:
        assert not store.is_persistent
        await store.put_process(RECORD)
        assert await store.processes() == (RECORD,)
    assert [record.levelname for record in caplog.records] == ["WARNING"]


async def test_a_disk_that_fills_up_is_told_once_and_nothing_known_is_lost(path, caplog):
    async with Store(path) as store:
        await store.put_process(RECORD)
        await store._in_thread(lambda: store._execute("PRAGMA max_page_count = 1", ()))
        for i in range(300):
            await store.put_process(dataclasses.replace(RECORD, instance=f"filling#{i}"))
        assert not store.is_persistent
        records = await store.processes()
        assert len(records) == 301
        assert RECORD in records
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "full" in caplog.text


async def test_a_file_that_turns_read_only_is_told_once(path, caplog):
    async with Store(path) as store:
        await store.put_process(RECORD)
        await store._in_thread(lambda: store._execute("PRAGMA query_only = 1", ()))
        await store.put_load_time(Definition("d"), 1.0)
        await store.put_load_time(Definition("d"), 1.0)
        assert (await store.load_times())[Definition("d")].count == 2
        assert await store.processes() == (RECORD,)
    assert [record.levelname for record in caplog.records] == ["WARNING"]


async def test_a_record_of_another_program_is_left_out(path):
    async with Store(path) as store:
        await store.put_process(RECORD)
        await store.put_process(dataclasses.replace(RECORD, instance="odd#1"))
        await store._in_thread(
            lambda: store._execute("UPDATE processes SET placement = '[]' WHERE instance = 'odd#1'", ())
        )
        assert await store.processes() == (RECORD,)


async def test_a_store_without_a_path_lives_in_memory():
    async with Store(None) as store:
        await store.put_process(RECORD)
        assert await store.processes() == (RECORD,)
        assert not store.is_persistent


async def test_two_stores_on_one_file_do_not_block_each_other_for_long(path):
    async with Store(path) as first, Store(path) as second:
        for i in range(20):
            await first.put_load_time(Definition("a"), float(i))
            await second.put_load_time(Definition("b"), float(i))
        assert first.is_persistent
        assert second.is_persistent
        assert {str(name): time.count for name, time in (await first.load_times()).items()} == {
            "a": 20,
            "b": 20,
        }


async def test_downloads_come_back_until_they_are_forgotten(path):
    async with Store(path) as store:
        await store.put_download("a", "first")
        await store.put_download("b", "second")
        await store.put_download("a", "third")
    async with Store(path) as store:
        assert list((await store.downloads()).items()) == [("b", "second"), ("a", "third")]
        await store.delete_download("a")
        await store.delete_download("nobody")
        assert await store.downloads() == {"b": "second"}


async def test_it_returns_to_its_file_as_soon_as_that_takes_it(path, monkeypatch, caplog):
    monkeypatch.setattr("router.db.store.RETURN_SECONDS", 0.02)
    async with Store(path) as store:
        await store.put_process(RECORD)
        await store.put_process(dataclasses.replace(RECORD, instance="gone#1"))
        await store.put_footprint("key", "host", LearnedFootprint((1,)))
        with path.with_name("router.sqlite").open("rb") as file, contextlib.closing(_locked(path)):
            assert file.read(6) == b"SQLite"
            await store.put_load_time(Definition("d"), 1.0)
            assert not store.is_persistent
            await store.delete_process("gone#1")
            await store.put_process(dataclasses.replace(RECORD, instance="new#1"))
        async with asyncio.timeout(20):
            while not store.is_persistent:
                await asyncio.sleep(0.01)
        await store.put_process(dataclasses.replace(RECORD, instance="later#1"))
        assert store.is_persistent
        with contextlib.closing(sqlite3.connect(path)) as reader:
            found = {name for (name,) in reader.execute("SELECT instance FROM processes")}
            assert found == {RECORD.instance, "new#1", "later#1"}
            assert reader.execute("SELECT definition FROM load_times").fetchall() == [("d",)]
            assert reader.execute("SELECT key FROM footprints").fetchall() == [("key",)]
    assert [record.levelname for record in caplog.records] == ["WARNING", "WARNING"]
    assert "can be used again" in caplog.text


async def _until_persistent(store: Store) -> None:
    async with asyncio.timeout(20):
        while not store.is_persistent:
            await asyncio.sleep(0.01)


async def test_a_file_that_is_damaged_while_it_is_used_is_replaced_and_what_comes_is_kept(
    path, monkeypatch, caplog
):
    monkeypatch.setattr("router.db.store.RETURN_SECONDS", 0.05)
    async with Store(path) as store:
        for number in range(200):
            await store.put_process(dataclasses.replace(RECORD, instance=f"a#{number}"))
        with contextlib.closing(sqlite3.connect(path)) as other:  # what the store has read is no longer valid
            other.execute("DELETE FROM processes WHERE instance = 'a#1'")
            other.commit()
            other.execute("PRAGMA wal_checkpoint(TRUNCATE)")
            with path.open("rb+") as file:
                file.seek(100)
                file.write(b"garbage" * 4000)
        for number in range(3):
            await store.put_process(dataclasses.replace(RECORD, instance=f"new#{number}"))
        known = {record.instance for record in await store.processes()}
        assert {"new#1", "new#2"} <= known
        await _until_persistent(store)
        with contextlib.closing(sqlite3.connect(path)) as reader:
            assert {name for (name,) in reader.execute("SELECT instance FROM processes")} == known
    assert "Traceback" not in caplog.text


async def test_one_that_was_handed_over_does_not_write_its_old_records_over_those_of_the_next(
    path, monkeypatch
):
    monkeypatch.setattr("router.db.store.RETURN_SECONDS", 0.01)
    async with Store(path) as former:
        with contextlib.closing(_locked(path)):
            await former.put_process(RECORD)
        assert not former.is_persistent
        former.hand_over()
        async with Store(path) as following:
            await following.put_process(dataclasses.replace(RECORD, instance="later#1"))
            await asyncio.sleep(0.1)
            with contextlib.closing(sqlite3.connect(path)) as reader:
                assert reader.execute("SELECT instance FROM processes").fetchall() == [("later#1",)]


def _locked(path: Path) -> sqlite3.Connection:
    """Somebody with a shell, who forgot that he writes."""
    somebody = sqlite3.connect(path, isolation_level=None)
    somebody.execute("BEGIN IMMEDIATE")
    return somebody


async def test_a_file_that_is_locked_at_the_start_is_waited_for(path):
    async with Store(path) as store:
        await store.put_process(RECORD)
    with contextlib.closing(sqlite3.connect(path, isolation_level=None, check_same_thread=False)) as somebody:
        somebody.execute("PRAGMA locking_mode = EXCLUSIVE")
        somebody.execute("BEGIN EXCLUSIVE")
        asyncio.get_running_loop().call_later(0.3, somebody.close)
        async with Store(path) as store:
            assert store.is_persistent
            assert await store.processes() == (RECORD,)


async def test_what_is_in_a_file_that_takes_nothing_at_the_start_is_known_all_the_same(path, monkeypatch):
    """A full disk must not cost the children of a router that was killed on it."""
    async with Store(path) as store:
        await store.put_process(RECORD)

        def full(_: object) -> sqlite3.Connection:
            raise sqlite3.OperationalError("disk I/O error")

        monkeypatch.setattr("router.db.store._open_file", full)
        async with Store(path) as another:
            assert not another.is_persistent
            assert await another.processes() == (RECORD,)
            await another.delete_process(RECORD.instance)
            assert await another.processes() == ()


async def test_pins_come_back_until_they_are_taken_back(path):
    async with Store(path) as store:
        await store.put_pin("a", True)
        await store.put_pin("b", True)
        await store.put_pin("b", False)
        await store.put_pin("c", True)
        await store.put_pin("c", None)
        await store.put_pin("nobody", None)
    async with Store(path) as store:
        assert await store.pins() == {"a": True, "b": False}


async def test_what_sqlite_does_not_take_is_told_and_costs_neither_the_caller_nor_the_file(path, caplog):
    odd = [
        dataclasses.replace(RECORD, instance="\udcff#1"),  # the name of a file that is no Unicode
        dataclasses.replace(RECORD, instance="large#1", pid=1 << 70),
    ]
    async with Store(path) as store:
        for record in odd:
            await store.put_process(record)
        await store.put_process(RECORD)
        assert await store.processes() == (RECORD,)
        assert store.is_persistent, "another record is kept in the file as before"
    assert caplog.text.count("not kept in") == 2


async def test_a_damaged_file_that_cannot_be_moved_aside_leaves_a_store_in_memory(path, monkeypatch, caplog):
    path.write_bytes(b"no database" * 1000)

    def cannot(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "replace", cannot)
    async with Store(path) as store:
        assert not store.is_persistent
        await store.put_process(RECORD)
        assert await store.processes() == (RECORD,)
    assert "Permission denied" in caplog.text


async def test_a_return_to_the_file_that_fails_ends_neither_the_store_nor_its_owner(
    path, monkeypatch, caplog
):
    monkeypatch.setattr("router.db.store.RETURN_SECONDS", 0.01)
    async with Store(path) as store:
        with monkeypatch.context() as patch:
            patch.setattr(store, "_return", lambda: 1 / 0)
            store.is_persistent = False
            while "cannot return" not in caplog.text:
                await asyncio.sleep(0.005)
        while not store.is_persistent:
            await asyncio.sleep(0.005)


async def test_a_database_that_hangs_does_not_hold_up_the_end_of_the_store(path, monkeypatch):
    monkeypatch.setattr("router.db.store.CLOSE_SECONDS", 0.1)
    is_over = threading.Event()
    async with asyncio.timeout(20), Store(path) as store:
        hanging = asyncio.ensure_future(store._in_thread(lambda: is_over.wait(60)))
        await asyncio.sleep(0)
    is_over.set()
    await hanging
