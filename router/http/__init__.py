"""The client's side: connections, and what becomes of each request that comes on them.

`connection`   one HTTP/1.1 connection: finds the head and the body of each request, and dispatches by path
`head`         the head of a request, read once
`inference`    requests that are proxied: checked, their bodies read, then handed to `router.proxy`
`application`  all other requests: passed to the aiohttp application, as a transport of aiohttp's own protocol
`server`       listens; bounds how many connections there are
"""
