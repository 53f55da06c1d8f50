"""Which projector and which draft go with which model, of the files of one folder or repository.

A companion belongs to models in its own folder and below. Its header must fit the model. Where its name is
that of some of those models (without quantisation and kind: `mmproj-gemma-3-4b-F16` and
`gemma-3-4b-it-Q4_K_M`) it belongs to these alone. LoRA adapters are never given to a model that does not name
them: they change its answers.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from router.gguf import GgufError, GgufMetadata, read_gguf
from router.models.catalog.architectures import DRAFTS, SERVED
from router.models.catalog.header import Header
from router.models.catalog.kinds import GgufFile, look_at
from router.models.catalog.names import GgufName, choose_sibling, kinship

#: As llama.cpp: tokens by which the vocabularies of a model and its draft may differ
#: (common/speculative.cpp).
MAX_VOCABULARY_DIFFERENCE: Final = 128
#: A file that is called a draft and has the header of a whole model is one only beside a much larger model.
DRAFT_SHARE: Final = 0.5
#: Old writers put the encoder's own width into projection_dim: where the output is instead, by the
#: projector's type (clip_n_mmproj_embd in tools/mtmd/clip.cpp). Tensor, and which of its dimensions.
_OLD_PROJECTORS: Final[Mapping[str | None, Sequence[tuple[str, int]]]] = {
    None: (("mm.2.weight", 1), ("mm.3.bias", 0)),
    "mlp": (("mm.2.weight", 1), ("mm.3.bias", 0)),
    "ldp": (("mm.model.mb_block.1.block.2.1.bias", 0),),
    "ldpv2": (("mm.model.peg.0.bias", 0),),
    "resampler": (("resampler.proj.weight", 0),),
    "adapter": (("adapter.linear.dense_4h_to_h.weight", 1),),
}


@dataclass(frozen=True, slots=True)
class Beside:
    """What was found for one model."""

    mmproj: GgufFile | None = None
    draft: GgufFile | None = None


@dataclass(frozen=True, slots=True)
class Sorted:
    """`beside` by the path of each model. `unused` are companions that belong to no model, with the
    reason.
    """

    models: tuple[GgufFile, ...]
    beside: Mapping[str, Beside]
    unused: tuple[tuple[GgufFile, str], ...]


def sort_out(files: Sequence[GgufFile], *, root_is_shared: bool = False) -> Sorted:
    """Models and what goes with them, of the first parts of all `files` of one tree. Where the
    `root_is_shared` by unrelated models, a companion there belongs only to a model whose name it has and
    whose header it fits.
    """
    whole = [file for file in files if file.kind == "model" and file.name.index == 1]
    files = [_beside_others(file, whole) for file in files if file.name.index == 1]
    models = [file for file in files if file.kind == "model"]
    own: dict[str, list[GgufFile]] = {model.name.path: [] for model in models}
    unused = []
    for file in files:
        if file.kind in ("projector", "draft"):
            owners, reason = _owners(file, models, root_is_shared=root_is_shared)
            for model in owners:
                own[model.name.path].append(file)
            if not owners:
                unused.append((file, reason))
    beside = {
        model.name.path: Beside(
            _nearest((file for file in own[model.name.path] if file.kind == "projector"), model),
            _nearest((file for file in own[model.name.path] if file.kind == "draft"), model),
        )
        for model in models
    }
    return Sorted(tuple(models), beside, tuple(unused))


def mmproj_of(model: GgufName, names: Iterable[GgufName], folder: Path) -> Path | None:
    """The projector of one model of a repository whose files at one commit are in `folder`."""
    firsts = [name for name in names if name.index == 1]
    if model.index > 1 or len(firsts) < 2:
        return None
    parts = sort_out([look_at(folder, name) for name in firsts])
    found = parts.beside.get(model.path, Beside()).mmproj
    return found.path if found is not None else None


def misfit(companion: Header, model: Header, *, is_draft: bool = False) -> str | None:
    """Why llama-server could not run `model` with the projector or draft at `path`; None where it could, or
    where the headers do not say."""
    if is_draft:
        return _draft_misfit(companion, model)
    if companion.architecture not in (None, "clip"):
        return f"is no projector (architecture {companion.architecture})"
    widths = companion.serves_n_embd
    if not widths or model.n_embd is None or model.n_embd in widths:
        return None
    return f"is made for embeddings of {widths[0]} dimensions, not {model.n_embd}"


def adapter_misfit(adapter: Header, model: Header) -> str | None:
    """Why llama-server could not apply the LoRA adapter to `model`; None where it could, or where the headers
    do not say."""
    if adapter.architecture is None:
        return None
    if adapter.kind != "adapter":
        return f"is no LoRA adapter (general.type = {adapter.kind or 'none'})"
    if model.architecture not in (None, adapter.architecture):
        return f"is made for the architecture {adapter.architecture}, not {model.architecture}"
    return None


# --- whose it is ---


def _owners(
    file: GgufFile, models: Sequence[GgufFile], *, root_is_shared: bool
) -> tuple[list[GgufFile], str]:
    """The models that a companion belongs to, or why it belongs to none."""
    folder, is_draft = file.name.folder, file.kind == "draft"
    near = [model for model in models if _is_below(model, folder)]
    if not near:
        return [], "there is no model in its folder or below"
    reasons = [misfit(file.header, model.header, is_draft=is_draft) for model in near]
    fitting = [model for model, reason in zip(near, reasons, strict=True) if reason is None]
    if not fitting:
        return [], f"it {reasons[0]} of {near[0].name.path}"
    ranks = {model.name.path: kinship(file.name, model.name) for model in near}
    best = max(ranks.values())
    if best > (0, 0):
        named = [model for model in fitting if ranks[model.name.path] == best]
    elif not file.name.words or len({model.name.words for model in near}) == 1:
        named = fitting
    else:
        return [], "it has the name of none of the models beside it"
    if not named:
        return [], f"it does not fit the model whose name it has: it {reasons[0]}"
    if root_is_shared and not folder and (best == (0, 0) or file.header.architecture is None):
        return [], "it lies beside models of all kinds: put it and its model into a folder of their own"
    return named, ""


def _is_below(file: GgufFile, folder: str) -> bool:
    return not folder or file.name.path.startswith(f"{folder}/")


def _nearest(files: Iterable[GgufFile], model: GgufFile) -> GgufFile | None:
    by_name = {file.name: file for file in files}
    chosen = choose_sibling(by_name, model.name)
    return by_name[chosen] if chosen is not None else None


# --- whether it fits ---


def with_true_width(header: Header, path: Path) -> Header:
    """The header of a projector, with the width that its output has where old writers state another."""
    if header.projector in _OLD_PROJECTORS and (metadata := _read(path)) is not None:
        shapes = {tensor.name: tensor.shape for tensor in metadata.tensors}
        for name, dimension in _OLD_PROJECTORS[header.projector]:
            if dimension < len(shapes.get(name, ())):
                return replace(header, serves_n_embd=(shapes[name][dimension],))
    return header


def _draft_misfit(draft: Header, model: Header) -> str | None:
    """As llama.cpp checks it, or would fail without a check (common/speculative.cpp). Drafts of these kinds
    read the hidden state of their model; an ordinary one must only have its vocabulary."""
    if draft.architecture is not None and draft.architecture not in SERVED | DRAFTS:
        return f"is no draft that llama-server runs (architecture {draft.architecture})"
    widths = draft.serves_n_embd or ((draft.n_embd,) if draft.n_prediction_layers and draft.n_embd else ())
    if widths and model.n_embd is not None and model.n_embd not in widths:
        return f"is made for embeddings of {widths[0]} dimensions, not {model.n_embd}"
    if draft.architecture == "gemma4-assistant" and model.architecture not in (None, "gemma4"):
        return f"is made for the architecture gemma4, not {model.architecture}"
    if draft.tokenizer and model.tokenizer and draft.tokenizer != model.tokenizer:
        return f"has the tokenizer {draft.tokenizer}, not {model.tokenizer}"
    if draft.n_vocab and model.n_vocab and abs(draft.n_vocab - model.n_vocab) > MAX_VOCABULARY_DIFFERENCE:
        return f"has a vocabulary of {draft.n_vocab} tokens, not {model.n_vocab}"
    return None


# --- what a file that may be a model is beside others ---


def _beside_others(file: GgufFile, models: Sequence[GgufFile]) -> GgufFile:
    """A file as it is to be taken beside `models`. A projector with its true width. A file that has the
    header of a whole model, and the name of a draft: a draft where there is a model that it can be for.
    """
    if file.kind == "projector":
        return replace(file, header=with_true_width(file.header, file.path))
    if file.header.architecture not in SERVED:
        return file
    words = file.name.all_words
    if file.kind == "draft" and not any(_is_below(model, file.name.folder) for model in models):
        return replace(file, kind="model")
    if file.kind == "model" and "mtp" in words and _is_prediction_head(file):
        return replace(file, kind="draft")
    if file.kind == "model" and "draft" in words and any(_is_drafted_by(file, model) for model in models):
        return replace(file, kind="draft")
    return file


def _is_drafted_by(file: GgufFile, model: GgufFile) -> bool:
    return (
        model.name.folder == file.name.folder
        and "draft" not in model.name.all_words
        and _size(file) < DRAFT_SHARE * _size(model)
        and _draft_misfit(file.header, model.header) is None
    )


def _is_prediction_head(file: GgufFile) -> bool:
    """Whether it has only the layers that predict further tokens, and none of the model's own."""
    metadata = _read(file.path) if file.header.n_prediction_layers else None
    if metadata is None:
        return False
    layers = {tensor.name.split(".")[1] for tensor in metadata.tensors if tensor.name.startswith("blk.")}
    return bool(layers) and "0" not in layers


def _read(path: Path) -> GgufMetadata | None:
    """None for a file that cannot be read, which its model's own error tells. Raises OSError where files have
    run out."""
    try:
        return read_gguf(path)
    except GgufError:
        return None


def _size(file: GgufFile) -> int:
    try:
        return file.path.stat().st_size * file.name.count
    except OSError:
        return 0
