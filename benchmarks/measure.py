"""Measuring: medians of repeated runs, and the peak memory of a process of its own."""

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from time import perf_counter


@dataclass(frozen=True)
class Row:
    """One line of the results: what was measured, against what, and the bound that was asked for."""

    benchmark: str
    measured: str
    against: str
    ratio: float
    asked: str


def seconds(work: Callable[[], object], repeats: int, warm_up: int = 1) -> float:
    """Run `work` and return the median of its wall times, in seconds."""
    for _ in range(warm_up):
        work()
    times = []
    for _ in range(repeats):
        start = perf_counter()
        work()
        times.append(perf_counter() - start)
    return median(times)


def peak_mib() -> float:
    """Return the most memory that this process has had, in MiB.

    Not `ru_maxrss`: Linux counts in it what the process had that started this one.
    """
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    return next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM")) / 1024


def in_process(module: str, *arguments: str) -> dict[str, float]:
    """Run a module as a process of its own and return the JSON object that it prints last.

    Memory of one measurement can so not hide in what an earlier one left behind.
    """
    command = [sys.executable, "-m", module, *arguments]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    found: dict[str, float] = json.loads(done.stdout.strip().splitlines()[-1])
    return found
