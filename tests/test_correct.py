"""Correction from end to end: what is written, what is kept when plates come, change or are relabelled."""

from dataclasses import replace

import numpy as np
import polars as pl
import pytest
from builders import commit, layout, new_lake, plate, random_plate, wide

from warehouse import fits, fitting, profiles, recipes
from warehouse.correct import correct
from warehouse.embeddings import to_column
from warehouse.errors import RecipeError, UnknownNameError
from warehouse.status import status
from warehouse.steps import Wells

SET = wide(4)
ONE, TWO, THREE = ("s", "b1", "p1"), ("s", "b1", "p2"), ("s", "b2", "p3")
PLATES = {ONE: 1, TWO: 2}
ALL_SCOPE = "standardize+sphering(lambda=0.1)"


@pytest.fixture
def lake(tmp_path):
    with new_lake(tmp_path / "lake") as made:
        for key, seed in PLATES.items():
            commit(made, random_plate(key, seed, shift=seed), SET)
        yield made


def corrected(lake, recipe, plate_name=None):
    """Well to corrected profile, of one plate or of all."""
    table = profiles.read(lake, "wide", recipe=recipe, level="well")
    ids = table.rows.select("plate", "well").rows()
    return {key: row for key, row in zip(ids, table.matrix, strict=True) if plate_name in (None, key[0])}


def stored(lake, recipe="standardize"):
    """Every row of the recipe's table, with the id that DuckLake gave it when it was written."""
    return lake.frame(
        f"SELECT rowid AS row_id, plate, well, embedding FROM wide.wells__{recipe} ORDER BY plate, well"
    )


def by_hand(data):
    """z-scores against the plate's negative controls, in float64."""
    matrix = np.array(data.wells["embedding"].to_list(), dtype=np.float64)
    controls = matrix[(data.layout["control_type"] == "negative").to_numpy()]
    return dict(zip(data.wells["well"], (matrix - controls.mean(axis=0)) / controls.std(axis=0), strict=True))


def test_standardize_equals_numpy_plate_by_plate(lake):
    report = correct(lake, "wide", "standardize")
    assert (report.outcome, report.recipe, report.steps) == ("fitted", "standardize", "standardize")
    assert (report.plates, report.wells, report.features, report.features_dropped) == (2, 20, 4, ())
    found = corrected(lake, "standardize")
    assert len(found) == 20
    for key, seed in PLATES.items():
        for well, expected in by_hand(random_plate(key, seed, shift=seed)).items():
            np.testing.assert_allclose(found[key[2], well], expected, rtol=1e-5, atol=1e-6)
    assert lake.frame("SELECT * EXCLUDE (run, fitted_at) FROM main.recipes").rows() == [
        ("wide", "standardize", "standardize", 4, ["f1", "f2", "f3", "f4"])
    ]


def test_views_stand_over_the_corrected_wells(lake):
    correct(lake, "wide", "standardize")
    expected = np.mean([by_hand(random_plate(k, s, shift=s))["B01"] for k, s in PLATES.items()], axis=0)
    for level in ("treatments", "sources", "consensus"):
        view = f"SELECT embedding FROM wide.{level}__standardize WHERE treatment = 'c0@1uM'"
        np.testing.assert_allclose(lake.value(view), expected, rtol=1e-5, atol=1e-6)
    controls = lake.value("SELECT embedding FROM wide.treatments__standardize WHERE treatment = 'DMSO'")
    np.testing.assert_allclose(controls, 0, atol=1e-6)
    # What came in is as it was.
    raw = np.array(random_plate(ONE, 1, shift=1).wells["embedding"].to_list(), dtype=np.float32)
    assert (
        lake.frame("SELECT embedding FROM wide.wells WHERE plate = 'p1' ORDER BY well")["embedding"].to_list()
        == raw.tolist()
    )


def test_again_is_unchanged(lake):
    correct(lake, "wide", "standardize")
    before = lake.snapshot()
    report = correct(lake, "wide", "standardize")
    assert (report.outcome, report.plates, report.wells, report.features) == ("unchanged", 0, 0, 4)
    assert lake.snapshot() == before


@pytest.mark.parametrize("recipe", ["standardize", ALL_SCOPE])
def test_a_new_plate_is_corrected_with_the_stored_fit_and_others_are_untouched(lake, recipe):
    slug = correct(lake, "wide", recipe).recipe
    first, fits = stored(lake, slug), lake.frame("SELECT * FROM main.recipe_fits ORDER BY ALL")
    before = lake.snapshot()
    commit(lake, random_plate(THREE, 3, shift=5), SET)
    report = correct(lake, "wide", recipe)
    assert (report.outcome, report.plates, report.wells) == ("extended", 1, 10)
    after = stored(lake, slug)
    assert after.filter(pl.col("plate") != "p3").equals(first)  # also their row ids: not written again
    deleted = f"FROM ducklake_table_deletions('lake', 'wide', 'wells__{slug}', {before}, {lake.snapshot()})"
    assert lake.frame(f"SELECT * {deleted}").is_empty()
    # By hand: the plate against its own controls, then the sphering that was fitted on the first two plates.
    expected = by_hand(random_plate(THREE, 3, shift=5))
    if recipe == ALL_SCOPE:
        old = [by_hand(random_plate(k, s, shift=s)) for k, s in PLATES.items()]
        X = np.array([z for each in old for well, z in each.items() if well.startswith("A")])
        mean = X.mean(axis=0)
        values, vectors = np.linalg.eigh((X - mean).T @ (X - mean) / len(X))
        whiten = vectors @ np.diag(1 / np.sqrt(values + 0.1)) @ vectors.T
        expected = {well: whiten @ (z - mean) for well, z in expected.items()}
    for (_, well), row in corrected(lake, recipe, "p3").items():
        np.testing.assert_allclose(row, expected[well], rtol=1e-4, atol=1e-5)
    now = lake.frame("SELECT * FROM main.recipe_fits ORDER BY ALL")
    assert now.filter(pl.col("plate").is_null() | (pl.col("plate") != "p3")).equals(fits)
    assert set(now.filter(pl.col("plate") == "p3")["step_name"]) == {"standardize"}


def test_refit_fits_on_everything(lake):
    correct(lake, "wide", ALL_SCOPE)
    commit(lake, random_plate(THREE, 3, shift=5), SET)
    correct(lake, "wide", ALL_SCOPE)
    old = corrected(lake, ALL_SCOPE)
    report = correct(lake, "wide", ALL_SCOPE, refit=True)
    assert (report.outcome, report.plates, report.wells) == ("fitted", 3, 30)
    new = corrected(lake, ALL_SCOPE)
    assert not any(np.allclose(new[key], old[key], atol=1e-4) for key in new)
    table = profiles.read(lake, "wide", level="well")
    direct = fitting.fit_transform(recipes.parse(ALL_SCOPE), table.matrix, table.rows)
    np.testing.assert_allclose(list(new.values()), direct.profiles, rtol=1e-5, atol=1e-6)
    assert lake.value("SELECT count(*) FROM main.recipes") == 1


def test_a_replaced_plate_is_corrected_anew(lake):
    correct(lake, "wide", "standardize")
    first = stored(lake)
    commit(lake, random_plate(TWO, 22, shift=9), SET)
    assert set(lake.frame("SELECT plate FROM wide.wells__standardize")["plate"]) == {"p1"}
    report = correct(lake, "wide", "standardize")
    assert (report.outcome, report.plates) == ("extended", 1)
    for (_, well), row in corrected(lake, "standardize", "p2").items():
        np.testing.assert_allclose(row, by_hand(random_plate(TWO, 22, shift=9))[well], rtol=1e-5, atol=1e-6)
    assert stored(lake).filter(pl.col("plate") == "p1").equals(first.filter(pl.col("plate") == "p1"))
    fits = "SELECT array_name, count(*) FROM main.recipe_fits WHERE plate = 'p2' GROUP BY ALL HAVING count(*) > 1"
    assert lake.frame(fits).is_empty()


def test_when_every_plate_was_replaced_the_recipe_is_fitted_anew(lake):
    """Nothing is left that the stored fit would keep comparable; a feature set of one plate ends here each time."""
    for recipe in ("standardize", ALL_SCOPE):
        correct(lake, "wide", recipe)
    for key, seed in ((ONE, 11), (TWO, 22)):
        commit(lake, random_plate(key, seed, shift=seed), SET)
    for recipe in ("standardize", ALL_SCOPE):
        report = correct(lake, "wide", recipe)
        assert (report.outcome, report.plates, report.wells) == ("fitted", 2, 20)
    for key, seed in ((ONE, 11), (TWO, 22)):
        for (_, well), row in corrected(lake, "standardize", key[2]).items():
            np.testing.assert_allclose(
                row, by_hand(random_plate(key, seed, shift=seed))[well], rtol=1e-5, atol=1e-5
            )


def test_a_relabelled_plate_loses_its_correction_and_gets_it_anew(lake):
    """Another layout is another set of controls."""
    correct(lake, "wide", "standardize")
    data = random_plate(TWO, 2, shift=2)
    other = data.layout.with_columns(
        control_type=pl.when(pl.col("well").is_in(["A01", "A02"]))
        .then(pl.lit("negative"))
        .otherwise(pl.lit("none"))
    )
    relabelled = replace(data, layout=other)
    assert commit(lake, relabelled, SET) == "relabelled"
    assert set(lake.frame("SELECT plate FROM wide.wells__standardize")["plate"]) == {"p1"}
    (state,) = status(lake).recipes.rows(named=True)
    assert (state["plates"], state["plates_waiting"]) == (1, 1)
    assert correct(lake, "wide", "standardize").outcome == "extended"
    for (_, well), row in corrected(lake, "standardize", "p2").items():
        np.testing.assert_allclose(row, by_hand(relabelled)[well], rtol=1e-5, atol=1e-5)


def test_dropped_features_are_told_and_recorded(tmp_path):
    """f2 has no value on one plate and f3 is constant on the other: neither is left on any."""
    rng = np.random.default_rng(5)
    with new_lake(tmp_path / "lake") as lake:
        for key, column, value in ((ONE, 1, None), (TWO, 2, 7.0)):
            plan = [
                (
                    f"A{i:02d}",
                    "DMSO" if i < 5 else f"c{i}",
                    None if i < 5 else 1.0,
                    "negative" if i < 5 else "none",
                )
                for i in range(1, 9)
            ]
            wells = {well: rng.normal(size=4).tolist() for well, *_ in plan}
            for vector in wells.values():
                vector[column] = value
            commit(lake, plate(key, wells, "h", layout(key, plan)), SET)
        report = correct(lake, "wide", "mad_robustize")
        assert (report.features, report.features_dropped, report.constant_features) == (
            2,
            ("f2", "f3"),
            ("f3",),
        )
        again = correct(lake, "wide", "mad_robustize")
        assert (again.outcome, again.features, again.features_dropped) == ("unchanged", 2, ("f2", "f3"))
        names = "SELECT dim, feature_names FROM main.recipes"
        assert lake.frame(names).rows() == [(2, ["f1", "f4"])]
        table = profiles.read(lake, "wide", recipe="mad_robustize")
        assert table.feature_names == ("f1", "f4")
        assert table.matrix.shape == (5, 2)
        assert np.isfinite(table.matrix).all()


def test_stored_fits_round_trip_exactly(lake):
    """The fits read back give the same numbers as those in memory, for every kind of step."""
    recipe = recipes.parse("mad_robustize+center+sphering(lambda=0.01)")
    slug = correct(lake, "wide", recipe.text).recipe
    table = profiles.read(lake, "wide", level="well")
    made = fitting.fit_transform(recipe, table.matrix, table.rows)
    back = fits.stored(lake, "wide", slug, [ONE, TWO], [], 3)
    # Of the plates' own fits only what is settled for the whole set is needed again.
    assert len(made.fits) == (1 + 2) + (1 + 1) + 1
    assert len(back) == 1 + (1 + 1) + 1
    by_key = {(f.step_index, f.source, f.batch, f.plate): f.arrays for f in back}
    for fit in made.fits:
        if fit.plate is not None:
            continue
        arrays = by_key[fit.step_index, fit.source, fit.batch, fit.plate]
        assert arrays.keys() == fit.arrays.keys()
        for name, array in fit.arrays.items():
            np.testing.assert_array_equal(arrays[name], array)
    again = fitting.transform(recipe, table.matrix, table.rows, back)
    np.testing.assert_allclose(again.profiles, made.profiles, rtol=0, atol=1e-12)
    found = np.array(list(corrected(lake, slug).values()))
    np.testing.assert_allclose(found, again.profiles, rtol=1e-6, atol=1e-6)


def test_refusals_leave_the_lake_as_it_was(lake):
    commit(lake, without_controls(("s", "b2", "without")), wide(4, "bare"))
    before = lake.snapshot()
    with pytest.raises(
        RecipeError,
        match=r"'standardize' can correct none of the 1 plates of feature set 'bare'; plate 'without': standardize: "
        r"its plate has 0 negative control\(s\), at least 2 needed: mark its controls as negative",
    ):
        correct(lake, "bare", "standardize")
    with pytest.raises(RecipeError, match="recipe 'none' needs no correction"):
        correct(lake, "wide", "none")
    with pytest.raises(
        UnknownNameError, match=r"unknown recipe or step 'standardise'. Did you mean 'standardize'\?"
    ):
        correct(lake, "wide", "standardise")
    with pytest.raises(UnknownNameError, match=r"unknown feature set 'wyde'. Did you mean 'wide'\?"):
        correct(lake, "wyde", "standardize")
    assert lake.snapshot() == before


def test_a_set_without_wells_is_refused(lake):
    commit(lake, plate(("s", "b1", "empty"), {}), wide(4, "bare"))
    with pytest.raises(RecipeError, match="feature set 'bare' has no wells yet: ingest a plate first"):
        correct(lake, "bare", "standardize")


def test_a_missing_element_is_refused_by_name_where_a_step_needs_all(lake):
    commit(lake, plate(THREE, {"A01": (1, None, 2, 3)}, "h", layout(THREE, [("A01", "x", 1.0, "none")])), SET)
    with pytest.raises(
        RecipeError, match="sphering: feature 'f2' has no value in 1 of 21 wells of the whole set"
    ):
        correct(lake, "wide", "sphering")
    assert lake.value("SELECT count(*) FROM main.recipes") == 0


def test_reading_a_recipe_that_was_not_made_says_which_were(lake):
    correct(lake, "wide", "standardize")
    with pytest.raises(
        RecipeError,
        match=r"has no recipe 'sphering' \(it has none, standardize\): make it with `wellhouse correct wide",
    ):
        profiles.read(lake, "wide", recipe="sphering")


def without_controls(key):
    data = random_plate(key, 7)
    return replace(data, layout=data.layout.with_columns(control_type=pl.lit("none")), content_hash="without")


def test_a_plate_without_controls_is_left_out_until_it_has_some(lake):
    """It goes in and is named; the others are corrected as if it were not there, and it waits for nothing."""
    key = ("s", "b2", "without")
    alone = correct(lake, "wide", "standardize")
    expected = corrected(lake, "standardize")
    commit(lake, without_controls(key), SET)
    report = correct(lake, "wide", "standardize")
    assert (alone.outcome, report.outcome, report.wells) == ("fitted", "extended", 0)
    assert report.plates_left_out == (
        "without (standardize: its plate has 0 negative control(s), at least 2 needed)",
    )
    found = corrected(lake, "standardize")
    assert found.keys() == expected.keys()
    for well, profile in expected.items():
        np.testing.assert_array_equal(found[well], profile)
    assert lake.frame("SELECT * FROM main.recipe_left_out").rows() == [
        ("wide", "standardize", *key, "standardize: its plate has 0 negative control(s), at least 2 needed")
    ]
    before = lake.snapshot()
    again = correct(lake, "wide", "standardize")
    assert (again.outcome, again.plates_left_out, lake.snapshot()) == (
        "unchanged",
        report.plates_left_out,
        before,
    )
    # A step that is fitted on all wells of a plate needs no controls.
    assert correct(lake, "wide", "standardize(on=all)").plates_left_out == ()
    commit(lake, random_plate(key, 7, content="without"), SET)
    mended = correct(lake, "wide", "standardize")
    assert (mended.outcome, mended.plates_left_out, mended.wells) == ("extended", (), 10)
    assert lake.value("SELECT count(*) FROM main.recipe_left_out WHERE recipe = 'standardize'") == 0
    by_well = by_hand(random_plate(key, 7))
    for (plate_name, well), profile in corrected(lake, "standardize", "without").items():
        assert plate_name == "without"
        np.testing.assert_allclose(profile, by_well[well], rtol=1e-5, atol=1e-6)


def test_batch_without_controls_is_left_out_of_a_fit_by_batch(lake):
    commit(lake, without_controls(("s", "b9", "p9")), SET)
    assert correct(lake, "wide", "standardize(scope=batch)").plates_left_out == (
        "p9 (standardize: its batch has 0 negative control(s), at least 2 needed)",
    )
    commit(lake, random_plate(("s", "b9", "p10"), 10), SET)
    report = correct(lake, "wide", "standardize(scope=batch)")
    assert (report.plates, report.plates_left_out) == (2, ())


def test_a_new_plate_is_corrected_though_the_files_of_all_others_are_gone(tmp_path):
    """Nothing of the others is read, neither what came in nor what was corrected."""
    new = random_plate(THREE, 3, treatments=40)
    with new_lake(tmp_path / "lake") as made:
        for key, seed in PLATES.items():
            commit(made, random_plate(key, seed, treatments=40), SET)
        slug = correct(made, "wide", ALL_SCOPE).recipe
        files = list((tmp_path / "lake" / "data" / "wide" / "wells").rglob("*.parquet"))
        assert len(files) == len(PLATES)
        for path in files:
            path.unlink()
        commit(made, new, SET)
        assert correct(made, "wide", ALL_SCOPE).outcome == "extended"
        stored_fits = fits.stored(made, "wide", slug, [THREE], [], 2)
        found = np.array(list(corrected(made, ALL_SCOPE, "p3").values()))
    fit = next(fit.arrays for fit in stored_fits if fit.step_index == 1)
    expected = (
        recipes.parse(ALL_SCOPE).steps[1].transform(np.array(list(by_hand(new).values())), Wells(), fit)
    )
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


def test_a_recipe_of_fields_makes_wells_of_their_means(tmp_path):
    rng = np.random.default_rng(5)
    target = replace(SET, name="imaged", entry_level="field")
    with new_lake(tmp_path / "lake") as made:
        expected = {}
        for key in (ONE, TWO):
            data = random_plate(key, 1)
            wells = [well for well in data.wells["well"] for _ in range(3)]
            ids = pl.DataFrame({"well": wells, "field": ["1", "2", "3"] * len(data.wells), "cell_count": 7})
            profile = rng.normal(size=(len(ids), 4)).astype(np.float32)
            fields = ids.with_columns(pl.col("cell_count").cast(pl.Int32), to_column(profile))
            commit(made, replace(data, fields=fields), target)
            expected[key] = (ids["well"].to_list(), profile.astype(float))
        report = correct(made, "imaged", "fields:sphering(lambda=0.1)")
        assert (report.recipe[:15], report.wells) == ("fields_sphering", 20)
        controls = np.vstack([p[[w.startswith("A") for w in names]] for names, p in expected.values()])
        values, vectors = np.linalg.eigh(np.cov(controls.T, ddof=0))
        turned = vectors @ np.diag((values + 0.1) ** -0.5) @ vectors.T
        table = profiles.read(made, "imaged", recipe=report.recipe, level="well")
        assert set(table.rows["field_count"]) == {3}
        assert set(table.rows["cell_count"]) == {21}
        for row, found in zip(table.rows.iter_rows(named=True), table.matrix, strict=True):
            names, profile = expected[row["source"], row["batch"], row["plate"]]
            mean = profile[[name == row["well"] for name in names]].mean(axis=0)
            np.testing.assert_allclose(found, (mean - controls.mean(axis=0)) @ turned, rtol=1e-4, atol=1e-5)
        assert correct(made, "imaged", "fields:sphering(lambda=0.1)").outcome == "unchanged"


def test_a_recipe_of_fields_is_refused_where_there_are_only_wells(lake):
    with pytest.raises(
        RecipeError, match="'microsnoop' corrects fields, and feature set 'wide' came in as wells"
    ):
        correct(lake, "wide", "microsnoop")


def test_a_recipe_with_a_name_keeps_it_and_its_steps_are_recorded(lake):
    report = correct(lake, "wide", "moshkov")
    assert (report.recipe, report.steps) == ("moshkov", "sphering")
    table = profiles.read(lake, "wide", recipe="moshkov", level="treatment")
    assert table.recipe == "moshkov"
    # The name came to mean other steps: what stands in the lake is not extended with them.
    lake.connection.execute("UPDATE main.recipes SET steps = 'standardize' WHERE recipe = 'moshkov'")
    with pytest.raises(
        RecipeError, match="'moshkov' was fitted as 'standardize' and now is 'sphering': fit it anew"
    ):
        correct(lake, "wide", "moshkov")
    assert correct(lake, "wide", "moshkov", refit=True).outcome == "fitted"


def test_features_that_a_step_makes_have_their_own_names_and_later_plates_get_them(lake):
    slug = correct(lake, "wide", "pca(components=2)").recipe
    assert profiles.read(lake, "wide", recipe=slug, level="well").feature_names == ("pc_1", "pc_2")
    commit(lake, random_plate(THREE, 3), SET)
    report = correct(lake, "wide", "pca(components=2)")
    assert (report.outcome, report.features, report.features_dropped) == ("extended", 2, ())
    assert profiles.read(lake, "wide", recipe=slug, level="treatment").matrix.shape[1] == 2


def test_too_little_memory_is_refused(lake):
    with pytest.raises(RecipeError, match="memory of 10 MB: allow 64 or more"):
        correct(lake, "wide", "standardize", memory_mb=10)


def test_what_waits_for_a_recipe_with_a_name_is_told_by_its_name(lake):
    correct(lake, "wide", "moshkov")
    commit(lake, random_plate(THREE, 3), SET)
    with pytest.raises(RecipeError, match="run `wellhouse correct wide --recipe 'moshkov'`"):
        profiles.read(lake, "wide", recipe="moshkov", level="well")
    with pytest.raises(RecipeError, match=r"has no recipe 'center' \(it has none, moshkov\)"):
        profiles.read(lake, "wide", recipe="center", level="well")
    assert status(lake).recipes["recipe"].to_list() == ["moshkov"]


@pytest.mark.parametrize("recipe", ["mad_robustize+sphering", "sphering(scope=batch)", "center"])
def test_fits_from_before_the_whole_set_had_its_own_go_on(lake, recipe):
    """What all plates agreed on stood with each of them then."""
    slug = correct(lake, "wide", recipe).recipe
    commit(lake, random_plate(THREE, 3), SET)
    lake.connection.execute(
        "DELETE FROM main.recipe_fits WHERE source IS NULL AND step IN "
        "(SELECT step FROM main.recipe_fits WHERE source IS NOT NULL)"
    )
    before = stored(lake, slug)
    report = correct(lake, "wide", recipe)
    assert (report.outcome, report.wells) == ("extended", 10)
    assert stored(lake, slug).filter(pl.col("plate") != "p3").equals(before)


def test_a_later_plate_that_cannot_be_corrected_holds_up_no_other(lake):
    correct(lake, "wide", "mad_robustize")
    bad = random_plate(("s", "b2", "bad"), 8)
    wells = bad.wells["embedding"].to_list()
    flat = pl.Series("embedding", [[2.0, *row[1:]] for row in wells], dtype=pl.List(pl.Float32))
    commit(lake, replace(bad, wells=bad.wells.with_columns(flat)), SET)
    commit(lake, random_plate(THREE, 3), SET)
    report = correct(lake, "wide", "mad_robustize")
    assert (report.outcome, report.plates, report.wells) == ("extended", 1, 10)
    (told,) = report.plates_left_out
    assert told.startswith(
        "bad (mad_robustize: feature 'f1' (1 in all) is constant or has no value in plate 'bad'"
    )
    assert len(corrected(lake, "mad_robustize", "p3")) == 10
    before = lake.snapshot()
    again = correct(lake, "wide", "mad_robustize")
    assert (again.outcome, again.plates_left_out, lake.snapshot()) == ("unchanged", (told,), before)
    commit(lake, random_plate(("s", "b2", "bad"), 9), SET)
    mended = correct(lake, "wide", "mad_robustize")
    assert (mended.outcome, mended.wells, mended.plates_left_out) == ("extended", 10, ())


def test_features_under_other_names_were_not_dropped(lake):
    for outcome in ("fitted", "unchanged"):
        report = correct(lake, "wide", "pca(components=2)")
        assert (report.outcome, report.features, report.features_dropped) == (outcome, 2, ())
