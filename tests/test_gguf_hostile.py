"""No file can hurt the GGUF reader: a lie is an error that says what and where, never memory, time or a
crash."""

from __future__ import annotations

import contextlib
import os
import struct
import time
import tracemalloc
from pathlib import Path

import gguf
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from router.gguf import GgufError, read_gguf
from router.gguf.header import MAX_KEPT_ARRAY, MAX_STRINGS_WALKED
from tests.gguf_bytes import (
    ARRAY,
    F32,
    HUGE,
    STRING,
    U8,
    U32,
    U64,
    array,
    header,
    key,
    read_bytes,
    tensor,
    text,
)
from tests.make_gguf import make_gemma3, make_llama

MIB = 1 << 20


# -------------------------------------------------------------------------------------------------


def test_a_file_cut_in_half_names_the_tensor_and_the_bytes(tmp_path: Path) -> None:
    path = make_llama(tmp_path / "m.gguf")
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    expected = rf"truncated: tensor \S+ needs bytes up to \d+, the file has {len(whole) // 2}$"
    with pytest.raises(GgufError, match=expected):
        read_gguf(path)


def test_every_truncation_of_a_header_is_an_error(tmp_path: Path) -> None:
    whole = header(
        key("a", U32, struct.pack("<I", 1)),
        key("b", ARRAY, array(STRING, 2, text("xy") + text("z"))),
        key("c", ARRAY, array(F32, 3, bytes(12))),
        tensors=(tensor("t", (4, 4)), tensor("u", (8,), 8 - 8, 64)),
        data=bytes(96),
    )
    path = tmp_path / "m.gguf"
    for end in range(len(whole)):
        path.write_bytes(whole[:end])
        with pytest.raises(GgufError):
            read_gguf(path)
    path.write_bytes(whole)
    assert len(read_gguf(path).tensors) == 2


def test_big_endian_files_are_refused_as_such(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    writer = gguf.GGUFWriter(path, "llama", endianess=gguf.GGUFEndian.BIG)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    with pytest.raises(GgufError, match="big-endian"):
        read_gguf(path)


def with_tensors(*tensors: bytes) -> bytes:
    return header(tensors=tensors, data=bytes(128))


LIES: dict[str, tuple[bytes, str]] = {
    "another format": (b"PK\x03\x04 and so on", "not a GGUF"),
    "nothing": (b"", "not a GGUF"),
    "version 1": (header(version=1), "version 1"),
    "a version to come": (header(version=4), "version 4"),
    "more keys than it has": (header(n_keys=5), "a key without a name"),
    "absurd number of keys": (header(n_keys=HUGE), "keys"),
    "absurd number of tensors": (b"GGUF" + struct.pack("<IQQ", 3, HUGE, 0), "tensors"),
    "no architecture": (b"GGUF" + struct.pack("<IQQ", 3, 0, 0), "general.architecture"),
    "an architecture that is a number": (
        b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + key("general.architecture", U32, bytes(4)),
        "general.architecture",
    ),
    "absurd key length": (header(struct.pack("<Q", HUGE)), "claims to be"),
    "an empty key": (header(key("", U32, bytes(4))), "without a name"),
    "the same key twice": (header(key("a", U32, bytes(4)), key("a", U32, bytes(4))), "'a' occurs twice"),
    "an unknown value type": (header(key("a", 13, bytes(8))), "unknown type 13"),
    "an array of arrays": (
        header(key("a", ARRAY, array(ARRAY, 1, array(U32, 1, bytes(4))))),
        "array of arrays",
    ),
    "an array of an unknown type": (header(key("a", ARRAY, array(77, 1, bytes(4)))), "unknown type 77"),
    "an absurd array of numbers": (header(key("a", ARRAY, array(U64, HUGE, b""))), "truncated"),
    "an absurd array of strings": (header(key("a", ARRAY, array(STRING, HUGE, b""))), "strings"),
    "a string beyond the end": (header(key("a", STRING, struct.pack("<Q", HUGE))), "truncated"),
    "a string beyond the end, in a vocabulary": (
        header(key("a", ARRAY, array(STRING, 2000, struct.pack("<Q", HUGE) + bytes(16000)))),
        "truncated",
    ),
    "a string that wraps around": (
        header(key("a", ARRAY, array(STRING, 2000, struct.pack("<Q", (1 << 64) - 8) + bytes(16000)))),
        "truncated",
    ),
    "alignment 0": (header(key("general.alignment", U32, bytes(4))), "alignment"),
    "alignment 33": (header(key("general.alignment", U32, struct.pack("<I", 33))), "alignment"),
    "alignment in words": (header(key("general.alignment", STRING, text("32"))), "alignment"),
    "a long tensor name": (with_tensors(tensor("t" * 300, (4,))), "300 bytes"),
    "many dimensions": (with_tensors(tensor("t", (1,) * 9)), "9 dimensions"),
    "a negative dimension": (with_tensors(tensor("t", (-4, 4))), "shape"),
    "an absurd shape": (with_tensors(tensor("t", (1 << 40, 1 << 40))), "needs bytes up to"),
    "an offset beyond the end": (with_tensors(tensor("t", (4,), 0, HUGE)), "needs bytes up to"),
    "an odd offset": (with_tensors(tensor("t", (4,), 0, 7)), "offset 7"),
    "overlapping tensors": (
        with_tensors(tensor("t", (16,)), tensor("u", (16,), 0, 32)),
        "'u' has the offset 32",
    ),
    "tensors of one name": (with_tensors(tensor("t", (8,)), tensor("t", (8,), 0, 32)), "same name"),
    "rows that are no whole blocks": (with_tensors(tensor("t", (33,), 2)), "whole blocks"),
    "an unknown type that goes backwards": (
        with_tensors(tensor("t", (8,), 99, 64), tensor("u", (8,), 0, 32)),
        "truncated: tensor t",
    ),
    "an absurd tensor type": (with_tensors(tensor("t", (8,), 1 << 20)), "unknown type"),
}


@pytest.mark.parametrize(("data", "why"), LIES.values(), ids=LIES.keys())
def test_a_file_that_lies_is_an_error_that_says_why(data: bytes, why: str, tmp_path: Path) -> None:
    with pytest.raises(GgufError, match=why) as caught:
        read_bytes(data, tmp_path)
    assert "m.gguf" in str(caught.value)


def test_a_missing_file_is_a_gguf_error(tmp_path: Path) -> None:
    with pytest.raises(GgufError, match="No such file"):
        read_gguf(tmp_path / "nope.gguf")


def test_a_folder_is_a_gguf_error(tmp_path: Path) -> None:
    with pytest.raises(GgufError, match="regular file"):
        read_gguf(tmp_path)


def test_a_pipe_does_not_block(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "m.gguf")
    with pytest.raises(GgufError, match="regular file"):
        read_gguf(tmp_path / "m.gguf")


# --- bounds -------------------------------------------------------------------------------------------------


# ----------------------------------------------------------------------------------------------------------


def _empty_strings(n: int) -> bytes:
    return array(STRING, n, bytes(8 * n))


GREEDY: dict[str, bytes] = {
    "six million empty strings": header(key("a", ARRAY, _empty_strings(6_000_000))),
    "strings in many arrays": header(*(key(f"a{i}", ARRAY, _empty_strings(100_000)) for i in range(60))),
    "short arrays without end": header(
        *(key(f"a{i}", ARRAY, array(U8, MAX_KEPT_ARRAY, bytes(MAX_KEPT_ARRAY))) for i in range(8000))
    ),
    "texts just short enough to keep": header(
        *(key(f"a{i}", STRING, text(bytes(60_000))) for i in range(800))
    ),
    "short strings in short arrays": header(
        *(key(f"a{i}", ARRAY, array(STRING, 1000, text("abc") * 1000)) for i in range(4000))
    ),
    "tensors without end": header(tensors=tuple(tensor(f"t{i:0200}", (1,) * 8) for i in range(32_000))),
    "keys without end": header(*(key(f"{i:05000}", U8, b"x") for i in range(8000))),
}


@pytest.mark.parametrize("data", GREEDY.values(), ids=GREEDY.keys())
def test_no_file_takes_more_than_a_bounded_amount_of_memory(data: bytes, tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(data)
    assert len(data) < 50 * MIB
    tracemalloc.start()
    try:
        with contextlib.suppress(GgufError):
            read_gguf(path)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 100 * MIB


AT_THE_BOUNDS: dict[str, bytes] = {
    "as many strings as are walked": header(key("a", ARRAY, _empty_strings(MAX_STRINGS_WALKED - 1))),
    "as many short arrays as are kept": header(
        *(key(f"a{i}", ARRAY, array(U8, 8, bytes(8))) for i in range(8000))
    ),
    "many tensors": header(
        *(key(f"a{i}", U8, b"x") for i in range(100)),
        tensors=tuple(tensor(f"blk.{i}.attn_q.weight", (32,), F32, 128 * i) for i in range(32_000)),
        data=bytes(32_000 * 128),
    ),
}


@pytest.mark.parametrize("data", (GREEDY | AT_THE_BOUNDS).values(), ids=(GREEDY | AT_THE_BOUNDS).keys())
def test_no_file_takes_more_than_a_second(data: bytes, tmp_path: Path) -> None:
    """Of the processor: how long others hold it is not the reader's doing."""
    path = tmp_path / "m.gguf"
    path.write_bytes(data)
    assert len(data) < 50 * MIB
    begun = time.process_time()
    with contextlib.suppress(GgufError):
        read_gguf(path)
    assert time.process_time() - begun < 1.0


def test_a_vocabulary_of_any_real_size_is_within_the_budget() -> None:
    largest_known = 262_144 + 600_000  # tokens and merges
    assert 2 * largest_known < MAX_STRINGS_WALKED


def test_reading_a_large_vocabulary_keeps_a_window_of_it_only(tmp_path: Path) -> None:
    strings = key("tokenizer.ggml.tokens", ARRAY, array(STRING, 500_000, text("abcdefgh") * 500_000))
    path = tmp_path / "m.gguf"
    path.write_bytes(header(strings))
    tracemalloc.start()
    try:
        read_gguf(path)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 8 * MIB


# --- any bytes at all ---------------------------------------------------------------------------------------


# ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def valid_header(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The header of a real small model, with enough data that offsets can be wrong either way."""
    path = make_gemma3(tmp_path_factory.mktemp("gguf") / "m.gguf", n_layers=2, n_embd=32, n_ff=32, head=8)
    return path.read_bytes()[:40_000]


@given(edits=st.lists(st.tuples(st.floats(0, 1), st.binary(min_size=1, max_size=9)), min_size=1, max_size=6))
@settings(max_examples=200, deadline=None)
def test_an_edited_header_is_read_or_refused(
    edits: list[tuple[float, bytes]], valid_header: bytes, tmp_path_factory: pytest.TempPathFactory
) -> None:
    data = bytearray(valid_header)
    for place, replacement in edits:
        at = int(place * (len(data) - len(replacement)))
        data[at : at + len(replacement)] = replacement
    _read_or_refuse(bytes(data), tmp_path_factory.getbasetemp())


INTERESTING = st.sampled_from(
    [0, 1, 8, 9, 31, 32, 255, 256, 1 << 16, 1 << 31, (1 << 32) - 1, HUGE, (1 << 64) - 1]
)


@given(place=st.integers(4, 2000), value=INTERESTING)
@settings(max_examples=300, deadline=None)
def test_a_header_with_a_number_replaced_is_read_or_refused(
    place: int, value: int, valid_header: bytes, tmp_path_factory: pytest.TempPathFactory
) -> None:
    data = bytearray(valid_header)
    struct.pack_into("<Q", data, place, value)
    _read_or_refuse(bytes(data), tmp_path_factory.getbasetemp())


@given(
    parts=st.lists(
        st.one_of(
            st.binary(max_size=40),
            st.builds(key, st.text(max_size=5), st.integers(0, 14), st.binary(max_size=24)),
            st.builds(
                lambda name, kind, count, items: key(name, ARRAY, array(kind, count, items)),
                st.text(max_size=5), st.integers(0, 14), INTERESTING, st.binary(max_size=40),
            ),
        ),
        max_size=5,
    ),
    tensors=st.lists(
        st.builds(
            tensor, st.text(max_size=5), st.lists(st.integers(-2, 1 << 50), max_size=9).map(tuple),
            st.integers(0, 50), INTERESTING,
        ),
        max_size=4,
    ),
    data=st.binary(max_size=200),
)  # fmt: skip
@settings(max_examples=300, deadline=None)
def test_a_made_up_header_is_read_or_refused(
    parts: list[bytes], tensors: list[bytes], data: bytes, tmp_path_factory: pytest.TempPathFactory
) -> None:
    _read_or_refuse(header(*parts, tensors=tuple(tensors), data=data), tmp_path_factory.getbasetemp())


def _read_or_refuse(data: bytes, folder: Path) -> None:
    try:
        metadata = read_bytes(data, folder, "fuzzed.gguf")
    except GgufError:
        return
    assert metadata.tensor_bytes <= len(data)
    assert metadata.quantisation != ""
    assert metadata.n_parameters >= 0
    assert metadata.n_vocab is None or metadata.n_vocab >= 0
    assert metadata.modalities <= {"image", "audio"}
