"""Messages between the router and the worker process that asks the hub: a JSON object per line.

The router sends one request (`Look`, `Fetch` or `Sweep`) to the standard input, whose end means that the
router has exited. The worker answers on the standard output: any number of `Progress`, then one of the
others.
"""

from __future__ import annotations

from typing import Literal, TypeAlias

import msgspec

from router.downloads.job import Listing, RemoteFile


class Look(msgspec.Struct, frozen=True, tag=True):
    repo: str
    revision: str


class Fetch(msgspec.Struct, frozen=True, tag=True):
    """Files at `commit` into the cache; `revision` is noted to name it. A file larger than `http_max_bytes`
    comes by the library's own way, which begins anew when it breaks (None: the library's bound)."""

    repo: str
    revision: str
    commit: str
    cache: str
    files: tuple[RemoteFile, ...]
    http_max_bytes: int | None = None


class Sweep(msgspec.Struct, frozen=True, tag=True):
    """Delete `blobs` of repositories that are links to shared content, and the content that no repository
    links to any more."""

    cache: str
    blobs: tuple[str, ...]


class Progress(msgspec.Struct, frozen=True, tag=True):
    """`done` bytes of `path` are there. Also sent while what is there already is read again to check it."""

    path: str
    done: int


class Fetched(msgspec.Struct, frozen=True, tag=True):
    """`unverified` are paths of which the hub tells no hash: only their size was compared."""

    unverified: tuple[str, ...] = ()


class Swept(msgspec.Struct, frozen=True, tag=True):
    freed_bytes: int


class Failed(msgspec.Struct, frozen=True, tag=True):
    """`code` is that of an error in `errors.WORKER_ERRORS`; `message` has no tokens and no signed addresses.
    `retry`: whether another attempt may succeed; "once" for content that was damaged on the way, "later" for
    at most `retry_seconds` without progress, "always" while another process fetches the file."""

    code: str
    message: str
    retry: Literal["never", "once", "later", "always"] = "never"
    retry_after_seconds: float | None = None


Request: TypeAlias = Look | Fetch | Sweep
Answer: TypeAlias = Listing | Progress | Fetched | Swept | Failed
