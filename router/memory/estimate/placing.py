"""Where a model could go, best first: one GPU, a split over several, some layers on a GPU, the host.

Whether a placement could ever hold the model is judged against each device's total less its margin, not
against what is free now: the scheduler decides about now. What is free only orders placements of the same
tier.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import combinations, islice
from typing import Literal

from router.gguf import GgufMetadata
from router.memory.estimate import fit_params
from router.memory.estimate.context import checkpoints, default_ctx_size, takes_input_whole, ubatch
from router.memory.estimate.layout import Layout, layer_devices
from router.memory.estimate.splitting import capacity, divide_layers, proportional
from router.memory.estimate.total import Prepared, estimate
from router.memory.estimate.values import (
    ALL_TIERS,
    DEFAULT_CTX_SIZE,
    Companions,
    DeviceBudget,
    Estimate,
    EstimatedPlacement,
    LoadSettings,
    Tier,
)

MIN_AUTO_CTX = 4096
"""The smallest context that "auto" settles for, as --fit does; the next placement is tried before a smaller
one."""
_MAX_SPLITS = 16
_MAX_COMBINATIONS = 256
_SPARE_SHARE = 5
"""Of a GPU, in ways for a model that is larger than it is estimated."""
_NOT_BEHIND: Mapping[Tier, frozenset[Tier]] = {
    "gpu": frozenset(("gpu",)),
    "split": frozenset(("gpu", "split")),
    "partial": frozenset(("gpu", "split", "partial")),
    "host": ALL_TIERS,
}

Preference = Literal["best-fit", "spread"]
_NO_COMPANIONS = Companions()


def placements(
    metadata: GgufMetadata,
    settings: LoadSettings,
    devices: Sequence[DeviceBudget],
    preference: Preference = "best-fit",
    *,
    allow: frozenset[Tier] = ALL_TIERS,
    companions: Companions = _NO_COMPANIONS,
    must_fit: bool = True,
    slower_than: Tier | None = None,
) -> tuple[EstimatedPlacement, ...]:
    """All placements worth trying, best first; empty when no empty machine of these devices could hold the
    model.

    Tiers are numbered from the best that is possible here: 0 one GPU, 1 a split, 2 partial offload, 3 the
    host, but 0 for the host where there is no GPU to use. `preference` orders GPUs within a tier: `best-fit`
    leaves the least free, `spread` the most. With `must_fit=False` placements that are too large are
    returned too, so that a refusal can give their numbers ("auto" contexts are then the smallest). With
    `slower_than` only the tiers behind that one are given, as if it had not been possible: with some room to
    spare, for a model that is larger than it is estimated. A GPU that shares the host's memory is used where
    there is no other. Raises ValueError when there is no host among the devices, or for settings that
    llama-server would refuse.
    """
    host = next((device for device in devices if device.is_host), None)
    if host is None:
        raise ValueError("the host must be among the devices: every llama-server takes memory there")
    allowed = settings.devices
    gpus = tuple(gpu for gpu in devices if not gpu.is_host and (allowed is None or gpu.id in allowed))
    gpus = tuple(gpu for gpu in gpus if not gpu.pool) or gpus
    if settings.n_gpu_layers == 0:
        gpus = ()
    if slower_than is not None:
        gpus = tuple(
            replace(gpu, margin_bytes=gpu.margin_bytes + capacity(gpu) // _SPARE_SHARE) for gpu in gpus
        )
        allow -= _NOT_BEHIND[slower_than]
    finder = _Finder(Prepared.of(metadata, settings, companions), host, gpus, preference, must_fit)
    return tuple(finder.all(allow))


class _Finder:
    def __init__(
        self,
        prepared: Prepared,
        host: DeviceBudget,
        gpus: tuple[DeviceBudget, ...],
        preference: Preference,
        must_fit: bool,
    ) -> None:
        self._prepared = prepared
        self._settings = prepared.settings
        self._host = host
        self._gpus = gpus
        self._preference = preference
        self._must_fit = must_fit
        asked = self._settings.n_gpu_layers
        self._most = prepared.n_layers + 1 if asked == "all" else min(asked, prepared.n_layers + 1)

    def all(self, allow: frozenset[Tier]) -> Iterator[EstimatedPlacement]:
        singles: list[EstimatedPlacement] = []
        if "gpu" in allow and not (self._can_split and self._settings.tensor_split is not None):
            singles = self._ordered([p for gpu in self._gpus for p in self._try(0, (gpu,), self._most, ())])
            yield from singles
        # A split costs a context and a compute buffer on every GPU: only where no single one will do.
        splits: list[EstimatedPlacement] = []
        if "split" in allow and self._can_split and not any(self._could_hold(p) for p in singles):
            splits = list(self._on_several())
            yield from splits
        fits_whole = any(self._could_hold(p) for p in [*singles, *splits])
        if "partial" in allow and self._settings.n_gpu_layers == "all" and not fits_whole:
            yield from self._partly()
        if "host" in allow:
            yield from self._try(3 if self._gpus else 0, (), 0, ())

    @property
    def _can_split(self) -> bool:
        is_apart = not any(gpu.pool for gpu in self._gpus)
        return len(self._gpus) > 1 and is_apart and self._settings.split_mode != "none"

    # tiers

    def _on_several(self) -> Iterator[EstimatedPlacement]:
        """The fewest GPUs that can hold it together."""
        fixed = self._settings.tensor_split
        if fixed is not None:
            yield from self._try(1, self._gpus, self._most, fixed)
            return
        for n in range(2, min(len(self._gpus), self._most) + 1):
            found: list[EstimatedPlacement] = []
            for group in self._groups(n):
                counts = self._divide(group, self._most)
                if counts is not None:
                    found += self._try(1, group, self._most, counts)
            if found:
                yield from self._ordered(found)[:_MAX_SPLITS]
                return
        if not self._must_fit and self._most >= len(self._gpus):
            group = self._by_room()
            yield from self._try(1, group, self._most, proportional(group, self._most))

    def _partly(self) -> Iterator[EstimatedPlacement]:
        """As many of the last layers as fit: on each GPU alone, and on all of them together."""
        found: list[EstimatedPlacement] = []
        groups: list[tuple[DeviceBudget, ...]] = [(gpu,) for gpu in self._gpus]
        if self._can_split:
            groups += self._groups(len(self._gpus))
        for group in groups:
            n = self._most_that_fit(group)
            if n > 0:
                counts = self._divide(group, n) if len(group) > 1 else ()
                found += self._try(2, group, n, counts or ())
        yield from sorted(found, key=lambda p: (-p.n_gpu_layers, len(p.devices), self._room_left(p)))

    # one candidate

    def _try(
        self, tier: int, gpus: tuple[DeviceBudget, ...], n_gpu_layers: int, split: Sequence[float]
    ) -> list[EstimatedPlacement]:
        """The placement, with its context settled; none when it cannot hold the model and must."""
        layout = Layout(self._host, gpus, n_gpu_layers, tuple(split), 0)
        ctx_size, total = self._settle_context(layout)
        if self._must_fit and not self._fits(gpus, total):
            return []
        layout = replace(layout, ctx_size=ctx_size)
        shape, settings = self._prepared.shape, self._settings
        n_checkpoints = batch = 0
        if shape is not None:
            n_checkpoints, _ = checkpoints(shape, settings, ctx_size)
            batch = ubatch(shape, settings, ctx_size) if takes_input_whole(shape, settings) else 0
        return [
            EstimatedPlacement(
                tier=tier,
                devices=layout.device_ids,
                n_gpu_layers=n_gpu_layers,
                tensor_split=_layers_per_gpu(layout, self._prepared.n_layers),
                ctx_size=ctx_size,
                footprint=total.footprint,
                estimate=total,
                counted=fit_params.counts(self._prepared, layout, total),
                ctx_checkpoints=n_checkpoints,
                batch=batch,
            )
        ]

    def _settle_context(self, layout: Layout) -> tuple[int, Estimate]:
        """The context size that was asked for, or the largest that fits, with its estimate."""
        shape, smallest = self._prepared.shape, self._smallest_ctx
        best = estimate(self._prepared, replace(layout, ctx_size=smallest))
        if self._settings.ctx_size != "auto" or shape is None or not self._fits(layout.gpus, best):
            return smallest, best
        # Sizes are counted in steps of 256 cells; a training context that is no multiple is the last step
        # itself.
        low, high = 0, -(-(shape.n_ctx_train - smallest) // 256)
        while low < high:
            middle = (low + high + 1) // 2
            size = min(smallest + 256 * middle, shape.n_ctx_train)
            tried = estimate(self._prepared, replace(layout, ctx_size=size))
            if self._fits(layout.gpus, tried):
                low, best = middle, tried
            else:
                high = middle - 1
        return min(smallest + 256 * low, shape.n_ctx_train), best

    def _fits(self, gpus: Sequence[DeviceBudget], total: Estimate) -> bool:
        """On each device, and in the host's memory with all that draws on it."""
        is_each = all(capacity(gpu) >= total.on_device(gpu.id) for gpu in gpus)
        return is_each and capacity(self._host) >= total.footprint.get(self._host.id, 0)

    def _could_hold(self, placement: EstimatedPlacement) -> bool:
        gpus = [gpu for gpu in self._gpus if gpu.id in placement.devices]
        return self._fits(gpus, placement.estimate)

    # splits and parts

    def _divide(self, group: tuple[DeviceBudget, ...], n: int) -> tuple[int, ...] | None:
        return divide_layers(self._prepared, Layout(self._host, group, n, (), self._smallest_ctx))

    def _groups(self, n: int) -> Iterator[tuple[DeviceBudget, ...]]:
        """Every choice of `n` GPUs of one kind, the largest first: one process speaks to one backend."""
        groups = islice(combinations(self._by_room(), n), _MAX_COMBINATIONS)
        return (group for group in groups if len({gpu.kind for gpu in group}) == 1)

    def _most_that_fit(self, group: tuple[DeviceBudget, ...]) -> int:
        """The largest -ngl below the whole model that fits `group`; 0 if none does."""
        low, high = 0, self._most - 1
        while low < high:
            middle = (low + high + 1) // 2
            if self._can_take(group, middle):
                low = middle
            else:
                high = middle - 1
        return low

    def _can_take(self, group: tuple[DeviceBudget, ...], n: int) -> bool:
        counts = self._divide(group, n) if len(group) > 1 else ()
        if counts is None:
            return False
        layout = Layout(self._host, group, n, counts, self._smallest_ctx)
        return self._fits(group, estimate(self._prepared, layout))

    @property
    def _smallest_ctx(self) -> int:
        """The context size that was asked for; of "auto" the smallest that is worth a load."""
        shape, asked = self._prepared.shape, self._settings.ctx_size
        if isinstance(asked, int):
            return asked
        if shape is None:
            return DEFAULT_CTX_SIZE
        return min(MIN_AUTO_CTX, shape.n_ctx_train) if asked == "auto" else default_ctx_size(shape)

    # order

    def _by_room(self) -> tuple[DeviceBudget, ...]:
        return tuple(sorted(self._gpus, key=capacity, reverse=True))

    def _ordered(self, found: Sequence[EstimatedPlacement]) -> list[EstimatedPlacement]:
        """Those that fit now, then those that could, then the rest; the
        largest "auto" context first; equals by preference."""

        def rank(placement: EstimatedPlacement) -> tuple[bool, bool, int, int]:
            left = self._room_left(placement)
            is_now = left >= 0
            by_preference = -left if not is_now or self._preference == "spread" else left
            return not self._could_hold(placement), not is_now, -placement.ctx_size, by_preference

        return sorted(found, key=rank)

    def _room_left(self, placement: EstimatedPlacement) -> int:
        """What would be left of the free memory of the tightest GPU, beyond its margin."""
        gpus = [gpu for gpu in self._gpus if gpu.id in placement.devices]
        return min(
            (gpu.free_bytes - gpu.margin_bytes - placement.footprint.get(gpu.pool_id, 0) for gpu in gpus),
            default=0,
        )


def _layers_per_gpu(layout: Layout, n_layers: int) -> tuple[int, ...]:
    """A split as whole layers, which divide as the given weights do; empty for one GPU or none."""
    if len(layout.gpus) < 2:
        return ()
    devices = layer_devices(layout, n_layers)
    return tuple(devices.count(gpu.id) for gpu in layout.gpus)
