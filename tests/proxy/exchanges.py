"""Exchanges made up at random: what a client says, in which pieces, what its child answers, and who of the
two breaks off where. Both sides are bare bytes: nothing here is made or read by what is tested."""

from __future__ import annotations

import random
from dataclasses import dataclass
from enum import Enum

#: As it is in a header of the request, so that the child finds its script again.
NAME = "X-Exchange"
_SIZES = (0, 1, 2, 17, 400, 5_000, 65_535, 65_536, 65_537, 300_000)
_SIZE_WEIGHTS = (6, 6, 6, 20, 30, 20, 2, 2, 2, 2)
_EVENT = b'data: {"choices":[{"delta":{"content":"%d"}}]}\n\n'


class Framing(Enum):
    COUNTED = "counted"
    CHUNKED = "chunked"
    UNTIL_CLOSED = "until closed"
    NONE = "none"


@dataclass(frozen=True, slots=True)
class Answer:
    """What a child says: `parts` are written one by one. `dies_after` so many bytes; None: it lives."""

    status: int
    framing: Framing
    is_event_stream: bool
    body: bytes
    parts: tuple[bytes, ...]
    keeps_connection: bool
    dies_after: int | None = None
    trailers: bytes = b""


@dataclass(frozen=True, slots=True)
class Request:
    """`leaves_after` so many bytes of the answer have come the client breaks off; None: it stays."""

    name: str
    method: str
    body: bytes
    parts: tuple[bytes, ...]
    is_old: bool
    answer: Answer
    leaves_after: int | None = None


def make(name: str, luck: random.Random, *, pipelined: bool) -> Request:
    method = luck.choices(("POST", "GET", "HEAD"), (12, 2, 1))[0]
    is_old = not pipelined and luck.random() < 0.08
    answer = _answer(luck, method, may_end=not pipelined)
    body = _blob(luck) if method == "POST" else b""
    leaves = None
    if not pipelined and answer.dies_after is None and luck.random() < 0.08:
        leaves = luck.randrange(sum(map(len, answer.parts)))
    return Request(name, method, body, _said(name, method, body, luck, is_old), is_old, answer, leaves)


def _said(name: str, method: str, body: bytes, luck: random.Random, is_old: bool) -> tuple[bytes, ...]:
    lines = [
        f"{method} /v1/{luck.choice(('completions', 'x', 'a%2Fb?q=%20+&q='))} HTTP/1.{0 if is_old else 1}",
        "Host: somewhere",
        f"{NAME}: {name}",
    ]
    lines += [f"X-{luck.randrange(99)}: {'v' * luck.randrange(60)}" for _ in range(luck.randrange(4))]
    if luck.random() < 0.3:
        lines.append("Authorization: Bearer secret")
    is_chunked = bool(body) and not is_old and luck.random() < 0.3
    if is_chunked:
        lines.append("Transfer-Encoding: chunked")
    elif method == "POST":
        lines.append(f"Content-Length: {len(body)}")
    luck.shuffle(lines[1:])
    head = ("\r\n".join(lines) + "\r\n\r\n").encode()
    return split(head + (chunked(body, luck, b"", ";a=b") if is_chunked else body), luck)


def _answer(luck: random.Random, method: str, *, may_end: bool) -> Answer:
    """`may_end`: the connection to the client may end with this answer."""
    is_stream = luck.random() < 0.4
    body = _events(luck) if is_stream else _blob(luck)
    status = (
        200 if is_stream else luck.choices((200, 201, 204, 304, 400, 404, 503), (20, 1, 1, 1, 2, 1, 1))[0]
    )
    framing = luck.choices(
        (Framing.COUNTED, Framing.CHUNKED, Framing.UNTIL_CLOSED),
        (2, 20, 2 * may_end) if is_stream else (20, 5, may_end),
    )[0]
    if status in (204, 304):
        body, framing = b"", Framing.NONE
    reason = luck.choice(("OK", "Whatever It Is", ""))
    lines = [f"HTTP/1.1 {status} {reason}", "Server: llama.cpp"]
    lines.append(f"Content-Type: {'text/event-stream' if is_stream else 'application/json'}")
    lines += [f"X-{luck.randrange(99)}: {'w' * luck.randrange(60)}" for _ in range(luck.randrange(4))]
    keeps = framing in (Framing.COUNTED, Framing.NONE) and luck.random() < 0.8
    if keeps or (framing is Framing.CHUNKED and luck.random() < 0.9):
        lines.append("Keep-Alive: timeout=5, max=100")  # llama-server says so and closes after chunks
    elif framing is not Framing.UNTIL_CLOSED:
        lines.append("Connection: close")
    trailers = b""
    said = b""
    match framing:
        case Framing.COUNTED:
            lines.append(f"Content-Length: {len(body)}")
            said = body
        case Framing.CHUNKED:
            lines.append("Transfer-Encoding: chunked")
            trailers = b"X-Late: 1\r\nX-Later: 2\r\n" if luck.random() < 0.1 else b""
            said = chunked(body, luck, trailers)
        case Framing.UNTIL_CLOSED:
            said = body
        case Framing.NONE:
            pass
    interim = b"HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n" if luck.random() < 0.05 else b""
    if luck.random() < 0.05:
        interim = b"HTTP/1.1 100 Continue\r\n\r\n" + interim
    head = ("\r\n".join(lines) + "\r\n\r\n").encode()
    whole = interim + head + (b"" if method == "HEAD" else said)
    dies = None
    if may_end and luck.random() < 0.1:
        dies = luck.randrange(len(whole))
    return Answer(
        status,
        framing,
        is_stream,
        b"" if method == "HEAD" else body,
        split(whole, luck),
        keeps,
        dies,
        trailers,
    )


def chunked(body: bytes, luck: random.Random, trailers: bytes, extension: str = " ;a=b") -> bytes:
    out, at = [], 0
    largest = luck.choice((1, 7, 300, 70_000)) if len(body) < 3_000 else luck.choice((900, 70_000))
    while at < len(body):
        size = luck.randint(1, largest)
        piece = body[at : at + size]
        line = f"{len(piece):x}" if luck.random() < 0.9 else f"{len(piece):04X}{extension}"
        out.append(line.encode() + b"\r\n" + piece + b"\r\n")
        at += size
    return b"".join(out) + b"0\r\n" + trailers + b"\r\n"


def split(data: bytes, luck: random.Random) -> tuple[bytes, ...]:
    """At random places, most often at none."""
    if luck.random() < 0.5:
        return (data,)
    cuts = sorted(luck.randrange(len(data) + 1) for _ in range(luck.choice((1, 2, 3, 8))))
    return tuple(data[a:b] for a, b in zip([0, *cuts], [*cuts, len(data)], strict=True) if a < b)


def _blob(luck: random.Random) -> bytes:
    return luck.randbytes(luck.choices(_SIZES, _SIZE_WEIGHTS)[0])


def _events(luck: random.Random) -> bytes:
    return b"".join(_EVENT % n for n in range(luck.choice((1, 3, 30, 200)))) + b"data: [DONE]\n\n"
