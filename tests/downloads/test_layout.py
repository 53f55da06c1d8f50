"""No name from outside leads out of the folder of its repository."""

from __future__ import annotations

import pytest

from router.downloads.layout import Outside, RepoFolder, is_etag, is_safe_path


@pytest.mark.parametrize("path", ["a.gguf", "Q4_K_M/a-00001-of-00002.gguf", "ä ö.gguf", "..a/b..", "a..b"])
def test_ordinary_names_are_safe(path):
    assert is_safe_path(path)


@pytest.mark.parametrize(
    "path",
    [
        "", "/etc/passwd", "../a", "a/../b", "a/..", "./a", "a//b", "a/", "C:/a", "c:a", "a\\b", "..\\a",
        "a\x00b", "a\nb", "\u202ea", "a" * 300, "/".join("a" * 600),
    ],
)  # fmt: skip
def test_names_that_lead_elsewhere_are_not(path):
    assert not is_safe_path(path)


@pytest.mark.parametrize(
    "etag", ["", "..", "../x", "a/b", "short", ".hidden-one", "x" * 200, "a" * 40 + ".lock"]
)
def test_what_can_be_no_name_of_a_blob_is_refused(etag, tmp_path):
    assert not is_etag(etag)
    with pytest.raises(Outside):
        RepoFolder(tmp_path, "org/repo").blob(etag)


def test_a_commit_must_be_one(tmp_path):
    repo = RepoFolder(tmp_path, "org/repo")
    with pytest.raises(Outside):
        repo.pointer("../../../x", "a.gguf")
    with pytest.raises(Outside):
        repo.pointer("a" * 40, "../../a.gguf")
    with pytest.raises(Outside):
        repo.ref("../../main")


@pytest.mark.parametrize(
    "link", ["models--org--repo/snapshots/commit", "models--org--repo/snapshots/commit/inner"]
)
def test_nothing_is_made_through_a_link_below_the_folders_of_a_repository(tmp_path, link):
    outside = tmp_path / "outside"
    outside.mkdir()
    (tmp_path / link).parent.mkdir(parents=True)
    (tmp_path / link).symlink_to(outside)
    repo = RepoFolder(tmp_path, "org/repo")
    with pytest.raises(Outside, match="nothing is written through it"):
        repo.make(repo.snapshots / "commit" / "inner" / "deeper")
    assert not list(outside.iterdir())


@pytest.mark.parametrize("link", ["", "blobs", "snapshots", "refs"])
def test_the_folders_of_a_repository_may_be_links_to_another_disk(tmp_path, link):
    outside = tmp_path / "outside"
    outside.mkdir()
    repo = RepoFolder(tmp_path / "hub", "org/repo")
    (repo.folder / link).parent.mkdir(parents=True)
    (repo.folder / link).symlink_to(outside)
    repo.make(repo.folder / (link or "blobs") / "deeper")
    assert [one.is_dir() for one in outside.rglob("deeper")] == [True]


@pytest.mark.parametrize("link", ["", "blobs"])
def test_a_folder_that_is_a_link_to_a_disk_that_is_not_mounted_is_told(tmp_path, link):
    repo = RepoFolder(tmp_path / "hub", "org/repo")
    (repo.folder / link).parent.mkdir(parents=True)
    (repo.folder / link).symlink_to(tmp_path / "absent")
    with pytest.raises(Outside, match="where there is no folder"):
        repo.make(repo.blobs)
