"""Preset text -> the settings of each model. Pure functions of files; nothing global, nothing written.

presets = load_presets(config)           # raises ConfigError for what concerns more than one model
preset = presets.for_model("qwen3-8b")   # complete; `preset.error` says why it cannot be used
"""

from __future__ import annotations

from router.presets.files import Family
from router.presets.hub_preset import HUB_PRESET, HubPreset, read_hub_preset
from router.presets.load import Presets, load_presets, shipped_presets_dir
from router.presets.overrides import Overrides
from router.presets.preset import ModelPreset

__all__ = [
    "HUB_PRESET",
    "Family",
    "HubPreset",
    "ModelPreset",
    "Overrides",
    "Presets",
    "load_presets",
    "read_hub_preset",
    "shipped_presets_dir",
]
