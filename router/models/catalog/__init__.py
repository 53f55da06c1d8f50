"""Name or alias -> model. The sources are folders, the Hugging Face cache and presets.

catalog = await asyncio.to_thread(Catalog.scan, config)
entry = catalog.resolve("qwen3-8b")          # raises ModelNotFound
entry.error                                  # why it cannot be run, or None
entry.fingerprint                            # differs when it would run differently
"""

from __future__ import annotations

from router.models.catalog.candidate import Source, Stamp
from router.models.catalog.catalog import Catalog
from router.models.catalog.entry import CatalogEntry
from router.models.catalog.hf_cache import hf_cache_dir

__all__ = ["Catalog", "CatalogEntry", "Source", "Stamp", "hf_cache_dir"]
