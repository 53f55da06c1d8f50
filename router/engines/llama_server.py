"""llama-server: its command line and environment, from the settings of a model and where it is placed."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import msgspec

from router.config import ChildConfig
from router.engines import Launch
from router.engines.llama_binary import (
    INHERITED,
    BuildInfo,
    find_binary,
    list_devices,
    refused_args,
    version,
)
from router.errors import ModelUnusable
from router.memory.devices import DeviceInfo
from router.presets import ModelPreset
from router.presets.options import spelling_of_arg
from router.process import Health

#: One of these in the last log lines of a child that died: it wanted memory that was not there.
OUT_OF_MEMORY_TEXTS: Final = (
    "out of memory",
    "OutOfDeviceMemory",
    "cudaMalloc failed",
    "hipMalloc failed",
    "failed to allocate",
    "unable to allocate",
    "cannot allocate memory",
    "std::bad_alloc",
)

#: One of these as it starts: it cannot use a GPU, and goes on with the CPU. ggml-cuda says the first (built
#: for AMD, the second), with the driver's reason behind it; a build without any GPU backend says the third.
CPU_FALLBACK_TEXTS: Final = (
    "failed to initialize CUDA",
    "failed to initialize ROCm",
    "no usable GPU found",
)

#: What it has got done, slot by slot. Its main loop answers, so a stuck one does not.
PROGRESS_PATH: Final = "/slots"
#: What it tells Prometheus (--metrics); a sleeping one is not woken by it.
METRICS_PATH: Final = "/metrics"

__all__ = [
    "CPU_FALLBACK_TEXTS",
    "METRICS_PATH",
    "OUT_OF_MEMORY_TEXTS",
    "PROGRESS_PATH",
    "BuildInfo",
    "LlamaServerSettings",
    "find_binary",
    "launch",
    "list_devices",
    "refused_args",
    "refused_variable",
    "restated",
    "version",
]


@dataclass(frozen=True, slots=True)
class LlamaServerSettings:
    """How one model is run: its preset, complete, and what the estimate of where it goes has decided.

    `placement_args` (-c, -ngl, -ts, -ot ...) replace what the preset says. Without a `spec_type`
    ("draft-simple") llama-server loads an ordinary draft model, and then does not use it.
    """

    preset: ModelPreset
    placement_args: tuple[str, ...] = ()
    spec_type: str | None = None


def launch(
    settings: LlamaServerSettings,
    devices: Sequence[DeviceInfo],
    *,
    binary: Path,
    environ: Mapping[str, str],
    child: ChildConfig = ChildConfig(),  # noqa: B008 - frozen
    extra_args: Sequence[str] = (),
) -> Launch:
    """How to start it on these devices, of which the first becomes CUDA0; without a GPU, on the CPU.

    `environ` is the router's own environment, of which little is passed on. Raises ModelUnusable for
    arguments or variables that would take the child out of the router's hands.
    """
    masks = _masks(settings.preset.name, devices)
    return Launch(
        argv=(str(binary), *_argv(settings, devices, extra_args)),
        env=_environment(settings, environ, masks),
        health=Health(
            poll_seconds=child.health_poll_ms / 1000,
            probe_timeout_seconds=child.health_timeout_ms / 1000,
            stall_seconds=child.startup_stall_seconds,
            timeout_seconds=child.startup_timeout_seconds,
        ),
        log_max_bytes=child.log_max_mib << 20,
        out_of_memory_texts=OUT_OF_MEMORY_TEXTS,
    )


# --- the command line -------------------------------------------------------------------------------------


def _argv(
    settings: LlamaServerSettings, devices: Sequence[DeviceInfo], extra_args: Sequence[str]
) -> list[str]:
    preset, gpus, placed = settings.preset, _gpus(devices), _options(settings.placement_args)
    own = ["--host", "{socket}", "--alias", preset.name, "-m", str(preset.model)]
    own += ["--no-ui", "--slots", "--metrics", "--log-colors", "off", "--fit", "off"]
    is_split = "tensor-split" in placed or bool(preset.tensor_split)
    assert len(gpus) < 2 or is_split or preset.split_mode == "none", (
        "several devices need a tensor split: without one llama-server divides by what is free at that moment"
    )
    memory = [arg for group in _memory_args(preset, gpus) if not _options(group) & placed for arg in group]
    further = [*preset.args, *extra_args]
    _refuse(preset.name, further)
    return [*own, *_device_args(gpus), *memory, *settings.placement_args, *_model_args(settings), *further]


def _memory_args(preset: ModelPreset, gpus: Sequence[DeviceInfo]) -> list[list[str]]:
    """What decides memory and place, always explicit: the defaults depend on what is free at that moment."""
    layers = "all" if preset.n_gpu_layers in (None, "auto") else preset.n_gpu_layers
    values = {
        "-c": preset.ctx_size,
        "-np": preset.parallel or 1,
        "-cram": preset.cache_ram_mib or 0,
        "-ngl": layers if gpus else 0,
        "-sm": preset.split_mode if gpus else None,
        "-ts": ",".join(f"{share:g}" for share in preset.tensor_split) if gpus else None,
        "-mg": preset.main_gpu if gpus else None,
        "-ctk": preset.cache_type_k,
        "-ctv": preset.cache_type_v,
        "-fa": preset.flash_attn,
        "-b": preset.batch_size,
        "-ub": preset.ubatch_size,
        "-ncmoe": preset.n_cpu_moe,
        "-ncffn": preset.n_cpu_ffn,
        "-ot": ",".join(preset.override_tensor),
    }
    switches = {
        "-no-kvu" if preset.kv_unified is False else "-kvu": True,
        "--swa-full": preset.swa_full,
        "-cmoe": preset.cpu_moe,
        "-nkvo": preset.kv_offload is False,
    }
    groups = [[flag, str(value)] for flag, value in values.items() if value is not None and value != ""]
    return groups + [[flag] for flag, is_on in switches.items() if is_on]


def _model_args(settings: LlamaServerSettings) -> list[str]:
    """What else is opened, and what it is for."""
    preset, args = settings.preset, list[str]()
    if preset.mmproj is not None:
        args += ["--mmproj", str(preset.mmproj)]
        args += ["--no-mmproj-offload"] if preset.mmproj_offload is False else []
    if preset.draft_model is not None:
        args += ["-md", str(preset.draft_model)]
        layers = preset.draft_n_gpu_layers
        args += [] if layers in (None, "auto") else ["-ngld", str(layers)]
    if settings.spec_type is not None and "spec-type" not in _options(preset.args):
        args += ["--spec-type", settings.spec_type]
    for path in preset.lora:
        args += ["--lora", _csv(str(path))]
    args += ["--embedding"] if preset.embedding else []
    args += ["--reranking"] if preset.reranking else []
    args += [] if preset.pooling is None else ["--pooling", preset.pooling]
    return args


def _options(args: Sequence[str]) -> set[str]:
    """The options that occur in arguments, by their one name."""
    found = (spelling_of_arg(arg) for arg in args if arg.startswith("-"))
    return {spelling.option.name for spelling in found if spelling is not None}


def _csv(text: str) -> str:
    """llama-server reads paths of adapters as a line of comma separated values."""
    return '"' + text.replace('"', '""') + '"' if "," in text or '"' in text else text


#: Refused beyond what presets refuse: these are keys of a preset, and counted by the estimate,
_SETTLED: Final = re.compile(
    r"ctx-size|parallel|n-gpu-layers|tensor-split|split-mode|main-gpu|device|model|alias"
    r"|hf-repo|hf-file|hf-repo-draft|kv-unified|cache-ram"
)
#: and a child that sleeps takes its memory back without asking.
_SLEEP: Final = "sleep-idle-seconds"


def _refuse(name: str, args: Sequence[str]) -> None:
    for arg in args:
        spelling = spelling_of_arg(arg.partition("=")[0]) if arg.startswith("-") else None
        if spelling is None:
            continue
        if spelling.option.refused is not None:
            raise ModelUnusable(f"{name}: {arg} cannot be given to llama-server: {spelling.option.refused}")
        if spelling.option.name == _SLEEP:
            raise ModelUnusable(f"{name}: {arg} cannot be given to llama-server: use ttl_seconds")
        if _SETTLED.fullmatch(spelling.option.name):
            raise ModelUnusable(
                f"{name}: {arg} cannot stand in args: the router counts its memory; set it as a key"
            )


# --- what it answers --------------------------------------------------------------------------------------

#: The status of an answer that `restated` may change; such an answer is never longer than this.
RESTATED_STATUS: Final = 500
RESTATED_BYTES: Final = 4096
#: tools/server/server-context.cpp: an input that cannot be split and is longer than -ub.
_TOO_LONG: Final = re.compile(
    rb"input \((\d+) tokens\) is too large to process. increase the physical batch size "
    rb"\(current batch size: (\d+)\)"
)


def restated(status: int, body: bytes) -> tuple[int, bytes]:
    """Return the status and body for the client of an answer of llama-server.

    llama-server refuses an embedding or rerank input that is too long for one step with 500. Here it is 400,
    in the shape of llama-server's refusal of a prompt beyond the context. All other answers stay as they are.
    """
    found = _TOO_LONG.search(body) if status == RESTATED_STATUS else None
    if found is None:
        return status, body
    n_tokens, most = int(found[1]), int(found[2])
    message = (
        f"the input has {n_tokens} tokens; this model takes an input in one step, of at most {most} tokens "
        "(its context per request, or its ubatch_size or batch_size where one is set)"
    )
    error = {"code": 400, "message": message, "type": "exceed_context_size_error"}
    return 400, msgspec.json.encode({"error": {**error, "n_prompt_tokens": n_tokens, "n_ctx": most}})


# --- devices and environment ------------------------------------------------------------------------------


def _gpus(devices: Sequence[DeviceInfo]) -> list[DeviceInfo]:
    return [device for device in devices if device.kind != "host"]


def _masks(name: str, devices: Sequence[DeviceInfo]) -> dict[str, str]:
    """Which GPUs the process can see. A mask, not only -dev: on each GPU it sees, CUDA may take 550 MiB.

    Never both families: ROCm obeys CUDA_VISIBLE_DEVICES too, by its own numbers.
    """
    gpus = _gpus(devices)
    kinds = {device.kind for device in gpus}
    if len(kinds) > 1:
        raise ModelUnusable(
            f"{name}: one llama-server cannot run on {' and '.join(sorted(kinds))} devices at once"
        )
    uuids = ",".join(device.uuid for device in gpus)
    match next(iter(kinds), "host"):
        case "cuda" | "host":
            return {"CUDA_VISIBLE_DEVICES": uuids, "CUDA_DEVICE_ORDER": "PCI_BUS_ID"}
        case "rocm":
            return {"ROCR_VISIBLE_DEVICES": uuids}
        case _:
            return {}


def _device_args(gpus: Sequence[DeviceInfo]) -> list[str]:
    if not gpus:
        return ["-dev", "none"]
    return ["-dev", ",".join(gpu.uuid for gpu in gpus)] if gpus[0].kind not in ("cuda", "rocm") else []


_VISIBILITY: Final = re.compile(r"(CUDA|HIP|ROCR)_VISIBLE_DEVICES|GPU_DEVICE_ORDINAL")
_REFUSED_VARIABLES: Final = re.compile(
    r"(?P<place>(CUDA|HIP|ROCR)_VISIBLE_DEVICES|GPU_DEVICE_ORDINAL|CUDA_DEVICE_ORDER)"
    r"|(?P<setting>LLAMA_ARG_.+|LLAMA_API_KEY|MTMD_BACKEND_DEVICE)"
    r"|(?P<role>LLAMA_SERVER_ROUTER_PORT|LLAMA_SERVER_CHILD_MODE|AIP_MODE)"
    r"|(?P<memory>GGML_CUDA_ENABLE_UNIFIED_MEMORY)"
)
_REFUSALS: Final = {
    "place": "the router chooses the devices; set the key `devices`",
    "setting": "it is a setting of llama-server; set it as a key or in args",
    "role": "it changes what llama-server listens to",
    "memory": "memory that moves between GPU and host cannot be counted",
}


def refused_variable(name: str) -> str | None:
    """Why a model may not be given this variable; None where it may."""
    refused = _REFUSED_VARIABLES.fullmatch(name)
    return None if refused is None else _REFUSALS[refused.lastgroup or ""]


def _environment(
    settings: LlamaServerSettings, environ: Mapping[str, str], masks: Mapping[str, str]
) -> dict[str, str]:
    for variable in settings.preset.env:
        if (reason := refused_variable(variable)) is not None:
            raise ModelUnusable(
                f"{settings.preset.name}: {variable} cannot be set for llama-server: {reason}"
            )
    inherited = {
        name: value
        for name, value in environ.items()
        if INHERITED.fullmatch(name) and not _REFUSED_VARIABLES.fullmatch(name)
    }
    if not masks:  # a device known by its name in llama-server's own list: as the router itself sees it
        inherited |= {name: value for name, value in environ.items() if _VISIBILITY.fullmatch(name)}
    fixed = {
        "GGML_NO_BACKTRACE": "1",  # an abort would fork a debugger, which holds the memory for seconds
        "XDG_CONFIG_HOME": os.devnull,  # no config.ini of the user: it may ask for keys or TLS
    }
    return {**inherited, **fixed, **settings.preset.env, **masks}
