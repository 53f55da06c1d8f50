"""Fetches files into the cache, each from where it was left. Runs in the worker.

huggingface_hub's own `hf_hub_download` begins anew whenever it is interrupted (it writes to a file of a
random name and deletes that), which is nothing for forty gigabytes. Its `http_get`, which goes on, empties
the file before it can be seen that the answer is a page of the network. So the bytes come by its session to a
partial file that keeps its name; what is made of it is what the library itself would have made.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import re
import shutil
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from time import sleep
from typing import Any, Final
from urllib.parse import urljoin, urlsplit

import httpx2
from huggingface_hub import (
    get_hf_file_metadata,
    get_session,
    hf_hub_download,
    hf_hub_url,
    hf_raise_for_status,
)
from huggingface_hub.constants import HF_HUB_DOWNLOAD_TIMEOUT, MAX_HTTP_DOWNLOAD_SIZE
from huggingface_hub.utils import tqdm  # type: ignore[attr-defined]

from router.downloads.hub import HubProblem, endpoint, misbehaves, no_hub, request_headers, translated
from router.downloads.job import RemoteFile
from router.downloads.layout import COMMIT, RepoFolder, content_of
from router.downloads.protocol import Answer, Failed, Fetch, Fetched, Progress

#: Between two reports of progress, in seconds: llama.cpp's pace of events.
PROGRESS_SECONDS: Final = 0.2
CHUNK_BYTES: Final = 1 << 18
#: What is written reaches the disk this often: the last fsync of tens of gigabytes would take longer than
#: `stall_seconds`, and the worker be killed for it.
SYNC_BYTES: Final = 256 << 20
#: Connections without a byte, one after another, before the attempt has failed: as the library's `http_get`.
CONNECTIONS: Final = 5
CONNECTION_PAUSE_SECONDS: Final = 1.0
#: huggingface.co is what mirrors send to: as the library, its own token is sent there from a mirror.
HUB_ORIGIN: Final = ("https", "huggingface.co")
GGUF_MAGIC: Final = b"GGUF"
#: symlink(2): "The filesystem containing linkpath does not support the creation of symbolic links" is EPERM;
#: FUSE, CIFS and 9p have the others.
_NO_SYMLINKS: Final = frozenset({errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL})
_NO_LOCKS: Final = frozenset({errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL})
#: What the library takes for a yes in its variables.
_YES: Final = frozenset({"1", "ON", "YES", "TRUE"})
_RANGE: Final = re.compile(r"bytes (?P<begin>\d+)-\d+/(?P<total>\d+|\*)")
_PAGE: Final = re.compile(rb"\s*(<!doctype html|<html)", re.IGNORECASE)


def fetch(wanted: Fetch, send: Callable[[Answer], None]) -> Fetched:
    """All files, then the links to them, then the revision that names them: nothing is seen by halves. Raises
    HubProblem."""
    repo = RepoFolder(Path(wanted.cache), wanted.repo)
    blobs: dict[str, Path] = {}
    unverified: list[str] = []
    meter = _Meter(send)
    path = ""
    try:
        for file in wanted.files:
            path = file.path
            blobs[path], is_verified = _fetch_file(wanted, repo, file, meter)
            unverified += [] if is_verified else [path]
            meter.at(path, file.size)
            meter.send()
        path = ""
        snapshot = _Snapshot(repo)
        for name, blob in blobs.items():
            snapshot.put(repo.pointer(wanted.commit, name), blob)
        _name_commit(repo, wanted.revision, wanted.commit)
    except Exception as error:
        raise translated(error, wanted.repo, wanted.revision, path) from error
    return Fetched(tuple(unverified))


class _Meter:
    """Sends how many bytes there are, now and then: also the last ones before a pause, for which it takes a
    thread; and while what is there is read again, as a sign of life."""

    def __init__(self, send: Callable[[Answer], None]) -> None:
        self._send = send
        self._sending = threading.Lock()
        #: What there is, and what was last sent of it.
        self._now = self._sent = Progress("", 0)
        threading.Thread(target=self._send_now_and_then, daemon=True).start()

    def at(self, path: str, done: int) -> None:
        self._now = Progress(path, done)

    def send(self) -> None:
        with self._sending:
            now = self._now
            if now is not self._sent:
                self._sent = now
                self._send(now)

    def _send_now_and_then(self) -> None:
        while True:
            sleep(PROGRESS_SECONDS)
            self.send()


def _fetch_file(wanted: Fetch, repo: RepoFolder, file: RemoteFile, meter: _Meter) -> tuple[Path, bool]:
    """The blob, complete and checked; and whether its content was compared with a hash. One that is there
    already counts as compared."""
    if (whole := repo.whole(wanted.commit, file)) is not None:
        return whole, True
    url = hf_hub_url(wanted.repo, file.path, revision=wanted.commit)
    headers = request_headers()
    about = get_hf_file_metadata(url, headers=headers)
    if about.size not in (None, file.size):
        raise misbehaves(
            f"{endpoint()} has listed {file.path} with {file.size} bytes, and answers with {about.size} when"
            " asked for it: a page of the network, or another version?"
        )
    etag = file.etag or ""  # not the answer's, which of a mirror may be of any kind, and of any meaning
    blob = repo.blob(etag)
    repo.make(repo.blobs)
    limit = MAX_HTTP_DOWNLOAD_SIZE if wanted.http_max_bytes is None else wanted.http_max_bytes
    if file.size > limit:
        return _by_the_library(wanted, file, meter), file.sha256 is not None
    location = urljoin(url, about.location)
    if not may_see_token(url, location):
        headers.pop("authorization", None)  # the address itself is signed, and its host is not the hub
    with _opened(repo.partial(etag)) as fd:
        if blob.exists():  # another process was faster, while this one waited for the lock
            return blob, True
        partial = _Partial(fd, file, about.etag, meter)
        partial.take_up()
        _receive(location, headers, partial)
        is_verified = partial.check()
        os.fsync(fd)
        repo.partial(etag).rename(blob)
    return blob, is_verified


def may_see_token(url: str, location: str) -> bool:
    """Whether `location` is at the hub that was asked, or at huggingface.co, to which mirrors send."""
    return tuple(urlsplit(location)[:2]) in (tuple(urlsplit(url)[:2]), HUB_ORIGIN)


def _receive(url: str, headers: Mapping[str, str], partial: _Partial) -> None:
    """All bytes that are not there yet, by as many connections as it takes."""
    left = CONNECTIONS
    while not partial.is_full():
        before = partial.at
        try:
            _receive_some(url, headers, partial)
            return
        except (httpx2.NetworkError, httpx2.TimeoutException, httpx2.RemoteProtocolError):
            left = CONNECTIONS if partial.at > before else left - 1
            if left == 0:
                raise
        sleep(CONNECTION_PAUSE_SECONDS)


def _receive_some(url: str, headers: Mapping[str, str], partial: _Partial) -> None:
    """What one connection sends. Raises HubProblem for an answer that is not the file."""
    # A proxy's compression would make lengths and ranges those of something else.
    headers = {**headers, "Accept-Encoding": "identity"}
    if partial.at:
        headers["Range"] = f"bytes={partial.at}-"
    timeout = HF_HUB_DOWNLOAD_TIMEOUT
    with get_session().stream("GET", url, headers=headers, timeout=timeout) as response:
        hf_raise_for_status(response)
        begin, total = _extent(response, partial.at)
        if begin not in (0, partial.at):
            raise partial.unusable(f"bytes from {begin} on, where those from {partial.at} on were asked for")
        if total is not None and total != partial.size:
            is_page = response.headers.get("Content-Type", "").lower().startswith("text/html")
            raise partial.unusable("a page for people") if is_page else partial.cut_at(total)
        if begin < partial.at:  # the server does not send parts
            partial.clear()
        for chunk in response.iter_bytes(chunk_size=CHUNK_BYTES):
            partial.write(chunk)


def _extent(response: httpx2.Response, asked: int) -> tuple[int, int | None]:
    """At which byte of the file the answer begins, and how many bytes the file has, if that is told."""
    if response.status_code == 206:
        found = _RANGE.fullmatch(response.headers.get("Content-Range", "").strip())
        if found is None:
            return asked, None
        return int(found["begin"]), None if found["total"] == "*" else int(found["total"])
    length = response.headers.get("Content-Length", "")
    is_encoded = response.headers.get("Content-Encoding", "identity").lower() != "identity"
    return 0, int(length) if length.isdecimal() and not is_encoded else None


@contextmanager
def _opened(path: Path) -> Iterator[int]:
    """A partial file that is this process's alone. Raises HubProblem."""
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            message = f"another process is fetching {path.name}"
            raise HubProblem(Failed("download_failed", message, "always")) from None
        except OSError as error:  # the hash tells whether two processes have written to it
            if error.errno not in _NO_LOCKS:
                raise
        yield fd
    finally:
        os.close(fd)


class _Partial:
    """The file while it comes: written, hashed and counted. `etag` is that of the server that sends it, which
    counts where the hub has listed no hash."""

    def __init__(self, fd: int, file: RemoteFile, etag: str | None, meter: _Meter) -> None:
        #: Bytes that are there, and bytes of the whole file.
        self.at = 0
        self.size = file.size
        self._fd = fd
        self._file = file
        self._etag = etag
        self._meter = meter
        self._begin()

    def _begin(self) -> None:
        #: Bytes that have reached the disk for certain.
        self._synced = self.at = 0
        #: Of the bytes so far: by content, and as git names a blob.
        self._sha256 = hashlib.sha256()
        self._git = _git_hash(self.size)

    def take_up(self) -> None:
        """Read what is there already. More than there can be is worth nothing."""
        there = os.fstat(self._fd).st_size
        if there > self.size:
            os.ftruncate(self._fd, 0)
        while chunk := os.pread(self._fd, CHUNK_BYTES, self.at):
            self._count(chunk)
            self._meter.at(self._file.path, there)  # no progress, and yet a sign of life
        self._synced = self.at

    def is_full(self) -> bool:
        return self.at == self.size

    def write(self, chunk: bytes) -> None:
        if self.at == 0:
            self._check_head(chunk)
        if self.at + len(chunk) > self.size:
            self.clear()
            raise self.unusable(f"more than {self.size} bytes")
        left = memoryview(chunk)
        while left:
            written = os.pwrite(self._fd, left, self.at)
            self._count(left[:written])
            left = left[written:]
        self._meter.at(self._file.path, self.at)
        if self.at - self._synced >= SYNC_BYTES:
            os.fdatasync(self._fd)
            self._synced = self.at

    def _count(self, chunk: bytes | memoryview) -> None:
        self._sha256.update(chunk)
        if self._file.sha256 is None:
            self._git.update(chunk)
        self.at += len(chunk)

    def clear(self) -> None:
        os.ftruncate(self._fd, 0)
        self._begin()

    def check(self) -> bool:
        """Whether the content was compared with a hash. Raises HubProblem: what is wrong is not kept, what is
        only too short is."""
        if not self.is_full():
            raise self.cut_at(self.at)
        is_right = self._is_right()
        if is_right is False:
            self.clear()
            raise self.unusable(f"{self.size} bytes of another content")
        return is_right is True

    def _is_right(self) -> bool | None:
        """Whether the content is what the hub has; None where it tells no hash that could be compared."""
        sha256, git = self._sha256.hexdigest(), self._git.hexdigest()
        if self._file.sha256 is not None:
            return sha256 == self._file.sha256
        if COMMIT.fullmatch(self._file.blob or ""):
            # Mirrors list git's hash of what git-lfs keeps instead of the content, without saying so.
            lfs = f"version https://git-lfs.github.com/spec/v1\noid sha256:{sha256}\nsize {self.size}\n"
            return self._file.blob in (git, _git_hash(len(lfs), lfs.encode()).hexdigest())
        return True if self._etag in (sha256, git) else None

    def cut_at(self, size: int) -> HubProblem:
        if size > self.size:
            return self.unusable(f"{size} bytes")
        message = f"the hub has ended {self._file.path} after {size} of {self.size} bytes"
        return HubProblem(Failed("hub_misbehaves", message, "later"))

    def unusable(self, what: str) -> HubProblem:
        """An answer that is not the file. Tried once more, and what has come before is kept."""
        path = self._file.path
        message = f"what has come as {path} is not what the hub has listed ({self.size} bytes): {what}."
        return HubProblem(Failed("hub_misbehaves", f"{message} {no_hub(path)}", "once"))

    def _check_head(self, chunk: bytes) -> None:
        """Refuse what cannot be the file by its first bytes: a page of the network, of which the rest of the
        file would be fetched behind it; and anything but a GGUF file where no hash will tell."""
        name, has_hash = self._file.path.lower(), self._file.key is None
        is_model = name.endswith(".gguf")
        is_page = _PAGE.match(chunk) is not None and not name.endswith((".html", ".htm"))
        if is_page and (is_model or not has_hash):
            raise self.unusable("a page for people")
        if is_model and not has_hash and chunk[:4] != GGUF_MAGIC:
            raise self.unusable("no GGUF file")


def _git_hash(size: int, content: bytes = b"") -> Any:
    """Git's name of a blob of `size` bytes, to be fed with what is not in `content` yet."""
    return hashlib.sha1(b"blob %d\0" % size + content, usedforsecurity=False)


class _Snapshot:
    """Puts content into snapshots: as links to its blobs, else, on a file system without symbolic links or
    where HF_HUB_DISABLE_SYMLINKS is set, as the files themselves, as huggingface_hub does."""

    def __init__(self, repo: RepoFolder) -> None:
        self._repo = repo
        self._has_links = os.environ.get("HF_HUB_DISABLE_SYMLINKS", "").upper() not in _YES
        #: Blobs that have become a file of a snapshot: several files may have the same content.
        self._moved: dict[Path, Path] = {}

    def put(self, pointer: Path, blob: Path) -> None:
        self._repo.make(pointer.parent)
        if content_of(pointer) == blob:
            return
        fresh = pointer.with_name(f".{pointer.name[:200]}.{os.getpid()}")
        fresh.unlink(missing_ok=True)
        if self._has_links:
            # Relative, so that a cache can be moved, unless `..` leads elsewhere.
            is_elsewhere = self._repo.snapshots.is_symlink()
            try:
                fresh.symlink_to(blob.absolute() if is_elsewhere else os.path.relpath(blob, pointer.parent))
            except OSError as error:
                if error.errno not in _NO_SYMLINKS:
                    raise
                self._has_links = False
        if not self._has_links:
            self._make(fresh, blob)
            self._moved.setdefault(blob, pointer)
        fresh.replace(pointer)

    def _make(self, fresh: Path, blob: Path) -> None:
        """Move the content, unless some snapshot may still link to it."""
        if blob.exists() and not blob.is_symlink() and blob not in self._repo.linked_blobs():
            blob.rename(fresh)
            return
        try:
            shutil.copyfile(blob if blob.exists() else self._moved[blob], fresh)
        except BaseException:
            fresh.unlink(missing_ok=True)
            raise


def _name_commit(repo: RepoFolder, revision: str, commit: str) -> None:
    if COMMIT.fullmatch(revision):
        return
    ref = repo.ref(revision)
    repo.make(ref.parent)
    fresh = ref.with_name(f"{ref.name}.{os.getpid()}.tmp")
    fresh.write_text(commit)
    fresh.replace(ref)


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

    fetched = hf_hub_download(
        wanted.repo, file.path, revision=wanted.commit, cache_dir=wanted.cache, tqdm_class=Bar
    )
    return content_of(Path(fetched))
