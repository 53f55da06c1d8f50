"""What the real llama-server says it has allocated: started with `-lv 4`, read from its log, stopped."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

MIB = 1 << 20
LOAD_DEADLINE_SECONDS = 120.0

# "load_tensors:   CPU_Mapped model buffer size =     0.47 MiB"; split models have one line per shard.
_BUFFER = re.compile(r"\b(\w+):\s+(\S+)\s+(model |KV |RS |compute |output )buffer size =\s*([\d.]+) MiB")


@dataclass(frozen=True, slots=True)
class Reported:
    """Bytes by kind of buffer, of all models it loaded; and resident memory once it listens.

    The server rounds each to 0.01 MiB.
    """

    weights: int
    repacked: int
    kv: int
    state: int
    compute: int
    output: int
    encoder: int
    """The compute buffer of a multimodal encoder; its weights are reported nowhere."""
    anonymous: int
    file_backed: int


def find_llama_server() -> Path | None:
    """The llama-server to test against: $LLAMA_SERVER, PATH, or one built into the cache by
    bin/build-llama-server."""
    named = os.environ.get("LLAMA_SERVER")
    if named:
        return Path(named)
    found = shutil.which("llama-server")
    if found:
        return Path(found)
    cache = Path.home() / ".cache" / "llama-router" / "llama-server"
    for pattern in ("*/llama-server", "*/bin/llama-server"):
        for path in sorted(cache.glob(pattern), reverse=True):
            if os.access(path, os.X_OK) and path.is_file():
                return path
    return None


def run_and_read(server: Path, model: Path, args: Sequence[str], folder: Path) -> Reported:
    """Start `server` with `model` and `args` until it listens, read its buffers, stop it."""
    log_path = folder / "server.log"
    argv = [str(server), "-m", str(model), "--host", str(folder / "s.sock"), "-lv", "4", "--fit", "off"]
    argv += args
    environment = {**os.environ, "GGML_NO_BACKTRACE": "1"}
    with (
        log_path.open("wb") as log,
        subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment) as process,
    ):
        try:
            deadline = time.monotonic() + LOAD_DEADLINE_SECONDS
            while "listening on" not in log_path.read_text(errors="replace"):
                if process.poll() is not None or time.monotonic() > deadline:
                    tail = log_path.read_text(errors="replace")[-2000:]
                    raise AssertionError(f"llama-server did not start: {argv}\n{tail}")
                time.sleep(0.02)
            status = Path(f"/proc/{process.pid}/status").read_text()
        finally:
            process.kill()
    return parse_log(log_path.read_text(errors="replace"), status)


def parse_log(log: str, status: str = "") -> Reported:
    sums: dict[str, float] = {}
    for function, buffer, kind, mib in _BUFFER.findall(log):
        name = kind.strip()
        if name == "model" and "REPACK" in buffer:
            name = "repacked"
        elif name == "compute" and function == "reserve_compute_meta":
            name = "encoder"
        sums[name] = sums.get(name, 0.0) + float(mib)
    resident = {
        key: int(kib) * 1024 for key, kib in re.findall(r"^(Rss\w+):\s+(\d+) kB", status, re.MULTILINE)
    }
    return Reported(
        weights=round(sums.get("model", 0.0) * MIB),
        repacked=round(sums.get("repacked", 0.0) * MIB),
        kv=round(sums.get("KV", 0.0) * MIB),
        state=round(sums.get("RS", 0.0) * MIB),
        compute=round(sums.get("compute", 0.0) * MIB),
        output=round(sums.get("output", 0.0) * MIB),
        encoder=round(sums.get("encoder", 0.0) * MIB),
        anonymous=resident.get("RssAnon", 0),
        file_backed=resident.get("RssFile", 0),
    )
