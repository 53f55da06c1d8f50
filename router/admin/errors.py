"""Whatever goes wrong in a request becomes one JSON object in OpenAI's shape, or Anthropic's: translated
here, once."""

from __future__ import annotations

import difflib
import logging
from collections.abc import Mapping

from aiohttp import HttpVersion11, web
from multidict import CIMultiDictProxy

from router.admin.answer import json_response
from router.admin.dialect import dialect_of
from router.admin.route import Handler
from router.errors import BodyTooLarge, InvalidRequest, RequestTooSlow, RouterError
from router.proxy import Dialect, error_body
from router.proxy.errors import error_headers

log = logging.getLogger("router.admin")


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


def error_response(
    error: RouterError, headers: Mapping[str, str] | None = None, dialect: Dialect = Dialect.OPENAI
) -> web.Response:
    response = json_response(error_body(error, dialect), status=error.status)
    response.headers.update({**error_headers(error), **(headers or {})})
    return response


def check_expectation(headers: CIMultiDictProxy[str]) -> None:
    """Raises ExpectationFailed."""
    expected = headers.get("Expect")
    if expected is not None and expected.strip().lower() != "100-continue":
        raise ExpectationFailed(f"only 100-continue can be expected, not {expected[:40]!r}")


async def expect(request: web.Request) -> web.StreamResponse | None:
    """Let a client go on that asks first whether its body is wanted. (Outside of every middleware.)"""
    try:
        check_expectation(request.headers)
    except ExpectationFailed as failure:
        return error_response(failure, dialect=dialect_of(request.path))
    is_wanted = (request.content_length or 0) <= request.client_max_size  # else it is refused unread
    if is_wanted and request.version >= HttpVersion11:
        await request.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        request.writer.output_size = 0  # the answer itself has not begun
    return None


@web.middleware
async def tell_errors(request: web.Request, handler: Handler) -> web.StreamResponse:
    """The outermost middleware. What failed after an answer had begun cannot be told in it, and ends the
    connection."""
    try:
        return await handler(request)
    except RouterError as error:
        failure, headers = error, dict[str, str]()
        if isinstance(error, RequestTooSlow | BodyTooLarge):
            headers["Connection"] = "close"  # the rest of the body is not waited for
    except web.HTTPException as error:
        failure, headers = _translated(request, error)
    except ConnectionError:
        raise  # the client is gone
    except Exception:
        log.exception("%s %s failed", request.method, request.rel_url.raw_path)
        failure, headers = RouterError("internal error; the router's log has more"), {}
    if request.writer.output_size > 0:
        raise ConnectionResetError("the answer had begun") from failure
    return error_response(failure, headers, dialect_of(request.path))


def _translated(request: web.Request, error: web.HTTPException) -> tuple[RouterError, dict[str, str]]:
    match error:
        case web.HTTPNotFound():
            return _unknown_path(request), {}
        case web.HTTPMethodNotAllowed():
            allowed = ", ".join(sorted(error.allowed_methods))
            message = f"{request.rel_url.raw_path} takes {allowed}, not {request.method}"
            return MethodNotAllowed(message), {"Allow": allowed}
        case _:
            return InvalidRequest(error.reason), {}


def _unknown_path(request: web.Request) -> RouterError:
    known = sorted({r.canonical for r in request.app.router.resources()})
    near = difflib.get_close_matches(request.path, known, n=1, cutoff=0.6)
    hint = f" Did you mean {near[0]}?" if near else ""
    if request.path.startswith("/v1/v1/"):
        hint += " /v1 stands there twice: leave it out of the client's base URL, or out of its path."
    return PathNotFound(f"there is no {request.rel_url.raw_path} here.{hint}")
