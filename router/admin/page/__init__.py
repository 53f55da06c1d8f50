"""The status page at `/`: static files without any secret, and the state of the whole router as a stream.

The page asks for nothing from anywhere else, and its Content-Security-Policy keeps it so."""

from __future__ import annotations

import hashlib
from functools import cache
from importlib.resources import files
from typing import Any, Final

from aiohttp import web

from router.admin.page import stream
from router.admin.page.stream import VIEWERS
from router.admin.route import Access, Route

__all__ = ["ROUTES", "VIEWERS"]

_FILES: Final = {
    "/": ("index.html", "text/html"),
    "/page/page.css": ("page.css", "text/css"),
    "/page/page.js": ("page.js", "text/javascript"),
    "/page/draw.js": ("draw.js", "text/javascript"),
    "/page/talk.js": ("talk.js", "text/javascript"),
    "/page/icon.svg": ("icon.svg", "image/svg+xml"),
}
_HEADERS: Final = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
        "form-action 'none'; base-uri 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    # Asked for anew each time and answered with 304: an upgrade of the router is an upgrade of the page.
    "Cache-Control": "no-cache",
}


async def page_file(request: web.Request) -> web.Response:
    """One file of the page. It needs no key: whoever sees it is asked for one before anything is told."""
    name, kind = _FILES[request.path]
    body, etag = _file(name)
    if request.headers.get("If-None-Match") == etag:
        return web.Response(status=304, headers={**_HEADERS, "ETag": etag})
    return web.Response(body=body, content_type=kind, charset="utf-8", headers={**_HEADERS, "ETag": etag})


@cache
def _file(name: str) -> tuple[bytes, str]:
    body = files(__package__).joinpath(name).read_bytes()
    return body, f'"{hashlib.sha256(body).hexdigest()[:16]}"'


ROUTES = (
    *(
        Route(
            "GET",
            path,
            page_file,
            Access.PUBLIC,
            summary=f"The status page: {name}",
            answer=Any,
            media=(kind,),
        )
        for path, (name, kind) in _FILES.items()
    ),
    *stream.ROUTES,
)
