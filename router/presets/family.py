"""Settings for all models that look alike: how a shipped preset finds the models it is for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from router.presets.layer import Layer


@dataclass(frozen=True, slots=True)
class Family:
    """`match` are glob patterns for any name of a model, upper and lower case alike; `architectures` are
    those of GGUF files ("qwen3"). One of either is enough.
    """

    name: str
    match: tuple[str, ...]
    architectures: tuple[str, ...]
    layer: Layer

    def has(self, names: Sequence[str], architecture: str | None) -> bool:
        if architecture is not None and architecture in self.architectures:
            return True
        return any(fnmatchcase(name.casefold(), glob.casefold()) for glob in self.match for name in names)
