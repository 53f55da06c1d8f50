"""A projector or draft goes only with the model it belongs to."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from router.models.catalog.companions import (
    Sorted,
    adapter_misfit,
    misfit,
    mmproj_of,
    sort_out,
    with_true_width,
)
from router.models.catalog.header import Header, glance
from router.models.catalog.kinds import look_at
from router.models.catalog.names import parse_name
from tests.make_gguf import Tensor, make_llama, make_mmproj, write_gguf
from tests.models.catalog.conftest import gguf

LLAMA: dict[str, Any] = {"general__architecture": "llama", "llama__embedding_length": 64}
CLIP: dict[str, Any] = {"general__architecture": "clip", "clip__vision__projection_dim": 64}


def sorted_out(folder: Path, **files: dict[str, Any]) -> Sorted:
    """Files by their names; "__" in a name is a folder's end."""
    found = []
    for key, keys in files.items():
        name = parse_name(f"{key.replace('__', '/').replace('_', '-')}.gguf")
        assert name is not None
        path = folder / name.path
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(gguf(**keys))
        found.append(look_at(folder, name))
    return sort_out(found)


def projectors(parts: Sorted) -> dict[str, str | None]:
    return {
        model[:-5]: beside.mmproj.name.path[:-5] if beside.mmproj else None
        for model, beside in parts.beside.items()
    }


def test_it_goes_with_the_models_whose_name_it_has(tmp_path):
    parts = sorted_out(tmp_path, flash_Q4=LLAMA, flash_i_Q4=LLAMA, mmproj_flash_F16=CLIP, flash_i_vision=CLIP)
    assert projectors(parts) == {"flash-Q4": "mmproj-flash-F16", "flash-i-Q4": "flash-i-vision"}


def test_without_a_name_it_goes_with_every_model_that_it_fits(tmp_path):
    wide = LLAMA | {"llama__embedding_length": 128}
    parts = sorted_out(tmp_path, a_Q4=LLAMA, b_Q4=LLAMA, c_Q4=wide, mmproj_F16=CLIP)
    assert projectors(parts) == {"a-Q4": "mmproj-F16", "b-Q4": "mmproj-F16", "c-Q4": None}


def test_with_the_name_of_none_of_several_models_it_goes_with_none(tmp_path):
    parts = sorted_out(tmp_path, a_Q4=LLAMA, b_Q4=LLAMA, mmproj_c_F16=CLIP)
    assert projectors(parts) == {"a-Q4": None, "b-Q4": None}
    assert [reason for _, reason in parts.unused] == ["it has the name of none of the models beside it"]


def test_beside_a_single_model_its_name_does_not_matter(tmp_path):
    parts = sorted_out(tmp_path, finetune_Q4=LLAMA, finetune_Q8=LLAMA, mmproj_base_F16=CLIP)
    assert set(projectors(parts).values()) == {"mmproj-base-F16"}


def test_of_two_the_one_that_fits_is_taken_though_the_other_is_nearer(tmp_path):
    wide = CLIP | {"clip__vision__projection_dim": 128}
    parts = sorted_out(tmp_path, sub__m_Q4=LLAMA, sub__mmproj_F16=wide, mmproj_F16=CLIP)
    assert projectors(parts) == {"sub/m-Q4": "mmproj-F16"}


def test_an_audio_projector_fits_by_its_own_width(tmp_path):
    audio = {"general__architecture": "clip", "clip__audio__projection_dim": 64}
    parts = sorted_out(tmp_path, m_Q4=LLAMA, mmproj_F16=audio)
    assert projectors(parts) == {"m-Q4": "mmproj-F16"}


def test_a_file_of_another_architecture_is_no_projector_whatever_it_says():
    other = Header("llama", kind="mmproj", n_embd=64)
    assert misfit(other, Header("llama", n_embd=64)) == "is no projector (architecture llama)"


def test_an_old_projector_fits_by_its_last_matrix_and_not_by_what_it_says(tmp_path):
    path = make_mmproj(tmp_path / "mmproj.gguf", projection=128)
    said = Header("clip", projector="mlp", serves_n_embd=(768,))
    assert misfit(with_true_width(said, path), Header("llama", n_embd=128)) is None
    assert (
        misfit(with_true_width(said, path), Header("llama", n_embd=768))
        == "is made for embeddings of 128 dimensions, not 768"
    )


@pytest.mark.parametrize(
    ("draft", "model", "reason"),
    [
        (
            Header("llama", n_embd=32, tokenizer="gpt2", n_vocab=1000),
            Header(tokenizer="gpt2", n_vocab=1128),
            None,
        ),
        (
            Header("llama", tokenizer="gpt2", n_vocab=1000),
            Header(tokenizer="gpt2", n_vocab=1129),
            "has a vocabulary of 1000 tokens, not 1129",
        ),
        (Header("llama", tokenizer="llama"), Header(tokenizer="gpt2"), "has the tokenizer llama, not gpt2"),
        (Header("dflash", n_embd=64, serves_n_embd=(64,)), Header("qwen3", n_embd=64), None),
        (
            Header("dflash", n_embd=64, serves_n_embd=(64,)),
            Header("qwen3", n_embd=32),
            "is made for embeddings of 64 dimensions, not 32",
        ),
        (Header("eagle3", n_embd=32, serves_n_embd=(64,)), Header("llama", n_embd=64), None),
        (
            Header("qwen35", n_embd=64, n_prediction_layers=1),
            Header("qwen35", n_embd=32),
            "is made for embeddings of 64 dimensions, not 32",
        ),
        (Header("clip"), Header("llama"), "is no draft that llama-server runs (architecture clip)"),
        (Header("wan"), Header("llama"), "is no draft that llama-server runs (architecture wan)"),
        (
            Header("gemma4-assistant", serves_n_embd=(64,)),
            Header("gemma3", n_embd=64),
            "is made for the architecture gemma4, not gemma3",
        ),
    ],
)
def test_a_draft_fits_as_llama_cpp_demands(draft, model, reason):
    assert misfit(draft, model, is_draft=True) == reason


@pytest.mark.parametrize(
    ("adapter", "reason"),
    [
        (Header("llama", kind="adapter"), None),
        (Header("qwen3", kind="adapter"), "is made for the architecture qwen3, not llama"),
        (Header("llama", kind="model"), "is no LoRA adapter (general.type = model)"),
        (Header(), None),
    ],
)
def test_an_adapter_fits_models_of_its_architecture(adapter, reason):
    assert adapter_misfit(adapter, Header("llama")) == reason


def test_a_small_model_that_is_called_a_draft_is_one_beside_a_large_one_with_its_vocabulary(tmp_path):
    make_llama(tmp_path / "m-Q8_0.gguf", approx_mib=1)
    make_llama(tmp_path / "m-draft-Q4_0.gguf", n_layers=1, n_ff=32)
    names = [name for file in ("m-Q8_0.gguf", "m-draft-Q4_0.gguf") if (name := parse_name(file)) is not None]
    both = [look_at(tmp_path, name) for name in names]
    draft = sort_out(both).beside["m-Q8_0.gguf"].draft
    assert draft is not None and draft.name == names[1]
    assert [file.name for file in sort_out(both[1:]).models] == names[1:], "alone it is a model"


def test_a_whole_model_with_the_name_of_a_draft_is_a_model_where_there_is_none_it_could_be_for(tmp_path):
    parts = sorted_out(tmp_path, m_DFlash_distilled=LLAMA)
    assert [model.name.path for model in parts.models] == ["m-DFlash-distilled.gguf"]


def test_whole_models_with_prediction_layers_are_models(tmp_path):
    mtp = LLAMA | {"llama__nextn_predict_layers": 1}
    parts = sorted_out(tmp_path, m_MTP_Q4=mtp, m_MTP_Q8=mtp, m_Q4=LLAMA)
    whole = make_llama(tmp_path / "m-MTP-Q4.gguf", extra={"llama.nextn_predict_layers": 1})
    assert glance(whole).n_prediction_layers == 1
    name = parse_name("m-MTP-Q4.gguf")
    assert name is not None
    assert len(sort_out([look_at(tmp_path, name), *parts.models[1:]]).models) == 3


def test_a_file_of_prediction_layers_alone_is_a_draft(tmp_path):
    keys = {"qwen35.embedding_length": 64, "qwen35.block_count": 3, "qwen35.nextn_predict_layers": 1}
    tensors = [Tensor("token_embd.weight", (64, 32)), Tensor("blk.2.nextn.eh_proj.weight", (128, 64))]
    write_gguf(tmp_path / "m-MTP-Q8_0.gguf", "qwen35", keys, tensors)
    (tmp_path / "m-Q4_0.gguf").write_bytes(gguf(general__architecture="qwen35", qwen35__embedding_length=64))
    names = [name for path in tmp_path.iterdir() if (name := parse_name(path.name)) is not None]
    (beside,) = sort_out([look_at(tmp_path, name) for name in names]).beside.values()
    assert beside.draft is not None and beside.draft.path.name == "m-MTP-Q8_0.gguf"


def test_in_a_repository_too_the_header_decides(tmp_path):
    sorted_out(
        tmp_path, m_Q4=LLAMA, m_vision_F16=CLIP, mmproj_F16=CLIP | {"clip__vision__projection_dim": 128}
    )
    names = [name for path in tmp_path.iterdir() if (name := parse_name(path.name)) is not None]
    model = next(name for name in names if name.path == "m-Q4.gguf")
    assert mmproj_of(model, names, tmp_path) == tmp_path / "m-vision-F16.gguf"
