"""The folders of the Hugging Face cache, as huggingface_hub and `llama-server -hf` lay them out.

models--ORG--REPO/blobs/ETAG            the content
                 /blobs/ETAG.llama-router.incomplete   what there is of it while it is being fetched
                 /snapshots/COMMIT/PATH a link to its blob
                 /refs/REVISION         the commit of a branch or tag

Every name that comes from outside is checked before it becomes a path.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Final

COMMIT: Final = re.compile(r"[0-9a-f]{40}")
_ETAG: Final = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]{7,127}", re.ASCII)
_DRIVE: Final = re.compile(r"[A-Za-z]:")
PARTIAL_SUFFIX: Final = ".llama-router.incomplete"
_LONGEST_PATH: Final = 1000


class Outside(Exception):
    """A name that would lead out of its folder; the message says which."""


def is_safe_path(path: str) -> bool:
    """Whether `path`, of a file in a repository, stays in the folder of that repository on any system."""
    parts = path.split("/")
    return (
        0 < len(path) <= _LONGEST_PATH
        and path.isprintable()
        and "\\" not in path
        and not _DRIVE.match(path)
        and all(part not in ("", ".", "..") and len(part.encode()) <= 255 for part in parts)
    )


def is_etag(etag: str) -> bool:
    """Whether it can be the name of a blob; the hub's are hashes in hexadecimal digits."""
    return bool(_ETAG.fullmatch(etag)) and not etag.endswith((".incomplete", ".lock"))


@dataclass(frozen=True, slots=True)
class RepoFolder:
    """One repository in the cache. `repo` has been checked (`router.downloads.source.is_repo`)."""

    cache: Path
    repo: str

    @property
    def folder(self) -> Path:
        return self.cache / f"models--{self.repo.replace('/', '--')}"

    @property
    def blobs(self) -> Path:
        return self.folder / "blobs"

    @property
    def snapshots(self) -> Path:
        return self.folder / "snapshots"

    @property
    def refs(self) -> Path:
        return self.folder / "refs"

    def blob(self, etag: str) -> Path:
        """Raises Outside."""
        if not is_etag(etag):
            raise Outside(f"{etag[:100]!r} cannot be the name of a blob")
        return self.blobs / etag

    def partial(self, etag: str) -> Path:
        """Raises Outside."""
        return self.blob(etag).with_name(etag + PARTIAL_SUFFIX)

    def pointer(self, commit: str, path: str) -> Path:
        """Raises Outside."""
        if not COMMIT.fullmatch(commit):
            raise Outside(f"{commit[:100]!r} is not a commit")
        if not is_safe_path(path):
            raise Outside(f"{path[:200]!r} would lie outside its repository")
        return self.snapshots / commit / path

    def ref(self, revision: str) -> Path:
        """Raises Outside."""
        if not is_safe_path(revision):
            raise Outside(f"{revision[:100]!r} would lie outside its repository")
        return self.refs / revision

    def make(self, folder: Path) -> None:
        """Create a folder of this repository. The repository's folder and its `blobs`, `snapshots` and `refs`
        may be links to folders, as somebody makes them to use another disk; a link below them is refused.
        Raises Outside, OSError."""
        self.cache.mkdir(parents=True, exist_ok=True)
        step = self.folder
        for depth, name in enumerate(("", *folder.relative_to(self.folder).parts)):
            step = step / name
            if step.is_symlink():
                if depth > 1:
                    raise Outside(f"{step} is a link to {step.readlink()}: nothing is written through it")
                if not step.is_dir():
                    raise Outside(f"{step} is a link to {step.readlink()}, where there is no folder")
            step.mkdir(exist_ok=True)

    def size_of(self, commit: str, path: str) -> int | None:
        """Bytes of a file that is there; None where it is not."""
        try:
            return self.pointer(commit, path).stat().st_size
        except OSError:
            return None

    def blob_size(self, etag: str) -> int | None:
        try:
            return self.blob(etag).stat().st_size
        except OSError:
            return None

    def partial_size(self, etag: str) -> int:
        try:
            return self.partial(etag).lstat().st_size
        except OSError:
            return 0

    def partials(self) -> dict[Path, int]:
        """What downloads have left: file and bytes."""
        try:
            return {
                one: one.lstat().st_size for one in self.blobs.iterdir() if one.name.endswith(PARTIAL_SUFFIX)
            }
        except OSError:
            return {}
