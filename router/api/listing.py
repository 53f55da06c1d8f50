"""A model as `/models` shows it: llama.cpp's fields, and beside them what only this router knows.

What is fixed is made once per reload (`card`); the rest is read off a snapshot, so that a list is
answered from memory."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Final, TypeAlias

from router.core.types import ModelName, State
from router.core.views import InstanceView, ModelView, QueueView, Snapshot
from router.definitions import Definition, Definitions
from router.errors import RouterError
from router.gguf import GgufError, GgufMetadata, read_gguf

Card: TypeAlias = Mapping[str, Any]

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


def make_cards(definitions: Definitions) -> Mapping[ModelName, Card]:
    """What does not change until the next reload. Reads headers of projectors: call it in a thread."""
    return {name: _card(definition) for name, definition in definitions.by_name.items()}


def listed(cards: Mapping[ModelName, Card], definitions: Definitions, snapshot: Snapshot) -> list[Card]:
    """Every model that is not hidden, in the order of the catalog."""
    visible = [name for name, one in definitions.by_name.items() if not one.entry.hidden]
    return list(_with_status(visible, cards, definitions, snapshot))


def listed_one(
    name: ModelName, cards: Mapping[ModelName, Card], definitions: Definitions, snapshot: Snapshot
) -> Card:
    """Hidden ones too: who knows the name may use it."""
    return next(_with_status([name], cards, definitions, snapshot))


# --- what is fixed ---


def _card(definition: Definition) -> Card:
    entry = definition.entry
    card = {
        "id": entry.id,
        "aliases": entry.aliases,
        "tags": entry.tags,
        "object": "model",
        "owned_by": "llamacpp",
        # The files' own time: clients sort by it, and "now" would sort differently at every look.
        "created": max((changed_ns // 10**9 for _, _, changed_ns in entry.stamps), default=0),
        "source": _SOURCES[entry.source],
        "path": str(entry.path) if entry.path is not None else None,
        "architecture": {
            "input_modalities": ["text", *_further_inputs(definition)],
            "output_modalities": ["text"],
        },
        "can_remove": entry.removable,
    }
    if definition.metadata is not None:
        card["meta"] = _meta(definition, definition.metadata)
    return card


def _further_inputs(definition: Definition) -> list[str]:
    if definition.metadata is None or definition.entry.mmproj is None:
        return []
    try:
        return sorted(read_gguf(definition.entry.mmproj).modalities, reverse=True)
    except (GgufError, OSError):
        return []


def _meta(definition: Definition, metadata: GgufMetadata) -> dict[str, object]:
    preset = definition.entry.preset
    context = definition.estimates[0].ctx_size if definition.estimates else None
    if context is not None and preset.kv_unified is False:
        context //= preset.parallel or 1
    return {
        "architecture": metadata.architecture,
        "n_vocab": metadata.n_vocab,
        "n_ctx": context,
        "n_ctx_train": metadata.n_ctx_train,
        "n_embd": metadata.n_embd,
        "n_params": metadata.n_parameters,
        "size": metadata.tensor_bytes,
        "ftype": metadata.quantisation,
    }


# --- what changes ---


def _with_status(
    names: Iterable[ModelName],
    cards: Mapping[ModelName, Card],
    definitions: Definitions,
    snapshot: Snapshot,
) -> Iterator[Card]:
    running: dict[ModelName, list[InstanceView]] = {}
    for one in snapshot.instances:
        running.setdefault(one.model, []).append(one)
    queues = {queue.model: queue for queue in snapshot.queues}
    views = {view.name: view for view in snapshot.models}
    for name in names:
        ones = running.get(name, [])
        status = _status(definitions, name, ones, views.get(name), queues.get(name))
        yield {**cards[name], "status": status, "instances": [_instance(one, snapshot.now) for one in ones]}


def _status(
    definitions: Definitions,
    name: ModelName,
    ones: list[InstanceView],
    view: ModelView | None,
    queue: QueueView | None,
) -> dict[str, object]:
    values = {_VALUES[one.state] for one in ones}
    status: dict[str, object] = {
        "value": "loaded" if "loaded" in values else "loading" if values else "unloaded",
        "args": _args(definitions, name, ones),
        "waiting": queue.waiting if queue is not None else 0,
    }
    if queue is not None:
        status |= {"reason": queue.reason, "expected_seconds": queue.expected_seconds}
    unusable = definitions.by_name[name].model.error
    error = unusable.message if unusable is not None else view.error if view is not None else None
    if error is not None and not ones:
        status |= {"failed": True, "error": error}
    return status


def _args(definitions: Definitions, name: ModelName, ones: list[InstanceView]) -> tuple[str, ...]:
    """The command line it runs with, or would."""
    placements = [one.placement for one in ones] or definitions.by_name[name].model.placements
    try:
        return definitions.launch(name, placements[0]).argv if placements else ()
    except RouterError:
        return ()


def _instance(one: InstanceView, now: float) -> dict[str, object]:
    devices = {
        device: {"reserved": one.reserved.get(device, 0), "measured": one.used.get(device)}
        for device in {**one.reserved, **one.used}
    }
    return {
        "id": one.id,
        "state": one.state.value,
        "devices": devices,
        "leases": len(one.leases),
        "pinned": one.pinned,
        "since_seconds": round(now - one.since, 3),
        "idle_seconds": None if one.idle_since is None else round(now - one.idle_since, 3),
        "expires_in_seconds": None if one.expires_at is None else round(one.expires_at - now, 3),
        "cause": one.cause.value if one.cause is not None else None,
        "for_model": one.for_model,
    }
