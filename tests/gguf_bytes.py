"""GGUF files byte by byte, for headers that no writer would write."""

from __future__ import annotations

import struct
from pathlib import Path

from router.gguf import GgufMetadata, read_gguf

U8, U32, F32, STRING, ARRAY, U64 = 0, 4, 6, 8, 9, 10
HUGE = 1 << 62


# -------------------------------------------------------------------------------------------


def text(value: str | bytes) -> bytes:
    data = value.encode() if isinstance(value, str) else value
    return struct.pack("<Q", len(data)) + data


def key(name: str, type_id: int, value: bytes) -> bytes:
    return text(name) + struct.pack("<I", type_id) + value


def array(type_id: int, count: int, items: bytes) -> bytes:
    return struct.pack("<IQ", type_id, count) + items


def tensor(name: str, shape: tuple[int, ...], type_id: int = 0, offset: int = 0) -> bytes:
    return text(name) + struct.pack(f"<I{len(shape)}qIQ", len(shape), *shape, type_id, offset)


ARCHITECTURE = key("general.architecture", STRING, text("llama"))


def header(
    *parts: bytes,
    n_keys: int | None = None,
    tensors: tuple[bytes, ...] = (),
    version: int = 3,
    data: bytes = b"",
) -> bytes:
    """A file of these keys (after the architecture) and tensors; `n_keys` may lie about their number."""
    count = 1 + len(parts) if n_keys is None else n_keys
    head = b"GGUF" + struct.pack("<IQQ", version, len(tensors), count) + ARCHITECTURE + b"".join(parts)
    head += b"".join(tensors)
    return head + bytes(-len(head) % 32) + data


def read_bytes(data: bytes, folder: Path, name: str = "m.gguf") -> GgufMetadata:
    path = folder / name
    path.write_bytes(data)
    return read_gguf(path)
