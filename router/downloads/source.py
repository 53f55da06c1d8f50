"""What a person names as the place of a model: a repository, or its address as a browser shows it."""

from __future__ import annotations

import glob
import re
from typing import Final
from urllib.parse import parse_qs, unquote, urlsplit

import msgspec

from router.downloads.errors import BadSource
from router.downloads.job import MAIN, DownloadSpec
from router.downloads.layout import is_safe_path

_REPO: Final = re.compile(r"(?=.{3,96}$)\w+(?:[.-]\w+)*/\w+(?:[.-]\w+)*", re.ASCII)
_REVISION: Final = re.compile(r"(?!.*(?:\.\.|//|/$|\.lock$))[A-Za-z0-9][A-Za-z0-9._/-]{0,127}", re.ASCII)
#: What may stand behind the colon of a model's id: much of what a file may be called, but no folder.
_QUANTIZATION: Final = re.compile(r"\w[\w.+,()\[\] -]{0,199}")
_HF_PATH: Final = re.compile(r"(?:models/)?(?P<repo>[^/]+/[^/@]+)(?:@(?P<revision>[^/]+))?/?(?P<path>.*)")
_HOSTS: Final = frozenset({"huggingface.co", "www.huggingface.co", "hf.co"})
_OTHER_KINDS: Final = frozenset({"datasets", "spaces", "kernels", "buckets", "collections", "papers"})
_FORMS: Final = "give ORG/REPO, ORG/REPO:QUANTIZATION, or the address of a repository or file on the hub"


def parse_source(text: str, endpoint: str) -> DownloadSpec:
    """`org/repo`, `org/repo:Q4_K_M`, `hf.co/org/repo:Q8_0`,
    `https://huggingface.co/org/repo/blob/main/x.gguf`.

    The files that were named are in `include`; without any the quantisation decides. Raises BadSource.
    `endpoint` is the hub in use, whose addresses count as those of huggingface.co.
    """
    text = text.strip()
    if len(text) > 2000 or any(ord(sign) < 32 for sign in text):
        raise BadSource(f"that is no repository; {_FORMS}")
    hosts = _HOSTS | {urlsplit(without_userinfo(endpoint)).netloc.lower()}
    if "://" in text or text.partition("/")[0].lower() in hosts:
        return _from_address(text, hosts)
    return _from_name(text, MAIN)


def without_userinfo(address: str) -> str:
    """An address as it may be shown: without a name and password."""
    parts = urlsplit(address)
    return parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()


def check_revision(revision: str) -> str:
    """A branch, tag or commit, as it may stand in an address and a path. Raises BadSource."""
    if not _REVISION.fullmatch(revision):
        raise BadSource(f"{revision[:100]!r} is not the name of a revision")
    return revision


def check_quantization(quantization: str) -> str:
    """Raises BadSource for what can be no part of a file's name."""
    if quantization and not _QUANTIZATION.fullmatch(quantization):
        raise BadSource(f"{quantization[:100]!r} is not the name of a quantisation, like Q4_K_M")
    return quantization


def is_repo(name: str) -> bool:
    """Whether the hub would allow a repository to be called that; no such name leads out of a folder."""
    return bool(_REPO.fullmatch(name)) and "--" not in name and not name.endswith(".git")


def _from_name(text: str, revision: str) -> DownloadSpec:
    repo, colon, tag = text.partition(":")
    if not is_repo(repo) or (colon and not tag):
        raise BadSource(f"{text[:200]!r} is not a repository; {_FORMS}")
    return DownloadSpec(repo, check_revision(revision), check_quantization(tag))


def _from_address(text: str, hosts: frozenset[str]) -> DownloadSpec:
    try:
        parts = urlsplit(text if "://" in text else f"https://{text}")
    except ValueError as error:
        raise BadSource(f"{text[:200]!r} is not an address: {error}") from error
    path = parts.path
    if parts.scheme == "hf":  # hf://ORG/REPO@REVISION/PATH
        found = _HF_PATH.fullmatch(f"{parts.netloc}{parts.path}")
        path = f"{found['repo']}/resolve/{found['revision'] or MAIN}/{found['path']}" if found else ""
    elif parts.scheme not in ("http", "https") or parts.netloc.lower() not in hosts:
        raise BadSource(
            f"models come from {', '.join(sorted(hosts - {'hf.co', 'www.huggingface.co'}))}; {_FORMS}"
        )
    match [unquote(name) for name in path.split("/") if name]:
        case [org, repo] if org not in _OTHER_KINDS:
            revision, kind, inner = MAIN, "", parse_qs(parts.query).get("show_file_info", [])
        case [org, repo, "tree"] if org not in _OTHER_KINDS:
            revision, kind, inner = MAIN, "", []
        case [org, repo, ("tree" | "blob" | "resolve" | "raw") as kind, revision, *inner]:
            pass
        case _:
            raise BadSource(f"{text[:200]!r} is not the address of a model or a file of one; {_FORMS}")
    source = _from_name(f"{org}/{repo}", revision)
    if not inner:
        return source
    path = "/".join(inner)
    if not is_safe_path(path):
        raise BadSource(f"{path[:200]!r} is not a file of a repository")
    pattern = glob.escape(path) + ("/*" if kind == "tree" else "")
    return msgspec.structs.replace(source, include=(pattern,))
