"""Device memory, in bytes.

`devices`   which memory pools there are (NVML, AMD, host), and how many bytes of each are free
`estimate`  the bytes that a model will take on each device, from its header and settings
"""
