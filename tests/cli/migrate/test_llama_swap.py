"""A llama-swap.yaml with all that its documentation shows."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from router.cli import cli
from router.config import load_config
from router.presets import load_presets

EXAMPLE = Path(__file__).parent / "llama_swap.yaml"


@pytest.fixture
def imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Result:
    monkeypatch.setenv("MODELS_DIR", str(tmp_path))
    monkeypatch.setenv("API_KEY_1", "from-env")
    result = CliRunner().invoke(cli, ["import", str(EXAMPLE), "--json"])
    assert result.exit_code == 0, result.output
    return result


def config_of(result: Result) -> Any:
    return tomllib.loads(json.loads(result.stdout)["config"])


def report_of(result: Result) -> str:
    return "\n".join(json.loads(result.stdout)["report"])


def test_every_llama_server_is_a_model_with_its_settings(imported: Result, tmp_path: Path):
    models = config_of(imported)["models"]
    assert list(models) == ["gpt-oss-120b", "qwen-unlisted", "docker-llama", "always"]
    assert models["gpt-oss-120b"] == {
        "model": f"{tmp_path}/gpt-oss-120B.gguf",
        "ctx_size": 512,
        "args": ["--temperature", "0.7"],
        "env": {"GGML_CUDA_FORCE_MMQ": "1"},
        "devices": ["cuda:0", "cuda:1"],
        "aliases": ["gpt-4o-mini", "gpt-4o", "gpt-oss-120b:high"],
        "description": "A thinking model",
        "ttl_seconds": 60,
        "stop_grace_seconds": 20,
    }
    assert models["qwen-unlisted"] == {
        "model": f"{tmp_path}/qwen.gguf",
        "ctx_size": 4096,
        "n_gpu_layers": 0,
        "flash_attn": "on",
        "hidden": True,
        "ttl_seconds": -1,
        "priority": "low",
    }


def test_a_container_becomes_a_process_with_the_paths_of_outside(imported: Result, tmp_path: Path):
    model = config_of(imported)["models"]["docker-llama"]
    assert model["model"] == f"{tmp_path}/coder.gguf"
    assert model["aliases"] == ["coding-model"], "a selector is an alias of its first target"
    assert model["priority"] == "high"


def test_a_persistent_group_is_pinned_and_a_preload_loaded(imported: Result, tmp_path: Path):
    assert config_of(imported)["models"]["always"] == {
        "model": f"{tmp_path}/always.gguf",
        "ctx_size": 4096,
        "embedding": True,
        "env": {"GGML_VK_VISIBLE_DEVICES": "0"},
        "pinned": True,
        "load_on_startup": True,
    }


def test_keys_from_the_environment_stay_there(imported: Result):
    config = config_of(imported)
    assert config["server"]["api_keys"] == ["sk-hunter2", "env:API_KEY_1"]
    assert config["child"] == {"stop_grace_seconds": 15.0}


def test_what_could_not_be_carried_over_is_reported(imported: Result):
    report = report_of(imported)
    for line in (
        "vllm: NOT CARRIED OVER: vllm is not llama-server",
        "gpt-oss-120b: left out: filters: the router does not change what requests ask for",
        "gpt-oss-120b: left out: filters.setParamsByID: gpt-oss-120b, gpt-oss-120b:high are served",
        "gpt-oss-120b: left out: concurrencyLimit",
        "gpt-oss-120b: there is no file",
        "selectors.coding-model: is always docker-llama here",
        "profiles: left out: names are not replaced",
        "peers: left out: this router serves one machine",
        "routing.scheduler: priorities are high, normal or low here",
        "groups: models are loaded together where they fit",
        "models were started with /opt/llama.cpp/llama-server, llama-server",
    ):
        assert line in report, report
    assert "healthCheckTimeout" not in report and "checkEndpoint" not in report, "nobody misses them"


def test_what_is_made_is_a_configuration_without_mistakes(imported: Result, tmp_path: Path):
    path = tmp_path / "made.toml"
    path.write_text(json.loads(imported.stdout)["config"])
    config = load_config(path)
    presets = load_presets(config)
    assert {name: presets.for_model(name).error for name in presets.names} == dict.fromkeys(presets.names)


def test_groups_are_kept_where_that_is_wanted(tmp_path: Path, monkeypatch):
    monkeypatch.setenv("MODELS_DIR", str(tmp_path))
    result = CliRunner().invoke(cli, ["import", str(EXAMPLE), "--json", "--keep-groups"])
    assert config_of(result)["scheduler"]["exclusive"] == [
        ["gpt-oss-120b", "qwen-unlisted"],
        ["gpt-oss-120b", "docker-llama"],
        ["qwen-unlisted", "docker-llama"],
    ]


def test_groups_may_stand_under_routing_and_a_matrix_forbids_nothing(tmp_path: Path):
    models = "models:\n" + "".join(f"  {name}:\n    cmd: llama-server -m /{name} -c 1\n" for name in "abc")
    groups = "routing: {router: {settings: {groups: {g: {swap: true, members: [a, b]}}}}}\n"
    (tmp_path / "g.yaml").write_text(models + groups)
    (tmp_path / "m.yaml").write_text(models + 'matrix: {sets: {one: "a & b"}}\n')
    made = [
        CliRunner().invoke(cli, ["import", f"{tmp_path}/{f}.yaml", "--json", "--keep-groups"]) for f in "gm"
    ]
    assert config_of(made[0])["scheduler"]["exclusive"] == [["a", "b"], ["a", "c"], ["b", "c"]]
    assert "scheduler" not in config_of(made[1])
    assert "matrix: left out: which models may be loaded together" in report_of(made[1])


def one(tmp_path: Path, text: str) -> Result:
    path = tmp_path / "swap.yaml"
    path.write_text(text)
    return CliRunner().invoke(cli, ["import", str(path), "--json"])


def test_a_macro_that_is_not_there_costs_its_model_alone(tmp_path: Path):
    text = "models:\n  a:\n    cmd: ${nobody} -m x\n  b:\n    cmd: llama-server -m /b.gguf -c 1\n"
    result = one(tmp_path, text)
    assert list(config_of(result)["models"]) == ["b"]
    assert "a: NOT CARRIED OVER: ${nobody} is not defined" in report_of(result)


def test_macros_that_go_round_in_a_circle_end(tmp_path: Path):
    text = 'macros:\n  a: "${b}"\n  b: "${a}"\nmodels:\n  m:\n    cmd: ${a}\n'
    assert "NOT CARRIED OVER" in report_of(one(tmp_path, text))


def test_options_that_the_router_settles_itself_are_left_out_with_the_reason(tmp_path: Path):
    text = (
        "models:\n  a:\n    cmd: llama-server -m /a.gguf -c 1 --api-key x --fit on --port 1 --host 0.0.0.0\n"
    )
    result = one(tmp_path, text)
    assert config_of(result)["models"]["a"] == {"model": "/a.gguf", "ctx_size": 1}
    assert "a: left out: --api-key: the router answers clients itself" in report_of(result)


def model(tmp_path: Path, cmd: str, *env: str) -> tuple[dict[str, Any], str]:
    """The settings of one model with these variables, and what is reported."""
    result = one(tmp_path, json.dumps({"models": {"a": {"cmd": cmd, "env": list(env)}}}))
    assert result.exit_code == 0, result.output
    settings = config_of(result)["models"]["a"]
    path = tmp_path / "made.toml"
    path.write_text(json.loads(result.stdout)["config"])
    assert load_presets(load_config(path)).for_model("a").error is None
    return settings, report_of(result)


RUN = "llama-server -m /a.gguf"


@pytest.mark.parametrize(
    ("cmd", "env", "settings"),
    [
        (RUN, ["LLAMA_ARG_CTX_SIZE=1024"], {"ctx_size": 1024}),
        (RUN + " -c 512", ["LLAMA_ARG_CTX_SIZE=1024"], {"ctx_size": 512}),
        ("env LLAMA_ARG_CTX_SIZE=1024 " + RUN, [], {"ctx_size": 1024}),
        ("LLAMA_ARG_CTX_SIZE=1024 " + RUN, ["LLAMA_ARG_CTX_SIZE=2048"], {"ctx_size": 1024}),
        (RUN, ["LLAMA_ARG_TOP_K=7", "LLAMA_ARG_N_PARALLEL=2"], {"args": ["--top-k", "7"], "parallel": 2}),
        (RUN + " --top-k 9", ["LLAMA_ARG_TOP_K=7"], {"args": ["--top-k", "9"]}),
        (RUN, ["LLAMA_ARG_FLASH_ATTN=on", "LLAMA_ARG_EMBEDDINGS=1"], {"flash_attn": "on", "embedding": True}),
        (RUN, ["LLAMA_ARG_NO_KV_OFFLOAD=1"], {"kv_offload": False}),
        (RUN, ["LLAMA_ARG_NO_MMAP=1"], {"args": ["--load-mode", "none"]}),
        ("llama-server", ["LLAMA_ARG_MODEL=/a.gguf"], {}),
        (RUN, ["LLAMA_ARG_HOST=0.0.0.0", "LLAMA_ARG_PORT=9", "LLAMA_ARG_ALIAS=x"], {}),
        (RUN, ["GGML_CUDA_FORCE_MMQ=1", "OMP_NUM_THREADS=2=3"],
         {"env": {"GGML_CUDA_FORCE_MMQ": "1", "OMP_NUM_THREADS": "2=3"}}),
        (RUN, ["CUDA_VISIBLE_DEVICES=0,1"], {"devices": ["cuda:0", "cuda:1"]}),
        (RUN, ["CUDA_VISIBLE_DEVICES=GPU-8e1,MIG-5"], {"devices": ["GPU-8e1", "MIG-5"]}),
        (RUN, ["CUDA_VISIBLE_DEVICES=1,-1,2"], {"devices": ["cuda:1"]}),
        (RUN + " -ngl 99", ["CUDA_VISIBLE_DEVICES="], {"n_gpu_layers": 0}),
        (RUN + " -dev CUDA1", ["CUDA_VISIBLE_DEVICES=2,3"], {"devices": ["cuda:3"]}),
        (RUN, ["ROCR_VISIBLE_DEVICES=1"], {"devices": ["rocm:1"]}),
        (RUN, ["HIP_VISIBLE_DEVICES=0, 1"], {"devices": ["rocm:0", "rocm:1"]}),
        (RUN, ["LLAMA_ARG_DEVICE=CUDA0"], {"devices": ["CUDA0"]}),
    ],
)  # fmt: skip
def test_a_variable_that_means_a_setting_becomes_one(tmp_path: Path, cmd, env, settings):
    found, _ = model(tmp_path, cmd, *env)
    assert found == {"model": "/a.gguf", **settings}


@pytest.mark.parametrize(
    ("variable", "says"),
    [
        ("LLAMA_API_KEY=k", "api-key is left out: the router answers clients itself"),
        ("LLAMA_ARG_MODELS_DIR=/m", "models-dir is left out: it would make the child a router"),
        ("LLAMA_ARG_FIT_TARGET=1", "fit-target is left out: the router decides what fits where"),
        ("LLAMA_ARG_NONSENSE=1", "LLAMA_ARG_NONSENSE: llama-server has no such option"),
        ("LLAMA_ARG_CTX_SIZE=many", "expected a whole number"),
        ("GGML_CUDA_ENABLE_UNIFIED_MEMORY=1", "cannot be counted"),
        ("CUDA_DEVICE_ORDER=FASTEST_FIRST", "the router chooses the devices"),
        ("LLAMA_SERVER_ROUTER_PORT=1", "it changes what llama-server listens to"),
    ],
)
def test_a_variable_that_a_model_may_not_have_is_reported_and_left_out(tmp_path: Path, variable, says):
    found, report = model(tmp_path, RUN, variable)
    assert found == {"model": "/a.gguf"}
    assert "a: left out: " in report and says in report


def test_variables_and_devices_of_a_container_count_too(tmp_path: Path):
    found, _ = model(
        tmp_path,
        "docker run --rm --gpus '\"device=1,2\"' -e LLAMA_ARG_CTX_SIZE=1024"
        " --env=LLAMA_ARG_MODEL=/models/a.gguf -e HOME"
        " -v /data:/models ghcr.io/ggml-org/llama.cpp:server -ngl 9",
    )
    assert found == {
        "model": "/data/a.gguf", "ctx_size": 1024, "n_gpu_layers": 9, "devices": ["cuda:1", "cuda:2"],
    }  # fmt: skip


def test_the_time_to_live_of_all_becomes_a_policy(tmp_path: Path):
    result = one(tmp_path, "globalTTL: 600\nmodels: {}\n")
    assert config_of(result)["scheduler"] == {"policy": "lru-ttl", "ttl_seconds": 600.0}


@pytest.mark.parametrize("text", ["- a list", "models: [1]", "a: [", "just text"])
def test_what_is_no_llama_swap_configuration_is_told_so(tmp_path: Path, text: str):
    result = one(tmp_path, text)
    assert result.exit_code == 1
    assert "swap.yaml" in result.output and "Traceback" not in result.output


@pytest.mark.parametrize(
    "text",
    ["services: {}\n", "models: {}\ngroups: [a]\n", "models: {}\napiKeys: abc\n", "models: {}\nmacros: [a]\n",
     "models: {}\nhooks: {on_startup: {preload: a}}\n", "models: &m\n  a: *m\nx: 2024-13-45\n? [a]\n: 1\n",
     "models: {}\nglobalTTL: '5'\n", "[" * 5000],
)  # fmt: skip
def test_a_part_of_another_shape_is_told_and_not_guessed_at(tmp_path: Path, text: str):
    result = one(tmp_path, text)
    assert result.exit_code == 1 and isinstance(result.exception, SystemExit)
    assert "swap.yaml: " in result.output


@pytest.mark.parametrize("bad", ["", "text", "{cmd: [a]}", "{cmd: a, env: 'A=1'}", "{cmd: a, aliases: x}",
                                 "{cmd: a, env: {A: 1}}", "{macros: [a]}", "{cmd: a, filters: [x]}",
                                 "&b {cmd: llama-server, metadata: {x: *b}}"])  # fmt: skip
def test_a_model_of_another_shape_costs_itself_alone(tmp_path: Path, bad: str):
    result = one(tmp_path, f"models:\n  bad: {bad}\n  good:\n    cmd: {RUN} -c 1\n")
    assert list(config_of(result)["models"]) == ["good"]
    assert "bad: NOT CARRIED OVER: " in report_of(result)


def test_plain_words_are_texts_as_in_yaml_1_2(tmp_path: Path):
    result = one(
        tmp_path,
        "macros: {fa: on, at: 12:30}\nmodels:\n"
        f"  7:\n    cmd: {RUN} -fa ${{fa}} -c 1 --rope-scale ${{at}}\n    aliases: [2024-01-01, no]\n"
        f"  yes: {{cmd: {RUN} -c 1, ttl: '${{t}}', macros: {{t: 60}}}}\n",
    )
    models = config_of(result)["models"]
    assert models["7"] == {
        "model": "/a.gguf", "flash_attn": "on", "ctx_size": 1, "aliases": ["2024-01-01", "no"],
        "args": ["--rope-scale", "12:30"],
    }  # fmt: skip
    assert models["yes"]["ttl_seconds"] == 60


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "latin-1"])
def test_a_file_of_another_encoding_is_read_or_told(tmp_path: Path, encoding: str):
    path = tmp_path / "swap.yaml"
    path.write_bytes(f"# café\r\nmodels:\r\n  a: {{cmd: {RUN} -c 1}}\r\n".encode(encoding))
    result = CliRunner().invoke(cli, ["import", str(path)])
    if encoding == "utf-8-sig":
        assert "[models.a]" in result.stdout
    else:
        assert result.exit_code == 1 and "UTF-8" in result.output


@pytest.mark.parametrize(
    ("cmd", "left_out"),
    [
        ("sudo " + RUN, "sudo"),
        ("nice -n 5 /opt/llama-server -m /a.gguf", "nice -n 5"),
        ("CUDA_VISIBLE_DEVICES=1 numactl --cpunodebind=0 " + RUN, "numactl --cpunodebind=0"),
        ("env -u X CUDA_VISIBLE_DEVICES=1 taskset -c 0-3 " + RUN, "-u X taskset -c 0-3"),
        ("bash -c 'exec " + RUN + "'", "exec"),
        ("sudo docker run -v /:/m ghcr.io/ggml-org/llama.cpp:full --server -m /m/a.gguf", "sudo"),
        ("docker run --mount type=bind,source=/,target=/m x/llama.cpp --model=/m/a.gguf", ""),
        ("podman run --device nvidia.com/gpu=1 -v /:/m:Z x/llama.cpp -m /m/a.gguf", ""),
    ],
)
def test_what_starts_the_program_is_left_out(tmp_path: Path, cmd: str, left_out: str):
    found, report = model(tmp_path, cmd)
    assert found["model"] == "/a.gguf" and found.keys() <= {"model", "devices"}
    assert found.get("devices", ["cuda:1"]) == ["cuda:1"]
    assert f"a: left out: {left_out}: the router starts llama-server itself" in report or not left_out


def test_a_script_is_not_read(tmp_path: Path):
    result = one(tmp_path, f"models: {{a: {{cmd: \"sh -c 'cd /x && {RUN}'\"}}}}")
    assert "a: NOT CARRIED OVER: sh runs a script" in report_of(result)


def test_a_preload_may_name_an_alias_and_one_of_nothing_is_reported(tmp_path: Path):
    result = one(
        tmp_path,
        f"models:\n  a: {{cmd: {RUN} -c 1, aliases: [x, x, a]}}\n"
        "hooks: {on_startup: {preload: [x, y]}}\n",
    )
    assert config_of(result)["models"]["a"] == {
        "model": "/a.gguf", "ctx_size": 1, "aliases": ["x"], "load_on_startup": True,
    }  # fmt: skip
    assert "preload: y is no model here" in report_of(result)
