"""What is read of a plain request is what aiohttp's parser reads of it; what is not plain is left alone."""

from __future__ import annotations

from unittest import mock

from aiohttp.http import HttpRequestParser, RawRequestMessage
from aiohttp.http_exceptions import HttpProcessingError
from hypothesis import event, given, settings
from hypothesis import strategies as st

from router.proxy.plain import HEAD_LIMIT, PlainHead, read_plain, split

USUAL = b"POST /v1/completions HTTP/1.1\r\nHost: h\r\nContent-Length: 2\r\n\r\n{}"

odd = st.sampled_from(
    [
        b"Host: h", b"host: i", b"Content-Length: 2", b"content-length: 2", b"CONTENT-LENGTH: 2",
        b"Content-Length:  2 ", b"Content-Length: +2", b"Content-Length: 2, 2", b"Content-Length: 0x2",
        b"Content-Length : 2", b" Content-Length: 2", b"X-Content-Length: 7", b"X: \r\tContent-Length: 2",
        b"Transfer-Encoding: chunked", b"Connection: close", b"Connection: Keep-Alive", b"Upgrade: websocket",
        b"Authorization: Bearer \xc3\xa4", b"x-api-key: k", b"X-A: b: c", b"X-A:", b": x", b"X A: 1",
        b"X-A: \x00", b"X-A: a\nContent-Length: 9", b"Expect: 100-continue", b"Connection: upgrade", b"",
        b"Accept: */*", b"User-Agent: x (y; z)", b"X-Stainless-Arch: x64", b"Cookie: a=b; c", b"X-B: \xff",
    ]
)  # fmt: skip
starts = st.sampled_from(
    [
        *[b"POST /v1/completions HTTP/1.1"] * 8, b"POST /x?y=z HTTP/1.1", b"POST  /x HTTP/1.1",
        b"POST http://h/x HTTP/1.1", b"post /x HTTP/1.1", b"POST /\xc3\xa4 HTTP/1.1", b"POST /x HTTP/1.0",
    ]
)  # fmt: skip


@st.composite
def requests(draw: st.DrawFn) -> bytes:
    """A plain one into which something was put that may make it another."""
    headers = [b"Host: h", b"Content-Length: 2"]
    for line in draw(st.lists(odd, max_size=3)):
        headers.insert(draw(st.integers(0, len(headers))), line)
    return b"\r\n".join([draw(starts), *headers, b"", b"{}"])


def by_aiohttp(data: bytes) -> tuple[RawRequestMessage, bytes] | None:
    """The one request as aiohttp's server reads it, with its body; None: it refuses it, or sees several."""
    loop = mock.Mock()
    protocol = mock.Mock(_reading_paused=False)
    parser = HttpRequestParser(protocol, loop, 2**16, max_line_size=8190, max_field_size=8190)
    try:
        messages, _, _ = parser.feed_data(data)
    except HttpProcessingError:
        return None
    if len(messages) != 1 or not messages[0][1].is_eof():
        return None
    return messages[0][0], messages[0][1].read_nowait()


@settings(max_examples=1000, deadline=None)
@given(requests())
def test_what_is_plain_is_read_as_aiohttp_reads_it(data: bytes):
    found = split(data)
    plain = read_plain(found[0]) if found is not None else None
    event("plain" if plain is not None else "not plain")
    if found is None or plain is None:
        return
    end = found[2] + found[1]
    if len(data) < end:
        return
    read = by_aiohttp(data[:end])
    assert read is not None, "refused there, and taken here"
    message, body = read
    assert (message.method, message.path) == ("POST", plain.target)
    assert body == data[found[2] : end]
    assert message.headers.get("Authorization", "") == plain.authorization
    assert message.headers.get("x-api-key", "") == plain.x_api_key
    assert message.should_close is not plain.keeps_alive


def test_a_usual_one_is_plain():
    assert split(USUAL) == (USUAL.replace(b"Content-Length: 2\r\n", b"")[:-2], 2, len(USUAL) - 2)
    lines = b"POST /v1/completions HTTP/1.1\r\nHost: h\r\nContent-Length: "
    assert plain_of(USUAL) == PlainHead("/v1/completions", lines, "", "", True, "h")


def test_the_length_is_no_part_of_what_is_kept():
    assert plain_of(USUAL) == plain_of(USUAL.replace(b": 2", b": 3"))


def test_a_second_framing_is_not_plain():
    for header in (b"Content-Length: 2", b"content-length: 3", b"Transfer-Encoding: chunked"):
        assert plain_of(USUAL.replace(b"Host: h", b"Host: h\r\n" + header)) is None


def test_a_head_that_is_long_or_not_whole_is_not_looked_at():
    assert split(USUAL[:-4]) is None
    assert split(USUAL.replace(b"Host: h", b"Host: h\r\nX: " + b"x" * HEAD_LIMIT)) is None


def plain_of(data: bytes) -> PlainHead | None:
    found = split(data)
    assert found is not None
    return read_plain(found[0])
