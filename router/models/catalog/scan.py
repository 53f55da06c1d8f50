"""One look at all sources of models: what was found meets what was configured."""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Final

from router.config import Config, models_dirs
from router.config.nearest import nearest_of
from router.engines.llama_server import find_binary
from router.errors import AmbiguousModel, StartupError
from router.models.catalog.candidate import Candidate, Notes, Stamp, examine, is_there, stamp_of
from router.models.catalog.companions import adapter_misfit, misfit, with_true_width
from router.models.catalog.entry import CatalogEntry
from router.models.catalog.header import Header, Unusable, glance
from router.models.catalog.hf_cache import HfCache, hf_cache_dir, scan_hf_cache
from router.models.catalog.hub_names import Names
from router.models.catalog.kinds import is_model_file, ruled_out
from router.models.catalog.models_dir import scan_models_dir
from router.models.catalog.names import parse_name
from router.presets import ModelPreset, Presets, load_presets, read_hub_preset
from router.presets.alias_patterns import is_pattern
from router.presets.options import KNOWN_ONLY, Options, options_of

_NAME: Final = re.compile(r"(?!\s)[^\x00-\x1f\x7f\ud800-\udfff]{1,256}(?<!\s)")


def options_for(config: Config) -> Options:
    """The options of the llama-server that is to run; without one only those that are known anyway."""
    try:
        return options_of(find_binary(config.paths.llama_server))
    except StartupError:
        return KNOWN_ONLY


def scan(
    config: Config, presets: Presets | None, notes: Notes
) -> tuple[Iterable[CatalogEntry], dict[str, str]]:
    """The entries of a catalog: models with a section of their own, then those of folders, then the
    cache's; and where each file of the cache lies in its repository, by id. Raises OSError only where files
    have run out.
    """
    options, warnings = options_for(config), notes.warnings
    presets = load_presets(config, options=options) if presets is None else presets
    found = _Found()
    folders = models_dirs(config)
    searched = [os.path.realpath(hf_cache_dir())] if config.paths.hf_cache else []
    elsewhere = [*map(os.path.realpath, folders), *searched]
    caches: list[Path] = []
    for folder in folders:
        if config.paths.models_dirs or _may_be_there(folder):  # the default folder need not exist
            found.add(scan_models_dir(folder, notes, elsewhere, caches), warnings)
    cache = scan_hf_cache(hf_cache_dir(), notes) if config.paths.hf_cache else HfCache()
    found.add(cache.models(), warnings)
    for folder in caches:
        if os.path.realpath(folder) not in searched:
            more = scan_hf_cache(folder, notes)
            found.add((replace(each, source="models_dir") for each in more.models()), warnings)
            cache = replace(cache, repositories={**more.repositories, **cache.repositories})
    notes.gguf_files += sum(len(repository.names) for repository in cache.repositories.values())
    paths = cache.paths()
    for repo, path in cache.presets.items():
        presets = presets.with_hub_preset(read_hub_preset(path, repo, options), found.by_id.keys())
    warnings[:0] = presets.warnings
    entries = _Entries(presets, cache, notes)
    sections = _Sections(presets, Names(found.names, paths), found.by_id)
    for section in presets.names:
        if not is_name(section):
            warnings.append(f"{section!r}: left out: it cannot be the name of a model")
        elif sections.names_a_file(section):
            entries.add_section(section, None)
        elif len(meant := sections.meant[section]) > 1:
            warnings.append(f"[{section}] is left out: {AmbiguousModel(section, meant).message}")
        elif (candidate := sections.candidate(section)) is not None:
            entries.add_section(section, candidate)
        else:
            entries.add_section(section, None, problem=sections.problem(section))
    for candidate in found.by_id.values():
        entries.add_found(candidate)
    entries.drop_duplicates_of_the_cache()
    entries.note_what_is_not_offered()
    entries.hide_drafts_of_the_cache()
    return entries.with_aliases(warnings), paths


def is_name(name: str) -> bool:
    """Whether a model may be called that: no control characters, and nothing that leads out of a folder."""
    return bool(_NAME.fullmatch(name)) and all(part not in ("", ".", "..") for part in name.split("/"))


class _Found:
    """What is in folders and in the cache, by id and by further names."""

    def __init__(self) -> None:
        self.by_id: dict[str, Candidate] = {}
        self._also: dict[str, str] = {}

    def add(self, candidates: Iterable[Candidate], warnings: list[str]) -> None:
        for candidate in candidates:
            file, name = candidate.files[0], candidate.id
            names = [each for each in (name, *candidate.also) if each not in self.by_id]
            if not is_name(name):
                warnings.append(f"{str(file)!r}: left out: {name!r} cannot be the name of a model")
            elif not names:
                first = self.by_id[name].files[0]
                warnings.append(f"{file}: left out: {first} has the name {name!r} already")
            else:
                self.by_id[names[0]] = replace(candidate, id=names[0], also=tuple(names[1:]))
                self._also |= dict.fromkeys(names[1:], names[0])

    @property
    def names(self) -> dict[str, str]:
        return self._also | {name: name for name in self.by_id}


class _Sections:
    """Which model each section of the presets is about. A section with the exact name of a model comes before
    one that has a shortened name, wherever they stand.
    """

    def __init__(self, presets: Presets, names: Names, found: Mapping[str, Candidate]) -> None:
        self._presets = presets
        self._found = found
        self.meant = {section: self._models(names.meant_by(section)) for section in presets.names}
        self._owners: dict[str, str] = {}
        for section in sorted(presets.names, key=lambda each: each not in found):
            if len(meant := self.meant[section]) == 1 and not self.names_a_file(section):
                self._owners.setdefault(meant[0], section)

    def _models(self, meant: tuple[str, ...]) -> tuple[str, ...]:
        """Of several that a name may mean those whose headers rule out no model."""
        if len(meant) < 2:
            return meant
        return tuple(each for each in meant if is_model_file(self._found[each].files[0])) or meant

    def names_a_file(self, section: str) -> bool:
        """Whether the settings say which file is run: then nothing is looked for by the section's name."""
        preset = self._presets.for_model(section)
        return preset.model is not None or preset.hf_repo is not None

    def candidate(self, section: str) -> Candidate | None:
        """The one model that the section is about, unless another section is."""
        (model, *_) = self.meant[section] or ("",)
        return self._found[model] if self._owners.get(model) == section else None

    def problem(self, section: str) -> str:
        """Why there is no candidate."""
        for model in self.meant[section]:
            return f"[{self._owners[model]}] has the settings of {model!r} already"
        near = nearest_of(section, self._found.keys())
        hint = f"did you mean {near!r}?" if near else "set model or hf_repo"
        return f"no folder and no cache has a model called {section!r}; {hint}"


class _Entries:
    """Puts entries together. `_names` are the names of each besides its id."""

    def __init__(self, presets: Presets, cache: HfCache, notes: Notes) -> None:
        self.by_id: dict[str, CatalogEntry] = {}
        self._names: dict[str, list[str]] = {}
        self._presets = presets
        self._cache = cache
        self._notes = notes
        self._sections: set[str] = set()

    def add_section(self, section: str, candidate: Candidate | None, problem: str | None = None) -> None:
        """A model with settings of its own. They may name its file; else it is `candidate`, and without that
        the `problem` says why.
        """
        name = candidate.id if candidate else section
        preset = self._presets.for_model(name, section=section)
        error = f"{preset.origin}: {problem}" if problem is not None else None
        if preset.model is not None:
            candidate, error = _from_path(name, preset.model)
        elif preset.hf_repo is not None:
            in_cache, error = self._in_cache(preset.hf_repo, preset.hf_file, name)
            candidate = replace(in_cache, source="preset") if in_cache else None
        self._sections.add(name)
        self._names[name] = [section]
        if candidate is not None:
            self.add(candidate, section=section, error=error)
        else:
            reasons = "; ".join(filter(None, (preset.error, error)))
            self.by_id[name] = CatalogEntry(id=name, source="preset", preset=preset, error=reasons)

    def add_found(self, candidate: Candidate) -> None:
        """A model without a section. Where one with a section has its name and is another file, it keeps its
        longer name.
        """
        if candidate.id not in self.by_id:
            self.add(candidate)
            return
        path, file = self.by_id[candidate.id].path, candidate.files[0]
        if path is not None and os.path.realpath(file) == os.path.realpath(path):
            return
        if names := [name for name in candidate.also if name not in self.by_id]:
            self.add(replace(candidate, id=names[0], also=tuple(names[1:])))
        else:
            self._notes.warnings.append(
                f"{file}: left out: the settings of {candidate.id!r} name another file"
            )

    def add(self, candidate: Candidate, *, section: str | None = None, error: str | None = None) -> None:
        examined = examine(candidate.files)
        self._notes.unread.extend(examined.unread)
        header = examined.header
        reason = ruled_out(header, is_configured=section is not None)
        if reason is not None:
            error = f"{candidate.files[0]} {reason}" + (f"; {candidate.unused}" if candidate.unused else "")
        names = [candidate.files[0].stem, *filter(None, (header.name,))]
        preset = self._presets.for_model(
            candidate.id, *names, section=section, architecture=header.architecture, pooling=header.pooling
        )
        preset, companions, problems = self._with_companions(preset, candidate, header)
        self._names.setdefault(candidate.id, []).extend(candidate.also)
        self.by_id[candidate.id] = CatalogEntry(
            id=candidate.id,
            source=candidate.source,
            preset=preset,
            path=candidate.files[0],
            files=candidate.files,
            mmproj=preset.mmproj,
            size_bytes=examined.size_bytes,
            error="; ".join(filter(None, (preset.error, error or examined.error, *problems))) or None,
            removable=candidate.source == "hf_cache",
            architecture=header.architecture,
            gguf_name=header.name,
            is_model=reason is None or section is not None,
            stamps=(*examined.stamps, *companions),
        )

    def _with_companions(
        self, preset: ModelPreset, candidate: Candidate, header: Header
    ) -> tuple[ModelPreset, list[Stamp], list[str]]:
        """The other files a model is run with, as configured, else as found beside it; and what is wrong.

        A configured one whose header does not fit the model is wrong too, as llama-server would not start
        with it; but for a draft, which it would load and not use: that is left out.
        """
        problems = []
        mmproj = preset.mmproj or (candidate.mmproj if preset.mmproj_auto else None)
        draft = preset.draft_model or candidate.draft
        if preset.draft_hf_repo is not None:
            in_cache, error = self._in_cache(preset.draft_hf_repo, None, candidate.id)
            draft = in_cache.files[0] if in_cache else None
            if error is not None:
                problems.append(f"its draft {error}")
        stamps = []
        companions = [("projector", mmproj), ("draft", draft), *(("adapter", each) for each in preset.lora)]
        for what, file in companions:
            if file is None:
                continue
            stamp = stamp_of(file)
            misfit = _misfit(what, file, header) if stamp is not None else "is gone"
            if stamp is not None and misfit is None:
                stamps.append(stamp)
            elif stamp is not None and what == "draft":
                self._notes.warnings.append(f"{candidate.id}: its draft {file} is left out: it {misfit}")
                draft = None
            else:
                problems.append(f"its {what} {file} {misfit}")
        return replace(preset, model=candidate.files[0], mmproj=mmproj, draft_model=draft), stamps, problems

    def _in_cache(self, hf_repo: str, hf_file: str | None, name: str) -> tuple[Candidate | None, str | None]:
        """The model that a setting names by its repository, or why there is none."""
        try:
            found = self._cache.find(hf_repo, hf_file, name)
        except AmbiguousModel as error:
            return None, error.message
        return found, None if found is not None else _not_downloaded(hf_repo, hf_file)

    def drop_duplicates_of_the_cache(self) -> None:
        """A file of the cache that a preset or a folder offers too is one model; the cache's id becomes an
        alias.
        """
        by_file = {
            entry.stamps[0][0]: entry.id
            for entry in reversed(self.by_id.values())
            if entry.source != "hf_cache" and entry.path is not None and entry.stamps
        }
        for entry in list(self.by_id.values()):
            if entry.source == "hf_cache" and entry.id not in self._sections and entry.stamps:
                same = by_file.get(entry.stamps[0][0])
                if same is not None:
                    del self.by_id[entry.id]
                    self._names[same].append(entry.id)

    def note_what_is_not_offered(self) -> None:
        """Every file that is no model and goes with none, with its reason."""
        in_use: set[Path | None] = set()
        for entry in self.by_id.values():
            in_use.update((entry.mmproj, entry.preset.draft_model, *entry.preset.lora))
        for entry in self.by_id.values():
            if not entry.is_model and entry.path not in in_use:
                self._notes.warnings.append(f"not offered as a model: {entry.error}")

    def hide_drafts_of_the_cache(self) -> None:
        """`dedup-cache-models`, as llama.cpp has it: a model of the cache that a section uses as its draft is
        listed no more, and can still be used."""
        presets = [entry.preset for name, entry in self.by_id.items() if name in self._sections]
        drafts = {
            os.path.realpath(preset.draft_model)
            for preset in presets
            if preset.dedup_cache_models and preset.draft_model is not None
        }
        for name, entry in self.by_id.items():
            is_own = entry.source == "hf_cache" and name not in self._sections
            if is_own and entry.stamps and entry.stamps[0][0] in drafts:
                self.by_id[name] = replace(entry, preset=replace(entry.preset, hidden=True))

    def with_aliases(self, warnings: list[str]) -> Iterator[CatalogEntry]:
        """A name is one model's: an alias that is taken is left out, whoever comes later."""
        taken: dict[str, str] = {}
        for entry in self.by_id.values():
            aliases, patterns = [], []
            for alias in dict.fromkeys((*entry.preset.aliases, *self._names.get(entry.id, ()))):
                if alias == entry.id or taken.get(alias) == entry.id:
                    continue
                owner = alias if alias in self.by_id else taken.get(alias)
                if owner is not None or not is_name(alias):
                    reason = f"{owner!r} has that name" if owner is not None else "it cannot be a name"
                    warnings.append(f"{entry.id}: alias {alias!r} is left out: {reason}")
                    continue
                if is_pattern(alias) and alias in entry.preset.aliases:
                    patterns.append(alias)
                    continue
                taken[alias] = entry.id
                aliases.append(alias)
            yield replace(entry, aliases=tuple(aliases), alias_patterns=tuple(patterns))


def _may_be_there(folder: Path) -> bool:
    try:
        folder.stat()
    except OSError as error:
        return is_there(error)
    return True


def _from_path(name: str, path: Path) -> tuple[Candidate, str | None]:
    """A model that its settings name by file: all its parts, and why it cannot be that file."""
    file = parse_name(path.name)
    if file is None or file.count == 1:
        return Candidate(name, "preset", (path,)), None
    if file.index > 1:
        part = f"{path} is part {file.index} of {file.count}"
        return Candidate(name, "preset", (path,)), f"{part}; give the first part, {file.shards[0]}"
    return Candidate(name, "preset", tuple(path.with_name(part) for part in file.shards)), None


def _misfit(what: str, file: Path, model: Header) -> str | None:
    """Why llama-server cannot run the model with a projector, draft or adapter; None where the headers do not
    say, or one cannot be read."""
    try:
        companion = glance(file)
    except Unusable:
        return None
    if what == "adapter":
        return adapter_misfit(companion, model)
    if what == "projector":
        companion = with_true_width(companion, file)
    return misfit(companion, model, is_draft=what == "draft")


def _not_downloaded(hf_repo: str, hf_file: str | None) -> str:
    what = f"{hf_repo} {hf_file}" if hf_file else hf_repo
    which = f" --include {shlex.quote(hf_file)}" if hf_file else ""
    return f"{what} has not been downloaded: llama-router pull {hf_repo}{which}"
