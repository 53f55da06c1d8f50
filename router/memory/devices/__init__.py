"""The memory models can live in: every device of this machine, what is free on it, what our processes hold.

    async with Devices() as devices:
        sample = await devices.sample(pids, now=time.monotonic())

`types`        DeviceInfo and Sample, what the other packages read; Found, what each source contributes
`sampler`      Devices: one sample at a time, shared by all who wait for it
`nvidia`       NVIDIA GPUs, asked through a child process, so that the driver's library can neither hang nor
               crash the router: `nvml_probe` is that child and `nvml` its calls, `probe` the router's end of
               it, `protocol` their messages, `probe_line` when there is one
`attribution`  what each process holds, and whether the driver's figures per process can be believed
`visible`      CUDA_VISIBLE_DEVICES and its kin, where the router itself was started with them
`amd`          AMD GPUs by sysfs
`listed`       anything else, by what `llama-server --list-devices` prints
`host`         the machine's own memory, with `cgroup` and `process_memory`
`blocking` and `kernel_files` are how they read

To add a kind of device: a file that reads it, and a line in `sampler`.
"""

from __future__ import annotations

from router.memory.devices.sampler import Devices
from router.memory.devices.types import HOST, DeviceInfo, Sample

__all__ = ["HOST", "DeviceInfo", "Devices", "Sample"]
