"""The target of a request, tidied before a route is looked for it.

Clients put base URL and path together by hand: "http://host/" + "/v1/models" begins with two slashes, and
"http://host/v1/" + "/models/" has two in the middle and one behind. A name may come as raw UTF-8."""

from __future__ import annotations

import re
from typing import Final
from urllib.parse import quote

#: Of the absolute form (RFC 9112, 3.2.2).
_ORIGIN: Final = re.compile(r"https?://[^/?#]*", re.IGNORECASE)
#: What follows the model's name there is a path of llama-server's, and passes as it is.
_UPSTREAM: Final = re.compile(r"/+upstream/+")
_SLASHES: Final = re.compile(r"//+")
#: All of ASCII: whatever is encoded already, or not, stays so.
_ASCII: Final = bytes(range(128))


def encode_line(line: bytes) -> bytes:
    """Return a request line, or a part of one, with every byte beyond ASCII percent-encoded: aiohttp's parser
    refuses a target in raw UTF-8."""
    return line if line.isascii() else quote(line, safe=_ASCII).encode()


def tidy(target: str) -> str:
    """Return `target` without doubled slashes in its path and without one at its end. The query stays as it
    is, and so does what /upstream/ passes on."""
    found = _ORIGIN.match(target)
    origin, rest = (found[0], target[found.end() :]) if found is not None else ("", target)
    path, mark, query = rest.partition("?")
    if not path.startswith("/") or ("//" not in path and not path.endswith("/")):
        return target
    if (upstream := _UPSTREAM.match(path)) is not None:
        path = "/upstream/" + path[upstream.end() :]
    else:
        path = _SLASHES.sub("/", path).rstrip("/") or "/"
    return f"{origin}{path}{mark}{query}"
