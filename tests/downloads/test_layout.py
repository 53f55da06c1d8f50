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


@pytest.mark.parametrize("link", ["models--org--repo", "models--org--repo/blobs"])
def test_nothing_is_made_through_a_link(tmp_path, link):
    outside = tmp_path / "outside"
    outside.mkdir()
    (tmp_path / link).parent.mkdir(exist_ok=True)
    (tmp_path / link).symlink_to(outside)
    repo = RepoFolder(tmp_path, "org/repo")
    with pytest.raises(Outside, match="nothing is written through it"):
        repo.make(repo.blobs / "deeper")
    assert not list(outside.iterdir())
