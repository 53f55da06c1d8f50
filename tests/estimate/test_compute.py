"""Compute buffers: on the devices that take part, and growing with what they hold."""

from __future__ import annotations

from router.estimate import Layout, LoadSettings, Prepared, estimate
from router.gguf import GgufMetadata
from tests.estimate.made_up import HOST, MIB, gpu, llama, metadata, on_gpus, on_host, tensor

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
