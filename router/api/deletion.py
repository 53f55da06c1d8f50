"""Models deleted from the Hugging Face cache."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import msgspec
from aiohttp import web

from router.api.answer import is_set, json_response
from router.api.context import CONTEXT, Context
from router.api.downloads import entry_of
from router.api.route import Access, Query, Route
from router.catalog import CatalogEntry
from router.downloads.errors import InUse, NotRemovable
from router.errors import InvalidRequest, ModelNotFound


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
    jobs = [job for job in context.downloads.jobs() if name in (*job.models, job.model)]
    entry = entry_of(context, name)
    if entry is None and not jobs:
        context.name_of(name)  # says which models there are
    if entry is not None:
        _check_removable(context, entry)
    for job in jobs:
        await context.downloads.cancel(job.id, clean=True)
        await context.downloads.forget(job.id)
    if entry is None:
        return json_response(Deleted(name, (), 0, []))
    async with context.downloads.removing:
        others = _files(context, _others(context, entry))
        removed = await context.downloads.remove(_files(context, [entry]), others)
        try:
            await context.reload()
        finally:
            # Not before: requests that came meanwhile would load it again. Who has its files open keeps them.
            if context.pool.snapshot().of_model(entry.id):
                await context.pool.unload(entry.id, force=is_set(request, "force"))
    context.downloads.announce(entry.id, "model_remove")
    kept = [Kept(file, reason) for file, reason in removed.kept]
    return json_response(Deleted(entry.id, removed.files, removed.freed_bytes, kept))


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


def _files(context: Context, entries: Iterable[CatalogEntry]) -> list[Path]:
    """What they are made of, in the cache."""
    found = [
        file
        for one in entries
        for file in (*one.files, one.mmproj, one.preset.draft_model, *one.preset.lora)
        if file is not None and file.is_relative_to(context.downloads.cache)
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
        refusals=(ModelNotFound, NotRemovable, InUse),
    ),
)
