"""Heads on their way: what of a request's head the child gets to see, and of an answer's head the client."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from http import HTTPStatus
from typing import Final

import httptools

from router.proxy.framing import OWN_FIELDS, Malformed

END_OF_HEAD: Final = b"\r\n\r\n"
CHUNKS: Final = b"Transfer-Encoding: chunked\r\n"
#: What is added to most answers: their model was ready.
_WARM: Final = b"X-Router-Action: already_loaded\r\nX-Router-Queue-Ms: 0\r\nX-Router-Load-Ms: 0\r\n\r\n"
#: A longer head is no answer of a sane server.
HEAD_LIMIT: Final = 64 << 10

_HOP_BY_HOP: Final = frozenset(
    {b"connection", b"keep-alive", b"proxy-authenticate", b"proxy-authorization", b"proxy-connection"}
    | {b"te", b"trailer", b"transfer-encoding", b"upgrade"}
)
#: Ours to read, and none of the child's business; a length is written anew, an expectation was met by us, and
#: a body has been decoded.
_NOT_FORWARDED: Final = _HOP_BY_HOP | {
    b"authorization", b"x-api-key", b"content-length", b"content-encoding", b"expect",
}  # fmt: skip
#: Methods whose requests usually have no body: no length is sent for an empty one.
BODILESS: Final = ("GET", "HEAD", "OPTIONS", "DELETE")


def request_lines(method: str, target: str, headers: Iterable[tuple[bytes, bytes]]) -> bytes:
    """All but the length, and the empty line."""
    lines = [f"{method} {target} HTTP/1.1".encode("ascii", "surrogateescape")]
    named: frozenset[bytes] = frozenset()
    has_host = False
    for name, value in headers:
        lower = name.lower()
        if lower == b"connection":
            named |= names_of(value)
        has_host = has_host or lower == b"host"
    for name, value in headers:
        lower = name.lower()
        if lower not in _NOT_FORWARDED and lower not in named:
            lines.append(name + b": " + value)
    if not has_host:
        lines.append(b"Host: llama-server")
    lines.append(b"")
    return b"\r\n".join(lines)


@dataclass(frozen=True, slots=True)
class Head:
    """The head of an answer. `lines` are those that pass, whatever frames the body; `length` and
    `is_chunked` say how the child framed it. `promised_seconds` is how long it keeps the connection for the
    next request, 0: not at all. So many `counted_bytes` of body follow; None: it is the head of something
    else. `warm` is all that most clients get, to the empty line, where the model was ready.
    """

    status: int
    reason: bytes
    lines: bytes
    length: int | None
    is_chunked: bool
    is_event_stream: bool
    is_encoded: bool
    promised_seconds: float
    counted_bytes: int | None
    warm: bytes


@lru_cache(maxsize=512)
def read_head(block: bytes) -> Head:
    """`block` is a head with the empty line that ends it; many are the same. Raises Malformed."""
    reader = _Reader()
    parser = httptools.HttpResponseParser(reader)
    try:
        parser.feed_data(block)
    except httptools.HttpParserError as error:
        raise Malformed(str(error)) from error
    if not reader.is_complete:
        raise Malformed("its head does not end where it seems to")
    status = parser.get_status_code()
    if status == 101:
        raise Malformed("it changes the protocol, which nobody asked it for")
    if not 100 <= status <= 599:
        raise Malformed(f"its status is {status}, and HTTP has 100 to 599")
    return reader.head(status, parser.should_keep_alive())


def changed(head: Head, status: int, length: int) -> Head:
    """The same head with another status and length of the body."""
    reason = HTTPStatus(status).phrase.encode()
    return read_head(b"HTTP/1.1 %d %b\r\n%bContent-Length: %d\r\n\r\n" % (status, reason, head.lines, length))


class _Reader:
    """Told by the parser what it finds."""

    def __init__(self) -> None:
        self._reason = b""
        self._headers: list[tuple[bytes, bytes]] = []
        self.is_complete = False

    def on_status(self, reason: bytes) -> None:
        self._reason += reason

    def on_header(self, name: bytes, value: bytes) -> None:
        self._headers.append((name, value))

    def on_headers_complete(self) -> None:
        self.is_complete = True

    def head(self, status: int, keeps_alive: bool) -> Head:
        lines, length, promised = [], None, 0.0
        is_chunked = is_events = is_encoded = has_accel = False
        named = frozenset[bytes]().union(
            *(names_of(v) for n, v in self._headers if n.lower() == b"connection")
        )
        for name, value in self._headers:
            match lower := name.lower():
                case b"content-length":
                    length = int(value)
                    continue
                case b"transfer-encoding":
                    is_chunked = value.lower().strip() == b"chunked"
                    if not is_chunked:
                        raise Malformed(f"its body comes as {value[:40]!r}")
                case b"keep-alive":
                    promised = _timeout_seconds(value) if keeps_alive else 0.0
                case b"content-type":
                    is_events = value.lower().partition(b";")[0].strip() == b"text/event-stream"
                case b"content-encoding":
                    is_encoded = value.lower().strip() not in (b"", b"identity")
                case b"x-accel-buffering":
                    has_accel = True
            if lower in _HOP_BY_HOP or lower in named or lower.startswith(OWN_FIELDS):
                continue
            lines.append(name + b": " + value + b"\r\n")
        if is_events and not has_accel:
            lines.append(b"X-Accel-Buffering: no\r\n")  # else an nginx in front collects the stream
        passed = b"".join(lines)
        framing = CHUNKS if is_chunked else b"Content-Length: %d\r\n" % (length or 0)
        has_body = status >= 200 and status not in (204, 304)
        return Head(
            status=status,
            reason=self._reason,
            lines=passed,
            length=length,
            is_chunked=is_chunked,
            is_event_stream=is_events,
            is_encoded=is_encoded,
            promised_seconds=promised,
            counted_bytes=length if has_body and not is_chunked else None,
            warm=b"HTTP/1.1 %d %b\r\n%b%b%b" % (status, self._reason, passed, framing, _WARM),
        )


def names_of(value: bytes) -> frozenset[bytes]:
    """What a Connection header names goes no further than the connection (RFC 9110, 7.6.1)."""
    return frozenset(name.strip().lower() for name in value.split(b","))


def _timeout_seconds(value: bytes) -> float:
    for part in value.lower().split(b","):
        name, _, seconds = part.strip().partition(b"=")
        if name == b"timeout" and seconds.isdigit():
            return float(seconds)
    return 0.0
