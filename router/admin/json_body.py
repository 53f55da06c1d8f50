"""JSON bodies: accepted in the forms in which llama-server accepts them, and refused with what is wrong."""

from __future__ import annotations

import codecs
import re
from typing import Final, TypeVar

import msgspec

from router.errors import InvalidRequest

T = TypeVar("T")

_UNICODE: Final = (
    (codecs.BOM_UTF32_LE, "UTF-32"),
    (codecs.BOM_UTF32_BE, "UTF-32"),
    (codecs.BOM_UTF16_LE, "UTF-16"),
    (codecs.BOM_UTF16_BE, "UTF-16"),
)
#: An escape in a JSON string. Group 1: a surrogate that is not one half of a pair.
_ESCAPE: Final = re.compile(
    rb"\\(?:u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}|(u[dD][89a-fA-F][0-9a-fA-F]{2})|.)",
    re.DOTALL,
)
#: A lone surrogate is looked for in the first bytes only: the search takes 15 ms for as many.
_SEARCHED_BYTES: Final = 64 << 10


def json_text(body: bytes) -> bytes:
    """Return the part of `body` that llama-server parses. Its JSON parser (nlohmann::json) skips one UTF-8
    byte order mark, and takes a NUL byte for the end of the input."""
    start = len(codecs.BOM_UTF8) if body.startswith(codecs.BOM_UTF8) else 0
    end = body.find(b"\0")
    return body if not start and end < 0 else body[start : end if end >= 0 else None]


def read_json_body(decoder: msgspec.json.Decoder[T], body: bytes) -> T:
    """Decode a request's body. Raises InvalidRequest that says what is wrong with it."""
    try:
        return decoder.decode(json_text(body))
    except msgspec.ValidationError as error:
        is_object = " - at `$" in str(error) or "field" in str(error)
        raise InvalidRequest(f"{'' if is_object else 'the body is not a JSON object: '}{error}") from error
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise InvalidRequest(_describe(body) or f"the body is not a JSON object: {error}") from error
    except RecursionError as error:
        raise InvalidRequest("the body is not a JSON object: it is nested too deeply") from error


def _describe(body: bytes) -> str | None:
    """Describe what msgspec does not report, or reports wrongly: it calls a lone surrogate a truncated input.
    No position is given, as `body` may be only the fields that were read of a larger one."""
    if (encoding := _other_unicode(body)) is not None:
        return f"the body is not a JSON object in UTF-8: it is {encoding}"
    if not json_text(body):
        if b"\0" in body:
            return "the body is not a JSON object: it begins with a NUL"
        return "the body is empty; send a JSON object"
    try:
        body.decode()
    except UnicodeDecodeError as error:
        return f"the body is not a JSON object in UTF-8: byte 0x{body[error.start]:02x}, {error.reason}"
    for escape in _ESCAPE.finditer(body, 0, _SEARCHED_BYTES):
        if escape[1] is not None:
            lone = f"\\{escape[1].decode()}"
            return f"the body is not a JSON object: {lone} is a lone surrogate, half of a UTF-16 pair"
    return None


def _other_unicode(body: bytes) -> str | None:
    """The encoding by its byte order mark, or by where the NUL bytes of the first ASCII characters are."""
    for mark, name in _UNICODE:
        if body.startswith(mark):
            return name
    zeros = [byte == 0 for byte in body[:4]]
    if zeros in ([True, True, True, False], [False, True, True, True]):
        return "UTF-32"
    return "UTF-16" if zeros[:2] in ([True, False], [False, True]) and len(body) % 2 == 0 else None
