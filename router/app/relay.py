"""After a handover: requests that still come in, on connections that were open before, are passed to the
process that serves now, and so is who waited for his model. Answers end the connection: each client moves
over with its next request.
"""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

import aiohttp
from aiohttp import web
from multidict import CIMultiDict, CIMultiDictProxy
from yarl import URL

from router.admin.client_address import is_local, shown_address
from router.admin.route import Handler
from router.app.listening import own_address
from router.errors import ShuttingDown
from router.proxy import ProxiedRequest, read_body, rejection_event
from router.supervisor.pool import HandedOver

_HOP_BY_HOP: Final = frozenset(
    {"connection", "keep-alive", "proxy-connection", "te", "trailer", "transfer-encoding", "upgrade"}
    | {"content-length", "expect"}  # written anew
)
#: What is left out of a request: its body has been decoded here.
_LEFT_OUT: Final = _HOP_BY_HOP | {"content-encoding"}
_NOT_ADDED: Final = ("Accept", "Accept-Encoding", "Content-Type", "User-Agent")


class Relay:
    """Off until `begin` says where the next process listens."""

    def __init__(self) -> None:
        #: The URL of the next process, empty while there is none; and its Unix socket, if it is one.
        self._base = ""
        self._path: str | None = None

    def begin(self, listening: socket.socket) -> None:
        address = own_address(listening)
        if listening.family == socket.AF_UNIX:
            self._base, self._path = "http://llama-router", address
        else:
            self._base = str(URL.build(scheme="http", host=address[0], port=address[1]))

    @web.middleware
    async def after_handover(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Pass the request on to the next process. Raises ShuttingDown where that cannot be reached."""
        if not self._base:
            try:
                return await handler(request)
            except HandedOver:
                pass
        # A handler that has read the whole body leaves aiohttp to keep it.
        body = (await read_body(request)).joined() or await request.read()
        sent_for = None if is_local(request) else shown_address(request.remote)
        target = request.rel_url.raw_path_qs
        async with self._asked(request.method, target, request.headers, body, sent_for) as upstream:
            return await _pass_on(request, upstream)

    async def answer(self, request: ProxiedRequest) -> None:
        """The same for a proxied request, also where its client has the head of its stream already."""
        peer = None if is_local(request) else request.peer
        body, client = request.body.joined(), request.client
        try:
            async with self._asked(request.method, request.target, request.headers, body, peer) as upstream:
                if not client.has_begun:
                    client.keeps_alive = False
                    passing = [(k, v) for k, v in upstream.headers.items() if k.lower() not in _HOP_BY_HOP]
                    client.begin(
                        upstream.status, (upstream.reason or "").encode(), passing, upstream.content_length
                    )
                elif upstream.status != 200 or upstream.content_type != "text/event-stream":
                    dialect = request.info.dialect
                    client.send_event(rejection_event(upstream.status, await upstream.read(), dialect))
                    client.end()
                    return
                async for chunk in upstream.content.iter_any():
                    client.send_event(chunk)
                    await client.drain()
                client.end()
        except aiohttp.ClientError:
            client.cut()

    @asynccontextmanager
    async def _asked(
        self, method: str, target: str, given: CIMultiDictProxy[str], body: bytes, client: str | None
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        """Ask the next process, for `client` where that is on another machine. Waits while nothing accepts
        yet: the connection stands in the queue of the socket. Raises ShuttingDown."""
        assert self._base, "there is a next process"
        headers = CIMultiDict((k, v) for k, v in given.items() if _passes(k, v))
        if client is not None:  # the next process sees only that this one asks
            headers.setdefault("X-Forwarded-For", client)
        connector = aiohttp.UnixConnector(self._path) if self._path is not None else None
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=None)
        async with aiohttp.ClientSession(
            connector=connector, timeout=timeout, auto_decompress=False, skip_auto_headers=_NOT_ADDED
        ) as session:
            url = URL(f"{self._base}{target}", encoded=True)
            try:
                upstream = await session.request(
                    method, url, headers=headers, data=body or None, allow_redirects=False
                )
            except (aiohttp.ClientError, OSError) as error:
                raise ShuttingDown("the router is being restarted", retry_after_seconds=1.0) from error
            async with upstream:
                yield upstream


def _passes(name: str, value: str) -> bool:
    """Whether a header of a request goes on. aiohttp cannot send bytes that are not UTF-8."""
    is_text = value.isascii() or value.encode("utf-8", "replace").decode() == value
    return is_text and name.lower() not in _LEFT_OUT


async def _pass_on(request: web.Request, upstream: aiohttp.ClientResponse) -> web.StreamResponse:
    response = web.StreamResponse(status=upstream.status, reason=upstream.reason)
    for name, value in upstream.headers.items():
        if name.lower() not in _HOP_BY_HOP:
            response.headers.add(name, value)
    response.content_length = upstream.content_length
    response.force_close()
    await response.prepare(request)
    try:
        async for chunk in upstream.content.iter_any():
            await response.write(chunk)
    except aiohttp.ClientError as error:
        raise ConnectionResetError("the answer was cut") from error
    await response.write_eof()
    return response
