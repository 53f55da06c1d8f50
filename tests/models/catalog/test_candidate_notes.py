"""A place that cannot be read for a moment has not lost its models, and running out of files is no answer."""

from __future__ import annotations

import builtins
import errno
import io
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from router.config import Config, PathsConfig
from router.errors import Unavailable
from router.models.catalog import Catalog
from tests.models.catalog.conftest import COMMIT
from tests.scarcity import at_each_moment


@pytest.fixture
def fails(monkeypatch: pytest.MonkeyPatch) -> Callable[[Path, int], None]:
    """Makes every look at a place, and at what is below it, end with an error of the disk."""

    def at(place: Path, number: int) -> None:
        def failing(call: Callable[..., Any]) -> Callable[..., Any]:
            def called(path: Any = ".", *args: Any, **kwargs: Any) -> Any:
                if isinstance(path, str | os.PathLike) and Path(path).is_relative_to(place):
                    raise OSError(number, os.strerror(number), str(path))
                return call(path, *args, **kwargs)

            return called

        for module, name in ((builtins, "open"), (io, "open"), (os, "listdir"), (os, "scandir")):
            monkeypatch.setattr(module, name, failing(getattr(module, name)))

    return at


def ids(catalog: Catalog) -> list[str]:
    return sorted(catalog.entries)


def test_when_files_run_out_at_any_moment_all_models_are_told_or_the_look_has_failed(disk):
    disk.write("a.gguf", "b/c.gguf", "d/e/f.gguf")
    disk.download("o/r", "r-Q4_0.gguf")
    *without, whole = at_each_moment(lambda: Catalog.scan(disk.config))
    assert ids(Catalog.scan(disk.config)) == ["a", "b", "d/e", "o/r:Q4_0"]
    assert whole == Catalog.scan(disk.config)
    assert len(without) > 12
    for error in without[len(without) - 10 :]:  # those before are about files of presets
        assert isinstance(error, Unavailable)
        assert "ulimit -n" in error.message


@pytest.mark.parametrize("number", [errno.EIO, errno.EACCES, errno.ESTALE])
def test_models_of_a_folder_that_cannot_be_read_are_kept_as_they_were(disk, fails, number):
    disk.write("a.gguf", "b/c.gguf", "d/e/f.gguf")
    before = Catalog.scan(disk.config)
    fails(disk.models / "d", number)
    now = Catalog.scan(disk.config)
    assert ids(now) == ["a", "b"]
    kept = now.keeping(before)
    assert kept.entries["d/e"] == before.entries["d/e"]
    assert (ids(kept), kept.kept) == (["a", "b", "d/e"], frozenset({"d/e"}))
    assert os.strerror(number) in kept.warnings[0]
    assert kept.warnings[-1] == "kept as they were, as they cannot be read now: d/e"
    assert kept.resolve("d/e") == before.entries["d/e"]


def test_so_is_a_model_whose_file_cannot_be_read(disk, fails):
    disk.write("a.gguf", "b.gguf")
    before = Catalog.scan(disk.config)
    fails(disk.models / "b.gguf", errno.EIO)
    now = Catalog.scan(disk.config)
    assert now.entries["b"].error is not None
    assert now.keeping(before).entries == before.entries


@pytest.mark.parametrize("part", ["refs", f"snapshots/{COMMIT}", ""])
def test_so_is_a_repository_of_the_cache(disk, fails, part):
    disk.download("o/r", "r-Q4_0.gguf")
    disk.download("o/s", "s-Q4_0.gguf")
    before = Catalog.scan(disk.config)
    fails(disk.cache / "models--o--r" / part, errno.EIO)
    now = Catalog.scan(disk.config)
    assert "o/s:Q4_0" in now.entries
    assert now.keeping(before).entries.keys() == before.entries.keys()
    assert now.keeping(before).entries["o/r:Q4_0"].error is None


def test_so_is_everything_in_a_cache_or_a_folder_that_cannot_be_read_as_a_whole(disk, fails):
    disk.write("a.gguf")
    disk.download("o/r", "r-Q4_0.gguf")
    before = Catalog.scan(disk.config)
    fails(disk.models, errno.EIO)
    fails(disk.cache, errno.EIO)
    now = Catalog.scan(disk.config)
    assert ids(now) == []
    assert ids(now.keeping(before)) == ["a", "o/r:Q4_0"]


def test_what_is_really_gone_is_gone(disk):
    disk.write("a.gguf", "b/c.gguf", "d.gguf")
    snapshot = disk.download("o/r", "r-Q4_0.gguf")
    before = Catalog.scan(disk.config)
    (disk.models / "a.gguf").unlink()
    (disk.models / "b/c.gguf").unlink()
    (disk.models / "b").rmdir()
    (snapshot / "r-Q4_0.gguf").unlink()
    now = Catalog.scan(disk.config)
    assert now.unread == ()
    assert ids(now.keeping(before)) == ["d"]


def test_only_models_that_lie_there_are_kept_and_only_those_that_could_be_run(disk, fails):
    disk.write("a.gguf", "b/c.gguf", "b2/x.gguf")
    disk.write("broken/c.gguf", content=b"nothing")
    before = Catalog.scan(disk.config)
    (disk.models / "b2/x.gguf").unlink()
    fails(disk.models / "b", errno.EIO)
    fails(disk.models / "broken", errno.EIO)
    assert ids(Catalog.scan(disk.config).keeping(before)) == ["a", "b"]


def test_a_default_folder_that_may_not_be_read_does_not_end_the_look(disk, fails, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    folder = tmp_path / "data/llama-router/models"
    folder.mkdir(parents=True)
    disk.download("o/r", "r-Q4_0.gguf")
    config = replace(Config(), paths=PathsConfig())
    fails(folder, errno.EACCES)
    catalog = Catalog.scan(config)
    assert (ids(catalog), catalog.unread) == (["o/r:Q4_0"], (folder,))
