"""What holds for every test."""

from __future__ import annotations

import signal

# A script that runs `bin/test &` has SIGINT ignored there, and so has every process that a test starts: one
# that is to end by it would be waited for without end.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
