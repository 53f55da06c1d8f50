"""A foreign configuration, imported: the router serves every name that it served."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from click.testing import CliRunner

from router.cli import cli
from tests.cli.migrate.test_llama_swap import EXAMPLE
from tests.e2e.running import Running, running
from tests.e2e.stub_machine import child_environment, make_stub_machine
from tests.make_gguf import make_bert, make_llama
from tests.stub_nvml.state import StubGpu

pytestmark = pytest.mark.e2e


def imported(file: Path, output: Path) -> str:
    """The configuration that `import` makes; that it is right is checked as a person would."""
    done = CliRunner().invoke(cli, ["import", str(file), "-o", str(output)])
    assert done.exit_code == 0, done.output
    checked = CliRunner().invoke(cli, ["config", "check", str(output)])
    assert checked.exit_code == 0 and "cannot be used" not in checked.output, checked.output
    return output.read_text()


async def served(router: Running, name: str, path: str = "/v1/chat/completions") -> str:
    """The model that answers to a name."""
    asked = {
        "model": name,
        "messages": [{"role": "user", "content": "hello"}],
        "max_tokens": 4,
        "input": "hello",
    }
    headers = {"Authorization": "Bearer sk-hunter2"}
    async with router.session.post(path, json=asked, headers=headers) as answer:
        body = await answer.json()
        assert answer.status == 200, body
        return str(body["model"])


async def test_every_name_of_llama_swaps_documented_example_is_served(tmp_path: Path, monkeypatch) -> None:
    stub = make_stub_machine(tmp_path, monkeypatch, StubGpu("GPU-0"), StubGpu("GPU-1"))
    files = tmp_path / "files"
    files.mkdir()
    for seed, name in enumerate(("gpt-oss-120B", "qwen", "coder")):
        make_llama(files / f"{name}.gguf", name=name, seed=seed, sparse=True)
    make_bert(files / "always.gguf", name="always", seed=9)
    monkeypatch.setenv("MODELS_DIR", str(files))
    monkeypatch.setenv("API_KEY_1", "sk-other")
    text = await asyncio.to_thread(imported, EXAMPLE, tmp_path / "made.toml")
    environment = child_environment(stub, alloc_mib=100, grow_mib=0)
    text = text.replace("[child]\n", environment + "[child]\n")
    async with running(tmp_path, [], text.replace("[paths]\n", "")) as router:
        await router.until(lambda: "always" in router.resident())  # it was preloaded there, and is here
        for name, model in {
            "gpt-oss-120b": "gpt-oss-120b",
            "gpt-oss-120b:high": "gpt-oss-120b",
            "gpt-4o-mini": "gpt-oss-120b",
            "gpt-4o": "gpt-oss-120b",
            "qwen-unlisted": "qwen-unlisted",
            "docker-llama": "docker-llama",
            "coding-model": "docker-llama",
        }.items():
            assert await served(router, name) == model
        async with router.session.get("/v1/models", headers={"Authorization": "Bearer sk-other"}) as answer:
            listed = [one["id"] for one in (await answer.json())["data"]]
        assert sorted(listed) == ["always", "docker-llama", "gpt-oss-120b"], "what was unlisted is"


async def test_every_section_of_a_llama_cpp_ini_is_served(tmp_path: Path) -> None:
    for seed, name in enumerate(("a", "b")):
        make_llama(tmp_path / f"{name}.gguf", name=name, seed=seed)
    make_bert(tmp_path / "e.gguf", name="e", seed=7)
    ini = tmp_path / "presets.ini"
    ini.write_text(
        "version = 1\n[*]\nc = 512\nnp = 1\nthreads = 1\nport = 8081\n"
        f"[first]\nmodel = {tmp_path}/a.gguf\nload-on-startup = true\n"
        f"[org/second:Q8_0]\nLLAMA_ARG_MODEL = {tmp_path}/b.gguf\nalias = zwei\n"
        f"[vectors]\nmodel = {tmp_path}/e.gguf\nembeddings = 1\n"
    )
    made = await asyncio.to_thread(imported, ini, tmp_path / "made.toml")
    made = made.replace("[paths]\n", "")
    async with running(tmp_path, [], made) as router:
        await router.until(lambda: router.resident() == ["first"])
        assert await served(router, "first") == "first"
        assert await served(router, "org/second:Q8_0") == "org/second:Q8_0"
        assert await served(router, "zwei") == "org/second:Q8_0"
        assert await served(router, "vectors", "/v1/embeddings") == "vectors"
