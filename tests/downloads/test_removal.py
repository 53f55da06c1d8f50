"""A model goes with its content, and nothing goes that something else needs."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from router.downloads import DownloadSpec
from router.downloads.errors import NotRemovable
from router.downloads.removal import Removed, place_of, remove
from tests.models.catalog.conftest import gguf
from tests.waiting import until

OLD, NEW = "a" * 40, "b" * 40


class Cache:
    """A cache with one repository, laid out as huggingface_hub does."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.repo = folder / "models--org--repo"

    def add(self, path: str, content: str, *, commit: str = NEW, size: int = 100) -> Path:
        blob = self.repo / "blobs" / (content.encode().hex().ljust(64, "0"))
        blob.parent.mkdir(parents=True, exist_ok=True)
        if not blob.exists():
            blob.write_bytes(content.encode().ljust(size, b"."))
        pointer = self.repo / "snapshots" / commit / path
        pointer.parent.mkdir(parents=True, exist_ok=True)
        pointer.symlink_to(os.path.relpath(blob, pointer.parent))
        return pointer

    def name(self, revision: str, commit: str) -> None:
        (self.repo / "refs").mkdir(parents=True, exist_ok=True)
        (self.repo / "refs" / revision).write_text(commit)

    def remove(self, *files: Path, needed: tuple[Path, ...] = ()) -> Removed:
        return remove(tuple(place_of(self.folder, file) for file in files), frozenset(needed))


@pytest.fixture
def cache(tmp_path: Path) -> Cache:
    made = Cache(tmp_path / "hub")
    made.name("main", NEW)
    return made


def test_of_the_last_model_nothing_is_left(cache):
    parts = [cache.add(f"Q4/x-Q4_0-0000{n}-of-00002.gguf", f"part {n}") for n in (1, 2)]
    projector = cache.add("mmproj-F16.gguf", "eyes")
    removed = cache.remove(*parts, projector)
    assert removed.freed_bytes == 300 and removed.kept == ()
    assert not cache.repo.exists()


def test_another_model_of_the_repository_keeps_its_files_and_the_shared_projector(cache):
    one, other = cache.add("x-Q4_0.gguf", "four"), cache.add("x-Q8_0.gguf", "eight")
    projector = cache.add("mmproj-F16.gguf", "eyes")
    removed = cache.remove(one, projector, needed=(other, projector))
    assert removed.freed_bytes == 100 and not one.is_symlink()
    assert removed.kept == ((str(projector), "another model uses it"),)
    assert other.read_bytes().startswith(b"eight") and projector.read_bytes().startswith(b"eyes")


def test_projectors_that_no_model_is_left_for_go_too(cache):
    model = cache.add("x-Q4_0.gguf", "four")
    cache.add("mmproj-F16.gguf", "eyes")
    cache.add("mmproj-F32.gguf", "better eyes")
    config = cache.add("config.json", "{}")
    assert cache.remove(model).freed_bytes == 300
    assert config.exists(), "that was no part of the model"


def test_projectors_are_known_by_their_header_and_models_too(cache):
    model, other = cache.add("x-Q4_0.gguf", "four"), cache.add("mmproj-x.gguf", "eight")
    vision = cache.add("sub/x-vision.gguf", "eyes")
    vision.resolve().write_bytes(gguf(general__architecture="clip"))
    other.resolve().write_bytes(gguf(general__architecture="llama"))
    cache.remove(model)
    assert vision.exists(), "a model is left, whatever it is called"
    cache.remove(other)
    assert not cache.repo.exists()


def test_content_that_another_named_snapshot_has_stays(cache):
    cache.name("v1", OLD)
    old, new = cache.add("x-Q4_0.gguf", "same", commit=OLD), cache.add("x-Q4_0.gguf", "same")
    removed = cache.remove(new)
    assert removed.freed_bytes == 0 and [reason for _, reason in removed.kept] == [
        "another snapshot or model uses it"
    ]
    assert old.read_bytes().startswith(b"same") and (cache.repo / "refs" / "v1").exists()
    assert not (cache.repo / "refs" / "main").exists(), "it names nothing any more"


def test_snapshots_that_nothing_names_any_more_do_not_bring_it_back(cache):
    old, new = cache.add("x-Q4_0.gguf", "same", commit=OLD), cache.add("x-Q4_0.gguf", "same")
    removed = cache.remove(new)
    assert removed.freed_bytes == 100 and not old.is_symlink()
    assert not cache.repo.exists()


def test_a_file_that_is_no_link_is_its_own_content(cache):
    plain = cache.repo / "snapshots" / NEW / "x-Q4_0.gguf"
    plain.parent.mkdir(parents=True)
    plain.write_bytes(b"." * 70)
    assert cache.remove(plain).freed_bytes == 70


def test_content_that_is_linked_from_elsewhere_on_the_disk_frees_nothing(cache, tmp_path):
    model = cache.add("x-Q4_0.gguf", "four")
    os.link(model.resolve(), tmp_path / "mine.gguf")
    assert cache.remove(model).freed_bytes == 0
    assert (tmp_path / "mine.gguf").exists()


def test_content_that_repositories_share_is_left_to_the_library(cache):
    model = cache.add("x-Q4_0.gguf", "four")
    blob = model.parent / model.readlink()
    store = cache.folder / "blobs" / "ab" / ("ab" * 32)
    store.parent.mkdir(parents=True)
    Path(os.path.normpath(blob)).rename(store)
    Path(os.path.normpath(blob)).symlink_to(os.path.relpath(store, cache.repo / "blobs"))
    removed = cache.remove(model)
    assert removed.shared == (Path(os.path.normpath(blob)),) and store.exists()
    assert not model.is_symlink(), "it is no model any more"


def test_a_link_that_leads_out_of_the_repository_goes_alone(cache, tmp_path):
    victim = tmp_path / "victim.gguf"
    victim.write_text("mine")
    pointer = cache.repo / "snapshots" / NEW / "x-Q4_0.gguf"
    pointer.parent.mkdir(parents=True)
    pointer.symlink_to(victim)
    cache.remove(pointer)
    assert victim.read_text() == "mine" and not pointer.is_symlink()


@pytest.mark.parametrize(
    "path",
    [
        "/etc/passwd",
        "models--org--repo/blobs/abc",
        "models--org--repo/snapshots/main/x.gguf",
        "models--../snapshots/" + NEW + "/x.gguf",
        "datasets--org--repo/snapshots/" + NEW + "/x.gguf",
    ],
)
def test_what_is_no_file_of_the_cache_is_not_removed(cache, path):
    with pytest.raises(NotRemovable, match="delete it yourself"):
        place_of(cache.folder, cache.folder / path)


def test_a_repository_that_is_a_link_is_not_touched(cache, tmp_path):
    model = cache.add("x-Q4_0.gguf", "four")
    cache.repo.rename(tmp_path / "elsewhere")
    cache.repo.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(NotRemovable, match="is a link to another place"):
        cache.remove(model)
    assert model.exists()


async def test_shared_content_goes_with_the_last_repository_that_links_to_it(kit):
    """By the library's own rules, in its own layout."""
    from huggingface_hub.utils import _shared_blobs as shared

    kit.cache.mkdir(parents=True)
    pointers = []
    for repo in ("one", "two"):
        folder = kit.cache / f"models--org--{repo}"
        blob = folder / "blobs" / ("c" * 64)
        pointer = folder / "snapshots" / NEW / "x-Q4_0.gguf"
        blob.parent.mkdir(parents=True)
        pointer.parent.mkdir(parents=True)
        blob.write_bytes(b"." * 50)
        pointer.symlink_to(os.path.relpath(blob, pointer.parent))
        assert shared.publish_blob_to_shared_store(
            blob_path=str(blob), xet_hash="d" * 64, cache_dir=kit.cache, expected_size=50
        )
        pointers.append(pointer)
    store = shared.shared_blob_path(kit.cache, "d" * 64)
    assert (await kit.downloads.remove([pointers[0]], [])).freed_bytes == 0
    assert store.exists() and pointers[1].read_bytes() == b"." * 50
    assert (await kit.downloads.remove([pointers[1]], [])).freed_bytes == 50
    assert not store.exists()


async def test_what_an_unfinished_download_has_left_is_cleaned_away_whole_parts_too(kit):
    repo, parts = "org/big-GGUF", [f"big-Q4_0-0000{n}-of-00002.gguf" for n in (1, 2)]
    kit.hub.add(repo, {parts[0]: b"a" * 1_000_000, parts[1]: b"b" * 3_000_000})
    kit.hub.faults.hold_after = 1_500_000
    job = await kit.downloads.start(DownloadSpec(repo))
    await kit.held()
    await until(lambda: len(list(kit.repo(repo).glob("blobs/*"))) == 2)
    cancelled = await kit.downloads.cancel(job.id, clean=True)
    assert cancelled.done_bytes == 0 and not kit.repo(repo).exists()


async def test_cleaning_leaves_what_a_model_is_made_of(kit):
    repo = "org/tiny-GGUF"
    kit.hub.add(repo, {"tiny-Q4_0.gguf": b"a" * 5000})
    job = await kit.fetch(repo)
    assert (await kit.downloads.cancel(job.id, clean=True)).done_bytes == 5000
    assert kit.snapshot(repo) == {"tiny-Q4_0.gguf": b"a" * 5000}
