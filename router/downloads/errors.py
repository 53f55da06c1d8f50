"""What goes wrong with downloads and deletions, in the shape of `router.errors`.

InvalidRequest          400   BadSource, NothingToFetch, ModelExists, NotRemovable
Forbidden               403   Gated
RouterError             404   RepoNotFound, DownloadNotFound
                        409   InUse
                        500   NotWritable, DownloadFailed
                        502   HubMisbehaves
                        507   DiskFull
Unavailable             503   HubUnreachable, HubLimited
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from router.errors import Forbidden, InvalidRequest, RouterError, Unavailable


class BadSource(InvalidRequest):
    """What was given is neither a repository nor an address on the hub."""

    code = "bad_source"


class NothingToFetch(InvalidRequest):
    """The repository has no such file; says which there are."""

    code = "nothing_to_fetch"


class ModelExists(InvalidRequest):
    code = "model_exists"


class NotRemovable(InvalidRequest):
    """Not a model of the cache, so not the router's to delete."""

    code = "not_removable"


class Gated(Forbidden):
    """The hub wants a token, or conditions to be accepted."""

    code = "repo_gated"


class RepoNotFound(RouterError):
    status = 404
    type = "not_found_error"
    code = "repo_not_found"


class DownloadNotFound(RouterError):
    status = 404
    type = "not_found_error"
    code = "download_not_found"


class InUse(RouterError):
    """Something else needs what was to be deleted."""

    status = 409
    type = "invalid_request_error"
    code = "in_use"


class DiskFull(RouterError):
    status = 507
    code = "disk_full"


class NotWritable(RouterError):
    code = "not_writable"


class DownloadFailed(RouterError):
    code = "download_failed"


class HubMisbehaves(RouterError):
    """It answers, with something that cannot be used."""

    status = 502
    code = "hub_misbehaves"


class HubUnreachable(Unavailable):
    code = "hub_unreachable"


class HubLimited(Unavailable):
    code = "hub_limited"


_OF_WORKERS: Final = (
    *(RepoNotFound, Gated, HubMisbehaves, HubUnreachable, HubLimited),
    *(DiskFull, DownloadFailed, NotWritable),
)
#: What a worker may fail with, by code: the worker names the code, the router raises the error.
WORKER_ERRORS: Final[Mapping[str, type[RouterError]]] = {error.code: error for error in _OF_WORKERS}
