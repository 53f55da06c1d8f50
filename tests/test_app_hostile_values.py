"""Hostile numbers, names and bytes in every place where a client can put one, at every endpoint: each request
is answered, no answer is a failure of the router's, and what is refused has changed nothing."""

from __future__ import annotations

import asyncio
import json
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote_from_bytes, urlsplit

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from router.admin import FAMILIES
from router.admin.route import Route
from tests.make_gguf import make_llama
from tests.proxy.wire import Message, read_answer
from tests.router_process import RouterProcess
from tests.test_app import binary
from tests.waiting import until

PATIENCE_SECONDS = 20.0
#: It replaces the process.
LEFT_OUT = ("/restart",)
ROUTES = [route for family in FAMILIES for route in family.ROUTES if route.path not in LEFT_OUT]

#: JSON as it stands in a body. What is small and good is left out: it would load, or end, a model.
NUMBERS = (
    *(sign + "1" + "0" * zeros for zeros in (9, 12, 18, 19, 20, 38, 308, 309, 320, 400, 4299, 4300, 5000)
      for sign in ("", "-")),
    "1e9", "1e10", "1e308", "1e309", "-1e400", "1e-400", "1e99999", "-0.0", "NaN", "Infinity",
    "-Infinity", "0x10", "1.", ".5", "+1", "1_000", "18446744073709551616",
    "9223372036854775808", "2147483648", "0.1e", "-", "00",
)  # fmt: skip
TEXTS = (
    *(json.dumps(number) for number in NUMBERS),
    *(json.dumps("9" * 320 + unit) for unit in ("", "h", "m", "s", "ms", "h1m")),
    '"\u0663h"', '"\\ud800"', '"\\u0000"', '"nan"', '"-inf"', '"1e999"', '" "', '""', '"x"',
    '"\u00e9"', '"5m3h"',
)  # fmt: skip
OTHERS = ("null", "true", "[]", "{}", "[[1e400]]", '{"a":1e400}', "[" * 200 + "]" * 200, "nul", "", '"')
VALUES = st.sampled_from((*NUMBERS, *TEXTS, *OTHERS))
#: As many tokens may be asked for, and the fake llama-server would say them all.
LONG_ANSWERS = re.compile(r"\+?1(0{9}|0{12}|0{18}|0{19}|e9|e10)|9223372036854775808|2147483648")
TOKENS = VALUES.filter(lambda value: LONG_ANSWERS.fullmatch(value) is None)
MODELS = st.sampled_from(['"tiny"', '"other"', '"other"', '"nobody"', '"TINY"', '"\\ud800"', "1e400", "null"])
#: Fields of inference bodies, beside those that the router's own shapes have.
TOKEN_FIELDS = ("max_tokens", "max_completion_tokens", "n_predict")
FIELDS = (
    *TOKEN_FIELDS, "keep_alive", "n", "stream", "temperature",
    "priority", "timeout", "id_slot", "seed", "messages", "prompt",
)  # fmt: skip

BYTES = st.one_of(
    st.sampled_from(
        [b"\xff", b"\xff\xfe", b"\xc3\xa9", b"\xed\xa0\x80", b"1e999", b"9" * 320, b"9" * 320 + b"h", b"-inf",
         b"nan", b"1e10", b"", b"0x1", b"-1", b"1_0", b"\xd9\xa3", b"a, b", b"bytes=0-99999999999999999999",
         b'"', b"tiny", b"other", b"low", b"gzip", b"br", b"9" * 19, b"1" + b"0" * 40]
    ),
    st.binary(max_size=12).map(lambda data: re.sub(rb"[\x00-\x1f\x7f]", b"?", data)),
)  # fmt: skip
HEADERS = (
    b"X-Router-Keep-Alive", b"X-Router-Priority", b"X-Router-Other", b"X-Conversation-Id", b"Last-Event-ID",
    b"Range", b"Origin", b"Authorization", b"x-api-key", b"Content-Type", b"Content-Encoding", b"Accept",
    b"If-None-Match", b"Access-Control-Request-Headers", b"Access-Control-Request-Method", b"User-Agent",
    b"Sec-Fetch-Site", b"Cookie", b"Expect", b"Upgrade", b"Accept-Encoding", b"Referer", b"Forwarded",
)  # fmt: skip
QUERIES = (
    "model",
    "lines",
    "follow",
    "wait",
    "limit",
    "timeout",
    "moments",
    "ctx_size",
    "from",
    "id",
    "autoload",
)


@st.composite
def requests(draw: st.DrawFn) -> bytes:
    """One request, whole: whatever else it is, a server can tell where it ends."""
    route: Route = draw(st.sampled_from(ROUTES))
    method = draw(st.sampled_from(["GET", "POST", "DELETE", "PUT"])) if route.method == "*" else route.method
    body = draw(bodies(route)) if method != "GET" else b""
    target = re.sub(r"\{[^{}]+(?:\{[^{}]*\})?[^{}]*\}", lambda _: encoded(draw), route.path).encode()
    names = [*(query.name for query in route.query), *draw(st.lists(st.sampled_from(QUERIES), max_size=2))]
    pairs = [f"{name}={encoded(draw)}" for name in names if draw(st.booleans())]
    target += ("?" + "&".join(pairs)).encode() if pairs else b""
    if draw(st.booleans()):  # as bytes, where they may stand so
        target = re.sub(rb"%([89A-F][0-9A-F])", lambda found: bytes.fromhex(found[1].decode()), target)
    chosen = draw(st.lists(st.sampled_from(HEADERS), max_size=3, unique=True))
    lines = [name + b": " + draw(BYTES) for name in chosen]
    lines += [b"Host: 127.0.0.1", b"Content-Length: %d" % len(body)]
    return b"\r\n".join([method.encode() + b" " + target + b" HTTP/1.1", *lines, b"", b""]) + body


def encoded(draw: st.DrawFn) -> str:
    return quote_from_bytes(draw(BYTES), safe="") or "-"


@st.composite
def bodies(draw: st.DrawFn, route: Route) -> bytes:
    ours = getattr(route.body, "__struct_fields__", ()) or ("model",)
    names = [*ours, *draw(st.lists(st.sampled_from(FIELDS), max_size=3, unique=True))]
    fields = {
        name: draw(MODELS if name == "model" else TOKENS if name in TOKEN_FIELDS else VALUES)
        for name in names
        if draw(st.booleans())
    }
    if "model" in names and draw(st.integers(0, 3)):
        fields["model"] = draw(MODELS)
    text = "{" + ",".join(f'"{name}":{value}' for name, value in fields.items()) + "}"
    data = text.encode("utf-8", "surrogatepass")
    return (
        draw(st.sampled_from([b"", b"", b"", b"\xef\xbb\xbf"]))
        + data
        + draw(st.sampled_from([b"", b"", b"\0"]))
    )


class Asked:
    """A router with one loaded model and one that is not, and a loop to talk to it from."""

    def __init__(self, folder: Path) -> None:
        self.runner = asyncio.Runner()
        # No hub is there, and a request that waits is answered soon.
        config = "[scheduler]\nqueue_timeout_seconds = 5.0\n[server]\nmax_body_mib = 1\n"
        env = {"HF_ENDPOINT": "http://127.0.0.1:1"}
        self.up = RouterProcess(folder, binary(folder), config=config, env=env)
        for model in ("tiny", "other"):
            make_llama(self.up.models / f"{model}.gguf", sparse=True)

    async def ask(self, request: bytes, *, is_endless: bool = False) -> Message:
        where = urlsplit(self.up.url)
        reader, writer = await asyncio.open_connection(where.hostname, where.port)
        try:
            writer.write(request)
            async with asyncio.timeout(PATIENCE_SECONDS):
                return await read_answer(reader, to_head=is_endless)
        finally:
            writer.close()

    async def models(self) -> dict[str, str]:
        """Those that are loaded or about to be, when nothing changes any more."""

        async def found() -> dict[str, str]:
            rows = (await self.up.get("/models/loaded"))["data"]
            return {row["id"]: row["status"]["value"] for row in rows}

        models: dict[str, str] = await until(
            found, holds=lambda models: set(models.values()) <= {"loaded"}, seconds=PATIENCE_SECONDS
        )
        return models

    async def check(self, request: bytes) -> None:
        before = await self.models()
        answer = await self.ask(request, is_endless=is_endless(request))
        assert answer.has_head, "the connection was closed without an answer"
        assert answer.status < 500 or answer.status in (501, 502, 503, 504), answer
        assert "internal error" not in answer.body.decode("utf-8", "replace")
        if answer.get("Content-Type").startswith("application/json") and answer.body:
            json.loads(answer.body, parse_constant=pytest.fail)
        if 400 <= answer.status < 500:
            assert await self.models() == before, "what is refused changes nothing"
        status = await self.up.get("/status")
        assert status["state"]["models"]
        assert self.up.process.poll() is None


def is_endless(request: bytes) -> bool:
    """Whether only the head of its answer is waited for."""
    path = request.split(b" ", 2)[1].partition(b"?")[0].decode("latin-1")
    return any(route.endless and route.path == path for route in ROUTES)


@pytest.fixture(scope="module")
def asked() -> Iterator[Asked]:
    with tempfile.TemporaryDirectory(prefix="router-") as name:
        made = Asked(Path(name))
        with made.runner:
            made.runner.run(made.up.__aenter__())
            try:
                assert made.runner.run(made.up.chat("tiny"))[0] == 200
                yield made
            finally:
                made.runner.run(made.up.__aexit__())


@given(requests())
@settings(max_examples=250, deadline=None, suppress_health_check=list(HealthCheck))
def test_whatever_value_stands_wherever_it_is_answered_and_what_is_refused_changes_nothing(
    asked: Asked, request_: bytes
):
    asked.runner.run(asked.check(request_))
    assert "Traceback" not in asked.up.output
