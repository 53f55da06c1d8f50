"""One client does not have all streams of a kind."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any, cast

import aiohttp
import pytest
from aiohttp import web

from router.admin import events, log
from router.admin.page import stream
from router.admin.stream_limit import Streams
from router.errors import ClientLimit, Unavailable
from tests.admin.conftest import Api


class Request:
    """What is read of one: where it comes from."""

    def __init__(self, peername: Any) -> None:
        self._peername = peername
        self.transport = self

    def get_extra_info(self, name: str) -> Any:
        return {"peername": self._peername}[name]


def of(address: str) -> web.Request:
    return cast(web.Request, Request((address, 5)))


def test_a_client_has_its_share_and_the_others_the_rest():
    streams = Streams(0.75)
    with ExitStack() as held:
        for _ in range(3):
            held.enter_context(streams.hold(of("10.0.0.1"), 4, "are open"))
        with pytest.raises(ClientLimit, match=r"10\.0\.0\.1 has 3 of the 4 .*server\.client_share"):
            held.enter_context(streams.hold(of("10.0.0.1"), 4, "are open"))
        held.enter_context(streams.hold(of("10.0.0.2"), 4, "are open"))
        with pytest.raises(Unavailable, match="4 are open"):
            held.enter_context(streams.hold(of("10.0.0.3"), 4, "are open"))
        assert len(streams) == 4
    assert len(streams) == 0
    with streams.hold(of("10.0.0.1"), 4, "are open"):
        assert len(streams) == 1


def test_with_a_share_of_one_a_client_may_have_all_and_with_any_one():
    for share, most, count in ((1.0, 4, 4), (0.01, 4, 1)):
        streams = Streams(share)
        with ExitStack() as held:
            for _ in range(count):
                held.enter_context(streams.hold(of("10.0.0.1"), most, "are open"))
            with pytest.raises((ClientLimit, Unavailable)):
                held.enter_context(streams.hold(of("10.0.0.1"), most, "are open"))


def test_what_fails_within_gives_its_place_back():
    streams = Streams(1.0)
    with pytest.raises(OSError, match="gone"), streams.hold(of("10.0.0.1"), 1, "are open"):
        raise OSError("gone")
    assert len(streams) == 0


@pytest.mark.parametrize(
    ("path", "module", "limit"),
    [
        ("/models/sse", events, "READERS_MAX"),
        ("/status/sse", stream, "VIEWERS_MAX"),
        ("/models/log?model=tiny&follow=1", log, "FOLLOWERS_MAX"),
    ],
)
async def test_one_client_does_not_have_all_streams_of_any_kind(
    api: Api, monkeypatch: pytest.MonkeyPatch, path: str, module: Any, limit: str
):
    monkeypatch.setattr(module, limit, 2)
    await api.start(client_share=0.5)
    async with aiohttp.ClientSession() as client, client.get(api.url + path) as open_stream:
        assert open_stream.status == 200
        refused = await api.get(path)
        assert (refused.status, refused.error["code"]) == (429, "client_limit")
        assert refused.headers["Retry-After"] == "5"
        other = aiohttp.TCPConnector(local_addr=("127.0.0.2", 0))
        async with aiohttp.ClientSession(connector=other) as elsewhere, elsewhere.get(api.url + path) as more:
            assert more.status == 200
