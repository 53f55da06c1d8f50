"""Models deleted from the Hugging Face cache."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from pathlib import Path

import msgspec
from aiohttp import web

from router.admin.answer import is_set, json_response
from router.admin.context import CONTEXT, Context
from router.admin.route import Access, Query, Route
from router.downloads.errors import InUse, NotRemovable
from router.errors import AmbiguousModel, InvalidRequest, ModelNotFound
from router.models.catalog import CatalogEntry


class Kept(msgspec.Struct, frozen=True):
    file: str
    reason: str


class Deleted(msgspec.Struct, frozen=True):
    id: str
    files: tuple[str, ...]
    freed_bytes: int
    kept: list[Kept]
    success: bool = True


async def delete_model(request: web.Request) -> web.Response:
    """Deletes its files from the Hugging Face cache, but for content that something else uses, and answers
    when it is unloaded: requests that it serves may end first, unless `?force=1` ends them; new ones find it
    no more. Of one that is being downloaded, what has come is deleted. Models of other folders are not the
    router's to delete."""
    context = request.app[CONTEXT]
    name = request.query.get("model", "")
    if not name:
        raise InvalidRequest("name a model: DELETE /models?model=NAME")
    catalog = context.known.catalog
    jobs = [job for job in context.downloads.jobs() if name in (*job.models, job.model)]
    entry = catalog.literal(name)
    if entry is None and not any(job.is_active for job in jobs):
        # Not where a download has exactly this name: a model that it could be short for is another one.
        entry = catalog.resolve(name)
    if entry is not None:
        _check_removable(context, entry)
    for job in jobs:
        await context.downloads.cancel(job.id, clean=True)
        await context.downloads.forget(job.id)
    if entry is None:
        return json_response(Deleted(name, (), sum(job.done_bytes for job in jobs if job.is_active), []))
    told: asyncio.Future[Deleted] = asyncio.get_running_loop().create_future()

    async def delete() -> None:
        try:
            told.set_result(await _delete(context, entry, force=is_set(request, "force")))
        except Exception as error:  # noqa: BLE001 - it is told below, or the client has left
            told.set_exception(error)
            told.exception()
        finally:
            told.cancel()

    # To its end, also when the client leaves: half of it would be a model that is listed without its files.
    context.spawn(delete(), name=f"delete {entry.id}")
    return json_response(await asyncio.shield(told))


async def _delete(context: Context, entry: CatalogEntry, *, force: bool) -> Deleted:
    async with context.downloads.removing:
        removed = await context.downloads.remove(_own_files(entry), _needed_files(_others(context, entry)))
        try:
            await context.reload()
        finally:
            # Not before: requests that came meanwhile would load it again. Who has its files open keeps them.
            if context.pool.snapshot().of_model(entry.id):
                await context.pool.unload(entry.id, force=force)
    context.downloads.announce(entry.id, "model_remove")
    kept = [Kept(file, reason) for file, reason in removed.kept]
    return Deleted(entry.id, removed.files, removed.freed_bytes, kept)


def _check_removable(context: Context, entry: CatalogEntry) -> None:
    """Raises NotRemovable, InUse."""
    if not entry.removable:
        place = f"its section in {entry.preset.origin}" if entry.source == "preset" else str(entry.path)
        raise NotRemovable(f"{entry.id} is not in the Hugging Face cache: to be rid of it, delete {place}")
    own = set(entry.files)
    users = [one.id for one in _others(context, entry) if own & {one.preset.draft_model, *one.files}]
    if users:
        raise InUse(f"{', '.join(users)} would not run without {entry.id}: delete or change that first")


def _others(context: Context, entry: CatalogEntry) -> list[CatalogEntry]:
    return [one for one in context.known.catalog.entries.values() if one.id != entry.id]


def _own_files(entry: CatalogEntry) -> list[Path]:
    """Its parts, and the projector that lies beside them: not what its settings name elsewhere."""
    beside = entry.mmproj is not None and entry.mmproj.is_relative_to(_snapshot(entry.files[0]))
    return [*entry.files, *([entry.mmproj] if entry.mmproj is not None and beside else [])]


def _snapshot(file: Path) -> Path:
    """.../snapshots/COMMIT"""
    return next((one for one in file.parents if one.parent.name == "snapshots"), file.parent)


def _needed_files(entries: Iterable[CatalogEntry]) -> list[Path]:
    """What other models are run with. A projector or adapter that none of them names is not needed."""
    found = [
        file
        for one in entries
        if one.is_model
        for file in (*one.files, one.mmproj, one.preset.draft_model, *one.preset.lora)
        if file is not None
    ]
    return list(dict.fromkeys(found))


ROUTES = (
    Route(
        "DELETE",
        "/models",
        delete_model,
        Access.ADMIN,
        summary="Delete a model from the Hugging Face cache",
        query=(Query("model", "Its name or alias", required=True), Query("force", "End its requests", bool)),
        answer=Deleted,
        refusals=(ModelNotFound, AmbiguousModel, NotRemovable, InUse),
    ),
)
