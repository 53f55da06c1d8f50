"""Records of children come back as they were written, also those of a router of another version."""

from __future__ import annotations

import contextlib
import dataclasses
import sqlite3
import time
from pathlib import Path

import pytest

from router.app.parts import PINS
from router.db.store import Store, Table
from router.hosts.records import CHILDREN, LOAD_TIMES, ProcessRecord, keep_load_time, keep_record
from router.ids import Definition
from router.scheduler.types import Placement

PLACEMENT = Placement(
    "local", {"local/cuda:GPU-1": 5 << 30, "local/host": 7}, ("local/cuda:GPU-1",), ("-ngl", "9"), 2
)
RECORD = ProcessRecord(
    "qwen3-8b#4",
    "qwen3-8b",
    Definition("hash", '{"ctx_size": 7}'),
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
#: What router 0.1 wrote of RECORD.
OLD_FILE = """
CREATE TABLE processes (
    instance TEXT PRIMARY KEY, model TEXT NOT NULL, definition TEXT NOT NULL, placement TEXT NOT NULL,
    pid INTEGER, start_time INTEGER, boot_id TEXT NOT NULL, argv_hash TEXT NOT NULL, socket TEXT NOT NULL,
    log TEXT NOT NULL, health_path TEXT NOT NULL, is_ready INTEGER NOT NULL, started_at REAL NOT NULL
) STRICT;
INSERT INTO processes VALUES ('qwen3-8b#4', 'qwen3-8b', 'hash {"ctx_size": 7}',
    '{"host": "local", "footprint": {"local/cuda:GPU-1": 5368709120, "local/host": 7},
      "devices": ["local/cuda:GPU-1"], "args": ["-ngl", "9"], "tier": 2}',
    17, 12345, 'boot', 'hash', '/run/a.sock', '/state/a.log', '/health', 1, 1000.5);
INSERT INTO processes VALUES ('odd#1', 'odd', '', 'nonsense', NULL, NULL, '', '', '', '', '', 0, 0);
CREATE TABLE load_times (definition TEXT PRIMARY KEY, seconds REAL NOT NULL);
"""
OLD_FILE_6 = """
CREATE TABLE downloads (id TEXT PRIMARY KEY, job TEXT NOT NULL, updated_at REAL NOT NULL) STRICT;
INSERT INTO downloads VALUES ('a', '{"id": "a"}', 5.0);
CREATE TABLE pins (model TEXT PRIMARY KEY, pinned INTEGER NOT NULL) STRICT;
INSERT INTO pins VALUES ('yes', 1), ('no', 0);
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "router.sqlite"


async def test_a_record_comes_back_as_it_was_written(path):
    async with Store(path) as store:
        await keep_record(store, dataclasses.replace(RECORD, pid=None, start_time=None, is_ready=False))
        await keep_record(store, RECORD)
        await keep_record(store, dataclasses.replace(RECORD, instance="older#1", started_at=1.0))
    async with Store(path) as store:
        assert list(await store.rows(CHILDREN)) == ["older#1", RECORD.instance]
        await store.delete(CHILDREN, "older#1")
        assert await store.rows(CHILDREN) == {RECORD.instance: RECORD}


async def test_load_times_follow_what_is_measured_now(path):
    async with Store(path) as store:
        for seconds in (10.0, 20.0):
            await keep_load_time(store, Definition("d"), seconds)
        assert (await store.rows(LOAD_TIMES))[Definition("d")].seconds == 15.0
        for _ in range(20):
            await keep_load_time(store, Definition("d"), 2.0)
        assert (await store.rows(LOAD_TIMES))[Definition("d")].seconds == pytest.approx(2.0, abs=0.1)
        assert (await store.rows(LOAD_TIMES))[Definition("d")].count == 22
        await store.delete_old(LOAD_TIMES, older_than=time.time() - 60)
        assert (await store.rows(LOAD_TIMES))[Definition("d")].count == 22


@pytest.mark.parametrize("version", [1, 6])
async def test_an_older_file_is_brought_up_to_date_and_keeps_its_children(path, version):
    with contextlib.closing(sqlite3.connect(path)) as database:
        script = OLD_FILE + (OLD_FILE_6 if version == 6 else "")
        database.executescript(f"{script} PRAGMA user_version = {version};")
    for _ in range(2):
        async with Store(path) as store:
            assert await store.rows(CHILDREN) == {RECORD.instance: RECORD}
            assert await store.rows(LOAD_TIMES) == {}
            await keep_load_time(store, Definition("d"), 1.0)
            if version == 6:
                assert await store.rows(PINS) == {"yes": True, "no": False}
                assert await store.rows(Table("downloads", str, dict[str, str])) == {"a": {"id": "a"}}
            await store.delete(LOAD_TIMES, Definition("d"))
            assert store.is_persistent and not list(path.parent.glob("*.aside-*"))
