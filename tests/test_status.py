"""The state of a lake: counts, what waits, and every planted fault found by its check."""

import pytest
from builders import SMALL, TINY, commit, layout, new_lake, plate, random_plate, small_lake, wide
from test_upkeep_checks import PLANTED

from warehouse import nearest, resources
from warehouse.correct import correct
from warehouse.evaluation import evaluate
from warehouse.lake import Lake
from warehouse.status import faults, status


@pytest.fixture
def lake(tmp_path):
    with small_lake(tmp_path / "lake") as made:
        yield made


def test_counts(lake):
    key = ("s3", "b1", "p5")
    rejected = [
        ("A01", "1", None, "no nuclei"),
        ("A02", "1", None, "no nuclei"),
        ("A03", None, None, "file is gone"),
    ]
    data = plate(
        key,
        {"A04": (1, 2, 3)},
        "h",
        layout(key, [("A04", "x", 1.0, "none")]),
        rejected,
        images_seen=9,
        images_rejected=3,
        cells_seen=50,
        cells_rejected=5,
    )
    commit(lake, data)
    found = status(lake)
    assert found.lake == str(lake.path)
    assert found.snapshot == lake.snapshot()
    assert found.shared == {
        "sources": 3, "batches": 4, "plates": 5, "wells": 15, "treatments": 6, "annotations": 7, "evaluations": 0,
    }  # fmt: skip
    assert found.feature_sets.rows(named=True) == [
        {
            "feature_set": "tiny", "extractor": "import", "dim": 3, "entry_level": "well", "plates": 5, "images": 6,
            "images_rejected": 3, "cells": 45, "cells_rejected": 5, "wells": 15, "wells_without_data": 1,
            "wells_without_layout": 1,
        }
    ]  # fmt: skip
    assert found.rejections.rows() == [("tiny", "p5", "file is gone", 1), ("tiny", "p5", "no nuclei", 2)]
    assert found.recipes.is_empty()
    # These counts are of images and cells that nobody brought.
    assert set(found.faults) == {"cells_as_loaded (tiny)", "images_as_loaded", "rejections_as_loaded"}


def test_an_empty_lake_has_a_status(tmp_path):
    new_lake(tmp_path / "lake").close()
    with Lake.open(tmp_path / "lake", read_only=True) as lake:
        found = status(lake)
    assert set(found.shared.values()) == {0}
    assert (found.feature_sets.height, found.recipes.height, found.faults) == (0, 0, {})


def test_recipes_tell_what_waits_and_the_state_of_indexes(tmp_path):
    with new_lake(tmp_path / "lake") as lake:
        commit(lake, random_plate(("s", "b", "p1"), 1), wide(4))
        correct(lake, "wide", "standardize")
        nearest.build(lake, "wide")
        nearest.build(lake, "wide", recipe="standardize")
        columns = (
            "feature_set",
            "recipe",
            "features",
            "plates",
            "plates_waiting",
            "plates_left_out",
            "index",
        )
        nearest.build(lake, "wide", level="well")
        assert status(lake).recipes.rows() == [
            ("wide", "standardize", 4, 1, 0, 0, "fresh"),
            ("wide", "none", 4, 1, 0, 0, "fresh; well fresh"),
        ]
        commit(lake, random_plate(("s", "b", "p2"), 2), wide(4))
        found = status(lake).recipes
        assert tuple(found.columns) == columns
        assert found.rows() == [
            ("wide", "standardize", 4, 1, 1, 0, "stale"),
            ("wide", "none", 4, 2, 0, 0, "stale; well stale"),
        ]


COPIES = {
    "wells_unique": (
        "INSERT INTO main.wells SELECT * FROM main.wells WHERE plate = 'p1' AND well = 'A03'",
        [("s1", "p1", "A03", 2)],
    ),
    "plates_unique": (
        "INSERT INTO main.plates SELECT 's1', 'b9', 'p1', NULL, 'r', now()::TIMESTAMP",
        [("s1", "p1", 2)],
    ),
    "loads_unique": (
        "INSERT INTO main.plate_loads SELECT * REPLACE ('b9' AS batch) FROM main.plate_loads WHERE plate = 'p2'",
        [("tiny", "s1", "p2", 2)],
    ),
    "field_quality_unique": (
        "INSERT INTO main.field_quality SELECT 's1', 'b1', 'p1', 'A01', '1', ['DNA'], [-2.0], [0.0], 0.5, 9 "
        "FROM range(2)",
        [("s1", "p1", "A01", "1", 2)],
    ),
    "wells_of_feature_set_unique (tiny)": (
        "INSERT INTO tiny.wells SELECT * REPLACE ('p1' AS plate) FROM tiny.wells WHERE plate = 'p1' AND well = 'A03'",
        [("s1", "p1", "A03", 2)],
    ),
}


@pytest.mark.parametrize("check", COPIES)
def test_planted_copies_are_found(lake, check):
    statement, expected = COPIES[check]
    assert faults(lake) == {}
    lake.transaction(lambda connection: connection.execute(statement))
    found = faults(lake)
    assert found.pop(check).rows() == expected
    # A copy of a profile, or of a load, is also one too many for its load.
    assert set(found) <= {"wells_as_loaded (tiny)", "layouts_as_loaded"}


@pytest.mark.parametrize(
    "column", ["images_in", "cells_rejected", "wells_in", "wells_without_data", "wells_in_layout"]
)
def test_planted_counts_that_do_not_balance_are_found(lake, column):
    lake.transaction(
        lambda c: c.execute(f"UPDATE main.plate_loads SET {column} = {column} + 1 WHERE plate = 'p2'")
    )
    found = status(lake).faults
    # The rows themselves are counted, too.
    others = {"wells_in": {"wells_as_loaded (tiny)"}, "wells_in_layout": {"layouts_as_loaded"}}
    assert set(found) == {"plate_balance"} | others.get(column, set())
    assert found["plate_balance"].select("plate", "is_balanced").rows() == [("p2", False)]


def test_every_check_has_a_planted_fault():
    planted = {name.split(" ")[0] for name in [*COPIES, *(check for _, check, _ in PLANTED.values())]}
    assert {path.stem for path in resources.files("sql", "checks")} == {
        *planted,
        "plate_balance",
        "wells_as_loaded",
    }


def test_status_writes_nothing_and_reads_a_read_only_lake(lake):
    before = lake.snapshot()
    with Lake.open(lake.path, read_only=True) as reader:
        assert status(reader).shared["plates"] == len(SMALL)
    assert lake.snapshot() == before
    assert TINY.name in status(lake).feature_sets["feature_set"].to_list()


def test_evaluations_are_counted(tmp_path):
    from builders import neighbour_lake

    with neighbour_lake(tmp_path / "lake") as lake:
        evaluate(lake, ["tiny"], ["nsc", "map"])
        assert status(lake).shared["evaluations"] == 2


def test_plates_of_one_name_in_two_sources_are_no_fault(tmp_path):
    with new_lake(tmp_path / "lake") as lake:
        for source in ("s1", "s2"):
            commit(lake, random_plate((source, "b", "p"), 1), wide(4))
        assert faults(lake) == {}
        lake.transaction(lambda c: c.execute("DELETE FROM main.plate_loads WHERE source = 's2'"))
        found = faults(lake)["wells_as_loaded (wide)"]
        assert found.select("source", "wells_in").rows() == [("s2", None)]
