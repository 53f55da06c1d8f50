"""Heads of requests: what is read of them, and what is no head."""

from __future__ import annotations

import pytest

from router.errors import InvalidRequest, NotSupported, RouterError
from router.http.head import HeadTooLarge, Malformed, VersionNotSupported, check_beginning, take_head


def taken(line: str, *headers: str, body: bytes = b""):
    found = take_head("\r\n".join([line, "Host: h", *headers, "", ""]).encode() + body)
    assert found is not None
    return found


def test_what_a_request_says_of_itself():
    head, length, _body_at = taken(
        "POST //v1/models/?a=%20&a=2 HTTP/1.1", "Content-Type: text/plain; charset=x", "X-Two: a", "x-two: b",
        "Content-Length: 7", body=b"1234567GET",
    )  # fmt: skip
    assert (head.method, head.target, head.path, head.raw_path) == (
        "POST", "/v1/models?a=%20&a=2", "/v1/models", "/v1/models",
    )  # fmt: skip
    assert head.query.getall("a") == [" ", "2"]
    assert head.content_type == "text/plain"
    assert head.headers.getall("X-Two") == ["a", "b"]
    assert (head.is_http_11, head.keeps_alive, head.is_chunked, length) == (True, True, False, 7)
    lines = b"POST /v1/models?a=%20&a=2 HTTP/1.1\r\nHost: h\r\nContent-Type: text/plain; charset=x\r\n"
    assert head.lines == lines + b"X-Two: a\r\nx-two: b\r\n"
    assert head.lines_for_instance.startswith(b"POST /v1/models?a=%20&a=2 HTTP/1.1\r\nHost: h\r\n")


@pytest.mark.parametrize("target", ["http://there/a?b", "HTTPS://there/a?b"])
def test_a_target_may_be_a_whole_url(target: str):
    head, _, _ = taken(f"GET {target} HTTP/1.1")
    assert (head.authority, head.target, head.path, head.query["b"]) == ("there", "/a?b", "/a", "")
    assert head.lines.startswith(f"GET {target} HTTP/1.1\r\n".encode()), "as it came, for the application"
    assert head.lines_for_instance.startswith(b"GET /a?b HTTP/1.1\r\n")


def test_a_url_without_a_path_is_the_root():
    assert taken("GET http://there?a=1 HTTP/1.1")[0].target == "/?a=1"


@pytest.mark.parametrize("name", ["Content-Length", "content-length", "CONTENT-LENGTH", "cOnTeNt-lEnGtH"])
@pytest.mark.parametrize("blank", ["", " ", "\t "])
def test_a_length_is_found_however_it_is_spelled(name: str, blank: str):
    head, length, _ = taken("POST / HTTP/1.1", f"{name}:{blank}12{blank}", "X: 1")
    assert length == 12
    assert b"12" not in head.lines


def test_heads_that_differ_in_their_length_alone_are_read_once():
    one, other = (taken("POST / HTTP/1.1", f"Content-Length: {n}")[0] for n in (1, 22))
    assert one is other


@pytest.mark.parametrize(
    ("line", "headers", "keeps_alive"),
    [
        ("GET / HTTP/1.1", ("Connection: close",), False),
        ("GET / HTTP/1.1", ("Connection: keep-alive, close",), False),
        ("GET / HTTP/1.0", (), False),
        ("GET / HTTP/1.0", ("Connection: Keep-Alive",), True),
        ("GET / HTTP/1.1", ("Connection: Upgrade", "Upgrade: h2c"), True),
    ],
)
def test_whether_the_connection_stays(line: str, headers: tuple[str, ...], keeps_alive: bool):
    assert taken(line, *headers)[0].keeps_alive is keeps_alive


@pytest.mark.parametrize(
    ("line", "headers", "error"),
    [
        ("GET / HTTP/1.1", ("Host: other",), Malformed),
        ("GET / HTTP/1.1", ("Content-Type: a/b", "content-type: c/d"), Malformed),
        ("POST / HTTP/1.1", ("Content-Length: 3", "Content-Length: 3"), Malformed),
        ("POST / HTTP/1.1", ("Content-Length: 3", "Transfer-Encoding: chunked"), Malformed),
        ("POST / HTTP/1.1", ("Content-Length: 1234567890123456",), Malformed),
        ("POST / HTTP/1.1", ("Content-Length: +3",), Malformed),
        ("POST / HTTP/1.1", ("Transfer-Encoding: gzip, chunked",), NotSupported),
        ("POST / HTTP/1.0", ("Transfer-Encoding: chunked",), NotSupported),
        ("GET models HTTP/1.1", (), Malformed),
        ("DELETE * HTTP/1.1", (), Malformed),
        ("CONNECT there:443 HTTP/1.1", (), Malformed),
        ("GET ftp://there/ HTTP/1.1", (), Malformed),
        ("GET / HTTP/3.0", (), VersionNotSupported),
        ("GET / HTTP/1.1", tuple(f"X-{n}: 1" for n in range(128)), HeadTooLarge),
        ("GET / HTTP/1.1", ("X: " + "y" * 40_000,), HeadTooLarge),
    ],
)
def test_what_two_readers_may_understand_in_two_ways_is_refused(
    line: str, headers: tuple[str, ...], error: type[RouterError]
):
    with pytest.raises(error):
        taken(line, *headers)


@pytest.mark.parametrize(
    "beginning",
    [
        b"G",
        b"GET /v1/mod",
        b"GET /gr\xc3",
        b"GET / HTTP/1.1\r",
        b"GET / HTTP/1.1\r\nHost: h\r\nX-Y",
        b"OPTIONS *",
    ],
)
def test_the_beginning_of_a_head_is_waited_for(beginning: bytes):
    assert take_head(beginning) is None
    check_beginning(beginning)


@pytest.mark.parametrize("beginning", [b"\x16\x03\x01\x02", b"GET / HTTP/1.1\n", b"{}"])
def test_what_cannot_become_a_head_is_refused_before_its_end(beginning: bytes):
    with pytest.raises(InvalidRequest):
        check_beginning(beginning)
