"""What a repository on the hub has, before anything is fetched from it."""

from __future__ import annotations

import asyncio

import msgspec
from aiohttp import web

from router.admin.answer import json_response, read_json
from router.admin.context import CONTEXT, Context
from router.admin.downloads import DownloadRequest, File, Problem, check_name, wish_of
from router.admin.route import Access, Route
from router.downloads import DownloadSpec
from router.downloads.choice import Chosen, choose, projectors, quantizations
from router.downloads.errors import (
    BadSource,
    DownloadFailed,
    Gated,
    HubLimited,
    HubMisbehaves,
    HubUnreachable,
    RepoNotFound,
)
from router.downloads.job import Listing
from router.downloads.layout import RepoFolder
from router.errors import RouterError


class Quantization(msgspec.Struct, frozen=True):
    """`model` is the name under which it would be found; "" where its files tell no quantisation."""

    name: str
    model: str
    files: tuple[str, ...]
    size: int
    is_default: bool
    is_present: bool


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
    quantizations: list[Quantization]
    projectors: dict[str, int]
    fetch: Fetch | None
    problem: Problem | None
    left_out: tuple[str, ...] = ()


async def verify_repo(request: web.Request) -> web.Response:
    """What the hub has, and what a download with the same words would fetch. Fetches nothing."""
    context = request.app[CONTEXT]
    wish = wish_of(context, await read_json(request, DownloadRequest))
    try:
        listing = await context.downloads.look(wish.repo, wish.revision)
    except (RepoNotFound, Gated) as error:
        is_there = isinstance(error, Gated)
        found = Verified(
            *(wish.repo, wish.revision),
            exists=is_there,
            accessible=False,
            gated=is_there,
            private=False,
            commit=None,
            quantizations=[],
            projectors={},
            fetch=None,
            problem=_problem(error),
        )
        return json_response(found)
    return json_response(await _verified(context, wish, listing))


async def _verified(context: Context, wish: DownloadSpec, listing: Listing) -> Verified:
    problem: Problem | None = None
    fetch: Fetch | None = None
    if listing.refusal:
        problem = _problem(Gated(listing.refusal))
    try:
        fetch = await _fetch(context, wish, listing, choose(listing, wish))
    except RouterError as error:
        problem = problem or _problem(error)
    there = await asyncio.to_thread(_present, RepoFolder(context.downloads.cache, listing.repo), listing)
    return Verified(
        repo=listing.repo,
        revision=wish.revision,
        exists=True,
        accessible=not listing.refusal,
        gated=listing.gated,
        private=listing.private,
        commit=listing.commit,
        quantizations=[
            Quantization(
                *(one.name, one.model, one.files, one.size, one.is_default),
                is_present=there.issuperset(one.files),
            )
            for one in quantizations(listing)
        ],
        projectors=dict(projectors(listing)),
        fetch=fetch,
        problem=problem,
        left_out=listing.left_out,
    )


def _present(folder: RepoFolder, listing: Listing) -> set[str]:
    return {
        file.path
        for file in listing.files
        if folder.size_of(listing.commit, file.path) == file.size
        or (file.etag is not None and folder.blob_size(file.etag) == file.size)
    }


async def _fetch(context: Context, wish: DownloadSpec, listing: Listing, chosen: Chosen) -> Fetch:
    problem: Problem | None = None
    job = await asyncio.to_thread(context.downloads.plan, wish, listing, chosen)
    free = await asyncio.to_thread(context.downloads.free_bytes)
    try:
        check_name(context, wish, listing, chosen)
        context.downloads.check_room(job, free)
    except RouterError as error:
        problem = _problem(error)
    return Fetch(
        files=[File(one.path, one.size, job.done.get(one.path, 0)) for one in job.files],
        models=job.models,
        total_bytes=job.total_bytes,
        missing_bytes=job.total_bytes - job.done_bytes,
        free_bytes=free,
        folder=str(context.downloads.cache),
        problem=problem,
    )


def _problem(error: RouterError) -> Problem:
    return Problem(error.code, error.message)


ROUTES = (
    Route(
        "POST",
        "/models/verify-repo",
        verify_repo,
        Access.ADMIN,
        summary="Look at a repository on the hub",
        body=DownloadRequest,
        answer=Verified,
        refusals=(BadSource, HubMisbehaves, HubUnreachable, HubLimited, DownloadFailed),
    ),
)
