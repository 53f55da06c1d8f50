"""Estimates as a whole: they add up, they explain themselves, and no header makes them fail."""

from __future__ import annotations

import time
import tracemalloc
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from router.gguf import GgufMetadata, KvValue, TensorInfo, read_gguf
from router.memory.estimate import (
    Companions,
    DeviceBudget,
    Estimate,
    LoadSettings,
    Prepared,
    Term,
    estimate,
    placements,
)
from tests.make_gguf import make_mmproj
from tests.memory.estimate.made_up import GIB, HOST, MIB, gpu, llama, metadata, on_gpus, on_host, tensor

A, B = gpu(0, 24), gpu(1, 12)


def kinds(found: Estimate, device: str) -> set[str]:
    return {term.kind for term in found.terms if term.device == device}


def test_a_footprint_is_the_sum_of_its_terms_and_every_term_is_explained() -> None:
    found = estimate(Prepared.of(llama(), LoadSettings(cache_ram_bytes=GIB)), on_gpus(A, B))
    assert set(found.footprint) == {A.id, B.id, HOST.id}
    for device, total in found.footprint.items():
        assert total == sum(term.bytes for term in found.terms if term.device == device)
    assert all(term.explanation and term.bytes > 0 for term in found.terms)
    assert not found.is_guess


def test_terms_of_nothing_are_left_out() -> None:
    assert Estimate.of([Term("d", "kv", 0, "none"), Term("d", "weights", 5, "one")]).footprint == {"d": 5}


def test_each_gpu_costs_a_context_and_the_host_a_process_and_its_prompt_cache() -> None:
    found = estimate(Prepared.of(llama(), LoadSettings(cache_ram_bytes=3 * GIB)), on_gpus(A, B))
    assert found.bytes_of("context", device=A.id) == 600 * MIB
    assert found.bytes_of("process") == 200 * MIB
    assert found.bytes_of("cache", device=HOST.id) == 3 * GIB


def test_a_learned_context_replaces_the_default() -> None:
    learned = DeviceBudget("box/cuda:0", "cuda", 24 * GIB, 24 * GIB, GIB, context_bytes=311 * MIB)
    found = estimate(Prepared.of(llama(), LoadSettings()), on_gpus(learned))
    assert found.bytes_of("context") == 311 * MIB


def test_a_draft_model_brings_its_own_weights_cache_and_buffers() -> None:
    draft = llama(n_layers=2, n_embd=256, n_ff=512, n_head=4, n_head_kv=4)
    companions = Companions(draft=draft)
    plain = estimate(Prepared.of(llama(), LoadSettings()), on_gpus(A))
    both = estimate(Prepared.of(llama(), LoadSettings(), companions), on_gpus(A))
    added = [term for term in both.terms if term.kind == "draft"]
    assert both.footprint[A.id] - plain.footprint[A.id] == sum(t.bytes for t in added if t.device == A.id)
    assert sum(t.bytes for t in added if t.explanation.startswith("kv of")) == 2 * 4096 * 256 * 2 * 2
    assert {t.explanation.split(" ")[0] for t in added} >= {"weights", "kv", "compute", "output"}


def test_a_draft_model_may_stay_on_the_host() -> None:
    companions = Companions(draft=llama(n_layers=2), draft_settings=LoadSettings(n_gpu_layers=0))
    found = estimate(Prepared.of(llama(), LoadSettings(), companions), on_gpus(A))
    weights = [t for t in found.terms if t.kind == "draft" and t.explanation.startswith("weights")]
    assert {t.device for t in weights} == {HOST.id}


def test_a_projector_lies_on_the_first_gpu_or_on_the_host(tmp_path: Path) -> None:
    mmproj = read_gguf(make_mmproj(tmp_path / "mmproj.gguf"))
    for layout, offload, device in (
        (on_gpus(A, B), True, A.id),
        (on_gpus(A, B), False, HOST.id),
        (on_host(), True, HOST.id),
    ):
        companions = Companions(mmproj=mmproj, mmproj_offload=offload)
        found = estimate(Prepared.of(llama(), LoadSettings(), companions), layout)
        assert found.bytes_of("mmproj", device=device) == found.bytes_of("mmproj") > mmproj.tensor_bytes


@pytest.mark.parametrize(
    ("kv", "flash", "expected_mib"),
    [
        # gemma-3's encoder, 896 x 896: 1132 MiB were known of it before it had flash attention.
        (
            {"embedding_length": 1152, "feed_forward_length": 4304, "attention.head_count": 16},
            "off",
            (1132, 1500),
        ),
        (
            {"embedding_length": 1152, "feed_forward_length": 4304, "attention.head_count": 16},
            "auto",
            (150, 300),
        ),
        # A head of a size without flash attention.
        (
            {"embedding_length": 1152, "feed_forward_length": 4304, "attention.head_count": 32},
            "auto",
            (2000, 2600),
        ),
    ],
)
def test_an_encoder_without_flash_attention_keeps_its_scores(
    kv: dict[str, KvValue], flash: str, expected_mib: tuple[int, int]
) -> None:
    vision = {f"vision.{key}": value for key, value in kv.items()}
    mmproj = metadata("clip", vision | {"vision.image_size": 896, "vision.patch_size": 14})
    settings = LoadSettings(flash_attn=flash)  # type: ignore[arg-type]
    found = estimate(Prepared.of(llama(), settings, Companions(mmproj=mmproj)), on_host())
    low, high = expected_mib
    assert low <= found.bytes_of("mmproj") / MIB <= high


def test_an_encoder_of_images_of_any_size_is_warmed_up_with_a_large_one() -> None:
    mmproj = metadata("clip", {"projector_type": "qwen2.5vl_merger", "vision.image_size": 560})
    found = estimate(Prepared.of(llama(), LoadSettings(), Companions(mmproj=mmproj)), on_host())
    assert any(t.explanation.startswith("encoder of 8464 patches") for t in found.terms if t.kind == "mmproj")


def test_adapters_are_spread_as_the_layers_are() -> None:
    companions = Companions(lora_bytes=(30 * MIB, 10 * MIB))
    found = estimate(Prepared.of(llama(n_layers=3), LoadSettings(), companions), on_gpus(A, B, split=(3, 1)))
    assert found.bytes_of("lora", device=A.id) == 30 * MIB
    assert found.bytes_of("lora", device=B.id) == 10 * MIB


def test_a_header_that_is_not_understood_is_guessed_from_the_files_size() -> None:
    strange = metadata("quantum", {"qubits": 7}, file_size_bytes=20 * GIB)
    found = estimate(Prepared.of(strange, LoadSettings()), on_host())
    assert found.is_guess
    assert found.bytes_of("unknown", device=HOST.id) == 22 * GIB
    assert "quantum" in next(t.explanation for t in found.terms if t.kind == "unknown")
    split = estimate(Prepared.of(strange, LoadSettings()), on_gpus(A, B, split=(3, 1)))
    assert split.bytes_of("unknown", device=A.id) == 3 * split.bytes_of("unknown", device=B.id)


@pytest.mark.parametrize("settings", [LoadSettings(cache_type_k="q9"), LoadSettings(override_tensor=("x",))])
def test_settings_that_llama_server_would_refuse_are_errors(settings: LoadSettings) -> None:
    with pytest.raises(ValueError, match="is not REGEX=BUFFER|is none of"):
        estimate(Prepared.of(llama(), settings), on_host())


SIZES = st.one_of(st.integers(-3, 200), st.sampled_from([256, 4096, 1 << 20, 1 << 31, 1 << 45, 1 << 63]))
SCALARS = st.one_of(SIZES, st.booleans(), st.floats(allow_nan=True), st.text(max_size=3))
VALUES: st.SearchStrategy[KvValue] = st.one_of(SCALARS, st.lists(SCALARS, max_size=9).map(tuple))
KEYS = (
    "block_count", "context_length", "embedding_length", "feed_forward_length", "attention.head_count",
    "attention.head_count_kv", "attention.key_length", "attention.value_length", "attention.key_length_mla",
    "attention.value_length_mla", "attention.sliding_window", "attention.sliding_window_pattern",
    "attention.recurrent_layers", "attention.shared_kv_layers", "attention.indexer.key_length",
    "expert_count", "expert_used_count", "expert_feed_forward_length", "nextn_predict_layers",
    "full_attention_interval",
    "ssm.conv_kernel", "ssm.inner_size", "ssm.state_size", "ssm.group_count", "ssm.time_step_rank",
    "wkv.head_size", "shortconv.l_cache", "kda.head_dim", "leading_dense_block_count",
)  # fmt: skip
ARCHITECTURES = st.sampled_from(
    ["llama", "gemma3", "deepseek2", "mamba2", "jamba", "qwen3next", "nemotron_h", "falcon-h1", "bert",
     "glm-dsa", "minimax-m3", "gemma3n", "lfm2", "rwkv7", "minimax-01", "grok", "unheard-of"]
)  # fmt: skip
SANE: dict[str, KvValue] = {
    "block_count": 4, "context_length": 4096, "embedding_length": 64, "attention.head_count": 4,
    "feed_forward_length": 128,
}  # fmt: skip
NAMES = st.sampled_from(
    ["token_embd.weight", "output.weight", "blk.0.ffn_up.weight", "blk.3.attn_q.weight", "blk.99999999999.x",
     "blk.x", "", "rope_freqs.weight", "blk.2.ffn_up_exps.weight"]
)  # fmt: skip


@given(
    architecture=ARCHITECTURES,
    kv=st.dictionaries(st.sampled_from(KEYS), VALUES, max_size=12),
    tensors=st.lists(
        st.builds(
            TensorInfo, NAMES, st.lists(st.integers(0, 1 << 20), max_size=4).map(tuple), st.integers(0, 60),
            st.integers(0, 1 << 40),
        ),
        max_size=6,
    ),
    is_sane=st.booleans(),
    unified=st.booleans(),
)  # fmt: skip
@settings(max_examples=400, deadline=None)
def test_no_header_makes_an_estimate_fail(
    architecture: str, kv: dict[str, KvValue], tensors: list[TensorInfo], is_sane: bool, unified: bool
) -> None:
    model: GgufMetadata = metadata(architecture, SANE | kv if is_sane else kv, tuple(tensors))
    prepared = Prepared.of(model, LoadSettings(parallel=3, kv_unified=unified))
    for layout in (on_host(), on_gpus(A, B, n_gpu_layers=2, split=(1, 1))):
        found = estimate(prepared, layout)
        assert found.footprint[HOST.id] > 0
        assert all(isinstance(term.bytes, int) and term.bytes > 0 for term in found.terms)


def test_an_estimate_of_many_experts_and_layers_does_not_read_tensors_again() -> None:
    """What is planned once serves any number of layouts: the plan holds sums, not tensors."""
    stacks = tuple(
        tensor(f"blk.{i}.ffn_{p}_exps.weight", 64, 64, 4) for i in range(94) for p in ("up", "gate", "down")
    )
    model = llama(n_layers=94)
    model = metadata(
        "llama", {k.removeprefix("llama."): v for k, v in model.kv.items()}, model.tensors + stacks
    )
    prepared = Prepared.of(model, LoadSettings(cpu_moe=True))
    assert prepared.plan is not None
    assert len(prepared.plan.sums) == 94 * 2 + 2


ABSURD = {
    "block_count": 1 << 31, "context_length": 1 << 62, "embedding_length": 1 << 62,
    "attention.head_count": 1 << 40, "attention.head_count_kv": 1 << 60,
    "expert_count": 1 << 30, "attention.key_length": 1 << 60,
    "attention.sliding_window": 1 << 60, "ssm.state_size": 1 << 60,
}  # fmt: skip


@pytest.mark.parametrize("name", ABSURD)
@pytest.mark.parametrize("architecture", ["llama", "gemma3", "mamba2", "qwen3moe", "deepseek2"])
def test_no_number_in_a_header_makes_the_search_for_a_place_long_or_large(
    name: str, architecture: str
) -> None:
    tensors = tuple(tensor(f"blk.{i}.attn_q.weight", 64, 64) for i in range(64))
    model = metadata(architecture, {**SANE, name: ABSURD[name]}, tensors)
    machine = (gpu(0, 24), gpu(1, 24), gpu(2, 12), HOST)
    tracemalloc.start()
    begun = time.process_time()
    try:
        placements(model, LoadSettings(ctx_size="auto"), machine, must_fit=False)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert time.process_time() - begun < 1.0
    assert peak < 100 * MIB
