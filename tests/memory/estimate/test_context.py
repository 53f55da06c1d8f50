"""Caches and states: cells by the rules of slots and windows, bytes by the types, devices by the layers."""

from __future__ import annotations

from dataclasses import replace

import pytest

from router.gguf import GgufMetadata, KvValue
from router.memory.estimate import Layout, LoadSettings, Term
from router.memory.estimate.context import (
    CACHE_TYPES,
    MOST_CHECKPOINTS,
    cells,
    checkpoints,
    context_terms,
    row_bytes,
    slot_context,
    takes_input_whole,
    ubatch,
)
from router.memory.estimate.shape import ModelShape, read_shape
from tests.memory.estimate.made_up import HOST, MIB, gpu, llama, metadata, on_gpus, on_host

A, B = gpu(0, 24), gpu(1, 12)

LLAMA_8B = llama(n_layers=32, n_embd=4096, n_head=32, n_head_kv=8, n_ctx_train=131_072)
GEMMA_12B = metadata("gemma3", {
    "block_count": 48, "embedding_length": 3840, "context_length": 131_072, "feed_forward_length": 15_360,
    "attention.head_count": 16, "attention.head_count_kv": 8, "attention.key_length": 256,
    "attention.value_length": 256, "attention.sliding_window": 1024,
})  # fmt: skip
MAMBA: dict[str, KvValue] = {
    "block_count": 64, "embedding_length": 2560, "context_length": 1 << 20, "ssm.conv_kernel": 4,
    "ssm.inner_size": 5120, "ssm.state_size": 128, "ssm.group_count": 1, "ssm.time_step_rank": 80,
}  # fmt: skip


def shape_of(model: GgufMetadata) -> ModelShape:
    shape = read_shape(model)
    assert shape is not None
    return shape


def terms(model: GgufMetadata, layout: Layout, settings: LoadSettings) -> list[Term]:
    return [term for term in context_terms(shape_of(model), settings, layout) if term.bytes]


def mib(model: GgufMetadata, ctx_size: int, settings: LoadSettings, kind: str = "kv") -> float:
    return sum(t.bytes for t in terms(model, on_host(ctx_size), settings) if t.kind == kind) / MIB


def test_llama_8b_at_its_training_context_takes_16_gib() -> None:
    assert mib(LLAMA_8B, 131_072, LoadSettings()) == 16 * 1024


@pytest.mark.parametrize(
    ("cache_type", "part"), [("f32", 2), ("bf16", 1), ("q8_0", 34 / 64), ("q4_0", 18 / 64)]
)
def test_cache_types(cache_type: str, part: float) -> None:
    settings = LoadSettings(cache_type_k=cache_type, cache_type_v=cache_type)
    assert mib(LLAMA_8B, 8192, settings) == 1024 * part


def test_keys_and_values_may_differ_in_type() -> None:
    assert mib(LLAMA_8B, 8192, LoadSettings(cache_type_k="q8_0")) == 512 + 512 * 34 / 64


def test_an_unknown_cache_type_is_an_error() -> None:
    with pytest.raises(ValueError, match="q3_k"):
        row_bytes("q3_k", 128)
    assert row_bytes("q8_0", 32) == CACHE_TYPES["q8_0"][0]


def test_slots_divide_the_context_and_round_up_to_256_cells() -> None:
    shape = shape_of(LLAMA_8B)
    assert cells(shape, LoadSettings(parallel=3), 8192).full == 2816  # 8192 / 3 = 2730
    assert cells(shape, LoadSettings(parallel=3), 8192).n_streams == 3
    assert cells(shape, LoadSettings(), 8192).full == 8192
    assert cells(shape, LoadSettings(parallel=3, kv_unified=True), 8000).full == 8192


def test_gemma_12b_with_four_slots_that_share_a_cache() -> None:
    """Full layers 8 x 32768 cells; sliding ones 40 x 4608: four windows of 1024 and a step of 512."""
    assert mib(GEMMA_12B, 32_768, LoadSettings()) == 3488


def test_gemma_12b_with_four_slots_of_their_own() -> None:
    assert (
        mib(GEMMA_12B, 32_768, LoadSettings(parallel=4)) == 8 * 32_768 * 8 / 1024 + 40 * 4 * 1536 * 8 / 1024
    )


def test_a_window_kept_whole_is_as_large_as_the_context() -> None:
    assert mib(GEMMA_12B, 8192, LoadSettings(swa_full=True)) == 48 * 8192 * 8 / 1024


def test_latent_attention_keeps_one_key_and_no_value() -> None:
    model = llama(n_layers=4, n_embd=2048, n_head=16, n_head_kv=1, attention__key_length=576,
                  attention__value_length=512, attention__key_length_mla=192, attention__value_length_mla=128,
                  architecture="deepseek2")  # fmt: skip
    assert mib(model, 4096, LoadSettings()) == 4 * 4096 * 576 * 2 / MIB


def test_a_recurrent_state_is_linear_in_slots_and_ignores_the_context() -> None:
    model = metadata("mamba2", MAMBA)
    assert mib(model, 4096, LoadSettings(parallel=1), "state") == pytest.approx(164, rel=0.001)
    assert mib(model, 32_768, LoadSettings(parallel=8), "state") == pytest.approx(8 * 164, rel=0.001)
    assert mib(model, 4096, LoadSettings(parallel=1)) == 0


def test_encoders_have_no_cache() -> None:
    assert terms(llama(architecture="bert"), on_host(), LoadSettings(embedding=True)) == []


def test_without_flash_attention_values_are_as_wide_as_the_widest() -> None:
    model = llama(n_layers=2, n_embd=1024, n_head=8, attention__head_count_kv=(8, 2))
    with_flash = mib(model, 4096, LoadSettings())
    without = mib(model, 4096, LoadSettings(flash_attn="off"))
    assert with_flash == 4096 * (1024 + 256) * 2 * 2 / MIB
    assert without == 4096 * (1024 + 256 + 2 * 1024) * 2 / MIB


def test_caches_lie_with_their_layers_unless_kept_on_the_host() -> None:
    layout = on_gpus(A, B, n_gpu_layers=33, split=(22, 11), ctx_size=8192)
    found = {t.device: t.bytes / MIB for t in terms(LLAMA_8B, layout, LoadSettings())}
    assert found == {A.id: 704, B.id: 320}  # 22 layers and 10: the 33rd is the output
    kept = {t.device: t.bytes / MIB for t in terms(LLAMA_8B, layout, LoadSettings(kv_offload=False))}
    assert kept == {HOST.id: 1024}


def test_as_many_checkpoints_are_reserved_as_the_server_is_told_to_keep() -> None:
    one = 40 * 1024 * 8192 / MIB  # a window in each of gemma's sliding layers: 320 MiB
    assert mib(LLAMA_8B, 8192, LoadSettings(), "checkpoints") == 0
    assert mib(GEMMA_12B, 8192, LoadSettings(parallel=1), "checkpoints") == one, "half a gigabyte"
    assert mib(GEMMA_12B, 8192, LoadSettings(parallel=4), "checkpoints") == 4 * one, "at least one per slot"
    assert mib(GEMMA_12B, 8192, LoadSettings(parallel=4, ctx_checkpoints=9), "checkpoints") == 36 * one
    assert mib(GEMMA_12B, 8192, LoadSettings(swa_full=True), "checkpoints") == 0
    assert mib(GEMMA_12B, 8192, LoadSettings(ctx_checkpoints=0), "checkpoints") == 0
    assert mib(metadata("mamba2", MAMBA), 8192, LoadSettings(parallel=3), "checkpoints") > 3 * 160
    tiny = llama(architecture="gemma3", attention__sliding_window=256)
    assert checkpoints(shape_of(tiny), LoadSettings(parallel=1), 8192)[0] == MOST_CHECKPOINTS


# --- inputs that cannot be split ---


@pytest.mark.parametrize(
    "architecture",
    ["bert", "modern-bert", "nomic-bert", "nomic-bert-moe", "neo-bert", "jina-bert-v2", "jina-bert-v3",
     "eurobert", "gemma-embedding", "t5encoder"],
)  # fmt: skip
def test_an_encoder_takes_an_input_whole_whatever_its_pooling(architecture: str) -> None:
    for pooling in (None, "none", "mean", "cls", "last", "rank"):
        shape = shape_of(llama(architecture=architecture))
        assert takes_input_whole(shape, LoadSettings(embedding=True, pooling=pooling))


@pytest.mark.parametrize(
    ("of_file", "of_preset", "is_whole"),
    [
        (None, None, True),  # the server's own default is none
        (0, None, True),
        (1, None, True),
        (2, None, True),
        (3, None, False),
        (4, None, False),
        (3, "mean", True),
        (1, "last", False),
        (None, "rank", False),
    ],
)
def test_a_decoder_splits_an_input_where_the_last_token_alone_is_read(of_file, of_preset, is_whole) -> None:
    keys = {} if of_file is None else {"pooling_type": of_file}
    shape = shape_of(llama(**keys))
    assert takes_input_whole(shape, LoadSettings(embedding=True, pooling=of_preset)) is is_whole
    assert not takes_input_whole(shape, LoadSettings(pooling=of_preset)), "it does not embed"


def test_a_decoder_whose_attention_is_not_causal_takes_an_input_whole() -> None:
    shape = shape_of(llama(attention__causal=False, pooling_type=3))
    assert takes_input_whole(shape, LoadSettings(embedding=True))


def test_the_step_of_such_a_model_is_the_longest_input_of_a_slot() -> None:
    def step(ctx_size: int, n_ctx_train: int = 8192, **settings: object) -> int:
        shape = shape_of(llama(architecture="bert", n_ctx_train=n_ctx_train))
        return ubatch(shape, LoadSettings(embedding=True, **settings), ctx_size)  # type: ignore[arg-type]

    assert step(8192) == 8192
    assert step(8192, parallel=4) == 2048
    assert step(8192, parallel=4, kv_unified=True) == 8192
    assert step(3000, parallel=3) == 1024, "as llama-server rounds"
    assert step(8192, n_ctx_train=514) == 514, "no input is longer than what it was trained on"
    assert slot_context(shape_of(llama(n_ctx_train=514)), LoadSettings(parallel=1), 300) == 512


def test_a_step_that_is_set_is_kept_and_needs_no_batch_beside_it() -> None:
    shape = shape_of(llama(architecture="bert"))
    for settings, expected in (
        (LoadSettings(ubatch=512), 512),
        (LoadSettings(ubatch=4096), 4096),
        (LoadSettings(batch=4096), 4096),
        (LoadSettings(batch=1024, ubatch=4096), 1024),
    ):
        assert ubatch(shape, settings, 8192) == expected
    decoder = shape_of(llama())
    assert ubatch(decoder, LoadSettings(ubatch=4096), 8192) == 2048, "llama-server's own batch bounds it"


@pytest.mark.parametrize(
    ("ctx_size", "n_ctx_train", "settings", "expected"),
    [
        (514, 514, LoadSettings(parallel=4, kv_unified=True), 516),
        (8192, 8194, LoadSettings(parallel=4, kv_unified=True), 8192),
        (8192, 8192, LoadSettings(parallel=5, kv_unified=True), 8190),
        (8192, 8192, LoadSettings(parallel=3, kv_unified=False), 2817),
        (8192, 8192, LoadSettings(parallel=3, kv_unified=True, ubatch=512), 510),
        (8192, 8192, LoadSettings(parallel=4, kv_unified=True, batch=2), 4),
        (8192, 8192, LoadSettings(parallel=1), 8192),
    ],
)
def test_with_mean_pooling_a_step_is_a_multiple_of_the_slots(
    ctx_size, n_ctx_train, settings, expected
) -> None:
    of_file = llama(architecture="bert", n_ctx_train=n_ctx_train, pooling_type=1)
    assert ubatch(shape_of(of_file), replace(settings, embedding=True), ctx_size) == expected
    other = shape_of(llama(architecture="bert", n_ctx_train=n_ctx_train, pooling_type=2))
    of_preset = replace(settings, embedding=True, pooling="mean")
    assert ubatch(other, of_preset, ctx_size) == expected, "what a preset says counts"
