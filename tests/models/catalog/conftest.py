"""Folders and caches to look for models in, and nothing of whoever runs the tests."""

from __future__ import annotations

import os
import struct
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import pytest

from router.config import Config, PathsConfig

VARIABLES = (
    "LLAMA_CACHE", "HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "HF_HOME", "XDG_CACHE_HOME", "XDG_DATA_HOME",
)  # fmt: skip
COMMIT = "0123456789abcdef0123456789abcdef01234567"


def gguf(version: int = 3, **keys: str | int) -> bytes:
    """The header of a GGUF file without tensors; `general__name` is the key general.name."""
    data = b"GGUF" + struct.pack("<IQQ", version, 0, len(keys))
    for key, value in keys.items():
        name = key.replace("__", ".").encode()
        data += struct.pack("<Q", len(name)) + name
        if isinstance(value, str):
            data += struct.pack("<IQ", 8, len(value.encode())) + value.encode()
        else:
            data += struct.pack("<II", 4, value)
    return data


class Disk:
    """Writes models where they are looked for. `models` is the only folder of models."""

    def __init__(self, root: Path) -> None:
        self.models = root / "models"
        self.cache = root / "cache"
        self.models.mkdir()

    @property
    def config(self) -> Config:
        return Config(paths=PathsConfig(models_dirs=(self.models,)))

    def with_models(self, models: Mapping[str, Mapping[str, object]]) -> Config:
        return replace(self.config, models=models)

    def write(self, *names: str, content: bytes | None = None) -> None:
        """Files in the folder of models; by default models of a few bytes."""
        for name in names:
            path = self.models / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(gguf() if content is None else content)

    def download(self, repo: str, *names: str, commit: str = COMMIT, branch: str = "main") -> Path:
        """Files of a repository as the Hugging Face cache keeps them: blobs, and links to them."""
        folder = self.cache / f"models--{repo.replace('/', '--')}"
        (folder / "refs").mkdir(parents=True, exist_ok=True)
        (folder / "refs" / branch).write_text(commit)
        (folder / "blobs").mkdir(exist_ok=True)
        snapshot = folder / "snapshots" / commit
        for name in names:
            blob = folder / "blobs" / name.encode().hex()
            blob.write_bytes(gguf(general__name=name))
            link = snapshot / name
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(os.path.relpath(blob, link.parent))
        return snapshot


@pytest.fixture
def disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Disk:
    for variable in VARIABLES:
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    made = Disk(tmp_path)
    monkeypatch.setenv("LLAMA_CACHE", str(made.cache))
    return made


@pytest.fixture
def header() -> Callable[..., bytes]:
    return gguf
