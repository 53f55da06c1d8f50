"""Takes a model out of the Hugging Face cache: its links, then the content that nothing else links to.

A repository may be there at several commits. The model goes from the snapshot in which it is found, and from
those that no revision names any more, where it would otherwise reappear from; a snapshot that another branch
or tag names is somebody else's wish, and keeps what it has.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from router.downloads.errors import InUse, NotRemovable
from router.downloads.layout import COMMIT, RepoFolder
from router.downloads.source import is_repo
from router.models.catalog.kinds import look_at
from router.models.catalog.names import parse_name


@dataclass(frozen=True, slots=True)
class Place:
    """A file in the cache: `path` in the snapshot of `commit`."""

    repo: RepoFolder
    commit: str
    path: str


@dataclass(frozen=True, slots=True)
class Removed:
    """`kept` are files that could have gone and have not, each with the reason. `shared` are blobs that are
    links to content which repositories share: huggingface_hub has to delete them."""

    files: tuple[str, ...]
    freed_bytes: int
    kept: tuple[tuple[str, str], ...]
    shared: tuple[Path, ...] = ()


def place_of(cache: Path, file: Path) -> Place:
    """Where in the cache a model's file is. Raises NotRemovable for any other file."""
    try:
        folder, snapshots, commit, *inner = file.relative_to(cache).parts
    except ValueError:
        folder, snapshots, commit, inner = "", "", "", []
    repo = folder.removeprefix("models--").replace("--", "/", 1)
    is_ours = folder.startswith("models--") and snapshots == "snapshots" and COMMIT.fullmatch(commit)
    if not is_ours or not inner or not is_repo(repo):
        raise NotRemovable(f"{file} is not in the Hugging Face cache {cache}: delete it yourself")
    return Place(RepoFolder(cache, repo), commit, "/".join(inner))


def remove(places: tuple[Place, ...], needed: frozenset[Path]) -> Removed:
    """Delete the files at `places`, all of one repository, but for those that are `needed`: paths that other
    models are made of. Blocks; the links go first, so that nobody finds half of a model for long.

    Raises InUse when a file cannot be deleted, NotRemovable when the folder is a link to somewhere else.
    """
    repo = places[0].repo
    if any(folder.is_symlink() for folder in (repo.folder, repo.snapshots, repo.blobs)):
        raise NotRemovable(f"{repo.folder} is a link to another place: delete it yourself")
    work = _Work(repo, needed)
    for pointer in _pointers(places):
        work.unlink(pointer)
    for commit in {place.commit for place in places}:
        for pointer in _left_projectors(repo, commit):
            work.unlink(pointer)
    work.delete_blobs()
    sweep(repo)
    return Removed(tuple(work.gone), work.freed_bytes, tuple(work.kept), tuple(work.shared))


def discard(repo: RepoFolder, etags: Iterable[str]) -> int:
    """Delete what an unfinished download has left: partial files, and whole ones that no snapshot has yet;
    through a link to another place the partial files alone, which nothing else makes. Returns the bytes that
    are free by it. Raises InUse."""
    is_link = any(folder.is_symlink() for folder in (repo.folder, repo.blobs))
    linked = {_blob_of(repo, pointer) for pointer in _all_pointers(repo)}
    freed = 0
    for etag in etags:
        freed += _delete(repo.partial(etag))
        if not is_link and repo.blob(etag) not in linked and not repo.blob(etag).is_symlink():
            freed += _delete(repo.blob(etag))
    if not is_link:
        sweep(repo)
    return freed


class _Work:
    def __init__(self, repo: RepoFolder, needed: frozenset[Path]) -> None:
        self.gone: list[str] = []
        self.kept: list[tuple[str, str]] = []
        self.shared: list[Path] = []
        self.freed_bytes = 0
        self._repo = repo
        self._needed = needed
        self._blobs: set[Path] = set()

    def unlink(self, pointer: Path) -> None:
        if pointer in self._needed:
            self.kept.append((str(pointer), "another model uses it"))
            return
        blob = _blob_of(self._repo, pointer)
        if blob is not None:
            self._blobs.add(blob)
        self.freed_bytes += _delete(pointer)
        self.gone.append(str(pointer))

    def delete_blobs(self) -> None:
        linked = {_blob_of(self._repo, pointer) for pointer in _all_pointers(self._repo)}
        for blob in sorted(self._blobs):
            if blob in linked or blob in self._needed:
                self.kept.append((str(blob), "another snapshot or model uses it"))
                continue
            if blob.is_symlink():  # repositories share its content, which goes with the last of them
                self.shared.append(blob)
                continue
            self.freed_bytes += _delete(blob)


def _pointers(places: Iterable[Place]) -> list[Path]:
    """The same files in every snapshot that the model is to go from."""
    places = tuple(places)
    repo, own = places[0].repo, {place.commit for place in places}
    commits = own | set(_commits(repo)) - _named_commits(repo)
    found = [repo.pointer(commit, place.path) for commit in sorted(commits) for place in places]
    return [pointer for pointer in found if os.path.lexists(pointer)]


def _left_projectors(repo: RepoFolder, commit: str) -> list[Path]:
    """Where no model is left they are of no use. Header and name say what a file is, as in the catalog."""
    folder = repo.snapshots / commit
    left = (Path(root, file).relative_to(folder) for root, _, files in os.walk(folder) for file in files)
    names = filter(None, (parse_name(path.as_posix()) for path in left))
    try:
        found = [look_at(folder, name) for name in names]
    except OSError:  # no descriptor is left to look with
        return []
    if any(file.kind not in ("projector", "other") for file in found):
        return []
    return [file.path for file in found if file.kind == "projector"]


def _commits(repo: RepoFolder) -> list[str]:
    try:
        return sorted(one.name for one in repo.snapshots.iterdir() if COMMIT.fullmatch(one.name))
    except OSError:
        return []


def _named_commits(repo: RepoFolder) -> set[str]:
    named = set()
    for root, _, names in os.walk(repo.refs):
        for name in names:
            with suppress(OSError, UnicodeDecodeError):
                named.add((Path(root) / name).read_text(encoding="ascii").strip())
    return named


def _all_pointers(repo: RepoFolder) -> Iterator[Path]:
    for root, _, names in os.walk(repo.snapshots):
        for name in names:
            yield Path(root) / name


def _blob_of(repo: RepoFolder, pointer: Path) -> Path | None:
    """The blob of this repository that a link leads to. A file that is no link is its own content."""
    if not pointer.is_symlink():
        return None
    target = Path(os.path.normpath(pointer.parent / pointer.readlink()))
    return target if target.parent == repo.blobs else None


def _delete(file: Path) -> int:
    """Returns the bytes that are free by it. Raises InUse."""
    try:
        status = file.lstat()
        file.unlink()
    except FileNotFoundError:
        return 0
    except OSError as error:
        raise InUse(f"{file} cannot be deleted: {error.strerror or error}") from error
    return status.st_size if status.st_nlink == 1 and stat.S_ISREG(status.st_mode) else 0


def sweep(repo: RepoFolder) -> None:
    """Delete folders that are empty, and the names of snapshots that are gone."""
    for root, _, _ in os.walk(repo.snapshots, topdown=False):
        with suppress(OSError):
            Path(root).rmdir()
    there = set(_commits(repo))
    for root, _, names in os.walk(repo.refs, topdown=False):
        for name in names:
            with suppress(OSError, UnicodeDecodeError):
                ref = Path(root) / name
                if ref.read_text(encoding="ascii").strip() not in there:
                    ref.unlink()
        with suppress(OSError):
            Path(root).rmdir()
    for folder in (repo.blobs, repo.folder):
        with suppress(OSError):
            folder.rmdir()
