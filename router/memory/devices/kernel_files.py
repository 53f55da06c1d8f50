"""Small files of /proc and /sys, where a file that is missing, or not ours to read, is an answer like any
other. Only that this process may open no more files is none: all functions raise that OSError, as a limit or
a process that was merely not looked at would make memory look free."""

from __future__ import annotations

from pathlib import Path

from router.descriptors import is_out_of_files


def text(path: Path | str) -> str | None:
    """What is in it, stripped; None where it cannot be read."""
    try:
        # Unbuffered and in one read: these are read a hundred times per sample, and the kernel gives each at
        # once.
        with open(path, "rb", buffering=0) as file:
            return file.read().decode(errors="replace").strip()
    except OSError as error:
        if is_out_of_files(error):
            raise
        return None


def lines(path: Path | str) -> list[str]:
    """Its lines; none where it cannot be read."""
    return (text(path) or "").splitlines()


def number(path: Path | str) -> int | None:
    """The integer in it; None where there is no file, or something else in it."""
    found = text(path) or ""
    return int(found) if found.isascii() and found.isdigit() else None


def numbered(folder: Path | str) -> list[int]:
    """The entries of a folder whose names are numbers; none where it cannot be read."""
    try:
        entries = list(Path(folder).iterdir())
    except OSError as error:
        if is_out_of_files(error):
            raise
        return []
    return [int(entry.name) for entry in entries if entry.name.isascii() and entry.name.isdigit()]
