"""Fields and wells computed in SQL from what lies below them: equal to what was committed, or told apart by name."""

import re
from pathlib import Path

import duckdb
import numpy as np
import pandas as pd
import polars as pl
import pytest
from builders import commit, layout, new_lake, small_lake
from test_pipeline import SCREEN, Statistics
from typer.testing import CliRunner

import cli
from extractors import pipeline
from extractors.simulator import CHANNELS, simulate_screen
from warehouse import extensions, feature_sets, levels, profiles, slices
from warehouse.embeddings import to_column, to_matrix
from warehouse.errors import ProfileError
from warehouse.feature_sets import FeatureSet
from warehouse.importers import ImportSettings, import_profiles
from warehouse.lake import Lake
from warehouse.level_queries import recomputed
from warehouse.plate_builder import PlateBuilder
from warehouse.query import sql
from warehouse.screens import read_screen
from warehouse.slices import Slice
from warehouse.upkeep import recompute as recomputing
from warehouse.upkeep.recompute import recompute
from warehouse.upkeep.verify import verify

DIM = 5
PLATES = (("s", "b1", "p1"), ("s", "b2", "p2"), ("r", "b1", "p9"))
#: Each operator of a step at least once.
OPERATORS = [
    ("median", "mean"), ("median", "weighted_mean"), ("mean", "median"), ("trimmed_mean", "trimmed_mean"),
]  # fmt: skip


def feature_set(level: str, operators=("median", "mean"), name: str = "") -> FeatureSet:
    names = tuple(f"Cells_f{i + 1}" for i in range(DIM))
    return FeatureSet(name or f"of_{level}", "import", "1", None, {}, (), names, level, *operators)


def rows_of(seed: int, level: str) -> tuple[pl.DataFrame, np.ndarray]:
    """Rows of a plate, in no order; every kind of gap: single elements, a feature of a field, a feature of a well.

    Values are large and of both signs, so that what is computed in single precision shows.
    """
    rng = np.random.default_rng(seed)
    ids = [
        (well, str(field), str(cell))
        for well in ("A01", "A02", "B10", "AA01")
        for field in range(1, int(rng.integers(2, 5)))
        for cell in range(int(rng.integers(1, 9)) if level == "cell" else 1)
    ]
    keys = pl.DataFrame(ids, schema=["well", "field", "cell"], orient="row")
    matrix = rng.normal(0, 3000, (len(ids), DIM)).astype(np.float32)
    matrix[rng.random(matrix.shape) < 0.15] = np.nan
    matrix[:, 4] = rng.integers(-2, 3, len(ids))  # ties, and an element that is always there
    matrix[(keys["well"] == "A02").to_numpy(), 0] = np.nan
    matrix[((keys["well"] == "B10") & (keys["field"] == "1")).to_numpy(), 1] = np.nan
    if level == "field":
        keys = keys.drop("cell").with_columns(
            pl.Series("cell_count", rng.integers(1, 50, len(ids)), dtype=pl.Int32)
        )
    # All cells of a field come in one part: here all are in one.
    order = rng.permutation(len(ids))
    return keys[order], matrix[order]


def put(lake: Lake, target: FeatureSet) -> None:
    for seed, key in enumerate(PLATES):
        plan = layout(key, [("A01", "taxol", 1.0, "none"), ("A02", "DMSO", None, "negative")])
        with PlateBuilder(target) as builder:
            builder.add(*rows_of(seed, target.entry_level))
            commit(lake, builder.finish(key, plan), target)


@pytest.fixture
def lake(tmp_path):
    with new_lake(tmp_path / "lake") as made:
        yield made


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    """One lake with a feature set of cells and one of fields."""
    # Not the copy of a lake, as others are: any client finds its files where it was made.
    with Lake.create(tmp_path_factory.mktemp("recompute") / "lake") as made:
        put(made, feature_set("cell"))
        put(made, feature_set("field", ("median", "weighted_mean")))
        yield made


# --- what is committed is what SQL computes


def test_every_operator_is_tried():
    assert {field for field, _ in OPERATORS} == set(levels.FIELD_OPERATORS)
    assert {well for _, well in OPERATORS} == set(levels.WELL_OPERATORS)


@pytest.mark.parametrize("operators", OPERATORS, ids="-".join)
def test_all_operators_agree(lake, operators):
    put(lake, feature_set("cell", operators))
    found = recompute(lake)
    assert found.differences == []
    counted = [lake.value(f"SELECT count(*) FROM of_cell.{table}") for table in ("fields", "wells")]
    assert [found.plates, found.fields, found.wells] == [3, *counted]
    assert found.values == DIM * sum(counted)
    # The small values that large ones of both signs leave: 1e-6 would not hold in single precision.
    missing = lake.value("SELECT count(*) FROM of_cell.wells WHERE embedding[1] IS NULL")
    assert missing == 3


def test_fields_that_came_in_are_the_beginning(measured):
    found = recompute(measured)
    assert (found.differences, found.left_out) == ([], [])
    counted = {
        name: measured.value(f"SELECT count(*) FROM {name}") for name in ("of_cell.fields", "of_cell.wells")
    }
    assert found.fields == counted["of_cell.fields"]
    assert found.wells == counted["of_cell.wells"] + measured.value("SELECT count(*) FROM of_field.wells")


def test_wells_that_came_in_have_nothing_below(tmp_path):
    with small_lake(tmp_path / "lake") as lake:
        found = recompute(lake)
        assert (found.left_out, found.plates, found.differences) == (["tiny"], 0, [])
        with pytest.raises(
            ProfileError, match=r"^feature set 'tiny' begins with wells: there is nothing in the lake"
        ):
            slices.read(lake, "tiny", level="well", part=Slice(from_cells=True))


def test_parts_of_any_size_find_the_same(measured, monkeypatch):
    expected = recompute(measured)
    for rows in (1, 30):
        monkeypatch.setattr(recomputing, "PART_BYTES", rows * DIM * 4)
        found = recompute(measured)
        assert (found.fields, found.wells, found.values) == (expected.fields, expected.wells, expected.values)
        assert found.differences == []


@pytest.mark.parametrize("size", [1, 60, 2000])
@pytest.mark.parametrize("is_ordered", [True, False])
def test_a_plate_from_cells_in_the_lake_is_what_was_committed(lake, monkeypatch, is_ordered, size):
    """Cells in parts of any size; those of a field lie together or apart."""
    target = feature_set("cell", ("median", "weighted_mean"))
    put(lake, target)
    if is_ordered:
        lake.transaction(
            lambda c: c.execute(
                "CREATE TABLE of_cell.ordered AS FROM of_cell.cells ORDER BY well, field; DELETE FROM of_cell.cells; "
                "INSERT INTO of_cell.cells FROM of_cell.ordered; DROP TABLE of_cell.ordered"
            )
        )
    monkeypatch.setattr(levels, "BYTES_AT_ONCE", size)
    for key in PLATES:
        made = levels.plate_from_cells(lake, target, key)
        for table, found in zip(("fields", "wells"), made, strict=True):
            query = f"SELECT * FROM of_cell.{table} WHERE source = ? AND plate = ? ORDER BY ALL"
            there = lake.frame(query, key[::2]).select(found.columns)
            exact = found.columns[:-1]
            assert found.select(exact).equals(there.select(exact))
            np.testing.assert_allclose(
                to_matrix(found["embedding"], DIM), to_matrix(there["embedding"], DIM), rtol=1e-6, atol=1e-6
            )
    fields, wells = levels.plate_from_cells(lake, target, ("s", "b1", "none"))
    assert (len(fields), len(wells)) == (0, 0)


def test_equals_pycytominer(measured):
    from pycytominer import aggregate

    rows = slices.read(measured, "of_cell", level="well", part=Slice(from_cells=True))
    names = [f"Cells_f{i + 1}" for i in range(DIM)]
    cells = profiles.read(measured, "of_cell", level="cell")
    frame = pd.DataFrame(cells.matrix, columns=names)
    keys = ["source", "batch", "plate", "well", "field"]
    for key in keys:
        frame[f"Metadata_{key}"] = cells.rows[key].to_list()
    columns = [f"Metadata_{key}" for key in keys]
    fields = aggregate(frame, strata=columns, features=names, operation="median")
    wells = aggregate(fields, strata=columns[:-1], features=names, operation="mean").sort_values(columns[:-1])
    assert [tuple(row) for row in wells[columns[:-1]].to_numpy()] == rows.rows.select(keys[:-1]).rows()
    np.testing.assert_allclose(rows.matrix, wells[names].to_numpy(), rtol=1e-6, atol=1e-6)
    assert np.isnan(rows.matrix).any()


# --- what differs is told by name


def changed(lake: Lake, *statements: str) -> list[tuple[str, str]]:
    for statement in statements:
        lake.transaction(lambda connection, statement=statement: connection.execute(statement))
    return [(one.table, one.detail) for one in recompute(lake).differences]


WHERE = "WHERE source = 's' AND batch = 'b1' AND well = 'A01'"
SET = "embedding[1:1] || [{}::FLOAT] || embedding[3:]"


def element(lake: Lake, table: str, where: str) -> float:
    return float(str(lake.value(f"SELECT embedding[2] FROM of_cell.{table} {where}")))


def test_a_value_that_is_wrong_is_named(lake):
    put(lake, feature_set("cell"))
    value = element(lake, "wells", WHERE)
    wrong = np.float32(value + 3e-6 * max(1, abs(value)))
    ((table, detail),) = changed(lake, f"UPDATE of_cell.wells SET embedding = {SET.format(wrong)} {WHERE}")
    assert table == "of_cell.wells"
    found = re.fullmatch(
        r"plate s/b1/p1, well A01, feature 2 \(Cells_f2\): (\S+) committed, (\S+) computed", detail
    )
    assert found
    assert float(found[1]) == pytest.approx(float(wrong), rel=1e-7)
    assert float(found[2]) == pytest.approx(value, rel=1e-7)


def test_the_tolerance_is_what_it_says(lake):
    put(lake, feature_set("cell"))
    value = element(lake, "wells", WHERE)
    assert abs(value) > 1
    near = np.float32(value * (1 + 5e-7))
    assert near != np.float32(value)
    assert changed(lake, f"UPDATE of_cell.wells SET embedding = {SET.format(near)} {WHERE}") == []
    ((_, detail),) = changed(lake, f"UPDATE of_cell.wells SET embedding = {SET.format('NULL')} {WHERE}")
    assert ": missing committed, " in detail


def test_a_field_that_is_wrong_is_told_with_the_well_that_no_longer_follows(lake):
    put(lake, feature_set("cell"))
    only = f"{WHERE} AND field = '1'"
    found = changed(lake, f"UPDATE of_cell.fields SET embedding = {SET.format(1e6)} {only}")
    assert [table for table, _ in found] == ["of_cell.fields", "of_cell.wells"]
    assert found[0][1].startswith(
        "plate s/b1/p1, well A01, field 1, feature 2 (Cells_f2): 1000000.0 committed, "
    )


def test_rows_and_counts_are_compared(lake):
    put(lake, feature_set("cell"))
    found = changed(
        lake,
        "DELETE FROM of_cell.wells WHERE source = 'r' AND well = 'A02'",
        "DELETE FROM of_cell.cells WHERE source = 'r' AND well = 'B10'",
        "UPDATE of_cell.wells SET field_count = 99 WHERE source = 'r' AND well = 'AA01'",
        f"INSERT INTO of_cell.wells SELECT * FROM of_cell.wells {WHERE}",
    )
    fields = [detail for table, detail in found if table == "of_cell.fields"]
    assert fields
    assert all(
        re.fullmatch(
            r"plate r/b1/p9, well B10, field \d: committed, and there are no cells to compute it from", one
        )
        for one in fields
    )
    count = lake.value("SELECT count(*) FROM of_cell.fields WHERE source = 'r' AND well = 'AA01'")
    assert [detail for table, detail in found if table == "of_cell.wells"] == [
        "plate r/b1/p9, well A02: there are fields of it, and it was not committed",
        f"plate r/b1/p9, well AA01: field_count 99 committed, {count} computed",
        "plate s/b1/p1, well A01: committed 2 times",
    ]


def test_many_differences_are_counted(lake):
    put(lake, feature_set("cell"))
    found = changed(lake, "UPDATE of_cell.fields SET embedding = [7, 7, 7, 7, 7] WHERE source = 'r'")
    fields = [detail for table, detail in found if table == "of_cell.fields"]
    assert len(fields) == recomputing.TOLD + 1
    assert re.fullmatch(r"plate r/b1/p9, \d+ more", fields[-1])


def test_a_vector_of_another_length_is_told(lake):
    put(lake, feature_set("cell"))
    found = changed(lake, f"UPDATE of_cell.wells SET embedding = [1, 2] {WHERE}")
    assert found == [
        (
            "of_cell.wells",
            "plate s/b1/p1, cannot be compared: row 0 of 'embedding' has 2 elements, its feature set has 5",
        )
    ]


def test_the_command_verifies(lake):
    put(lake, feature_set("cell"))
    where = ["--lake", lake.address]
    told = []
    found = verify(lake, recomputing=True, progress=lambda *words: told.append(words[0]))
    assert found.faults == []
    assert [name for name in told if name.startswith("recompute")][-1] == "recompute of_cell p2 (3 of 3)"
    assert verify(lake).recomputed is None
    done = CliRunner().invoke(cli.app, ["verify", "--recompute", *where])
    assert (done.exit_code, "fields and 12 wells of 3 plates" in done.stdout) == (0, True)
    lake.transaction(lambda c: c.execute(f"UPDATE of_cell.wells SET embedding = {SET.format(1e6)} {WHERE}"))
    done = CliRunner().invoke(cli.app, ["verify", "--recompute", "--json", *where])
    assert done.exit_code == 1
    assert '"kind": "recompute", "where": "of_cell.wells"' in done.stdout
    assert CliRunner().invoke(cli.app, ["verify", *where]).exit_code == 0


# --- any level, as one SQL text


LEVELS = [level for level in profiles.LEVELS if level != "cell"]


@pytest.mark.parametrize("level", LEVELS)
def test_a_level_from_cells_is_the_level(measured, level):
    expected = profiles.read(measured, "of_cell", level=level)
    found = slices.read(measured, "of_cell", level=level, part=Slice(from_cells=True))
    columns = expected.rows.columns
    exact = [name for name in columns if not expected.rows.schema[name].is_float()]
    assert found.rows.select(exact).equals(expected.rows.select(exact))
    np.testing.assert_allclose(found.matrix, expected.matrix, rtol=1e-6, atol=1e-6)
    assert len(found.matrix)


@pytest.mark.parametrize("level", ["well", "treatment", "consensus"])
def test_any_client_can_run_the_text(measured, level):
    part = Slice("source = 's' AND is_flagged IS NOT TRUE", from_cells=True)
    text = slices.text(slices.select(measured, "of_cell", level=level, part=part))
    found = slices.read(measured, "of_cell", level=level, part=part)
    assert sql(measured, text)["embedding"].to_list() == to_column(found.matrix).to_list()
    with duckdb.connect() as client:
        for name in ("ducklake", "sqlite_scanner"):
            extensions.load(client, name)
        client.execute(f"ATTACH 'ducklake:sqlite:{measured.path}/catalog.sqlite' AS lake (READ_ONLY)")
        client.execute("USE lake")
        assert client.execute(text).pl()["embedding"].to_list() == to_column(found.matrix).to_list()


def test_the_short_form_of_the_documents(measured):
    """The query that the page on aggregation shows, with the feature set's name put in."""
    pages = (Path(__file__).resolve().parent.parent / "docs").glob("*.md")
    blocks = [
        block
        for page in pages
        for block in re.findall(r"```sql\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)
        if "generate_subscripts" in block
    ]
    assert blocks
    for block in blocks:
        found = sql(measured, block.replace("transfer.", "of_cell."))
        expected = profiles.read(measured, "of_cell", level="well")
        ids = ["source", "batch", "plate", "well"]
        assert found.select(ids).rows() == expected.rows.select(ids).rows()
        np.testing.assert_allclose(to_matrix(found["embedding"], DIM), expected.matrix, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    ("name", "level", "recipe", "message"),
    [
        ("of_cell", "cell", "none", "feature set 'of_cell' begins with cells: name a level above"),
        ("of_field", "field", "none", "feature set 'of_field' begins with fields: name a level above"),
        ("of_field", "cell", "none", "feature set 'of_field' begins with fields and holds no cells"),
    ],
)
def test_where_there_is_nothing_to_compute(measured, name, level, recipe, message):
    with pytest.raises(ProfileError, match=f"^{re.escape(message)}"):
        slices.read(measured, name, level=level, recipe=recipe, part=Slice(from_cells=True))


def test_no_element_has_a_filter_of_its_own():
    """DuckDB holds a chunk of all columns for each FILTER: 3,840 of them took more memory than a machine had."""
    for operators in OPERATORS:
        for table in ("fields", "wells"):
            assert "FILTER" not in recomputed(feature_set("cell", operators), table)


# --- real data


@pytest.mark.parametrize(
    ("path", "settings", "fields"),
    [
        ("cellprofiler/NF1/all_cellprofiler.sqlite", {}, 32),
        ("cellprofiler/ExampleHuman", {"plate": "AS_09125", "well": "D03"}, 1),
        ("deepprofiler/bbbc021", {}, 6),
    ],
)
@pytest.mark.parametrize("operators", [("median", "mean"), ("mean", "weighted_mean")], ids="-".join)
def test_real_cells(lake, data_dir, path, settings, fields, operators):
    named = dict(zip(("field_operator", "well_operator"), operators, strict=True))
    import_profiles(lake, [data_dir / path], "real", settings=ImportSettings(**settings, **named))
    found = verify(lake, recomputing=True)
    assert found.faults == []
    assert found.recomputed is not None
    assert found.recomputed.fields == fields
    assert found.recomputed.values > fields * feature_sets.find(lake, "real").dim


def test_a_simulated_screen(lake, tmp_path):
    """From pixels, by way of segmentation, with fields that are empty or rejected."""
    made = simulate_screen(tmp_path / "screen", SCREEN)
    screen = read_screen(made.manifest, layout=made.layout)
    reports = pipeline.ingest_screen(lake, screen, Statistics(CHANNELS))
    assert {report.outcome for report in reports} == {"added"}
    found = verify(lake, recomputing=True)
    assert found.faults == []
    assert found.recomputed is not None
    assert found.recomputed.plates == len(reports) == 2
    assert found.recomputed.fields == lake.value("SELECT count(*) FROM statistics.fields") > 10
    text = slices.text(slices.select(lake, "statistics", level="treatment", part=Slice(from_cells=True)))
    expected = profiles.read(lake, "statistics", level="treatment")
    computed = to_matrix(sql(lake, text)["embedding"], expected.matrix.shape[1])
    np.testing.assert_allclose(computed, expected.matrix, rtol=1e-6, atol=1e-6)


@pytest.mark.slow
def test_real_crops_through_a_network(data_dir, tmp_path):
    """Crops of two plates of BBBC021, 3,840 features, by the extractor."""
    folder = data_dir / "bbbc021"
    words = ["ingest", folder / "crops.csv", "--images", folder / "crops", "--extractor", "transfer"]
    words += ["--field-operator", "mean", "--well-operator", "weighted_mean"]
    words += ["--plate", "Week4_27861", "--plate", "Week4_27801", "--lake", tmp_path / "lake"]
    Lake.create(tmp_path / "lake").close()
    done = CliRunner().invoke(cli.app, [str(word) for word in words])
    assert done.exit_code == 0, done.output
    with Lake.open(tmp_path / "lake", read_only=True) as lake:
        found = recompute(lake)
    assert (found.differences, found.plates, found.wells) == ([], 2, 24)
