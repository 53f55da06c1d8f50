"""The estimate: every term of one model in one layout."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from router.gguf import GgufMetadata
from router.memory.estimate.compute import compute_terms
from router.memory.estimate.context import context_terms
from router.memory.estimate.extras import lora_terms, overhead_terms, projector_terms
from router.memory.estimate.layout import Layout, layer_devices, split_shares
from router.memory.estimate.shape import ModelShape, read_shape
from router.memory.estimate.values import GIB, Companions, Estimate, LoadSettings, Term
from router.memory.estimate.weights import WeightPlan, plan_weights, weight_terms

_NO_COMPANIONS = Companions()


@dataclass(frozen=True, slots=True)
class Prepared:
    """A model and its settings, worked out as far as no layout is needed: many layouts are estimated from it.

    Raises ValueError when prepared from an override or a cache type that llama-server would refuse.
    """

    metadata: GgufMetadata
    settings: LoadSettings
    companions: Companions
    shape: ModelShape | None
    plan: WeightPlan | None
    draft: Prepared | None

    @classmethod
    def of(
        cls, metadata: GgufMetadata, settings: LoadSettings, companions: Companions = _NO_COMPANIONS
    ) -> Prepared:
        shape = read_shape(metadata)
        plan = plan_weights(metadata, shape, settings) if shape else None
        draft = None
        if companions.draft is not None:
            draft = cls.of(companions.draft, _draft_settings(settings, companions))
        return cls(metadata, settings, companions, shape, plan, draft)

    @property
    def n_layers(self) -> int:
        """Blocks of the file, the output not counted; 1 when the header is not understood."""
        return self.shape.n_layers_all if self.shape else 1


def estimate(prepared: Prepared, layout: Layout) -> Estimate:
    """What the model takes in this layout, per device and term by
    term. Pure arithmetic, about a millisecond."""
    pools = {gpu.id: gpu.pool for gpu in layout.gpus if gpu.pool}
    return Estimate.of(_terms(prepared, layout), is_guess=prepared.shape is None, pools=pools)


def _terms(prepared: Prepared, layout: Layout) -> Iterator[Term]:
    settings, companions = prepared.settings, prepared.companions
    yield from _model_terms(prepared, layout)
    yield from overhead_terms(settings, layout)
    if companions.mmproj is not None:
        yield from projector_terms(companions.mmproj, settings, companions, layout)
    yield from lora_terms(companions.lora_bytes, prepared.shape, layout)
    if prepared.draft is not None:
        n_gpu_layers = prepared.draft.settings.n_gpu_layers
        n = prepared.draft.n_layers + 1 if n_gpu_layers == "all" else n_gpu_layers
        for term in _model_terms(prepared.draft, replace(layout, n_gpu_layers=n)):
            yield Term(
                term.device, "draft", term.bytes, f"{term.kind} of the draft model: {term.explanation}"
            )


def _model_terms(prepared: Prepared, layout: Layout) -> Iterator[Term]:
    if prepared.shape is None or prepared.plan is None:
        yield from _guess_terms(prepared.metadata, layout)
        return
    yield from weight_terms(prepared.plan, prepared.settings, layout)
    yield from context_terms(prepared.shape, prepared.settings, layout)
    yield from compute_terms(prepared.shape, prepared.settings, layout, prepared.plan)


def _guess_terms(metadata: GgufMetadata, layout: Layout) -> Iterator[Term]:
    """Of a header that is not understood only the size is known: the
    file, 5 % and 1 GiB, shared as layers are."""
    total = metadata.file_size_bytes * 21 // 20 + GIB
    is_on_host = layout.host.id in layer_devices(layout, 1)
    shares = [] if is_on_host else split_shares(layout)
    why = f"architecture {metadata.architecture!r} is not understood: the file's size, 5 % and 1 GiB"
    if not shares:
        yield Term(layout.host.id, "unknown", total, why)
    for gpu, share in zip(layout.gpus, shares, strict=False):
        yield Term(gpu.id, "unknown", int(total * share), why)


def _draft_settings(settings: LoadSettings, companions: Companions) -> LoadSettings:
    """A draft model serves the slots of the target at its context,
    with placement and cache types of its own."""
    own = companions.draft_settings
    return replace(
        settings,
        n_gpu_layers=own.n_gpu_layers,
        override_tensor=own.override_tensor,
        cpu_moe=own.cpu_moe,
        n_cpu_moe=own.n_cpu_moe,
        cache_type_k=own.cache_type_k,
        cache_type_v=own.cache_type_v,
        ctx_checkpoints=0,
        embedding=False,
    )
