"""What a header says of a model, and the questions most often asked of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from router.gguf.tables import FILE_TYPES, GGML_TYPES, POOLING_TYPES

Scalar = int | float | bool | str
KvValue = Scalar | tuple[Scalar, ...]


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

    @property
    def n_elements(self) -> int:
        n = 1
        for dimension in self.shape:
            n *= dimension
        return n


@dataclass(frozen=True, slots=True)
class GgufMetadata:
    """What the header of a model says, the shards of a split model merged (keys are those of the first).

    `kv` leaves out arrays longer than MAX_KEPT_ARRAY and strings longer than MAX_KEPT_STRING_BYTES; the
    length of every array, kept or not, is in `array_lengths`.
    """

    path: Path
    files: tuple[Path, ...]
    file_size_bytes: int
    version: int
    architecture: str
    kv: Mapping[str, KvValue] = field(hash=False)
    array_lengths: Mapping[str, int] = field(hash=False)
    tensors: tuple[TensorInfo, ...] = field(hash=False)

    def arch_int(self, key: str, default: int | None = None) -> int | None:
        """The integer `ARCHITECTURE.key`; `default` when it is missing or something else."""
        value = self.kv.get(f"{self.architecture}.{key}")
        return value if isinstance(value, int) and not isinstance(value, bool) else default

    @property
    def name(self) -> str | None:
        value = self.kv.get("general.name")
        return value if isinstance(value, str) else None

    @property
    def kind(self) -> str:
        """`model`, `mmproj`, `adapter`, ...: general.type; for files older than that key, by architecture."""
        value = self.kv.get("general.type")
        if isinstance(value, str):
            return value
        return "mmproj" if self.architecture == "clip" else "model"

    @property
    def is_mmproj(self) -> bool:
        return self.kind == "mmproj" or self.architecture == "clip"

    @property
    def modalities(self) -> frozenset[str]:
        """What a multimodal projector adds to text: `image`, `audio`; empty for anything else."""
        found = set()
        if self.is_mmproj:
            if self.kv.get("clip.has_audio_encoder"):
                found.add("audio")
            # Projectors older than these keys are all for images.
            if self.kv.get("clip.has_vision_encoder", not found):
                found.add("image")
        return frozenset(found)

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
    def has_chat_template(self) -> bool:
        return "tokenizer.chat_template" in self.kv

    @property
    def n_parameters(self) -> int:
        return sum(tensor.n_elements for tensor in self.tensors)

    @property
    def tensor_bytes(self) -> int:
        return sum(tensor.bytes for tensor in self.tensors)

    @property
    def quantisation(self) -> str | None:
        """The label of the quantisation (`Q4_K_M`); where the file does not say, the type of most bytes."""
        file_type = self.kv.get("general.file_type")
        if isinstance(file_type, int) and file_type in FILE_TYPES:
            return FILE_TYPES[file_type]
        sums: dict[str, int] = {}
        for tensor in self.tensors:
            sums[tensor.type_name] = sums.get(tensor.type_name, 0) + tensor.bytes
        return max(sums, key=lambda name: sums[name], default=None)
