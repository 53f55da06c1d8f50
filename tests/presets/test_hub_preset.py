"""What a repository of the hub may set by its preset.ini, and what it may not."""

from __future__ import annotations

from pathlib import Path

import pytest

from router.config import Config
from router.presets import HubPreset, Presets, load_presets, read_hub_preset
from router.presets.hub_preset import MAX_BYTES
from router.presets.layer import Layer
from tests.llama_server_options import OPTIONS

EXAMPLE = """
version = 1
[*]
top-k = 20
[small] ; one
hf-repo = org/small-GGUF:Q8_0
ctx-size = 2048
temp = 0.5
chat-template-kwargs = {"enable_thinking": false}
[large]
hf = org/large-GGUF
spec-draft-hf = org/small-GGUF
top-k = 40
"""


def read(tmp_path: Path, text: str | bytes) -> HubPreset:
    path = tmp_path / "preset.ini"
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return read_hub_preset(path, "org/presets", OPTIONS)


def test_its_sections_are_models_of_the_hub_with_settings(tmp_path):
    preset = read(tmp_path, EXAMPLE)
    assert preset.warnings == []
    small, large = preset.models["small"], preset.models["large"]
    assert small.fields["hf_repo"] == "org/small-GGUF:Q8_0" and small.fields["ctx_size"] == 2048
    assert small.args["top-k"] == ("--top-k", "20") and large.args["top-k"] == ("--top-k", "40")
    assert large.fields["draft_hf_repo"] == "org/small-GGUF"
    assert preset.repositories == ("org/small-GGUF:Q8_0", "org/large-GGUF", "org/small-GGUF")


@pytest.mark.parametrize(
    "line",
    [
        "model = /etc/passwd",
        "mmproj = /etc/passwd",
        "lora = /tmp/l.gguf",
        "md = /tmp/d.gguf",
        "log-file = /home/me/.bashrc",
        "LLAMA_ARG_LOG_FILE = /home/me/.bashrc",
        "slot-save-path = /home/me",
        "log-prompts-dir = /home/me",
        "media-path = /",
        "grammar-file = /etc/passwd",
        "jf = /etc/passwd",
        "chat-template-file = /etc/passwd",
        "lookup-cache-dynamic = /home/me/x",
        "models-dir = /",
        "model-url = http://127.0.0.1/x.gguf",
        "mmproj-url = http://127.0.0.1/x.gguf",
        "docker-repo = x",
        "rpc = 10.0.0.1:50052",
        "tools = all",
        "agent = 1",
        "mcp-servers-json = {}",
        "mcp-servers-config = /x",
        "ui-mcp-proxy = 1",
        "host = 0.0.0.0",
        "port = 80",
        "api-key = x",
        "hf-token = x",
        "device = CUDA1",
        "override-kv = a=int:1",
        "props = 1",
        "nonsense = 1",
    ],
)
def test_a_file_an_address_a_command_and_whatever_is_not_named_spoil_their_model_alone(tmp_path, line):
    preset = read(tmp_path, f"[bad]\nhf-repo = org/a\n{line}\n[good]\nhf-repo = org/a\n")
    assert preset.models["bad"].problems and not preset.models["good"].problems
    assert not {"model", "mmproj", "lora", "draft_model", "devices"} & preset.models["bad"].fields.keys()
    assert read(tmp_path, f"[*]\n{line}\n[a]\nhf-repo = org/a\n").models["a"].problems


@pytest.mark.parametrize("line", ["load-on-startup = 1", "alias = gpt-4", "dedup-cache-models = 1"])
def test_what_is_for_the_owner_of_the_router_to_say_is_left_out(tmp_path, line):
    preset = read(tmp_path, f"[a]\nhf-repo = org/a\n{line}\n")
    assert preset.models["a"].fields == {"hf_repo": "org/a", "env": {}} and not preset.models["a"].problems
    assert "it is not for a repository of the hub to set" in preset.warnings[0]


@pytest.mark.parametrize(
    ("text", "warning"),
    [
        ("[a]\ntemp = 1\n", "[a] is left out: it names no hf-repo"),
        ("temp = 1\n", "temp stands before any section"),
        (b"\xff\xfe[a]", "cannot be read"),
        ("[a]\n" + "; x\n" * MAX_BYTES, "more than 64 KiB"),
        ("".join(f"[{n}]\n" for n in range(300)), "more than 256 sections"),
    ],
)
def test_what_is_no_preset_is_a_warning(tmp_path, text, warning):
    preset = read(tmp_path, text)
    assert preset.models == {} and warning in preset.warnings[0]


@pytest.mark.parametrize("repo", ["../../etc", "/etc/passwd", "a/b/c", "https://x/y", "a/../b"])
def test_a_repository_that_is_none_spoils_its_model(tmp_path, repo):
    preset = read(tmp_path, f"[a]\nhf-repo = {repo}\n")
    assert not preset.models or preset.models["a"].problems


def test_a_file_that_is_not_there_is_a_warning(tmp_path):
    assert "cannot be read" in read_hub_preset(tmp_path / "none", "org/presets").warnings[0]


def test_settings_of_ours_stand_above_a_repositorys_and_a_model_of_ours_before_it(tmp_path):
    hub = read(tmp_path, EXAMPLE)
    ours = Presets(models={"small": (Layer({"ctx_size": 9}),), "large": (Layer({"model": Path("/m.gguf")}),)})
    both = ours.with_hub_preset(hub, ())
    preset = both.for_model("small")
    assert (preset.ctx_size, preset.hf_repo) == (9, "org/small-GGUF:Q8_0")
    assert both.for_model("large").hf_repo is None
    assert "[large] is left out: there is a model of that name already" in both.warnings[-1]
    taken = Presets().with_hub_preset(hub, ["small"])
    assert taken.names == ("large",)


def test_two_repositories_do_not_share_a_name(tmp_path):
    hub = read(tmp_path, EXAMPLE)
    twice = Presets().with_hub_preset(hub, ()).with_hub_preset(hub, ())
    assert twice.names == ("small", "large") and len(twice.warnings) == 2


def test_nothing_of_a_repository_is_for_all_models(tmp_path):
    presets = load_presets_of(tmp_path, "[*]\ntop-k = 1\n[default]\nhf-repo = org/a\n")
    assert presets.for_model("other").args == ()


def load_presets_of(tmp_path: Path, text: str) -> Presets:
    return load_presets(Config(), Path("/nonexistent")).with_hub_preset(read(tmp_path, text), ())
