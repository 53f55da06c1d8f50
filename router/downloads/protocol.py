"""What the router and the process that speaks to the hub say to each other: a JSON object per line.

The router asks once (`Look`, `Fetch` or `Sweep`), on the standard input, whose end means that the router is
gone; the worker says how it goes, on the standard output, and at last `Listed`, `Fetched`, `Swept` or
`Failed`.
"""

from __future__ import annotations

from typing import Literal, TypeAlias

import msgspec

from router.downloads.job import Listing, RemoteFile

Problem: TypeAlias = Literal[
    "repo_not_found",
    "revision_not_found",
    "file_not_found",
    "gated",
    "unauthorized",
    "offline",
    "unreachable",
    "limited",
    "hub_error",
    "misbehaves",
    "disk_full",
    "not_writable",
    "outside",
    "corrupt",
    "busy",
    "unexpected",
]


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


class Listed(msgspec.Struct, frozen=True, tag=True):
    listing: Listing


class Progress(msgspec.Struct, frozen=True, tag=True):
    """`done` bytes of `path` are there. Also said while what is there already is read again to check it."""

    path: str
    done: int


class Fetched(msgspec.Struct, frozen=True, tag=True):
    """`unverified` are paths of which the hub tells no hash: only their size was compared."""

    unverified: tuple[str, ...] = ()


class Swept(msgspec.Struct, frozen=True, tag=True):
    freed_bytes: int


class Failed(msgspec.Struct, frozen=True, tag=True):
    """`message` is for people, without tokens and signed addresses. `is_transient`: worth another try."""

    problem: Problem
    message: str
    is_transient: bool = False
    retry_after_seconds: float | None = None


Request: TypeAlias = Look | Fetch | Sweep
Said: TypeAlias = Listed | Progress | Fetched | Swept | Failed
