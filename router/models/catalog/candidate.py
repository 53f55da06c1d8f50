"""A model as a source found it, before its settings are known; what its files say, and what was noted."""

from __future__ import annotations

import errno
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Literal, TypeAlias

from router.descriptors import is_out_of_files
from router.models.catalog.header import Header, Unusable, glance

_NOT_THERE: Final = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP)

Source: TypeAlias = Literal["models_dir", "hf_cache", "preset"]
Stamp: TypeAlias = tuple[str, int, int]
"""A file as it was: its real path, bytes, and time of change in nanoseconds."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """`files` are all parts there should be, the first of them first. `also` are further names. `unused` says
    of a projector or draft why it goes with no model.
    """

    id: str
    source: Source
    files: tuple[Path, ...]
    mmproj: Path | None = None
    draft: Path | None = None
    also: tuple[str, ...] = ()
    unused: str | None = None


@dataclass(frozen=True, slots=True)
class Examined:
    """The files of a model as they are now. `error` says why they cannot be used; `real` is that of the
    first; `unread` are those that are there, and could not be read this time.
    """

    real: str
    size_bytes: int
    stamps: tuple[Stamp, ...]
    header: Header
    error: str | None
    unread: tuple[Path, ...] = ()


def examine(files: tuple[Path, ...]) -> Examined:
    """Look at each file, and into the first. Raises OSError only where files have run out."""
    problems: list[str] = []
    missing: list[str] = []
    stamps: list[Stamp] = []
    unread: list[Path] = []
    header = Header()
    for number, file in enumerate(files):
        try:
            found = glance(file)
            header = header if number else found
        except Unusable as unusable:
            if isinstance(unusable.__cause__, OSError):
                unread.append(file)
            if number and not file.exists():
                missing.append(file.name)
            else:
                problems.append(f"{file} {unusable}")
        if stamp := stamp_of(file):
            stamps.append(stamp)
    if missing:
        shown = ", ".join(missing[:8]) + (f" and {len(missing) - 8} more" if len(missing) > 8 else "")
        problems.append(f"{files[0]}: {len(missing)} of its {len(files)} parts are missing: {shown}")
    return Examined(
        real=os.path.realpath(files[0]),
        size_bytes=sum(size for _, size, _ in stamps),
        stamps=tuple(stamps),
        header=header,
        error="; ".join(problems) or None,
        unread=tuple(unread),
    )


def stamp_of(file: Path) -> Stamp | None:
    """None when the file is gone or cannot be seen."""
    try:
        status = file.stat()
    except OSError:
        return None
    return os.path.realpath(file), status.st_size, status.st_mtime_ns


@dataclass(slots=True)
class Notes:
    """`unread` are folders and files that are there and may hold models, though nobody can tell now: an
    empty place is something else (see `Catalog.keeping`). `gguf_files` counts the files that were found,
    models or not.
    """

    warnings: list[str] = field(default_factory=list)
    unread: list[Path] = field(default_factory=list)
    gguf_files: int = 0

    def cannot_read(self, path: Path, error: OSError) -> None:
        """Raises the error itself where files have run out: then nothing at all can be told of the disk."""
        if is_out_of_files(error):
            raise error
        self.warnings.append(f"{path}: {error.strerror or error}")
        if is_there(error):
            self.unread.append(path)


def is_there(error: OSError) -> bool:
    """Whether a place may be there that could not be read: its disk does not answer, it is another user's."""
    return error.errno not in _NOT_THERE
