"""`plan`: of a running router, and where none runs of the configuration alone."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from router.cli import cli
from router.errors import NoRoom
from router.scheduler.views import DeviceView
from tests.admin.fake_pool import GIB
from tests.admin.upstream import free_port
from tests.cli.conftest import Terminal
from tests.make_gguf import make_llama
from tests.stub_nvml.build import build, library_environment
from tests.stub_nvml.state import StubGpu, StubNvml

HOST_VIEW = DeviceView("local/host", "host", 64 * GIB, GIB, 60 * GIB, 0, 0, 0, 0, 4 * GIB, 59 * GIB)


@pytest.fixture
def beside(terminal: Terminal) -> Terminal:
    """A terminal whose router knows the machine's main memory, too."""
    terminal.api.pool.host_view = HOST_VIEW
    return terminal


async def test_one_model_is_told_term_by_term_with_the_decision_in_words(beside: Terminal):
    beside.api.pool.explanation = {
        "placement": beside.api.known.definitions.models["tiny"].placements[0],
        "would": "start",
    }
    lines = (await beside.run("plan", "small")).output.splitlines()
    assert lines[0].startswith("tiny needs 0.8 GiB (estimated) with a context of 512 (trained with 2048)")
    assert lines[1] == "tiny is not loaded."
    assert lines[3].split() == ["DEVICE", "WHAT", "BYTES", "HOW", "IT", "COMES", "ABOUT"]
    kinds = [line[len("NVIDIA H200  ") :].split()[0] for line in lines[4 : lines.index("", 4)]]
    assert kinds.count("=") == 2, "a sum for the GPU and one for the host"
    assert {"weights", "kv", "compute", "context", "process"} <= set(kinds)
    assert lines[4].startswith("NVIDIA H200  "), "the device stands where it begins"
    assert lines[5].startswith("             "), "and not again"
    assert any(line.startswith("NVIDIA H200") and "█" in line for line in lines)
    assert lines[-1].startswith("█ planned")
    assert beside.api.pool.measured == 1


async def test_another_way_tells_what_stands_in_its_way(beside: Terminal):
    beside.api.pool.explanation = {"would": "refuse", "refusal": NoRoom("full")}
    estimates = beside.api.known.definitions.by_name["tiny"].estimates
    placements = [one for one in estimates if not one.is_fallback]
    lines = (await beside.run("plan", "tiny")).output.splitlines()
    assert any(line.startswith("OTHER WAYS") for line in lines) == (len(placements) > 1)
    beside.api.pool.host_view = replace(HOST_VIEW, room=0)
    output = (await beside.run("plan", "tiny")).output
    assert "of 0 MiB that are free for it now, and 59.0 GiB if no model were loaded" in output


async def test_the_context_may_be_another(beside: Terminal):
    answer = json.loads((await beside.run("plan", "tiny", "--ctx", "1024", "--json")).output)
    assert answer["placements"][0]["ctx_size"] == 1024
    assert (await beside.run("plan", "tiny", "--ctx", "0", status=2)).exit_code == 2


async def test_without_a_name_there_is_a_line_for_each(beside: Terminal):
    lines = (await beside.run("plan")).output.splitlines()
    by_name = {line.split()[0]: line for line in lines[1:5]}
    assert by_name["tiny"].split()[1:] == ["512", "0.8", "GiB", "NVIDIA", "H200", "now"]
    assert "cannot be loaded" in by_name["broken"] and "broken.gguf" in by_name["broken"]


async def test_several_are_told_to_fit_together(beside: Terminal):
    output = (await beside.run("plan", "tiny", "other")).output
    assert (
        "tiny and other fit together, at the contexts they ask for: tiny with 512, other with 512." in output
    )
    assert output.count("TOGETHER") == 1


async def test_several_that_do_not_fit_are_told_in_the_sets_that_do(beside: Terminal):
    need = beside.api.known.definitions.by_name["tiny"].estimates[0].footprint["local/host"]
    beside.api.pool.host_view = replace(HOST_VIEW, others=63 * GIB - need - need // 2)
    output = (await beside.run("plan", "tiny", "other")).output
    assert "tiny and other do not fit together, not even with the smallest contexts." in output
    assert output.count("TOGETHER") == 2


async def test_an_unknown_model_is_one_message(beside: Terminal):
    result = await beside.run("plan", "tin", status=1)
    assert "did you mean 'tiny'" in result.output
    assert "Traceback" not in result.output


async def test_an_address_that_was_named_is_not_replaced_by_this_machine():
    url = f"http://127.0.0.1:{free_port()}"
    for arguments, environ in ((["--url", url], {}), ([], {"LLAMA_ROUTER_URL": url})):
        result = await asyncio.to_thread(CliRunner().invoke, cli, ["plan", *arguments], env=environ)
        assert result.exit_code == 1
        assert "no router answers at" in result.output


# --- without a router ---


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two models, two GPUs of 4 and 6 GiB, and no llama-server."""
    folder = tmp_path / "models"
    folder.mkdir()
    for name in ("a", "b"):
        make_llama(folder / f"{name}.gguf", name=name, sparse=True, n_ctx_train=1 << 17, approx_mib=400)
    stub = StubNvml(
        tmp_path / "stub",
        StubGpu("GPU-small", "Small Card", "00000000:01:00.0", 4 * GIB, 0, util=7, temp=41),
        StubGpu("GPU-large", "Large Card", "00000000:02:00.0", 6 * GIB, 0, util=7, temp=41),
    )
    library = build()
    if library is None:
        pytest.skip("no C compiler")
    for name, value in library_environment(stub.folder, library).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("LLAMA_SERVER", "/nowhere/llama-server")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    source = tmp_path / "config.toml"
    source.write_text(
        f'[paths]\nmodels_dirs = ["{folder}"]\nhf_cache = false\nstate_dir = "{tmp_path / "state"}"\n'
        "[memory]\ncontext_overhead_mib = 100\n"
    )
    return source


def run(*args: str, env: dict[str, str] | None = None) -> Result:
    result = CliRunner().invoke(cli, ["plan", *args], env=env)
    assert result.exit_code == 0, result.output
    return result


def planned(*args: str) -> Any:
    return json.loads(run(*args, "--json").stdout)


def test_offline_the_devices_are_measured_and_the_scheduler_is_asked(config: Path):
    body = planned("--offline", "--config", str(config), "a")
    devices = {device["label"]: device for device in body["devices"]}
    assert devices.keys() == {"host", "cuda:0 Small Card", "cuda:1 Large Card"}
    assert devices["cuda:1 Large Card"]["room"] == 5 * GIB
    assert (body["would"], body["would_evict"]) == ("start", [])
    chosen = body["placements"][body["chosen"]]
    assert chosen["devices"] == ["local/cuda:GPU-small"], "the smallest that holds it"
    assert chosen["missing_now"] == {}
    assert not (config.parent / "state").exists(), "it leaves nothing behind"


def test_offline_several_share_the_devices(config: Path):
    body = planned("--offline", "--config", str(config), "a", "b", "--ctx", "16384")
    together = body["together"]
    assert together["fits"]
    room = {device["id"]: device["room_if_empty"] for device in body["devices"]}
    assert all(size <= room[device] for device, size in together["all"]["footprint"].items())


def test_where_no_router_runs_it_says_that_it_answers_by_itself(
    config: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("LLAMA_ROUTER_CONFIG", str(config))
    monkeypatch.delenv("LLAMA_ROUTER_URL", raising=False)
    nobody = f"http://127.0.0.1:{free_port()}"
    for parameter in cli.get_command(None, "plan").params:  # type: ignore[arg-type, union-attr]
        if parameter.name == "url":
            monkeypatch.setattr(parameter, "default", nobody)
    result = run()
    assert f"No router answers at {nobody}: this is what one would see." in result.stderr
    assert {line.split()[0] for line in result.stdout.splitlines()[1:3]} == {"a", "b"}


def test_offline_a_wrong_configuration_is_one_message_and_status_2(config: Path):
    config.write_text("[server]\nprot = 1\n")
    result = CliRunner().invoke(cli, ["plan", "--offline", "--config", str(config)])
    assert result.exit_code == 2
    assert "prot" in result.stderr and "Traceback" not in result.output
