"""The same folders, cache and INI presets give the same models as llama.cpp's own router finds in them."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from router.config import Config, PathsConfig
from router.engines.llama_binary import find_binary
from router.errors import StartupError
from router.models.catalog import Catalog
from router.presets.layer import LayerReader
from tests.make_gguf import make_llama

INI = """\
version = 1

; for all
[*]
c = 512
no-cont-batching = 1

[tiny.Q4]
temp = 0.7
jinja = false
np = 2
LLAMA_ARG_N_GPU_LAYERS = 3
alias = t1,t2
kvu = 1

[o/r:q4_k_m]
top-k = 5
fa = on

[custom]
model = {folder}/m/tiny.Q4.gguf
chat-template-kwargs = {{"enable_thinking": false}}
stop-timeout = 3
"""
#: What llama.cpp's router adds of its own, and what the catalog knows as a path.
OF_THE_ROUTER = {"--host", "--port", "--alias", "--log-colors", "--model", "--hf-repo"}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "m").mkdir()
    model = make_llama(tmp_path / "m" / "tiny.Q4.gguf")
    snapshot = tmp_path / "hf" / "models--o--r" / "snapshots" / ("a" * 40)
    for target in (
        tmp_path / "m" / "sub" / "x-Q8_0.gguf",
        snapshot / "r-Q4_K_M.gguf",
        snapshot / "r-UD-Q4_K_XL.gguf",
        snapshot / "without.gguf",
        snapshot / "deep" / "r-F16-00001-of-00002.gguf",
        snapshot / "deep" / "r-F16-00002-of-00002.gguf",
    ):
        target.parent.mkdir(parents=True, exist_ok=True)
        os.link(model, target)
    (tmp_path / "hf" / "models--o--r" / "refs").mkdir()
    (tmp_path / "hf" / "models--o--r" / "refs" / "main").write_text("a" * 40)
    (tmp_path / "p.ini").write_text(INI.format(folder=tmp_path))
    return tmp_path


@contextlib.contextmanager
def llama_cpp_router(folder: Path) -> Iterator[str]:
    """llama.cpp's router over the folder, on a Unix socket."""
    try:
        binary = find_binary()
    except StartupError as error:
        pytest.skip(str(error))
    with tempfile.TemporaryDirectory(dir="/tmp") as short, (folder / "log").open("wb") as log:
        address = f"{short}/r.sock"
        process = subprocess.Popen(
            [binary, "--host", address, "--models-dir", folder / "m", "--models-preset", folder / "p.ini"],
            env={"PATH": os.environ["PATH"], "HOME": str(folder), "LLAMA_CACHE": str(folder / "hf")},
            stdout=log,
            stderr=log,
            stdin=subprocess.DEVNULL,
            start_new_session=True,
        )
        try:
            yield address
        finally:
            process.kill()
            process.wait(30)


def get(address: str, path: str) -> Any:
    deadline = time.monotonic() + 60
    while True:
        connection = http.client.HTTPConnection("localhost")
        connection.sock = socket.socket(socket.AF_UNIX)
        try:
            connection.sock.connect(address)
            connection.request("GET", path)
            answer = connection.getresponse()
            body = json.loads(answer.read())
            if answer.status != 503 or time.monotonic() > deadline:  # 503: it is still starting
                return body
            time.sleep(0.05)
        except (FileNotFoundError, ConnectionRefusedError):
            assert time.monotonic() < deadline, "llama-server does not answer"
            time.sleep(0.02)
        finally:
            connection.close()


@pytest.mark.e2e
def test_the_models_and_their_settings_are_those_of_llama_cpp(folder, monkeypatch):
    monkeypatch.setenv("LLAMA_CACHE", str(folder / "hf"))
    catalog = Catalog.scan(
        Config(paths=PathsConfig(models_dirs=(folder / "m",), presets=(folder / "p.ini",)))
    )
    with llama_cpp_router(folder) as address:
        theirs = {model["id"]: model for model in get(address, "/models")["data"]}
    # Their ids are names here too. An id here has all that a file's name says, as theirs can be that of two.
    meant = {name: catalog.resolve(name) for name in theirs}
    assert set(catalog.entries) - {entry.id for entry in meant.values()} == {"o/r:without"}
    assert len({entry.id for entry in meant.values()}) == len(theirs)
    assert {name for name in theirs if name not in catalog.entries} == {"o/r:F16", "o/r:Q4_K_XL"}
    for name, model in theirs.items():
        preset = meant[name].preset
        assert set(model["aliases"]) <= set(meant[name].aliases)
        args = model["status"]["args"][1:]
        reader = LayerReader((folder,))
        while args:
            count = 2 if len(args) > 1 and not args[1].startswith("--") else 1
            if args[0] not in OF_THE_ROUTER:
                reader.set_args(args[:count], name)
            args = args[count:]
        layer = reader.layer()
        assert not layer.problems
        assert layer.args or layer.fields
        assert {key: getattr(preset, key) for key in layer.fields} == dict(layer.fields)
        assert {token for tokens in layer.args.values() for token in tokens} <= set(preset.args)
