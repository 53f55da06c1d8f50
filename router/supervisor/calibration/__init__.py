"""What models really take: predicted, measured while they serve, corrected, and kept for the next start.

    async with Learning(store) as learning:
        models = learning.define(definitions.models, predictions(definitions, devices), devices)

`predictions`  what each placement of each model is expected to take, and by which key that is known
`learner`      folds measurements in, corrects what is reserved, tells the scheduler what it learned
`kept`         the entries: read once, written by a task of its own, forgotten when unused or their files gone

The arithmetic is `router.memory.estimate.learning`.
"""

from __future__ import annotations

from router.supervisor.calibration.learner import Learning
from router.supervisor.calibration.predictions import predictions, predictions_of

__all__ = ["Learning", "predictions", "predictions_of"]
