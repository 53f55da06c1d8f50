"""Name -> model: the one place that decides which model a name means, in presets and in requests."""

from __future__ import annotations

from collections.abc import Mapping

from router.models.catalog.hub_names import meant_by
from router.models.catalog.names import is_draft_name


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
        may be meant (see `router.models.catalog.hub_names.meant_by`); else all models of the repository or
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
