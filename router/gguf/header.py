"""The header of one GGUF file, read without trust: every count is checked against a budget before anything is
allocated or looped over, so that memory and time are bounded for any input.

Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md. The limits are tighter than llama.cpp's,
and far from anything a real model has.
"""

from __future__ import annotations

import math
import os
import stat
import struct
from collections.abc import Iterator, Mapping
from contextlib import suppress
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO

from router.descriptors import is_out_of_files
from router.gguf.metadata import GGML_TYPES, GgufError, GgufMetadata, KvValue, Scalar, TensorInfo

MAX_KEYS = 8192
MAX_TENSORS = 32_768
MAX_STRINGS_WALKED = 2_000_000
"""Over all arrays of a file. The largest known vocabulary with merges has some 800 000, read in 0.12 s."""
MAX_KEPT_ARRAY = 1024
"""Per-layer values are kept (llama.cpp has at most 512 layers); longer arrays are skipped vocabularies."""
MAX_KEPT_ITEMS = 65_536
MAX_KEPT_STRING_BYTES = 1 << 16
MAX_KEPT_STRING_BYTES_TOTAL = 4 << 20
MAX_KEY_BYTES = 65_535
MAX_TENSOR_NAME_BYTES = 255
MAX_DIMENSIONS = 8
_WINDOW_BYTES = 1 << 20

_STRING, _ARRAY = 8, 9
_SCALARS: Mapping[int, struct.Struct] = {
    0: struct.Struct("<B"), 1: struct.Struct("<b"), 2: struct.Struct("<H"), 3: struct.Struct("<h"),
    4: struct.Struct("<I"), 5: struct.Struct("<i"), 6: struct.Struct("<f"), 7: struct.Struct("<?"),
    10: struct.Struct("<Q"), 11: struct.Struct("<q"), 12: struct.Struct("<d"),
}  # fmt: skip
_TENSOR_LAYOUTS = [struct.Struct(f"<{n_dims}qIQ") for n_dims in range(MAX_DIMENSIONS + 1)]
_U32, _U64 = _SCALARS[4], _SCALARS[10]


def read_header(path: Path) -> GgufMetadata:
    """Read one file: a model, or one shard of it (which may name no architecture). Raises GgufError for
    whatever is wrong with the file, and OSError where this process can open no more files."""
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            raise GgufError(f"{path}: is not a regular file")  # opening a pipe would block for ever
        with path.open("rb", buffering=0) as file:
            return _HeaderReader(path, file, os.fstat(file.fileno()).st_size).read()
    except OSError as error:
        if is_out_of_files(error):
            raise
        raise GgufError(f"{path}: {error.strerror or error}") from error


def first_keys(beginning: bytes) -> tuple[Mapping[str, KvValue], Mapping[str, int]]:
    """The keys in the `beginning` of a GGUF file, and the lengths of the arrays among them. Whatever is odd
    or cut off ends the reading. For a list of hundreds of files: the header of one may have 10 MB.
    """
    reader = _HeaderReader(Path(), BytesIO(beginning), len(beginning))
    with suppress(GgufError):
        reader.read_counts()
        reader.read_keys()
    return reader.kv, reader.array_lengths


class _HeaderReader:
    """Reads through a window that slides over the file. A mapping would be simpler, and kill the process with
    SIGBUS when somebody truncates the file meanwhile, as a download that starts over does."""

    def __init__(self, path: Path, file: BinaryIO, size: int) -> None:
        self._path = path
        self._file = file
        self._size = size
        self._window = b""
        self._base = 0  # offset of the window in the file
        self._pos = 0  # offset of the cursor in the window
        self._strings_left = MAX_STRINGS_WALKED
        self._items_left = MAX_KEPT_ITEMS
        self._text_left = MAX_KEPT_STRING_BYTES_TOTAL
        self._keys_left = 0
        self.kv: dict[str, KvValue] = {}
        self.array_lengths: dict[str, int] = {}

    def read(self) -> GgufMetadata:
        n_tensors = self.read_counts()
        self.read_keys()
        architecture = self.kv.get("general.architecture")
        return GgufMetadata(
            path=self._path,
            file_size_bytes=self._size,
            architecture=architecture if isinstance(architecture, str) else "",
            kv=self.kv,
            array_lengths=self.array_lengths,
            tensors=self._read_tensors(n_tensors, self.kv.get("general.alignment", 32)),
        )

    def read_counts(self) -> int:
        """Read the number of tensors; the number of keys is kept for `read_keys`."""
        magic = self._take(4, "the magic number") if self._size >= 4 else b""
        if magic != b"GGUF":
            raise GgufError(f"{self._path}: is not a GGUF file (it begins with {magic!r})")
        version = self._scalar(_U32, "the version")
        if version & 0xFFFF == 0:
            raise self._error("is big-endian; only little-endian GGUF files can be used here")
        if version not in (2, 3):
            raise self._error(f"has GGUF version {version}; versions 2 and 3 can be read")
        n_tensors: int = self._scalar(_U64, "the number of tensors")
        self._keys_left = self._scalar(_U64, "the number of keys")
        if n_tensors > MAX_TENSORS:
            raise self._error(f"claims to have {n_tensors} tensors; at most {MAX_TENSORS} are accepted")
        if self._keys_left > MAX_KEYS:
            raise self._error(f"claims to have {self._keys_left} keys; at most {MAX_KEYS} are accepted")
        return n_tensors

    def read_keys(self) -> None:
        seen: set[str] = set()
        for _ in range(self._keys_left):
            key = self._text("a key", MAX_KEY_BYTES)
            if not key or key in seen:
                raise self._error(f"key {key!r} occurs twice" if key else "has a key without a name")
            seen.add(key)
            self._read_value(key)

    # keys

    def _read_value(self, key: str) -> None:
        type_id = self._scalar(_U32, f"the type of {key}")
        value: KvValue | None
        if type_id == _STRING:
            value = self._string_value(key)
        elif type_id == _ARRAY:
            value = self._array_value(key)
        elif type_id in _SCALARS:
            value = self._scalar(_SCALARS[type_id], key)
        else:
            raise self._error(f"key {key!r} has the unknown type {type_id}")
        if value is not None:
            self.kv[key] = value

    def _string_value(self, key: str) -> str | None:
        length = self._scalar(_U64, f"the length of {key}")
        if length > MAX_KEPT_STRING_BYTES:
            self._skip(length, key)
            return None
        self._text_left -= length
        if self._text_left < 0:
            raise self._error(f"has more than {MAX_KEPT_STRING_BYTES_TOTAL} bytes of text in its keys")
        return self._take(length, key).decode("utf-8", "replace")

    def _array_value(self, key: str) -> tuple[Scalar, ...] | None:
        type_id = self._scalar(_U32, f"the item type of {key}")
        count = self._scalar(_U64, f"the length of {key}")
        self.array_lengths[key] = count
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
        """Step over `count` strings: the one place whose speed matters (0.1 us a string)."""
        length_at, size = _U64.unpack_from, _U64.size
        while count:
            if self._pos + size > len(self._window):
                self._refill(size, key)
            window, pos = self._window, self._pos
            last_start = len(window) - size
            while count and pos <= last_start:
                pos += size + length_at(window, pos)[0]
                count -= 1
            self._pos = pos
        if self._offset > self._size:
            raise self._truncated(key)

    # tensors

    def _read_tensors(self, count: int, alignment: object) -> tuple[TensorInfo, ...]:
        if not isinstance(alignment, int) or alignment.bit_count() != 1 or not 0 < alignment <= 1 << 20:
            raise self._error(f"general.alignment is {alignment!r}, not a power of 2")
        infos: list[tuple[str, tuple[int, ...], int, int]] = []
        for _ in range(count):
            name = self._text("a tensor's name", MAX_TENSOR_NAME_BYTES)
            n_dims = self._scalar(_U32, "a tensor's dimensions")
            if n_dims > MAX_DIMENSIONS:
                raise self._error(f"tensor {name!r} claims to have {n_dims} dimensions")
            layout = _TENSOR_LAYOUTS[n_dims]
            *shape, type_id, offset = layout.unpack(self._take(layout.size, "a tensor's shape"))
            if shape and not 0 <= min(shape) <= max(shape) < 1 << 48:
                raise self._error(f"tensor {name!r} has the shape {shape}")
            if type_id > 0xFFFF:
                raise self._error(f"tensor {name!r} has the unknown type {type_id}")
            infos.append((name, tuple(shape), type_id, offset))
        data_start = -(-self._offset // alignment) * alignment
        return tuple(self._sized(infos, data_start, alignment))

    def _sized(
        self, infos: list[tuple[str, tuple[int, ...], int, int]], data_start: int, alignment: int
    ) -> Iterator[TensorInfo]:
        """Each tensor with its bytes. As in llama.cpp, data lie in the header's order and do not overlap."""
        data_bytes = self._size - data_start
        nexts = [offset for _, _, _, offset in infos[1:]] + [data_bytes]
        end = 0
        for (name, shape, type_id, offset), following in zip(infos, nexts, strict=False):
            if offset < end or offset % alignment:
                raise self._error(
                    f"tensor {name!r} has the offset {offset}, not one from {end} on in steps of {alignment}"
                )
            # A type newer than this table: its size is all that lies before the next tensor.
            size = following - offset
            if type_id in GGML_TYPES:
                _, block, block_bytes = GGML_TYPES[type_id]
                if (*shape, 1)[0] % block:
                    raise self._error(f"tensor {name!r} has the shape {shape}, not rows of whole blocks")
                size = math.prod(shape) // block * block_bytes
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

    def _scalar(self, layout: struct.Struct, what: str) -> Any:
        return layout.unpack(self._take(layout.size, what))[0]

    def _text(self, what: str, limit: int) -> str:
        length = self._scalar(_U64, f"the length of {what}")
        if length > limit:
            raise self._error(f"{what} claims to be {length} bytes long; at most {limit} are accepted")
        return self._take(length, what).decode("utf-8", "replace")

    def _error(self, what: str) -> GgufError:
        return GgufError(f"{self._path}: {what} (at byte {self._offset})")

    def _truncated(self, what: str) -> GgufError:
        return GgufError(
            f"{self._path}: truncated: {what} goes beyond the end of the file at byte {self._size}"
        )
