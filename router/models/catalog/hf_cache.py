"""The GGUF files of the Hugging Face cache, as `llama-server -hf` and huggingface_hub keep them.

models--ORG--REPO/refs/main names a commit, and snapshots/COMMIT/ has its files, usually links into blobs/.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType

from router.errors import AmbiguousModel
from router.models.catalog.candidate import Candidate, Notes, is_there
from router.models.catalog.companions import mmproj_of
from router.models.catalog.hub_names import choose, labels, without_drafts
from router.models.catalog.kinds import is_model_file
from router.models.catalog.names import GgufName, parse_name
from router.presets import HUB_PRESET

_COMMIT = re.compile(r"[0-9a-fA-F]{40}")
_REPO = re.compile(r"(?=.{3,256}$)\w+(?:[.-]\w+)*/\w+(?:[.-]\w+)*", re.ASCII)


def hf_cache_dir(environ: Mapping[str, str] = os.environ) -> Path:
    """Where the cache is; llama.cpp's order of variables (huggingface_hub knows all but the first)."""
    for variable, below in (
        ("LLAMA_CACHE", ""),
        ("HF_HUB_CACHE", ""),
        ("HUGGINGFACE_HUB_CACHE", ""),
        ("HF_HOME", "hub"),
        ("XDG_CACHE_HOME", "huggingface/hub"),
    ):
        if value := environ.get(variable, ""):
            return Path(value).expanduser().absolute() / below
    return Path(environ.get("HOME") or Path.home()) / ".cache" / "huggingface" / "hub"


@dataclass(frozen=True, slots=True)
class Repository:
    """One repository at the commit that `main` names. `names` are paths inside `snapshot`, sorted. `others`
    are the same repository at other commits, which may have what this one has not: of a model that was
    fetched before `main` went on, or from another branch.
    """

    id: str
    snapshot: Path
    names: tuple[GgufName, ...]
    others: tuple[Repository, ...] = ()

    def candidate(self, model: GgufName, name: str) -> Candidate:
        mmproj = mmproj_of(model, self.names, self.snapshot)
        return Candidate(
            name, "hf_cache", tuple(self.snapshot / part for part in model.shards), mmproj=mmproj
        )

    def labelled(self) -> Mapping[str, tuple[Repository, GgufName]]:
        """Every model by its label, with the commit that it is taken from: for a path that several commits
        have, the first of them.
        """
        found = {name.path: (one, name) for one in (*reversed(self.others), self) for name in one.names}
        named = labels(self.id, (name for _, name in sorted(found.values(), key=lambda each: each[1].path)))
        return {label: found[name.path] for label, name in named.items()}

    def models(self) -> Iterator[Candidate]:
        """One for each file or shard set, as `repo:LABEL`."""
        for label, (one, name) in self.labelled().items():
            yield one.candidate(name, f"{self.id}:{label}")


@dataclass(frozen=True, slots=True)
class HfCache:
    """`presets` are files preset.ini by the repositories that they are of."""

    repositories: Mapping[str, Repository] = field(default_factory=lambda: MappingProxyType({}))
    presets: Mapping[str, Path] = field(default_factory=lambda: MappingProxyType({}))

    def models(self) -> Iterator[Candidate]:
        for repository in self.repositories.values():
            yield from repository.models()

    def paths(self) -> dict[str, str]:
        """By id: where each model lies in its repository, without ".gguf"."""
        return {
            f"{repository.id}:{label}": name.prefix
            for repository in self.repositories.values()
            for label, (_, name) in repository.labelled().items()
        }

    def find(self, hf_repo: str, hf_file: str | None, name: str) -> Candidate | None:
        """What `-hf hf_repo -hff hf_file` would run, if it has been downloaded. Raises AmbiguousModel where
        that could be one of several.
        """
        repo, _, tag = hf_repo.partition(":")
        repository = self.repositories.get(repo)
        if repository is None:
            return None
        if hf_file is not None:
            for one in (repository, *repository.others):
                if model := next((file for file in one.names if file.path == hf_file), None):
                    return one.candidate(model, name)
            return None
        labelled = repository.labelled()
        named = {label: model for label, (_, model) in labelled.items()}
        found = choose(named, tag)
        if not tag and not found:  # which is there depends on what was fetched, so none of several is taken
            found = list(without_drafts(named))
        if len(found) > 1:  # what is no model is meant only by its whole name
            files = {label: one.snapshot / model.path for label, (one, model) in labelled.items()}
            found = [label for label in found if is_model_file(files[label])] or found
        if len(found) > 1:
            raise AmbiguousModel(hf_repo, [f"{repo}:{label}" for label in found])
        if not found:
            return None
        one, model = labelled[found[0]]
        return one.candidate(model, name)


def scan_hf_cache(folder: Path, notes: Notes) -> HfCache:
    """All repositories in `folder` that have GGUF files. A cache that does not exist is empty. Raises OSError
    only where files have run out.
    """
    repositories: dict[str, Repository] = {}
    presets: dict[str, Path] = {}
    try:
        entries = sorted(entry.name for entry in folder.iterdir())
    except FileNotFoundError:
        return HfCache()
    except OSError as error:
        notes.cannot_read(folder, error)
        return HfCache()
    for entry in entries:
        if (repo := _repository_of(entry)) is None:
            continue
        found = []
        for number, commit in enumerate(_commits(folder / entry, notes)):
            snapshot = folder / entry / "snapshots" / commit
            if number == 0 and (snapshot / HUB_PRESET).is_file():
                presets[repo] = snapshot / HUB_PRESET
            if names := _gguf_names(snapshot, notes):
                found.append(Repository(repo, snapshot, names))
        if found:
            repositories[repo] = replace(found[0], others=tuple(found[1:]))
    return HfCache(MappingProxyType(repositories), MappingProxyType(presets))


def is_repository(folder: Path) -> bool:
    """Whether the cache, or another one like it, has a repository in `folder`."""
    return _repository_of(folder.name) is not None and (folder / "snapshots").is_dir()


def _repository_of(folder: str) -> str | None:
    repo = folder.removeprefix("models--").replace("--", "/")
    return repo if folder.startswith("models--") and _REPO.fullmatch(repo) else None


def _commits(repository: Path, notes: Notes) -> list[str]:
    """That of `main`, then those of other branches by their names, then those that nothing names any more,
    the newest first."""
    commits = []
    try:
        branches = sorted(
            (repository / "refs").iterdir(), key=lambda branch: (branch.name != "main", branch.name)
        )
    except OSError as error:
        _note(repository, error, notes)
        branches = []
    for branch in branches:
        try:
            commits.append(branch.read_text(encoding="ascii").partition("\n")[0].strip())
        except UnicodeDecodeError:
            continue
        except OSError as error:
            if not isinstance(error, IsADirectoryError):
                _note(repository, error, notes)
    return list(dict.fromkeys([*filter(_COMMIT.fullmatch, commits), *_unnamed(repository, notes)]))


def _unnamed(repository: Path, notes: Notes) -> list[str]:
    try:
        with os.scandir(repository / "snapshots") as entries:
            found = [(entry.stat().st_mtime_ns, entry.name) for entry in entries if _is_snapshot(entry)]
    except OSError as error:
        _note(repository, error, notes)
        return []
    return [name for _, name in sorted(found, reverse=True)]


def _is_snapshot(entry: os.DirEntry[str]) -> bool:
    return _COMMIT.fullmatch(entry.name) is not None and entry.is_dir()


def _note(repository: Path, error: OSError, notes: Notes) -> None:
    """A download that has only begun lacks this and that, which is nothing to warn of."""
    if is_there(error):
        notes.cannot_read(repository, error)


def _gguf_names(snapshot: Path, notes: Notes) -> tuple[GgufName, ...]:
    # Does not follow links to folders.
    walk = os.walk(snapshot, onerror=lambda error: _note(snapshot, error, notes))
    paths = (Path(root, file).relative_to(snapshot).as_posix() for root, _, files in walk for file in files)
    return tuple(filter(None, map(parse_name, sorted(paths))))
