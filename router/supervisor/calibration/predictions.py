"""What each placement of each model is expected to take, and the key under which that is corrected."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from router.engines import Launch
from router.engines.llama_binary import find_fit_params
from router.errors import RouterError
from router.memory.devices import DeviceInfo
from router.memory.estimate.fit_params import Question, fit_params_argv
from router.memory.estimate.learning import Prediction, growing_bytes, key, shape
from router.memory.estimate.values import EstimatedPlacement
from router.models.catalog.candidate import Stamp, stamp_of
from router.models.definitions import DefinedModel, Definitions
from router.presets.options import options_of
from router.scheduler.ledger import UNBOUNDED
from router.scheduler.types import Device, DeviceId, Footprint, ModelName, Placement

#: Options that take no memory on any device, or say the same as something else in the key.
_SAMPLING: Final = re.compile(
    r"samplers|seed|sampling-seq|ignore-eos|temp(erature)?|(top|min|typical)-.+|xtc-.+|dry-.+|adaptive-.+"
    r"|dynatemp-.+|mirostat.*|(repeat|presence|frequency)-.+|logit-bias|grammar.*|json-schema.*|n-predict|keep"
)
_SERVING: Final = re.compile(
    r"host|port|alias|tags|log-.+|webui.*|slots|props|metrics|timeout|sse-ping-interval|cors-.+|api-.+|ssl-.+"
    r"|chat-template.*|jinja|reasoning.*|skip-chat-parsing|prefill-assistant|reverse-prompt|special|perf|fit.*"
)
#: The files' stamps and the devices' kinds stand for these: identical cards are to share what is learned.
_PLACES: Final = re.compile(r"model|device|model-draft|mmproj|lora")
#: Variables that decide what is allocated; those that say which device are left out.
_VARIABLES: Final = re.compile(
    r"(?!.*VISIBLE_DEVICES|GPU_DEVICE_ORDINAL|CUDA_DEVICE_ORDER)"
    r"(GGML|LLAMA|CUDA|NCCL|HIP|HSA|ROC\w*|AMD|GPU|VK|MALLOC|SYCL|ZE|METAL|MTL|MUSA)_.+"
)


def predictions(
    definitions: Definitions, devices: Sequence[Device]
) -> Mapping[ModelName, tuple[Prediction, ...]]:
    """Per model one prediction for each of its placements, in their order; none for one that cannot be run.

    Looks at files: call it in a thread.
    """
    look = _look(definitions, devices)
    return {name: _of_model(look, definition) for name, definition in definitions.by_name.items()}


def predictions_of(
    definitions: Definitions, definition: DefinedModel, devices: Sequence[Device]
) -> tuple[Prediction, ...]:
    """The same for one model that is loaded with other settings than its own."""
    return _of_model(_look(definitions, devices), definition)


def _look(definitions: Definitions, devices: Sequence[Device]) -> _Look:
    return _Look(
        definitions,
        stamp_of(definitions.binary),
        find_fit_params(definitions.binary) if definitions.config.memory.use_llama_fit_params else None,
        {device.id: device for device in devices},
    )


@dataclass(frozen=True, slots=True)
class _Look:
    """What is the same for all models."""

    definitions: Definitions
    binary: Stamp | None
    fit_params: Path | None
    devices: Mapping[DeviceId, Device]


def _of_model(look: _Look, definition: DefinedModel) -> tuple[Prediction, ...]:
    model, launch = definition.model, look.definitions.launch
    pairs = zip(model.placements, definition.estimates, strict=True)
    try:
        return tuple(
            _prediction(look, definition, place, estimated, launch(model.name, place, model.definition))
            for place, estimated in pairs
        )
    except RouterError:
        return ()  # every start of it will say so


def _prediction(
    look: _Look, definition: DefinedModel, place: Placement, estimated: EstimatedPlacement, launch: Launch
) -> Prediction:
    infos = look.definitions.infos
    order = positions(place.devices, place.footprint)
    files = definition.entry.stamps
    found = Prediction(
        key=key(files, look.binary, telling_args(launch.argv), telling_env(launch.env)),
        shape=shape([_kind(infos.get(d), d) for d in dict.fromkeys([*place.devices, *order])]),
        devices=order,
        predicted=tuple(place.footprint.get(device, 0) for device in order),
        growing=tuple(growing_bytes(estimated.estimate, device) for device in order),
        most=tuple(_most(look.devices.get(device)) for device in order),
        files=files,
        no_question="missing" if look.definitions.config.memory.use_llama_fit_params else "off",
        is_fallback=place.is_fallback,
        has_resort=any(one.tier > place.tier for one in definition.estimates),
        is_attempt=estimated.attempt is not None,
    )
    if look.fit_params is None or definition.entry.path is None:
        return found
    return replace(found, question=_question(look.fit_params, found, place, estimated, definition, launch))


def _question(
    binary: Path,
    prediction: Prediction,
    place: Placement,
    estimated: EstimatedPlacement,
    definition: DefinedModel,
    launch: Launch,
) -> Question:
    assert definition.entry.path is not None, "it was launched"
    host = f"{place.host}/host"
    gpus = [device for device in place.devices if device != host]
    told = [prediction.id, stamp_of(binary)]
    return Question(
        hashlib.sha256(json.dumps(told).encode()).hexdigest(),
        tuple(fit_params_argv(binary, definition.entry.path, launch.argv[1:])),
        launch.env,
        estimated.counted,
        tuple(prediction.devices.index(estimated.estimate.pool_of(device)) for device in [*gpus, host]),
        touches_gpus=bool(gpus),
    )


def positions(devices: Sequence[DeviceId], footprint: Footprint) -> tuple[DeviceId, ...]:
    """The memories of a placement: of its devices in the order in which the child sees them, then what else
    it draws from."""
    return tuple(dict.fromkeys([*(one for one in devices if one in footprint), *sorted(footprint)]))


def _kind(info: DeviceInfo | None, device: DeviceId) -> tuple[str, int]:
    """What makes two devices alike. How large the main memory is decides nothing there."""
    if info is None or info.kind == "host":
        return device.partition("/")[2], 0
    return info.name or info.kind, info.total_bytes


def _most(device: Device | None) -> int:
    if device is None or device.margin <= 0:
        return UNBOUNDED
    return max(0, device.total - device.margin)


# --- what of a command line decides memory ---


def telling_args(argv: Sequence[str]) -> tuple[str, ...]:
    """The options that decide what a server allocates, by their one name, in a fixed order; the program left
    out. What is not understood is kept as it is."""
    return tuple(sorted(" ".join(words) for words in _options(Path(argv[0]), argv[1:])))


def telling_env(env: Mapping[str, str]) -> dict[str, str]:
    """The variables that decide what a server allocates."""
    return {name: value for name, value in env.items() if _VARIABLES.fullmatch(name)}


def _options(binary: Path, args: Sequence[str]) -> Iterator[list[str]]:
    for argument in options_of(binary).parse(args):
        if _is_idle(argument.name):
            continue
        if argument.spelling is None:
            yield from ([token] for token in argument.tokens)
        else:
            yield ["no-" * argument.spelling.is_negation + argument.name, *argument.values]


def _is_idle(name: str) -> bool:
    return any(pattern.fullmatch(name) for pattern in (_SAMPLING, _SERVING, _PLACES))
