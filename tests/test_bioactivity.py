"""Bioactivity: the network's gradient by finite differences, scores by scikit-learn, splits and bins by hand."""

import numpy as np
import polars as pl
import pytest
from sklearn.metrics import f1_score, log_loss, roc_auc_score
from sklearn.neural_network._stochastic_optimizers import AdamOptimizer, SGDOptimizer

from warehouse.errors import EvaluationError, UnknownNameError
from warehouse.metrics.bioactivity import BINS, bioactivity, bioactivity_table
from warehouse.metrics.learning import draw_folds
from warehouse.metrics.network import MaskedNetwork, masked_loss

FAST = {"hidden": 16, "epochs": 12, "batch": 32, "learning_rate": 1e-2, "dropout": 0.2}


def screen(seed=0, n=160, d=6, assays=5, labelled=0.7):
    """Profiles, and assays that a direction each decides; some labels are missing."""
    rng = np.random.default_rng(seed)
    X = rng.normal(size=(n, d))
    Y = (X @ rng.normal(size=(d, assays)) + rng.normal(scale=0.3, size=(n, assays)) > 0).astype(float)
    Y[rng.random(Y.shape) > labelled] = np.nan
    return X, Y, [f"a{i}" for i in range(assays)], [f"k{i}" for i in range(n)]


# --- the network


@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_the_gradient_is_that_of_the_loss(dropout):
    X, Y, _, _ = screen(1, n=20)
    network = MaskedNetwork(hidden=7, dropout=dropout, dtype=np.float64)
    rng = np.random.default_rng(2)
    network.start(6, 5, rng)
    for bias in network.weights[1::2]:
        bias += rng.normal(scale=0.1, size=bias.shape)
    masks = network.masks(20, rng)
    loss, gradients = network.gradients(X, Y, masks)
    assert len(gradients) == len(network.weights) == 8
    for weight, gradient in zip(network.weights, gradients, strict=True):
        assert weight.shape == gradient.shape
        flat = weight.reshape(-1)
        for place in rng.choice(flat.size, min(12, flat.size), replace=False):
            before, step = flat[place], 1e-6
            flat[place] = before + step
            above, _ = network.gradients(X, Y, masks)
            flat[place] = before - step
            below, _ = network.gradients(X, Y, masks)
            flat[place] = before
            assert gradient.reshape(-1)[place] == pytest.approx((above - below) / (2 * step), abs=1e-7)
    assert any(np.abs(gradient).max() > 1e-3 for gradient in gradients)
    assert loss > 0


def test_the_loss_is_scikit_learns_over_the_labels_that_are_there():
    _, Y, _, _ = screen(3, n=30)
    logits = np.random.default_rng(4).normal(scale=3, size=Y.shape)
    labelled = ~np.isnan(Y)
    assert masked_loss(logits, Y) == pytest.approx(log_loss(Y[labelled], 1 / (1 + np.exp(-logits[labelled]))))
    assert masked_loss(np.array([[800.0, -800.0]]), np.array([[0.0, np.nan]])) == 800


def test_a_missing_label_teaches_nothing():
    X, Y, _, _ = screen(5, n=40)
    Y[:, 2] = np.nan
    network = MaskedNetwork(hidden=5, dropout=0.0, dtype=np.float64)
    network.start(6, 5, np.random.default_rng(6))
    _, gradients = network.gradients(X, Y, network.masks(40, np.random.default_rng(0)))
    assert (gradients[-2][:, 2] == 0).all()
    assert gradients[-1][2] == 0
    assert (gradients[-1][[0, 1, 3, 4]] != 0).all()


@pytest.mark.parametrize(("optimizer", "rate"), [("adam", 1e-2), ("sgd", 0.2)])
def test_it_learns_what_a_linear_rule_decides(optimizer, rate):
    X, Y, _, _ = screen(7, n=400)
    network = MaskedNetwork(
        hidden=32, dropout=0.1, epochs=40, learning_rate=rate, optimizer=optimizer, patience=10
    )
    network.fit(X[:300], Y[:300], X[300:350], Y[300:350])
    assert network.weights[0].dtype == np.float32
    logits, truth = network.logits(X[350:]), Y[350:]
    there = ~np.isnan(truth)
    assert np.mean((logits[there] > 0) == truth[there]) > 0.85


@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
def test_its_steps_are_scikit_learns(optimizer):
    rng = np.random.default_rng(8)
    network = MaskedNetwork(
        hidden=3, learning_rate=0.05, weight_decay=0.0, optimizer=optimizer, dtype=np.float64
    )
    network.start(4, 2, rng)
    theirs = [weight.copy() for weight in network.weights]
    oracle = (
        AdamOptimizer(theirs, 0.05)
        if optimizer == "adam"
        else SGDOptimizer(theirs, 0.05, momentum=0.9, nesterov=False)
    )
    first, second = ([np.zeros_like(weight) for weight in theirs] for _ in range(2))
    for step in range(1, 6):
        # Away from zero, where the two forms of Adam place its epsilon differently.
        gradients = [rng.choice([-1, 1], w.shape) * rng.uniform(0.1, 0.4, w.shape) for w in theirs]
        network._step(gradients, first, second, step)
        oracle.update_params(theirs, gradients)
    for mine, other in zip(network.weights, theirs, strict=True):
        np.testing.assert_allclose(mine, other, atol=1e-6)


def test_sgd_clips_a_long_gradient_and_decay_draws_weights_to_zero():
    network = MaskedNetwork(hidden=3, learning_rate=1.0, weight_decay=0.0, optimizer="sgd", dtype=np.float64)
    network.start(4, 2, np.random.default_rng(0))
    before = [weight.copy() for weight in network.weights]
    gradients = [np.full_like(weight, 100.0) for weight in before]
    zeros = [np.zeros_like(weight) for weight in before]
    network._step(gradients, zeros, [np.zeros_like(weight) for weight in before], 1)
    moved = [old - new for old, new in zip(before, network.weights, strict=True)]
    assert np.sqrt(sum((part**2).sum() for part in moved)) == pytest.approx(5)
    network = MaskedNetwork(hidden=3, learning_rate=1.0, weight_decay=0.25, optimizer="sgd", dtype=np.float64)
    network.start(4, 2, np.random.default_rng(0))
    nothing = [[np.zeros_like(weight) for weight in before] for _ in range(3)]
    network._step(*nothing, 1)
    np.testing.assert_allclose(network.weights[0], before[0] * 0.75)


def test_it_stops_early_and_keeps_the_best_weights():
    rng = np.random.default_rng(9)
    X, Y = rng.normal(size=(60, 8)), rng.integers(0, 2, (60, 3)).astype(float)  # nothing to learn
    held = rng.normal(size=(40, 8)), rng.integers(0, 2, (40, 3)).astype(float)
    losses = {}
    for patience in (0, 3):
        network = MaskedNetwork(hidden=64, dropout=0.0, epochs=80, learning_rate=1e-2, patience=patience)
        network.fit(X, Y, *held)
        losses[patience] = masked_loss(network.logits(held[0]), held[1])
    assert losses[3] < 0.75 < 1.5 < losses[0]
    # Validation rows without a label cannot tell: it goes on to the end, as without patience.
    network = MaskedNetwork(hidden=64, dropout=0.0, epochs=80, learning_rate=1e-2, patience=3)
    network.fit(X, Y, held[0], np.full((40, 3), np.nan))
    assert masked_loss(network.logits(held[0]), held[1]) == losses[0]


# --- the metric


def test_scores_are_scikit_learns_on_each_split_in_turn():
    X, Y, names, compounds = screen(10)
    Y[np.isnan(Y).all(axis=1), 0] = 1
    order = sorted(range(160), key=lambda row: f"compound {compounds[row]}")
    X, Y, compounds = X[order], Y[order], [compounds[i] for i in order]
    folds = draw_folds("x", compounds, 3, 1)
    score = bioactivity(X, Y, names, compounds, folds, patience=0, seed=4, **FAST)
    auroc, f1 = np.zeros((2, 3, 5))
    for split in range(3):
        test = folds == split
        mean, sd = X[~test].mean(axis=0), X[~test].std(axis=0)
        network = MaskedNetwork(16, 0.2, 12, 32, 1e-2, patience=0, seed=4)
        network.fit(((X - mean) / sd)[~test], Y[~test], X[:0], Y[:0])
        logits = network.logits(((X - mean) / sd)[test])
        for assay in range(5):
            there = ~np.isnan(Y[test, assay])
            truth, given = Y[test, assay][there], logits[there, assay]
            auroc[split, assay] = roc_auc_score(truth, given)
            f1[split, assay] = f1_score(truth, 1 / (1 + np.exp(-given)) >= 0.5)
    np.testing.assert_allclose(score.per_group["value"], auroc.mean(axis=0), atol=1e-3)
    np.testing.assert_allclose(score.per_group["f1"], f1.mean(axis=0), atol=0.02)
    assert score.value == pytest.approx(auroc.mean(), abs=1e-3)
    assert score.value > 0.85
    assert (score.n, score.unit, score.left_out) == (5, "group", {})
    assert score.per_group["assay"].to_list() == names
    assert score.per_group["n_splits"].to_list() == [3] * 5
    assert score.per_group["n_labels"].to_list() == (~np.isnan(Y)).sum(axis=0).tolist()
    assert score.per_group["n_active"].to_list() == np.nansum(Y, axis=0).tolist()
    assert set(score.per_group["bin"]) == {"100–500"}


def test_profiles_without_the_rule_predict_nothing():
    X, Y, names, compounds = screen(11, n=400)
    noise = np.random.default_rng(12).normal(size=X.shape)
    assert abs(bioactivity(noise, Y, names, compounds, **FAST).value - 0.5) < 0.1
    assert bioactivity(X, Y, names, compounds, **FAST).value > 0.85


def test_the_order_of_rows_and_a_second_call_change_nothing():
    X, Y, names, compounds = screen(13, n=90)
    compounds = [f"k{i // 2}" for i in range(88)] + [None, None]
    score = bioactivity(X, Y, names, compounds, **FAST)
    order = np.random.default_rng(14).permutation(90)
    again = bioactivity(X[order], Y[order], names, [compounds[i] for i in order], **FAST)
    assert again.per_group.equals(score.per_group)
    assert not bioactivity(X, Y, names, compounds, seed=1, **FAST).per_group.equals(score.per_group)


def test_compounds_stay_whole():
    # Wells of a compound are equal, its activity is drawn: only a split that parts compounds could know it.
    rng = np.random.default_rng(15)
    compound = np.repeat(np.arange(60), 4)
    X = rng.normal(size=(60, 20))[compound]
    Y = rng.integers(0, 2, (60, 3)).astype(float)[compound]
    names = [f"k{i}" for i in compound]
    fast = FAST | {"epochs": 40, "dropout": 0.0}
    whole = bioactivity(X, Y, ["a", "b", "c"], names, **fast)
    parted = bioactivity(X, Y, ["a", "b", "c"], names, np.arange(240) % 4, **fast)
    assert whole.value < 0.7 < 0.95 < parted.value
    assert whole.per_group["n_labels"].to_list() == [60, 60, 60]


@pytest.mark.parametrize("is_given", [False, True])
def test_what_tells_when_to_stop_is_neither_trained_on_nor_tested(monkeypatch, is_given):
    X, Y, names, _ = screen(19, n=200)
    Y[np.isnan(Y).all(axis=1), 0] = 1
    X[:, 0] = np.arange(200)  # tells the row, and its compound of two
    compounds = [f"k{i // 2}" for i in range(200)]
    folds = np.arange(200) // 2 % 4 if is_given else None
    seen = []

    def fit(self, X, Y, X_validation, Y_validation):
        seen.append((X[:, 0], X_validation[:, 0]))
        self.start(X.shape[1], Y.shape[1], np.random.default_rng(0))

    def logits(self, X):
        seen[-1] += (X[:, 0],)
        return np.zeros((len(X), 5))

    monkeypatch.setattr(MaskedNetwork, "fit", fit)
    monkeypatch.setattr(MaskedNetwork, "logits", logits)
    monkeypatch.setattr("warehouse.metrics.bioactivity.scaled", lambda X, training: X)
    score = bioactivity(X, Y, names, compounds, folds, patience=10, **FAST)
    assert score.value == 0.5
    assert len(seen) == (4 if is_given else 3)
    for split in seen:
        training, validation, test = (set(part // 2) for part in split)
        assert len(training) + len(validation) + len(test) == len(training | validation | test) == 100
        # A tenth of all where a fifth is the test; an eighth of the rest.
        assert (len(test), len(validation)) == ((25, 9) if is_given else (20, 10))


def test_assays_that_cannot_be_scored_are_counted():
    X, Y, names, compounds = screen(16, n=90)
    folds = np.arange(90) % 3
    folds[5] = -1
    Y[3] = np.nan
    Y[:, 0] = np.where(np.isnan(Y[:, 0]), np.nan, 1)  # one class
    Y[folds != 0, 1] = np.nan  # labels in one test split only: nothing to learn from
    Y[folds == 2, 2] = np.nan  # scored in two splits
    score = bioactivity(X, Y, names, compounds, folds, **FAST)
    assert score.left_out == {
        "assay: one class in every test split, or no training label": 2,
        "in no fold": 1,
        "no assay label": int(np.isnan(Y).all(axis=1).sum()),
    }
    assert score.per_group.select("assay", "n_splits").rows() == [("a2", 2), ("a3", 3), ("a4", 3)]
    with pytest.raises(
        EvaluationError,
        match=r"bioactivity: no query is left \(\d+ with no assay label, 1 with assay: one class",
    ):
        bioactivity(X, Y[:, :1], names[:1], compounds, **FAST)


def test_the_table_counts_assays_by_their_number_of_labels():
    labels = [0, 49, 50, 99, 100, 499, 500, 999, 1000, 3000, 3001]
    expected = (
        ["<50"] * 2 + ["50–100"] * 2 + ["100–500"] * 2 + ["500–1000"] * 2 + ["1000–3000"] * 2 + [">3000"]
    )
    starts = list(BINS.values())
    assert [list(BINS)[int(np.searchsorted(starts, n, side="right")) - 1] for n in labels] == expected
    X, Y, names, compounds = screen(17)
    Y[np.flatnonzero(~np.isnan(Y[:, 0]))[40:], 0] = np.nan
    score = bioactivity(X, Y, names, compounds, **FAST)
    table = bioactivity_table(score)
    assert table["bin"].to_list() == ["all", "<50", "100–500"]
    assert table["n_assays"].to_list() == [5, 1, 4]
    aurocs = score.per_group["value"]
    assert table["auroc"][0] == pytest.approx(score.value)
    assert table["auroc_sd"][0] == pytest.approx(np.std(aurocs.to_numpy(), ddof=1))
    for limit in (0.9, 0.8, 0.7):
        assert table[f"above_{limit}"].to_list() == [
            int((aurocs > limit).sum()),
            int((aurocs[:1] > limit).sum()),
            int((aurocs[1:] > limit).sum()),
        ]


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        (
            {"assays": np.full((160, 5), 2.0)},
            EvaluationError,
            r"assay 'a0' is 2 in row 0 \(800 such values\): give 1",
        ),
        ({"assay_names": ["a"]}, EvaluationError, r"assays of shape \(160, 5\) do not fit 1 names"),
        ({"assays": np.ones((3, 5))}, EvaluationError, r"3 assays for 160 profiles"),
        (
            {"assays": np.full((160, 5), np.nan)},
            EvaluationError,
            r"no query is left \(160 with no assay label\)",
        ),
        ({"compounds": ["k"] * 160}, EvaluationError, r"5 folds of 1 compounds"),
        ({"splits": 6}, EvaluationError, r"6 test splits: take 1 to 5, or give folds"),
        ({"dropout": 1.0}, EvaluationError, r"dropout 1.0: take 1 or more"),
        ({"hidden": 0}, EvaluationError, r"hidden 0, epochs"),
        (
            {"hidden": 10**9},
            EvaluationError,
            r"hidden 1000000000, epochs 100: take at most 65536 and 1000000",
        ),
        ({"epochs": 10**30}, EvaluationError, r"epochs 10{30}: take at most"),
        ({"batch": -1}, EvaluationError, r"batch -1, patience 0"),
        ({"learning_rate": 1e30}, EvaluationError, r"learning_rate 1e\+30, .* above 0 and up to 1"),
        ({"learning_rate": float("nan")}, EvaluationError, r"learning_rate nan, .* above 0 and up to 1"),
        ({"learning_rate": 0.0}, EvaluationError, r"learning_rate 0, weight_decay 0.0001: take"),
        ({"weight_decay": float("inf")}, EvaluationError, r"weight_decay inf: .* decay from 0 to 1"),
        (
            {"X": np.full((160, 6), 1e200)},
            EvaluationError,
            r"has 1e\+200 in feature 1 \(160 such profiles\), b",
        ),
        ({"folds": [0] * 160}, EvaluationError, r"the folds given are 0: give at least two"),
        ({"optimizer": "adm"}, UnknownNameError, r"unknown optimizer 'adm'. Did you mean 'adam'"),
    ],
)
def test_what_it_lacks_is_said(changes, error, message):
    X, Y, names, compounds = screen(18)
    with pytest.raises(error, match=message):
        bioactivity(**({"X": X, "assays": Y, "assay_names": names, "compounds": compounds} | changes))


def test_a_profile_too_far_from_the_training_rows_is_explained():
    X, Y, names, compounds = screen(18)
    folds = np.arange(160) % 2
    X[:, 0] = np.where(folds == 0, 1e29, 1e-29 * X[:, 0])
    with pytest.raises(
        EvaluationError,
        match=r"predictions are no numbers any more, with learning_rate 0.01 and test profiles of up",
    ):
        bioactivity(X, Y, names, compounds, folds, **FAST)


def test_a_profile_that_is_not_finite_is_named_and_a_score_of_another_kind_has_no_table():
    X, Y, names, compounds = screen(18)
    X[4, 2] = np.inf
    with pytest.raises(EvaluationError, match=r"profile 'c4' has inf in feature 3"):
        bioactivity(X, Y, names, compounds, ids=[f"c{i}" for i in range(160)])
    Y[4] = np.nan
    score = bioactivity(X, Y, names, compounds, **FAST)
    assert score.left_out["no assay label"] == int(np.isnan(Y).all(axis=1).sum())
    with pytest.raises(EvaluationError, match=r"the score has no assays"):
        bioactivity_table(type(score)(1.0, 1, None, pl.DataFrame(), None, {}))
