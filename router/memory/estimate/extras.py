"""What is loaded or reserved beside the model: a projector, a draft model, adapters, contexts, and the
host's share."""

from __future__ import annotations

from collections.abc import Iterator

from router.gguf import GgufMetadata
from router.memory.estimate.layout import Layout, layer_devices
from router.memory.estimate.shape import ModelShape
from router.memory.estimate.values import MIB, Companions, LoadSettings, Term

_DEFAULT_IMAGE_SIZE = 896
_MAX_PATCHES = 16_384
_WARMUP_TOKENS = 46 * 46
_FLASH_HEADS = frozenset((40, 64, 72, 80, 96, 112, 128, 256))
"""Sizes of heads for which CUDA has flash attention without a mask (ggml-cuda/fattn.cu)."""


def overhead_terms(settings: LoadSettings, layout: Layout) -> Iterator[Term]:
    """What no buffer of llama.cpp accounts for: GPU contexts, the
    process itself, the prompt cache it may fill."""
    for gpu in layout.gpus:
        yield Term(gpu.id, "context", gpu.overhead_bytes, f"the process's context on a {gpu.kind} device")
    yield Term(layout.host.id, "process", layout.host.overhead_bytes, "the process beside its buffers")
    yield Term(
        layout.host.id, "cache", settings.cache_ram_bytes, "prompt cache (--cache-ram), filled with use"
    )


def projector_terms(
    mmproj: GgufMetadata, settings: LoadSettings, companions: Companions, layout: Layout
) -> Iterator[Term]:
    """A multimodal projector: its weights, and the buffer of its encoder, on the first GPU or on the host."""
    on_gpu = bool(layout.gpus) and companions.mmproj_offload
    device = layout.gpus[0].id if on_gpu else layout.host.id
    kinds = " and ".join(sorted(mmproj.modalities)) or "unknown input"
    yield Term(device, "mmproj", mmproj.tensor_bytes, f"projector for {kinds}, {len(mmproj.tensors)} tensors")
    size, what = _encoder_bytes(mmproj, settings)
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
