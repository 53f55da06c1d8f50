"""Fetches files into the cache, each from where it was left. Runs in the worker.

huggingface_hub's own `hf_hub_download` begins anew whenever it is interrupted (it writes to a file of a
random name and deletes that), which is nothing for forty gigabytes. So the bytes come by its `http_get`, to
a partial file that keeps its name; what is made of it is what the library itself would have made.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from time import sleep
from typing import Any, BinaryIO, Final, cast
from urllib.parse import urlsplit

from huggingface_hub import constants, hf_hub_download, hf_hub_url
from huggingface_hub.file_download import get_hf_file_metadata, http_get
from huggingface_hub.utils import build_hf_headers, tqdm  # type: ignore[attr-defined]

from router.downloads.hub import HubProblem, endpoint, translated
from router.downloads.job import RemoteFile
from router.downloads.layout import COMMIT, Outside, RepoFolder
from router.downloads.protocol import Failed, Fetch, Fetched, Progress, Said

PROGRESS_SECONDS: Final = 0.1
CHUNK_BYTES: Final = 1 << 18
#: What is written reaches the disk this often, so that at the end nobody waits for gigabytes.
SYNC_BYTES: Final = 256 << 20


def fetch(wanted: Fetch, say: Callable[[Said], None]) -> Fetched:
    """All files, then the links to them, then the revision that names them: nothing is seen by halves. Raises
    HubProblem."""
    constants.DOWNLOAD_CHUNK_SIZE = CHUNK_BYTES  # the library's ten megabytes would be lost with a process
    repo = RepoFolder(Path(wanted.cache), wanted.repo)
    blobs: dict[str, Path] = {}
    meter = _Meter(say)
    for file in wanted.files:
        try:
            blobs[file.path] = _fetch_file(wanted, repo, file, meter)
        except Outside as error:
            raise HubProblem(Failed("outside", str(error))) from error
        except Exception as error:
            raise translated(error, wanted.repo, wanted.revision, file.path) from error
        meter.tell(file.path, file.size)
    try:
        for path, blob in blobs.items():
            _link(repo, repo.pointer(wanted.commit, path), blob)
        _name_commit(repo, wanted.revision, wanted.commit)
    except Outside as error:
        raise HubProblem(Failed("outside", str(error))) from error
    except OSError as error:
        raise translated(error, wanted.repo, wanted.revision) from error
    return Fetched()


class _Meter:
    """Says how many bytes there are, now and then: also the last ones before a pause; and while what is there
    is read again it says the same again, as a sign of life."""

    def __init__(self, say: Callable[[Said], None]) -> None:
        self._say = say
        self._lock = threading.Lock()
        self._now = Progress("", 0)
        self._is_told = True
        threading.Thread(target=self._tell_now_and_then, daemon=True).start()

    def at(self, path: str, done: int) -> None:
        with self._lock:
            self._now, self._is_told = Progress(path, done), False

    def tell(self, path: str, done: int) -> None:
        """At once."""
        self.at(path, done)
        self._tell()

    def _tell(self) -> None:
        with self._lock:
            if not self._is_told:
                self._is_told = True
                self._say(self._now)

    def _tell_now_and_then(self) -> None:
        while True:
            sleep(PROGRESS_SECONDS)
            self._tell()


def _fetch_file(wanted: Fetch, repo: RepoFolder, file: RemoteFile, meter: _Meter) -> Path:
    """The blob, complete and checked."""
    there = _already(wanted, repo, file)
    if there is not None:
        return there
    url = hf_hub_url(wanted.repo, file.path, revision=wanted.commit)
    headers = build_hf_headers(library_name="llama-router")
    about = get_hf_file_metadata(url, headers=headers)
    etag = about.etag or ""
    size = file.size if about.size is None else about.size
    if size != file.size or (file.sha256 is not None and etag != file.sha256):
        raise HubProblem(Failed("misbehaves", f"{endpoint()} has listed another {file.path} than it sends"))
    blob = repo.blob(etag)
    repo.make(repo.blobs)
    limit = constants.MAX_HTTP_DOWNLOAD_SIZE if wanted.http_max_bytes is None else wanted.http_max_bytes
    if size > limit:
        return _by_the_library(wanted, file, meter)
    if not _is_same_host(url, about.location):
        headers.pop("authorization", None)  # the address itself is signed, and its host is not the hub
    with _opened(repo.partial(etag)) as fd:
        if blob.exists():  # somebody else was faster, while this waited for the lock
            return blob
        partial = _Partial(fd, file, meter)
        partial.take_up()
        try:
            http_get(
                about.location,
                cast(BinaryIO, partial),
                resume_size=partial.tell(),
                headers=headers,
                expected_size=size,
                displayed_filename=file.path,
            )
        except OSError as error:
            # Without a number it is the library's word for a file of another size (its other errors are of
            # classes of their own).
            if type(error) is not OSError or error.errno is not None:
                raise
        if not partial.is_right():
            raise HubProblem(partial.refused(file.path))
        os.fsync(fd)
        repo.partial(etag).rename(blob)
    return blob


def _already(wanted: Fetch, repo: RepoFolder, file: RemoteFile) -> Path | None:
    """Where the whole file is, if it has come before."""
    pointer = repo.pointer(wanted.commit, file.path)
    if repo.size_of(wanted.commit, file.path) == file.size:
        return _target(pointer)
    if file.etag is not None and repo.blob_size(file.etag) == file.size:
        return repo.blob(file.etag)
    return None


@contextmanager
def _opened(path: Path) -> Iterator[int]:
    """A partial file that is this process's alone. Raises HubProblem."""
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            message = f"another process is fetching {path.name}"
            raise HubProblem(Failed("busy", message, is_transient=True)) from None
        yield fd
    finally:
        os.close(fd)


class _Content:
    """What the hub says of a content: a hash of it, if it says one."""

    def __init__(self, file: RemoteFile) -> None:
        self._size = file.size
        self._is_large = file.sha256 is not None
        self._digest = file.sha256 or file.blob
        if not self._is_large and not COMMIT.fullmatch(self._digest or ""):
            self._digest = None

    def begin(self) -> Any:
        """A hash to be fed with all of it."""
        if self._is_large:
            return hashlib.sha256()
        return hashlib.sha1(b"blob %d\0" % self._size, usedforsecurity=False)  # as git does

    def is_it(self, hashed: Any) -> bool:
        return self._digest is None or hashed.hexdigest() == self._digest


class _Partial:
    """The file as `http_get` writes to it, which hashes and counts on the way."""

    def __init__(self, fd: int, file: RemoteFile, meter: _Meter) -> None:
        self._fd = fd
        self._path = file.path
        self._size = file.size
        self._content = _Content(file)
        self._hash = self._content.begin()
        self._meter = meter
        self._at = 0
        self._synced = 0

    def take_up(self) -> None:
        """Read what is there already. More than there can be is worth nothing."""
        there = os.fstat(self._fd).st_size
        if there > self._size:
            os.ftruncate(self._fd, 0)
        while chunk := os.pread(self._fd, CHUNK_BYTES, self._at):
            self._hash.update(chunk)
            self._at += len(chunk)
            self._meter.at(self._path, there)  # nothing new, and yet a sign of life
        self._synced = self._at

    def is_right(self) -> bool:
        return self._at == self._size and self._content.is_it(self._hash)

    def refused(self, path: str) -> Failed:
        """What is wrong is not kept; what is only too short is."""
        if self._at < self._size:
            message = f"the hub has ended {path} after {self._at} of {self._size} bytes"
            return Failed("misbehaves", message, is_transient=True)
        os.ftruncate(self._fd, 0)
        message = f"what has come as {path} is not what the hub has listed ({self._at} bytes)"
        return Failed("corrupt", message, is_transient=True)

    # --- what `http_get` calls ---

    def tell(self) -> int:
        return self._at

    def write(self, chunk: bytes) -> int:
        left = memoryview(chunk)
        while left:
            written = os.pwrite(self._fd, left, self._at)
            self._hash.update(left[:written])
            self._at += written
            left = left[written:]
        self._meter.at(self._path, self._at)
        if self._at - self._synced >= SYNC_BYTES:
            os.fdatasync(self._fd)
            self._synced = self._at
        return len(chunk)

    def seek(self, offset: int) -> int:
        """It goes back to the beginning when a server does not send the part it was asked for."""
        assert offset == 0, "a whole file is fetched again, or none of it"
        self._at = self._synced = 0
        self._hash = self._content.begin()
        return 0

    def truncate(self) -> int:
        os.ftruncate(self._fd, self._at)
        return self._at


def _target(pointer: Path) -> Path:
    """The blob that a link of a snapshot leads to, which may be a link in turn."""
    return Path(os.path.normpath(pointer.parent / pointer.readlink())) if pointer.is_symlink() else pointer


def _link(repo: RepoFolder, pointer: Path, blob: Path) -> None:
    repo.make(pointer.parent)
    if os.path.lexists(pointer) and _target(pointer) == blob:
        return
    fresh = pointer.with_name(f".{pointer.name[:200]}.{os.getpid()}")
    with suppress(FileNotFoundError):
        fresh.unlink()
    fresh.symlink_to(os.path.relpath(blob, pointer.parent))
    fresh.replace(pointer)


def _name_commit(repo: RepoFolder, revision: str, commit: str) -> None:
    if COMMIT.fullmatch(revision):
        return
    ref = repo.ref(revision)
    repo.make(ref.parent)
    fresh = ref.with_name(f"{ref.name}.{os.getpid()}.tmp")
    fresh.write_text(commit)
    fresh.replace(ref)


def _is_same_host(url: str, other: str) -> bool:
    return urlsplit(url)[:2] == urlsplit(other)[:2]


def _by_the_library(wanted: Fetch, file: RemoteFile, meter: _Meter) -> Path:
    """Larger than the hub sends in one piece: it comes in Xet's pieces, without a way to go on later."""

    class Bar(tqdm):
        """Counts instead of drawing."""

        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **{**kwargs, "disable": True})  # type: ignore[no-untyped-call]
            self._bytes = 0

        def update(self, n: float | None = 1) -> None:
            self._bytes += int(n or 0)
            meter.at(file.path, min(self._bytes, file.size))

    return _target(
        Path(
            hf_hub_download(
                wanted.repo, file.path, revision=wanted.commit, cache_dir=wanted.cache, tqdm_class=Bar
            )
        )
    )
