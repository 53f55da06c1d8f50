"""File names mean what they mean to llama.cpp."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.models.catalog.names import GgufName, choose_sibling, parse_name


def name(path: str) -> GgufName:
    parsed = parse_name(path)
    assert parsed is not None
    return parsed


def paths(*given_paths: str) -> list[GgufName]:
    return [name(path) for path in given_paths]


@pytest.mark.parametrize(
    ("path", "prefix", "tag", "index", "count"),
    [
        ("gemma-3-4b-it-Q4_K_M.gguf", "gemma-3-4b-it-Q4_K_M", "Q4_K_M", 1, 1),
        ("model.q8_0.gguf", "model.q8_0", "Q8_0", 1, 1),
        ("a/b-UD-Q4_K_XL-00002-of-00003.gguf", "a/b-UD-Q4_K_XL", "Q4_K_XL", 2, 3),
        ("model.gguf", "model", "", 1, 1),
        ("tinyllama-1.1b.gguf", "tinyllama-1.1b", "1B", 1, 1),
        ("x-00003-of-00002.gguf", "x-00003-of-00002", "00002", 1, 1),
        ("x-00000-of-00000.gguf", "x-00000-of-00000", "00000", 1, 1),
        ("x-00001-of-99999.gguf", "x-00001-of-99999", "99999", 1, 1),
        ("modèle ünï-F16.gguf", "modèle ünï-F16", "F16", 1, 1),
    ],
)
def test_a_name_is_taken_apart(path, prefix, tag, index, count):
    assert name(path) == GgufName(path, prefix, tag, index, count)


@pytest.mark.parametrize("path", ["model.bin", ".gguf", "folder/.gguf", "model.gguf2", "", "gguf"])
def test_what_does_not_end_in_gguf_has_no_name(path):
    assert parse_name(path) is None


@pytest.mark.parametrize("path", ["Small.GGUF", "a/Small.Gguf"])
def test_gguf_may_be_written_in_any_case(path):
    assert name(path).prefix == path[:-5]
    assert name("a-00002-of-00002.GGUF").shards == ("a-00001-of-00002.GGUF", "a-00002-of-00002.GGUF")


def test_the_parts_of_a_split_model_follow_from_any_of_them():
    assert name("a/m-00002-of-00003.gguf").shards == (
        "a/m-00001-of-00003.gguf", "a/m-00002-of-00003.gguf", "a/m-00003-of-00003.gguf",
    )  # fmt: skip


@pytest.mark.parametrize(
    ("path", "is_model"),
    [
        ("m-Q4_0.gguf", True),
        ("mmproj-m-F16.gguf", False),
        ("m-mmproj.gguf", False),
        ("mtp-m.gguf", False),
        ("dspark-m.gguf", False),
        ("dflash-m.gguf", False),
        ("imatrix.gguf", False),
        ("m-mtp-like.gguf", True),
        ("m-MMPROJ-F16.gguf", False),
        ("MTP-m.gguf", False),
        ("DFlash-m.gguf", False),
        ("Zeta-DFlash-BF16.gguf", True),
        ("m.IMatrix.gguf", False),
        ("eagle-7b-Q4_0.gguf", True),
        ("granite-vision-Q4_0.gguf", True),
        ("mmproj-of-others/m-Q4_0.gguf", True),
    ],
)
def test_companions_are_not_models(path, is_model):
    assert name(path).is_model is is_model


@pytest.mark.parametrize(
    ("path", "is_draft"),
    [
        ("mtp-m.gguf", True),
        ("MTP-m.gguf", True),
        ("Zeta-DFlash-BF16.gguf", True),
        ("m.eagle3.gguf", True),
        ("m_Eagle-3-Q8_0.gguf", True),
        ("m-DSpark.gguf", True),
        ("m-mtp-like.gguf", False),
        ("eagle-7b-Q4_0.gguf", False),
        ("dflash-of-others/m-Q4_0.gguf", False),
    ],
)
def test_a_draft_is_known_by_a_word_in_any_position_and_case(path, is_draft):
    assert name(path).is_draft is is_draft


def test_the_projector_nearest_in_folder_and_in_bits_is_taken():
    projectors = paths("mmproj-F16.gguf", "mmproj-F32.gguf", "sub/mmproj-F32.gguf", "else/mmproj-Q4_0.gguf")
    assert choose_sibling(projectors, name("m-Q4_0.gguf")) == name("mmproj-F16.gguf")
    assert choose_sibling(projectors, name("m-F32.gguf")) == name("mmproj-F32.gguf")
    assert choose_sibling(projectors, name("sub/m-Q4_0.gguf")) == name("sub/mmproj-F32.gguf")
    assert choose_sibling([], name("m-Q4_0.gguf")) is None


def test_the_projector_that_is_named_for_the_model_is_taken():
    projectors = paths("mmproj-flash-i-F16.gguf", "mmproj-flash-F16.gguf", "flash-vision-mmproj-F32.gguf")
    assert choose_sibling(projectors, name("Flash-Q4_0.gguf")) == name("mmproj-flash-F16.gguf")
    assert choose_sibling(projectors, name("Flash-I-Q4_0.gguf")) == name("mmproj-flash-i-F16.gguf")


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("a/mmproj-gemma-3-4b-it-F16.gguf", "gemma 3 4b it"),
        ("gemma-3-4b-it-UD-Q4_K_XL-00001-of-00002.gguf", "gemma 3 4b it"),
        ("vlm_vision.f16.gguf", "vlm"),
        ("mmproj-model-f16.gguf", ""),
        ("Q4_K_M.gguf", ""),
    ],
)
def test_a_name_says_which_model_it_is_of(path, words):
    assert name(path).words == tuple(words.split())


@given(st.text(max_size=30).map(lambda text: text + ".gguf"))
def test_no_name_is_too_odd(path):
    parsed = parse_name(path)
    if parsed is not None:
        assert parsed.path in parsed.shards
        assert parse_name(parsed.shards[0]) == GgufName(
            parsed.shards[0], parsed.prefix, parsed.tag, 1, parsed.count
        )
