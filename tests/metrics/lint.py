"""Prometheus' conventions as far as a program can check them: what `promtool check metrics` says."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Iterator

from prometheus_client import Metric
from prometheus_client.parser import text_string_to_metric_families

_NAME = re.compile(r"[a-z][a-z0-9_]*")
#: Prometheus has one unit for each thing that is measured.
_OTHER_UNITS = re.compile(
    r"_(milliseconds|ms|microseconds|us|minutes|hours|kib|mib|gib|kilobytes|megabytes|percent)(_|$)"
)
_RESERVED = ("_total", "_count", "_sum", "_bucket", "_info")


def complaints(text: str) -> list[str]:
    """Nothing, for a page of metrics as it should be."""
    found = [*_ours(text)]
    promtool = shutil.which("promtool")
    if promtool is not None:
        said = subprocess.run([promtool, "check", "metrics"], input=text, capture_output=True, text=True)
        found += said.stderr.splitlines()
    return found


def families(text: str) -> dict[str, Metric]:
    return {family.name: family for family in text_string_to_metric_families(text)}


def _ours(text: str) -> Iterator[str]:
    announced = re.findall(r"^# TYPE (\S+)", text, re.MULTILINE)
    yield from (f"{name} is announced twice" for name in set(announced) if announced.count(name) > 1)
    seen: set[tuple[str, tuple[tuple[str, str], ...]]] = set()
    for family in text_string_to_metric_families(text):
        name = family.name
        if not _NAME.fullmatch(name):
            yield f"{name} is not a lower-case name without colons"
        if not family.documentation:
            yield f"{name} has no help"
        if _OTHER_UNITS.search(name):
            yield f"{name} is not in a base unit"
        if family.type == "gauge" and name.endswith(_RESERVED) and not name.endswith("_info"):
            yield f"{name} is a gauge with the ending of another type"
        for sample in family.samples:
            if family.type == "counter" and not sample.name.endswith(("_total", "_created")):
                yield f"{sample.name} is a counter without _total"
            key = (sample.name, tuple(sorted(sample.labels.items())))
            if key in seen:
                yield f"{key} is told twice"
            seen.add(key)
