"""A folder of models is read as llama.cpp reads it, and a little further."""

from __future__ import annotations

import os

import pytest

from router.catalog.candidate import Candidate
from router.catalog.models_dir import scan_models_dir
from router.catalog.notes import Notes


def scan(disk) -> dict[str, Candidate]:
    notes = Notes()
    found = scan_models_dir(disk.models, notes)
    assert notes.warnings == []
    return {candidate.id: candidate for candidate in found}


def names(candidate: Candidate) -> list[str]:
    return [file.name for file in candidate.files]


def test_a_file_is_a_model_called_after_it(disk):
    disk.write("Qwen3 8B.Q4_K_M.gguf", "été-模型.gguf", "notes.txt", ".hidden.gguf", "._mac.gguf")
    assert list(scan(disk)) == ["Qwen3 8B.Q4_K_M", "été-模型"]


def test_companions_are_not_models(disk):
    disk.write("m.gguf", "mmproj-m.gguf", "mtp-m.gguf", "dspark-m.gguf", "dflash-m.gguf")
    assert list(scan(disk)) == ["m"]
    assert scan(disk)["m"].mmproj is None, "beside other models it may belong to any of them"


def test_a_split_model_is_one_model_with_all_its_parts(disk):
    disk.write("m-00001-of-00002.gguf", "m-00002-of-00002.gguf")
    (found,) = scan(disk).values()
    assert found.id == "m"
    assert found.also == ("m-00001-of-00002",)
    assert names(found) == ["m-00001-of-00002.gguf", "m-00002-of-00002.gguf"]


def test_a_missing_part_is_still_expected(disk):
    disk.write("m-00001-of-00003.gguf", "m-00003-of-00003.gguf")
    (found,) = scan(disk).values()
    assert len(found.files) == 3


def test_a_later_part_alone_is_no_model_but_is_mentioned_once(disk):
    disk.write("m-00002-of-00003.gguf", "m-00003-of-00003.gguf")
    notes = Notes()
    assert scan_models_dir(disk.models, notes) == []
    assert len(notes.warnings) == 1
    assert (
        "m-00002-of-00003.gguf: left out: its first part, m-00001-of-00003.gguf, is missing"
        in notes.warnings[0]
    )


def test_a_folder_is_one_model_with_its_companions(disk):
    disk.write(
        "gemma/gemma-Q4_0.gguf", "gemma/mmproj-F16.gguf", "gemma/mmproj-F32.gguf", "gemma/mtp-gemma.gguf"
    )
    found = scan(disk)["gemma"]
    assert names(found) == ["gemma-Q4_0.gguf"]
    assert found.mmproj == disk.models / "gemma" / "mmproj-F16.gguf"
    assert found.draft == disk.models / "gemma" / "mtp-gemma.gguf"


def test_in_a_folder_the_first_part_of_a_split_model_wins(disk):
    disk.write("big/a.gguf", "big/b-00001-of-00002.gguf", "big/b-00002-of-00002.gguf")
    found = scan(disk)
    assert names(found["big"]) == ["b-00001-of-00002.gguf", "b-00002-of-00002.gguf"]
    assert names(found["big/a"]) == ["a.gguf"]


def test_of_several_models_in_a_folder_each_has_a_name(disk):
    disk.write("m/m-Q8_0.gguf", "m/m-Q4_0.gguf", "m/mmproj.gguf")
    found = scan(disk)
    assert {name: names(each) for name, each in found.items()} == {
        "m": ["m-Q4_0.gguf"],
        "m/m-Q8_0": ["m-Q8_0.gguf"],
    }
    assert found["m"].also == ("m/m-Q4_0",)
    assert found["m/m-Q8_0"].mmproj is not None


def test_folders_of_authors_are_looked_into(disk):
    disk.write("author/repo/m-Q4_0.gguf", "author/other/m.gguf", "author/other/deep/er/m.gguf")
    assert list(scan(disk)) == ["author/other", "author/repo"]


def test_a_folder_that_has_models_is_not_looked_into_further(disk):
    disk.write("m/m.gguf", "m/lora/adapter.gguf")
    assert list(scan(disk)) == ["m"]


def test_an_empty_folder_is_nothing(disk):
    (disk.models / "empty" / "inner").mkdir(parents=True)
    disk.write("only-mmproj/mmproj.gguf")
    assert scan(disk) == {}


def test_links_are_followed_but_never_in_a_circle(disk, tmp_path):
    disk.write("m.gguf")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "x.gguf").write_bytes(b"")
    (disk.models / "linked").symlink_to(tmp_path / "elsewhere")
    (disk.models / "linked-file.gguf").symlink_to(tmp_path / "elsewhere" / "x.gguf")
    (disk.models / "self").symlink_to(".")
    (disk.models / "up").symlink_to("..")
    (disk.models / "loop").symlink_to("loop")
    assert list(scan(disk)) == ["linked-file", "m", "linked"]


def test_a_link_to_nothing_is_listed_and_a_pipe_is_not(disk):
    (disk.models / "gone.gguf").symlink_to("/nowhere/gone.gguf")
    (disk.models / "loop.gguf").symlink_to("loop.gguf")
    os.mkfifo(disk.models / "pipe.gguf")
    assert list(scan(disk)) == ["gone", "loop"]


def test_a_folder_that_does_not_exist_is_a_warning(tmp_path):
    notes = Notes()
    assert scan_models_dir(tmp_path / "gone", notes) == []
    assert notes.warnings == [f"{tmp_path}/gone: No such file or directory"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_folder_that_may_not_be_read_does_not_hide_the_others(disk):
    disk.write("m.gguf", "secret/x.gguf")
    (disk.models / "secret").chmod(0)
    notes = Notes()
    try:
        assert [each.id for each in scan_models_dir(disk.models, notes)] == ["m"]
    finally:
        (disk.models / "secret").chmod(0o700)
    assert notes.warnings == [f"{disk.models}/secret: Permission denied"]
