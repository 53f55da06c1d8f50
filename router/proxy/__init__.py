"""The data plane: hold a lease and pass the bytes of one request and its answer through, untouched, as they
come.

It knows nothing of what is inside a body: the families of `router.admin` read what must be read and put it
into an `RequestInfo`.

`forward`    one request from its lease to its last byte; the only one who sees all of it
`express`    the same for most requests: their model is ready, and nothing has to be waited for; `plain` reads
             what they say
`waiting`    what a client hears while its model is not there
`answer`     one answer from a child to a client, held back while the client does not take it
`client`     the connection it goes to, also behind aiohttp's server
`upstream`   the connection it comes from; `idle` keeps those that may be used again
`outbox`     short writes that are done together
`heads`      what of a head passes; `framing` where a body ends; `body` what is said to the child
`usage`      what llama-server says of its work, read from what passes by
`failures`   what became of a child that failed; `telling` puts it into the words of the client
"""

from __future__ import annotations

from router.proxy.ask import REQUEST_STATS, Dialect, RequestInfo, RequestStats
from router.proxy.body import BODY, Body, read_body
from router.proxy.forward import Begun, Proxy
from router.proxy.telling import error_body, error_event, rejection_event
from router.proxy.waiting import HeartbeatConfig

__all__ = [
    "BODY", "REQUEST_STATS", "Begun", "Body", "Dialect", "HeartbeatConfig", "Proxy", "RequestInfo",
    "RequestStats", "error_body", "error_event", "read_body", "rejection_event",
]  # fmt: skip
