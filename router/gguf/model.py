"""A whole model: the header of its file, or of all the shards it is split into."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

from router.gguf.header import MAX_TENSORS, read_header
from router.gguf.metadata import GgufError, GgufMetadata

MAX_SHARDS = 1024


def read_gguf(path: Path | str) -> GgufMetadata:
    """Read the header of a model; for a split one give the first shard, and all of them are read.

    Raises GgufError when a file is missing, unreadable, truncated, of another format or inconsistent.
    """
    path = Path(path)
    first = read_header(path)
    tensors, size = list(first.tensors), first.file_size_bytes
    count = _int_key(first, "split.count") or 1
    if count > 1:
        for number, file in enumerate(_shard_paths(path, first, count)[1:], start=1):
            shard = read_header(file)
            stated = _int_key(shard, "split.no")
            if stated != number:
                what = "does not say which part it is" if stated is None else f"says it is part {stated + 1}"
                raise GgufError(f"{file}: {what}, where part {number + 1} belongs")
            tensors += shard.tensors
            size += shard.file_size_bytes
            if len(tensors) > MAX_TENSORS:
                raise GgufError(f"{path}: its parts hold more than {MAX_TENSORS} tensors")
        announced = _int_key(first, "split.tensors.count")
        if announced not in (None, len(tensors)):
            raise GgufError(
                f"{path}: its parts hold {len(tensors)} tensors, not the {announced} it announces"
            )
    if len({tensor.name for tensor in tensors}) != len(tensors):
        raise GgufError(f"{path}: two of its tensors have the same name")
    if not isinstance(first.kv.get("general.architecture"), str):
        raise GgufError(f"{path}: has no general.architecture")
    return replace(first, file_size_bytes=size, tensors=tuple(tensors))


def _shard_paths(path: Path, first: GgufMetadata, count: int) -> list[Path]:
    """The paths of all shards, derived from the name of the first as llama.cpp does; each must be there."""
    number = _int_key(first, "split.no") or 0
    match = re.fullmatch(r"(.+)-\d{5}-of-(\d{5})\.gguf", path.name, re.DOTALL)
    if match is None or int(match[2]) != count:
        expected = f"...-{number + 1:05d}-of-{count:05d}.gguf"
        raise GgufError(f"{path}: is part {number + 1} of {count}, but is not named {expected}")
    names = [f"{match[1]}-{n:05d}-of-{count:05d}.gguf" for n in range(1, min(count, MAX_SHARDS) + 1)]
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


def _int_key(shard: GgufMetadata, key: str) -> int | None:
    value = shard.kv.get(key)
    return value if isinstance(value, int) and not isinstance(value, bool) else None
