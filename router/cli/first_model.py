"""The first start of all: a router without models gets one to try, and its owner is told how to get a
real one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from router.cli.client import address_of
from router.config import Config, models_dirs
from router.errors import StartupError
from router.models.catalog import Catalog
from router.models.demo_model import NAME, write_demo_model

#: A small model of good sense, under a free licence.
_REAL_MODEL = "Qwen/Qwen3-0.6B-GGUF:Q8_0"


def find_models(config: Config, *, say: Callable[[str], None]) -> Catalog:
    """What the sources have; if that is nothing, a demonstration model is written and told of. Where there
    are GGUF files that are no models nothing is written: the warnings say why each is not offered. Raises
    ConfigError.
    """
    catalog = Catalog.scan(config)
    if catalog.entries or catalog.gguf_files:
        return catalog
    folder = models_dirs(config)[0]
    if config.paths.models_dirs and not folder.is_dir():
        raise StartupError(f"no model found: the models folder {folder} does not exist")
    path = folder / f"{NAME}.gguf"
    try:
        write_demo_model(path)
    except OSError as error:
        raise StartupError(
            f"no model found, and none can be written to {folder}: {error.strerror or error}"
        ) from error
    say(_words(config, path))
    return Catalog.scan(config)


def _words(config: Config, path: Path) -> str:
    address = address_of(config.server)
    path_of_socket = address.removeprefix("unix:")
    where = f"--unix-socket {path_of_socket} http://localhost" if path_of_socket != address else address
    url = f"{where}/v1/chat/completions"
    body = f'{{"model":"{NAME}","stream":true,"messages":[{{"role":"user","content":"Hello"}}]}}'
    return f"""\
No model was found, so a small one was made: {path}
It has random weights and speaks NONSENSE, to show that everything works. A first answer:

    curl -N {url} -d '{body}'

A real one (0.6 GB), which is listed once it is there:

    llama-router pull {_REAL_MODEL}
"""
