"""Shapes: what llama.cpp hard-codes for an architecture is known here, and nonsense is no shape."""

from __future__ import annotations

import pytest

from router.gguf import GgufMetadata, KvValue
from router.memory.estimate.shape import Layer, ModelShape, read_shape
from tests.memory.estimate.made_up import llama, metadata

PLAIN: dict[str, KvValue] = {
    "block_count": 8,
    "embedding_length": 1024,
    "context_length": 32_768,
    "feed_forward_length": 4096,
    "attention.head_count": 8,
    "attention.head_count_kv": 2,
}


def shape_of(architecture: str, **extra: KvValue) -> ModelShape:
    kv = PLAIN | {key.replace("__", "."): value for key, value in extra.items()}
    shape = read_shape(metadata(architecture, kv))
    assert shape is not None
    return shape


def sliding(shape: ModelShape) -> str:
    return "".join("s" if layer.is_swa else "F" for layer in shape.layers)


def kinds(shape: ModelShape) -> str:
    def letter(layer: Layer) -> str:
        return {(True, False): "a", (False, True): "r", (True, True): "b", (False, False): "."}[
            layer.has_kv, layer.is_recurrent
        ]

    return "".join(letter(layer) for layer in shape.layers)


def test_heads_divide_the_embedding_unless_the_file_says_otherwise() -> None:
    assert shape_of("llama").layers[0].key_length == 128
    assert shape_of("llama", attention__key_length=64).layers[0].key_length == 64


def test_heads_without_a_number_of_their_own_for_keys_have_as_many_as_for_queries() -> None:
    shape = read_shape(metadata("llama", {k: v for k, v in PLAIN.items() if k != "attention.head_count_kv"}))
    assert shape is not None
    assert shape.layers[0].n_head_kv == 8


def test_values_may_differ_from_layer_to_layer() -> None:
    shape = shape_of("deci", attention__head_count_kv=(2, 0, 4, 2, 0, 4, 2, 2))
    assert [layer.n_head_kv for layer in shape.layers] == [2, 0, 4, 2, 0, 4, 2, 2]


@pytest.mark.parametrize(
    ("architecture", "pattern"),
    [
        ("gemma2", "sFsFsFsF"),
        ("gemma3", "sssssFss"),
        ("gpt-oss", "sFsFsFsF"),
        ("cohere2", "sssFsssF"),
        ("smallthinker", "FsssFsss"),
        ("llama4", "sssFsssF"),
        ("phi3", "FFFFFFFF"),
        ("llama", "FFFFFFFF"),
    ],
)
def test_the_period_of_the_window_is_the_architectures(architecture: str, pattern: str) -> None:
    assert sliding(shape_of(architecture, attention__sliding_window=512)) == pattern


def test_the_file_may_give_the_period_or_every_layer() -> None:
    assert (
        sliding(shape_of("gemma3", attention__sliding_window=512, attention__sliding_window_pattern=2))
        == "sFsFsFsF"
    )
    listed = (True, True, False, False, True, True, False, False)
    assert (
        sliding(shape_of("mimo2", attention__sliding_window=512, attention__sliding_window_pattern=listed))
        == "ssFFssFF"
    )


def test_without_a_window_nothing_slides() -> None:
    assert sliding(shape_of("gemma3")) == "FFFFFFFF"
    assert sliding(shape_of("llama4", attention__sliding_window=0)) == "FFFFFFFF"


def test_windows_that_llama_cpp_fixes_or_assumes() -> None:
    assert shape_of("llama4", attention__sliding_window=123).n_swa == 8192
    assert shape_of("gemma2").n_swa == 4096
    assert shape_of("gemma3", attention__sliding_window=512).n_swa == 512
    assert shape_of("llama", attention__sliding_window=512).n_swa == 0


def test_exaone4_slides_in_its_large_size_only() -> None:
    assert "s" not in sliding(shape_of("exaone4", attention__sliding_window=4096))
    assert sliding(shape_of("exaone4", attention__sliding_window=4096, block_count=64)).startswith("sssF")


def test_sliding_layers_may_have_heads_of_their_own_size() -> None:
    shape = shape_of(
        "gemma4",
        attention__sliding_window=512,
        attention__sliding_window_pattern=(True, False) * 4,
        attention__key_length=512,
        attention__key_length_swa=256,
    )
    assert [layer.key_length for layer in shape.layers[:2]] == [256, 512]


def test_later_layers_may_use_the_cache_of_earlier_ones() -> None:
    shape = shape_of("gemma4", attention__shared_kv_layers=3)
    assert kinds(shape) == "aaaaa..."


@pytest.mark.parametrize(
    ("architecture", "extra", "expected"),
    [
        ("mamba2", {}, "rrrrrrrr"),
        ("falcon-h1", {}, "bbbbbbbb"),
        ("granitehybrid", {"attention.head_count_kv": (0, 0, 0, 2, 0, 0, 0, 2)}, "rrrarrra"),
        ("qwen3next", {}, "rrrarrra"),
        ("qwen35moe", {"full_attention_interval": 2}, "rararara"),
        ("minimax-01", {"attention.recurrent_layers": (1, 1, 1, 1, 1, 1, 1, 0)}, "rrrrrrra"),
        (
            "nemotron_h",
            {"attention.head_count_kv": (0, 0, 2, 0) * 2, "feed_forward_length": (0, 512, 0, 0) * 2},
            "r.arr.ar",
        ),
        ("llama", {}, "aaaaaaaa"),
    ],
)
def test_which_layers_are_recurrent(architecture: str, extra: dict[str, KvValue], expected: str) -> None:
    shape = read_shape(metadata(architecture, PLAIN | extra))
    assert shape is not None
    assert kinds(shape) == expected


def test_states_of_each_family() -> None:
    ssm: dict[str, KvValue] = {
        "ssm__conv_kernel": 4, "ssm__inner_size": 2048, "ssm__state_size": 128, "ssm__group_count": 1,
    }  # fmt: skip
    mamba = shape_of("mamba2", **ssm)
    assert (mamba.conv_state, mamba.recurrent_state) == (3 * (2048 + 2 * 128), 128 * 2048)
    rwkv = shape_of("rwkv7", wkv__head_size=64)
    assert (rwkv.conv_state, rwkv.recurrent_state) == (2 * 1024, 64 * 1024)
    lfm = shape_of("lfm2", shortconv__l_cache=3)
    assert (lfm.conv_state, lfm.recurrent_state) == (2 * 1024, 0)
    kimi = shape_of("kimi-linear", kda__head_dim=128, ssm__conv_kernel=4)
    assert (kimi.conv_state, kimi.recurrent_state) == (3 * 3 * 8 * 128, 128 * 128 * 8)


def test_prediction_layers_are_not_run_unless_there_are_no_others() -> None:
    assert len(shape_of("glm4moe", nextn_predict_layers=1).layers) == 7
    assert shape_of("glm4moe", nextn_predict_layers=1).n_layers_all == 8
    assert len(shape_of("glm4moe", nextn_predict_layers=8).layers) == 8


def test_latent_attention_needs_both_of_its_lengths() -> None:
    assert shape_of("deepseek2", attention__key_length_mla=192, attention__value_length_mla=128).is_mla
    assert not shape_of("deepseek2", attention__key_length_mla=192).is_mla


def test_sparse_attention_keeps_index_keys() -> None:
    shape = shape_of("glm-dsa", attention__indexer__key_length=128, attention__indexer__types=(1, 0) * 4)
    assert [layer.index_key_length for layer in shape.layers[:2]] == [128, 0]


def test_a_gate_may_be_missing_or_fused() -> None:
    assert gated(llama())
    assert not gated(without(llama(), "ffn_gate"))
    assert gated(without(llama(n_ff=2048, feed_forward_length=1024), "ffn_gate"))


def gated(model: GgufMetadata) -> bool:
    shape = read_shape(model)
    assert shape is not None
    return shape.is_gated


def without(model: GgufMetadata, part: str) -> GgufMetadata:
    return metadata("llama", {k.removeprefix("llama."): v for k, v in model.kv.items()},
                    tuple(t for t in model.tensors if part not in t.name))  # fmt: skip


@pytest.mark.parametrize(
    "nonsense",
    [
        {"block_count": 0},
        {"block_count": 1 << 31},
        {"block_count": "many"},
        {"block_count": True},
        {"block_count": -3},
        {"embedding_length": 1 << 40},
        {"embedding_length": 0.5},
        {"context_length": 0},
        {"feed_forward_length": 1 << 39},
        {"attention.head_count": 1 << 30, "attention.key_length": 1 << 30},
        {"ssm.inner_size": 1 << 38},
    ],
)
def test_nonsense_is_no_shape(nonsense: dict[str, KvValue]) -> None:
    assert read_shape(metadata("llama", PLAIN | nonsense)) is None


def test_a_header_without_the_usual_keys_is_no_shape() -> None:
    assert read_shape(metadata("clip", {"vision.block_count": 27})) is None
