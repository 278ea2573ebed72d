"""Which cells a lake knows, on lakes small enough to be written down."""

import shutil
from dataclasses import replace

import numpy as np
import polars as pl
import pytest
from builders import INJECTIONS, commit, layout, new_lake, small_lake

from warehouse import known_cells as module
from warehouse import layouts
from warehouse.embeddings import to_column
from warehouse.errors import ProfileError, TrainingError, UnknownNameError
from warehouse.feature_sets import FeatureSet
from warehouse.ingest import PlateData
from warehouse.known_cells import (
    COLUMNS,
    cells_feature_set,
    images_of,
    images_of_plates,
    known_cells,
    plates_with,
)
from warehouse.lake import Lake
from warehouse.runs import Run
from warehouse.screens.model import ANNOTATIONS_SCHEMA

FIELDS = FeatureSet(
    "first", "transfer", "1", None, {"input": "fields", "segmentation": {"dna_channel": "DNA"}}, ("DNA", "RNA"),
    ("f1",), "cell",
)  # fmt: skip
CROPS = replace(FIELDS, name="crops", parameters={"input": "crops"})
P1, P2 = ("s", "b", "p1"), ("s", "b", "p2")
#: Well, field, cell, x and y; A03 is in no layout.
CELLS = [
    ("A01", "1", "1", 3.0, 4.0), ("A01", "1", "2", 5.0, 6.0), ("A01", "10", "1", 7.0, 8.0),
    ("A01", "2", "1", 9.0, 10.0), ("A02", "1", "1", 11.0, 12.0), ("A03", "1", "1", 13.0, 14.0),
]  # fmt: skip
PLAN = [("A01", "DMSO", None, "negative"), ("A02", "taxol", 0.3, "none")]


def plate(key, *, is_crops=False, channels=("DNA", "RNA"), lacking=(), cells=CELLS, content="h") -> PlateData:
    """A plate of cells; `lacking` are the (well, field) whose images lack the last channel."""
    unit = to_column(np.ones((len(cells), 1), np.float32))
    schema = {
        "well": pl.String,
        "field": pl.String,
        "cell": pl.String,
        "x_px": pl.Float64,
        "y_px": pl.Float64,
    }
    table = pl.DataFrame(cells, schema=schema, orient="row")
    if is_crops:
        table = table.with_columns(pl.lit(None, pl.Float64).alias(name) for name in ("x_px", "y_px"))
    ids = ["well", "field", "cell"] if is_crops else ["well", "field"]
    images = table.select(ids).unique(maintain_order=True)
    has = [list(channels[:-1] if row[:2] in lacking else channels) for row in images.iter_rows()]
    images = images.with_columns(
        pl.Series("channels", has, dtype=pl.List(pl.String)),
        pl.Series("paths", [[f"{name}.tif" for name in names] for names in has]),
        pl.Series("planes", [[None] * len(names) for names in has], dtype=pl.List(pl.Int32)),
        pl.Series("digests", [["d"] * len(names) for names in has]),
    )
    if not is_crops:
        images = images.with_columns(cell=pl.lit(None, pl.String))
    fields = table.group_by("well", "field", maintain_order=True).agg(
        pl.len().cast(pl.Int32).alias("cell_count")
    )
    wells = fields.group_by("well", maintain_order=True).agg(
        pl.len().cast(pl.Int32).alias("field_count"), pl.col("cell_count").sum()
    )
    count = table.height
    return PlateData(
        key, content, layout(key, PLAN), images, (table.with_columns(unit),),
        fields.with_columns(to_column(np.ones((len(fields), 1), np.float32))),
        wells.with_columns(to_column(np.ones((len(wells), 1), np.float32))),
        pl.DataFrame(schema=dict.fromkeys(("well", "field", "cell", "reason"), pl.String)),
        images_seen=len(images), cells_seen=count,
    )  # fmt: skip


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    """A lake of two plates, to be read."""
    with new_lake(tmp_path_factory.mktemp("shared") / "lake") as made:
        for key in (P2, P1):
            commit(made, plate(key), FIELDS)
        labels = [
            ("taxol", None, None, "moa", "Microtubule stabilizers"),
            ("taxol", None, None, "target", "TUBB"),
        ]
        layouts.put_annotations(
            made, Run("test", {}), pl.DataFrame(labels, schema=ANNOTATIONS_SCHEMA, orient="row")
        )
        yield made


@pytest.fixture
def lake(shared, tmp_path):
    """A copy of it, to be written to."""
    shutil.copytree(shared.path, tmp_path / "lake")
    with Lake.open(tmp_path / "lake") as opened:
        yield opened


def test_cells_come_with_places_and_treatments_in_the_order_of_their_keys(shared):
    known = known_cells(shared)
    assert (known.feature_set, known.channels, known.is_crops, known.left_out) == (
        FIELDS,
        ("DNA", "RNA"),
        False,
        {},
    )
    assert tuple(known.rows.columns) == COLUMNS
    of_well = {
        "A01": ("DMSO", "DMSO", None, None, "negative"),
        "A02": ("taxol@0.3uM", "taxol", 0.3, "uM", "none"),
        "A03": (None,) * 5,  # its plate's layout does not have it
    }
    assert known.rows.rows() == [(*key, *cell, *of_well[cell[0]]) for key in (P1, P2) for cell in CELLS]
    assert known.rows.schema["x_px"] == pl.Float64


def test_single_cell_pictures_have_no_places(tmp_path):
    with new_lake(tmp_path / "lake") as lake:
        commit(lake, plate(P1, is_crops=True), CROPS)
        known = known_cells(lake)
        assert known.is_crops
        assert known.rows["x_px"].to_list() == [None] * 6
        assert known.rows.schema["x_px"] == pl.Float64


@pytest.mark.parametrize(
    ("where", "count"),
    [
        ("plate = 'p1'", 6),
        ("control_type <> 'negative'", 2),  # NULL, of the well without layout, is not chosen
        ("list_contains(moa, 'Microtubule stabilizers') AND list_contains(target, 'TUBB')", 2),
        ("row_number = 1 AND column_number = 2", 2),
        ("x_px > 8 -- a comment", 6),
        ("concentration < 1 AND unit = 'uM'", 2),
    ],
)
def test_a_predicate_chooses_and_the_rest_is_counted(shared, where, count):
    known = known_cells(shared, where=where)
    assert len(known.rows) == count
    assert known.left_out == {f"does not meet --where {where}": 12 - count}


def test_a_predicate_that_all_meet_leaves_nothing_out(shared):
    known = known_cells(shared, where="TRUE OR moa IS NULL")
    assert (len(known.rows), known.left_out) == (12, {})


def test_predicates_that_are_none_say_why(shared):
    with pytest.raises(
        ProfileError, match=r"--where 'wel = 1': .*; columns of cells: source, .* x_px, .* gene_family"
    ):
        known_cells(shared, where="wel = 1")
    with pytest.raises(ProfileError, match="none of the 12 cells of 'first' meets --where \"plate = 'p9'\""):
        known_cells(shared, where="plate = 'p9'")
    with pytest.raises(ProfileError, match=r"--where .*Could not convert string 'A01'"):
        known_cells(shared, where="well::INTEGER = 1")


@pytest.mark.parametrize("where", INJECTIONS)
def test_a_predicate_can_only_choose(shared, where):
    before = shared.snapshot()
    with pytest.raises(ProfileError, match="--where"):
        known_cells(shared, where=where)
    assert shared.snapshot() == before


def test_images_without_a_channel_are_left_out_and_the_first_is_named(tmp_path):
    with new_lake(tmp_path / "lake") as lake:
        commit(lake, plate(P1, lacking=[("A01", "1"), ("A02", "1")]), replace(FIELDS, channels=("DNA",)))
        whole = known_cells(lake)
        assert (len(whole.rows), whole.channels) == (6, ("DNA",))
        known = known_cells(lake, channels=("RNA", "DNA"))
        assert known.channels == ("RNA", "DNA")
        assert known.rows.select("well", "field", "cell").rows() == [
            ("A01", "10", "1"), ("A01", "2", "1"), ("A03", "1", "1"),
        ]  # fmt: skip
        assert known.left_out == {"no image with channels RNA, DNA (first: p1 A01 1)": 3}
        with pytest.raises(
            TrainingError, match="none of the cells of 'first' has an image with channels RNA"
        ):
            known_cells(lake, channels=("RNA",), where="well = 'A02'")


def test_pictures_without_a_channel_are_left_out_one_by_one(tmp_path):
    with new_lake(tmp_path / "lake") as lake:
        data = plate(P1, is_crops=True)
        has = pl.Series("channels", [["DNA"], *[["DNA", "RNA"]] * 5])
        commit(lake, replace(data, images=data.images.with_columns(has)), CROPS)
        known = known_cells(lake)
        assert known.rows.select("well", "field", "cell").rows() == [cell[:3] for cell in CELLS[1:]]


def test_a_channel_that_whole_plates_lack_is_refused(tmp_path):
    with new_lake(tmp_path / "lake") as lake:
        one = replace(FIELDS, channels=("DNA",))
        commit(lake, plate(P1), one)
        commit(lake, plate(P2, channels=("DNA", "Mito")), one)
        message = r"1 of 2 plates have no image of channel 'RNA' \(first: plate 'p2' of s, b\): leave the channel out"
        with pytest.raises(TrainingError, match=message):
            known_cells(lake, channels=("DNA", "RNA"))
        assert len(known_cells(lake, channels=("DNA", "RNA"), where="plate = 'p1'").rows) == 6
        with pytest.raises(
            UnknownNameError, match=r"unknown channel 'RNB'\. Did you mean 'RNA'\? Known: DNA, Mito, RNA"
        ):
            known_cells(lake, channels=("RNB",))


def test_the_feature_set_of_most_plates_is_taken(lake):
    commit(lake, plate(P1), replace(FIELDS, name="other", parameters=CROPS.parameters | {"input": "fields"}))
    assert known_cells(lake).feature_set.name == "first"
    assert known_cells(lake, cells_of="other").feature_set.name == "other"


def test_two_that_know_other_cells_of_as_many_plates_are_told_apart_by_name(lake):
    other = replace(
        FIELDS, name="other", parameters={"input": "fields", "segmentation": {"dna_channel": "RNA"}}
    )
    for key in (P1, P2):
        commit(lake, plate(key), other)
    with pytest.raises(
        TrainingError, match=r"first, other know other cells of as many plates \(2\): .* --cells"
    ):
        known_cells(lake)
    assert known_cells(lake, cells_of="other").feature_set == other


def test_of_two_that_found_the_same_cells_the_older_is_taken(lake):
    later = replace(FIELDS, name="a_later_one", extractor="cell_painting_cnn")
    for key in (P1, P2):
        commit(lake, plate(key), later)
    assert known_cells(lake).feature_set == FIELDS


def test_one_that_is_preferred_is_taken_where_it_knows_cells(lake):
    other = replace(FIELDS, name="other", parameters=CROPS.parameters)
    commit(lake, plate(P1, is_crops=True), other)
    assert cells_feature_set(lake, preferred="other") == other
    assert cells_feature_set(lake, preferred="gone") == cells_feature_set(lake) == FIELDS
    assert cells_feature_set(lake, "first", preferred="other") == FIELDS


def test_of_two_of_other_channels_one_is_named_unless_channels_are(lake):
    other = replace(FIELDS, name="other", channels=("DNA",))
    for key in (P1, P2):
        commit(lake, plate(key), other)
    with pytest.raises(TrainingError, match=r"first, other know other cells of as many plates \(2\)"):
        cells_feature_set(lake)
    assert cells_feature_set(lake, channels=("DNA",)) == FIELDS


def test_lakes_and_feature_sets_without_cells_say_so(tmp_path):
    with small_lake(tmp_path / "lake") as lake:
        with pytest.raises(
            TrainingError, match=r"lake knows no single cells of images yet: ingest images first"
        ):
            known_cells(lake)
        with pytest.raises(
            TrainingError, match="feature set 'tiny' was imported: it does not say where cells lie"
        ):
            known_cells(lake, cells_of="tiny")
        with pytest.raises(UnknownNameError, match=r"unknown feature set 'tinyy'\. Did you mean 'tiny'"):
            known_cells(lake, cells_of="tinyy")
        of_fields = replace(FIELDS, name="of_fields", entry_level="field", parameters={})
        commit(lake, replace(plate(P1), cells=(), cells_seen=0), of_fields)
        with pytest.raises(
            TrainingError, match=r"feature set 'of_fields' holds fields, not cells: .* with --cells"
        ):
            known_cells(lake, cells_of="of_fields")


def test_images_of_a_plate_and_plates_with_channels(tmp_path):
    with new_lake(tmp_path / "lake") as lake:
        commit(lake, plate(P1, lacking=[("A01", "10")]), FIELDS)
        commit(lake, plate(P2, channels=("DNA", "Mito"), lacking=[("A01", "1")]), FIELDS)
        commit(lake, plate(P2, is_crops=True), CROPS)
        fields = [("A01", "1"), ("A01", "10"), ("A01", "2"), ("A02", "1"), ("A03", "1")]
        assert images_of(lake, P1).select("well", "field").rows() == fields
        assert images_of(lake, P1, ("RNA", "DNA")).select("well", "field").rows() == [
            *fields[:1],
            *fields[2:],
        ]
        assert images_of(lake, P2, is_crops=False).select("well", "field").rows() == fields
        both = images_of(lake, P2).select("well", "field", "cell").rows()
        assert both[:3] == [("A01", "1", "1"), ("A01", "1", "2"), ("A01", "1", None)]
        assert len(both) == 11
        assert images_of(lake, P2, is_crops=True)["cell"].null_count() == 0
        assert images_of(lake, ("s", "b", "p3")).is_empty()
        assert plates_with(lake, ("DNA",), False) == [P1, P2]
        assert plates_with(lake, ("RNA", "DNA"), False) == [P1]
        assert plates_with(lake, ("RNA",), True) == [P2]
        assert plates_with(lake, ("Mito", "RNA"), False) == []


def test_images_of_many_plates_are_those_of_each(shared, monkeypatch):
    for at_once in (1, 64):
        monkeypatch.setattr(module, "_PLATES_A_QUERY", at_once)
        found = list(images_of_plates(shared, [P1, P2], ("DNA",), False))
        assert [key for key, _ in found] == [P1, P2]
        assert all(rows.equals(images_of(shared, key, ("DNA",), False)) for key, rows in found)
