"""Which device holds each layer, by the rule of llama.cpp's `load_tensors` (src/llama-model.cpp)."""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass
from itertools import accumulate

from router.memory.estimate.values import DeviceBudget


@dataclass(frozen=True, slots=True)
class Layout:
    """One assignment to estimate. `gpus` in the order in which the
    child sees them; none: everything on the host."""

    host: DeviceBudget
    gpus: tuple[DeviceBudget, ...]
    n_gpu_layers: int
    """Blocks from the end, the output counting as one: n_layers + 1 is the whole model."""
    tensor_split: tuple[float, ...]
    """One weight per GPU; empty: equal parts."""
    ctx_size: int

    @property
    def device_ids(self) -> tuple[str, ...]:
        return tuple(gpu.id for gpu in self.gpus) or (self.host.id,)


def layer_devices(layout: Layout, n_layers: int) -> list[str]:
    """The device of every layer, and last that of the output: n_layers + 1 ids.

    The first `n_layers + 1 - n_gpu_layers` stay on the host. The k-th of the others goes to the first GPU
    whose cumulative share of the split exceeds k divided by their number.
    """
    n_offloaded = min(layout.n_gpu_layers, n_layers + 1) if layout.gpus else 0
    devices = [layout.host.id] * (n_layers + 1 - n_offloaded)
    bounds = _split_points(layout)
    for k in range(n_offloaded):
        gpu = bisect_right(bounds, k / n_offloaded)
        devices.append(layout.gpus[min(gpu, len(layout.gpus) - 1)].id)
    return devices


def split_shares(layout: Layout) -> list[float]:
    """The share of each GPU, for what is split by rows."""
    bounds = _split_points(layout)
    return [bound - before for before, bound in zip([0.0, *bounds], bounds, strict=False)]


def _split_points(layout: Layout) -> list[float]:
    n = len(layout.gpus)
    weights = [max(0.0, w) for w in layout.tensor_split[:n]]
    weights += [0.0] * (n - len(weights))
    if not any(weights):
        # llama.cpp would divide by the memory that is free at that moment; llama-router always says.
        weights = [1.0] * n
    total = sum(weights)
    return [bound / total for bound in accumulate(weights)]
