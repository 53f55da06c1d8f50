"""Which pages there are."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

from docs.generator.architecture import architecture_page
from docs.generator.commands import commands_page
from docs.generator.configuration import configuration_page
from docs.generator.http import http_page
from docs.generator.metrics import metrics_page

#: By the name of their file in docs/.
PAGES: Final[Mapping[str, Callable[[], str]]] = {
    "architecture": architecture_page,
    "configuration": configuration_page,
    "commands": commands_page,
    "http": http_page,
    "metrics": metrics_page,
}
