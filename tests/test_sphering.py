"""Sphering, against the dense formula, pycytominer, what it is to do to the controls, and what it is for."""

import os

import numpy as np
import pandas as pd
import polars as pl
import pytest
from pycytominer.operations.transform import Spherize

from extractors.base import FieldSample
from extractors.pipeline import ingest_screen
from extractors.simulator import CHANNELS, SimulatorSettings, simulate_profiles, simulate_screen
from warehouse import recipes
from warehouse.correct import correct
from warehouse.errors import RecipeError, UnknownNameError
from warehouse.evaluation import evaluate
from warehouse.lake import Lake
from warehouse.metrics.nearest import nsb
from warehouse.screens import read_screen
from warehouse.steps import Wells
from warehouse.steps.linear import BLOCK, principal
from warehouse.steps.search import CANDIDATES
from warehouse.steps.sphering import Sphering

NAN = float("nan")
PLATE = Wells(place="plate 'p7' of batch 'b1' of source 's'")
METHODS = {"zca": "ZCA", "zca_cor": "ZCA-cor", "pca": "PCA", "pca_cor": "PCA-cor"}


def corrected(step, fitted, profiles):
    return step.transform(profiles, PLATE, step.fit(fitted, PLATE))


def mixed(rng, n, d, mixing=None):
    mixing = rng.normal(size=(d, d)) * rng.uniform(0.1, 2, d) if mixing is None else mixing
    return rng.normal(size=(n, d)) @ mixing + 5, mixing


# ------------------------------------------------------------------------------------------ Moshkov's


def dense_sphering(controls, X, regularisation):
    mean = controls.mean(axis=0)
    centred = controls - mean
    eigenvalues, vectors = np.linalg.eigh(centred.T @ centred / len(controls))
    Q = vectors @ np.diag((np.maximum(eigenvalues, 0) + regularisation) ** -0.5) @ vectors.T
    return (X - mean) @ Q.T


@pytest.mark.parametrize("regularisation", [1e-3, 1e-2, 1.0])
@pytest.mark.parametrize(("n", "d"), [(12, 40), (2, 5), (24, 40), (40, 40), (41, 40), (300, 24)])
def test_equals_the_dense_formula(n, d, regularisation):
    rng = np.random.default_rng(n * 100 + d)
    controls, mixing = mixed(rng, n, d)
    X, _ = mixed(rng, 17, d, mixing)
    result = corrected(Sphering(lambda_=regularisation), controls, X)
    np.testing.assert_allclose(result, dense_sphering(controls, X, regularisation), rtol=1e-8, atol=1e-8)


def test_worked_by_hand():
    # Σ = diag(4, 1) on the controls (±2√2, 0), (0, ±√2); with λ = 5 and 8 on the axes: 1/3 and 1/√6.
    controls = np.array([[8**0.5, 0], [-(8**0.5), 0], [0, 2**0.5], [0, -(2**0.5)]]) + 10
    fit = Sphering(lambda_=5.0).fit(controls, PLATE)
    np.testing.assert_allclose(fit["eigenvalues"], [4, 1])
    result = Sphering(lambda_=5.0).transform(np.array([[13.0, 16.0]]), PLATE, fit)
    np.testing.assert_allclose(result, [[1, 6 / 6**0.5]])


@pytest.mark.parametrize("regularisation", [1e-12, 0.5])
def test_covariance_of_corrected_controls_is_the_identity_but_for_lambda(regularisation):
    rng = np.random.default_rng(3)
    controls, _ = mixed(rng, 500, 6)
    white = corrected(Sphering(lambda_=regularisation), controls, controls)
    eigenvalues, U = np.linalg.eigh(np.cov(controls.T, ddof=0))
    expected = U @ np.diag(eigenvalues / (eigenvalues + regularisation)) @ U.T
    np.testing.assert_allclose(white.T @ white / 500, expected, atol=1e-9)
    if regularisation == 1e-12:
        np.testing.assert_allclose(white.T @ white / 500, np.eye(6), atol=1e-6)


def test_6400_features_stay_low_rank():
    rng = np.random.default_rng(4)
    controls = rng.normal(size=(60, 6400))
    step = Sphering()
    fit = step.fit(controls, PLATE)
    assert fit["components"].shape == (59, 6400)  # centring takes one
    assert set(fit) == {"mean", "components", "eigenvalues", "lambda"}
    # Along what the controls never show, x is scaled by λ^-½; along a component by (δ + λ)^-½.
    component = fit["components"][0]
    moved = step.transform(fit["mean"] + component[None, :], PLATE, fit)
    np.testing.assert_allclose(moved[0], component * (fit["eigenvalues"][0] + 1e-3) ** -0.5, atol=1e-9)
    unseen = rng.normal(size=6400)
    unseen -= fit["components"].T @ (fit["components"] @ unseen)
    moved = step.transform(fit["mean"] + unseen[None, :], PLATE, fit)
    np.testing.assert_allclose(moved[0], unseen * 1e-3**-0.5, atol=1e-9)


def test_a_fit_of_full_rank_that_holds_components_still_applies():
    # As stored before the map was stored as one matrix.
    rng = np.random.default_rng(5)
    controls, _ = mixed(rng, 50, 7)
    step = Sphering()
    fit = step.fit(controls, PLATE)
    singular, components = principal(controls, fit["mean"])
    older = {
        "mean": fit["mean"],
        "components": components,
        "eigenvalues": singular**2 / 50,
        "lambda": np.array([1e-3]),
    }
    assert "matrix" in fit
    np.testing.assert_allclose(
        step.transform(controls, PLATE, older), step.transform(controls, PLATE, fit), atol=1e-10
    )


def test_controls_that_are_all_alike_scale_everything_by_lambda():
    fit = Sphering(lambda_=0.25).fit(np.ones((3, 2)), PLATE)
    assert fit["eigenvalues"].tolist() == [0]
    np.testing.assert_allclose(
        Sphering(lambda_=0.25).transform(np.array([[2.0, 0.0]]), PLATE, fit), [[2, -2]]
    )


# ---------------------------------------------------------------------------------------- pycytominer's


def same_directions(expected, found):
    """Turn each column's sign as the other's: an SVD leaves it open."""
    return found * np.where((expected * found).sum(axis=0) < 0, -1.0, 1.0)


@pytest.mark.parametrize("epsilon", [1e-6, 0.1])
@pytest.mark.parametrize("method", METHODS)
def test_equals_pycytominer(method, epsilon):
    rng = np.random.default_rng(6)
    controls, mixing = mixed(rng, 90, 24)
    X, _ = mixed(rng, 31, 24, mixing)
    oracle = Spherize(epsilon=epsilon, method=METHODS[method], return_numpy=True)
    expected = oracle.fit(pd.DataFrame(controls)).transform(pd.DataFrame(X))
    found = corrected(Sphering(method=method, epsilon=epsilon), controls, X)
    np.testing.assert_allclose(same_directions(expected, found), expected, atol=1e-6)


@pytest.mark.parametrize(("n", "d"), [(12, 30), (25, 30), (30, 30)])
@pytest.mark.parametrize("method", METHODS)
def test_equals_pycytominer_with_no_more_controls_than_features(method, n, d):
    rng = np.random.default_rng(7)
    controls, mixing = mixed(rng, n, d)
    X, _ = mixed(rng, 9, d, mixing)
    oracle = Spherize(epsilon=1e-6, method=METHODS[method], return_numpy=True)
    expected = oracle.fit(pd.DataFrame(controls)).transform(pd.DataFrame(X))
    found = corrected(Sphering(method=method), controls, X)
    if method.startswith("pca"):  # the others of pycytominer's directions are any that are left
        assert found.shape == (9, n - 1)
        expected = expected[:, : n - 1]
    np.testing.assert_allclose(same_directions(expected, found), expected, atol=1e-6)


@pytest.mark.parametrize("method", METHODS)
def test_covariance_of_corrected_controls_is_the_identity(method):
    controls, _ = mixed(np.random.default_rng(8), 200, 12)
    white = corrected(Sphering(method=method, epsilon=0), controls, controls)
    np.testing.assert_allclose(np.cov(white.T), np.eye(12), atol=1e-9)


def test_only_pca_gives_other_features():
    controls, _ = mixed(np.random.default_rng(9), 30, 4)
    for method in ("moshkov", *METHODS):
        step = Sphering(method=method)
        named = step.names(("a", "b", "c", "d"), step.fit(controls, PLATE))
        other = ("sphered_1", "sphered_2", "sphered_3", "sphered_4")
        assert named == (other if method.startswith("pca") else None)


# ------------------------------------------------------------------------------------- linear maps


@pytest.mark.parametrize("smallest", [1.0, 1e-9])  # by XᵀX, and by QR where that would lose the smallest
def test_directions_of_many_rows_are_those_of_one_decomposition(smallest):
    rng = np.random.default_rng(10)
    X = rng.normal(size=(2 * BLOCK + 77, 5)) * [3, 2, 1, 1, smallest] @ rng.normal(size=(5, 5)) + 100
    mean = X.mean(axis=0)
    singular, components = principal(X, mean)
    np.testing.assert_allclose(singular, np.linalg.svd(X - mean, compute_uv=False), rtol=1e-6)
    assert len(singular) == 5
    np.testing.assert_allclose(components @ components.T, np.eye(5), atol=1e-12)
    np.testing.assert_allclose(
        components.T @ np.diag(singular**2) @ components, (X - mean).T @ (X - mean), rtol=1e-9, atol=1e-9
    )
    assert (components[np.arange(5), np.abs(components).argmax(axis=1)] > 0).all()


@pytest.mark.parametrize("step", [Sphering(), Sphering(method="zca_cor"), Sphering(method="pca")])
@pytest.mark.parametrize("controls", [6, 60])
def test_a_row_does_not_depend_on_the_rows_beside_it_and_the_input_stays(step, controls):
    rng = np.random.default_rng(11)
    fitted, mixing = mixed(rng, controls, 15)
    X, _ = mixed(rng, BLOCK + 5, 15, mixing)
    before = X.copy()
    fit = step.fit(fitted, PLATE)
    whole = step.transform(X, PLATE, fit)
    parts = [step.transform(X[at], PLATE, fit) for at in (slice(0, 7), slice(7, BLOCK), slice(BLOCK, None))]
    np.testing.assert_allclose(np.vstack(parts), whole, rtol=1e-12, atol=1e-9)
    np.testing.assert_array_equal(X, before)


# ------------------------------------------------------------------------------ impossible fits


def test_a_missing_element_is_refused_by_name():
    X = np.array([[1, 2, 3], [1, NAN, NAN], [2, NAN, 1.0]])
    named = Wells(place=PLATE.place, features=("a", "b", "c"))
    for method in ("moshkov", *METHODS):
        with pytest.raises(
            RecipeError, match=r"sphering: feature 'b' has no value in 2 of 3 wells of plate 'p7'"
        ):
            Sphering(method=method).fit(X, named)
    with pytest.raises(RecipeError, match=r"feature number 2 has no value"):
        Sphering().fit(X, PLATE)


@pytest.mark.parametrize("count", [0, 1])
def test_too_few_controls_are_named(count):
    expected = (
        r"sphering: plate 'p7' of batch 'b1' of source 's' has "
        rf"{count} negative control\(s\), at least 2 needed: mark its controls as negative"
    )
    with pytest.raises(RecipeError, match=expected):
        Sphering().fit(np.ones((count, 3)), PLATE)


@pytest.mark.parametrize("method", METHODS)
def test_a_constant_feature_is_named_where_pycytominer_divides_by_zero(method):
    rng = np.random.default_rng(12)
    X = rng.normal(size=(20, 3))
    X[:, 1] = 0.1
    with pytest.raises(
        RecipeError,
        match=rf"sphering\(method={method}\): feature 'b' is 0.1 in all 20 wells of plate 'p7' of batch 'b1' of "
        r"source 's' that it is fitted on \(1 of 3 features are constant\): put variance before it",
    ):
        Sphering(method=method).fit(X, Wells(place=PLATE.place, features=("a", "b", "c")))


@pytest.mark.parametrize("method", METHODS)
def test_features_that_follow_from_others_are_named(method):
    rng = np.random.default_rng(13)
    X = rng.normal(size=(40, 5))
    X[:, 3] = X[:, 0] - 2 * X[:, 1] + 1
    # Its check of the rank lets this pass: the direction in which nothing varies comes out enlarged by √(n − 1) / ε.
    assert np.abs(Spherize(method=METHODS[method]).fit(pd.DataFrame(X)).W).max() > 1e6
    with pytest.raises(RecipeError) as caught:
        Sphering(method=method).fit(X, Wells(place=PLATE.place, features=tuple("abcde")))
    message = str(caught.value)
    assert "5 features vary in 4 directions only" in message
    assert message.startswith(f"sphering(method={method}): plate 'p7'")
    named = [name for name in "abcde" if f"'{name}'" in message]
    assert sorted(named) == ["a", "b", "d"]
    assert "pca(on=controls), or use sphering(method=moshkov)" in message


@pytest.mark.parametrize(("n", "plates"), [(20, 4), (34, 4), (33, 4)])
def test_controls_centred_plate_by_plate_vary_in_a_direction_less_a_plate(n, plates):
    rng = np.random.default_rng(14)
    X, _ = mixed(rng, n, 30)
    plate = np.arange(n) % plates
    for number in range(plates):
        X[plate == number] -= X[plate == number].mean(axis=0)
    wells = Wells(pl.DataFrame({"plate": [f"p{number}" for number in plate]}))
    _, S, Vt = np.linalg.svd(X)
    rank = min(30, n - plates)
    S = np.concatenate([S[:rank], np.full(30 - rank, S[rank - 1])])  # the others as the last that varies
    expected = X @ Vt.T @ np.diag((n - 1) ** 0.5 / (S + 1e-6)) @ Vt
    step = Sphering(method="zca")
    np.testing.assert_allclose(step.transform(X, wells, step.fit(X, wells)), expected, atol=1e-6)
    of_pca = Sphering(method="pca").fit(X, wells)
    assert len(of_pca["matrix"]) == rank


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"lambda_": 0}, r"sphering\(lambda=0\): give a number above 0"),
        ({"lambda_": NAN}, r"lambda=nan\): give a number above 0"),
        ({"lambda_": "much"}, r"lambda=much\): give a number above 0, .* or lambda=auto"),
        ({"method": "zca", "epsilon": -1.0}, r"epsilon=-1.0\): give a number of at least 0"),
        ({"method": "zca", "lambda_": 0.1}, r"method=zca\) takes no lambda: leave it out, or give epsilon"),
        ({"epsilon": 0.1}, r"method=moshkov\) takes no epsilon: leave it out, or give lambda"),
        ({"lambda_": "auto", "scope": "batch"}, r"one lambda is chosen for scope=all: give a number"),
        ({"method": "pca", "scope": "plate"}, r"use scope=all, or method=zca$"),
    ],
)
def test_parameters_out_of_range_are_named(parameters, message):
    with pytest.raises(RecipeError, match=message):
        Sphering(**parameters)


def test_an_unknown_method_is_answered_with_the_nearest():
    with pytest.raises(
        UnknownNameError, match=r"method of step sphering 'zca-cor'. Did you mean 'zca_cor'\?"
    ):
        Sphering(method="zca-cor")


def test_its_text_reads_back():
    assert Sphering(lambda_="0.010").text == "sphering(lambda=0.01)"
    assert Sphering(lambda_="auto").text == "sphering(lambda=auto)"
    assert Sphering(lambda_="1e-3").text == "sphering"
    assert Sphering(method="zca_cor").text == "sphering(method=zca_cor)"


# ------------------------------------------------------------------------------------ choosing lambda


def screen(plates=4, treatments=12, controls=10, d=20, noise=0.3, seed=20, batches=2):
    """Replicates on every plate, in a few directions; controls and noise along others that are far larger."""
    rng = np.random.default_rng(seed)
    effects = np.zeros((treatments, d))
    effects[:, 4:] = rng.normal(size=(treatments, d - 4))
    rows, profiles = [], []
    for plate in range(plates):
        for i in range(treatments + controls):
            is_control = i >= treatments
            well = noise * rng.normal(size=d)
            well[:4] += 30 * rng.normal(size=4)
            profiles.append(well if is_control else well + effects[i])
            rows.append(
                {
                    "source": "s",
                    "batch": f"b{plate * batches // plates}",
                    "plate": f"p{plate}",
                    "well": f"w{i:02d}",
                    "treatment": None if is_control else f"t{i:02d}",
                    "control_type": "negative" if is_control else "none",
                }
            )
    return np.array(profiles), Wells(pl.DataFrame(rows))


def naive_scores(X, rows, halves):
    """The criterion, written out: fit, correct, average, rank."""
    treatment = np.array([name or "" for name in rows["treatment"]])
    names = sorted(set(treatment) - {""})
    control = (rows["control_type"] == "negative").to_numpy()
    scores = []
    for value in CANDIDATES:
        found = []
        for fitted in (0, 1):
            Y = dense_sphering(X[control & (halves == fitted)], X, value)
            means = [
                np.array([Y[(treatment == name) & (halves == half)].mean(axis=0) for name in names])
                for half in (0, 1)
            ]
            unit = [mean / np.linalg.norm(mean, axis=1, keepdims=True) for mean in means]
            for near in (unit[0] @ unit[1].T, unit[1] @ unit[0].T):
                for i, row in enumerate(near):
                    found.append(1 / (1 + (row > row[i]).sum()))
        scores.append(np.mean(found))
    return np.array(scores)


@pytest.mark.parametrize(("controls", "d"), [(10, 20), (4, 40)])
def test_the_search_scores_as_its_words_say(controls, d):
    X, wells = screen(controls=controls, d=d)
    found = Sphering(lambda_="auto").survey(X, wells)
    halves = np.where(wells.rows["batch"] == "b0", 0, 1)  # treatments lie in both batches
    np.testing.assert_allclose(found["search_score"], naive_scores(X, wells.rows, halves), atol=1e-9)
    np.testing.assert_allclose(found["search_lambda"], 10.0 ** np.arange(-5, 3.5, 0.5))
    best = np.flatnonzero(found["search_score"] >= found["search_score"].max() - 1e-9)[-1]
    assert found["lambda"].tolist() == [CANDIDATES[best]]
    assert found["search_n"].tolist() == [12]


def test_the_search_finds_that_weak_sphering_does_not_help_here():
    X, wells = screen()
    step = Sphering(lambda_="auto")
    found = step.survey(X, wells)
    score = dict(zip(np.log10(CANDIDATES).round(1).tolist(), found["search_score"], strict=True))
    assert score[3.0] < 0.6  # 1,000 hides what the controls vary in no more than raw profiles do
    assert found["search_score"].max() > 0.9
    controls = wells.are_controls()
    fit = step.fit(X[controls], wells.at(controls), found)
    assert fit["lambda"] == found["lambda"]
    np.testing.assert_allclose(
        step.transform(X, wells, fit), dense_sphering(X[controls], X, float(found["lambda"][0])), atol=1e-8
    )
    assert "replicates of 12 treatments find each other" in step.notes(found | fit)[0]


def test_the_search_takes_the_larger_of_equal_lambdas():
    X, wells = screen(noise=1e-6)
    X[:, :4] = 0
    found = Sphering(lambda_="auto").survey(X, wells)
    assert found["search_score"].tolist() == [1.0] * len(CANDIDATES)
    assert found["lambda"].tolist() == [1000.0]


def test_the_search_splits_by_plate_where_batches_share_no_treatment():
    X, wells = screen(batches=1)
    found = Sphering(lambda_="auto").survey(X, wells)
    halves = np.array([int(plate[1]) % 2 for plate in wells.rows["plate"]])  # dealt in turn
    np.testing.assert_allclose(found["search_score"], naive_scores(X, wells.rows, halves), atol=1e-9)


def test_what_tells_batches_apart_does_not_count_as_finding_a_replicate():
    # Two batches far apart with treatments of their own: a replicate is to be found among its own batch's.
    X, wells = screen(batches=2)
    rows = wells.rows.with_columns(treatment=pl.col("treatment") + pl.col("batch"))
    X[(rows["batch"] == "b1").to_numpy(), 5] += 1000
    apart = Sphering(lambda_="auto").survey(X, Wells(rows))["search_score"]
    halves = np.array([int(plate[1]) % 2 for plate in rows["plate"]])
    alone = []
    for name in ("b0", "b1"):
        # Each batch's treatments alone; the controls of both are fitted on.
        here = ((rows["batch"] == name) | (rows["control_type"] == "negative")).to_numpy()
        alone.append(naive_scores(X[here], rows.filter(pl.Series(here)), halves[here]))
    np.testing.assert_allclose(apart, np.mean(alone, axis=0), atol=1e-9)
    assert np.ptp(apart) > 0.1


def test_the_search_does_not_depend_on_the_order_of_rows_or_on_labels():
    X, wells = screen()
    order = np.random.default_rng(21).permutation(len(X))
    found = Sphering(lambda_="auto").survey(X, wells)
    other = wells.at(order)
    again = Sphering(lambda_="auto").survey(X[order], other)
    np.testing.assert_allclose(found["search_score"], again["search_score"], atol=1e-9)
    labelled = Wells(wells.rows.with_columns(moa=pl.lit("x"), compound=pl.lit("y")))
    np.testing.assert_array_equal(
        found["search_score"], Sphering(lambda_="auto").survey(X, labelled)["search_score"]
    )


def test_a_search_without_replicates_or_controls_says_what_to_give():
    X, wells = screen(plates=1)
    with pytest.raises(
        RecipeError, match=r"no two treatments of the whole set have wells on two plates .* give a number"
    ):
        Sphering(lambda_="auto").survey(X, wells)
    X, wells = screen()
    with pytest.raises(RecipeError, match=r"no two treatments of the whole set"):
        Sphering(lambda_="auto").survey(X, Wells(wells.rows.drop("treatment")))
    treated = ~wells.are_controls()
    with pytest.raises(
        RecipeError, match=r"neither half of the whole set has two of the wells .*on=controls"
    ):
        Sphering(lambda_="auto").survey(X[treated], wells.at(treated))


# ----------------------------------------------------------------------------------- what it is for


def nsb_of(X, rows):
    """NSB on treatment means, and the share that is right."""
    treated = rows.with_columns(pl.Series("row", np.arange(len(rows)))).filter(
        pl.col("control_type") == "none"
    )
    groups = treated.group_by("compound", "concentration", "moa", maintain_order=True).agg("row", "batch")
    means = np.array([X[at].mean(axis=0) for at in groups["row"]])
    return nsb(means, groups["moa"].to_list(), groups["compound"].to_list(), groups["batch"].to_list()).value


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_on_simulated_profiles_with_a_batch_effect_it_raises_nsb(seed):
    settings = SimulatorSettings(
        seed=seed, batches=3, split_compounds=True, dmso_wells=16, wells_per_plate=60
    )
    X, rows = simulate_profiles(settings, 64, nuisance_strength=1.5)
    X = X.astype(np.float64)
    control = (rows["control_type"] == "negative").to_numpy()
    score = {"none": nsb_of(X, rows)}
    for name, step in (("moshkov", Sphering(lambda_=0.1)), ("zca_cor", Sphering(method="zca_cor"))):
        score[name] = nsb_of(corrected(step, X[control], X), rows)
    print(score)
    assert score["moshkov"] >= score["none"] + 0.1
    assert score["zca_cor"] >= score["none"] + 0.1


class CellStatistics:
    """Statistics of the pixels of each cell: quick enough for a test, rich enough to tell phenotypes apart."""

    name = "cell_statistics"
    version = "1"
    weights: str | None = None

    def __init__(self, channels: tuple[str, ...]) -> None:
        of_channel = ("mean", "spread", "p10", "p50", "p90", "p99", "edge")
        pairs = [
            f"correlation_{one}_{other}" for i, one in enumerate(channels) for other in channels[i + 1 :]
        ]
        self.channels = channels
        self.feature_names = (
            *(f"{what}_{channel}" for channel in channels for what in of_channel),
            *pairs,
            *("nucleus_area", "cell_area", "elongation", "nucleus_share"),
        )
        self.dim = len(self.feature_names)
        self.parameters: dict[str, object] = {}

    def extract(self, samples: list[FieldSample]) -> list[np.ndarray]:
        return [
            np.array([self._cell(sample, i + 1) for i in range(len(sample.cells))], np.float32).reshape(
                -1, self.dim
            )
            for sample in samples
        ]

    def _cell(self, sample: FieldSample, label: int) -> np.ndarray:
        inside = sample.masks.cells == label
        pixels = sample.pixels.astype(np.float64)
        edges = np.abs(np.gradient(pixels, axis=1)) + np.abs(np.gradient(pixels, axis=2))
        values = pixels[:, inside]
        of_channel = np.vstack([values.mean(axis=1), values.std(axis=1)])
        of_channel = np.vstack([of_channel, np.percentile(values, [10, 50, 90, 99], axis=1)])
        of_channel = np.vstack([of_channel, edges[:, inside].mean(axis=1)])
        pairs = np.corrcoef(values)[np.triu_indices(len(values), 1)]
        axes = np.linalg.eigvalsh(np.cov(np.argwhere(inside).T))
        nucleus, cell = (sample.masks.nuclei == label).sum(), inside.sum()
        shape = (nucleus, cell, np.sqrt(axes[1] / axes[0]), nucleus / cell)
        return np.concatenate([of_channel.T.ravel(), pairs, shape])


@pytest.mark.slow
@pytest.mark.skipif(
    not os.environ.get("WELLHOUSE_LONG"),
    reason="half a minute: set WELLHOUSE_LONG=1 (make proofs); docs/correction.md shows the same on BBBC021",
)
def test_on_simulated_images_with_a_batch_effect_it_raises_nsb(tmp_path):
    settings = SimulatorSettings(split_compounds=True, dmso_wells=16, wells_per_plate=60)
    made = simulate_screen(tmp_path / "screen", settings)
    screen_of = read_screen(made.manifest, layout=made.layout, annotations=made.annotations)
    scaled = "standardize(scope=all,on=all)"
    texts = ["none", scaled, f"{scaled}+sphering(lambda=0.1)", f"{scaled}+sphering(lambda=auto)"]
    with Lake.create(tmp_path / "lake") as lake:
        ingest_screen(lake, screen_of, CellStatistics(CHANNELS))
        for text in texts[1:]:
            correct(lake, "cell_statistics", text)
        score = {
            text: evaluate(lake, ["cell_statistics"], ["nsb"], recipe=recipes.parse(text).slug)[0].score.value
            for text in texts
        }
    print(score)
    raw, scaled_only, fixed, chosen = score.values()
    assert fixed >= raw + 0.3
    assert fixed >= scaled_only + 0.15
    assert chosen >= scaled_only + 0.15
