"""Evaluation over a lake: values worked by hand, what is stored, refusals."""

import json

import numpy as np
import pytest
from builders import (
    INJECTIONS,
    commit,
    layout,
    neighbour_lake,
    neighbour_plate,
    new_lake,
    plate,
    small_lake,
    state,
)

from warehouse import __version__, metrics, profiles
from warehouse.correct import correct
from warehouse.errors import EvaluationError, ProfileError, RecipeError, UnknownNameError
from warehouse.evaluation import Inputs, as_frame, details_frame, evaluate, leaderboard
from warehouse.evaluation import scored as scored_now


@pytest.fixture
def lake(tmp_path):
    with neighbour_lake(tmp_path / "lake") as made:
        yield made


@pytest.fixture(scope="module")
def still(tmp_path_factory):
    with neighbour_lake(tmp_path_factory.mktemp("evaluate") / "lake") as made:
        yield made


def test_nsc_by_hand(lake):
    """Labelled: a@1, a@3, b (moa A), c, d (B), e (C). Nearest of another compound: a@1 → b, a@3 → b, b → a@3: right;
    c → b wrong; d → c right; e → d wrong. DMSO and f have no label."""
    before = lake.snapshot()
    (made,) = evaluate(lake, ["tiny"], ["nsc"])
    assert (made.metric, made.level, made.label_kind, made.recipe, made.snapshot) == (
        "nsc",
        "treatment",
        "moa",
        "none",
        before,
    )
    assert (made.score.n, made.score.correct, made.score.left_out) == (6, 4, {"no label": 2})
    assert made.score.value == pytest.approx(4 / 6)
    stored = lake.frame(
        "SELECT * EXCLUDE (evaluation, run, evaluated_at, fingerprint, baselines, is_above) FROM main.evaluations"
    ).row(0, named=True)
    assert json.loads(stored.pop("parameters")) == {
        "where": None, "correct": 4, "batch_key": "batch", "parameters": made.asked.parameters, "inputs": {}, "seed": 0,
    }  # fmt: skip
    assert json.loads(stored.pop("left_out")) == {"no label": 2}
    assert stored == {
        "feature_set": "tiny", "recipe": "none", "level": "treatment", "metric": "nsc", "label_kind": "moa",
        "value": 4 / 6, "n": 6, "snapshot": before, "code_version": __version__,
    }  # fmt: skip
    run = lake.frame("SELECT r.command, r.settings FROM main.runs r JOIN main.evaluations e USING (run)").row(
        0
    )
    assert run[0] == "evaluate"
    assert json.loads(run[1]) == {
        "feature_sets": ["tiny"], "recipe": "none", "labels": "moa", "where": None, "metrics": ["nsc"],
        "level": None, "batch_key": "batch", "baselines": 5, "seed": 0, "inputs": {}, "device": "cpu",
    }  # fmt: skip
    # The value again, at the snapshot that is stored with it.
    old = profiles.read(lake, "tiny")
    commit(lake, neighbour_plate("p2", shift=3.0))
    again = lake.frame(
        f"SELECT embedding FROM tiny.wells AT (VERSION => {made.snapshot}) WHERE well = 'A01' AND plate = 'p2'"
    )
    assert again["embedding"].to_list() == [pytest.approx([0.8, 0.3, 0.0])]
    assert not np.allclose(profiles.read(lake, "tiny").matrix, old.matrix)


def test_where_leaves_rows_out_and_is_stored(lake):
    """Without b: a@1 and a@3 → c, wrong; c → a@3 wrong; d → c right; e → d wrong."""
    (made,) = evaluate(lake, ["tiny"], ["nsc"], where="compound <> 'b'")
    assert (made.score.n, made.score.correct) == (5, 1)
    parameters = json.loads(lake.value("SELECT parameters FROM main.evaluations"))
    assert (parameters["where"], parameters["correct"]) == ("compound <> 'b'", 1)


def test_several_sets_and_metrics_in_one_commit(lake):
    from dataclasses import replace

    from builders import TINY

    commit(lake, neighbour_plate("p1", shift=0.5), replace(TINY, name="other"))
    before = lake.snapshot()
    made = evaluate(lake, ["tiny", "other"], ["nsc", "map"])
    assert [(each.feature_set, each.metric) for each in made] == [
        ("tiny", "nsc"), ("tiny", "map"), ("other", "nsc"), ("other", "map"),
    ]  # fmt: skip
    assert lake.snapshot() == before + 2  # the scores, and the end of the run
    assert {each.snapshot for each in made} == {before}
    frame = as_frame(made)
    assert frame.select("feature_set", "metric", "n").rows() == [
        (e.feature_set, e.metric, e.score.n) for e in made
    ]
    assert frame["left_out"][0] == "2 no label"
    assert lake.value("SELECT count(*) FROM main.evaluations") == 4
    assert lake.value("SELECT count(DISTINCT run) FROM main.evaluations") == 1
    assert details_frame(made[0]).height == 6
    # Each equals the metric called on what the level holds.
    table = profiles.read(lake, "tiny")
    labels = [set(found or ()) for found in table.rows["moa"].to_list()]
    again = metrics.get("map").function(
        table.matrix, labels=labels, compounds=table.rows["compound"].to_list()
    )
    assert made[1].score.value == again.value


def test_wells_against_controls(tmp_path):
    """One plate: a replicate pair beside each other, far from the controls, has average precision 1."""
    key = ("s", "b", "p")
    plan = [("A01", "DMSO", None, "negative"), ("A02", "DMSO", None, "negative"), ("A03", "x", 1.0, "none"),
            ("A04", "x", 1.0, "none"), ("A05", "y", 1.0, "none"), ("A06", "y", 1.0, "none")]  # fmt: skip
    wells = {
        "A01": (1, 0, 0),
        "A02": (0, 1, 0),
        "A03": (0, 0.1, 1),
        "A04": (0, 0.2, 1),
        "A05": (1, 0.1, 0),
        "A06": (0, 1, 0.1),
    }
    with new_lake(tmp_path / "lake") as lake:
        commit(lake, plate(key, wells, "h", layout(key, plan)))
        (made,) = evaluate(lake, ["tiny"], ["map_vs_controls"])
        assert (made.level, made.label_kind, made.score.n) == ("well", None, 2)
        # x: its twin is first for both. y: A05 has cosine .995, .0995 to the controls and .0990 to its twin, which
        # is third; A06 has .995, .0990 (its twin, second), 0.
        assert made.score.value == pytest.approx((1 + (1 / 3 + 1 / 2) / 2) / 2)
        assert lake.value("SELECT label_kind FROM main.evaluations") is None


def test_recipes_are_read_by_steps_or_name(lake):
    slug = correct(lake, "tiny", "center(scope=plate)").recipe
    by_steps = evaluate(lake, ["tiny"], ["nsc"], recipe="center(scope=plate)")[0]
    by_name = evaluate(lake, ["tiny"], ["nsc"], recipe=slug)[0]
    assert by_steps.recipe == by_name.recipe == slug
    assert by_steps.score.value == by_name.score.value
    with pytest.raises(RecipeError, match="feature set 'tiny' has no recipe 'standardize'"):
        evaluate(lake, ["tiny"], ["nsc"], recipe="standardize")


def test_refusals_store_nothing(still):
    cases = [
        ({"metrics": ["nsq"]}, UnknownNameError, r"unknown metric 'nsq'. Did you mean 'ns[bc]'\?"),
        ({"feature_sets": ["tinny"]}, UnknownNameError, "unknown feature set 'tinny'"),
        ({"labels": "moas"}, UnknownNameError, r"unknown kind of label 'moas'. Did you mean 'moa'\?"),
        ({"labels": "target"}, EvaluationError, "nsc: no treatment of feature set 'tiny' has a label of kind 'target'"),
        ({"where": "1 = 0"}, EvaluationError, "nsc: .*feature set 'tiny'.*look at --where"),
        ({"where": "colour = 1"}, ProfileError, "--where 'colour = 1': Binder Error"),
    ]  # fmt: skip
    before = still.snapshot()
    for change, kind, message in cases:
        given = {"feature_sets": ["tiny"], "metrics": ["nsc"], **change}
        with pytest.raises(kind, match=message):
            evaluate(still, **given)
    assert still.snapshot() == before


def test_a_missing_element_is_refused_by_name(tmp_path):
    with small_lake(tmp_path / "lake") as lake:
        with pytest.raises(
            EvaluationError,
            match=r"map_vs_controls: s1/b1/p2/A03 has no value for feature 'f2' \(2 of 14 wells miss one\)",
        ):
            evaluate(lake, ["tiny"], ["map_vs_controls"])
        assert lake.value("SELECT count(*) FROM main.evaluations") == 0


@pytest.mark.parametrize("where", INJECTIONS)
def test_where_cannot_change_a_lake_that_is_open_for_writing(still, where):
    before, snapshots = state(still), still.value("SELECT count(*) FROM ducklake_snapshots('lake')")
    with pytest.raises(ProfileError, match=r"^--where "):
        evaluate(still, ["tiny"], ["nsc"], where=where)
    assert state(still) == before
    assert still.value("SELECT count(*) FROM ducklake_snapshots('lake')") == snapshots


def test_a_metric_that_cannot_be_scored_keeps_no_other_from_being_stored(lake):
    scored, failed = evaluate(lake, ["tiny"], ["nsc", "map_cross_source"], baselines=2)
    assert (scored.failure, scored.score.value) == (None, pytest.approx(4 / 6))
    assert failed.failure.startswith("map_cross_source: no query is left")
    rows = lake.frame(
        "SELECT metric, value, n, left_out, is_above FROM main.evaluations ORDER BY metric DESC"
    ).rows()
    assert rows[0][0] == "nsc"
    assert rows[1][:3] == ("map_cross_source", None, 0)
    assert json.loads(rows[1][3]) == {"not scored": failed.failure}
    # A night does not ask again for what was refused, until something changes.
    assert scored_now(lake, "tiny", "map_cross_source")
    assert scored_now(lake, "tiny", "nsc")
    assert not scored_now(lake, "tiny", "nsb")
    # A level that cannot be read takes its own metrics only.
    one, other = evaluate(lake, ["tiny"], ["nsc", "grit"], where="well_count > 0", baselines=0)
    assert one.failure is None
    assert "--where 'well_count > 0'" in other.failure
    assert as_frame([scored, failed])["mark"][1] == "not scored"


def test_baselines_and_levels_are_stored_with_the_score(lake):
    (made,) = evaluate(lake, ["tiny:none"], ["knn(k=1)"], level="consensus", baselines=3)
    baselines, is_above = lake.frame("SELECT baselines, is_above FROM main.evaluations").row(0)
    stored = json.loads(baselines)
    assert stored["shuffled"]["draws"] == 3
    assert stored["shuffled"]["best"] >= stored["shuffled"]["mean"]
    assert stored["cell_count"] is None  # the profiles came without counts
    assert is_above == made.is_above
    assert (made.level, lake.value("SELECT level FROM main.evaluations")) == ("consensus", "consensus")


@pytest.mark.parametrize("level", ["well", "treatment", "compound", "consensus", "batch", "source"])
def test_labels_and_batches_are_there_at_every_level(lake, level):
    (made,) = evaluate(lake, ["tiny"], ["knn(k=1,exclude=none)"], level=level, baselines=0)
    assert made.score.n > 0
    rows = profiles.read(lake, "tiny", level=level).rows
    assert made.score.n + sum(made.score.left_out.values()) == len(rows)


def test_a_level_that_lacks_what_a_metric_needs_is_refused(lake):
    with pytest.raises(
        EvaluationError, match="map_replicates: a compound has no treatment: score another level"
    ):
        evaluate(lake, ["tiny"], ["map_replicates"], level="compound")
    with pytest.raises(
        EvaluationError, match=r"map_vs_controls: a treatment is of many plates.*use --level well"
    ):
        evaluate(lake, ["tiny"], ["map_vs_controls"], level="treatment")
    with pytest.raises(
        EvaluationError, match="known_pairs_recall: this metric needs a file of pairs: give it with --pairs"
    ):
        evaluate(lake, ["tiny"], ["known_pairs_recall"])
    with pytest.raises(EvaluationError, match="no well of feature set 'tiny' has a treatment: are there"):
        evaluate(lake, ["tiny"], ["map_replicates"], where="control_type = 'negative'")
    with pytest.raises(EvaluationError, match="seed -3 is negative"):
        evaluate(lake, ["tiny"], ["nsc"], seed=-3)
    with pytest.raises(UnknownNameError, match="unknown batch key 'week'"):
        evaluate(lake, ["tiny"], ["nsb"], batch_key="week")


def test_files_mark_the_scores_that_look_at_them_and_what_they_miss_is_told(lake, tmp_path):
    path = tmp_path / "folds.csv"
    rows = profiles.read(lake, "tiny").rows["treatment"].to_list()
    names = [name for name in rows if not name.startswith("DMSO")]
    path.write_text(
        "treatment,fold\n" + "".join(f"{name},{i % 2}\n" for i, name in enumerate(names)) + "gone,1\n"
    )
    nsc, knn = evaluate(
        lake, ["tiny"], ["nsc", "knn_classification(k=1)"], inputs=Inputs(folds=path), baselines=0
    )
    assert any("1 line names no treatment of those scored" in note for note in knn.notes)
    assert any("1 compound is in several folds, and so trained on and tested" in note for note in knn.notes)
    parameters = lake.frame("SELECT metric, parameters FROM main.evaluations ORDER BY metric DESC").rows()
    assert [json.loads(text)["inputs"].keys() for _, text in parameters] == [set(), {"folds"}]
    assert leaderboard(lake, metrics=["nsc"]).table["nsc"].to_list() == [nsc.score.value]
    with pytest.raises(EvaluationError, match="no feature set was scored by knn_classification"):
        leaderboard(lake, metrics=["knn_classification(k=1)"])
    board = leaderboard(lake, metrics=["knn_classification(k=1)"], inputs=Inputs(folds=path))
    assert board.table.width == 3
