"""Models from a Hugging Face hub: fetched, watched, cancelled."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import msgspec
from aiohttp import web

from router.admin.answer import is_set, json_response, read_json
from router.admin.context import CONTEXT, Context
from router.admin.route import Access, Query, Routes
from router.downloads import Downloads, DownloadSpec, Job
from router.downloads.choice import Chosen
from router.downloads.errors import (
    WORKER_ERRORS,
    BadSource,
    DownloadNotFound,
    ModelExists,
    NothingToFetch,
)
from router.downloads.job import MAIN, Listing, Problem
from router.downloads.source import check_quantization, check_revision, parse_source
from router.errors import AmbiguousModel, InvalidRequest

ROUTES: Final = Routes()
#: What the routes that begin a download have in common, and those that end one.
_BEGINS: Final[dict[str, Any]] = {
    "access": Access.ADMIN,
    "refusals": (BadSource, NothingToFetch, AmbiguousModel, ModelExists, *WORKER_ERRORS.values()),
}
_ENDS: Final[dict[str, Any]] = {
    "access": Access.ADMIN,
    "query": (Query("clean", "Delete what has come", bool),),
    "refusals": (DownloadNotFound,),
}

# --- shapes ---


class AddRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """As llama.cpp's router takes it: `ORG/REPO`, or `ORG/REPO:QUANTIZATION`."""

    model: str


class DownloadRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`repo` is `ORG/REPO`, `ORG/REPO:QUANTIZATION` or an address on the hub (which may stand in `url`, too).
    `include` and `exclude` are patterns over its files, like `*Q8_0*`; without `include` and `quantization`
    it is Q4_K_M, else Q8_0, else the first. All parts of a model and its projector come along."""

    repo: str = ""
    url: str = ""
    quantization: str = ""
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    revision: str = ""


class File(msgspec.Struct, frozen=True):
    path: str
    size: int
    done: int


class Download(msgspec.Struct, frozen=True):
    """`state`: queued, downloading, waiting (until `retry_at`, because of `error`), finished, failed or
    cancelled. `models` are the names that it becomes. Times are Unix time; `expected_seconds` is what the
    rest would take at the present pace."""

    id: str
    repo: str
    revision: str
    commit: str
    quantization: str
    models: tuple[str, ...]
    state: str
    files: list[File]
    done_bytes: int
    total_bytes: int
    bytes_per_second: float | None
    expected_seconds: float | None
    attempts: int
    created_at: float
    updated_at: float
    retry_at: float | None
    error: Problem | None
    note: str | None

    @classmethod
    def of(cls, job: Job) -> Download:
        pace, wish = job.bytes_per_second, job.wish
        return cls(
            *(job.id, wish.repo, wish.revision, job.commit, wish.quantization, job.models, job.state),
            files=[File(one.path, one.size, job.done.get(one.path, 0)) for one in job.files],
            done_bytes=job.done_bytes,
            total_bytes=job.total_bytes,
            bytes_per_second=pace,
            expected_seconds=job.left_bytes / pace if pace and job.is_active else None,
            attempts=job.attempts,
            created_at=job.created_at,
            updated_at=job.updated_at,
            retry_at=job.retry_at,
            error=job.error,
            note=job.note,
        )


class Listed(msgspec.Struct, frozen=True):
    data: list[Download]
    object: str = "list"


class Added(msgspec.Struct, frozen=True):
    """`job` is looked up at /models/downloads/{job}."""

    model: str
    job: str
    success: bool = True


# --- fetched ---


@ROUTES.add(
    "POST",
    "/models",
    summary="Download a model, as llama.cpp's router does",
    body=AddRequest,
    answer=Added,
    **_BEGINS,
)
async def add_model(request: web.Request) -> web.Response:
    """llama.cpp's way to download: answers when the download has begun."""
    context = request.app[CONTEXT]
    asked = await read_json(request, AddRequest)
    wish = msgspec.structs.replace(wish_of(context, DownloadRequest(asked.model)), name=asked.model)

    def check(_: Listing, chosen: Chosen) -> None:
        if chosen.models and all(context.known.catalog.literal(name) for name in chosen.models):
            there = ", ".join(chosen.models)
            raise ModelExists(f"{there} is there already; POST /models/download fetches what is new")

    job = await context.downloads.start(wish, check)
    return json_response(Added(job.model, job.id))


@ROUTES.add(
    "POST", "/models/download", summary="Download a model", body=DownloadRequest, answer=Download, **_BEGINS
)
async def download(request: web.Request) -> web.Response:
    """Answers when the download has begun, or goes on already. What is there is not fetched again: of a model
    that has changed on the hub, what is new comes."""
    context = request.app[CONTEXT]
    wish = wish_of(context, await read_json(request, DownloadRequest))
    return json_response(Download.of(await context.downloads.start(wish, name_check(context, wish))))


@ROUTES.add("GET", "/models/downloads", summary="The downloads", answer=Listed)
async def list_downloads(request: web.Request) -> web.Response:
    """Those that run, and the last that have ended."""
    return json_response(Listed([Download.of(job) for job in _downloads(request).jobs()]))


@ROUTES.add(
    "GET", "/models/downloads/{id}", summary="One download", answer=Download, refusals=(DownloadNotFound,)
)
async def show_download(request: web.Request) -> web.Response:
    return json_response(Download.of(_downloads(request).job(request.match_info["id"])))


@ROUTES.add("POST", "/models/downloads/{id}/cancel", summary="Cancel a download", answer=Download, **_ENDS)
async def cancel_download(request: web.Request) -> web.Response:
    """Answers when nothing is fetched any more. What has come is kept, so that the same download goes on from
    there, unless `?clean=1` deletes it."""
    return json_response(Download.of(await _cancelled(request)))


@ROUTES.add(
    "DELETE",
    "/models/downloads/{id}",
    summary="Cancel a download, or take an ended one off the list",
    answer=Download,
    **_ENDS,
)
async def delete_download(request: web.Request) -> web.Response:
    """Cancels one that runs, as the other way does; one that has ended is taken off the list."""
    was_active = _downloads(request).job(request.match_info["id"]).is_active
    ended = await _cancelled(request)
    if not was_active:
        await _downloads(request).forget(ended.id)
    return json_response(Download.of(ended))


async def _cancelled(request: web.Request) -> Job:
    return await _downloads(request).cancel(request.match_info["id"], clean=is_set(request, "clean"))


def _downloads(request: web.Request) -> Downloads:
    return request.app[CONTEXT].downloads


# --- what is meant ---


def wish_of(context: Context, asked: DownloadRequest) -> DownloadSpec:
    """Raises BadSource, and InvalidRequest where what is fetched would not be found."""
    if not context.config.paths.hf_cache:
        raise InvalidRequest("paths.hf_cache is off: the router would not find what it downloads")
    if bool(asked.repo) == bool(asked.url):
        raise BadSource("name one repository, as repo or as url")
    source = parse_source(asked.repo or asked.url, context.downloads.endpoint)
    return msgspec.structs.replace(
        source,
        revision=check_revision(asked.revision) if asked.revision else source.revision,
        quantization=check_quantization(asked.quantization) or source.quantization,
        include=(*source.include, *asked.include),
        exclude=asked.exclude,
    )


def name_check(context: Context, wish: DownloadSpec) -> Callable[[Listing, Chosen], None]:
    """A model of another revision has the same name as that of main, which would hide it: the check raises
    ModelExists."""

    def check(listing: Listing, chosen: Chosen) -> None:
        for name in chosen.models if wish.revision != MAIN else ():
            entry = context.known.catalog.literal(name)
            if entry is not None and entry.path is not None and listing.commit not in entry.path.parts:
                raise ModelExists(f"{name} is there already, from another revision: delete it first")

    return check
