"""Downloads as values: what is wished, what a hub has, a job and its events."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, Literal, TypeAlias

import msgspec

from router.errors import RouterError

MAIN: Final = "main"
JobState: TypeAlias = Literal["queued", "downloading", "waiting", "finished", "failed", "cancelled"]
#: While in one of these there is something to cancel.
ACTIVE: frozenset[JobState] = frozenset({"queued", "downloading", "waiting"})


class DownloadSpec(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`include` and `exclude` are patterns over paths; `quantization` "" means llama.cpp's choice. `name` is
    what whoever asked calls it until it is there: clients of llama.cpp wait for news of what they asked for.
    """

    repo: str
    revision: str = MAIN
    quantization: str = ""
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    name: str = ""


class RemoteFile(msgspec.Struct, frozen=True):
    """A file of a repository. `sha256` is of its content, where the hub keeps it as a large file; else `blob`
    is git's hash of the content, or of the pointer that git-lfs keeps instead. Where the hub (a mirror) tells
    no hash, `key` names the content."""

    path: str
    size: int
    sha256: str | None = None
    blob: str | None = None
    key: str | None = None

    @property
    def etag(self) -> str | None:
        """The name of its content in the cache: as huggingface_hub names it, where the hub tells a hash."""
        return self.sha256 or self.blob or self.key


class Listing(msgspec.Struct, frozen=True, tag=True):
    """A repository at one commit. `left_out` are names that would lead out of its folder; `refusal` says why
    its files may not be fetched with the token there is, or without one."""

    repo: str
    commit: str
    files: tuple[RemoteFile, ...]
    gated: bool = False
    private: bool = False
    refusal: str | None = None
    left_out: tuple[str, ...] = ()


class Problem(msgspec.Struct, frozen=True):
    code: str
    message: str

    @classmethod
    def of(cls, error: RouterError) -> Problem:
        return cls(error.code, error.message)


class Job(msgspec.Struct, frozen=True):
    """One download, as it stands. Times are Unix time. `models` are the ids that it becomes; `done` are the
    bytes there are of each file; `note` is what to know though it went well."""

    id: str
    wish: DownloadSpec
    commit: str
    files: tuple[RemoteFile, ...]
    models: tuple[str, ...]
    state: JobState
    created_at: float
    updated_at: float
    done: Mapping[str, int] = {}
    attempts: int = 0
    retry_at: float | None = None
    error: Problem | None = None
    note: str | None = None
    bytes_per_second: float | None = None

    @property
    def is_active(self) -> bool:
        return self.state in ACTIVE

    @property
    def model(self) -> str:
        """What it is called before it is a model."""
        return self.wish.name or (self.models[0] if self.models else self.wish.repo)

    @property
    def total_bytes(self) -> int:
        return sum(file.size for file in self.files)

    @property
    def done_bytes(self) -> int:
        return sum(self.done.values())

    @property
    def left_bytes(self) -> int:
        return self.total_bytes - self.done_bytes

    @property
    def key(self) -> tuple[object, ...]:
        """Two jobs that agree on it are one."""
        return (self.wish.repo, self.wish.revision, frozenset(file.path for file in self.files))


class DownloadEvent(msgspec.Struct, frozen=True):
    """As llama.cpp's GET /models/sse sends it: download_progress, download_finished, download_failed,
    model_remove."""

    model: str
    event: str
    data: Mapping[str, Any]
