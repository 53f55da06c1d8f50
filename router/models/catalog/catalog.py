"""Name or alias -> model: all that folders, the Hugging Face cache and presets offer, at one moment."""

from __future__ import annotations

import difflib
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import Final

from router.config import Config
from router.errors import AmbiguousModel, InvalidRequest, ModelNotFound, Unavailable
from router.models.catalog.candidate import Notes
from router.models.catalog.entry import CatalogEntry
from router.models.catalog.hub_names import Names
from router.models.catalog.scan import scan
from router.presets import Presets
from router.presets.alias_patterns import matches

MAX_NAMES_SHOWN: Final = 20
#: What a hub may have: ORG/REPO, or ORG/REPO:QUANTIZATION.
_REPOSITORY: Final = re.compile(r"\w[\w.-]{0,95}/\w[\w.-]{0,95}(?::\w[\w.-]{0,127})?", re.ASCII)


@dataclass(frozen=True, slots=True)
class Catalog:
    """`entries` by id, in the order presets, folders, cache. `warnings` are for people. `unread` are places
    that could not be read and may hold models, `kept` what an earlier catalog knew of them. `gguf_files` is
    how many GGUF files are in the folders and the cache, models or not. `paths` says by id where a file of
    the Hugging Face cache lies in its repository.
    """

    entries: Mapping[str, CatalogEntry] = field(default_factory=lambda: MappingProxyType({}))
    warnings: tuple[str, ...] = ()
    unread: tuple[Path, ...] = ()
    kept: frozenset[str] = frozenset()
    gguf_files: int = 0
    paths: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}), repr=False)
    _ids: Mapping[str, str] = field(init=False, repr=False, compare=False)
    _names: Names = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        ids = {alias: entry.id for entry in self.entries.values() for alias in entry.aliases}
        ids |= {name: name for name in self.entries}
        object.__setattr__(self, "_ids", ids)
        object.__setattr__(self, "_names", Names(ids, self.paths))

    @staticmethod
    def scan(config: Config, presets: Presets | None = None) -> Catalog:
        """Look at all sources. Blocks on the disk: call it in a thread.

        A model that cannot be run is an entry with an `error`. `presets` are those of `config` where they
        have not been read already. Raises ConfigError for those, and Unavailable where files have run out.
        """
        notes = Notes()
        try:
            found, paths = scan(config, presets, notes)
            entries = MappingProxyType({entry.id: entry for entry in found})
        except OSError as error:
            raise Unavailable(
                f"cannot look for models: {error.strerror}; allow the router more of them (ulimit -n)",
                retry_after_seconds=1.0,
            ) from error
        made = Catalog(
            entries,
            tuple(notes.warnings),
            tuple(notes.unread),
            gguf_files=notes.gguf_files,
            paths=MappingProxyType(paths),
        )
        try:
            made.default(config.server.default_model)
        except (ModelNotFound, AmbiguousModel) as error:
            return replace(made, warnings=(*made.warnings, error.message))
        except InvalidRequest:
            pass  # none is configured, which is fine
        return made

    def keeping(self, former: Catalog) -> Catalog:
        """With the models of `former` that lie where nothing could be read this time, as they were there: a
        disk that does not answer for a moment shall not end what runs from it.
        """
        kept = {
            name: entry
            for name, entry in former.entries.items()
            if entry.error is None
            and ((now := self.entries.get(name)) is None or now.error is not None)
            and any(file.is_relative_to(place) for file in entry.files for place in self.unread)
        }
        if not kept:
            return self
        warning = f"kept as they were, as they cannot be read now: {', '.join(kept)}"
        entries = MappingProxyType({**self.entries, **kept})
        paths = MappingProxyType({**former.paths, **self.paths})
        warnings = (*self.warnings, warning)
        return Catalog(entries, warnings, self.unread, frozenset(kept), self.gguf_files, paths)

    @property
    def models(self) -> tuple[CatalogEntry, ...]:
        """Every entry that is a model, also those that cannot be run."""
        return tuple(entry for entry in self.entries.values() if entry.is_model)

    def id_of(self, name: str) -> str:
        """Of the model called `name`. Raises ModelNotFound, AmbiguousModel."""
        return self._ids.get(name) or self.resolve(name).id

    def resolve(self, name: str) -> CatalogEntry:
        """The model called `name`: by id or alias; else a file of the cache by its id in other letter cases,
        or by the end of its name (`org/repo:Q4_K_M`), where only one file has that; else the only model of
        the repository or folder of that name; else by a pattern among the aliases.

        An entry with an `error` is found like any other. Raises ModelNotFound, which says what there is, and
        AmbiguousModel, which says which models the name could be.
        """
        found = self.find(name) or self._by_pattern(name)
        if found is None:
            raise ModelNotFound(self._not_found(name))
        return found

    def find(self, name: str) -> CatalogEntry | None:
        """The same without patterns, where more names are to be tried; None where there is none. Raises
        AmbiguousModel, and ModelNotFound where the models that the name could be are hidden ones.
        """
        meant = self.meant_by(name)
        if len(meant) > 1:  # what is no model is meant only by its whole name
            meant = tuple(model for model in meant if self.entries[model].is_model) or meant
        if len(meant) <= 1:
            return self.entries[meant[0]] if meant else None
        visible = [model for model in meant if not self.entries[model].hidden]
        if not visible:
            raise ModelNotFound(self._not_found(name))
        raise AmbiguousModel(name, visible)

    def _by_pattern(self, name: str) -> CatalogEntry | None:
        # The patterns of two models have no name in common (router.presets.load).
        return next(
            (
                entry
                for entry in self.entries.values()
                if any(matches(pattern, name) for pattern in entry.alias_patterns)
            ),
            None,
        )

    def default(self, configured: str) -> CatalogEntry:
        """The model of a request that names none: `configured` (server.default_model), else the only one that
        is not hidden. Raises InvalidRequest where there are several, and ModelNotFound or AmbiguousModel
        where the configured one is wrong.
        """
        if configured:
            try:
                return self.resolve(configured)
            except AmbiguousModel as error:
                raise AmbiguousModel(f"server.default_model {configured}", error.candidates) from None
            except ModelNotFound as error:
                raise ModelNotFound(f"server.default_model: {error.message}") from None
        visible = [entry for entry in self.models if not entry.hidden]
        if len(visible) == 1:
            return visible[0]
        there = f"there are: {_listed(visible)}" if visible else "there are no models yet"
        raise InvalidRequest(
            f'name a model: {{"model": "..."}}; {there}; server.default_model sets one for requests without'
        )

    def meant_by(self, name: str) -> tuple[str, ...]:
        """The ids of all models that `name` may mean: several where it is ambiguous."""
        return self._names.meant_by(name)

    def literal(self, name: str) -> CatalogEntry | None:
        """The model that has exactly this id or alias."""
        model = self._ids.get(name)
        return self.entries[model] if model is not None else None

    def names(self) -> Collection[str]:
        """All that a model can be called by: ids and aliases."""
        return self._ids.keys()

    def _not_found(self, name: str) -> str:
        shown = name if len(name) <= 100 else name[:97] + "..."
        visible = [entry for entry in self.models if not entry.hidden]
        fetch = f"; to fetch it: llama-router pull {name}" if _REPOSITORY.fullmatch(name) else ""
        if not visible:
            return f"model {shown!r} not found; there are no models yet{fetch}"
        names = [entry.id for entry in visible]
        aliases = [alias for entry in visible for alias in entry.aliases]
        # Compared without case: `SMALL` is nearer to `small` than to anything else.
        by_folded = {known.casefold(): known for known in (*aliases, *names)}
        near = difflib.get_close_matches(shown.casefold(), by_folded, n=1)
        suggestion = f"; did you mean {by_folded[near[0]]!r}?" if near else fetch
        return f"model {shown!r} not found{suggestion}; there are: {_listed(visible)}"


def _listed(entries: Sequence[CatalogEntry]) -> str:
    """Their ids, not more than a message should have."""
    more = len(entries) - MAX_NAMES_SHOWN
    shown = ", ".join(entry.id for entry in entries[:MAX_NAMES_SHOWN])
    return f"{shown} and {more} more" if more > 0 else shown
