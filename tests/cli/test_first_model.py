"""The first start of all."""

from __future__ import annotations

from pathlib import Path

import pytest

from router.cli.first_model import find_models
from router.config import Config, PathsConfig
from router.errors import StartupError
from tests.make_gguf import make_llama
from tests.models.catalog.conftest import gguf


def config_of(folder: Path) -> Config:
    return Config(paths=PathsConfig(models_dirs=(folder,), hf_cache=False))


def test_where_there_are_models_nothing_is_written_and_nothing_said(tmp_path: Path):
    make_llama(tmp_path / "mine.gguf", sparse=True)
    said: list[str] = []
    assert list(find_models(config_of(tmp_path), say=said.append).entries) == ["mine"]
    assert not said
    assert [path.name for path in tmp_path.iterdir()] == ["mine.gguf"]


def test_a_broken_model_is_a_model_too(tmp_path: Path):
    (tmp_path / "broken.gguf").write_bytes(b"GGUF")
    find_models(config_of(tmp_path), say=pytest.fail)
    assert [path.name for path in tmp_path.iterdir()] == ["broken.gguf"]


@pytest.mark.parametrize(
    "file", ["deep/er/Small.GGUF", "mmproj.gguf", "m-00002-of-00002.gguf", "a/imatrix.gguf", "x-dflash.gguf"]
)
def test_where_there_is_any_gguf_file_nothing_is_written(tmp_path: Path, file: str):
    path = tmp_path / file
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gguf())
    catalog = find_models(config_of(tmp_path), say=pytest.fail)
    assert [each for each in tmp_path.rglob("*") if each.is_file()] == [path]
    assert catalog.entries or catalog.warnings


def test_where_there_is_none_one_is_written_and_told_of_plainly(tmp_path: Path):
    said: list[str] = []
    catalog = find_models(config_of(tmp_path), say=said.append)
    (entry,) = catalog.entries.values()
    assert entry.error is None
    assert entry.path is not None
    (words,) = said
    assert str(entry.path) in words
    assert "NONSENSE" in words
    assert "curl -N http://127.0.0.1:8080/v1/chat/completions" in words
    assert f'"model":"{entry.id}"' in words
    assert "llama-router pull Qwen/" in words


def test_a_folder_that_was_named_and_is_not_there_is_not_made(tmp_path: Path):
    with pytest.raises(StartupError, match="does not exist"):
        find_models(config_of(tmp_path / "typo"), say=pytest.fail)
    assert not (tmp_path / "typo").exists()


def test_a_folder_that_cannot_be_written_to_is_named(tmp_path: Path):
    (tmp_path / "demo-nonsense.gguf").mkdir()  # also root cannot replace a folder by a file
    (tmp_path / "demo-nonsense.gguf" / "x").touch()
    with pytest.raises(StartupError, match=f"none can be written to {tmp_path}"):
        find_models(config_of(tmp_path), say=pytest.fail)
