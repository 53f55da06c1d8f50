"""Which files are fetched: llama.cpp's choice, with all parts and the projector."""

from __future__ import annotations

import pytest

from router.downloads import DownloadSpec
from router.downloads.choice import choose, projectors, quantizations
from router.downloads.errors import HubMisbehaves, NothingToFetch
from router.downloads.job import Listing, RemoteFile
from router.errors import AmbiguousModel

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
    return Listing("o/tiny-GGUF", "a" * 40, tuple(RemoteFile(name, 10 + at) for at, name in enumerate(names)))


def chosen(wish: DownloadSpec, *names: str) -> tuple[list[str], tuple[str, ...]]:
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
    assert chosen(DownloadSpec("o/tiny-GGUF"), *names)[0] == [first]


def test_all_parts_come_and_the_projector_that_is_nearest():
    parts = ["tiny-BF16-00001-of-00002.gguf", "tiny-BF16-00002-of-00002.gguf"]
    assert chosen(DownloadSpec("o/tiny-GGUF", quantization="bf16")) == (
        ["mmproj-tiny-F16.gguf", *parts],
        ("o/tiny-GGUF:BF16",),
    )
    assert chosen(DownloadSpec("o/tiny-GGUF", include=(parts[1],))) == (
        ["mmproj-tiny-F16.gguf", *parts],
        ("o/tiny-GGUF:BF16",),
    )


def test_a_projector_can_be_left_out():
    assert chosen(DownloadSpec("o/tiny-GGUF", exclude=("mmproj*",))) == (
        ["tiny-Q4_K_M.gguf"],
        ("o/tiny-GGUF:Q4_K_M",),
    )


def test_what_is_excluded_is_not_chosen():
    assert chosen(DownloadSpec("o/tiny-GGUF", exclude=("*Q4_K_M*", "mmproj*")))[1] == ("o/tiny-GGUF:Q8_0",)


def test_patterns_choose_several_models_and_other_files():
    files, models = chosen(
        DownloadSpec("o/tiny-GGUF", include=("*Q8_0*", "*Q2_K*", "*.md"), exclude=("mmproj*",))
    )
    assert files == ["README.md", "tiny-Q8_0.gguf", "tiny-UD-Q2_K_XL.gguf"]
    assert models == ("o/tiny-GGUF:Q8_0", "o/tiny-GGUF:UD-Q2_K_XL")


def test_a_quantisation_is_chosen_among_what_the_patterns_leave():
    names = ("old/a-Q4_0.gguf", "new/a-Q4_0.gguf")
    assert chosen(DownloadSpec("o/tiny-GGUF", quantization="Q4_0", include=("old/*",)), *names)[0] == [
        "old/a-Q4_0.gguf"
    ]


SIBLINGS = (
    "tiny-Compact.gguf", "tiny-I-Compact.gguf", "tiny-Q4_K_XL.gguf", "tiny-UD-Q4_K_XL.gguf",
    "base-Q4_K_M.gguf", "instruct-Q4_K_M.gguf", "small/tiny-Q8_0.gguf", "large/tiny-Q8_0.gguf",
    "UD-Q2_K_XL/tiny-UD-Q2_K_XL-00001-of-00002.gguf", "UD-Q2_K_XL/tiny-UD-Q2_K_XL-00002-of-00002.gguf",
)  # fmt: skip


@pytest.mark.parametrize(
    ("quantization", "path"),
    [
        ("I-Compact", "tiny-I-Compact.gguf"),
        ("compact", "tiny-Compact.gguf"),
        ("Q4_K_XL", "tiny-Q4_K_XL.gguf"),
        ("ud-q4_k_xl", "tiny-UD-Q4_K_XL.gguf"),
        ("base-Q4_K_M", "base-Q4_K_M.gguf"),
        ("large-Q8_0", "large/tiny-Q8_0.gguf"),
        ("Q2_K_XL", "UD-Q2_K_XL/tiny-UD-Q2_K_XL-00001-of-00002.gguf"),
    ],
)
def test_the_file_of_exactly_that_name_is_fetched(quantization, path):
    files, models = chosen(DownloadSpec("o/tiny-GGUF", quantization=quantization), *SIBLINGS)
    assert files[0] == path and len(models) == 1
    assert (
        chosen(DownloadSpec("o/tiny-GGUF", quantization=models[0].partition(":")[2]), *SIBLINGS)[0] == files
    )


@pytest.mark.parametrize("quantization", ["Q4_K_M", "q8_0", ""])
def test_a_quantisation_of_several_files_is_refused_with_their_names(quantization):
    with pytest.raises(AmbiguousModel, match="could be several models: o/tiny-GGUF:"):
        choose(listing(*SIBLINGS), DownloadSpec("o/tiny-GGUF", quantization=quantization))


def test_every_file_is_listed_with_a_name_of_its_own():
    found = quantizations(listing(*SIBLINGS, "plain.gguf"))
    assert len({one.model for one in found}) == len(found) == 10
    assert not any(one.is_default for one in found)


def test_the_presets_of_a_repository_come_with_its_model_or_alone():
    assert chosen(DownloadSpec("o/r"), "README.md", "preset.ini") == (["preset.ini"], ())
    assert chosen(DownloadSpec("o/r"), "a-Q8_0.gguf", "preset.ini")[0] == ["a-Q8_0.gguf", "preset.ini"]
    assert chosen(DownloadSpec("o/r", quantization="Q8_0"), "a-Q8_0.gguf", "preset.ini")[0] == ["a-Q8_0.gguf"]
    with pytest.raises(NothingToFetch):
        chosen(DownloadSpec("o/r", exclude=("*.ini",)), "README.md", "preset.ini")
    with pytest.raises(NothingToFetch):
        chosen(DownloadSpec("o/r"), "README.md", "inner/preset.ini")


def test_what_is_not_there_is_told_with_what_is():
    with pytest.raises(NothingToFetch, match="no quantisation Q3_K; it has Q4_K_M, Q8_0, UD-Q2_K_XL, BF16"):
        choose(listing(*NAMES), DownloadSpec("o/tiny-GGUF", quantization="Q3_K"))
    with pytest.raises(NothingToFetch, match="no file that the patterns match"):
        choose(listing(*NAMES), DownloadSpec("o/tiny-GGUF", include=("*.bin",)))
    with pytest.raises(NothingToFetch, match="has no GGUF model"):
        choose(listing("model.safetensors"), DownloadSpec("o/tiny-GGUF"))


def test_a_model_of_which_parts_are_missing_is_not_begun():
    with pytest.raises(HubMisbehaves, match="lacks parts of its own model: x-Q4_0-00002-of-00003.gguf"):
        choose(
            listing("x-Q4_0-00001-of-00003.gguf", "x-Q4_0-00003-of-00003.gguf"), DownloadSpec("o/tiny-GGUF")
        )


def test_the_quantisations_are_listed_smallest_first_and_the_default_marked():
    names = [*NAMES, "broken-Q5_0-00001-of-00002.gguf"]
    found = quantizations(listing(*names))
    assert [(one.name, one.is_default) for one in found] == [
        ("Q4_K_M", True),
        ("Q8_0", False),
        ("UD-Q2_K_XL", False),
        ("BF16", False),
    ]
    assert found[-1].files == ("tiny-BF16-00001-of-00002.gguf", "tiny-BF16-00002-of-00002.gguf")
    assert found[-1].size == 15 + 16
    assert list(projectors(listing(*names))) == ["mmproj-tiny-F16.gguf", "mmproj-tiny-F32.gguf"]
