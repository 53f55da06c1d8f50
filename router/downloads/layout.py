"""The folders of the Hugging Face cache, as huggingface_hub and `llama-server -hf` lay them out.

models--ORG--REPO/blobs/ETAG            the content
                 /blobs/ETAG.llama-router.incomplete   what there is of it while it is being fetched
                 /snapshots/COMMIT/PATH a link to its blob
                 /refs/REVISION         the commit of a branch or tag

Every name that comes from outside is checked before it becomes a path.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from router.downloads.job import RemoteFile

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


def target_of(link: Path) -> Path:
    """Where a link leads, one step: a blob may itself be a link to content that repositories share."""
    return Path(os.path.normpath(link.parent / link.readlink()))


def content_of(pointer: Path) -> Path:
    """The blob that a file of a snapshot links to, else the file itself."""
    return target_of(pointer) if pointer.is_symlink() else pointer


def size_of(path: Path) -> int | None:
    """Bytes of a file, through links; None where there is none."""
    try:
        return path.stat().st_size
    except OSError:
        return None


def nearest_folder(folder: Path) -> Path:
    """The folder, or as much of its path as exists."""
    return next(one for one in (folder, *folder.parents) if one.exists())


class RepoFolder:
    """One repository in the cache. `repo` has been checked (`router.downloads.source.is_repo`)."""

    def __init__(self, cache: Path, repo: str) -> None:
        self.folder = cache / f"models--{repo.replace('/', '--')}"
        self.blobs = self.folder / "blobs"
        self.snapshots = self.folder / "snapshots"
        self.refs = self.folder / "refs"

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
        return self.snapshots / commit / _checked(path)

    def ref(self, revision: str) -> Path:
        """Raises Outside."""
        return self.refs / _checked(revision)

    def make(self, folder: Path) -> None:
        """Create a folder of this repository. The repository's folder and its `blobs`, `snapshots` and `refs`
        may be links to folders on another disk; a link below them is refused. Raises Outside, OSError."""
        self.folder.parent.mkdir(parents=True, exist_ok=True)
        step = self.folder
        for depth, name in enumerate(("", *folder.relative_to(self.folder).parts)):
            step = step / name
            if step.is_symlink() and depth > 1:
                raise Outside(f"{step} is a link to {step.readlink()}: nothing is written through it")
            if step.is_symlink() and not step.is_dir():
                raise Outside(f"{step} is a link to {step.readlink()}, where there is no folder")
            step.mkdir(exist_ok=True)

    def whole(self, commit: str, file: RemoteFile) -> Path | None:
        """The content of a file that is there completely, in the snapshot of `commit` or as a blob only."""
        pointer = self.pointer(commit, file.path)
        if size_of(pointer) == file.size:
            return content_of(pointer)
        if file.etag is not None and size_of(self.blob(file.etag)) == file.size:
            return self.blob(file.etag)
        return None

    def whole_files(self, commit: str, files: Iterable[RemoteFile]) -> frozenset[str]:
        """The paths of those that are there completely. Blocks on the disk."""
        return frozenset(file.path for file in files if self.whole(commit, file) is not None)

    def done_bytes(self, commit: str, file: RemoteFile) -> int:
        """What there is of a file, whole or in part."""
        if self.whole(commit, file) is not None:
            return file.size
        part = size_of(self.partial(file.etag)) if file.etag else None
        return min(part or 0, file.size)

    def partials(self) -> dict[Path, int]:
        """What downloads that were broken off have left: file and bytes."""
        found = self.blobs.glob(f"*{PARTIAL_SUFFIX}")
        return {one: size for one in found if (size := size_of(one)) is not None}

    def linked_blobs(self) -> set[Path]:
        """Where the links of all snapshots lead."""
        return {target_of(one) for one in self.snapshots.rglob("*") if one.is_symlink()}

    def commits_by_ref(self) -> dict[Path, str]:
        """The file of each branch or tag, and the commit that it names. What cannot be read is left out."""
        found = {}
        for ref in self.refs.rglob("*"):
            try:
                found[ref] = ref.read_text(encoding="ascii").strip()
            except (OSError, UnicodeDecodeError):  # a folder, or nothing that a hub's library has written
                continue
        return found


def _checked(path: str) -> str:
    if not is_safe_path(path):
        raise Outside(f"{path[:200]!r} would lie outside its repository")
    return path
