"""The GGUF reader reads what the reference reader reads, and of a split model all parts."""

from __future__ import annotations

import math
import random
import struct
from pathlib import Path

import gguf
import pytest

from router.gguf import FILE_TYPES, GGML_TYPES, GgufError, read_gguf
from router.gguf.header import MAX_KEPT_ARRAY
from tests.gguf_bytes import ARRAY, STRING, U32, array, header, key, read_bytes, tensor, text
from tests.make_gguf import (
    MIN_VOCAB,
    Tensor,
    make_bert,
    make_deepseek2,
    make_gemma3,
    make_gpt_oss,
    make_granite_hybrid,
    make_llama,
    make_mamba2,
    make_mmproj,
    make_qwen3,
    make_qwen3next,
    shard_path,
    write_gguf,
)

MIB = 1 << 20


# ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "make",
    [
        make_llama,
        make_gemma3,
        make_qwen3,
        make_deepseek2,
        make_mamba2,
        make_granite_hybrid,
        make_qwen3next,
        make_gpt_oss,
        make_bert,
        make_mmproj,
        lambda path: make_qwen3(path, n_experts=4),
        lambda path: make_llama(path, weight_type="q4_0", tied=True),
    ],
)
def test_reads_what_the_reference_reader_reads(make, tmp_path: Path) -> None:
    path = make(tmp_path / "m.gguf")
    metadata = read_gguf(path)
    reference = gguf.GGUFReader(path)
    assert metadata.file_size_bytes == path.stat().st_size
    assert [(t.name, t.shape, t.ggml_type, t.bytes) for t in metadata.tensors] == [
        (t.name, tuple(int(n) for n in t.shape), int(t.tensor_type), int(t.n_bytes))
        for t in reference.tensors
    ]
    for name, field in reference.fields.items():
        if name.startswith("GGUF."):
            continue
        expected = field.contents()
        if not isinstance(expected, list):
            assert metadata.kv[name] == expected
            continue
        assert metadata.array_lengths[name] == len(expected)
        if len(expected) <= MAX_KEPT_ARRAY:
            assert metadata.kv[name] == tuple(expected)


def test_vocabularies_are_counted_but_not_kept(tmp_path: Path) -> None:
    metadata = read_gguf(make_llama(tmp_path / "m.gguf", n_vocab=5000))
    assert "tokenizer.ggml.tokens" not in metadata.kv
    assert "tokenizer.ggml.scores" not in metadata.kv
    assert metadata.array_lengths["tokenizer.ggml.tokens"] == 5000
    assert metadata.n_vocab == 5000


def test_values_for_each_layer_are_kept(tmp_path: Path) -> None:
    metadata = read_gguf(make_granite_hybrid(tmp_path / "m.gguf", n_layers=4, attention_every=2))
    assert metadata.kv["granitehybrid.attention.head_count_kv"] == (0, 2, 0, 2)


def test_answers_the_usual_questions(tmp_path: Path) -> None:
    metadata = read_gguf(
        make_llama(tmp_path / "m.gguf", name="Tiny", n_layers=3, n_ctx_train=4096, weight_type="q8_0")
    )
    assert metadata.kv["general.name"] == "Tiny"
    assert metadata.architecture == "llama"
    assert (metadata.n_layers, metadata.n_ctx_train, metadata.n_embd) == (3, 4096, 64)
    assert metadata.n_vocab == MIN_VOCAB
    assert metadata.quantisation == "Q8_0"
    assert metadata.n_parameters == sum(math.prod(t.shape) for t in metadata.tensors)
    assert metadata.kind == "model"
    assert metadata.pooling is None
    assert not metadata.modalities


def test_names_the_pooling_of_an_embedding_model(tmp_path: Path) -> None:
    assert read_gguf(make_bert(tmp_path / "m.gguf")).pooling == "mean"


def test_knows_what_a_projector_is_for(tmp_path: Path) -> None:
    metadata = read_gguf(make_mmproj(tmp_path / "m.gguf"))
    assert metadata.kind == "mmproj"
    assert metadata.modalities == {"image"}


def test_a_projector_may_be_for_sound(tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "m.gguf", "clip", {"clip.has_audio_encoder": True}, [])
    assert read_gguf(path).modalities == {"audio"}


def test_without_a_file_type_the_label_is_the_type_of_most_bytes(tmp_path: Path) -> None:
    tensors = [Tensor("a", (64,), "f32"), Tensor("b", (64, 64), "q4_0")]
    assert read_gguf(write_gguf(tmp_path / "m.gguf", "llama", {}, tensors)).quantisation == "Q4_0"


def test_a_file_without_tensors_is_a_vocabulary(tmp_path: Path) -> None:
    assert read_bytes(header(), tmp_path).tensors == ()


def test_version_2_reads_like_version_3(tmp_path: Path) -> None:
    second, third = (read_bytes(header(version=version), tmp_path) for version in (2, 3))
    assert second == third


def test_a_type_newer_than_the_table_takes_what_lies_before_the_next_tensor(tmp_path: Path) -> None:
    data = header(tensors=(tensor("a", (32,), 99, 0), tensor("b", (8,), 0, 128)), data=bytes(160))
    first, second = read_bytes(data, tmp_path).tensors
    assert (first.bytes, first.type_name) == (128, "type 99")
    assert second.bytes == 32


def test_long_texts_are_skipped(tmp_path: Path) -> None:
    long = key("tokenizer.huggingface.json", STRING, text(b"x" * 3 * MIB))
    metadata = read_bytes(header(long, key("after", U32, struct.pack("<I", 7))), tmp_path)
    assert "tokenizer.huggingface.json" not in metadata.kv
    assert metadata.kv["after"] == 7


def test_strings_of_every_length_are_stepped_over(tmp_path: Path) -> None:
    """Lengths around the fast path's limits and longer than the window, at every place of a run."""
    rng = random.Random(4)
    lengths = [rng.choice((0, 1, 3, 9, 40, 127, 128, 129, 255, 256, 70_000)) for _ in range(3000)]
    lengths += [2 * MIB + 5, 0, 1, MIB, MIB - 8] + [rng.randrange(20) for _ in range(2000)]
    items = b"".join(text(bytes(n)) for n in lengths)
    strings = key("tokenizer.ggml.tokens", ARRAY, array(STRING, len(lengths), items))
    metadata = read_bytes(header(strings, key("after", U32, struct.pack("<I", 7))), tmp_path)
    assert metadata.array_lengths["tokenizer.ggml.tokens"] == len(lengths)
    assert metadata.kv["after"] == 7


def test_the_type_table_is_that_of_the_gguf_package() -> None:
    for reference, (block, size) in gguf.GGML_QUANT_SIZES.items():
        if reference.name == "Q8_1":
            continue  # of activations only, in no file; its size has changed
        assert GGML_TYPES[int(reference)] == (reference.name, block, size)


def test_the_labels_are_those_of_the_gguf_package() -> None:
    for reference in gguf.LlamaFileType:
        if reference.name != "GUESSED":
            name = reference.name.removeprefix("MOSTLY_").removeprefix("ALL_").removesuffix("_MOE")
            assert FILE_TYPES[int(reference)] == name


# --- split models
# ----------------------------------------------------------------------------------------------------


def test_all_parts_of_a_split_model_count(tmp_path: Path) -> None:
    whole = read_gguf(make_llama(tmp_path / "whole.gguf"))
    first = make_llama(tmp_path / "m.gguf", shards=3)
    split = read_gguf(first)
    files = [shard_path(tmp_path / "m.gguf", n, 3) for n in (1, 2, 3)]
    assert sorted(split.tensors) == sorted(whole.tensors)
    assert split.file_size_bytes == sum(file.stat().st_size for file in files)
    assert split.n_layers == whole.n_layers


def test_missing_parts_are_named(tmp_path: Path) -> None:
    first = make_llama(tmp_path / "m.gguf", shards=3)
    shard_path(tmp_path / "m.gguf", 2, 3).unlink()
    with pytest.raises(GgufError, match=r"1 of its 3 parts are missing: m-00002-of-00003\.gguf"):
        read_gguf(first)


def test_a_later_part_names_the_first(tmp_path: Path) -> None:
    make_llama(tmp_path / "m.gguf", shards=3)
    with pytest.raises(GgufError, match=r"part 2 of 3.*m-00001-of-00003\.gguf"):
        read_gguf(shard_path(tmp_path / "m.gguf", 2, 3))


def test_a_renamed_part_is_an_error(tmp_path: Path) -> None:
    first = make_llama(tmp_path / "m.gguf", shards=3)
    renamed = first.rename(tmp_path / "other.gguf")
    with pytest.raises(GgufError, match="is not named"):
        read_gguf(renamed)


def test_a_part_in_the_wrong_place_is_an_error(tmp_path: Path) -> None:
    first = make_llama(tmp_path / "m.gguf", shards=3)
    second, third = (shard_path(tmp_path / "m.gguf", n, 3) for n in (2, 3))
    second.write_bytes(third.read_bytes())
    with pytest.raises(GgufError, match="says it is part 3, where part 2 belongs"):
        read_gguf(first)


def test_a_part_of_another_model_is_an_error(tmp_path: Path) -> None:
    first = make_llama(tmp_path / "m.gguf", shards=3)
    other = make_llama(tmp_path / "o.gguf", n_layers=5, shards=3)
    shard_path(tmp_path / "m.gguf", 3, 3).write_bytes(shard_path(tmp_path / "o.gguf", 3, 3).read_bytes())
    assert other.is_file()
    with pytest.raises(GgufError, match="tensors"):
        read_gguf(first)
