"""How a client is told what went wrong, in the words of its dialect."""

from __future__ import annotations

from typing import Any

import msgspec

from router.engines.llama_server import restated
from router.errors import RouterError
from router.proxy.answer import Answer
from router.proxy.ask import Dialect, RequestStats
from router.proxy.client import Client


def error_body(error: RouterError) -> dict[str, object]:
    """The error in OpenAI's shape; its details stand beside the usual fields."""
    usual = {"message": error.message, "type": error.type, "code": error.code, "param": None}
    return {"error": {**error.details, **usual}}


def error_event(error: RouterError, dialect: Dialect) -> bytes:
    """For a stream that has begun: what would have been the status and Retry-After is said in the event."""
    match dialect:
        case Dialect.OPENAI:
            body = error_body(error)
            if error.retry_after_seconds is not None:
                body = {"error": {"retry_after_seconds": error.retry_after_seconds, **_inner(body)}}
            return _openai(body)
        case Dialect.ANTHROPIC:
            return _anthropic(
                "overloaded_error" if error.status in (429, 503) else "api_error", error.message
            )


def takes_events(client: Client, answer: Answer | None) -> bool:
    """Whether what the client has of its answer is the beginning of a stream of events that may go on with
    one of ours."""
    head = answer.head if answer is not None else None
    is_events = head is not None and head.is_event_stream and not head.is_encoded
    return (client.is_early or is_events) and client.can_be_told


def send_stream_error(client: Client, answer: Answer | None, error: RouterError, dialect: Dialect) -> None:
    """To who has heard the beginning of an answer: as an event, or by a cut."""
    if not takes_events(client, answer):
        client.cut()
        return
    # An event that was cut in half must be ended, or the error would become a part of it.
    between = b"" if answer is None or answer.ends_an_event else b"\n\n"
    client.say(between + error_event(error, dialect))
    client.end()


def tell_rejection(client: Client, answer: Answer, account: RequestStats, dialect: Dialect) -> None:
    """Where the child has refused and the client was told that a stream begins: end that with an event."""
    if answer.rejection is not None and answer.head is not None:
        account.error = "upstream_refused"
        client.say(rejection_event(answer.head.status, bytes(answer.rejection), dialect))
        client.end()


def rejection_event(status: int, body: bytes, dialect: Dialect) -> bytes:
    """The answer of a child that refuses, after its client was told that a stream begins."""
    status, body = restated(status, body)
    try:
        told = msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError):
        told = None
    inner = _inner(told) if isinstance(told, dict) else {}
    message = str(inner.get("message") or body[:500].decode("utf-8", "replace") or f"status {status}")
    match dialect:
        case Dialect.OPENAI:
            usual = {"message": message, "type": "server_error", "code": status, "param": None}
            return _openai({"error": {**usual, **inner}})
        case Dialect.ANTHROPIC:
            return _anthropic("invalid_request_error" if 400 <= status < 500 else "api_error", message)


def _inner(body: dict[str, Any]) -> dict[str, Any]:
    inner = body.get("error")
    return inner if isinstance(inner, dict) else {}


def _openai(body: object) -> bytes:
    return b"data: " + msgspec.json.encode(body) + b"\n\n"


def _anthropic(kind: str, message: str) -> bytes:  # its clients look at named events only
    body = {"type": "error", "error": {"type": kind, "message": message}}
    return b"event: error\ndata: " + msgspec.json.encode(body) + b"\n\n"
