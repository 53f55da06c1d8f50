"""A repository is named in many ways, and nothing else is taken for one."""

from __future__ import annotations

import pytest

from router.downloads import DownloadSpec
from router.downloads.errors import BadSource
from router.downloads.source import check_revision, parse_source

HUB = "https://huggingface.co"


@pytest.mark.parametrize(
    ("text", "source"),
    [
        ("org/repo", DownloadSpec("org/repo")),
        (" org/repo\n", DownloadSpec("org/repo")),
        ("org/repo:Q4_K_M", DownloadSpec("org/repo", quantization="Q4_K_M")),
        ("Qwen/Qwen3-0.6B-GGUF:ud-q4_k_xl", DownloadSpec("Qwen/Qwen3-0.6B-GGUF", quantization="ud-q4_k_xl")),
        ("org/repo:My model (v2) Q4_0", DownloadSpec("org/repo", quantization="My model (v2) Q4_0")),
        ("hf.co/org/repo:Q8_0", DownloadSpec("org/repo", quantization="Q8_0")),
        ("huggingface.co/org/repo", DownloadSpec("org/repo")),
        ("https://huggingface.co/org/repo", DownloadSpec("org/repo")),
        ("https://huggingface.co/org/repo/tree/v1.0", DownloadSpec("org/repo", "v1.0")),
        ("https://huggingface.co/org/repo/tree/main/Q4", DownloadSpec("org/repo", include=("Q4/*",))),
        (
            "https://huggingface.co/org/repo/resolve/main/a/x-Q4.gguf?download=true",
            DownloadSpec("org/repo", include=("a/x-Q4.gguf",)),
        ),
        (
            "https://huggingface.co/org/repo/blob/main/x%5B1%5D.gguf",
            DownloadSpec("org/repo", include=("x[[]1].gguf",)),
        ),
        (
            "https://huggingface.co/org/repo?show_file_info=x.gguf",
            DownloadSpec("org/repo", include=("x.gguf",)),
        ),
        ("hf://org/repo@v2/x.gguf", DownloadSpec("org/repo", "v2", include=("x.gguf",))),
        ("hf://models/org/repo", DownloadSpec("org/repo")),
    ],
)
def test_what_people_write_is_understood(text, source):
    assert parse_source(text, HUB) == source


def test_the_hub_in_use_has_addresses_like_the_real_one():
    found = parse_source("http://127.0.0.1:9/org/repo/tree/v1", "http://user:word@127.0.0.1:9")
    assert found == DownloadSpec("org/repo", "v1")


@pytest.mark.parametrize(
    "text",
    [
        "", "repo", "org/", "/repo", "org/repo:", "org/repo:a/b", "org/repo:..", "../../etc/passwd", "org/..",
        "org/repo/more", "-org/repo", "org/re--po", "org/repo.git", "org/re po", "org/repo\x00", "ørg/repo",
        "C:/models/x.gguf", "file:///etc/passwd", "https://example.com/org/repo", "https://huggingface.co",
        "https://huggingface.co/datasets/org/repo", "https://huggingface.co/org/repo/discussions/1",
        "https://huggingface.co/org/repo/resolve/main/..%2F..%2Fx.gguf", "http://[::1/x/y", "a" * 3000,
        "https://huggingface.co/org/repo/resolve/..%2Fx/a.gguf", "https://huggingface.co@evil.com/org/repo",
    ],
)  # fmt: skip
def test_what_is_no_repository_is_refused_with_what_would_be(text):
    with pytest.raises(BadSource) as refused:
        parse_source(text, HUB)
    assert len(refused.value.message) < 400


@pytest.mark.parametrize("revision", ["main", "v1.0", "refs/pr/3", "a" * 40])
def test_a_revision_may_be_a_branch_a_tag_or_a_commit(revision):
    assert check_revision(revision) == revision


@pytest.mark.parametrize("revision", ["", "..", "a/../b", "/a", "a//b", "a/", "a b", "a\\b", "x.lock", "-x"])
def test_a_revision_that_leads_elsewhere_is_refused(revision):
    with pytest.raises(BadSource):
        check_revision(revision)
