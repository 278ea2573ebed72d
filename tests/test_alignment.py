"""PCA, typical variation normalisation, CORAL and Harmony, against scikit-learn, SciPy and harmonypy."""

import builtins

import harmonypy
import numpy as np
import polars as pl
import pytest
from scipy.linalg import fractional_matrix_power
from sklearn import decomposition
from sklearn.preprocessing import StandardScaler

from warehouse.errors import RecipeError, UnknownNameError
from warehouse.steps import Wells
from warehouse.steps.alignment import TVN, Coral
from warehouse.steps.components import PCA
from warehouse.steps.harmony import Harmony

NAN = float("nan")
PLACE = Wells(place="plate 'p7' of batch 'b1' of source 's'", features=("a", "b", "c", "d"))


def screen(n=600, d=12, batches=3, plates=3, shift=1.5, groups=6, seed=0):
    """Wells of a few kinds, each batch moved and stretched; kind 0 are the controls."""
    rng = np.random.default_rng(seed)
    kind, batch, plate = (rng.integers(0, k, n) for k in (groups, batches, plates))
    stretch = np.exp(0.3 * rng.normal(size=(batches, d)))
    X = 0.7 * rng.normal(size=(n, d)) * stretch[batch] + 3 * rng.normal(size=(groups, d))[kind]
    X += (
        shift * rng.normal(size=(batches, d))[batch]
        + 0.2 * rng.normal(size=(batches * plates, d))[batch * plates + plate]
    )
    rows = pl.DataFrame(
        {
            "source": ["s"] * n,
            "batch": [f"b{i}" for i in batch],
            "plate": [f"p{i}{j}" for i, j in zip(batch, plate, strict=True)],
            "well": [f"w{i}" for i in range(n)],
            "control_type": ["negative" if i == 0 else "none" for i in kind],
        }
    )
    return X, Wells(rows)


def by_batch(step, X, wells):
    """Fit and apply a step of scope batch as a recipe does."""
    survey = step.survey(X, wells) if step.surveys else None
    result = np.empty_like(X)
    batch, control = wells.rows["batch"].to_numpy(), wells.are_controls()
    for name in np.unique(batch):
        fitted = (batch == name) & control
        fit = step.fit(X[fitted], wells.at(fitted), survey)
        result[batch == name] = step.transform(X[batch == name], wells.at(batch == name), fit)
    return result


# ----------------------------------------------------------------------------------------------- PCA


@pytest.mark.parametrize("components", ["all", 3, 0.5, 0.95])
@pytest.mark.parametrize("n", [200, 9])
def test_pca_equals_scikit_learn(components, n):
    rng = np.random.default_rng(1)
    X = rng.normal(size=(n, 12)) @ rng.normal(size=(12, 12)) + 4
    other = rng.normal(size=(5, 12))
    oracle = decomposition.PCA(None if components == "all" else components, svd_solver="full").fit(X)
    step = PCA(components=components)
    fit = step.fit(X, PLACE)
    count = len(fit["matrix"])
    assert count == (8 if (components, n) == ("all", 9) else oracle.n_components_)  # the ninth does not vary
    np.testing.assert_allclose(
        step.transform(other, PLACE, fit), oracle.transform(other)[:, :count], atol=1e-9
    )
    np.testing.assert_allclose(fit["variance"], oracle.explained_variance_[:count], rtol=1e-9)
    np.testing.assert_allclose(fit["share"], oracle.explained_variance_ratio_[:count], rtol=1e-9)
    assert step.names(("a",) * 12, fit) == tuple(f"pc_{i + 1}" for i in range(count))
    assert step.notes(fit)[0].startswith(f"{count} components of 12 features hold ")


def test_pca_worked_by_hand():
    X = np.array([[3.0, 1, 0], [-3, 1, 0], [0, 1, 1], [0, 1, -1]])
    fit = PCA().fit(X, PLACE)
    np.testing.assert_allclose(fit["matrix"], [[1, 0, 0], [0, 0, 1]], atol=1e-15)
    np.testing.assert_allclose(fit["variance"], [18 / 3, 2 / 3])
    np.testing.assert_allclose(fit["share"], [0.9, 0.1])
    assert len(PCA(components=0.89).fit(X, PLACE)["matrix"]) == 1
    assert len(PCA(components=0.91).fit(X, PLACE)["matrix"]) == 2


def test_pca_says_what_it_cannot_do():
    with pytest.raises(
        RecipeError, match=r"pca\(components=4\): 3 wells of plate 'p7' .* vary in 2 directions only: give at"
    ):
        PCA(components=4.0).fit(np.random.default_rng(0).normal(size=(3, 4)), PLACE)
    with pytest.raises(
        RecipeError, match=r"pca: all 3 wells of plate 'p7' .*\(on=all\) have the same profile"
    ):
        PCA().fit(np.ones((3, 4)), PLACE)
    with pytest.raises(RecipeError, match=r"pca: feature 'b' has no value in 1 of 2 wells of plate 'p7'"):
        PCA().fit(np.array([[1.0, NAN], [2, 3]]), PLACE)
    with pytest.raises(
        RecipeError, match=r"pca: plate 'p7' .* has 1 negative control\(s\), at least 2 needed"
    ):
        PCA(on="controls").fit(np.ones((1, 4)), PLACE)
    for value in (0, -1, 2.5, "many", NAN):
        with pytest.raises(RecipeError, match=rf"pca\(components={value}\): give a whole number, a share"):
            PCA(components=value)
    with pytest.raises(RecipeError, match=r"pca\(scope=batch\): each batch would get directions of its own"):
        PCA(scope="batch")
    assert PCA(components="50").text == PCA(components=50.0).text == "pca(components=50)"
    assert PCA(components="0.95").text == "pca(components=0.95)"


# ----------------------------------------------------------------------------------------------- TVN


def test_tvn_equals_efaars_definition():
    X, wells = screen()
    controls, batch = wells.are_controls(), wells.rows["batch"].to_numpy()
    expected = StandardScaler().fit(X[controls]).transform(X)
    expected = decomposition.PCA().fit(expected[controls]).transform(expected)
    expected = StandardScaler().fit(expected[controls]).transform(expected)
    scaled = expected.copy()
    for name in np.unique(batch):
        covariance = np.cov(expected[(batch == name) & controls], rowvar=False, ddof=1) + 0.5 * np.eye(12)
        expected[batch == name] = expected[batch == name] @ fractional_matrix_power(covariance, -0.5)
    np.testing.assert_allclose(by_batch(TVN(), scaled, wells), expected, atol=1e-9)


def test_tvn_with_few_controls_needs_no_full_matrix():
    rng = np.random.default_rng(2)
    controls, X = rng.normal(size=(6, 40)), rng.normal(size=(3, 40))
    fit = TVN().fit(controls, PLACE)
    assert {name: array.shape for name, array in fit.items()} == {
        "components": (5, 40), "inside": (5,), "outside": (1,),
    }  # fmt: skip
    expected = X @ fractional_matrix_power(np.cov(controls.T) + 0.5 * np.eye(40), -0.5)
    np.testing.assert_allclose(TVN().transform(X, PLACE, fit), expected, atol=1e-9)


# ---------------------------------------------------------------------------------------------- CORAL


def test_coral_after_standardize_by_batch_equals_efaars_definition():
    X, wells = screen()
    controls, batch = wells.are_controls(), wells.rows["batch"].to_numpy()
    for name in np.unique(batch):
        X[batch == name] = StandardScaler().fit(X[(batch == name) & controls]).transform(X[batch == name])
    target = fractional_matrix_power(np.cov(X[controls], rowvar=False, ddof=1) + 0.5 * np.eye(12), 0.5)
    expected = np.empty_like(X)
    for name in np.unique(batch):
        source = np.cov(X[(batch == name) & controls], rowvar=False, ddof=1) + 0.5 * np.eye(12)
        expected[batch == name] = X[batch == name] @ fractional_matrix_power(source, -0.5) @ target
    np.testing.assert_allclose(by_batch(Coral(epsilon=0.5), X, wells), expected, atol=1e-9)


def test_coral_about_zero_equals_the_definition_used_on_bbbc021():
    X, wells = screen(n=300, d=5)
    controls, batch = wells.are_controls(), wells.rows["batch"].to_numpy()

    def moment(rows):
        return rows.T @ rows / len(rows) + np.eye(5)

    expected = np.empty_like(X)
    for name in np.unique(batch):
        source = moment(X[(batch == name) & controls])
        expected[batch == name] = (
            X[batch == name]
            @ fractional_matrix_power(source, -0.5)
            @ fractional_matrix_power(moment(X[controls]), 0.5)
        )
    np.testing.assert_allclose(by_batch(Coral(about="zero"), X, wells), expected, atol=1e-9)


def test_coral_makes_the_controls_of_batches_alike():
    X, wells = screen(n=3000)
    controls, batch = wells.are_controls(), wells.rows["batch"].to_numpy()
    result = by_batch(Coral(epsilon=1e-6), X, wells)
    own = [result[(batch == name) & controls] for name in np.unique(batch)]
    for rows in own:
        np.testing.assert_allclose(rows.mean(axis=0), 0, atol=1e-12)
        np.testing.assert_allclose(np.cov(rows.T), np.cov(own[0].T), atol=1e-4)
    raw = [np.cov(X[(batch == name) & controls].T) for name in np.unique(batch)]
    assert np.abs(raw[1] - raw[0]).max() > 0.1


def test_coral_with_fewer_controls_than_features():
    X, wells = screen(n=90, d=40)
    controls, batch = wells.are_controls(), wells.rows["batch"].to_numpy()
    centred = X.copy()
    for name in np.unique(batch):
        centred[batch == name] -= X[(batch == name) & controls].mean(axis=0)
    target = fractional_matrix_power(
        centred[controls].T @ centred[controls] / (controls.sum() - 1) + np.eye(40), 0.5
    )
    expected = np.empty_like(X)
    for name in np.unique(batch):
        source = np.cov(X[(batch == name) & controls], rowvar=False) + np.eye(40)
        expected[batch == name] = centred[batch == name] @ fractional_matrix_power(source, -0.5) @ target
    np.testing.assert_allclose(by_batch(Coral(), X, wells), expected, atol=1e-8)


def test_a_batch_that_comes_later_is_made_alike_to_the_same_target():
    X, wells = screen()
    batch = wells.rows["batch"].to_numpy()
    early, late = batch != "b2", (batch == "b2") & wells.are_controls()
    step = Coral()
    survey = step.survey(X[early], wells.at(early))
    fit = step.fit(X[late], wells.at(late), survey)
    result = step.transform(X[late], wells.at(late), fit)
    source = np.cov(X[late].T) + np.eye(12)
    expected = (X[late] - X[late].mean(axis=0)) @ fractional_matrix_power(source, -0.5) @ survey["target"]
    np.testing.assert_allclose(result, expected, atol=1e-9)


def test_coral_and_tvn_say_what_they_cannot_do():
    X, wells = screen()
    one = wells.rows["batch"].to_numpy() == "b1"
    with pytest.raises(
        RecipeError,
        match=r"coral: the whole set is 1 batch \(source 's', batch 'b1'\), .* leave coral out, or use coral\(scope=",
    ):
        Coral().survey(X[one], wells.at(one))
    treated = ~wells.are_controls()
    with pytest.raises(
        RecipeError, match=r"coral: the whole set has 0 negative control\(s\), at least 2 needed"
    ):
        Coral().survey(X[treated], wells.at(treated))
    for step in (Coral(), TVN()):
        with pytest.raises(RecipeError, match=rf"{step.name}: plate 'p7' .* has 1 negative control\(s\)"):
            step.fit(np.ones((1, 4)), PLACE)
        with pytest.raises(
            RecipeError, match=rf"{step.name}: feature 'd' has no value in 1 of 2 wells of plate 'p7'"
        ):
            step.fit(np.array([[1.0, 2, 3, NAN], [1, 2, 3, 4]]), PLACE)
        with pytest.raises(RecipeError, match=rf"{step.name}\(epsilon=0\): give a number above 0"):
            type(step)(epsilon=0)
    with pytest.raises(RecipeError, match=r"coral\(scope=all\): it makes batches alike, or plates"):
        Coral(scope="all")
    with pytest.raises(UnknownNameError, match=r"origin \(about=\) of step coral 'means'"):
        Coral(about="means")


# -------------------------------------------------------------------------------------------- Harmony


def run_harmony(X, labels, **settings):
    settings = {"lamb": 1.0, "verbose": False} | settings
    return harmonypy.run_harmony(X, pl.DataFrame({"batch": labels}).to_pandas(), "batch", **settings).Z_corr


@pytest.mark.parametrize(
    ("step", "labels", "settings"),
    [
        (Harmony(), "batch", {}),
        (Harmony(by="plate", clusters=40, iterations=20), "plate", {"nclust": 40, "max_iter_harmony": 20}),
        (
            Harmony(theta=1, lambda_=5, sigma=0.2, seed=3),
            "batch",
            {"theta": 1, "lamb": 5, "sigma": 0.2, "random_state": 3},
        ),
    ],
)
def test_harmony_gives_what_harmonypy_gives(step, labels, settings):
    X, wells = screen()
    _, result = step.fit_transform(X, wells)
    np.testing.assert_array_equal(result, run_harmony(X, wells.rows[labels].to_list(), **settings))


def test_wells_fitted_on_come_out_alike_by_the_stored_fit():
    X, wells = screen()
    step = Harmony()
    fit, result = step.fit_transform(X, wells)
    again = step.transform(X, wells, fit)
    assert np.corrcoef(again.ravel(), result.ravel())[0, 1] > 0.999
    # Where the stored shares are Harmony's own, what is subtracted is exactly its last step (float32 inside).
    found = harmonypy.run_harmony(X, wells.rows.to_pandas(), "batch", lamb=1.0, verbose=False)
    moved = fit["corrections"].reshape(3, len(fit["centroids"]), 12)
    batch = wells.rows["batch"].to_numpy()
    for number in range(3):
        rows = batch == f"b{number}"
        np.testing.assert_allclose(X[rows] - found.R[rows] @ moved[number], result[rows], atol=1e-5)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_a_later_plate_of_a_known_batch_lands_where_a_full_run_puts_it(seed):
    X, wells = screen(n=900, seed=seed)
    full = run_harmony(X, wells.rows["batch"].to_list())
    late = (wells.rows["plate"] == "p10").to_numpy()
    step = Harmony()
    fit, _ = step.fit_transform(X[~late], wells.at(~late))
    result = step.transform(X[late], wells.at(late), fit)
    # Not exactly: the full run's clusters have seen this plate too.
    assert np.corrcoef(result.ravel(), full[late].ravel())[0, 1] > 0.998
    assert np.abs(result - full[late]).mean() < 0.2 * np.abs(X[late] - full[late]).mean()


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_a_later_batch_gets_a_correction_of_its_own(seed):
    X, wells = screen(n=900, seed=seed, shift=1)
    full = run_harmony(X, wells.rows["batch"].to_list())
    late = (wells.rows["batch"] == "b2").to_numpy()
    step = Harmony()
    fit, early = step.fit_transform(X[~late], wells.at(~late))
    result = step.transform(X[late], wells.at(late), fit)
    # Against the others as they now stand: a full run moves these towards the new batch too.
    kind = wells.are_controls()
    target = early[kind[~late]].mean(axis=0)
    before, after = (np.linalg.norm(rows[kind[late]].mean(axis=0) - target) for rows in (X[late], result))
    assert after < 0.25 * before
    assert (
        np.corrcoef(result.ravel(), full[late].ravel())[0, 1]
        > np.corrcoef(X[late].ravel(), full[late].ravel())[0, 1]
    )


def test_a_new_batch_is_solved_as_the_regression_says():
    X, wells = screen(n=300, d=4)
    step = Harmony(clusters=5)
    fit, _ = step.fit_transform(X, wells)
    new = np.random.default_rng(5).normal(size=(7, 4)) + 2
    rows = Wells(pl.DataFrame({"source": ["s"] * 7, "batch": ["new"] * 7, "plate": ["p"] * 7}))
    cosine = new / np.linalg.norm(new, axis=1, keepdims=True) @ fit["centroids"].T
    shares = np.exp(-2 * (1 - cosine) / 0.1)
    shares /= shares.sum(axis=1, keepdims=True)
    expected = new.copy()
    for k in range(5):
        own = shares[:, k].sum()
        design = np.array([[fit["weights"][k] + own, own], [own, own + 1]])
        right = np.stack([fit["sums"][k] + shares[:, k] @ new, shares[:, k] @ new])
        expected -= shares[:, [k]] * np.linalg.solve(design, right)[1]
    np.testing.assert_allclose(step.transform(new, rows, fit), expected, atol=1e-9)


def test_a_fit_by_plate_holds_nothing_of_its_plates():
    X, wells = screen(n=300)
    by_plate, _ = Harmony(by="plate").fit_transform(X, wells)
    assert set(by_plate) == {"centroids", "weights", "sums"}
    by_batch, _ = Harmony().fit_transform(X, wells)
    assert by_batch["corrections"].shape == (3 * 10, 12)
    assert by_batch["batches"].shape == (3, len("s b1"))
    for array in by_batch.values():
        assert array.dtype == np.float64
        assert np.isfinite(array).all()


def test_harmony_says_what_it_cannot_do(monkeypatch):
    X, wells = screen(n=60)
    one = (wells.rows["batch"] == "b1").to_numpy()
    with pytest.raises(
        RecipeError,
        match=r"harmony: all \d+ wells of the whole set are of one batch, 'b1' of 's': .* or use harmony\(by=plate\)",
    ):
        Harmony().fit_transform(X[one], wells.at(one))
    with pytest.raises(
        RecipeError, match=r"harmony\(clusters=61\): the whole set has 60 wells only: give fewer"
    ):
        Harmony(clusters=61).fit_transform(X, wells)
    empty = X.copy()
    empty[7] = 0
    with pytest.raises(
        RecipeError, match=r"harmony: well 'w7' of plate 'p\d\d' of batch 'b\d' has a profile of zeros"
    ):
        Harmony().fit_transform(empty, wells)
    empty[7, 0] = NAN
    with pytest.raises(RecipeError, match=r"harmony: feature number 1 has no value in 1 of 60 wells"):
        Harmony().fit_transform(empty, wells)
    with pytest.raises(RecipeError, match=r"harmony: the whole set has 1 well\(s\), at least 2 needed"):
        Harmony().fit_transform(X[:1], wells.at(np.arange(1)))

    installed = builtins.__import__

    def without(name, *arguments, **settings):
        if name == "harmonypy":
            raise ImportError(name)
        return installed(name, *arguments, **settings)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(RecipeError, match=r"harmonypy: pip install 'wellhouse\[harmony\]'"):
        Harmony().fit_transform(X, wells)


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"clusters": 2.5}, r"harmony\(clusters=2.5\): give a whole number from 0 to 10000"),
        ({"iterations": 0}, r"harmony\(iterations=0\): give a whole number from 1 to 1000"),
        ({"sigma": 0}, r"harmony\(sigma=0\): give a number above 0"),
        ({"lambda_": -1.0}, r"harmony\(lambda=-1\): give a number above 0"),
        ({"scope": "batch"}, r"harmony\(scope=batch\): it mixes all wells of the whole set"),
        ({"on": "controls"}, r"harmony\(on=controls\): it mixes all wells of the whole set"),
    ],
)
def test_parameters_of_harmony_out_of_range_are_named(parameters, message):
    with pytest.raises(RecipeError, match=message):
        Harmony(**parameters)


def test_an_unknown_batch_of_harmony_is_answered_with_the_nearest():
    with pytest.raises(
        UnknownNameError, match=r"batch \(by=\) of step harmony 'plates'. Did you mean 'plate'\?"
    ):
        Harmony(by="plates")
    assert Harmony(clusters=300.0, iterations=20.0).text == "harmony(clusters=300,iterations=20)"


def test_harmony_on_jump_plates_follows_the_jump_recipe(data_dir):
    # Made with an older harmonypy (its k-means and order of blocks were others), so not equal: alike.
    made = data_dir / "jump_recipe" / "outputs" / "compound_trimmed_public"
    before = pl.read_parquet(made / "profiles_var_mad_int_featselect.parquet")
    after = pl.read_parquet(made / "profiles_var_mad_int_featselect_harmony.parquet")
    rows = before.select(
        source="Metadata_Source", batch=pl.lit("b"), plate="Metadata_Plate", well="Metadata_Well"
    )
    assert before.select(pl.col("^Metadata_.*$")).equals(after.select(pl.col("^Metadata_.*$")))
    X, expected = (
        frame.select(pl.exclude("^Metadata_.*$")).to_numpy().astype(np.float64) for frame in (before, after)
    )
    _, result = Harmony(by="plate", clusters=300, iterations=20).fit_transform(X, Wells(rows))
    for column in range(3):
        assert np.corrcoef(result[:, column], expected[:, column])[0, 1] > 0.999
        moved = np.corrcoef((result - X)[:, column], (expected - X)[:, column])[0, 1]
        assert moved > 0.93
    assert np.abs(result - expected).mean() < 0.2 * np.abs(X - expected).mean()
