"""Whatever goes wrong in a request becomes one JSON object in OpenAI's shape, or Anthropic's: translated
here, once."""

from __future__ import annotations

import difflib
import logging
import math
from collections.abc import Mapping
from typing import Final

from aiohttp import HttpVersion11, web

from router.admin.answer import json_response
from router.admin.dialect import dialect_of
from router.admin.route import Handler
from router.errors import InvalidRequest, RequestTooSlow, RouterError, Unauthorized, UnsupportedCoding
from router.proxy import REQUEST_STATS, Dialect, error_body
from router.proxy.coding import ACCEPTED

log = logging.getLogger("router.admin")


#: Anthropic's words for a status, where they are not simply those of a wrong request or a failed server.
_ANTHROPIC_TYPES: Final = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
}


class PathNotFound(RouterError):
    """No endpoint has this path."""

    status = 404
    type = "not_found_error"
    code = "path_not_found"


class MethodNotAllowed(InvalidRequest):
    """The path exists, with other methods."""

    status = 405
    code = "method_not_allowed"


class ExpectationFailed(InvalidRequest):
    """The client waits for something that nobody here will do."""

    status = 417
    code = "expectation_failed"


class VersionNotSupported(InvalidRequest):
    """The request line names another version of HTTP than 1.0 or 1.1."""

    status = 505
    code = "http_version_not_supported"

    def __init__(self, version: str) -> None:
        super().__init__(f"HTTP/{version} is not supported; send HTTP/1.1 or HTTP/1.0")


#: The version of HTTP in a request line that the parser accepts and this server does not.
UNKNOWN_VERSION: Final = web.RequestKey("unknown_version", str)


class BodyTooLarge(InvalidRequest):
    """The body is larger than `server.max_body_mib`."""

    status = 413
    code = "body_too_large"


def error_response(
    error: RouterError, headers: Mapping[str, str] | None = None, dialect: Dialect = Dialect.OPENAI
) -> web.Response:
    body = error_body(error) if dialect is Dialect.OPENAI else _anthropic_body(error)
    response = json_response(body, status=error.status)
    response.headers.update(headers or {})
    if error.retry_after_seconds is not None:
        # Whole seconds (RFC 9110, 10.2.3), rounded up: a client that comes too early comes twice.
        response.headers["Retry-After"] = str(max(1, math.ceil(error.retry_after_seconds)))
    if isinstance(error, Unauthorized):
        response.headers["WWW-Authenticate"] = "Bearer"
    if isinstance(error, UnsupportedCoding):
        response.headers["Accept-Encoding"] = ACCEPTED  # RFC 9110, 15.5.16
    return response


async def expect(request: web.Request) -> web.StreamResponse | None:
    """Let a client go on that asks first whether its body is wanted. (Outside of every middleware.)"""
    expected = request.headers.get("Expect", "")
    if expected.strip().lower() != "100-continue":
        failure = ExpectationFailed(f"only 100-continue can be expected, not {expected[:40]!r}")
        return error_response(failure, dialect=dialect_of(request))
    is_wanted = (request.content_length or 0) <= request.client_max_size  # else it is refused unread
    if is_wanted and request.version >= HttpVersion11:
        await request.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        request.writer.output_size = 0  # the answer itself has not begun
    return None


@web.middleware
async def check_version(request: web.Request, handler: Handler) -> web.StreamResponse:
    if (version := request.get(UNKNOWN_VERSION)) is not None:
        raise VersionNotSupported(version)
    return await handler(request)


@web.middleware
async def tell_errors(request: web.Request, handler: Handler) -> web.StreamResponse:
    """The outermost middleware. What failed after an answer had begun cannot be told in it, and ends the
    connection."""
    try:
        return await handler(request)
    except RouterError as error:
        failure, headers = error, dict[str, str]()
        if isinstance(error, RequestTooSlow):
            headers["Connection"] = "close"  # the rest is not waited for
    except web.HTTPException as error:
        failure, headers = _translated(request, error)
    except ConnectionError:
        raise  # the client is gone
    except Exception:
        log.exception("%s %s failed", request.method, request.rel_url.raw_path)
        failure, headers = RouterError("internal error; the router's log has more"), {}
    if request.writer.output_size > 0:
        raise ConnectionResetError("the answer had begun") from failure
    if (account := request.get(REQUEST_STATS)) is not None:
        headers = {**headers, **account.headers()}
    return error_response(failure, headers, dialect_of(request))


def _anthropic_body(error: RouterError) -> dict[str, object]:
    """Its clients tell kinds of errors by the type, and show the message."""
    kind = _ANTHROPIC_TYPES.get(error.status)
    if kind is None:
        kind = "api_error" if error.status >= 500 else "invalid_request_error"
    told = {**error.details, "type": kind, "message": error.message, "code": error.code}
    return {"type": "error", "error": told}


def _translated(request: web.Request, error: web.HTTPException) -> tuple[RouterError, dict[str, str]]:
    match error:
        case web.HTTPNotFound():
            return _unknown_path(request), {}
        case web.HTTPMethodNotAllowed():
            allowed = ", ".join(sorted(error.allowed_methods))
            message = f"{request.rel_url.raw_path} takes {allowed}, not {request.method}"
            return MethodNotAllowed(message), {"Allow": allowed}
        case web.HTTPRequestEntityTooLarge():
            limit = f"{request.client_max_size >> 20} MiB (server.max_body_mib)"
            what = "the decoded body" if "Content-Encoding" in request.headers else "the body"
            # The rest of the body is not worth reading.
            return BodyTooLarge(f"{what} is larger than {limit}"), {"Connection": "close"}
        case _:
            return InvalidRequest(error.reason), {}


def _unknown_path(request: web.Request) -> RouterError:
    known = sorted({r.canonical for r in request.app.router.resources()})
    near = difflib.get_close_matches(request.path, known, n=1, cutoff=0.6)
    hint = f" Did you mean {near[0]}?" if near else ""
    if request.path.startswith("/v1/v1/"):
        hint += " /v1 stands there twice: leave it out of the client's base URL, or out of its path."
    return PathNotFound(f"there is no {request.rel_url.raw_path} here.{hint}")
