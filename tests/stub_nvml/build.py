"""Builds the stub library with the compiler at hand, once per version of its source and machine."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

SOURCE = Path(__file__).with_name("nvml_stub.c")
SONAME = "libnvidia-ml.so.1"


def build() -> Path | None:
    """The folder that holds the built library, to be put into LD_LIBRARY_PATH; None where there is no C
    compiler."""
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if compiler is None:
        return None
    version = hashlib.sha256(SOURCE.read_bytes() + compiler.encode()).hexdigest()[:16]
    folder = Path(tempfile.gettempdir()) / f"llama-router-stub-nvml-{os.getuid()}-{version}"
    folder.mkdir(mode=0o700, exist_ok=True)
    library = folder / SONAME
    if not library.exists():
        fresh = folder / f".{os.getpid()}.so"
        flags = ["-O1", "-Wall", "-Wextra", "-shared", "-fPIC", f"-Wl,-soname,{SONAME}"]
        subprocess.run([compiler, *flags, "-o", fresh, SOURCE], check=True)
        fresh.rename(library)  # two test runs may build at once
    return folder


def library_environment(folder: str | os.PathLike[str], library: Path | None) -> dict[str, str]:
    """What a process needs in its environment so that its pynvml finds the stub, and the stub its folder."""
    environment = {"LLAMA_ROUTER_STUB_NVML": os.fspath(folder)}
    if library is not None:
        # The loader reads it when the interpreter starts: setting it later has no effect on dlopen.
        environment["LD_LIBRARY_PATH"] = os.fspath(library)
    return environment
