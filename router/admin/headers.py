"""The headers of a request that the router itself reads: text, or 400."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from aiohttp import web

from router.admin.route import Handler
from router.errors import InvalidRequest

#: What becomes part of JSON or of an answer's head. Any other header is compared at most, or passes to
#: llama-server as it came; keys are compared as bytes (`router.admin.keys`).
_READ: Final = frozenset({b"access-control-request-headers", b"origin", b"x-conversation-id"})
_OURS: Final = b"x-router-"


@web.middleware
async def check_headers(request: web.Request, handler: Handler) -> web.StreamResponse:
    check_text(request.raw_headers)
    return await handler(request)


def check_text(headers: Iterable[tuple[bytes, bytes]]) -> None:
    """Raises InvalidRequest for bytes that are not UTF-8 where they would be read as text: JSON and the
    headers of an answer cannot hold them."""
    for name, value in headers:
        if not value.isascii() and ((lower := name.lower()) in _READ or lower.startswith(_OURS)):
            try:
                value.decode()
            except UnicodeDecodeError as error:
                byte = f"byte {error.start} is 0x{value[error.start]:02x}"
                raise InvalidRequest(f"the header {name.decode('ascii')} is not UTF-8: {byte}") from error
