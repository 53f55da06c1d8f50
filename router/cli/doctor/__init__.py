"""`llama-router doctor`: whether this machine is ready for the router, and what to do where it is not.

`command`    all of them in order, as words or JSON
`findings`   one thing that was looked at: whether it is well, and what to do else
`software`   configuration, llama-server, models
`machine`    devices, drivers, permissions, limits, disks, the address
`remote`     a router that runs elsewhere, by what it says
"""
