"""What a GGUF file is: a model, or something that only goes with one. The header decides, then the name."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias

from router.models.catalog.architectures import DRAFTS, ENCODERS, LLAMA_CPP, NO_MODELS, NOT_SERVED, SERVED
from router.models.catalog.header import Header, Unusable, glance
from router.models.catalog.names import GgufName

Kind: TypeAlias = Literal["model", "projector", "draft", "adapter", "other"]


@dataclass(frozen=True, slots=True)
class GgufFile:
    """A file that was found: `name` is its path below the folder that was searched."""

    path: Path
    name: GgufName
    header: Header
    kind: Kind


def look_at(folder: Path, name: GgufName) -> GgufFile:
    """Read the beginning of the file `name` below `folder`. A file that cannot be read has an empty header.
    Raises OSError only where files have run out.
    """
    path = folder / name.path
    try:
        header = glance(path)
    except Unusable:
        header = Header()
    return GgufFile(path, name, header, _kind(header, name))


def ruled_out(header: Header, *, is_configured: bool = False) -> str | None:
    """Why a file with this header is no model that llama-server answers with, in words that follow its path;
    None where it may be one.

    An encoder, and an architecture that llama.cpp did not know when this was written, is tried only where the
    file `is_configured`: llama-server may be newer, but most such files are for other programs.
    """
    architecture = header.architecture
    match _kind_by_header(header):
        case "projector":
            return (
                f"is no model but a projector or encoder ({_of(header)}): it goes with a model, as its mmproj"
            )
        case "adapter":
            return f"is no model but a LoRA adapter ({_of(header)}): it goes with a model, as its lora"
        case "draft":
            return f"is no model but a draft ({_of(header)}): it goes with a model, as its draft_model"
        case "other" if header.kind is not None and header.kind in NO_MODELS:
            return f"is no model but {NO_MODELS[header.kind]} ({_of(header)})"
        case "other":
            assert architecture is not None, "only its architecture says so"
            return f"is no chat or embedding model but {NOT_SERVED[architecture.lower()]} ({_of(header)})"
    if architecture is None or architecture in SERVED or is_configured:
        return None
    section = "a section of its own in the presets"
    if architecture in ENCODERS:
        embeddings = f"for its embeddings give it {section}, with embedding = true"
        return f"is no chat model but a text encoder ({_of(header)}): {embeddings}"
    hint = f"if your llama-server is newer, give it {section} to have it tried"
    return f"has the architecture {architecture!r}, which llama.cpp {LLAMA_CPP} does not know; {hint}"


def is_model_file(path: Path) -> bool:
    """Whether the file may be a model, as far as its header says: one that cannot be read may be. Raises
    OSError where files have run out.
    """
    try:
        return ruled_out(glance(path)) is None
    except Unusable:
        return True


def _kind(header: Header, name: GgufName) -> Kind:
    if (kind := _kind_by_header(header)) is not None:
        return kind
    if name.is_mmproj and header.architecture is None:
        return "projector"
    if name.is_draft:
        return "draft"
    return "model" if name.is_model or header.architecture is not None else "other"


def _kind_by_header(header: Header) -> Kind | None:
    """None: a model, as far as the header says."""
    architecture = (header.architecture or "").lower()
    if header.kind == "adapter":
        return "adapter"
    if header.kind == "mmproj" or architecture == "clip":
        return "projector"
    if architecture in DRAFTS:
        return "draft"
    if header.kind in NO_MODELS or architecture in NOT_SERVED:
        return "other"
    return None


def _of(header: Header) -> str:
    if header.kind in ("adapter", "mmproj", *NO_MODELS):
        return f"general.type = {header.kind}"
    return f"architecture {header.architecture}"
