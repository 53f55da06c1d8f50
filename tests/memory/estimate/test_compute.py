"""Compute buffers: on the devices that take part, and growing with what they hold."""

from __future__ import annotations

from router.gguf import GgufMetadata
from router.memory.estimate import Layout, LoadSettings, Prepared, estimate
from tests.memory.estimate.made_up import HOST, MIB, gpu, llama, metadata, on_gpus, on_host, tensor

A, B = gpu(0, 24), gpu(1, 12)
LLAMA_8B = llama(n_layers=32, n_embd=4096, n_ff=14_336, n_head=32, n_head_kv=8, n_ctx_train=131_072)


def compute(layout: Layout, model: GgufMetadata = LLAMA_8B, **settings: object) -> dict[str, float]:
    """MiB of compute buffer by device."""
    found = estimate(Prepared.of(model, LoadSettings(**settings)), layout)  # type: ignore[arg-type]
    sums: dict[str, float] = {}
    for term in found.terms:
        if term.kind == "compute":
            sums[term.device] = sums.get(term.device, 0) + term.bytes / MIB
    return sums


def test_llama_8b_on_the_host_is_as_measured() -> None:
    assert 128.02 <= compute(on_host(4096))[HOST.id] < 129
    assert 156.02 <= compute(on_host(32_768))[HOST.id] < 157


def test_without_flash_attention_the_scores_are_kept() -> None:
    assert 580.01 <= compute(on_host(8192), flash_attn="off")[HOST.id] < 1.05 * 580


def test_a_buffer_grows_with_the_step() -> None:
    assert compute(on_host(8192), ubatch=1024)[HOST.id] > 1.9 * compute(on_host(8192))[HOST.id]
    assert compute(on_host(8192), ubatch=4096, batch=512) == compute(on_host(8192))


def test_on_a_gpu_the_host_keeps_only_inputs() -> None:
    found = compute(on_gpus(A))
    assert found[A.id] > 100
    assert found[HOST.id] < 30


def test_every_gpu_of_a_split_has_a_buffer_with_copies_of_the_inputs() -> None:
    one = compute(on_gpus(A))
    two = compute(on_gpus(A, B))
    assert two[A.id] > one[A.id]
    assert two[B.id] > 100
    without_pipeline = compute(on_gpus(A, B), kv_offload=False)
    assert without_pipeline[B.id] < two[B.id]


def test_a_partial_offload_has_buffers_on_both_sides_and_room_for_borrowed_weights() -> None:
    found = compute(on_gpus(A, n_gpu_layers=16))
    assert found[HOST.id] > 100
    largest = 4096 * 14_336 * 2 / MIB
    assert found[A.id] > compute(on_gpus(A))[A.id] + largest
    assert compute(on_gpus(A, n_gpu_layers=16), op_offload=False)[A.id] < found[A.id]


def test_experts_on_the_host_are_borrowed_too() -> None:
    model = llama(expert_count=8, expert_used_count=2, expert_feed_forward_length=4096)
    stacks = tuple(tensor(f"blk.{i}.ffn_up_exps.weight", 1024, 4096, 8) for i in range(4))
    model = metadata(
        "llama", {k.removeprefix("llama."): v for k, v in model.kv.items()}, model.tensors + stacks
    )
    stack = 1024 * 4096 * 8 * 2 / MIB
    kept = compute(on_gpus(A), model, cpu_moe=True)[A.id]
    assert kept > compute(on_gpus(A), model)[A.id] + stack


def output(ctx_size: int, model: GgufMetadata, **settings: object) -> int:
    found = estimate(Prepared.of(model, LoadSettings(**settings)), on_host(ctx_size))  # type: ignore[arg-type]
    return found.bytes_of("output")


def test_every_token_of_an_input_that_is_embedded_has_a_row_of_logits_beside_its_embedding() -> None:
    bert = llama(architecture="bert", n_vocab=250_000, n_ctx_train=8192)
    assert output(8192, bert, embedding=True) == 4 * 8192 * (250_000 + 1024)
    assert output(8192, bert, embedding=True, ubatch=512) == 4 * 512 * (250_000 + 1024)
    last = llama(n_vocab=32_000, pooling_type=3)
    assert output(8192, last, embedding=True) == 4 * 512 * (32_000 + 1024)
    assert output(8192, llama(n_vocab=32_000), parallel=2) == 4 * 2 * 32_000


def test_the_buffer_of_an_encoder_grows_with_its_context() -> None:
    bert = llama(architecture="bert", n_ctx_train=32_768)
    assert compute(on_host(8192), bert)[HOST.id] > 4 * compute(on_host(2048), bert)[HOST.id]


def test_an_encoder_with_windows_has_a_mask_for_each_kind_of_attention() -> None:
    plain = compute(on_host(8192), llama(architecture="modern-bert"))[HOST.id]
    windows = compute(on_host(8192), llama(architecture="modern-bert", attention__sliding_window=128))[
        HOST.id
    ]
    assert windows == plain + 2 * 8192 * 8192 / MIB


def test_a_decoder_computes_logits_of_every_token_that_it_embeds() -> None:
    model = llama(n_vocab=250_000, pooling_type=3)
    assert compute(on_host(8192), model, embedding=True)[HOST.id] > 4 * 512 * 250_000 / MIB
