"""Baselines: what they come to where the answer is known, and that a score by cell count alone is marked."""

from dataclasses import replace

import numpy as np
import polars as pl
import pytest

from warehouse.errors import EvaluationError
from warehouse.evaluation.asked import AskedMetric, asked_metric
from warehouse.evaluation.baselines import Baseline, Job, baselines, is_above, score_all
from warehouse.evaluation.tables import permuted


def screen(seed=0, labels=10, per_label=6):
    rng = np.random.default_rng(seed)
    label = np.repeat(np.arange(labels), per_label)
    X = rng.normal(size=(labels, 8))[label] + 0.3 * rng.normal(size=(len(label), 8))
    needs = {
        "labels": [{f"l{i}"} for i in label],
        "compounds": [f"c{i}" for i in range(len(label))],
    }
    return X, [f"t{i}" for i in range(len(label))], needs, rng.permutation(len(label)).astype(float)


def test_chance_is_what_it_should_be_and_a_good_score_is_above():
    X, ids, needs, counts = screen()
    job = Job(asked_metric("nsc"), needs)
    (score,) = score_all(X, ids, [job])
    (found,) = baselines(X, ids, [job], counts, draws=40, seed=0)
    chance = 5 / 59  # five of 59 others have the label
    # 40 draws of 60 queries each: standard error about .006.
    assert found["shuffled"].mean == pytest.approx(chance, abs=0.02)
    assert found["random"].mean == pytest.approx(chance, abs=0.02)
    assert (found["shuffled"].draws, found["cell_count"].draws) == (40, 1)
    assert found["cell_count"].mean == pytest.approx(chance, abs=0.1)
    assert is_above(score.value, found, higher_is_better=True) is True
    assert baselines(X, ids, [job], counts, draws=40, seed=0) == [found]


def test_profiles_that_say_only_how_many_cells_there_are_are_not_above():
    _, ids, needs, _ = screen()
    counts = np.repeat(np.arange(10), 6) * 8.0
    X = np.stack([np.cos(counts / 80), np.sin(counts / 80)], axis=1)  # alike the nearer the counts
    job = Job(asked_metric("nsc"), needs)
    (score,) = score_all(X, ids, [job])
    (found,) = baselines(X, ids, [job], counts, draws=5, seed=0)
    assert score.value > found["shuffled"].best
    assert score.value == found["cell_count"].best
    assert is_above(score.value, found, higher_is_better=True) is False


def test_an_unknown_count_is_no_baseline():
    X, ids, needs, counts = screen()
    counts[3] = np.nan
    (found,) = baselines(X, ids, [Job(asked_metric("nsc"), needs)], counts, draws=2, seed=0)
    assert found["cell_count"] is None
    assert is_above(0.5, {"cell_count": None}, higher_is_better=True) is None
    assert is_above(0.1, {"a": Baseline(0.2, 0.15, 3)}, higher_is_better=False) is True


def test_what_is_known_of_rows_moves_together():
    order = np.array([2, 0, 1])
    assert permuted("labels", [{"a"}, {"b"}, {"c"}], order) == [{"c"}, {"a"}, {"b"}]
    assert permuted("cell_counts", np.array([1.0, 2.0, 3.0]), order).tolist() == [3.0, 1.0, 2.0]
    # Row 0 and 1 were a pair; what was of row 0 is now of row 1, and of row 1 of row 2.
    assert permuted("pairs", np.array([[0, 1]]), order).tolist() == [[1, 2]]
    assert permuted("folds", None, order) is None


def test_metrics_of_pairs_share_a_pass_and_give_what_they_give_alone():
    X, ids, needs, _ = screen(seed=1)
    jobs = [
        Job(asked_metric("nsc"), needs),
        Job(asked_metric("map(null=0)"), needs),
        Job(asked_metric("knn(k=3)"), needs | {"batches": [{"b"}] * len(X)}),
    ]
    together = score_all(X, ids, jobs)
    for job, score in zip(jobs, together, strict=True):
        (alone,) = score_all(X, ids, [job])
        assert score.value == alone.value
        assert score.per_query.equals(alone.per_query)
        assert isinstance(score.per_query, pl.DataFrame)


@pytest.mark.parametrize("name", ["percent_replicating", "replicate_reproducibility", "map_correlation"])
def test_a_score_that_counts_alone_reach_is_marked_for_correlations_too(name):
    treatment = np.repeat(np.arange(12), 4)
    X, counts = np.eye(12)[treatment] + 1e-3, treatment * 50.0
    needs = {
        "labels": [{f"t{i}"} for i in treatment],
        "treatments": [f"t{i}" for i in treatment],
        "controls": [False] * 48,
    }
    asked = asked_metric(name)
    job = Job(asked, {need: needs[need] for need in asked.metric.needs})
    ids = [f"w{i}" for i in range(48)]
    (score,) = score_all(X, ids, [job])
    (found,) = baselines(X, ids, [job], counts, draws=1, seed=0)
    assert found["cell_count"].best == pytest.approx(score.value)
    assert is_above(score.value, found, higher_is_better=True) is False


def test_what_a_library_cannot_work_with_fails_that_metric_only():
    def broken(X, ids=None, **needs):
        return np.linalg.inv(np.zeros((2, 2)))

    X, ids, needs, _ = screen()
    nsc = asked_metric("nsc")
    failing = AskedMetric(replace(nsc.metric, name="broken", function=broken, plan=None), {})
    good, bad = score_all(X, ids, [Job(nsc, needs), Job(failing, needs)])
    assert good.n == 60
    assert isinstance(bad, EvaluationError)
    assert "cannot be computed with these parameters on these profiles (LinAlgError: Singular matrix)" in str(
        bad
    )
