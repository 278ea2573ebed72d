"""Run the benchmarks (all, or those named) and write their rows into the table of `benchmarks/RESULTS.md`."""

import os
import platform
import sys
from datetime import UTC, datetime
from importlib import import_module
from pathlib import Path

from benchmarks.measure import Row

ALL = (
    "commit",
    "transfer",
    "memory",
    "nights",
    "import",
    "aggregate",
    "views",
    "correct",
    "sphering",
    "search",
    "evaluate",
    "train",
)
RESULTS = Path(__file__).parent / "RESULTS.md"
MARK = "<!-- written by make bench: below this line -->"


def main(names: list[str]) -> None:
    """Measure, print, and renew the table, or the rows of the benchmarks named; what stands above the mark is kept."""
    rows: list[Row] = []
    for name in names or ALL:
        for row in import_module(f"benchmarks.bench_{name}").run():
            print(
                f"{row.benchmark}: {row.measured}; {row.against}; ratio {row.ratio:.2f} (asked: {row.asked})"
            )
            rows.append(row)
    above, _, below = RESULTS.read_text(encoding="utf-8").partition(MARK)
    lines = [] if not names else [line for line in below.splitlines() if line.startswith("| ")][1:]
    RESULTS.write_text(above + MARK + "\n\n" + _table(lines, rows), encoding="utf-8")


def _table(lines: list[str], rows: list[Row]) -> str:
    """Put rows in the place of those of the same name, or after the others."""
    table = {line.split(" | ")[0]: line for line in lines}
    for r in rows:
        line = f"| {r.benchmark} | {r.measured} | {r.against} | {r.ratio:.2f} | {r.asked} |"
        table[line.split(" | ")[0]] = line
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    written = [
        f"{datetime.now(UTC):%Y-%m-%d}, {os.cpu_count()} cores, {memory:.0f} GiB, {platform.machine()}, no GPU; "
        f"Python {platform.python_version()}. Medians; each ratio within one run.",
        "",
        "| benchmark | measured | against | ratio | asked |",
        "|---|---|---|---|---|",
        *table.values(),
    ]
    return "\n".join(written) + "\n"


if __name__ == "__main__":
    main(sys.argv[1:])
