"""The header of a GGUF file, read in milliseconds and without trust: keys and tensor sizes, never a weight.

Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md; the limits below are tighter than
llama.cpp's, and far from anything a real model has. Memory stays within a few MiB beyond what is kept, time
is linear in the header, and both are bounded for any input: every count is checked against a budget before
anything is allocated or looped over.

`read_gguf` blocks on the disk: call it in a thread.
"""

from __future__ import annotations

import os
import re
import stat
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO, NamedTuple

Scalar = int | float | bool | str
KvValue = Scalar | tuple[Scalar, ...]

MAX_KEYS = 8192
MAX_TENSORS = 32_768
MAX_STRINGS_WALKED = 2_000_000
"""Over all arrays of a file. The largest known vocabulary with merges has some 800 000, read in 0.08 s."""
MAX_KEPT_ARRAY = 1024
"""Per-layer values are kept (llama.cpp has at most 512 layers); longer arrays are skipped vocabularies."""
MAX_KEPT_ITEMS = 65_536
MAX_KEPT_STRING_BYTES = 1 << 16
MAX_KEPT_STRING_BYTES_TOTAL = 4 << 20
MAX_KEY_BYTES = 65_535
MAX_TENSOR_NAME_BYTES = 255
MAX_DIMENSIONS = 8
MAX_SHARDS = 1024
_WINDOW_BYTES = 1 << 20

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


def read_gguf(path: Path | str) -> GgufMetadata:
    """Read the header of a model; for a split one give the first shard, and all of them are read.

    Raises GgufError when a file is missing, unreadable, truncated, of another format or inconsistent.
    """
    path = Path(path)
    first = _read_shard(path)
    files, parts = [path], [first]
    count = _int_key(first, "split.count") or 1
    if count > 1:
        files = _shard_paths(path, first, count)
        parts += [_read_shard(shard) for shard in files[1:]]
        _check_shards(files, parts)
    tensors = tuple(tensor for part in parts for tensor in part.tensors)
    if len({tensor.name for tensor in tensors}) != len(tensors):
        raise GgufError(f"{path}: two of its tensors have the same name")
    architecture = first.kv.get("general.architecture")
    if not isinstance(architecture, str):
        raise GgufError(f"{path}: has no general.architecture")
    return GgufMetadata(
        path=path,
        files=tuple(files),
        file_size_bytes=sum(part.file_size for part in parts),
        version=first.version,
        architecture=architecture,
        kv=first.kv,
        array_lengths=first.array_lengths,
        tensors=tensors,
    )


# --- split models -------------------------------------------------------------------------------------------

_SHARD_NAME = re.compile(r"(?P<prefix>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})\.gguf", re.DOTALL)


def _shard_paths(path: Path, first: _Shard, count: int) -> list[Path]:
    """The paths of all shards, derived from the name of the first as llama.cpp does; each must be there."""
    number = _int_key(first, "split.no") or 0
    match = _SHARD_NAME.fullmatch(path.name)
    if match is None or int(match["count"]) != count:
        expected = f"...-{number + 1:05d}-of-{count:05d}.gguf"
        raise GgufError(f"{path}: is part {number + 1} of {count}, but is not named {expected}")
    names = [f"{match['prefix']}-{n:05d}-of-{count:05d}.gguf" for n in range(1, min(count, MAX_SHARDS) + 1)]
    if number != 0:
        raise GgufError(f"{path}: is part {number + 1} of {count}; a model is given by its first, {names[0]}")
    if count > MAX_SHARDS:
        raise GgufError(f"{path}: claims to have {count} parts; at most {MAX_SHARDS} are accepted")
    paths = [path.with_name(name) for name in names]
    missing = [shard.name for shard in paths if not shard.is_file()]
    if missing:
        shown = ", ".join(missing[:8]) + (f" and {len(missing) - 8} more" if len(missing) > 8 else "")
        raise GgufError(f"{path}: {len(missing)} of its {count} parts are missing: {shown}")
    return paths


def _check_shards(files: list[Path], parts: list[_Shard]) -> None:
    for number, (file, part) in enumerate(zip(files, parts, strict=True)):
        stated = _int_key(part, "split.no") or 0
        if stated != number:
            raise GgufError(f"{file}: says it is part {stated + 1}, not part {number + 1}")
    expected = _int_key(parts[0], "split.tensors.count")
    found = sum(len(part.tensors) for part in parts)
    if expected is not None and expected != found:
        raise GgufError(f"{files[0]}: its parts hold {found} tensors, not the {expected} it announces")
    if found > MAX_TENSORS:
        raise GgufError(f"{files[0]}: its parts hold {found} tensors; at most {MAX_TENSORS} are accepted")


def _int_key(shard: _Shard, key: str) -> int | None:
    value = shard.kv.get(key)
    return value if isinstance(value, int) and not isinstance(value, bool) else None


# --- one file -----------------------------------------------------------------------------------------------

_STRING, _ARRAY = 8, 9
_SCALARS: Mapping[int, struct.Struct] = {
    0: struct.Struct("<B"), 1: struct.Struct("<b"), 2: struct.Struct("<H"), 3: struct.Struct("<h"),
    4: struct.Struct("<I"), 5: struct.Struct("<i"), 6: struct.Struct("<f"), 7: struct.Struct("<?"),
    10: struct.Struct("<Q"), 11: struct.Struct("<q"), 12: struct.Struct("<d"),
}  # fmt: skip
_RUN = 64
_RUN_OF_STRINGS = re.compile(
    b"(?s:%s){%d}" % (b"|".join(re.escape(struct.pack("<Q", n)) + b".{%d}" % n for n in range(128)), _RUN)
)
"""That many strings shorter than 128 bytes: the engine of `re` steps over them in half the time of a loop."""
_U32 = struct.Struct("<I")
_U64 = struct.Struct("<Q")


@dataclass(frozen=True, slots=True)
class _Shard:
    version: int
    file_size: int
    kv: dict[str, KvValue]
    array_lengths: dict[str, int]
    tensors: list[TensorInfo]


def _read_shard(path: Path) -> _Shard:
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            raise GgufError(f"{path}: is not a regular file")  # opening a pipe would block for ever
        with path.open("rb", buffering=0) as file:
            return _ShardReader(path, file).read()
    except OSError as error:
        raise GgufError(f"{path}: {error.strerror or error}") from error


class _ShardReader:
    """Reads through a window that slides over the file. A mapping would be simpler, and kill the process with
    SIGBUS when somebody truncates the file meanwhile, as a download that starts over does."""

    def __init__(self, path: Path, file: BinaryIO) -> None:
        self._path = path
        self._file = file
        self._size = os.fstat(file.fileno()).st_size
        self._window = b""
        self._base = 0  # offset of the window in the file
        self._pos = 0  # offset of the cursor in the window
        self._strings_left = MAX_STRINGS_WALKED
        self._items_left = MAX_KEPT_ITEMS
        self._text_left = MAX_KEPT_STRING_BYTES_TOTAL

    def read(self) -> _Shard:
        version = self._read_magic()
        n_tensors, n_keys = self._u64("the number of tensors"), self._u64("the number of keys")
        if n_tensors > MAX_TENSORS:
            raise self._error(f"claims to have {n_tensors} tensors; at most {MAX_TENSORS} are accepted")
        if n_keys > MAX_KEYS:
            raise self._error(f"claims to have {n_keys} keys; at most {MAX_KEYS} are accepted")
        kv: dict[str, KvValue] = {}
        array_lengths: dict[str, int] = {}
        seen: set[str] = set()
        for _ in range(n_keys):
            key = self._text("a key", MAX_KEY_BYTES)
            if not key or key in seen:
                raise self._error(f"key {key!r} occurs twice" if key else "has a key without a name")
            seen.add(key)
            self._read_value(key, kv, array_lengths)
        tensors = self._read_tensors(n_tensors, kv.get("general.alignment", 32))
        return _Shard(version, self._size, kv, array_lengths, tensors)

    def _read_magic(self) -> int:
        magic = self._take(4, "the magic number") if self._size >= 4 else b""
        if magic != b"GGUF":
            raise GgufError(f"{self._path}: is not a GGUF file (it begins with {magic!r})")
        version = self._u32("the version")
        if version & 0xFFFF == 0:
            raise self._error("is big-endian; only little-endian GGUF files can be used here")
        if version not in (2, 3):
            raise self._error(f"has GGUF version {version}; versions 2 and 3 can be read")
        return version

    # keys

    def _read_value(self, key: str, kv: dict[str, KvValue], array_lengths: dict[str, int]) -> None:
        type_id = self._u32(f"the type of {key}")
        if type_id == _STRING:
            text = self._string_value(key)
            if text is not None:
                kv[key] = text
        elif type_id == _ARRAY:
            items = self._array_value(key, array_lengths)
            if items is not None:
                kv[key] = items
        elif type_id in _SCALARS:
            kv[key] = self._scalar(_SCALARS[type_id], key)
        else:
            raise self._error(f"key {key!r} has the unknown type {type_id}")

    def _string_value(self, key: str) -> str | None:
        length = self._u64(f"the length of {key}")
        if length > MAX_KEPT_STRING_BYTES:
            self._skip(length, key)
            return None
        self._text_left -= length
        if self._text_left < 0:
            raise self._error(f"has more than {MAX_KEPT_STRING_BYTES_TOTAL} bytes of text in its keys")
        return self._take(length, key).decode("utf-8", "replace")

    def _array_value(self, key: str, array_lengths: dict[str, int]) -> tuple[Scalar, ...] | None:
        type_id = self._u32(f"the item type of {key}")
        count = self._u64(f"the length of {key}")
        array_lengths[key] = count
        is_kept = count <= MAX_KEPT_ARRAY
        if is_kept:
            self._items_left -= count
            if self._items_left < 0:
                raise self._error(f"has more than {MAX_KEPT_ITEMS} items in its short arrays")
        if type_id == _STRING:
            return self._string_array(key, count, is_kept)
        scalar = _SCALARS.get(type_id)
        if scalar is None:
            what = (
                "is an array of arrays" if type_id == _ARRAY else f"is an array of the unknown type {type_id}"
            )
            raise self._error(f"key {key!r} {what}")
        if is_kept:
            data = self._take(count * scalar.size, key)
            return tuple(value for (value,) in scalar.iter_unpack(data))
        self._skip(count * scalar.size, key)
        return None

    def _string_array(self, key: str, count: int, is_kept: bool) -> tuple[str, ...] | None:
        self._strings_left -= count
        if self._strings_left < 0 or count * 8 > self._size - self._offset:
            raise self._error(f"key {key!r} claims to have {count} strings")
        # Names of classes and languages are kept; anything longer is a vocabulary.
        if is_kept:
            texts = [self._string_value(key) for _ in range(count)]
            return tuple(text if text is not None else "" for text in texts)
        self._walk_strings(key, count)
        return None

    def _walk_strings(self, key: str, count: int) -> None:
        """Step over `count` strings: the one place whose speed matters."""
        while count:
            if self._pos + 8 > len(self._window):
                self._refill(8, key)
            if count >= _RUN and (run := _RUN_OF_STRINGS.match(self._window, self._pos)):
                self._pos = run.end()
                count -= _RUN
            else:
                count -= self._walk_a_few(min(count, _RUN))
        if self._offset > self._size:
            raise self._truncated(key)

    def _walk_a_few(self, count: int) -> int:
        """Step over up to `count` strings, until one begins beyond the window; returns how many."""
        window, pos, left = self._window, self._pos, count
        last_start = len(window) - 8
        while left and pos <= last_start:
            pos += 8 + _U64.unpack_from(window, pos)[0]
            left -= 1
        self._pos = pos
        return count - left

    # tensors

    def _read_tensors(self, count: int, alignment: object) -> list[TensorInfo]:
        if (
            not isinstance(alignment, int)
            or alignment <= 0
            or alignment & (alignment - 1)
            or alignment > 1 << 20
        ):
            raise self._error(f"general.alignment is {alignment!r}, not a power of 2")
        infos: list[tuple[str, tuple[int, ...], int, int]] = []
        for _ in range(count):
            name = self._text("a tensor's name", MAX_TENSOR_NAME_BYTES)
            n_dims = self._u32(f"the dimensions of {name}")
            if n_dims > MAX_DIMENSIONS:
                raise self._error(f"tensor {name!r} claims to have {n_dims} dimensions")
            packed = self._take(8 * n_dims + 12, f"tensor {name}")
            *shape, type_id, offset = struct.unpack(f"<{n_dims}qIQ", packed)
            if any(not 0 <= dimension < 1 << 48 for dimension in shape):
                raise self._error(f"tensor {name!r} has the shape {shape}")
            if type_id > 0xFFFF:
                raise self._error(f"tensor {name!r} has the unknown type {type_id}")
            infos.append((name, tuple(shape), type_id, offset))
        data_start = -(-self._offset // alignment) * alignment
        return list(self._sized(infos, data_start, alignment))

    def _sized(
        self, infos: list[tuple[str, tuple[int, ...], int, int]], data_start: int, alignment: int
    ) -> Iterator[TensorInfo]:
        """Each tensor with its bytes. As in llama.cpp, data lie in the header's order and do not overlap."""
        data_bytes = self._size - data_start
        end = 0
        for number, (name, shape, type_id, offset) in enumerate(infos):
            if offset < end or offset % alignment:
                raise self._error(
                    f"tensor {name!r} has the offset {offset}, not one from {end} on in steps of {alignment}"
                )
            if type_id in GGML_TYPES:
                size = _tensor_bytes(shape, type_id)
                if size is None:
                    raise self._error(f"tensor {name!r} has rows of {shape[0]}, not whole blocks of its type")
            else:
                # A type newer than this table: its size is all that lies before the next tensor.
                size = (infos[number + 1][3] if number + 1 < len(infos) else data_bytes) - offset
            end = offset + max(size, 0)
            if end > data_bytes or size < 0:
                raise GgufError(
                    f"{self._path}: truncated: tensor {name} needs bytes up to {data_start + end}, "
                    f"the file has {self._size}"
                )
            yield TensorInfo(name, shape, type_id, size)

    # the cursor

    @property
    def _offset(self) -> int:
        return self._base + self._pos

    def _take(self, n: int, what: str) -> bytes:
        if self._pos + n > len(self._window):
            self._refill(n, what)
        start = self._pos
        self._pos += n
        return self._window[start : self._pos]

    def _skip(self, n: int, what: str) -> None:
        self._pos += n
        if self._offset > self._size:
            raise self._truncated(what)

    def _refill(self, n: int, what: str) -> None:
        """Slide the window so that it begins at the cursor and holds at least `n` bytes."""
        offset = self._offset
        if offset + n > self._size:
            raise self._truncated(what)
        self._file.seek(offset)
        wanted = max(n, _WINDOW_BYTES)
        chunks: list[bytes] = []
        while wanted > 0 and (chunk := self._file.read(wanted)):
            chunks.append(chunk)
            wanted -= len(chunk)
        self._window, self._base, self._pos = b"".join(chunks), offset, 0
        if len(self._window) < n:  # shrunk since it was opened
            raise self._truncated(what)

    def _u32(self, what: str) -> int:
        return int(_U32.unpack(self._take(4, what))[0])

    def _u64(self, what: str) -> int:
        return int(_U64.unpack(self._take(8, what))[0])

    def _scalar(self, scalar: struct.Struct, what: str) -> Scalar:
        value: Scalar = scalar.unpack(self._take(scalar.size, what))[0]
        return value

    def _text(self, what: str, limit: int) -> str:
        length = self._u64(f"the length of {what}")
        if length > limit:
            raise self._error(f"{what} claims to be {length} bytes long; at most {limit} are accepted")
        return self._take(length, what).decode("utf-8", "replace")

    def _error(self, what: str) -> GgufError:
        return GgufError(f"{self._path}: {what} (at byte {self._offset})")

    def _truncated(self, what: str) -> GgufError:
        return GgufError(
            f"{self._path}: truncated: {what} goes beyond the end of the file at byte {self._size}"
        )


def _tensor_bytes(shape: tuple[int, ...], type_id: int) -> int | None:
    """Bytes of a tensor of a known type; None when its rows are not whole blocks."""
    _, block, block_bytes = GGML_TYPES[type_id]
    n = 1
    for dimension in shape:
        n *= dimension
    if (shape[0] if shape else 1) % block:
        return None
    return n // block * block_bytes
