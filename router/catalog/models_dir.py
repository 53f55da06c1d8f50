"""Models in a folder of one's own.

FOLDER/name.gguf                       name
FOLDER/name-00001-of-00003.gguf ...    name, and name-00001-of-00003 as llama.cpp calls it
FOLDER/name/*.gguf                     name: one model with its projector (mmproj*) and draft (mtp-*, ...)
FOLDER/name/a.gguf, FOLDER/name/b.gguf name is the first of several; name/a and name/b are each of them
FOLDER/author/repo/*.gguf              author/repo, the same way (as LM Studio keeps its models)
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from router.catalog.candidate import Candidate
from router.catalog.names import GgufName, choose_sibling, parse_name
from router.catalog.notes import Notes, is_there


def scan_models_dir(folder: Path, notes: Notes) -> list[Candidate]:
    """All models in `folder`, by name. What cannot be read is left out and noted. Raises OSError only where
    files have run out.
    """
    seen: set[str] = set()
    listing = _Listing.of(folder, seen, notes)
    found = [_single(folder, name) for name in listing.models(folder, notes)]
    for name in listing.folders:
        inner = _Listing.of(folder / name, seen, notes)
        if inner.files:
            found += _one_folder(folder / name, name, inner, notes)
            continue
        for repo in inner.folders:
            innermost = _Listing.of(folder / name / repo, seen, notes)
            found += _one_folder(folder / name / repo, f"{name}/{repo}", innermost, notes)
    return found


class _Listing:
    """The GGUF files and the folders of one folder, sorted: directory order differs between machines."""

    def __init__(self, files: Sequence[GgufName], folders: Sequence[str]) -> None:
        self.files = files
        self.folders = folders

    @classmethod
    def of(cls, folder: Path, seen: set[str], notes: Notes) -> _Listing:
        """Empty for a folder that has been `seen`: a link may lead back."""
        files: list[GgufName] = []
        folders: list[str] = []
        real = os.path.realpath(folder)
        if real in seen:
            return cls(files, folders)
        seen.add(real)
        try:
            with os.scandir(folder) as entries:
                for entry in sorted(entries, key=lambda entry: entry.name):
                    if entry.name.startswith("."):
                        continue
                    if _is_dir(entry, notes):
                        folders.append(entry.name)
                    elif (name := parse_name(entry.name)) and _is_file_or_broken(entry):
                        files.append(name)
        except OSError as error:
            notes.cannot_read(folder, error)
        return cls(files, folders)

    def models(self, folder: Path, notes: Notes) -> Iterator[GgufName]:
        """One file per model: of a split one the first part."""
        present = {name.path for name in self.files}
        for name in self.files:
            if name.is_model and name.index == 1:
                yield name
            elif name.is_model and not present.intersection(name.shards[: name.index - 1]):
                first = name.shards[0]
                notes.warnings.append(f"{folder / name.path}: left out: its first part, {first}, is missing")


def _single(folder: Path, name: GgufName) -> Candidate:
    as_llama_cpp = (name.path.removesuffix(".gguf"),) if name.count > 1 else ()
    return Candidate(
        name.prefix, "models_dir", tuple(folder / part for part in name.shards), also=as_llama_cpp
    )


def _one_folder(folder: Path, name: str, listing: _Listing, notes: Notes) -> Iterator[Candidate]:
    models = sorted(listing.models(folder, notes), key=lambda model: (model.count == 1, model.path))
    for number, model in enumerate(models):
        mmproj = choose_sibling((file for file in listing.files if file.is_mmproj), model)
        draft = choose_sibling((file for file in listing.files if file.is_draft), model)
        by_file = f"{name}/{model.prefix}"
        yield Candidate(
            name if number == 0 else by_file,
            "models_dir",
            tuple(folder / part for part in model.shards),
            mmproj=folder / mmproj.path if mmproj else None,
            draft=folder / draft.path if draft else None,
            also=(by_file,) if number == 0 and len(models) > 1 else (),
        )


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
