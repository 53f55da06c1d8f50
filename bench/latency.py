"""How soon `/v1/models` and `/vram` are answered while models load and streams run: they are said to come
from memory in any state, and this is where that shows.

    bench/latency --streams 200 --loading 3 --catalog 100

The router is a process of its own, its llama-servers are the fake one. The answers are timed by another
process, which does nothing else: what reads the streams would time itself. Ends with status 1 where the 99th
percentile of a path is above `--limit-ms`."""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import shutil
import sys
import tempfile
from pathlib import Path

import aiohttp

from tests.fake_binary import make_fake_binary
from tests.make_gguf import make_llama
from tests.router_process import RouterProcess

PATHS = ("/v1/models", "/vram", "/health")
#: Run by a process of its own: times each path in turn, on one connection.
PROBE = """
import http.client, json, sys, time
host, paths, count = sys.argv[1], json.loads(sys.argv[2]), int(sys.argv[3])
connection = http.client.HTTPConnection(host)
times, sizes = {path: [] for path in paths}, {}
for _ in range(count):
    for path in paths:
        begun = time.perf_counter()
        connection.request("GET", path)
        answer = connection.getresponse()
        sizes[path] = len(answer.read())
        times[path].append(time.perf_counter() - begun)
        assert answer.status == 200, answer.status
        time.sleep(0.002)
print(json.dumps([times, sizes]))
"""


async def main() -> int:
    asked = _arguments()
    with tempfile.TemporaryDirectory(prefix="latency-") as name:
        folder = Path(name)
        async with RouterProcess(folder, _prepare(folder, asked), config=_config(asked)) as router:
            await _load(router, "streaming")
            for number in range(asked.loading):
                await _begin_load(router, f"loading-{number}")
            async with asyncio.TaskGroup() as group:
                readers = [group.create_task(_read(router, n)) for n in range(asked.streams)]
                await _until_busy(router, asked)
                times, sizes = await _probe(router.url, asked.requests)
                states = await _states(router)
                for reader in readers:
                    reader.cancel()
            assert states.count("loading") == asked.loading, "the loads have ended before the measurement"
    print(
        f"{asked.streams} streams of {1 / asked.token_seconds:.0f} tokens/s, {asked.loading} models loading, "
        f"{asked.catalog} in the catalog, load average {os.getloadavg()[0]:.1f}"
    )
    print(f"{'path':12} {'bytes':>8} {'p50 ms':>8} {'p99 ms':>8} {'max ms':>8}   (of {asked.requests})")
    worst = 0.0
    for path in PATHS:
        p50, p99, most = (_at(times[path], share) * 1e3 for share in (0.5, 0.99, 1.0))
        worst = max(worst, p99)
        print(f"{path:12} {sizes[path]:8} {p50:8.2f} {p99:8.2f} {most:8.2f}")
    return int(worst > asked.limit_ms)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--streams", type=int, default=200)
    parser.add_argument("--token-seconds", type=float, default=0.1, help="between two tokens of a stream")
    parser.add_argument("--loading", type=int, default=3, help="models that load meanwhile")
    parser.add_argument("--catalog", type=int, default=100, help="further models that nobody uses")
    parser.add_argument("--requests", type=int, default=300, help="timed for each path")
    parser.add_argument("--limit-ms", type=float, default=50.0)
    return parser.parse_args()


def _prepare(folder: Path, asked: argparse.Namespace) -> Path:
    models = folder / "models"
    models.mkdir()
    first = make_llama(models / "streaming.gguf", name="streaming", sparse=True)
    for name in (*(f"loading-{n}" for n in range(asked.loading)), *(f"m{n}" for n in range(asked.catalog))):
        shutil.copyfile(first, models / f"{name}.gguf")
    return make_fake_binary(folder)


def _config(asked: argparse.Namespace) -> str:
    text = "[server]\nport = 0\naccess_log = false\n[memory]\nmargin_mib = 0\n"
    text += f'[models."streaming"]\nparallel = {max(1, asked.streams)}\n'
    text += f'env = {{ FAKE_LLAMA_TOKENS = "1000000", FAKE_LLAMA_TOKEN_SECONDS = "{asked.token_seconds}" }}\n'
    for number in range(asked.loading):
        text += f'[models."loading-{number}"]\nenv = {{ FAKE_LLAMA_LOAD_SECONDS = "600" }}\n'
    return text


async def _load(router: RouterProcess, model: str) -> None:
    async with router.client.post("/models/load?wait=1", json={"model": model}) as answer:
        assert answer.status == 200, await answer.text()


async def _begin_load(router: RouterProcess, model: str) -> None:
    async with router.client.post("/models/load", json={"model": model}) as answer:
        assert answer.status == 200, await answer.text()


async def _read(router: RouterProcess, number: int) -> None:
    """One client that reads its stream as it comes, on a connection of its own."""
    body = {"model": "streaming", "stream": True, "messages": [{"role": "user", "content": f"{number}"}]}
    connector = aiohttp.TCPConnector(limit=0)
    timeout = aiohttp.ClientTimeout(total=None)
    async with (
        aiohttp.ClientSession(router.url, connector=connector, timeout=timeout) as client,
        client.post("/v1/chat/completions", json=body) as answer,
    ):
        async for _ in answer.content.iter_any():
            pass
    raise AssertionError("a stream has ended")


async def _until_busy(router: RouterProcess, asked: argparse.Namespace) -> None:
    async with asyncio.timeout(60):
        while True:
            async with router.client.get("/models/loaded") as answer:
                rows = (await answer.json())["data"]
            leases = sum(one["leases"] for row in rows for one in row["instances"])
            if leases >= asked.streams and len(rows) == asked.loading + 1:
                return
            await asyncio.sleep(0.1)


async def _states(router: RouterProcess) -> list[str]:
    async with router.client.get("/models/loaded") as answer:
        return [row["status"]["value"] for row in (await answer.json())["data"]]


async def _probe(url: str, requests: int) -> tuple[dict[str, list[float]], dict[str, int]]:
    probe = await asyncio.create_subprocess_exec(
        sys.executable, "-S", "-c", PROBE, url.removeprefix("http://"), json.dumps(PATHS), str(requests),
        stdout=asyncio.subprocess.PIPE,
    )  # fmt: skip
    said, _ = await probe.communicate()
    assert probe.returncode == 0, "the probe failed"
    times, sizes = json.loads(said)
    return times, sizes


def _at(times: list[float], share: float) -> float:
    ordered = sorted(times)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


if __name__ == "__main__":
    sys.exit(asyncio.run(main()))
