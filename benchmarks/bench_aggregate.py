"""Cell to field by median to well by mean, one plate of 300,000 cells × 384: in memory, from Parquet, and in SQL.

The rival is `pycytominer.aggregate`, twice, on the same numbers; contenders take turns, so that whatever else the
machine does falls on all of them.
"""

import json
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from time import perf_counter

import numpy as np
import polars as pl

from benchmarks.measure import Row, in_process, peak_mib

CELLS, DIM, WELLS, FIELDS = 300_000, 384, 384, 9
REPEATS = 5
Work = Callable[[], np.ndarray]
KEY = ("s", "b", "P1")
NAMES = [f"emb{i}" for i in range(DIM)]
KEYS = ["Metadata_Well", "Metadata_Site"]
#: What each contender runs in a process of its own, which prints its seconds, its peak memory and a sum of the wells.
CONTENDERS = ("lake", "pycytominer", "sql")


def run() -> list[Row]:
    """Measure all."""
    rows = [_in_memory()]
    with tempfile.TemporaryDirectory() as folder:
        in_process("benchmarks.bench_aggregate", "write", folder)
        found: dict[str, list[dict[str, float]]] = {name: [] for name in CONTENDERS}
        for _ in range(REPEATS):
            for name in CONTENDERS:
                found[name].append(in_process("benchmarks.bench_aggregate", name, folder))
    for name in CONTENDERS:
        for one in found[name]:
            np.testing.assert_allclose(one["checksum"], found["pycytominer"][0]["checksum"], rtol=1e-4)
    seconds = {name: median(one["seconds"] for one in found[name]) for name in CONTENDERS}
    mib = {name: median(one["mib"] for one in found[name]) for name in CONTENDERS}
    size = f"{CELLS // 1000},000 cells × {DIM}, median of fields, mean of wells"
    against = f"pycytominer from Parquet: {seconds['pycytominer']:.2f} s, {mib['pycytominer']:.0f} MiB"
    said = {name: f"{seconds[name]:.2f} s, {mib[name]:.0f} MiB" for name in CONTENDERS}
    faster = {name: seconds["pycytominer"] / seconds[name] for name in CONTENDERS}
    return [
        *rows,
        Row(f"{size}, from the lake's Parquet: time", said["lake"], against, faster["lake"], "≥ 4"),
        Row(
            "cells to wells from Parquet: peak memory",
            said["lake"],
            against,
            mib["lake"] / mib["pycytominer"],
            "≤ 0.5",
        ),
        Row("from cells in SQL (`profile --from-cells`): time", said["sql"], against, faster["sql"], "≥ 1"),
    ]


def cells() -> tuple[pl.DataFrame, np.ndarray]:
    """Make a plate: ids, ordered by well and field as extractors give them, and seeded numbers."""
    rng = np.random.default_rng(0)
    place = np.sort(rng.integers(0, WELLS * FIELDS, CELLS))
    wells = np.array([f"{chr(65 + i // 24)}{i % 24 + 1:02d}" for i in range(WELLS)])
    ids = {"well": wells[place // FIELDS], "field": (place % FIELDS + 1).astype(str)}
    return pl.DataFrame(ids), rng.standard_normal((CELLS, DIM), dtype=np.float32)


def by_pycytominer(frame: object) -> np.ndarray:
    """Aggregate a pandas frame to fields and wells."""
    from pycytominer import aggregate

    fields = aggregate(frame, strata=KEYS, features=NAMES, operation="median")
    wells = aggregate(fields, strata=KEYS[:1], features=NAMES, operation="mean")
    found: np.ndarray = wells[NAMES].to_numpy()
    return found


def _in_memory() -> Row:
    import pandas as pd

    from warehouse.embeddings import to_matrix
    from warehouse.levels import fields_from_cells, wells_from_fields

    ids, matrix = cells()
    frame = pd.DataFrame(matrix, columns=NAMES)
    for key, name in zip(KEYS, ids.columns, strict=True):
        frame.insert(0, key, ids[name].to_numpy())

    def ours() -> np.ndarray:
        fields = fields_from_cells(ids, matrix, "median")
        return to_matrix(wells_from_fields(fields, DIM, "mean")["embedding"], DIM)

    np.testing.assert_allclose(ours(), by_pycytominer(frame), rtol=1e-5, atol=1e-6)
    taken: tuple[list[float], list[float]] = ([], [])
    for _ in range(REPEATS):
        for times, work in zip(taken, (ours, lambda: by_pycytominer(frame)), strict=True):
            times.append(_timed(work))
    here, there = map(median, taken)
    name = f"{CELLS // 1000},000 cells × {DIM}, median of fields, mean of wells, in memory"
    return Row(name, f"{here:.2f} s", f"pycytominer: {there:.2f} s", there / here, "≥ 6")


def _timed(work: Callable[[], object]) -> float:
    start = perf_counter()
    work()
    return perf_counter() - start


def write(folder: Path) -> None:
    """Write the plate as a lake, and as the Parquet file of one column a feature that pycytominer reads."""
    from warehouse import ingest
    from warehouse.embeddings import to_column
    from warehouse.feature_sets import FeatureSet
    from warehouse.ingest import PlateData
    from warehouse.lake import Lake
    from warehouse.levels import fields_from_cells, wells_from_fields
    from warehouse.runs import Run

    ids, matrix = cells()
    features = pl.DataFrame(matrix, schema=NAMES)
    ids.rename(dict(zip(ids.columns, KEYS, strict=True))).hstack(features).write_parquet(
        folder / "cells.parquet"
    )
    target = FeatureSet("bench", "import", "1", None, {}, (), tuple(NAMES), "cell")
    fields = fields_from_cells(ids, matrix, "median")
    table = ids.with_columns(pl.int_range(pl.len()).cast(pl.String).alias("cell"), to_column(matrix))
    rejections = pl.DataFrame(schema=dict.fromkeys(("well", "field", "cell", "reason"), pl.String))
    wells = wells_from_fields(fields, DIM, "mean")
    data = PlateData(KEY, "h", None, None, (table,), fields, wells, rejections, cells_seen=CELLS)
    with Lake.create(folder / "lake") as lake:
        ingest.commit_plate(lake, Run("bench", {}), target, data)


@contextmanager
def from_lake(folder: Path) -> Iterator[Work]:
    """Read the cells of the plate out of an open lake, and aggregate them as ingestion does."""
    from warehouse import feature_sets
    from warehouse.embeddings import to_matrix
    from warehouse.lake import Lake
    from warehouse.levels import plate_from_cells

    with Lake.open(folder / "lake", read_only=True) as lake:
        target = feature_sets.find(lake, "bench")
        yield lambda: to_matrix(plate_from_cells(lake, target, KEY)[1]["embedding"], DIM)


@contextmanager
def from_sql(folder: Path) -> Iterator[Work]:
    """Let DuckDB aggregate, on an open lake."""
    from warehouse.lake import Lake
    from warehouse.slices import Slice, read

    with Lake.open(folder / "lake", read_only=True) as lake:
        yield lambda: read(lake, "bench", level="well", part=Slice(from_cells=True)).matrix


@contextmanager
def from_parquet(folder: Path) -> Iterator[Work]:
    """Let pandas read, and pycytominer aggregate."""
    import pandas as pd
    import pycytominer

    del pycytominer
    yield lambda: by_pycytominer(pd.read_parquet(folder / "cells.parquet"))


def measured(contender: str, folder: Path) -> dict[str, float]:
    """Run a contender once: wall time without imports, this process's peak memory, and a sum over its answer."""
    works = dict(zip(CONTENDERS, (from_lake, from_parquet, from_sql), strict=True))
    with works[contender](folder) as work:
        start = perf_counter()
        wells = work()
        seconds = perf_counter() - start
    return {"seconds": seconds, "mib": peak_mib(), "checksum": float(np.abs(wells).sum(dtype=np.float64))}


if __name__ == "__main__":
    if sys.argv[1] == "write":
        write(Path(sys.argv[2]))
        print("{}")
    else:
        print(json.dumps(measured(sys.argv[1], Path(sys.argv[2]))))
