"""Operators of the views above wells, and the columns beside the profile, against released packages and plain loops."""

import json
import subprocess
import sys
from itertools import combinations

import numpy as np
import pandas as pd
import polars as pl
import pytest
from builders import commit, layout, new_lake, plate, random_plate, small_lake, wide
from pycytominer import consensus as pycytominer_consensus
from scipy.stats import rankdata, trim_mean

from warehouse import correct, feature_sets, nearest, profiles
from warehouse.embeddings import to_matrix
from warehouse.errors import UnknownNameError
from warehouse.export import export
from warehouse.lake import Lake
from warehouse.levels import FIELD_OPERATORS, WELL_OPERATORS
from warehouse.sqltext import OPERATORS

DIM = 23
#: The lake holds float32: means and medians agree to its rounding, 6e-8 of values of about 3.
CLOSE = {"rtol": 1e-6, "atol": 1e-6}


def make_plates(missing):
    """Three plates in two sources and batches: groups of 1 to 40 wells, ties, and where asked for missing elements."""
    rng = np.random.default_rng(11)
    plates = []
    for number, (source, batch) in enumerate([("s1", "b1"), ("s1", "b2"), ("s2", "b1")]):
        key = (source, batch, f"p{number}")
        names = ["DMSO"] * 14 + ["a"] * 11 + ["a high"] * 4 + ["b"] * 2 + (["once"] if number == 0 else [])
        plan, wells = [], {}
        for i, name in enumerate(names):
            well = f"{chr(65 + i // 12)}{i % 12 + 1:02d}"
            dose = None if name == "DMSO" else 3.0 if name == "a high" else 1.0
            plan.append((well, name.removesuffix(" high"), dose, "negative" if name == "DMSO" else "none"))
            signal = np.sin(np.arange(DIM) * (1 + len(name)))
            vector = np.round(rng.normal(signal, 1.5), 1)
            if missing:
                vector[rng.random(DIM) < 0.2] = np.nan
                vector[0] = np.nan if name == "b" else vector[0]
            wells[well] = tuple(None if np.isnan(x) else float(x) for x in vector)
        plates.append((key, plan, wells))
    return plates


@pytest.fixture(scope="module", params=[False, True], ids=["complete", "missing"])
def lake(request, tmp_path_factory):
    with new_lake(tmp_path_factory.mktemp("operators") / "lake") as made:
        for key, plan, wells in make_plates(request.param):
            commit(made, plate(key, wells, "h", layout(key, plan)), wide(DIM))
        yield made


def groups(lake, keys):
    """The wells of each group: its key to a matrix (n, d)."""
    wells = lake.frame(
        "FROM wide.well_profiles WHERE treatment IS NOT NULL ORDER BY source, batch, plate, well"
    )
    parts = wells.partition_by(keys, as_dict=True)
    return {key: to_matrix(part["embedding"], DIM).astype(np.float64) for key, part in parts.items()}


def computed(lake, view, keys):
    frame = lake.frame(f"SELECT {', '.join(keys)}, embedding FROM wide.{view}")
    assert frame.schema["embedding"] == pl.List(pl.Float32)
    return dict(zip(frame.select(keys).rows(), to_matrix(frame["embedding"], DIM), strict=True))


def naive(matrix, operator):
    """Feature by feature over what is there."""
    function = {"mean": np.mean, "median": np.median, "trimmed_mean": lambda v: trim_mean(v, 0.1)}[operator]
    columns = [column[~np.isnan(column)] for column in matrix.T]
    return np.array([function(column) if len(column) else np.nan for column in columns])


def reset(lake):
    feature_sets.set_operators(lake, "wide", treatment="mean", consensus="mean_of_sources")


KEYS = {
    "treatments": ["treatment"],
    "compounds": ["compound"],
    "batches": ["treatment", "source", "batch"],
    "sources": ["treatment", "source"],
    "treatments_passing": ["treatment"],
}


@pytest.mark.parametrize("operator", feature_sets.TREATMENT_OPERATORS)
def test_each_level_by_each_operator_equals_a_naive_loop(lake, operator):
    """SciPy's trim_mean cuts int(0.1 n) values at each end; groups here have 1, 2, 4, 6, 11, 14, 28 … wells."""
    try:
        feature_sets.set_operators(lake, "wide", treatment=operator)
        for view, keys in KEYS.items():
            expected = groups(lake, keys)
            found = computed(lake, view, keys)
            assert found.keys() == expected.keys()
            for key, matrix in expected.items():
                np.testing.assert_allclose(found[key], naive(matrix, operator), **CLOSE)
    finally:
        reset(lake)


@pytest.mark.parametrize("operator", ["mean", "median", "trimmed_mean"])
def test_consensus_over_wells_equals_a_naive_loop(lake, operator):
    try:
        feature_sets.set_operators(lake, "wide", consensus=operator)
        found = computed(lake, "consensus", ["treatment"])
        for key, matrix in groups(lake, ["treatment"]).items():
            np.testing.assert_allclose(found[key], naive(matrix, operator), **CLOSE)
    finally:
        reset(lake)


def test_trimming_cuts_as_many_as_scipy_does():
    """A tenth by division of integers is SciPy's int(0.1 * n) for every number of wells or cells."""
    n = np.arange(1, 2_000_000)
    np.testing.assert_array_equal(n // 10, (0.1 * n).astype(np.int64))


def modz(matrix):
    """MODZ as the view defines it: own ranks, pairs over common features, missing elements of the others' weights."""
    n = len(matrix)
    if n == 1:
        return matrix[0]
    ranks = np.full(matrix.shape, np.nan)
    for row, values in zip(ranks, matrix, strict=True):
        row[~np.isnan(values)] = rankdata(values[~np.isnan(values)])
    correlations = np.full((n, n), np.nan)
    for a, b in combinations(range(n), 2):
        both = ~np.isnan(ranks[a]) & ~np.isnan(ranks[b])
        correlations[a, b] = correlations[b, a] = max(0, np.corrcoef(ranks[a][both], ranks[b][both])[0, 1])
    weights = np.maximum(np.nanmean(correlations, axis=1), 0.01)
    weights = np.round(weights / weights.sum(), 4)
    there = (~np.isnan(matrix)) * weights[:, None]
    with np.errstate(invalid="ignore"):
        return np.nansum(matrix * weights[:, None], axis=0) * weights.sum() / there.sum(axis=0)


def test_modz_equals_its_definition_and_pycytominer(lake):
    """Complete wells: pycytominer 1.7.1 itself; both are rounded to float32 once."""
    try:
        feature_sets.set_operators(lake, "wide", consensus="modz")
        found = computed(lake, "consensus", ["treatment"])
        wells = groups(lake, ["treatment"])
        for key, matrix in wells.items():
            np.testing.assert_allclose(found[key], modz(matrix), **CLOSE)
        if any(np.isnan(matrix).any() for matrix in wells.values()):
            return
        names = [f"Cells_{i}" for i in range(DIM)]
        frame = pd.concat(
            [pd.DataFrame(matrix, columns=names).assign(Metadata_t=key) for (key,), matrix in wells.items()]
        ).reset_index(drop=True)
        reference = pycytominer_consensus(
            frame, replicate_columns=["Metadata_t"], operation="modz", features=names
        )
        assert set(reference["Metadata_t"]) == {key for (key,) in found}
        for row in reference.itertuples(index=False):
            np.testing.assert_allclose(found[(row.Metadata_t,)], np.array(row[1:], dtype=float), **CLOSE)
    finally:
        reset(lake)


def test_modz_without_a_pair_that_can_be_compared(tmp_path):
    """Constant wells have no rank correlation: all count the same."""
    with new_lake(tmp_path / "lake") as lake:
        key = ("s", "b", "p")
        wells = {"A01": (1, 1, 1), "A02": (4, 4, 4), "B01": (1, 2, 3), "B02": (3, 2, 1)}
        plan = [(well, "flat" if well < "B" else "opposed", 1.0, "none") for well in wells]
        commit(lake, plate(key, wells, "h", layout(key, plan)))
        feature_sets.set_operators(lake, "tiny", consensus="modz")
        found = dict(lake.frame("SELECT treatment, embedding FROM tiny.consensus").rows())
        assert found == {"flat@1uM": [2.5, 2.5, 2.5], "opposed@1uM": [2.0, 2.0, 2.0]}


# ------------------------------------------------------------------------------------ beside the profile


def median_cosine(matrix):
    usable = [v / np.linalg.norm(v) for v in matrix if not np.isnan(v).any() and v.any()]
    pairs = [float(a @ b) for a, b in combinations(usable, 2)]
    return np.median(pairs) if pairs else None


def test_replicate_cosine_equals_a_naive_loop_up_to_24_wells(lake):
    compared = 0
    for view, keys in KEYS.items():
        expected = groups(lake, keys)
        frame = lake.frame(f"SELECT {', '.join(keys)}, replicate_cosine FROM wide.{view}")
        assert frame.schema["replicate_cosine"] == pl.Float64
        for *key, cosine in frame.iter_rows():
            matrix = expected[tuple(key)]
            if len(matrix) <= 24:
                assert cosine == (
                    None if (m := median_cosine(matrix)) is None else pytest.approx(m, abs=1e-6)
                )
                compared += cosine is not None
    is_complete = (
        lake.value("SELECT count(*) FROM wide.wells WHERE list_count(embedding) < len(embedding)") == 0
    )
    few_enough = lake.value("SELECT count(*) FROM wide.batches WHERE well_count BETWEEN 2 AND 24")
    assert not is_complete or compared > few_enough > 5


def test_replicate_cosine_of_many_wells_is_of_24_of_them_whatever_the_order(tmp_path):
    cosines = []
    for turn in (1, -1):
        with new_lake(tmp_path / f"lake{turn}") as lake:
            for number in (0, 1, 2)[::turn]:
                data = random_plate(
                    ("s", "b", f"p{number}"), number, dim=4, controls=20, treatments=1, shift=1
                )
                commit(lake, data, wide(4))
            cosines.append(lake.value("SELECT replicate_cosine FROM wide.treatments WHERE well_count = 60"))
            wells = lake.frame("SELECT embedding FROM wide.well_profiles WHERE compound = 'DMSO'")
            of_all = median_cosine(to_matrix(wells["embedding"], 4))
    assert cosines[0] == cosines[1] != pytest.approx(of_all, abs=1e-6)
    assert cosines[0] == pytest.approx(of_all, abs=0.15)


def test_wells_that_have_no_cosine_are_left_out_of_the_spread(tmp_path):
    with new_lake(tmp_path / "lake") as lake:
        key = ("s", "b", "p")
        wells = {
            "A01": (1, 0, 0), "A02": (1, 1, 0), "A03": (0, 0, 0), "A04": (None, 1, 0),
            "B01": (1, 0, 0), "B02": (0, 0, 0), "C01": (0, 0, 2),
        }  # fmt: skip
        names = {"A": "two", "B": "one", "C": "alone"}
        plan = [(well, names[well[0]], 1.0, "none") for well in wells]
        commit(lake, plate(key, wells, "h", layout(key, plan)))
        found = dict(lake.frame("SELECT compound, replicate_cosine FROM tiny.compounds").rows())
        assert found == {"two": pytest.approx(0.5**0.5), "one": None, "alone": None}


def test_nobody_pays_for_the_spread_who_does_not_ask(lake):
    """DuckDB drops an aggregate that is not asked for; the profiles themselves are then not even read."""
    for view in (*KEYS, "consensus"):
        plan = lake.frame(f"EXPLAIN SELECT treatment_or.* FROM (SELECT well_count, plates, positions, control_count "
                          f"FROM wide.{view}) AS treatment_or")["explain_value"][0]  # fmt: skip
        assert "arg_min" not in plan
        assert "embedding" not in plan
    plan = lake.frame("EXPLAIN SELECT replicate_cosine FROM wide.treatments")["explain_value"][0]
    assert "arg_min" in plan


def test_passing_share_is_of_all_wells_of_the_group(tmp_path):
    with small_lake(tmp_path / "lake") as lake:
        lake.connection.execute("UPDATE main.quality_limits SET lower = 5 WHERE measure = 'well_cell_count'")
        counts = "UPDATE tiny.wells SET cell_count = CASE WHEN source = 's2' THEN 1 ELSE 10 END"
        lake.connection.execute(counts)
        for view, expected in {
            "treatments": {"DMSO": 0.8, "taxol@0.3uM": 0.75, "taxol@3uM": 1.0, "nocodazole@1uM": 0.5},
            "consensus": {"DMSO": 0.8, "taxol@0.3uM": 0.75, "taxol@3uM": 1.0, "nocodazole@1uM": 0.5},
        }.items():
            found = dict(lake.frame(f"SELECT treatment, passing_share FROM tiny.{view}_checked").rows())
            assert found == {name: pytest.approx(share) for name, share in expected.items()}
        compounds = dict(lake.frame("SELECT compound, passing_share FROM tiny.compounds_checked").rows())
        assert compounds == {"DMSO": 0.8, "taxol": 0.8, "nocodazole": 0.5}
        rows = (
            "SELECT source, batch, passing_share FROM tiny.{}_checked WHERE treatment = 'DMSO' ORDER BY ALL"
        )
        assert lake.frame(rows.format("batches")).rows() == [
            ("s1", "b1", 1.0),
            ("s1", "b2", 1.0),
            ("s2", "b1", 0.0),
        ]
        assert lake.frame(rows.format("sources").replace("batch, ", "")).rows() == [("s1", 1.0), ("s2", 0.0)]
        kept = profiles.rows(lake, "tiny", "none", "treatment", "passing_share = 1")
        assert kept["treatment"].to_list() == ["taxol@3uM"]


# ------------------------------------------------------------------------------------ the setting


def test_operators_are_kept_with_the_lake_and_reach_recipes(tmp_path):
    with new_lake(tmp_path / "lake") as lake:
        for number in range(2):
            commit(lake, random_plate(("s", "b", f"p{number}"), number), wide(4))
        correct.correct(lake, "wide", "standardize")
        recipe = lake.value("SELECT recipe FROM main.recipes")
        feature_sets.set_operators(lake, "wide", treatment="median", consensus="trimmed_mean")
        snapshot = lake.snapshot()
        feature_sets.set_operators(lake, "wide", treatment="median")
        assert lake.snapshot() == snapshot  # nothing to change
    with Lake.open(tmp_path / "lake") as lake:
        chosen = {"treatment_operator": "median", "consensus_operator": "trimmed_mean"}
        assert feature_sets.operators(lake.connection, "wide") == chosen
        for suffix in ("", f"__{recipe}"):
            wells = lake.frame(f"SELECT embedding FROM wide.well_profiles{suffix} WHERE treatment = 'DMSO'")
            matrix = to_matrix(wells["embedding"], 4)
            found = lake.frame(f"SELECT embedding FROM wide.treatments{suffix} WHERE treatment = 'DMSO'")
            np.testing.assert_allclose(
                to_matrix(found["embedding"], 4)[0], np.median(matrix, axis=0), **CLOSE
            )
        assert lake.value("SELECT count(*) FROM main.runs WHERE command = 'operators'") == 1
        correct.correct(lake, "wide", "mad_robustize")  # a recipe that comes later has them too
        text = "SELECT sql FROM duckdb_views() WHERE view_name = 'treatments__mad_robustize'"
        assert "median(" in str(lake.value(text))


def test_an_index_is_stale_after_another_operator_was_chosen(tmp_path):
    with new_lake(tmp_path / "lake") as lake:
        commit(lake, random_plate(("s", "b", "p"), 1), wide(4))
        before = profiles.fingerprint(lake, "wide")
        nearest.build(lake, "wide")
        assert nearest.state(lake, "wide", "none") == "fresh"
        feature_sets.set_operators(lake, "wide", treatment="median")
        assert nearest.state(lake, "wide", "none") == "stale"
        feature_sets.set_operators(lake, "wide", treatment="mean")
        assert profiles.fingerprint(lake, "wide") == before


def test_wrong_names_are_refused_with_the_nearest(lake):
    with pytest.raises(UnknownNameError, match=r"treatment operator 'medain'. Did you mean 'median'\?"):
        feature_sets.set_operators(lake, "wide", treatment="medain")
    with pytest.raises(UnknownNameError, match=r"consensus operator 'mods'. Did you mean 'modz'\?"):
        feature_sets.set_operators(lake, "wide", consensus="mods")
    with pytest.raises(UnknownNameError, match=r"feature set 'wid'. Did you mean 'wide'\?"):
        feature_sets.set_operators(lake, "wid", consensus="modz")


def test_a_view_and_a_plate_know_the_same_operators():
    assert set(OPERATORS) == set(feature_sets.TREATMENT_OPERATORS) == set(FIELD_OPERATORS)
    assert {*OPERATORS, "weighted_mean"} == set(WELL_OPERATORS)


_COMMAND = """
import sys, typer
from warehouse.commands.aggregation import operators
app = typer.Typer()
app.command()(operators)
app(sys.argv[1:])
"""


def test_the_command_shows_and_chooses(tmp_path):
    with new_lake(tmp_path / "lake") as lake:
        commit(lake, random_plate(("s", "b", "p"), 1), wide(4))
    asked = [sys.executable, "-c", _COMMAND, "wide", "--lake", str(tmp_path / "lake"), "--json"]
    for given, expected in (([], "mean_of_sources"), (["--consensus", "modz"], "modz"), ([], "modz")):
        done = subprocess.run([*asked, *given], capture_output=True, text=True, check=True)
        answer = json.loads(done.stdout)
        assert answer["feature_set"] == "wide"
        assert {row["level"]: row["operator"] for row in answer["operators"]} == {
            "treatment": "mean", "compound": "mean", "batch": "mean", "source": "mean", "consensus": expected,
        }  # fmt: skip


def test_a_choice_is_a_run_that_ended_and_exports_name_it(tmp_path):
    with small_lake(tmp_path / "lake") as lake:
        feature_sets.set_operators(lake, "tiny", treatment="median")
        query = "SELECT outcome, finished_at IS NOT NULL, snapshot_after FROM main.runs WHERE command = 'operators'"
        ((outcome, is_finished, snapshot),) = lake.frame(query).rows()
        assert (outcome, is_finished) == ("done", True)
        assert snapshot is not None
        export(lake, "tiny", tmp_path / "t.csv", level="treatment", where="passing_share >= 0")
        lineage = json.loads((tmp_path / "t.lineage.json").read_text())
        assert (lineage["treatment_operator"], lineage["consensus_operator"]) == ("median", "mean_of_sources")
        shares = lake.frame("SELECT treatment, passing_share FROM tiny.treatments_checked ORDER BY treatment")
        written = pl.read_csv(tmp_path / "t.csv")
        assert written["Metadata_Treatment"].to_list() == shares["treatment"].to_list()
        assert written["Metadata_passing_share"].to_list() == shares["passing_share"].to_list()
