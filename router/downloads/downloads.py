"""The downloads of a router: requested, queued, tried until they succeed, and kept over a restart."""

from __future__ import annotations

import asyncio
import logging
import os
import secrets
import shutil
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Mapping
from contextlib import aclosing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final, Self, TypeVar

import msgspec

from router.config import DownloadsConfig
from router.db.store import Store, Table
from router.downloads.choice import Chosen, choose
from router.downloads.errors import (
    WORKER_ERRORS,
    DiskFull,
    DownloadFailed,
    DownloadNotFound,
    Gated,
    HubUnreachable,
    NotWritable,
)
from router.downloads.job import DownloadEvent, DownloadSpec, Job, JobState, Listing, Problem
from router.downloads.layout import RepoFolder, nearest_folder
from router.downloads.protocol import Failed, Fetch, Fetched, Look, Progress, Sweep, Swept
from router.downloads.removal import Removed, discard, place_of, remove, sweep
from router.downloads.source import without_userinfo
from router.downloads.working import answers, ask
from router.errors import RouterError
from router.presets import HUB_PRESET, HubPreset, read_hub_preset
from router.tasks import Tasks

log = logging.getLogger("router.downloads")

T = TypeVar("T")

MIB: Final = 1 << 20
LOOK_SECONDS: Final = 30.0
LOOKS_AT_A_TIME: Final = 4
FIRST_RETRY_SECONDS: Final = 1.0
LAST_RETRY_SECONDS: Final = 60.0
#: What has come may once be damaged on the way, or by a crash of the machine; twice it is the hub's fault.
CORRUPT_TRIES: Final = 2
ENDED_KEPT: Final = 50
DEFAULT_ENDPOINT: Final = "https://huggingface.co"
#: By id.
JOBS: Final = Table("downloads", str, Job)


@dataclass(slots=True)
class _Live:
    """A job, and what is only known while it runs. Moments are of the monotonic clock, in seconds."""

    job: Job
    #: Its present attempt.
    task: asyncio.Task[None] | None = None
    #: Its next attempt, while it waits for one.
    timer: asyncio.TimerHandle | None = None
    #: When a byte last came, or the first attempt began.
    progressed_at: float | None = None
    #: When the pace was last measured, and the bytes that were there then.
    rated_at: float = 0.0
    rated_bytes: int = 0
    #: Attempts that brought another content than the hub has listed.
    corrupt: int = 0
    #: Before the next attempt, if this one fails, in seconds.
    pause_seconds: float = FIRST_RETRY_SECONDS


class Downloads:
    """An async context manager, outside of which nothing is fetched.

    `store` keeps jobs over a restart, where there is one. `cache` is the Hugging Face cache; `reload` makes
    the router look for models anew; `settings` is called whenever they matter, as a reload may change them.
    `removing` is to be held while a model is deleted.
    """

    def __init__(
        self,
        store: Store | None,
        cache: Path,
        settings: Callable[[], DownloadsConfig],
        reload: Callable[[], Awaitable[None]],
        environ: Mapping[str, str] = os.environ,
    ) -> None:
        self.cache = cache
        self.endpoint = without_userinfo((environ.get("HF_ENDPOINT") or DEFAULT_ENDPOINT).rstrip("/"))
        self.removing = asyncio.Lock()
        self._store = store
        self._settings = settings
        self._reload = reload
        self._environ = environ
        #: By id, in the order in which they came.
        self._lives: dict[str, _Live] = {}
        self._listeners: list[Callable[[DownloadEvent], None]] = []
        self._tasks = Tasks()
        self._looks = asyncio.Semaphore(LOOKS_AT_A_TIME)
        self._starting = asyncio.Lock()
        self._is_suspended = True

    async def __aenter__(self) -> Self:
        await self._tasks.__aenter__()
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
        await self._tasks.__aexit__()

    async def suspend(self) -> None:
        """Nothing is fetched from here on; the next router goes on where this one stopped."""
        self._is_suspended = True
        await asyncio.gather(*(_halt(live) for live in self._lives.values()))

    # --- what there is ---

    def jobs(self) -> tuple[Job, ...]:
        """In the order in which they came."""
        return tuple(live.job for live in self._lives.values())

    def job(self, job: str) -> Job:
        """Raises DownloadNotFound."""
        return self._live(job).job

    def active(self) -> Mapping[str, Job]:
        """By the name that each was requested by, else by the ids of the models that it becomes."""
        jobs = (job for job in self.jobs() if job.is_active)
        return {
            model: job
            for job in jobs
            for model in ((job.model,) if job.wish.name or not job.models else job.models)
        }

    def listen(self, callback: Callable[[DownloadEvent], None]) -> Callable[[], None]:
        """Call `callback` with every event from now on; it must not block. Call what is returned to end
        that."""
        self._listeners.append(callback)
        return lambda: self._listeners.remove(callback)

    def announce(self, model: str, event: str, data: Mapping[str, Any] | None = None) -> None:
        """Call the listeners."""
        made = DownloadEvent(model, event, data or {})
        for callback in tuple(self._listeners):
            try:
                callback(made)
            except Exception:
                log.exception("a listener failed")

    # --- what is requested ---

    async def look(self, repo: str, revision: str) -> Listing:
        """What the hub has under that name now. Raises the errors of `router.downloads.errors`."""
        if self._is_suspended:
            raise HubUnreachable("nothing is downloaded here, now", retry_after_seconds=5.0)
        async with self._looks:
            answer = await ask(Look(repo, revision), self._environ, stall_seconds=LOOK_SECONDS)
        if isinstance(answer, Failed):
            raise _error(answer)
        assert isinstance(answer, Listing), "that is the answer to Look"
        return answer

    async def start(
        self, wish: DownloadSpec, check: Callable[[Listing, Chosen], None] = lambda listing, chosen: None
    ) -> Job:
        """Look, choose, see that there is room, and begin. A job for the same files that runs already is that
        job; one that has ended is begun anew, from what there is of it. `check` may raise.

        Raises the errors of `router.downloads.errors`.
        """
        listing = await self.look(wish.repo, wish.revision)
        if listing.refusal:
            raise Gated(listing.refusal)
        chosen = choose(listing, wish)
        check(listing, chosen)
        return await self.to_the_end(self._start(wish, listing, chosen))

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
            await self._set(live)
            self.announce(live.job.model, "model_status", {"status": "downloading", "job": live.job.id})
            self._begin_what_may()
            return live.job

    async def cancel(self, job: str, *, clean: bool = False) -> Job:
        """Returns when nothing is fetched for it any more. What has come stays, for the next time it is
        requested, unless it is to be `clean`ed away. Raises DownloadNotFound."""
        return await self.to_the_end(self._cancel(self._live(job), clean))

    async def _cancel(self, live: _Live, clean: bool) -> Job:
        if live.job.is_active:
            await _halt(live)
            if live.job.is_active:  # it may have come to its end meanwhile
                await self._stop(live, "cancelled", Problem("cancelled", "it was cancelled"))
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
        """Delete the files of one model, but for what is `needed`: paths that other models are made of.
        Raises NotRemovable, InUse."""
        places = tuple(place_of(self.cache, file) for file in files)
        removed = await asyncio.to_thread(remove, places, frozenset(needed))
        if not removed.shared:
            return removed
        shared = Sweep(str(self.cache), tuple(map(str, removed.shared)))
        answer = await ask(shared, self._environ, stall_seconds=LOOK_SECONDS)
        await asyncio.to_thread(sweep, places[0].repo)
        swept_bytes = answer.freed_bytes if isinstance(answer, Swept) else 0
        return replace(removed, freed_bytes=removed.freed_bytes + swept_bytes)

    async def to_the_end(self, work: Coroutine[Any, Any, T]) -> T:
        """The result of `work`, which goes on to its end where the caller is cancelled: half of it would be a
        job that neither runs nor has ended, or a model that is listed without its files."""

        async def run() -> T | Exception:
            try:
                return await work
            except Exception as error:  # noqa: BLE001 - raised below, where the caller is still there
                return error

        result = await asyncio.shield(self._tasks.create_task(run(), name="downloads"))
        if isinstance(result, Exception):
            raise result
        return result

    # --- what it would take ---

    def free_bytes(self) -> int:
        """Of the disk of the cache. Blocks on it."""
        return shutil.disk_usage(nearest_folder(self.cache)).free

    def plan(self, wish: DownloadSpec, listing: Listing, chosen: Chosen) -> Job:
        """A job that is not begun: what is there of it, and what would come. Blocks on the disk."""
        now = time.time()
        wish = msgspec.structs.replace(wish, repo=listing.repo)
        files, models = chosen.files, chosen.models
        made = Job(secrets.token_hex(6), wish, listing.commit, files, models, "queued", now, now)
        return msgspec.structs.replace(made, done=self._done_of(made))

    def _done_of(self, job: Job) -> dict[str, int]:
        """As the disk has it. Blocks on it."""
        repo = RepoFolder(self.cache, job.wish.repo)
        return {file.path: repo.done_bytes(job.commit, file) for file in job.files}

    def check_room(self, job: Job, free: int) -> None:
        """`free` are the bytes that the disk has, of which other downloads have yet to fill some. Raises
        DiskFull."""
        others = [one for one in self.jobs() if one.is_active and one.id != job.id]
        promised = sum(max(0, one.left_bytes) for one in others)
        margin = self._settings().min_free_mib * MIB
        if job.left_bytes > 0 and job.left_bytes + margin > free - promised:
            theirs = f", of which other downloads need {_size(promised)}" if promised else ""
            message = (
                f"{job.model} needs {_size(job.left_bytes)} more in {self.cache}, where {_size(free)} are"
                f" free{theirs}; {_size(margin)} are to stay free (downloads.min_free_mib)"
            )
            raise self._disk_full(message, job, free)

    def _disk_full(self, message: str, job: Job, free: int) -> DiskFull:
        details = {"folder": str(self.cache), "needed_bytes": job.left_bytes, "free_bytes": free}
        return DiskFull(message, details=details)

    # --- one job ---

    def _begin_what_may(self) -> None:
        """Those that came first, as many as may run at a time."""
        if self._is_suspended:
            return
        free = self._settings().concurrent - sum(live.task is not None for live in self._lives.values())
        for live in self._lives.values():
            if free > 0 and live.job.state == "queued" and live.task is None:
                live.task = self._tasks.create_task(self._run(live), name=f"download {live.job.model}")
                free -= 1

    async def _run(self, live: _Live) -> None:
        """One attempt."""
        try:
            match await self._attempt(live):
                case Fetched(unverified=unverified):
                    await self._finish(live, unverified)
                case Failed() as failed:
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

    async def _attempt(self, live: _Live) -> Fetched | Failed:
        """Raises DiskFull."""
        settings = self._settings()
        done = await asyncio.to_thread(self._done_of, live.job)
        live.rated_at, live.rated_bytes = time.monotonic(), sum(done.values())
        if live.progressed_at is None:
            live.progressed_at = live.rated_at
        attempts = live.job.attempts + 1
        await self._set(live, state="downloading", done=done, attempts=attempts, retry_at=None, error=None)
        self.check_room(live.job, await asyncio.to_thread(self.free_bytes))
        job, wish = live.job, live.job.wish
        fetch = Fetch(wish.repo, wish.revision, job.commit, str(self.cache), job.files)
        async with aclosing(answers(fetch, self._environ, stall_seconds=settings.stall_seconds)) as found:
            async for answer in found:
                if isinstance(answer, Progress):
                    self._progress(live, answer)
                elif isinstance(answer, Fetched | Failed):
                    return answer
        raise AssertionError("they are the last answers to Fetch")

    def _progress(self, live: _Live, progress: Progress) -> None:
        now = time.monotonic()
        if progress.done > live.job.done.get(progress.path, 0):
            live.progressed_at, live.pause_seconds = now, FIRST_RETRY_SECONDS
        live.job = _changed(live.job, done={**live.job.done, progress.path: progress.done})
        if now - live.rated_at >= 1.0:
            rate = max(0.0, (live.job.done_bytes - live.rated_bytes) / (now - live.rated_at))
            known = live.job.bytes_per_second
            smooth = rate if known is None else 0.6 * known + 0.4 * rate
            live.job = _changed(live.job, bytes_per_second=smooth)
            live.rated_at, live.rated_bytes = now, live.job.done_bytes
        self._announce_progress(live.job)

    def _announce_progress(self, job: Job) -> None:
        base = f"{self.endpoint}/{job.wish.repo}/resolve/{job.commit}"
        files = {
            f"{base}/{one.path}": {"done": job.done.get(one.path, 0), "total": one.size} for one in job.files
        }
        data = {
            "progress": files,
            "job": job.id,
            "done": job.done_bytes,
            "total": job.total_bytes,
            "bytes_per_second": job.bytes_per_second,
        }
        self.announce(job.model, "download_progress", data)

    # --- how it ends ---

    async def _finish(self, live: _Live, unverified: tuple[str, ...]) -> None:
        job, notes = live.job, []
        if preset := await asyncio.to_thread(self._preset_of, job):
            job = _changed(job, models=(*job.models, *preset.models))
            notes.append(f"presets: {', '.join(preset.models) or 'none that can be used'}")
            notes += [
                f"what they run is fetched with llama-router pull {repo}" for repo in preset.repositories
            ]
        elif not job.models:
            notes.append("none of these files is a model")
        if unverified:
            files = ", ".join(unverified)
            notes.append(
                f"not verified: {self.endpoint} tells no hash of {files}; only the size was compared"
            )
        live.job = job
        try:
            await self._reload()
        except RouterError as error:
            notes.append(
                f"it is not listed yet, as the router could not look for models anew: {error.message}"
            )
        done = {file.path: file.size for file in job.files}
        note = "; ".join(notes) or None
        live.job = _changed(job, state="finished", done=done, note=note, bytes_per_second=None)
        log.info("%s is there: %s", live.job.model, _size(live.job.total_bytes))
        self._announce_progress(live.job)
        self.announce(live.job.model, "download_finished", {"job": live.job.id, "models": live.job.models})
        await self._set(live)

    def _preset_of(self, job: Job) -> HubPreset | None:
        """Blocks on the disk."""
        if not any(file.path == HUB_PRESET for file in job.files):
            return None
        pointer = RepoFolder(self.cache, job.wish.repo).pointer(job.commit, HUB_PRESET)
        return read_hub_preset(pointer, job.wish.repo)

    async def _fail(self, live: _Live, failed: Failed) -> None:
        """Wait for another attempt where it may succeed, else end."""
        error = _error(failed)
        if isinstance(error, DiskFull):
            free = await asyncio.to_thread(self.free_bytes)
            message = (
                f"the disk of {self.cache} is full: {_size(live.job.left_bytes)} of {live.job.model} are"
                f" still to come, and {_size(free)} are free. What has come is kept: make room, and ask for"
                " it again"
            )
            error = self._disk_full(message, live.job, free)
        assert live.progressed_at is not None, "it was tried"
        live.corrupt += failed.retry == "once"
        since = time.monotonic() - live.progressed_at
        is_over = since + live.pause_seconds > self._settings().retry_seconds or live.corrupt >= CORRUPT_TRIES
        if failed.retry == "never" or (is_over and failed.retry != "always"):
            await self._end(live, error)
            return
        pause = max(live.pause_seconds, failed.retry_after_seconds or 0.0)
        live.pause_seconds = min(2 * live.pause_seconds, LAST_RETRY_SECONDS)
        log.warning("%s: %s; tried again in %g s", live.job.model, error.message, pause)
        await self._set(
            live,
            state="waiting",
            error=Problem.of(error),
            retry_at=time.time() + pause,
            bytes_per_second=None,
        )
        live.timer = asyncio.get_running_loop().call_later(pause, self._try_again, live)

    def _try_again(self, live: _Live) -> None:
        live.timer = None
        live.job = _changed(live.job, state="queued", retry_at=None)
        self._begin_what_may()

    async def _end(self, live: _Live, error: RouterError) -> None:
        log.warning("%s could not be downloaded: %s", live.job.model, error.message)
        await self._stop(live, "failed", Problem.of(error))

    async def _stop(self, live: _Live, state: JobState, error: Problem) -> None:
        live.job = _changed(live.job, state=state, error=error, retry_at=None, bytes_per_second=None)
        data = {"job": live.job.id, "error": {"code": error.code, "message": error.message}}
        self.announce(live.job.model, "download_failed", data)
        await self._set(live)

    # --- keeping ---

    def _live(self, job: str) -> _Live:
        if job not in self._lives:
            raise DownloadNotFound(f"there is no download {job[:100]!r}")
        return self._lives[job]

    async def _set(self, live: _Live, **changes: Any) -> None:
        """Change a job, and write it to the store."""
        live.job = _changed(live.job, **changes)
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


async def _halt(live: _Live) -> None:
    """End the present attempt of a job, or the wait for the next."""
    if live.timer is not None:
        live.timer.cancel()
        live.timer = None
    if live.task is not None:
        live.task.cancel()
        await asyncio.wait({live.task})


def _changed(job: Job, **changes: Any) -> Job:
    return msgspec.structs.replace(job, **{"updated_at": time.time(), **changes})


def _error(failed: Failed) -> RouterError:
    return WORKER_ERRORS[failed.code](failed.message, retry_after_seconds=failed.retry_after_seconds)


def _size(size: int) -> str:
    return f"{size / (1 << 30):.1f} GiB" if size >= 1 << 30 else f"{size / MIB:.1f} MiB"
