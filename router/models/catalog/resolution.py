"""Name -> model: the one place that decides which model a name means, in presets and in requests."""

from __future__ import annotations

from collections.abc import Mapping

from router.models.catalog.hub_names import meant_by


class Names:
    """`ids` has the model of every name there is, `paths` the path in its repository of each name that a hub
    file has.
    """

    def __init__(self, ids: Mapping[str, str], paths: Mapping[str, str]) -> None:
        self._ids = ids
        self._repositories: dict[str, dict[str, str]] = {}
        for name in ids:
            repo, colon, label = name.partition(":")
            if colon:
                self._repositories.setdefault(repo, {})[label] = paths.get(name, label)

    def meant_by(self, name: str) -> tuple[str, ...]:
        """The models that `name` may mean: the one that has the name; else those of the repository whose file
        may be meant (see `router.models.catalog.hub_names.meant_by`). Several: the name is ambiguous.
        """
        if (model := self._ids.get(name)) is not None:
            return (model,)
        repo, _, label = name.partition(":")
        labels = meant_by(label, self._repositories.get(repo, {}))
        return tuple(dict.fromkeys(self._ids[f"{repo}:{each}"] for each in labels))
