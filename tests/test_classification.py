"""Classification by folds, against scikit-learn and naive loops, and that nothing of a fold leaks into its training."""

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from real_profiles import bbbc021
from sklearn.metrics import f1_score, precision_score, recall_score
from sklearn.neural_network import MLPClassifier
from sklearn.preprocessing import StandardScaler

from warehouse.errors import EvaluationError, UnknownNameError
from warehouse.metrics.classification import knn_classification, mlp_classification
from warehouse.metrics.learning import draw_folds


def screen(seed, n=60, d=4, compounds=20, labels=3):
    """Profiles of compounds that lean towards their label."""
    rng = np.random.default_rng(seed)
    compound = rng.permutation(np.arange(n) % compounds)
    label = (compound % labels).astype(str)
    X = rng.normal(size=(n, d)) + np.eye(labels, d)[compound % labels] * 1.5
    return X, label.tolist(), [f"k{c}" for c in compound]


def naive_knn(X, labels, fold, k, distance):
    """Vote of the k nearest of the other folds, by loops."""
    predicted = []
    for row in range(len(X)):
        training = np.flatnonzero(fold != fold[row])
        mean, sd = X[training].mean(axis=0), X[training].std(axis=0)
        Z = (X - mean) / sd
        if distance == "cosine":
            Z = Z / np.linalg.norm(Z, axis=1, keepdims=True)
        near = training[np.argsort(((Z[training] - Z[row]) ** 2).sum(axis=1))[:k]]
        votes = [labels[other] for other in near]
        predicted.append(max(sorted(set(votes)), key=votes.count))
    return predicted


@pytest.mark.parametrize("k", [1, 11])
@pytest.mark.parametrize("distance", ["euclidean", "cosine"])
def test_knn_equals_a_naive_loop_over_given_folds(k, distance):
    X, labels, compounds = screen(1)
    X *= [1, 10, 100, 0.1]
    folds = np.random.default_rng(2).integers(0, 4, len(X)) * 3
    score = knn_classification(X, labels, compounds, folds, k=k, distance=distance)
    assert score.per_query["predicted"].to_list() == naive_knn(X, labels, folds, k, distance)
    assert score.per_query["row"].to_list() == list(range(60))
    assert score.value == pytest.approx(np.mean(score.per_query["value"].to_numpy()))
    assert (score.n, score.correct, score.left_out) == (60, int(score.per_query["value"].sum()), {})


@pytest.mark.filterwarnings("ignore:Stochastic Optimizer")
def test_mlp_equals_scikit_learn_on_the_training_folds():
    X, labels, compounds = screen(3, n=40)
    # In canonical order already: scikit-learn's draws depend on the order of the rows.
    order = sorted(range(40), key=lambda row: (f"compound {compounds[row]}", labels[row], X[row].tobytes()))
    X, labels, compounds = X[order], [labels[i] for i in order], [compounds[i] for i in order]
    folds = draw_folds("x", compounds, 4, 0)
    score = mlp_classification(X, labels, compounds, folds, hidden="8x5", epochs=30, seed=3)
    for number in range(4):
        test = folds == number
        scaler = StandardScaler().fit(X[~test])
        oracle = MLPClassifier((8, 5), max_iter=30, random_state=3)
        oracle.fit(scaler.transform(X[~test]), np.array(labels)[~test])
        mine = score.per_query.filter(pl.col("fold") == number)["predicted"].to_list()
        assert mine == oracle.predict(scaler.transform(X[test])).tolist()


def test_groups_are_scikit_learns_scores_of_labels_and_the_accuracy_of_folds():
    X, labels, compounds = screen(4)
    score = knn_classification(X, labels, compounds, k=3)
    truth, predicted = score.per_query["label"].to_list(), score.per_query["predicted"].to_list()
    assert truth == labels
    by_label = score.per_group.filter(pl.col("group") == "label")
    for row in by_label.iter_rows(named=True):
        only = {"labels": [row["name"]], "average": "macro"}
        assert row["value"] == pytest.approx(recall_score(truth, predicted, **only))
        assert row["precision"] == pytest.approx(precision_score(truth, predicted, **only))
        assert row["f1"] == pytest.approx(f1_score(truth, predicted, **only))
        assert row["n"] == truth.count(row["name"])
    by_fold = score.per_group.filter(pl.col("group") == "fold")
    assert len(by_fold) == 5
    assert (by_fold["value"] * by_fold["n"]).sum() == pytest.approx(score.correct)


@pytest.mark.parametrize("function", [knn_classification, mlp_classification])
def test_a_compound_is_never_in_training_and_test(function):
    X, labels, compounds = screen(5)
    score = function(X, labels, compounds, **({"epochs": 5} if function is mlp_classification else {}))
    fold = dict(zip(score.per_query["row"], score.per_query["fold"], strict=True))
    assert set(fold.values()) == set(range(5))
    for compound in set(compounds):
        assert len({fold[row] for row in range(60) if compounds[row] == compound}) == 1


def test_labels_that_the_profiles_of_a_compound_share_by_chance_are_not_learnt():
    # Wells of a compound are all but equal, labels are drawn: folds that part compounds would be right always.
    rng = np.random.default_rng(6)
    compound = np.repeat(np.arange(100), 4)
    X = rng.normal(size=(100, 8))[compound] + rng.normal(scale=1e-3, size=(400, 8))
    labels = rng.integers(0, 2, 100).astype(str)[compound].tolist()
    apart = knn_classification(X, labels, [f"k{c}" for c in compound], k=1)
    parted = knn_classification(X, labels, [f"k{c}" for c in compound], np.arange(400) % 4, k=1)
    assert abs(apart.value - 0.5) < 0.15
    assert parted.value == 1


@pytest.mark.parametrize("function", [knn_classification, mlp_classification])
def test_features_are_scaled_by_the_training_folds_alone(function):
    X, labels, compounds = screen(7)
    folds = np.arange(60) % 3
    few = {"epochs": 20} if function is mlp_classification else {"k": 3}
    before = function(X, labels, compounds, folds, **few).per_query.filter(pl.col("fold") == 0)
    X[0] = (
        1e7  # of fold 0: were it in the scale, all features of the others of its fold would be nearly equal
    )
    after = function(X, labels, compounds, folds, **few).per_query.filter(pl.col("fold") == 0)
    assert before["predicted"].to_list()[1:] == after["predicted"].to_list()[1:]
    assert len(set(before["predicted"])) == 3


def test_scale_is_a_switch():
    X, labels, compounds = screen(8)
    X[:, 3] = np.random.default_rng(9).normal(size=60) * 1e4
    assert (
        knn_classification(X, labels, compounds, k=5).value
        > knn_classification(X, labels, compounds, k=5, scale=False).value
    )


@settings(max_examples=8, deadline=None)
@given(seed=st.integers(0, 2**31))
def test_nothing_depends_on_the_order_of_rows_or_the_scale_of_features(seed):
    X, labels, compounds = screen(10, n=30, compounds=15)
    X[3] = X[7]
    rng = np.random.default_rng(seed)
    order = rng.permutation(30)
    for function, parameters in (
        (knn_classification, {"k": 4}),
        (mlp_classification, {"epochs": 8, "hidden": "4"}),
    ):
        score = function(X, labels, compounds, **parameters)
        again = function(
            X[order], [labels[i] for i in order], [compounds[i] for i in order], **parameters
        ).per_query.with_columns(row=pl.col("row").map_elements(lambda row: int(order[row]), pl.Int64))
        assert again.sort("row").equals(score.per_query)
    shifted = knn_classification(X * 4 + 8, labels, compounds, k=4)
    assert shifted.per_query.equals(knn_classification(X, labels, compounds, k=4).per_query)


def test_batches_of_the_perceptron_do_not_depend_on_the_order_of_rows():
    X, labels, compounds = screen(12, n=330, compounds=110)  # more training rows than the 200 of a batch
    order = np.random.default_rng(13).permutation(330)
    same = {"hidden": "20", "epochs": 30}
    score = mlp_classification(X, labels, compounds, **same).per_query
    again = mlp_classification(
        X[order], [labels[i] for i in order], [compounds[i] for i in order], **same
    ).per_query
    assert again["predicted"].to_list() == [score["predicted"][int(i)] for i in order]


def test_rows_that_cannot_be_asked_are_counted():
    X = np.arange(12.0)[:, None] % 6
    X[11] = np.nan  # in no fold: never looked at
    labels = ["a", "a", "a", "b", "b", "b", "a", "solo", {"a", "b"}, None, "b", "b"]
    folds = [0, 1, 0, 1, 0, 1, 1, 1, 0, 0, 1, -1]
    score = knn_classification(X, labels, [None] * 12, folds, k=1)
    assert score.left_out == {
        "in no fold": 1,
        "label in no other fold": 1,
        "no label": 1,
        "several labels": 1,
    }
    assert score.per_query["row"].to_list() == [0, 1, 2, 3, 4, 5, 6, 10]
    # Fold 1 by fold 0 (0 a, 2 a, 4 b): 1 is as near to 0 as to 2, both a; 3 is as near to 2 as to 4, 2 stands first.
    assert score.per_query.filter(pl.col("row").is_in([1, 5, 6, 10]))["predicted"].to_list() == [
        "a",
        "b",
        "a",
        "b",
    ]


def test_folds_with_one_label_to_learn_from_are_counted():
    X = np.arange(6.0)[:, None]
    score = knn_classification(X, list("aaabab"), list("123456"), [0, 0, 0, 1, 1, 1], k=1)
    # Fold 1 has only a to learn from; fold 0 has both, and is asked.
    assert score.left_out == {"label in no other fold": 2, "one label only in the other folds": 1}
    assert score.per_query["row"].to_list() == [0, 1, 2]


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        (
            {"labels": ["a"] * 60},
            EvaluationError,
            r"all 60 rows have the label 'a': there is nothing to tell",
        ),
        ({"labels": [None] * 60}, EvaluationError, r"no query is left \(60 with no label\)"),
        ({"k": 0}, EvaluationError, r"k is 0, and fold 0 has \d+ training rows"),
        ({"k": 59}, EvaluationError, r"k is 59, and fold 0 has \d+ training rows: take 1 to that"),
        ({"splits": 21}, EvaluationError, r"21 folds of 20 compounds: a compound stays whole"),
        ({"splits": 1}, EvaluationError, r"1 folds of 20 compounds"),
        ({"splits": -1}, EvaluationError, r"-1 folds of 20 compounds: .* take at least two folds"),
        ({"k": 10**30}, EvaluationError, r"k is 10{30}, and fold 0 has \d+ training rows: take 1 to that"),
        (
            {"X": np.full((60, 5), 1e200)},
            EvaluationError,
            r"profile in row 0 has 1e\+200 in feature 1 \(60 such",
        ),
        ({"folds": [0] * 60}, EvaluationError, r"the folds given are 0: give at least two"),
        ({"folds": [-1] * 60}, EvaluationError, r"the folds given are empty"),
        ({"folds": [0, 1]}, EvaluationError, r"2 folds for 60 profiles"),
        ({"labels": ["a"]}, EvaluationError, r"1 labels for 60 profiles"),
        ({"compounds": ["a"]}, EvaluationError, r"1 compounds for 60 profiles"),
        ({"distance": "cosin"}, UnknownNameError, r"unknown distance 'cosin'. Did you mean 'cosine'"),
    ],
)
def test_what_it_lacks_is_said(changes, error, message):
    X, labels, compounds = screen(11)
    with pytest.raises(error, match=message):
        knn_classification(**({"X": X, "labels": labels, "compounds": compounds} | changes))


def test_a_perceptron_of_profiles_too_large_for_it_says_so():
    X, labels, compounds = screen(11)
    X[:, 0] *= 1e29
    assert mlp_classification(X, labels, compounds, epochs=2).n == 60

    def diverged(*_):
        message = "Solver produced non-finite parameter weights"
        raise ValueError(message)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sklearn.neural_network.MLPClassifier.fit", diverged)
        with pytest.raises(
            EvaluationError, match=r"of up to .*e\+\d\d are too large to learn from: take scale=t"
        ):
            mlp_classification(X, labels, compounds, scale=False)


def test_a_profile_that_is_not_finite_is_named():
    X, labels, compounds = screen(11)
    X[5, 1] = np.nan
    with pytest.raises(EvaluationError, match=r"profile 'w5' has nan in feature 2 \(1 such profiles\)"):
        knn_classification(X, labels, compounds, ids=[f"w{i}" for i in range(60)])


@pytest.mark.parametrize(
    ("hidden", "epochs"), [("", 5), ("10,5", 5), ("0", 5), ("10", 0), ("9" * 9, 5), ("10", 10**7)]
)
def test_an_impossible_perceptron_is_explained(hidden, epochs):
    X, labels, compounds = screen(11)
    with pytest.raises(
        EvaluationError, match=r"mlp_classification: hidden is .* and epochs \d+: give units such as"
    ):
        mlp_classification(X, labels, compounds, hidden=hidden, epochs=epochs)


def test_too_few_rows_of_every_label_are_explained():
    with pytest.raises(EvaluationError, match=r"no label has more than 2 rows, for 5 folds"):
        knn_classification(np.eye(6), list("aabbcc"), list("123456"), k=1)


def test_bbbc021_is_told_apart_by_other_compounds(data_dir, capsys):
    X, treatments, _ = bbbc021(data_dir)
    labels, compounds = treatments["moa"].to_list(), treatments["compound"].to_list()
    one = knn_classification(X, labels, compounds, k=1, distance="cosine", scale=False)
    eleven = knn_classification(X, labels, compounds, k=11)
    perceptron = mlp_classification(X, labels, compounds)
    with capsys.disabled():
        for name, score in (("1-NN, cosine", one), ("11-NN", eleven), ("perceptron", perceptron)):
            print(
                f"\nbbbc021, five folds by compound, {name}: {score.value:.3f} ({score.correct}/{score.n})",
                end="",
            )
    assert one.value == pytest.approx(0.845, abs=0.05)
    assert 1 / 12 < eleven.value < perceptron.value
    # A fold a compound makes the same as leaving out the query's compound: NSC's 85 of 103.
    folds = np.unique(compounds, return_inverse=True)[1]
    nsc = knn_classification(X, labels, compounds, folds, k=1, distance="cosine", scale=False)
    assert (nsc.correct, nsc.n) == (85, 103)
