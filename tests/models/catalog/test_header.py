"""A glance at a file says whether it is a GGUF, and what its first keys say."""

from __future__ import annotations

import os
import struct

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from router.models.catalog.header import Header, Unusable, glance
from tests.make_gguf import make_bert, make_llama
from tests.models.catalog.conftest import gguf


def reason(path) -> str:
    with pytest.raises(Unusable) as unusable:
        glance(path)
    return str(unusable.value)


def test_the_first_keys_of_real_models_are_read(tmp_path):
    llama = glance(make_llama(tmp_path / "m.gguf", name="Tiny Llama"))
    assert (llama.architecture, llama.name, llama.pooling) == ("llama", "Tiny Llama", None)
    bert = glance(make_bert(tmp_path / "b.gguf"))
    assert (bert.architecture, bert.pooling) == ("bert", "mean")


def test_keys_behind_short_arrays_are_read(tmp_path):
    text = struct.pack("<Q", 1) + b"x"
    data = (
        gguf(general__architecture="bert")[:16]
        + struct.pack("<Q", 4)
        + gguf(general__architecture="bert")[24:]
    )
    data += struct.pack("<Q", 1) + b"a" + struct.pack("<IIQ", 9, 8, 2) + text * 2
    data += struct.pack("<Q", 1) + b"b" + struct.pack("<IIQ", 9, 5, 3) + bytes(12)
    data += struct.pack("<Q", 17) + b"bert.pooling_type" + struct.pack("<II", 4, 4)
    (tmp_path / "m.gguf").write_bytes(data)
    assert glance(tmp_path / "m.gguf") == Header(architecture="bert", pooling="rank")


def test_a_header_longer_than_the_glance_is_read_as_far_as_it_goes(tmp_path):
    data = gguf(general__architecture="llama", long="x" * 100_000, general__name="behind")
    (tmp_path / "m.gguf").write_bytes(data)
    assert glance(tmp_path / "m.gguf") == Header(architecture="llama")


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"", "is empty"),
        (b"GGUF", "is not a GGUF file"),
        (b"PK\x03\x04" + bytes(100), "is not a GGUF file"),
        (gguf(version=1), "has GGUF version 1, not 2 or 3"),
        (gguf(version=4), "has GGUF version 4, not 2 or 3"),
        (gguf(version=3 << 24), "is big-endian"),
    ],
)
def test_what_llama_cpp_would_not_load_is_unusable(tmp_path, content, expected):
    (tmp_path / "m.gguf").write_bytes(content)
    assert reason(tmp_path / "m.gguf") == expected


def test_what_is_no_file_is_unusable_and_does_not_block(tmp_path):
    os.mkfifo(tmp_path / "pipe.gguf")
    (tmp_path / "circle.gguf").symlink_to("circle.gguf")
    assert reason(tmp_path / "pipe.gguf") == "is not a regular file"
    assert reason(tmp_path) == "is not a regular file"
    assert reason(tmp_path / "gone.gguf") == "is gone"
    assert reason(tmp_path / "circle.gguf") == "cannot be read: Too many levels of symbolic links"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_what_may_not_be_read_is_unusable(tmp_path):
    (tmp_path / "m.gguf").write_bytes(gguf())
    (tmp_path / "m.gguf").chmod(0)
    assert reason(tmp_path / "m.gguf") == "cannot be read: Permission denied"


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.binary(max_size=200))
def test_no_content_is_more_than_unusable_or_strange(tmp_path, content):
    file = tmp_path / "m.gguf"
    file.write_bytes(gguf()[:16] + content)
    if len(content) < 8:
        assert reason(file) == "is not a GGUF file"
    else:
        glance(file)
