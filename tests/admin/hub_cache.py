"""A router in a test whose models lie in a Hugging Face cache, and which looks at it again on a reload."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from router.admin import CONTEXT, Known
from router.config import ChildConfig, Config, PathsConfig, SchedulerConfig
from router.models.catalog import Catalog
from router.models.definitions import define
from router.scheduler.types import Device
from tests.admin.conftest import Api, info_of
from tests.admin.fake_pool import GIB, GPU

COMMIT = "c" * 40


def put(cache: Path, repo: str, path: str, model: Path, *, commit: str = COMMIT) -> Path:
    """A copy of `model` in the cache, at the commit of main."""
    folder = cache / f"models--{repo.replace('/', '--')}"
    blob = folder / "blobs" / (path.encode().hex()[:64].ljust(64, "0"))
    pointer = folder / "snapshots" / commit / path
    for one in (blob, pointer, folder / "refs" / "main"):
        one.parent.mkdir(parents=True, exist_ok=True)
    blob.write_bytes(model.read_bytes())
    pointer.symlink_to(os.path.relpath(blob, pointer.parent))
    (folder / "refs" / "main").write_text(commit)
    return pointer


def known_of(
    folder: Path,
    cache: Path,
    models: dict[str, Any],
    monkeypatch: Any,
    scheduler: SchedulerConfig = SchedulerConfig(),  # noqa: B008 - frozen
) -> tuple[Config, Known]:
    monkeypatch.setenv("LLAMA_CACHE", str(cache))
    config = Config(
        paths=PathsConfig(models_dirs=(folder,), hf_cache=True),
        models=models,
        child=ChildConfig(ctx_size=512),
        scheduler=scheduler,
    )
    catalog = Catalog.scan(config)
    devices = [Device(GPU, 24 * GIB, GIB, "NVIDIA H200"), Device("local/host", 64 * GIB, GIB, "host")]
    infos = {device.id: info_of(device) for device in devices}
    definitions = define(catalog, config, devices, infos, binary=Path("/opt/llama-server"), environ={})
    return config, Known.of(catalog, definitions)


class OverCache:
    """`api` is started; what is on the disk is what it knows after each reload."""

    def __init__(self, api: Api, folder: Path, monkeypatch: Any, models: dict[str, Any]) -> None:
        self.api = api
        self.cache = folder / "hub"
        self.folder = folder / "own"
        self.folder.mkdir()
        self._models = models
        self._monkeypatch = monkeypatch

    async def start(self) -> None:
        config, self.api.known = known_of(self.folder, self.cache, self._models, self._monkeypatch)
        await self.api.start()
        context = self.api.app[CONTEXT]
        context.config = config
        context.downloads.cache = self.cache
        context.reload = self.reload

    async def reload(self) -> None:
        context = self.api.app[CONTEXT]
        context.config, context.known = known_of(self.folder, self.cache, self._models, self._monkeypatch)

    async def names(self) -> list[str]:
        return [one["id"] for one in (await self.api.get("/models")).json()["data"]]
