"""Everything that Prometheus is told, by its conventions: base units, `_total` on what only grows.

`requests`   what requests took, counted as they end
`decisions`  why llama-servers ended and loads failed, counted as a reader of the journal
`state`      what there is at this moment, read off a snapshot, and what
             `router.observability.stats` has counted
`children`   what every loaded llama-server tells of itself
`page`       all of it as one text, each family once

prometheus_client is imported by what makes families of the counts, so with the first scrape: a router that
nobody scrapes does without its 1 MiB.

A new figure of the present is a row in `state`; one that only grows is counted where it happens.
"""

from __future__ import annotations

from router.metrics.children import Child, ask_children
from router.metrics.page import Page
from router.metrics.state import Seen

__all__ = ["Child", "Page", "Seen", "ask_children"]
