"""Models in a folder of one's own, and in the folders below it.

FOLDER/name.gguf                       name
FOLDER/name-00001-of-00003.gguf ...    name, and name-00001-of-00003 as llama.cpp calls it
FOLDER/path/to/file.gguf               path/to/file; its id is path/to where it is the only model there, or
                                       the only one that is called like the folder

A projector or draft goes with the models in its own folder and below that it fits (`companions`). A model
whose name is taken keeps the longer ones.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable, Iterator
from itertools import groupby
from pathlib import Path
from typing import Final

from router.models.catalog.candidate import Candidate, Notes, is_there
from router.models.catalog.companions import Beside, sort_out
from router.models.catalog.hf_cache import is_repository
from router.models.catalog.kinds import GgufFile, look_at, ruled_out
from router.models.catalog.names import GgufName, parse_name

#: Folders below a models folder that are searched: author/repository/quantisation has three.
MAX_DEPTH: Final = 8
#: A folder that was named by mistake, such as /, must not be searched for hours.
MAX_FOLDERS: Final = 10_000
_ARTICLES: Final = {"projector": "a projector", "draft": "a draft", "other": "no model"}


def scan_models_dir(
    folder: Path, notes: Notes, elsewhere: Collection[str] = (), caches: list[Path] | None = None
) -> list[Candidate]:
    """All models in `folder`; those of a folder come before those of the folders in it. `elsewhere` are the
    real paths of folders that are searched by themselves. Folders in it that hold repositories as a Hugging
    Face cache does are added to `caches`: their models have the ids of a cache.

    A file whose header rules it out as a model is among them; what is left out by its name is noted, with the
    reason, and so is what cannot be read. Raises OSError only where files have run out.
    """
    walk = _Walk(folder, notes, elsewhere)
    names = walk.names()
    if caches is not None:
        caches += walk.caches
    notes.gguf_files += len(names)
    files = [look_at(folder, name) for name in _first_parts(folder, names, notes)]
    parts = sort_out(files, root_is_shared=True)
    unused = {file.name.path: reason for file, reason in parts.unused}
    models = {file.name.path for file in parts.models}
    offered = [file for file in files if file.name.path in models or ruled_out(file.header) is not None]
    for file in files:
        if ruled_out(file.header) is None and (file.name.path in unused or file.kind == "other"):
            reason = unused.get(file.name.path, "its name is that of an importance matrix")
            notes.warnings.append(f"{file.path}: passed over as {_ARTICLES[file.kind]}: {reason}")
    named = _names_of(offered, models)
    return [
        Candidate(
            named[file.name.path][0],
            "models_dir",
            tuple(folder / part for part in file.name.shards),
            mmproj=beside.mmproj.path if beside.mmproj else None,
            draft=beside.draft.path if beside.draft else None,
            also=tuple(named[file.name.path][1:]),
            unused=unused.get(file.name.path),
        )
        for file in offered
        for beside in (parts.beside.get(file.name.path, Beside()),)
    ]


class _Walk:
    """Collects the GGUF files below a folder, sorted: directory order differs between machines."""

    def __init__(self, folder: Path, notes: Notes, elsewhere: Collection[str]) -> None:
        self._folder = folder
        self._notes = notes
        self._seen = set(elsewhere) - {os.path.realpath(folder)}
        self._names: list[GgufName] = []
        self._not_searched: list[Path] = []
        self.caches: list[Path] = []

    def names(self) -> list[GgufName]:
        self._enter("", 0)
        if self._not_searched:
            first, *others = self._not_searched
            more = f" (and {len(others)} more)" if others else ""
            limits = f"at most {MAX_FOLDERS} folders are, {MAX_DEPTH} deep; name it in models_dirs"
            self._notes.warnings.append(f"{first}{more}: not searched: {limits}")
        return self._names

    def _enter(self, inner: str, depth: int) -> None:
        """Take the files of one folder, then its folders. One that has been seen is left out: a link may lead
        back."""
        folder = self._folder / inner
        real = os.path.realpath(folder)
        if real in self._seen:
            return
        if depth > MAX_DEPTH or len(self._seen) >= MAX_FOLDERS:
            self._not_searched.append(folder)
            return
        self._seen.add(real)
        folders = []
        has_repositories = False
        try:
            with os.scandir(folder) as entries:
                for entry in sorted(entries, key=lambda entry: entry.name):
                    path = f"{inner}/{entry.name}" if inner else entry.name
                    if entry.name.startswith("."):
                        continue
                    if _is_dir(entry, self._notes):
                        if is_repository(Path(entry.path)):
                            has_repositories = True
                        else:
                            folders.append(path)
                    elif (name := parse_name(path)) and _is_file_or_broken(entry):
                        self._names.append(name)
        except OSError as error:
            self._notes.cannot_read(folder, error)
        if has_repositories:
            self.caches.append(folder)
        for path in folders:
            self._enter(path, depth + 1)


def _first_parts(folder: Path, names: Iterable[GgufName], notes: Notes) -> Iterator[GgufName]:
    """One file for each: of a split one the first part. Later parts without it are noted once."""
    names = list(names)
    present = {name.path for name in names}
    for name in names:
        if name.index == 1:
            yield name
        elif not present.intersection(name.shards[: name.index - 1]):
            first = name.shards[0].rpartition("/")[2]
            notes.warnings.append(f"{folder / name.path}: left out: its first part, {first}, is missing")


def _names_of(files: Iterable[GgufFile], models: Collection[str]) -> dict[str, list[str]]:
    """The names of each file by its path, its id first. No two files have the same one, and none loses its
    longest name when another file comes."""
    names: dict[str, list[str]] = {}
    taken: set[str] = set()

    def give(file: GgufFile, name: str, *, is_id: bool = False) -> bool:
        if name in taken:
            return False
        taken.add(name)
        names.setdefault(file.name.path, []).insert(0 if is_id else len(names[file.name.path]), name)
        return True

    files = sorted(files, key=lambda file: file.name.count)
    for file in files:
        names[file.name.path] = []
        stem = file.name.path[:-5]
        for name in dict.fromkeys((file.name.prefix, stem, file.name.path)):
            # A part of a split model has llama.cpp's name too; else one name is enough.
            if give(file, name) and (file.name.count == 1 or name == stem):
                break
    for folder, inside in groupby(sorted(files, key=_folder_of), key=_folder_of):
        chosen = _chosen(folder, [file for file in inside if file.name.path in models])
        if folder and chosen is not None:
            give(chosen, folder, is_id=True)
    return names


def _chosen(folder: str, models: list[GgufFile]) -> GgufFile | None:
    """The model that a folder means: the only one, or the only one that is called like it. A file that does
    not say what it is, or cannot be read just now, takes nothing from one that does.
    """
    models = [file for file in models if file.header.architecture is not None] or models
    last = folder.rpartition("/")[2]
    words = GgufName(last, last, "", 1, 1).words
    for is_called in (
        lambda file: True,
        lambda file: file.name.prefix.endswith(f"/{last}"),
        lambda file: file.name.prefix.lower().endswith(f"/{last.lower()}"),
        lambda file: file.name.words == words,
    ):
        if len(found := [file for file in models if is_called(file)]) == 1:
            return found[0]
    return None


def _folder_of(file: GgufFile) -> str:
    return file.name.folder


def _is_dir(entry: os.DirEntry[str], notes: Notes) -> bool:
    try:
        return entry.is_dir()
    except OSError as error:
        if is_there(error):  # no link that leads in a circle
            notes.cannot_read(Path(entry.path), error)
        return False


def _is_file_or_broken(entry: os.DirEntry[str]) -> bool:
    """A link to a file that is gone is listed, with its error; a socket or a pipe is not a model."""
    try:
        return entry.is_file() or entry.is_symlink()
    except OSError:
        return True
