"""The composition root: from a Config to a running router, and back to nothing.

`parts`       every part with its owner, in the order in which they are opened
`models`      the models: defined at the start, and anew on a reload
`background`  tasks that outlive the request they came with
`requests`    those in flight, counted, so that a shutdown can wait for them
`listening`   the sockets: bound before everything else, so that a second router on the same port gives up
              before it touches anything; listening after everything else
`connections` those of clients: how many, and how long each may take for what it says; before aiohttp's server
              stands `front`, which answers at once what asks for a model that is ready
`serving`     from the first request to the last
`restart`     gives place to a new process: by `handover` the two agree on whose the children are, and by
              `relay` whoever comes to the former is served by the next
`systemd`     what the service manager is told, and the sockets it opens
"""

from __future__ import annotations

from router.app.handover import taking_over
from router.app.serving import run

__all__ = ["run", "taking_over"]
