"""What was learned survives the router, and is forgotten when it is of no use any more."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

from router.db.store import Store
from router.memory.estimate.learning import FORGET_SECONDS, Learned
from router.models.catalog.candidate import stamp_of
from router.supervisor.calibration import kept as kept_module
from router.supervisor.calibration.kept import FOOTPRINTS, Footprint, Kept
from tests.waiting import until

ENTRY = ("key", "shape")
PEAK = 5 << 30
LEARNED = Learned((PEAK, 1 << 20), (), 3, 2)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "router.sqlite"


async def test_what_was_learned_is_known_after_a_new_start(path):
    async with Store(path) as store, Kept(store) as kept:
        kept.put(ENTRY, LEARNED, ())
    async with Store(path) as store, Kept(store) as kept:
        assert kept.get(ENTRY) == LEARNED
        assert kept.get(("key", "another shape")) is None


async def test_a_new_peak_is_written_while_the_router_runs(path):
    async with Store(path) as store, Kept(store) as kept:
        kept.put(ENTRY, LEARNED, ())
        await until(lambda: store.rows(FOOTPRINTS), holds=lambda found: ENTRY in found)


async def test_noise_is_not_worth_a_write_but_is_not_lost(path):
    async with Store(path) as store, Kept(store) as kept:
        kept.put(ENTRY, LEARNED, ())
        await kept.save()
        await until(lambda: store.rows(FOOTPRINTS), holds=lambda found: ENTRY in found)
        # One of another key that presses shows that the writer had its turn.
        noisy = Learned((PEAK + 1, 1 << 20), (), 4, 3)
        kept.put(ENTRY, noisy, ())
        assert not kept._pressing.is_set()
        grown = Learned((6 << 30, 1 << 20), (), 4, 0)
        kept.put(ENTRY, grown, ())
        assert kept._pressing.is_set()
        kept.put(ENTRY, noisy, ())
    async with Store(path) as store, Kept(store) as kept:
        assert kept.get(ENTRY) == noisy


async def test_many_changes_are_one_write(path, monkeypatch):
    writes = 0
    real = Store.put

    async def counted(*args):
        nonlocal writes
        writes += 1
        await real(*args)

    monkeypatch.setattr(Store, "put", counted)
    async with Store(path) as store, Kept(store) as kept:
        for size in range(1, 200):
            kept.put(ENTRY, Learned((size << 30,)), ())
        await until(lambda: store.rows(FOOTPRINTS), holds=lambda found: ENTRY in found)
        for size in range(200, 400):
            kept.put(ENTRY, Learned((size << 30,)), ())
    assert writes == 2
    async with Store(path) as store, Kept(store) as kept:
        assert kept.get(ENTRY) == Learned((399 << 30,))


async def test_what_was_never_seen_to_run_ends_with_the_router(path):
    async with Store(path) as store, Kept(store) as kept:
        kept.put(ENTRY, Learned((None,), (9 << 30,)), ())
        assert kept.get(ENTRY) is not None
    async with Store(path) as store, Kept(store) as kept:
        assert kept.get(ENTRY) is None


async def test_what_nobody_used_for_ninety_days_is_forgotten_and_use_keeps_it(path):
    now = time.time()
    async with Store(path) as store, Kept(store, now=lambda: now) as kept:
        kept.put(ENTRY, LEARNED, ())
        kept.put(("used", "shape"), LEARNED, ())
    later = now + 0.6 * FORGET_SECONDS
    async with Store(path) as store, Kept(store, now=lambda: later) as kept:
        kept.touch(("used", "shape"))
    latest = now + 1.1 * FORGET_SECONDS
    async with Store(path) as store, Kept(store, now=lambda: latest) as kept:
        assert kept.get(ENTRY) is None
        assert kept.get(("used", "shape")) == LEARNED
        assert set(await store.rows(FOOTPRINTS)) == {("used", "shape")}


@pytest.mark.parametrize(
    "damage",
    [
        ("peak", "x"),
        ("peak", [-1]),
        ("peak", [1e300]),
        ("peak", 7),
        ("floor", [1, 2, 3]),
        ("floor", [True]),
        ("requests", -1),
    ],
    ids=str,
)
async def test_a_footprint_that_makes_no_sense_is_left_out(path, damage):
    statement = "UPDATE rows SET value = json_set(value, ?, json(?)) WHERE key LIKE '%bad%'"
    row = (f"$.learned.{damage[0]}", json.dumps(damage[1]))
    async with Store(path) as store:
        await store.put(FOOTPRINTS, ("good", ""), Footprint(LEARNED))
        await store.put(FOOTPRINTS, ("bad", ""), Footprint(LEARNED))
        await store._in_thread(lambda: store._execute(statement, row))
        assert await store.rows(FOOTPRINTS) == {("good", ""): Footprint(LEARNED)}


@pytest.mark.parametrize("change", ["gone", "another"])
async def test_what_was_learned_of_a_file_ends_with_the_file(path, tmp_path, change):
    model, other = tmp_path / "model.gguf", tmp_path / "other.gguf"
    for file in (model, other):
        file.write_bytes(b"GGUF")
    stamps = {file: stamp_of(file) or ("", 0, 0) for file in (model, other)}
    async with Store(path) as store, Kept(store) as kept:
        kept.put(ENTRY, LEARNED, (stamps[model],))
        kept.put(("other", "shape"), LEARNED, (stamps[other],))
    match change:
        case "gone":
            model.unlink()
        case "another":
            model.write_bytes(b"GGUF, but longer")
    async with Store(path) as store, Kept(store) as kept:
        assert kept.get(ENTRY) is None
        assert kept.get(("other", "shape")) == LEARNED
        assert set(await store.rows(FOOTPRINTS)) == {("other", "shape")}


async def test_only_the_entries_used_last_are_kept(path, monkeypatch):
    monkeypatch.setattr(kept_module, "ENTRIES_MAX", 3)
    async with Store(path) as store:
        begin = time.time() - 100
        for i in range(6):
            await store.put(FOOTPRINTS, (f"key{i}", ""), Footprint(Learned((1,))), begin + i)
        async with Kept(store):
            pass
        assert set(await store.rows(FOOTPRINTS)) == {(f"key{i}", "") for i in (3, 4, 5)}


async def test_a_database_that_is_damaged_begins_anew(path, caplog):
    async with Store(path) as store, Kept(store) as kept:
        kept.put(ENTRY, LEARNED, ())
    path.write_bytes(b"this is no database\n" * 1000)
    async with Store(path) as store, Kept(store) as kept:
        assert kept.get(ENTRY) is None
        kept.put(ENTRY, LEARNED, ())
    async with Store(path) as store, Kept(store) as kept:
        assert kept.get(ENTRY) == LEARNED


async def test_a_store_that_fails_altogether_is_told_and_stops_nobody(path, monkeypatch, caplog):
    async def fail(*_):
        raise RuntimeError("the disk is on fire")

    async with Store(path) as store, Kept(store) as kept:
        with monkeypatch.context() as patch:
            patch.setattr(Store, "put", fail)
            kept.put(ENTRY, LEARNED, ())
            await until(lambda: "not kept any more" in caplog.text)
        assert kept.get(ENTRY) == LEARNED
