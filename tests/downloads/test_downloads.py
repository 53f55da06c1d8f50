"""Jobs: queued, tried again, cancelled, remembered; and what goes wrong is told in words that help."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from router.config import DownloadsConfig
from router.downloads import Downloads, DownloadSpec
from router.downloads.errors import DiskFull, Gated, HubMisbehaves, HubUnreachable, RepoNotFound
from tests.certificates import make_certificate
from tests.deadline import DEADLINE_SECONDS, FACTOR
from tests.downloads.conftest import Kit
from tests.hub_stub import HubStub
from tests.waiting import until

MIB = 1 << 20
MODEL = os.urandom(2 * MIB)
REPO = "org/tiny-GGUF"
Q4 = "tiny-Q4_K_M.gguf"


def workers() -> list[psutil.Process]:
    return [one for one in psutil.Process().children() if "router.downloads.worker" in one.cmdline()]


# --- what goes wrong with the hub ---


async def test_a_hub_that_is_busy_is_tried_again_later(kit):
    kit.hub.add(REPO, {Q4: MODEL})
    kit.hub.faults.statuses, kit.hub.faults.retry_after = [429], "1"
    assert (await kit.fetch(REPO)).state == "finished"
    assert len(kit.hub.content_requests()) == 2


async def test_a_hub_that_breaks_down_is_tried_again_from_where_it_broke(kit):
    kit.hub.add(REPO, {Q4: MODEL})
    kit.hub.faults.statuses = [500]
    job = await kit.downloads.start(DownloadSpec(REPO))
    await until(lambda: kit.downloads.job(job.id).state == "waiting")
    waiting = kit.downloads.job(job.id)
    assert waiting.error.code == "hub_misbehaves" and "answers 500" in waiting.error.message
    assert waiting.retry_at > waiting.updated_at
    assert (await kit.ended(job)).state == "finished" and kit.downloads.job(job.id).error is None
    assert kit.downloads.job(job.id).attempts == 2


async def test_a_hub_that_stays_broken_is_given_up_and_says_so(kit):
    kit.settings = DownloadsConfig(min_free_mib=0, retry_seconds=8.0)
    kit.hub.add(REPO, {Q4: MODEL})
    kit.hub.faults.statuses = [503] * 99
    job = await kit.fetch(REPO)
    assert (job.state, job.error.code) == ("failed", "hub_misbehaves")
    assert job.attempts >= 2, "it was tried again before"
    (event,) = kit.said("download_failed")
    assert event.data["error"]["message"] == job.error.message


async def test_a_hub_that_sends_nothing_any_more_is_noticed_and_left(kit):
    kit.settings = DownloadsConfig(min_free_mib=0, stall_seconds=3.0)
    kit.hub.add(REPO, {Q4: MODEL})
    kit.hub.faults.hold_after = MIB + 1
    job = await kit.downloads.start(DownloadSpec(REPO))
    await until(lambda: kit.downloads.job(job.id).state == "waiting")
    assert "nothing has come for 3 s" in kit.downloads.job(job.id).error.message
    assert workers() == []
    kit.hub.faults.hold_after = None
    kit.hub.faults.go.set()
    assert (await kit.ended(job)).state == "finished"
    assert kit.snapshot(REPO) == {Q4: MODEL}


async def test_a_gated_repository_is_refused_with_what_to_do(kit):
    kit.hub.add(REPO, {Q4: MODEL}, gated=True, needs_token="hf_right")
    with pytest.raises(Gated, match=rf"accept its conditions at {kit.hub.url}/{REPO}, and set HF_TOKEN"):
        await kit.downloads.start(DownloadSpec(REPO))


async def test_a_repository_that_is_not_there_may_be_a_private_one(kit):
    with pytest.raises(RepoNotFound, match="has no repository org/none that may be read; for a private one"):
        await kit.downloads.start(DownloadSpec("org/none"))
    kit.hub.add(REPO, {Q4: MODEL})
    with pytest.raises(RepoNotFound, match="has no revision v9"):
        await kit.downloads.start(DownloadSpec(REPO, "v9"))


async def test_offline_is_said_as_such(kit):
    kit.environ["HF_HUB_OFFLINE"] = "1"
    with pytest.raises(HubUnreachable, match="HF_HUB_OFFLINE is set"):
        await kit.downloads.start(DownloadSpec(REPO))


async def test_a_hub_that_cannot_be_reached_is_named(kit):
    kit.environ["HF_ENDPOINT"] = "http://user:secret@127.0.0.1:9"
    with pytest.raises(
        HubUnreachable, match=r"cannot fetch org/tiny-GGUF from http://127.0.0.1:9: .*refused"
    ):
        await kit.downloads.start(DownloadSpec(REPO))
    other = Downloads(None, kit.cache, DownloadsConfig, kit._reload, kit.environ)
    assert other.endpoint == "http://127.0.0.1:9"


async def test_a_hub_that_answers_nonsense_is_told(kit):
    kit.hub.faults.api_status = 418
    with pytest.raises(HubMisbehaves, match="answers 418"):
        await kit.downloads.start(DownloadSpec(REPO))


async def test_names_that_lead_out_of_the_folder_are_never_fetched(kit, tmp_path):
    repo = kit.hub.add(REPO, {Q4: MODEL})
    evil = (
        "../evil-Q8_0.gguf",
        "/tmp/evil-Q8_0.gguf",
        "a/../../evil-Q8_0.gguf",
        "C:\\evil-Q8_0.gguf",
        "c:evil",
    )
    repo.listed = [{"rfilename": name, "size": 5, "blobId": "0" * 40} for name in evil]
    listing = await kit.downloads.look(REPO, "main")
    assert sorted(listing.left_out) == sorted(evil) and [file.path for file in listing.files] == [Q4]
    await kit.fetch(REPO, include=("*",))
    assert kit.snapshot(REPO) == {Q4: MODEL}
    assert not list(tmp_path.rglob("*evil*"))


async def test_a_hash_that_is_no_name_is_not_made_one(kit):
    repo = kit.hub.add(REPO, {Q4: MODEL})
    lfs = {"sha256": "../../../evil", "size": 5, "pointerSize": 1}
    repo.listed = [{"rfilename": "b-Q8_0.gguf", "size": 5, "blobId": "0" * 40, "lfs": lfs}]
    assert [file.path for file in (await kit.downloads.look(REPO, "main")).files] == [Q4]


# --- jobs ---


async def test_only_so_many_run_at_a_time_and_the_next_follows(kit):
    kit.settings = DownloadsConfig(min_free_mib=0, concurrent=1)
    names = [f"org/{letter}-GGUF" for letter in "abc"]
    for name in names:
        kit.hub.add(name, {Q4: name.encode() * 200_000})
    kit.hub.faults.hold_after = MIB
    jobs = [await kit.downloads.start(DownloadSpec(name)) for name in names]
    await kit.held()
    assert [one.state for one in kit.downloads.jobs()] == ["downloading", "queued", "queued"]
    assert len(workers()) == 1
    await kit.downloads.cancel(jobs[0].id)
    kit.hub.faults.go.set()
    assert [(await kit.ended(job)).state for job in jobs] == ["cancelled", "finished", "finished"]


async def test_two_that_share_a_file_fetch_it_once(kit):
    projector = os.urandom(MIB)
    kit.hub.add(REPO, {Q4: MODEL, "tiny-Q8_0.gguf": MODEL[::-1], "mmproj-F16.gguf": projector})
    jobs = [await kit.downloads.start(DownloadSpec(REPO, quantization=one)) for one in ("Q4_K_M", "Q8_0")]
    assert [(await kit.ended(job)).state for job in jobs] == ["finished", "finished"]
    assert len([one for one in kit.hub.content_requests() if one.path.endswith("mmproj-F16.gguf")]) == 1
    assert len(kit.snapshot(REPO)) == 3


async def test_a_cancel_ends_the_process_at_once_and_tells_the_listeners(kit):
    kit.hub.add(REPO, {Q4: MODEL})
    kit.hub.faults.hold_after = MIB
    job = await kit.downloads.start(DownloadSpec(REPO))
    await kit.held()
    loop = asyncio.get_running_loop()
    begun = loop.time()
    cancelled = await kit.downloads.cancel(job.id)
    assert loop.time() - begun < 1.0 * FACTOR and workers() == []
    assert (cancelled.state, cancelled.error.code) == ("cancelled", "cancelled")
    assert [event.data["error"]["code"] for event in kit.said("download_failed")] == ["cancelled"]
    assert kit.downloads.active() == {}


async def test_a_library_that_hangs_holds_up_neither_a_cancel_nor_the_end_of_the_router(kit):
    kit.hub.add(REPO, {Q4: MODEL})
    kit.hub.faults.hold_after = MIB
    job = await kit.downloads.start(DownloadSpec(REPO))
    await kit.held()
    (worker,) = workers()
    worker.suspend()
    async with asyncio.timeout(DEADLINE_SECONDS):
        await kit.downloads.cancel(job.id)
    await kit.downloads.start(DownloadSpec(REPO))
    await until(workers)
    workers()[0].suspend()
    async with asyncio.timeout(DEADLINE_SECONDS):
        await kit.close()
    assert workers() == []


async def test_a_process_that_is_killed_is_followed_by_another(kit):
    kit.hub.add(REPO, {Q4: MODEL})
    kit.hub.faults.hold_after = MIB
    job = await kit.downloads.start(DownloadSpec(REPO))
    await kit.held()
    workers()[0].kill()
    await until(lambda: kit.downloads.job(job.id).state == "waiting")
    assert "was ended by SIGKILL" in kit.downloads.job(job.id).error.message
    kit.hub.faults.hold_after = None
    kit.hub.faults.go.set()
    assert (await kit.ended(job)).state == "finished"


async def test_listeners_hear_of_progress_and_of_the_end_in_llama_cpps_words(kit):
    kit.hub.add(REPO, {Q4: MODEL})
    job = await kit.fetch(REPO)
    url = f"{kit.hub.url}/{REPO}/resolve/{job.commit}/{Q4}"
    last = kit.said("download_progress")[-1]
    assert last.model == f"{REPO}:Q4_K_M"
    assert last.data["progress"] == {url: {"done": len(MODEL), "total": len(MODEL)}}
    kinds = [one.event for one in kit.events]
    assert kinds[0] == "model_status" and kinds[-1] == "download_finished"
    assert kit.events[0].data["status"] == "downloading"


async def test_a_listener_that_fails_harms_nobody(kit):
    def fail(_: object) -> None:
        raise RuntimeError("it is tired")

    stop = kit.downloads.listen(fail)
    kit.hub.add(REPO, {Q4: MODEL})
    assert (await kit.fetch(REPO)).state == "finished"
    stop()
    assert kit.said("download_finished")


async def test_ended_jobs_are_remembered_over_a_restart_and_the_oldest_forgotten(kit, monkeypatch):
    from router.downloads import downloads

    monkeypatch.setattr(downloads, "ENDED_KEPT", 2)
    for letter in "abc":
        kit.hub.add(f"org/{letter}-GGUF", {Q4: letter.encode() * 2000})
        await kit.fetch(f"org/{letter}-GGUF")
    await until(lambda: len(kit.downloads.jobs()) == 2)
    before = kit.downloads.jobs()
    await kit.close()
    await kit.open()
    assert kit.downloads.jobs() == before
    assert [job.wish.repo for job in before] == ["org/b-GGUF", "org/c-GGUF"]


async def test_asked_for_again_a_failed_download_takes_the_place_of_the_first(kit):
    kit.settings = DownloadsConfig(min_free_mib=0, retry_seconds=0.0)
    kit.hub.add(REPO, {Q4: MODEL})
    kit.hub.faults.statuses = [500]
    assert (await kit.fetch(REPO)).state == "failed"
    assert (await kit.fetch(REPO)).state == "finished"
    assert len(kit.downloads.jobs()) == 1


async def test_a_file_whose_name_tells_no_quantisation_becomes_a_model_of_its_name(kit):
    kit.hub.add(REPO, {"model.gguf": MODEL})
    job = await kit.fetch(REPO)
    assert (job.state, job.models, job.note) == ("finished", (f"{REPO}:model",), None)


async def test_what_is_no_model_is_fetched_with_a_note(kit):
    kit.hub.add(REPO, {"tiny-Q8_0.gguf": MODEL, "README.md": b"read"})
    job = await kit.fetch(REPO, include=("*.md",))
    assert (job.state, job.models, job.note) == ("finished", (), "none of these files is a model")


# --- the router's end ---


SCRIPT = """
import asyncio, sys
from pathlib import Path
from router.config import DownloadsConfig
from router.downloads import Downloads, DownloadSpec
async def main():
    async def reload(): ...
    settings = DownloadsConfig(min_free_mib=0)
    async with Downloads(None, Path(sys.argv[1]), lambda: settings, reload) as downloads:
        await downloads.start(DownloadSpec(sys.argv[2]))
        await asyncio.sleep(60)
asyncio.run(main())
"""


async def test_a_router_that_is_killed_leaves_no_process_behind(kit):
    kit.hub.add(REPO, {Q4: MODEL})
    kit.hub.faults.hold_after = MIB
    command = [sys.executable, "-c", SCRIPT, str(kit.cache), REPO]
    root = str(Path(__file__).parents[2])
    router = subprocess.Popen(command, env={**os.environ, **kit.environ, "PYTHONPATH": root})
    try:
        await kit.held()
        (worker,) = psutil.Process(router.pid).children()
    finally:
        router.send_signal(signal.SIGKILL)
        router.wait()
    await until(lambda: not worker.is_running() or worker.status() == psutil.STATUS_ZOMBIE)


# --- the disk ---


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "small"
    folder.mkdir()
    made = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", folder], capture_output=True)
    if made.returncode:
        pytest.skip("a disk of three megabytes takes the right to mount one")
    yield folder
    subprocess.run(["umount", "-l", folder], check=True)


async def test_a_disk_that_is_too_small_is_told_before_anything_is_fetched(hub, small_disk):
    kit = Kit(small_disk, hub)
    await kit.open()
    kit.hub.add(REPO, {Q4: os.urandom(4 * MIB)})
    with pytest.raises(DiskFull, match=r"needs 4.0 MiB more in .*, where [23]\.\d MiB are free"):
        await kit.downloads.start(DownloadSpec(REPO))
    assert hub.content_requests() == []
    await kit.close()


async def test_what_other_downloads_have_yet_to_fill_is_not_free(hub, small_disk):
    kit = Kit(small_disk, hub)
    await kit.open()
    kit.hub.add(REPO, {Q4: MODEL})
    kit.hub.add("org/other-GGUF", {Q4: MODEL[::-1]})
    kit.hub.faults.hold_after = 1000
    await kit.downloads.start(DownloadSpec(REPO))
    with pytest.raises(DiskFull, match="of which other downloads need 2.0 MiB"):
        await kit.downloads.start(DownloadSpec("org/other-GGUF"))
    await kit.close()


async def test_a_disk_that_fills_up_in_the_middle_is_told_and_nothing_is_lost(hub, small_disk):
    kit = Kit(small_disk, hub)
    await kit.open()
    kit.hub.add(REPO, {Q4: MODEL})
    kit.hub.faults.hold_after = MIB + 1
    job = await kit.downloads.start(DownloadSpec(REPO))
    await until(lambda: kit.partial_bytes(REPO) == MIB)
    other = small_disk / "other"
    with other.open("wb") as file:
        file.write(bytes(max(0, shutil.disk_usage(small_disk).free - MIB // 2)))
    kit.hub.faults.go.set()
    job = await kit.ended(job)
    assert job.error is not None and (job.state, job.error.code) == ("failed", "disk_full")
    assert str(kit.cache) in job.error.message and "are still to come" in job.error.message
    assert kit.partial_bytes(REPO) >= MIB, "what has come is kept"
    other.unlink()
    kit.hub.faults.hold_after = None
    assert (await kit.fetch(REPO)).state == "finished"
    assert kit.snapshot(REPO) == {Q4: MODEL}
    assert kit.hub.content_requests()[-1].range is not None, "it went on from there"
    await kit.close()


async def test_a_cache_that_may_not_be_written_to_is_told(kit):
    kit.hub.add(REPO, {Q4: MODEL})
    kit.cache.parent.mkdir(parents=True, exist_ok=True)
    kit.cache.write_text("no folder")
    job = await kit.fetch(REPO)
    assert job.state == "failed" and str(kit.cache) in job.error.message


async def test_a_cancel_goes_to_its_end_though_whoever_asked_leaves(kit):
    kit.hub.add(REPO, {Q4: MODEL})
    kit.hub.faults.hold_after = MIB
    job = await kit.downloads.start(DownloadSpec(REPO))
    await kit.held()
    asking = asyncio.get_running_loop().create_task(kit.downloads.cancel(job.id))
    await asyncio.sleep(0)
    asking.cancel()
    assert (await kit.ended(job)).state == "cancelled"


async def test_over_tls_a_hub_is_believed_only_where_its_certificate_is_trusted(tmp_path):
    certificate, context = make_certificate(tmp_path)
    async with HubStub().running(context) as hub:
        hub.add(REPO, {Q4: MODEL})
        for name, trusted in (("nobody", {}), ("authority", {"SSL_CERT_FILE": str(certificate)})):
            kit = Kit(tmp_path / name, hub)
            kit.folder.mkdir()
            kit.environ |= trusted
            await kit.open()
            try:
                if trusted:
                    assert (await kit.fetch(REPO)).state == "finished"
                    assert kit.snapshot(REPO) == {Q4: MODEL}
                else:
                    with pytest.raises(HubUnreachable, match=r"(?i)certificate"):
                        await kit.fetch(REPO)
            finally:
                await kit.close()
