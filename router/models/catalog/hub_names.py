"""What the files of a hub repository are called: `org/repo:LABEL`, one label for each file or shard set.

A label is made of the repository's name and of the file's own path. So a file keeps its id whatever is
fetched or deleted beside it, unless both would have the same: then each is called by more of its path (see
`labels`).

    org/Flash-GGUF  Flash-Q4_K_M.gguf                            Q4_K_M
                    Flash-UD-Q4_K_XL.gguf                        UD-Q4_K_XL
                    Flash-I-Compact.gguf                         I-COMPACT
                    UD-Q2_K_XL/Flash-UD-Q2_K_XL-00001-of-....    UD-Q2_K_XL
                    base-Q4_K_M.gguf                             base-Q4_K_M
                    small/Flash-Q8_0.gguf                        small-Q8_0
                    Flash.gguf                                   Flash

That is the path without the repository's name, without folders that repeat the end of the file's name, and
with the last component in capital letters, as llama.cpp writes quantisations.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Final

from router.models.catalog.names import GgufName, is_draft_name

#: llama.cpp's choice where no quantisation is named.
DEFAULT_TAGS: Final = ("Q4_K_M", "Q8_0")
_SEPARATORS: Final = re.compile(r"[-._ ]")
#: `repo:TAG` may leave out components at the left, not parts of one: Q4_K_M is not M.
_COMPONENTS: Final = re.compile(r"[-./]")
_LAST_COMPONENT: Final = re.compile(r"[^-.]+$")
_GGUF_SUFFIX: Final = re.compile(r"[-._]gguf$", re.IGNORECASE)
#: Repositories of one file are often named like it: org/flash-q4_k_m-GGUF.
_QUANTISATION_SUFFIX: Final = re.compile(
    r"[-._](?:I?Q\d\w*|TQ\d\w*|[BF]+(?:16|32)|MXFP4\w*)$", re.IGNORECASE | re.ASCII
)


def labels(repo: str, names: Iterable[GgufName]) -> dict[str, GgufName]:
    """The models among `names` by label, in the order given; of a split model its first part.

    Two paths may come to the same label, as `Q4_0/x-Q4_0-00001-of-00002.gguf` beside `x-Q4_0.gguf`. Then
    neither gets that label: both are called by more of their paths.
    """
    models = [name for name in names if name.is_model and name.index == 1]
    spellings = {name.path: _spellings(repo, name) for name in models}
    # How many files could be called so; what two could be called is the id of neither.
    uses = Counter(spelling for each in spellings.values() for spelling in set(each))
    return {
        next((spelling for spelling in spellings[name.path] if uses[spelling] == 1), name.path): name
        for name in models
    }


def meant_by(asked: str, spellings: Mapping[str, str]) -> list[str]:
    """The labels that `asked` may mean: one, several where it is ambiguous, or none.

    1. The label itself.
    2. Else the whole path, which a single file and a set of shards may share.
    3. Else the label in other letter cases.
    4. Else every file whose path ends with `asked`, component by component: `Q4_K_XL` is `UD-Q4_K_XL` where
       no `Q4_K_XL` is there, but `UD-Q4_K_XL` is never `Q4_K_XL`. A file that is named as a draft counts only
       where no other is meant.

    `spellings` has the path of each label, without ".gguf".
    """
    if asked in spellings:
        return [asked]
    if exact := [label for label, path in spellings.items() if path == asked]:
        return exact
    folded = asked.casefold()
    if same := [label for label in spellings if label.casefold() == folded]:
        return same
    end = _COMPONENTS.split(folded)
    found = [
        label
        for label, path in spellings.items()
        if any(_COMPONENTS.split(each.casefold())[-len(end) :] == end for each in (label, path))
    ]
    return [label for label in found if not is_draft_name(spellings[label])] or found


class Names:
    """`ids` has the model of every name there is, `paths` the path in its repository of each name that a hub
    file has.
    """

    def __init__(self, ids: Mapping[str, str], paths: Mapping[str, str]) -> None:
        self._ids = ids
        self._paths = paths
        self._repositories: dict[str, dict[str, str]] = {}
        for name in ids:
            repo, colon, label = name.partition(":")
            if colon:
                self._repositories.setdefault(repo, {})[label] = paths.get(name, label)

    def meant_by(self, name: str) -> tuple[str, ...]:
        """The models that `name` may mean: the one that has the name; else those of the repository whose file
        may be meant (see `meant_by`); else all models of the repository or
        folder that has the name. Several: the name is ambiguous.
        """
        if (model := self._ids.get(name)) is not None:
            return (model,)
        repo, colon, label = name.partition(":")
        labels = meant_by(label, self._repositories.get(repo, {}))
        found = [f"{repo}:{each}" for each in labels] or ([] if colon else self._inside(name))
        return tuple(dict.fromkeys(self._ids[each] for each in found))

    def _inside(self, name: str) -> list[str]:
        """The names of all models in the repository or folder `name`; drafts only where it has nothing
        else. An alias with a "/" makes no folder.
        """
        inside = [
            each
            for each, model in self._ids.items()
            if (each.startswith(f"{name}:") and each in self._paths)
            or (each.startswith(f"{name}/") and each == model and each not in self._paths)
        ]
        return [each for each in inside if not is_draft_name(self._paths.get(each, each))] or inside


def choose(named: Mapping[str, GgufName], tag: str = "") -> list[str]:
    """The labels that `-hf repo:tag` may mean; without a tag those of Q4_K_M, else of Q8_0."""
    wanted_tags, among = ((tag,), named) if tag else (DEFAULT_TAGS, without_drafts(named))
    spellings = {label: name.prefix for label, name in among.items()}
    for wanted in wanted_tags:
        if found := meant_by(wanted, spellings):
            return found
    return []


def without_drafts(named: Mapping[str, GgufName]) -> Mapping[str, GgufName]:
    """All but those that are named as drafts; a repository of drafts alone as it is."""
    return {label: name for label, name in named.items() if not name.is_draft} or named


def _spellings(repo: str, name: GgufName) -> tuple[str, ...]:
    """What a file may be called, the shortest first."""
    *folders, file = name.prefix.split("/")
    own = _without_repository(repo, file) or file
    words = _normal(own)
    kept = []
    for folder in folders:
        rest = _normal(_without_repository(repo, folder))
        if rest and not f"-{words}".endswith(f"-{rest}"):
            kept.append(folder)
    whole = "-".join((*folders, file))
    if own == file and not name.tag:  # a name without a quantisation is left as it is
        return "-".join((*kept, own)), whole, name.prefix
    return _in_capitals("-".join((*kept, own))), _in_capitals(whole), name.prefix


def _without_repository(repo: str, text: str) -> str:
    """`text` without the repository's name at its beginning; "" where it is nothing else."""
    model = _GGUF_SUFFIX.sub("", repo.rpartition("/")[2])
    is_whole = False
    for beginning in dict.fromkeys((model, _QUANTISATION_SUFFIX.sub("", model))):
        if _normal(text) == _normal(beginning):
            is_whole = True
        elif _normal(text).startswith(f"{_normal(beginning)}-"):
            return text[len(beginning) + 1 :]
    return "" if is_whole else text


def _normal(text: str) -> str:
    """In one case and with one separator, as repositories and their files differ in both; of equal length."""
    return _SEPARATORS.sub("-", text.lower())


def _in_capitals(text: str) -> str:
    """The last component, as llama.cpp writes a quantisation."""
    return _LAST_COMPONENT.sub(lambda last: last[0].upper(), text)
