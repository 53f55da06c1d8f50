"""Writes a tiny GGUF model that speaks legible nonsense: something to load where there is no model yet.

A real model of the llama architecture (half a megabyte, the same bytes each time), so that all but its sense
is real: loading, placement, streaming, stopping. Its weights are random except for a grammar: a token is of a
class (subject, verb, ...), a few dimensions of the hidden state carry the class of the last token untouched
through the layers, and the output weighs the classes that may follow it. The other dimensions are noise from
the whole prompt; they choose the word. After a full stop it may end, and soon does.

It writes the file by itself: the packages gguf and numpy are for the tests.
"""

from __future__ import annotations

import math
import os
import random
import struct
import tempfile
from array import array
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final

NAME: Final = "demo-nonsense"

_SEED = 1
_N_EMBD, _N_HEAD, _N_FF, _N_LAYER, _N_CTX = 64, 1, 128, 2, 4096  # a head of 64, which flash attention knows

_WORDS: Final[Mapping[str, str]] = {
    "first": "The Every Some One That Another",
    "opening": "The Every Some One That Another",
    "temper": "quiet curious sleepy polite patient sudden gentle invisible grateful careful humming",
    "subject": """river mountain sparrow engine cathedral harbour cloud owl kettle whale comet museum piano
        library""",
    "verb": """borrows remembers paints follows answers weighs carries forgives polishes collects measures
        invites juggles mends admires folds""",
    "determiner": "the every some one no my your that",
    "adjective": "green hollow golden distant seventh wooden electric salted crooked borrowed velvet tiny",
    "object": """lantern teapot clock orchard pocket biscuit umbrella ladder violin garden compass blanket
        bicycle candle tunnel pebble carpet window""",
    "preposition": "under beside without through above behind toward inside with and",
    "stop": ".",
}
#: What may follow a token of a class, and how probably. "start" is all that is not a word: the prompt's end.
_GRAMMAR: Final[Mapping[str, Mapping[str, float]]] = {
    "start": {"first": 1.0},
    "opening": {"temper": 0.4, "subject": 0.6},
    "temper": {"temper": 0.1, "subject": 0.9},
    "subject": {"verb": 1.0},
    "verb": {"determiner": 1.0},
    "determiner": {"adjective": 0.4, "object": 0.6},
    "adjective": {"object": 1.0},
    "object": {"preposition": 0.5, "stop": 0.5},
    "preposition": {"determiner": 1.0},
    "stop": {"opening": 0.7, "end": 0.3},
}
#: Tokens of these classes are followed as those are: an answer's first word has no space before it.
_FOLLOWED_AS: Final[Mapping[str, str]] = {"first": "opening", "end": "start"}
_CLASSES = tuple(_GRAMMAR)
_NEVER = -14.0  # a logit that no sampler picks
_CLASS_SIGNAL = 6.0  # of a token's class in its embedding; the noise beside it has a deviation of 1

_CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def write_demo_model(path: Path) -> None:
    """Write the model to `path`, whose folder is made if need be; a reader sees all of it or nothing.

    Raises OSError.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with open(descriptor, "wb") as file:
            file.write(_model())
            file.flush()
            os.fsync(file.fileno())
            os.fchmod(file.fileno(), 0o644)
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


# --- the vocabulary -------------------------------------------------------------------------------------

_NORMAL, _UNKNOWN, _CONTROL, _BYTE = 1, 2, 3, 6  # token types of llama.cpp
_SPECIAL = ("<unk>", "<s>", "</s>", "<|im_start|>", "<|im_end|>")
_BOS, _EOS = 1, 4


def _vocabulary() -> list[tuple[str, int, str]]:
    """(text, type, class) of each token. Bytes and characters read any prompt; only words are said."""
    vocabulary = [(text, _CONTROL, "start") for text in _SPECIAL]
    vocabulary[0] = ("<unk>", _UNKNOWN, "start")
    vocabulary[_EOS] = (_SPECIAL[_EOS], _CONTROL, "end")
    vocabulary += [(f"<0x{byte:02X}>", _BYTE, "start") for byte in range(256)]
    vocabulary += [(chr(code), _NORMAL, "start") for code in range(0x21, 0x7F) if chr(code) != "."]
    vocabulary += [("▁", _NORMAL, "start")]  # how SentencePiece writes a space
    for kind, words in _WORDS.items():
        space = "" if kind in ("first", "stop") else "▁"
        vocabulary += [(space + word, _NORMAL, kind) for word in words.split()]
    return vocabulary


# --- the weights ----------------------------------------------------------------------------------------


def _tensors(
    vocabulary: Sequence[tuple[str, int, str]],
) -> Iterator[tuple[str, tuple[int, ...], array[float]]]:
    """(name, shape with the fastest dimension first, values) of each tensor; all are F32."""
    noise = random.Random(_SEED)
    kinds = [kind for _, _, kind in vocabulary]
    yield "token_embd.weight", (_N_EMBD, len(kinds)), array("f", _embeddings(kinds, noise))
    yield "output_norm.weight", (_N_EMBD,), array("f", [1.0] * _N_EMBD)
    yield "output.weight", (_N_EMBD, len(kinds)), array("f", _outputs(kinds, noise))
    for layer in range(_N_LAYER):
        for name, n_in, n_out, gain in (
            ("attn_q", _N_EMBD, _N_EMBD, 1.0),
            ("attn_k", _N_EMBD, _N_EMBD, 1.0),
            ("attn_v", _N_EMBD, _N_EMBD, 1.0),
            ("attn_output", _N_EMBD, _N_EMBD, 0.5),
            ("ffn_gate", _N_EMBD, _N_FF, 1.0),
            ("ffn_up", _N_EMBD, _N_FF, 1.0),
            ("ffn_down", _N_FF, _N_EMBD, 0.5),
        ):
            values = _matrix(n_in, n_out, gain, noise)
            if name in ("attn_output", "ffn_down"):
                # What a layer adds leaves the dimensions of the classes alone.
                values[: n_in * len(_CLASSES)] = array("f", bytes(4 * n_in * len(_CLASSES)))
            yield f"blk.{layer}.{name}.weight", (n_in, n_out), values
        for name in ("attn_norm", "ffn_norm"):
            yield f"blk.{layer}.{name}.weight", (_N_EMBD,), array("f", [1.0] * _N_EMBD)


def _embeddings(kinds: Sequence[str], noise: random.Random) -> Iterator[float]:
    for kind in kinds:
        shown = _FOLLOWED_AS.get(kind, kind)
        yield from (_CLASS_SIGNAL if known == shown else 0.0 for known in _CLASSES)
        yield from (noise.gauss(0.0, 1.0) for _ in range(_N_EMBD - len(_CLASSES)))


def _outputs(kinds: Sequence[str], noise: random.Random) -> Iterator[float]:
    """The logit of each token after each class: log(probability of its class there / tokens in its class)."""
    width = _N_EMBD - len(_CLASSES)
    # The last norm divides by the root mean square of the state, to whose noise the layers have added a half.
    signal = _CLASS_SIGNAL / math.sqrt((_CLASS_SIGNAL**2 + 1.5 * width) / _N_EMBD)
    for kind in kinds:
        for known in _CLASSES:
            probability = _GRAMMAR[known].get(kind, 0.0)
            yield (math.log(probability / kinds.count(kind)) if probability else _NEVER) / signal
        yield from (noise.gauss(0.0, 1.0 / math.sqrt(width)) for _ in range(width))


def _matrix(n_in: int, n_out: int, gain: float, noise: random.Random) -> array[float]:
    deviation = gain / math.sqrt(n_in)
    return array("f", (noise.gauss(0.0, deviation) for _ in range(n_in * n_out)))


# --- the file -------------------------------------------------------------------------------------------

_ALIGNMENT = 32


def _model() -> bytes:
    """A GGUF file of version 3, as ggml's docs/gguf.md describes it."""
    vocabulary = _vocabulary()
    keys = _keys(vocabulary)
    infos, data = bytearray(), bytearray()
    tensors = list(_tensors(vocabulary))
    for name, shape, values in tensors:
        infos += _string(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, 0, len(data))
        data += struct.pack(f"<{len(values)}f", *values)
        data += bytes(-len(data) % _ALIGNMENT)
    head = struct.pack("<4sIQQ", b"GGUF", 3, len(tensors), len(keys))
    head += b"".join(_string(key) + value for key, value in keys.items()) + infos
    return head + bytes(-len(head) % _ALIGNMENT) + data


def _keys(vocabulary: Sequence[tuple[str, int, str]]) -> dict[str, bytes]:
    texts, types, _ = zip(*vocabulary, strict=True)
    scores = [
        -1.0 if len(text) > 1 and kind == _NORMAL else -10.0 for text, kind in zip(texts, types, strict=True)
    ]
    return {
        "general.architecture": _text("llama"),
        "general.name": _text(NAME),
        "general.description": _text(
            "Random weights with a grammar: speaks nonsense, to try llama-router with"
        ),
        "general.file_type": _uint(0),
        "llama.context_length": _uint(_N_CTX),
        "llama.embedding_length": _uint(_N_EMBD),
        "llama.block_count": _uint(_N_LAYER),
        "llama.feed_forward_length": _uint(_N_FF),
        "llama.attention.head_count": _uint(_N_HEAD),
        "llama.attention.head_count_kv": _uint(_N_HEAD),
        "llama.attention.layer_norm_rms_epsilon": struct.pack("<If", 6, 1e-5),
        "llama.rope.dimension_count": _uint(_N_EMBD // _N_HEAD),
        "llama.vocab_size": _uint(len(vocabulary)),
        "tokenizer.ggml.model": _text("llama"),
        "tokenizer.ggml.tokens": struct.pack("<IIQ", 9, 8, len(texts)) + b"".join(map(_string, texts)),
        "tokenizer.ggml.scores": struct.pack(f"<IIQ{len(scores)}f", 9, 6, len(scores), *scores),
        "tokenizer.ggml.token_type": struct.pack(f"<IIQ{len(types)}i", 9, 5, len(types), *types),
        "tokenizer.ggml.bos_token_id": _uint(_BOS),
        "tokenizer.ggml.eos_token_id": _uint(_EOS),
        "tokenizer.ggml.unknown_token_id": _uint(0),
        "tokenizer.ggml.add_bos_token": struct.pack("<I?", 7, True),
        "tokenizer.ggml.add_space_prefix": struct.pack("<I?", 7, False),
        "tokenizer.chat_template": _text(_CHAT_TEMPLATE),
    }


def _string(text: str) -> bytes:
    encoded = text.encode()
    return struct.pack("<Q", len(encoded)) + encoded


def _text(text: str) -> bytes:
    return struct.pack("<I", 8) + _string(text)


def _uint(number: int) -> bytes:
    return struct.pack("<II", 4, number)
