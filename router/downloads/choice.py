"""Which files of a repository a wish means: llama.cpp's choice of a quantisation, with all its parts."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase

from router.catalog.names import GgufName, choose_model, choose_sibling, parse_name
from router.downloads.errors import HubMisbehaves, NothingToFetch
from router.downloads.job import Listing, RemoteFile, Wish


@dataclass(frozen=True, slots=True)
class Chosen:
    """`models` are the ids under which the files will be found; none where no name tells a quantisation."""

    files: tuple[RemoteFile, ...]
    models: tuple[str, ...]

    @property
    def size(self) -> int:
        return sum(file.size for file in self.files)


@dataclass(frozen=True, slots=True)
class Quantization:
    """One that a repository offers. `size` is without a projector."""

    name: str
    model: str
    files: tuple[str, ...]
    size: int
    is_default: bool


def choose(listing: Listing, wish: Wish) -> Chosen:
    """The files to fetch, in their order: every part of a split model, and the projector that goes with it.

    Raises NothingToFetch, which says what there is, and HubMisbehaves for a model whose parts are not all
    there.
    """
    files = {file.path: file for file in listing.files}
    allowed = [path for path in files if not _matches(path, wish.exclude)]
    names = _names(allowed)
    if wish.include and not wish.quantization:
        wanted = [path for path in allowed if _matches(path, wish.include)]
        models = [name for name in _names(wanted) if name.is_model]
    else:
        within = [name for name in names if not wish.include or _matches(name.path, wish.include)]
        chosen = choose_model(within, wish.quantization)
        wanted, models = [], [chosen] if chosen is not None else []
    if not wanted and not models:
        raise NothingToFetch(_nothing(listing, wish))
    projectors = [name for name in names if name.is_mmproj]
    for model in models:
        projector = choose_sibling(projectors, model)
        wanted += [*model.shards, *([projector.path] if projector is not None else [])]
    missing = [path for path in wanted if path not in files]
    if missing:
        shown = ", ".join(missing[:3]) + (f" and {len(missing) - 3} more" if len(missing) > 3 else "")
        raise HubMisbehaves(f"{listing.repo} lacks parts of its own model: {shown}")
    ordered = tuple(files[path] for path in sorted(dict.fromkeys(wanted)))
    return Chosen(ordered, tuple(dict.fromkeys(_model_ids(listing.repo, models))))


def quantizations(listing: Listing) -> tuple[Quantization, ...]:
    """Every one the repository has, smallest first; of two files with the same one the first."""
    files = {file.path: file for file in listing.files}
    names = _names(files)
    default = choose_model(names)
    found: dict[str, Quantization] = {}
    for name in names:
        parts = name.shards
        if (
            not name.is_model
            or name.index > 1
            or name.tag in found
            or not all(part in files for part in parts)
        ):
            continue
        size = sum(files[part].size for part in parts)
        model = f"{listing.repo}:{name.tag}" if name.tag else ""
        found[name.tag] = Quantization(name.tag, model, parts, size, is_default=name == default)
    return tuple(sorted(found.values(), key=lambda one: (one.size, one.name)))


def projectors(listing: Listing) -> Mapping[str, int]:
    """Files that let a model see or hear, with their bytes."""
    return {
        file.path: file.size
        for file in listing.files
        if (name := parse_name(file.path)) is not None and name.is_mmproj
    }


def _names(paths: Iterable[str]) -> list[GgufName]:
    """In the order in which the catalog meets them on the disk."""
    return [name for path in sorted(paths) if (name := parse_name(path)) is not None]


def _model_ids(repo: str, models: Iterable[GgufName]) -> Iterable[str]:
    return (f"{repo}:{model.tag}" for model in models if model.tag)


def _matches(path: str, patterns: Iterable[str]) -> bool:
    """A pattern without a folder is about names in every folder."""
    name = path.rpartition("/")[2]
    return any(fnmatchcase(path, one) or ("/" not in one and fnmatchcase(name, one)) for one in patterns)


def _nothing(listing: Listing, wish: Wish) -> str:
    there = quantizations(listing)
    if not there:
        return f"{listing.repo} has no GGUF model; look for a repository whose name ends in GGUF"
    names = ", ".join(one.name or one.files[0] for one in there)
    what = f"no quantisation {wish.quantization}" if wish.quantization else "no file that the patterns match"
    return f"{listing.repo} has {what}; it has {names}"
