"""Novelty: labels held out, against scikit-learn's AUROC over naive loops, and treatments without label."""

import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import false_discovery_control
from sklearn.metrics import roc_auc_score

from warehouse.errors import EvaluationError
from warehouse.metrics import novelty as module


def novelty(X, labels, compounds, controls=None, **more):
    """The metric, with no negative controls unless they are given."""
    return module.novelty(X, labels, compounds, [False] * len(X) if controls is None else controls, **more)


def circle(*degrees):
    angle = np.deg2rad(np.array(degrees, dtype=float))
    return np.stack([np.cos(angle), np.sin(angle)], axis=1)


def screen(seed, n=70, d=6):
    """Profiles that lean towards their labels; some have two, some none; compounds of two concentrations."""
    rng = np.random.default_rng(seed)
    compound = np.arange(n) // 2
    sets = [
        {f"m{c % 6}"} | ({f"x{c % 3}"} if c % 5 == 0 else set()) if c % 7 else set()
        for c in compound.tolist()
    ]
    X = rng.normal(size=(n, d)) + np.eye(7, d)[compound % 6 % 7] * 2
    return X, sets, [f"k{c}" for c in compound]


def naive(X, sets, compounds):
    """AUROC of each label held out, by loops over rows."""
    unit = X / np.linalg.norm(X, axis=1, keepdims=True)
    annotated = [row for row in range(len(X)) if sets[row]]

    def distance(row, without):
        near = [
            unit[row] @ unit[other]
            for other in annotated
            if other != row and compounds[other] != compounds[row] and without not in sets[other]
        ]
        return 1 - max(near) if near else np.nan

    values = {}
    for label in sorted(set().union(*sets)):
        distances = np.array([distance(row, label) for row in annotated])
        held_out = np.array([label in sets[row] for row in annotated])
        there = ~np.isnan(distances)
        values[label] = roc_auc_score(held_out[there], np.round(distances[there], 12))
    return values


def test_each_label_held_out_equals_a_naive_loop():
    X, sets, compounds = screen(1)
    score = novelty(X, sets, compounds)
    expected = naive(X, sets, compounds)
    assert score.per_group["label"].to_list() == list(expected)
    np.testing.assert_allclose(score.per_group["value"], list(expected.values()), atol=1e-12)
    assert score.per_group["n"].to_list() == [sum(label in row for row in sets) for label in expected]
    assert score.value == pytest.approx(np.mean(list(expected.values())))
    assert (score.n, score.unit, score.left_out) == (9, "group", {})


def test_a_label_far_from_all_others_is_seen_to_be_new():
    # a at 0°, b at 10°, c at 90°, two compounds each. Without c, its two are 80° from b; all others have one at 2°.
    X = circle(0, 2, 10, 12, 90, 92)
    score = novelty(X, list("aabbcc"), list("123456"))
    assert score.per_group.rows() == [
        # Without a: 0 is 10° and 2 is 8° from b; b and c are at 2° to each other.
        ("a", 1.0, 2),
        ("b", 1.0, 2),
        ("c", 1.0, 2),
    ]
    # a and b in one heap, at the same angles: without a, its two find b as near as b finds itself.
    X = circle(0, 4, 2, 6, 90, 92)
    rows = dict(novelty(X, list("aabbcc"), list("123456")).per_group.select("label", "value").iter_rows())
    # Without a: 0 -> 2° off, 4 -> 2° off; the others b 4° off each, c 2°: of 8 pairs 4 ties (c), 4 lost (b).
    assert rows == {"a": pytest.approx(4 * 0.5 / 8), "b": pytest.approx(4 * 0.5 / 8), "c": 1.0}


def test_profiles_without_sense_show_no_label_to_be_new():
    rng = np.random.default_rng(2)
    labels = np.repeat(np.arange(10), 20).astype(str).tolist()
    score = novelty(rng.normal(size=(200, 5)), labels, range(200))
    assert abs(score.value - 0.5) < 0.05


def test_treatments_without_label_are_asked_by_what_is_annotated():
    X, sets, compounds = screen(3)
    X[0] = -X[2:].sum(axis=0)  # row 0 has no label, and is opposite to all
    score = novelty(X, sets, compounds)
    unit = X / np.linalg.norm(X, axis=1, keepdims=True)
    annotated = [row for row in range(70) if sets[row]]

    def nearest(row):
        others = [other for other in annotated if compounds[other] != compounds[row]]
        return max((float(unit[row] @ unit[other]), -other) for other in others)

    null = np.array([nearest(row)[0] for row in annotated])
    expected = [row for row in range(70) if not sets[row]]
    assert score.per_query["row"].to_list() == expected == [0, 1, 14, 15, 28, 29, 42, 43, 56, 57]
    for row in score.per_query.iter_rows(named=True):
        similarity, other = nearest(row["row"])
        assert (row["neighbour"], row["value"]) == (-other, pytest.approx(similarity, abs=1e-11))
        assert row["p_value"] == pytest.approx((1 + np.sum(null <= similarity + 1e-11)) / (1 + len(null)))
    table = score.per_query
    np.testing.assert_allclose(
        table["q_value"], false_discovery_control(table["p_value"].to_numpy()), atol=1e-12
    )
    assert table["is_novel"].to_list() == (table["q_value"] < 0.05).to_list()
    assert table["value"].arg_min() == 0


def test_labels_that_cannot_be_held_out_are_counted():
    X = circle(0, 10, 20, 60, 70, 80)
    sets = [{"a", "all"}, {"a", "all"}, {"b", "all"}, {"b", "all"}, {"c", "all"}, {"c", "all"}]
    score = novelty(X, sets, range(6))
    assert score.left_out == {"label: the library without it has less than two compounds": 1}
    assert score.per_group["label"].to_list() == ["a", "b", "c"]
    assert score.per_query.columns == ["row", "neighbour", "value", "p_value", "q_value", "is_novel"]
    assert len(score.per_query) == 0
    with pytest.raises(
        EvaluationError, match=r"novelty: no query is left \(1 with label: the library without"
    ):
        novelty(X, ["a"] * 6, range(6))
    with pytest.raises(EvaluationError, match=r"novelty: no query is left \(no profiles\)"):
        novelty(X, [None] * 6, range(6))
    # Of b there is one compound: while a is held out, b's own have nothing to be near to. Without b, a has.
    score = novelty(circle(0, 10, 20, 30), list("aabb"), list("1233"))
    assert score.left_out == {"label: the library without it has less than two compounds": 1}
    # 20° and 30° are 10° and 20° off; 0° and 10° are 10° off each other: one pair of two lost to a tie, twice.
    assert score.per_group.rows() == [("b", (1 + 1 + 0.5 + 0.5) / 4, 2)]


def test_a_treatment_is_not_near_to_its_own_compound():
    X = circle(0, 10, 60, 70, 30)
    near = novelty(X, [*"aabb", None], list("12345")).per_query
    assert near.select("neighbour", "value").rows() == [(1, pytest.approx(np.cos(np.deg2rad(20))))]
    far = novelty(X, [*"aabb", None], [None, "1", None, None, "1"]).per_query
    assert far.select("neighbour", "value").rows() == [(0, pytest.approx(np.cos(np.deg2rad(30))))]


def test_negative_controls_are_neither_queries_nor_library():
    X, sets, compounds = screen(7)
    whole = novelty(X, sets, compounds)
    # Controls between the others, one of them with a label and one that could not be compared.
    rng = np.random.default_rng(0)
    controls = np.isin(np.arange(90), np.arange(0, 90, 9))
    wide = rng.normal(size=(90, 6))
    kept = np.flatnonzero(~controls)[:70]
    controls[np.setdiff1d(np.arange(90), kept)] = True
    wide[kept] = X
    wide[0] = np.nan
    labels = [{"m0"} if row == 9 else set() for row in range(90)]
    names = [None] * 90
    for row, place in enumerate(kept.tolist()):
        labels[place], names[place] = sets[row], compounds[row]
    score = novelty(wide, labels, names, controls.tolist())
    assert score.left_out == {"negative control": 20}
    assert score.per_group.equals(whole.per_group)
    rows = dict(enumerate(kept.tolist()))
    assert score.per_query["row"].to_list() == [rows[row] for row in whole.per_query["row"]]
    for column in ("p_value", "q_value", "is_novel"):
        assert score.per_query[column].to_list() == whole.per_query[column].to_list()


def test_memory_grows_with_rows_and_not_with_labels(monkeypatch):
    n = 3000
    monkeypatch.setattr(module, "BLOCK", 2**16)
    X = np.random.default_rng(8).normal(size=(n, 4))
    labels = [str(row // 2) for row in range(n)]
    novelty(X[:10], labels[:10], range(10))
    tracemalloc.start()
    score = novelty(X, labels, range(n))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert (score.n, score.left_out) == (n // 2, {})
    # Blocks of half a megabyte, sets and lists of n; n cosines of each of the labels would be 36 MB.
    assert peak < 10e6


@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 2**31))
def test_neither_order_nor_names_nor_length_change_anything(seed):
    X, sets, compounds = screen(4)
    X[6] = X[20] * 3
    rng = np.random.default_rng(seed)
    order = rng.permutation(70)
    score = novelty(X, sets, compounds)
    again = novelty(
        X[order] * rng.uniform(0.1, 9, (70, 1)),
        [{"z" + label for label in sets[i]} for i in order],
        [compounds[i] + "y" for i in order],
    )
    assert again.per_group["value"].to_list() == pytest.approx(score.per_group["value"].to_list(), abs=1e-12)
    mine = dict(score.per_query.select("row", "p_value").iter_rows())
    assert {int(order[row]): p for row, p in again.per_query.select("row", "p_value").iter_rows()} == mine


def test_the_size_of_a_block_changes_nothing(monkeypatch):
    X, sets, compounds = screen(5)
    whole = novelty(X, sets, compounds)
    monkeypatch.setattr(module, "BLOCK", 130)
    parts = novelty(X, sets, compounds)
    assert parts.per_group.equals(whole.per_group)
    assert parts.per_query.equals(whole.per_query)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"labels": ["a"]}, r"1 labels for 70 profiles"),
        ({"compounds": ["a"]}, r"1 compounds for 70 profiles"),
        ({"controls": [True]}, r"1 controls for 70 profiles"),
        ({"X": np.zeros((70, 2))}, r"profile in row 0 is all zeros \(70 such profiles\)"),
    ],
)
def test_what_it_lacks_is_said(changes, message):
    X, sets, compounds = screen(6)
    with pytest.raises(EvaluationError, match=message):
        novelty(**({"X": X, "labels": sets, "compounds": compounds} | changes))
