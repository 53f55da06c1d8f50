"""Weights lie with their layers, unless an override, a split by rows or the CPU's own layout says
otherwise."""

from __future__ import annotations

import pytest

from router.gguf import GgufMetadata
from router.memory.estimate import Layout, LoadSettings, Term
from router.memory.estimate.shape import read_shape
from router.memory.estimate.weights import parse_overrides, plan_weights, weight_terms
from tests.memory.estimate.made_up import MIB, gpu, llama, metadata, on_gpus, on_host, tensor

A, B = gpu(0, 24), gpu(1, 12)
PLAIN = LoadSettings(repack=False)


def terms(model: GgufMetadata, layout: Layout, settings: LoadSettings = PLAIN) -> list[Term]:
    shape = read_shape(model)
    assert shape is not None
    return list(weight_terms(plan_weights(model, shape, settings), settings, layout))


def sums(model: GgufMetadata, layout: Layout, settings: LoadSettings = PLAIN) -> dict[str, int]:
    found: dict[str, int] = {}
    for term in terms(model, layout, settings):
        found[term.device] = found.get(term.device, 0) + term.bytes
    return found


def of(model: GgufMetadata, *parts: str) -> int:
    return sum(t.bytes for t in model.tensors if any(part in t.name for part in parts))


def experts(n_layers: int = 4) -> GgufMetadata:
    model = llama(n_layers=n_layers)
    more = [
        tensor(f"blk.{i}.ffn_{part}_exps.weight", 1024, 512, 8)
        for i in range(n_layers)
        for part in ("up", "gate")
    ]
    kv = {k.removeprefix("llama."): v for k, v in model.kv.items()}
    return metadata("llama", kv, (*model.tensors, *more))


def test_on_the_host_all_tensors_count_once() -> None:
    model = llama()
    assert sums(model, on_host()) == {"box/host": model.tensor_bytes}


def test_embeddings_stay_on_the_host_when_all_is_offloaded() -> None:
    model = llama()
    found = sums(model, on_gpus(A))
    assert found["box/host"] == of(model, "token_embd")
    assert found[A.id] == pytest.approx(model.tensor_bytes - of(model, "token_embd"), rel=1e-4)


def test_tied_embeddings_are_on_both_sides() -> None:
    # gemma-3-12b: 262144 x 3840 in Q6_K, 787 MiB, on the host and once more on the GPU.
    model = llama(n_embd=3840, n_vocab=262_144, n_head=16, n_head_kv=8, tied=True, type_name="Q6_K")
    found = terms(model, on_gpus(A))
    copies = [term for term in found if "tied" in term.explanation]
    assert [(c.device, round(c.bytes / MIB)) for c in copies] == [(A.id, 788)]
    assert sum(t.bytes for t in found if t.device == "box/host") == of(model, "token_embd")


def test_tied_embeddings_on_the_host_are_not_copied() -> None:
    model = llama(tied=True)
    assert sums(model, on_host()) == {"box/host": model.tensor_bytes}


def test_layers_lie_where_the_split_puts_them() -> None:
    model = llama(n_layers=3)
    found = sums(model, on_gpus(A, B, n_gpu_layers=4, split=(1, 3)))
    assert found[A.id] == pytest.approx(of(model, "blk.0."), rel=1e-4)
    assert found[B.id] == pytest.approx(
        of(model, "blk.1.", "blk.2.", "output.w", "output_n") - of(model, "blk.0.attn_output"), rel=1e-4
    )


def test_cpu_moe_keeps_all_experts_on_the_host() -> None:
    model = experts()
    found = sums(model, on_gpus(A), LoadSettings(cpu_moe=True, repack=False))
    assert found["box/host"] == of(model, "token_embd", "_exps")


def test_n_cpu_moe_keeps_the_experts_of_the_first_layers_on_the_host() -> None:
    model = experts()
    found = sums(model, on_gpus(A), LoadSettings(n_cpu_moe=2, repack=False))
    first = sum(t.bytes for t in model.tensors if "_exps" in t.name and t.name[4] in "01")
    assert found["box/host"] == of(model, "token_embd") + first


def test_n_cpu_ffn_keeps_dense_feed_forward_on_the_host() -> None:
    model = llama()
    found = sums(model, on_gpus(A), LoadSettings(n_cpu_ffn=1, repack=False))
    dense = sum(t.bytes for t in model.tensors if t.name.startswith("blk.0.ffn_") and "norm" not in t.name)
    assert found["box/host"] == of(model, "token_embd") + dense


def test_the_first_override_that_matches_decides() -> None:
    model = llama()
    settings = LoadSettings(override_tensor=(r"ffn_up=CUDA1,ffn_.*=CPU", "attn=CPU"), repack=False)
    found = sums(model, on_gpus(A, B, split=(1, 0)), settings)
    assert found[B.id] == pytest.approx(of(model, "ffn_up"), rel=1e-4)
    on_cpu = of(model, "token_embd", "ffn_norm", "ffn_gate", "ffn_down", "attn")
    assert found["box/host"] == on_cpu


@pytest.mark.parametrize("override", ["ffn", "ffn=", "(=CPU"])
def test_an_override_that_is_none_is_an_error(override: str) -> None:
    with pytest.raises(ValueError, match="override_tensor"):
        parse_overrides(LoadSettings(override_tensor=(override,)))


def test_a_split_by_rows_divides_every_matrix() -> None:
    model = llama()
    found = sums(model, on_gpus(A, B, split=(3, 1)), LoadSettings(split_mode="row", repack=False))
    matrices = sum(t.bytes for t in model.tensors if len(t.shape) == 2 and t.name != "token_embd.weight")
    assert found[A.id] == pytest.approx(matrices * 3 / 4, rel=0.01)
    assert found[B.id] == pytest.approx(matrices / 4, rel=0.01)


def test_prediction_layers_are_not_loaded() -> None:
    model = llama(n_layers=4, nextn_predict_layers=1)
    assert sums(model, on_host())["box/host"] == model.tensor_bytes - of(model, "blk.3.")


def test_quantised_matrices_are_padded_on_a_gpu() -> None:
    model = metadata("llama", {"block_count": 1, "embedding_length": 64, "context_length": 99},
                     (tensor("blk.0.attn_q.weight", 64, 64, type_name="Q8_0"),))  # fmt: skip
    # Rows of 64 are padded to 512 at the end of the matrix: 448 more values, 34 bytes for 32 of them.
    assert sums(model, on_gpus(A))[A.id] == -(-(64 * 64 // 32 * 34 + 448 // 32 * 34) // 128) * 128


def test_repacked_matrices_are_copies_and_their_pages_do_not_count_twice() -> None:
    model = llama(type_name="Q4_0")
    found = {term.kind: term.bytes for term in terms(model, on_host(), LoadSettings())}
    matrices = sum(t.bytes for t in model.tensors if len(t.shape) == 2 and t.name != "token_embd.weight")
    assert found == {"repacked": matrices, "weights": model.tensor_bytes - matrices}


def test_tied_embeddings_are_repacked_beside_the_mapped_ones() -> None:
    model = llama(type_name="Q4_0", tied=True)
    assert sum(term.bytes for term in terms(model, on_host(), LoadSettings())) == model.tensor_bytes + of(
        model, "token_embd"
    )


def test_nothing_is_repacked_on_a_gpu() -> None:
    model = llama(type_name="Q4_0")
    assert {t.kind for t in terms(model, on_gpus(A), LoadSettings())} == {"weights"}
