"""What a repository on the hub has, before anything is fetched from it."""

from __future__ import annotations

import asyncio
from typing import Final

import msgspec
from aiohttp import web

from router.admin.answer import json_response, read_json
from router.admin.context import CONTEXT, Context
from router.admin.downloads import DownloadRequest, File, name_check, wish_of
from router.admin.route import Access, Routes
from router.downloads import DownloadSpec
from router.downloads.choice import Quantization, choose, projectors, quantizations
from router.downloads.errors import (
    BadSource,
    DownloadFailed,
    Gated,
    HubLimited,
    HubMisbehaves,
    HubUnreachable,
    RepoNotFound,
)
from router.downloads.job import Listing, Problem
from router.downloads.layout import RepoFolder
from router.errors import RouterError

ROUTES: Final = Routes()


class Fetch(msgspec.Struct, frozen=True):
    """What a download would do: `missing_bytes` are still to come. `problem`: why it would not begin."""

    files: list[File]
    models: tuple[str, ...]
    total_bytes: int
    missing_bytes: int
    free_bytes: int
    folder: str
    problem: Problem | None


class Verified(msgspec.Struct, frozen=True):
    """Not `accessible`: the hub wants a token, or conditions to be accepted, as `problem` says. `left_out`
    are names that would lead out of their folder, and are never fetched."""

    repo: str
    revision: str
    exists: bool
    accessible: bool
    gated: bool
    private: bool
    commit: str | None
    quantizations: tuple[Quantization, ...]
    projectors: dict[str, int]
    fetch: Fetch | None
    problem: Problem | None
    left_out: tuple[str, ...] = ()


@ROUTES.add(
    "POST",
    "/models/verify-repo",
    access=Access.ADMIN,
    summary="Look at a repository on the hub",
    body=DownloadRequest,
    answer=Verified,
    refusals=(BadSource, HubMisbehaves, HubUnreachable, HubLimited, DownloadFailed),
)
async def verify_repo(request: web.Request) -> web.Response:
    """What the hub has, and what a download with the same words would fetch. Fetches nothing."""
    context = request.app[CONTEXT]
    wish = wish_of(context, await read_json(request, DownloadRequest))
    try:
        listing = await context.downloads.look(wish.repo, wish.revision)
    except (RepoNotFound, Gated) as error:
        exists = gated = isinstance(error, Gated)
        found = Verified(
            *(wish.repo, wish.revision, exists),
            accessible=False,
            gated=gated,
            private=False,
            commit=None,
            quantizations=(),
            projectors={},
            fetch=None,
            problem=Problem.of(error),
        )
    else:
        found = await _verified(context, wish, listing)
    return json_response(found)


async def _verified(context: Context, wish: DownloadSpec, listing: Listing) -> Verified:
    problem = Problem.of(Gated(listing.refusal)) if listing.refusal else None
    fetch = None
    try:
        fetch = await _fetch(context, wish, listing)
    except RouterError as error:
        problem = problem or Problem.of(error)
    folder = RepoFolder(context.downloads.cache, listing.repo)
    there = await asyncio.to_thread(folder.whole_files, listing.commit, listing.files)
    return Verified(
        *(listing.repo, wish.revision, True, not listing.refusal, listing.gated, listing.private),
        commit=listing.commit,
        quantizations=quantizations(listing, there),
        projectors=projectors(listing),
        fetch=fetch,
        problem=problem,
        left_out=listing.left_out,
    )


async def _fetch(context: Context, wish: DownloadSpec, listing: Listing) -> Fetch:
    """Raises the errors of `choose`."""
    chosen, downloads = choose(listing, wish), context.downloads
    job = await asyncio.to_thread(downloads.plan, wish, listing, chosen)
    free = await asyncio.to_thread(downloads.free_bytes)
    problem = None
    try:
        name_check(context, wish)(listing, chosen)
        downloads.check_room(job, free)
    except RouterError as error:
        problem = Problem.of(error)
    return Fetch(
        files=[File(one.path, one.size, job.done.get(one.path, 0)) for one in job.files],
        models=job.models,
        total_bytes=job.total_bytes,
        missing_bytes=job.left_bytes,
        free_bytes=free,
        folder=str(downloads.cache),
        problem=problem,
    )
