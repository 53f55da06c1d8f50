"""What the name of a GGUF file says: which part of which model it is, its quantisation, whether it is a
model at all.

The rules are those of llama.cpp (common/download.cpp, common/preset.cpp), so that ids and choices agree
with it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

DRAFT_PREFIXES: Final = ("mtp-", "dspark-", "dflash-", "eagle3-")
MAX_SHARDS: Final = 1024
_SHARD: Final = re.compile(r"(?P<prefix>.+)-(?P<index>\d{5})-of-(?P<count>\d{5})", re.DOTALL)
_TAG: Final = re.compile(r"[-.]([A-Z0-9_]+)$", re.IGNORECASE | re.ASCII)
_DEFAULT_TAGS: Final = ("Q4_K_M", "Q8_0")


@dataclass(frozen=True, slots=True)
class GgufName:
    """The path of a GGUF file taken apart: `prefix` is what its shards have in common, `tag` the
    quantisation.
    """

    path: str
    prefix: str
    tag: str
    index: int
    count: int

    @property
    def file(self) -> str:
        return self.path.rpartition("/")[2]

    @property
    def is_mmproj(self) -> bool:
        return "mmproj" in self.file

    @property
    def is_draft(self) -> bool:
        return self.file.startswith(DRAFT_PREFIXES)

    @property
    def is_model(self) -> bool:
        return not self.is_mmproj and not self.is_draft and "imatrix" not in self.file

    @property
    def shards(self) -> tuple[str, ...]:
        """The paths of all parts, this one among them."""
        if self.count == 1:
            return (self.path,)
        return tuple(f"{self.prefix}-{n:05d}-of-{self.count:05d}.gguf" for n in range(1, self.count + 1))


def parse_name(path: str) -> GgufName | None:
    """`path` ("/" between folders) taken apart; None unless it ends in .gguf."""
    prefix = path.removesuffix(".gguf")
    if prefix in (path, "") or prefix.endswith("/"):
        return None
    index = count = 1
    match = _SHARD.fullmatch(prefix)
    # Part 3 of 2, or 1 of 99999, is the name of an ordinary file that happens to look so.
    if match and 1 <= int(match["index"]) <= int(match["count"]) <= MAX_SHARDS:
        prefix, index, count = match["prefix"], int(match["index"]), int(match["count"])
    tag = _TAG.search(prefix)
    return GgufName(path, prefix, tag[1].upper() if tag else "", index, count)


def canonical_id(name: str) -> str:
    """`org/repo:ud-q4_k_xl` -> `org/repo:Q4_K_XL`: a name of a cached model as the cache itself calls it."""
    repo, colon, tag = name.rpartition(":")
    if not colon:
        return name
    match = _TAG.search(tag)
    return f"{repo}:{(match[1] if match else tag).upper()}"


def choose_model(names: Iterable[GgufName], tag: str = "") -> GgufName | None:
    """The file that `-hf repo:tag` means; without a tag Q4_K_M, else Q8_0, else the first."""
    models = [name for name in names if name.is_model and name.index == 1]
    for wanted in (tag,) if tag else _DEFAULT_TAGS:
        pattern = re.compile(re.escape(wanted) + "[.-]", re.IGNORECASE)
        if found := next((name for name in models if pattern.search(name.path)), None):
            return found
    return models[0] if models and not tag else None


def choose_sibling(candidates: Iterable[GgufName], model: GgufName) -> GgufName | None:
    """Of several projectors or drafts the one that goes with `model`: the nearest folder above it, then
    the nearest number of bits, then the first by name.
    """
    folders = model.path.split("/")[:-1]
    fitting = [
        (-len(parents), abs(_bits(each.tag) - _bits(model.tag)), each.path, each)
        for each in candidates
        if folders[: len(parents := each.path.split("/")[:-1])] == parents
    ]
    return min(fitting)[-1] if fitting else None


def _bits(tag: str) -> int:
    """Q4_0 -> 4, BF16 -> 16, and 0 where there is no number."""
    match = re.search(r"\d+", tag)
    return int(match[0]) if match else 0
