"""Where the llama-server binary is, and what it says of itself and of the devices it sees."""

from __future__ import annotations

import asyncio
import os
import re
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from router.errors import StartupError
from router.installation import build_command
from router.process import output_of

_ASK_SECONDS: Final = 20.0

#: What a child inherits. Keys and tokens stay here, and LLAMA_ARG_* that would change its settings.
INHERITED: Final = re.compile(
    r"PATH|HOME|USER|LOGNAME|SHELL|LANG|LANGUAGE|TZ|TMPDIR|TEMP|TMP|LC_.+|XDG_CACHE_HOME|XDG_RUNTIME_DIR"
    r"|LD_LIBRARY_PATH|LD_PRELOAD|DYLD_.+|SYSTEMROOT"
    r"|CUDA_.+|NVIDIA_.+|NCCL_.+|HIP_.+|HSA_.+|ROCM_.+|ROCR_.+|ROCBLAS_.+|HIPBLASLT_.+|AMD_.+|GPU_.+"
    r"|VK_.+|VULKAN_.+|MESA_.+|RADV_.+|DRI_PRIME|GGML_.+|ONEAPI_.+|SYCL_.+|ZE_.+|ZES_.+|MUSA_.+|METAL_.+|MTL_.+"
    r"|OMP_.+|GOMP_.+|KMP_.+|MKL_.+|OPENBLAS_.+|BLIS_.+|MALLOC_.+"
)


def find_binary(configured: str | Path | None = None, environ: Mapping[str, str] = os.environ) -> Path:
    """The llama-server to use: configured, else $LLAMA_SERVER, else on PATH, else the newest finished build.

    Raises StartupError, also when a named one cannot be run: another would silently be used otherwise.
    """
    for origin, named in (("paths.llama_server", configured), ("$LLAMA_SERVER", environ.get("LLAMA_SERVER"))):
        if named:
            found = shutil.which(named, path=environ.get("PATH"))
            if found is None:
                raise StartupError(f"{origin} is {named}, which is not a program that can be run")
            return Path(found).absolute()
    on_path = shutil.which("llama-server", path=environ.get("PATH", os.defpath))
    if on_path is not None:
        return Path(on_path).absolute()
    built = [path for path in _builds(environ) if os.access(path, os.X_OK) and path.is_file()]
    if not built:
        raise StartupError(
            "no llama-server: not configured, not in $LLAMA_SERVER, not on $PATH, none built;"
            f" run {build_command()}, or set paths.llama_server"
        )
    return max(built, key=lambda path: path.stat().st_mtime)


def find_fit_params(server: Path) -> Path | None:
    """The `llama-fit-params` of the same build, beside the server. Many distributions leave it out."""
    beside = (where.with_name("llama-fit-params") for where in (server, server.resolve()))
    return next((path for path in beside if path.is_file() and os.access(path, os.X_OK)), None)


def _builds(environ: Mapping[str, str]) -> list[Path]:
    cache = environ.get("XDG_CACHE_HOME", "")
    base = Path(cache) if cache.startswith("/") else Path(environ.get("HOME") or Path.home()) / ".cache"
    folder = base / "llama-router" / "llama-server"
    # A build in progress lives in building-*; only what is finished is renamed.
    finished = [path for path in folder.glob("*") if not path.name.startswith("building-")]
    return [path for entry in finished for path in entry.glob("**/llama-server")]


async def version(binary: Path) -> str:
    """What it says of itself: "0.6.0-dev (build 11434, commit unknown)". Raises StartupError."""
    said = await _ask(binary, "--version")
    found = re.search(r"^version: (.+)$", said, re.MULTILINE)
    if found is None:
        raise StartupError(f"{binary} is no llama-server: --version says {said.strip()[:200]!r}")
    return found[1].strip()


class BuildInfo:
    """Ask a llama-server for its build_info ("b11434-unknown"), once for each binary there was."""

    def __init__(self) -> None:
        self._known: dict[tuple[str, int, int], str] = {}
        self._asking = asyncio.Lock()

    async def of(self, binary: Path) -> str | None:
        """None where it cannot be told."""
        async with self._asking:
            try:
                status = await asyncio.to_thread(binary.stat)
                key = (str(binary), status.st_size, status.st_mtime_ns)
                if key not in self._known:
                    self._known = {key: _build(await version(binary))}
                return self._known[key] or None
            except (StartupError, OSError):
                return None


def _build(version: str) -> str:
    """Of `0.6.0-dev (build 11434, commit unknown)`, or of older ones `6000 (abc1234)`; else ""."""
    found = re.search(r"\(build (\d+), commit (\S+)\)|^(\d+) \((\S+)\)", version)
    return f"b{found[1] or found[3]}-{found[2] or found[4]}" if found is not None else ""


async def refused_args(binary: Path, args: Sequence[str]) -> str | None:
    """Why the binary would not start with these arguments; None where it would. Nothing is loaded: it reads
    its arguments in order, and ends at --version. Raises StartupError where it cannot be run."""
    status, text = await _run(binary, *args, "--version")
    found = re.search(r"^error\b.*", text, re.MULTILINE) if status else None
    # No GPU is shown to it, to spare seconds and memory: what it says of devices says nothing.
    return found[0] if found is not None and "invalid device" not in found[0] else None


async def list_devices(binary: Path) -> str:
    """What `--list-devices` prints. It touches every GPU: seconds, and some hundred MiB for that time."""
    return await _ask(binary, "--list-devices", visible=True)


async def _ask(binary: Path, flag: str, *, visible: bool = False) -> str:
    status, text = await _run(binary, flag, visible=visible)
    if status != 0:
        raise StartupError(f"{binary} {flag} ended with status {status}: {text.strip()[-500:]}")
    return text


async def _run(binary: Path, *args: str, visible: bool = False) -> tuple[int, str]:
    """Status and output of a run to its end; with no GPU unless they are to be `visible`. Raises
    StartupError.
    """
    env = {name: value for name, value in os.environ.items() if INHERITED.fullmatch(name)}
    if not visible:
        env["CUDA_VISIBLE_DEVICES"] = ""
    try:
        ran = await output_of((binary, *args), env, timeout_seconds=_ASK_SECONDS, with_errors=True)
    except TimeoutError:
        raise StartupError(f"{binary} {args[-1]} gave no answer within {_ASK_SECONDS:.0f} s") from None
    except OSError as error:
        raise StartupError(f"cannot run {binary}: {error.strerror or error}") from error
    return ran.status, ran.data.decode(errors="replace")
