"""The memory models can live in: every device of this machine, what is free on it, what our processes hold.

    async with Devices() as devices:
        sample = await devices.sample(pids, now=time.monotonic())

`types`        DeviceInfo and Sample, what everybody else reads `sampler`      Devices: one sample at a time,
shared by all who wait for it `nvidia`       NVIDIA GPUs, by way of a child process (`nvml_probe`, run by
`probe`), so that the driver's library
               can neither hang nor crash the router; `nvml` is what runs in that child
`attribution`  whether the driver's figures per process can be believed
`visible`      CUDA_VISIBLE_DEVICES and its kin, where the router itself was started with one
`power`        whether a laptop's GPU sleeps, asked without waking it
`amd`          AMD GPUs by sysfs
`listed`       anything else, by what `llama-server --list-devices` prints
`host`         the machine's own memory, with `cgroup` and `process_memory`
`blocking`     a read that may hang, with a deadline

To add a kind of device: a file that reads it, and a line in `sampler`.
"""

from __future__ import annotations

from router.devices.sampler import Devices
from router.devices.types import HOST, DeviceInfo, Sample

__all__ = ["HOST", "DeviceInfo", "Devices", "Sample"]
