"""The settings of a model are the sum of all that is said about it, the nearest to it first."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from router.config import ChildConfig, Config, PathsConfig, load_config
from router.errors import ConfigError
from router.presets import Presets, load_presets, shipped_presets_dir
from tests.llama_server_options import OPTIONS

NO_SHIPPED = Path("/nonexistent")


@pytest.fixture
def load(tmp_path):
    """Presets from files given as name -> text; `config.toml` and `shipped/*.toml` among them."""

    def load(**files: str) -> Presets:
        (tmp_path / "shipped").mkdir(exist_ok=True)
        paths = []
        for name, text in files.items():
            stem, _, suffix = name.rpartition("_")
            path = tmp_path / ("shipped" if stem == "shipped" else "") / f"{stem}.{suffix}"
            path.write_text(text, encoding="utf-8")
            if stem not in ("config", "shipped"):
                paths.append(path)
        config = tmp_path / "config.toml"
        loaded = load_config(config, {"paths.presets": paths}) if "config_toml" in files else Config()
        if "config_toml" not in files:
            loaded = replace(loaded, paths=PathsConfig(presets=tuple(paths)))
        return load_presets(loaded, tmp_path / "shipped", OPTIONS)

    return load


def test_without_any_preset_a_model_is_run_as_the_configuration_says():
    child = ChildConfig(ctx_size=1, parallel=2, n_gpu_layers=3, cache_ram_mib=4, stop_grace_seconds=5.0,
                        kv_unified=False, env={"A": "b"})  # fmt: skip
    preset = load_presets(Config(child=child), NO_SHIPPED, OPTIONS).for_model("x")
    assert (preset.ctx_size, preset.parallel, preset.n_gpu_layers, preset.cache_ram_mib) == (1, 2, 3, 4)
    assert (preset.stop_grace_seconds, preset.kv_unified, preset.env) == (5.0, False, {"A": "b"})
    assert (preset.error, preset.args, preset.origin) == (None, (), None)


def test_the_nearest_setting_wins(load):
    levels = {
        "config_toml": "[child]\nargs = ['--top-k', '1']\n",
        "shipped_toml": "[families.all]\nmatch = ['*']\nflags = { top-k = 2 }\n",
        "a_ini": "[*]\ntop-k = 3\n",
        "b_toml": "[defaults]\nflags = { top-k = 4 }\n",
        "c_toml": "[families.x]\nmatch = ['x']\nflags = { top-k = 5 }\n",
        "d_ini": "[x]\ntop-k = 6\n",
        "e_toml": "[models.x]\nflags = { top-k = 7 }\n",
    }
    inline = levels["config_toml"] + "[models.x]\nflags = { top-k = 8 }\n"
    names = list(levels)
    for number in range(1, len(names) + 1):
        presets = load(**{name: levels[name] for name in names[:number]})
        assert presets.for_model("x").args == ("--top-k", str(number))
    assert load(**levels | {"config_toml": inline}).for_model("x").args == ("--top-k", "8")
    assert load(**levels).for_model("y").args == ("--top-k", "4")


def test_settings_from_several_places_add_up(load):
    presets = load(
        config_toml="[child]\nenv = { A = '1', B = '1' }\n[models.x]\npinned = true\nenv = { B = '2' }\n",
        a_toml="[models.x]\nctx_size = 100\naliases = ['one']\n",
        b_ini="[x]\nalias = two\n",
    )
    preset = presets.for_model("x")
    assert (preset.ctx_size, preset.pinned, preset.aliases) == (100, True, ("two",))
    assert preset.env == {"A": "1", "B": "2"}
    assert presets.names == ("x",)
    assert preset.origin is not None
    assert preset.origin.endswith("config.toml:3")


def test_a_family_is_found_by_any_name_and_by_the_architecture(load):
    presets = load(
        shipped_toml="[families.q]\nmatch = ['*Qwen*']\nflags = { temp = 1 }\n"
        "[families.b]\narchitectures = ['bert']\nembedding = true\n"
    )
    assert presets.for_model("chat", "qwen3-8b.Q4").args == ("--temp", "1")
    assert presets.for_model("chat").args == ()
    assert presets.for_model("chat", architecture="bert").embedding


@pytest.mark.parametrize(
    ("pooling", "embedding", "reranking"),
    [
        (None, False, False),
        ("none", False, False),
        ("mean", True, False),
        ("last", True, False),
        ("rank", False, True),
    ],
)
def test_a_file_that_says_how_it_pools_is_used_that_way(load, pooling, embedding, reranking):
    preset = load().for_model("x", pooling=pooling)
    assert (preset.embedding, preset.reranking) == (embedding, reranking)


def test_the_file_knows_better_than_a_family_and_the_user_better_than_the_file(load):
    presets = load(
        shipped_toml="[families.x]\nmatch = ['x*']\nembedding = true\n",
        a_toml="[models.x2]\nreranking = false\n",
    )
    assert not presets.for_model("x1", pooling="rank").embedding
    assert presets.for_model("x1", pooling="rank").reranking
    assert not presets.for_model("x2", pooling="rank").reranking


def test_a_section_of_another_spelling_can_be_taken(load):
    presets = load(a_ini="[org/repo:q4_k_m]\nc = 5\n")
    assert presets.for_model("org/repo:Q4_K_M").ctx_size == 8192
    preset = presets.for_model("org/repo:Q4_K_M", section="org/repo:q4_k_m")
    assert (preset.name, preset.ctx_size) == ("org/repo:Q4_K_M", 5)


def test_replicas_are_never_more_than_their_maximum(load):
    presets = load(a_toml="[models.a]\nreplicas = 2\n[models.b]\nreplicas = 2\nreplica_max = 4\n")
    assert presets.for_model("a").replica_max == 2
    assert presets.for_model("b").replica_max == 4


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("model = 'a.gguf'\nhf_repo = 'a/b'", "model and hf_repo name two models"),
        ("draft_model = 'a.gguf'\ndraft_hf_repo = 'a/b'", "draft_model and draft_hf_repo name two models"),
        ("hf_file = 'a.gguf'", "hf_file needs hf_repo"),
        ("ctx_size = -1", "expected int >= 0"),
    ],
)
def test_a_wrong_section_is_the_error_of_its_model_alone(load, text, reason):
    presets = load(a_toml=f"[models.a]\n{text}\n[models.b]\n")
    error = presets.for_model("a").error
    assert error is not None
    assert reason in error
    assert presets.for_model("b").error is None


def test_a_wrong_section_in_the_configuration_is_the_error_of_its_model_alone(load, tmp_path):
    presets = load(config_toml="[models.a]\n\ncxt_size = 1\n[models.b]\n")
    assert presets.for_model("a").error == (
        f"{tmp_path}/config.toml:3: models.a.cxt_size: there is no such setting; did you mean ctx_size?"
    )
    assert presets.for_model("b").error is None


def test_what_concerns_all_models_stops_the_start_with_every_problem(load, tmp_path):
    with pytest.raises(ConfigError) as refused:
        load(
            config_toml="[child]\nargs = ['--port', '1']\n",
            a_toml="[defaults]\ncxt_size = 1\n",
            b_ini="[*]\ntmep = 1\n",
            shipped_toml="[families.f]\n",
        )
    lines = str(refused.value).splitlines()
    assert [line.removeprefix(f"{tmp_path}/").split(": ")[0] for line in lines] == [
        "shipped/shipped.toml:1", "a.toml:2", "b.ini:2", "config.toml:2",
    ]  # fmt: skip


def test_what_was_left_out_or_not_understood_is_a_warning(load):
    presets = load(
        config_toml="[child]\nargs = ['--brand-new']\n[models.x]\nargs = ['--newer']\n",
        a_ini="[*]\nport = 1\n",
    )
    assert [word for word in ("--brand-new", "--newer", "port") if word in " ".join(presets.warnings)] == [
        "--brand-new", "--newer", "port",
    ]  # fmt: skip
    assert presets.for_model("x").args == ("--brand-new", "--newer")


def test_memory_settings_in_child_args_are_fields_too():
    preset = load_presets(
        Config(child=ChildConfig(args=("-c", "99", "-t", "4"))), NO_SHIPPED, OPTIONS
    ).for_model("x")
    assert (preset.ctx_size, preset.args) == (99, ("--threads", "4"))


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (
            ["--alias", "x"],
            "aliases can only be set for a single model (--alias): a name belongs to one model",
        ),
        (["-a", "x"], "--alias"),
        (["--mmproj", "/p.gguf"], "mmproj can only be set for a single model (--mmproj): it fits the models"),
        (["-hf", "org/repo"], "hf_repo can only be set for a single model (--hf-repo): it names one model"),
        (["-hff", "a.gguf"], "--hf-file"),
        (["--lora", "/l.gguf"], "lora can only be set"),
        (["--lora-scaled", "/l.gguf:0.5"], "lora-scaled can only be set"),
        (["--control-vector", "/c.gguf"], "control-vector can only be set"),
        (["-md", "/d.gguf"], "draft_model can only be set"),
        (["-hfd", "org/draft"], "draft_hf_repo can only be set"),
        (["--port", "1"], "--port = '1': is not for presets: the router answers clients itself"),
        (["--host", "::"], "the router answers clients itself"),
        (["--api-key", "k"], "the router answers clients itself"),
        (["--models-dir", "/m"], "it would make the child a router"),
        (["--fit", "on"], "the router decides what fits where"),
        (["-mu", "https://x/y.gguf"], "it downloads while loading"),
        (["--log-file", "/l"], "the router keeps the log"),
        (["--alias=x"], "aliases can only be set for a single model"),
        (["-a=x"], "aliases can only be set for a single model"),
        (["--mmproj=/p.gguf"], "mmproj can only be set for a single model"),
        (["--lora_scaled=/l.gguf:0.5"], "lora-scaled can only be set"),
        (["--host=0.0.0.0"], "--host = '0.0.0.0': is not for presets: the router answers clients itself"),
        (["--api-key=k"], "the router answers clients itself"),
    ],
)
def test_what_makes_no_sense_for_every_model_is_refused_in_child_args_with_the_reason(args, says):
    with pytest.raises(ConfigError, match="^child") as refused:
        load_presets(Config(child=ChildConfig(args=tuple(args))), NO_SHIPPED, OPTIONS)
    assert says in str(refused.value)


def test_a_family_may_share_a_draft_and_an_adapter_and_every_model_may_not(load, tmp_path):
    shared = f"draft_model = '{tmp_path}/d.gguf'\nlora = ['{tmp_path}/l.gguf']\n"
    load(a_toml=f"[families.q]\nmatch = ['q*']\n{shared}")
    with pytest.raises(ConfigError, match=r"draft_model can only.*\n.*lora can only"):
        load(a_toml=f"[defaults]\n{shared}")


# --- what ships ---


def test_the_presets_that_ship_are_read_without_a_problem():
    presets = load_presets(Config())
    assert presets.shipped
    assert not presets.warnings
    assert all(family.layer.problems == () for family in presets.shipped)
    assert {file.suffix for file in shipped_presets_dir().iterdir()} == {".toml"}


@pytest.mark.parametrize(
    ("name", "architecture", "pooling", "family"),
    [
        ("unsloth/Qwen3-8B-GGUF:Q4_K_M", "qwen3", None, {"qwen3"}),
        ("Qwen3 8B", "qwen3", None, {"qwen3"}),
        ("qwen3-30b-a3b-instruct-2507-q4_k_m", "qwen3moe", None, {"qwen3", "qwen3-instruct"}),
        ("Qwen3-Coder-30B-A3B-Instruct", "qwen3moe", None, {"qwen3", "qwen3-instruct", "qwen3-coder"}),
        ("Qwen3.5-4B-Q4_K_M", "qwen35", None, set()),
        ("ggml-org/gemma-3-4b-it-GGUF:Q4_K_M", "gemma3", None, {"gemma3"}),
        ("mine", "gemma3", None, {"gemma3"}),
        ("ggml-org/gpt-oss-20b-GGUF:MXFP4", "gpt-oss", None, {"gpt-oss"}),
        ("Meta-Llama-3.1-8B-Instruct-Q4_K_M", "llama", None, {"llama3-instruct"}),
        ("Llama-3.2-1B", "llama", None, set()),
        ("nomic-embed-text-v1.5.Q8_0", "nomic-bert", None, {"encoders", "embeddings"}),
        ("bge-reranker-v2-m3-Q4_K_M", "bert", None, {"encoders", "rerankers"}),
        ("mistral-7b", "llama", None, set()),
    ],
)
def test_models_find_the_families_they_belong_to(name, architecture, pooling, family):
    shipped = load_presets(Config()).shipped
    assert {each.name for each in shipped if each.has((name,), architecture)} == family


def test_an_encoder_embeds_and_a_reranker_does_not():
    presets = load_presets(Config())
    reranker = presets.for_model("bge-reranker-v2-m3", architecture="bert")
    assert (reranker.embedding, reranker.reranking, reranker.ubatch_size) == (False, True, None)
    assert presets.for_model("nomic-embed-text-v1.5", architecture="nomic-bert").embedding


# --- alias patterns ---


@pytest.mark.parametrize(
    ("one", "other", "name"),
    [
        ("claude-*", "claude-sonnet-*", "claude-sonnet-"),
        ("claude-*", "*-sonnet", "claude-sonnet"),
        ("a*c", "*b*", "abc"),
        ("*", "gpt-*", "gpt-"),
        ("x-*", "x-*", "x-"),
    ],
)
def test_patterns_of_two_models_that_a_name_could_match_both_of_are_refused(load, one, other, name):
    with pytest.raises(ConfigError) as refused:
        load(p_ini=f"[a]\nalias = {one}\n", config_toml=f'[models.b]\naliases = ["fast", "{other}"]\n')
    message = refused.value.message
    assert f"alias '{other}' of 'b' and alias '{one}' of 'a'" in message and f"match '{name}'" in message
    assert "config.toml:1" in message and "p.ini:1" in message


def test_patterns_that_share_no_name_or_are_of_one_model_are_accepted(load):
    presets = load(
        p_ini="[a]\nalias = claude-sonnet-*,claude-*-4\n",
        config_toml='[models.b]\naliases = ["claude-opus-*-5", "claude-sonnet-4"]\n',
    )
    assert presets.for_model("a").aliases == ("claude-sonnet-*", "claude-*-4")


@pytest.mark.parametrize(
    ("section", "says"),
    [
        ("cache_type_v = 'q8_0'\nflash_attn = 'off'", "cache_type_v = 'q8_0' needs flash attention"),
        ("args = ['-ctv=q4_0', '-fa', '0']", "cache_type_v = 'q4_0' needs flash attention"),
        ("parallel = 257", "at most 256 requests at a time"),
        ("cache_type_v = 'q8_0'", None),
        ("cache_type_v = 'bf16'\nflash_attn = 'off'", None),
        ("cache_type_k = 'q8_0'\nflash_attn = 'off'\nparallel = 256", None),
    ],
)
def test_settings_with_which_no_context_can_be_made_are_an_error(tmp_path, section, says):
    path = tmp_path / "p.toml"
    path.write_text(f"[models.a]\nmodel = '/a.gguf'\n{section}\n")
    error = load_presets(Config(paths=PathsConfig(presets=(path,))), NO_SHIPPED, OPTIONS).for_model("a").error
    assert error is None if says is None else says in (error or "")
