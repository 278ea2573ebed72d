"""Correction steps, against the goldens, pycytominer, scikit-learn and the dense formula of sphering."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.preprocessing import StandardScaler

from warehouse.errors import RecipeError, UnknownNameError
from warehouse.steps import STEPS, Center, MadRobustize, Sphering, Standardize, Step

NAN = float("nan")
CONTROLS = np.array([[1.0, 1], [1, 2], [1, 3]])
TREATED = np.array([[2.0, 4], [3, 5], [4, 6]])


def corrected(step, fitted, profiles):
    return step.transform(profiles, step.fit(fitted, "plate 'p'"))


def test_every_step_has_the_shape_of_a_step_and_a_name_of_its_own():
    assert all(isinstance(step(), Step) for step in STEPS)
    assert len({step.name for step in STEPS}) == len(STEPS)


def test_standardize_golden():
    both = np.vstack([CONTROLS, TREATED])
    result = corrected(Standardize(), CONTROLS, both)
    np.testing.assert_allclose(result[:, 1], [-1.2247, 0, 1.2247, 2.4495, 3.6742, 4.8990], atol=5e-5)
    np.testing.assert_array_equal(result[:, 0], [0, 0, 0, 1, 2, 3])  # constant in the controls: divisor 1


def test_mad_robustize_golden():
    step = MadRobustize()
    fit = step.fit(CONTROLS, "plate 'p'")
    result = step.transform(np.vstack([CONTROLS, TREATED]), fit)
    np.testing.assert_allclose(result[:, 1], [-0.6745, 0, 0.6745, 1.349, 2.0235, 2.698], atol=5e-5)
    assert fit["keep"].tolist() == [0, 1]
    assert fit["constant"].tolist() == [1, 0]
    assert np.abs(result).max() < 10  # and not 1e18, as a divisor of 1e-18 makes it


def test_constant_and_empty_features_are_reported_apart():
    X = np.array([[0.1, NAN, 1], [0.1, NAN, 2], [0.1 + 2e-17, NAN, NAN]])
    fit = Standardize().fit(X, "plate 'p'")
    assert fit["constant"].tolist() == [1, 0, 0]
    assert fit["keep"].tolist() == [1, 0, 1]
    assert fit["mean"][2] == 1.5
    assert fit["sd"][2] == 0.5
    assert Center().fit(X, "plate 'p'")["keep"].tolist() == [1, 0, 1]
    assert MadRobustize().fit(X, "plate 'p'")["keep"].tolist() == [0, 0, 1]


@pytest.mark.parametrize("missing", [0.0, 0.05])
@pytest.mark.parametrize(
    ("step", "method"), [(Standardize(), "standardize"), (MadRobustize(), "mad_robustize")]
)
def test_equals_pycytominer(step, method, missing):
    from pycytominer import normalize

    rng = np.random.default_rng(11)
    X = rng.normal(4, 3, (61, 9))
    X[rng.random(X.shape) < missing] = NAN
    names = [f"Cells_f{i}" for i in range(9)]
    frame = pd.DataFrame(X, columns=names).assign(Metadata_well=[f"w{i}" for i in range(61)])
    frame["Metadata_control"] = ["negcon" if i < 20 else "trt" for i in range(61)]
    expected = normalize(
        frame,
        features=names,
        meta_features=["Metadata_well", "Metadata_control"],
        method=method,
        samples="Metadata_control == 'negcon'",
    )
    np.testing.assert_allclose(corrected(step, X[:20], X), expected[names].to_numpy(), rtol=1e-9, atol=1e-9)


def test_standardize_equals_scikit_learn():
    rng = np.random.default_rng(12)
    X = rng.normal(4, 3, (30, 5))
    X[:, 3] = 7.25
    np.testing.assert_allclose(corrected(Standardize(), X[:10], X), StandardScaler().fit(X[:10]).transform(X))


def dense_sphering(controls, X, regularisation):
    mean = controls.mean(axis=0)
    centred = controls - mean
    eigenvalues, vectors = np.linalg.eigh(centred.T @ centred / len(controls))
    Q = vectors @ np.diag((np.maximum(eigenvalues, 0) + regularisation) ** -0.5) @ vectors.T
    return (X - mean) @ Q.T


@pytest.mark.parametrize("regularisation", [1e-3, 1e-2, 1.0])
@pytest.mark.parametrize(("n", "d"), [(12, 40), (2, 5), (40, 40), (41, 40), (300, 24)])
def test_sphering_equals_the_dense_formula(n, d, regularisation):
    rng = np.random.default_rng(n * 100 + d)
    mixing = rng.normal(size=(d, d)) * rng.uniform(0.1, 2, d)
    controls = rng.normal(size=(n, d)) @ mixing + 5
    X = rng.normal(size=(17, d)) @ mixing + 5
    result = corrected(Sphering(lambda_=regularisation), controls, X)
    np.testing.assert_allclose(result, dense_sphering(controls, X, regularisation), rtol=1e-8, atol=1e-8)


def test_sphering_worked_by_hand():
    # Σ = diag(4, 1) on the controls (±2√2, 0), (0, ±√2); with λ = 5 and 8 on the axes: 1/3 and 1/√6.
    controls = np.array([[8**0.5, 0], [-(8**0.5), 0], [0, 2**0.5], [0, -(2**0.5)]]) + 10
    fit = Sphering(lambda_=5.0).fit(controls, "plate 'p'")
    np.testing.assert_allclose(fit["eigenvalues"], [4, 1])
    result = Sphering(lambda_=5.0).transform(np.array([[13.0, 16.0]]), fit)
    np.testing.assert_allclose(result, [[1, 6 / 6**0.5]])


def test_sphering_whitens_the_controls():
    rng = np.random.default_rng(3)
    controls = rng.normal(size=(500, 6)) @ rng.normal(size=(6, 6))
    white = corrected(Sphering(lambda_=1e-9), controls, controls)
    np.testing.assert_allclose(white.T @ white / 500, np.eye(6), atol=1e-6)


def test_sphering_of_6400_features_stays_low_rank():
    rng = np.random.default_rng(4)
    controls = rng.normal(size=(60, 6400))
    fit = Sphering().fit(controls, "plate 'p'")
    assert fit["components"].shape == (59, 6400)  # centring takes one
    # Along what the controls never show, x is scaled by λ^-½; along a component by (δ + λ)^-½.
    component = fit["components"][0]
    moved = Sphering().transform(fit["mean"] + component[None, :], fit)
    np.testing.assert_allclose(moved[0], component * (fit["eigenvalues"][0] + 1e-3) ** -0.5, atol=1e-9)
    unseen = rng.normal(size=6400)
    unseen -= fit["components"].T @ (fit["components"] @ unseen)
    np.testing.assert_allclose(
        Sphering().transform(fit["mean"] + unseen[None, :], fit)[0], unseen * 1e-3**-0.5, atol=1e-9
    )


def test_sphering_of_controls_that_are_all_alike_scales_everything_by_lambda():
    fit = Sphering(lambda_=0.25).fit(np.ones((3, 2)), "plate 'p'")
    assert fit["components"].shape == (1, 2)  # of eigenvalue 0: a fit never holds an empty matrix
    assert fit["eigenvalues"].tolist() == [0]
    np.testing.assert_allclose(Sphering(lambda_=0.25).transform(np.array([[2.0, 0.0]]), fit), [[2, -2]])


def test_sphering_refuses_a_missing_element_by_name():
    X = np.array([[1, 2, 3], [1, NAN, NAN], [2, NAN, 1.0]])
    with pytest.raises(RecipeError, match=r"feature 'b' has no value in 2 of 3 wells of plate 'p7'"):
        Sphering().fit(X, "plate 'p7'", ["a", "b", "c"])
    with pytest.raises(RecipeError, match=r"feature number 2 has no value"):
        Sphering().fit(X, "plate 'p7'")


@pytest.mark.parametrize("step", [Standardize(), Sphering()])
@pytest.mark.parametrize("count", [0, 1])
def test_too_few_controls_are_named(step, count):
    expected = (
        rf"{step.name}: plate 'p7' has {count} negative control\(s\), at least 2 needed: "
        rf"mark its controls as negative in the layout, or use {step.name}\(on=all\)"
    )
    with pytest.raises(RecipeError, match=expected):
        step.fit(np.ones((count, 3)), "plate 'p7'")


def test_too_few_wells_are_named():
    with pytest.raises(RecipeError, match=r"mad_robustize: plate 'p7' has 1 well\(s\), at least 2 needed"):
        MadRobustize().fit(np.ones((1, 3)), "plate 'p7'")
    with pytest.raises(RecipeError, match=r"center: plate 'p7' has 0 well\(s\), at least 1 needed"):
        Center().fit(np.ones((0, 3)), "plate 'p7'")


def test_parameters_out_of_range_are_named():
    with pytest.raises(RecipeError, match=r"sphering\(lambda=0\): give a number above 0"):
        Sphering(lambda_=0)
    with pytest.raises(RecipeError, match=r"lambda=nan"):
        Sphering(lambda_=NAN)
    with pytest.raises(UnknownNameError, match=r"scope of step center 'plates'. Did you mean 'plate'\?"):
        Center(scope="plates")
    with pytest.raises(
        UnknownNameError, match=r"choice of wells \(on=\) of step center 'control'. Did you mean"
    ):
        Center(on="control")


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**31), step=st.sampled_from([cls() for cls in STEPS]))
def test_row_order_does_not_matter_and_the_input_stays(seed, step):
    rng = np.random.default_rng(seed)
    X = rng.normal(size=(9, 4))
    before = X.copy()
    order = rng.permutation(9)
    result = corrected(step, X, X)
    np.testing.assert_allclose(corrected(step, X[order], X[order]), result[order], atol=1e-9)
    np.testing.assert_array_equal(X, before)


@pytest.mark.parametrize("step", [cls() for cls in STEPS])
def test_a_fit_is_named_finite_float64_arrays(step):
    for array in step.fit(np.random.default_rng(0).normal(size=(9, 4)), "plate 'p'").values():
        assert array.dtype == np.float64
        assert array.ndim in (1, 2)
        assert np.isfinite(array).all()
