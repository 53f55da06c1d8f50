"""A cache on a file system without symbolic links, or with folders that are links to another disk."""

from __future__ import annotations

import os

import pytest

from router.downloads import DownloadSpec
from router.models.catalog.candidate import Notes
from router.models.catalog.hf_cache import scan_hf_cache
from tests.waiting import until

MODEL = b"GGUF" + os.urandom(100_000)
REPO = "org/tiny-GGUF"
Q4 = "tiny-Q4_K_M.gguf"

#: Python imports it at its start: the worker meets a file system that has no symbolic links or no locks.
NO_LINKS = """
import errno, fcntl, os
def refuse(*_, **__):
    raise OSError(errno.{error}, os.strerror(errno.{error}))
{what} = refuse
"""


def without(kit, folder, what: str, error: str) -> None:
    (folder / "sitecustomize.py").write_text(NO_LINKS.format(what=what, error=error))
    kit.environ["PYTHONPATH"] = str(folder)


@pytest.fixture(params=["EPERM", "EOPNOTSUPP", "ENOSYS", "HF_HUB_DISABLE_SYMLINKS"])
def no_links(request, kit, tmp_path):
    if request.param.startswith("HF"):
        kit.environ[request.param] = "1"
    else:
        without(kit, tmp_path, "os.symlink", request.param)


def links(folder) -> list:
    return [one for one in folder.rglob("*") if one.is_symlink()]


@pytest.mark.usefixtures("no_links")
async def test_without_symbolic_links_the_files_themselves_are_in_the_snapshot(kit):
    kit.hub.add(REPO, {Q4: MODEL, "same-Q4_K_M.gguf": MODEL, "config.json": b"{}"})
    job = await kit.fetch(REPO, include=("*",))
    assert (job.state, job.error) == ("finished", None)
    assert kit.snapshot(REPO) == {Q4: MODEL, "same-Q4_K_M.gguf": MODEL, "config.json": b"{}"}
    assert links(kit.cache) == []
    assert sum(one.stat().st_size for one in kit.repo(REPO).glob("blobs/*")) == 0, "it is there once"
    before = len(kit.hub.content_requests())
    assert (await kit.fetch(REPO, include=("*",))).state == "finished"
    assert len(kit.hub.content_requests()) == before, "it is found where it is"
    notes = Notes()
    assert [one.files[0].name for one in scan_hf_cache(kit.cache, notes).models()]
    await kit.downloads.remove([next(kit.repo(REPO).glob(f"snapshots/*/{Q4}"))], [])
    assert Q4 not in kit.snapshot(REPO)


@pytest.mark.usefixtures("no_links")
async def test_without_symbolic_links_a_newer_commit_has_a_copy_of_its_own(kit):
    repo = kit.hub.add(REPO, {Q4: MODEL})
    assert (await kit.fetch(REPO)).state == "finished"
    repo.commit = "b" * 40
    assert (await kit.fetch(REPO)).state == "finished"
    assert kit.snapshot(REPO) == {Q4: MODEL}
    assert len(list(kit.repo(REPO).glob(f"snapshots/*/{Q4}"))) == 2


async def test_content_that_older_snapshots_link_to_is_copied_and_stays(kit):
    """The variable is set in a cache that has links already."""
    repo = kit.hub.add(REPO, {Q4: MODEL})
    await kit.fetch(REPO)
    (old,) = kit.repo(REPO).glob(f"snapshots/*/{Q4}")
    repo.commit = "b" * 40
    kit.environ["HF_HUB_DISABLE_SYMLINKS"] = "1"
    assert (await kit.fetch(REPO)).state == "finished"
    assert kit.snapshot(REPO) == {Q4: MODEL} and old.read_bytes() == MODEL
    assert len(kit.hub.content_requests()) == 1


async def test_a_file_system_without_locks_is_written_to(kit, tmp_path):
    without(kit, tmp_path, "fcntl.flock", "ENOLCK")
    kit.hub.add(REPO, {Q4: MODEL})
    assert (await kit.fetch(REPO)).state == "finished"
    assert kit.snapshot(REPO) == {Q4: MODEL}


@pytest.mark.parametrize("link", ["", "blobs", "snapshots", "refs"])
async def test_a_folder_that_is_a_link_to_another_disk_is_written_to_and_read(kit, tmp_path, link):
    kit.hub.add(REPO, {Q4: MODEL})
    elsewhere = tmp_path / "another" / "disk"
    elsewhere.mkdir(parents=True)
    place = kit.repo(REPO) / link
    place.parent.mkdir(parents=True)
    place.symlink_to(elsewhere)
    job = await kit.fetch(REPO)
    assert (job.state, job.error) == ("finished", None)
    assert kit.snapshot(REPO) == {Q4: MODEL}
    assert any(elsewhere.iterdir()) and place.is_symlink()
    (model,) = scan_hf_cache(kit.cache, Notes()).models()
    assert model.files[0].read_bytes() == MODEL
    await kit.fetch(REPO)
    assert len(kit.hub.content_requests()) == 1


@pytest.mark.parametrize("link", ["", "blobs"])
async def test_what_a_cancelled_download_has_left_on_another_disk_is_cleaned_away(kit, tmp_path, link):
    kit.hub.add(REPO, {Q4: MODEL * 6})
    kit.hub.faults.hold_after = 500_000  # bytes reach the disk by 256 KiB
    (tmp_path / "disk").mkdir()
    (kit.repo(REPO) / link).parent.mkdir(parents=True)
    (kit.repo(REPO) / link).symlink_to(tmp_path / "disk")
    job = await kit.downloads.start(DownloadSpec(REPO))
    await until(lambda: kit.partial_bytes(REPO) > 0)
    await kit.downloads.cancel(job.id, clean=True)
    assert not [one for one in (tmp_path / "disk").rglob("*") if one.is_file()]
    assert (kit.repo(REPO) / link).is_symlink()


async def test_a_folder_that_is_a_link_to_a_disk_that_is_not_mounted_is_told(kit, tmp_path):
    kit.hub.add(REPO, {Q4: MODEL})
    kit.repo(REPO).mkdir(parents=True)
    (kit.repo(REPO) / "blobs").symlink_to(tmp_path / "absent")
    job = await kit.fetch(REPO)
    assert job.state == "failed" and "where there is no folder" in job.error.message
    assert not (tmp_path / "absent").exists()


async def test_a_file_larger_than_the_file_system_takes_is_told(kit, tmp_path):
    """4 GiB on a FAT file system."""
    without(kit, tmp_path, "os.pwrite", "EFBIG")
    kit.hub.add(REPO, {Q4: MODEL})
    job = await kit.fetch(REPO)
    assert (job.state, job.error.code) == ("failed", "not_writable")
    assert Q4 in job.error.message and "File too large" in job.error.message
