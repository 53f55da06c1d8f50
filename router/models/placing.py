"""Where a model can go: its preset, its header and the devices become placements, best first."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Literal, TypeAlias

from router.config import Config
from router.errors import ModelUnusable
from router.gguf import GgufMetadata
from router.memory.devices import DeviceInfo
from router.memory.estimate.context import takes_input_whole
from router.memory.estimate.placing import Preference, placements
from router.memory.estimate.shape import read_shape
from router.memory.estimate.values import (
    Companions,
    DeviceBudget,
    EstimatedPlacement,
    LoadSettings,
    Tier,
)
from router.presets import ModelPreset
from router.presets.options import KNOWN_ONLY
from router.scheduler.types import Device, DeviceId, Placement

#: A memory pool as the estimate sees it, and what people call it.
Budget: TypeAlias = tuple[DeviceBudget, frozenset[str]]

MIB = 1 << 20
#: Tiers from here on leave layers on the host: they are offered only when no better one is possible at all.
FIRST_SLOW_TIER = 2
#: An estimate that would fit if it were a fifth lower is tried once, where nearly all of the GPU is free.
ATTEMPT_SHARE = 0.8
NEARLY_ALL = 0.95
#: Inputs of encoders are cut into passages of this size, in tokens, since BERT.
LEAST_WHOLE_CONTEXT = 512


def placed(
    preset: ModelPreset,
    metadata: GgufMetadata,
    companions: Companions,
    budgets: Sequence[Budget],
    config: Config,
) -> tuple[EstimatedPlacement, ...]:
    """Best first; those that leave layers on the host only where nothing better is possible, or as a resort
    for a model that takes more than is estimated."""
    context = _context(preset, metadata, config)
    settings, preference = _load_settings(preset, context, budgets), config.scheduler.placement
    pools = tuple(budget for budget, _ in budgets)
    found = placements(metadata, settings, pools, preference, companions=companions)
    if not found and preset.ctx_size == config.child.ctx_size:
        found = _with_shorter_inputs(metadata, settings, pools, preference, companions)
    fast = tuple(place for place in found if place.tier < FIRST_SLOW_TIER)
    if fast and fast[0].n_gpu_layers:
        best: Tier = "gpu" if len(fast[0].devices) == 1 else "split"
        slow = placements(metadata, settings, pools, preference, companions=companions, slower_than=best)
        return (*fast, *(replace(place, is_fallback=True) for place in slow))
    if found:
        return found
    # Too large for this machine: the scheduler refuses it, with the numbers of what it would take.
    large = placements(metadata, settings, pools, preference, companions=companions, must_fit=False)
    return tuple(replace(place, attempt=_attempt(place, pools)) for place in large)


def _with_shorter_inputs(
    metadata: GgufMetadata,
    settings: LoadSettings,
    pools: Sequence[DeviceBudget],
    preference: Preference,
    companions: Companions,
) -> tuple[EstimatedPlacement, ...]:
    """With the largest part of a context that nobody set for this model: the step of a model that takes an
    input whole grows with it, by gigabytes where the vocabulary is large. Nothing for other models."""
    shape, context = read_shape(metadata), settings.ctx_size
    if shape is None or not isinstance(context, int) or not takes_input_whole(shape, settings):
        return ()
    while (context := context // 2) >= LEAST_WHOLE_CONTEXT:
        shorter = replace(settings, ctx_size=context)
        if found := placements(metadata, shorter, pools, preference, companions=companions):
            return found
    return ()


def _attempt(place: EstimatedPlacement, pools: Sequence[DeviceBudget]) -> Mapping[DeviceId, int] | None:
    """What to reserve, once, of an estimate that is too large for a GPU but may be too high: nearly all that
    GPU has. None where it is too large by far, or for the host: nobody is to be driven into swap by a guess.
    """
    found = dict(place.footprint)
    for pool in pools:
        need, most = place.footprint.get(pool.id, 0), pool.total_bytes - pool.margin_bytes
        if need <= most or pool.pool:
            continue
        if pool.is_host or need * ATTEMPT_SHARE > most:
            return None
        found[pool.id] = int(max(need * ATTEMPT_SHARE, most * NEARLY_ALL))
    return found


def placement(place: EstimatedPlacement) -> Placement:
    args = ["-c", str(place.ctx_size), "-ngl", str(place.n_gpu_layers)]
    if place.tensor_split:
        args += ["-ts", ",".join(str(layers) for layers in place.tensor_split)]
    if place.batch:
        args += ["-b", str(place.batch), "-ub", str(place.batch)]
    if place.ctx_checkpoints:
        args += ["-ctxcp", str(place.ctx_checkpoints)]
    host = place.devices[0].partition("/")[0]
    return Placement(
        host, dict(place.reserved), place.devices, tuple(args), place.tier, place.is_fallback, place.ctx_size
    )


# --- memory pools, and what people call them ---


def budgets_of(
    devices: Sequence[Device], infos: Mapping[DeviceId, DeviceInfo], config: Config
) -> tuple[Budget, ...]:
    found = [
        (_budget(device, infos.get(device.id), config), _names(device.id, infos.get(device.id)))
        for device in devices
    ]
    pools = {device.id: device for device in devices}
    for name, info in infos.items():
        pool = pools.get(f"{name.partition('/')[0]}/{info.pool}")
        # Nobody plans for a GPU without memory of its own but its pool: one that is not well is left out.
        if name not in pools and pool is not None and info.free_bytes is not None:
            shared = replace(_budget(pool, info, config), id=name, total_bytes=info.total_bytes, pool=pool.id)
            found.append((shared, _names(name, info)))
    return tuple(found)


def _budget(device: Device, info: DeviceInfo | None, config: Config) -> DeviceBudget:
    kind = info.kind if info is not None else "other"
    free = info.free_bytes if info is not None and info.free_bytes is not None else 0
    overhead = None if kind == "host" else config.memory.context_overhead_mib * MIB
    return DeviceBudget(device.id, kind, device.total, free, device.margin, overhead)


def _names(device: DeviceId, info: DeviceInfo | None) -> frozenset[str]:
    """All that people call a device, in lower case."""
    plain = device.partition("/")[2]
    names = {device, plain, plain.rpartition(":")[2]}
    if info is not None and info.label:
        label = info.label.split()[0]  # "cuda:0 NVIDIA RTX 3090"
        names |= {label, label.replace(":", ""), info.label, info.uuid}
    return frozenset(name.lower() for name in names if name)


def _chosen(preset: ModelPreset, budgets: Sequence[Budget]) -> tuple[DeviceId, ...] | None:
    """The devices a preset names: by id, UUID, "cuda:0", or "CUDA0" as llama.cpp calls it. Raises
    ModelUnusable for one that is not there.
    """
    if not preset.devices:
        return None
    chosen = []
    for name in preset.devices:
        match = next((budget.id for budget, names in budgets if name.lower() in names), None)
        if match is None:
            there = ", ".join(budget.id.partition("/")[2] for budget, _ in budgets)
            raise ModelUnusable(f"{preset.name}: device {name!r} is not on this machine; there are: {there}")
        chosen.append(match)
    return tuple(chosen)


# --- a preset as the estimate takes it ---


def _load_settings(
    preset: ModelPreset, context: int | Literal["auto"] | None, budgets: Sequence[Budget]
) -> LoadSettings:
    plain = LoadSettings()  # llama-server's own defaults, for what the preset leaves to it
    return LoadSettings(
        ctx_size=context,
        n_gpu_layers=layers(preset.n_gpu_layers),
        parallel=preset.parallel or 1,  # as it is launched
        kv_unified=preset.kv_unified is not False,
        tensor_split=preset.tensor_split or None,
        split_mode=preset.split_mode or plain.split_mode,
        override_tensor=preset.override_tensor,
        cpu_moe=preset.cpu_moe,
        n_cpu_moe=preset.n_cpu_moe or 0,
        n_cpu_ffn=preset.n_cpu_ffn or 0,
        cache_type_k=preset.cache_type_k or plain.cache_type_k,
        cache_type_v=preset.cache_type_v or plain.cache_type_v,
        flash_attn=preset.flash_attn or plain.flash_attn,
        batch=preset.batch_size,
        ubatch=preset.ubatch_size,
        swa_full=bool(preset.swa_full),
        kv_offload=preset.kv_offload is not False,
        embedding=preset.embedding or preset.reranking,
        pooling=preset.pooling or ("rank" if preset.reranking else None),
        cache_ram_bytes=max(0, preset.cache_ram_mib or 0) * MIB,
        ctx_checkpoints=_checkpoints(preset),
        devices=_chosen(preset, budgets),
    )


def _context(preset: ModelPreset, metadata: GgufMetadata, config: Config) -> int | Literal["auto"] | None:
    """The context to load with: what [child] says for all models never exceeds what this one was trained
    with; what was said of the model itself holds (it may be stretched by RoPE scaling); 0 is the
    training context."""
    asked, trained = preset.ctx_size, metadata.n_ctx_train
    if trained is None or asked is None or asked == "auto":
        return asked
    if asked == 0:
        return trained
    return min(asked, trained) if asked == config.child.ctx_size else asked


def _checkpoints(preset: ModelPreset) -> int | None:
    """What its arguments say; there is no key for it."""
    asked = None
    for argument in KNOWN_ONLY.parse(preset.args):
        if argument.name == "swa-checkpoints" and argument.values and argument.values[0].isdecimal():
            asked = int(argument.values[0])
    return asked


def layers(layers: int | Literal["all", "auto"] | None) -> int | Literal["all"]:
    return layers if isinstance(layers, int) else "all"
