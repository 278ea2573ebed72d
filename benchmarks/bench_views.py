"""The views of a screen of 960,000 wells × 384 in 2,500 plates: all treatments, one of them, one plate's wells."""

import json
import sys
import tempfile
from pathlib import Path

import numpy as np
import polars as pl

from benchmarks.measure import Row, in_process, peak_mib, seconds
from warehouse import ingest, layouts
from warehouse.embeddings import to_column
from warehouse.feature_sets import FeatureSet
from warehouse.ingest import PlateData
from warehouse.lake import Lake
from warehouse.runs import Run
from warehouse.screens.model import ANNOTATIONS_SCHEMA

DIM = 384
PLATES = 2500
TREATMENTS = 7680
CONTROLS = 16  # of each plate: 40,000 wells of DMSO in all
WELLS = [f"{chr(ord('A') + row)}{column:02d}" for row in range(16) for column in range(1, 25)]

#: What is measured, how often, and what was asked of it.
QUERIES = {
    "all": ("SELECT * EXCLUDE (replicate_cosine) FROM bench.treatments", 3, "< 6 s, 6 GiB"),
    "one": (
        "SELECT * EXCLUDE (replicate_cosine) FROM bench.treatments WHERE treatment = 'compound-0123@1uM'",
        9,
        "< 0.3 s",
    ),
    "plate": (
        "FROM bench.well_profiles WHERE source = 's2' AND batch = 'b2' AND plate = 'p01234'",
        9,
        "< 0.1 s",
    ),
    "everything": ("FROM bench.treatments_checked", 1, "reported"),
}
TITLES = {
    "all": "all treatments of 960,000 wells × 384 in 2,500 files (profile, counts, lists, labels)",
    "one": "one treatment of them",
    "plate": "the wells of one plate",
    "everything": "all treatments with replicate_cosine and passing_share",
}


def plate(number: int, profiles: np.ndarray, rng: np.random.Generator) -> PlateData:
    """Make a plate: 16 wells of DMSO, and 368 treatments, the next 368 on the next plate; three doses a compound."""
    key = (f"s{number % 4}", f"b{number // 500}", f"p{number:05d}")
    first = number * (len(WELLS) - CONTROLS)
    codes = [None] * CONTROLS + [(first + i) % TREATMENTS for i in range(len(WELLS) - CONTROLS)]
    layout = pl.DataFrame(
        {
            "source": key[0],
            "batch": key[1],
            "plate": key[2],
            "well": WELLS,
            "compound": ["DMSO" if code is None else f"compound-{code // 3:04d}" for code in codes],
            "concentration": [None if code is None else (0.1, 1.0, 10.0)[code % 3] for code in codes],
            "unit": [None if code is None else "uM" for code in codes],
            "control_type": ["negative" if code is None else "none" for code in codes],
        }
    )
    matrix = rng.standard_normal((len(WELLS), DIM), dtype=np.float32)
    matrix[CONTROLS:] += profiles[codes[CONTROLS:]]
    counts = pl.lit(9, dtype=pl.Int32).alias("field_count"), pl.lit(2000, dtype=pl.Int32).alias("cell_count")
    wells = pl.DataFrame({"well": WELLS}).with_columns(*counts, to_column(matrix))
    return PlateData(key, f"content {number}", layout, None, (), pl.DataFrame(), wells, pl.DataFrame())


def build(path: Path, plates: int = PLATES) -> None:
    """Make the lake as nights would leave it: a commit, and so a file of wells and one of the layout, per plate."""
    rng = np.random.default_rng(0)
    profiles = rng.standard_normal((TREATMENTS, DIM), dtype=np.float32)
    target = FeatureSet("bench", "import", "1", None, {}, (), tuple(f"f{i}" for i in range(DIM)), "well")
    run_of = Run("bench", {})
    with Lake.create(path) as lake:
        for number in range(plates):
            ingest.commit_plate(lake, run_of, target, plate(number, profiles, rng))
        labels = [
            (f"compound-{i:04d}", None, None, kind, f"{kind}-{i % 90}")
            for i in range(TREATMENTS // 3)
            for kind in ("moa", "target")
        ]
        layouts.put_annotations(lake, run_of, pl.DataFrame(labels, schema=ANNOTATIONS_SCHEMA, orient="row"))


def run() -> list[Row]:
    """Build the lake, and ask each query in a process of its own."""
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "lake"
        build(path)
        for name, (_, _, asked) in QUERIES.items():
            found = in_process("benchmarks.bench_views", str(path), name)
            rows.append(
                Row(
                    TITLES[name],
                    f"{1e3 * found['seconds']:.0f} ms",
                    f"peak of its process: {found['gib']:.1f} GiB; {found['rows']:,.0f} rows",
                    found["seconds"],
                    asked,
                )
            )
    return rows


def ask(path: Path, name: str) -> dict[str, float]:
    """Ask one query of the lake, and return its median time and the peak memory of this process."""
    query, repeats, _ = QUERIES[name]
    with Lake.open(path, read_only=True) as lake:
        made: list[int] = []
        took = seconds(
            lambda: made.append(lake.connection.execute(query).to_arrow_table().num_rows),
            repeats,
            warm_up=int(repeats > 1),
        )
    peak = peak_mib() / 1024
    return {"seconds": took, "gib": peak, "rows": made[-1]}


if __name__ == "__main__":
    print(json.dumps(ask(Path(sys.argv[1]), sys.argv[2])))
