"""Run the benchmarks (all, or those named) and write their table to `benchmarks/RESULTS.md`."""

import os
import platform
import sys
from datetime import UTC, datetime
from importlib import import_module
from pathlib import Path

from benchmarks.measure import Row

ALL = ("commit", "transfer", "memory", "nights", "import", "aggregate", "views", "correct", "sphering")
RESULTS = Path(__file__).parent / "RESULTS.md"
MARK = "<!-- written by make bench: below this line -->"


def main(names: list[str]) -> None:
    """Measure, print, and renew the table; what stands above the mark in the file is kept."""
    rows: list[Row] = []
    for name in names or ALL:
        for row in import_module(f"benchmarks.bench_{name}").run():
            print(
                f"{row.benchmark}: {row.measured}; {row.against}; ratio {row.ratio:.2f} (asked: {row.asked})"
            )
            rows.append(row)
    if names:
        return
    above = RESULTS.read_text(encoding="utf-8").split(MARK)[0] if RESULTS.exists() else "# Results\n\n"
    RESULTS.write_text(above + MARK + "\n\n" + _table(rows), encoding="utf-8")


def _table(rows: list[Row]) -> str:
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    lines = [
        f"{datetime.now(UTC):%Y-%m-%d}, {os.cpu_count()} cores, {memory:.0f} GiB, {platform.machine()}, no GPU; "
        f"Python {platform.python_version()}. Medians; each ratio within one run.",
        "",
        "| benchmark | measured | against | ratio | asked |",
        "|---|---|---|---|---|",
        *(f"| {r.benchmark} | {r.measured} | {r.against} | {r.ratio:.2f} | {r.asked} |" for r in rows),
    ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main(sys.argv[1:])
