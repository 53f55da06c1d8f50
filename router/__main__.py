"""`python -m router` and the command `llama-router`."""

from __future__ import annotations

from router.cli import cli


def main() -> None:
    cli(prog_name="llama-router")


if __name__ == "__main__":
    main()
