"""What holds for every test."""

from __future__ import annotations

import signal

from hypothesis import HealthCheck, settings

# Hypothesis gives an example 200 ms, and a test a second for its first ones: a busy machine needs longer.
settings.register_profile("suite", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("suite")

# A script that runs `bin/test &` has SIGINT ignored there, and so has every process that a test starts: one
# that is to end by it would be waited for without end.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
