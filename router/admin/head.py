"""The head of an inference request: the few fields the router reads of a body that passes through
unchanged, JSON or a form."""

from __future__ import annotations

import json
import re
from typing import Any, Final

import msgspec

from router.admin.form import FormFields
from router.admin.json_body import read_json_body
from router.admin.route import HttpRequest
from router.errors import InvalidRequest
from router.scheduler.types import Priority

#: The longest idle time that a client may set, in seconds: 31 years. It keeps every sum of times finite.
LONGEST_SECONDS: Final = 1e9
#: The largest number of tokens that a client may set. llama-server's JSON parser reads integers of 64 bits.
MOST_TOKENS: Final = 2**64 - 1

_OUT_OF_RANGE: Final = "out of range"
_NUMBER = re.compile(r"[+-]?(?:\d+\.?\d*|\.\d+)(?:e[+-]?\d+)?", re.ASCII)
_DURATION = re.compile(r"[+-]?(?:(\d+(?:\.\d+)?)h)?(?:(\d+(?:\.\d+)?)m)?(?:(\d+(?:\.\d+)?)s)?", re.ASCII)
_KEEP_ALIVE_FORMS = (
    'keep_alive takes seconds (300), a duration ("5m", "1h30m", "90s"), 0 (leave when idle) or -1 (stay), '
    f"at most {LONGEST_SECONDS:.0f} s (31 years)"
)


class _Body(msgspec.Struct):
    """Unknown fields are the child's business, and so are wrong types in those that only serve to predict."""

    model: Any = None
    stream: Any = None
    keep_alive: Any = None
    max_tokens: Any = None
    max_completion_tokens: Any = None
    n_predict: Any = None


_decoder = msgspec.json.Decoder(_Body)
#: What is read of a body.
HEAD_FIELDS: Final = frozenset(_Body.__struct_fields__)


class Head(msgspec.Struct, frozen=True):
    """`model` is None where the request names none. `size` is what the answer may have in tokens, None where
    nothing bounds it; `keep_alive` is in seconds."""

    model: str | None
    stream: bool = False
    keep_alive: float | None = None
    size: float | None = None
    priority: Priority | None = None


def read_head(request: HttpRequest, body: bytes, *, is_object: bool = True) -> Head:
    """Raises InvalidRequest that says what is accepted. Headers and `?model=` count where the body has
    nothing. Not `is_object`: the body may be an array, or empty."""
    try:
        fields = _decoder.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        fields = _fields(request, body, is_object=is_object)
    model, keep_alive, headers = fields.model, fields.keep_alive, request.headers
    if keep_alive is None:
        keep_alive = headers.get("X-Router-Keep-Alive")
    priority = headers.get("X-Router-Priority")
    has_size = not (fields.max_completion_tokens is fields.max_tokens is fields.n_predict is None)
    return Head(
        model if type(model) is str and model else _model(request, model),
        fields.stream is True,
        None if keep_alive is None else keep_alive_seconds(keep_alive),
        _size(fields) if has_size else None,
        None if priority is None else _priority(priority),
    )


def read_form_head(request: HttpRequest, form: FormFields) -> Head:
    """The same of a form. Raises InvalidRequest."""
    fields = form.found
    keep_alive = fields.get("keep_alive", request.headers.get("X-Router-Keep-Alive"))
    priority = request.headers.get("X-Router-Priority")
    return Head(
        model=_model(request, fields.get("model")),
        stream=fields.get("stream", "").lower() in ("true", "1"),
        keep_alive=None if keep_alive is None else keep_alive_seconds(keep_alive),
        priority=None if priority is None else _priority(priority),
    )


def keep_alive_seconds(value: object) -> float:
    """Convert Ollama's forms of an idle time to seconds: a number, a number as text, or a duration. A
    negative one means for ever. Raises InvalidRequest where it is none of these, or outside
    +-LONGEST_SECONDS."""
    seconds = _seconds(value)
    # Compared before it becomes a float: an integer of 400 digits would overflow.
    if seconds is None or not -LONGEST_SECONDS <= seconds <= LONGEST_SECONDS:
        raise InvalidRequest(f"{_KEEP_ALIVE_FORMS}, not {_shown(value)}")
    return float(seconds)


def _seconds(value: object) -> float | None:
    match value:
        case bool():
            return None
        case int() | float():
            return value
        case str():
            text = value.strip().lower()
            return float(text) if _NUMBER.fullmatch(text) else _duration_seconds(text)
    return None


def _duration_seconds(text: str) -> float | None:
    found = _DURATION.fullmatch(text)
    if found is None or not any(found.groups()):
        return None
    hours, minutes, seconds = (float(part or 0) for part in found.groups())
    total = hours * 3600 + minutes * 60 + seconds
    return -total if text.startswith("-") else total


def _shown(value: object) -> str:
    """A JSON value as a message shows it, cut to 80 characters."""
    try:
        text = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    except (RecursionError, ValueError):  # an integer of more digits than Python prints
        return f"what was sent ({type(value).__name__})"
    return text if len(text) <= 80 else f"{text[:77]}... ({len(text)} characters)"


def _fields(request: HttpRequest, body: bytes, *, is_object: bool) -> _Body:
    """Of a body that has a byte order mark, ends with a NUL, or is wrong."""
    try:
        return read_json_body(_decoder, body)
    except InvalidRequest as error:
        if _OUT_OF_RANGE in error.message:  # msgspec's own bound: a float of 64 bits, 4,300 digits
            bounds = f"keep_alive is at most {LONGEST_SECONDS:.0f} s, a number of tokens {MOST_TOKENS}"
            raise InvalidRequest(f"{error.message}; {bounds}") from error
        has_no_room = not is_object and body.strip()[:1] in (b"", b"[")
        if "model" in request.query or has_no_room:  # for a model: an array, a form
            return _Body()
        kind = request.content_type
        if kind not in ("application/json", "application/octet-stream"):
            raise InvalidRequest(f"send a JSON object as application/json, not {kind}") from error
        raise


def _model(request: HttpRequest, model: object) -> str | None:
    if model is None:
        model = request.query.get("model")
    match model:
        case str() if model:
            return model
        case None | "":
            return None
        case _:
            raise InvalidRequest(f"model is a string, not {_shown(model)}")


def _size(fields: _Body) -> float | None:
    """The most tokens that the answer may have. Raises InvalidRequest for a number beyond MOST_TOKENS."""
    found: float | None = None
    for name in ("max_completion_tokens", "max_tokens", "n_predict"):
        limit = getattr(fields, name)
        if not isinstance(limit, int | float) or isinstance(limit, bool):
            continue
        if not -MOST_TOKENS <= limit <= MOST_TOKENS:
            raise InvalidRequest(f"{name} is at most {MOST_TOKENS} (64 bits), not {_shown(limit)}")
        if found is None and limit > 0:
            found = float(limit)
    return found


def _priority(name: str) -> Priority:
    try:
        return Priority(name.strip().lower())
    except ValueError:
        accepted = ", ".join(one.value for one in Priority)
        raise InvalidRequest(f"X-Router-Priority is one of {accepted}, not {name!r}") from None
