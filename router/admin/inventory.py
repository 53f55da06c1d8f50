"""What the models are and what they take on the disk: for people who look after a machine."""

from __future__ import annotations

import asyncio
import shutil
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Final

import msgspec
from aiohttp import web

from router.admin.answer import json_response
from router.admin.context import CONTEXT, Known
from router.admin.listing import Card
from router.admin.route import Routes
from router.config import Config, models_dirs
from router.downloads.layout import RepoFolder, nearest_folder, size_of
from router.models.catalog import CatalogEntry
from router.scheduler.types import ModelName

ROUTES: Final = Routes()


class StoredFile(msgspec.Struct, frozen=True):
    """`role`: model, projector, draft or adapter. `size` None: it is gone."""

    path: str
    role: str
    size: int | None


class Item(msgspec.Struct, frozen=True):
    """One model. `size` is what its files take together; `shared_bytes` of them are other models', too."""

    id: ModelName
    source: str
    files: list[StoredFile]
    size: int
    shared_bytes: int
    quantisation: str | None
    parameters: int | None
    ctx_train: int | None
    ctx_size: int | None
    architecture: str | None
    modalities: tuple[str, ...]
    can_remove: bool
    hidden: bool
    error: str | None


class Disk(msgspec.Struct, frozen=True):
    """A file system with folders of models: `used_by_models` counts what several models share once."""

    folders: list[str]
    total: int
    free: int
    used_by_models: int


class Unfinished(msgspec.Struct, frozen=True):
    """What a download that was broken off has left; the same download goes on from there."""

    repo: str
    file: str
    size: int


class Inventory(msgspec.Struct, frozen=True):
    models: list[Item]
    disks: list[Disk]
    unfinished: list[Unfinished]
    total_size: int


@ROUTES.add(
    "GET",
    "/models/inventory",
    summary="Every model with its files, and what they take on the disk",
    answer=Inventory,
)
async def inventory(request: web.Request) -> web.Response:
    """Every model, hidden ones too, with its files; looked up on the disk now."""
    context = request.app[CONTEXT]
    cache = context.downloads.cache if context.config.paths.hf_cache else None
    return json_response(await asyncio.to_thread(_taken, context.known, context.config, cache))


def _taken(known: Known, config: Config, cache: Path | None) -> Inventory:
    """Blocks on the disk."""
    entries = known.catalog.models
    users = Counter(real for entry in entries for real, _, _ in entry.stamps)
    items = []
    for entry in entries:
        shared_bytes = sum(size for real, size, _ in entry.stamps if users[real] > 1)
        items.append(_item(entry, known.cards.by_name.get(entry.id), shared_bytes))
    sizes = {real: size for entry in entries for real, size, _ in entry.stamps}
    folders = [*models_dirs(config), *([cache] if cache is not None else [])]
    unfinished = list(_unfinished(cache)) if cache is not None else []
    return Inventory(items, _disks(folders, sizes), unfinished, sum(sizes.values()))


def _item(entry: CatalogEntry, card: Card | None, shared_bytes: int) -> Item:
    meta = card.meta if card is not None else None
    return Item(
        id=entry.id,
        source=entry.source,
        files=list(_files(entry)),
        size=sum(size for _, size, _ in entry.stamps),
        shared_bytes=shared_bytes,
        quantisation=meta.ftype if meta is not None else None,
        parameters=meta.n_params if meta is not None else None,
        ctx_train=meta.n_ctx_train if meta is not None else None,
        ctx_size=meta.n_ctx if meta is not None else None,
        architecture=entry.architecture,
        modalities=card.architecture.input_modalities if card is not None else (),
        can_remove=entry.removable,
        hidden=entry.hidden,
        error=entry.error,
    )


def _files(entry: CatalogEntry) -> Iterator[StoredFile]:
    roles = [
        *(("model", file) for file in entry.files),
        ("projector", entry.mmproj),
        ("draft", entry.preset.draft_model),
        *(("adapter", file) for file in entry.preset.lora),
    ]
    for role, file in roles:
        if file is not None:
            yield StoredFile(str(file), role, size_of(file))


def _disks(folders: Iterable[Path], sizes: Mapping[str, int]) -> list[Disk]:
    """One for each file system. A folder that does not exist yet is where its parent is."""
    by_device: defaultdict[int, list[Path]] = defaultdict(list)
    for folder in folders:
        by_device[nearest_folder(folder).stat().st_dev].append(folder)
    used: Counter[int] = Counter()
    for real, size in sizes.items():
        try:
            used[Path(real).stat().st_dev] += size
        except OSError:  # it was deleted meanwhile
            continue
    disks = []
    for device, there in by_device.items():
        usage = shutil.disk_usage(nearest_folder(there[0]))
        disks.append(Disk([str(folder) for folder in there], usage.total, usage.free, used[device]))
    return disks


def _unfinished(cache: Path) -> Iterator[Unfinished]:
    # Not by huggingface_hub's `scan_cache_dir`, which reads every snapshot as well (0.3 s and 9 MiB for 500
    # repositories of 12 files; this takes 17 ms), and would have to run in a process of its own.
    for folder in sorted(cache.glob("models--*")):
        repo = folder.name.removeprefix("models--").replace("--", "/", 1)
        for file, size in RepoFolder(cache, repo).partials().items():
            yield Unfinished(repo, str(file), size)
