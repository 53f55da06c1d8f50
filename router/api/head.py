"""The head of an inference request: the few fields the router reads of a body that passes through
unchanged, JSON or a form."""

from __future__ import annotations

import re
from typing import Any, Final

import msgspec
from aiohttp import web

from router.api.form import FormFields
from router.core.types import Priority
from router.errors import InvalidRequest

_DURATION = re.compile(r"(?:(\d+(?:\.\d+)?)h)?(?:(\d+(?:\.\d+)?)m)?(?:(\d+(?:\.\d+)?)s)?")
_KEEP_ALIVE_FORMS = (
    'keep_alive takes seconds (300), a duration ("5m", "1h30m", "90s"), 0 (leave when idle) or -1 (stay)'
)


_UNLIMITED: Final = (None, None, None)


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
    """`size` is what the answer may have in tokens, None where nothing bounds it; `keep_alive` is in
    seconds."""

    model: str
    stream: bool = False
    keep_alive: float | None = None
    size: float | None = None
    priority: Priority | None = None


def read_head(request: web.Request, body: bytes) -> Head:
    """Raises InvalidRequest that says what is accepted. Headers and `?model=` count where the body has
    nothing."""
    fields = _fields(request, body)
    keep_alive = fields.keep_alive
    if keep_alive is None:
        keep_alive = request.headers.get("X-Router-Keep-Alive")
    return Head(
        model=_model(request, fields.model),
        stream=fields.stream is True,
        keep_alive=None if keep_alive is None else keep_alive_seconds(keep_alive),
        size=_size(fields.max_completion_tokens, fields.max_tokens, fields.n_predict),
        priority=_priority(request.headers.get("X-Router-Priority")),
    )


def read_fields(body: bytes) -> Head:
    """The same of a body alone, that is plain. Raises InvalidRequest, which says too little for people."""
    try:
        fields = _decoder.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InvalidRequest("no JSON object") from error
    if not isinstance(fields.model, str) or not fields.model:
        raise InvalidRequest("no model")
    limits = fields.max_completion_tokens, fields.max_tokens, fields.n_predict
    return Head(
        fields.model,
        fields.stream is True,
        None if fields.keep_alive is None else keep_alive_seconds(fields.keep_alive),
        None if limits == _UNLIMITED else _size(*limits),
    )


def read_form_head(request: web.Request, form: FormFields) -> Head:
    """The same of a form. Raises InvalidRequest."""
    fields = form.found
    keep_alive = fields.get("keep_alive", request.headers.get("X-Router-Keep-Alive"))
    return Head(
        model=_model(request, fields.get("model")),
        stream=fields.get("stream", "").lower() in ("true", "1"),
        keep_alive=None if keep_alive is None else keep_alive_seconds(keep_alive),
        priority=_priority(request.headers.get("X-Router-Priority")),
    )


def keep_alive_seconds(value: object) -> float:
    """Ollama's forms: a number of seconds, a number as text, or a duration. Negative: for ever. Raises
    InvalidRequest."""
    match value:
        case bool():
            pass
        case int() | float():
            return float(value)
        case str():
            text = value.strip().lower()
            try:
                return _finite(float(text))
            except ValueError:
                if (seconds := _duration_seconds(text)) is not None:
                    return seconds
    raise InvalidRequest(f"{_KEEP_ALIVE_FORMS}, not {msgspec.json.encode(value).decode()}")


def _duration_seconds(text: str) -> float | None:
    found = _DURATION.fullmatch(text.lstrip("+-"))
    if found is None or not any(found.groups()):
        return None
    hours, minutes, seconds = (float(part or 0) for part in found.groups())
    total = hours * 3600 + minutes * 60 + seconds
    return -total if text.startswith("-") else total


def _finite(number: float) -> float:
    if number != number or number in (float("inf"), float("-inf")):
        raise ValueError
    return number


def _fields(request: web.Request, body: bytes) -> _Body:
    if (encoding := request.headers.get("Content-Encoding", "identity").lower()) != "identity":
        raise InvalidRequest(f"the body is compressed ({encoding}); send it as it is")
    try:
        return _decoder.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        if "model" in request.query:  # a body that has no room for a model: an array, a form
            return _Body()
        kind = request.content_type
        if kind not in ("application/json", "application/octet-stream"):
            raise InvalidRequest(f"send a JSON object as application/json, not {kind}") from error
        if not body:
            raise InvalidRequest("the body is empty; send a JSON object with a model") from error
        raise InvalidRequest(f"the body is not a JSON object: {error}") from error


def _model(request: web.Request, model: object) -> str:
    if model is None:
        model = request.query.get("model")
    match model:
        case str() if model:
            return model
        case None | "":
            raise InvalidRequest('name a model: {"model": "..."}; GET /v1/models lists them')
        case _:
            raise InvalidRequest(f"model is a string, not {msgspec.json.encode(model).decode()[:80]}")


def _size(*limits: object) -> float | None:
    for limit in limits:
        if isinstance(limit, int | float) and not isinstance(limit, bool) and limit > 0:
            return float(limit)
    return None


def _priority(name: str | None) -> Priority | None:
    if name is None:
        return None
    try:
        return Priority(name.strip().lower())
    except ValueError:
        accepted = ", ".join(one.value for one in Priority)
        raise InvalidRequest(f"X-Router-Priority is one of {accepted}, not {name!r}") from None
