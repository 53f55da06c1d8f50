"""A model is found by any of its names, and what is not found is told what there is."""

from __future__ import annotations

from dataclasses import replace

import pytest

from router.config import Config, PathsConfig, ServerConfig
from router.errors import AmbiguousModel, ConfigError, InvalidRequest, ModelNotFound
from router.models.catalog import Catalog, CatalogEntry
from router.models.catalog.catalog import MAX_NAMES_SHOWN
from router.presets import ModelPreset, load_presets
from tests.models.catalog.conftest import gguf


def catalog_of(*names: str, hidden: str = "", aliases: tuple[str, ...] = ()) -> Catalog:
    entries = [
        CatalogEntry(
            id=name,
            source="preset",
            preset=ModelPreset(name=name, hidden=name == hidden),
            aliases=aliases if name == names[0] else (),
        )
        for name in names
    ]
    return Catalog({entry.id: entry for entry in entries})


def refusal(catalog: Catalog, name: str) -> str:
    with pytest.raises(ModelNotFound) as refused:
        catalog.resolve(name)
    return refused.value.message


@pytest.mark.parametrize("name", ["o/r:Q4_K_M", "o/r:q4_k_m", "chat", "other"])
def test_a_model_is_found_by_id_alias_and_spelling_of_the_quantisation(name):
    catalog = catalog_of("o/r:Q4_K_M", "b", aliases=("chat", "other"))
    assert catalog.resolve(name).id == "o/r:Q4_K_M"


def test_an_exact_name_goes_before_any_shortened_one_and_an_ambiguous_one_is_refused(disk):
    disk.download("o/r", "r-Q4_K_XL.gguf", "r-UD-Q4_K_XL.gguf", "base-Q8_0.gguf", "instruct-Q8_0.gguf")
    catalog = Catalog.scan(disk.config)
    assert catalog.id_of("o/r:Q4_K_XL") == catalog.id_of("o/r:q4_k_xl") == "o/r:Q4_K_XL"
    assert catalog.id_of("o/r:ud-q4_k_xl") == "o/r:UD-Q4_K_XL"
    with pytest.raises(AmbiguousModel) as refused:
        catalog.resolve("o/r:q8_0")
    assert refused.value.details == {"candidates": ["o/r:base-Q8_0", "o/r:instruct-Q8_0"]}
    assert catalog.literal("o/r:q4_k_xl") is None


def test_a_file_that_is_no_model_makes_no_name_ambiguous(disk):
    snapshot = disk.download("o/r", "base-Q8_0.gguf", "eyes-Q8_0.gguf")
    (snapshot / "eyes-Q8_0.gguf").resolve().write_bytes(gguf(general__architecture="clip"))
    catalog = Catalog.scan(disk.config)
    assert catalog.id_of("o/r:Q8_0") == "o/r:base-Q8_0"
    assert catalog.resolve("o/r:eyes-Q8_0").error
    assert catalog.default("").id == "o/r:base-Q8_0"


def test_hidden_models_are_not_given_away_by_a_name_that_they_could_have(disk):
    disk.download("o/r", "base-Q8_0.gguf", "instruct-Q8_0.gguf")
    models = {"o/r:base-Q8_0": {"hidden": True}}
    with pytest.raises(AmbiguousModel) as refused:
        Catalog.scan(disk.with_models(models)).resolve("o/r:Q8_0")
    assert "base" not in refused.value.message
    models["o/r:instruct-Q8_0"] = {"hidden": True}
    assert "base" not in refusal(Catalog.scan(disk.with_models(models)), "o/r:Q8_0")


def test_an_alias_of_a_file_of_the_cache_counts_as_its_name(disk):
    disk.download("o/r", "r-UD-Q4_K_XL.gguf", "r-Q4_0.gguf")
    catalog = Catalog.scan(disk.with_models({"chat": {"hf_repo": "o/r:UD-Q4_K_XL"}}))
    assert {catalog.id_of(name) for name in ("chat", "o/r:UD-Q4_K_XL", "o/r:Q4_K_XL")} == {"chat"}


def test_a_later_download_never_puts_another_file_under_an_id(disk):
    for file in ("r-I-Compact.gguf", "r-UD-Q4_K_XL.gguf", "instruct-Q4_K_M.gguf", "small/r-Q8_0.gguf"):
        disk.download("o/r", file)
    before = Catalog.scan(disk.config)
    for file in ("r-Compact.gguf", "r-Q4_K_XL.gguf", "base-Q4_K_M.gguf", "large/r-Q8_0.gguf"):
        disk.download("o/r", file)
    after = Catalog.scan(disk.config)
    assert len(before.entries) == 4 and len(after.entries) == 8
    for model, entry in before.entries.items():
        assert after.entries[model].files == entry.files


def test_a_pattern_is_the_last_thing_that_a_name_may_mean(disk):
    disk.write("a.gguf", "b.gguf")
    disk.download("o/r", "r-UD-Q4_0.gguf", "base-Q8_0.gguf", "instruct-Q8_0.gguf")
    catalog = Catalog.scan(disk.with_models({"a": {"aliases": ["*"]}, "b": {"aliases": ["bee"]}}))
    assert (catalog.entries["a"].aliases, catalog.entries["a"].alias_patterns) == ((), ("*",))
    names = ("a", "b", "bee", "o/r:ud-q4_0", "o/r:Q4_0", "anything", "o/r:Q2_K")
    assert [catalog.id_of(name) for name in names] == ["a", "b", "b", *["o/r:UD-Q4_0"] * 2, "a", "a"]
    with pytest.raises(AmbiguousModel):
        catalog.id_of("o/r:Q8_0")
    assert "*" not in catalog.names() and catalog.find("anything") is None


def test_a_pattern_that_cannot_be_a_name_is_left_out_with_a_warning(disk):
    disk.write("a.gguf")
    catalog = Catalog.scan(disk.with_models({"a": {"aliases": ["../*", "x*", "x*"]}}))
    assert catalog.entries["a"].alias_patterns == ("x*",)
    assert catalog.warnings == ("a: alias '../*' is left out: it cannot be a name",)


@pytest.mark.parametrize(
    ("default", "warning"),
    [
        ("", None),
        ("o/r:base-q8_0", None),
        ("gone", "server.default_model: model 'gone' not found"),
        ("o/r:Q8_0", "'server.default_model o/r:Q8_0' could be several models: o/r:base-Q8_0, "),
    ],
)
def test_a_default_that_is_no_model_is_a_warning(disk, default, warning):
    disk.download("o/r", "base-Q8_0.gguf", "instruct-Q8_0.gguf")
    warnings = Catalog.scan(replace(disk.config, server=ServerConfig(default_model=default))).warnings
    assert [text.startswith(warning or "?") for text in warnings] == [True] * (warning is not None)


def test_the_default_is_the_configured_model_else_the_only_one_that_is_not_hidden(disk):
    catalog = catalog_of("a", "my-secret", hidden="my-secret")
    assert (catalog.default("").id, catalog.default("my-secret").id) == ("a", "my-secret")
    with pytest.raises(InvalidRequest, match="name a model: .*; there are: a, b; server.default_model sets"):
        catalog_of("a", "b").default("")
    with pytest.raises(InvalidRequest, match="name a model: .*; there are no models yet"):
        Catalog().default("")
    assert Catalog.scan(disk.with_models({"broken": {}})).default("").error, "it says what is wrong with it"


def test_a_hidden_model_and_one_that_cannot_be_run_are_found(disk):
    assert catalog_of("a", hidden="a").resolve("a").hidden
    assert Catalog.scan(disk.with_models({"broken": {}})).resolve("broken").error


def test_a_model_that_is_not_found_is_told_the_nearest_and_what_there_is():
    catalog = catalog_of("qwen3-8b", "gemma", "secret", hidden="secret", aliases=("chat",))
    assert refusal(catalog, "qwen3-8") == (
        "model 'qwen3-8' not found; did you mean 'qwen3-8b'?; there are: qwen3-8b, gemma"
    )
    assert "did you mean 'chat'?" in refusal(catalog, "chatt")
    assert refusal(catalog, "zzz") == "model 'zzz' not found; there are: qwen3-8b, gemma"
    fetch = "not found; to fetch it: llama-router pull org/repo:Q8_0; there are: "
    assert fetch in refusal(catalog, "org/repo:Q8_0")
    assert "pull" not in refusal(catalog, "org/../repo") and "pull" not in refusal(catalog, "a/b/c; rm -r")


@pytest.mark.parametrize(
    ("name", "near"), [("CHAT", "chat"), ("QWEN3-8B", "qwen3-8b"), ("gemma", "Gemma"), ("STRASSE", "Straße")]
)
def test_a_name_in_other_case_is_not_served_but_told(name: str, near: str):
    catalog = catalog_of("qwen3-8b", "Gemma", "Straße", "SECRET", hidden="SECRET", aliases=("chat",))
    assert f"did you mean '{near}'?" in refusal(catalog, name)
    assert "SECRET" not in refusal(catalog, "secret").removeprefix("model 'secret'")


def test_the_name_of_a_folder_of_several_models_is_ambiguous_and_says_which_are_in_it():
    catalog = catalog_of("m/m-Q4_0", "m/q8/m-Q8_0", "m/secret", "mm", "secrets/s", hidden="m/secret")
    with pytest.raises(AmbiguousModel) as refused:
        catalog.resolve("m")
    assert refused.value.candidates == ("m/m-Q4_0", "m/q8/m-Q8_0")
    assert catalog.resolve("m/q8").id == "m/q8/m-Q8_0", "the only one there"
    for name in ("m/", "m/q", "M", "/m", "secret"):
        with pytest.raises(ModelNotFound):
            catalog.resolve(name)


def test_the_name_of_a_repository_means_its_only_model_and_is_ambiguous_where_there_are_several(disk):
    disk.download("o/r", "r-Q4_0.gguf", "r-dflash-Q8_0.gguf", "mmproj-F16.gguf")
    assert Catalog.scan(disk.config).resolve("o/r").id == "o/r:Q4_0"
    disk.download("o/r", "r-Q8_0.gguf")
    with pytest.raises(AmbiguousModel) as refused:
        Catalog.scan(disk.config).resolve("o/r")
    assert refused.value.candidates == ("o/r:Q4_0", "o/r:Q8_0")
    for name in ("o", "o/", "o/r:", "O/R"):
        with pytest.raises(ModelNotFound):
            Catalog.scan(disk.config).resolve(name)


def test_a_hidden_model_is_not_given_away_as_the_nearest():
    assert "secret" not in refusal(catalog_of("a", "my-secret", hidden="my-secret"), "my-secre")


def test_the_list_of_names_is_bounded():
    message = refusal(catalog_of(*(f"m{n}" for n in range(MAX_NAMES_SHOWN + 5))), "x" * 10_000)
    assert message.endswith(f"m{MAX_NAMES_SHOWN - 1} and 5 more")
    assert len(message) < 400


def test_an_empty_catalog_says_so():
    assert refusal(Catalog(), "x") == "model 'x' not found; there are no models yet"


def test_presets_that_have_been_read_are_not_read_again(disk, tmp_path):
    (tmp_path / "p.toml").write_text("[models.x]\n")
    config = Config(paths=PathsConfig(presets=(tmp_path / "p.toml",), models_dirs=(disk.models,)))
    presets = load_presets(config)
    (tmp_path / "p.toml").unlink()
    assert list(Catalog.scan(config, presets).entries) == ["x"]
    with pytest.raises(ConfigError, match=r"p\.toml: No such file"):
        Catalog.scan(config)


def test_a_catalog_cannot_be_changed(disk):
    disk.write("m.gguf")
    catalog = Catalog.scan(disk.config)
    with pytest.raises(TypeError):
        catalog.entries["x"] = catalog.entries["m"]  # type: ignore[index]
