"""What is asked of the hub, and what its errors mean. Runs in the worker: it imports huggingface_hub."""

from __future__ import annotations

import errno
import hashlib
import re
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final

import httpx2
from huggingface_hub import (
    DeleteCacheStrategy,
    HfApi,
    ModelInfo,
    errors,
    get_hf_file_metadata,
    get_token,
    hf_hub_url,
)
from huggingface_hub.hf_api import RepoSibling
from huggingface_hub.utils import build_hf_headers  # type: ignore[attr-defined]

from router.downloads.job import Listing, RemoteFile
from router.downloads.layout import COMMIT, Outside, is_etag, is_safe_path, size_of, target_of
from router.downloads.protocol import Failed, Look, Sweep, Swept
from router.downloads.source import is_repo, without_userinfo

LOOK_SECONDS: Final = 20.0
#: What a proxy asks for beyond that is no limit on requests; the hub counts them in windows of 5 minutes.
MAX_RETRY_AFTER_SECONDS: Final = 3600.0
#: Of a list without sizes: the router waits 30 s for all of it.
MEASURED_FILES: Final = 64
MEASURED_AT_A_TIME: Final = 8
_MODEL_SUFFIX: Final = ".gguf"
_SIGNED: Final = re.compile(r"(https?://[^\s?'\"]+)\?[^\s'\"]+")
_LONGEST_MESSAGE: Final = 500
_OF_THE_DISK: Final = {
    **dict.fromkeys((errno.ENOSPC, errno.EDQUOT), "disk_full"),
    **dict.fromkeys((errno.EACCES, errno.EPERM, errno.EROFS, errno.EFBIG), "not_writable"),
}


class HubProblem(Exception):
    """What went wrong, ready to be sent."""

    def __init__(self, failed: Failed) -> None:
        super().__init__(failed.message)
        self.failed = failed


def look(wanted: Look) -> Listing:
    """The repository at the commit that `revision` names now. Raises HubProblem."""
    api = HfApi()
    try:
        info = api.model_info(
            wanted.repo, revision=wanted.revision, files_metadata=True, timeout=LOOK_SECONDS
        )
        return _listing(api, info, wanted)
    except errors.HFValidationError as error:
        raise translated(error, wanted.repo, wanted.revision) from error
    except (ValueError, TypeError, LookupError, AttributeError) as error:
        # The answer was no JSON, or other JSON than a hub's.
        raise misbehaves(no_hub(wanted.repo)) from error
    except Exception as error:
        raise translated(error, wanted.repo, wanted.revision) from error


def _listing(api: HfApi, info: ModelInfo, wanted: Look) -> Listing:
    # The hub answers with the name as it is spelt there, also after a renaming.
    repo = info.id if is_repo(info.id) else wanted.repo
    commit = info.sha
    if commit is None or not COMMIT.fullmatch(commit):
        raise misbehaves(f"{endpoint()} names no commit of {repo}")
    siblings = info.siblings or []
    unmeasured = [
        one.rfilename
        for one in siblings
        if one.size is None and one.rfilename.endswith(_MODEL_SUFFIX) and is_safe_path(one.rfilename)
    ]
    # Not every mirror's list tells sizes: they are asked for, file by file.
    with ThreadPoolExecutor(MEASURED_AT_A_TIME) as pool:
        measured = pool.map(lambda path: _size(repo, commit, path), unmeasured[:MEASURED_FILES])
        sizes = dict(zip(unmeasured, measured, strict=False))
    files = tuple(file for one in siblings if (file := _file(repo, commit, one, sizes)) is not None)
    if unmeasured and not any(file.path.endswith(_MODEL_SUFFIX) for file in files):
        raise misbehaves(f"{endpoint()} tells the size of no GGUF file of {repo}")
    unsafe = (one.rfilename[:200] for one in siblings if not is_safe_path(one.rfilename))
    gated = bool(info.gated)
    return Listing(
        repo,
        commit,
        files,
        gated=gated,
        private=bool(info.private),
        refusal=_refusal(api, repo) if gated else None,
        # Half of a surrogate pair cannot be sent as UTF-8.
        left_out=tuple(name.encode("utf-8", "replace").decode() for name in unsafe),
    )


def _size(repo: str, commit: str, path: str) -> int | None:
    url = hf_hub_url(repo, path, revision=commit)
    try:
        return get_hf_file_metadata(url, headers=request_headers()).size
    except errors.EntryNotFoundError:  # listed, and not there
        return None


def _file(repo: str, commit: str, sibling: RepoSibling, sizes: Mapping[str, int | None]) -> RemoteFile | None:
    """None for one that would lead out of its folder, or of which the hub does not tell the size."""
    path = sibling.rfilename
    size = sibling.size if sibling.size is not None else sizes.get(path)
    sha256 = sibling.lfs.sha256 if sibling.lfs is not None else None
    etag = sha256 or sibling.blob_id
    is_size = type(size) is int and size >= 0  # whatever JSON had there
    if size is None or not is_size or not is_safe_path(path) or (etag and not is_etag(etag)):
        return None
    if etag:
        return RemoteFile(path, size, sha256, sibling.blob_id)
    # Its commit is part of the name: another commit may have another content of the same size.
    named = hashlib.sha256(f"{repo}\n{commit}\n{path}".encode()).hexdigest()
    return RemoteFile(path, size, key=f"unverified-{named[:40]}")


def _refusal(api: HfApi, repo: str) -> str | None:
    """Why the files of a gated repository may not be fetched, if so."""
    try:
        api.auth_check(repo)
    except (errors.GatedRepoError, errors.RepositoryNotFoundError):
        return _gated(repo)
    except (errors.HfHubHTTPError, httpx2.HTTPError):  # not every hub knows the question; fetching will tell
        return None
    return None


def _gated(repo: str) -> str:
    how = " with the account of HF_TOKEN" if get_token() else ", and set HF_TOKEN to a token of that account"
    return f"{repo} is gated: accept its conditions at {endpoint()}/{repo}{how}"


def sweep(wanted: Sweep) -> Swept:
    """Newer versions keep content that several repositories have once, and know which still link to it."""
    blobs = frozenset(map(Path, wanted.blobs))
    shared = {target_of(blob) for blob in blobs if blob.is_symlink()}
    sizes = {content: size_of(content) or 0 for content in shared}
    nothing = frozenset[Path]()
    DeleteCacheStrategy(
        sum(sizes.values()),
        blobs=blobs,
        refs=nothing,
        repos=nothing,
        snapshots=nothing,
        cache_dir=Path(wanted.cache),
    ).execute()
    return Swept(sum(size for content, size in sizes.items() if not content.exists()))


def endpoint() -> str:
    return without_userinfo(HfApi().endpoint)


def request_headers() -> dict[str, str]:
    """With the token, where there is one."""
    headers: dict[str, str] = build_hf_headers(library_name="llama-router")
    return headers


def no_hub(what: str) -> str:
    """The message about an answer that no hub gives."""
    return (
        f"{endpoint()} answers the question for {what} with something that no hub sends, such as a page for"
        " people: does the network ask for a login, or a proxy stand in between? (HF_ENDPOINT, HTTPS_PROXY)"
    )


def misbehaves(message: str) -> HubProblem:
    return HubProblem(Failed("hub_misbehaves", message))


def translated(error: Exception, repo: str = "", revision: str = "", path: str = "") -> HubProblem:
    """An error of the library or the disk, as the router tells it."""
    if isinstance(error, HubProblem):
        return error
    hub, what = endpoint(), f"{path} of {repo}" if path else repo or "the cache"
    match error:
        case errors.GatedRepoError():
            failed = Failed("repo_gated", _gated(repo))
        case errors.RepositoryNotFoundError():
            hint = "" if get_token() else "; for a private one set HF_TOKEN"
            failed = Failed("repo_not_found", f"{hub} has no repository {repo} that may be read{hint}")
        case errors.RevisionNotFoundError() | errors.EntryNotFoundError():
            missing = (
                f"{path} at {revision}"
                if isinstance(error, errors.EntryNotFoundError)
                else f"revision {revision}"
            )
            failed = Failed("repo_not_found", f"{repo} has no {missing}")
        case errors.OfflineModeIsEnabled():
            failed = Failed("hub_unreachable", "HF_HUB_OFFLINE is set: nothing is fetched from the hub")
        case errors.HfHubHTTPError():
            failed = _from_status(error, what)
        case httpx2.TooManyRedirects() | httpx2.DecodingError() | httpx2.UnsupportedProtocol():
            failed = Failed("hub_misbehaves", f"{no_hub(what)} ({_scrubbed(error)})")
        case httpx2.HTTPError() | httpx2.InvalidURL():
            reason = _scrubbed(error) or type(error).__name__
            failed = Failed("hub_unreachable", f"cannot fetch {what} from {hub}: {reason}", "later")
        case OSError(errno=None):  # huggingface_hub raises it for an answer that it cannot use
            failed = Failed("hub_misbehaves", _scrubbed(f"{what}: {error}"), "later")
        case OSError(errno=int() as number) if number in _OF_THE_DISK:
            failed = Failed(_OF_THE_DISK[number], f"cannot write {error.filename or what}: {error.strerror}")
        case errors.HFValidationError() | Outside():
            failed = Failed("hub_misbehaves", _scrubbed(error))
        case _:
            failed = Failed("download_failed", _scrubbed(f"{what}: {type(error).__name__}: {error}"))
    return HubProblem(failed)


def _from_status(error: errors.HfHubHTTPError, what: str) -> Failed:
    status, hub = error.response.status_code, endpoint()
    match status:
        case 401:
            return Failed("repo_gated", f"{hub} does not accept the token (HF_TOKEN) for {what}")
        case 429:
            after = error.response.headers.get("Retry-After", "")
            seconds = min(float(after), MAX_RETRY_AFTER_SECONDS) if after.isdecimal() else None
            return Failed("hub_limited", f"{hub} takes no more requests for now (429)", "later", seconds)
        case _:
            # A signed address that has expired is a 403; the next attempt asks for a new one.
            is_transient = status in (403, 408, 416) or status >= 500
            message = f"{hub} answers {status} for {what}"
            return Failed("hub_misbehaves", message, "later" if is_transient else "never")


def _scrubbed(text: object) -> str:
    """Without tokens, and without what signs an address."""
    text = str(text)
    if token := get_token():
        text = text.replace(token, "***")
    return _SIGNED.sub(r"\1", text)[:_LONGEST_MESSAGE]
