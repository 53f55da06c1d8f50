"""Models deleted from the Hugging Face cache."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import msgspec
from aiohttp import web

from router.admin.answer import is_set, json_response
from router.admin.context import CONTEXT, Context
from router.admin.route import Access, Query, Routes
from router.downloads.errors import InUse, NotRemovable
from router.errors import AmbiguousModel, InvalidRequest, ModelNotFound
from router.models.catalog import CatalogEntry

ROUTES: Final = Routes()


class Kept(msgspec.Struct, frozen=True):
    file: str
    reason: str


class Deleted(msgspec.Struct, frozen=True):
    id: str
    files: tuple[str, ...]
    freed_bytes: int
    kept: list[Kept]
    success: bool = True


@ROUTES.add(
    "DELETE",
    "/models",
    access=Access.ADMIN,
    summary="Delete a model from the Hugging Face cache",
    query=(Query("model", "Its name or alias", required=True), Query("force", "End its requests", bool)),
    answer=Deleted,
    refusals=(ModelNotFound, AmbiguousModel, NotRemovable, InUse),
)
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
    deletion = _delete(context, entry, force=is_set(request, "force"))
    return json_response(await context.downloads.to_the_end(deletion))


async def _delete(context: Context, entry: CatalogEntry, *, force: bool) -> Deleted:
    async with context.downloads.removing:
        needed = [file for other in _others(context, entry) if other.is_model for file in _files(other)]
        removed = await context.downloads.remove(_own_files(entry), needed)
        try:
            await context.reload()
        finally:
            # Not before: requests that came meanwhile would load it again. An open file stays readable.
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
    first = entry.files[0]
    snapshot = next((one for one in first.parents if one.parent.name == "snapshots"), first.parent)
    projector = entry.mmproj if entry.mmproj is not None and entry.mmproj.is_relative_to(snapshot) else None
    return [*entry.files, *([projector] if projector is not None else [])]


def _files(entry: CatalogEntry) -> list[Path]:
    """What a model is run with. A projector or adapter that no model names is not needed."""
    found = (*entry.files, entry.mmproj, entry.preset.draft_model, *entry.preset.lora)
    return [file for file in found if file is not None]
