"""`llama-router import`: the configuration of another router as one of ours, and what did not come along.

`macros`      llama-swap's ${names}, replaced
`child_args`  the command of one model, as settings
`llama_swap`  a whole llama-swap.yaml
`swap_yaml`   its text, read as llama-swap reads it
`llama_ini`   llama.cpp's INI, which is read as it is
`toml_text`   settings as text
`command`     files in, a file and a report out
"""

from __future__ import annotations

from router.cli.migrate.command import import_

__all__ = ["import_"]
