"""A catalog entry and the devices become the core's Model, and a placement of it becomes a Launch.

`define` reads headers and does arithmetic: it blocks, and is called in a thread. What it makes is
immutable; a reload makes another one, and the scheduler compares definitions by their hash.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType

from router.config import Config
from router.descriptors import is_out_of_files
from router.engines import Launch
from router.engines.llama_server import LlamaServerSettings, launch
from router.errors import ModelUnusable, RouterError
from router.gguf import GgufError, GgufMetadata, read_gguf
from router.ids import NO_DEFINITION, Definition
from router.installation import build_command
from router.memory.devices import DeviceInfo
from router.memory.estimate.values import (
    Companions,
    EstimatedPlacement,
    LoadSettings,
)
from router.models.catalog import Catalog, CatalogEntry
from router.models.catalog.header import Header
from router.models.catalog.kinds import ruled_out
from router.models.placing import Budget, budgets_of, layers, placed, placement
from router.presets import ModelPreset, Overrides
from router.presets.options import KNOWN_ONLY, Options, options_of
from router.presets.overrides import overridden, read, written
from router.scheduler.types import Device, DeviceId, Model, ModelName, Placement, Priority

#: What a load is expected to take before one was measured: a process start, and the file at a plain SSD's
#: pace.
START_SECONDS = 1.0
READ_BYTES_PER_SECOND = 1 << 30


@dataclass(frozen=True, slots=True)
class DefinedModel:
    """One model, ready to be scheduled and launched. `estimates` are those of `model.placements`, one by one.
    When it is unusable there are none, and neither `metadata` nor `companions`."""

    entry: CatalogEntry
    model: Model
    metadata: GgufMetadata | None = None
    estimates: tuple[EstimatedPlacement, ...] = ()
    companions: Companions | None = field(default=None, repr=False)


@dataclass(frozen=True, slots=True)
class Definitions:
    """All models by their canonical names, and the way to start them."""

    by_name: Mapping[ModelName, DefinedModel]
    infos: Mapping[DeviceId, DeviceInfo]
    config: Config
    binary: Path
    environ: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}), repr=False)
    options: Options = field(default=KNOWN_ONLY, repr=False)

    @property
    def models(self) -> dict[ModelName, Model]:
        return {name: definition.model for name, definition in self.by_name.items()}

    def check(self, name: ModelName) -> None:
        """Look whether what a launch needs is still there, before anybody is evicted for it. Touches files.
        Raises ModelUnusable; an unknown name is for the scheduler to refuse.
        """
        definition = self.by_name.get(name)
        if definition is None or definition.model.error is not None:
            return
        for file in self.files(name):
            if not os.access(file, os.R_OK):
                raise ModelUnusable(f"{name} cannot be loaded: {file} is gone, or may not be read")
        if not os.access(self.binary, os.X_OK):
            raise ModelUnusable(
                f"{name} cannot be loaded: llama-server is not at {self.binary} any more, or may not be run; "
                f"{build_command()} makes one"
            )

    def files(self, name: ModelName) -> tuple[Path, ...]:
        """What its llama-server opens, in that order; nothing for a name that is not known."""
        if (definition := self.by_name.get(name)) is None:
            return ()
        entry, preset = definition.entry, definition.entry.preset
        files = (*entry.files, entry.mmproj, preset.draft_model, *preset.lora)
        return tuple(file for file in files if file is not None)

    def load_mode(self, name: ModelName) -> str | None:
        """How the model is read, where that is said: by its preset, or by the configuration for all."""
        own = self.by_name.get(name)
        said = None if own is None else _said_load_mode(own.entry.preset.args)
        configured = self.config.memory.load_mode
        return said or (None if configured == "auto" else configured)

    def launch(self, name: ModelName, placement: Placement, definition: Definition = NO_DEFINITION) -> Launch:
        """How to start `name` where it was placed; `definition` of a load with other settings than its own.
        Raises RouterError for a model that cannot be run.
        """
        return self._launch(self._defined(name, definition), placement)

    def overridden(self, name: ModelName, overrides: Overrides, devices: Sequence[Device]) -> DefinedModel:
        """The model as one load gets it; as it is where that is the same. Arithmetic, some milliseconds.
        Raises RouterError for settings that it cannot be loaded with.
        """
        own = self.by_name[name]
        if own.model.error is not None:
            raise own.model.error.copy()
        preset = overridden(own.entry.preset, overrides, self.options)
        if preset == own.entry.preset:
            return own
        named = replace(own.model, definition=written(own.model.definition, overrides))
        varied = self._placed_anew(replace(own, model=named), preset, devices)
        for place in varied.model.placements:
            self._launch(varied, place)
        return varied

    def _defined(self, name: ModelName, definition: Definition) -> DefinedModel:
        own = self.by_name.get(name)
        if own is None:
            raise ModelUnusable(f"{name} is not in the catalog any more")
        overrides = read(definition)
        if overrides is None:
            return own
        return replace(
            own,
            entry=replace(own.entry, preset=overridden(own.entry.preset, overrides, self.options)),
        )

    def _launch(self, definition: DefinedModel, placement: Placement) -> Launch:
        draft = definition.companions.draft if definition.companions is not None else None
        # How it is split over several devices is for the placement to say.
        preset = replace(definition.entry.preset, tensor_split=())
        settings = LlamaServerSettings(preset, placement.args, _spec_type(draft))
        devices = [self.infos[device] for device in placement.devices if device in self.infos]
        return launch(
            settings,
            devices,
            binary=self.binary,
            environ=self.environ,
            child=self.config.child,
            extra_args=self._load_mode_args(definition.entry.preset),
        )

    def _load_mode_args(self, preset: ModelPreset) -> tuple[str, ...]:
        configured = self.config.memory.load_mode
        if configured == "auto" or _said_load_mode(preset.args) is not None:
            return ()
        return ("--load-mode", configured)

    def at_context(self, name: ModelName, ctx_size: int, devices: Sequence[Device]) -> DefinedModel:
        """The same model as it would be placed with a context of `ctx_size`. Arithmetic, some milliseconds.

        An unusable model is returned as it is. Raises ModelUnusable where `devices` miss one it asks for.
        """
        definition = self.by_name[name]
        if definition.metadata is None or definition.companions is None:
            return definition
        return self._placed_anew(definition, replace(definition.entry.preset, ctx_size=ctx_size), devices)

    def _placed_anew(
        self, definition: DefinedModel, preset: ModelPreset, devices: Sequence[Device]
    ) -> DefinedModel:
        assert definition.metadata is not None and definition.companions is not None, "it can be loaded"
        budgets = budgets_of(devices, self.infos, self.config)
        found = placed(preset, definition.metadata, definition.companions, budgets, self.config)
        return replace(
            definition,
            entry=replace(definition.entry, preset=preset),
            model=replace(definition.model, placements=tuple(placement(place) for place in found)),
            estimates=found,
        )


def define(
    catalog: Catalog,
    config: Config,
    devices: Sequence[Device],
    infos: Mapping[DeviceId, DeviceInfo],
    *,
    binary: Path,
    environ: Mapping[str, str],
) -> Definitions:
    """Read every header and place every model. A model that cannot be run is defined with its error, not
    left out. Raises OSError only where files have run out."""
    config = _with_ids(config, catalog)
    budgets = budgets_of(devices, infos, config)
    how = f"{_identity(binary)} {config.child}"
    how += "" if config.memory.load_mode == "auto" else f" {config.memory.load_mode}"
    return Definitions(
        {
            name: _define(name, entry, entry.fingerprint + how, budgets, config)
            for name, entry in catalog.entries.items()
        },
        infos,
        config,
        binary,
        environ,
        options_of(binary),
    )


def _with_ids(config: Config, catalog: Catalog) -> Config:
    """With the ids of the models that scheduler.exclusive names. A shortened name that several models could
    have stands for each of them: they are never loaded together then, which is safe.
    """
    groups = tuple(
        tuple(model for name in members for model in catalog.meant_by(name))
        for members in config.scheduler.exclusive
    )
    return replace(config, scheduler=replace(config.scheduler, exclusive=groups))


# --- one model ---


def _define(
    name: ModelName, entry: CatalogEntry, how: str, budgets: Sequence[Budget], config: Config
) -> DefinedModel:
    hashed = Definition(hashlib.sha256(how.encode()).hexdigest()[:16])
    try:
        metadata, companions = _read(entry)
        found = placed(entry.preset, metadata, companions, budgets, config)
    except (RouterError, GgufError, OSError, ValueError) as error:
        if is_out_of_files(error):
            raise
        words = f"{name} cannot be loaded: {error}"
        unusable = error.copy() if isinstance(error, RouterError) else ModelUnusable(words)
        return DefinedModel(entry, _model(name, entry, (), hashed, config, unusable))
    return DefinedModel(entry, _model(name, entry, found, hashed, config, None), metadata, found, companions)


def _read(entry: CatalogEntry) -> tuple[GgufMetadata, Companions]:
    if entry.error is not None:
        raise ModelUnusable(f"{entry.id} cannot be loaded: {entry.error}")
    assert entry.path is not None, f"{entry.id} has neither a file nor an error"
    preset = entry.preset
    companions = Companions(
        mmproj=read_gguf(entry.mmproj) if entry.mmproj is not None else None,
        draft=read_gguf(preset.draft_model) if preset.draft_model is not None else None,
        draft_settings=LoadSettings(n_gpu_layers=layers(preset.draft_n_gpu_layers)),
        lora_bytes=tuple(path.stat().st_size for path in preset.lora),
        mmproj_offload=preset.mmproj_offload is not False,
    )
    metadata = read_gguf(entry.path)
    # All of the header: a catalog reads only its beginning, which a long text may fill.
    reason = ruled_out(Header(metadata.architecture, kind=metadata.kind), is_configured=True)
    if reason is not None:
        raise ModelUnusable(f"{entry.id} cannot be loaded: {entry.path} {reason}")
    for path in preset.lora:
        _check_adapter(read_gguf(path), metadata)
    return metadata, companions


def _check_adapter(adapter: GgufMetadata, model: GgufMetadata) -> None:
    """Raises ModelUnusable for an adapter that llama-server would refuse to load with the model, as
    llama_adapter_lora_init in src/llama-adapter.cpp does."""
    shapes = {tensor.name: tensor.shape for tensor in model.tensors}
    for tensor in adapter.tensors:
        base, is_half, half = tensor.name.rpartition(".lora_")
        if not is_half:
            continue
        if (shape := shapes.get(base)) is None:
            raise ModelUnusable(f"its adapter {adapter.path} is for another model: it changes {base}")
        # What goes in is the first dimension of a; of the embeddings, which are looked up, it is that of b.
        is_in = (half == "a") != base.endswith("token_embd.weight")
        mine, its = (tensor.shape[0 if half == "a" else 1], shape[0 if is_in else 1])
        if mine != its:
            size = f"{tensor.name} has {mine} dimensions, not {its}"
            raise ModelUnusable(f"its adapter {adapter.path} is for another model: {size}")


def _model(
    name: ModelName,
    entry: CatalogEntry,
    found: Sequence[EstimatedPlacement],
    definition: Definition,
    config: Config,
    error: RouterError | None,
) -> Model:
    preset = entry.preset
    groups = {f"preset:{group}" for group in preset.exclusive}
    for number, members in enumerate(config.scheduler.exclusive):
        if name in members:
            groups.add(f"exclusive:{number}")
    return Model(
        name=name,
        placements=tuple(placement(place) for place in found),
        definition=definition,
        ttl=preset.ttl_seconds,
        pinned=preset.pinned,
        priority=Priority(preset.priority),
        replicas=preset.replicas,
        replica_max=max(preset.replicas, preset.replica_max),
        target_inflight=preset.target_inflight or 0,
        exclusive=frozenset(groups),
        load_seconds=START_SECONDS + entry.size_bytes / READ_BYTES_PER_SECOND,
        error=error,
    )


# --- values from one vocabulary to the next ---


def _said_load_mode(args: Sequence[str]) -> str | None:
    """What arguments say of how a model is read, also in the words of older llama-servers."""
    said = None
    for argument in KNOWN_ONLY.parse(args):
        if (spelling := argument.spelling) is not None and spelling.option.name == "load-mode":
            switch = spelling.switch
            said = "".join(argument.values) if switch is None else switch[0] or "mmap"
    return said


def _spec_type(draft: GgufMetadata | None) -> str | None:
    """How llama-server has to use a draft, by its header. llama-server finds that out for some of the kinds
    only (common_speculative_types_from_gguf in common/speculative.cpp of b11434)."""
    if draft is None:
        return None
    tensors = {tensor.name for tensor in draft.tensors}
    if draft.architecture == "dflash":
        return "draft-dspark" if "markov_w1.weight" in tensors else "draft-dflash"
    if draft.architecture == "eagle3":
        return "draft-eagle3"
    is_head = f"blk.{(draft.n_layers or 0) - 1}.nextn.eh_proj.weight" in tensors
    return "draft-mtp" if is_head or draft.architecture == "gemma4-assistant" else "draft-simple"


def _identity(binary: Path) -> str:
    """A binary that was replaced runs a model differently: its models are started anew after a reload."""
    try:
        found = binary.resolve().stat()
    except OSError:
        return str(binary)
    return f"{binary.resolve()} {found.st_size} {found.st_mtime_ns}"
