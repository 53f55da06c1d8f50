"""How many bytes a model will take, and where it could go: arithmetic on a header, settings and devices.

No file is read here and no device asked; `fit_params` alone runs a program, as a second opinion. The rules
are llama.cpp's: weights and caches are derived from its source and match what it reports, compute buffers
are fitted and err on the large side. Every term says how it comes about.

    metadata = read_gguf(path)
    for placement in placements(metadata, LoadSettings(ctx_size="auto"), devices):
        placement.devices, placement.footprint, placement.estimate.terms
"""

from router.memory.estimate.layout import Layout
from router.memory.estimate.placing import placements
from router.memory.estimate.total import Prepared, estimate
from router.memory.estimate.values import (
    Companions,
    DeviceBudget,
    Estimate,
    EstimatedPlacement,
    LoadSettings,
    Term,
)

__all__ = [
    "Companions",
    "DeviceBudget",
    "Estimate",
    "EstimatedPlacement",
    "Layout",
    "LoadSettings",
    "Prepared",
    "Term",
    "estimate",
    "placements",
]
