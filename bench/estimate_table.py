"""Print predicted against reported memory, for every model and setting of tests/memory/estimate/cases.py.

    python bench/estimate_table.py [--server PATH]

needs a llama-server (a CPU build: LLAMA_SERVER, PATH or the cache names it) and the packages of the tests.
Exits with status 1 when a weight, cache or state is more than 1 % off, or a sum under what the server
reports.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # the table lives with the tests, which are not installed

from tests.memory.estimate.cases import CASES, HOST, REPACKED_CASES, Case  # noqa: E402
from tests.memory.estimate.reported import MIB, Reported, find_llama_server, run_and_read  # noqa: E402

KINDS = ("weights", "repacked", "kv", "state", "compute")
ROUNDING_BYTES = 0.06 * MIB
"""The server rounds every line of its report to 0.01 MiB; several lines add up."""


@dataclass(frozen=True, slots=True)
class Row:
    name: str
    predicted: dict[str, int]
    reported: dict[str, int]
    footprint: int
    allocated: int
    resident: int

    def error(self, kind: str) -> float:
        """Relative error of a kind; 0 within the rounding of the report."""
        predicted, actual = self.predicted[kind], self.reported[kind]
        if abs(predicted - actual) <= ROUNDING_BYTES:
            return 0.0
        return (predicted - actual) / actual if actual else float("inf")


def measure(server: Path, case: Case) -> Row:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        estimate, model, argv = case.predict(folder)
        reported = run_and_read(server, model, argv, folder)
    predicted = dict.fromkeys(KINDS, 0)
    for term in estimate.terms:
        kind = term.explanation.split(" ", 1)[0] if term.kind == "draft" else term.kind
        if kind in predicted:
            predicted[kind] += term.bytes
    # Beside a repacked copy the mapping covers all of the file; only its other tensors are needed.
    mapped = predicted["weights"] if reported.repacked else reported.weights
    buffers = mapped + reported.repacked + reported.kv + reported.state + reported.compute
    return Row(
        case.name,
        predicted,
        {kind: mapped if kind == "weights" else getattr(reported, kind) for kind in KINDS},
        estimate.footprint[HOST.id],
        buffers + reported.output + reported.encoder,
        _resident(reported),
    )


def _resident(reported: Reported) -> int:
    return reported.anonymous + (0 if reported.repacked else reported.file_backed)


def render(rows: list[Row]) -> str:
    head = f"{'MiB predicted / reported':28}" + "".join(f"{kind:>18}" for kind in KINDS)
    lines = [head + f"{'sum':>18}{'over':>9}{'resident':>10}"]
    for row in rows:
        cells = "".join(
            f"{row.predicted[kind] / MIB:9.2f}/{row.reported[kind] / MIB:8.2f}"
            if row.predicted[kind] or row.reported[kind]
            else f"{'-':>18}"
            for kind in KINDS
        )
        total = f"{row.footprint / MIB:9.1f}/{row.allocated / MIB:8.1f}"
        over = f"{(row.footprint - row.allocated) / MIB:8.1f} "
        lines.append(f"{row.name:28}{cells}{total}{over}{row.resident / MIB:10.1f}")
    for kind in KINDS:
        worst = max(rows, key=lambda row: abs(row.error(kind)))
        lines.append(f"worst error of {kind}: {worst.error(kind):+.2%} ({worst.name})")
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--server", type=Path, default=find_llama_server())
    server: Path | None = parser.parse_args().server
    if server is None:
        sys.stderr.write("no llama-server: set LLAMA_SERVER or run bin/build-llama-server\n")
        return 2
    rows = [measure(server, case) for case in (*CASES, *REPACKED_CASES)]
    sys.stdout.write(render(rows) + "\n")
    exact = all(
        abs(row.error(kind)) <= 0.01 for row in rows for kind in ("weights", "repacked", "kv", "state")
    )
    return 0 if exact and all(row.footprint >= row.allocated for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
