"""Requests as nearly all of them are: a head without anything unusual, and a short body whose length it says.

A client says the same head again and again but for the length: what was read of it may be kept. What is
unusual in any way is not refused here, only not recognised: somebody else reads it then."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

import httptools

from router.proxy.heads import END_OF_HEAD, names_of, request_lines

#: A longer head is not looked at.
HEAD_LIMIT: Final = 4 << 10
#: Spelled as every client spells it.
_LENGTH: Final = re.compile(rb"\r\n[Cc]ontent-[Ll]ength:[ \t]*+([0-9]{1,15})[ \t]*+(?=\r\n)")

#: What asks for more than an answer: for other framing, another protocol, a web page's rights, a body that is
#: encoded, a stream that outlives its client; and `X-Router-...`, which is for us.
_UNUSUAL: Final = frozenset(
    {b"transfer-encoding", b"content-length", b"expect", b"upgrade", b"trailer", b"te", b"origin"}
    | {
        b"sec-fetch-site",
        b"content-encoding",
        b"x-conversation-id",
        b"proxy-connection",
        b"access-control-request-method",
    }
)


@dataclass(frozen=True, slots=True)
class PlainHead:
    """A POST. `lines` are the head as its child gets it, up to the length; `authorization` and `x_api_key`
    what it brings to open the door with.
    """

    target: str
    lines: bytes
    authorization: str
    x_api_key: str
    keeps_alive: bool
    host: str


def split(data: bytes) -> tuple[bytes, int, int] | None:
    """Of the request that `data` begins with: its head but for the line of its length, that length, and where
    its body begins. None: the head is not whole, or says nothing of a length.
    """
    end = data.find(END_OF_HEAD, 0, HEAD_LIMIT)
    if end < 0:
        return None
    length = _LENGTH.search(data, 0, end + 2)
    if length is None:
        return None
    start, stop = length.span()
    return data[:start] + data[stop : end + 4], int(length[1]), end + 4


def read_plain(head: bytes) -> PlainHead | None:
    """`head` is one without the line of its length; None: there is something unusual in it."""
    reader = _Reader()
    parser = httptools.HttpRequestParser(reader)
    try:
        parser.feed_data(head)
    except (httptools.HttpParserError, httptools.HttpParserUpgrade):
        return None
    is_plain = reader.is_complete and parser.get_method() == b"POST" and parser.get_http_version() == "1.1"
    if not is_plain or reader.url.isascii() is False:
        return None
    names = [name.lower() for name, _ in reader.headers]
    values = dict(zip(names, (value for _, value in reader.headers), strict=True))
    if not _UNUSUAL.isdisjoint(names) or any(name.startswith(b"x-router-") for name in names):
        return None
    if len(values) < len(names):  # what stands there twice may count twice, once or not at all
        return None
    connection = names_of(values.get(b"connection", b"keep-alive"))
    if b"host" not in names or connection not in ({b"keep-alive"}, {b"close"}):
        return None
    target = reader.url.decode("ascii")
    return PlainHead(
        target,
        request_lines("POST", target, reader.headers) + b"Content-Length: ",
        values.get(b"authorization", b"").decode("utf-8", "surrogateescape"),
        values.get(b"x-api-key", b"").decode("utf-8", "surrogateescape"),
        connection == {b"keep-alive"},
        values[b"host"].decode("utf-8", "surrogateescape"),
    )


class _Reader:
    """Told by the parser what it finds."""

    def __init__(self) -> None:
        self.url = b""
        self.headers: list[tuple[bytes, bytes]] = []
        self.is_complete = False

    def on_url(self, url: bytes) -> None:
        self.url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        self.headers.append((name, value))

    def on_message_complete(self) -> None:
        self.is_complete = True
