"""Every metric of the router's own."""

from __future__ import annotations

from docs.generator.markdown import MADE, code, table
from router.metrics import Page, Seen
from router.scheduler.views import Snapshot


def metrics_page() -> str:
    empty = Snapshot(0.0, "lru", (), (), (), (), 0)
    families = Page().families(Seen(empty, {}, {}), {})
    rows = sorted((code(_name(one)), one.type, one.documentation) for one in families if _is_ours(one.name))
    return f"""{MADE}# Metrics

`GET /metrics` tells these, `process_...` of the router's own process, and `llamacpp_...` of every loaded
llama-server with the labels `model` and `replica`: what llama-server calls `llamacpp:x` is `llamacpp_x` here,
as colons belong to recording rules. Nobody is loaded or woken for it. `GET /metrics?model=NAME` is what the
llama-server of one loaded model tells, unchanged.
[deploy/grafana](../deploy/grafana/README.md) has a dashboard.

{table(("metric", "type", ""), rows)}"""


def _is_ours(name: str) -> bool:
    return name.startswith("llama_router")


def _name(family: object) -> str:
    name, kind = str(getattr(family, "name", "")), getattr(family, "type", "")
    return f"{name}_total" if kind == "counter" else f"{name}_info" if kind == "info" else name
