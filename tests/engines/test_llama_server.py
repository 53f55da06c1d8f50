"""The command line and environment of llama-server, checked against what the real one accepts."""

from __future__ import annotations

import asyncio
import json
import os
import re
import subprocess
from pathlib import Path

import pytest

from router.config import ChildConfig
from router.engines.llama_server import LlamaServerSettings, find_binary, launch, restated
from router.errors import LoadFailed, ModelUnusable, StartupError
from router.memory.devices import DeviceInfo
from router.presets import ModelPreset
from router.process import Command, Health, LogFile, Process
from tests.make_gguf import make_llama
from tests.process.traces import leaves_nothing, owning_tasks

BINARY = Path("/opt/llama-server")


def gpu(number: int, kind: str = "cuda") -> DeviceInfo:
    return DeviceInfo(
        id=f"{kind}:{number}",
        kind=kind,
        label=f"{kind}:{number}",
        uuid={"cuda": f"GPU-{number}", "rocm": f"GPU-abc{number}", "other": f"Vulkan{number}"}.get(kind, ""),
        total_bytes=1,
        free_bytes=1,
        reserved_bytes=0,
        utilisation_percent=None,
        temperature_celsius=None,
        error=None,
        pool=f"{kind}:{number}",
    )


def settings(placement_args=(), spec_type=None, **changes) -> LlamaServerSettings:
    preset = ModelPreset(**{"name": "tiny", "model": Path("/m/tiny.gguf"), "ctx_size": 4096, **changes})
    return LlamaServerSettings(preset, placement_args, spec_type)


def argv(*devices: DeviceInfo, extra_args=(), **changes) -> list[str]:
    made = launch(settings(**changes), devices, binary=BINARY, environ={}, extra_args=extra_args)
    return list(made.argv)


def env(*devices: DeviceInfo, environ=None, **changes) -> dict[str, str]:
    made = launch(settings(**changes), devices, binary=BINARY, environ=environ or {})
    return dict(made.env)


def value_of(args: list[str], flag: str) -> str:
    assert args.count(flag) == 1, f"{flag} in {args}"
    return args[args.index(flag) + 1]


# --- the command line -------------------------------------------------------------------------------------


def test_what_decides_memory_is_always_said():
    args = argv(gpu(0))
    assert args[:3] == [str(BINARY), "--host", "{socket}"]
    for flag, value in {"-c": "4096", "-ngl": "all", "-np": "1", "-cram": "0", "--fit": "off"}.items():
        assert value_of(args, flag) == value
    assert "-kvu" in args
    assert value_of(args, "-m") == "/m/tiny.gguf"
    assert value_of(args, "--alias") == "tiny"


def test_on_the_cpu_no_layer_leaves_it():
    args = argv(n_gpu_layers=33, split_mode="layer", tensor_split=(1.0,), main_gpu=0)
    assert value_of(args, "-ngl") == "0"
    assert value_of(args, "-dev") == "none"
    assert not {"-sm", "-ts", "-mg"} & set(args)
    assert argv(gpu(0, "host"), n_gpu_layers=33) == argv(n_gpu_layers=33)


def test_a_placement_has_the_last_word_on_what_it_decides():
    args = argv(
        gpu(0), gpu(1), tensor_split=(9.0, 1.0), placement_args=("-ts", "3,1", "--n-gpu-layers", "20")
    )
    assert value_of(args, "-ts") == "3,1"
    assert value_of(args, "--n-gpu-layers") == "20"
    assert "-ngl" not in args
    assert value_of(args, "-c") == "4096"


def test_several_devices_without_a_split_are_a_mistake_of_ours():
    with pytest.raises(AssertionError, match="tensor split"):
        argv(gpu(0), gpu(1))
    assert "-sm" in argv(gpu(0), gpu(1), split_mode="none")


def test_a_kind_of_speculation_that_was_chosen_is_not_overruled():
    assert (
        value_of(argv(draft_model=Path("/m/d.gguf"), spec_type="draft-simple"), "--spec-type")
        == "draft-simple"
    )
    chosen = argv(spec_type="draft-simple", args=("--spec-type", "draft-mtp"))
    assert value_of(chosen, "--spec-type") == "draft-mtp"


def test_further_arguments_come_last_in_their_order():
    args = argv(args=("--threads", "8"), extra_args=("--threads", "4"))
    assert args[-4:] == ["--threads", "8", "--threads", "4"]


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (("--host", "0.0.0.0"), "the router answers clients itself"),
        (("--port", "8081"), "the router answers clients itself"),
        (("--port=8081",), "the router answers clients itself"),
        (("--api-key", "k"), "the router answers clients itself"),
        (("--models-dir", "/m"), "would make the child a router"),
        (("--models_max", "3"), "would make the child a router"),
        (("--sleep-idle-seconds", "60"), "use ttl_seconds"),
        (("--fit", "on"), "the router decides what fits"),
        (("-m", "/other.gguf"), "set it as a key"),
        (("--ctx-size", "1"), "set it as a key"),
        (("-hf", "a/b"), "set it as a key"),
        (("-dev", "CUDA3"), "set it as a key"),
        (("--log-file", "/tmp/x"), "the router keeps the log"),
    ],
)
def test_arguments_that_take_the_child_out_of_our_hands_are_refused(args, words):
    for where in ({"args": args}, {"extra_args": args}):
        with pytest.raises(ModelUnusable, match=words) as refused:
            argv(**where)
        assert refused.value.message.startswith(f"tiny: {args[0]} ")


# --- devices ----------------------------------------------------------------------------------------------


def test_cuda_devices_are_masked_by_uuid_in_the_order_of_the_placement():
    shown = env(gpu(1), gpu(0), tensor_split=(1.0, 1.0), environ={"CUDA_VISIBLE_DEVICES": "3"})
    assert shown["CUDA_VISIBLE_DEVICES"] == "GPU-1,GPU-0"
    assert shown["CUDA_DEVICE_ORDER"] == "PCI_BUS_ID"
    assert "ROCR_VISIBLE_DEVICES" not in shown
    assert "-dev" not in argv(gpu(0))


def test_rocm_devices_are_masked_by_their_own_variable_only():
    inherited = {"CUDA_VISIBLE_DEVICES": "0", "HIP_VISIBLE_DEVICES": "1", "ROCR_VISIBLE_DEVICES": "2"}
    shown = env(gpu(0, "rocm"), environ=inherited)
    assert shown["ROCR_VISIBLE_DEVICES"] == "GPU-abc0"
    assert not {"CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES"} & set(shown)


def test_a_child_on_the_cpu_sees_no_gpu():
    assert env(environ={"CUDA_VISIBLE_DEVICES": "0"})["CUDA_VISIBLE_DEVICES"] == ""


def test_other_devices_are_named_as_llama_server_lists_them():
    args = argv(gpu(0, "other"), gpu(1, "other"), tensor_split=(1.0, 1.0))
    assert value_of(args, "-dev") == "Vulkan0,Vulkan1"
    assert env(gpu(0, "other"), environ={"CUDA_VISIBLE_DEVICES": "3"})["CUDA_VISIBLE_DEVICES"] == "3"


def test_one_child_cannot_run_on_two_kinds_of_gpu():
    with pytest.raises(ModelUnusable, match="cuda and rocm"):
        argv(gpu(0), gpu(0, "rocm"))


# --- environment ------------------------------------------------------------------------------------------


def test_secrets_and_settings_of_the_router_stay_with_the_router():
    inherited = {
        "PATH": "/bin", "HOME": "/h", "LD_LIBRARY_PATH": "/cuda", "LC_ALL": "C", "CUDA_CACHE_PATH": "/c",
        "GGML_CUDA_FORCE_MMQ": "1", "OMP_NUM_THREADS": "4",
        "LLAMA_API_KEY": "x", "LLAMA_ARG_CTX_SIZE": "1", "LLAMA_SERVER_ROUTER_PORT": "1", "HF_TOKEN": "x",
        "LLAMA_ROUTER_API_KEY": "x", "OPENAI_API_KEY": "x", "AWS_SECRET_ACCESS_KEY": "x",
        "AIP_MODE": "PREDICTION",
        "GGML_CUDA_ENABLE_UNIFIED_MEMORY": "1", "XDG_CONFIG_HOME": "/h/.config", "NOTIFY_SOCKET": "/run/n",
        "LISTEN_FDS": "1", "PYTHONPATH": "/p", "MTMD_BACKEND_DEVICE": "CUDA1",
    }  # fmt: skip
    shown = env(environ=inherited)
    ours = {"CUDA_VISIBLE_DEVICES", "CUDA_DEVICE_ORDER", "GGML_NO_BACKTRACE", "XDG_CONFIG_HOME"}
    kept = {
        "PATH",
        "HOME",
        "LD_LIBRARY_PATH",
        "LC_ALL",
        "CUDA_CACHE_PATH",
        "GGML_CUDA_FORCE_MMQ",
        "OMP_NUM_THREADS",
    }
    assert set(shown) == ours | kept
    assert shown["XDG_CONFIG_HOME"] == "/dev/null"


def test_a_models_own_environment_is_added_and_wins():
    assert env(environ={"PATH": "/bin"}, env={"PATH": "/other", "FAKE": "1"})["PATH"] == "/other"


@pytest.mark.parametrize(
    ("variable", "words"),
    [
        ("CUDA_VISIBLE_DEVICES", "the router chooses the devices"),
        ("HIP_VISIBLE_DEVICES", "the router chooses the devices"),
        ("LLAMA_ARG_CTX_SIZE", "set it as a key or in args"),
        ("LLAMA_API_KEY", "set it as a key or in args"),
        ("LLAMA_SERVER_ROUTER_PORT", "what llama-server listens to"),
        ("GGML_CUDA_ENABLE_UNIFIED_MEMORY", "cannot be counted"),
    ],
)
def test_variables_that_take_the_child_out_of_our_hands_are_refused(variable, words):
    with pytest.raises(ModelUnusable, match=words):
        env(env={variable: "1"})


def test_times_and_bounds_come_from_the_configuration():
    child = ChildConfig(health_poll_ms=7, health_timeout_ms=500, startup_stall_seconds=9.0, log_max_mib=3)
    made = launch(settings(), [], binary=BINARY, environ={}, child=child)
    health = made.health
    assert (health.poll_seconds, health.probe_timeout_seconds) == (0.007, 0.5)
    assert (health.stall_seconds, health.timeout_seconds, made.log_max_bytes) == (9.0, 1800.0, 3 << 20)
    assert "out of memory" in made.out_of_memory_texts


# --- what it answers --------------------------------------------------------------------------------------


def test_an_input_that_is_too_long_for_one_step_is_the_mistake_of_the_client():
    message = "input (600 tokens) is too large to process. increase the physical batch size "
    message += "(current batch size: 512)"
    told = json.dumps({"error": {"code": 500, "message": message, "type": "server_error"}}).encode()
    status, body = restated(500, told)
    error = json.loads(body)["error"]
    assert status == error["code"] == 400
    assert (error["type"], error["n_prompt_tokens"], error["n_ctx"]) == (
        "exceed_context_size_error",
        600,
        512,
    )
    assert "600 tokens" in error["message"] and "512 tokens" in error["message"]
    assert "ubatch_size" in error["message"], "what to do where it is set"


@pytest.mark.parametrize(
    ("status", "body"),
    [(500, b'{"error":{"code":500,"message":"failed to decode"}}'), (500, b""), (400, b"{}")],
)
def test_all_other_answers_stay_as_they_are(status, body):
    assert restated(status, body) == (status, body)


# --- against the real one ---------------------------------------------------------------------------------

EVERYTHING = settings(
    mmproj=Path("/m/mmproj.gguf"),
    mmproj_offload=False,
    draft_model=Path("/m/draft.gguf"),
    draft_n_gpu_layers="all",
    spec_type="draft-simple",
    lora=(Path("/m/a,b.gguf"), Path("/m/c.gguf")),
    split_mode="layer",
    tensor_split=(3.0, 1.5),
    main_gpu=1,
    kv_unified=False,
    cache_type_k="q8_0",
    cache_type_v="q8_0",
    flash_attn="on",
    batch_size=512,
    ubatch_size=256,
    swa_full=True,
    kv_offload=False,
    cpu_moe=True,
    n_cpu_moe=2,
    n_cpu_ffn=1,
    override_tensor=("a=CPU", "b=CPU"),
    embedding=True,
    reranking=True,
    pooling="rank",
)


@pytest.fixture(scope="module")
def llama_server() -> Path:
    try:
        return find_binary()
    except StartupError as absent:
        pytest.skip(absent.message)


@pytest.mark.e2e
def test_the_real_one_knows_every_flag_we_ever_use(llama_server):
    said = subprocess.run([llama_server, "--help"], capture_output=True, text=True, check=True).stdout
    known = set(re.findall(r"(?<![\w-])-{1,2}[a-zA-Z][\w-]*", said))
    made = launch(EVERYTHING, [gpu(0), gpu(1)], binary=BINARY, environ={}).argv
    used = {arg for arg in made if re.match(r"-{1,2}[a-zA-Z]", arg)}
    used |= {arg for arg in launch(settings(), [], binary=BINARY, environ={}).argv if arg.startswith("-")}
    assert len(used) > 35
    assert used <= known, f"unknown to llama-server: {used - known}"


async def run(folder: Path, made, tasks) -> Process:
    socket = folder / "tiny.sock"
    args = tuple(str(socket) if arg == "{socket}" else arg for arg in made.argv)
    command = Command(
        args, socket, LogFile(folder / "log", 1 << 20), folder, made.env, made.out_of_memory_texts
    )
    process = await Process.spawn("tiny#1", command, tasks)
    await process.ready(Health(timeout_seconds=60))
    return process


async def ask(folder: Path, path: str, body: dict | None = None) -> dict:
    reader, writer = await asyncio.open_unix_connection(str(folder / "tiny.sock"))
    data = b"" if body is None else json.dumps(body).encode()
    head = f"{'POST' if body else 'GET'} {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n"
    writer.write(head.encode() + b"Content-Length: %d\r\n\r\n" % len(data) + data)
    answer = await reader.read()
    writer.close()
    await writer.wait_closed()
    return json.loads(answer.partition(b"\r\n\r\n")[2])


@pytest.mark.e2e
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"ctx_size": 0, "parallel": 3, "kv_unified": False, "cache_ram_mib": -1},
        {
            "cache_type_k": "q8_0",
            "cache_type_v": "q8_0",
            "flash_attn": "on",
            "batch_size": 64,
            "ubatch_size": 32,
        },
        {"embedding": True, "pooling": "mean"},
        {"args": ("--threads", "1", "--no-warmup"), "n_cpu_ffn": 1, "override_tensor": ("blk.0.=CPU",)},
    ],
    ids=["plain", "slots", "quantised", "embedding", "args"],
)
async def test_the_real_one_serves_as_it_is_told(llama_server, tmp_path, changes):
    model = make_llama(tmp_path / "tiny.gguf", n_embd=128)
    told = settings(**{"model": model, "ctx_size": 512, "parallel": 2, **changes})
    with leaves_nothing(tmp_path):
        async with owning_tasks() as tasks:
            made = launch(told, [], binary=llama_server, environ=os.environ)
            process = await run(tmp_path, made, tasks)
            slots = await ask(tmp_path, "/slots")
            assert len(slots) == told.preset.parallel
            assert slots[0]["n_ctx"] == (512 if told.preset.ctx_size else 768)
            props = await ask(tmp_path, "/props")
            assert (props["model_alias"], props["total_slots"]) == ("tiny", told.preset.parallel)
            if told.preset.embedding:
                answer = await ask(tmp_path, "/v1/embeddings", {"input": "hello"})
                assert len(answer["data"][0]["embedding"]) == 128
            else:
                answer = await ask(tmp_path, "/v1/completions", {"prompt": "hello", "max_tokens": 4})
                assert answer["usage"]["completion_tokens"] == 4
            ended = await process.stop(grace_seconds=10)
            assert ended.returncode == 0


@pytest.mark.e2e
async def test_a_draft_model_is_used(llama_server, tmp_path):
    model = make_llama(tmp_path / "tiny.gguf")
    draft = make_llama(tmp_path / "draft.gguf", n_layers=1, seed=1)
    told = settings(model=model, ctx_size=512, draft_model=draft, spec_type="draft-simple")
    with leaves_nothing(tmp_path):
        async with owning_tasks() as tasks:
            process = await run(tmp_path, launch(told, [], binary=llama_server, environ=os.environ), tasks)
            answer = await ask(tmp_path, "/v1/completions", {"prompt": "hello", "max_tokens": 8})
            assert answer["timings"]["draft_n"] > 0
            await process.stop(grace_seconds=10)


@pytest.mark.e2e
async def test_a_config_file_of_the_user_does_not_lock_us_out_of_our_child(llama_server, tmp_path):
    """llama-server reads ~/.config/llama.cpp/config.ini in whatever role it is started."""
    config = tmp_path / ".config" / "llama.cpp" / "config.ini"
    config.parent.mkdir(parents=True)
    config.write_text("api-key = secret\nctx-size = 64\n")
    model = make_llama(tmp_path / "tiny.gguf")
    environ = {"PATH": os.environ["PATH"], "HOME": str(tmp_path), "LLAMA_ARG_API_PREFIX": "/elsewhere"}
    with leaves_nothing(tmp_path):
        async with owning_tasks() as tasks:
            made = launch(settings(model=model, ctx_size=512), [], binary=llama_server, environ=environ)
            process = await run(tmp_path, made, tasks)
            answer = await ask(tmp_path, "/v1/completions", {"prompt": "hello", "max_tokens": 2})
            assert answer["usage"]["completion_tokens"] == 2
            await process.stop(grace_seconds=10)


@pytest.mark.e2e
async def test_a_file_that_is_no_model_fails_with_llama_servers_own_words(llama_server, tmp_path):
    (tmp_path / "bad.gguf").write_bytes(b"GGUF" + bytes(100))
    with leaves_nothing(tmp_path):
        async with owning_tasks() as tasks:
            told = settings(model=tmp_path / "bad.gguf")
            with pytest.raises(LoadFailed, match=r"tiny#1 exited with status 1; its last line: .*") as failed:
                await run(tmp_path, launch(told, [], binary=llama_server, environ=os.environ), tasks)
    assert "bad.gguf" in str(failed.value.details["log_tail"])
