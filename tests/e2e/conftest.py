"""A router in a process of its own with the real llama-server and models of random weights."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from router.engines.llama_server import find_binary
from router.errors import StartupError
from tests.make_gguf import make_bert, make_llama, make_speaker
from tests.router_process import RouterProcess

Start = Callable[..., RouterProcess]

#: What all tests here give every child: small, and of few threads, as they share a machine.
SMALL = ("--", "--threads", "1", "--no-warmup")


#: How models are told of tools, and how they answer, in the words of many of them.
TOOL_TEMPLATE = Path(__file__).with_name("tools.jinja")
TOOL_CALL = '<tool_call>\n{"name": "set_light", "arguments": {"on": true}}\n</tool_call>'


@pytest.fixture(scope="session")
def llama_server() -> Path:
    try:
        return find_binary(os.environ.get("LLAMA_SERVER"))
    except StartupError as missing:
        pytest.skip(f"needs the real llama-server: {missing.message}")


@pytest.fixture
def folder() -> Iterator[Path]:
    """A short one: the paths of Unix sockets are bounded."""
    with tempfile.TemporaryDirectory(prefix="router-") as name:
        yield Path(name)


@pytest.fixture
def router(folder: Path, llama_server: Path) -> Start:
    """A router with the models a test names, not started yet; "embedding" among them is an encoder, and
    "speaker" asks for the light to be switched on.
    """

    def make(*models: str, args: tuple[str, ...] = (), config: str = "") -> RouterProcess:
        made = RouterProcess(folder, llama_server, *args, *SMALL, config=config)
        for seed, name in enumerate(models):
            if name == "speaker":
                make_speaker(made.models / "speaker.gguf", TOOL_CALL, template=TOOL_TEMPLATE.read_text())
                continue
            write = make_bert if name == "embedding" else make_llama
            write(made.models / f"{name}.gguf", name=name, seed=seed)
        return made

    return make
