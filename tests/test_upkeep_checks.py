"""Counts balance with the rows that are there: a lake broken on purpose, and the check that names the fault."""

import numpy as np
import polars as pl
import pytest
from builders import commit, layout, new_lake, profiles

from warehouse.embeddings import to_column
from warehouse.feature_sets import FeatureSet
from warehouse.ingest import PlateData
from warehouse.status import faults

KEYS = [("s", "b", "p1"), ("s", "b", "p2")]
CELLS = FeatureSet("seen", "method", "1", None, {}, ("DNA",), ("f1", "f2", "f3"), "cell")
TABLE = FeatureSet("tabular", "import", "1", None, {}, (), ("f1", "f2", "f3"), "well")


def vectors(frame):
    return frame.with_columns(to_column(np.arange(3 * len(frame), dtype=np.float32).reshape(-1, 3)))


def imaged_plate(key):
    """Two wells, two fields each (one image rejected), two cells a field, one of them rejected."""
    fields = [("A01", "1"), ("A01", "2"), ("A02", "1")]
    cells = [(*field, str(cell)) for field in fields for cell in (1, 2)][:-1]
    images = pl.DataFrame([*fields, ("A02", "2")], schema=("well", "field"), orient="row").with_columns(
        cell=pl.lit(None, dtype=pl.String), channels=pl.lit(["DNA"]), paths=pl.lit(["x.tif"]),
        planes=pl.lit([None], dtype=pl.List(pl.Int32)), digests=pl.lit(["d"]),
    )  # fmt: skip
    cell_rows = vectors(pl.DataFrame(cells, schema=("well", "field", "cell"), orient="row"))
    counts = pl.Series("cell_count", [2, 2, 1], dtype=pl.Int32)
    field_rows = vectors(pl.DataFrame(fields, schema=("well", "field"), orient="row").with_columns(counts))
    well_rows = vectors(
        pl.DataFrame({"well": ["A01", "A02"], "field_count": [2, 1], "cell_count": [4, 1]}).cast(
            {"field_count": pl.Int32, "cell_count": pl.Int32}
        )
    )
    rejections = pl.DataFrame(
        [("A02", "2", None, "cannot be read"), ("A02", "1", "2", "feature 'f1' is NaN")],
        schema=("well", "field", "cell", "reason"), orient="row",
    )  # fmt: skip
    plan = layout(key, [("A01", "DMSO", None, "negative"), ("A02", "taxol", 1.0, "none")])
    return PlateData(
        key, "h", plan, images, (cell_rows,), field_rows, well_rows, rejections,
        images_seen=4, images_rejected=1, cells_seen=6, cells_rejected=1,
    )  # fmt: skip


def imported_plate(key):
    rejections = pl.DataFrame(
        [("A03", None, None, "no value")], schema=("well", "field", "cell", "reason"), orient="row"
    ).cast(pl.String)
    return PlateData(
        key, "h", None, None, (), pl.DataFrame(), profiles({"A01": (1, 2, 3), "A02": (2, 3, 4)}), rejections,
        profiles_seen=3, profiles_rejected=1,
    )  # fmt: skip


@pytest.fixture
def lake(tmp_path):
    with new_lake(tmp_path / "lake") as made:
        for key in KEYS:
            commit(made, imaged_plate(key), CELLS)
            commit(made, imported_plate(key), TABLE)
        assert faults(made) == {}
        yield made


P2 = {"source": "s", "batch": "b", "plate": "p2"}
#: Name of a fault to: the statement that plants it, the check that finds it, and what that says besides the plate.
PLANTED = {
    "a cell is gone": (
        "DELETE FROM seen.cells WHERE plate = 'p2' AND field = '2' AND cell = '1'",
        "cells_as_loaded (seen)",
        {"cells_in": 5, "cells_there": 4, "cells_of_fields": 5, "cells_of_wells": 5},
    ),
    "cells are in twice": (
        "INSERT INTO seen.cells SELECT * FROM seen.cells WHERE plate = 'p2'",
        "cells_as_loaded (seen)",
        {"cells_in": 5, "cells_there": 10, "cells_of_fields": 5, "cells_of_wells": 5},
    ),
    "cells without a load": (
        "INSERT INTO tabular.cells SELECT * FROM seen.cells WHERE plate = 'p2' AND well = 'A02'",
        "cells_as_loaded (tabular)",
        {"cells_in": 0, "cells_there": 1, "cells_of_fields": None, "cells_of_wells": None},
    ),
    "a field counts other cells": (
        "UPDATE seen.fields SET cell_count = 7 WHERE plate = 'p2' AND well = 'A02'",
        "cells_as_loaded (seen)",
        {"cells_in": 5, "cells_there": 5, "cells_of_fields": 11, "cells_of_wells": 5},
    ),
    "a well counts other cells": (
        "UPDATE seen.wells SET cell_count = 7 WHERE plate = 'p2' AND well = 'A02'",
        "cells_as_loaded (seen)",
        {"cells_in": 5, "cells_there": 5, "cells_of_fields": 5, "cells_of_wells": 11},
    ),
    "a field profile is in twice": (
        "INSERT INTO seen.fields SELECT * REPLACE (0 AS cell_count) FROM seen.fields "
        "WHERE plate = 'p2' AND field = '2'",
        "fields_as_loaded (seen)",
        {"fields_there": 4, "fields_of_wells": 3, "is_loaded": True},
    ),
    "a row of an imported table is neither in nor rejected": (
        "UPDATE main.plate_loads SET profiles_seen = 4 WHERE plate = 'p2' AND feature_set = 'tabular'",
        "profiles_as_loaded (tabular)",
        {"profiles_seen": 4, "profiles_rejected": 1, "profiles_there": 2},
    ),
    "a rejection has lost its reason": (
        "DELETE FROM main.rejections WHERE plate = 'p2' AND feature_set = 'seen' AND cell IS NULL",
        "rejections_as_loaded",
        {"feature_set": "seen", "images_rejected": 1, "cells_rejected": 1, "profiles_rejected": 0, "listed": 1},
    ),
    "a rejection of a plate that is not in": (
        "INSERT INTO main.rejections VALUES ('absent', 's', 'b', 'p2', 'A01', NULL, NULL, 'why')",
        "rejections_as_loaded",
        {
            "feature_set": "absent", "images_rejected": None, "cells_rejected": None, "profiles_rejected": None,
            "listed": 1,
        },
    ),
    "an image is not known": (
        "DELETE FROM main.fields WHERE plate = 'p2' AND well = 'A02' AND field = '2'",
        "images_as_loaded",
        {"images_seen": 4, "images_there": 3, "different": 3},
    ),
    "an image is in twice": (
        "INSERT INTO main.fields SELECT * FROM main.fields WHERE plate = 'p2' AND well = 'A02' AND field = '2'",
        "images_as_loaded",
        {"images_seen": 4, "images_there": 5, "different": 4},
    ),
    "a well of the layout is gone": (
        "DELETE FROM main.wells WHERE plate = 'p2' AND well = 'A02'",
        "layouts_as_loaded",
        {"feature_set": "seen", "wells_in_layout": 2, "wells_there": 1},
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", PLANTED)
def test_a_planted_fault_is_named(lake, name):
    statement, check, expected = PLANTED[name]
    lake.transaction(lambda connection: connection.execute(statement))
    found = faults(lake)
    assert expected | P2 in found[check].to_dicts()
    assert {row["plate"] for rows in found.values() for row in rows.to_dicts()} == {"p2"}


def test_more_rejected_than_seen_does_not_balance(lake):
    query = "UPDATE main.plate_loads SET profiles_rejected = 5 WHERE plate = 'p2' AND feature_set = 'tabular'"
    lake.transaction(lambda connection: connection.execute(query))
    found = faults(lake)["plate_balance"]
    assert found.select("plate", "profiles_seen", "profiles_in", "profiles_rejected").rows() == [
        ("p2", 3, -2, 5)
    ]


def test_images_that_two_feature_sets_have_seen_are_there_once(lake):
    """The second method sees three of the four images, or all: both balance with one row an image."""
    other = FeatureSet("other", "method", "2", None, {}, ("DNA",), ("f1", "f2", "f3"), "cell")
    commit(lake, imaged_plate(KEYS[0]), other)
    assert faults(lake) == {}
    assert lake.value("SELECT count(*) FROM main.fields WHERE plate = 'p1'") == 4
