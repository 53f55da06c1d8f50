"""A header says whether a file is a model, and what it is else."""

from __future__ import annotations

import pytest

from router.models.catalog.header import Header
from router.models.catalog.kinds import look_at, ruled_out
from router.models.catalog.names import parse_name
from tests.models.catalog.conftest import gguf


@pytest.mark.parametrize(
    ("header", "reason"),
    [
        (Header("llama", kind="adapter"), "a LoRA adapter (general.type = adapter)"),
        (Header("clip"), "a projector or encoder (architecture clip)"),
        (Header("clip", kind="mmproj"), "a projector or encoder (general.type = mmproj)"),
        (Header("llama", kind="mmproj"), "a projector or encoder"),
        (Header(None, kind="imatrix"), "an importance matrix"),
        (Header("llama", kind="imatrix"), "an importance matrix"),
        (Header("llama", kind="vocab"), "a vocabulary without weights (general.type = vocab)"),
        (Header(None, kind="dataset"), "a data set"),
        (Header("controlvector"), "a control vector"),
        (Header("dflash"), "a draft"),
        (Header("eagle3"), "a draft"),
        (Header("gemma4-assistant"), "a draft"),
        (Header("flux"), "an image, video or music model"),
        (Header("sd3"), "an image, video or music model"),
        (Header("qwen_image"), "an image, video or music model"),
        (Header("Wan"), "an image, video or music model"),
        (Header("wavtokenizer-dec"), "a vocoder"[2:]),
    ],
)
@pytest.mark.parametrize("is_configured", [False, True])
def test_what_the_header_rules_out_is_no_model_whoever_asks_for_it(header, reason, is_configured):
    assert reason in (ruled_out(header, is_configured=is_configured) or "")


@pytest.mark.parametrize("architecture", ["t5encoder", "made-up-in-2031"])
def test_what_may_be_of_use_is_tried_where_it_is_configured(architecture):
    assert "a section of its own" in (ruled_out(Header(architecture)) or "")
    assert ruled_out(Header(architecture), is_configured=True) is None


@pytest.mark.parametrize("header", [Header("llama"), Header("bert"), Header("qwen3", kind="model"), Header()])
def test_a_model_and_what_says_nothing_are_tried(header):
    assert ruled_out(header) is None


@pytest.mark.parametrize(
    ("file", "content", "kind"),
    [
        ("m.gguf", gguf(general__architecture="llama"), "model"),
        ("m.gguf", gguf(), "model"),
        ("m.gguf", b"no GGUF", "model"),
        ("m.gguf", gguf(general__architecture="clip"), "projector"),
        ("mmproj.gguf", gguf(), "projector"),
        ("mmproj.gguf", gguf(general__architecture="llama"), "model"),
        ("m.gguf", gguf(general__architecture="eagle3"), "draft"),
        ("m-dflash.gguf", gguf(general__architecture="llama"), "draft"),
        ("m.gguf", gguf(general__architecture="llama", general__type="adapter"), "adapter"),
        ("imatrix.gguf", gguf(), "other"),
        ("m.gguf", gguf(general__architecture="flux"), "other"),
    ],
)
def test_the_header_decides_before_the_name(tmp_path, file, content, kind):
    (tmp_path / file).write_bytes(content)
    name = parse_name(file)
    assert name is not None
    assert look_at(tmp_path, name).kind == kind
