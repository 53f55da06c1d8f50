"""Text files that people wrote, in whatever their editors made of them."""

from __future__ import annotations

from pathlib import Path

import pytest

from router.config import load_config
from router.errors import ConfigError
from router.text_file import NotText, read_text_file

TEXT = "[server]\nport = 9000\n"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "config.toml"


@pytest.mark.parametrize(
    "data",
    [
        TEXT.encode(),
        b"\xef\xbb\xbf" + TEXT.encode(),
        TEXT.replace("\n", "\r\n").encode(),
        b"\xef\xbb\xbf" + TEXT.replace("\n", "\r\n").encode() + b"\0",
        TEXT.encode() + b"\0\0",
    ],
    ids=["plain", "a mark", "CRLF", "all", "NULs"],
)
def test_a_mark_at_the_beginning_and_nuls_at_the_end_are_no_part_of_it(file: Path, data: bytes):
    file.write_bytes(data)
    assert read_text_file(file) == TEXT
    assert load_config(file).server.port == 9000


def test_its_lines_are_counted_as_without_the_mark(file: Path):
    file.write_bytes(b"\xef\xbb\xbf\n[server]\nprot = 9000\n")
    with pytest.raises(ConfigError, match=rf"^{file}:3: server\.prot"):
        load_config(file)


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-be"])
def test_utf_16_is_called_so(file: Path, encoding: str):
    mark = b"" if encoding == "utf-16" else b"\xfe\xff"
    file.write_bytes(mark + TEXT.encode(encoding))
    with pytest.raises(ConfigError, match="is UTF-16 text; save it as UTF-8"):
        load_config(file)


def test_another_encoding_is_refused_with_its_place(file: Path):
    file.write_bytes("# größe\n".encode("latin-1"))
    with pytest.raises(NotText, match=r"is not UTF-8 text \(byte 4\)"):
        read_text_file(file)


def test_a_key_file_with_a_mark_holds_the_key_itself(file: Path, tmp_path: Path):
    (tmp_path / "keys").write_bytes(b"\xef\xbb\xbffirst\r\n# a comment\r\nsecond\0")
    file.write_text('[server]\napi_keys = ["file:keys"]\n')
    assert load_config(file).server.api_keys == ("first", "second")
    (tmp_path / "keys").write_bytes("first".encode("utf-16"))
    with pytest.raises(ConfigError, match="is UTF-16 text"):
        load_config(file)
