"""The memory models can live in: every device of this machine, what is free on it, what our processes hold.

    async with Devices() as devices:
        sample = await devices.sample(pids, now=time.monotonic())

`types`        DeviceInfo and Sample, what everybody else reads
`sampler`      Devices: one sample at a time, shared by all who wait for it
`nvidia`       NVIDIA GPUs, asked through a child process, so that the driver's library can neither hang nor
               crash the router: `nvml_probe` is that child and `nvml` its calls, `probe` the router's end of
               it, `protocol` what they say, `probe_line` when there is one
`attribution`  whether the driver's figures per process can be believed
`visible`      CUDA_VISIBLE_DEVICES and its kin, where the router itself was started with them
`power`        whether a laptop's GPU sleeps, asked without waking it
`amd`          AMD GPUs by sysfs, with `amd_processes`
`listed`       anything else, by what `llama-server --list-devices` prints
`host`         the machine's own memory, with `cgroup` and `process_memory`
`found`        what each source contributes; `blocking` and `kernel_files` are how they read

To add a kind of device: a file that reads it, and a line in `sampler`.
"""

from __future__ import annotations

from router.memory.devices.sampler import Devices
from router.memory.devices.types import HOST, DeviceInfo, Sample

__all__ = ["HOST", "DeviceInfo", "Devices", "Sample"]
