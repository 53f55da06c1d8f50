"""The proxy that a page of aiohttp's documentation leads to, to compare with: `python -m bench.proxy_naive
SOCKET PORT`. Client and StreamResponse, a session that keeps its connections, nothing else."""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator

import aiohttp
import uvloop
from aiohttp import web
from multidict import CIMultiDict

SESSION = web.AppKey("session", aiohttp.ClientSession)
_FRAMING = ("Transfer-Encoding", "Content-Length", "Connection", "Keep-Alive")


async def forward(request: web.Request) -> web.StreamResponse:
    body = await request.read()
    url = f"http://upstream{request.rel_url}"
    async with request.app[SESSION].request(
        request.method, url, data=body, headers=request.headers
    ) as upstream:
        headers = CIMultiDict(upstream.headers)
        for name in _FRAMING:
            headers.popall(name, None)
        response = web.StreamResponse(status=upstream.status, headers=headers)
        response.content_length = upstream.content_length
        await response.prepare(request)
        async for chunk in upstream.content.iter_any():
            await response.write(chunk)
        await response.write_eof()
        return response


async def _session(app: web.Application) -> AsyncIterator[None]:
    connector = aiohttp.UnixConnector(sys.argv[1], limit=0)
    async with aiohttp.ClientSession(connector=connector, timeout=aiohttp.ClientTimeout(None)) as session:
        app[SESSION] = session
        yield


def main() -> None:
    app = web.Application(client_max_size=1 << 30)
    app.cleanup_ctx.append(_session)
    app.router.add_route("*", "/{path:.*}", forward)
    web.run_app(
        app,
        host="127.0.0.1",
        port=int(sys.argv[2]),
        print=None,
        access_log=None,
        loop=uvloop.new_event_loop(),
    )


if __name__ == "__main__":
    main()
