"""Every file of a hub repository has a label of its own, which no other file ever gets."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.models.catalog.hub_names import choose, labels, meant_by
from router.models.catalog.names import GgufName, parse_name


def names(*paths: str) -> list[GgufName]:
    return [name for path in paths if (name := parse_name(path)) is not None]


def labelled(repo: str, *paths: str) -> dict[str, str]:
    """Path -> label."""
    return {name.path: label for label, name in labels(repo, names(*paths)).items()}


def meant(repo: str, asked: str, *paths: str) -> list[str]:
    return meant_by(asked, {label: name.prefix for label, name in labels(repo, names(*paths)).items()})


@pytest.mark.parametrize(
    ("repo", "path", "label"),
    [
        ("org/Flash-GGUF", "Flash-Q4_K_M.gguf", "Q4_K_M"),
        ("org/Flash-GGUF", "flash.q4_k_m.gguf", "Q4_K_M"),
        ("org/Flash-GGUF", "Flash_q4_k_m.gguf", "Q4_K_M"),
        ("org/Flash-GGUF", "Flash-Compact.gguf", "COMPACT"),
        ("org/Flash-GGUF", "Flash-I-Compact.gguf", "I-COMPACT"),
        ("org/Flash-GGUF", "Flash-UD-Q4_K_XL.gguf", "UD-Q4_K_XL"),
        ("org/Flash-GGUF", "Flash-Q4_K_M-imat.gguf", "Q4_K_M-IMAT"),
        ("org/Flash-GGUF", "base-Q4_K_M.gguf", "base-Q4_K_M"),
        ("org/Flash-GGUF", "Flash.gguf", "Flash"),
        ("org/Flash-GGUF", "model.gguf", "model"),
        ("org/Flash-GGUF", "Q4_0/Flash-Q4_0-00001-of-00002.gguf", "Q4_0"),
        ("org/Flash-GGUF", "UD-Q2_K_XL/Flash-UD-Q2_K_XL-00001-of-00002.gguf", "UD-Q2_K_XL"),
        ("org/Flash-GGUF", "Flash-Q8_0/Flash-Q8_0-00001-of-00002.gguf", "Q8_0"),
        ("org/Flash-GGUF", "small/Flash-Q8_0.gguf", "small-Q8_0"),
        ("org/Flash-GGUF", "Q8_0/Flash-UD-Q4_K_XL.gguf", "Q8_0-UD-Q4_K_XL"),
        ("mradermacher/X-i1-GGUF", "X.i1-Q4_K_M.gguf", "Q4_K_M"),
        ("Qwen/Qwen2.5-7B-Instruct-GGUF", "qwen2.5-7b-instruct-q4_k_m.gguf", "Q4_K_M"),
        ("Qwen/Qwen2-0.5B-Instruct-GGUF", "qwen2-0_5b-instruct-q4_k_m.gguf", "Q4_K_M"),
        ("me/Flash-Q4_K_M-GGUF", "flash-q4_k_m.gguf", "Q4_K_M"),
        ("o/r", "small/x-Q8_0.gguf", "small-x-Q8_0"),
        ("ggml-org/models", "tinyllamas/stories15M-q4_0.gguf", "tinyllamas-stories15M-Q4_0"),
    ],
)
def test_a_label_is_what_a_path_says_beside_the_name_of_the_repository(repo, path, label):
    assert labelled(repo, path) == {path: label}


SIBLINGS = [
    ("org/Flash-GGUF", "Flash-Compact.gguf", "Flash-I-Compact.gguf"),
    ("org/Flash-GGUF", "Flash-Q4_K_XL.gguf", "Flash-UD-Q4_K_XL.gguf"),
    ("org/Flash-GGUF", "Flash-Q2_K_XL.gguf", "Flash-UD-Q2_K_XL-00001-of-00002.gguf"),
    ("org/Flash-GGUF", "base-Q4_K_M.gguf", "instruct-Q4_K_M.gguf"),
    ("org/Flash-GGUF", "Flash-Q4_K_M.gguf", "base-Q4_K_M.gguf"),
    ("org/x-GGUF", "large/x-Q8_0.gguf", "small/x-Q8_0.gguf"),
    ("org/x-GGUF", "x-Q8_0.gguf", "small/x-Q8_0.gguf"),
    ("org/x-GGUF", "x-7B-Q8_0.gguf", "x-8B-Q8_0.gguf"),
    ("org/x-GGUF", "x.gguf", "x-Q8_0.gguf"),
    ("org/Llama-3.1-8B-Instruct-GGUF", "Llama-3.1-8B-Q4_K_M.gguf", "Llama-3.1-8B-Instruct-Q4_K_M.gguf"),
    ("org/x-GGUF", "x-v1.Q4_0.gguf", "x-v2.Q4_0.gguf"),
    ("org/x-GGUF", "x-i1-Q4_0.gguf", "x-Q4_0.gguf"),
    ("org/x-GGUF", "x-Q4_0.gguf", "x-Q4_0-imat.gguf"),
    ("o/r", "Q4_0/a-Q4_0-00001-of-00002.gguf", "Q4_0/b-Q4_0-00001-of-00002.gguf"),
]


@pytest.mark.parametrize(("repo", "one", "other"), SIBLINGS)
def test_a_label_stays_when_a_neighbour_arrives_or_leaves(repo, one, other):
    both = labelled(repo, one, other)
    assert both == labelled(repo, other, one) == {**labelled(repo, one), **labelled(repo, other)}
    assert len(set(both.values())) == 2


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("x-Q4_0.gguf", "Q4_0/x-Q4_0-00001-of-00002.gguf"),
        ("x-Q4_0.gguf", "x-q4_0.gguf"),
        ("x-Q4_0.gguf", "x.Q4_0.gguf"),
        ("x-Q4_0.gguf", "x-Q4_0-00001-of-00002.gguf"),
        ("x-Q4_0.gguf", "Q4_0.gguf"),
        ("x-Q4_0-00001-of-00002.gguf", "x-Q4_0-00001-of-00003.gguf"),
        ("small/x-Q4_0.gguf", "small-x-Q4_0.gguf"),
        ("a/x-Q4_0.gguf", "a/x.Q4_0.gguf"),
    ],
)
def test_what_two_paths_could_be_called_is_the_label_of_neither(one, other):
    both = labelled("org/x-GGUF", one, other)
    alone = {*labelled("org/x-GGUF", one).values(), *labelled("org/x-GGUF", other).values()}
    assert len(set(both.values())) == 2
    if len(alone) == 1:
        assert not alone & set(both.values()), "it would mean another file than before"


PATHS = st.lists(
    st.sampled_from(["x", "Q4_0", "UD-Q4_0", "base", "small/", "Q4_0/", "x-", "-", ".", "I", "q4_0"]),
    min_size=1,
    max_size=5,
).map(lambda parts: "".join(parts).strip("/") + ".gguf")


@given(st.lists(PATHS, unique=True, max_size=8))
def test_no_two_files_share_a_label_whatever_they_are_called(paths):
    models = [name for name in names(*paths) if name.is_model and name.index == 1]
    assert len(labels("org/x-GGUF", models)) == len(models)


@given(PATHS, PATHS)
def test_no_label_ever_changes_to_another_file(one, other):
    before, after = (labels("org/x-GGUF", names(*paths)) for paths in ([one], [one, other]))
    for label, name in before.items():
        assert after.get(label, name).path == one or one == other


@pytest.mark.parametrize(("repo", "one", "other"), SIBLINGS)
def test_each_label_means_its_own_file_in_any_case(repo, one, other):
    for label in labelled(repo, one, other).values():
        assert meant(repo, label, one, other) == [label]
        assert meant(repo, label.lower(), one, other) == [label]


@pytest.mark.parametrize(
    ("asked", "paths", "found"),
    [
        ("Compact", ["Flash-Compact.gguf", "Flash-I-Compact.gguf"], ["COMPACT"]),
        ("I-Compact", ["Flash-Compact.gguf", "Flash-I-Compact.gguf"], ["I-COMPACT"]),
        ("I-Compact", ["Flash-Compact.gguf"], []),
        ("UD-Q4_K_XL", ["Flash-Q4_K_XL.gguf"], []),
        ("Q4_K_XL", ["Flash-Q4_K_XL.gguf", "Flash-UD-Q4_K_XL.gguf"], ["Q4_K_XL"]),
        ("q4_k_xl", ["Flash-UD-Q4_K_XL.gguf"], ["UD-Q4_K_XL"]),
        ("Q4_K_M", ["base-Q4_K_M.gguf", "instruct-Q4_K_M.gguf"], ["base-Q4_K_M", "instruct-Q4_K_M"]),
        ("Q8_0", ["small/Flash-Q8_0.gguf", "large/Flash-Q8_0.gguf"], ["small-Q8_0", "large-Q8_0"]),
        ("Flash-Q8_0", ["small/Flash-Q8_0.gguf"], ["small-Q8_0"]),
        ("small/Flash-Q8_0", ["small/Flash-Q8_0.gguf", "Flash-Q8_0.gguf"], ["small-Q8_0"]),
        ("Flash-Q8_0", ["Flash-Q8_0.gguf", "Flash-UD-Q8_0.gguf"], ["Q8_0"]),
        ("K_M", ["Flash-Q4_K_M.gguf"], []),
        ("0", ["Flash-Q8_0.gguf"], []),
        ("Q.*", ["Flash-Q8_0.gguf"], []),
        ("", ["Flash-Q8_0.gguf"], []),
        ("Q4_0", ["Flash-IQ4_0.gguf"], []),
        ("f16", ["Flash-BF16.gguf"], []),
    ],
)
def test_the_exact_label_goes_before_a_shortened_one_and_none_is_shortened_for_a_longer(asked, paths, found):
    assert meant("org/Flash-GGUF", asked, *paths) == found


def test_labels_that_differ_in_case_alone_are_ambiguous_in_any_other_case():
    paths = ["base-Q4_0.gguf", "Base-Q4_0.gguf"]
    assert meant("o/r", "base-Q4_0", *paths) == ["base-Q4_0"]
    assert meant("o/r", "BASE-q4_0", *paths) == ["base-Q4_0", "Base-Q4_0"]


def test_the_whole_name_of_a_file_goes_before_that_of_another_in_other_case():
    paths = ["X-Q4_0.gguf", "X-Q4_0-00001-of-00002.gguf", "x-q4_0.gguf"]
    assert list(labels("org/X-GGUF", names(*paths))) == [*paths[:2], "x-Q4_0"]
    assert meant("org/X-GGUF", "X-Q4_0", *paths) == paths[:2]
    assert meant("org/X-GGUF", "x-q4_0", *paths) == meant("org/X-GGUF", "x-Q4_0", *paths) == ["x-Q4_0"]


@pytest.mark.parametrize(
    ("tag", "chosen"),
    [
        ("", ["Q4_K_M"]),
        ("q8_0", ["Q8_0"]),
        ("F16", ["F16"]),
        ("Q2_K", []),
        ("Q.*", []),
    ],
)
def test_a_repository_and_a_quantisation_name_a_file(tag, chosen):
    files = names("m-F16-00001-of-00002.gguf", "m-F16-00002-of-00002.gguf", "m-Q4_K_M.gguf", "m-Q8_0.gguf",
                  "mmproj-Q2_K.gguf")  # fmt: skip
    assert choose(labels("o/m-GGUF", files), tag) == chosen


def test_a_draft_is_chosen_by_its_own_name_and_where_there_is_nothing_else():
    drafts = ["Zeta-DFlash-Q4_K_M.gguf", "Zeta-DFlash-Q8_0.gguf"]
    assert choose(labels("o/Zeta-GGUF", names(*drafts))) == ["DFlash-Q4_K_M"]
    assert choose(labels("o/Zeta-GGUF", names(*drafts, "Zeta-Q8_0.gguf"))) == ["Q8_0"]
    beside = labels("o/r", names("base-Q8_0.gguf", "base-dflash-Q8_0.gguf"))
    assert choose(beside) == choose(beside, "Q8_0") == ["base-Q8_0"]
    assert choose(beside, "dflash-Q8_0") == ["base-dflash-Q8_0"]


def test_without_the_usual_quantisations_nothing_is_chosen():
    assert choose(labels("o/m-GGUF", names("mmproj-F16.gguf", "m-Q2_K.gguf", "m-Q3_K.gguf"))) == []
    assert choose(labels("o/m-GGUF", names("mmproj-F16.gguf"))) == []
