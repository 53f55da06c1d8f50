"""What the models are and what they take on the disk: for people who look after a machine."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path

import msgspec
from aiohttp import web

from router.admin.answer import json_response
from router.admin.context import CONTEXT, Known
from router.admin.listing import Card
from router.admin.route import Route
from router.config import Config, models_dirs
from router.downloads.layout import RepoFolder
from router.models.catalog import CatalogEntry
from router.scheduler.types import ModelName


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


async def inventory(request: web.Request) -> web.Response:
    """Every model, hidden ones too, with its files; looked up on the disk now."""
    context = request.app[CONTEXT]
    cache = context.downloads.cache
    return json_response(await asyncio.to_thread(take, context.known, context.config, cache))


def take(known: Known, config: Config, cache: Path) -> Inventory:
    """Blocks on the disk."""
    entries = known.catalog.models
    sizes = {entry.id: {real: size for real, size, _ in entry.stamps} for entry in entries}
    users: dict[str, int] = {}
    for real in (real for files in sizes.values() for real in files):
        users[real] = users.get(real, 0) + 1
    items = []
    for entry in entries:
        own = sizes[entry.id]
        shared = sum(size for real, size in own.items() if users[real] > 1)
        items.append(_item(entry, known.cards.by_name.get(entry.id), sum(own.values()), shared))
    all_files = {real: size for files in sizes.values() for real, size in files.items()}
    folders = [*models_dirs(config), *([cache] if config.paths.hf_cache else [])]
    unfinished = list(_unfinished(cache)) if config.paths.hf_cache else []
    return Inventory(items, _disks(folders, all_files), unfinished, sum(all_files.values()))


def _item(entry: CatalogEntry, card: Card | None, size: int, shared_bytes: int) -> Item:
    meta = card.meta if card is not None else None
    return Item(
        id=entry.id,
        source=entry.source,
        files=list(_files(entry)),
        size=size,
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
            yield StoredFile(str(file), role, _size(file))


def _size(file: Path) -> int | None:
    try:
        return file.stat().st_size
    except OSError:
        return None


def _disks(folders: Iterable[Path], files: dict[str, int]) -> list[Disk]:
    """One for each file system. A folder that does not exist yet is where its parent is."""
    found: dict[int, list[Path]] = {}
    for folder in folders:
        there = next(one for one in (folder, *folder.parents) if one.exists())
        found.setdefault(there.stat().st_dev, []).append(folder)
    used: dict[int, int] = {}
    for real, size in files.items():
        with suppress(OSError):
            device = Path(real).stat().st_dev
            used[device] = used.get(device, 0) + size
    disks = []
    for device, ones in found.items():
        there = next(one for one in (ones[0], *ones[0].parents) if one.exists())
        usage = shutil.disk_usage(there)
        disks.append(Disk([str(one) for one in ones], usage.total, usage.free, used.get(device, 0)))
    return disks


def _unfinished(cache: Path) -> Iterator[Unfinished]:
    try:
        folders = sorted(one.name for one in cache.iterdir() if one.name.startswith("models--"))
    except OSError:
        return
    for folder in folders:
        repo = folder.removeprefix("models--").replace("--", "/", 1)
        for file, size in RepoFolder(cache, repo).partials().items():
            yield Unfinished(repo, str(file), size)


ROUTES = (
    Route(
        "GET",
        "/models/inventory",
        inventory,
        summary="Every model with its files, and what they take on the disk",
        answer=Inventory,
    ),
)
