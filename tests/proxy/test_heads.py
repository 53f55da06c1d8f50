"""What of a child's answer is the client's to see."""

from __future__ import annotations

import pytest

from router.proxy.framing import Chunked, Malformed
from router.proxy.heads import read_head


def head(status: object = 200, *lines: str) -> bytes:
    return "\r\n".join([f"HTTP/1.1 {status} Fine", *lines, "", ""]).encode()


@pytest.mark.parametrize("status", [200, 204, 304, 404, 451, 503, 599, 100, 103])
def test_a_status_of_http_passes(status: int):
    assert read_head(head(status)).status == status


@pytest.mark.parametrize("status", [0, 1, 99, 101, 600, 700, 999, 1000, -1, "2xx", ""])
def test_what_is_no_status_or_changes_the_protocol_is_no_answer(status: object):
    with pytest.raises(Malformed):
        read_head(head(status))


def test_a_childs_word_about_this_router_does_not_pass():
    lines = (
        "X-Router-Action: loaded",
        "x-router-queue-ms: 9",
        "X-ROUTER-New: 1",
        "X-Routerless: 1",
        "X-A: 1",
    )
    read = read_head(head(200, *lines, "Access-Control-Allow-Origin: *", "Content-Length: 0"))
    assert read.lines == b"X-Routerless: 1\r\nX-A: 1\r\n"
    assert read.warm.lower().count(b"x-router-action") == 1


def test_nor_behind_the_body():
    chunked = Chunked()
    chunked.feed(b"0\r\nX-Router-Action: loaded\r\nX-Took: 1\r\naccess-control-allow-origin: *\r\n\r\n")
    assert chunked.is_over
    assert chunked.trailers == b"X-Took: 1\r\n"
