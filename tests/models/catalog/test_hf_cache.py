"""The Hugging Face cache is found and read as llama.cpp and huggingface_hub do."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from router.errors import AmbiguousModel
from router.models.catalog.candidate import Notes
from router.models.catalog.hf_cache import HfCache, hf_cache_dir, scan_hf_cache


def scan(disk) -> HfCache:
    notes = Notes()
    cache = scan_hf_cache(disk.cache, notes)
    assert notes.warnings == []
    return cache


def ids(cache: HfCache) -> list[str]:
    return [candidate.id for candidate in cache.models()]


@pytest.mark.parametrize(
    ("environ", "folder"),
    [
        ({"HOME": "/h"}, "/h/.cache/huggingface/hub"),
        ({"HOME": "/h", "XDG_CACHE_HOME": "/x"}, "/x/huggingface/hub"),
        ({"XDG_CACHE_HOME": "/x", "HF_HOME": "/hf"}, "/hf/hub"),
        ({"HF_HOME": "/hf", "HUGGINGFACE_HUB_CACHE": "/old"}, "/old"),
        ({"HUGGINGFACE_HUB_CACHE": "/old", "HF_HUB_CACHE": "/new"}, "/new"),
        ({"HF_HUB_CACHE": "/new", "LLAMA_CACHE": "/llama"}, "/llama"),
        ({"HOME": "/h", "LLAMA_CACHE": "", "HF_HOME": ""}, "/h/.cache/huggingface/hub"),
    ],
)
def test_the_first_variable_that_is_set_says_where_the_cache_is(environ, folder):
    assert hf_cache_dir(environ) == Path(folder)


def test_each_quantisation_of_a_repository_is_a_model(disk):
    snapshot = disk.download(
        "ggml-org/gemma-3-4b-it-GGUF", "gemma-3-4b-it-Q4_K_M.gguf", "gemma-3-4b-it-Q8_0.gguf", "README.md"
    )
    cache = scan(disk)
    assert ids(cache) == ["ggml-org/gemma-3-4b-it-GGUF:Q4_K_M", "ggml-org/gemma-3-4b-it-GGUF:Q8_0"]
    assert next(cache.models()).files == (snapshot / "gemma-3-4b-it-Q4_K_M.gguf",)


def test_split_models_in_folders_and_projectors_are_put_together(disk):
    snapshot = disk.download(
        "o/r", "Q4_K_M/r-Q4_K_M-00001-of-00002.gguf", "Q4_K_M/r-Q4_K_M-00002-of-00002.gguf",
        "mmproj-F16.gguf", "mmproj-F32.gguf", "mtp-r-Q4_K_M.gguf",
    )  # fmt: skip
    (found,) = scan(disk).models()
    assert found.id == "o/r:Q4_K_M"
    assert found.files == tuple(snapshot / f"Q4_K_M/r-Q4_K_M-0000{n}-of-00002.gguf" for n in (1, 2))
    assert found.mmproj == snapshot / "mmproj-F16.gguf"


def test_what_is_no_model_and_later_parts_are_left_out(disk):
    disk.download("o/r", "mmproj.gguf", "r-Q4_0-00002-of-00002.gguf", "imatrix-Q4_0.gguf")
    assert ids(scan(disk)) == []


def test_a_file_without_a_quantisation_is_called_by_its_name(disk):
    snapshot = disk.download("o/r", "model.gguf")
    assert [(each.id, each.files) for each in scan(disk).models()] == [
        ("o/r:model", (snapshot / "model.gguf",))
    ]


def test_two_files_with_the_same_quantisation_are_two_models(disk):
    snapshot = disk.download("o/r", "b-Q4_0.gguf", "a-Q4_0.gguf")
    assert {each.id: each.files for each in scan(disk).models()} == {
        "o/r:a-Q4_0": (snapshot / "a-Q4_0.gguf",),
        "o/r:b-Q4_0": (snapshot / "b-Q4_0.gguf",),
    }


def test_of_a_path_that_several_commits_have_that_of_main_is_the_one(disk):
    old = disk.download("o/r", "r-Q4_0.gguf", "old-Q4_0.gguf", commit="a" * 40)
    new = disk.download("o/r", "r-Q4_0.gguf", commit="b" * 40)
    disk.download("o/r", commit="a" * 40, branch="a-branch")
    assert {each.id: each.files for each in scan(disk).models()} == {
        "o/r:Q4_0": (new / "r-Q4_0.gguf",),
        "o/r:old-Q4_0": (old / "old-Q4_0.gguf",),
    }


def test_what_hf_repo_could_mean_twice_is_refused_with_what_it_could_mean(disk):
    snapshot = disk.download("o/r", "base-Q4_0.gguf", "instruct-Q4_0.gguf", "r-Q2_K.gguf")
    cache = scan(disk)
    for hf_repo in ("o/r:Q4_0", "o/r:q4_0"):
        with pytest.raises(
            AmbiguousModel, match="could be several models: o/r:base-Q4_0, o/r:instruct-Q4_0;"
        ):
            cache.find(hf_repo, None, "mine")
    with pytest.raises(AmbiguousModel, match="'o/r' could be several models"):
        cache.find("o/r", None, "mine")
    found = cache.find("o/r:base-q4_0", None, "mine")
    assert found is not None and found.files == (snapshot / "base-Q4_0.gguf",)
    assert cache.find("o/r:UD-Q4_0", None, "mine") is None


def test_without_a_quantisation_hf_repo_means_the_only_model_there_is(disk):
    snapshot = disk.download("o/r", "r-Q2_K.gguf")
    found = scan(disk).find("o/r", None, "mine")
    assert found is not None and found.files == (snapshot / "r-Q2_K.gguf",)


def test_without_main_the_first_branch_is_taken(disk):
    disk.download("o/r", "r-Q4_0.gguf", branch="release")
    assert ids(scan(disk)) == ["o/r:Q4_0"]


@pytest.mark.parametrize("commit", ["", "not-a-commit", "../../../escape", "ab" * 19])
def test_a_commit_that_is_none_leads_nowhere(disk, commit):
    snapshot = disk.download("o/r", "r-Q4_0.gguf")
    outside = disk.cache / "models--o--r" / "snapshots" / commit
    if commit and not outside.exists():
        outside.mkdir(parents=True)
        (outside / "y-Q8_0.gguf").touch()
    (disk.cache / "models--o--r" / "refs" / "main").write_text(commit)
    assert [each.files for each in scan(disk).models()] == [(snapshot / "r-Q4_0.gguf",)]


@pytest.mark.parametrize(
    "folder",
    ["datasets--o--r", "models--norepo", "models--a--b--c", "models--..--..", "models--o--.r", "models--"],
)
def test_what_is_no_repository_is_left_out(disk, folder):
    disk.download("o/r", "r-Q4_0.gguf")
    (disk.cache / "models--o--r").rename(disk.cache / folder)
    assert ids(scan(disk)) == []


def test_a_tree_of_real_files_does_too(disk):
    snapshot = disk.download("o/r")
    snapshot.mkdir(parents=True)
    (snapshot / "r-Q4_0.gguf").write_bytes(b"")
    assert ids(scan(disk)) == ["o/r:Q4_0"]


def test_links_to_folders_are_not_followed(disk):
    snapshot = disk.download("o/r", "r-Q4_0.gguf")
    (snapshot / "again").symlink_to(".")
    assert ids(scan(disk)) == ["o/r:Q4_0"]


def test_a_cache_that_does_not_exist_is_empty(tmp_path):
    notes = Notes()
    assert ids(scan_hf_cache(tmp_path / "gone", notes)) == []
    assert notes.warnings == []


def test_a_cache_that_is_no_folder_is_a_warning(tmp_path):
    (tmp_path / "file").touch()
    notes = Notes()
    scan_hf_cache(tmp_path / "file", notes)
    assert notes.warnings == [f"{tmp_path}/file: Not a directory"]


@pytest.mark.parametrize(
    ("hf_repo", "hf_file", "found"),
    [
        ("o/r", None, "r-Q4_K_M.gguf"),
        ("o/r:q8_0", None, "r-Q8_0.gguf"),
        ("o/r:Q2_K", None, None),
        ("o/r", "r-Q8_0.gguf", "r-Q8_0.gguf"),
        ("o/r:Q8_0", "mmproj-F16.gguf", "mmproj-F16.gguf"),
        ("o/r", "gone.gguf", None),
        ("o/r", "../../escape.gguf", None),
        ("no/body", None, None),
    ],
)
def test_what_hf_repo_means_is_found(disk, hf_repo, hf_file, found):
    disk.download("o/r", "r-Q4_K_M.gguf", "r-Q8_0.gguf", "mmproj-F16.gguf")
    candidate = scan(disk).find(hf_repo, hf_file, "mine")
    assert (candidate.files[0].name if candidate else None) == found
    if candidate is not None:
        assert (candidate.id, candidate.source) == ("mine", "hf_cache")


def test_names_are_those_huggingface_hub_gives_the_folders(disk):
    from huggingface_hub.file_download import repo_folder_name

    disk.download("bartowski/Llama-3.2-1B-Instruct-GGUF", "r-Q4_0.gguf")
    assert os.listdir(disk.cache) == [  # noqa: PTH208
        repo_folder_name(repo_id="bartowski/Llama-3.2-1B-Instruct-GGUF", repo_type="model")
    ]


def test_a_model_that_main_has_left_behind_is_still_there(disk):
    old = disk.download("o/r", "r-Q4_0.gguf", "r-Q8_0.gguf", "mmproj-F16.gguf", commit="a" * 40)
    new = disk.download("o/r", "r-Q8_0.gguf", commit="b" * 40)
    cache = scan(disk)
    found = {each.id: each for each in cache.models()}
    assert found["o/r:Q8_0"].files == (new / "r-Q8_0.gguf",) and found["o/r:Q8_0"].mmproj is None
    assert found["o/r:Q4_0"].files == (old / "r-Q4_0.gguf",)
    assert found["o/r:Q4_0"].mmproj == old / "mmproj-F16.gguf"
    found_by_tag = cache.find("o/r:q4_0", None, "name")
    assert found_by_tag is not None and found_by_tag.files == (old / "r-Q4_0.gguf",)


def test_what_was_fetched_by_its_commit_is_found(disk):
    snapshot = disk.download("o/r", "r-Q4_0.gguf", commit="a" * 40)
    (snapshot.parents[1] / "refs" / "main").unlink()
    assert [each.files for each in scan(disk).models()] == [(snapshot / "r-Q4_0.gguf",)]
