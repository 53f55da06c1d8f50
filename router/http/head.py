"""The head of a request: found in what comes, and read once (httptools), as clients send the same head again
and again, but for the length of the body."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any, Final

import httptools
from aiohttp.helpers import parse_mimetype
from multidict import CIMultiDict, CIMultiDictProxy, MultiMapping
from yarl import URL

from router.admin.target import encode_line, tidy
from router.errors import InvalidRequest, NotSupported
from router.proxy.heads import END_OF_HEAD, names_of, request_lines

#: A longer head is refused. (aiohttp bounds each line by 8 KiB, nginx each by 8 KiB and all by 32 KiB.)
HEAD_LIMIT: Final = 32 << 10
#: A head with more headers is refused, as by aiohttp. (nginx: 1000.)
MOST_HEADERS: Final = 128
#: Heads up to this size are kept as they were read, so that all that are kept take a few MiB.
KEPT_HEAD_BYTES: Final = 4 << 10
_KEPT_HEADS: Final = 256
#: Where the length of the body stands. What is not found by it is no length, and the parser says so.
_LENGTH: Final = re.compile(rb"\r\n[Cc]ontent-[Ll]ength:[ \t]*+([0-9]{1,15})[ \t]*+(?=\r\n)")
#: The same as no usual client spells it: looked for second, as it takes twice as long (0.7 us).
_ODD_LENGTH: Final = re.compile(_LENGTH.pattern, re.IGNORECASE)
#: The version in a request line that the parser refuses.
_VERSION: Final = re.compile(rb"[^\r\n]* HTTP/(\d+(?:\.\d+)?)[ \t]*\r?\n")
#: A target as clients send it to a proxy (RFC 9112, 3.2.2).
_URL: Final = re.compile(r"https?://([^/?#]*)", re.IGNORECASE)
#: Fields of which two may be understood in two ways.
_SINGLE: Final = frozenset({b"host", b"content-length", b"transfer-encoding", b"content-type", b"user-agent"})


class Malformed(InvalidRequest):
    """What was sent is no HTTP request, or one that two readers may understand in two ways."""

    code = "malformed_request"


class HeadTooLarge(InvalidRequest):
    """The request line and its headers are longer than HEAD_LIMIT, or there are more than MOST_HEADERS."""

    status = 431
    code = "request_head_too_large"


class VersionNotSupported(InvalidRequest):
    """The request line names another version of HTTP than 1.0 or 1.1."""

    status = 505
    code = "http_version_not_supported"

    def __init__(self, version: str) -> None:
        super().__init__(f"HTTP/{version} is not supported; send HTTP/1.1 or HTTP/1.0")


@dataclass(frozen=True, eq=False)
class RequestHead:
    """`target` is the path and the query, tidied and in ASCII, or "*"; where it came as a whole URL,
    `authority` is the host that it named. `lines` are the request line and the headers as they came, but for
    tidying, without a Content-Length."""

    method: str
    target: str
    authority: str
    is_http_11: bool
    keeps_alive: bool
    is_chunked: bool
    raw_headers: tuple[tuple[bytes, bytes], ...]
    headers: CIMultiDictProxy[str]
    lines: bytes

    @cached_property
    def is_plain(self) -> bool:
        """Whether its client can get the usual head of an answer (router.proxy.client.ClientResponse)."""
        return self.keeps_alive and self.is_http_11 and self.method != "HEAD"

    @cached_property
    def url(self) -> URL:
        path, _, query = self.target.partition("?")
        return URL.build(path=path, query_string=query, encoded=True)  # URL() reads an authority in "//v1"

    @cached_property
    def path(self) -> str:
        """Decoded."""
        return self.url.path

    @cached_property
    def raw_path(self) -> str:
        """Encoded, without the query."""
        return self.target.partition("?")[0]

    @cached_property
    def query(self) -> MultiMapping[str]:
        return self.url.query

    @cached_property
    def content_type(self) -> str:
        """The type of the body without its parameters; application/octet-stream where none is given."""
        given = parse_mimetype(self.headers.get("Content-Type", ""))
        return f"{given.type}/{given.subtype}" if given.type else "application/octet-stream"

    @cached_property
    def lines_for_instance(self) -> bytes:
        """What an instance gets of the head for this target, up to the length."""
        return self.lines_for(self.target)

    def lines_for(self, target: str) -> bytes:
        return request_lines(self.method, target, self.raw_headers)


def take_head(data: bytes) -> tuple[RequestHead, int | None, int] | None:
    """The head that `data` begins with; the length of the body, None where the head has none; and where the
    body begins. None: the head is not whole. Raises HeadTooLarge, Malformed, VersionNotSupported and
    NotSupported."""
    end = data.find(END_OF_HEAD, 0, HEAD_LIMIT)
    if end < 0:
        if len(data) >= HEAD_LIMIT:
            raise HeadTooLarge(f"the request line and the headers are longer than {HEAD_LIMIT >> 10} KiB")
        return None
    found = _LENGTH.search(data, 0, end + 2) or _ODD_LENGTH.search(data, 0, end + 2)
    if found is None:
        block, length = data[: end + 4], None
    else:
        start, stop = found.span()
        block, length = data[:start] + data[stop : end + 4], int(found[1])
    head = _kept(block) if end < KEPT_HEAD_BYTES else _read(block)
    if head.is_chunked and length is not None:
        raise Malformed("Content-Length and Transfer-Encoding exclude each other")
    return head, length, end + 4


def check_beginning(data: bytes) -> None:
    """Raises Malformed and VersionNotSupported where `data`, the beginning of a head, cannot become one."""
    _parse(_with_ascii_target(data), _Reader())


def _read(block: bytes) -> RequestHead:
    block = _with_ascii_target(block)
    reader = _Reader()
    parser = _parse(block, reader)
    version = parser.get_http_version()
    if version not in ("1.1", "1.0"):
        raise VersionNotSupported(version)
    if not reader.is_complete:
        raise Malformed("the head does not end where it seems to")
    is_http_11 = version == "1.1"
    if len(reader.headers) > MOST_HEADERS:
        raise HeadTooLarge(
            f"the request has {len(reader.headers)} headers; at most {MOST_HEADERS} are accepted"
        )
    names = [name.lower() for name, _ in reader.headers]
    for name in _SINGLE:
        if names.count(name) > 1:
            raise Malformed(f"the header {name.decode()} stands there twice")
    if is_http_11 and b"host" not in names:
        raise Malformed("the header Host is missing")
    if b"content-length" in names:
        raise Malformed("Content-Length is no number")
    codings = [value for name, value in reader.headers if name.lower() == b"transfer-encoding"]
    is_chunked = [names_of(value) for value in codings] == [frozenset({b"chunked"})]
    if codings and not (is_chunked and is_http_11):
        raise NotSupported(
            f"Transfer-Encoding {codings[0][:40].decode('latin-1')!r}: send chunked, or a length"
        )
    headers = CIMultiDict(
        (name.decode("latin-1"), value.decode("utf-8", "surrogateescape")) for name, value in reader.headers
    )
    method, given = parser.get_method(), tidy(reader.url.decode("ascii"))
    url = _URL.match(given)
    authority, target = ("", given) if url is None else (url[1], given[url.end() :])
    if url is not None and not target.startswith("/"):
        target = f"/{target}"
    if not target.startswith("/") and (method, target) != (b"OPTIONS", "*"):
        raise Malformed(f"the target {target[:80]!r} is neither a path nor a URL")
    first_line = block.index(b"\r\n")
    return RequestHead(
        method=method.decode("ascii"),
        target=target,
        authority=authority,
        is_http_11=is_http_11,
        keeps_alive=reader.keeps_alive,
        is_chunked=is_chunked,
        raw_headers=tuple(reader.headers),
        headers=CIMultiDictProxy(headers),
        lines=b"%b %b HTTP/%b" % (method, given.encode(), version.encode()) + block[first_line:-2],
    )


_kept = lru_cache(maxsize=_KEPT_HEADS)(_read)


def _with_ascii_target(data: bytes) -> bytes:
    """The parser refuses a target in raw UTF-8, which some clients send."""
    end = data.find(b"\n")
    end = len(data) if end < 0 else end
    return encode_line(data[:end]) + data[end:]


def _parse(data: bytes, reader: _Reader) -> Any:
    parser = reader.parser = httptools.HttpRequestParser(reader)
    try:
        parser.feed_data(data)
    except httptools.HttpParserUpgrade:
        pass  # the router switches to no other protocol: the request is answered as one of HTTP
    except httptools.HttpParserError as error:
        if data.startswith(b"PRI * HTTP/2.0"):  # how HTTP/2 begins (RFC 9113, 3.4)
            raise VersionNotSupported("2.0") from error
        version = _VERSION.match(data)
        if version is not None and version[1] not in (b"1.0", b"1.1"):
            raise VersionNotSupported(version[1].decode()) from error
        raise Malformed(str(error)) from error
    return parser


class _Reader:
    """What the parser finds."""

    def __init__(self) -> None:
        self.url = b""
        self.headers: list[tuple[bytes, bytes]] = []
        self.is_complete = False
        self.keeps_alive = False
        self.parser: Any = None

    def on_url(self, url: bytes) -> None:
        self.url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        self.headers.append((name, value))

    def on_headers_complete(self) -> None:
        self.is_complete = True
        self.keeps_alive = self.parser.should_keep_alive()  # forgotten once the message is complete
