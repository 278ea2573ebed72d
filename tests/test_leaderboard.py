"""The table of methods: which score is shown, which is best, what is stale."""

from dataclasses import replace

import pytest
from builders import TINY, commit, neighbour_lake, neighbour_plate

from warehouse.errors import EvaluationError, UnknownNameError
from warehouse.evaluation import evaluate, leaderboard

METRICS = ["nsc", "nsb"]


@pytest.fixture
def lake(tmp_path):
    with neighbour_lake(tmp_path / "lake") as made:
        for name in ("p1", "p2"):
            commit(made, neighbour_plate(name, shift=5.0), replace(TINY, name="other"))
        yield made


def test_newest_scores_best_and_stale(lake):
    with pytest.raises(EvaluationError, match="no feature set was scored by nsc under these conditions: run"):
        leaderboard(lake, metrics=["nsc"])
    first = evaluate(lake, ["tiny", "other"], ["nsc"], baselines=0)
    evaluate(lake, ["tiny"], ["nsc"], where="compound <> 'b'", baselines=0)  # other conditions: not shown
    evaluate(lake, ["tiny"], ["nsc"], labels="compound", baselines=0)
    board = leaderboard(lake, metrics=["nsc"])
    assert board.table.rows() == [
        ("other", "none", first[1].score.value),
        ("tiny", "none", first[0].score.value),
    ]
    assert board.best == {(0, "nsc"), (1, "nsc")}  # both 4 of 6
    assert (board.stale, board.below, board.notes) == (frozenset(), frozenset(), ())
    # Profiles of one change: its score is stale, and the best is that of the other.
    commit(lake, neighbour_plate("p9", shift=1.0))
    board = leaderboard(lake, metrics=["nsc"])
    assert board.stale == {(1, "nsc")}
    assert board.best == {(0, "nsc")}
    assert "changed since tiny:none were scored" in board.notes[0]
    again = evaluate(lake, ["tiny"], ["nsc"], baselines=0)
    board = leaderboard(lake, metrics=["nsc"])
    assert (board.table["nsc"][1], board.stale) == (again[0].score.value, frozenset())


def test_other_conditions_have_a_board_of_their_own_and_gaps_are_told(lake):
    evaluate(lake, ["tiny"], ["nsc", "knn(k=2)"], where="treatment <> 'z'", baselines=0)
    evaluate(lake, ["other"], ["nsc"], where="treatment <> 'z'", baselines=0)
    board = leaderboard(lake, metrics=["nsc", "knn(k=2)"], where="treatment <> 'z'")
    assert board.table.columns == ["feature_set", "recipe", "nsc", "knn(k=2)"]
    assert board.table["knn(k=2)"].null_count() == 1
    assert board.notes == (
        "an empty place: that method was not scored by that metric under these conditions",
    )
    with pytest.raises(EvaluationError, match="no feature set was scored by knn under"):
        leaderboard(lake, metrics=["knn"], where="treatment <> 'z'")
    with pytest.raises(UnknownNameError, match="unknown kind of label 'moas'"):
        leaderboard(lake, labels="moas")


def test_scores_over_other_queries_have_no_best_and_a_seed_is_a_condition(lake):
    evaluate(lake, ["tiny", "other"], ["nsc", "ari"], baselines=0, seed=3)
    lake.transaction(
        lambda c: c.execute(
            "UPDATE main.evaluations SET n = n - 1 WHERE feature_set = 'tiny' AND metric = 'nsc'"
        )
    )
    board = leaderboard(lake, metrics=["nsc"])
    assert board.best == frozenset()  # five queries of one are not the six of the other
    assert board.notes == ("nsc is over 5 to 6 queries: not the same, so none is best",)
    with pytest.raises(EvaluationError, match="no feature set was scored by ari under"):
        leaderboard(lake, metrics=["ari"])
    assert leaderboard(lake, metrics=["ari"], seed=3).table.height == 2
