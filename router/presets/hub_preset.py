"""preset.ini of a repository on the hub: what `llama-server -hf ORG/PRESETS` reads.

llama.cpp takes every option from it and warns that it must be trusted. Here it may only say which models of
the hub are run and how they generate: no file, address or command of this machine, and nothing that is the
router's own.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Final

from router.presets.ini import DEFAULTS, IniSection, parse_ini
from router.presets.layer import Layer, LayerReader, merge
from router.presets.options import KNOWN_ONLY, Options

HUB_PRESET: Final = "preset.ini"
MAX_BYTES: Final = 64 << 10
MAX_SECTIONS: Final = 256

#: By the name that `Option.name` gives.
_ALLOWED: Final = frozenset(
    {"hf-repo", "hf-file", "hf-repo-draft", "mmproj-auto", "tags"}
    | {"ctx-size", "parallel", "kv-unified", "batch-size", "ubatch-size", "cache-type-k", "cache-type-v"}
    | {"cache-type-k-draft", "cache-type-v-draft", "flash-attn", "swa-full", "n-gpu-layers", "cpu-moe"}
    | {"n-cpu-moe", "n-cpu-ffn", "n-gpu-layers-draft", "kv-offload", "mmproj-offload", "load-mode"}
    | {"threads", "threads-batch", "embeddings", "reranking", "pooling", "embd-normalize", "n-predict"}
    | {"rope-scaling", "rope-scale", "rope-freq-base", "rope-freq-scale", "yarn-orig-ctx", "yarn-ext-factor"}
    | {"yarn-attn-factor", "yarn-beta-slow", "yarn-beta-fast", "context-shift", "cache-prompt", "cache-reuse"}
    | {"jinja", "chat-template-kwargs", "reasoning-format", "reasoning", "reasoning-effort"}
    | {"reasoning-budget", "reasoning-budget-message", "reasoning-preserve", "prefill-assistant"}
    | {"image-min-tokens", "image-max-tokens", "spec-type", "spec-draft-n-max", "spec-draft-n-min"}
    | {"draft-p-split", "draft-p-min", "special", "spm-infill"}
    | {"samplers", "seed", "sampling-seq", "ignore-eos", "temperature", "top-k", "top-p", "min-p"}
    | {"top-n-sigma", "xtc-probability", "xtc-threshold", "typical-p", "repeat-last-n", "repeat-penalty"}
    | {"presence-penalty", "frequency-penalty", "dry-multiplier", "dry-base", "dry-allowed-length"}
    | {"dry-penalty-last-n", "dry-sequence-breaker", "adaptive-target", "adaptive-decay", "dynatemp-range"}
    | {"dynatemp-exp", "mirostat", "mirostat-lr", "mirostat-ent", "logit-bias", "grammar", "json-schema"}
)
#: Of no harm, and left out: what is loaded when, and what is listed, is not for a repository to say.
_LEFT_OUT: Final = frozenset({"alias", "load-on-startup", "stop-timeout", "dedup-cache-models"})


@dataclass(slots=True)
class HubPreset:
    """`models` by the names of their sections; what is wrong with one is in its layer."""

    models: dict[str, Layer] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)

    @property
    def repositories(self) -> tuple[str, ...]:
        """Those whose models are run, drafts too."""
        fields = (
            layer.fields.get(key) for layer in self.models.values() for key in ("hf_repo", "draft_hf_repo")
        )
        return tuple(dict.fromkeys(str(repo) for repo in fields if repo))


def read_hub_preset(path: Path, repo: str, options: Options = KNOWN_ONLY) -> HubPreset:
    """Never fails: what cannot be used is a warning. `options` are those of the llama-server to run."""
    where = f"{HUB_PRESET} of {repo}"
    try:
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
        text = data.decode("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        return HubPreset(warnings=[f"{where} cannot be read: {error}"])
    if len(data) > MAX_BYTES:
        return HubPreset(warnings=[f"{where} is left out: it has more than {MAX_BYTES >> 10} KiB"])
    ini = parse_ini(text)
    preset = HubPreset(warnings=[f"{where}:{line}: {problem}" for line, problem in ini.problems.items()])
    if len(ini.sections) > MAX_SECTIONS:
        return HubPreset(warnings=[f"{where} is left out: it has more than {MAX_SECTIONS} sections"])
    layers = {name: _layer(section, where, options) for name, section in ini.sections.items()}
    for_all = layers.pop(DEFAULTS, Layer())
    for name, layer in layers.items():
        preset.models[name] = whole = merge([for_all, layer])
        preset.warnings += whole.warnings
        if not whole.fields.get("hf_repo"):
            del preset.models[name]
            preset.warnings.append(f"{where}: [{name}] is left out: it names no hf-repo")
    return preset


def _layer(section: IniSection, where: str, options: Options) -> Layer:
    # There are no paths among what is allowed: the folder counts for nothing.
    reader = LayerReader((Path("/nonexistent"),), f"{where}:{section.line}", is_ini=True, options=options)
    reader.set_section(section, where, partial(_set, reader))
    return reader.layer()


def _set(reader: LayerReader, key: str, value: str, where: str) -> None:
    spelling = reader.options.find(key)
    name = spelling.option.name if spelling is not None else key
    if name in _ALLOWED or (spelling is None and reader.options.is_complete):
        reader.set_option(key, value, where)  # which tells of an option that there is not
    elif name in _LEFT_OUT:
        reader.warn(where, f"{name} is left out: it is not for a repository of the hub to set")
    else:
        reader.problem(where, f"{name} may not be set by a repository of the hub; set it in [models.NAME]")
