"""The NVML probe over the stub that needs no compiler: `python -m tests.stub_nvml.probe` in place of the real
one."""

from __future__ import annotations

import os
from pathlib import Path

import pynvml

from router.memory.devices import nvml_probe
from tests.stub_nvml.python_library import PythonNvml
from tests.stub_nvml.state import FOLDER_VARIABLE

if __name__ == "__main__":
    pynvml.nvmlLib = PythonNvml(Path(os.environ[FOLDER_VARIABLE]))
    nvml_probe.main()
