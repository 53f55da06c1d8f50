"""What a look at the disk leaves to say: warnings, and the places that could not be read this time."""

from __future__ import annotations

import errno
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from router.descriptors import is_out_of_files

_NOT_THERE: Final = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP)


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
