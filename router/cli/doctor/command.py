"""`llama-router doctor`: everything that is looked at, in order."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Final

import click
import msgspec
from click.core import ParameterSource

from router.cli.client import print_json
from router.cli.doctor import machine, software
from router.cli.doctor.findings import Finding, Level
from router.cli.doctor.remote import look_at_router

_COLOURS: Final = {Level.OK: "green", Level.WARN: "yellow", Level.FAIL: "red"}


@click.command()
@click.option("--config", "-c", type=click.Path(path_type=Path), help="The configuration file.")
@click.option("--url", envvar="LLAMA_ROUTER_URL", help="Ask the router there, and look at nothing here.")
@click.option("--api-key", envvar="LLAMA_ROUTER_API_KEY", help="A key of that router.")
@click.option("--json", "as_json", is_flag=True, help="Print the findings as JSON.")
@click.pass_context
def doctor(
    ctx: click.Context, /, config: Path | None, url: str | None, api_key: str | None, as_json: bool
) -> None:
    """Look whether this machine is ready, and say what to do where it is not.

    With --url or $LLAMA_ROUTER_URL, and without --config: what the router there says of its devices and
    models.
    The status is 1 when something keeps the router from its work.
    """
    if config is not None and ctx.get_parameter_source("url") is ParameterSource.COMMANDLINE:
        raise click.UsageError("--config is of this machine, and --url of another: give one of them")
    findings = []
    for finding in look_at_router(url, api_key) if url and config is None else _findings(config):
        findings.append(finding)
        if not as_json:
            _show(finding)
    if as_json:
        print_json(msgspec.to_builtins(findings))
    ctx.exit(1 if any(one.level is Level.FAIL for one in findings) else 0)


def _findings(path: Path | None) -> Iterator[Finding]:
    """What one look needs of another is passed on; without a configuration nothing else can be looked at."""
    config, findings = software.look_at_configuration(path)
    yield from findings
    if config is None:
        return
    binary, findings = software.look_at_binary(config)
    yield from findings
    listed = ""
    if binary is not None:
        listed, findings = software.devices_of_binary(binary)
        yield from findings
    yield from machine.look_at_devices(listed)
    yield from machine.look_at_permissions(config)
    yield from machine.look_at_limits()
    yield from machine.look_at_disks(config)
    yield from software.look_at_models(config)
    yield from machine.look_at_address(config.server)


def _show(finding: Finding) -> None:
    level = click.style(f"{finding.level.value:<4}", fg=_COLOURS[finding.level])
    click.echo(f"{level}  {finding.about}: {finding.found}")
    if finding.do:
        click.echo(f"      -> {finding.do}")
