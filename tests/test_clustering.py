"""Clusters against labels, beside scikit-learn, naive loops and hand-worked values."""

from itertools import combinations, permutations

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from real_profiles import bbbc021
from sklearn.cluster import AgglomerativeClustering, KMeans
from sklearn.metrics import (
    adjusted_mutual_info_score,
    adjusted_rand_score,
    mutual_info_score,
    silhouette_samples,
    silhouette_score,
)
from sklearn.preprocessing import normalize

from warehouse.errors import EvaluationError, UnknownNameError
from warehouse.metrics import clustering
from warehouse.metrics.clustering import (
    METHODS,
    ami,
    ari,
    silhouette_clusters,
    silhouette_labels,
    silhouettes,
)
from warehouse.metrics.gene_families import AVERAGES, gene_family_clusters


def planted(seed, n=90, groups=4, d=8, noise=1.0):
    """Profiles about one centre a label: X, labels."""
    rng = np.random.default_rng(seed)
    codes = np.concatenate([np.arange(groups), rng.integers(groups, size=n - groups)])
    centres = rng.normal(size=(groups, d)) * 3
    return centres[codes] + rng.normal(size=(n, d)) * noise, [f"l{code}" for code in codes]


# --- ARI and AMI


def test_ari_is_the_hand_worked_one():
    # Pairs together in both 1, in labels 2, in clusters 1, of 6: (1 - 2/6) / (3/2 - 2/6).
    score = ari(np.eye(4), list("aabb"), ["x", "x", "y", "z"])
    assert score.value == pytest.approx(4 / 7, abs=1e-12)
    assert (score.n, score.correct, score.unit, score.left_out) == (4, None, None, {})
    assert score.per_query.schema == {"row": pl.Int64, "value": pl.Float64}
    assert score.per_query.is_empty()


@pytest.mark.parametrize("average", AVERAGES)
def test_ami_is_the_mean_over_all_permutations_written_out(average):
    labels, clusters = list("aabbc"), list("xyyzz")
    by_chance = np.mean([mutual_info_score(list(order), clusters) for order in permutations(labels)])
    own = mutual_info_score(labels, clusters)
    entropies = mutual_info_score(labels, labels), mutual_info_score(clusters, clusters)
    bound = {"max": max, "min": min, "arithmetic": np.mean, "geometric": lambda h: np.sqrt(h[0] * h[1])}[
        average
    ](entropies)
    score = ami(np.eye(5), labels, clusters, average=average)
    assert score.value == pytest.approx((own - by_chance) / (bound - by_chance), abs=1e-12)


@pytest.mark.parametrize("distance", ["cosine", "euclidean"])
def test_kmeans_is_that_of_scikit_learn(distance):
    X, labels = planted(0, n=150, noise=3.5)
    own = normalize(X) if distance == "cosine" else X
    order = sorted(range(150), key=lambda row: own[row].tolist())
    found = np.empty(150, int)
    found[order] = KMeans(4, n_init=10, random_state=0).fit_predict(own[order])
    value = ari(X, labels, distance=distance).value
    assert 0.1 < value < 0.99
    assert value == pytest.approx(adjusted_rand_score(labels, found), abs=1e-12)
    for average in ("max", "arithmetic"):
        expected = adjusted_mutual_info_score(labels, found, average_method=average)
        assert ami(X, labels, distance=distance, average=average).value == pytest.approx(expected, abs=1e-12)
    # The silhouette takes the same distance; scikit-learn's cosine is of the profiles as they are.
    expected = silhouette_score(X, found, metric=distance)
    assert silhouette_clusters(X, labels, distance=distance).value == pytest.approx(expected, abs=1e-10)


@pytest.mark.parametrize("distance", ["cosine", "euclidean"])
@pytest.mark.parametrize("method", METHODS)
def test_every_method_finds_clusters_that_are_there(method, distance):
    X, labels = planted(1, noise=0.2)
    assert ari(X, labels, method=method, distance=distance).value == 1
    fewer = ari(X, labels, method=method, distance=distance, n_clusters=3).value
    assert 0.3 < fewer < 1


@pytest.mark.parametrize("method", METHODS)
def test_clusters_do_not_depend_on_the_order_of_rows(method):
    X, labels = planted(2, noise=3)
    value = ami(X, labels, method=method).value
    assert 0.02 < value < 0.95
    for seed in range(3):
        order = np.random.default_rng(seed).permutation(len(X))
        again = ami(X[order], [labels[row] for row in order], method=method)
        assert again.value == pytest.approx(value, abs=1e-12)
    # Another name for a label, and another length for a profile, change nothing.
    factors = 2.0 ** np.random.default_rng(3).integers(-9, 9, len(X))
    renamed = [{"l0": "z", "l1": "y"}.get(label, label) for label in labels]
    assert ami(X * factors[:, None], renamed, method=method).value == pytest.approx(value, abs=1e-12)


def test_a_seed_is_the_only_chance():
    X, labels = planted(4, n=200, groups=20, noise=4)
    values = [ari(X, labels, seed=seed).value for seed in (0, 0, 1, 2, 3)]
    assert values[0] == values[1]
    assert len(set(values)) > 2


def test_labels_that_a_method_brings_take_the_place_of_a_clustering():
    X, labels = planted(5, n=60)
    brought = [f"c{row % 7}" for row in range(60)]
    sets = [{label} for label in labels]
    sets[3], sets[4], sets[5] = set(), {"l0", "l1"}, set()
    brought[5], brought[6] = None, None
    kept = [row for row in range(60) if row not in (3, 4, 5, 6)]
    score = ari(X, sets, brought, method="spectral", n_clusters=5)
    expected = adjusted_rand_score([labels[row] for row in kept], [brought[row] for row in kept])
    assert score.value == pytest.approx(expected, abs=1e-12)
    assert score.left_out == {"no cluster": 1, "no label": 2, "several labels": 1}
    assert score.n == 56
    score = silhouette_clusters(X, sets, brought)
    assert score.per_query["row"].to_list() == kept
    expected = silhouette_samples(X[kept], [brought[row] for row in kept], metric="cosine")
    np.testing.assert_allclose(score.per_query["value"], expected, rtol=0, atol=1e-10)


def test_profiles_that_are_alike_make_fewer_clusters_than_asked():
    X = np.repeat(np.eye(2), 5, axis=0)
    for method in METHODS:
        assert np.isfinite(ari(X, list("aaabb") + list("ccbbb"), method=method).value)
    assert ari(X, list("aaaaabbbbb")).value == 1
    # A constant feature is no fault.
    assert ari(np.column_stack([X, np.ones(10)]), list("aaaaabbbbb"), distance="euclidean").value == 1


# --- silhouettes


def test_silhouette_is_the_hand_worked_one():
    # At right angles: distance 1 to the other label, 0 and 1 - cos 60° = .5 within.
    X = np.array([[1, 0, 0], [0.5, np.sqrt(0.75), 0], [0, 0, 1], [0, 0, 2]])
    score = silhouette_labels(X, list("aabb"))
    np.testing.assert_allclose(score.per_query["value"], [0.5, 0.5, 1, 1], rtol=0, atol=1e-12)
    assert (score.value, score.n, score.unit) == (pytest.approx(0.75), 4, "query")


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 10**6), distance=st.sampled_from(["cosine", "euclidean"]))
def test_silhouettes_are_those_of_scikit_learn(seed, distance):
    X, labels = planted(seed, n=40, groups=6)
    labels[7] = "alone"
    X[8] = X[9]
    score = silhouette_labels(X, labels, distance=distance)
    expected = silhouette_samples(X, labels, metric=distance)
    # Euclidean distances of scikit-learn are good to 1e-8 between equal profiles.
    np.testing.assert_allclose(score.per_query["value"], expected, rtol=0, atol=1e-8)
    assert score.value == pytest.approx(silhouette_score(X, labels, metric=distance), abs=1e-8)
    order = np.random.default_rng(seed).permutation(40)
    again = silhouette_labels(X[order] * 5, [labels[row] + "'" for row in order], distance=distance)
    assert again.value == pytest.approx(score.value, abs=1e-8)
    np.testing.assert_allclose(
        again.per_query["value"], score.per_query["value"].to_numpy()[order], rtol=0, atol=1e-8
    )


def test_silhouettes_of_equal_profiles_are_zero_and_blocks_change_nothing(monkeypatch):
    flat = np.ones((4, 3)) * [[1], [2], [3], [7]]
    assert silhouette_labels(flat, list("aabb")).per_query["value"].to_list() == [0, 0, 0, 0]
    X, labels = planted(6)
    unit, codes = normalize(X), np.array([int(label[1:]) for label in labels])
    whole = silhouettes(unit, codes, "cosine")
    monkeypatch.setattr(clustering, "BLOCK", 28)
    np.testing.assert_allclose(silhouettes(unit, codes, "cosine"), whole, rtol=0, atol=1e-12)


def test_bbbc021_lies_among_the_published_figures(data_dir):
    # Bray et al. 2022, Table 1, seven methods: ARI .39 to .81, AMI .52 to .84, silhouette of labels .10 to .42.
    X, treatments, _ = bbbc021(data_dir)
    labels = treatments["moa"].to_list()
    for method, maker in {
        "ward": AgglomerativeClustering(12),
        "agglomerative": AgglomerativeClustering(12, metric="cosine", linkage="average"),
        "complete": AgglomerativeClustering(12, metric="cosine", linkage="complete"),
    }.items():
        found = maker.fit_predict(normalize(X))
        assert ari(X, labels, method=method).value == pytest.approx(
            adjusted_rand_score(labels, found), abs=1e-12
        )
        expected = silhouette_score(X, found, metric="cosine")
        assert silhouette_clusters(X, labels, method=method).value == pytest.approx(expected, abs=1e-10)
    assert 0.39 < ari(X, labels).value < 0.81
    assert 0.52 < ami(X, labels).value < 0.84
    score = silhouette_labels(X, labels)
    assert score.value == pytest.approx(silhouette_score(X, labels, metric="cosine"), abs=1e-10)
    assert 0.10 < score.value < 0.42
    # Labels dealt at random fall to nothing; another order of rows changes nothing.
    dealt = np.random.default_rng(0).permutation(labels).tolist()
    assert abs(ari(X, dealt).value) < 0.1
    assert ari(X[::-1], labels[::-1]).value == pytest.approx(ari(X, labels).value, abs=1e-12)


# --- gene families


def families(seed, sizes, noise, d=40):
    rng = np.random.default_rng(seed)
    names = [f"f{i:02d}" for i, size in enumerate(sizes) for _ in range(size)]
    centres = rng.normal(size=(len(sizes), d))
    own = np.repeat(np.arange(len(sizes)), sizes)
    return centres[own] + rng.normal(size=(len(own), d)) * np.asarray(noise)[own, None], names


def test_gene_families_are_chosen_and_clustered_as_written_out():
    sizes = [4, 10, 5, 6, 3, 11, 4, 8]
    X, names = families(0, sizes, np.linspace(2.0, 3.0, 8))
    score = gene_family_clusters(X, names, families=4)
    assert score.left_out == {
        "family beyond the first 4": score.left_out["family beyond the first 4"],
        "family of fewer than 4": 3,
        "family of more than 10": 11,
    }
    correlation = np.corrcoef(X)
    members = {name: [row for row, own in enumerate(names) if own == name] for name in names}
    members = {name: rows for name, rows in members.items() if 4 <= len(rows) <= 10}
    within = {
        name: np.mean([correlation[i, j] for i, j in combinations(rows, 2)]) for name, rows in members.items()
    }
    best = sorted(within, key=within.get, reverse=True)[:4]
    kept = [row for row, own in enumerate(names) if own in best]
    assert score.n == len(kept)
    assert score.left_out["family beyond the first 4"] == sum(map(len, members.values())) - len(kept)
    # Complete linkage by hand: join the two clusters whose farthest members are nearest.
    C = correlation[np.ix_(kept, kept)]
    gaps = np.array([[np.sqrt(((a - b) ** 2).sum()) for a in C] for b in C])
    clusters = [[row] for row in range(len(kept))]
    truth = [names[row] for row in kept]
    curve = {}
    while len(clusters) > 1:
        found = np.empty(len(kept), int)
        for number, rows in enumerate(clusters):
            found[rows] = number
        curve[len(clusters)] = adjusted_mutual_info_score(truth, found)
        pairs = combinations(range(len(clusters)), 2)
        a, b = min(pairs, key=lambda pair: gaps[np.ix_(clusters[pair[0]], clusters[pair[1]])].max())
        clusters[a] += clusters.pop(b)
    assert score.per_group["n_clusters"].to_list() == list(range(2, len(kept)))
    expected = [curve[count] for count in score.per_group["n_clusters"]]
    np.testing.assert_allclose(score.per_group["value"], expected, rtol=0, atol=1e-10)
    assert score.value == pytest.approx(curve[4], abs=1e-10)
    assert 0.1 < score.value < 1
    # Neither order, nor a profile's own mean and scale, nor names change it.
    order = np.random.default_rng(1).permutation(len(X))
    length = 10.0 ** np.linspace(-200, 200, len(X))[:, None]
    again = gene_family_clusters((X[order] * 4 + 8) * length, ["g" + names[row] for row in order], families=4)
    assert again.value == pytest.approx(score.value, abs=1e-10)


def test_a_large_family_is_not_taken_for_a_tight_one():
    # Correlations of .9, about .55 among four and about .5 among ten: the mean is over pairs of two different genes.
    X, names = families(4, [5, 4, 10], np.sqrt([1 / 0.9 - 1, 1 / 0.55 - 1, 1 / 0.5 - 1]), d=2000)
    assert gene_family_clusters(X, names, families=2).n == 9


def test_gene_families_that_are_tight_are_found_and_random_ones_are_not():
    X, names = families(2, [5] * 25, np.full(25, 0.1))
    score = gene_family_clusters(X, names)
    assert (score.value, score.n) == (1, 100)
    names = np.random.default_rng(0).permutation(names).tolist()
    assert abs(gene_family_clusters(X, names).value) < 0.35
    # Genes of several families, or none, do not count, nor do they make a family.
    sets = [{name} for name in names]
    sets[0], sets[1] = {"f00", "f01"}, set()
    assert (
        gene_family_clusters(X, sets, least=2).left_out.items()
        >= {"no label": 1, "several labels": 1}.items()
    )


# --- bad input


def test_bad_input_is_explained():
    X, labels = planted(7, n=12)
    one = ["a"] * 12
    for metric in (ari, ami, silhouette_labels, silhouette_clusters):
        with pytest.raises(
            EvaluationError, match=r"all 12 rows are of one label, 'a': give rows of at least two"
        ):
            metric(X, one)
        with pytest.raises(EvaluationError, match=r"no query is left \(12 with no label\)"):
            metric(X, [None] * 12)
        with pytest.raises(EvaluationError, match=r"11 labels for 12 profiles"):
            metric(X, labels[1:])
        with pytest.raises(UnknownNameError, match=r"unknown distance 'cosin'. Did you mean 'cosine'"):
            metric(X, labels, distance="cosin")
        for bad, message in [(0, "'w2' is all zeros"), (np.nan, "'w2' has nan in feature 1")]:
            broken = X.copy()
            broken[2] = bad
            with pytest.raises(EvaluationError, match=message):
                metric(broken, labels, ids=[f"w{row}" for row in range(12)])
    broken = X.copy()
    broken[2] = np.inf
    with pytest.raises(EvaluationError, match=r"in row 2 has inf in feature 1"):
        ari(broken, labels, distance="euclidean")
    broken[2] = 0
    assert ari(broken, labels, distance="euclidean").n == 12
    for count in (1, 13):
        with pytest.raises(
            EvaluationError,
            match=rf"n_clusters={count} of 12 rows with method=kmeans: ask for at least 2 and at most 12",
        ):
            ari(X, labels, n_clusters=count)
    with pytest.raises(EvaluationError, match=r"n_clusters=12 of 12 rows with method=spectral: .* most 11"):
        ari(X, labels, method="spectral", n_clusters=12)
    assert ari(X, labels, method="spectral", n_clusters=11).n == 12
    with pytest.raises(
        EvaluationError, match=r"in row 0 has .*e\+\d+ in feature \d \(12 such profiles\), beyond 1e"
    ):
        ari(np.abs(X) * 1e200 + 1e40, labels, distance="euclidean")
    assert ari(X * 1e200, labels).value == ari(X, labels).value
    with pytest.raises(UnknownNameError, match=r"unknown method of clustering 'leiden'"):
        ari(X, labels, method="leiden")
    with pytest.raises(UnknownNameError, match=r"unknown average of entropies 'mean'"):
        ami(X, labels, average="mean")
    with pytest.raises(EvaluationError, match=r"3 clusters for 12 profiles"):
        ari(X, labels, ["x", "y", "z"])
    with pytest.raises(
        EvaluationError, match=r"12 rows in 12 labels: a silhouette needs at least two labels, and two"
    ):
        silhouette_labels(X, list("abcdefghijkl"))
    with pytest.raises(EvaluationError, match=r"12 rows in 1 cluster: a silhouette needs"):
        silhouette_clusters(X, labels, ["x"] * 12)


def test_pairs_of_too_many_rows_are_refused(monkeypatch):
    X, labels = planted(8, n=12)
    monkeypatch.setattr(clustering, "MOST_PAIRED", 11)
    for method in clustering.PAIRED:
        with pytest.raises(
            EvaluationError, match=rf"method={method} holds .* too many of 12 rows \(at most 11\)"
        ):
            ari(X, labels, method=method)
    assert ari(X, labels, method="kmeans").n == 12


def test_bad_gene_families_are_explained():
    X, names = families(3, [4, 4, 4], [0.1] * 3)
    with pytest.raises(EvaluationError, match=r"no query is left \(12 with family of fewer than 5\)"):
        gene_family_clusters(X, names, least=5)
    with pytest.raises(EvaluationError, match=r"all 4 rows are of one label, 'f00'"):
        gene_family_clusters(X, names[:4] + ["f01"] * 3 + ["f02"] * 3 + [None] * 2)
    for wrong in ({"families": 1}, {"least": 1}, {"least": 6, "most": 5}):
        with pytest.raises(
            EvaluationError, match=r"least=\d, most=\d+, families=\d+: a family has at least 2 genes"
        ):
            gene_family_clusters(X, names, **wrong)
    X[5] = 3.1
    with pytest.raises(
        EvaluationError, match=r"'g5' has the same value in all 40 features \(1 such profiles\)"
    ):
        gene_family_clusters(X, names, [f"g{row}" for row in range(12)])
