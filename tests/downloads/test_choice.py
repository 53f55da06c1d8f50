"""Which files are fetched: llama.cpp's choice, with all parts and the projector."""

from __future__ import annotations

import pytest

from router.downloads import Listing, RemoteFile, Wish, choose, projectors, quantizations
from router.downloads.errors import HubMisbehaves, NothingToFetch

NAMES = (
    "README.md",
    "imatrix-Q4_K_M.gguf",
    "mmproj-tiny-F16.gguf",
    "mmproj-tiny-F32.gguf",
    "mtp-tiny-Q4_K_M.gguf",
    "tiny-BF16-00001-of-00002.gguf",
    "tiny-BF16-00002-of-00002.gguf",
    "tiny-Q4_K_M.gguf",
    "tiny-Q8_0.gguf",
    "tiny-UD-Q2_K_XL.gguf",
)


def listing(*names: str) -> Listing:
    return Listing("o/r", "a" * 40, tuple(RemoteFile(name, 10 + at) for at, name in enumerate(names)))


def chosen(wish: Wish, *names: str) -> tuple[list[str], tuple[str, ...]]:
    found = choose(listing(*(names or NAMES)), wish)
    return [file.path for file in found.files], found.models


@pytest.mark.parametrize(
    ("names", "first"),
    [
        (("a-Q8_0.gguf", "a-Q4_K_M.gguf", "a-F16.gguf"), "a-Q4_K_M.gguf"),
        (("a-F16.gguf", "a-Q8_0.gguf", "a-Q2_K.gguf"), "a-Q8_0.gguf"),
        (("a-Q6_K.gguf", "a-Q2_K.gguf"), "a-Q2_K.gguf"),
    ],
)
def test_without_a_word_it_is_q4_k_m_else_q8_0_else_the_first(names, first):
    assert chosen(Wish("o/r"), *names)[0] == [first]


def test_all_parts_come_and_the_projector_that_is_nearest():
    parts = ["tiny-BF16-00001-of-00002.gguf", "tiny-BF16-00002-of-00002.gguf"]
    assert chosen(Wish("o/r", quantization="bf16")) == (["mmproj-tiny-F16.gguf", *parts], ("o/r:BF16",))
    assert chosen(Wish("o/r", include=(parts[1],))) == (["mmproj-tiny-F16.gguf", *parts], ("o/r:BF16",))


def test_a_projector_can_be_left_out():
    assert chosen(Wish("o/r", exclude=("mmproj*",))) == (["tiny-Q4_K_M.gguf"], ("o/r:Q4_K_M",))


def test_what_is_excluded_is_not_chosen():
    assert chosen(Wish("o/r", exclude=("*Q4_K_M*", "mmproj*")))[1] == ("o/r:Q8_0",)


def test_patterns_choose_several_models_and_other_files():
    files, models = chosen(Wish("o/r", include=("*Q8_0*", "*Q2_K*", "*.md"), exclude=("mmproj*",)))
    assert files == ["README.md", "tiny-Q8_0.gguf", "tiny-UD-Q2_K_XL.gguf"]
    assert models == ("o/r:Q8_0", "o/r:Q2_K_XL")


def test_a_quantisation_is_chosen_among_what_the_patterns_leave():
    names = ("old/a-Q4_0.gguf", "new/a-Q4_0.gguf")
    assert chosen(Wish("o/r", quantization="Q4_0", include=("old/*",)), *names)[0] == ["old/a-Q4_0.gguf"]


def test_what_is_not_there_is_told_with_what_is():
    with pytest.raises(NothingToFetch, match="no quantisation Q3_K; it has Q4_K_M, Q8_0, Q2_K_XL, BF16"):
        choose(listing(*NAMES), Wish("o/r", quantization="Q3_K"))
    with pytest.raises(NothingToFetch, match="no file that the patterns match"):
        choose(listing(*NAMES), Wish("o/r", include=("*.bin",)))
    with pytest.raises(NothingToFetch, match="has no GGUF model"):
        choose(listing("model.safetensors"), Wish("o/r"))


def test_a_model_of_which_parts_are_missing_is_not_begun():
    with pytest.raises(HubMisbehaves, match="lacks parts of its own model: x-Q4_0-00002-of-00003.gguf"):
        choose(listing("x-Q4_0-00001-of-00003.gguf", "x-Q4_0-00003-of-00003.gguf"), Wish("o/r"))


def test_the_quantisations_are_listed_smallest_first_and_the_default_marked():
    names = [*NAMES, "broken-Q5_0-00001-of-00002.gguf"]
    found = quantizations(listing(*names))
    assert [(one.name, one.is_default) for one in found] == [
        ("Q4_K_M", True),
        ("Q8_0", False),
        ("Q2_K_XL", False),
        ("BF16", False),
    ]
    assert found[-1].files == ("tiny-BF16-00001-of-00002.gguf", "tiny-BF16-00002-of-00002.gguf")
    assert found[-1].size == 15 + 16
    assert list(projectors(listing(*names))) == ["mmproj-tiny-F16.gguf", "mmproj-tiny-F32.gguf"]
