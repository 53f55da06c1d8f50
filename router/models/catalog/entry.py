"""One model of the catalog, as the rest of the router sees it."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from router.models.catalog.candidate import Source, Stamp
from router.presets import ModelPreset

#: What the scheduler and the lists use, and the child never sees.
_NOT_THE_CHILDS: Final = frozenset(
    {
        "aliases", "tags", "hidden", "description", "ttl_seconds", "pinned", "priority", "replicas",
        "replica_max", "target_inflight", "exclusive", "load_on_startup", "stop_grace_seconds", "origin",
        "hf_repo", "hf_file", "draft_hf_repo", "mmproj_auto", "dedup_cache_models",
    }
)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class CatalogEntry:
    """A model that can be asked for, or that says in `error` why it cannot be run.

    `alias_patterns` are further names with `*` in them. `path` is the first of `files`, which are all its
    parts; None when no file is known. `mmproj` and the paths in `preset` (draft_model, lora) are what is to
    be used, whether they were configured or found beside the model. `removable`: it is in the Hugging Face
    cache and may be deleted. `architecture` and `gguf_name` are what the file says. It is no model
    (`is_model`) where its header rules that out and it has no section of its own; `error` says why. `stamps`
    are real path, size and time of change of every file, when the catalog was made.
    """

    id: str
    source: Source
    preset: ModelPreset
    aliases: tuple[str, ...] = ()
    alias_patterns: tuple[str, ...] = ()
    path: Path | None = None
    files: tuple[Path, ...] = ()
    mmproj: Path | None = None
    size_bytes: int = 0
    error: str | None = None
    removable: bool = False
    architecture: str | None = None
    gguf_name: str | None = None
    is_model: bool = True
    stamps: tuple[Stamp, ...] = ()

    @property
    def tags(self) -> tuple[str, ...]:
        return self.preset.tags

    @property
    def hidden(self) -> bool:
        return self.preset.hidden

    @property
    def fingerprint(self) -> str:
        """A hash of all that decides how the model runs: its files as they were, and what becomes argv and
        environment.
        """
        settings = {
            field.name: getattr(self.preset, field.name)
            for field in dataclasses.fields(self.preset)
            if field.name not in _NOT_THE_CHILDS
        }
        settings["env"] = dict(self.preset.env)
        definition = [self.id, self.stamps, str(self.mmproj), self.error, settings]
        return hashlib.sha256(json.dumps(definition, default=str, sort_keys=True).encode()).hexdigest()
