"""Ranks, well positions and cell counts, against scipy, scikit-learn and what the JUMP recipe made of its plates."""

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import ndtr
from scipy.stats import norm, rankdata
from sklearn.linear_model import LinearRegression
from sklearn.preprocessing import QuantileTransformer
from test_steps import NAN, PLATE, wells_of

from warehouse.errors import RecipeError
from warehouse.steps import ranks
from warehouse.steps.base import Wells
from warehouse.steps.ranks import InverseNormal, scores
from warehouse.steps.regression import CellCount, WellPosition
from warehouse.steps.scaling import MadRobustize


def by_scipy(X):
    rank = rankdata(X, axis=0, nan_policy="omit")
    return norm.ppf((rank - 3 / 8) / ((~np.isnan(X)).sum(axis=0) - 3 / 4 + 1))


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    n=st.integers(1, 40),
    digits=st.integers(0, 3),
    missing=st.sampled_from([0, 0.2, 0.9]),
)
def test_scores_are_those_of_scipys_ranks(seed, n, digits, missing):
    rng = np.random.default_rng(seed)
    X = rng.normal(size=(n, 5)).round(digits)
    X[rng.random(X.shape) < missing] = NAN
    np.testing.assert_allclose(scores(X), by_scipy(X), atol=1e-12)


def test_scores_worked_by_hand():
    X = np.array([[30.0, 1], [10, 1], [20, NAN], [20, 5]])
    # Of four: ranks 4, 1, 2.5, 2.5; of three: 1.5, 1.5, 3.
    expected = norm.ppf(
        [[3.625 / 4.25, 1.125 / 3.25], [0.625 / 4.25, 1.125 / 3.25], [0.5, NAN], [0.5, 2.625 / 3.25]]
    )
    np.testing.assert_allclose(scores(X), expected, atol=1e-12)


def test_many_features_are_ranked_in_blocks(monkeypatch):
    X = np.random.default_rng(2).normal(size=(20, 7))
    whole = scores(X)
    monkeypatch.setattr(ranks, "_VALUES", 45)
    np.testing.assert_array_equal(scores(X), whole)


def test_wells_that_come_later_are_ranked_between_the_stored_quantiles():
    rng = np.random.default_rng(3)
    X = np.column_stack([rng.normal(size=5000), rng.exponential(size=5000), rng.integers(0, 4, 5000)])
    X[rng.random(5000) < 0.3, 1] = NAN
    step = InverseNormal()
    fit, exact = step.fit_transform(X, PLATE)
    assert fit["quantiles"].shape == (1001, 3)
    assert fit["count"].tolist() == (~np.isnan(X)).sum(axis=0).tolist()
    later = step.transform(X, PLATE, fit)
    np.testing.assert_array_equal(np.isnan(later), np.isnan(X))
    assert np.abs(later - exact)[~np.isnan(X)].max() < 0.01  # tails and ties too
    beyond = step.transform(np.array([[-1e9] * 3, [1e9] * 3]), PLATE, fit)
    count = fit["count"]
    expected = norm.ppf((np.array([np.ones(3), count]) - 0.375) / (count + 0.25))
    np.testing.assert_allclose(beyond[:, :2], expected[:, :2])
    np.testing.assert_allclose(step.transform(X[:1].repeat(2, axis=0), PLATE, fit), later[[0, 0]])


def test_the_place_between_quantiles_is_scikit_learns():
    rng = np.random.default_rng(4)
    X, later = rng.normal(size=(300, 3)).round(1), rng.normal(size=(50, 3)) * 2
    fit = InverseNormal().fit(X, PLATE)
    assert fit["quantiles"].shape == (300, 3)
    share = QuantileTransformer(n_quantiles=300, subsample=None).fit(X).transform(later)
    expected = norm.ppf((1 + share * 299 - 0.375) / 300.25)
    np.testing.assert_allclose(InverseNormal().transform(later, PLATE, fit), expected, atol=1e-7)


def test_up_to_1001_wells_later_ranks_are_exact():
    X = np.random.default_rng(5).normal(size=(400, 6)).round(1)
    X[:, 0] = np.random.default_rng(6).normal(size=400)
    step = InverseNormal(scope="batch")
    assert not step.together
    np.testing.assert_allclose(step.transform(X, PLATE, step.fit(X, PLATE)), scores(X), atol=1e-9)


def test_each_plate_ranks_itself_where_the_scope_is_the_plate():
    step = InverseNormal(scope="plate")
    assert step.whole
    assert not step.together
    X = np.column_stack([np.arange(6.0), np.full(6, 2.0), np.full(6, NAN)])
    fit = step.fit(X, PLATE)
    assert {name: array.tolist() for name, array in fit.items()} == {"constant": [0, 1, 0], "keep": [1, 1, 0]}
    result = step.transform(X, PLATE, fit)
    np.testing.assert_allclose(result[:, 0], norm.ppf((np.arange(6) + 0.625) / 6.25))
    np.testing.assert_array_equal(result[:, 1], 0)
    assert InverseNormal().together
    assert not InverseNormal().whole


def test_ranks_are_among_all_wells():
    with pytest.raises(
        RecipeError, match=r"inverse_normal\(on=controls\): a rank is one among all wells: leave on="
    ):
        InverseNormal(on="controls")


def jump_plates(data_dir):
    """Wells of the compound plates, with what the recipe published of them, in the order of plates and wells."""
    folder = data_dir / "jump_recipe"
    keys = ["Metadata_Plate", "Metadata_Well"]
    files = sorted(
        (folder / "inputs" / "profiles" / "source_5" / "workspace" / "profiles").rglob("*.parquet")
    )
    before = pl.concat([pl.read_parquet(file) for file in files]).sort(keys)
    after = pl.read_parquet(
        folder / "outputs" / "compound_trimmed_public" / "profiles_var_mad_int_featselect.parquet"
    )
    both = before.join(after, on=keys, suffix="_after", validate="1:1", maintain_order="left")
    assert len(both) == len(before) == len(after) == 768
    features = [name for name in before.columns if not name.startswith("Metadata_")]
    X = both[features].to_numpy().astype(np.float64)
    expected = both[[f"{name}_after" for name in features]].to_numpy().astype(np.float64)
    return (
        X,
        expected,
        both["Metadata_Plate"].to_numpy(),
        (both["Metadata_JCP2022"] == "JCP2022_033924").to_numpy(),
    )


def test_the_jump_recipes_mad_and_ranks_come_out_as_published(data_dir):
    X, expected, plates, is_control = jump_plates(data_dir)
    scaled = np.empty_like(X)
    for plate in np.unique(plates):
        here = plates == plate
        step = MadRobustize(on="controls", scale=1.0)
        scaled[here] = step.transform(X[here], PLATE, step.fit(X[here & is_control], PLATE))
    _, result = InverseNormal().fit_transform(scaled, PLATE)
    n = len(X)
    published = np.rint(ndtr(expected) * (n + 0.25) + 0.375)
    for feature in range(X.shape[1]):
        _, group, count = np.unique(scaled[:, feature], return_inverse=True, return_counts=True)
        alone = count[group] == 1
        assert alone.sum() >= 466
        # Published as float32; the largest difference is 1.2e-7.
        np.testing.assert_allclose(result[alone, feature], expected[alone, feature], rtol=0, atol=2e-7)
        # The recipe draws lots between equal values: as a group they have our ranks.
        drawn = np.bincount(group, published[:, feature]) / count
        ours = ndtr(result[:, feature]) * (n + 0.25) + 0.375
        np.testing.assert_allclose(ours, drawn[group], atol=1e-9)
        assert np.abs(result[:, feature] - expected[:, feature]).max() < 0.02
        assert sorted(published[:, feature]) == list(range(1, n + 1))


def test_well_position_subtracts_the_mean_of_its_position():
    X = np.arange(16.0)[:, None] * [1, -2]
    X[0, 1] = NAN
    wells = wells_of(16, 2)
    step = WellPosition()
    fit = step.fit(X, wells)
    assert fit["mean"].shape == (8, 2)
    result = step.transform(X, wells, fit)
    frame = wells.rows.with_columns(pl.Series("x", X[:, 0]), pl.Series("y", X[:, 1]).fill_nan(None))
    means = frame.select(pl.col("x", "y").mean().over("row_number", "column_number")).to_numpy()
    np.testing.assert_allclose(result, X - means)
    # A plate that comes later is corrected with the stored means, in any order and any part of it.
    later = wells.at(np.array([5, 2]))
    np.testing.assert_allclose(step.transform(np.zeros((2, 2)), later, fit), -means[[5, 2]])


def test_well_position_drops_a_feature_without_a_value_in_some_position():
    X = np.ones((16, 2))
    X[[0, 8], 1] = NAN
    fit = WellPosition().fit(X, wells_of(16, 2))
    assert fit["keep"].tolist() == [1, 0]
    assert np.isfinite(fit["mean"]).all()


def test_well_position_says_which_well_it_cannot_correct():
    wells = wells_of(5)
    with pytest.raises(
        RecipeError,
        match=r"well_position: well 'A03' of plate 'p0' \(1 positions in all\) has too few others in its position: "
        r"plate 'p7' has 1 well\(s\) there, at least 2 needed: bring more plates .* well_position\(least_wells=1\)",
    ):
        WellPosition().fit(np.ones((5, 4)), wells)
    fit = WellPosition(least_wells=1).fit(np.ones((5, 4)), wells)
    elsewhere = Wells(wells.rows.with_columns(column_number=pl.col("column_number") + 1), "plate 'p7'")
    with pytest.raises(
        RecipeError, match=r"well 'A03' of plate 'p0' \(1 wells in all\) lies in a position that no"
    ):
        WellPosition().transform(np.ones((5, 4)), elsewhere, fit)
    nowhere = Wells(wells.rows.with_columns(row_number=pl.lit(None, dtype=pl.Int32)), "plate 'p7'")
    with pytest.raises(
        RecipeError, match=r"well 'A01' of plate 'p0' \(5 wells in all\) has no row and column: give"
    ):
        WellPosition().fit(np.ones((5, 4)), nowhere)
    with pytest.raises(RecipeError, match=r"come without the column 'row_number': give it beside"):
        WellPosition().fit(np.ones((5, 4)), PLATE)
    with pytest.raises(RecipeError, match=r"the well in row 0 \(1 wells in all\) has no row and column"):
        WellPosition().fit(
            np.ones((2, 1)), Wells(pl.DataFrame({"row_number": [None, 1], "column_number": [1, 1]}))
        )
    with pytest.raises(RecipeError, match=r"well_position\(least_wells=0\): give a number of at least 1"):
        WellPosition(least_wells=0)


@pytest.mark.parametrize("missing", [0, 0.3])
def test_cell_count_leaves_the_residuals_of_scikit_learns_regression(missing):
    rng = np.random.default_rng(6)
    cells = rng.integers(50, 4000, 60)
    X = rng.normal(size=(60, 5)) * [1, 1e-4, 1e5, 1, 1] + np.outer(cells, [0.01, -1e-6, 300, 0, 1]) + 7
    X[rng.random(X.shape) < missing] = NAN
    wells = Wells(pl.DataFrame({"cell_count": cells}), "the whole set")
    step = CellCount()
    fit = step.fit(X, wells)
    result = step.transform(X, wells, fit)
    np.testing.assert_array_equal(np.isnan(result), np.isnan(X))
    for feature in range(5):
        there = ~np.isnan(X[:, feature])
        line = LinearRegression().fit(cells[there, None], X[there, feature])
        expected = X[there, feature] - line.predict(cells[there, None])
        np.testing.assert_allclose(
            result[there, feature], expected, atol=1e-9 * np.abs(X[there, feature]).max()
        )
    assert fit["keep"].tolist() == [1] * 5
    later = Wells(pl.DataFrame({"cell_count": [1000, 10]}), "the whole set")
    expected = 1 - fit["intercept"] - np.outer([1000, 10], fit["slope"])
    np.testing.assert_allclose(step.transform(np.ones((2, 5)), later, fit), expected)


def test_cell_count_leaves_features_of_few_values_as_they_are():
    rng = np.random.default_rng(7)
    X = np.column_stack([rng.normal(size=30), rng.integers(0, 5, 30), rng.integers(0, 5, 30)]).astype(float)
    X[4, 2] = NAN
    wells = Wells(pl.DataFrame({"cell_count": rng.integers(50, 4000, 30)}))
    step = CellCount(least_values=5)
    result = step.transform(X, wells, step.fit(X, wells))
    np.testing.assert_array_equal(result[:, 1:], X[:, 1:])
    assert abs(result[:, 0].mean()) < 1e-12
    assert (CellCount().fit(X, wells)["slope"] != 0).all()
    assert (CellCount(least_values=4).fit(X, wells)["slope"] != 0).all()


def test_cell_count_says_what_it_lacks():
    wells = wells_of(6)
    X = np.ones((6, 4))
    unknown = wells.rows.with_columns(
        cell_count=pl.when(pl.col("well") == "A02").then(None).otherwise("cell_count")
    )
    expected = (
        r"cell_count: well 'A02' of plate 'p0' \(2 of 6 wells of plate 'p7'\) has no cell count: bring it in"
    )
    with pytest.raises(RecipeError, match=expected):
        CellCount().fit(X, Wells(unknown, "plate 'p7'"))
    fit = CellCount().fit(X, wells)
    with pytest.raises(RecipeError, match=expected):
        CellCount().transform(X, Wells(unknown, "plate 'p7'"), fit)
    same = Wells(wells.rows.with_columns(cell_count=80), "plate 'p7'")
    with pytest.raises(
        RecipeError,
        match=r"all 6 wells of plate 'p7' have 80 cells, so no line can be fitted: leave cell_count out",
    ):
        CellCount().fit(X, same)
    with pytest.raises(RecipeError, match=r"cell_count: plate 'p7' has 2 well\(s\), at least 3 needed"):
        CellCount().fit(X[:2], wells.at(np.array([0, 1])))
    with pytest.raises(
        RecipeError, match=r"cell_count: the wells of plate 'p7' .* without the column 'cell_count'"
    ):
        CellCount().fit(X, PLATE)
    with pytest.raises(RecipeError, match=r"cell_count\(least_values=-1\): give a number of at least 0"):
        CellCount(least_values=-1)


def test_cell_count_drops_a_feature_that_has_values_at_one_count_only():
    X = np.random.default_rng(8).normal(size=(6, 2))
    X[2:, 1] = NAN
    wells = Wells(pl.DataFrame({"cell_count": [1000, 1000, 2000, 3000, 10, 7]}))
    fit = CellCount().fit(X, wells)
    assert fit["keep"].tolist() == [1, 0]
    assert np.isfinite(np.concatenate(list(fit.values()))).all()
    assert CellCount(least_values=3).fit(X, wells)["keep"].tolist() == [1, 1]  # left as it is
