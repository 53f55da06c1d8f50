"""Takes a model out of the Hugging Face cache: its links, then the content that nothing else links to.

A repository may be there at several commits. The model is deleted from the snapshot in which it is found, and
from those that no revision names any more, where it would otherwise reappear from; a snapshot that another
branch or tag names keeps what it has.

Why not `scan_cache_dir().delete_files()` of huggingface_hub 2.4: where a link of a snapshot leads out of the
cache, it deletes the file there. It refuses a repository with one link to a missing blob, or with a ref to a
missing commit, which is what an interrupted deletion leaves. It leaves empty snapshots and their refs. And it
reads every repository of the cache to delete from one (0.3 s and 9 MiB for 500 repositories of 12 files).
Only content that repositories share is deleted by the library, which has the format of those manifests.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from router.downloads.errors import InUse, NotRemovable
from router.downloads.layout import COMMIT, RepoFolder, target_of
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
    match file.relative_to(cache).parts if file.is_relative_to(cache) else ():
        case (folder, "snapshots", commit, *inner) if inner and COMMIT.fullmatch(commit):
            repo = folder.removeprefix("models--").replace("--", "/", 1)
            if folder.startswith("models--") and is_repo(repo):
                return Place(RepoFolder(cache, repo), commit, "/".join(inner))
    raise NotRemovable(f"{file} is not in the Hugging Face cache {cache}: delete it yourself")


def remove(places: tuple[Place, ...], needed: frozenset[Path]) -> Removed:
    """Delete the files at `places`, all of one repository, but for those that are `needed`: paths that other
    models are made of. Blocks; the links go first, so that half of a model is not found for long.

    Raises InUse when a file cannot be deleted, NotRemovable when the folder is a link to somewhere else.
    """
    repo = places[0].repo
    if any(folder.is_symlink() for folder in (repo.folder, repo.snapshots, repo.blobs)):
        raise NotRemovable(f"{repo.folder} is a link to another place: delete it yourself")
    named = set(repo.commits_by_ref().values())
    own = {place.commit for place in places}
    commits = own | (_commits(repo) - named)
    found = [repo.pointer(commit, place.path) for commit in sorted(commits) for place in places]
    pointers = [pointer for pointer in found if os.path.lexists(pointer)]
    for commit in own:
        pointers += _left_projectors(repo.snapshots / commit, without=pointers)
    kept = [(str(pointer), "another model uses it") for pointer in pointers if pointer in needed]
    gone = [pointer for pointer in pointers if pointer not in needed]
    # A link that leads out of the repository is deleted alone, whatever it leads to.
    targets = {target_of(pointer) for pointer in gone if pointer.is_symlink()}
    blobs = [target for target in targets if target.parent == repo.blobs]
    freed_bytes = sum(_delete(pointer) for pointer in gone)
    linked, shared = repo.linked_blobs(), []
    for blob in sorted(blobs):
        if blob in linked or blob in needed:
            kept.append((str(blob), "another snapshot or model uses it"))
        elif blob.is_symlink():
            shared.append(blob)
        else:
            freed_bytes += _delete(blob)
    sweep(repo)
    return Removed(tuple(map(str, gone)), freed_bytes, tuple(kept), tuple(shared))


def discard(repo: RepoFolder, etags: Iterable[str]) -> None:
    """Delete what an unfinished download has left: partial files, and whole ones that no snapshot has yet;
    through a link to another place the partial files alone, which nothing else makes. Raises InUse."""
    is_link = any(folder.is_symlink() for folder in (repo.folder, repo.blobs))
    linked = repo.linked_blobs()
    for etag in etags:
        _delete(repo.partial(etag))
        if not is_link and repo.blob(etag) not in linked and not repo.blob(etag).is_symlink():
            _delete(repo.blob(etag))
    if not is_link:
        sweep(repo)


def sweep(repo: RepoFolder) -> None:
    """Delete folders that are empty, and the names of snapshots that are gone."""
    _delete_empty_folders(repo.snapshots)
    there = _commits(repo)
    for ref, commit in repo.commits_by_ref().items():
        if commit not in there:
            with suppress(OSError):
                ref.unlink()
    _delete_empty_folders(repo.refs)
    for folder in (repo.blobs, repo.folder):
        with suppress(OSError):
            folder.rmdir()


def _delete_empty_folders(top: Path) -> None:
    for folder, _, _ in os.walk(top, topdown=False):
        with suppress(OSError):
            Path(folder).rmdir()


def _commits(repo: RepoFolder) -> set[str]:
    """Those that have a snapshot."""
    return {one.name for one in repo.snapshots.glob("*") if COMMIT.fullmatch(one.name)}


def _left_projectors(snapshot: Path, without: Iterable[Path]) -> list[Path]:
    """Where no model is left they are of no use. Header and name say what a file is, as in the catalog."""
    left = set(snapshot.rglob("*")).difference(without)
    names = [parse_name(path.relative_to(snapshot).as_posix()) for path in left if not path.is_dir()]
    try:
        found = [look_at(snapshot, name) for name in names if name is not None]
    except OSError:  # no descriptor is left to look with
        return []
    if any(file.kind not in ("projector", "other") for file in found):
        return []
    return [file.path for file in found if file.kind == "projector"]


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
