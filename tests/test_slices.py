"""Slices: levels over chosen wells, against Polars on the same wells; what cannot be chosen is told in one line."""

import json
import re
import sys

import numpy as np
import polars as pl
import pyarrow.parquet as pq
import pytest
from builders import INJECTIONS, commit, layout, new_lake, plate, state
from test_recompute import feature_set, put

import cli
from warehouse import feature_sets, layouts, profiles, slices
from warehouse.commands.profile import profile
from warehouse.correct import correct
from warehouse.embeddings import to_column
from warehouse.errors import ExportError, ProfileError, RecipeError, UnknownNameError
from warehouse.export import export, write
from warehouse.export.columns import NAMES
from warehouse.feature_lists import LINEAGE_KEY
from warehouse.feature_sets import FeatureSet
from warehouse.level_queries import FLAGS, LABELS
from warehouse.runs import Run
from warehouse.screens.model import ANNOTATIONS_SCHEMA
from warehouse.slices import Slice

DIM = 4
TARGET = FeatureSet("sliced", "import", "1", None, {}, (), tuple(f"f{i + 1}" for i in range(DIM)), "well")
LABELLED = [
    ("c0", "moa", "inhibitor"),
    ("c0", "moa", "binder"),
    ("c1", "moa", "binder"),
    ("c2", "target", "TUBB"),
]
#: Keys of each level above wells.
GROUPS = {
    "treatment": ["treatment"],
    "batch": ["treatment", "source", "batch"],
    "source": ["treatment", "source"],
}


def _filled(path):
    """Two sources, three batches, four plates; missing elements, flagged wells, a well without a layout."""
    lake = new_lake(path)
    for seed, key in enumerate(
        [("s1", "b1", "p1"), ("s1", "b1", "p2"), ("s1", "b2", "p3"), ("s2", "b1", "p4")]
    ):
        rng = np.random.default_rng(seed)
        plan = [(f"A{i + 1:02d}", "DMSO", None, "negative") for i in range(3)]
        plan += [("A05", "c9", 1.0, "positive"), ("A06", "-", None, "none")]
        plan += [(f"B{i + 1:02d}", f"c{i % 3}", 1.0 + i // 3, "none") for i in range(9)]
        names = [well for well, *_ in plan] + ["H12"]
        matrix = rng.normal(2, 3, (len(names), DIM))
        matrix[rng.random(matrix.shape) < 0.2] = np.nan
        matrix[:, 3] = seed  # always there: a well without any value cannot come in
        wells = {name: (0.0,) * DIM for name in names}
        data = plate(key, wells, layout=layout(key, plan))
        counts = pl.Series("cell_count", rng.integers(0, 20, len(names)), dtype=pl.Int32)
        found = data.wells.with_columns(counts, to_column(matrix.astype(np.float32)))
        commit(lake, type(data)(**{**vars(data), "wells": found}), TARGET)
    rows = [(compound, None, None, kind, label) for compound, kind, label in LABELLED]
    layouts.put_annotations(
        lake, Run("test", {}), pl.DataFrame(rows, schema=ANNOTATIONS_SCHEMA, orient="row")
    )
    lake.transaction(
        lambda c: c.execute("UPDATE main.quality_limits SET lower = 5 WHERE measure = 'well_cell_count'")
    )
    return lake


@pytest.fixture(scope="module")
def lake(tmp_path_factory):
    with _filled(tmp_path_factory.mktemp("slices") / "lake") as made:
        yield made


def wells(lake, recipe="none") -> pl.DataFrame:
    """All wells with what a predicate can name, one column a feature."""
    found = profiles.read(lake, "sliced", level="well", recipe=recipe)
    features = [
        pl.Series(f"f{i + 1}", found.matrix[:, i]).fill_nan(None) for i in range(found.matrix.shape[1])
    ]
    labels = {kind: {c: [] for c, k, _ in LABELLED if k == kind} for kind in LABELS}
    for compound, kind, label in LABELLED:
        labels[kind][compound].append(label)
    columns = [
        pl.Series(kind, [labels[kind].get(c, []) for c in found.rows["compound"]], dtype=pl.List(pl.String))
        for kind in LABELS
    ]
    flagged = (pl.col("cell_count") < 5).alias("is_flagged")
    return found.rows.hstack(features).hstack(columns).with_columns(flagged)


def expected(chosen: pl.DataFrame, level: str) -> tuple[list, np.ndarray]:
    """Means of a level by Polars: keys and profiles."""
    features = [name for name in chosen.columns if re.fullmatch(r"f\d", name)]
    means = [pl.col(name).cast(pl.Float64).mean() for name in features]
    if level == "well":
        table, keys = chosen, ["source", "batch", "plate", "well"]
    elif level == "consensus":
        known = chosen.filter(pl.col("treatment").is_not_null())
        keys = ["treatment"]
        table = known.group_by(["treatment", "source"]).agg(means).group_by(keys).agg(means)
    else:
        keys = GROUPS[level]
        table = chosen.filter(pl.col("treatment").is_not_null()).group_by(keys).agg(means)
    table = table.sort(keys)
    return table.select(keys).rows(), table.select(features).to_numpy().astype(np.float64)


PREDICATES = [
    ("batch = 'b1'", False, pl.col("batch") == "b1"),
    ("source = 's1' AND well < 'B05'", False, (pl.col("source") == "s1") & (pl.col("well") < "B05")),
    ("control_type <> 'negative'", False, pl.col("control_type") != "negative"),
    ("NOT is_flagged", False, ~pl.col("is_flagged")),
    (None, True, ~pl.col("is_flagged")),
    ("Is_Flagged AND batch = 'b2'", False, pl.col("is_flagged") & (pl.col("batch") == "b2")),
    ("list_contains(flags, 'well_cell_count low')", False, pl.col("is_flagged")),
    ("list_contains(moa, 'binder')", False, pl.col("moa").list.contains("binder")),
    (
        "'TUBB' IN target AND concentration > 1 -- the higher ones",
        True,
        pl.col("target").list.contains("TUBB") & (pl.col("concentration") > 1) & ~pl.col("is_flagged"),
    ),
    ("embedding[1] IS NULL", False, pl.col("f1").is_null()),
    ("plate IN (SELECT max(plate) FROM main.plates)", False, pl.col("plate") == "p4"),
]


@pytest.mark.parametrize("level", ["well", "treatment", "batch", "source", "consensus"])
@pytest.mark.parametrize(("where", "passing", "chosen"), PREDICATES, ids=lambda value: str(value)[:30])
def test_equals_polars_on_the_chosen_wells(lake, level, where, passing, chosen):
    picked = wells(lake).filter(chosen)
    assert 0 < len(picked) < len(wells(lake))
    keys, matrix = expected(picked, level)
    found = slices.read(lake, "sliced", level=level, part=Slice(where, passing))
    assert found.rows.select(profiles.IDS[level]).rows() == keys
    np.testing.assert_allclose(found.matrix, matrix, rtol=1e-6, atol=1e-6)
    if "well_count" in found.rows.columns:
        assert found.rows["well_count"].sum() == picked["treatment"].is_not_null().sum()


@pytest.mark.parametrize("level", [level for level in profiles.LEVELS if level not in ("cell", "field")])
def test_without_a_choice_it_is_the_level(lake, level):
    whole = profiles.read(lake, "sliced", level=level)
    for part in (None, Slice(), Slice("true")):
        found = slices.read(lake, "sliced", level=level, part=part)
        # The order of rows within a group is free: the last bit of a sum may differ.
        np.testing.assert_allclose(found.matrix, whole.matrix, rtol=1e-6, atol=1e-6)
        exact = [name for name, kind in whole.rows.schema.items() if not kind.is_float()]
        assert found.rows.select(exact).equals(whole.rows.select(exact))


@pytest.mark.parametrize("operators", [("median", "median"), ("trimmed_mean", "modz")], ids="-".join)
def test_the_operators_of_the_feature_set_hold(tmp_path, operators):
    with _filled(tmp_path / "lake") as lake:
        feature_sets.set_operators(lake, "sliced", treatment=operators[0], consensus=operators[1])
        for level in ("treatment", "compound", "consensus"):
            whole = profiles.read(lake, "sliced", level=level)
            found = slices.read(lake, "sliced", level=level, part=Slice("true"))
            np.testing.assert_allclose(found.matrix, whole.matrix, rtol=1e-6, atol=1e-6)
        picked = wells(lake).filter(pl.col("batch") == "b1", pl.col("treatment") == "c0@1uM")["f4"].sort()
        found = slices.read(lake, "sliced", part=Slice("batch = 'b1' AND treatment = 'c0@1uM'"))
        # Fewer than ten wells: nothing is trimmed.
        value = picked.median() if operators[0] == "median" else picked.mean()
        assert found.matrix[0, 3] == pytest.approx(value, rel=1e-6)


def test_missing_elements_stay_missing(lake):
    found = slices.read(lake, "sliced", level="treatment", part=Slice("embedding[1] IS NULL"))
    assert np.isnan(found.matrix[:, 0]).all()
    assert not np.isnan(found.matrix[:, 3]).any()


def test_chooses_before_and_not_after(lake, tmp_path):
    """A level's own rows can be chosen by `export --where`: their profiles are those of all wells."""
    export(lake, "sliced", tmp_path / "after.parquet", level="batch", where="source = 's1'")
    before = slices.read(lake, "sliced", level="batch", part=Slice("source = 's1'"))
    after = pl.read_parquet(tmp_path / "after.parquet")
    np.testing.assert_allclose(before.matrix, after.select(before.feature_names).to_numpy(), rtol=1e-6)
    whole = profiles.read(lake, "sliced", level="treatment", where="treatment = 'DMSO'")
    part = slices.read(lake, "sliced", level="treatment", part=Slice("source = 's1' AND treatment = 'DMSO'"))
    assert (whole.rows["source_count"][0], part.rows["source_count"][0]) == (2, 1)
    assert not np.allclose(whole.matrix, part.matrix)


@pytest.mark.parametrize("level", ["cell", "field"])
def test_cells_and_fields_of_chosen_wells(tmp_path, level):
    with new_lake(tmp_path / "lake") as lake:
        put(lake, feature_set("cell"))
        whole = profiles.read(lake, "of_cell", level=level)
        found = slices.read(lake, "of_cell", level=level, part=Slice("treatment = 'DMSO' AND source = 's'"))
        keep = (whole.rows["well"] == "A02") & (whole.rows["source"] == "s")
        ids = list(profiles.IDS[level])
        assert found.rows.select(ids).rows() == whole.rows.filter(keep).select(ids).rows()
        np.testing.assert_array_equal(found.matrix, whole.matrix[keep.to_numpy()])
        assert set(found.rows["treatment"]) == {"DMSO"}
        with lake.reading():
            chosen = slices.select(lake, "of_cell", level=level, part=Slice("well = 'A02'"))
            report = write(lake, chosen, tmp_path / "x.npy")
        assert report.rows == (whole.rows["well"] == "A02").sum()


def test_a_recipe(tmp_path):
    with _filled(tmp_path / "lake") as lake:
        correct(lake, "sliced", "center")
        picked = wells(lake, "center").filter(pl.col("batch") == "b1")
        keys, matrix = expected(picked, "treatment")
        found = slices.read(lake, "sliced", recipe="center", part=Slice("batch = 'b1'"))
        assert found.rows.select("treatment").rows() == keys
        np.testing.assert_allclose(found.matrix, matrix, rtol=1e-5, atol=1e-6)
        with pytest.raises(
            ProfileError, match=r"^recipe 'center' corrects wells; cells are there as they came in"
        ):
            slices.read(lake, "sliced", level="cell", recipe="center")
        with pytest.raises(RecipeError, match=r"no recipe 'standardize'"):
            slices.read(lake, "sliced", recipe="standardize")


def test_nothing_is_stored(lake):
    before = (lake.snapshot(), state(lake))
    slices.read(lake, "sliced", part=Slice("batch = 'b1'", passing=True))
    assert (lake.snapshot(), state(lake)) == before


# --- what cannot be chosen


@pytest.mark.parametrize("where", INJECTIONS)
def test_hostile_predicates_are_refused(lake, where):
    before = state(lake)
    with pytest.raises(ProfileError, match="--where"):
        slices.read(lake, "sliced", part=Slice(where))
    assert state(lake) == before


def test_a_column_that_wells_lack(lake):
    columns = lake.frame("DESCRIBE sliced.well_profiles")["column_name"].to_list()
    with pytest.raises(ProfileError, match=r"--where 'dose > 1': .*\"dose\" not found") as caught:
        slices.read(lake, "sliced", part=Slice("dose > 1"))
    assert "\n" not in str(caught.value)
    assert str(caught.value).endswith(f"columns of wells: {', '.join([*columns, *LABELS, *FLAGS])}")


def test_a_predicate_that_fails_on_a_value(lake):
    with pytest.raises(ProfileError, match=r"^--where .*: Conversion Error.*'DMSO'"):
        slices.read(lake, "sliced", part=Slice("compound::INTEGER > 1"))


def test_an_empty_slice_is_told_with_counts(lake, tmp_path):
    total = len(wells(lake))
    message = f"none of the {total} wells of 'sliced' meets --where \"batch = 'b9'\" and --passing"
    with pytest.raises(ProfileError, match=f"^{re.escape(message)}$"):
        slices.read(lake, "sliced", part=Slice("batch = 'b9'", passing=True))
    why = f"1 of {total} wells of 'sliced' meet --where \"well = 'H12' AND plate = 'p1'\", and level 'treatment' has no"
    with pytest.raises(ProfileError, match=re.escape(why)):
        slices.read(lake, "sliced", part=Slice("well = 'H12' AND plate = 'p1'"))
    with lake.reading():
        chosen = slices.select(lake, "sliced", part=Slice("well = 'H12' AND plate = 'p1'"))
        with pytest.raises(ExportError, match=re.escape(why)):
            write(lake, chosen, tmp_path / "x.parquet")
    assert list(tmp_path.iterdir()) == []


def test_unknown_names(lake):
    with pytest.raises(UnknownNameError, match="Did you mean 'treatment'"):
        slices.read(lake, "sliced", level="treatments")
    with pytest.raises(UnknownNameError, match="feature set 'slice'"):
        slices.read(lake, "slice")


# --- files, and the command


@pytest.fixture
def call(capsys, monkeypatch, lake):
    """Run the command on the lake of this module: exit code, stdout, stderr."""
    monkeypatch.setenv("WELLHOUSE_LAKE", lake.address)
    if profile not in cli.COMMANDS:
        cli.app.command()(profile)

    def run(*words):
        monkeypatch.setattr(sys, "argv", ["wellhouse", *map(str, words)])
        capsys.readouterr()
        code = 0
        try:
            cli.main()
        except SystemExit as ended:
            code = ended.code or 0
        return code, *capsys.readouterr()

    return run


def test_a_file_tells_its_slice(lake, tmp_path, call):
    path = tmp_path / "x.parquet"
    where = "batch = 'b1'"
    code, out, err = call("profile", "sliced", "--where", where, "--passing", "--out", path, "--json")
    found = slices.read(lake, "sliced", part=Slice(where, passing=True))
    assert (code, err) == (0, "")
    assert json.loads(out) == {"rows": len(found.rows), "features": DIM, "files": [str(path)]}
    written = pl.read_parquet(path)
    assert written[NAMES["treatment"]].to_list() == found.rows["treatment"].to_list()
    np.testing.assert_allclose(
        written.select(found.feature_names).to_numpy(), found.matrix, rtol=1e-6, atol=1e-6
    )
    lineage = json.loads(pq.read_schema(path).metadata[LINEAGE_KEY])
    chosen = wells(lake).filter((pl.col("batch") == "b1") & ~pl.col("is_flagged"))
    assert lineage["wells"] == {
        "computed_from": "committed wells",
        "where": where,
        "passing": True,
        "chosen": len(chosen),
        "of": len(wells(lake)),
    }
    assert lineage["where"] is None
    assert call("profile", "sliced", "--out", path)[0] == 1
    export(lake, "sliced", tmp_path / "y.parquet", level="treatment")
    assert "wells" not in json.loads(pq.read_schema(tmp_path / "y.parquet").metadata[LINEAGE_KEY])


def test_the_command(lake, call):
    code, out, err = call("profile", "sliced", "--where", "batch = 'b1'", "-n", 2, "--numbers", 1)
    assert (code, " f1 " in out, " f2 " in out) == (0, True, False)
    total = len(slices.read(lake, "sliced", part=Slice("batch = 'b1'")).rows)
    assert err == f"note: 2 of {total} rows; -n shows more, --out writes all\n"
    document = json.loads(call("profile", "sliced", "--level", "well", "--json")[1])
    assert document["features"] == list(TARGET.feature_names)
    whole = profiles.read(lake, "sliced", level="well")
    assert [row["well"] for row in document["rows"]] == whole.rows["well"].to_list()
    assert [row["embedding"][0] is None for row in document["rows"]] == np.isnan(whole.matrix[:, 0]).tolist()
    code, out, err = call("profile", "sliced", "--where", "batch = 'b9'")
    assert (code, out, err) == (
        1,
        "",
        f"error: none of the {len(whole.rows)} wells of 'sliced' meets --where \"batch = 'b9'\"\n",
    )


def test_the_text_it_shows_can_be_asked(lake, call):
    options = ("--where", "NOT is_flagged", "--level", "source")
    code, text, _ = call("profile", "sliced", *options, "--show-sql")
    assert (code, text.startswith("WITH this_chosen_wells AS ")) == (0, True)
    rows = json.loads(call("profile", "sliced", *options, "--json")[1])["rows"]
    assert json.loads(call("sql", text, "--json")[1]) == rows


@pytest.mark.parametrize(
    ("where", "message"),
    [
        ("random() < 0.5", r"random\(\) is another at every look: choose by a hash of the keys"),
        ("well = 'A01' OR uuid() > 'x'", r"is another at every look"),
        ("5", "is neither true nor false: write a comparison"),
        ("'x'", "is neither true nor false: write a comparison"),
        (" ", "--where is empty: give one predicate"),
    ],
)
def test_a_predicate_that_chooses_nothing_for_sure_is_refused(where, message):
    with pytest.raises(ProfileError, match=message):
        profiles.predicate(where)


@pytest.mark.parametrize(
    "where", ["hash(plate || well) % 2 = 0", "true", "well = 'A01' AND now() > '2000-01-01'"]
)
def test_a_predicate_may_hash_and_ask_for_the_time(where):
    assert profiles.predicate(where) == where
