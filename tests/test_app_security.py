"""What a running router keeps from others: its files, its children, prompts and keys."""

from __future__ import annotations

import ast
import asyncio
import os
import re
import stat
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import AsyncExitStack
from pathlib import Path
from urllib.parse import quote

import psutil
import pytest

import router as package
from tests.make_gguf import make_llama
from tests.router_process import RouterProcess
from tests.test_app import binary

Start = Callable[..., RouterProcess]
NOBODY = 65534


@pytest.fixture
def start() -> Iterator[Start]:
    """A router with two models, not started yet; in a short folder, as the paths of sockets are bounded."""
    with tempfile.TemporaryDirectory(prefix="router-") as name:
        folder = Path(name)

        def make(*args: str, config: str = "", **env: str) -> RouterProcess:
            made = RouterProcess(folder, binary(folder), *args, config=config, env=env)
            for model in ("tiny", "other"):
                make_llama(made.models / f"{model}.gguf", sparse=True)
            return made

        yield make


# --- files and sockets ---


async def test_all_that_it_writes_is_its_users_alone(start: Start):
    async with start() as up:
        await up.chat("tiny")
        await up.events("other")
        seen = {path: path.lstat() for path in [up.state, *up.state.rglob("*")]}
        open_to_others = {
            str(path): stat.filemode(status.st_mode)
            for path, status in seen.items()
            if status.st_mode & 0o077
        }
        assert not open_to_others
        kinds = {path.suffix for path in seen}
        assert {".sqlite", ".log", ".sock"} <= kinds, "nothing was left out"


@pytest.mark.skipif(os.getuid() != 0, reason="only root can try as another user")
async def test_another_user_reaches_no_child(start: Start):
    async with start() as up:
        await up.chat("tiny")
        for folder in (up.folder, up.folder.parent):
            assert folder.stat().st_uid == 0
        up.folder.chmod(0o755)
        (name,) = up.sockets()
        script = (
            "import os, socket, sys\n"
            "if len(sys.argv) > 2:\n"
            "    os.setgroups([]), os.setgid(int(sys.argv[2])), os.setuid(int(sys.argv[2]))\n"
            "socket.socket(socket.AF_UNIX).connect(sys.argv[1])"
        )
        tried = [sys.executable, "-SE", "-c", script, str(up.state / "run" / name)]
        subprocess.run(tried, check=True)
        refused = subprocess.run([*tried, str(NOBODY)], capture_output=True)
        assert refused.returncode != 0
        assert b"PermissionError" in refused.stderr or b"Permission denied" in refused.stderr
        assert not psutil.Process(up.children()[0].pid).net_connections("inet"), "no port either"


# --- names and arguments ---

OUTSIDE = (
    "../secret",
    "../../etc/passwd",
    "/etc/passwd",
    "tiny/../../secret",
    "./tiny",
    "tiny.gguf/../tiny",
    "..",
    "models/tiny",
    "tiny\u0000",
    "~/secret",
    "$(touch owned)",
    "; touch owned",
    "file:///etc/passwd",
)


async def test_a_name_leads_nowhere_but_to_the_models_there_are(start: Start):
    up = start()
    make_llama(up.folder / "secret.gguf", sparse=True)
    async with up:
        for name in OUTSIDE:
            status, answer = await up.chat(name)
            assert (status, answer["error"]["code"]) == (404, "model_not_found"), name
            for path in ("/models/load", "/models/unload"):
                async with up.client.post(path, json={"model": name}) as refused:
                    assert refused.status == 404, name
            async with up.client.get(f"/v1/models/{quote(name, safe='')}") as refused:
                assert refused.status == 404, name
        assert not up.children()
        assert not list(up.folder.rglob("owned"))


async def test_a_request_cannot_bring_arguments(start: Start):
    async with start() as up:
        body = {"model": "tiny", "args": ["--log-file", str(up.folder / "owned")]}
        async with up.client.post("/models/load", json=body) as refused:
            assert refused.status == 400
        await up.chat("tiny", args=["--threads", "99"], extra_args="--threads 99")
        assert "99" not in up.children()[0].cmdline(), "the child reads the body, and nobody else does"


async def test_arguments_that_would_take_a_child_out_of_hand_are_refused_from_presets(start: Start):
    flags = ("--host", "--port", "--api-key", "--log-file", "--models-dir")
    config = "".join(f'[models."tiny{flag}"]\nargs = ["{flag}", "x"]\n' for flag in flags)
    up = start(config=config)
    for flag in flags:
        make_llama(up.models / f"tiny{flag}.gguf", sparse=True)
    async with up:
        for flag in flags:
            status, answer = await up.chat(f"tiny{flag}")
            assert (status, answer["error"]["code"]) == (422, "model_unusable")
            assert f": {flag} " in answer["error"]["message"]
        assert (await up.chat("other"))[0] == 200


def _is_of_platform(node: ast.Attribute) -> bool:
    """platform.system() is the name of the operating system, and runs nothing."""
    return isinstance(node.value, ast.Name) and node.value.id == "platform"


def test_no_command_goes_through_a_shell():
    shells = {
        "system",
        "popen",
        "getoutput",
        "getstatusoutput",
        "create_subprocess_shell",
        "subprocess_shell",
    }
    found = []
    for path in Path(package.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Attribute) and node.attr in shells and not _is_of_platform(node):
                found.append(f"{path}:{node.lineno} {node.attr}")
            if isinstance(node, ast.ImportFrom):
                found += [f"{path}:{node.lineno} {one.name}" for one in node.names if one.name in shells]
            if isinstance(node, ast.keyword) and node.arg == "shell":
                found.append(f"{path}:{node.value.lineno} shell=")
            # The name of one as the first word of a command, or given to something that is called.
            words = node.elts if isinstance(node, ast.List | ast.Tuple) else []
            words = node.args if isinstance(node, ast.Call) else words
            for word in words[:1]:
                if isinstance(word, ast.Constant) and word.value in ("/bin/sh", "sh", "bash"):
                    found.append(f"{path}:{word.lineno} {word.value}")
    assert not found


# --- what is not told ---

MARK = "xylophone-4711"


def where_is(text: str, up: RouterProcess) -> list[str]:
    """Everything that it wrote, searched."""
    files = [path for path in up.state.rglob("*") if path.is_file()]
    assert any(path.suffix == ".log" for path in files)
    found = [str(path) for path in files if text.encode() in path.read_bytes()]
    return found + (["its output"] if text in up.output else [])


async def test_prompts_are_written_nowhere(start: Start):
    config = '[models."other"]\nenv = { FAKE_LLAMA_CRASH_MID_STREAM = "2" }\n'
    async with start(config=config) as up:
        said = [{"role": "user", "content": MARK}]
        assert (await up.chat("tiny", messages=said))[0] == 200
        await up.events("tiny", messages=said)
        await up.events("other", messages=said)  # and breaks off
        await up.chat("unknown", messages=said)
        await up.chat("tiny", messages=said, keep_alive="tomorrow")
        async with up.client.post("/v1/completions?model=tiny", data=f'["{MARK}"]') as answer:
            await answer.read()
        async with up.client.post("/v1/completions", data=f'{{"prompt": "{MARK}') as refused:
            assert refused.status == 400
        async with up.client.get(f"/v1/models?prompt={MARK}") as answer:
            assert answer.status == 200
        assert await up.stop() == 0
        assert where_is(MARK, up) == []


async def test_keys_are_written_nowhere_and_no_child_knows_them(start: Start):
    keys = {"KEY_OF_MANY": f"{MARK}-many", "KEY_OF_ADMIN": f"{MARK}-admin", "HF_TOKEN": f"{MARK}-hub"}
    config = '[server]\napi_keys = ["env:KEY_OF_MANY"]\nadmin_keys = ["env:KEY_OF_ADMIN"]\n'
    async with start(config=config, LLAMA_API_KEY=f"{MARK}-inherited", **keys) as up:
        for key, status in ((keys["KEY_OF_MANY"], 200), (f"{MARK}-wrong", 401)):
            body = {"model": "tiny", "messages": []}
            headers = {"Authorization": f"Bearer {key}"}
            async with up.client.post("/v1/chat/completions", json=body, headers=headers) as answer:
                assert answer.status == status
                assert MARK not in await answer.text()
        (child,) = up.children()
        assert MARK not in " ".join(child.cmdline())
        assert MARK not in str(child.environ())
        assert MARK not in " ".join(psutil.Process(up.process.pid).cmdline())
        for path in ("/v1/models", "/vram"):
            headers = {"x-api-key": keys["KEY_OF_ADMIN"]}
            async with up.client.get(path, headers=headers) as answer:
                assert MARK not in await answer.text()
        assert await up.stop() == 0
        assert where_is(MARK, up) == []
        assert re.search(r" 401 ", up.output), "the refusal itself is noted"


# --- who may ask ---

PAGES = [
    {"Host": "attacker.example"},
    {"Origin": "https://attacker.example"},
    {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "no-cors", "Sec-Fetch-Dest": "image"},
]


@pytest.mark.parametrize("headers", PAGES)
async def test_no_page_of_another_site_loads_a_model_reads_or_ends_the_router(
    start: Start, headers: dict[str, str]
):
    async with start() as up:
        asked = [
            ("POST", "/v1/chat/completions", b'{"model": "tiny", "messages": []}'),
            ("POST", "/models/load", b'{"model": "tiny"}'),
            ("POST", "/restart", b""),
            ("GET", "/props?model=tiny&autoload=1", b""),
            ("GET", "/models/log?model=tiny", b""),
            ("DELETE", "/models?model=tiny", b""),
        ]
        for method, path, body in asked:
            text = headers | {"Content-Type": "text/plain"}
            async with up.client.request(method, path, data=body, headers=text) as refused:
                assert refused.status == 403, path
        assert not up.children()
        assert (await up.chat("tiny"))[0] == 200


async def test_beyond_loopback_it_answers_to_addresses_and_not_to_other_names(start: Start):
    up = start("--host", "0.0.0.0", config='[server]\nallowed_hosts = ["llm.example"]\n')
    async with up:
        await up.until(lambda: "ANYBODY WHO REACHES http://0.0.0.0:" in up.output, "it warns")
        for host, status in (("192.0.2.7", 200), ("llm.example", 200), ("attacker.example", 403)):
            async with up.client.get("/v1/models", headers={"Host": host}) as answer:
                assert answer.status == status, host


async def test_of_several_addresses_the_warning_names_those_that_others_reach(start: Start):
    up = start("--host", "127.0.0.1", "--host", "0.0.0.0", config='[server]\nadmin_keys = ["k"]\n')
    async with up:
        words = r"ANYBODY WHO REACHES http://0\.0\.0\.0:\d+ MAY USE MODELS"
        await up.until(lambda: re.search(words, up.output), "it warns")
    up = start("--host", "127.0.0.1,127.0.0.2")
    async with up:
        assert "ANYBODY" not in up.output
        assert re.search(r"listens on http://127\.0\.0\.1:(\d+) and http://127\.0\.0\.2:\1 ", up.output)


async def test_one_address_does_not_take_all_connections(start: Start):
    async with start(config="[server]\nconnections_max = 8\n") as up, AsyncExitStack() as stack:
        port = int(up.url.rpartition(":")[2])

        async def ask(source: str) -> bytes:
            reader, writer = await asyncio.open_connection("127.0.0.1", port, local_addr=(source, 0))
            stack.callback(writer.close)
            writer.write(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
            return (await reader.readuntil(b"\r\n\r\n"))[9:12]

        assert [await ask("127.0.0.3") for _ in range(7)] == [b"200"] * 6 + [b"429"]
        assert await ask("127.0.0.4") == b"200"
