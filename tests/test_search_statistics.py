"""p-values, enrichment and novelty of searches: against SciPy's Fisher test, naive counts, numbers by hand."""

import json
import sys
from types import SimpleNamespace

import duckdb
import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import false_discovery_control, fisher_exact

from warehouse.errors import SearchError
from warehouse.nearest import answers
from warehouse.nearest.answers import Known
from warehouse.nearest.filters import Query
from warehouse.nearest.statistics import LabelIndex, adjusted, empirical_p, enrichment, novelty
from warehouse.search import Index


def labels(*rows):
    """A column of label lists."""
    return LabelIndex.of(pl.Series("moa", rows, dtype=pl.List(pl.String)))


def mask(n, *rows):
    return np.isin(np.arange(n), rows)


# --- p-values


def test_p_values_by_hand():
    null = np.array([0.1, 0.3, 0.3, 0.9])
    s = np.array([0.95, 0.9, 0.3, 0.2, -1, np.nan])
    np.testing.assert_array_equal(empirical_p(s, null), [1 / 5, 2 / 5, 4 / 5, 4 / 5, 1, np.nan])
    # The most unlike: as low as that, or lower.
    np.testing.assert_array_equal(empirical_p(s, null, opposite=True), [1, 1, 4 / 5, 2 / 5, 1 / 5, np.nan])
    np.testing.assert_array_equal(empirical_p(s[:2], np.array([np.nan, 0.9])), [1 / 2, 1])


def test_without_controls_there_is_no_p_value():
    assert np.isnan(empirical_p(np.array([0.5, 1]), np.empty(0))).all()
    assert np.isnan(np.concatenate(novelty(np.array([0.5]), np.empty(0)))).all()


SIMILARITIES = st.lists(
    st.sampled_from([-1, -0.5, 0, 0.25, 0.5, 1]) | st.floats(-1, 1, width=32), max_size=30
)


@settings(max_examples=100, deadline=None)
@given(SIMILARITIES, SIMILARITIES.filter(len))
def test_p_values_equal_a_naive_count(similarities, null):
    s, n = np.array(similarities, np.float32), np.array(null, np.float32)
    high = [(1 + sum(x >= each for x in n)) / (1 + len(n)) for each in s]
    low = [(1 + sum(x <= each for x in n)) / (1 + len(n)) for each in s]
    np.testing.assert_array_equal(empirical_p(s, n), high)
    np.testing.assert_array_equal(empirical_p(s, n, opposite=True), low)
    np.testing.assert_array_equal(empirical_p(-s, -n, opposite=True), high)
    np.testing.assert_array_equal(empirical_p(s, n[::-1]), high)


def test_q_values_by_hand():
    # p × 4 / rank, made monotone from the largest down.
    np.testing.assert_allclose(
        adjusted(np.array([0.04, 0.01, np.nan, 0.03, 0.5])),
        [0.16 / 3, 0.04, np.nan, 0.16 / 3, 0.5],
        rtol=1e-15,
    )
    assert adjusted(np.full(2, np.nan)).tolist() == pytest.approx([np.nan] * 2, nan_ok=True)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.sampled_from([0.001, 0.04, 0.5, 1, np.nan]) | st.floats(0, 1), max_size=30))
def test_q_values_equal_scipy(values):
    p = np.array(values, dtype=np.float64)
    tested = ~np.isnan(p)
    expected = np.full(len(p), np.nan)
    expected[tested] = false_discovery_control(p[tested]) if tested.any() else []
    np.testing.assert_allclose(adjusted(p), expected, rtol=1e-15)


def test_q_values_do_without_what_takes_long_to_import(monkeypatch):
    monkeypatch.setitem(sys.modules, "scipy.stats", None)
    assert adjusted(np.array([0.5, 0.01])).tolist() == [0.5, 0.02]


def test_novelty_by_hand():
    # Of nine annotated rows one is as far from the others as 0.2.
    null = np.array([0.1, 0.5, 0.6, 0.7, 0.7, 0.8, 0.8, 0.9, 0.9])
    p, q = novelty(np.array([0.2, 0.95, np.nan, 0.05]), null)
    np.testing.assert_allclose(p, [0.2, 1, np.nan, 0.1], rtol=1e-15)
    np.testing.assert_allclose(q, [0.3, 1, np.nan, 0.3], rtol=1e-15)


# --- answers


@pytest.fixture(scope="module")
def known():
    """420 wells as an index: 300 of controls, the others of treatments with 1 to 40 wells, some gone, some without."""
    rng = np.random.default_rng(11)
    sizes = {"t1": 1, "t2": 2, "t3": 3, "t24": 24, "t25": 25, "t26": 26, "t36": 36, None: 3, "DMSO": 300}
    names = rng.permutation([name for name, size in sizes.items() for _ in range(size)])
    rows = pl.DataFrame({
        "source": "s", "batch": "b", "plate": [f"p{i % 7}" for i in range(len(names))],
        "well": [f"{i:03d}" for i in rng.permutation(len(names))], "treatment": pl.Series(list(names), dtype=pl.String),
        "control_type": ["negative" if name == "DMSO" else "none" for name in names],
    })  # fmt: skip
    whole = Index.of(rng.normal(size=(len(rows), 50)), rows.select("source", "batch", "plate", "well"))
    unit = whole.vectors(np.arange(len(rows)))
    index = Index(unit, whole.keys, gone=np.flatnonzero(rows["treatment"].eq_missing("t36"))[:9])
    return Known(SimpleNamespace(connection=duckdb.connect()), "well", index, rows, unit[:0])


def test_replicates_are_compared_at_once_and_as_one_by_one(known, monkeypatch):
    calls = []
    monkeypatch.setattr(answers, "_AT_ONCE", 100)
    cosines = answers.cosines
    monkeypatch.setattr(answers, "cosines", lambda *given: calls.append(1) or cosines(*given))
    rows = np.random.default_rng(2).permutation(np.tile(np.flatnonzero(known._index.alive), 3))
    found = known._with_replicates(known.rows[rows], rows)
    assert len(calls) <= 5
    frame = known.rows.with_row_index("row").filter(pl.Series(known._index.alive))
    expected, counts = [], []
    for row in rows.tolist():
        same = frame.filter(pl.col("treatment") == pl.lit(known.rows["treatment"][row], pl.String))
        others = [other for other in same.sort("plate", "well")["row"] if other != row][:24]
        near = cosines(
            known._index.vectors(others), np.arange(len(others))[None, :], known._index.vectors([row])
        )
        expected.append(float(np.median(near)) if others else None)
        counts.append(len(same) or None)
    assert found["replicate_cosine"].to_list() == expected
    assert found["well_count"].to_list() == counts
    assert expected.count(None) == 3 * 4
    assert known._with_replicates(known.rows[:0], rows[:0])["replicate_cosine"].to_list() == []


def test_a_control_is_left_out_of_its_own_null_by_its_row(known):
    rows = np.flatnonzero(known.rows["control_type"] == "negative")
    unit = known._index.vectors(np.arange(len(known.rows)))
    assert sorted(known._drawn) == rows.tolist()
    for row in rows:
        # The vector of a row, scaled once more, is another in its last digits.
        found = known._controls(Query("a control", unit[row], (int(row),)))
        near = unit[rows[rows != row]].astype(float) @ unit[row].astype(float)
        assert len(found) == len(rows) - 1
        np.testing.assert_allclose(np.sort(found), np.sort(near), atol=1e-6)
    of_many = known._controls(Query("wells", unit[rows[:5]].mean(axis=0), tuple(rows[:5].tolist())))
    assert len(of_many) == len(rows) - 5
    assert len(known._controls(Query("vector", unit[rows[0]]))) == len(rows)


def test_each_query_has_its_own_p_values_and_ranks(known, monkeypatch):
    monkeypatch.setattr(answers, "labelled", lambda _, rows: rows)
    queries = [Query(f"q{i}", known._index.vectors([row])[0], (row,)) for i, row in enumerate((3, 9, 30, 31))]
    near, rows = known._index.search(
        np.stack([q.vector for q in queries]), 3, None, [[np.array(q.rows)] for q in queries]
    )
    of = np.repeat([0, 2, 3], [3, 3, 2])  # one has no neighbour, one has two
    pick = [(0, 0), (0, 1), (0, 2), (2, 0), (2, 1), (2, 2), (3, 0), (3, 1)]
    at = tuple(np.array(pick).T)
    found = known.described(of, rows[at], near[at], queries, False)
    assert found["query"].to_list() == ["q0"] * 3 + ["q2"] * 3 + ["q3"] * 2
    assert found["rank"].to_list() == [1, 2, 3, 1, 2, 3, 1, 2]
    for i, p in zip(of, zip(near[at], found["p_value"], strict=True), strict=True):
        null = known._controls(queries[i])
        assert p[1] == (1 + sum(null >= p[0])) / (1 + len(null))
    assert known.described(of[:0], rows[0][:0], near[0][:0], queries, False).is_empty()


# --- enrichment


def test_enrichment_by_hand():
    # 8 rows, the last without a label; 7 may be answers. The list is rows 1, 2, 3.
    index = labels(["x"], ["x"], ["x"], ["y"], ["y"], ["y", "x"], ["z"], None)
    found = enrichment(index, np.array([1, 2, 3, -1]), ~mask(8, 0))
    # x: 2 of 3 in the list, 3 of 6 allowed: (3C2 · 3C1 + 3C3) / 6C3 = 10 / 20. y: 1 of 3, 3 of 6: 19 / 20.
    assert found["label"].to_list() == ["x", "y"]
    assert found.select("kind", "in_list", "of_list", "in_allowed", "of_allowed").rows() == [
        ("moa", 2, 3, 3, 6),
        ("moa", 1, 3, 3, 6),
    ]
    np.testing.assert_allclose(found["odds_ratio"], [2 * 2 / (1 * 1), 1 * 1 / (2 * 2)], rtol=1e-15)
    np.testing.assert_allclose(found["p_value"], [0.5, 0.95], rtol=1e-12)
    np.testing.assert_allclose(found["q_value"], [0.95, 0.95], rtol=1e-12)


def test_an_odds_ratio_that_is_no_number_is_null():
    # All of the list is x, and all x are in the list: infinite. All allowed rows are x: 0 / 0.
    index = labels(["x"], ["x"], ["y"], ["y"])
    infinite = enrichment(index, np.array([0, 1]), mask(4, 0, 1, 2, 3))
    nothing = enrichment(index, np.array([0]), mask(4, 0, 1))
    assert infinite["odds_ratio"].to_list() == nothing["odds_ratio"].to_list() == [None]
    assert infinite["p_value"].to_list() == pytest.approx([1 / 6])
    assert nothing["p_value"].to_list() == pytest.approx([1])
    json.dumps(infinite.to_dicts() + nothing.to_dicts(), allow_nan=False)


def test_a_list_without_labels_has_no_enrichment():
    index = labels(["x"], None, [], [""])
    for hits in ([1, 2, 3], [-1], []):
        found = enrichment(index, np.array(hits, dtype=np.int64), np.ones(4, bool))
        assert found.is_empty()
        assert found.schema == enrichment(index, np.array([0]), np.ones(4, bool)).schema
    assert enrichment(labels(None, None), np.array([0]), np.ones(2, bool)).is_empty()


def test_a_hit_that_was_not_allowed_is_refused():
    with pytest.raises(SearchError, match="row 1 is in the list and was not allowed in it: give the mask"):
        enrichment(labels(["x"], ["x"]), np.array([0, 1]), mask(2, 0))


def test_labels_may_be_texts_and_come_once_a_row():
    index = LabelIndex.of(pl.Series("moa", ["x", None, "", "y"]), kind="target")
    assert (index.kind, index.names.to_list(), index.labelled.tolist()) == (
        "target",
        ["x", "y"],
        [True, False, False, True],
    )
    assert labels(["x", "x"], ["y", None, "x"]).count(np.ones(2, bool)).tolist() == [2, 1]


ROWS = st.lists(st.none() | st.lists(st.sampled_from("abcdef"), max_size=3), min_size=1, max_size=40)


def naive(rows, hits, allowed):
    """Label to its four counts, odds ratio and p by SciPy's Fisher test; counted row by row."""
    sets = [set(row or ()) for row in rows]
    expected = {}
    for label in set().union(*(sets[hit] for hit in hits)) if hits else ():
        table = [[0, 0], [0, 0]]
        for row, own in enumerate(sets):
            if own and row in allowed:
                table[row not in hits][label not in own] += 1
        (a, b), (c, d) = table
        odds = a * d / (b * c) if b * c else None
        counts = (a, a + b, a + c, a + b + c + d)
        expected[label] = (*counts, odds, fisher_exact(table, alternative="greater").pvalue)
    return expected


@settings(max_examples=150, deadline=None)
@given(ROWS, st.data())
def test_enrichment_equals_fisher_row_by_row(rows, data):
    n = len(rows)
    allowed = data.draw(st.sets(st.integers(0, n - 1)))
    hits = data.draw(st.sets(st.sampled_from(sorted(allowed)))) if allowed else set()
    found = enrichment(labels(*rows), np.array(sorted(hits), dtype=np.int64), mask(n, *allowed))
    expected = naive(rows, hits, allowed)
    assert set(found["label"]) == set(expected)
    for row in found.to_dicts():
        *counts, odds, p = expected[row["label"]]
        assert [row[name] for name in ("in_list", "of_list", "in_allowed", "of_allowed")] == counts
        assert row["odds_ratio"] == (odds if odds is None else pytest.approx(odds, rel=1e-14))
        assert row["p_value"] == pytest.approx(p, rel=1e-11)
    assert found.equals(found.sort("p_value", "label"))

    # Other names of rows and labels, another order: the same.
    order = np.array(data.draw(st.permutations(range(n))))
    shuffled = labels(*[rows[row] for row in order])
    place = np.argsort(order)
    again = enrichment(
        shuffled, place[np.array(sorted(hits), dtype=np.int64)], mask(n, *place[sorted(allowed)])
    )
    assert again.equals(found)


def test_enrichment_of_a_hundred_thousand_rows_equals_fisher():
    """Rare and common labels of a large screen: logarithms of large factorials keep 9 digits."""
    rng = np.random.default_rng(3)
    n = 136_750
    of_row = rng.zipf(1.3, n) % 900
    index = LabelIndex.of(pl.Series("target", [f"t{code}" for code in of_row]))
    allowed = rng.random(n) < 0.99
    common, rare = (
        np.flatnonzero(allowed & (of_row == 1))[:150],
        np.flatnonzero(allowed & (of_row > 400))[:50],
    )
    hits = np.concatenate([common, rare])
    found = enrichment(index, hits, allowed)
    assert found.height > 10
    for row in found.to_dicts():
        a, m, k, total = (row[name] for name in ("in_list", "of_list", "in_allowed", "of_allowed"))
        assert (m, total) == (200, allowed.sum())
        expected = fisher_exact([[a, m - a], [k - a, total - k - m + a]], alternative="greater")
        assert row["p_value"] == pytest.approx(expected.pvalue, rel=1e-8)
