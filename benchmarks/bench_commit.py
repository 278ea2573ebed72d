"""Commit of a plate of 384 wells × 384 dimensions, against writing the same rows to Parquet with pyarrow."""

import tempfile
from pathlib import Path
from statistics import median
from time import perf_counter

import numpy as np
import polars as pl
import pyarrow.parquet as pq

from benchmarks.measure import Row
from warehouse import ingest
from warehouse.embeddings import to_column
from warehouse.feature_sets import FeatureSet
from warehouse.ingest import PlateData
from warehouse.lake import Lake
from warehouse.runs import Run

DIM = 384
PLATES = 200
WELLS = [f"{chr(ord('A') + row)}{column:02d}" for row in range(16) for column in range(1, 25)]


def plate(number: int, rng: np.random.Generator, dim: int = DIM) -> PlateData:
    """Make a plate of random profiles with a layout of 96 compounds × 4."""
    layout = pl.DataFrame(
        {
            "source": "bench",
            "batch": "B1",
            "plate": f"P{number:04d}",
            "well": WELLS,
            "compound": [f"compound-{i % 96:02d}" for i in range(len(WELLS))],
            "concentration": 1.0,
            "unit": "uM",
            "control_type": "none",
        }
    )
    counts = pl.lit(9, dtype=pl.Int32).alias("field_count"), pl.lit(2000, dtype=pl.Int32).alias("cell_count")
    wells = pl.DataFrame({"well": WELLS}).with_columns(
        *counts, to_column(rng.normal(size=(len(WELLS), dim)).astype(np.float32))
    )
    key = ("bench", "B1", f"P{number:04d}")
    return PlateData(key, f"content {number}", layout, None, (), pl.DataFrame(), wells, pl.DataFrame())


def run() -> list[Row]:
    """Measure commits one by one, each beside a pyarrow write of the same wells."""
    rng = np.random.default_rng(0)
    target = FeatureSet("bench", "import", "1", None, {}, (), tuple(f"f{i}" for i in range(DIM)), "well")
    run_of = Run("bench", {})
    commits, writes = [], []
    with tempfile.TemporaryDirectory() as folder, Lake.create(Path(folder) / "lake") as lake:
        for number in range(PLATES):
            data = plate(number, rng)
            start = perf_counter()
            ingest.commit_plate(lake, run_of, target, data)
            commits.append(perf_counter() - start)
            table = data.wells.to_arrow()
            start = perf_counter()
            pq.write_table(table, Path(folder) / f"{number}.parquet", compression="snappy")
            writes.append(perf_counter() - start)
    # The first commit also makes the feature set, its tables and views.
    early, late, write = median(commits[1:21]), median(commits[-20:]), median(writes[1:])
    middle = median(commits[1:])
    return [
        Row(
            "commit of a plate, 384 × 384 (wells, layout, counts, catalog)",
            f"{middle * 1e3:.0f} ms",
            f"pyarrow write of its wells: {write * 1e3:.1f} ms",
            middle / write,
            "reported",
        ),
        Row(
            f"commit of plates {PLATES - 19}–{PLATES}",
            f"{late * 1e3:.0f} ms",
            f"plates 2–21: {early * 1e3:.0f} ms",
            late / early,
            "flat",
        ),
    ]
