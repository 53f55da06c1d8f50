"""`llama-router serve`: the router itself, in the foreground."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click

from router.first_process import serve_in_child

#: glibc's name for how many arenas there may be (malloc.h).
_M_ARENA_MAX = -8
#: Command-line option -> key of config.toml; the configuration checks the values.
_KEYS = {
    "host": "server.host",
    "port": "server.port",
    "api_key": "server.api_keys",
    "models_dir": "paths.models_dirs",
    "models_preset": "paths.presets",
    "state_dir": "paths.state_dir",
    "models_max": "scheduler.models_max",
    "policy": "scheduler.policy",
    "memory_margin": "memory.margin_mib",
}


class PassThrough(click.Command):
    """Passes everything after `--` on as it stands; click alone would take a stray word before it for the
    same.
    """

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        at = args.index("--") if "--" in args else len(args)
        ctx.meta["child_args"] = args[at + 1 :]
        return super().parse_args(ctx, args[:at])


@click.command(cls=PassThrough, options_metavar="[OPTIONS] [-- LLAMA_SERVER_ARGS...]")
@click.option("--config", "-c", type=click.Path(path_type=Path), help="The configuration file.")
@click.option(
    "--host",
    multiple=True,
    help="An address to listen on, or a path ending in .sock; may be repeated. [127.0.0.1]",
)
@click.option("--port", type=int, help="The port to listen on. [8080]")
@click.option("--models-dir", multiple=True, help="A folder with GGUF files; may be repeated.")
@click.option(
    "--models-preset", multiple=True, help="A preset file, TOML or llama.cpp's INI; may be repeated."
)
@click.option("--models-max", type=int, help="Never more models loaded than this; 0: as many as fit.")
@click.option("--memory-margin", type=int, metavar="MIB", help="What stays free on each device; 0: no check.")
@click.option("--policy", help="Who leaves for a newcomer: lru, no-evict, ttl, lru-ttl, cost.")
@click.option(
    "--api-key", multiple=True, help='A key that clients need, or "env:NAME", "file:PATH"; may be repeated.'
)
@click.option(
    "--no-autoload", is_flag=True, help="A request does not load its model; POST /models/load does."
)
@click.option("--state-dir", help="Where sockets, logs and the database are kept.")
@click.pass_context
def serve(ctx: click.Context, /, config: Path | None, no_autoload: bool, **options: Any) -> None:
    """Serve every model that is found. What stands after -- goes to every llama-server; -m FILE or -hf REPO
    there adds a model."""
    serve_in_child()  # where this is PID 1, and before there are threads
    share_memory_between_threads()
    # Here and not above: the other commands must not wait for a web server to be imported.
    with _lighter_libraries():
        from router.app import run, taking_over
    from router.cli.first_model import find_models
    from router.cli.log_lines import Lines, handler_for
    from router.cli.one_model import one_model
    from router.config import Config, load_config

    of_one, of_all = one_model(ctx.meta["child_args"])
    overrides = _overrides(options, no_autoload, of_all) | of_one

    def read_config() -> Config:
        return load_config(config, overrides)

    handler = handler_for(sys.stderr)
    handler.setFormatter(Lines())
    logging.basicConfig(level=logging.INFO, handlers=[handler])
    with taking_over() as predecessor:
        read = read_config()
        run(read, find_models(read, say=click.echo), read_config, say=click.echo, predecessor=predecessor)


def share_memory_between_threads() -> None:
    """glibc gives threads memory of their own and keeps there what the largest work in each once took: each
    that had read the models held another 1 MiB for good, 12 in all where they were read again and again.
    Threads that wait for the interpreter do not wait for memory as well. Not by MALLOC_ARENA_MAX: children
    would inherit it.
    """
    import ctypes

    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):
        libc.mallopt(_M_ARENA_MAX, 1)


@contextmanager
def _lighter_libraries() -> Iterator[None]:
    """Around their import. What frozenlist has of C++ brings its library, 1 MiB, for lists that are read when
    the router starts. (The certificates that aiohttp reads as it is imported, 50 ms and 2 MiB, stay: without
    them whatever speaks TLS later in this process would trust no server.)"""
    name = "FROZENLIST_NO_EXTENSIONS"
    before = {name: os.environ[name]} if name in os.environ else {}
    os.environ[name] = "1"
    try:
        yield
    finally:
        del os.environ[name]
        os.environ.update(before)


def _overrides(options: dict[str, Any], no_autoload: bool, child_args: list[str]) -> dict[str, object]:
    overrides: dict[str, object] = {
        _KEYS[option]: list(value) if isinstance(value, tuple) else value
        for option, value in options.items()
        if value not in (None, ())
    }
    if no_autoload:
        overrides["scheduler.autoload"] = False
    if child_args:
        overrides["child.args"] = child_args
    return overrides
