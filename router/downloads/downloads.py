"""The downloads of a router: asked for, queued, tried until they succeed, remembered, and told of."""

from __future__ import annotations

import asyncio
import logging
import os
import secrets
import shutil
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final, Self, TypeVar
from urllib.parse import urlsplit

import msgspec

from router.config import DownloadsConfig
from router.db.store import Store, Table
from router.downloads.choice import Chosen, choose
from router.downloads.errors import (
    DiskFull,
    DownloadFailed,
    DownloadNotFound,
    Gated,
    HubLimited,
    HubMisbehaves,
    HubUnreachable,
    NotWritable,
    RepoNotFound,
)
from router.downloads.job import DownloadEvent, DownloadSpec, Job, JobError, JobState, Listing
from router.downloads.layout import RepoFolder
from router.downloads.protocol import Failed, Fetch, Fetched, Listed, Look, Progress, Sweep, Swept
from router.downloads.removal import Removed, discard, place_of, remove, sweep
from router.downloads.working import working
from router.errors import RouterError
from router.presets import HUB_PRESET, HubPreset, read_hub_preset
from router.tasks import Tasks

log = logging.getLogger("router.downloads")

T = TypeVar("T")

MIB: Final = 1 << 20
#: llama.cpp's pace of progress events.
EVENT_SECONDS: Final = 0.2
LOOK_SECONDS: Final = 30.0
LOOKS_AT_A_TIME: Final = 4
FIRST_RETRY_SECONDS: Final = 1.0
LAST_RETRY_SECONDS: Final = 60.0
#: What has come may once be damaged on the way, or by a crash of the machine; twice it is the hub's fault.
CORRUPT_TRIES: Final = 2
ENDED_KEPT: Final = 50
DEFAULT_ENDPOINT: Final = "https://huggingface.co"

_ERRORS: Final[Mapping[str, type[RouterError]]] = {
    "repo_not_found": RepoNotFound,
    "revision_not_found": RepoNotFound,
    "file_not_found": RepoNotFound,
    "gated": Gated,
    "unauthorized": Gated,
    "offline": HubUnreachable,
    "unreachable": HubUnreachable,
    "limited": HubLimited,
    "hub_error": HubMisbehaves,
    "misbehaves": HubMisbehaves,
    "corrupt": HubMisbehaves,
    "outside": HubMisbehaves,
    "disk_full": DiskFull,
    "not_writable": NotWritable,
}


#: By id.
JOBS: Final = Table("downloads", str, Job)


@dataclass(slots=True)
class _Live:
    """A job, and what is only known while it runs."""

    job: Job
    task: asyncio.Task[None] | None = None
    timer: asyncio.TimerHandle | None = None
    progressed_at: float | None = None
    told_at: float = 0.0
    rated_at: float = 0.0
    rated_bytes: int = 0
    corrupt: int = 0
    unverified: tuple[str, ...] = ()
    pause_seconds: float = FIRST_RETRY_SECONDS


class Downloads:
    """An async context manager, outside of which nothing is fetched. `store` keeps the jobs over a restart,
    None: nothing does. `cache` is the Hugging Face cache;
    `reload` makes the router look for models anew; `settings` is asked whenever it matters, as a reload may
    change them. `removing` is held by whoever deletes a model."""

    def __init__(
        self,
        store: Store | None,
        cache: Path,
        settings: Callable[[], DownloadsConfig],
        reload: Callable[[], Awaitable[None]],
        environ: Mapping[str, str] = os.environ,
    ) -> None:
        self.cache = cache
        self.endpoint = _without_userinfo((environ.get("HF_ENDPOINT") or DEFAULT_ENDPOINT).rstrip("/"))
        self._store = store
        self._settings = settings
        self._reload = reload
        self._environ = environ
        self._lives: dict[str, _Live] = {}
        self._listeners: list[Callable[[DownloadEvent], None]] = []
        self._group = Tasks()
        self._looks = asyncio.Semaphore(LOOKS_AT_A_TIME)
        self._starting = asyncio.Lock()
        self.removing = asyncio.Lock()
        self._is_suspended = True

    async def __aenter__(self) -> Self:
        await self._group.__aenter__()
        self._is_suspended = False
        kept = await self._store.rows(JOBS) if self._store is not None else {}
        for job in kept.values():
            if job.is_active:
                done = await asyncio.to_thread(self._done_of, job)
                job = _changed(job, state="queued", done=done, retry_at=None, bytes_per_second=None)
                log.info("%s goes on from %d of %d bytes", job.model, job.done_bytes, job.total_bytes)
            self._lives[job.id] = _Live(job)
        await self._forget_the_oldest()
        self._begin_what_may()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.suspend()
        await self._group.__aexit__()

    async def suspend(self) -> None:
        """Nothing is fetched from here on; the next router goes on where this one stopped."""
        self._is_suspended = True
        await asyncio.gather(*(self._halt(live) for live in self._lives.values()))

    # --- what there is ---

    def jobs(self) -> tuple[Job, ...]:
        """In the order in which they came."""
        return tuple(live.job for live in self._lives.values())

    def job(self, job: str) -> Job:
        """Raises DownloadNotFound."""
        return self._live(job).job

    def active(self) -> Mapping[str, Job]:
        """By the name that each was asked for with, else by the ids of the models that it becomes."""
        jobs = (job for job in self.jobs() if job.is_active)
        return {
            model: job
            for job in jobs
            for model in ((job.model,) if job.wish.name or not job.models else job.models)
        }

    def listen(self, callback: Callable[[DownloadEvent], None]) -> Callable[[], None]:
        """`callback` is told of every event from now on; it must not block. Call what is returned to end
        that."""
        self._listeners.append(callback)
        return lambda: self._listeners.remove(callback)

    def announce(self, model: str, event: str, data: Mapping[str, Any] | None = None) -> None:
        """Tell the listeners."""
        told = DownloadEvent(model, event, data or {})
        for callback in tuple(self._listeners):
            try:
                callback(told)
            except Exception:
                log.exception("a listener failed")

    # --- what is asked ---

    async def look(self, repo: str, revision: str) -> Listing:
        """What the hub has under that name now. Raises the errors of `router.downloads.errors`."""
        if self._is_suspended:
            raise HubUnreachable("nothing is downloaded here, now", retry_after_seconds=5.0)
        async with self._looks:
            look = Look(repo, revision)
            async with working(look, self._environ, stall_seconds=LOOK_SECONDS) as said:
                async for one in said:
                    match one:
                        case Listed():
                            return one.listing
                        case Failed():
                            raise self._error(one)
        raise DownloadFailed(f"the hub was asked for {repo}, and nothing came of it")

    async def start(
        self, wish: DownloadSpec, check: Callable[[Listing, Chosen], None] = lambda listing, chosen: None
    ) -> Job:
        """Look, choose, see that there is room, and begin. A job for the same files that runs already is that
        job; one that has ended is begun anew, from what there is of it. `check` may raise.

        Raises the errors of `router.downloads.errors`.
        """
        listing = await self.look(wish.repo, wish.revision)
        if not listing.accessible:
            raise self.refusal(listing)
        chosen = choose(listing, wish)
        check(listing, chosen)
        return await self._to_the_end(self._start(wish, listing, chosen))

    async def _start(self, wish: DownloadSpec, listing: Listing, chosen: Chosen) -> Job:
        async with self._starting:
            if self._is_suspended:
                raise HubUnreachable("nothing is downloaded here any more", retry_after_seconds=5.0)
            made = await asyncio.to_thread(self.plan, wish, listing, chosen)
            free = await asyncio.to_thread(self.free_bytes)
            for live in list(self._lives.values()):
                if live.job.key == made.key:
                    if live.job.is_active:
                        return live.job
                    await self._forget(live)
            self.check_room(made, free)
            live = self._lives[made.id] = _Live(made)
            await self._save(live)
            self.announce(live.job.model, "model_status", {"status": "downloading", "job": live.job.id})
            self._begin_what_may()
            return live.job

    def refusal(self, listing: Listing) -> Gated:
        """Why nothing is fetched from a repository that is not accessible."""
        return Gated(
            f"{listing.repo} is gated: accept its conditions at {self.endpoint}/{listing.repo}, and set"
            " HF_TOKEN to a token of that account"
        )

    async def cancel(self, job: str, *, clean: bool = False) -> Job:
        """Returns when nothing is fetched for it any more. What has come stays, for the next time it is asked
        for, unless it is to be `clean`ed away. Raises DownloadNotFound."""
        return await self._to_the_end(self._cancel(self._live(job), clean))

    async def _cancel(self, live: _Live, clean: bool) -> Job:
        if live.job.is_active:
            await self._halt(live)
            if live.job.is_active:  # it may have come to its end meanwhile
                await self._stop(live, "cancelled", JobError("cancelled", "it was cancelled"))
                self._begin_what_may()
        if clean:
            repo = RepoFolder(self.cache, live.job.wish.repo)
            etags = [file.etag for file in live.job.files if file.etag is not None]
            await asyncio.to_thread(discard, repo, etags)
            await self._set(live, done=self._done_of(live.job))
        return live.job

    async def forget(self, job: str) -> None:
        """Take one that has ended off the list. Raises DownloadNotFound."""
        live = self._live(job)
        if not live.job.is_active:
            await self._forget(live)

    async def remove(self, files: Iterable[Path], needed: Iterable[Path]) -> Removed:
        """Delete the files of one model, but for what is `needed`.
        `needed` are the paths that other models are made of. Raises NotRemovable, InUse."""
        places = tuple(place_of(self.cache, file) for file in files)
        removed = await asyncio.to_thread(remove, places, frozenset(needed))
        if not removed.shared:
            return removed
        shared = Sweep(str(self.cache), tuple(map(str, removed.shared)))
        async with working(shared, self._environ, stall_seconds=LOOK_SECONDS) as said:
            freed = [one.freed_bytes async for one in said if isinstance(one, Swept)]
        await asyncio.to_thread(sweep, places[0].repo)
        return replace(removed, freed_bytes=removed.freed_bytes + sum(freed))

    def free_bytes(self) -> int:
        """Of the disk of the cache. Blocks on it."""
        return shutil.disk_usage(_nearest(self.cache)).free

    # --- one job ---

    def plan(self, wish: DownloadSpec, listing: Listing, chosen: Chosen) -> Job:
        """A job that is not begun: what is there of it, and what would come. Blocks on the disk."""
        now = time.time()
        wish = msgspec.structs.replace(wish, repo=listing.repo)
        files, models = chosen.files, chosen.models
        made = Job(secrets.token_hex(6), wish, listing.commit, files, models, "queued", now, now)
        return msgspec.structs.replace(made, done=self._done_of(made))

    def _done_of(self, job: Job) -> dict[str, int]:
        """As the disk has it. Blocks on it."""
        repo, done = RepoFolder(self.cache, job.wish.repo), {}
        for file in job.files:
            whole = file.size in (
                repo.size_of(job.commit, file.path),
                repo.blob_size(file.etag) if file.etag else None,
            )
            part = min(repo.partial_size(file.etag), file.size) if file.etag else 0
            done[file.path] = file.size if whole else part
        return done

    def check_room(self, job: Job, free: int) -> None:
        """`free` are the bytes that the disk has, of which other downloads have yet to fill some. Raises
        DiskFull."""
        others = [one for one in self.jobs() if one.is_active and one.id != job.id]
        promised = sum(max(0, one.total_bytes - one.done_bytes) for one in others)
        needed, margin = job.total_bytes - job.done_bytes, self._settings().min_free_mib * MIB
        if needed > 0 and needed + margin > free - promised:
            theirs = f", of which other downloads need {_size(promised)}" if promised else ""
            raise DiskFull(
                f"{job.model} needs {_size(needed)} more in {self.cache}, where {_size(free)} are free"
                f"{theirs}; {_size(margin)} are to stay free (downloads.min_free_mib)",
                details={"folder": str(self.cache), "needed_bytes": needed, "free_bytes": free},
            )

    def _begin_what_may(self) -> None:
        """Those that came first, as many as may run at a time."""
        if self._is_suspended:
            return
        free = self._settings().concurrent - sum(live.task is not None for live in self._lives.values())
        for live in self._lives.values():
            if free > 0 and live.job.state == "queued" and live.task is None:
                name = f"download {live.job.model}"
                live.task = self._group.create_task(self._run(live), name=name)
                free -= 1

    async def _run(self, live: _Live) -> None:
        """One attempt."""
        try:
            failed = await self._attempt(live)
            if failed is None:
                await self._finish(live)
            else:
                await self._fail(live, failed)
        except RouterError as error:
            await self._end(live, error)
        except OSError as error:
            await self._end(live, NotWritable(f"{self.cache}: {error.strerror or error}"))
        except Exception as error:
            log.exception("%s could not be downloaded", live.job.model)
            await self._end(live, DownloadFailed(f"{type(error).__name__}: {error}"))
        finally:
            live.task = None
            self._begin_what_may()

    async def _attempt(self, live: _Live) -> Failed | None:
        """None when all has come. Raises DiskFull."""
        settings = self._settings()
        done = await asyncio.to_thread(self._done_of, live.job)
        live.rated_at, live.rated_bytes = time.monotonic(), sum(done.values())
        if live.progressed_at is None:
            live.progressed_at = live.rated_at
        await self._set(
            live, state="downloading", done=done, attempts=live.job.attempts + 1, retry_at=None, error=None
        )
        self.check_room(live.job, await asyncio.to_thread(self.free_bytes))
        job, wish = live.job, live.job.wish
        fetch = Fetch(wish.repo, wish.revision, job.commit, str(self.cache), job.files)
        async with working(fetch, self._environ, stall_seconds=settings.stall_seconds) as said:
            async for one in said:
                match one:
                    case Progress():
                        self._progress(live, one)
                    case Fetched():
                        live.unverified = one.unverified
                        return None
                    case Failed():
                        return one
        return Failed("unexpected", "nothing came of it", is_transient=True)

    def _progress(self, live: _Live, said: Progress) -> None:
        now, before = time.monotonic(), live.job.done.get(said.path, 0)
        if said.done > before:
            live.progressed_at, live.pause_seconds = now, FIRST_RETRY_SECONDS
        live.job = _changed(live.job, done={**live.job.done, said.path: said.done})
        if now - live.rated_at >= 1.0:
            rate = max(0.0, (live.job.done_bytes - live.rated_bytes) / (now - live.rated_at))
            known = live.job.bytes_per_second
            live.job = _changed(
                live.job, bytes_per_second=rate if known is None else 0.6 * known + 0.4 * rate
            )
            live.rated_at, live.rated_bytes = now, live.job.done_bytes
        if now - live.told_at >= EVENT_SECONDS:
            live.told_at = now
            self.announce(live.job.model, "download_progress", self._progress_data(live.job))

    def _progress_data(self, job: Job) -> dict[str, Any]:
        base = f"{self.endpoint}/{job.wish.repo}/resolve/{job.commit}"
        files = {
            f"{base}/{one.path}": {"done": job.done.get(one.path, 0), "total": one.size} for one in job.files
        }
        return {
            "progress": files,
            "job": job.id,
            "done": job.done_bytes,
            "total": job.total_bytes,
            "bytes_per_second": job.bytes_per_second,
        }

    # --- how it ends ---

    async def _finish(self, live: _Live) -> None:
        notes = []
        if preset := await asyncio.to_thread(self._preset_of, live.job):
            live.job = _changed(live.job, models=(*live.job.models, *preset.models))
            notes += [f"presets: {', '.join(preset.models) or 'none that can be used'}"]
            notes += [
                f"what they run is fetched with llama-router pull {repo}" for repo in preset.repositories
            ]
        elif not live.job.models:
            notes.append("none of these files is a model")
        if live.unverified:
            notes.append(
                f"not verified: {self.endpoint} tells no hash of {', '.join(live.unverified)}; only the size"
                " was compared"
            )
        try:
            await self._reload()
        except RouterError as error:
            notes.append(
                f"it is not listed yet, as the router could not look for models anew: {error.message}"
            )
        note = "; ".join(notes) or None
        done = {file.path: file.size for file in live.job.files}
        live.job = _changed(live.job, state="finished", done=done, note=note, bytes_per_second=None)
        log.info("%s is there: %s", live.job.model, _size(live.job.total_bytes))
        self.announce(live.job.model, "download_progress", self._progress_data(live.job))
        self.announce(live.job.model, "download_finished", {"job": live.job.id, "models": live.job.models})
        await self._save(live)

    def _preset_of(self, job: Job) -> HubPreset | None:
        """Blocks on the disk."""
        if not any(file.path == HUB_PRESET for file in job.files):
            return None
        pointer = RepoFolder(self.cache, job.wish.repo).pointer(job.commit, HUB_PRESET)
        return read_hub_preset(pointer, job.wish.repo)

    async def _fail(self, live: _Live, failed: Failed) -> None:
        live.corrupt += failed.problem == "corrupt"
        assert live.progressed_at is not None, "it was tried"
        since = time.monotonic() - live.progressed_at
        is_over = since + live.pause_seconds > self._settings().retry_seconds or live.corrupt >= CORRUPT_TRIES
        error = self._error(failed, live.job, await asyncio.to_thread(self.free_bytes))
        if not failed.is_transient or (is_over and failed.problem != "busy"):
            await self._end(live, error)
            return
        pause = max(live.pause_seconds, failed.retry_after_seconds or 0.0)
        live.pause_seconds = min(2 * live.pause_seconds, LAST_RETRY_SECONDS)
        log.warning("%s: %s; tried again in %g s", live.job.model, error.message, pause)
        told = JobError(error.code, error.message)
        await self._set(
            live, state="waiting", error=told, retry_at=time.time() + pause, bytes_per_second=None
        )
        live.timer = asyncio.get_running_loop().call_later(pause, self._try_again, live)

    def _try_again(self, live: _Live) -> None:
        live.timer = None
        if live.job.state == "waiting":
            live.job = _changed(live.job, state="queued", retry_at=None)
            self._begin_what_may()

    async def _end(self, live: _Live, error: RouterError) -> None:
        log.warning("%s could not be downloaded: %s", live.job.model, error.message)
        await self._stop(live, "failed", JobError(error.code, error.message))

    async def _stop(self, live: _Live, state: JobState, error: JobError) -> None:
        live.job = _changed(live.job, state=state, error=error, retry_at=None, bytes_per_second=None)
        self._announce_failure(live.job)
        await self._save(live)

    def _announce_failure(self, job: Job) -> None:
        assert job.error is not None, "it has failed"
        error = {"code": job.error.code, "message": job.error.message}
        self.announce(job.model, "download_failed", {"job": job.id, "error": error})

    def _error(self, failed: Failed, job: Job | None = None, free: int = 0) -> RouterError:
        kind = _ERRORS.get(failed.problem, DownloadFailed)
        if failed.problem != "disk_full" or job is None:
            return kind(failed.message, retry_after_seconds=failed.retry_after_seconds)
        lacking = job.total_bytes - job.done_bytes
        return DiskFull(
            f"the disk of {self.cache} is full: {_size(lacking)} of {job.model} are still to come, and"
            f" {_size(free)} are free. What has come is kept: make room, and ask for it again",
            details={"folder": str(self.cache), "needed_bytes": lacking, "free_bytes": free},
        )

    async def _to_the_end(self, work: Coroutine[Any, Any, T]) -> T:
        """Also when whoever asked leaves: half of it would be a job that neither runs nor has ended."""
        told: asyncio.Future[T] = asyncio.get_running_loop().create_future()

        async def run() -> None:
            try:
                told.set_result(await work)
            except Exception as error:  # noqa: BLE001 - it is whoever asked who is told
                told.set_exception(error)
                told.exception()  # who may have left

        self._group.create_task(run(), name="downloads")
        return await asyncio.shield(told)

    async def _halt(self, live: _Live) -> None:
        if live.timer is not None:
            live.timer.cancel()
            live.timer = None
        if live.task is not None:
            task = live.task
            task.cancel()
            await asyncio.wait({task})

    # --- keeping ---

    def _live(self, job: str) -> _Live:
        if job not in self._lives:
            raise DownloadNotFound(f"there is no download {job[:100]!r}")
        return self._lives[job]

    async def _set(self, live: _Live, **changes: Any) -> None:
        live.job = _changed(live.job, **changes)
        await self._save(live)

    async def _save(self, live: _Live) -> None:
        if self._store is not None:
            await self._store.put(JOBS, live.job.id, live.job)
        await self._forget_the_oldest()

    async def _forget_the_oldest(self) -> None:
        ended = [one for one in self._lives.values() if not one.job.is_active]
        for one in ended[:-ENDED_KEPT]:
            await self._forget(one)

    async def _forget(self, live: _Live) -> None:
        self._lives.pop(live.job.id, None)
        if self._store is not None:
            await self._store.delete(JOBS, live.job.id)


def _changed(job: Job, **changes: Any) -> Job:
    return msgspec.structs.replace(job, updated_at=time.time(), **changes)


def _nearest(folder: Path) -> Path:
    """The folder, or as much of its path as exists."""
    return next(one for one in (folder, *folder.parents) if one.exists())


def _without_userinfo(address: str) -> str:
    parts = urlsplit(address)
    return parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()


def _size(size: int) -> str:
    return f"{size / (1 << 30):.1f} GiB" if size >= 1 << 30 else f"{size / MIB:.1f} MiB"
