"""The client side of a connection: HTTP/1.1, limits, and the dispatch of requests.

`connections`  limits on connections, heads and bodies, above aiohttp's server
`front`        one client connection: short requests for inference are answered here, all others by aiohttp
`express`      checks such a request and hands it to its instance
"""
