"""Batch effects, beside scikit-learn, harmonypy, scib-metrics and naive loops."""

import os

import numpy as np
import polars as pl
import pytest
from harmonypy import compute_lisi
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare
from sklearn.decomposition import PCA
from sklearn.linear_model import LinearRegression
from sklearn.metrics import matthews_corrcoef, silhouette_samples, silhouette_score
from sklearn.preprocessing import normalize

from warehouse.errors import EvaluationError, UnknownNameError
from warehouse.metrics import neighbour_graph
from warehouse.metrics.batch_effects import (
    METRICS,
    batch_classifier,
    batch_silhouette,
    batch_silhouette_scib,
    clisi,
    graph_connectivity,
    ilisi,
    kbet,
    pc_regression,
    source_silhouette,
    source_silhouette_scib,
)
from warehouse.metrics.grouped_rows import separated
from warehouse.metrics.neighbour_graph import nearest_euclidean

N = 150
FREE = [False] * N


def planted(seed, strength=1.0, n=N, groups=4, d=6):
    """Profiles with a shift a batch: X, batches, codes of batches."""
    rng = np.random.default_rng(seed)
    codes = np.concatenate([np.arange(groups), rng.choice(groups, size=n - groups, p=[0.4, 0.3, 0.2, 0.1])])
    X = rng.normal(size=(n, d)) + strength * rng.normal(size=(groups, d))[codes]
    return X, [{f"s/b{code}"} for code in codes], codes


def needs(metric, seed=0, strength=1.0, n=N):
    """All that a metric asks for: labels and treatments are on all plates and in all batches."""
    X, batches, codes = planted(seed, strength, n)
    rng = np.random.default_rng([seed, 1])
    label = rng.integers(5, size=n)
    known = {
        "labels": [{f"l{one}"} for one in label],
        "batches": batches,
        "sources": batches,
        "treatments": [f"t{one}" for one in label * 2 + rng.integers(2, size=n)],
        "plates": [f"p{one}" for one in codes * 3 + rng.integers(3, size=n)],
        "controls": [False] * n,
    }
    return X, {need: known[need] for need in metric.needs}


def own(score, baseline=None, **where):
    frame = score.per_group.filter(pl.col("baseline").eq_missing(baseline))
    for name, value in where.items():
        frame = frame.filter(pl.col(name) == value)
    return frame["value"].item()


# --- what all have in common

every = pytest.mark.parametrize("metric", METRICS, ids=lambda metric: metric.name)


@every
def test_baselines_stand_beside_the_value(metric):
    X, given = needs(metric)
    score = metric.function(X, **given)
    better = 1 if metric.higher_is_better else -1
    at = {"k": score.per_group["k"].max()} if metric.name in ("ilisi", "clisi", "graph_connectivity") else {}
    assert own(score, **at) == score.value
    good, bad = ("separated", "shuffled") if metric.name == "clisi" else ("shuffled", "separated")
    assert better * own(score, good, **at) > better * own(score, bad, **at)
    assert metric.range[0] <= score.value <= metric.range[1]
    assert metric.baselines == ()
    assert (score.n, score.left_out) == (N, {})
    if len(score.per_query):
        assert score.per_query["row"].to_list() == list(range(N))
        assert score.per_query.schema["row"] == pl.Int64
    if score.unit == "query":
        assert score.per_query["value"].mean() == pytest.approx(score.value, abs=1e-12)


@every
def test_neither_order_nor_names_nor_length_change_it(metric):
    X, given = needs(metric, seed=1)
    score = metric.function(X, **given)
    assert metric.function(X, **given).per_group.equals(score.per_group)
    order = np.random.default_rng(0).permutation(N)
    turned = {need: [values[row] for row in order] for need, values in given.items()}
    for need in ("labels", "batches", "sources"):
        if need in turned:
            turned[need] = [{f"{4 - int(next(iter(names))[-1])}"} for names in turned[need]]
    # Four times as long: exact in floating point, and seen by a Euclidean LISI's search for β only.
    again = metric.function(X[order] * 4, **turned)
    tolerance = 1e-4 if "lisi" in metric.name else 1e-10
    assert again.value == pytest.approx(score.value, abs=tolerance)
    for name in ("value", *score.per_group.columns[2:]):
        np.testing.assert_allclose(again.per_group[name], score.per_group[name], rtol=0, atol=5 * tolerance)
    if len(score.per_query):
        expected = score.per_query["value"].to_numpy()[order]
        np.testing.assert_allclose(again.per_query["value"], expected, rtol=0, atol=5 * tolerance)


@every
def test_rows_of_several_groups_and_controls_are_left_out(metric):
    X, given = needs(metric, n=N + 6)
    groups = next(need for need in ("batches", "sources", "labels") if need in given)
    one = {"batches": "batch", "sources": "source", "labels": "label"}[groups]
    given[groups][3], given[groups][50], given[groups][70] = {"x", "y"}, set(), {"x", "y", "z"}
    expected = {f"no {one}": 1, f"several {groups}": 2}
    gone = [3, 50, 70]
    if "controls" in given:
        given["controls"] = [row in (10, 11, 12) for row in range(N + 6)]
        gone += [10, 11, 12]
        expected["negative control"] = 3
        assert metric.function(X, **given, keep_controls=True).n == N + 3
    X[3] = np.nan
    score = metric.function(X, **given)
    assert score.left_out == expected
    kept = [row for row in range(N + 6) if row not in gone]
    few = metric.function(X[kept], **{need: [values[row] for row in kept] for need, values in given.items()})
    assert few.value == score.value
    if len(score.per_query):
        assert score.per_query["row"].to_list() == kept


@every
def test_bad_input_is_explained(metric):
    X, given = needs(metric)
    groups = next(need for need in ("batches", "sources", "labels") if need in given)
    one = {"batches": "batch", "sources": "source", "labels": "label"}[groups]
    with pytest.raises(
        EvaluationError, match=rf"{metric.name}: all {N} rows are of one {one}, 'b': give rows of at"
    ):
        metric.function(X, **given | {groups: [{"b"}] * N})
    with pytest.raises(EvaluationError, match=rf"{metric.name}: no query is left \({N} with no {one}\)"):
        metric.function(X, **given | {groups: [set()] * N})
    for need in given:
        with pytest.raises(EvaluationError, match=rf"1 {need} for {N} profiles"):
            metric.function(X, **given | {need: given[need][:1]})
    X[2, 1] = np.inf
    with pytest.raises(EvaluationError, match=r"'w2' has inf in feature 2"):
        metric.function(X, **given, ids=[f"w{row}" for row in range(N)])
    # A row that is left out may hold anything, and does not shift the number of another.
    X[0] = np.nan
    given[groups][0] = set()
    with pytest.raises(EvaluationError, match=r"profile in row 2 has inf in feature 2 \(1 such profiles\)"):
        metric.function(X, **given)
    with pytest.raises(EvaluationError, match=r"do not fit 1 ids"):
        metric.function(X, **given, ids=["w0"])
    with pytest.raises(EvaluationError, match=r"profiles of shape \(150,\) do not fit"):
        metric.function(X[:, 0], **given)


@every
def test_copies_of_profiles_and_constant_features_are_no_fault(metric):
    X, given = needs(metric, n=120)
    X[60:] = X[:60]
    X[:30] = X[0]
    X = np.column_stack([X, np.full(120, 3.0)])
    extra = {"k": 40} if "lisi" in metric.name else {}
    score = metric.function(X, **given, **extra)
    assert metric.range[0] <= score.value <= metric.range[1]
    assert score.per_group["value"].is_finite().all()
    order = np.random.default_rng(0).permutation(120)
    again = metric.function(
        X[order], **{need: [values[row] for row in order] for need, values in given.items()}, **extra
    )
    assert again.value == pytest.approx(score.value, abs=1e-10)


# --- the graph of neighbours


@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 10**6), k=st.integers(1, 29))
def test_neighbours_are_those_of_a_full_table(seed, k):
    X = np.random.default_rng(seed).integers(0, 4, size=(30, 5)) + 1e4
    graph = nearest_euclidean("here", X, k)
    table = np.array([[np.sqrt(((a - b) ** 2).sum()) for a in X] for b in X])
    np.fill_diagonal(table, np.inf)
    expected = np.sort(table, axis=1)[:, :k]
    np.testing.assert_allclose(graph.distances, expected, rtol=0, atol=1e-12)
    np.testing.assert_array_equal(np.take_along_axis(table, graph.neighbours, axis=1), graph.distances)
    assert all(len(set(row)) == k for row in graph.neighbours.tolist())


def test_neighbours_much_nearer_than_the_search_can_tell_are_in_order():
    rng = np.random.default_rng(0)
    # Five clouds of six, 1e-6 wide, at 100 from each other and 1,000 from the origin.
    X = np.repeat(rng.normal(size=(5, 8)) * 100 + 1000, 6, axis=0) + rng.normal(size=(30, 8)) * 1e-6
    table = np.array([[np.sqrt(((a - b) ** 2).sum()) for a in X] for b in X])
    np.fill_diagonal(table, np.inf)
    np.testing.assert_array_equal(
        nearest_euclidean("here", X, 3).neighbours, np.argsort(table, axis=1)[:, :3]
    )


def test_blocks_change_nothing(monkeypatch):
    X, batches, _ = planted(3)
    scores = [metric(X, batches, FREE) for metric in (ilisi, kbet)]
    monkeypatch.setattr(neighbour_graph, "BLOCK", 1000)
    for metric, score in zip((ilisi, kbet), scores, strict=True):
        assert metric(X, batches, FREE).per_group.equals(score.per_group)


@pytest.mark.parametrize("strong", [False, True])
@pytest.mark.parametrize("seed", [0, 1])
def test_graph_connectivity_is_that_of_a_walk(seed, strong):
    X, batches, codes = planted(seed, 0.5)
    score = graph_connectivity(X, batches, FREE, connection="strong" if strong else "weak")
    assert score.per_group.filter(pl.col("baseline").is_null())["k"].to_list() == [1, 2, 3, 5, 10, 15]
    distance = 1 - normalize(X) @ normalize(X).T
    np.fill_diagonal(distance, np.inf)

    def reached(start, edges):
        found, open_ = {start}, [start]
        while open_:
            new = [row for row in edges[open_.pop()] if row not in found]
            found.update(new)
            open_ += new
        return found

    for k in (1, 2, 3, 5, 10, 15):
        to = [
            {int(other) for other in np.argsort(distance[row])[:k] if codes[other] == codes[row]}
            for row in range(N)
        ]
        back = [{other for other in range(N) if row in to[other]} for row in range(N)]
        shares = []
        for code in range(4):
            rows = np.flatnonzero(codes == code)
            if strong:
                sizes = [len(reached(row, to) & reached(row, back)) for row in rows]
            else:
                both = [a | b for a, b in zip(to, back, strict=True)]
                sizes = [len(reached(row, both)) for row in rows]
            shares.append(max(sizes) / len(rows))
        assert own(score, k=k) == pytest.approx(np.mean(shares), abs=1e-12)
    assert score.value == own(score, k=15)


def test_graph_connectivity_is_the_hand_worked_one():
    # Nearest by angle: 0↔1, 2→1, 3↔4, 5→4; batch a has 0, 1, 2, 3 and so the parts {0, 1, 2} and {3}.
    angle = np.deg2rad([0, 1, 3, 40, 41, 43])
    X = np.stack([np.cos(angle), np.sin(angle)], axis=1)
    batches = [{name} for name in "aaaabb"]
    score = graph_connectivity(X, batches, [False] * 6, k=1)
    assert score.value == pytest.approx((3 / 4 + 2 / 2) / 2)
    # 2 has no way back from 1.
    strong = graph_connectivity(X, batches, [False] * 6, k=1, connection="strong")
    assert strong.value == pytest.approx((2 / 4 + 1 / 2) / 2)


@pytest.mark.parametrize("scale", [1e-3, 1, 300])
def test_lisi_is_that_of_harmonypy(scale):
    X, batches, codes = planted(5)
    X = X * scale + 1
    frame = {"batch": codes.astype(str)}
    score = ilisi(X, batches, FREE)
    for k in (15, 30, 60, 90):
        expected = compute_lisi(X, frame, ["batch"], k // 3)[:, 0]
        found = ilisi(X, batches, FREE, k=k)
        np.testing.assert_allclose(found.per_query["value"], expected, rtol=0, atol=1e-9)
        assert found.value == pytest.approx((np.median(expected) - 1) / 3, abs=1e-9)
        assert found.value == own(score, k=k)
    medians = score.per_group.filter(pl.col("baseline").is_null())["median"]
    assert medians[-1] == pytest.approx(np.median(expected), abs=1e-9)
    unit = normalize(X)
    expected = np.median(compute_lisi(unit, frame, ["batch"], 30)[:, 0])
    assert clisi(X, batches, distance="cosine").value == pytest.approx((4 - expected) / 3, abs=1e-9)


def test_lisi_counts_batches_of_equal_weight():
    # All others at one distance: the inverse Simpson index of their batches, 4, 5 and 5 of 14 for a row of the first.
    X = np.eye(15)
    score = ilisi(X, [{f"b{row % 3}"} for row in range(15)], [False] * 15, k=14, perplexity=5)
    shares = np.array([4, 5, 5]) / 14
    np.testing.assert_allclose(score.per_query["value"], 1 / (shares**2).sum(), rtol=0, atol=1e-12)
    assert own(score, "separated", k=14) < score.value


@pytest.mark.parametrize("k", [0, 7])
def test_kbet_is_that_of_chi_square_row_by_row(k):
    X, batches, codes = planted(6, 0.6)
    score = kbet(X, batches, FREE, k=k)
    near = k or 10
    assert score.per_group["k"].to_list() == [near] * 3
    expected = np.bincount(codes) / N * near
    p = []
    for row in range(N):
        order = np.argsort(((X - X[row]) ** 2).sum(axis=1))
        seen = np.bincount(codes[[other for other in order if other != row][:near]], minlength=4)
        p.append(chisquare(seen, expected).pvalue)
    np.testing.assert_allclose(score.per_query["p"], p, rtol=1e-9, atol=1e-12)
    assert score.value == np.mean(np.array(p) < 0.05) == score.correct / N
    assert 0.1 < score.value < 0.9


def test_kbet_takes_a_quarter_of_the_mean_batch():
    X, _, _ = planted(7)
    batches = [{f"b{row % 2}"} for row in range(N)]
    assert kbet(X, batches, FREE).per_group["k"][0] == N // 2 // 4
    assert kbet(X[:8], batches[:8], [False] * 8).per_group["k"][0] == 7


def test_fewer_rows_than_neighbours_are_explained():
    X, batches, _ = planted(8)
    few, of, free = X[:40], batches[:40], FREE[:40]
    with pytest.raises(
        EvaluationError, match=r"ilisi: k=90 neighbours of each of 40 rows: ask for ilisi\(k=30\)"
    ):
        ilisi(few, of, free)
    assert ilisi(few, of, free, k=30).per_group["k"].unique(maintain_order=True).to_list() == [15, 30]
    with pytest.raises(
        EvaluationError, match=r"clisi: k=90 neighbours of each of 12 rows: there are too few for"
    ):
        clisi(X[:12], batches[:12])
    with pytest.raises(EvaluationError, match=r"ilisi: perplexity 1 with k=5: give one from 2 to k"):
        ilisi(few, of, free, k=5)
    with pytest.raises(
        EvaluationError, match=r"kbet: 40 neighbours of each of 40 rows: ask for .* at most 39"
    ):
        kbet(few, of, free, k=40)
    with pytest.raises(
        EvaluationError, match=r"graph_connectivity: 15 neighbours of each of 15 rows: .* at most 14"
    ):
        graph_connectivity(X[:15], batches[:15], FREE[:15])
    with pytest.raises(UnknownNameError, match=r"unknown connection 'week'. Did you mean 'weak'"):
        graph_connectivity(few, of, free, connection="week")
    with pytest.raises(UnknownNameError, match=r"unknown distance 'l1'"):
        kbet(few, of, free, distance="l1")


@pytest.mark.parametrize("k", [0, -1, N, 10**30])
def test_neighbours_that_cannot_be_are_refused(k):
    X, batches, _ = planted(8)
    message = rf"{k} neighbours of each of 150 rows: ask for at least 1 and at most 149"
    with pytest.raises(EvaluationError, match=f"graph_connectivity: {message}"):
        graph_connectivity(X, batches, FREE, k=k)
    if k:
        with pytest.raises(EvaluationError, match=f"kbet: {message}"):
            kbet(X, batches, FREE, k=k)
    with pytest.raises(EvaluationError, match=rf"ilisi: (k=)?{k} neighbours of each of 150 rows: ask for"):
        ilisi(X, batches, FREE, k=k)
    for perplexity in (-1, 1, 10**30):
        with pytest.raises(
            EvaluationError, match=rf"perplexity {perplexity} with k=90: give one from 2 to k"
        ):
            ilisi(X, batches, FREE, perplexity=perplexity)


@every
def test_elements_whose_squares_overflow_are_refused_or_scaled(metric):
    X, given = needs(metric, seed=3)
    if "distance" in metric.parameters:
        expected = metric.function(X, **given, distance="cosine").value
        assert metric.function(X * 2.0**660, **given, distance="cosine").value == expected
        given = given | {"distance": "euclidean"}
    for large, shown in ((1e200, r"1e\+200"), (1e31, r"1e\+31")):
        wide = X.copy()
        wide[4, 2] = -large
        with pytest.raises(
            EvaluationError, match=rf"'w4' has -{shown} in feature 3 \(1 such profiles\), beyond 1e"
        ):
            metric.function(wide, **given, ids=[f"w{row}" for row in range(N)])
    with pytest.raises(
        EvaluationError, match=r"no element of 150 profiles is larger than .*e-200: below 1e-100"
    ):
        metric.function(X * 1e-200, **given)
    expected = metric.function(X, **given).value
    assert metric.function(X * 2.0**80, **given).value == pytest.approx(expected, abs=1e-3)


# --- silhouettes


@pytest.mark.parametrize("distance", ["cosine", "euclidean"])
@pytest.mark.parametrize(
    ("metric", "within"),
    [(batch_silhouette, batch_silhouette_scib), (source_silhouette, source_silhouette_scib)],
)
def test_batch_silhouettes_are_those_of_scikit_learn(metric, within, distance):
    X, batches, codes = planted(9)
    treatments = [f"t{row % 7}" for row in range(N)]
    treatments[5], treatments[6] = None, "alone"
    score = metric(X, batches, FREE, distance=distance)
    assert score.value == pytest.approx(silhouette_score(X, codes, metric=distance), abs=1e-8)
    np.testing.assert_allclose(
        score.per_query["value"], silhouette_samples(X, codes, metric=distance), rtol=0, atol=1e-8
    )
    scib = within(X, batches, treatments, FREE, distance=distance)
    means = []
    for name in sorted(set(treatments) - {None, "alone"}):
        rows = [row for row in range(N) if treatments[row] == name]
        means.append((1 - np.abs(silhouette_samples(X[rows], codes[rows], metric=distance))).mean())
    assert scib.value == pytest.approx(np.mean(means), abs=1e-8)
    what = "batches" if metric is batch_silhouette else "sources"
    assert scib.left_out == {"no treatment": 1, f"treatment not in two {what} with two rows in one": 1}
    assert (scib.n, scib.unit, score.unit) == (N - 2, None, "query")
    by_treatment = scib.per_query.group_by("treatment").agg(pl.col("value").mean())
    assert by_treatment["value"].mean() == pytest.approx(scib.value, abs=1e-12)


def test_bad_silhouettes_are_explained():
    X, batches, _ = planted(10)
    alone = [{f"b{row}"} for row in range(N)]
    with pytest.raises(
        EvaluationError, match=r"each of 150 rows has a batch of its own: a silhouette needs two"
    ):
        batch_silhouette(X, alone, FREE)
    with pytest.raises(
        EvaluationError, match=r"source_silhouette_scib: each of 150 rows has a source of its"
    ):
        source_silhouette_scib(X, alone, ["t"] * N, FREE)
    with pytest.raises(
        EvaluationError,
        match=r"no treatment has rows in two batches and two rows in one: take batch_silhouette, which",
    ):
        batch_silhouette_scib(X, batches, [f"t{row}" for row in range(N)], FREE)


@pytest.mark.parametrize("name", ["batch_silhouette", "source_silhouette"])
def test_each_silhouette_has_its_own_better_end(name):
    known = {metric.name: metric for metric in METRICS}
    plain, within = known[name], known[f"{name}_scib"]
    assert (plain.higher_is_better, within.higher_is_better) == (False, True)
    assert (plain.range, within.range) == ((-1.0, 1.0), (0.0, 1.0))
    # A stronger batch effect: one goes up, the other down.
    weak, strong = (
        {
            metric.name: metric.function(
                *needs(metric, 2, strength)[:1], **needs(metric, 2, strength)[1]
            ).value
            for metric in (plain, within)
        }
        for strength in (0.3, 4.0)
    )
    assert strong[plain.name] > weak[plain.name]
    assert strong[within.name] < weak[within.name]


# --- the classifier


@pytest.mark.parametrize("classifier", ["lda", "logistic", "knn"])
def test_the_classifier_learns_batches_and_not_treatments(classifier):
    rng = np.random.default_rng(11)
    # Ten treatments a batch, all different, each with ten replicates near it; no batch effect.
    treatment = np.repeat(np.arange(30), 10)
    batch = treatment % 3
    X = 5 * rng.normal(size=(30, 20))[treatment] + 0.1 * rng.normal(size=(300, 20))
    batches, treatments = [{f"b{one}"} for one in batch], [f"t{one}" for one in treatment]
    plates = [f"p{one}" for one in batch * 4 + rng.integers(4, size=300)]
    given = (batches, treatments, plates, [False] * 300)
    assert batch_classifier(X, *given, classifier=classifier).value < 0.35
    # Held out by plate, replicates of every treatment are seen, and give the batch away.
    leaked = batch_classifier(X, *given, classifier=classifier, across="plates", folds=4).value
    assert leaked > 0.6
    shift = X + 20 * rng.normal(size=(3, 20))[batch]
    score = batch_classifier(shift, *given, classifier=classifier)
    assert score.value > 0.95
    frame = score.per_query
    assert score.value == pytest.approx(matthews_corrcoef(frame["batch"], frame["predicted"]), abs=1e-12)
    assert score.correct == (frame["batch"] == frame["predicted"]).sum() == frame["value"].sum()
    assert frame["batch"].to_list() == [f"b{one}" for one in batch]


def test_controls_are_held_out_one_by_one():
    X, batches, _ = planted(12, 4)
    given = (batches, ["DMSO"] * 75 + [None] * 75, ["p"] * N, [True] * 75 + [False] * 75)
    # A single treatment would leave one fold with all rows.
    assert batch_classifier(X, *given, keep_controls=True).value > 0.8


def test_bad_classifiers_are_explained():
    X, batches, _ = planted(13)
    given = (batches, ["t", "u"] * 75, ["p"] * N, FREE)
    with pytest.raises(
        EvaluationError, match=r"5 folds of 150 rows in 2 treatments and 4 batches of \d+ to \d+ rows"
    ):
        batch_classifier(X, *given)
    with pytest.raises(EvaluationError, match=r"1 folds of 150 rows in 2 treatments"):
        batch_classifier(X, *given, folds=1)
    with pytest.raises(EvaluationError, match=r"2 folds of 150 rows in 1 plates"):
        batch_classifier(X, *given, folds=2, across="plates")
    with pytest.raises(UnknownNameError, match=r"unknown classifier 'svm'"):
        batch_classifier(X, *given, classifier="svm")
    with pytest.raises(UnknownNameError, match=r"unknown grouping 'plate'. Did you mean 'plates'"):
        batch_classifier(X, *given, across="plate")


@pytest.mark.parametrize(("classifier", "least"), [("knn", 5), ("lda", 3)])
def test_fewer_training_rows_than_a_classifier_needs_are_explained(classifier, least):
    rng = np.random.default_rng(0)
    batches, treatments = [{name} for name in "ababa"], list("ttuuu")
    given = (batches, treatments, ["p"] * 5, [False] * 5)
    with pytest.raises(
        EvaluationError,
        match=rf"\d training rows in a fold of 2, where classifier={classifier} needs {least}: ask for more",
    ):
        batch_classifier(rng.normal(size=(5, 3)), *given, classifier=classifier, folds=2)
    with pytest.raises(EvaluationError, match=r"-1 folds of 5 rows in 2 treatments .* ask for 2 to 2 folds"):
        batch_classifier(rng.normal(size=(5, 3)), *given, folds=-1)


# --- principal components


@pytest.mark.parametrize(("n", "d"), [(150, 6), (150, 60), (40, 60)])
@pytest.mark.parametrize("components", [0, 3])
def test_pc_regression_is_that_of_scikit_learn(n, d, components):
    X, batches, codes = planted(14, n=n, d=d)
    X *= np.linspace(0.2, 3, d)
    pca = PCA(components or None, svd_solver="full").fit(X)
    scores, which = pca.transform(X), np.eye(4)[codes]
    r2 = [LinearRegression().fit(which, one).score(which, one) for one in scores.T]
    variance = pca.explained_variance_
    # A last component of no variance has no R².
    known = variance > 1e-20
    expected = (np.array(r2)[known] * variance[known]).sum() / variance.sum()
    score = pc_regression(X, batches, [False] * n, components=components)
    assert score.value == pytest.approx(expected, abs=1e-10)
    assert 0.01 < score.value < 0.99


def test_bad_components_are_explained():
    X, batches, _ = planted(15)
    with pytest.raises(EvaluationError, match=r"components=-1: give 0 for all, or how many"):
        pc_regression(X, batches, FREE, components=-1)
    with pytest.raises(
        EvaluationError, match=r"all 150 profiles are the same: they have no variance to explain"
    ):
        pc_regression(np.ones_like(X), batches, FREE)


# --- baselines


@pytest.mark.parametrize("d", [1, 2, 5, 300])
@pytest.mark.parametrize("distance", ["cosine", "euclidean"])
def test_separated_clouds_do_not_touch(d, distance):
    codes = np.repeat(np.arange(6), 20)
    X = separated(codes, d, distance, 0)
    assert X.shape == (120, max(d, 2))
    table = np.linalg.norm(X[:, None] - X, axis=2)
    same = codes[:, None] == codes
    assert table[same].max() < table[~same].min()


# --- a real screen


def test_plates_of_a_real_screen(data_dir):
    wells = pl.read_csv(
        data_dir / "moa_screen" / "Batch1_normalized_feature_select_negcon_batch.csv.gz",
        infer_schema_length=None,
    )
    features = [name for name in wells.columns if not name.startswith("Metadata_")]
    wells = wells.filter(pl.all_horizontal(pl.col(features).is_not_null()))
    X = wells.select(features).to_numpy()
    controls = (wells["Metadata_control_type"] == "negcon").fill_null(False).to_list()
    plates = [{plate} for plate in wells["Metadata_Plate"]]
    kept = ~np.array(controls)
    codes = wells["Metadata_Plate"].cast(pl.Categorical).to_physical().to_numpy()[kept]
    score = ilisi(X, plates, controls)
    expected = compute_lisi(X[kept], {"plate": codes.astype(str)}, ["plate"], 30)[:, 0]
    np.testing.assert_allclose(score.per_query["value"], expected, rtol=0, atol=1e-9)
    assert score.left_out == {"negative control": sum(controls)}
    assert own(score, "separated", k=90) < score.value < own(score, "shuffled", k=90)
    treatments = wells["Metadata_broad_sample"].to_list()
    score = batch_silhouette(X, plates, controls)
    assert score.value == pytest.approx(silhouette_score(X[kept], codes, metric="cosine"), abs=1e-8)
    assert own(score, "shuffled") < score.value < own(score, "separated")
    labelled = [
        {name} if name and not control else set() for name, control in zip(treatments, controls, strict=True)
    ]
    score = clisi(X, labelled, k=30)
    assert own(score, "shuffled", k=30) < score.value < own(score, "separated", k=30)


# --- scib-metrics, which takes 14 s to import

long = pytest.mark.skipif(
    not os.environ.get("WELLHOUSE_LONG"),
    reason="scib-metrics is slow to import: set WELLHOUSE_LONG=1 (make proofs)",
)


@pytest.mark.slow
@long
def test_all_agree_with_scib_metrics():
    import scib_metrics
    from scib_metrics.nearest_neighbors import NeighborsResults
    from scib_metrics.utils import principal_component_regression

    n = 400
    X, batches, codes = planted(16, 0.7, n=n, d=12)
    X = X.astype(np.float32).astype(np.float64)
    free = [False] * n
    rng = np.random.default_rng(0)
    labels = rng.integers(5, size=n)
    names = [{f"l{one}"} for one in labels]

    def neighbours(k, with_self=True):
        graph = nearest_euclidean("here", X, k)
        if not with_self:
            return NeighborsResults(indices=graph.neighbours, distances=graph.distances)
        return NeighborsResults(
            indices=np.column_stack([np.arange(n), graph.neighbours]),
            distances=np.column_stack([np.zeros(n), graph.distances]),
        )

    found = {
        "ilisi": (
            ilisi(X, batches, free, k=89, perplexity=30).value,
            scib_metrics.ilisi_knn(neighbours(89), codes, perplexity=30),
        ),
        "clisi": (
            clisi(X, names, k=89, perplexity=30).value,
            scib_metrics.clisi_knn(neighbours(89), labels, perplexity=30),
        ),
        "graph_connectivity": (
            graph_connectivity(X, batches, free, connection="strong", distance="euclidean").value,
            scib_metrics.graph_connectivity(neighbours(15), codes),
        ),
        "kbet": (
            1 - kbet(X, batches, free, k=25).value,
            scib_metrics.kbet(neighbours(25, with_self=False), codes)[0],
        ),
        "pc_regression": (
            pc_regression(X, batches, free, components=8).value,
            principal_component_regression(X, codes, categorical=True, n_components=8),
        ),
    }
    for distance in ("cosine", "euclidean"):
        found[f"batch_silhouette_scib, {distance}"] = (
            batch_silhouette_scib(X, batches, [f"t{one}" for one in labels], free, distance=distance).value,
            scib_metrics.silhouette_batch(X, labels, codes, metric=distance),
        )
    for name, (ours, theirs) in found.items():
        print(name, ours, float(theirs), abs(ours - float(theirs)))
        # They compute in single precision.
        assert ours == pytest.approx(float(theirs), abs=1e-5), name
