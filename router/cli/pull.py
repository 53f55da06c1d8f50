"""`llama-router pull`: fetch a model from the Hugging Face hub, with a line that tells how far it is."""

from __future__ import annotations

import sys
import time
from operator import itemgetter
from typing import Any, Final

import click

from router.cli.bars import bar
from router.cli.client import Client, client_options, print_json
from router.cli.progress import POLL_SECONDS, show_line
from router.cli.words import Columns, duration, gib, print_items, size

ACTIVE: Final = frozenset({"queued", "downloading", "waiting"})
#: Where there is no terminal: a line this often, for whoever reads the log.
LOG_SECONDS: Final = 10.0


@click.command()
@client_options
@click.argument("source", required=False)
@click.option(
    "--quantization", "-q", default="", metavar="NAME", help="For example Q8_0. [Q4_K_M, else Q8_0]"
)
@click.option("--include", multiple=True, metavar="PATTERN", help="Files to fetch; may be repeated.")
@click.option("--exclude", multiple=True, metavar="PATTERN", help="Files not to fetch; may be repeated.")
@click.option("--revision", default="", metavar="NAME", help="A branch, tag or commit. [main]")
@click.option("--look", is_flag=True, help="Only tell what there is and what would be fetched.")
@click.option("--no-wait", is_flag=True, help="Return when the download has begun.")
def pull(client: Client, as_json: bool, source: str | None, look: bool, no_wait: bool, **asked: Any) -> None:
    """Fetch the model SOURCE: ORG/REPO, ORG/REPO:QUANTIZATION or an address on the hub.

    The router fetches it; Ctrl-C stops it, and the same command goes on where it stopped. Without SOURCE the
    downloads are listed.
    """
    if source is None:
        _list(client, as_json=as_json)
        return
    body = {"repo": source, **{name: value for name, value in asked.items() if value}}
    if look:
        found = client.post("/models/verify-repo", body)
        print_json(found) if as_json else _tell(found)
        return
    job = client.post("/models/download", body)
    if not no_wait:
        job = _follow(client, job)
    if as_json:
        print_json(job)
    elif no_wait:
        click.echo(f"{_name(job)}: {job['state']}")
    elif job["state"] == "finished":
        click.echo(f"{_name(job)}: {gib(job['total_bytes'])}, ready to be used")
        if job["note"]:
            click.echo(job["note"])
    if not no_wait and job["state"] != "finished":
        raise click.ClickException(f"{_name(job)}: {(job['error'] or {}).get('message', job['state'])}")


def _follow(client: Client, job: dict[str, Any]) -> dict[str, Any]:
    """Until it has ended, one way or the other. Ctrl-C cancels it."""
    path = f"/models/downloads/{job['id']}"
    told_at, told = 0.0, ""
    try:
        while job["state"] in ACTIVE:
            words = _progress(job)
            if sys.stderr.isatty():
                show_line(words)
            elif job["state"] != told or time.monotonic() - told_at >= LOG_SECONDS:
                click.echo(words, err=True)
                told_at, told = time.monotonic(), job["state"]
            time.sleep(POLL_SECONDS)
            job = client.get(path)
    except KeyboardInterrupt:
        client.post(f"{path}/cancel", {})
        show_line("")
        click.echo(f"{_name(job)}: stopped. The same command goes on from here.", err=True)
        raise click.exceptions.Exit(130) from None
    if sys.stderr.isatty():
        show_line("")
    return job


def _progress(job: dict[str, Any]) -> str:
    done, total = job["done_bytes"], job["total_bytes"]
    name = _name(job)
    match job["state"]:
        case "queued":
            return f"{name}: waits for other downloads"
        case "waiting":
            left = max(0.0, (job["retry_at"] or 0.0) - time.time())
            return f"{name}: {job['error']['message']}; tried again in {duration(left)}"
    drawn = bar((("ours", done), ("free", max(0, total - done))))
    pace = f", {gib(job['bytes_per_second'])}/s" if job["bytes_per_second"] else ""
    left = f", {duration(job['expected_seconds'])} left" if job["expected_seconds"] is not None else ""
    return f"{name} {drawn} {100 * done // max(1, total)} % of {gib(total)}{pace}{left}"


def _name(job: dict[str, Any]) -> str:
    return str(job["models"][0] if job["models"] else job["repo"])


def _tell(found: dict[str, Any]) -> None:
    if found["quantizations"]:
        print_items(_QUANTIZATIONS, found["quantizations"])
    fetch = found["fetch"]
    if fetch is not None:
        click.echo(f"\nWould fetch {gib(fetch['missing_bytes'])} into {fetch['folder']}:")
        for file in fetch["files"]:
            click.echo(f"  {file['path']} ({gib(file['size'])})")
    problem = found["problem"] or (fetch or {}).get("problem")
    if problem is not None:
        raise click.ClickException(problem["message"])


def _list(client: Client, *, as_json: bool) -> None:
    jobs = client.get("/models/downloads")["data"]
    if as_json:
        print_json(jobs)
        return
    if not jobs:
        click.echo("There are no downloads.")
        return
    print_items(_JOBS, jobs)


_QUANTIZATIONS: Final[Columns] = {
    "QUANTIZATION": lambda found: found["name"] or found["files"][0],
    "SIZE": size("size"),
    "FILES": lambda found: str(len(found["files"])),
    "NOTE": lambda found: ", ".join(["default"] * found["is_default"] + ["here"] * found["is_present"]),
}
_JOBS: Final[Columns] = {
    "MODEL": _name,
    "STATE": itemgetter("state"),
    "DONE": size("done_bytes"),
    "SIZE": size("total_bytes"),
    "NOTE": lambda job: (job["error"] or {}).get("message") or job["note"] or "",
}
