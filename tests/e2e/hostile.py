"""Requests that nobody means well with, as bytes: drawn from a seed, so that a bad one can be drawn again."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Final

#: Every path that takes a body, but for the one that replaces the router's process.
PATHS: Final = (
    "/v1/chat/completions",
    "/v1/completions",
    "/completion",
    "/v1/embeddings",
    "/v1/responses",
    "/v1/messages",
    "/v1/messages/count_tokens",
    "/v1/rerank",
    "/infill",
    "/tokenize",
    "/detokenize",
    "/apply-template",
    "/v1/audio/transcriptions",
    "/v1/streams/lookup",
    "/lora-adapters",
    "/props",
    "/slots/0",
    "/models",
    "/models/load",
    "/models/unload",
    "/models/pin",
    "/models/unpin",
    "/models/download",
    "/models/verify-repo",
    "/models/downloads/1/cancel",
)
LOOKS: Final = (
    "/v1/models/",
    "/explain?model=",
    "/vram?model=",
    "/vram/plan?model=",
    "/props?model=",
    "/slots?model=",
    "/metrics?model=",
    "/lora-adapters?model=",
    "/models/log?model=",
    "/upstream/",
    "/v1/stream?conv_id=",
    "/models/downloads/",
)
DELETES: Final = ("/models?model=", "/v1/stream?conv_id=", "/requests/", "/models/downloads/")
#: Ways out of a folder, into a shell, or into somebody else's file.
TRICKS: Final = (
    "../canary",
    "../../canary",
    "../../../../../../../../etc/passwd",
    "/etc/passwd",
    "..",
    ".",
    "",
    " ",
    "~",
    "~/canary",
    "tiny/../../canary",
    "tiny.gguf/../../canary",
    "..\\..\\canary",
    "%2e%2e%2f%2e%2e%2fcanary",
    "..%2f..%2fcanary",
    "%252e%252e%252fcanary",
    "tiny\0",
    "tiny%00.gguf",
    "\0",
    "models--a--b/../../canary",
    "a/b/../../../canary",
    "org/repo/../../canary",
    "org/..",
    "../repo",
    "org/repo:../../canary",
    "org/repo:Q4_0/../x",
    "org//repo",
    "-rf",
    "--host=0.0.0.0",
    "$(touch owned)",
    "`touch owned`",
    "; touch owned",
    "| touch owned",
    "\n touch owned",
    "file:///etc/passwd",
    "http://127.0.0.1:1/../../x.gguf",
    "http://127.0.0.1:1/%2e%2e%2fcanary.gguf",
    "ftp://127.0.0.1/x",
    "http://[::1",
    "javascript:alert(1)",
    "con",
    "aux.gguf",
    "x" * 300,
    "x" * 5000,
    "../" * 200,
    "\u202egguf.tiny",
    "ＴＩＮＹ",
    "tiny\r\nX-Injected: yes",
    "\ud800",
    "😀" * 80,
)

ODD_VALUES: Final[tuple[Any, ...]] = (
    None,
    True,
    False,
    0,
    -1,
    1e308,
    10**30,
    "",
    "x",
    [],
    {},
    [[]],
    [None],
    {"a": {}},
    "\u0000",
    "NaN",
    [1, "a", None],
)
FIELDS: Final = (
    "model",
    "messages",
    "stream",
    "keep_alive",
    "max_tokens",
    "n_predict",
    "prompt",
    "input",
    "force",
    "deadline",
    "args",
    "ctx_size",
    "repo",
    "quantization",
    "include",
    "exclude",
    "revision",
    "conversation_ids",
    "temperature",
)
_METHODS: Final = (
    "GET",
    "POST",
    "PUT",
    "DELETE",
    "PATCH",
    "HEAD",
    "OPTIONS",
    "TRACE",
    "CONNECT",
    "PRI",
    "get",
    "X" * 200,
    "G E T",
    "",
)


@dataclass(frozen=True, slots=True)
class Hostile:
    """`is_whole`: a server can tell where it ends and answers it alone; others may cost the connection."""

    kind: str
    data: bytes
    is_whole: bool


def draw(seed: int, count: int) -> Iterator[Hostile]:
    chance = random.Random(seed)
    kinds = list(_KINDS.items())
    for number in range(count):
        name, (make, is_whole) = kinds[number % len(kinds)]
        yield Hostile(name, make(chance), is_whole)


# --- the parts ---


def request(method: str, target: str, body: bytes = b"", headers: str = "") -> bytes:
    head = f"{method} {target} HTTP/1.1\r\nHost: localhost\r\n{headers}Content-Length: {len(body)}\r\n\r\n"
    return head.encode("utf-8", "surrogatepass") + body


def json_of(value: Any) -> bytes:
    return json.dumps(value).encode()


def quoted(chance: random.Random, text: str) -> str:
    """As it is where a target allows it, or encoded, once or twice, wholly or in part."""
    raw = text.encode("utf-8", "surrogatepass")
    every = chance.random() < 0.5
    safe = b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-._~" + (
        b"" if every else b"/:@!$'()*,;"
    )
    once = "".join(chr(letter) if letter in safe else f"%{letter:02X}" for letter in raw)
    return once.replace("%", "%25") if chance.random() < 0.2 else once


def some(chance: random.Random) -> bytes:
    return chance.randbytes(chance.randrange(1, 200))


# --- whole requests ---


def wrong_types(chance: random.Random) -> bytes:
    body = {name: chance.choice(ODD_VALUES) for name in chance.sample(FIELDS, chance.randrange(1, 8))}
    return request("POST", chance.choice(PATHS), json_of(body))


def no_object(chance: random.Random) -> bytes:
    bodies = [
        json_of(chance.choice(ODD_VALUES)),
        b"",
        b"{",
        b'{"model":',
        b"nul",
        b'{"model":"tiny",}',
        some(chance),
    ]
    kind = chance.choice(
        ["application/json", "text/plain", "", "application/x-www-form-urlencoded", "a/b; c=d"]
    )
    return request("POST", chance.choice(PATHS), chance.choice(bodies), f"Content-Type: {kind}\r\n")


def deep(chance: random.Random) -> bytes:
    depth = chance.choice([100, 1_000, 20_000, 100_000])
    start, end = chance.choice([(b"[", b"]"), (b'{"a":', b"}"), (b'[{"model":', b"}]")])
    inner = start * depth + (b"1" + end * depth if chance.random() < 0.5 else b"")
    body = chance.choice(
        [inner, b'{"model":"nobody","messages":' + inner + b"}", b'{"model":' + inner + b"}"]
    )
    return request("POST", chance.choice(PATHS), body)


def bad_utf8(chance: random.Random) -> bytes:
    bad = chance.choice(
        [b"\xff\xfe", b"\xc0\xaf", b"\xed\xa0\x80", b"\xf8\x88\x80\x80\x80", b"\x00", b"\xe2\x28\xa1"]
    )
    body = chance.choice([b'{"model":"%b"}', b'{"%b":1}', b"%b", b'{"model":"nobody","messages":"%b"}']) % bad
    return request("POST", chance.choice(PATHS), body)


def path_in_body(chance: random.Random) -> bytes:
    trick = chance.choice(TRICKS)
    fields = chance.choice(
        [("model",), ("repo",), ("repo", "quantization"), ("model", "include"), ("repo", "revision")]
    )
    path = chance.choice(
        ["/models/load", "/models/unload", "/models", "/models/download", "/models/verify-repo", *PATHS]
    )
    return request("POST", path, json_of(dict.fromkeys(fields, trick)))


def path_in_target(chance: random.Random) -> bytes:
    trick = quoted(chance, chance.choice(TRICKS))
    if chance.random() < 0.3:
        return request("DELETE", chance.choice(DELETES) + trick)
    return request("GET", chance.choice(LOOKS) + trick)


def odd_query(chance: random.Random) -> bytes:
    query = chance.choice(
        [
            "%",
            "%zz",
            "a=" + "b" * 3000,
            "&" * 500,
            "model=tiny&" * 50,
            "%00=%ff",
            "ctx_size=-1",
            "ctx_size=9" * 9,
        ]
    )
    target = chance.choice([*PATHS, "/v1/models", "/vram", "/explain", "/upstream/tiny/x", "/slots", "/"])
    return request(chance.choice(["GET", "POST"]), f"{target}?{query}", chance.choice([b"", b"{}"]))


def odd_fields_of_ours(chance: random.Random) -> bytes:
    value = chance.choice(
        ["", "x" * 900, "-1", "nan", "1e999", "é".encode().decode("latin-1"), "\t", "a, b", "0x1", "-inf"]
    )
    name = chance.choice(
        [
            "X-Router-Priority",
            "X-Router-Keep-Alive",
            "X-Conversation-Id",
            "Content-Encoding",
            "Last-Event-ID",
            "Origin",
            "Authorization",
            "x-api-key",
            "Range",
            "If-None-Match",
            "Expect",
            "Accept",
            "Content-Type",
        ]
    )
    return request("POST", chance.choice(PATHS), json_of({"model": "nobody"}), f"{name}: {value}\r\n")


def bad_form(chance: random.Random) -> bytes:
    boundary = chance.choice(["b", "", "x" * 200, "a b", '"', "b; b", "--"])
    head = b'\r\nContent-Disposition: form-data; name="%b"\r\n\r\n' % chance.choice(
        [b"model", b'mo"del', b"\xff", b"file"]
    )
    parts = [b"--b", head, some(chance), b"\r\n--b", b"--", b"\r\n", b"--b--", b"nobody", b"y" * 9000]
    body = b"".join(chance.choices(parts, k=chance.randrange(1, 12)))
    kind = f"Content-Type: multipart/form-data; boundary={boundary}\r\n"
    return request(
        "POST",
        chance.choice(["/v1/audio/transcriptions", "/audio/transcriptions", "/v1/completions"]),
        body,
        kind,
    )


def unknown_paths(chance: random.Random) -> bytes:
    paths = [
        "/../..//etc/passwd",
        "//",
        "/%2e%2e/%2e%2e/etc/passwd",
        "/v1/../models",
        "/page/../../config.toml",
        "/page/%2e%2e/state.py",
        "/" + "a/" * 1000,
        "/;",
        "/upstream/../health",
        "/models/../restart/x",
        "/%00",
        "/.git/config",
        "/%C3%A9%ff",
    ]
    return request(chance.choice(["GET", "POST", "PUT", "DELETE", "PATCH", "OPTIONS"]), chance.choice(paths))


# --- requests that are none, or whose end is in dispute ---


def truncated(chance: random.Random) -> bytes:
    whole = request("POST", chance.choice(PATHS), json_of({"model": "tiny", "messages": []}))
    return whole[: chance.randrange(1, len(whole))]


def two_lengths(chance: random.Random) -> bytes:
    body = json_of({"model": "nobody"})
    inner = request("POST", "/models/unload", json_of({"model": "tiny", "force": True}))
    length, chunked = f"Content-Length: {len(body)}\r\n", "Transfer-Encoding: chunked\r\n"
    lines = chance.choice(
        [
            length + f"Content-Length: {len(body) + len(inner)}\r\n",
            length + chunked,
            chunked + length,
            f"Content-Length: {len(body)}, {len(body) + 1}\r\n",
            f"Content-Length: +{len(body)}\r\n",
            f"Content-Length : {len(body)}\r\n",
            "Content-Length: 0x10\r\n",
            "Content-Length: -1\r\n",
            "Content-Length: 1_0\r\n",
            f"Content-Length: {10**30}\r\n",
            "Content-Length:\r\n",
            " Content-Length: 5\r\n" + length,
            "Transfer-Encoding: xchunked\r\n",
            "Transfer-Encoding: chunked, identity\r\n",
            "Transfer-Encoding:\x0bchunked\r\n",
            "Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n",
            "Transfer-Encoding\r\n: chunked\r\n",
            "X: y\nTransfer-Encoding: chunked\r\n" + length,
            "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n",
        ]
    )
    return f"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\n{lines}\r\n".encode() + body + inner


def bad_chunks(chance: random.Random) -> bytes:
    sizes = [
        b"ffffffffffffffff",
        b"-1",
        b"0x5",
        b"5;" + b"e" * 9000,
        b"z",
        b"",
        b"5 5",
        b"+5",
        b"7fffffff",
        b"00000000000000000005",
    ]
    body = (
        chance.choice(sizes)
        + b"\r\nhello\r\n"
        + chance.choice([b"0\r\n\r\n", b"0\r\nX: y\r\n\r\n", b"0\r\n" + b"T: x\r\n" * 500, b""])
    )
    head = f"POST {chance.choice(PATHS)} HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n"
    return head.encode() + body


def too_large(chance: random.Random) -> bytes:
    path = chance.choice(PATHS)
    if chance.random() < 0.7:
        length = chance.choice([1 << 21, 1 << 40, (1 << 63) - 1])
        head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {length}\r\n\r\n"
        return head.encode() + b"x" * 1000
    chunk = b"10000\r\n" + b"x" * 0x10000 + b"\r\n"
    return (
        f"POST {path} HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n".encode() + chunk * 18
    )


def header_bomb(chance: random.Random) -> bytes:
    bomb = chance.choice(
        [
            b"X: y\r\n" * 5000,
            b"X: " + b"y" * 100_000 + b"\r\n",
            b"x" * 20_000 + b": y\r\n",
            b"X: y\r\n z\r\n",
            b"no colon\r\n",
            b": empty\r\n",
            b"X: \x00\r\n",
            b"X\x00: y\r\n",
            b"X: \x7f\r\n",
            b"X: y\rZ: w\r\n",
            b"\xff\xff: y\r\n",
            b"X y: z\r\n",
            b"Cookie: " + b"a=b; " * 10_000 + b"\r\n",
        ]
    )
    return b"GET /v1/models HTTP/1.1\r\nHost: localhost\r\n" + bomb + b"\r\n"


def no_http(chance: random.Random) -> bytes:
    method, target = (
        chance.choice(_METHODS),
        chance.choice(["/", "/v1/models", "*", "http://evil/", "x" * 20_000, "/ /", ""]),
    )
    version = chance.choice(["HTTP/1.1", "HTTP/0.9", "HTTP/2.0", "HTTP/9", "HTTP/1.1 x", "", "ICY/1.0"])
    line = chance.choice(
        [
            f"{method} {target} {version}".encode(),
            some(chance),
            b"\x16\x03\x01\x02\x00\x01",
            b"PRI * HTTP/2.0",
        ]
    )
    return line + b"\r\nHost: localhost\r\n\r\n"


_KINDS: Final[dict[str, tuple[Callable[[random.Random], bytes], bool]]] = {
    "wrong types": (wrong_types, True),
    "no object": (no_object, True),
    "deep": (deep, True),
    "bad UTF-8": (bad_utf8, True),
    "a path in the body": (path_in_body, True),
    "a path in the target": (path_in_target, True),
    "an odd query": (odd_query, True),
    "odd fields of ours": (odd_fields_of_ours, True),
    "a bad form": (bad_form, True),
    "unknown paths": (unknown_paths, True),
    "truncated": (truncated, False),
    "two lengths": (two_lengths, False),
    "bad chunks": (bad_chunks, False),
    "too large": (too_large, False),
    "a header bomb": (header_bomb, False),
    "no HTTP": (no_http, False),
}
