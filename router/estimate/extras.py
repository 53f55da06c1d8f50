"""What is loaded or reserved beside the model: a projector, a draft model, adapters, contexts, and the
host's share."""

from __future__ import annotations

from collections.abc import Iterator

from router.estimate.layout import Layout, layer_devices
from router.estimate.shape import ModelShape
from router.estimate.values import MIB, Companions, LoadSettings, Term
from router.gguf import GgufMetadata

_DEFAULT_IMAGE_SIZE = 896
_MAX_PATCHES = 16_384


def overhead_terms(settings: LoadSettings, layout: Layout) -> Iterator[Term]:
    """What no buffer of llama.cpp accounts for: GPU contexts, the
    process itself, the prompt cache it may fill."""
    for gpu in layout.gpus:
        yield Term(gpu.id, "context", gpu.overhead_bytes, f"the process's context on a {gpu.kind} device")
    yield Term(layout.host.id, "process", layout.host.overhead_bytes, "the process beside its buffers")
    yield Term(
        layout.host.id, "cache", settings.cache_ram_bytes, "prompt cache (--cache-ram), filled with use"
    )


def projector_terms(mmproj: GgufMetadata, companions: Companions, layout: Layout) -> Iterator[Term]:
    """A multimodal projector: its weights, and the buffer of its encoder, on the first GPU or on the host."""
    on_gpu = bool(layout.gpus) and companions.mmproj_offload
    device = layout.gpus[0].id if on_gpu else layout.host.id
    kinds = " and ".join(sorted(mmproj.modalities)) or "unknown input"
    yield Term(device, "mmproj", mmproj.tensor_bytes, f"projector for {kinds}, {len(mmproj.tensors)} tensors")
    size, what = _encoder_bytes(mmproj)
    yield Term(device, "mmproj", size, what)


def lora_terms(lora_bytes: tuple[int, ...], shape: ModelShape | None, layout: Layout) -> Iterator[Term]:
    """LoRA adapters lie with the tensors they patch: spread over the devices as the layers are."""
    total = sum(lora_bytes)
    if not total:
        return
    n_layers = shape.n_layers_all if shape else 1
    devices = layer_devices(layout, n_layers)
    for device in dict.fromkeys(devices):
        share = -(-total * devices.count(device) // len(devices))
        yield Term(device, "lora", share, f"{len(lora_bytes)} adapters, spread as the layers are")


def _encoder_bytes(mmproj: GgufMetadata) -> tuple[int, str]:
    """The buffer of an encoder (CLIP and its kin): activations of all patches, and scores of each against
    each.

    An upper estimate: encoders that take images of any size reserve for the largest they accept.
    """
    n_embd = _vision(mmproj, "embedding_length", 1024)
    n_ff = _vision(mmproj, "feed_forward_length", 4 * n_embd)
    n_head = _vision(mmproj, "attention.head_count", 16)
    patch = _vision(mmproj, "patch_size", 14)
    side = _vision(mmproj, "image_size", _DEFAULT_IMAGE_SIZE)
    n_patches = min((side // patch) ** 2 + 1, _MAX_PATCHES)
    size = 4 * n_patches * (2 * n_ff + 6 * n_embd) + 4 * n_head * n_patches**2 + MIB
    return size, f"encoder of {n_patches} patches"


def _vision(mmproj: GgufMetadata, key: str, default: int) -> int:
    for modality in ("vision", "audio"):
        value = mmproj.kv.get(f"clip.{modality}.{key}")
        if isinstance(value, int) and not isinstance(value, bool) and 0 < value < 1 << 20:
            return value
    return default
