"""Feature sets side by side: intervals against theory and a naive bootstrap, pairing, what is told."""

from dataclasses import replace

import numpy as np
import polars as pl
import pytest

from warehouse.errors import EvaluationError
from warehouse.evaluation import compare
from warehouse.evaluation.asked import asked_metric
from warehouse.evaluation.records import Evaluation, Setting
from warehouse.metrics import Score

NSC = asked_metric("nsc")


def evaluation(name, values, *, rows=None, names=None, unit="query", per_group=None):
    rows = list(range(len(values))) if rows is None else rows
    per_query = pl.DataFrame({"row": rows, "value": values}, schema={"row": pl.Int64, "value": pl.Float64})
    score = Score(float(np.mean(values)), len(values), None, per_query, per_group, {}, unit)
    names = names or tuple(f"t{row}" for row in range(max(rows) + 1))
    return Evaluation(name, "none", NSC, "treatment", "moa", score, names, Setting("moa"), {}, None)


def test_intervals_are_those_of_theory_and_differences_are_paired():
    rng = np.random.default_rng(0)
    hard = rng.uniform(size=400)
    one, other = (
        hard,
        np.clip(hard + 0.02, 0, None),
    )  # every query a little better: a paired difference is certain
    table = compare([evaluation("one", one), evaluation("other", other)])
    assert table["feature_set"].to_list() == ["one", "other"]
    width = 1.96 * one.std() / np.sqrt(400)
    assert table["low"][0] == pytest.approx(one.mean() - width, abs=0.004)
    assert table["high"][0] == pytest.approx(one.mean() + width, abs=0.004)
    second = table.row(1, named=True)
    assert (second["than"], second["n"], second["note"]) == ("one:none", 400, None)
    assert second["difference"] == pytest.approx(0.02)
    assert second["difference_low"] == pytest.approx(0.02)
    assert second["difference_high"] == pytest.approx(0.02)
    assert table["difference"][0] is None
    assert compare([evaluation("one", one), evaluation("other", other)]).equals(table)


def test_queries_are_paired_by_name_and_those_of_one_only_are_told():
    one = evaluation("one", [1.0, 0.0, 1.0], names=("a", "b", "c"))
    other = evaluation("other", [0.0, 1.0, 1.0], rows=[2, 1, 0], names=("c", "x", "b"))  # b 0, x 1, c 1
    second = compare([one, other]).row(1, named=True)
    assert second["difference"] == pytest.approx(0.0)  # b: 0 - 0, c: 1 - 1
    assert (second["n"], second["note"]) == (2, "2 queries are of one of the two only")
    nothing = compare([one, evaluation("other", [1.0], names=("z",))]).row(1, named=True)
    assert (nothing["n"], nothing["difference"], nothing["low"]) == (0, None, None)


def test_a_mean_of_groups_is_drawn_by_group_and_what_is_no_mean_has_no_interval():
    groups = pl.DataFrame({"label": ["x", "y"], "value": [0.25, 0.75], "n_queries": [9, 1]})
    grouped = evaluation("one", [0.5] * 10, unit="group", per_group=groups)
    row = compare([grouped]).row(0, named=True)
    assert (row["low"], row["high"]) == (0.25, 0.75)
    whole = compare([evaluation("one", [0.5, 0.7], unit=None), evaluation("b", [0.1, 0.3], unit=None)])
    assert whole["low"].to_list() == [None, None]
    assert whole["difference"][1] == pytest.approx(-0.4)
    assert set(whole["note"]) == {"no mean of queries: no interval"}


def test_too_few_draws_are_refused():
    with pytest.raises(EvaluationError, match="99 draws give no 95 % interval"):
        compare([], draws=99)


def test_a_row_that_is_several_queries_is_drawn_with_all_of_them():
    """The value is the mean over queries: 100 rows with one at .1, and 20 with ten at .9, come to .633."""
    rows = [*range(100), *[row for row in range(100, 120) for _ in range(10)]]
    made = evaluation("one", [0.1] * 100 + [0.9] * 200, rows=rows)
    row = compare([made]).row(0, named=True)
    assert row["value"] == pytest.approx(0.6333, abs=1e-3)
    assert row["low"] < row["value"] < row["high"]
    rng = np.random.default_rng(1)
    naive = []
    for _ in range(3000):
        drawn = rng.integers(120, size=120)
        many = int((drawn >= 100).sum())
        naive.append((0.1 * (120 - many) + 0.9 * 10 * many) / (120 - many + 10 * many))
    np.testing.assert_allclose([row["low"], row["high"]], np.percentile(naive, [2.5, 97.5]), atol=0.015)


def test_what_the_first_lacks_is_told_and_no_other_takes_its_place():
    failed = replace(evaluation("one", [1.0]), failure="nsc: no query is left")
    table = compare([failed, evaluation("other", [0.0, 1.0])])
    assert table["value"].to_list() == [None, 0.5]
    assert table["than"].to_list() == [None, "one:none"]
    assert table["difference"].to_list() == [None, None]
    assert table["note"].to_list() == ["nsc: no query is left", "one:none has no score"]
