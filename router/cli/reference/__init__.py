"""`llama-router reference`: what this version takes and tells, as Markdown made of the code itself.

docs/ keeps it, and a test holds the two together; bin/generate-docs writes it anew."""

from __future__ import annotations

from router.cli.reference.command import PAGES, reference

__all__ = ["PAGES", "reference"]
