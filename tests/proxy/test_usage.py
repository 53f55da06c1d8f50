"""Usage and timings as llama-server b11434 says them, in each of its dialects."""

from __future__ import annotations

import pytest

from router.proxy.info import RequestStats
from router.proxy.usage import FIRST_BYTES, LAST_BYTES, HeadTailBuffer, note_whole

TIMINGS = (
    b'"timings":{"cache_n":2,"prompt_n":17,"prompt_ms":3.4,"prompt_per_token_ms":0.18,'
    b'"prompt_per_second":5451.9,"predicted_n":3,"predicted_ms":0.6,"predicted_per_second":3294.9}'
)
USAGE = (
    b'"usage":{"completion_tokens":3,"prompt_tokens":19,"total_tokens":22,'
    b'"prompt_tokens_details":{"cached_tokens":2}}'
)
ANTHROPIC = (
    b'data: {"message":{"usage":{"cache_read_input_tokens":2,"input_tokens":17,"output_tokens":0}}}\n\n',
    b'event: message_delta\ndata: {"type":"message_delta","usage":{"output_tokens":3}}\n\n',
)


def said(*pieces: bytes) -> RequestStats:
    ends, account = HeadTailBuffer(), RequestStats("m")
    for piece in pieces:
        ends.passed(piece)
    ends.note(account)
    return account


def tokens(account: RequestStats) -> tuple[int | None, int | None, int | None]:
    return account.prompt_tokens, account.cached_tokens, account.completion_tokens


@pytest.mark.parametrize(
    "pieces",
    [
        (b'{"choices":[{"text":"x"}],' + USAGE + b',"id":"1",' + TIMINGS + b"}",),
        (b"309\r\ndata: {" + USAGE + b"," + TIMINGS + b"}\n\n\r\n", b"e\r\ndata: [DONE]\n\n\r\n0\r\n\r\n"),
        (b"data: x\n\n", b'data: {"choices":[],"usa', USAGE[4:] + b"," + TIMINGS + b"}\n\n"),
        (b'{"content":"x","stop":true,' + TIMINGS + b"}",),
        ANTHROPIC,
        (ANTHROPIC[0], *[b"data: x\n\n"] * 20, ANTHROPIC[1]),
    ],
    ids=["whole", "streamed", "cut in two", "completion", "anthropic", "anthropic, long"],
)  # fmt: skip
def test_the_tokens_are_read(pieces: tuple[bytes, ...]):
    assert tokens(said(*pieces)) == (19, 2, 3)


def test_the_rates_are_read():
    account = said(b"{" + USAGE + b"," + TIMINGS + b"}")
    assert (account.prompt_tokens_per_second, account.tokens_per_second) == (5451.9, 3294.9)


def test_embeddings_say_it_first():
    usage = b'"usage":{"prompt_tokens":5,"total_tokens":5}'
    account = said(b'{"model":"m","object":"list",' + usage + b',"data":[' + b"0.1," * 9999, b"0.2]}")
    assert tokens(account) == (5, None, None)


def test_what_a_model_writes_is_not_taken_for_it():
    account = said(b'{"choices":[{"text":"\\"usage\\":{\\"prompt_tokens\\":99}"}]}')
    assert tokens(account) == (None, None, None)


def test_what_is_not_understood_is_left_out():
    assert tokens(said(b'{"usage":{"prompt_tokens":"many"}}')) == (None, None, None)
    assert tokens(said(b'{"usage":{"prompt_tokens":1')) == (None, None, None)


def test_little_is_kept_of_much():
    ends = HeadTailBuffer()
    for _ in range(100):
        ends.passed(bytes(1 << 16))
    assert len(ends._first) == FIRST_BYTES
    assert sum(map(len, ends._last)) == LAST_BYTES


def test_what_is_nested_too_deep_says_nothing():
    account = RequestStats("m")
    note_whole(b'{"a":' * 200 + b"[" * 1000, account)
    assert account == RequestStats("m")
