"""Small files of /proc and /sys, where a file that is missing, or not ours to read, is an answer like any
other. Only that this process may open no more files is none: all functions raise that OSError, as a limit or
a process that was merely not read would make memory look free."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from router.descriptors import is_out_of_files


def text(path: Path | str) -> str | None:
    """The content, stripped; None where it cannot be read."""
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
    """The lines; none where the file cannot be read."""
    return (text(path) or "").splitlines()


def number(path: Path | str) -> int | None:
    """The integer in the file; None where there is no file, or something else in it."""
    return _integer(text(path) or "")


def numbers(path: Path | str) -> dict[str, int]:
    """The lines of the form `key number`, as memory.stat has them; others are left out."""
    pairs = (line.partition(" ") for line in lines(path))
    return {key: found for key, _, value in pairs if (found := _integer(value)) is not None}


def numbered(folder: Path | str) -> list[int]:
    """The entries of a folder whose names are numbers; none where it cannot be read."""
    try:
        names = [entry.name for entry in Path(folder).iterdir()]
    except OSError as error:
        if is_out_of_files(error):
            raise
        return []
    return [found for name in names if (found := _integer(name)) is not None]


def all_asleep(addresses: Collection[str], root: Path = Path("/")) -> bool:
    """True where every one of these PCI devices is in runtime suspend (a laptop's unused GPU), and there is
    one.

    To open the driver, or to ask it anything, resumes such a GPU, and it stays up for seconds after the last
    file on it was closed. This attribute is the kernel's own bookkeeping and costs nothing.
    """
    devices = root / "sys/bus/pci/devices"
    statuses = [text(devices / address / "power/runtime_status") for address in addresses]
    return bool(statuses) and all(status in ("suspended", "suspending") for status in statuses)


def _integer(word: str) -> int | None:
    return int(word) if word.isascii() and word.isdigit() else None
