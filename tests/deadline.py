"""How long a test waits for what must happen. It guards against hanging alone: nothing is asserted by it."""

from __future__ import annotations

import os
from typing import Final

#: For a machine that is slower, or shared with much else, than one that runs the tests in half an hour.
FACTOR: Final = float(os.environ.get("TEST_DEADLINE_FACTOR", "1"))
DEADLINE_SECONDS: Final = 60.0 * FACTOR
