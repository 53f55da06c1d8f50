"""Requests for inference against a router on a real port."""

from __future__ import annotations

from tests.admin.conftest import api, known, models_dir

__all__ = ["api", "known", "models_dir"]
