"""A text file that a person wrote, in whatever an editor made of it."""

from __future__ import annotations

import codecs
from pathlib import Path

_UTF_16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)


class NotText(ValueError):
    """The file is not UTF-8: why, and what to do."""


def read_text_file(path: Path) -> str:
    """Return what the file holds, its lines ended by "\\n", without a byte order mark and without NULs at its
    end. Raises OSError, and NotText."""
    data = path.read_bytes()
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        if data.startswith(_UTF_16):
            raise NotText("is UTF-16 text; save it as UTF-8") from error
        raise NotText(f"is not UTF-8 text (byte {error.start})") from error
    return text.replace("\r\n", "\n").replace("\r", "\n").rstrip("\0")
