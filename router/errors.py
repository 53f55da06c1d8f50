"""The tree of errors: each knows its HTTP status, its OpenAI type and code, and what the caller can do.

    RouterError                       500 server_error
      InvalidRequest                  400 invalid_request_error
        ModelNotLoaded                400   autoload is off and the model is not running
        SettingsConflict               409   it runs with other settings than a load asks for
        AmbiguousModel                409   the name could be that of several models, which it lists
      Unauthorized                    401 authentication_error
      Forbidden                       403 permission_error
      ModelNotFound                   404 not_found_error         names what exists and the nearest
      UnsupportedCoding               415 invalid_request_error   its body is compressed in an unknown way
      RequestTooSlow                  408 invalid_request_error   its client took too long to say it
      ModelUnusable                   422 invalid_request_error   its file is gone, is not a GGUF, its
      preset is wrong
        ModelTooLarge                 422   fits no placement of an empty machine; says the numbers
      QueueFull                       429 rate_limit_error        + Retry-After
      ClientLimit                     429 rate_limit_error        + Retry-After
      NotSupported                    501 not_supported_error     neither here nor in llama-server
      UpstreamFailed                  502 server_error            the child died before its answer began
      Unavailable                     503 unavailable_error       + Retry-After
        NoRoom                        503   full, and nothing may leave for it
        WaitTimeout                   503   the deadline of a wait passed; says what it waited for
        LoadFailed                    503   the child did not become ready; carries its last log lines
        Unloaded                      503   an operator unloaded the model while the request waited
        ShuttingDown                  503
      StartupError                    exit status 2               the router itself cannot start
        ConfigError                   exit status 2               names file, key, value and the nearest
        valid key

The type names follow llama.cpp and OpenAI, so that their clients' handling works unchanged.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar, Final, Self

#: Of an ambiguous name. A repository has up to some thirty quantisations.
MAX_CANDIDATES_SHOWN: Final = 40


class RouterError(Exception):
    """An expected failure. `retry_after_seconds` becomes the Retry-After header; `details` is added to the
    error body.
    """

    status: ClassVar[int] = 500
    type: ClassVar[str] = "server_error"
    code: ClassVar[str] = "internal_error"

    def __init__(
        self,
        message: str,
        *,
        retry_after_seconds: float | None = None,
        details: Mapping[str, object] | None = None,
    ) -> None:
        # What a client sent may hold bytes that are not UTF-8; the answer is JSON, and the log is text.
        message = message.encode("utf-8", "backslashreplace").decode()
        super().__init__(message)
        self.message = message
        self.retry_after_seconds = retry_after_seconds
        self.details: Mapping[str, object] = details or {}

    def copy(self) -> Self:
        """The same to be raised: what is kept, in the books or in the journal, never is.

        An exception that is raised holds every frame that it passed, with the request and its body; and one
        that is raised again and again holds those of each time.
        """
        made = type(self).__new__(type(self), *self.args)
        made.__dict__.update(self.__dict__)
        return made

    def __eq__(self, other: object) -> bool:
        # Commands carry errors; a replayed history must compare equal to the first one.
        return type(self) is type(other) and isinstance(other, RouterError) and self._key() == other._key()

    def __hash__(self) -> int:
        return hash((type(self), self.message))

    def _key(self) -> tuple[object, ...]:
        return (self.message, self.retry_after_seconds, dict(self.details))


class InvalidRequest(RouterError):
    status = 400
    type = "invalid_request_error"
    code = "invalid_request"


class ModelNotLoaded(InvalidRequest):
    code = "model_not_loaded"


class SettingsConflict(InvalidRequest):
    status = 409
    code = "settings_conflict"


class AmbiguousModel(InvalidRequest):
    """A shortened name that several models could have. `candidates` are the names to choose from."""

    status = 409
    code = "model_ambiguous"

    def __init__(self, name: str, candidates: Sequence[str]) -> None:
        self.candidates = tuple(candidates)
        shown = ", ".join(candidates[:MAX_CANDIDATES_SHOWN])
        more = len(candidates) - MAX_CANDIDATES_SHOWN
        rest = f" and {more} more" if more > 0 else ""
        super().__init__(
            f"{name[:100]!r} could be several models: {shown}{rest}; give the whole name of one",
            details={"candidates": list(candidates[:MAX_CANDIDATES_SHOWN])},
        )


class Unauthorized(RouterError):
    status = 401
    type = "authentication_error"
    code = "invalid_api_key"


class Forbidden(RouterError):
    status = 403
    type = "permission_error"
    code = "forbidden"


class ModelNotFound(RouterError):
    status = 404
    type = "not_found_error"
    code = "model_not_found"


class ModelUnusable(RouterError):
    status = 422
    type = "invalid_request_error"
    code = "model_unusable"


class ModelTooLarge(ModelUnusable):
    code = "model_too_large"


class RequestTooSlow(RouterError):
    status = 408
    type = "invalid_request_error"
    code = "request_too_slow"


class BodyTooLarge(InvalidRequest):
    """The body is larger than `server.max_body_mib`."""

    status = 413
    code = "body_too_large"

    def __init__(self, limit_bytes: int, *, is_decoded: bool = False) -> None:
        what = "the decoded body" if is_decoded else "the body"
        super().__init__(f"{what} is larger than {limit_bytes >> 20} MiB (server.max_body_mib)")


class UnsupportedCoding(RouterError):
    """The Content-Encoding of a request is unknown; the answer names those that are known."""

    status = 415
    type = "invalid_request_error"
    code = "unsupported_content_encoding"


class NotSupported(RouterError):
    status = 501
    type = "not_supported_error"
    code = "not_supported"


class QueueFull(RouterError):
    status = 429
    type = "rate_limit_error"
    code = "queue_full"


class ClientLimit(RouterError):
    """One client has as many connections or streams as one may have (server.client_share)."""

    status = 429
    type = "rate_limit_error"
    code = "client_limit"


class UpstreamFailed(RouterError):
    status = 502
    code = "upstream_failed"


class Unavailable(RouterError):
    status = 503
    type = "unavailable_error"
    code = "unavailable"


class NoRoom(Unavailable):
    code = "no_room"


class WaitTimeout(Unavailable):
    code = "wait_timeout"


class LoadFailed(Unavailable):
    code = "load_failed"


class Unloaded(Unavailable):
    code = "unloaded"


class ShuttingDown(Unavailable):
    code = "shutting_down"


class StartupError(RouterError):
    """The router cannot start; the command line prints the message and exits with status 2."""

    code = "startup_error"


class ConfigError(StartupError):
    code = "config_error"
