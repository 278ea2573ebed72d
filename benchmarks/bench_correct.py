"""Correction in the lake: one new plate among few and among many, and all plates at once within a bound of memory."""

import json
import sys
import tempfile
from pathlib import Path
from statistics import median
from time import perf_counter

import numpy as np
import polars as pl

from benchmarks import bench_commit
from benchmarks.measure import Row, in_process, peak_mib
from warehouse import ingest
from warehouse.correct import correct
from warehouse.feature_sets import FeatureSet
from warehouse.lake import Lake
from warehouse.runs import Run

FEW, MANY, NEW = 10, 300, 5
RECIPE = "mad_robustize+sphering"
#: Plates that are fitted at once, few and many; in double precision the many take five times the memory allowed.
WIDE, WIDE_PLATES, MEMORY_MB = 1500, (50, 150), 128


def run() -> list[Row]:
    """Time the correction of a new plate in a small and in a large lake in turn; measure the memory of a large fit."""
    rng = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as folder:
        few, many = (_lake(Path(folder) / f"lake-{plates}", plates, rng) for plates in (FEW, MANY))
        times: dict[int, list[float]] = {FEW: [], MANY: []}
        for number in range(NEW):
            for plates, lake in ((FEW, few), (MANY, many)):
                _commit(lake, plates + number, rng, bench_commit.DIM)
                start = perf_counter()
                correct(lake, "bench", RECIPE)
                times[plates].append(perf_counter() - start)
        few.close()
        many.close()
    small, large = (median(times[plates]) for plates in (FEW, MANY))
    held = {}
    with tempfile.TemporaryDirectory() as folder:
        for plates in WIDE_PLATES:
            lake = f"{folder}/lake-{plates}"
            in_process("benchmarks.bench_correct", "build", lake, str(plates))
            held[plates] = in_process("benchmarks.bench_correct", "memory", lake)
    less, more = (held[plates] for plates in WIDE_PLATES)
    return [
        Row(
            "correct one new plate (384 wells × 384)",
            f"{1e3 * large:.0f} ms beside {MANY} plates",
            f"{1e3 * small:.0f} ms beside {FEW}",
            large / small,
            "≤ 1.5: other plates are not read",
        ),
        Row(
            f"fit {RECIPE} on {WIDE_PLATES[1] * 384:,} wells × {WIDE}, memory_mb={MEMORY_MB}",
            f"{more['mib']:.0f} MiB above the start, {more['seconds']:.0f} s",
            f"{less['mib']:.0f} MiB for {WIDE_PLATES[0] * 384:,} wells",
            more["mib"] / less["mib"],
            "bounded by the setting, not by the wells",
        ),
    ]


def _lake(folder: Path, plates: int, rng: np.random.Generator, dim: int = bench_commit.DIM) -> Lake:
    lake = Lake.create(folder)
    for number in range(plates):
        _commit(lake, number, rng, dim)
    correct(lake, "bench", RECIPE)
    return lake


def _commit(lake: Lake, number: int, rng: np.random.Generator, dim: int) -> None:
    target = FeatureSet("bench", "import", "1", None, {}, (), tuple(f"f{i}" for i in range(dim)), "well")
    data = bench_commit.plate(number, rng, dim)
    control = pl.when(pl.col("compound") == "compound-00").then(pl.lit("negative")).otherwise("control_type")
    assert data.layout is not None
    layout = data.layout.with_columns(control.alias("control_type"))
    ingest.commit_plate(lake, Run("bench", {}), target, data.__class__(**{**vars(data), "layout": layout}))


def _build(folder: str, plates: str) -> dict[str, float]:
    with Lake.create(Path(folder)) as lake:
        rng = np.random.default_rng(0)
        for number in range(int(plates)):
            _commit(lake, number, rng, WIDE)
    return {}


def _memory(folder: str) -> dict[str, float]:
    """Fit on profiles that are far larger than the memory allowed, and tell what the process took for it."""
    with Lake.open(Path(folder)) as lake:
        lake.connection.execute("SET memory_limit = '512MB'")
        before, start = peak_mib(), perf_counter()
        correct(lake, "bench", RECIPE, memory_mb=MEMORY_MB)
        return {"mib": peak_mib() - before, "seconds": perf_counter() - start}


if __name__ == "__main__":
    work = {"build": _build, "memory": _memory}[sys.argv[1]]
    print(json.dumps(work(*sys.argv[2:])))
