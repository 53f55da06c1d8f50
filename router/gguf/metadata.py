"""What a header says of a model, with ggml's numbers for tensor types, quantisation labels and pooling."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

Scalar = int | float | bool | str
KvValue = Scalar | tuple[Scalar, ...]

GGML_TYPES: Mapping[int, tuple[str, int, int]] = {
    # id: (name, weights per block, bytes per block), from ggml_type and gguf.constants.GGML_QUANT_SIZES
    0: ("F32", 1, 4), 1: ("F16", 1, 2), 2: ("Q4_0", 32, 18), 3: ("Q4_1", 32, 20), 6: ("Q5_0", 32, 22),
    7: ("Q5_1", 32, 24), 8: ("Q8_0", 32, 34), 9: ("Q8_1", 32, 36), 10: ("Q2_K", 256, 84),
    11: ("Q3_K", 256, 110), 12: ("Q4_K", 256, 144), 13: ("Q5_K", 256, 176), 14: ("Q6_K", 256, 210),
    15: ("Q8_K", 256, 292), 16: ("IQ2_XXS", 256, 66), 17: ("IQ2_XS", 256, 74), 18: ("IQ3_XXS", 256, 98),
    19: ("IQ1_S", 256, 50), 20: ("IQ4_NL", 32, 18), 21: ("IQ3_S", 256, 110), 22: ("IQ2_S", 256, 82),
    23: ("IQ4_XS", 256, 136), 24: ("I8", 1, 1), 25: ("I16", 1, 2), 26: ("I32", 1, 4), 27: ("I64", 1, 8),
    28: ("F64", 1, 8), 29: ("IQ1_M", 256, 56), 30: ("BF16", 1, 2), 34: ("TQ1_0", 256, 54),
    35: ("TQ2_0", 256, 66), 39: ("MXFP4", 32, 17), 40: ("NVFP4", 64, 36), 41: ("Q1_0", 128, 18),
    42: ("Q2_0", 64, 18),
}  # fmt: skip

FILE_TYPES: Mapping[int, str] = {
    # llama_ftype (general.file_type): the label people know a quantisation by
    0: "F32", 1: "F16", 2: "Q4_0", 3: "Q4_1", 7: "Q8_0", 8: "Q5_0", 9: "Q5_1", 10: "Q2_K", 11: "Q3_K_S",
    12: "Q3_K_M", 13: "Q3_K_L", 14: "Q4_K_S", 15: "Q4_K_M", 16: "Q5_K_S", 17: "Q5_K_M", 18: "Q6_K",
    19: "IQ2_XXS", 20: "IQ2_XS", 21: "Q2_K_S", 22: "IQ3_XS", 23: "IQ3_XXS", 24: "IQ1_S", 25: "IQ4_NL",
    26: "IQ3_S", 27: "IQ3_M", 28: "IQ2_S", 29: "IQ2_M", 30: "IQ4_XS", 31: "IQ1_M", 32: "BF16", 36: "TQ1_0",
    37: "TQ2_0", 38: "MXFP4", 39: "NVFP4", 40: "Q1_0", 41: "Q2_0",
}  # fmt: skip

POOLING_TYPES: Mapping[int, str] = {0: "none", 1: "mean", 2: "cls", 3: "last", 4: "rank"}


class GgufError(ValueError):
    """The file cannot be used as a GGUF: says which file, what is wrong with it, and at which byte."""


class TensorInfo(NamedTuple):
    """One tensor as the header describes it. `shape` is ggml's: the fastest dimension first."""

    name: str
    shape: tuple[int, ...]
    ggml_type: int
    bytes: int

    @property
    def type_name(self) -> str:
        """ggml's name of the type, or `type N` for one that this table does not know."""
        known = GGML_TYPES.get(self.ggml_type)
        return known[0] if known else f"type {self.ggml_type}"


@dataclass(frozen=True, slots=True)
class GgufMetadata:
    """What the header of a model says, the shards of a split model merged (keys are those of the first).

    `kv` leaves out arrays longer than MAX_KEPT_ARRAY and strings longer than MAX_KEPT_STRING_BYTES; the
    length of every array, kept or not, is in `array_lengths`.
    """

    path: Path
    file_size_bytes: int
    architecture: str
    kv: Mapping[str, KvValue] = field(hash=False)
    array_lengths: Mapping[str, int] = field(hash=False)
    tensors: tuple[TensorInfo, ...] = field(hash=False)

    def arch_int(self, key: str, default: int | None = None) -> int | None:
        """The integer `ARCHITECTURE.key`; `default` when it is missing or something else."""
        value = self.kv.get(f"{self.architecture}.{key}")
        return value if isinstance(value, int) and not isinstance(value, bool) else default

    @property
    def kind(self) -> str:
        """`model`, `mmproj`, `adapter`, ...: general.type; for files older than that key, by architecture."""
        value = self.kv.get("general.type")
        if isinstance(value, str):
            return value
        return "mmproj" if self.architecture == "clip" else "model"

    @property
    def modalities(self) -> frozenset[str]:
        """What a multimodal projector adds to text: `image`, `audio`; empty for anything else."""
        if self.kind != "mmproj" and self.architecture != "clip":
            return frozenset()
        has_audio = bool(self.kv.get("clip.has_audio_encoder"))
        # Projectors older than these keys are all for images.
        has_image = bool(self.kv.get("clip.has_vision_encoder", not has_audio))
        return frozenset(["audio"] * has_audio + ["image"] * has_image)

    @property
    def n_layers(self) -> int | None:
        return self.arch_int("block_count")

    @property
    def n_ctx_train(self) -> int | None:
        return self.arch_int("context_length")

    @property
    def n_embd(self) -> int | None:
        return self.arch_int("embedding_length")

    @property
    def n_vocab(self) -> int | None:
        """Tokens in the vocabulary, from the token list, the header's own count or the embedding matrix."""
        listed = self.array_lengths.get("tokenizer.ggml.tokens")
        if listed is not None:
            return listed
        stated = self.arch_int("vocab_size")
        if stated is not None:
            return stated
        embedding = next((t for t in self.tensors if t.name == "token_embd.weight"), None)
        return embedding.shape[1] if embedding is not None and len(embedding.shape) > 1 else None

    @property
    def pooling(self) -> str | None:
        """`mean`, `cls`, `last`, `rank` or `none` of an embedding model; None when the file does not say."""
        value = self.arch_int("pooling_type")
        return POOLING_TYPES.get(value) if value is not None else None

    @property
    def n_parameters(self) -> int:
        return sum(math.prod(tensor.shape) for tensor in self.tensors)

    @property
    def tensor_bytes(self) -> int:
        return sum(tensor.bytes for tensor in self.tensors)

    @property
    def quantisation(self) -> str | None:
        """The label of the quantisation (`Q4_K_M`); where the file does not say, the type of most bytes."""
        file_type = self.kv.get("general.file_type")
        if isinstance(file_type, int) and file_type in FILE_TYPES:
            return FILE_TYPES[file_type]
        sums: Counter[str] = Counter()
        for tensor in self.tensors:
            sums[tensor.type_name] += tensor.bytes
        return max(sums, key=sums.__getitem__, default=None)
