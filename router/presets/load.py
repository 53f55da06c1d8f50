"""Preset files, shipped families and [models] of config.toml put together: the settings of each model."""

from __future__ import annotations

import sys
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field, replace
from itertools import combinations
from pathlib import Path
from types import MappingProxyType
from typing import Final

from router.config import Config
from router.errors import ConfigError
from router.presets.alias_patterns import common_name, is_pattern
from router.presets.files import Family, inline_presets, not_for_all, read_preset_file
from router.presets.hub_preset import HubPreset
from router.presets.layer import Layer, LayerReader, merge
from router.presets.options import KNOWN_ONLY, Options
from router.presets.preset import ModelPreset

#: llama.cpp's LLAMA_MAX_SEQ (src/llama-cparams.h): a context with more sequences is not made.
_MAX_PARALLEL: Final = 256


@dataclass(frozen=True, slots=True)
class Presets:
    """All settings there are. `warnings` are for people: what was left out, and why.

    From bottom to top: [child] of the configuration, shipped families, [defaults] and [*], families of preset
    files, sections of single models, [models] of config.toml; in each the later file above the earlier.
    """

    child: Layer = field(default_factory=Layer)
    shipped: tuple[Family, ...] = ()
    defaults: tuple[Layer, ...] = ()
    families: tuple[Family, ...] = ()
    models: Mapping[str, tuple[Layer, ...]] = field(default_factory=lambda: MappingProxyType({}))
    warnings: tuple[str, ...] = ()

    @property
    def names(self) -> tuple[str, ...]:
        """The models that have a section of their own."""
        return tuple(self.models)

    def with_hub_preset(self, preset: HubPreset, taken: Collection[str]) -> Presets:
        """With the models of a repository's preset.ini, but for those whose names are `taken`. A section of
        ours that says nothing of which model it is stands above the repository's."""
        models, warnings = dict(self.models), [*self.warnings, *preset.warnings]
        for name, layer in preset.models.items():
            own = models.get(name, ())
            if name in taken or merge(own).fields.keys() & {"model", "hf_repo"}:
                warnings.append(
                    f"{layer.origin}: [{name}] is left out: there is a model of that name already"
                )
            else:
                models[name] = (layer, *own)
        return replace(self, models=MappingProxyType(models), warnings=tuple(warnings))

    def for_model(
        self,
        name: str,
        *also: str,
        section: str | None = None,
        architecture: str | None = None,
        pooling: str | None = None,
    ) -> ModelPreset:
        """The settings of the model `name`, complete.

        `also` are other names it has (of its file, of its repository), which count for families only;
        `section` is the section to take where that is not called `name`. `architecture` and `pooling` are
        what its file says: one with a pooling was made for embeddings ("rank": for reranking), and is used so
        unless the settings say otherwise.
        """
        names = (name, *also)
        own = self.models.get(section if section is not None else name, ())
        layer = merge(
            [
                self.child,
                *(family.layer for family in self.shipped if family.has(names, architecture)),
                _use(pooling),
                *self.defaults,
                *(family.layer for family in self.families if family.has(names, architecture)),
                *own,
            ]
        )
        args = tuple(token for tokens in layer.args.values() for token in tokens)
        fields = {**layer.fields, "env": MappingProxyType(dict(layer.fields.get("env", {})))}
        preset = ModelPreset(name=name, args=args, **fields)
        problems = [*layer.problems, *_contradictions(preset)]
        return replace(
            preset,
            replica_max=max(preset.replicas, preset.replica_max),
            error="; ".join(problems) or None,
            origin=merge(own).origin,
        )


def load_presets(config: Config, shipped_dir: Path | None = None, options: Options = KNOWN_ONLY) -> Presets:
    """Read the preset files of `config`, and the families in `shipped_dir` (None: those shipped with the
    router). `options` are those of the llama-server that is to run; what ships is for older ones too.

    A section of a model that is wrong disables that model alone: its preset has an `error`. Raises
    ConfigError, with a line per problem, for what concerns more than one model: a file that cannot be
    read, settings for all models, settings outside of any section, [child] args, alias patterns of two
    models that a name could match both of.
    """
    files = [read_preset_file(path, options) for path in config.paths.presets]
    shipped = [
        read_preset_file(path) for path in sorted((shipped_dir or shipped_presets_dir()).glob("*.toml"))
    ]
    child = _child(config, options)
    problems = [problem for file in (*shipped, *files) for problem in file.problems] + list(child.problems)
    if problems:
        raise ConfigError("\n".join(problems))
    models: dict[str, tuple[Layer, ...]] = {}
    with_inline = (*files, inline_presets(config, options))
    for file in with_inline:
        for name, layer in file.models.items():
            models[name] = (*models.get(name, ()), layer)
    if clashes := list(_clashes(models)):
        raise ConfigError("\n".join(clashes))
    layers = [child, *(layer for file in with_inline for layer in file.layers)]
    return Presets(
        child=child,
        shipped=tuple(family for file in shipped for family in file.families),
        defaults=tuple(layer for file in files for layer in file.defaults),
        families=tuple(family for file in files for family in file.families),
        models=MappingProxyType(models),
        warnings=tuple(warning for layer in layers for warning in layer.warnings),
    )


def _clashes(models: Mapping[str, tuple[Layer, ...]]) -> Iterator[str]:
    """Alias patterns of two models that some name matches both of: either model could answer to it."""
    merged = ((name, merge(layers)) for name, layers in models.items())
    patterns = [
        (alias, name, own.origin)
        for name, own in merged
        for alias in own.fields.get("aliases", ())
        if is_pattern(alias)
    ]
    for (one, its, origin), (other, theirs, other_origin) in combinations(patterns, 2):
        if its != theirs and (shared := common_name(one, other)) is not None:
            yield (
                f"{other_origin}: alias {other!r} of {theirs!r} and alias {one!r} of {its!r} ({origin}) both "
                f"match {shared!r}; change one of them"
            )


def shipped_presets_dir() -> Path:
    """Where the router's own presets are: beside the package in a checkout, else where pip puts data
    files.
    """
    checkout = Path(__file__).resolve().parents[2]
    is_checkout = (checkout / "config.toml").is_file() and (checkout / "presets").is_dir()
    return checkout / "presets" if is_checkout else Path(sys.prefix) / "share" / "llama-router" / "presets"


def _child(config: Config, options: Options) -> Layer:
    child, line = config.child, config.lines.get(("child", "args"))
    where = (f"{config.source}:{line}: " if line else "") + "child"
    reader = LayerReader((Path.cwd(),), options=options)
    reader.set_args(child.args, where)
    fields = {
        "ctx_size": child.ctx_size,
        "parallel": child.parallel,
        "kv_unified": child.kv_unified,
        "cache_ram_mib": child.cache_ram_mib,
        "n_gpu_layers": child.n_gpu_layers,
        "stop_grace_seconds": child.stop_grace_seconds,
        "env": child.env,
    }
    from_args = reader.layer()
    return replace(
        from_args,
        fields=fields | dict(from_args.fields),
        problems=(*from_args.problems, *not_for_all(from_args, f"{where} args")),
    )


def _use(pooling: str | None) -> Layer:
    """What the file says of itself: it knows better than its name, which is all that a family goes by."""
    if pooling is None or pooling == "none":
        return Layer()
    return Layer({"reranking": pooling == "rank", "embedding": pooling != "rank"})


def _contradictions(preset: ModelPreset) -> Iterator[str]:
    if preset.model is not None and preset.hf_repo is not None:
        yield "model and hf_repo name two models; one of them must go"
    if preset.draft_model is not None and preset.draft_hf_repo is not None:
        yield "draft_model and draft_hf_repo name two models; one of them must go"
    quantized = preset.cache_type_v not in (None, "f32", "f16", "bf16")
    if quantized and preset.flash_attn == "off":
        yield f"cache_type_v = {preset.cache_type_v!r} needs flash attention, and flash_attn is off"
    if (preset.parallel or 0) > _MAX_PARALLEL:
        yield f"parallel = {preset.parallel}: llama-server serves at most {_MAX_PARALLEL} requests at a time"
    if preset.hf_file is not None and preset.hf_repo is None:
        yield "hf_file needs hf_repo"
