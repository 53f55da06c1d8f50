"""Errors in the shape of a client's dialect: as a whole answer, or within a stream."""

from __future__ import annotations

import math
from typing import Any, Final

import msgspec

from router.engines.llama_server import restated
from router.errors import RequestTooSlow, RouterError, Unauthorized, UnsupportedCoding
from router.proxy.answer import Answer
from router.proxy.client import ClientResponse
from router.proxy.coding import ACCEPTED
from router.proxy.info import Dialect, RequestStats

#: Anthropic's error types, where they are not simply those of a wrong request or a failed server.
_ANTHROPIC_TYPES: Final = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
}


def error_body(error: RouterError, dialect: Dialect = Dialect.OPENAI) -> dict[str, object]:
    """The error in the shape of the dialect; its details stand beside the usual fields."""
    if dialect is Dialect.OPENAI:
        usual = {"message": error.message, "type": error.type, "code": error.code, "param": None}
        return {"error": {**error.details, **usual}}
    # Anthropic's clients tell kinds of errors by the type, and show the message.
    kind = _ANTHROPIC_TYPES.get(error.status)
    if kind is None:
        kind = "api_error" if error.status >= 500 else "invalid_request_error"
    inner = {**error.details, "type": kind, "message": error.message, "code": error.code}
    return {"type": "error", "error": inner}


def error_headers(error: RouterError) -> dict[str, str]:
    """The headers that an answer with this error has beside those of its body."""
    headers: dict[str, str] = {}
    if error.retry_after_seconds is not None:
        # Whole seconds (RFC 9110, 10.2.3), rounded up: a client that comes too early comes twice.
        headers["Retry-After"] = str(max(1, math.ceil(error.retry_after_seconds)))
    if isinstance(error, Unauthorized):
        headers["WWW-Authenticate"] = "Bearer"
    if isinstance(error, UnsupportedCoding):
        headers["Accept-Encoding"] = ACCEPTED  # RFC 9110, 15.5.16
    return headers


def error_response(
    client: ClientResponse, error: RouterError, dialect: Dialect, account: RequestStats | None = None
) -> None:
    """Answer with the error, where nothing was sent yet."""
    if isinstance(error, RequestTooSlow):
        client.keeps_alive = False  # the rest is not waited for
    headers = {"Content-Type": "application/json", **error_headers(error)}
    if account is not None:
        headers |= account.headers()
    client.send(error.status, headers.items(), msgspec.json.encode(error_body(error, dialect)))


def error_event(error: RouterError, dialect: Dialect) -> bytes:
    """For a stream that has begun: what would have been the status and Retry-After is said in the event."""
    if dialect is Dialect.ANTHROPIC:
        kind = "overloaded_error" if error.status in (429, 503) else "api_error"
        return _anthropic(kind, error.message)
    body = error_body(error)
    if error.retry_after_seconds is not None:
        body = {"error": {"retry_after_seconds": error.retry_after_seconds, **_inner(body)}}
    return _openai(body)


def takes_events(client: ClientResponse, answer: Answer | None) -> bool:
    """Whether what the client has of its answer is the beginning of a stream of events that may go on with an
    event of the router."""
    head = answer.head if answer is not None else None
    is_events = head is not None and head.is_event_stream and not head.is_encoded
    return (client.is_early or is_events) and client.can_add


def send_stream_error(
    client: ClientResponse, answer: Answer | None, error: RouterError, dialect: Dialect
) -> None:
    """End an answer that has begun: by an event with the error, or by closing the connection."""
    if not takes_events(client, answer):
        client.cut()
        return
    # An event that was cut in half must be ended, or the error would become a part of it.
    between = b"" if answer is None or answer.ends_an_event else b"\n\n"
    client.send_event(between + error_event(error, dialect))
    client.end()


def send_rejection(client: ClientResponse, answer: Answer, account: RequestStats, dialect: Dialect) -> None:
    """End a stream that heartbeats had begun, and whose request the instance has refused, by an event."""
    if answer.rejection is not None and answer.head is not None:
        account.error = "upstream_refused"
        client.send_event(rejection_event(answer.head.status, bytes(answer.rejection), dialect))
        client.end()


def rejection_event(status: int, body: bytes, dialect: Dialect) -> bytes:
    """The answer of an instance that refuses, as an event."""
    status, body = restated(status, body)
    try:
        decoded = msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError):
        decoded = None
    inner = _inner(decoded) if isinstance(decoded, dict) else {}
    message = str(inner.get("message") or body[:500].decode("utf-8", "replace") or f"status {status}")
    if dialect is Dialect.ANTHROPIC:
        return _anthropic("invalid_request_error" if 400 <= status < 500 else "api_error", message)
    usual = {"message": message, "type": "server_error", "code": status, "param": None}
    return _openai({"error": {**usual, **inner}})


def _inner(body: dict[str, Any]) -> dict[str, Any]:
    inner = body.get("error")
    return inner if isinstance(inner, dict) else {}


def _openai(body: object) -> bytes:
    return b"data: " + msgspec.json.encode(body) + b"\n\n"


def _anthropic(kind: str, message: str) -> bytes:  # its clients look at named events only
    body = {"type": "error", "error": {"type": kind, "message": message}}
    return b"event: error\ndata: " + msgspec.json.encode(body) + b"\n\n"
