"""The estimate: every term of one model in one layout, with what is loaded or reserved beside the model: a
projector, a draft model, adapters, contexts, and the host's share."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from router.gguf import GgufMetadata
from router.memory.estimate.compute import compute_terms
from router.memory.estimate.context import context_terms
from router.memory.estimate.layout import Layout, layer_devices, split_shares
from router.memory.estimate.shape import ModelShape, read_shape
from router.memory.estimate.values import GIB, MIB, Companions, Estimate, LoadSettings, Term
from router.memory.estimate.weights import WeightPlan, plan_weights, weight_terms

_NO_COMPANIONS = Companions()
_DEFAULT_IMAGE_SIZE = 896
_MAX_PATCHES = 16_384
_WARMUP_TOKENS = 46 * 46
_FLASH_HEADS = frozenset((40, 64, 72, 80, 96, 112, 128, 256))
"""Sizes of heads for which CUDA has flash attention without a mask (ggml-cuda/fattn.cu)."""


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
    yield from _overhead_terms(settings, layout)
    if companions.mmproj is not None:
        yield from _projector_terms(companions.mmproj, settings, companions, layout)
    yield from _lora_terms(companions.lora_bytes, prepared.shape, layout)
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


# --- beside the model ---


def _overhead_terms(settings: LoadSettings, layout: Layout) -> Iterator[Term]:
    """What no buffer of llama.cpp accounts for: GPU contexts, the
    process itself, the prompt cache it may fill."""
    for gpu in layout.gpus:
        yield Term(gpu.id, "context", gpu.overhead_bytes, f"the process's context on a {gpu.kind} device")
    yield Term(layout.host.id, "process", layout.host.overhead_bytes, "the process beside its buffers")
    yield Term(
        layout.host.id, "cache", settings.cache_ram_bytes, "prompt cache (--cache-ram), filled with use"
    )


def _projector_terms(
    mmproj: GgufMetadata, settings: LoadSettings, companions: Companions, layout: Layout
) -> Iterator[Term]:
    """A multimodal projector: its weights, and the buffer of its encoder, on the first GPU or on the host."""
    on_gpu = bool(layout.gpus) and companions.mmproj_offload
    device = layout.gpus[0].id if on_gpu else layout.host.id
    kinds = " and ".join(sorted(mmproj.modalities)) or "unknown input"
    yield Term(device, "mmproj", mmproj.tensor_bytes, f"projector for {kinds}, {len(mmproj.tensors)} tensors")
    size, what = _encoder_bytes(mmproj, settings)
    yield Term(device, "mmproj", size, what)


def _lora_terms(lora_bytes: tuple[int, ...], shape: ModelShape | None, layout: Layout) -> Iterator[Term]:
    """LoRA adapters lie with the tensors they patch: spread over the devices as the layers are."""
    total = sum(lora_bytes)
    if not total:
        return
    n_layers = shape.n_layers_all if shape else 1
    devices = layer_devices(layout, n_layers)
    for device in dict.fromkeys(devices):
        share = -(-total * devices.count(device) // len(devices))
        yield Term(device, "lora", share, f"{len(lora_bytes)} adapters, spread as the layers are")


def _encoder_bytes(mmproj: GgufMetadata, settings: LoadSettings) -> tuple[int, str]:
    """The buffer of an encoder (CLIP and its kin) for the image it is warmed up with.

    Activations were fitted to the CPU build; without flash attention each patch has a score against each
    other.
    """
    n_embd = _number(mmproj, "embedding_length", 1024)
    n_ff = _number(mmproj, "feed_forward_length", 4 * n_embd)
    n_head = _number(mmproj, "attention.head_count", 16)
    n_patches = _patches(mmproj)
    size = 4 * n_patches * (max(2 * n_ff, 5 * n_embd) + n_embd + n_patches) + MIB
    has_flash = settings.flash_attn != "off" and n_embd // n_head in _FLASH_HEADS
    if not has_flash:
        size += 4 * n_head * n_patches**2
    return size, f"encoder of {n_patches} patches" + ("" if has_flash else ", with their scores")


def _patches(mmproj: GgufMetadata) -> int:
    """Patches of the largest image that is encoded at load. Encoders of any size are warmed up with 46 x 46
    tokens, each of some patches, and grow when a larger image comes."""
    patch = _number(mmproj, "patch_size", 14)
    side = _number(mmproj, "image_size", _DEFAULT_IMAGE_SIZE)
    n = (side // patch) ** 2 + 1
    projector = mmproj.kv.get("clip.projector_type") or mmproj.kv.get("clip.vision.projector_type")
    if str(projector).startswith("qwen") or "clip.vision.image_max_pixels" in mmproj.kv:
        n = max(n, _WARMUP_TOKENS * _number(mmproj, "spatial_merge_size", 2) ** 2)
    return min(n, _MAX_PATCHES)


def _number(mmproj: GgufMetadata, key: str, default: int) -> int:
    for modality in ("vision", "audio"):
        value = mmproj.kv.get(f"clip.{modality}.{key}")
        if isinstance(value, int) and not isinstance(value, bool) and 0 < value < 1 << 20:
            return value
    return default
