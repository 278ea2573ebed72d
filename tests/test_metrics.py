"""Metrics, against hand-worked values, copairs 0.5.5, scikit-learn and published tables of real screens."""

from itertools import permutations

import numpy as np
import pandas as pd
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score
from sklearn.neighbors import KNeighborsClassifier

from warehouse import metrics
from warehouse.errors import EvaluationError, UnknownNameError
from warehouse.metrics import (
    average_precision,
    map_labels,
    map_vs_controls,
    mean_average_precision,
    nsb,
    nsc,
    one_nn_accuracy,
    precision,
)


def circle(*degrees):
    angle = np.deg2rad(np.array(degrees, dtype=float))
    return np.stack([np.cos(angle), np.sin(angle)], axis=1)


# --- the registry


def test_names_are_unique_and_ranges_ordered():
    assert [metrics.get(metric.name) for metric in metrics.ALL] == list(metrics.ALL)
    assert all(metric.range[0] < metric.range[1] for metric in metrics.ALL)


def test_a_duplicate_raises_and_an_unknown_name_is_explained():
    with pytest.raises(EvaluationError, match=r"two metrics are named 'nsc'"):
        metrics.get("nsb", (metrics.ALL[0], metrics.ALL[0]))
    with pytest.raises(UnknownNameError, match=r"unknown metric 'ncs'. Did you mean 'nsc'\? Known: map, "):
        metrics.get("ncs")


INPUTS = {
    "labels": ["a", "a", "b", "b", "a", "b"],
    "compounds": ["1", "2", "3", "4", "5", "6"],
    "batches": [{"x"}, {"y"}, {"x"}, {"y"}, {"y"}, {"z"}],
    "treatments": ["t", "t", "u", "u", None, None],
    "plates": ["p"] * 6,
    "controls": [False] * 4 + [True] * 2,
}


@pytest.mark.parametrize("metric", metrics.ALL, ids=lambda metric: metric.name)
def test_every_metric_keeps_the_contract(metric):
    X = circle(0, 10, 100, 110, 50, 60) * np.array([[1], [2], [3], [4], [5], [1e-200]])
    needs = {need: INPUTS[need] for need in metric.needs}
    ids = [f"w{i}" for i in range(6)]
    score = metric.function(X, ids=ids, **needs)
    assert metric.range[0] <= score.value <= metric.range[1]
    again = metric.function(X[::-1], ids=ids, **{need: values[::-1] for need, values in needs.items()})
    assert again.value == pytest.approx(score.value, abs=1e-12)
    assert metric.function(X, ids=ids, **needs).value == score.value
    for bad, message in [
        (0, r"profile 'w2' is all zeros \(1 such profiles\)"),
        (np.nan, r"profile 'w2' has nan in feature 1 \(1 such profiles\)"),
        (np.inf, r"profile 'w2' has inf in feature 1"),
    ]:
        broken = X.copy()
        broken[2] = bad
        with pytest.raises(EvaluationError, match=message):
            metric.function(broken, ids=ids, **needs)
    with pytest.raises(EvaluationError, match=r"5 (labels|treatments) for 6 profiles"):
        metric.function(X, ids=ids, **(needs | {metric.needs[0]: INPUTS[metric.needs[0]][:5]}))


# --- 1-NN


def test_one_nn_leaves_out_the_same_compound_and_the_same_batch():
    X = circle(0, 1, 5, 20, 21)
    labels = [{"a"}, {"a"}, {"b"}, {"a", "c"}, {"b"}]
    compounds = ["k", "k", "l", "m", "n"]
    score = nsc(X, labels, compounds)
    assert score.per_query["neighbour"].to_list() == [2, 2, 1, 4, 3]
    assert (score.value, score.correct, score.n) == (0, 0, 5)
    np.testing.assert_allclose(score.per_query["similarity"][2], np.cos(np.deg2rad(4)))
    # Without the batches of 2: 0 and 1 go on to 3 (right), 3 is free to take 1 (right).
    batches = [{"x"}, {"x"}, {"x", "y"}, {"z"}, {"z", "y"}]
    score = nsb(X, labels, compounds, batches)
    assert score.per_query["query"].to_list() == [0, 1, 2, 3, 4]
    assert score.per_query["neighbour"].to_list() == [3, 3, 3, 2, 1]
    assert score.per_query["is_correct"].to_list() == [True, True, False, False, False]
    assert score.left_out == {}


def test_nsb_drops_labels_of_one_batch_and_counts_who_is_left_out():
    X = circle(0, 2, 4, 6, 8, 40, 41)
    labels = [{"a"}, {"solo"}, {"a", "solo"}, set(), None, {"a"}, "a"]
    batches = [{"x"}, {"y"}, {"y"}, {"z"}, {"z"}, {"x", "y", "w"}, set()]
    score = nsb(X, labels, list("1234567"), batches)
    # 1 has only a label of batch y; 2 keeps "a"; 5 shares a batch with both others.
    assert score.left_out == {"label in one batch only": 1, "no batch": 1, "no candidate": 1, "no label": 2}
    assert score.per_query.rows() == [
        (0, 2, pytest.approx(np.cos(np.deg2rad(4))), True),
        (2, 0, pytest.approx(np.cos(np.deg2rad(4))), True),
    ]


def test_ties_go_to_the_first_row():
    X = np.array([[1, 0], [1, 1], [3, 3], [0.1, 0.1]])
    assert nsc(X, list("abcd"), list("1234")).per_query["neighbour"].to_list() == [1, 2, 1, 1]
    # Multiples of one profile are equally near, though their last digits differ.
    rng = np.random.default_rng(1)
    X = rng.normal(size=(1, 50)) * rng.uniform(0.1, 9, (200, 1))
    assert nsc(X, ["a"] * 200, range(200)).per_query["neighbour"].to_list() == [1] + [0] * 199


def test_nsc_equals_scikit_learn_where_nothing_is_left_out():
    rng = np.random.default_rng(2)
    X, labels = rng.normal(size=(60, 7)), rng.integers(0, 4, 60).astype(str)
    right = [
        KNeighborsClassifier(1, metric="cosine")
        .fit(np.delete(X, i, 0), np.delete(labels, i))
        .predict(X[[i]])[0]
        == labels[i]
        for i in range(60)
    ]
    score = nsc(X, labels.tolist(), range(60))
    assert score.per_query["is_correct"].to_list() == right


def test_one_nn_does_not_depend_on_the_size_of_a_block(monkeypatch):
    rng = np.random.default_rng(3)
    X, labels = rng.normal(size=(40, 5)), rng.integers(0, 3, 40).astype(str).tolist()
    whole = nsc(X, labels, range(40))
    monkeypatch.setattr("warehouse.metrics.nearest.BLOCK", 100)
    assert nsc(X, labels, range(40)).per_query.equals(whole.per_query)


def test_one_nn_explains_what_it_lacks():
    X = circle(0, 1)
    with pytest.raises(UnknownNameError, match=r"rule of exclusion 'nsbp'. Did you mean 'nsb'"):
        one_nn_accuracy(X, ["a", "a"], ["k", "l"], None, "nsbp")
    with pytest.raises(EvaluationError, match=r"nsb needs the batches"):
        one_nn_accuracy(X, ["a", "a"], ["k", "l"], None, "nsb")
    with pytest.raises(EvaluationError, match=r"nsc: no query is left \(2 with no candidate\)"):
        nsc(X, ["a", "a"], ["k", "k"])


def bbbc021(data_dir):
    """Treatment means of wells z-scored on their plate's DMSO: X, labels, compounds, treatments, weeks."""
    from warehouse.fitting import fit_transform
    from warehouse.recipes import parse

    folder = data_dir / "bbbc021"
    wells = pl.read_csv(folder / "ljosa_jbiomolscreen_2013_per_well_mean.csv.gz", infer_schema_length=None)
    wells = wells.rename({"Image_Metadata_Plate": "plate", "Image_Metadata_Well": "well"})
    images = pl.read_csv(folder / "BBBC021_v1_image.csv.gz", infer_schema_length=None)
    layout = images.select(
        plate="Image_Metadata_Plate_DAPI",
        well="Image_Metadata_Well_DAPI",
        compound="Image_Metadata_Compound",
        concentration="Image_Metadata_Concentration",
        batch=pl.col("Image_Metadata_Plate_DAPI").str.split("_").list.first(),
    ).unique()
    groups = (
        wells.select("plate", "well")
        .join(layout, on=["plate", "well"], how="left", maintain_order="left", validate="1:1")
        .with_columns(
            source=pl.lit("bbbc021"),
            control_type=pl.when(pl.col("compound") == "DMSO")
            .then(pl.lit("negative"))
            .otherwise(pl.lit("none")),
        )
    )
    z = fit_transform(parse("standardize"), wells.drop("plate", "well").to_numpy(), groups).profiles
    treatments = (
        groups.with_row_index("row")
        .filter(pl.col("control_type") == "none")
        .group_by("compound", "concentration")
        .agg("row", batches=pl.col("batch").unique())
        .join(pl.read_csv(folder / "BBBC021_v1_moa.csv"), on=["compound", "concentration"])
        .sort("compound", "concentration")
    )
    X = np.stack([z[rows].mean(axis=0) for rows in treatments["row"].to_list()])
    return X, treatments, layout


def test_bbbc021_reaches_the_published_figures(data_dir):
    X, treatments, layout = bbbc021(data_dir)
    labels, compounds = treatments["moa"].to_list(), treatments["compound"].to_list()
    score = nsc(X, labels, compounds)
    assert (score.correct, score.n) == (85, 103)
    assert score.left_out == {}
    profiled = [set(row) for row in treatments["batches"].to_list()]
    score = nsb(X, labels, compounds, profiled)
    assert (score.correct, score.n) == (67, 92)
    assert score.left_out == {"label in one batch only": 11}
    # By every week a treatment was imaged in, taxol at 0.3 µM (on plates of all weeks) has no candidate.
    weeks = layout.group_by("compound", "concentration").agg(imaged=pl.col("batch").unique())
    imaged = treatments.join(weeks, on=["compound", "concentration"], how="left", maintain_order="left")[
        "imaged"
    ]
    score = nsb(X, labels, compounds, [set(row) for row in imaged.to_list()])
    assert (score.correct, score.n) == (67, 91)
    assert score.left_out == {"label in one batch only": 11, "no candidate": 1}


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
    result = average_precision(X, metadata, *rule)
    np.testing.assert_allclose(
        result["average_precision"].to_numpy().astype(float), expected, rtol=0, atol=1e-6
    )
    assert result["average_precision"].is_null().any()
    assert result["n_matches"].to_list() == matches.tolist()
    has_pairs = total > 0
    assert result["n_total"].to_numpy()[has_pairs].tolist() == total[has_pairs].tolist()


def test_equals_copairs_with_few_large_groups():
    # More matches than `FEW`: the other way of counting.
    rng = np.random.default_rng(8)
    X = rng.normal(size=(200, 5)).astype(np.float32)
    metadata = pl.DataFrame({"label": rng.integers(0, 3, 200)})
    expected, matches, _ = copairs_ap(X, metadata, ["label"], [], [], ["label"])
    assert matches.min() > precision.FEW
    result = average_precision(X, metadata, ["label"], [], [], ["label"])
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
    score = mean_average_precision(result, ["label"])
    assert score.per_group.rows() == [("a", 1.0, 2), ("b", 1.0, 2)]
    assert (score.value, score.n, score.left_out) == (1.0, 2, {"no match": 1})


def test_average_precision_worked_by_hand():
    # From 0°: 10 a, 20 b, 30 a, 40 b, 50 a -> (1/1 + 2/3 + 3/5) / 3.
    X = circle(0, 10, 20, 30, 40, 50)
    metadata = pl.DataFrame({"label": list("aababa")})
    result = average_precision(X, metadata, ["label"], [], [], ["label"])
    assert result["average_precision"][0] == pytest.approx((1 + 2 / 3 + 3 / 5) / 3)


@pytest.mark.parametrize("few", [0, 24])
def test_ties_favour_matches_or_are_averaged(monkeypatch, few):
    monkeypatch.setattr(precision, "FEW", few)
    X = np.array([[1, 0], [1, 1], [1, 1], [1, 1], [1, 1], [1, 2.0]])
    metadata = pl.DataFrame({"label": list("aaabba")})
    favoured = average_precision(X, metadata, ["label"], [], [], ["label"])
    assert favoured["average_precision"][0] == pytest.approx((1 + 1 + 3 / 5) / 3)
    averaged = average_precision(X, metadata, ["label"], [], [], ["label"], ties="averaged")
    orders = {order for order in permutations("aabb")}
    by_hand = [
        np.mean([(order[: i + 1].count("a")) / (i + 1) for i in range(4) if order[i] == "a"])
        for order in orders
    ]
    assert averaged["average_precision"][0] == pytest.approx((2 * np.mean(by_hand) + 3 / 5) / 3)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**31))
def test_without_ties_both_rules_are_scikit_learns(seed):
    rng = np.random.default_rng(seed)
    X, labels = rng.normal(size=(12, 3)), rng.integers(0, 2, 12)
    metadata = pl.DataFrame({"label": labels})
    unit = X / np.linalg.norm(X, axis=1, keepdims=True)
    for ties in ("copairs", "averaged"):
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
    monkeypatch.setattr(precision, "BLOCK", 200)
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
    score = map_vs_controls(X, treatments, plates, controls)
    # On p the control at 5° stands between the two wells of t: AP 1/2 each.
    assert score.per_group.rows() == [("t", 0.5, 2)]
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
    )
    assert score.value == pytest.approx(value, abs=1e-6)
    published = pl.read_csv(folder / f"mAP_{plate}_vs_DMSO.csv")
    both = score.per_group.join(
        published, left_on="treatment", right_on="Metadata_broad_sample", validate="1:1"
    )
    assert len(both) == len(score.per_group) == len(published) == 90
    both = both.filter(~pl.col("treatment").is_in(incomplete["Metadata_broad_sample"].to_list()))
    difference = (both["mean_average_precision"] - both["average_precision"]).abs().max()
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
    score = map_labels(X, labels)
    # 0: library 1, 2, 3 -> match 2 at rank 2. 1: 0 and 2 tie at 10°, the match 2 goes first. 2: 1 then 3 tie.
    assert score.per_query["row"].to_list() == [0, 1, 2]
    assert score.per_query["average_precision"].to_list() == [1 / 2, 1, (1 + 2 / 3) / 2]
    assert score.per_query["n_total"].to_list() == [3, 3, 3]
    assert score.value == pytest.approx((1 / 2 + 1 + 5 / 6) / 3)
    assert score.per_group.rows() == [
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
    score = map_labels(X, labels.tolist(), compounds.tolist())
    np.testing.assert_allclose(score.per_query["average_precision"], expected, rtol=0, atol=1e-6)


def test_map_labels_on_bbbc021_equals_copairs(data_dir):
    X, treatments, _ = bbbc021(data_dir)
    metadata = treatments.select("moa")
    expected, _, _ = copairs_ap(X, metadata, ["moa"], [], [], ["moa"])
    score = map_labels(X, treatments["moa"].to_list())
    np.testing.assert_allclose(score.per_query["average_precision"], expected, rtol=0, atol=1e-6)
    assert score.n == 103
