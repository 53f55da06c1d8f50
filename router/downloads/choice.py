"""Which files of a repository a wish means: llama.cpp's choice of a quantisation, with all its parts."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase

import msgspec

from router.downloads.errors import HubMisbehaves, NothingToFetch
from router.downloads.job import DownloadSpec, Listing, RemoteFile
from router.errors import AmbiguousModel
from router.models.catalog import hub_names
from router.models.catalog.names import GgufName, choose_sibling, parse_name
from router.presets import HUB_PRESET


@dataclass(frozen=True, slots=True)
class Chosen:
    """`models` are the ids under which the files will be found."""

    files: tuple[RemoteFile, ...]
    models: tuple[str, ...]


class Quantization(msgspec.Struct, frozen=True):
    """One model that a repository offers. `name` is its label, `model` the id under which it would be found,
    `size` the bytes without a projector."""

    name: str
    model: str
    files: tuple[str, ...]
    size: int
    is_default: bool
    is_present: bool


def choose(listing: Listing, wish: DownloadSpec) -> Chosen:
    """The files to fetch, in their order: every part of a split model, and the projector that goes with it;
    with the preset.ini that the repository may have.

    Raises NothingToFetch, which says what there is, AmbiguousModel where the quantisation is that of several
    files, and HubMisbehaves for a model whose parts are not all there.
    """
    files = {file.path: file for file in listing.files}
    named = hub_names.labels(listing.repo, _names(files))
    allowed = [path for path in files if not _matches(path, wish.exclude)]
    included = [path for path in allowed if not wish.include or _matches(path, wish.include)]
    wanted: list[str] = []
    if wish.include and not wish.quantization:
        wanted, models = included, [name for name in _names(included) if name.is_model]
    else:
        within = {label: name for label, name in named.items() if name.path in included}
        models = _chosen(listing.repo, within, wish.quantization)
        if HUB_PRESET in allowed and not wish.quantization and not wish.include:
            wanted = [HUB_PRESET]
    if not wanted and not models:
        raise NothingToFetch(_nothing(listing, wish))
    projectors = [name for name in _names(allowed) if name.is_mmproj]
    for model in models:
        projector = choose_sibling(projectors, model)
        wanted += [*model.shards, *([projector.path] if projector is not None else [])]
    missing = [path for path in wanted if path not in files]
    if missing:
        shown = ", ".join(missing[:3]) + (f" and {len(missing) - 3} more" if len(missing) > 3 else "")
        raise HubMisbehaves(f"{listing.repo} lacks parts of its own model: {shown}")
    ordered = tuple(files[path] for path in sorted(dict.fromkeys(wanted)))
    parts = {part for model in models for part in model.shards}
    ids = tuple(f"{listing.repo}:{label}" for label, name in named.items() if name.path in parts)
    return Chosen(ordered, ids)


def quantizations(listing: Listing, present: frozenset[str] = frozenset()) -> tuple[Quantization, ...]:
    """Every model the repository has, smallest first. `present` are paths that need not be fetched."""
    files = {file.path: file for file in listing.files}
    named = hub_names.labels(listing.repo, _names(files))
    try:
        default = _chosen(listing.repo, named, "")
    except AmbiguousModel:
        default = []
    found = [
        Quantization(
            label,
            f"{listing.repo}:{label}",
            name.shards,
            sum(files[part].size for part in name.shards),
            is_default=name in default,
            is_present=present.issuperset(name.shards),
        )
        for label, name in named.items()
        if files.keys() >= set(name.shards)
    ]
    return tuple(sorted(found, key=lambda each: (each.size, each.name)))


def projectors(listing: Listing) -> dict[str, int]:
    """Files that let a model see or hear, with their bytes."""
    return {
        file.path: file.size
        for file in listing.files
        if (name := parse_name(file.path)) is not None and name.is_mmproj
    }


def _names(paths: Iterable[str]) -> list[GgufName]:
    """In the order in which the catalog meets them on the disk."""
    return [name for path in sorted(paths) if (name := parse_name(path)) is not None]


def _chosen(repo: str, named: Mapping[str, GgufName], quantization: str) -> list[GgufName]:
    """The one that is meant, if any; without a quantisation Q4_K_M, Q8_0 or the first.

    Raises AmbiguousModel.
    """
    found = hub_names.choose(named, quantization)
    if len(found) > 1:
        asked = f"{repo}:{quantization}" if quantization else repo
        raise AmbiguousModel(asked, [f"{repo}:{label}" for label in found])
    if not found and not quantization:
        found = list(hub_names.without_drafts(named))[:1]
    return [named[label] for label in found]


def _matches(path: str, patterns: Iterable[str]) -> bool:
    """A pattern without a folder is about names in every folder."""
    name = path.rpartition("/")[2]
    return any(fnmatchcase(path, one) or ("/" not in one and fnmatchcase(name, one)) for one in patterns)


def _nothing(listing: Listing, wish: DownloadSpec) -> str:
    there = quantizations(listing)
    if not there:
        return f"{listing.repo} has no GGUF model; look for a repository whose name ends in GGUF"
    names = ", ".join(one.name for one in there)
    what = f"no quantisation {wish.quantization}" if wish.quantization else "no file that the patterns match"
    return f"{listing.repo} has {what}; it has {names}"
