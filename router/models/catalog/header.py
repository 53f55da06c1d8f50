"""A glance at a GGUF file: is it one, and what do its first keys say. For a list of hundreds;
`router.gguf` reads all.
"""

from __future__ import annotations

import stat
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from router.descriptors import is_out_of_files
from router.gguf import POOLING_TYPES, KvValue, first_keys

GLANCE_BYTES: Final = 1 << 16
#: Where a companion says for which width of embeddings it is made. Source: tools/mtmd/clip.cpp,
#: common/speculative.cpp and src/models/{eagle3,dflash,gemma4-assistant}.cpp of llama.cpp b11434.
_SERVED_WIDTHS: Final = {
    "clip": ("vision.projection_dim", "audio.projection_dim"),
    "eagle3": ("target_hidden_size",),
    "dflash": ("embedding_length",),
    "gemma4-assistant": ("embedding_length_out",),
}


class Unusable(Exception):
    """Why a file cannot be used, in words that follow its path."""


@dataclass(frozen=True, slots=True)
class Header:
    """What stands before the vocabulary; None where the file does not say, or not so early.

    `kind` is general.type. `n_embd` is the width of the model's embeddings; `serves_n_embd` are the widths
    for which a projector or a draft is made (empty: not said). `tokenizer` is tokenizer.ggml.model, `n_vocab`
    the number of its tokens.
    """

    architecture: str | None = None
    name: str | None = None
    kind: str | None = None
    pooling: str | None = None
    n_embd: int | None = None
    serves_n_embd: tuple[int, ...] = ()
    projector: str | None = None
    tokenizer: str | None = None
    n_vocab: int | None = None
    n_prediction_layers: int = 0


def glance(path: Path) -> Header:
    """Read the beginning of `path`. Raises Unusable: gone, unreadable, not a GGUF of a version that
    llama.cpp loads. Raises OSError where files have run out.
    """
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            raise Unusable("is not a regular file")  # opening a pipe would block
        with path.open("rb", buffering=0) as file:
            data = file.read(GLANCE_BYTES)
    except FileNotFoundError:
        raise Unusable("is gone") from None
    except OSError as error:
        if is_out_of_files(error):
            raise
        raise Unusable(f"cannot be read: {error.strerror or error}") from error
    if len(data) < 24 or data[:4] != b"GGUF":
        raise Unusable("is empty" if not data else "is not a GGUF file")
    (version,) = struct.unpack_from("<I", data, 4)
    if version not in (2, 3):
        big_endian = version & 0xFFFF == 0
        raise Unusable("is big-endian" if big_endian else f"has GGUF version {version}, not 2 or 3")
    return _header(*first_keys(data))


def _header(keys: Mapping[str, KvValue], lengths: Mapping[str, int]) -> Header:
    def text(key: str) -> str | None:
        value = keys.get(key)
        return value if isinstance(value, str) else None

    def number(key: str) -> int | None:
        value = keys.get(key)
        return value if isinstance(value, int) else None

    architecture = text("general.architecture")
    pooling = number(f"{architecture}.pooling_type")
    serves = [number(f"{architecture}.{key}") for key in _SERVED_WIDTHS.get(architecture or "", ())]
    return Header(
        architecture=architecture,
        name=text("general.name"),
        kind=text("general.type"),
        pooling=POOLING_TYPES.get(pooling) if pooling is not None else None,
        n_embd=number(f"{architecture}.embedding_length"),
        serves_n_embd=tuple(dict.fromkeys(width for width in serves if width)),
        projector=text("clip.projector_type") or text("clip.vision.projector_type"),
        tokenizer=text("tokenizer.ggml.model"),
        n_vocab=lengths.get("tokenizer.ggml.tokens"),
        n_prediction_layers=number(f"{architecture}.nextn_predict_layers") or 0,
    )
