"""What was found meets what was configured; a model that cannot be run is listed with its reason."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.config import Config, PathsConfig
from router.errors import AmbiguousModel, ModelNotFound
from router.models.catalog import Catalog, CatalogEntry
from router.models.catalog.scan import is_name
from tests.models.catalog.conftest import gguf


def scan(config: Config) -> dict[str, CatalogEntry]:
    catalog = Catalog.scan(config)
    assert catalog.warnings == ()
    return dict(catalog.entries)


# --- sources ---


def test_models_come_from_folders_the_cache_and_presets(disk):
    disk.write("mine.gguf", content=gguf(general__architecture="llama", general__name="Mine 8B"))
    snapshot = disk.download("o/r", "r-Q4_0.gguf", "mmproj-F16.gguf")
    entries = scan(disk.with_models({"chat": {"model": str(disk.models / "mine.gguf")}}))
    assert list(entries) == ["chat", "mine", "o/r:Q4_0"]
    assert [entry.source for entry in entries.values()] == ["preset", "models_dir", "hf_cache"]
    assert [entry.removable for entry in entries.values()] == [False, False, True]
    assert entries["mine"] == CatalogEntry(
        id="mine",
        source="models_dir",
        preset=entries["mine"].preset,
        path=disk.models / "mine.gguf",
        files=(disk.models / "mine.gguf",),
        size_bytes=(disk.models / "mine.gguf").stat().st_size,
        architecture="llama",
        gguf_name="Mine 8B",
        stamps=entries["mine"].stamps,
    )
    assert entries["o/r:Q4_0"].mmproj == snapshot / "mmproj-F16.gguf"


def test_the_cache_can_be_left_out(disk):
    disk.download("o/r", "r-Q4_0.gguf")
    assert scan(replace(disk.config, paths=replace(disk.config.paths, hf_cache=False))) == {}


def test_the_default_folder_need_not_exist_but_a_named_one_must(disk, tmp_path):
    assert Catalog.scan(Config()).warnings == ()
    config = Config(paths=PathsConfig(models_dirs=(tmp_path / "gone",)))
    assert Catalog.scan(config).warnings == (f"{tmp_path}/gone: No such file or directory",)


def test_of_two_models_with_one_name_the_first_is_kept_with_a_warning(disk, tmp_path):
    disk.write("m.gguf")
    (tmp_path / "second").mkdir()
    (tmp_path / "second" / "m.gguf").write_bytes(gguf())
    catalog = Catalog.scan(Config(paths=PathsConfig(models_dirs=(disk.models, tmp_path / "second"))))
    assert catalog.entries["m"].path == disk.models / "m.gguf"
    assert catalog.warnings == (
        f"{tmp_path}/second/m.gguf: left out: {disk.models}/m.gguf has the name 'm' already",
    )


def test_a_hub_cache_in_a_folder_of_models_has_the_ids_of_a_cache(disk):
    snapshot = disk.download("o/r", "r-Q4_0.gguf", "sub/r-Q8_0.gguf")
    disk.download("o/other", "other-Q4_0.gguf")
    disk.write("hub/loose.gguf", "models--no--snapshots/a.gguf")
    for repo in ("models--o--r", "models--o--other"):
        (disk.cache / repo).rename(disk.models / "hub" / repo)
    disk.download("o/other", "other-Q4_0.gguf")
    snapshot = disk.models / "hub" / snapshot.relative_to(disk.cache)
    catalog = Catalog.scan(disk.with_models({"mine": {"hf_repo": "o/r:Q8_0", "ctx_size": 5}}))
    found = {name: (entry.source, entry.removable) for name, entry in catalog.entries.items()}
    assert found == {
        "mine": ("preset", False),
        "hub": ("models_dir", False),
        "models--no--snapshots": ("models_dir", False),
        "o/other:Q4_0": ("hf_cache", True),
        "o/r:Q4_0": ("models_dir", False),
        "o/r:sub-Q8_0": ("models_dir", False),
    }
    assert catalog.resolve("o/r:q4_0").path == snapshot / "r-Q4_0.gguf"
    assert (
        catalog.resolve("o/r:sub/r-Q8_0").path == catalog.resolve("mine").path == snapshot / "sub/r-Q8_0.gguf"
    )
    (warning,) = catalog.warnings
    assert f"left out: {disk.cache}" in warning and "has the name 'o/other:Q4_0' already" in warning


def test_a_hub_cache_in_a_folder_of_models_is_found_where_there_is_no_other(disk):
    disk.download("o/r", "r-Q4_0.gguf")
    disk.cache.rename(disk.models / "hub")
    assert list(scan(disk.config)) == ["o/r:Q4_0"]


@pytest.mark.parametrize("hf_cache", [True, False])
def test_a_folder_of_models_that_is_the_cache_itself_has_the_same_ids(disk, hf_cache):
    disk.download("o/r", "r-Q4_0.gguf")
    (disk.cache / "loose.gguf").write_bytes(gguf())
    for folder in (disk.cache, disk.cache.parent):
        paths = PathsConfig(models_dirs=(folder,), hf_cache=hf_cache)
        entries = scan(Config(paths=paths))
        assert entries["o/r:Q4_0"].removable == hf_cache
        assert len(entries) == (2 if folder == disk.cache or not hf_cache else 1)


# --- sections ---


def test_a_section_is_about_the_model_of_its_name(disk):
    disk.write("m.gguf")
    (entry,) = scan(disk.with_models({"m": {"ctx_size": 5, "tags": ["t"], "hidden": True}})).values()
    assert (entry.source, entry.preset.ctx_size, entry.tags, entry.hidden) == ("models_dir", 5, ("t",), True)


def test_a_section_may_use_llama_cpps_name_of_a_split_model(disk):
    disk.write("m-00001-of-00002.gguf", "m-00002-of-00002.gguf")
    (entry,) = scan(disk.with_models({"m-00001-of-00002": {"ctx_size": 5}})).values()
    assert (entry.id, entry.aliases, entry.preset.ctx_size) == ("m", ("m-00001-of-00002",), 5)


def test_a_section_may_spell_the_quantisation_differently(disk):
    disk.download("o/r", "r-UD-Q4_K_XL.gguf")
    (entry,) = scan(disk.with_models({"o/r:ud-q4_k_xl": {"ctx_size": 5}})).values()
    assert (entry.id, entry.aliases, entry.preset.ctx_size) == ("o/r:UD-Q4_K_XL", ("o/r:ud-q4_k_xl",), 5)
    assert entry.source == "hf_cache"
    assert entry.removable


def test_two_sections_about_one_quantisation_are_a_mistake_of_the_second(disk):
    disk.download("o/r", "r-Q4_0.gguf")
    entries = scan(disk.with_models({"o/r:Q4_0": {}, "o/r:q4_0": {}}))
    assert entries["o/r:Q4_0"].error is None
    assert entries["o/r:q4_0"].error is not None


def test_the_section_with_the_exact_name_goes_first_wherever_it_stands(disk):
    disk.download("o/r", "r-UD-Q4_K_XL.gguf")
    entries = scan(disk.with_models({"o/r:Q4_K_XL": {"ctx_size": 5}, "o/r:UD-Q4_K_XL": {"ctx_size": 6}}))
    assert (entries["o/r:UD-Q4_K_XL"].preset.ctx_size, entries["o/r:UD-Q4_K_XL"].error) == (6, None)
    error = "[o/r:UD-Q4_K_XL] has the settings of 'o/r:UD-Q4_K_XL' already"
    assert error in (entries["o/r:Q4_K_XL"].error or "")


@pytest.mark.parametrize(
    ("files", "section"),
    [
        (["r-UD-Q4_K_XL.gguf", "r-Q4_K_XL.gguf"], "o/r:Q4_K_XL"),
        (["r-UD-Q4_K_XL.gguf", "r-Q4_K_XL.gguf"], "o/r:UD-Q4_K_XL"),
        (["r-Compact.gguf", "r-I-Compact.gguf"], "o/r:I-Compact"),
        (["base-Q4_K_M.gguf", "instruct-Q4_K_M.gguf"], "o/r:instruct-Q4_K_M"),
        (["small/r-Q8_0.gguf", "large/r-Q8_0.gguf"], "o/r:large-Q8_0"),
    ],
)
def test_a_section_and_its_aliases_belong_to_the_file_of_its_name_alone(disk, files, section):
    disk.download("o/r", *files)
    entries = scan(disk.with_models({section: {"ctx_size": 5, "aliases": ["mine"]}}))
    having = [entry for entry in entries.values() if entry.preset.ctx_size == 5]
    assert [entry.id.casefold() for entry in having] == [section.casefold()] and "mine" in having[0].aliases
    assert len(entries) == 2
    assert all("mine" not in entry.aliases for entry in entries.values() if entry not in having)


@pytest.mark.parametrize("section", ["o/r:UD-Q4_K_XL", "o/r:I-Compact", "o/r:base-Q4_0"])
def test_a_section_of_a_file_that_is_not_there_belongs_to_no_other(disk, section):
    disk.download("o/r", "r-Q4_K_XL.gguf", "r-Compact.gguf", "r-Q4_0.gguf")
    entries = scan(disk.with_models({section: {"ctx_size": 5, "aliases": ["mine"]}}))
    assert "no cache has a model called" in (entries.pop(section).error or "")
    assert all(entry.preset.ctx_size != 5 and entry.aliases == () for entry in entries.values())


def test_a_section_that_could_be_about_two_files_is_about_neither(disk):
    disk.download("o/r", "base-Q4_K_M.gguf", "instruct-Q4_K_M.gguf")
    catalog = Catalog.scan(disk.with_models({"o/r:Q4_K_M": {"ctx_size": 5, "aliases": ["mine"]}}))
    assert list(catalog.entries) == ["o/r:base-Q4_K_M", "o/r:instruct-Q4_K_M"]
    (warning,) = catalog.warnings
    assert warning.startswith(
        "[o/r:Q4_K_M] is left out: 'o/r:Q4_K_M' could be several models: o/r:base-Q4_K_M, "
    )
    for name in ("o/r:Q4_K_M", "o/r:q4_k_m"):
        with pytest.raises(AmbiguousModel):
            catalog.resolve(name)
    with pytest.raises(ModelNotFound):
        catalog.resolve("mine")


def test_a_section_with_the_name_of_a_folder_is_about_its_only_model_or_about_none(disk):
    disk.write("one/deep/m.gguf", "two/a.gguf", "two/b.gguf")
    disk.write("one/lora.gguf", content=gguf(general__architecture="llama", general__type="adapter"))
    catalog = Catalog.scan(disk.with_models({"one": {"ctx_size": 5}, "two": {"ctx_size": 6}}))
    assert (catalog.resolve("one").id, catalog.resolve("one").preset.ctx_size) == ("one/deep", 5)
    assert "[two] is left out: 'two' could be several models: two/a, two/b; give the whole name of one" in (
        catalog.warnings
    )
    assert all(entry.preset.ctx_size != 6 for entry in catalog.entries.values())
    with pytest.raises(AmbiguousModel):
        catalog.resolve("two")


def test_what_is_no_model_makes_no_name_ambiguous(disk):
    snapshot = disk.download("o/r", "r.gguf", "r-lora.gguf", "r-vision.gguf")
    (snapshot / "r-lora.gguf").write_bytes(gguf(general__architecture="llama", general__type="adapter"))
    (snapshot / "r-vision.gguf").write_bytes(gguf(general__architecture="clip"))
    mine = Catalog.scan(disk.with_models({"mine": {"hf_repo": "o/r"}})).entries["mine"]
    assert (mine.path, mine.error) == (snapshot / "r.gguf", None)
    catalog = Catalog.scan(disk.with_models({"o/r": {"ctx_size": 5}}))
    assert (catalog.resolve("o/r").id, catalog.resolve("o/r").preset.ctx_size) == ("o/r:r", 5)
    (warning,) = catalog.warnings
    assert warning.startswith(
        f"not offered as a model: {snapshot}/r-lora.gguf is no model but a LoRA adapter"
    )


def test_a_section_with_a_file_of_its_own_keeps_its_name_beside_a_file_of_the_cache(disk):
    disk.write("mine.gguf")
    disk.download("o/r", "r-UD-Q4_K_XL.gguf")
    entries = scan(disk.with_models({"o/r:Q4_K_XL": {"model": str(disk.models / "mine.gguf")}}))
    assert entries["o/r:Q4_K_XL"].path == disk.models / "mine.gguf"
    assert entries["o/r:UD-Q4_K_XL"].source == "hf_cache"


def test_a_repository_and_quantisation_that_could_be_two_files_is_an_error_of_its_section(disk):
    disk.download("o/r", "base-Q4_K_M.gguf", "instruct-Q4_K_M.gguf")
    disk.write("n.gguf")
    catalog = Catalog.scan(
        disk.with_models({"chat": {"hf_repo": "o/r:Q4_K_M"}, "n": {"draft_hf_repo": "o/r:Q4_K_M"}})
    )
    for name in ("chat", "n"):
        assert "could be several models: o/r:base-Q4_K_M, o/r:instruct" in (catalog.entries[name].error or "")


def test_a_section_may_name_a_repository_of_the_cache(disk):
    snapshot = disk.download("o/r", "r-Q4_0.gguf", "r-Q8_0.gguf", "mmproj-F16.gguf")
    entries = scan(disk.with_models({
        "chat": {"hf_repo": "o/r:q8_0", "mmproj_auto": False},
        "file": {"hf_repo": "o/r", "hf_file": "r-Q4_0.gguf"},
    }))  # fmt: skip
    assert entries["chat"].path == snapshot / "r-Q8_0.gguf"
    assert entries["chat"].mmproj is None
    assert entries["chat"].source == "preset"
    assert entries["file"].path == snapshot / "r-Q4_0.gguf"
    assert entries["file"].mmproj == snapshot / "mmproj-F16.gguf"


def test_the_same_file_may_be_several_models(disk):
    disk.write("m.gguf")
    file = str(disk.models / "m.gguf")
    entries = scan(
        disk.with_models({"a": {"model": file, "ctx_size": 1}, "b": {"model": file, "ctx_size": 2}})
    )
    assert [(name, entry.preset.ctx_size) for name, entry in entries.items()] == [
        ("a", 1),
        ("b", 2),
        ("m", 8192),
    ]


def test_a_file_of_the_cache_that_a_preset_has_is_listed_once(disk):
    snapshot = disk.download("o/r", "r-Q4_0.gguf", "r-Q8_0.gguf")
    entries = scan(
        disk.with_models({"chat": {"hf_repo": "o/r:Q4_0"}, "o/r:Q8_0": {}, "b": {"hf_repo": "o/r:Q8_0"}})
    )
    assert entries["chat"].aliases == ("o/r:Q4_0",)
    assert list(entries) == ["chat", "o/r:Q8_0", "b"], "one with a section of its own stays"
    assert entries["chat"].path == snapshot / "r-Q4_0.gguf"


def test_a_file_of_the_cache_that_a_folder_links_to_is_listed_once(disk):
    snapshot = disk.download("o/r", "r-Q4_0.gguf")
    (disk.models / "nice-name.gguf").symlink_to(snapshot / "r-Q4_0.gguf")
    (entry,) = scan(disk.config).values()
    assert (entry.id, entry.aliases) == ("nice-name", ("o/r:Q4_0",))


@pytest.mark.parametrize("flag", [True, False])
def test_a_draft_of_the_cache_is_left_out_of_lists_where_that_is_wanted_and_can_still_be_used(disk, flag):
    disk.download("o/main", "m-Q4_0.gguf")
    disk.download("o/draft", "draft-Q4_0.gguf", "draft-Q8_0.gguf")
    entries = scan(
        disk.with_models(
            {"m": {"hf_repo": "o/main", "draft_hf_repo": "o/draft:Q4_0", "dedup_cache_models": flag}}
        )
    )
    assert {name: entry.hidden for name, entry in entries.items()} == {
        "m": False, "o/draft:Q4_0": flag, "o/draft:Q8_0": False,
    }  # fmt: skip
    assert entries["o/draft:Q4_0"].error is None


def test_a_draft_that_has_a_section_of_its_own_is_listed(disk):
    disk.download("o/draft", "draft-Q4_0.gguf")
    disk.download("o/main", "m-Q4_0.gguf")
    section = {"hf_repo": "o/main", "draft_hf_repo": "o/draft", "dedup_cache_models": True}
    entries = scan(disk.with_models({"m": section, "o/draft:Q4_0": {"ctx_size": 1}}))
    assert not entries["o/draft:Q4_0"].hidden


PRESET = """
[*]
top-k = 5
[small]
hf-repo = o/r:Q4_0
ctx-size = 77
[absent]
hf-repo = o/absent
[m]
hf-repo = o/r:Q4_0
[bad]
hf-repo = o/r:Q4_0
log-file = /tmp/x
"""


def test_a_preset_of_the_cache_is_served(disk):
    disk.write("m.gguf")
    snapshot = disk.download("o/r", "x-Q4_0.gguf")
    disk.download("o/presets", "preset.ini", "old.gguf")
    link = next((disk.cache / "models--o--presets" / "snapshots").glob("*/preset.ini"))
    link.resolve().write_text(PRESET)
    catalog = Catalog.scan(disk.config)
    small, absent, bad = (catalog.entries[name] for name in ("small", "absent", "bad"))
    assert (small.path, small.preset.ctx_size, small.error) == (snapshot / "x-Q4_0.gguf", 77, None)
    assert small.preset.args == ("--top-k", "5")
    assert absent.error is not None and "llama-router pull o/absent" in absent.error
    assert bad.error is not None and "log-file may not be set by a repository of the hub" in bad.error
    assert catalog.entries["m"].source == "models_dir", "a model of ours is not replaced"
    assert any("[m] is left out" in warning for warning in catalog.warnings)
    assert catalog.entries["m"].preset.args == ()


@pytest.mark.parametrize("branch", ["main", "other"])
def test_a_preset_of_the_cache_is_that_of_main_where_there_is_one(disk, branch):
    disk.download("o/presets", "preset.ini", commit="a" * 40, branch="main")
    disk.download("o/presets", "preset.ini", commit="b" * 40, branch="other")
    for number, commit in enumerate("ab"):
        link = disk.cache / "models--o--presets" / "snapshots" / (commit * 40) / "preset.ini"
        link.unlink()
        link.write_text(f"[p{number}]\nhf-repo = o/r\n")
    if branch == "other":
        (disk.cache / "models--o--presets" / "refs" / "main").unlink()
    assert list(scan(disk.config)) == ["p0" if branch == "main" else "p1"]


def test_companions_are_those_configured_else_those_found(disk, tmp_path):
    disk.write("m/m.gguf", "m/mmproj.gguf", "m/mtp-m.gguf", "n.gguf")
    draft = disk.download("o/draft", "d-Q4_0.gguf") / "d-Q4_0.gguf"
    (tmp_path / "own").write_bytes(gguf())
    own = str(tmp_path / "own")
    found = scan(disk.config)["m"]
    assert found.mmproj == found.preset.mmproj == disk.models / "m" / "mmproj.gguf"
    assert found.preset.draft_model == disk.models / "m" / "mtp-m.gguf"
    set_ = scan(disk.with_models({"m": {"mmproj": own, "draft_model": own, "lora": [own]}}))["m"]
    assert (set_.mmproj, set_.preset.draft_model, set_.preset.lora) == (tmp_path / "own",) * 2 + (
        (tmp_path / "own",),
    )
    assert scan(disk.with_models({"n": {"draft_hf_repo": "o/draft:Q4_0"}}))["n"].preset.draft_model == draft


def test_a_model_that_says_it_is_for_embeddings_is_used_for_them(disk):
    disk.write("e.gguf", content=gguf(general__architecture="qwen3", qwen3__pooling_type=3))
    disk.write("r.gguf", content=gguf(general__architecture="bert", bert__pooling_type=4))
    entries = scan(disk.config)
    assert (entries["e"].preset.embedding, entries["e"].preset.reranking) == (True, False)
    assert (entries["r"].preset.embedding, entries["r"].preset.reranking) == (False, True)


def test_a_family_is_found_by_what_the_file_says(disk):
    disk.write("mine.gguf", content=gguf(general__name="Gpt-Oss-20B", general__architecture="gpt-oss"))
    assert "--top-k" in scan(disk.config)["mine"].preset.args


def test_a_file_whose_name_a_section_gives_to_another_file_keeps_its_longer_name(disk, tmp_path):
    disk.write("x/a.gguf", "y.gguf")
    (tmp_path / "other.gguf").write_bytes(gguf())
    other = {"model": str(tmp_path / "other.gguf")}
    catalog = Catalog.scan(disk.with_models({"x": other, "y": other}))
    assert {name: entry.path for name, entry in catalog.entries.items()} == {
        "x": tmp_path / "other.gguf",
        "y": tmp_path / "other.gguf",
        "x/a": disk.models / "x/a.gguf",
    }
    (warning,) = catalog.warnings
    assert warning.startswith(f"{disk.models}/y.gguf: left out: the settings of 'y' name another file")


# --- what is no model ---


def test_what_the_header_rules_out_is_an_entry_with_its_reason_and_no_model(disk):
    disk.write("m/m.gguf", content=gguf(general__architecture="llama"))
    disk.write("m/style.gguf", content=gguf(general__architecture="llama", general__type="adapter"))
    disk.write("flux1.gguf", content=gguf(general__architecture="flux"))
    snapshot = disk.download("o/r", "r-Q4_0.gguf")
    (snapshot / "r-Q4_0.gguf").resolve().write_bytes(gguf(general__architecture="clip"))
    catalog = Catalog.scan(disk.config)
    assert {name for name, entry in catalog.entries.items() if entry.is_model} == {"m"}
    for name, words in (("m/style", "LoRA"), ("flux1", "image"), ("o/r:Q4_0", "projector")):
        entry = catalog.entries[name]
        assert words in (entry.error or "") and f"not offered as a model: {entry.error}" in catalog.warnings
    assert catalog.gguf_files == 4


def test_what_goes_with_a_model_is_no_model_and_no_warning(disk):
    disk.write("m/m.gguf", content=gguf(general__architecture="llama"))
    disk.write("m/m-vision.gguf", content=gguf(general__architecture="clip"))
    disk.write("style.gguf", content=gguf(general__architecture="llama", general__type="adapter"))
    entries = scan(disk.with_models({"m": {"lora": [str(disk.models / "style.gguf")]}}))
    assert entries["m"].mmproj == disk.models / "m/m-vision.gguf"
    assert [name for name, entry in entries.items() if entry.is_model] == ["m"]


def test_an_architecture_that_is_not_known_is_tried_where_the_file_has_a_section(disk):
    disk.write("new.gguf", content=gguf(general__architecture="made-up-in-2031"))
    assert not Catalog.scan(disk.config).entries["new"].is_model
    assert scan(disk.with_models({"new": {}}))["new"].error is None


def test_a_section_about_a_file_that_is_no_model_is_shown_with_the_reason(disk):
    disk.write("flux1.gguf", content=gguf(general__architecture="flux"))
    entry = scan(disk.with_models({"flux1": {}}))["flux1"]
    assert entry.is_model and "image" in (entry.error or "")


def test_a_configured_companion_that_does_not_fit_is_told_and_a_draft_is_left_out(disk):
    model = gguf(general__architecture="llama", llama__embedding_length=64, tokenizer__ggml__model="gpt2")
    disk.write("a.gguf", "b.gguf", "c.gguf", content=model)
    disk.write("p.gguf", content=gguf(general__architecture="clip", clip__vision__projection_dim=128))
    disk.write("l.gguf", content=gguf(general__architecture="qwen3", general__type="adapter"))
    disk.write("d.gguf", content=gguf(general__architecture="llama", tokenizer__ggml__model="llama"))
    at = {name: str(disk.models / f"{name}.gguf") for name in "pld"}
    sections = {"a": {"mmproj": at["p"]}, "b": {"lora": [at["l"]]}, "c": {"draft_model": at["d"]}}
    catalog = Catalog.scan(disk.with_models(sections))
    assert (
        catalog.entries["a"].error
        == f"its projector {at['p']} is made for embeddings of 128 dimensions, not 64"
    )
    assert (
        catalog.entries["b"].error == f"its adapter {at['l']} is made for the architecture qwen3, not llama"
    )
    assert (catalog.entries["c"].error, catalog.entries["c"].preset.draft_model) == (None, None)
    assert f"c: its draft {at['d']} is left out: it has the tokenizer llama, not gpt2" in catalog.warnings


def test_of_two_models_with_one_name_the_second_keeps_its_longer_one(disk, tmp_path):
    disk.write("x/a.gguf")
    (tmp_path / "second" / "x").mkdir(parents=True)
    (tmp_path / "second" / "x" / "m.gguf").write_bytes(gguf())
    entries = scan(Config(paths=PathsConfig(models_dirs=(disk.models, tmp_path / "second"))))
    assert {name: entry.aliases for name, entry in entries.items()} == {"x": ("x/a",), "x/m": ()}


def test_a_folder_and_a_cache_that_are_searched_by_themselves_are_not_searched_in_another(
    disk, tmp_path, monkeypatch
):
    monkeypatch.setenv("LLAMA_CACHE", str(disk.models / "cache"))
    disk.write("own/m.gguf", "cache/models--o--r/snapshots/x/m.gguf")
    folders = (disk.models, disk.models / "own")
    assert list(scan(Config(paths=PathsConfig(models_dirs=folders)))) == ["m"]


# --- what cannot be run ---


@pytest.mark.parametrize(
    ("settings", "error"),
    [
        ({"model": "/nowhere/x.gguf"}, "/nowhere/x.gguf is gone"),
        ({"model": "{models}/text.gguf"}, "text.gguf is not a GGUF file"),
        ({"model": "{models}"}, "is not a regular file"),
        (
            {"model": "{models}/s-00002-of-00002.gguf"},
            "is part 2 of 2; give the first part, s-00001-of-00002.gguf",
        ),
        ({"model": "{models}/s-00001-of-00002.gguf"}, "1 of its 2 parts are missing: s-00002-of-00002.gguf"),
        ({"model": "{models}/ok.gguf", "mmproj": "/no/p"}, "its projector /no/p is gone"),
        ({"model": "{models}/ok.gguf", "draft_model": "/no/d"}, "its draft /no/d is gone"),
        ({"model": "{models}/ok.gguf", "lora": ["/no/l"]}, "its adapter /no/l is gone"),
        (
            {"model": "{models}/ok.gguf", "draft_hf_repo": "no/body"},
            "its draft no/body has not been downloaded",
        ),
        ({"hf_repo": "no/body:Q4_0"}, "no/body:Q4_0 has not been downloaded: llama-router pull no/body:Q4_0"),
        ({"hf_repo": "no/body", "hf_file": "x.gguf"}, "no/body x.gguf has not been downloaded"),
        ({}, "no folder and no cache has a model called 'x'; set model or hf_repo"),
        ({"model": "{models}/ok.gguf", "ctx_size": -1}, "ctx_size = -1: expected int >= 0"),
        ({"ctx_size": -1}, "ctx_size = -1: expected int >= 0"),
    ],
)
def test_a_model_that_cannot_be_run_is_listed_with_the_reason(disk, settings, error):
    disk.write("ok.gguf", "s-00001-of-00002.gguf")
    disk.write("text.gguf", content=b"once upon a time, and so on")
    filled: dict[str, Any] = {
        key: value.format(models=disk.models) if isinstance(value, str) else value
        for key, value in settings.items()
    }
    entries = Catalog.scan(disk.with_models({"x": filled})).entries
    assert error in (entries["x"].error or "")
    assert entries["ok"].error is None


def test_a_section_like_no_model_is_told_the_nearest(disk):
    disk.write("qwen3-8b.gguf")
    entries = scan(disk.with_models({"qwen3-8": {}}))
    assert "did you mean 'qwen3-8b'?" in (entries["qwen3-8"].error or "")


def test_an_unfinished_download_is_listed_with_the_reason(disk):
    disk.download("o/r", "r-Q4_0.gguf")
    next((disk.cache / "models--o--r" / "blobs").iterdir()).unlink()
    (entry,) = scan(disk.config).values()
    assert entry.id == "o/r:Q4_0"
    assert (entry.error or "").endswith("r-Q4_0.gguf is gone")


# --- aliases and names ---


def test_an_alias_that_is_taken_is_left_out_whoever_comes_later(disk):
    disk.write("a.gguf", "b.gguf", "c.gguf")
    catalog = Catalog.scan(disk.with_models({
        "a": {"aliases": ["fast", "b", "a"]},
        "b": {"aliases": ["fast", "slow"]},
        "c": {"aliases": ["../up", "slow2"]},
    }))  # fmt: skip
    assert {name: entry.aliases for name, entry in catalog.entries.items()} == {
        "a": ("fast",), "b": ("slow",), "c": ("slow2",),
    }  # fmt: skip
    assert catalog.warnings == (
        "a: alias 'b' is left out: 'b' has that name",
        "b: alias 'fast' is left out: 'a' has that name",
        "c: alias '../up' is left out: it cannot be a name",
    )


@pytest.mark.parametrize(
    "name", ["a", "Qwen3 8B", "org/repo:Q4_K_M", "été 模型 🦙", "a..b", "...", "-x", "a/b/c", "x" * 256]
)
def test_any_printable_text_is_a_name(name):
    assert is_name(name)


@pytest.mark.parametrize(
    "name",
    [
        "",
        " a",
        "a ",
        "..",
        ".",
        "../x",
        "a/../b",
        "/etc",
        "a/",
        "a//b",
        "a\nb",
        "a\0b",
        "\x7f",
        "\udcff",
        "x" * 257,
    ],
)
def test_what_leads_out_of_a_folder_or_cannot_be_printed_is_no_name(name):
    assert not is_name(name)


def test_a_section_that_cannot_be_a_name_is_left_out_with_a_warning(disk):
    catalog = Catalog.scan(disk.with_models({"../x": {}}))
    assert dict(catalog.entries) == {}
    assert catalog.warnings == ("'../x': left out: it cannot be the name of a model",)


def test_a_file_whose_name_is_no_text_is_left_out_with_a_warning(disk):
    (disk.models / "bad\udcff.gguf").write_bytes(gguf())
    disk.write("good.gguf", "two\nlines.gguf")
    catalog = Catalog.scan(disk.config)
    assert list(catalog.entries) == ["good"]
    assert len(catalog.warnings) == 2
    "".join(catalog.warnings).encode()


def test_hundreds_of_models_are_listed(disk):
    disk.write(*(f"m{n:03}.gguf" for n in range(300)), *(f"folder{n:03}/m.gguf" for n in range(100)))
    assert len(scan(disk.config)) == 400


@given(st.text())
def test_a_name_never_leads_out_of_a_folder(name):
    if is_name(name):
        assert not {"", ".", ".."} & set(name.split("/"))
        name.encode()
