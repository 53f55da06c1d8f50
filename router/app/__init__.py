"""The composition root: from a Config to a running router, and back to nothing.

`parts`       the Router: its parts, opened in order and closed in reverse
`models`      the models: defined at the start, and anew on a reload
`background`  tasks that outlive the request they came with
`requests`    those in flight, counted, so that a shutdown can wait for them
`listening`   the sockets: bound before everything else, so that a second router on the same port fails
              before it touches anything; listening after everything else
`serving`     from the first request to the last, and `last_resort`, which bounds the shutdown
`restart`     replaces the process: by `handover` the two agree on whose the children are, and by `relay`
              requests that still reach the former are answered by the next
`read_ahead`  reads the files of a model while a request waits for it
`stalls`      ends a child process that is stuck while requests wait for it
`systemd`     what the service manager is told, and the sockets it opens
"""

from __future__ import annotations

from router.app.handover import taking_over
from router.app.serving import run

__all__ = ["run", "taking_over"]
