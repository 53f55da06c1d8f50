"""What llama-server says of its own work at the end of an answer, read from what passes by.

Only the first and the last few bytes are kept: the usage stands last in completions, and first in
embeddings; Anthropic's streams have half of it in each."""

from __future__ import annotations

import re
from collections import deque
from typing import Final

import msgspec

from router.proxy.info import RequestStats

FIRST_BYTES: Final = 2 << 10
LAST_BYTES: Final = 8 << 10
#: Of what came last, so many reads are kept: an event may come in two.
_READS: Final = 3
#: In JSON the quotes of a text are escaped, so that this is a key wherever it stands. Neither has texts.
_USAGE: Final = re.compile(rb'"usage":\s*(\{[^{}]*(?:\{[^{}]*\}[^{}]*)*\})')
_TIMINGS: Final = re.compile(rb'"timings":\s*(\{[^{}]*\})')


class _Details(msgspec.Struct):
    cached_tokens: int | None = None


class _Usage(msgspec.Struct):
    prompt_tokens: int | None = None
    input_tokens: int | None = None
    completion_tokens: int | None = None
    output_tokens: int | None = None
    cache_read_input_tokens: int | None = None
    prompt_tokens_details: _Details | None = None
    input_tokens_details: _Details | None = None


class _Timings(msgspec.Struct):
    cache_n: int | None = None
    prompt_n: int | None = None
    predicted_n: int | None = None
    prompt_per_second: float | None = None
    predicted_per_second: float | None = None


class _Told(msgspec.Struct):
    usage: _Usage | None = None
    timings: _Timings | None = None


_told = msgspec.json.Decoder(_Told)
_usage = msgspec.json.Decoder(_Usage)
_timings = msgspec.json.Decoder(_Timings)


def note_whole(body: bytes, account: RequestStats) -> None:
    """Write down what it says. What is not there, or not understood, is left out."""
    if len(body) <= FIRST_BYTES:
        try:
            told = _told.decode(body)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            pass  # several answers in one, or something else
        else:
            if told.usage is not None:
                _count(told.usage, account)
            if told.timings is not None:
                _time(told.timings, account)
            return
    else:
        _note_usage(body[:FIRST_BYTES], account)
        body = body[-LAST_BYTES:]
    _note_usage(body, account)
    _note_timings(body, account)


class HeadTailBuffer:
    """The beginning and the end of what passed."""

    __slots__ = ("_first", "_keep", "_last")

    def __init__(self) -> None:
        self._first = b""
        self._last: deque[bytes] = deque(maxlen=_READS)
        self._keep = self._last.append

    def passed(self, data: bytes) -> None:
        if not self._first:
            self._first = data[:FIRST_BYTES]
        if len(data) > LAST_BYTES:
            data = data[-LAST_BYTES:]
            self._last.clear()
        self._keep(data)

    @property
    def latest(self) -> bytes:
        """The end of what was read last."""
        return self._last[-1] if self._last else b""

    def note(self, account: RequestStats) -> None:
        """As `note_whole`."""
        last = self._last[0] if len(self._last) == 1 else b"".join(self._last)
        if last is not self._first:  # as they are where all of it is short
            _note_usage(self._first, account)
        _note_usage(last, account)
        _note_timings(last, account)


def _last_object(pattern: re.Pattern[bytes], key: bytes, data: bytes) -> bytes | None:
    """The last one with this key that is whole."""
    at = data.rfind(key)
    while at >= 0:
        if (found := pattern.match(data, at)) is not None:
            return found[1]
        at = data.rfind(key, 0, at)
    return None


def _note_usage(data: bytes, account: RequestStats) -> None:
    if (text := _last_object(_USAGE, b'"usage"', data)) is not None:
        try:
            usage = _usage.decode(text)
        except (msgspec.DecodeError, UnicodeDecodeError):
            return
        _count(usage, account)


def _note_timings(data: bytes, account: RequestStats) -> None:
    if (text := _last_object(_TIMINGS, b'"timings"', data)) is not None:
        try:
            timings = _timings.decode(text)
        except (msgspec.DecodeError, UnicodeDecodeError):
            return
        _time(timings, account)


def _count(usage: _Usage, account: RequestStats) -> None:
    details = usage.prompt_tokens_details or usage.input_tokens_details
    cached = details.cached_tokens if details is not None else usage.cache_read_input_tokens
    prompt = usage.prompt_tokens if usage.prompt_tokens is not None else usage.input_tokens
    if prompt is not None:
        # Anthropic counts what was cached apart, OpenAI within.
        account.prompt_tokens = prompt + (usage.cache_read_input_tokens or 0)
    if cached is not None:
        account.cached_tokens = cached
    completion = usage.completion_tokens if usage.completion_tokens is not None else usage.output_tokens
    if completion is not None:
        account.completion_tokens = completion


def _time(timings: _Timings, account: RequestStats) -> None:
    account.prompt_tokens_per_second = timings.prompt_per_second
    account.tokens_per_second = timings.predicted_per_second
    if account.prompt_tokens is None and timings.prompt_n is not None:
        account.prompt_tokens = timings.prompt_n + (timings.cache_n or 0)
        account.cached_tokens = timings.cache_n
    if account.completion_tokens is None:
        account.completion_tokens = timings.predicted_n
