"""Read the options of a llama-server from its --help. This is how llama_options.py is made anew.

llama-server --help | python -m router.presets.options_from_help > router/presets/llama_options.py
"""

from __future__ import annotations

import re
import sys
import textwrap
from collections.abc import Iterator

_HEAD = re.compile(r"(?P<args>-[^\s,]+(?:, +-[^\s,]+)*)(?: (?P<metavar>\S.*?))?(?:   .*)?")
_ENV = re.compile(r"\(env: (?P<env>\w+)\)")
_HEADER = '''"""Every option of llama-server, as its --help names them; made by options_from_help.py.

A line is: arguments | arguments that negate | what the value is | environment variable
"""

from __future__ import annotations

from typing import Final

LLAMA_OPTIONS: Final = r"""
'''


def options_from_help(text: str) -> Iterator[str]:
    """The lines of the table: `-c --ctx-size | | N | LLAMA_ARG_CTX_SIZE`."""
    head, env = "", ""
    for line in [*text.splitlines(), "-"]:
        if line.startswith("-"):  # an option, or the title of a group: "----- common params -----"
            if not head.startswith("-----") and (match := _HEAD.fullmatch(head)):
                args, negations = _split_negations(match["args"].replace(",", " ").split())
                metavar = textwrap.shorten(match["metavar"] or "", 48, placeholder="...")
                yield " | ".join((" ".join(args), " ".join(negations), metavar, env)).rstrip(" |")
            head, env = line, ""
        elif match := _ENV.search(line):
            env = match["env"]


def _split_negations(args: list[str]) -> tuple[list[str], list[str]]:
    """All positive arguments are printed before the negations: `--kv-offload, -nkvo, --no-kv-offload`."""
    if len(args) > 1 and any(arg.startswith("--no-") for arg in args):
        first = next(number for number, arg in enumerate(args) if arg.startswith(("-n", "--no-")))
        return args[:first], args[first:]
    return args, []


if __name__ == "__main__":
    sys.stdout.write(_HEADER)
    sys.stdout.writelines(f"{line}\n" for line in options_from_help(sys.stdin.read()))
    sys.stdout.write('"""\n')
