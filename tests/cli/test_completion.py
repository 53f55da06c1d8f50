"""Completion in a shell: commands, options, and the models of the running router."""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from router.cli import cli
from tests.admin.conftest import Api
from tests.admin.upstream import free_port


def offered(url: str, *words: str) -> list[str]:
    """What bash is told when the tab key is pressed behind these words."""
    environment = {
        **os.environ,
        "_LLAMA_ROUTER_COMPLETE": "bash_complete",
        "COMP_WORDS": " ".join(("llama-router", *words)),
        "COMP_CWORD": str(len(words)),
        "LLAMA_ROUTER_URL": url,
    }
    code = "from router.cli import cli; cli(prog_name='llama-router')"
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert not done.stderr, done.stderr
    return [line.partition(",")[2] for line in done.stdout.splitlines() if line]


async def test_commands_options_and_models_are_offered(api: Api):
    await api.start()
    assert await asyncio.to_thread(offered, api.url, "unl") == ["unload"]
    assert "--force" in await asyncio.to_thread(offered, api.url, "unload", "--f")
    assert await asyncio.to_thread(offered, api.url, "load", "ti") == ["tiny"]
    assert await asyncio.to_thread(offered, api.url, "run", "sm") == ["small"], "an alias"


def test_without_a_router_nothing_is_offered_and_nothing_said():
    assert offered(f"http://127.0.0.1:{free_port()}", "load", "t") == []


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_it_is_printed_for_each_shell_with_its_place(shell: str):
    result = CliRunner().invoke(cli, ["completion", shell])
    assert result.exit_code == 0
    assert "_LLAMA_ROUTER_COMPLETE" in result.stdout
    assert "write this to ~/" in result.stderr


def test_the_shell_of_the_user_is_meant_without_a_word():
    environment = {"SHELL": "/usr/bin/fish"}
    assert "fish" in CliRunner().invoke(cli, ["completion"], env=environment).stdout
    assert CliRunner().invoke(cli, ["completion"], env={"SHELL": "/bin/dash"}).exit_code == 2


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
def test_bash_understands_it(tmp_path: Path):
    script = tmp_path / "llama-router"
    script.write_text(CliRunner().invoke(cli, ["completion", "bash"]).stdout)
    done = subprocess.run(
        ["bash", "-c", f"source {script} && complete -p llama-router"], capture_output=True, text=True
    )
    assert "llama-router" in done.stdout, done.stderr
