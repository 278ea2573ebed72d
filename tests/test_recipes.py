"""Recipes: text, slugs, ordered application, stored fits."""

import re

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from warehouse.errors import RecipeError, UnknownNameError
from warehouse.fitting import StoredFit, fit_transform, transform
from warehouse.recipes import NAMED, Recipe, parse
from warehouse.steps import COLUMNS, STEPS, Wells
from warehouse.steps.scaling import Center, MadRobustize, Standardize
from warehouse.steps.sphering import Sphering

NAN = float("nan")


def wells(plates, per_plate=8, controls=4):
    rows = [
        (
            "s", f"b{plate[1]}", plate, f"A{i + 1:02d}", 1, i + 1, "DMSO" if i < controls else f"x{i % 2}@1uM",
            "DMSO" if i < controls else f"x{i % 2}", "negative" if i < controls else "none", 50 + 7 * i + ord(plate[1]),
        )
        for plate in plates
        for i in range(per_plate)
    ]  # fmt: skip
    return pl.DataFrame(rows, schema=COLUMNS, orient="row")


def profiles(n, d=5, seed=0):
    return np.random.default_rng(seed).normal(3, 2, (n, d))


@pytest.mark.parametrize(
    ("text", "canonical", "slug"),
    [
        ("none", "none", "none"),
        (" standardize ", "standardize", "standardize"),
        ("mad_robustize+sphering", "mad_robustize+sphering", "mad_robustize_sphering"),
        ("sphering(lambda=1e-3,on=controls)", "sphering", "sphering"),
        ("standardize ( on = all ) + sphering()", "standardize(on=all)+sphering", None),
        ("sphering(on=all, lambda=1e+2)", "sphering(on=all,lambda=100.0)", None),
        ("mad_robustize+sphering(lambda=0.01)", "mad_robustize+sphering(lambda=0.01)", None),
    ],
)
def test_text_and_slug(text, canonical, slug):
    recipe = parse(text)
    assert recipe.text == canonical
    assert parse(canonical) == recipe
    assert recipe.slug == slug if slug else re.fullmatch(r"[a-z_]+_[0-9a-f]{8}", recipe.slug)


def test_a_slug_is_stable_and_tells_parameters_apart():
    # Tables carry this name: a change here orphans them.
    assert parse("mad_robustize+sphering(lambda=0.01)").slug == "mad_robustize_sphering_8e1d996e"
    assert parse("sphering(lambda=0.01)").slug != parse("sphering(lambda=0.02)").slug
    long = parse("+".join(["mad_robustize"] * 9)).slug
    assert len(long) <= 48
    assert long != parse("+".join(["mad_robustize"] * 8)).slug


some_step = st.one_of(
    st.builds(
        Standardize, scope=st.sampled_from(["plate", "batch", "all"]), on=st.sampled_from(["all", "controls"])
    ),
    st.builds(MadRobustize),
    st.builds(Center, on=st.sampled_from(["all", "controls"])),
    st.builds(Sphering, lambda_=st.floats(1e-12, 1e12)),
)


@settings(deadline=None)
@given(st.lists(some_step, max_size=4))
def test_any_recipe_survives_its_text(steps):
    recipe = Recipe(tuple(steps))
    assert parse(recipe.text) == recipe
    assert re.fullmatch(r"[a-z0-9_]{1,48}", recipe.slug)


@pytest.mark.parametrize(
    ("text", "error", "message"),
    [
        ("sphring", UnknownNameError, r"unknown recipe or step 'sphring'. Did you mean 'sphering'\?.*none"),
        (
            "sphering(lamda=1)",
            UnknownNameError,
            r"parameter of step sphering 'lamda'. Did you mean 'lambda'\?",
        ),
        ("sphering(on=control)", UnknownNameError, r"'control'. Did you mean 'controls'\?"),
        ("sphering(lambda=small)", RecipeError, r"sphering\(lambda=small\): give a number above 0"),
        ("sphering(epsilon=x)", RecipeError, r"epsilon='x' is no number: write such as epsilon=0.001"),
        ("sphering(lambda=-1)", RecipeError, r"sphering\(lambda=-1.0\): give a number above 0"),
        ("sphering(lambda)", RecipeError, r"'lambda' in step sphering: write parameter=value"),
        ("sphering(on=all,on=all)", RecipeError, r"parameter 'on' of step sphering is given twice"),
        ("sphering(on=all", RecipeError, r"'sphering\(on=all' is no step"),
        ("standardize++center", RecipeError, r"'' is no step"),
        ("", RecipeError, r"recipe '': '' is no step"),
        ("none+center", RecipeError, r"'none' stands alone"),
        ("kim+center", RecipeError, r"'kim' is a whole recipe: write its steps to change or extend it"),
        ("+".join(["center"] * 51), RecipeError, r"has 51 steps, 50 at most"),
        (
            "harmony(seed=1e30)",
            RecipeError,
            r"harmony\(seed=1e\+30\): give a whole number from 0 to 2147483647",
        ),
        (
            "harmony(theta=1e300)",
            RecipeError,
            r"harmony\(theta=1e\+300\): give a number above 0, up to a million",
        ),
    ],
)
def test_a_wrong_text_is_explained(text, error, message):
    with pytest.raises(error, match=message):
        parse(text)


def test_none_returns_the_profiles():
    X = profiles(8)
    result = fit_transform(parse("none"), X, wells(["p1"]))
    np.testing.assert_array_equal(result.profiles, X)
    assert result.kept.all()
    assert result.fits == []
    assert result.profiles is not X


def test_steps_are_applied_in_order_plate_by_plate_on_their_controls():
    groups = wells(["p1", "p2"]).sample(fraction=1, shuffle=True, seed=1)
    X = profiles(16)
    result = fit_transform(parse("standardize+center(scope=batch)"), X, groups)
    expected = X.copy()
    for plate in ("p1", "p2"):
        rows = (groups["plate"] == plate).to_numpy()
        controls = X[rows & (groups["control_type"] == "negative").to_numpy()]
        expected[rows] = (X[rows] - controls.mean(axis=0)) / controls.std(axis=0)
        expected[rows] -= expected[rows].mean(axis=0)  # b1 holds p1 only, b2 p2 only
    np.testing.assert_allclose(result.profiles, expected, atol=1e-12)
    assert [(fit.step_index, fit.source, fit.batch, fit.plate) for fit in result.fits] == [
        (0, None, None, None), (0, "s", "b1", "p1"), (0, "s", "b2", "p2"),
        (1, None, None, None), (1, "s", "b1", None), (1, "s", "b2", None),
    ]  # fmt: skip


def test_plates_of_one_name_in_two_batches_are_two_plates():
    groups = wells(["p1", "p1"]).with_columns(batch=pl.Series(["x"] * 8 + ["y"] * 8))
    result = fit_transform(parse("mad_robustize"), profiles(16), groups)
    assert [fit.batch for fit in result.fits] == [None, "x", "y"]


#: Steps that need a parameter to leave something of these wells, and how near later wells come to those of the fit
#: where the step's own result is another computation (`Step.together`).
ADAPTED = {"noise": "noise(cutoff=5)", "mad_variation": "mad_variation(threshold=1e-6)"}
NEAR = {"inverse_normal": 1e-9, "harmony": 1e-5}


@pytest.mark.parametrize("text", [step.name for step in STEPS] + ["mad_robustize+sphering(lambda=0.01)"])
def test_stored_fits_give_the_same_numbers(text):
    groups, X, names = wells(["p1", "p2", "p3"]), profiles(24, d=9), list("abcdefghi")
    X[groups["plate"].to_numpy() == "p2", 4] = 1.5  # dropped by mad_robustize for all plates
    recipe, near = parse(ADAPTED.get(text, text)), NEAR.get(text, 0)
    first = fit_transform(recipe, X, groups, names)
    again = transform(recipe, X, groups, first.fits, names)
    np.testing.assert_allclose(again.profiles, first.profiles, rtol=near, atol=near)
    assert again.fits == []
    one = (groups["plate"] == "p2").to_numpy()
    alone = transform(recipe, X[one][::-1], groups.filter(one).reverse(), first.fits, names)
    np.testing.assert_allclose(
        alone.profiles[::-1], first.profiles[one], rtol=max(near, 1e-12), atol=max(near, 1e-12)
    )
    np.testing.assert_array_equal(alone.kept, first.kept)
    assert alone.names == first.names


def test_a_known_plate_needs_no_controls_any_more():
    groups, X = wells(["p1"]), profiles(8)
    recipe = parse("standardize")
    first = fit_transform(recipe, X, groups)
    treated = (groups["control_type"] == "none").to_numpy()
    later = transform(recipe, X[treated], groups.filter(treated), first.fits)
    np.testing.assert_array_equal(later.profiles, first.profiles[treated])


def test_a_new_plate_is_fitted_on_itself_and_sphered_with_the_stored_fit():
    recipe = parse("standardize+sphering")
    first = fit_transform(recipe, profiles(16), wells(["p1", "p2"]))
    new = profiles(8, seed=9) * 40 + 7
    later = transform(recipe, new, wells(["p3"]), first.fits)
    assert [(fit.step_index, fit.plate) for fit in later.fits] == [(0, "p3")]
    sphering = next(fit.arrays for fit in first.fits if fit.step_index == 1)
    z = (new - new[:4].mean(axis=0)) / new[:4].std(axis=0)
    np.testing.assert_allclose(later.profiles, Sphering().transform(z, Wells(), sphering))
    # With its own fit stored too, the plate comes out the same.
    again = transform(recipe, new, wells(["p3"]), first.fits + later.fits)
    np.testing.assert_array_equal(again.profiles, later.profiles)
    assert again.fits == []


def test_a_constant_feature_leaves_the_whole_feature_set_and_is_recorded():
    groups, X = wells(["p1", "p2"]), profiles(16, d=4)
    X[:8, 1] = 3.0
    X[8:, 3] = -2.0
    result = fit_transform(parse("mad_robustize"), X, groups, ["a", "b", "c", "d"])
    assert result.kept.tolist() == [True, False, True, False]
    assert result.profiles.shape == (16, 2)
    assert [fit.arrays["constant"].tolist() for fit in result.fits[1:]] == [[0, 1, 0, 0], [0, 0, 0, 1]]
    assert [fit.arrays["keep"].tolist() for fit in result.fits] == [[1, 0, 1, 0]] * 3
    assert (result.names, result.constant) == (("a", "c"), ("b", "d"))


def test_a_mask_of_a_later_step_counts_from_the_features_left():
    X = profiles(16, d=4)
    X[:, 0] = 1.0
    X[8:, 2] = np.r_[
        np.full(4, 5.0), np.full(4, 6.0)
    ]  # constant on the controls only: stays under mad(on=all)
    result = fit_transform(
        parse("mad_robustize+mad_robustize(on=controls)"), X, wells(["p1", "p2"]), ["a", "b", "c", "d"]
    )
    assert result.kept.tolist() == [False, True, False, True]
    assert result.fits[-1].arrays["keep"].tolist() == [1, 0, 1]


def test_a_new_plate_that_lacks_a_kept_feature_is_named():
    recipe = parse("mad_robustize")
    first = fit_transform(recipe, profiles(16), wells(["p1", "p2"]))
    new = profiles(8, seed=4)
    new[:, 2] = 0
    expected = (
        r"feature 'c' \(1 in all\) is constant or has no value in plate 'p3' of batch 'b3' of source 's'"
    )
    with pytest.raises(RecipeError, match=expected):
        transform(recipe, new, wells(["p3"]), first.fits, list("abcde"))


def test_missing_elements_are_skipped_then_refused_by_sphering():
    groups, X = wells(["p1"]), profiles(8)
    X[6, 3] = NAN
    result = fit_transform(parse("mad_robustize"), X, groups)
    assert np.argwhere(np.isnan(result.profiles)).tolist() == [[6, 3]]
    # The well is treated: the fit on controls does not see it, the transform does.
    with pytest.raises(
        RecipeError, match=r"sphering: feature 'd' has no value in 1 of 8 wells of the whole set"
    ):
        fit_transform(parse("mad_robustize+sphering"), X, groups, list("abcde"))


def test_a_plate_without_controls_is_named():
    groups = pl.concat([wells(["p1"]), wells(["p2"], controls=1)])
    expected = r"standardize: plate 'p2' of batch 'b2' of source 's' has 1 negative control\(s\)"
    with pytest.raises(RecipeError, match=expected):
        fit_transform(parse("standardize"), profiles(16), groups)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda X, g: (X[:-1], g), r"shape \(7, 5\) do not fit 8 wells"),
        (lambda X, g: (np.where(X[2, 1] == X, np.inf, X), g), r"feature 'b' is inf in row 2 \(plate 'p1'"),
    ],
)
def test_input_that_cannot_be_corrected_is_named(change, message):
    X, groups = change(profiles(8), wells(["p1"]))
    with pytest.raises(RecipeError, match=message):
        fit_transform(parse("standardize"), X, groups, list("abcde"))


def test_an_absent_column_is_named():
    with pytest.raises(UnknownNameError, match=r"column of the wells' groups 'plate'"):
        fit_transform(parse("standardize"), profiles(8), wells(["p1"]).drop("plate"))


def test_fits_that_do_not_fit_are_named():
    recipe = parse("sphering")
    fits = fit_transform(recipe, profiles(8, d=4), wells(["p1"])).fits
    with pytest.raises(
        RecipeError, match=r"stored 'mean' for the whole set has 4 features, the profiles have 5"
    ):
        transform(recipe, profiles(8), wells(["p1"]), fits)
    with pytest.raises(RecipeError, match=r"step 2 of recipe 'standardize\+sphering' has no stored fit"):
        transform(
            parse("standardize+sphering"),
            profiles(8),
            wells(["p1"]),
            fit_transform(parse("standardize"), profiles(8), wells(["p1"])).fits,
        )


def test_no_feature_left_is_named():
    with pytest.raises(RecipeError, match=r"none of the 5 features is left; plate 'p1' .* keeps 0"):
        fit_transform(parse("mad_robustize"), np.ones((8, 5)), wells(["p1"]))


def test_the_input_is_left_as_it_is_and_float32_is_taken():
    X = profiles(8).astype(np.float32)
    before = X.copy()
    result = fit_transform(parse("standardize+sphering"), X, wells(["p1"]))
    np.testing.assert_array_equal(X, before)
    assert result.profiles.dtype == np.float64
    assert isinstance(result.fits[0], StoredFit)


def test_a_plus_within_parentheses_parts_no_steps():
    recipe = parse("blocklist(pattern=Cells_+(Area|X).*)+center")
    assert [step.name for step in recipe.steps] == ["blocklist", "center"]
    assert recipe.steps[0].parameters["pattern"] == "Cells_+(Area|X).*"


def test_named_recipes_have_names_of_their_own_and_fit_their_steps():
    names = [recipe.name for recipe in NAMED]
    assert len({*names, *(step.name for step in STEPS)}) == len(names) + len(STEPS)
    for named in NAMED:
        found = parse(named.name)
        assert (found.name, found.slug) == (named.name, named.name)
        assert parse(found.text).steps == found.steps
        assert parse(found.text).level == found.level
