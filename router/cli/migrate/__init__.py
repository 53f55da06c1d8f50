"""`llama-router import`: the configuration of another router as one of ours, and what did not come along.

`command`     files in, a file and a report out
`llama_swap`  a whole llama-swap.yaml
`swap_yaml`   its text and its macros, read as llama-swap reads them
`child_args`  the command of one model, as settings
`toml_text`   settings as text
"""
