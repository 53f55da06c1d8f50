"""Dividing layers over several GPUs so that all of them fill to about the same part."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from router.memory.estimate.context import cell_bytes, cells, state_bytes
from router.memory.estimate.layout import Layout
from router.memory.estimate.total import Prepared, estimate
from router.memory.estimate.values import DeviceBudget

_ROUNDS = 3
_BISECTIONS = 12


def capacity(device: DeviceBudget) -> int:
    """What a model could have of a device that is otherwise empty."""
    return max(0, device.total_bytes - device.margin_bytes)


def divide_layers(prepared: Prepared, layout: Layout) -> tuple[int, ...] | None:
    """How many of the last `layout.n_gpu_layers` each GPU of the layout gets; None if they do not all fit.

    Buffers that do not grow with the layers (contexts, compute, a projector) are taken from an estimate of
    the layout, the division follows, and a second estimate has the last word.
    """
    n, gpus = layout.n_gpu_layers, layout.gpus
    if n < len(gpus):
        return None
    costs = _layer_costs(prepared, layout)[-n:]
    counts = proportional(gpus, n)
    for _ in range(_ROUNDS):
        footprint = estimate(prepared, replace(layout, tensor_split=counts)).footprint
        ends = [sum(counts[: i + 1]) for i in range(len(gpus))]
        fixed = [
            footprint.get(gpu.id, 0) - sum(costs[end - count : end])
            for gpu, end, count in zip(gpus, ends, counts, strict=True)
        ]
        divided = divide(costs, fixed, [capacity(gpu) for gpu in gpus])
        if divided is None:
            return None
        counts = divided
        footprint = estimate(prepared, replace(layout, tensor_split=counts)).footprint
        if all(footprint.get(gpu.id, 0) <= capacity(gpu) for gpu in gpus):
            return counts
    return None


def divide(costs: Sequence[int], fixed: Sequence[int], capacities: Sequence[int]) -> tuple[int, ...] | None:
    """Cut a row of layers into one run for each device, at least one layer long, so that the fullest device
    is as empty as can be: `fixed` and the costs of its run, divided by its capacity. None if they do not
    fit."""
    best = _fill(costs, fixed, capacities, 1.0)
    if best is None:
        return None
    low, high = 0.0, 1.0
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        counts = _fill(costs, fixed, capacities, middle)
        if counts is None:
            low = middle
        else:
            best, high = counts, middle
    return best


def proportional(gpus: Sequence[DeviceBudget], n: int) -> tuple[int, ...]:
    """`n` layers divided by capacity, at least one each; `n` must be at least the number of GPUs."""
    total = sum(capacity(gpu) for gpu in gpus) or 1
    counts = [max(1, n * capacity(gpu) // total) for gpu in gpus]
    while sum(counts) != n:
        step = 1 if sum(counts) < n else -1
        counts[counts.index(max(counts))] += step
    return tuple(counts)


def _fill(
    costs: Sequence[int], fixed: Sequence[int], capacities: Sequence[int], fraction: float
) -> tuple[int, ...] | None:
    counts: list[int] = []
    start = 0
    for i, (base, limit) in enumerate(zip(fixed, capacities, strict=True)):
        room = fraction * limit - base
        most = len(costs) - start - (len(capacities) - i - 1)  # one is left for each of the others
        count = 0
        while count < most and costs[start + count] <= room:
            room -= costs[start + count]
            count += 1
        if count == 0:
            return None
        counts.append(count)
        start += count
    return tuple(counts) if start == len(costs) else None


def _layer_costs(prepared: Prepared, layout: Layout) -> list[int]:
    """Bytes that come with each layer, the output last: weights, cache and state."""
    shape, plan, settings = prepared.shape, prepared.plan, prepared.settings
    if shape is None or plan is None:
        return [prepared.metadata.file_size_bytes] * (prepared.n_layers + 1)
    size = cells(shape, settings, layout.ctx_size)
    costs: list[int] = []
    for slot in range(plan.n_layers + 1):
        part = plan.sums.get((slot, None))
        cost = part.on_gpu if part else 0
        if slot < len(shape.layers) and settings.kv_offload:
            layer = shape.layers[slot]
            n_cells = (size.swa if layer.is_swa else size.full) * size.n_streams
            cost += n_cells * cell_bytes(shape, layer, settings) if layer.has_kv and shape.has_cache else 0
            cost += settings.n_slots * state_bytes(shape) if layer.is_recurrent else 0
        elif slot == plan.n_layers and plan.tied is not None:
            cost += plan.tied.bytes
        costs.append(cost)
    return costs
