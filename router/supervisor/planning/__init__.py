"""What would be: where a model could go and what it would take there, and which models fit together.

Arithmetic on what others found out; nothing is loaded, booked or asked here. The rule is the scheduler's own
(`router.scheduler.ledger`), for a machine where no model of the router is loaded and other programs keep what
they have.

`packing`   one footprint for each of several models, so that all fit at once
`together`  several models, with smaller contexts where they must be, and the largest sets where not all fit
`needs`     what is known of models and devices, made into what those two count with
`words`     the answer, read aloud
"""

from __future__ import annotations

from router.supervisor.planning.needs import (
    SMALLEST_CTX,
    Choice,
    Seen,
    choices,
    empty_rooms,
    missing,
    plan_together,
    rooms_now,
)
from router.supervisor.planning.packing import EXACT_LIMIT, Packing, pack
from router.supervisor.planning.together import Fit, ModelDemand, Together, Way, fit_together
from router.supervisor.planning.words import opinion_words, together_words

__all__ = [
    "EXACT_LIMIT",
    "SMALLEST_CTX",
    "Choice",
    "Fit",
    "Packing",
    "Seen",
    "Together",
    "Way",
    "ModelDemand",
    "choices",
    "empty_rooms",
    "fit_together",
    "missing",
    "opinion_words",
    "pack",
    "plan_together",
    "rooms_now",
    "together_words",
]
