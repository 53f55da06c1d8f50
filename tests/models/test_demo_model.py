"""The demonstration model: small, the same each time, written whole, and a model to the real llama-server."""

from __future__ import annotations

import asyncio
import hashlib
import json
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp
import gguf
import pytest

from router.models.demo_model import NAME, write_demo_model
from tests.waiting import is_healthy, until

FINDER = Path(__file__).parent.parent / "bin" / "build-llama-server"
STARTED_WITHIN_SECONDS = 60.0


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("models") / "demo.gguf"
    write_demo_model(path)
    return path


def test_it_is_small_and_the_same_each_time(model, tmp_path):
    write_demo_model(tmp_path / "new folder" / "again.gguf")
    assert digest(tmp_path / "new folder" / "again.gguf") == digest(model)
    assert model.stat().st_size < 1_000_000


def test_a_strict_reader_finds_all_that_llama_cpp_asks_for(model):
    reader = gguf.GGUFReader(model)
    assert reader.fields["general.architecture"].contents() == "llama"
    assert reader.fields["general.name"].contents() == NAME
    tokens = reader.fields["tokenizer.ggml.tokens"].contents()
    assert len(tokens) == len(set(tokens)), "a text that two tokens have can only be read as one of them"
    assert len(reader.fields["tokenizer.ggml.scores"].contents()) == len(tokens)
    assert len(reader.fields["tokenizer.ggml.token_type"].contents()) == len(tokens)
    assert tokens[reader.fields["tokenizer.ggml.eos_token_id"].contents()] == "<|im_end|>"
    shapes = {tensor.name: tuple(int(n) for n in tensor.shape) for tensor in reader.tensors}
    width = reader.fields["llama.embedding_length"].contents()
    assert shapes["token_embd.weight"] == shapes["output.weight"] == (width, len(tokens))
    assert shapes["blk.1.ffn_down.weight"] == (reader.fields["llama.feed_forward_length"].contents(), width)
    assert (
        sum(name.startswith("blk.") for name in shapes) == 9 * reader.fields["llama.block_count"].contents()
    )


def test_a_write_that_fails_leaves_nothing_behind(tmp_path):
    (tmp_path / "demo.gguf").mkdir()
    with pytest.raises(OSError, match="demo"):
        write_demo_model(tmp_path / "demo.gguf")
    assert [path.name for path in tmp_path.iterdir()] == ["demo.gguf"]


@pytest.mark.e2e
async def test_the_real_server_streams_words_from_it_and_it_ends_by_itself(model):
    vocabulary = set(gguf.GGUFReader(model).fields["tokenizer.ggml.tokens"].contents())
    async with served(model) as client:
        # Whether one answer ends within 300 tokens is chance (99 in 100); that none of six does is not.
        answers = [await chat(client, seed) for seed in range(6)]
    assert any(finish_reason == "stop" for _, finish_reason in answers)
    for text, _ in answers:
        words = text.replace(".", "").split()
        assert len(words) >= 4, "it may end after its first sentence, not before"
        assert {f"▁{word}" for word in words} <= vocabulary


async def chat(client: aiohttp.ClientSession, seed: int) -> tuple[str, str | None]:
    """The text of a streamed answer, put together, and why it ended."""
    question = {"role": "user", "content": f"Who are you, number {seed}? – ¿Sí?"}
    body = {"messages": [question], "seed": seed, "max_tokens": 300, "stream": True}
    text, finish_reason = "", None
    async with client.post("/v1/chat/completions", json=body) as response:
        assert response.status == 200, await response.text()
        async for event in events(response):
            choice = event["choices"][0]
            text += choice["delta"].get("content") or ""
            finish_reason = choice["finish_reason"] or finish_reason
    return text, finish_reason


async def events(response: aiohttp.ClientResponse) -> AsyncIterator[dict]:
    async for line in response.content:
        if line.startswith(b"data: {"):
            yield json.loads(line.removeprefix(b"data: "))


@asynccontextmanager
async def served(model: Path) -> AsyncIterator[aiohttp.ClientSession]:
    """A client of the real llama-server with the model, ready."""
    # Not in tmp_path: the path of a Unix socket has 107 bytes.
    with tempfile.TemporaryDirectory(prefix="demo-") as temporary:
        folder = Path(temporary)
        socket = folder / "model.sock"
        options = ("--ctx-size", "1024", "--parallel", "1", "--threads", "1", "--fit", "off")
        with open(folder / "log", "wb") as log:
            child = await asyncio.create_subprocess_exec(
                llama_server(), "-m", model, "--host", socket, *options, stdout=log, stderr=log
            )
        # llama-server closes a connection when a stream on it has ended, without announcing it.
        connector = aiohttp.UnixConnector(str(socket), force_close=True)
        try:
            async with aiohttp.ClientSession("http://localhost", connector=connector) as client:
                await until(
                    lambda: is_healthy(client),
                    holds=lambda it: it or child.returncode is not None,
                    seconds=STARTED_WITHIN_SECONDS,
                )
                assert child.returncode is None, (folder / "log").read_text()
                yield client
        finally:
            if child.returncode is None:
                child.kill()
            await child.wait()


def llama_server() -> str:
    found = subprocess.run([sys.executable, FINDER, "--print"], capture_output=True, text=True)
    if found.returncode:
        pytest.skip("there is no llama-server here; bin/build-llama-server makes one")
    return found.stdout.strip()


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
