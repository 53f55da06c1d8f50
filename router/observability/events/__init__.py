"""What happens to the models, told as it happens: llama.cpp's events, and more of our own.

`told`   an entry of the journal -> events
`seen`   two snapshots -> what changed between them and is no entry: queues, plans, leases, progress, memory
`ring`   the newest events as they go out, for any number of readers, and for those who come again
`feed`   the three together
"""

from __future__ import annotations

from router.observability.events.feed import Feed, Reader
from router.observability.events.ring import Lost, Ring
from router.observability.events.told import ModelEvent

__all__ = ["Feed", "Lost", "ModelEvent", "Reader", "Ring"]
