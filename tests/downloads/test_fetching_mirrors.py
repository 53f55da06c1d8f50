"""Mirrors and proxies send what they like beside the content: it comes all the same, checked by what is known
of it."""

from __future__ import annotations

import asyncio
import hashlib
import os
import subprocess
import sys
from typing import Any

import pytest

from router.config import DownloadsConfig
from router.downloads.fetching import may_see_token
from tests.hub_stub import Mirror

MIB = 1 << 20
MODEL = b"GGUF" + os.urandom(2 * MIB)
REPO = "org/tiny-GGUF"
Q4 = "tiny-Q4_K_M.gguf"

SHA256 = hashlib.sha256(MODEL).hexdigest()
ETAGS = {
    "md5": lambda content: f'"{hashlib.md5(content).hexdigest()}"',
    "weak": lambda content: f'W/"{hashlib.sha256(content).hexdigest()}"',
    "another sha256": lambda content: f'"{hashlib.sha256(b"2026-11-30" + content).hexdigest()}"',
    "apache": lambda content: f'"{len(content):x}-5f3a"',
    "unquoted": lambda content: "5f3a-1",
    "no name": lambda content: '"a/../b c:\\\\d"',
    "long": lambda content: f'"{"x" * 4000}"',
    "empty": lambda content: '""',
    "none": None,
}


@pytest.mark.parametrize("kind", ETAGS)
async def test_whatever_etag_a_mirror_sends_the_content_is_named_and_checked_by_the_listed_hash(kit, kind):
    kit.hub.add(REPO, {Q4: MODEL}, mirror=Mirror(ETAGS[kind]))
    job = await kit.fetch(REPO)
    assert (job.state, job.error, job.note) == ("finished", None, None)
    assert kit.snapshot(REPO) == {Q4: MODEL}
    assert [one.name for one in kit.repo(REPO).glob("blobs/*")] == [SHA256]


@pytest.mark.parametrize("kind", ["md5", "none"])
async def test_a_mirror_that_sends_another_content_is_refused_by_the_listed_hash(kit, kind):
    repo = kit.hub.add(REPO, {Q4: MODEL}, mirror=Mirror(ETAGS[kind]))
    repo.served[Q4] = b"GGUF" + os.urandom(len(MODEL) - 4)
    job = await kit.fetch(REPO)
    assert (job.state, job.error.code) == ("failed", "hub_misbehaves")
    assert not list(kit.repo(REPO).glob("snapshots/*/*"))


async def test_a_list_that_has_git_lfs_pointers_only_checks_the_content_by_them(kit):
    """A mirror lists blobId without lfs: it is git's hash of the pointer, not of the content."""
    pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{SHA256}\nsize {len(MODEL)}\n".encode()
    listed = hashlib.sha1(b"blob %d\0" % len(pointer) + pointer, usedforsecurity=False).hexdigest()
    repo = kit.hub.add(REPO, {Q4: MODEL}, mirror=Mirror(lists=frozenset({"size", "blobId"})))
    del repo.files[Q4]
    repo.listed = [{"rfilename": Q4, "size": len(MODEL), "blobId": listed}]
    repo.unlisted[Q4] = MODEL
    job = await kit.fetch(REPO)
    assert (job.state, job.error, job.note) == ("finished", None, None)
    repo.commit, repo.unlisted[Q4] = "b" * 40, MODEL[:-1] + b"x"
    repo.listed = [{"rfilename": Q4, "size": len(MODEL), "blobId": "1" * 40}]
    assert (await kit.fetch(REPO)).error.code == "hub_misbehaves"


@pytest.mark.parametrize("lists", [frozenset({"size"}), frozenset()], ids=["size", "name only"])
async def test_without_any_hash_the_size_is_compared_and_the_job_says_that_no_more_was(kit, lists):
    kit.hub.add(REPO, {Q4: MODEL}, mirror=Mirror(ETAGS["md5"], lists))
    job = await kit.fetch(REPO)
    assert (job.state, job.error) == ("finished", None)
    assert "not verified" in job.note and Q4 in job.note and "only the size was compared" in job.note
    assert kit.snapshot(REPO) == {Q4: MODEL}


async def test_an_etag_that_is_the_hash_of_the_content_verifies_what_the_list_does_not(kit):
    kit.hub.add(REPO, {Q4: MODEL}, mirror=Mirror(ETAGS["weak"], frozenset({"size"})))
    job = await kit.fetch(REPO)
    assert (job.state, job.note) == ("finished", None)


async def test_without_any_hash_what_is_no_gguf_file_is_not_saved_as_one(kit):
    repo = kit.hub.add(REPO, {Q4: MODEL}, mirror=Mirror(None, frozenset({"size"})))
    repo.served[Q4] = b"x" * len(MODEL)
    job = await kit.fetch(REPO)
    assert (job.state, job.error.code) == ("failed", "hub_misbehaves")
    assert "no GGUF file" in job.error.message
    assert not list(kit.repo(REPO).glob("snapshots/*/*"))


async def test_without_any_hash_a_newer_commit_is_fetched_anew(kit):
    repo = kit.hub.add(REPO, {Q4: MODEL}, mirror=Mirror(None, frozenset({"size"})))
    await kit.fetch(REPO)
    newer = b"GGUF" + os.urandom(len(MODEL) - 4)
    repo.commit, repo.files[Q4] = "b" * 40, newer
    assert (await kit.fetch(REPO)).state == "finished"
    assert kit.snapshot(REPO) == {Q4: newer}


async def test_without_any_hash_a_broken_connection_goes_on_where_it_broke(kit):
    kit.hub.add(REPO, {Q4: MODEL}, mirror=Mirror(None, frozenset({"size"})))
    kit.hub.faults.cuts = [MIB]
    assert (await kit.fetch(REPO)).state == "finished"
    assert kit.snapshot(REPO) == {Q4: MODEL}
    assert [one.range for one in kit.hub.content_requests()] == [None, f"bytes={MIB}-"]


async def test_a_mirror_that_does_not_tell_the_length_is_read_to_its_end(kit):
    kit.hub.add(REPO, {Q4: MODEL}, mirror=Mirror(ETAGS["md5"], tells_length=False))
    assert (await kit.fetch(REPO)).state == "finished"
    assert kit.snapshot(REPO) == {Q4: MODEL}


async def test_what_came_from_a_mirror_is_there_for_huggingface_hub(kit):
    kit.hub.add(REPO, {Q4: MODEL}, mirror=Mirror(ETAGS["md5"]))
    await kit.fetch(REPO)
    script = (
        "import sys, huggingface_hub as h;"
        f"print(h.hf_hub_download({REPO!r}, {Q4!r}, cache_dir=sys.argv[1], local_files_only=True))"
    )
    command = [sys.executable, "-c", script, str(kit.cache)]
    environ = {**os.environ, **kit.environ}
    found = await asyncio.to_thread(subprocess.run, command, env=environ, check=True, capture_output=True)
    with open(found.stdout.decode().strip(), "rb") as file:
        assert file.read() == MODEL


@pytest.mark.parametrize(
    ("url", "location", "may"),
    [
        ("https://mirror/o/r", "https://mirror/cdn", True),
        ("https://mirror/o/r", "https://huggingface.co/o/r", True),
        ("https://mirror/o/r", "http://huggingface.co/o/r", False),
        ("https://mirror/o/r", "https://huggingface.co.evil/o/r", False),
        ("https://mirror/o/r", "https://mirror:8443/o/r", False),
        ("https://huggingface.co/o/r", "https://cdn-lfs.hf.co/o/r", False),
    ],
)
def test_a_token_goes_to_the_hub_that_is_asked_and_from_a_mirror_to_huggingface(url, location, may):
    assert may_see_token(url, location) == may


# --- a network that asks for a login ---

PORTALS: dict[str, dict[str, Any]] = {
    "a page": {},
    "a redirection": {"login": "/login"},
    "a redirection to another host": {"login": "http://127.0.0.2:{port}/login"},
    "nothing": {"page": b""},
    "json": {"page": b'{"login": "https://portal"}', "page_type": "application/json"},
    "a page as bytes": {"page_type": "application/octet-stream"},
    "a page of the same length": {"page": b"<html>".ljust(len(MODEL))},
}


@pytest.mark.parametrize("asked", ["head", "content"])
@pytest.mark.parametrize("kind", PORTALS)
@pytest.mark.parametrize("mirror", [None, Mirror(None, frozenset({"size"}))], ids=["hub", "no hash"])
async def test_a_page_of_the_network_is_never_saved_as_a_model(kit, asked, kind, mirror):
    kit.settings = DownloadsConfig(min_free_mib=0, retry_seconds=0.0)
    kit.hub.add(REPO, {Q4: MODEL}, mirror=mirror)
    faults = kit.hub.faults
    faults.portal = frozenset({asked, "content"})
    for name, value in PORTALS[kind].items():
        port = kit.hub.cdn_port
        setattr(faults, name, value.format(port=port) if isinstance(value, str) else value)
    job = await kit.fetch(REPO)
    assert (job.state, job.error.code) == ("failed", "hub_misbehaves")
    assert not list(kit.repo(REPO).glob("snapshots/*/*"))
    faults.portal = frozenset()
    assert (await kit.fetch(REPO)).state == "finished", "nothing of the page is left where the file goes on"
    assert kit.snapshot(REPO) == {Q4: MODEL}
