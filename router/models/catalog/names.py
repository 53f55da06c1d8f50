"""What the name of a GGUF file says: which part of which model it is, its quantisation, whether it is a
model at all.

The rules are those of llama.cpp (common/download.cpp, common/preset.cpp), so that ids and choices agree
with it; companions are recognised in any case, and where llama.cpp knows only a prefix, in any position.
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
#: A draft by its name. Whole models with prediction layers have "MTP" inside their names: there it counts
#: only as the first word.
_DRAFT: Final = re.compile(
    r"mtp-|(?:.*[-_. ])?(?:dflash|dspark|eagle-?3)(?:[-_. ]|$)", re.IGNORECASE | re.DOTALL
)
_SEPARATORS: Final = re.compile(r"[-_. ]+")
_QUANTISATION: Final = re.compile(
    r"(?<![^-_. ])(?:ud|i?q\d(?:_[a-z0-9]+)*|tq\d_\d|bf16|fp?16|fp?32|mxfp4(?:_moe)?|nvfp4)(?![^-_. ])",
    re.IGNORECASE,
)
#: Words of a file's name that say what kind of file it is, not which model it is of.
_KIND_WORDS: Final = frozenset(
    {
        "mmproj", "projector", "proj", "vision", "audio", "clip", "mtp", "dflash", "dspark", "eagle",
        "eagle3", "draft", "lora", "adapter", "model", "gguf",
    }
)  # fmt: skip


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
        return "mmproj" in self.file.lower()

    @property
    def is_draft(self) -> bool:
        return is_draft_name(self.path[:-5])

    @property
    def is_model(self) -> bool:
        """Unless its name rules that out. A draft inside a name does not: a repository of drafts alone is
        named in the settings of their models, and its files are fetched as any others.
        """
        file = self.file.lower()
        return not self.is_mmproj and not file.startswith(DRAFT_PREFIXES) and "imatrix" not in file

    @property
    def folder(self) -> str:
        return self.path.rpartition("/")[0]

    @property
    def words(self) -> tuple[str, ...]:
        """Which model the file is of: the words of its name, without quantisation and kind of file."""
        return tuple(word for word in self.all_words if word not in _KIND_WORDS)

    @property
    def all_words(self) -> tuple[str, ...]:
        """The same with the words that say what kind of file it is."""
        name = _QUANTISATION.sub("", self.prefix.rpartition("/")[2].lower()).replace("eagle-3", "eagle3")
        return tuple(filter(None, _SEPARATORS.split(name)))

    @property
    def shards(self) -> tuple[str, ...]:
        """The paths of all parts, this one among them."""
        if self.count == 1:
            return (self.path,)
        extension = self.path[-5:]
        parts = range(1, self.count + 1)
        return tuple(f"{self.prefix}-{n:05d}-of-{self.count:05d}{extension}" for n in parts)


def parse_name(path: str) -> GgufName | None:
    """`path` ("/" between folders) taken apart; None unless it ends in .gguf, in any case."""
    prefix, extension = path[:-5], path[-5:]
    if extension.lower() != ".gguf" or not prefix or prefix.endswith("/"):
        return None
    index = count = 1
    match = _SHARD.fullmatch(prefix)
    # Part 3 of 2, or 1 of 99999, is the name of an ordinary file that happens to look so.
    if match and 1 <= int(match["index"]) <= int(match["count"]) <= MAX_SHARDS:
        prefix, index, count = match["prefix"], int(match["index"]), int(match["count"])
    tag = _TAG.search(prefix)
    return GgufName(path, prefix, tag[1].upper() if tag else "", index, count)


def is_draft_name(path: str) -> bool:
    """Of a path without ".gguf"."""
    return _DRAFT.match(path.rpartition("/")[2]) is not None


def choose_sibling(candidates: Iterable[GgufName], model: GgufName) -> GgufName | None:
    """Of several projectors or drafts the one that goes with `model`: the nearest folder above it, then the
    name of the same model, then the nearest number of bits, then the first by name.
    """
    fitting = [
        (
            -each.path.count("/"),
            [-rank for rank in kinship(each, model)],
            abs(_bits(each.tag) - _bits(model.tag)),
            each.path,
            each,
        )
        for each in candidates
        if f"{model.folder}/".startswith(f"{each.folder}/") or not each.folder
    ]
    return min(fitting)[-1] if fitting else None


def kinship(companion: GgufName, model: GgufName) -> tuple[int, int]:
    """How surely a companion is named for a model: (2, 0) by the same words, (1, n) where one name begins
    with all n words of the other, (0, 0) where they are of different models or the companion has no name.
    """
    mine, theirs = companion.words, model.words
    if not mine or not theirs:
        return 0, 0
    if mine == theirs:
        return 2, 0
    n = min(len(mine), len(theirs))
    return (1, n) if mine[:n] == theirs[:n] else (0, 0)


def _bits(tag: str) -> int:
    """Q4_0 -> 4, BF16 -> 16, and 0 where there is no number."""
    match = re.search(r"\d+", tag)
    return int(match[0]) if match else 0
