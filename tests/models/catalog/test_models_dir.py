"""A folder of models is read as llama.cpp reads it, and a little further."""

from __future__ import annotations

import os
from typing import Any

import pytest

from router.models.catalog import models_dir
from router.models.catalog.candidate import Candidate, Notes
from router.models.catalog.models_dir import MAX_DEPTH, MAX_FOLDERS, scan_models_dir
from tests.models.catalog.conftest import gguf


def scan(disk, *warnings: str) -> dict[str, Candidate]:
    """By name, with these warnings, which begin with the file's path in the folder."""
    notes = Notes()
    found = scan_models_dir(disk.models, notes)
    assert [warning.removeprefix(f"{disk.models}/") for warning in notes.warnings] == list(warnings)
    assert len({candidate.id for candidate in found}) == len(found)
    return {candidate.id: candidate for candidate in found}


def scan_warnings(disk) -> list[str]:
    notes = Notes()
    scan_models_dir(disk.models, notes)
    return notes.warnings


def text_model(n_embd: int = 64, **keys: Any) -> bytes:
    return gguf(general__architecture="llama", llama__embedding_length=n_embd, **keys)


def projector(n_embd: int = 64) -> bytes:
    return gguf(general__type="mmproj", general__architecture="clip", clip__vision__projection_dim=n_embd)


def names(candidate: Candidate) -> list[str]:
    return [file.name for file in candidate.files]


def test_a_file_is_a_model_called_after_it(disk):
    disk.write("Qwen3 8B.Q4_K_M.gguf", "été-模型.gguf", "notes.txt", ".hidden.gguf", "._mac.gguf")
    assert list(scan(disk)) == ["Qwen3 8B.Q4_K_M", "été-模型"]


def test_companions_are_not_models(disk):
    disk.write("m.gguf", "mmproj-m.gguf", "mtp-m.gguf", "dspark-m.gguf", "dflash-m.gguf")
    why = "it lies beside models of all kinds: put it and its model into a folder of their own"
    drafts = [f"{each}-m.gguf: passed over as a draft: {why}" for each in ("dflash", "dspark", "mtp")]
    found = scan(disk, *drafts[:2], f"mmproj-m.gguf: passed over as a projector: {why}", drafts[2])
    assert list(found) == ["m"]
    assert found["m"].mmproj is None, "beside other models it may belong to any of them"


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


@pytest.mark.parametrize("suffix", ["Q8_0.gguf", "Q8_0-00001-of-00001.gguf"])
def test_of_several_models_in_a_folder_each_has_a_name_and_none_that_of_the_folder(disk, suffix):
    disk.write(f"m/m-{suffix}", "m/m-Q4_0.gguf", "m/mmproj.gguf")
    found = scan(disk)
    assert {name: names(each) for name, each in found.items()} == {
        "m/m-Q4_0": ["m-Q4_0.gguf"],
        "m/m-Q8_0": [f"m-{suffix}"],
    }
    assert found["m/m-Q8_0"].mmproj is not None


@pytest.mark.parametrize("called", ["Foo-Q8_0", "foo-q8_0", "foo", "Foo-GGUF"])
def test_the_model_of_a_folder_is_the_one_that_is_called_like_it(disk, called):
    disk.write(f"{called}/Bar-Q4_0.gguf", f"{called}/Foo-Q8_0.gguf", f"{called}/Goo-Q8_0.gguf")
    assert names(scan(disk)[called]) == ["Foo-Q8_0.gguf"]
    assert scan(disk)[called].also == (f"{called}/Foo-Q8_0",)
    assert sorted(scan(disk)) == sorted((called, f"{called}/Bar-Q4_0", f"{called}/Goo-Q8_0"))


def test_of_two_quantisations_the_folder_is_the_one_that_is_called_exactly_like_it(disk):
    disk.write("Foo-Q8_0/Foo-Q4_0.gguf", "Foo-Q8_0/Foo-Q8_0.gguf")
    found = scan(disk)
    assert names(found["Foo-Q8_0"]) == ["Foo-Q8_0.gguf"]
    assert names(found["Foo-Q8_0/Foo-Q4_0"]) == ["Foo-Q4_0.gguf"]


def test_a_file_that_does_not_say_what_it_is_takes_no_name_from_a_model(disk):
    disk.write("m/a.gguf", content=text_model())
    disk.write("m/ae.gguf", "n/ae.gguf")
    assert {name: names(each) for name, each in scan(disk).items()} == {
        "m": ["a.gguf"],
        "m/ae": ["ae.gguf"],
        "n": ["ae.gguf"],
    }


def test_no_name_is_another_files_when_a_neighbour_comes(disk):
    disk.write("m/x-Q8_0.gguf")
    before = {name: each.files for each in scan(disk).values() for name in (each.id, *each.also)}
    assert sorted(before) == ["m", "m/x-Q8_0"]
    disk.write(
        "m/a-Q4_0.gguf", "m/x-00001-of-00002.gguf", "m/x-00002-of-00002.gguf", "m/sub/y.gguf", "z.gguf"
    )
    after = {name: each.files for each in scan(disk).values() for name in (each.id, *each.also)}
    assert after["m/x-Q8_0"] == before["m/x-Q8_0"]
    assert "m" not in after


def test_two_files_never_have_the_same_name(disk):
    disk.write(
        "a.gguf", "a/x.gguf", "b/c.gguf", "b/d.gguf", "b/c/e.gguf", "f.gguf", "f.GGUF",
        "g.gguf", "g-00001-of-00002.gguf", "g-00002-of-00002.gguf",
    )  # fmt: skip
    found = scan(disk)
    where = {name: str(each.files[0].relative_to(disk.models)) for name, each in found.items()}
    assert where == {
        "a": "a.gguf", "a/x": "a/x.gguf", "b/c": "b/c.gguf", "b/d": "b/d.gguf", "b/c/e": "b/c/e.gguf",
        "f": "f.GGUF", "f.gguf": "f.gguf", "g": "g.gguf", "g-00001-of-00002": "g-00001-of-00002.gguf",
    }  # fmt: skip


def test_folders_are_looked_into_at_any_sensible_depth(disk):
    disk.write(
        "author/repo/m-Q4_0.gguf", "author/other/m.gguf", "author/other/deep/er/m.gguf", "author/stray.gguf",
        "author/repo2/Q4_K_M/x-Q4_K_M.gguf", "author/repo2/Q8_0/x-Q8_0-00001-of-00002.gguf",
        "author/repo2/Q8_0/x-Q8_0-00002-of-00002.gguf",
    )  # fmt: skip
    found = scan(disk)
    assert set(found) == {
        "author", "author/other", "author/other/deep/er", "author/repo", "author/repo2/Q4_K_M",
        "author/repo2/Q8_0",
    }  # fmt: skip
    assert found["author"].also == ("author/stray",)
    assert found["author/repo2/Q8_0"].also == (
        "author/repo2/Q8_0/x-Q8_0",
        "author/repo2/Q8_0/x-Q8_0-00001-of-00002",
    )


def test_folders_that_are_too_deep_are_named_once(disk, monkeypatch):
    inner = "/".join("abcdefghijkl"[:MAX_DEPTH])
    disk.write(f"{inner}/m.gguf", f"{inner}/x/n.gguf", f"{inner}/y/n.gguf")
    limits = f"at most {MAX_FOLDERS} folders are, {MAX_DEPTH} deep; name it in models_dirs"
    assert list(scan(disk, f"{inner}/x (and 1 more): not searched: {limits}")) == [inner]
    monkeypatch.setattr(models_dir, "MAX_FOLDERS", 2)
    (warning,) = scan_warnings(disk)
    assert warning.startswith(f"{disk.models}/a/b: not searched: at most 2 folders")


def test_what_is_searched_by_itself_is_not_searched_twice(disk):
    disk.write("m.gguf", "own/x.gguf")
    found = scan_models_dir(disk.models, Notes(), [str(disk.models), str(disk.models / "own")])
    assert [each.id for each in found] == ["m"]


def test_a_folder_without_models_is_nothing_but_what_lies_there_is_named(disk):
    (disk.models / "empty" / "inner").mkdir(parents=True)
    disk.write("only/mmproj.gguf", "only/imatrix.gguf", "only/m-dflash.gguf")
    why = "there is no model in its folder or below"
    assert scan(
        disk,
        "only/imatrix.gguf: passed over as no model: its name is that of an importance matrix",
        f"only/m-dflash.gguf: passed over as a draft: {why}",
        f"only/mmproj.gguf: passed over as a projector: {why}",
    ) == {}  # fmt: skip


# --- companions ---


def test_a_projector_is_known_by_its_header_whatever_its_name(disk):
    disk.write("vlm/vlm.gguf", content=text_model())
    disk.write("vlm/vlm-vision-f16.gguf", content=projector())
    found = scan(disk)
    assert names(found["vlm"]) == ["vlm.gguf"]
    assert found["vlm"].mmproj == disk.models / "vlm/vlm-vision-f16.gguf"


def test_a_draft_is_known_by_its_name_in_any_position_and_case(disk):
    disk.write("Zeta-Q4/Zeta-DFlash-BF16.gguf", "Zeta-Q4/Zeta-Q4.gguf", content=text_model())
    (found,) = scan(disk).values()
    assert (found.id, names(found)) == ("Zeta-Q4", ["Zeta-Q4.gguf"])
    assert found.draft == disk.models / "Zeta-Q4/Zeta-DFlash-BF16.gguf"


def test_a_projector_is_inherited_from_the_folder_above_but_not_from_beside(disk):
    disk.write("a/r/Q4_0/x-Q4_0.gguf", "a/r/Q8_0/x-Q8_0.gguf", "a/s/y-Q8_0.gguf", content=text_model())
    disk.write("a/r/mmproj-F16.gguf", content=projector())
    found = scan(disk)
    above = disk.models / "a/r/mmproj-F16.gguf"
    assert [found[each].mmproj for each in ("a/r/Q4_0", "a/r/Q8_0", "a/s")] == [above, above, None]


def test_a_projector_whose_header_does_not_fit_goes_with_no_model(disk):
    disk.write("m/m.gguf", content=text_model(64))
    disk.write("m/mmproj-m.gguf", content=projector(128))
    found = scan(disk)
    assert found["m"].mmproj is None
    assert found["m/mmproj-m"].unused == ("it is made for embeddings of 128 dimensions, not 64 of m/m.gguf")


def test_beside_models_of_all_kinds_a_projector_goes_with_the_one_whose_name_it_has_and_that_it_fits(disk):
    disk.write("gemma-3-4b-it-Q4_0.gguf", "other.gguf", content=text_model())
    disk.write("mmproj-gemma-3-4b-it-F16.gguf", "mmproj-F16.gguf", content=projector())
    found = scan(disk)
    assert found["gemma-3-4b-it-Q4_0"].mmproj == disk.models / "mmproj-gemma-3-4b-it-F16.gguf"
    assert found["other"].mmproj is None
    assert "models of all kinds" in (found["mmproj-F16"].unused or "")


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
