"""The files of a model are looked at one by one, and say what is wrong."""

from __future__ import annotations

from router.models.catalog.candidate import examine, stamp_of
from tests.models.catalog.conftest import gguf


def test_all_files_count_and_the_first_says_what_it_is(tmp_path):
    files = (tmp_path / "a.gguf", tmp_path / "b.gguf")
    files[0].write_bytes(gguf(general__name="first"))
    files[1].write_bytes(gguf(general__name="second"))
    examined = examine(files)
    assert examined.header.name == "first"
    assert examined.size_bytes == sum(file.stat().st_size for file in files)
    assert [path for path, _, _ in examined.stamps] == [str(file) for file in files]
    assert examined.error is None


def test_missing_parts_are_named_but_not_all_of_many(tmp_path):
    files = tuple(tmp_path / f"m-{n}.gguf" for n in range(12))
    files[0].write_bytes(gguf())
    error = examine(files).error
    assert error is not None
    assert "11 of its 12 parts are missing: m-1.gguf, m-2.gguf" in error
    assert error.endswith("m-8.gguf and 3 more")


def test_a_part_that_is_no_gguf_is_named(tmp_path):
    files = (tmp_path / "a.gguf", tmp_path / "b.gguf")
    files[0].write_bytes(gguf())
    files[1].write_bytes(b"<html>404</html>" * 9)
    assert examine(files).error == f"{files[1]} is not a GGUF file"


def test_a_file_that_is_gone_is_named(tmp_path):
    examined = examine((tmp_path / "a.gguf",))
    assert examined.error == f"{tmp_path}/a.gguf is gone"
    assert (examined.size_bytes, examined.stamps) == (0, ())


def test_a_stamp_is_that_of_the_file_behind_a_link(tmp_path):
    (tmp_path / "real").write_bytes(b"1234")
    (tmp_path / "link").symlink_to("real")
    assert stamp_of(tmp_path / "link") == (str(tmp_path / "real"), 4, (tmp_path / "real").stat().st_mtime_ns)
    assert stamp_of(tmp_path / "gone") is None
