"""What is asked of the hub, and what its errors mean. Runs in the worker: it imports huggingface_hub."""

from __future__ import annotations

import errno
import re
from pathlib import Path
from typing import Final

import httpx2
from huggingface_hub import HfApi, constants, get_token
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.hf_api import RepoSibling
from huggingface_hub.utils._shared_blobs import sweep_shared_blob

from router.downloads.job import Listing, RemoteFile
from router.downloads.layout import COMMIT, is_etag, is_safe_path
from router.downloads.protocol import Failed, Listed, Look, Sweep, Swept
from router.downloads.source import is_repo

LOOK_SECONDS: Final = 20.0
_SIGNED: Final = re.compile(r"(https?://[^\s?'\"]+)\?[^\s'\"]+")
_LONGEST_MESSAGE: Final = 500
_DISK_FULL: Final = frozenset({errno.ENOSPC, errno.EDQUOT})
_NOT_WRITABLE: Final = frozenset({errno.EACCES, errno.EPERM, errno.EROFS})


class HubProblem(Exception):
    """What went wrong, ready to be told."""

    def __init__(self, failed: Failed) -> None:
        super().__init__(failed.message)
        self.failed = failed


def look(wanted: Look) -> Listed:
    """The repository at the commit that `revision` names now. Raises HubProblem."""
    api = HfApi()
    try:
        info = api.model_info(
            wanted.repo, revision=wanted.revision, files_metadata=True, timeout=LOOK_SECONDS
        )
    except Exception as error:
        raise translated(error, wanted.repo, wanted.revision) from error
    # The hub answers with the name as it is spelt there, also after a renaming.
    repo = info.id if is_repo(info.id) else wanted.repo
    if info.sha is None or not COMMIT.fullmatch(info.sha):
        raise HubProblem(Failed("misbehaves", f"{endpoint()} names no commit of {repo}"))
    siblings = info.siblings or []
    files = tuple(file for sibling in siblings if (file := _file(sibling)) is not None)
    left_out = tuple(one.rfilename[:200] for one in siblings if not is_safe_path(one.rfilename))
    gated = bool(info.gated)
    return Listed(
        Listing(
            repo,
            info.sha,
            files,
            gated=gated,
            private=bool(info.private),
            accessible=not gated or _is_accessible(api, repo),
            left_out=left_out,
        )
    )


def sweep(wanted: Sweep) -> Swept:
    """Newer versions keep content that several repositories have once, and know who still links to it."""
    cache = Path(wanted.cache)
    return Swept(sum(sweep_shared_blob(Path(content), cache_dir=cache) for content in wanted.contents))


def endpoint() -> str:
    """Without a name and password, should it have any."""
    scheme, _, rest = constants.ENDPOINT.partition("://")
    return f"{scheme}://{rest.rpartition('@')[2]}"


def scrubbed(text: str) -> str:
    """Without tokens, and without what signs an address."""
    token = get_token()
    if token:
        text = text.replace(token, "***")
    return _SIGNED.sub(r"\1", text)[:_LONGEST_MESSAGE]


def translated(error: Exception, repo: str, revision: str, path: str = "") -> HubProblem:
    """What the library or the disk said, as the router tells it."""
    if isinstance(error, HubProblem):
        return error
    hub, what = endpoint(), f"{path} of {repo}" if path else repo
    match error:
        case GatedRepoError():
            failed = Failed("gated", _gated(repo))
        case RepositoryNotFoundError():
            hint = "" if get_token() else "; for a private one set HF_TOKEN"
            failed = Failed("repo_not_found", f"{hub} has no repository {repo} that may be read{hint}")
        case RevisionNotFoundError():
            failed = Failed("revision_not_found", f"{repo} has no revision {revision}")
        case EntryNotFoundError():
            failed = Failed("file_not_found", f"{repo} has no {path} at {revision}")
        case OfflineModeIsEnabled():
            failed = Failed("offline", "HF_HUB_OFFLINE is set: nothing is fetched from the hub")
        case HfHubHTTPError():
            failed = _from_status(error, what)
        case httpx2.HTTPError() | httpx2.InvalidURL():
            reason = scrubbed(str(error)) or type(error).__name__
            failed = Failed("unreachable", f"cannot fetch {what} from {hub}: {reason}", is_transient=True)
        case OSError() if error.errno in _DISK_FULL:
            failed = Failed("disk_full", f"{error.strerror}")
        case OSError() if error.errno in _NOT_WRITABLE:
            failed = Failed("not_writable", f"cannot write to {error.filename}: {error.strerror}")
        case HFValidationError():
            failed = Failed("misbehaves", scrubbed(str(error)))
        case _:
            failed = Failed("unexpected", scrubbed(f"{what}: {type(error).__name__}: {error}"))
    return HubProblem(failed)


def _from_status(error: HfHubHTTPError, what: str) -> Failed:
    status, hub = error.response.status_code, endpoint()
    match status:
        case 401:
            return Failed("unauthorized", f"{hub} does not accept the token (HF_TOKEN) for {what}")
        case 429:
            after = error.response.headers.get("Retry-After", "")
            seconds = float(after) if after.isdecimal() else None
            message = f"{hub} takes no more requests for now (429)"
            return Failed("limited", message, is_transient=True, retry_after_seconds=seconds)
        case _:
            # A signed address that has expired is a 403; the next attempt asks for a new one.
            is_transient = status in (403, 408, 416) or status >= 500
            return Failed("hub_error", f"{hub} answers {status} for {what}", is_transient=is_transient)


def _gated(repo: str) -> str:
    how = "with the account of HF_TOKEN" if get_token() else "and set HF_TOKEN to a token of that account"
    return f"{repo} is gated: accept its conditions at {endpoint()}/{repo} {how}"


def _is_accessible(api: HfApi, repo: str) -> bool:
    try:
        api.auth_check(repo)
    except (GatedRepoError, RepositoryNotFoundError):
        return False
    except (HfHubHTTPError, httpx2.HTTPError):  # not every hub knows the question; fetching will tell
        return True
    return True


def _file(sibling: RepoSibling) -> RemoteFile | None:
    """None for one that would lead out of its folder, or of which the hub does not tell the size."""
    size = sibling.size
    sha256 = sibling.lfs.sha256 if sibling.lfs is not None else None
    etag = sha256 or sibling.blob_id
    if not is_safe_path(sibling.rfilename) or size is None or size < 0 or (etag and not is_etag(etag)):
        return None
    return RemoteFile(sibling.rfilename, size, sha256, sibling.blob_id)
