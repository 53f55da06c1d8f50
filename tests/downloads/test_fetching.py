"""Files come whole, from where they were left, into the very layout that huggingface_hub makes."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest

from router.config import DownloadsConfig
from router.downloads import DownloadSpec
from router.downloads.protocol import Fetch
from tests.waiting import until

MIB = 1 << 20
MODEL = os.urandom(3 * MIB)
REPO = "org/tiny-GGUF"
Q4, Q8 = "tiny-Q4_K_M.gguf", "tiny-Q8_0.gguf"


async def test_what_is_fetched_is_what_huggingface_hub_would_have_made(kit, tmp_path):
    repo = kit.hub.add(REPO, {Q4: MODEL, "config.json": b"{}"})
    job = await kit.fetch(REPO, include=("*",))
    assert (job.state, job.error) == ("finished", None)
    script = (
        "import sys, huggingface_hub as h;"
        f"[h.hf_hub_download({REPO!r}, f, cache_dir=sys.argv[1]) for f in ({Q4!r}, 'config.json')]"
    )
    environ = {**os.environ, **kit.environ, "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
    command = [sys.executable, "-c", script, str(tmp_path / "theirs")]
    await asyncio.to_thread(subprocess.run, command, env=environ, check=True)
    theirs, ours = tmp_path / "theirs" / kit.repo(REPO).name, kit.repo(REPO)
    assert tree(ours) == tree(theirs)
    assert (ours / "refs" / "main").read_text() == repo.commit
    assert kit.reloads == 1


def tree(folder: Path) -> dict[str, str]:
    """Every file with its content, every link with where it leads."""
    return {
        str(f.relative_to(folder)): str(f.readlink()) if f.is_symlink() else f.read_bytes().hex()
        for f in folder.rglob("*")
        if f.is_symlink() or f.is_file()
    }


async def test_a_broken_connection_goes_on_where_it_broke(kit):
    kit.hub.add(REPO, {Q4: MODEL})
    kit.hub.faults.cuts = [2 * MIB]
    assert (await kit.fetch(REPO)).state == "finished"
    assert kit.snapshot(REPO) == {Q4: MODEL}
    assert [one.range for one in kit.hub.content_requests()] == [None, f"bytes={2 * MIB}-"]


async def test_a_router_that_starts_again_goes_on_where_the_last_one_stopped(kit):
    kit.hub.add(REPO, {Q4: MODEL})
    kit.hub.faults.hold_after = 2 * MIB + 1
    job = await kit.downloads.start(DownloadSpec(REPO))
    await until(lambda: kit.partial_bytes(REPO) == 2 * MIB)
    await kit.close()
    kit.hub.faults.hold_after = None
    kit.hub.faults.go.set()
    await kit.open()
    assert (await kit.ended(job)).state == "finished"
    assert kit.snapshot(REPO) == {Q4: MODEL}
    assert [one.range for one in kit.hub.content_requests()] == [None, f"bytes={2 * MIB}-"]


async def test_a_server_that_cannot_go_on_in_the_middle_sends_all_again(kit):
    kit.hub.add(REPO, {Q4: MODEL})
    kit.hub.faults.cuts, kit.hub.faults.ignores_range = [MIB], True
    assert (await kit.fetch(REPO)).state == "finished"
    assert kit.snapshot(REPO) == {Q4: MODEL}


async def test_what_a_crash_has_spoilt_is_noticed_and_fetched_again(kit):
    kit.hub.add(REPO, {Q4: MODEL})
    kit.hub.faults.hold_after = 2 * MIB + 1
    job = await kit.downloads.start(DownloadSpec(REPO))
    await until(lambda: kit.partial_bytes(REPO) == 2 * MIB)
    await kit.downloads.cancel(job.id)
    (partial,) = kit.repo(REPO).glob("blobs/*.incomplete")
    partial.write_bytes(bytes(2 * MIB))  # as a file system leaves it that lost what was not yet written
    kit.hub.faults.hold_after = None
    kit.hub.faults.go.set()
    assert (await kit.fetch(REPO)).state == "finished"
    assert kit.snapshot(REPO) == {Q4: MODEL}


async def test_another_content_than_was_listed_is_refused_and_leaves_nothing(kit):
    repo = kit.hub.add(REPO, {Q4: MODEL})
    repo.served[Q4] = os.urandom(len(MODEL))
    job = await kit.fetch(REPO)
    assert (job.state, job.error.code) == ("failed", "hub_misbehaves")
    assert "is not what the hub has listed" in job.error.message
    assert not list(kit.repo(REPO).glob("snapshots/*/*")) and not (kit.repo(REPO) / "refs").exists()
    assert sum(f.stat().st_size for f in kit.repo(REPO).glob("blobs/*")) == 0
    assert kit.reloads == 0


async def test_small_files_are_checked_too(kit):
    repo = kit.hub.add(REPO, {Q4: MODEL, "config.json": b'{"a": 1}'})
    repo.served["config.json"] = b'{"a": 2}'
    job = await kit.fetch(REPO, include=("config.json",))
    assert (job.state, job.error.code) == ("failed", "hub_misbehaves")


async def test_a_file_that_ends_early_is_not_taken_for_whole(kit):
    kit.hub.add(REPO, {Q4: MODEL})
    kit.hub.faults.ends_early = MIB
    kit.settings = DownloadsConfig(min_free_mib=0, retry_seconds=0.0)
    job = await kit.fetch(REPO)
    assert job.state == "failed" and f"after {MIB} of {len(MODEL)} bytes" in job.error.message
    kit.hub.faults.ends_early = None
    assert (await kit.fetch(REPO)).state == "finished"
    assert kit.snapshot(REPO) == {Q4: MODEL}


async def test_what_is_there_already_is_not_fetched_again(kit):
    kit.hub.add(REPO, {Q4: MODEL, Q8: MODEL + b"x"})
    await kit.fetch(REPO)
    await kit.fetch(REPO)
    assert len(kit.hub.content_requests()) == 1
    await kit.fetch(REPO, quantization="Q8_0")
    assert kit.snapshot(REPO) == {Q4: MODEL, Q8: MODEL + b"x"}


async def test_the_same_content_at_a_newer_commit_is_only_linked(kit):
    repo = kit.hub.add(REPO, {Q4: MODEL})
    await kit.fetch(REPO)
    repo.commit = "b" * 40
    assert (await kit.fetch(REPO)).state == "finished"
    assert kit.snapshot(REPO) == {Q4: MODEL} and len(kit.hub.content_requests()) == 1
    assert (kit.repo(REPO) / "refs" / "main").read_text() == "b" * 40


async def test_nothing_is_seen_of_a_model_before_it_is_whole(kit):
    parts = [f"big-Q4_K_M-0000{n}-of-00002.gguf" for n in (1, 2)]
    kit.hub.add(REPO, {parts[0]: MODEL, parts[1]: MODEL[::-1]})
    kit.hub.faults.hold_after = MIB
    job = await kit.downloads.start(DownloadSpec(REPO))
    await kit.held()
    assert not list(kit.repo(REPO).glob("snapshots/*/*")) and not (kit.repo(REPO) / "refs").exists()
    kit.hub.faults.go.set()
    assert (await kit.ended(job)).state == "finished"
    assert kit.snapshot(REPO) == {parts[0]: MODEL, parts[1]: MODEL[::-1]}


async def test_what_the_hub_does_not_send_in_one_piece_comes_by_the_library(kit, monkeypatch):
    monkeypatch.setattr("router.downloads.downloads.Fetch", partial(Fetch, http_max_bytes=MIB))
    kit.hub.add(REPO, {Q4: MODEL})
    assert (await kit.fetch(REPO)).state == "finished"
    assert kit.snapshot(REPO) == {Q4: MODEL}


async def test_a_link_in_the_cache_leads_nobody_out_of_it(kit, tmp_path):
    kit.hub.add(REPO, {"inner/" + Q4: MODEL}, commit="c" * 40)
    outside = tmp_path / "outside"
    outside.mkdir()
    (kit.repo(REPO) / "snapshots" / ("c" * 40)).mkdir(parents=True)
    (kit.repo(REPO) / "snapshots" / ("c" * 40) / "inner").symlink_to(outside)
    job = await kit.fetch(REPO)
    assert job.state == "failed" and "nothing is written through it" in job.error.message
    assert not list(outside.iterdir())


async def test_a_token_goes_to_the_hub_and_to_nobody_else(kit):
    kit.environ["HF_TOKEN"] = "hf_secret"
    kit.hub.add(REPO, {Q4: MODEL}, gated=True, needs_token="hf_secret")
    assert (await kit.fetch(REPO)).state == "finished"
    told = {one.host: one.authorization for one in kit.hub.asked}
    assert told == {"127.0.0.1": "Bearer hf_secret", "127.0.0.2": None}


@pytest.mark.parametrize("fault", ["cut", "status"])
async def test_no_message_has_a_token_or_a_signed_address(kit, fault, caplog):
    kit.environ["HF_TOKEN"] = "hf_secret"
    kit.settings = DownloadsConfig(min_free_mib=0, retry_seconds=0.0)
    kit.hub.add(REPO, {Q4: MODEL})
    if fault == "status":
        kit.hub.faults.statuses = [500] * 9
    else:
        kit.hub.faults.cuts = [0] * 9
    job = await kit.fetch(REPO)
    assert job.state == "failed"
    said = caplog.text + job.error.message + repr(kit.events)
    assert "hf_secret" not in said and "very-secret" not in said
