"""A model as `/models` shows it: llama.cpp's fields, and beside them what only this router knows.

What is fixed is made once per reload; the rest is read off a snapshot."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

import msgspec

from router.downloads import Job
from router.errors import RouterError
from router.gguf import GgufError, GgufMetadata, read_gguf
from router.ids import NO_DEFINITION, Definition
from router.models.definitions import DefinedModel, Definitions
from router.presets.options import Options
from router.scheduler.types import DeviceId, InstanceId, ModelName, Placement, State
from router.scheduler.views import InstanceView, ModelView, QueueView, Snapshot

#: llama.cpp's names of the places where models come from.
_SOURCES: Final = {"models_dir": "models_dir", "hf_cache": "cache", "preset": "preset"}
#: llama.cpp's words for a state; like it we call a model loaded until its process is gone.
_VALUES: Final = {
    State.PLANNED: "loading",
    State.STARTING: "loading",
    State.READY: "loaded",
    State.DRAINING: "loaded",
    State.STOPPING: "loaded",
}
#: What of a command line is no setting of the model.
_NOT_SETTINGS: Final = frozenset({"host", "alias", "ui", "no-ui", "slots", "metrics", "log-colors", "fit"})
#: Command lines that are kept: there are few instances at a time.
_ARGS_KEPT: Final = 256


# --- shapes ---


class Architecture(msgspec.Struct, frozen=True):
    input_modalities: tuple[str, ...]
    output_modalities: tuple[str, ...]


class Meta(msgspec.Struct, frozen=True):
    """What the file says. `n_ctx` is the context of each request: as it is loaded, or would be."""

    architecture: str
    n_vocab: int | None
    n_ctx: int | None
    n_ctx_train: int | None
    n_embd: int | None
    n_params: int
    size: int
    ftype: str | None


class Progress(msgspec.Struct, frozen=True):
    """`value` is 0..1: of a load the share of its expected time that has passed, of a download that of its
    bytes."""

    stages: tuple[str, ...]
    current: str
    value: float


class Status(msgspec.Struct, frozen=True, omit_defaults=True):
    """llama.cpp's words for it: downloading, unloaded, loading, loaded. `args` is the command line it runs
    with, or would, and `preset` the same as a section of a preset. `reason` is what the `waiting` requests
    wait for, `exit_code` that of the load that failed, negative for a signal; `job` is the download."""

    value: str
    args: Sequence[str]
    preset: str
    waiting: int
    pinned: bool
    progress: Progress | None = None
    reason: str | None = None
    expected_seconds: float | None = None
    failed: bool = False
    error: str | None = None
    exit_code: int | None = None
    job: str | None = None


class Bytes(msgspec.Struct, frozen=True):
    reserved: int
    measured: int | None


class Instance(msgspec.Struct, frozen=True):
    """One llama-server. `settings` are those that this load was given instead of the preset's, `cause` why it
    leaves and `for_model` for whom."""

    id: InstanceId
    state: str
    devices: dict[DeviceId, Bytes]
    leases: int
    pinned: bool
    since_seconds: float
    idle_seconds: float | None
    expires_in_seconds: float | None
    cause: str | None
    for_model: ModelName | None
    settings: dict[str, Any] | None = None


class Card(msgspec.Struct, frozen=True):
    """What does not change until the next reload. `alias_patterns` are aliases in which `*` is any text."""

    id: ModelName
    aliases: tuple[str, ...]
    tags: tuple[str, ...]
    created: int
    source: str
    path: str | None
    architecture: Architecture
    can_remove: bool
    meta: Meta | None = None
    object: str = "model"
    owned_by: str = "llamacpp"
    alias_patterns: tuple[str, ...] = ()


class Row(Card, frozen=True, kw_only=True):
    """One model in a list."""

    status: Status
    instances: list[Instance] = []


class Listed(msgspec.Struct, frozen=True):
    """A list in OpenAI's form."""

    data: list[Row]
    object: str = "list"


class CommandLine(NamedTuple):
    """How a model is started, and the same as a section of llama.cpp's preset files."""

    args: tuple[str, ...] = ()
    preset: str = ""


@dataclass(frozen=True, slots=True)
class ModelInfoCache:
    """What stays the same until the next reload: of every model its card and its command line, of every
    instance (and the settings of its load) the command line that it runs with; and the rows of models that
    nobody uses: to make 1,000 of them took 12 ms, and up to 120 ms with a garbage collection.
    """

    definitions: Definitions
    by_name: Mapping[ModelName, Card]
    lines: Mapping[ModelName, CommandLine]
    running: dict[tuple[InstanceId, Definition], CommandLine] = field(default_factory=dict)
    at_rest: dict[ModelName, Row] = field(default_factory=dict)


def make_info_cache(definitions: Definitions) -> ModelInfoCache:
    """Reads headers of projectors: call it in a thread."""
    cards, lines = {}, {}
    for name, definition in definitions.by_name.items():
        cards[name] = _card(definition)
        placements = definition.model.placements
        lines[name] = _line(definitions, name, placements[0]) if placements else CommandLine()
    return ModelInfoCache(definitions, cards, lines)


def visible(definitions: Definitions, *, with_others: bool = False) -> list[ModelName]:
    """Every model that is not hidden, in the order of the catalog; `with_others` also the files that are
    found and are no models.
    """
    return [
        name
        for name, one in definitions.by_name.items()
        if not one.entry.hidden and (one.entry.is_model or with_others)
    ]


# --- what is fixed ---


def _card(definition: DefinedModel) -> Card:
    entry = definition.entry
    return Card(
        id=entry.id,
        aliases=entry.aliases,
        tags=entry.tags,
        # The files' own time: clients sort by it, and "now" would sort differently at every look.
        created=max((changed_ns // 10**9 for _, _, changed_ns in entry.stamps), default=0),
        source=_SOURCES[entry.source],
        path=str(entry.path) if entry.path is not None else None,
        architecture=Architecture(("text", *_further_inputs(definition)), ("text",)),
        can_remove=entry.removable,
        meta=_meta(definition, definition.metadata) if definition.metadata is not None else None,
        alias_patterns=entry.alias_patterns,
    )


def _further_inputs(definition: DefinedModel) -> list[str]:
    if definition.metadata is None or definition.entry.mmproj is None:
        return []
    try:
        return sorted(read_gguf(definition.entry.mmproj).modalities, reverse=True)
    except (GgufError, OSError):
        return []


def _meta(definition: DefinedModel, metadata: GgufMetadata) -> Meta:
    context = definition.estimates[0].ctx_size if definition.estimates else None
    return Meta(
        architecture=metadata.architecture,
        n_vocab=metadata.n_vocab,
        n_ctx=_per_request(definition, context),
        n_ctx_train=metadata.n_ctx_train,
        n_embd=metadata.n_embd,
        n_params=metadata.n_parameters,
        size=metadata.tensor_bytes,
        ftype=metadata.quantisation,
    )


def _per_request(definition: DefinedModel, context: int | None) -> int | None:
    preset = definition.entry.preset
    return (
        context // (preset.parallel or 1) if context is not None and preset.kv_unified is False else context
    )


def _line(
    definitions: Definitions, name: ModelName, place: Placement, definition: Definition = NO_DEFINITION
) -> CommandLine:
    try:
        argv = definitions.launch(name, place, definition).argv
    except RouterError:
        return CommandLine()
    return CommandLine(argv, _preset(name, argv, definitions.options))


def _preset(name: ModelName, argv: Sequence[str], options: Options) -> str:
    lines = [f"[{name}]"]
    for argument in options.parse(argv[1:]):
        if argument.spelling is not None and argument.name not in _NOT_SETTINGS:
            switch = "false" if argument.spelling.is_negation else "true"
            lines.append(f"{argument.name} = {','.join(argument.values) or switch}")
    return "\n".join(lines) + "\n"


def _row(card: Card, status: Status, instances: Iterable[Instance] = ()) -> Row:
    return Row(**msgspec.structs.asdict(card), status=status, instances=list(instances))


def download_row(name: ModelName, job: Job, value: str = "downloading") -> Row:
    total = job.total_bytes
    share = round(min(1.0, job.done_bytes / total), 4) if total else 0.0
    progress = Progress(("download",), "download", share)
    status = Status(value, (), "", 0, False, progress=progress, job=job.id)
    none = Architecture((), ())
    return _row(Card(name, (), (), int(job.created_at), "cache", None, none, can_remove=False), status)


# --- what changes ---


class Listing:
    """The models at the moment of a snapshot, whose parts it has by model."""

    def __init__(self, cards: ModelInfoCache, snapshot: Snapshot) -> None:
        self._cards, self._now = cards, snapshot.now
        #: The instances there are, by model.
        self.running: dict[ModelName, list[InstanceView]] = {}
        for one in snapshot.instances:
            self.running.setdefault(one.model, []).append(one)
        self.queues: Mapping[ModelName, QueueView] = {queue.model: queue for queue in snapshot.queues}
        self.views: Mapping[ModelName, ModelView] = {view.name: view for view in snapshot.models}

    def rows(self, names: Iterable[ModelName], downloading: Mapping[ModelName, Job] = {}) -> Listed:
        """These models, and those that are being downloaded and are no models yet."""
        rows, known = [self.row(name) for name in names], self._cards.by_name
        return Listed(
            [*rows, *(download_row(name, job) for name, job in downloading.items() if name not in known)]
        )

    def row(self, name: ModelName) -> Row:
        """Hidden ones too: who knows the name may use it."""
        view, pinned = self.views.get(name), self._cards.definitions.by_name[name].model.pinned
        is_plain = view is None or (view.error is None and view.pinned == pinned)
        if not is_plain or name in self.running or name in self.queues:
            return self._made(name)
        if name not in self._cards.at_rest:
            self._cards.at_rest[name] = self._made(name)
        return self._cards.at_rest[name]

    def _made(self, name: ModelName) -> Row:
        ones, card = self.running.get(name, ()), self._cards.by_name[name]
        if ones and card.meta is not None:
            definition = self._cards.definitions.by_name[name]
            n_ctx = _per_request(definition, ones[0].placement.ctx_size or None)
            card = msgspec.structs.replace(card, meta=msgspec.structs.replace(card.meta, n_ctx=n_ctx))
        return _row(card, self._status(name, ones), (_instance(one, self._now) for one in ones))

    def _status(self, name: ModelName, ones: Sequence[InstanceView]) -> Status:
        values = {_VALUES[one.state] for one in ones}
        value = "loaded" if "loaded" in values else "loading" if values else "unloaded"
        view, queue = self.views.get(name), self.queues.get(name)
        model, line = self._cards.definitions.by_name[name].model, self._line(name, ones)
        error = view.error if view is not None else None
        if model.error is not None:
            error = model.error.message
        if ones:  # the failure is over
            error = None
        return Status(
            value=value,
            args=line.args,
            preset=line.preset,
            waiting=queue.waiting if queue is not None else 0,
            pinned=view.pinned if view is not None else model.pinned,
            progress=self._progress(name, ones) if value == "loading" else None,
            reason=queue.reason if queue is not None else None,
            expected_seconds=queue.expected_seconds if queue is not None else None,
            failed=error is not None,
            error=error,
            exit_code=view.exit_code if view is not None and error is not None else None,
        )

    def _line(self, name: ModelName, ones: Sequence[InstanceView]) -> CommandLine:
        """What it runs with, or would."""
        if not ones:
            return self._cards.lines[name]
        one, kept = ones[0], self._cards.running
        if (one.id, one.definition) not in kept:
            if len(kept) >= _ARGS_KEPT:
                kept.clear()
            kept[one.id, one.definition] = _line(self._cards.definitions, name, one.placement, one.definition)
        return kept[one.id, one.definition]

    def _progress(self, name: ModelName, ones: Sequence[InstanceView]) -> Progress:
        """How far a load is, by the time that loads of this model have taken."""
        definition, view = self._cards.definitions.by_name[name], self.views.get(name)
        stages = ["text_model"]
        stages += ["spec_model"] if definition.entry.preset.draft_model is not None else []
        stages += ["mmproj_model"] if definition.entry.mmproj is not None else []
        expected = view.load_seconds if view is not None else definition.model.load_seconds
        begun = [one.started_at for one in ones if one.started_at is not None]
        passed = self._now - min(begun) if begun else 0.0
        value = min(0.99, passed / expected) if expected > 0 else 0.0
        return Progress(tuple(stages), stages[0], round(max(0.0, value), 3))


def _instance(one: InstanceView, now: float) -> Instance:
    return Instance(
        id=one.id,
        state=one.state.value,
        devices={
            device: Bytes(one.reserved.get(device, 0), one.used.get(device))
            for device in {**one.reserved, **one.used}
        },
        leases=len(one.leases),
        pinned=one.pinned,
        since_seconds=round(now - one.since, 3),
        idle_seconds=None if one.idle_since is None else round(now - one.idle_since, 3),
        expires_in_seconds=None if one.expires_at is None else round(one.expires_at - now, 3),
        cause=one.cause.value if one.cause is not None else None,
        for_model=one.for_model,
        settings=settings_of(one.definition),
    )


def settings_of(definition: Definition) -> dict[str, Any] | None:
    """What one load was given instead of the preset's; None where it was nothing."""
    if not definition.overrides:
        return None
    found: dict[str, Any] = msgspec.json.decode(definition.overrides)
    return found
