"""Models from a Hugging Face hub: fetched, watched, cancelled."""

from __future__ import annotations

import msgspec
from aiohttp import web

from router.admin.answer import is_set, json_response, read_json
from router.admin.context import CONTEXT, Context
from router.admin.route import Access, Query, Route
from router.downloads import DownloadSpec, Job
from router.downloads.choice import Chosen
from router.downloads.errors import (
    BadSource,
    DiskFull,
    DownloadFailed,
    DownloadNotFound,
    Gated,
    HubLimited,
    HubMisbehaves,
    HubUnreachable,
    ModelExists,
    NothingToFetch,
    NotWritable,
    RepoNotFound,
)
from router.downloads.job import Listing
from router.downloads.source import check_quantization, check_revision, parse_source
from router.errors import AmbiguousModel, InvalidRequest

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


class Problem(msgspec.Struct, frozen=True):
    code: str
    message: str


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
        left, pace = job.total_bytes - job.done_bytes, job.bytes_per_second
        return cls(
            id=job.id,
            repo=job.wish.repo,
            revision=job.wish.revision,
            commit=job.commit,
            quantization=job.wish.quantization,
            models=job.models,
            state=job.state,
            files=[File(one.path, one.size, job.done.get(one.path, 0)) for one in job.files],
            done_bytes=job.done_bytes,
            total_bytes=job.total_bytes,
            bytes_per_second=pace,
            expected_seconds=left / pace if pace and job.is_active else None,
            attempts=job.attempts,
            created_at=job.created_at,
            updated_at=job.updated_at,
            retry_at=job.retry_at,
            error=Problem(job.error.code, job.error.message) if job.error is not None else None,
            note=job.note,
        )


class Downloads(msgspec.Struct, frozen=True):
    data: list[Download]
    object: str = "list"


class Added(msgspec.Struct, frozen=True):
    """`job` is looked up at /models/downloads/{job}."""

    model: str
    job: str
    success: bool = True


# --- fetched ---


async def add_model(request: web.Request) -> web.Response:
    """llama.cpp's way to download: answers when the download has begun."""
    context = request.app[CONTEXT]
    asked = await read_json(request, AddRequest)
    wish = msgspec.structs.replace(wish_of(context, DownloadRequest(asked.model)), name=asked.model)

    def check(_: Listing, chosen: Chosen) -> None:
        literal = context.known.catalog.literal
        there = [name for name in chosen.models if literal(name) is not None]
        if there and len(there) == len(chosen.models):
            raise ModelExists(
                f"{', '.join(there)} is there already; POST /models/download fetches what is new"
            )

    job = await context.downloads.start(wish, check)
    return json_response(Added(job.model, job.id))


async def download(request: web.Request) -> web.Response:
    """Answers when the download has begun, or goes on already. What is there is not fetched again: of a model
    that has changed on the hub, what is new comes."""
    context = request.app[CONTEXT]
    wish = wish_of(context, await read_json(request, DownloadRequest))
    job = await context.downloads.start(
        wish, lambda listing, chosen: check_name(context, wish, listing, chosen)
    )
    return json_response(Download.of(job))


async def list_downloads(request: web.Request) -> web.Response:
    """Those that run, and the last that have ended."""
    return json_response(Downloads([Download.of(job) for job in request.app[CONTEXT].downloads.jobs()]))


async def show_download(request: web.Request) -> web.Response:
    return json_response(Download.of(request.app[CONTEXT].downloads.job(request.match_info["id"])))


async def cancel_download(request: web.Request) -> web.Response:
    """Answers when nothing is fetched any more. What has come is kept, so that the same download goes on from
    there, unless `?clean=1` deletes it."""
    downloads = request.app[CONTEXT].downloads
    job = await downloads.cancel(request.match_info["id"], clean=is_set(request, "clean"))
    return json_response(Download.of(job))


async def delete_download(request: web.Request) -> web.Response:
    """Cancels one that runs, as the other way does; one that has ended is taken off the list."""
    downloads, job = request.app[CONTEXT].downloads, request.match_info["id"]
    was_active = downloads.job(job).is_active
    ended = await downloads.cancel(job, clean=is_set(request, "clean"))
    if not was_active:
        await downloads.forget(job)
    return json_response(Download.of(ended))


# --- what is meant ---


def wish_of(context: Context, asked: DownloadRequest) -> DownloadSpec:
    """Raises BadSource, and InvalidRequest where what is fetched would not be found."""
    if not context.config.paths.hf_cache:
        raise InvalidRequest("paths.hf_cache is off: the router would not find what it downloads")
    if bool(asked.repo) == bool(asked.url):
        raise BadSource("name one repository, as repo or as url")
    source = parse_source(asked.repo or asked.url, context.downloads.endpoint)
    return DownloadSpec(
        repo=source.repo,
        revision=check_revision(asked.revision) if asked.revision else source.revision,
        quantization=check_quantization(asked.quantization) or source.quantization,
        include=(*source.include, *asked.include),
        exclude=asked.exclude,
    )


def check_name(context: Context, wish: DownloadSpec, listing: Listing, chosen: Chosen) -> None:
    """A model of another revision has the same name as that of main, which would hide it. Raises
    ModelExists."""
    if wish.revision == DownloadSpec("").revision:
        return
    for name in chosen.models:
        entry = context.known.catalog.literal(name)
        if entry is not None and entry.path is not None and listing.commit not in entry.path.parts:
            raise ModelExists(f"{name} is there already, from another revision: delete it first")


FETCH_REFUSALS = (
    BadSource,
    NothingToFetch,
    AmbiguousModel,
    ModelExists,
    Gated,
    RepoNotFound,
    HubMisbehaves,
    HubUnreachable,
    HubLimited,
    DiskFull,
    DownloadFailed,
    NotWritable,
)
_CLEAN = Query("clean", "Delete what has come", bool)

ROUTES = (
    Route(
        "POST",
        "/models",
        add_model,
        Access.ADMIN,
        summary="Download a model, as llama.cpp's router does",
        body=AddRequest,
        answer=Added,
        refusals=FETCH_REFUSALS,
    ),
    Route(
        "POST",
        "/models/download",
        download,
        Access.ADMIN,
        summary="Download a model",
        body=DownloadRequest,
        answer=Download,
        refusals=FETCH_REFUSALS,
    ),
    Route("GET", "/models/downloads", list_downloads, summary="The downloads", answer=Downloads),
    Route(
        "GET",
        "/models/downloads/{id}",
        show_download,
        summary="One download",
        answer=Download,
        refusals=(DownloadNotFound,),
    ),
    Route(
        "POST",
        "/models/downloads/{id}/cancel",
        cancel_download,
        Access.ADMIN,
        summary="Cancel a download",
        query=(_CLEAN,),
        answer=Download,
        refusals=(DownloadNotFound,),
    ),
    Route(
        "DELETE",
        "/models/downloads/{id}",
        delete_download,
        Access.ADMIN,
        summary="Cancel a download, or take an ended one off the list",
        query=(_CLEAN,),
        answer=Download,
        refusals=(DownloadNotFound,),
    ),
)
