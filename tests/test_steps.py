"""Steps that work feature by feature: what all have in common, and scaling against goldens and released packages."""

import numpy as np
import pandas as pd
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.preprocessing import RobustScaler, StandardScaler

from warehouse.errors import RecipeError, UnknownNameError
from warehouse.steps.base import ROUNDING, Step, Wells
from warehouse.steps.correlation import Correlation
from warehouse.steps.filters import (
    Blocklist,
    DropMissing,
    Frequency,
    Impute,
    MadVariation,
    Noise,
    Outliers,
    Variance,
)
from warehouse.steps.ranks import InverseNormal
from warehouse.steps.regression import CellCount, WellPosition
from warehouse.steps.scaling import Center, MadRobustize, Robustize, Standardize, quantiles_of

NAN = float("nan")
SCALING = (Standardize, Robustize, MadRobustize, Center)
FILTERS = (
    Variance,
    MadVariation,
    Frequency,
    Correlation,
    DropMissing,
    Outliers,
    Noise,
    Blocklist,
    Impute,
)
STEPS = (*SCALING, *FILTERS, InverseNormal, WellPosition, CellCount)
CONTROLS = np.array([[1.0, 1], [1, 2], [1, 3]])
TREATED = np.array([[2.0, 4], [3, 5], [4, 6]])
PLATE = Wells(place="plate 'p7' of batch 'b1' of source 's'", features=("a", "b", "c"))


def wells_of(count, features=4):
    """Two plates of the same positions, two wells a treatment, every fourth a control."""
    half = -(-count // 2)
    rows = pl.DataFrame(
        {
            "source": "s",
            "batch": "b1",
            "plate": [f"p{i // half}" for i in range(count)],
            "well": [f"A{i % half + 1:02}" for i in range(count)],
            "row_number": 1,
            "column_number": [i % half + 1 for i in range(count)],
            "treatment": [f"t{i % half // 2}" for i in range(count)],
            "compound": [f"t{i % half // 2}" for i in range(count)],
            "control_type": ["negative" if i % 4 == 0 else "none" for i in range(count)],
            "cell_count": [100 + 7 * (i * i % 11) for i in range(count)],
        }
    )
    return Wells(rows, "plate 'p7'", tuple(f"f{i}" for i in range(features)))


def corrected(step, fitted, profiles, wells=None, others=None):
    wells = wells or PLATE
    return step.transform(profiles, others or wells, step.fit(fitted, wells))


@pytest.mark.parametrize("cls", STEPS)
def test_a_step_has_a_name_parameters_that_a_recipe_can_write_and_a_text(cls):
    step = cls()
    assert isinstance(step, Step)
    assert all(type(value) in (float, int, str) for value in step.parameters.values())
    assert step.text == step.name
    other = "all" if step.scope == "batch" else "batch"
    assert cls(scope=other).text == f"{step.name}(scope={other})"
    assert len({other.name for other in STEPS}) == len(STEPS)


@pytest.mark.parametrize("cls", STEPS)
def test_a_fit_is_named_finite_float64_arrays_also_where_values_are_missing(cls):
    X = np.random.default_rng(0).normal(size=(16, 5)) / 2
    X[2, 1] = X[7, 3] = NAN
    X[:, 4] = NAN
    step, wells = cls(), wells_of(16, 5)
    fit = step.fit(X, wells)
    for name, array in fit.items():
        assert array.dtype == np.float64
        assert array.ndim in (1, 2)
        assert np.isfinite(array).all(), name
        assert name in step.other_axes or array.shape[-1] == 5
    some = cls is not DropMissing  # one of 16 is more than 5 %
    assert fit["keep"][:4].tolist() == [1, some, 1, some]
    # A feature without any value goes, but for a step that looks at names alone.
    assert fit["keep"][4] == (cls is Blocklist)
    kept = fit["keep"] > 0
    result = step.transform(X, wells, fit)
    missing = np.isnan(X) if cls is not Impute else np.zeros_like(X, dtype=bool)
    np.testing.assert_array_equal(np.isnan(result[:, kept]), missing[:, kept])


@pytest.mark.parametrize("missing", [False, True])
@pytest.mark.parametrize("cls", STEPS)
@settings(max_examples=8, deadline=None)
@given(seed=st.integers(0, 2**31))
def test_row_order_does_not_matter_and_the_input_stays(cls, missing, seed):
    rng = np.random.default_rng(seed)
    X, wells, step = rng.normal(size=(16, 4)).round(1), wells_of(16), cls()
    X[3, 1] = NAN if missing else X[3, 1]
    before, rows, order = X.copy(), wells.rows.clone(), rng.permutation(16)
    fit, again = step.fit(X, wells), step.fit(X[order], wells.at(order))
    assert fit.keys() == again.keys()
    for name in fit:
        np.testing.assert_allclose(again[name], fit[name], atol=1e-9, err_msg=name)
    result = step.transform(X, wells, fit)
    np.testing.assert_allclose(step.transform(X[order], wells.at(order), fit), result[order], atol=1e-9)
    if step.together:
        np.testing.assert_allclose(
            step.fit_transform(X[order], wells.at(order))[1], step.fit_transform(X, wells)[1][order]
        )
    np.testing.assert_array_equal(X, before)
    assert wells.rows.equals(rows)


@pytest.mark.parametrize("cls", [cls for cls in STEPS if cls.featurewise])
def test_a_step_that_takes_each_feature_alone_gives_the_same_in_parts(cls):
    rng = np.random.default_rng(5)
    X, wells, step = rng.normal(size=(16, 4)), wells_of(16), cls()
    X[3, 1] = NAN
    fit = step.fit(X, wells)
    whole = step.transform(X, wells, fit)
    for columns in (slice(0, 1), slice(1, 4)):
        part = Wells(wells.rows, wells.place, wells.features[columns])
        own = step.fit(X[:, columns], part)
        for name, array in own.items():
            np.testing.assert_allclose(
                array, fit[name] if name in step.other_axes else fit[name][..., columns]
            )
        np.testing.assert_allclose(step.transform(X[:, columns], part, own), whole[:, columns])


def test_standardize_golden():
    result = corrected(Standardize(), CONTROLS, np.vstack([CONTROLS, TREATED]))
    np.testing.assert_allclose(result[:, 1], [-1.2247, 0, 1.2247, 2.4495, 3.6742, 4.8990], atol=5e-5)
    np.testing.assert_array_equal(result[:, 0], [0, 0, 0, 1, 2, 3])  # constant in the controls: divisor 1


def test_robustize_golden():
    step = Robustize()
    fit = step.fit(CONTROLS, PLATE)
    result = step.transform(np.vstack([CONTROLS, TREATED]), PLATE, fit)
    np.testing.assert_allclose(result[:, 1], [-1, 0, 1, 2, 3, 4], atol=1e-12)
    np.testing.assert_array_equal(result[:, 0], [0, 0, 0, 1, 2, 3])
    assert fit["constant"].tolist() == [1, 0]
    assert fit["keep"].tolist() == [1, 1]


def test_mad_robustize_golden():
    step = MadRobustize()
    fit = step.fit(CONTROLS, PLATE)
    result = step.transform(np.vstack([CONTROLS, TREATED]), PLATE, fit)
    np.testing.assert_allclose(result[:, 1], [-0.6745, 0, 0.6745, 1.349, 2.0235, 2.698], atol=5e-5)
    assert fit["keep"].tolist() == [0, 1]
    assert fit["constant"].tolist() == [1, 0]
    assert np.abs(result).max() < 10  # and not 1e18, as a divisor of 1e-18 makes it
    plain = corrected(MadRobustize(scale=1.0), CONTROLS, TREATED)
    np.testing.assert_allclose(plain[:, 1], [2, 3, 4])
    assert MadRobustize(scale=1.0).text == "mad_robustize(scale=1.0)"


def test_constant_and_empty_features_are_reported_apart():
    X = np.array([[0.1, NAN, 1], [0.1, NAN, 2], [0.1 + 2e-17, NAN, NAN]])
    for step in (Standardize(), Robustize()):
        fit = step.fit(X, PLATE)
        assert fit["constant"].tolist() == [1, 0, 0]
        assert fit["keep"].tolist() == [1, 0, 1]
    assert Standardize().fit(X, PLATE)["mean"][2] == 1.5
    assert Standardize().fit(X, PLATE)["sd"][2] == 0.5
    assert Center().fit(X, PLATE)["keep"].tolist() == [1, 0, 1]
    assert MadRobustize().fit(X, PLATE)["keep"].tolist() == [0, 0, 1]


@pytest.mark.parametrize("missing", [0.0, 0.05, 0.5])
@pytest.mark.parametrize("samples", ["all", "Metadata_control == 'negcon'"])
@pytest.mark.parametrize(
    ("step", "method"),
    [(Standardize(), "standardize"), (Robustize(), "robustize"), (MadRobustize(), "mad_robustize")],
)
def test_equals_pycytominer(step, method, samples, missing):
    from pycytominer import normalize

    rng = np.random.default_rng(11)
    X = rng.normal(4, 3, (61, 9))
    X[:, 8] = rng.integers(0, 3, 61)
    if method != "mad_robustize":
        X[:, 7] = 2.5
    X[rng.random(X.shape) < missing] = NAN
    names = [f"Cells_f{i}" for i in range(9)]
    frame = pd.DataFrame(X, columns=names).assign(Metadata_well=[f"w{i}" for i in range(61)])
    frame["Metadata_control"] = ["negcon" if i < 20 else "trt" for i in range(61)]
    expected = normalize(
        frame,
        features=names,
        meta_features=["Metadata_well", "Metadata_control"],
        method=method,
        samples=samples,
    )
    result = corrected(step, X if samples == "all" else X[:20], X)
    np.testing.assert_allclose(result, expected[names].to_numpy(), rtol=1e-9, atol=1e-9)
    np.testing.assert_array_equal(np.isnan(result), np.isnan(X))


@pytest.mark.parametrize(
    ("step", "scaler"), [(Standardize(), StandardScaler()), (Robustize(), RobustScaler())]
)
def test_equals_scikit_learn(step, scaler):
    rng = np.random.default_rng(12)
    X = rng.normal(4, 3, (30, 5))
    X[4, 2] = NAN
    X[:, 3] = 7.25
    np.testing.assert_allclose(corrected(step, X[:10], X), scaler.fit(X[:10]).transform(X), atol=1e-12)


def test_quantiles_equal_numpys():
    rng = np.random.default_rng(13)
    X = rng.normal(size=(23, 4))
    X[rng.random(X.shape) < 0.3] = NAN
    X[1:, 3], X[0, 3] = NAN, 5.0
    levels = np.linspace(0, 1, 11)
    found = quantiles_of(X, (~np.isnan(X)).sum(axis=0), levels)
    np.testing.assert_allclose(found, np.nanquantile(X, levels, axis=0), atol=1e-12)


def test_center_takes_the_mean_of_what_is_there():
    X = np.array([[1.0, NAN], [3.0, 4.0]])
    np.testing.assert_array_equal(corrected(Center(), X, X), [[-1, NAN], [1, 0]])


def test_a_plate_of_the_cell_atlas_becomes_what_its_authors_published(data_dir):
    largest = 0.0
    for plate in ("BR00147001", "BR00147002"):
        before, after = (
            pl.read_parquet(data_dir / "cell_atlas" / "round3" / f"{plate}_bulk_{state}.parquet").sort(
                "Metadata_Well"
            )
            for state in ("annotated", "normalized")
        )
        features = [name for name in after.columns if not name.startswith("Metadata_")]
        assert len(features) == 2996
        X, expected = before[features].to_numpy().astype(np.float64), after[features].to_numpy()
        step, wells = Standardize(on="all"), Wells(features=tuple(features))
        fit = step.fit(X, wells)
        result = step.transform(X, wells, fit)
        np.testing.assert_array_equal(np.isnan(result), np.isnan(expected))
        constant = fit["constant"] > 0
        assert constant.sum() == {"BR00147001": 63, "BR00147002": 112}[plate]
        assert set(np.unique(result[:, constant][~np.isnan(result[:, constant])])) == {0}
        largest = max(largest, float(np.nanmax(np.abs(result - expected))))
    assert largest < 1e-14  # 4.4e-15: the order in which 58 numbers are summed


def test_a_spread_that_is_rounding_is_a_constant():
    X = np.full((5, 1), 1e6)
    X[0] += 1e6 * ROUNDING / 8
    for cls in (Standardize, Robustize):
        assert cls(on="all").fit(X, PLATE)["constant"].tolist() == [1]


def test_a_constant_of_many_wells_becomes_0():
    X = np.full((100_000, 1), 0.1)  # whose mean, summed one by one, is 0.1 + 1.9e-13
    fit = Standardize().fit(X, PLATE)
    assert fit["constant"].tolist() == [1]
    assert set(Standardize().transform(X, PLATE, fit)[:, 0]) == {0}


@pytest.mark.parametrize("count", [0, 1])
@pytest.mark.parametrize("cls", [Standardize, Robustize, MadRobustize, Variance, Noise])
def test_too_few_controls_are_named(cls, count):
    expected = (
        rf"{cls.name}: plate 'p7' of batch 'b1' of source 's' has {count} negative control\(s\), at least 2 needed: "
        rf"mark its controls as negative in the layout, or use {cls.name}\(on=all\)"
    )
    with pytest.raises(RecipeError, match=expected):
        cls(on="controls").fit(np.ones((count, 3)), PLATE)


def test_too_few_wells_are_named():
    with pytest.raises(
        RecipeError, match=r"mad_robustize: plate 'p7' .* has 1 well\(s\), at least 2 needed: leave it out"
    ):
        MadRobustize().fit(np.ones((1, 3)), PLATE)
    with pytest.raises(RecipeError, match=r"center: plate 'p7' .* has 0 well\(s\), at least 1 needed"):
        Center().fit(np.ones((0, 3)), PLATE)
    with pytest.raises(RecipeError, match=r"robustize: plate 'p7' .* has 1 treated well\(s\), .*on=all"):
        Robustize(on="treated").fit(np.ones((1, 3)), PLATE)


def test_parameters_out_of_range_are_named():
    with pytest.raises(RecipeError, match=r"mad_robustize\(scale=0\): give a number above 0"):
        MadRobustize(scale=0)
    with pytest.raises(RecipeError, match=r"mad_robustize\(scale=nan\)"):
        MadRobustize(scale=NAN)
    with pytest.raises(UnknownNameError, match=r"scope of step center 'plates'. Did you mean 'plate'\?"):
        Center(scope="plates")
    with pytest.raises(
        UnknownNameError, match=r"choice of wells \(on=\) of step center 'control'. Did you mean"
    ):
        Center(on="control")
