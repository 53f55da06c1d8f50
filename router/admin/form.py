"""The fields of a form that carries files (multipart/form-data), read as it arrives: the few that are wanted
are kept, everything else is passed over unread."""

from __future__ import annotations

import re
from collections.abc import Collection
from enum import Enum, auto
from typing import Final
from urllib.parse import unquote_to_bytes

from aiohttp.helpers import parse_mimetype

from router.errors import InvalidRequest

#: A name or a switch; whatever is longer is not what is looked for.
VALUE_LIMIT: Final = 4 << 10
#: The head of a part names the part and its file.
HEAD_LIMIT: Final = 16 << 10
#: RFC 2046, 5.1.1.
_BOUNDARY: Final = re.compile(r"[0-9A-Za-z'()+_,./:=? -]{0,69}[0-9A-Za-z'()+_,./:=?-]")
#: The header that names a part, to the end of its type (RFC 7578, 4.2).
_DISPOSITION: Final = re.compile(
    rb"^content-disposition[ \t]*:[ \t]*form-data[ \t]*(?=;)", re.MULTILINE | re.IGNORECASE
)
#: One of its parameters: a token, or text in quotes with quoted pairs (RFC 2183; RFC 9110, 5.6.6).
_PARAMETER: Final = re.compile(
    rb';[ \t]*(?:([^\s;="]+)[ \t]*=[ \t]*(?:"((?:[^"\\\r\n]|\\[^\r\n])*)"|([^;"\r\n]*)))?[ \t]*'
)
_QUOTED_PAIR: Final = re.compile(rb"\\(.)", re.DOTALL)
#: Long headers may go on in a line that begins with a blank (RFC 822, 3.1.1).
_FOLD: Final = re.compile(rb"\r\n[ \t]+")


class _At(Enum):
    """What comes next."""

    DELIMITER = auto()
    END_OF_LINE = auto()
    HEAD = auto()
    VALUE = auto()
    NOTHING = auto()


class FormFields:
    """Fed the body piece by piece. `found` holds the wanted fields that have come whole; of several of one
    name the first counts. `is_over`: the last delimiter was seen."""

    def __init__(self, boundary: str, wanted: Collection[str]) -> None:
        self.found: dict[str, str] = {}
        self._wanted = frozenset(wanted)
        self._delimiter = b"\r\n--" + boundary.encode("latin-1")
        self._held = b"\r\n"  # the first delimiter has no line before it
        self._at = _At.DELIMITER
        self._name = ""

    @classmethod
    def of(cls, content_type: str, wanted: Collection[str]) -> FormFields:
        """Raises InvalidRequest where the header does not say how the parts are separated."""
        boundary = parse_mimetype(content_type).parameters.get("boundary", "")
        if _BOUNDARY.fullmatch(boundary) is None:
            raise InvalidRequest("multipart/form-data needs a boundary of 1 to 70 characters")
        return cls(boundary, wanted)

    @property
    def is_over(self) -> bool:
        return self._at is _At.NOTHING

    def feed(self, piece: bytes) -> None:
        """Raises InvalidRequest for what cannot be a form."""
        self._held = self._held + piece if self._held else piece
        while self._step():
            pass

    def _step(self) -> bool:
        """Take the next part of what is held. False: more must come first."""
        match self._at:
            case _At.DELIMITER:
                return self._pass_over()
            case _At.END_OF_LINE:
                return self._end_line()
            case _At.HEAD:
                return self._read_head()
            case _At.VALUE:
                return self._read_value()
            case _At.NOTHING:
                self._held = b""
                return False

    def _pass_over(self) -> bool:
        at = self._held.find(self._delimiter)
        if at < 0:
            # Its beginning may be there already.
            self._held = self._held[-(len(self._delimiter) - 1) :]
            return False
        self._held = self._held[at + len(self._delimiter) :]
        self._at = _At.END_OF_LINE
        return True

    def _end_line(self) -> bool:
        if self._held.startswith(b"--"):
            self._at = _At.NOTHING
            return True
        end = self._held.find(b"\r\n")
        if end < 0:
            if len(self._held) > HEAD_LIMIT:
                raise InvalidRequest("the form has a delimiter whose line does not end")
            return False
        # Only blanks may stand behind a delimiter: else it was none, but a part of a value.
        is_delimiter = not self._held[:end].strip(b" \t")
        self._held = self._held[end:]
        self._at = _At.HEAD if is_delimiter else _At.DELIMITER
        return True

    def _read_head(self) -> bool:
        end = self._held.find(b"\r\n\r\n")
        if end < 0:
            if len(self._held) > HEAD_LIMIT:
                raise InvalidRequest("the form has a part whose headers do not end")
            return False
        head = self._held[: end + 2]
        parameters = _parameters(head)
        self._name = parameters.get("name", "")
        is_file = "filename" in parameters
        is_wanted = self._name in self._wanted and self._name not in self.found and not is_file
        # The line before a delimiter belongs to it, also where the value is empty.
        self._held = self._held[end + 2 :]
        self._at = _At.VALUE if is_wanted else _At.DELIMITER
        return True

    def _read_value(self) -> bool:
        end = self._held.find(self._delimiter)
        if end < 0:
            if len(self._held) > VALUE_LIMIT + len(self._delimiter):
                raise InvalidRequest(
                    f"the field {self._name!r} of the form is longer than {VALUE_LIMIT} bytes"
                )
            return False
        try:
            self.found[self._name] = self._held[2:end].decode()
        except UnicodeDecodeError as error:
            raise InvalidRequest(f"the field {self._name!r} of the form is not UTF-8") from error
        self._at = _At.DELIMITER
        return True


def _parameters(head: bytes) -> dict[str, str]:
    """What the Content-Disposition of a part says, by name in small letters; of two of one name the first
    counts, and a form in another character set (`name*=UTF-8''model`, RFC 5987) counts as the plain one."""
    head = _FOLD.sub(b" ", head)
    found = _DISPOSITION.search(head)
    values: dict[str, str] = {}
    at = found.end() if found is not None else len(head)
    while (parameter := _PARAMETER.match(head, at)) is not None:
        at = parameter.end()
        name, quoted, token = parameter.groups()
        if name is None:  # nothing between two semicolons
            continue
        value = token.strip() if quoted is None else _QUOTED_PAIR.sub(rb"\1", quoted)
        key = name.decode("utf-8", "replace").lower()
        if key.endswith("*"):
            key, value = key[:-1], unquote_to_bytes(value.rpartition(b"'")[2])
        values.setdefault(key, value.decode("utf-8", "replace"))
    return values
