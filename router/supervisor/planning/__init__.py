"""What would be: where a model could go and what it would take there, and which models fit together.

Arithmetic on snapshots and estimates; nothing is loaded or reserved here. The rule is the scheduler's own
(`router.scheduler.ledger`), for a machine where no model of the router is loaded and other programs keep what
they have.

`packing`   one footprint for each of several models, so that all fit at once
`together`  several models, with smaller contexts where they must be, and the largest sets where not all fit
`needs`     what is known of models and devices, made into what those two count with
`words`     the answer as text
"""

from __future__ import annotations

from router.supervisor.planning.needs import (
    Choice,
    Seen,
    choices,
    empty_rooms,
    missing,
    plan_together,
    rooms_now,
)
from router.supervisor.planning.together import Fit
from router.supervisor.planning.words import opinion_words, together_words

__all__ = ["Choice", "Fit", "Seen", "choices", "empty_rooms", "missing", "opinion_words"]
__all__ += ["plan_together", "rooms_now", "together_words"]
