"""The data plane: hold a lease, and pass the bytes of one request and its answer through, untouched, as they
come.

Nothing here knows what is inside a body: `router.http` and the families of `router.admin` read the few fields
that must be read, and put them into a `RequestInfo`.

`request`    the state machine of one request, from its place in the queue to the last byte of its answer
`answer`     one answer from an instance to a client, held back while the client does not read it
`client`     what the client gets, on the connection that the request came on
`upstream`   a connection to an instance; `idle` keeps those that may be used again
`coalescer`  short writes that are done together
`heads`      what of a head passes; `framing` where a body ends
`body`       what is sent to an instance; `coding` how it was compressed
`heartbeat`  what a client gets while its model is not ready
`usage`      what llama-server reports of its work, read from what passes by
`failures`   what became of an instance that failed; `errors` how the client is told
`endings`    requests that were abandoned, and on which an instance still works
"""

from __future__ import annotations

from router.proxy.body import BODY, Body, read_body
from router.proxy.errors import error_body, error_event, rejection_event
from router.proxy.heartbeat import HeartbeatConfig
from router.proxy.info import Dialect, RequestInfo, RequestStats
from router.proxy.request import ProxiedRequest, ProxyContext

__all__ = [
    "BODY", "Body", "Dialect", "HeartbeatConfig", "ProxiedRequest", "ProxyContext", "RequestInfo",
    "RequestStats", "error_body", "error_event", "read_body", "rejection_event",
]  # fmt: skip
