"""Programs of people: each uses its client as it is documented, in a process of its own, and is told nothing
but an address. It may reach that address and no other."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from typing import Any

#: What a client does behind its user's back (telemetry, tables of prices) would be an error here.
_PRELUDE = """
import json, os, socket, sys, warnings
warnings.simplefilter("ignore")
url, key = os.environ["URL"], "secret"
real_connect, real_lookup = socket.socket.connect, socket.getaddrinfo

def connect(self, address):
    if self.family != socket.AF_UNIX and address[0] not in ("127.0.0.1", "::1"):
        print("reached out to", address, file=sys.stderr)
        os._exit(9)
    return real_connect(self, address)

def lookup(host, *more, **options):
    if host not in ("127.0.0.1", "localhost", None):
        print("looked up", host, file=sys.stderr)
        os._exit(9)
    return real_lookup(host, *more, **options)

socket.socket.connect, socket.getaddrinfo = connect, lookup
HELLO = [{"role": "user", "content": "hello"}]
LIGHT = {"type": "object", "properties": {"on": {"type": "boolean"}}, "required": ["on"]}
told = {}
"""
PATIENCE_SECONDS = 90


async def run(program: str, url: str) -> dict[str, Any]:
    """What the program has put into `told`."""
    text = f"{_PRELUDE}\n{program}\nprint(json.dumps(told))\n"
    kept = {name: value for name, value in os.environ.items() if not name.endswith("_API_KEY")}
    kept |= {"URL": url, "LITELLM_LOCAL_MODEL_COST_MAP": "True", "LANGSMITH_TRACING": "false"}
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", text, env=kept, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    try:
        async with asyncio.timeout(PATIENCE_SECONDS):
            output, errors = await process.communicate()
    except BaseException:
        process.kill()
        raise
    assert process.returncode == 0, f"{process.returncode}: {errors.decode()[-3000:]}"
    return dict(json.loads(output.decode().splitlines()[-1]))
