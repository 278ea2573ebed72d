"""Small lakes with known numbers, for many tests."""

import shutil
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import polars as pl

from warehouse import ingest, layouts
from warehouse.embeddings import to_column
from warehouse.feature_sets import FeatureSet
from warehouse.ingest import PlateData
from warehouse.lake import Lake
from warehouse.runs import Run
from warehouse.screens.model import ANNOTATIONS_SCHEMA, LAYOUT_SCHEMA

TINY = FeatureSet("tiny", "import", "1", None, {}, (), ("f1", "f2", "f3"), "well")
_REJECTIONS = {"well": pl.String, "field": pl.String, "cell": pl.String, "reason": pl.String}

#: Wells of the small lake: key of the plate, then well, compound, concentration in uM, control, profile.
#: A compound of "-" is a well in the layout without compound, "?" a profile without a layout; no profile: no data.
SMALL = {
    ("s1", "b1", "p1"): [
        ("A01", "DMSO", None, "negative", (0, 0, 2)),
        ("A02", "DMSO", None, "negative", (0, 2, 0)),
        ("A03", "taxol", 0.3, "none", (1, 2, 3)),
        ("A04", "taxol", 3.0, "none", (3, 4, 5)),
        ("A05", "-", None, "none", (9, 9, 9)),
        ("A06", "?", None, None, (7, 7, 7)),
        ("B01", "aspirin", 1.0, "none", None),
    ],
    ("s1", "b1", "p2"): [
        ("A01", "DMSO", None, "negative", (2, 2, 2)),
        ("A03", "taxol", 0.3, "none", (3, None, 5)),
    ],
    ("s1", "b2", "p3"): [
        ("A01", "DMSO", None, "negative", (1, 1, 1)),
        ("A02", "nocodazole", 1.0, "positive", (0, 3, 0)),
        ("A03", "taxol", 0.3, "none", (5, 6, 7)),
    ],
    ("s2", "b1", "p4"): [
        ("A01", "DMSO", None, "negative", (4, 4, 4)),
        ("A02", "nocodazole", 1.0, "none", (0, 5, 0)),
        ("A03", "taxol", 0.3, "none", (11, None, 13)),
    ],
}
LABELS = [
    ("taxol", None, None, "moa", "Microtubule stabilizers"),
    ("taxol", 3.0, "uM", "moa", "Actin disruptors"),
    ("taxol", None, None, "target", "TUBB"),
    ("taxol", None, None, "target", "TUBA1A"),
    ("taxol", 0.3, None, "pathway", "cytoskeleton"),
    ("taxol", 0.3, "mM", "pathway", "in another unit"),
    ("nocodazole", None, None, "moa", "Microtubule destabilizers"),
]


def profiles(wells: dict[str, tuple], counts: bool = False) -> pl.DataFrame:
    """Rows of `<feature set>.wells`; None in a vector is a missing element."""
    matrix = np.array([[np.nan if x is None else x for x in v] for v in wells.values()], dtype=np.float32)
    ids = pl.DataFrame({"well": list(wells)}, schema={"well": pl.String}).with_columns(
        pl.lit(2 if counts else None, dtype=pl.Int32).alias("field_count"),
        pl.lit(10 if counts else None, dtype=pl.Int32).alias("cell_count"),
    )
    return ids.with_columns(to_column(matrix))


def layout(key: tuple[str, str, str], wells: list[tuple]) -> pl.DataFrame:
    """A layout of (well, compound, concentration in uM, control type)."""
    rows = [
        (*key, well, None if compound == "-" else compound, dose, None if dose is None else "uM", control)
        for well, compound, dose, control in wells
    ]
    return pl.DataFrame(rows, schema=LAYOUT_SCHEMA, orient="row")


def plate(key, wells, content="h1", layout=None, rejections=(), **counts) -> PlateData:
    rejected = pl.DataFrame(list(rejections), schema=_REJECTIONS, orient="row")
    return PlateData(
        key,
        content,
        layout,
        None,
        (),
        pl.DataFrame(),
        profiles(wells) if wells else no_wells(),
        rejected,
        **counts,
    )


def no_wells() -> pl.DataFrame:
    return profiles({"A01": (0.0, 0.0, 0.0)}).clear()


def commit(
    lake: Lake, data: PlateData, feature_set: FeatureSet = TINY, run: Run | None = None, replace: bool = True
) -> str:
    return ingest.commit_plate(lake, run or Run("test", {}), feature_set, data, replace=replace)


def small_plate(key, content="h1") -> PlateData:
    rows = SMALL[key]
    plan = layout(key, [(w, c, d, control) for w, c, d, control, _ in rows if c != "?"])
    return plate(key, {w: v for w, _, _, _, v in rows if v is not None}, content, plan)


@cache
def _templates() -> tempfile.TemporaryDirectory:
    return tempfile.TemporaryDirectory(prefix="wellhouse-lakes-")


@cache
def _template(make: Callable[[Path], Lake]) -> Path:
    path = Path(_templates().name) / make.__name__
    make(path).close()
    return path


def _copied(make: Callable[[Path], Lake], path: Path) -> Lake:
    """Make a lake once a run, and copy it: that is faster, and a lake's folder may be moved."""
    shutil.copytree(_template(make), path)
    return Lake.open(path)


def new_lake(path: Path) -> Lake:
    """An empty lake."""
    return _copied(Lake.create, path)


def small_lake(path: Path) -> Lake:
    """A lake of two sources, three batches, four plates, three dimensions, and labels."""
    return _copied(_small_lake, path)


def neighbour_lake(path: Path) -> Lake:
    """Six compounds on two plates of two batches, with directions that can be compared by hand."""
    return _copied(_neighbour_lake, path)


def _small_lake(path: Path) -> Lake:
    lake = Lake.create(path)
    run = Run("test", {})
    for key in SMALL:
        commit(lake, small_plate(key), run=run)
    layouts.put_annotations(lake, run, pl.DataFrame(LABELS, schema=ANNOTATIONS_SCHEMA, orient="row"))
    return lake


def random_plate(key, seed, dim=4, controls=4, treatments=6, shift=0.0, content=None) -> PlateData:
    """A plate of DMSO wells and one well each of treatments c0, c1, …, with seeded random profiles."""
    rng = np.random.default_rng(seed)
    plan = [(f"A{i + 1:02d}", "DMSO", None, "negative") for i in range(controls)]
    plan += [(f"B{i + 1:02d}", f"c{i}", 1.0, "none") for i in range(treatments)]
    wells = {well: tuple(rng.normal(shift, 1, dim)) for well, *_ in plan}
    return plate(key, wells, content or f"seed {seed}", layout(key, plan))


def wide(dim: int, name: str = "wide") -> FeatureSet:
    return FeatureSet(name, "import", "1", None, {}, (), tuple(f"f{i + 1}" for i in range(dim)), "well")


def state(
    lake: Lake, tables=("plates", "wells", "plate_loads", "rejections", "runs", "feature_sets")
) -> dict:
    """Rows of the shared tables, to see that nothing changed."""
    return {name: sorted(map(repr, lake.frame(f"SELECT * FROM main.{name}").rows())) for name in tables}


#: Treatments of the neighbour lake: plate, compound, concentration, profile. Plates p1 and p2 are batch b1 and b2.
NEIGHBOURS = [
    ("p1", "a", 1.0, (1.0, 0.0, 0.0)),
    ("p1", "a", 3.0, (1.0, 0.05, 0.0)),
    ("p1", "b", 1.0, (0.9, 0.1, 0.0)),
    ("p2", "c", 1.0, (0.8, 0.3, 0.0)),
    ("p2", "d", 1.0, (0.0, 1.0, 0.0)),
    ("p2", "e", 1.0, (0.0, 0.2, 1.0)),
    ("p1", "f", 1.0, (2.0, 2.0, 2.0)),
    ("p2", "f", 1.0, (0.0, 2.0, 2.0)),
]
MOAS = {"a": "A", "b": "A", "c": "B", "d": "B", "e": "C"}


def neighbour_plate(name: str, shift: float = 0.0) -> PlateData:
    key = ("s", name.replace("p", "b"), name)
    rows = [
        (compound, dose, vector) for plate_name, compound, dose, vector in NEIGHBOURS if plate_name == name
    ]
    plan = [("H12", "DMSO", None, "negative")]
    wells: dict[str, tuple] = {"H12": (0.1, 0.1, 0.1)}
    for number, (compound, dose, vector) in enumerate(rows):
        plan.append((f"A{number + 1:02d}", compound, dose, "none"))
        wells[f"A{number + 1:02d}"] = tuple(x + shift for x in vector)
    return plate(key, wells, f"shift {shift}", layout(key, plan))


def _neighbour_lake(path: Path) -> Lake:
    lake = Lake.create(path)
    for name in ("p1", "p2"):
        commit(lake, neighbour_plate(name))
    labels = [(compound, None, None, "moa", moa) for compound, moa in MOAS.items()]
    layouts.put_annotations(
        lake, Run("test", {}), pl.DataFrame(labels, schema=ANNOTATIONS_SCHEMA, orient="row")
    )
    return lake


#: What a person might type after --where to do more than choose rows.
INJECTIONS = [
    "1=1); DROP TABLE main.wells; --",
    "1=1; DELETE FROM main.wells",
    "1=1) UNION SELECT * FROM tiny.treatments WHERE (1=1",
    "1=1) UNION ALL SELECT * EXCLUDE (embedding) FROM tiny.treatments WHERE (1=1",
    "1=1) UNION ALL SELECT * FROM tiny.wells WHERE (1=1",
    "1=1) ORDER BY (random()",
    "treatment IN (DELETE FROM main.wells RETURNING well)",
    "treatment IN (SELECT snapshot_id::VARCHAR FROM ducklake_expire_snapshots('lake', older_than => now()))",
    "EXISTS (SELECT * FROM \"DuckLake_Delete_Orphaned_Files\"('lake', cleanup_all => true))",
    "EXISTS (WITH x AS (FROM ducklake_set_option('lake', 'parquet_compression', 'gzip')) FROM x)",
    "EXISTS (FROM query('FROM check' || 'point()'))",
    "EXISTS (FROM system.main.checkpoint())",
    "EXISTS (FROM sqlite_query('__ducklake_metadata_lake', 'DELETE FROM ducklake_snapshot RETURNING 1'))",
    "",
    ") (",
    "treatment = 'a' FROM main.wells",
    "1=1, 2=2",
    "/* open",
]
