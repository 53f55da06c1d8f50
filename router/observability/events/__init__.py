"""What happens to the models, told as it happens: llama.cpp's events, and more of our own.

`changes`  two snapshots -> what changed between them and is no entry: queues, plans, leases, progress, memory
`feed`     entries of the journal and those changes as numbered events, for any number of readers
"""

from __future__ import annotations

from router.observability.events.changes import ModelEvent
from router.observability.events.feed import Feed, Lost, Reader, Ring

__all__ = ["Feed", "Lost", "ModelEvent", "Reader", "Ring"]
