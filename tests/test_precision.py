"""Average precision, against hand-worked values, copairs 0.5.5, scikit-learn, all orders, and published tables."""

import tracemalloc
from itertools import permutations
from time import perf_counter

import numpy as np
import pandas as pd
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from real_profiles import bbbc021
from sklearn.metrics import average_precision_score

from warehouse.errors import EvaluationError, UnknownNameError
from warehouse.metrics import passes, ranking
from warehouse.metrics.null import normalised
from warehouse.metrics.passes import Vectors
from warehouse.metrics.precision import (
    METRICS,
    average_precision,
    map_correlation,
    map_cross_batch,
    map_cross_source,
    map_labels,
    map_replicates,
    map_vs_controls,
    mean_average_precision,
    plan_cross_batch,
    plan_map,
)
from warehouse.metrics.relations import Groups, portions


def circle(*degrees):
    angle = np.deg2rad(np.array(degrees, dtype=float))
    return np.stack([np.cos(angle), np.sin(angle)], axis=1)


# --- average precision


def copairs_ap(X, metadata, *rule):
    from copairs.map import average_precision as reference

    frame = pd.DataFrame({name: metadata[name].to_list() for name in metadata.columns})
    result = reference(frame, X, *[list(part) for part in rule], progress_bar=False)
    return (
        result["average_precision"].to_numpy(dtype=float),
        result["n_pos_pairs"].to_numpy(dtype=int),
        result["n_total_pairs"].to_numpy(dtype=int),
    )


RULES = [
    (["label"], [], [], ["label"]),
    (["label"], ["batch"], [], ["label"]),
    (["label"], ["batch"], ["batch"], ["label"]),
    (["label", "batch"], [], ["batch"], ["label"]),
    (["label"], ["batch", "plate"], ["plate"], ["label", "batch"]),
]


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_equals_copairs(rule, dtype):
    rng = np.random.default_rng(7)
    n = 150
    X = rng.normal(size=(n, 6)).astype(dtype)
    X[40:60] = X[:20]  # equals
    X[60:70] = rng.integers(1, 3, (10, 6))
    metadata = pl.DataFrame(
        {
            "label": rng.integers(0, 12, n).astype(str),
            "batch": rng.integers(0, 4, n).astype(str),
            "plate": rng.integers(0, 3, n).astype(str),
        }
    ).with_columns(label=pl.when(pl.int_range(n) == 99).then(pl.lit("alone")).otherwise("label"))
    expected, matches, total = copairs_ap(X, metadata, *rule)
    result = average_precision(X, metadata, *rule, ties="copairs")
    np.testing.assert_allclose(
        result["average_precision"].to_numpy().astype(float), expected, rtol=0, atol=1e-6
    )
    assert result["average_precision"].is_null().any()
    assert result["n_matches"].to_list() == matches.tolist()
    has_pairs = total > 0
    assert result["n_total"].to_numpy()[has_pairs].tolist() == total[has_pairs].tolist()


def test_equals_copairs_with_few_large_groups():
    # More matches than `FEW`: rows are sorted.
    rng = np.random.default_rng(8)
    X = rng.normal(size=(200, 5)).astype(np.float32)
    metadata = pl.DataFrame({"label": rng.integers(0, 3, 200)})
    expected, matches, _ = copairs_ap(X, metadata, ["label"], [], [], ["label"])
    assert matches.min() > ranking.FEW
    result = average_precision(X, metadata, ["label"], [], [], ["label"], ties="copairs")
    np.testing.assert_allclose(result["average_precision"].to_numpy(), expected, rtol=0, atol=1e-6)


def test_golden_of_copairs():
    # The published golden has a zero profile labelled c, which has no match; ours refuses zeros by name.
    X = np.array([[1, 0], [1, 0.1], [0, 1], [0.1, 1], [0, 0]])
    metadata = pl.DataFrame({"label": list("aabbc")})
    with pytest.raises(EvaluationError, match=r"profile 'w4' is all zeros"):
        average_precision(X, metadata, ["label"], [], [], ["label"], ids=[f"w{i}" for i in range(5)])
    X[4] = -1
    result = average_precision(X, metadata, ["label"], [], [], ["label"])
    assert result["average_precision"].to_list() == [1, 1, 1, 1, None]
    assert result["n_matches"].to_list() == [1, 1, 1, 1, 0]
    assert result["n_total"].to_list() == [4] * 5
    score = mean_average_precision(result, ["label"], null=1000)
    assert score.per_group.columns == [
        "label",
        "value",
        "n_queries",
        "normalised_value",
        "p_value",
        "q_value",
    ]
    rounded = score.per_group.with_columns(pl.col("p_value", "q_value").round(6))
    assert rounded.rows() == [(label, 1.0, 2, 1.0, 0.000999, 0.000999) for label in "ab"]
    assert (score.value, score.n, score.left_out) == (1.0, 2, {"no match": 1})


def test_average_precision_worked_by_hand():
    # From 0°: 10 a, 20 b, 30 a, 40 b, 50 a -> (1/1 + 2/3 + 3/5) / 3.
    X = circle(0, 10, 20, 30, 40, 50)
    metadata = pl.DataFrame({"label": list("aababa")})
    result = average_precision(X, metadata, ["label"], [], [], ["label"])
    assert result["average_precision"][0] == pytest.approx((1 + 2 / 3 + 3 / 5) / 3)


@pytest.mark.parametrize("few", [0, 24])
def test_ties_favour_matches_or_are_averaged(monkeypatch, few):
    monkeypatch.setattr(ranking, "FEW", few)
    X = np.array([[1, 0], [1, 1], [1, 1], [1, 1], [1, 1], [1, 2.0]])
    metadata = pl.DataFrame({"label": list("aaabba")})
    favoured = average_precision(X, metadata, ["label"], [], [], ["label"], ties="copairs")
    assert favoured["average_precision"][0] == pytest.approx((1 + 1 + 3 / 5) / 3)
    averaged = average_precision(X, metadata, ["label"], [], [], ["label"])
    orders = {order for order in permutations("aabb")}
    by_hand = [
        np.mean([(order[: i + 1].count("a")) / (i + 1) for i in range(4) if order[i] == "a"])
        for order in orders
    ]
    assert averaged["average_precision"][0] == pytest.approx((2 * np.mean(by_hand) + 3 / 5) / 3)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**31))
def test_without_ties_all_rules_are_scikit_learns(seed):
    rng = np.random.default_rng(seed)
    X, labels = rng.normal(size=(12, 3)), rng.integers(0, 2, 12)
    metadata = pl.DataFrame({"label": labels})
    unit = X / np.linalg.norm(X, axis=1, keepdims=True)
    for ties in ranking.TIES:
        result = average_precision(X, metadata, ["label"], [], [], ["label"], ties=ties)["average_precision"]
        for i in range(12):
            rest = np.arange(12) != i
            same = labels[rest] == labels[i]
            if same.any():
                assert result[i] == pytest.approx(
                    average_precision_score(same, unit[rest] @ unit[i]), abs=1e-9
                )
            else:
                assert result[i] is None


def test_average_precision_does_not_depend_on_the_size_of_a_block(monkeypatch):
    rng = np.random.default_rng(9)
    X, metadata = rng.normal(size=(90, 4)), pl.DataFrame({"label": rng.integers(0, 9, 90)})
    whole = average_precision(X, metadata, ["label"], [], [], ["label"])
    monkeypatch.setattr(passes, "BLOCK", 200)
    assert average_precision(X, metadata, ["label"], [], [], ["label"]).equals(whole)


@pytest.mark.parametrize(
    ("rule", "error", "message"),
    [
        (
            (["lable"], [], [], ["label"]),
            UnknownNameError,
            r"column of the metadata 'lable'. Did you mean 'label'",
        ),
        (([], [], [], ["label"]), EvaluationError, r"rule for a match: no column is given"),
        (
            (["label"], [], ["label"], ["label"]),
            EvaluationError,
            r"non-match: column 'label' is in sameby and diff",
        ),
        ((["label"], [], [], ["plate"]), EvaluationError, r"column 'plate' is null in row 1"),
    ],
)
def test_a_wrong_rule_is_explained(rule, error, message):
    metadata = pl.DataFrame({"label": ["a", "a"], "plate": ["p", None]})
    with pytest.raises(error, match=message):
        average_precision(circle(0, 1), metadata, *rule)


def test_an_unknown_rule_for_ties_is_explained():
    with pytest.raises(UnknownNameError, match=r"rule for ties 'average'. Did you mean 'averaged'"):
        map_labels(circle(0, 1), ["a", "a"], ties="average")


# --- mean average precision


def test_map_vs_controls_keeps_to_the_plate_and_counts_the_rest():
    X = circle(0, 10, 5, 80, 0, 10, 0, 3)
    treatments = ["t", "t", None, "u", "t", None, "v", "v"]
    plates = ["p", "p", "p", "p", "q", "q", "r", "r"]
    controls = [False, False, True, False, False, False, False, False]
    score = map_vs_controls(X, treatments, plates, controls, ties="copairs")
    # On p the control at 5° stands between the two wells of t: AP 1/2 each.
    assert score.per_group["treatment", "value", "n_queries"].rows() == [("t", 0.5, 2)]
    assert score.per_query["row"].to_list() == [0, 1]
    assert score.left_out == {
        "no negative control on its plate": 2,  # v on r
        "no replicate on its plate": 2,  # u on p, t on q
        "no treatment": 1,
    }
    with pytest.raises(
        EvaluationError, match=r"no query is left \(2 with no negative control on its plate\)"
    ):
        map_vs_controls(X[6:], treatments[6:], plates[6:], controls[6:])


MOA_SCREEN = {
    "BR00122250": ("Batch1", 0.736049),
    "BR00122247": ("Batch2", 0.70362),
    "BR00122246": ("Batch1", 0.724434),
}


def test_plates_of_controls_only_do_no_harm():
    X = np.random.default_rng(2).normal(size=(12, 5))
    treatments = ["a", "a", "b", "b", None, None] + [None] * 6
    plates, controls = ["p"] * 6 + ["q"] * 6, [False] * 4 + [True] * 8
    score = map_vs_controls(X, treatments, plates, controls, null=0)
    alone = map_vs_controls(X[:6], treatments[:6], plates[:6], controls[:6], null=0)
    assert (score.value, score.n) == (alone.value, 2)
    # All plates, or a plate without controls.
    with pytest.raises(
        EvaluationError, match=r"map_vs_controls: no query is left \(6 with negative control\)"
    ):
        map_vs_controls(X[6:], treatments[6:], plates[6:], controls[6:])
    with pytest.raises(
        EvaluationError, match=r"no query is left \(4 with no negative control on its plate, 6 with neg"
    ):
        map_vs_controls(X[:10], treatments[:10], ["p"] * 4 + ["q"] * 6, [False] * 4 + [True] * 6)


def test_map_vs_controls_asks_a_direction_only_of_wells_that_are_compared():
    X = np.vstack([circle(0, 10, 5, 80), [[0, 0], [np.nan, 1]]])
    treatments, plates = ["t", "t", None, "u", None, None], ["p"] * 6
    controls = [False, False, True, False, False, False]
    score = map_vs_controls(X, treatments, plates, controls, null=0)
    assert score.per_query.equals(
        map_vs_controls(X[:4], treatments[:4], plates[:4], controls[:4], null=0).per_query
    )
    assert score.left_out == {"no replicate on its plate": 1, "no treatment": 2}
    ids = list("abcdef")
    controls[4] = True
    with pytest.raises(EvaluationError, match=r"profile 'e' is all zeros \(1 such profiles\)"):
        map_vs_controls(X, treatments, plates, controls, ids)
    controls[4], treatments[5] = False, "u"
    with pytest.raises(EvaluationError, match=r"profile 'f' has nan in feature 1"):
        map_vs_controls(X, treatments, plates, controls, ids)


@pytest.mark.parametrize("plate", MOA_SCREEN)
def test_map_vs_controls_equals_the_authors_table(data_dir, plate):
    folder, (batch, value) = data_dir / "moa_screen", MOA_SCREEN[plate]
    wells = pl.read_csv(
        folder / f"{batch}_normalized_feature_select_negcon_batch.csv.gz", infer_schema_length=None
    )
    wells = wells.filter(pl.col("Metadata_Plate") == plate)
    features = [name for name in wells.columns if not name.startswith("Metadata_")]
    # BR00122246 C19 lacks one feature. copairs ranks its undefined similarities last, matches first, which
    # gives the well AP 1 and the plate .72704; ours refuses the well. All other compounds must agree.
    incomplete = wells.filter(pl.any_horizontal(pl.col(features).is_null()))
    assert incomplete["Metadata_Well"].to_list() == (["C19"] if plate == "BR00122246" else [])
    complete = wells.filter(pl.all_horizontal(pl.col(features).is_not_null()))
    score = map_vs_controls(
        complete.select(features).to_numpy(),
        complete["Metadata_broad_sample"].to_list(),
        complete["Metadata_Plate"].to_list(),
        (complete["Metadata_control_type"] == "negcon").fill_null(False).to_numpy(),
        ids=complete["Metadata_Well"].to_list(),
        ties="copairs",
        null=0,
    )
    assert score.value == pytest.approx(value, abs=1e-6)
    published = pl.read_csv(folder / f"mAP_{plate}_vs_DMSO.csv")
    both = score.per_group.join(
        published, left_on="treatment", right_on="Metadata_broad_sample", validate="1:1"
    )
    assert len(both) == len(score.per_group) == len(published) == 90
    both = both.filter(~pl.col("treatment").is_in(incomplete["Metadata_broad_sample"].to_list()))
    difference = (both["value"] - both["average_precision"]).abs().max()
    assert difference < 1e-6
    if not len(incomplete):
        assert published["average_precision"].mean() == pytest.approx(score.value, abs=1e-6)
    with pytest.raises(EvaluationError, match=r"profile 'C19' has nan in feature"):
        map_vs_controls(
            *[np.array([[1.0], [np.nan]])], ["a", "b"], ["p", "p"], [False, True], ids=["A01", "C19"]
        )


def test_map_labels_worked_by_hand():
    X = circle(0, 10, 20, 30, 40)
    labels = [{"a"}, {"b"}, {"a", "b"}, {"lonely"}, set()]
    score = map_labels(X, labels, ties="copairs")
    # 0: library 1, 2, 3 -> match 2 at rank 2. 1: 0 and 2 tie at 10°, the match 2 goes first. 2: 1 then 3 tie.
    assert score.per_query["row"].to_list() == [0, 1, 2]
    assert score.per_query["value"].to_list() == [1 / 2, 1, (1 + 2 / 3) / 2]
    assert score.per_query["n_total"].to_list() == [3, 3, 3]
    assert score.value == pytest.approx((1 / 2 + 1 + 5 / 6) / 3)
    assert score.per_group["label", "value", "n_queries"].rows() == [
        ("a", pytest.approx((1 / 2 + 5 / 6) / 2), 2),
        ("b", pytest.approx((1 + 5 / 6) / 2), 2),
    ]
    assert score.left_out == {"no label": 1, "no match": 1}


def test_map_labels_equals_copairs_leaving_out_the_same_compound():
    rng = np.random.default_rng(10)
    X = rng.normal(size=(80, 5))
    compounds = (np.arange(80) // 2).astype(str)
    labels = rng.integers(0, 6, 40).astype(str)[np.arange(80) // 2]
    metadata = pl.DataFrame({"label": labels, "compound": compounds})
    expected, _, _ = copairs_ap(X, metadata, ["label"], ["compound"], [], ["label"])
    score = map_labels(X, labels.tolist(), compounds.tolist(), not_same_compound=True)
    np.testing.assert_allclose(score.per_query["value"], expected, rtol=0, atol=1e-6)


def test_map_labels_on_bbbc021_equals_copairs(data_dir):
    X, treatments, _ = bbbc021(data_dir)
    metadata = treatments.select("moa")
    expected, _, _ = copairs_ap(X, metadata, ["moa"], [], [], ["moa"])
    score = map_labels(X, treatments["moa"].to_list())
    np.testing.assert_allclose(score.per_query["value"], expected, rtol=0, atol=1e-6)
    assert score.n == 103


def test_groups_need_a_value_and_a_name_of_their_own():
    X = circle(0, 1, 50, 51)
    metadata = pl.DataFrame({"label": list("aabb"), "kind": ["x", None, "y", "y"], "row": list("AABB")})
    result = average_precision(X, metadata, ["label"], [], [], ["label"])
    score = mean_average_precision(result, ["label", "kind"], null=0)
    assert score.per_group["label", "kind", "n_queries"].rows() == [("a", "x", 1), ("b", "y", 2)]
    assert score.left_out == {"no group": 1}
    with pytest.raises(EvaluationError, match=r"column 'row' cannot name a group"):
        mean_average_precision(result, ["row"])
    with pytest.raises(UnknownNameError, match=r"column of the metadata 'lable'"):
        mean_average_precision(result, ["lable"])
    alone = average_precision(
        X, metadata.with_columns(label=pl.Series(list("abcd"))), ["label"], [], [], ["label"]
    )
    with pytest.raises(EvaluationError, match=r"no query is left \(4 with no match\)"):
        mean_average_precision(alone, ["label"])


# --- exactness


def by_brute_force(X, match, other, ties):
    """AP of each row from all cosines in double, a list and a loop; None without a match."""
    unit = X / np.linalg.norm(X, axis=1, keepdims=True)
    far = np.float32(1) - np.einsum("id,jd->ij", unit, unit).astype(np.float32)
    made = []
    for row in range(len(X)):
        mine, others = far[row][match[row]], far[row][other[row]]
        if len(mine) == 0:
            made.append(None)
            continue
        if ties == "threshold":
            truth = np.r_[np.ones(len(mine)), np.zeros(len(others))]
            made.append(average_precision_score(truth, -np.r_[mine, others]))
            continue
        found, value = 0, 0.0
        for distance in np.unique(mine):
            p, q = int((mine == distance).sum()), int((others == distance).sum())
            n = int((others < distance).sum())
            if ties == "copairs":
                value += sum((found + i) / (found + i + n) for i in range(1, p + 1))
            else:
                orders = set(permutations("m" * p + "o" * q))
                sums = []
                for order in orders:
                    places = [i + 1 for i, kind in enumerate(order) if kind == "m"]
                    sums.append(sum((found + k + 1) / (found + n + place) for k, place in enumerate(places)))
                value += np.mean(sums)
            found += p
        made.append(value / found)
    return made


@pytest.mark.parametrize("ties", ranking.TIES)
@pytest.mark.parametrize("few", [0, 48])
def test_ties_are_decided_as_all_orders_and_scikit_learn_decide_them(monkeypatch, ties, few):
    # Small whole numbers: many equal distances, of matches and others.
    monkeypatch.setattr(ranking, "FEW", few)
    rng = np.random.default_rng(11)
    X = rng.integers(1, 4, (26, 2)).astype(float)
    labels = rng.integers(0, 6, 26)
    match = (labels[:, None] == labels) & ~np.eye(26, dtype=bool)
    other = labels[:, None] != labels
    expected = by_brute_force(X, match, other, ties)
    result = average_precision(X, pl.DataFrame({"label": labels}), ["label"], [], [], ["label"], ties=ties)
    np.testing.assert_allclose(
        result["average_precision"].to_numpy().astype(float), np.array(expected, dtype=float), atol=1e-12
    )
    assert len(np.unique(result["average_precision"].drop_nulls())) > 8


@pytest.mark.parametrize("step", [1e-8, 1e-7, 1e-6])
@pytest.mark.parametrize("few", [0, 48])
def test_near_ties_are_decided_in_double(monkeypatch, step, few):
    # All at an angle of 60° from the query, but for steps far below what single precision tells apart in a sum.
    monkeypatch.setattr(ranking, "FEW", few)
    rng = np.random.default_rng(12)
    n, d = 120, 200
    X = rng.normal(size=(n, d))
    X[:, 0] = 0
    X /= np.linalg.norm(X, axis=1, keepdims=True)
    angle = np.pi / 3 + step * rng.permutation(n)
    X = X * np.sin(angle)[:, None]
    X[:, 0] = np.cos(angle)
    X[0] = 0
    X[0, 0] = 1
    labels = rng.integers(0, 8, n)
    match = (labels[:, None] == labels) & ~np.eye(n, dtype=bool)
    expected = by_brute_force(X, match, labels[:, None] != labels, "copairs")
    given = np.random.default_rng(13).uniform(0.1, 9, (n, 1)) * X
    value = map_labels(given, labels.astype(str).tolist(), ties="copairs", null=0).per_query["value"]
    np.testing.assert_allclose(value, np.array(expected, dtype=float), rtol=0, atol=1e-12)


@pytest.mark.parametrize("few", [0, 4, 48])
@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 2**31))
def test_labels_compounds_and_rows_without_are_as_in_a_plain_loop(few, seed):
    rng = np.random.default_rng(seed)
    n = 40
    X = rng.integers(-2, 3, (n, 4)) + np.array([0.5, 0, 0, 0])
    sets = [frozenset(rng.choice(list("abcdef"), rng.integers(0, 4), replace=False)) for _ in range(n)]
    compounds = [None if c == 0 else str(c) for c in rng.integers(0, 12, n)]
    same = np.array([[a is not None and a == b for b in compounds] for a in compounds])
    shared = np.array([[bool(a & b) for b in sets] for a in sets])
    labelled = np.array([bool(row) for row in sets])
    apart = ~np.eye(n, dtype=bool) & labelled[:, None] & labelled & ~same
    expected = by_brute_force(X, apart & shared, apart & ~shared, "copairs")
    before, ranking.FEW = ranking.FEW, few
    try:
        score = map_labels(X, sets, compounds, ties="copairs", null=0, not_same_compound=True)
    finally:
        ranking.FEW = before
    rows = score.per_query["row"].to_list()
    assert rows == [row for row in range(n) if expected[row] is not None]
    np.testing.assert_allclose(score.per_query["value"], [expected[row] for row in rows], atol=1e-12)
    assert score.per_query["n_matches"].to_list() == (apart & shared)[rows].sum(axis=1).tolist()
    assert score.per_query["n_total"].to_list() == apart[rows].sum(axis=1).tolist()
    assert sum(score.left_out.values()) == n - len(rows)


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 2**31))
def test_order_names_and_scale_change_nothing(seed):
    rng = np.random.default_rng(seed)
    X, labels = rng.normal(size=(40, 5)), rng.integers(0, 6, 40).astype(str)
    X[20:30] = X[:10]
    whole = map_labels(X, labels.tolist(), null=200)
    order = rng.permutation(40)
    named = np.array(list("vwxyzu"))[labels.astype(int)]
    turned = map_labels(X[order] * rng.uniform(0.1, 10, (40, 1)), named[order].tolist(), null=200)
    back = turned.per_query.with_columns(row=pl.Series(order[turned.per_query["row"].to_numpy()])).sort("row")
    np.testing.assert_allclose(back["value"], whole.per_query["value"], atol=1e-12)
    assert turned.value == pytest.approx(whole.value, abs=1e-12)
    both = (
        whole.per_group["value", "p_value"].sort("value"),
        turned.per_group["value", "p_value"].sort("value"),
    )
    np.testing.assert_allclose(both[0].to_numpy(), both[1].to_numpy(), atol=1e-12)


def test_a_group_keeps_its_p_value_beside_others():
    rng = np.random.default_rng(14)
    X, labels = rng.normal(size=(60, 5)), np.repeat(["a", "b", "c"], 20)
    whole = map_labels(X, labels.tolist(), null=500).per_group
    # The same numbers of matches and non-matches, and the same values, with the others under another name.
    other = map_labels(X, np.where(labels == "c", "d", labels).tolist(), null=500).per_group
    assert whole["p_value"].to_list() == other["p_value"].to_list()
    assert (
        map_labels(X, labels.tolist(), null=500, seed=1).per_group["p_value"].to_list()
        != whole["p_value"].to_list()
    )
    without = map_labels(X, labels.tolist(), null=0).per_group
    assert without["p_value"].is_null().all()
    assert without["q_value"].is_null().all()


# --- layouts and relations


def test_the_layout_by_label_is_that_of_copairs():
    from copairs.map.multilabel import average_precision as reference

    rng = np.random.default_rng(15)
    n = 50
    X = rng.normal(size=(n, 6))
    sets = [set(rng.choice(list("abcdefg"), rng.integers(1, 4), replace=False).tolist()) for _ in range(n)]
    sets[7] = {"alone"}
    frame = pd.DataFrame({"row": np.arange(n), "label": [sorted(row) for row in sets]})
    expected = reference(frame, X, ["label"], [], [], ["label"], multilabel_col="label", progress_bar=False)
    expected = pl.from_pandas(expected).sort("row", "label")
    score = map_labels(X, sets, ties="copairs", layout="label", null=0)
    assert score.per_query["row", "label"].equals(expected["row", "label"])
    assert score.per_query["n_matches"].to_list() == expected["n_pos_pairs"].to_list()
    assert score.per_query["n_total"].to_list() == expected["n_total_pairs"].to_list()
    np.testing.assert_allclose(score.per_query["value"], expected["average_precision"], atol=1e-6)
    np.testing.assert_allclose(
        score.per_query["normalised_value"], expected["normalized_average_precision"], atol=1e-6
    )
    means = expected.group_by("label").agg(pl.col("average_precision").mean()).sort("label")
    assert score.per_group["label"].equals(means["label"])
    np.testing.assert_allclose(score.per_group["value"], means["average_precision"], atol=1e-6)
    assert score.left_out == {"no match": 1}


def test_cross_batch_takes_matches_of_other_batches_only():
    # t stands at 0° in batch x and at 30° in y, and once more in x at 1°, which must not help it.
    X = circle(0, 30, 1, 10, 20, 80)
    labels = ["t", "t", "t", "u", "v", ""]
    batches = [{"x"}, {"y"}, {"x"}, {"x"}, {"y"}, {"y"}]
    score = map_cross_batch(X, labels, batches, null=0)
    # 0: u and v stand before 30°. 1 (30°): v at 10°, u at 20°, then 2 and 0. 2: u, v, then 1.
    assert score.per_query["row"].to_list() == [0, 1, 2]
    np.testing.assert_allclose(score.per_query["value"], [1 / 3, (1 / 3 + 2 / 4) / 2, 1 / 3])
    assert score.per_query["n_total"].to_list() == [3, 4, 3]
    assert score.left_out == {"no label": 1, "no match in another batch": 2}
    assert score.per_group["treatment"].to_list() == ["t"]
    assert score.value == pytest.approx(score.per_query["value"].mean())
    across = map_cross_source(X, labels, batches, null=0)
    assert across.per_query.equals(score.per_query)
    assert across.left_out == {"no label": 1, "no match in another source": 2}
    batches[1] = set()
    with pytest.raises(
        EvaluationError,
        match=r"map_cross_batch: no query is left \(1 with no batch, 1 with no label, 4 with no match",
    ):
        map_cross_batch(X, labels, batches)
    with pytest.raises(EvaluationError, match=r"5 sources for 6 profiles"):
        map_cross_source(X, labels, batches[:5])


def naive_shared(sets, a, b):
    return sorted(sets[a] & sets[b])


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 2**31))
def test_groups_equal_sets_however_many_a_row_has(seed):
    rng = np.random.default_rng(seed)
    names = [f"g{i:02d}" for i in range(40)]
    most = int(rng.integers(1, 9))
    sets = [set(rng.choice(names, rng.integers(0, most), replace=False).tolist()) for _ in range(25)]
    if rng.random() < 0.7:
        sets[4], sets[9] = set(names), set(names[10:])
    groups, known = Groups.of_sets(sets), sorted(set().union(*sets))
    rows, others = rng.integers(0, 25, (2, 300))
    expected = [naive_shared(sets, a, b) for a, b in zip(rows, others, strict=True)]
    np.testing.assert_array_equal(groups.shared(rows, others), [bool(own) for own in expected])
    pair, group = groups.common(rows, others)
    assert [(p, known[g]) for p, g in zip(pair, group, strict=True)] == [
        (p, name) for p, own in enumerate(expected) for name in own
    ]
    place, other = groups.pairs(rows[:20])
    assert list(zip(place.tolist(), other.tolist(), strict=True)) == [
        (p, b) for p, row in enumerate(rows[:20]) for b in range(25) if sets[row] & sets[b]
    ]
    sizes = [sum(len(sets[row] & sets[b]) for b in range(25)) for row in rows]
    np.testing.assert_array_equal(groups.count(rows), sizes)
    np.testing.assert_array_equal(groups.any(rows), [bool(sets[row]) for row in rows])


def test_one_row_of_many_groups_costs_the_others_nothing():
    sets = [{f"p{i % 1000}", f"p{i % 999}"} for i in range(5000)]
    sets[7] = {f"p{i}" for i in range(1000)}
    rows = np.random.default_rng(0).integers(0, 5000, 20_000)
    tracemalloc.start()
    groups = Groups.of_sets(sets)
    start = perf_counter()
    found = groups.shared(rows, rows[::-1])
    took = perf_counter() - start
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 15 * 2**20  # a table of 5,000 x 1,000 is 38 MiB
    assert took < 5  # a loop over the slots of both takes a minute
    expected = [bool(sets[a] & sets[b]) for a, b in zip(rows, rows[::-1], strict=True)]
    np.testing.assert_array_equal(found, expected)


def test_batches_of_profiles_that_are_not_compared_are_not_looked_at():
    X = np.random.default_rng(1).normal(size=(9, 4))
    labels = ["a", "a", "b", "b", "a", "b", None, None, "c"]
    batches = [{"1"}, {"2"}, {"1"}, {"2"}, {"3"}, {"3"}, {str(i) for i in range(500)}, {"1"}, set()]
    plan = plan_cross_batch(Vectors.of(X), labels, batches)
    (unless,) = plan._ranking.relation.unless
    assert unless.any(np.arange(9)).tolist() == [True] * 6 + [False] * 3
    assert map_cross_batch(X, labels, batches).left_out == {"no batch": 1, "no label": 2}


def test_a_batch_effect_lowers_cross_batch_precision_and_not_that_of_replicates():
    rng = np.random.default_rng(16)
    treatment, batch = np.divmod(np.arange(80), 4)
    effect = np.repeat(rng.normal(size=(2, 8)) * 3, 2, axis=0)[batch]
    X = rng.normal(size=(20, 8))[treatment] + effect + 0.1 * rng.normal(size=(80, 8))
    labels, batches = [f"t{t}" for t in treatment], [{f"b{b // 2}"} for b in batch]
    within = map_replicates(X, labels, null=0).value
    across = map_cross_batch(X, labels, batches, null=0).value
    assert across < 0.5 * within
    corrected = map_cross_batch(X - effect, labels, batches, null=0).value
    assert corrected > 0.95


def test_replicates_are_averaged_by_treatment():
    X = circle(0, 10, 20, 30, 40, 50)
    score = map_replicates(X, ["t", "t", "u", "t", "u", ""], null=0)
    assert score.unit == "group"
    assert score.per_group.columns[:2] == ["treatment", "value"]
    assert score.value == pytest.approx(score.per_group["value"].mean())
    by_wells = score.per_query["value"].to_numpy()
    assert score.per_group["value"].to_list() == pytest.approx(
        [by_wells[[0, 1, 3]].mean(), by_wells[[2, 4]].mean()]
    )


def test_map_correlation_is_scikit_learns_over_correlation_distance():
    rng = np.random.default_rng(17)
    X = rng.normal(size=(60, 7)) + rng.normal(size=(60, 1)) * 5
    X[10:14] = 2 * X[:4] + 3  # correlated in full
    labels = rng.integers(0, 9, 60).astype(str)
    labels[3] = "alone"
    r = np.corrcoef(X)
    r = np.round(r, 12)  # equals, but for the last digits
    expected = {}
    for row in range(60):
        rest = np.arange(60) != row
        same = labels[rest] == labels[row]
        if same.any():
            expected[row] = average_precision_score(same, r[row][rest])
    score = map_correlation(X, labels.tolist(), null=0)
    assert score.per_query["row"].to_list() == list(expected)
    np.testing.assert_allclose(score.per_query["value"], list(expected.values()), atol=1e-9)
    assert score.value == pytest.approx(np.mean(list(expected.values())))
    # A profile that is the same everywhere has no correlation, though rounding may leave some of it.
    X[5] = 0.1
    with pytest.raises(
        EvaluationError, match=r"profile 'w5' is the same in every feature \(1 such profiles\)"
    ):
        map_correlation(X, labels.tolist(), ids=[f"w{i}" for i in range(60)])
    labels[5] = ""
    assert map_correlation(X, labels.tolist(), null=0).left_out == {"no label": 1, "no match": 1}
    X[6, 0] = np.nan
    with pytest.raises(EvaluationError, match=r"profile 'w6' has nan in feature 1"):
        map_correlation(X, labels.tolist(), ids=[f"w{i}" for i in range(60)])


def test_work_is_cut_into_portions_between_rows():
    def cut(work, most):
        return [part.tolist() for part in portions(np.array(work, dtype=np.int64), most)]

    assert cut([3, 3, 3, 3], 100) == [[0, 1, 2, 3]]
    assert cut([3, 3, 3, 3], 6) == [[0], [1, 2], [3]]  # where a multiple of 6 is reached
    assert cut([1, 50, 1, 0], 6) == [[0], [1, 2, 3]]  # a row of much work is whole
    assert cut([], 6) == [[]]


def test_zero_and_missing_profiles_that_are_not_compared_do_no_harm(monkeypatch):
    X = np.vstack([circle(0, 10, 50, 60), [[0, 0], [np.nan, 1]]])
    labels = ["a", "a", "b", "b", "", None]
    score = map_labels(X, labels, null=0)
    assert score.value == 1
    # Also where blocks hold no query, beside a metric that is given all rows.
    vectors = passes.Vectors.of(X)
    monkeypatch.setattr(passes, "BLOCK", 6)

    class All:
        seen = 0

        def take(self, block):
            self.seen += len(block.rows)

        def score(self):
            return score

    beside = All()
    both = passes.one_pass(vectors, [plan_map(vectors, labels, null=0), beside])
    assert both[0].per_query.equals(score.per_query)
    assert beside.seen == 6
    with pytest.raises(EvaluationError, match=r"is all zeros"):
        map_labels(X, ["a", "a", "b", "b", "b", None])


def test_p_values_of_the_metric_are_of_its_groups():
    rng = np.random.default_rng(18)
    X = np.vstack([rng.normal(size=(60, 8)), rng.normal(size=(1, 8)) + 0.05 * rng.normal(size=(6, 8))])
    labels = [str(i) for i in np.r_[np.arange(60) // 6, np.full(6, 10)]]
    groups = map_labels(X, labels, null=2000).per_group
    planted = groups.filter(pl.col("label") == "10")
    assert planted["p_value"].item() == pytest.approx(1 / 2001)
    assert planted["q_value"].item() == pytest.approx(11 / 2001)
    assert (groups.filter(pl.col("label") != "10")["p_value"] > 0.001).all()
    np.testing.assert_allclose(
        planted["normalised_value"], normalised(np.ones(1), np.array([5]), np.array([65])), atol=1e-12
    )


def test_plans_give_what_the_functions_give():
    rng = np.random.default_rng(19)
    X = rng.normal(size=(50, 6))
    given = {
        "labels": rng.integers(0, 8, 50).astype(str).tolist(),
        "compounds": rng.integers(0, 20, 50).astype(str).tolist(),
        "batches": [{f"b{i % 3}"} for i in range(50)],
        "sources": [{f"s{i % 2}"} for i in range(50)],
    }
    planned = [metric for metric in METRICS if metric.plan is not None]
    assert [metric.name for metric in planned] == [
        "map",
        "map_replicates",
        "map_cross_batch",
        "map_cross_source",
    ]
    vectors = passes.Vectors.of(X)
    needs = [{need: given[need] for need in metric.needs} for metric in planned]
    together = passes.one_pass(
        vectors, [metric.plan(vectors, **need) for metric, need in zip(planned, needs, strict=True)]
    )
    for metric, need, score in zip(planned, needs, together, strict=True):
        alone = metric.function(X, **need)
        assert alone.per_query.equals(score.per_query)
        assert alone.per_group.equals(score.per_group)
        assert (alone.value, alone.n, alone.left_out) == (score.value, score.n, score.left_out)


def test_what_map_lacks_is_explained():
    X, labels = circle(0, 1), ["a", "a"]
    with pytest.raises(UnknownNameError, match=r"unknown layout 'labels'. Did you mean 'label'"):
        map_labels(X, labels, layout="labels")
    with pytest.raises(EvaluationError, match=r"not_same_compound=true\) needs the compounds"):
        map_labels(X, labels, not_same_compound=True)
    with pytest.raises(EvaluationError, match=r"3 compounds for 2 profiles"):
        map_labels(X, labels, ["1", "2", "3"], not_same_compound=True)
    with pytest.raises(EvaluationError, match=r"map: no query is left \(2 with no match\)"):
        map_labels(X, ["a", "b"])
    with pytest.raises(EvaluationError, match=r"null=-1, seed=0"):
        map_labels(X, labels, null=-1)
