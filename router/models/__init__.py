"""Which models there are and how each is run.

`catalog`      models in folders, in the Hugging Face cache and in presets, by name
`definitions`  a catalog entry and the devices -> the scheduler's Model, and how to launch it
`demo_model`   a small model to try the router with
"""
