"""Filters, against pycytominer's feature selection, worked cases and real plates."""

import itertools
import re
import time

import numpy as np
import pandas as pd
import polars as pl
import pytest
from pycytominer import feature_select
from test_steps import NAN, wells_of

from warehouse.errors import RecipeError, UnknownNameError
from warehouse.steps.base import Wells
from warehouse.steps.correlation import Correlation, correlations
from warehouse.steps.filters import (
    UNSTABLE,
    Blocklist,
    DropMissing,
    Frequency,
    Impute,
    MadVariation,
    Noise,
    Outliers,
    Variance,
)

PLACE = "plate 'p7' of batch 'b1' of source 's'"


def kept(step, X, wells=None):
    return (step.fit(X, wells or Wells(place=PLACE))["keep"] > 0).tolist()


def difficult(rng, missing):
    """80 wells × 60 features: scales 1e-4 to 1e3, repeated values, constants, copies, mixtures, missing elements."""
    X = rng.normal(size=(80, 60)) * 10 ** rng.uniform(-4, 3, 60)
    X[:, 10:30] += X[:, :20] * rng.uniform(-3, 6, 20)
    X[:, 30:36] = X[:, :6] * [2, 1, -1, 3, 0.5, 1] + rng.normal(size=(80, 6)) * 0.02 * X[:, :6].std(axis=0)
    X[:, 40:46] = rng.integers(0, 4, (80, 6)) == 0
    X[:, 46] = np.arange(80) == 3
    X[:, 47] = 0.1
    X[:, 48] = np.round(X[:, 48] / X[:, 48].std())
    X[rng.random(X.shape) < missing * rng.uniform(0, 1.8, 60)] = NAN
    return X


@pytest.mark.parametrize("missing", [0.0, 0.05, 0.5])
@pytest.mark.parametrize("samples", ["all", "Metadata_control == 'negcon'"])
@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize(
    ("step", "operation", "options"),
    [
        (Variance(), "variance_threshold", {}),
        (Variance(threshold=1e-5), "variance_threshold", {"min_variance": 1e-5}),
        (Variance(threshold=0), "variance_threshold", {"min_variance": 0.0}),
        (Frequency(), "frequency_threshold", {}),
        (
            Frequency(freq_cut=0.4, unique_cut=0.3),
            "frequency_threshold",
            {"freq_cut": 0.4, "unique_cut": 0.3},
        ),
        (Correlation(), "correlation_threshold", {}),
        (Correlation(threshold=0.4), "correlation_threshold", {"corr_threshold": 0.4}),
        (DropMissing(), "drop_na_columns", {}),
        (DropMissing(cutoff=0), "drop_na_columns", {"na_cutoff": 0}),
        (DropMissing(cutoff=0.5), "drop_na_columns", {"na_cutoff": 0.5}),
        (Outliers(), "drop_outliers", {}),
        (Outliers(cutoff=3), "drop_outliers", {"outlier_cutoff": 3}),
        (Noise(), "noise_removal", {"noise_removal_stdev_cutoff": 0.8}),
        (Noise(cutoff=20), "noise_removal", {"noise_removal_stdev_cutoff": 20}),
    ],
    ids=lambda value: value.text if hasattr(value, "text") else "",
)
def test_equals_pycytominer(step, operation, options, seed, samples, missing):
    rng = np.random.default_rng(seed)
    X = difficult(rng, missing)
    names = [f"Cells_f{i}" for i in range(X.shape[1])]
    frame = pd.DataFrame(X, columns=names)
    frame["Metadata_control"] = ["negcon" if i < 30 else "trt" for i in range(80)]
    treatments = [f"t{i % 7}" if i % 10 else None for i in range(80)]
    frame["Metadata_treatment"] = treatments
    if operation == "noise_removal":
        options = options | {"noise_removal_perturb_groups": "Metadata_treatment"}
    expected = feature_select(frame, features=names, operation=operation, samples=samples, **options)
    count = 80 if samples == "all" else 30
    wells = Wells(pl.DataFrame({"treatment": treatments[:count]}), PLACE, tuple(names))
    is_there = (~np.isnan(X[:count])).any(axis=0)
    assert (
        is_there.all()
    )  # a feature without any value leaves, where pycytominer lets it through some filters
    mine = [name for name, keep in zip(names, kept(step, X[:count], wells), strict=True) if keep]
    theirs = [name for name in names if name in expected.columns]
    if step.parameters.get("threshold") == 0 and np.isnan(X[:count, 47]).any():
        # scikit-learn takes the rounding of a constant's mean for variance where an element is missing.
        theirs = [name for name in theirs if name != names[47]]
    assert mine == theirs
    if missing == 0 and seed == 0 and samples == "all" and operation != "drop_na_columns":
        assert 0 < len(mine) < len(names)  # it decides something


def test_a_real_plate_comes_out_with_the_features_its_authors_selected(data_dir):
    # Of BoundingBoxMaximum_X of cells and of cytoplasm, which are equal, theirs keeps the other.
    twin = {"Cytoplasm_AreaShape_BoundingBoxMaximum_X", "Cells_AreaShape_BoundingBoxMaximum_X"}
    for plate, width, other in (("BR00147001", 524, twin), ("BR00147002", 660, set())):
        folder = data_dir / "cell_atlas" / "round3"
        before = pl.read_parquet(folder / f"{plate}_bulk_normalized.parquet")
        after = pl.read_parquet(folder / f"{plate}_bulk_feature_selected.parquet")
        names = [name for name in before.columns if not name.startswith("Metadata_")]
        X = before[names].to_numpy()
        for step in (Variance(), Frequency(), Correlation(), DropMissing(cutoff=0)):
            keep = np.array(kept(step, X))
            X, names = X[:, keep], list(itertools.compress(names, keep))
        theirs = {name for name in after.columns if not name.startswith("Metadata_")}
        assert len(names) == len(theirs) == width
        assert set(names) ^ theirs == other


@pytest.mark.parametrize("missing", [0.0, 0.1, 0.9])
def test_correlations_equal_those_of_pandas_pair_by_pair(missing):
    rng = np.random.default_rng(3)
    X = rng.normal(size=(50, 12)) @ rng.normal(size=(12, 12)) * 10 ** rng.uniform(-3, 4, 12) + 1e4
    X[:, 5:][rng.random((50, 7)) < missing] = NAN
    X[:, 11] = np.where(rng.random(50) < 0.5, NAN, 3.5)
    count = (~np.isnan(X)).sum(axis=0)
    expected = pd.DataFrame(X).corr().fillna(0).to_numpy()
    np.testing.assert_allclose(correlations(X, np.nanmean(X, axis=0), count), expected, atol=1e-9)


def test_of_a_correlated_pair_the_more_redundant_goes_and_of_equals_the_later():
    rng = np.random.default_rng(4)
    a, b, c = rng.normal(size=(3, 4000))
    middle = a + 0.3 * b
    # `middle` has r = 0.96 with both its neighbours, they have 0.86; and c is far from −c, as the sign counts.
    X = np.column_stack([a, middle, a + 0.6 * b, c, -c])
    assert kept(Correlation(), X) == [True, False, True, True, True]
    assert kept(Correlation(), np.column_stack([a, a, c, 2 * a + 1])) == [True, False, True, False]
    X = np.column_stack([a, np.full(4000, 0.1), np.full(4000, 0.1)])
    # Constants correlate with none: `variance` is for them.
    assert kept(Correlation(), X) == [True, True, True]


def test_correlation_of_3000_features_takes_seconds_where_pairs_in_pandas_take_minutes():
    rng = np.random.default_rng(5)
    base = rng.normal(size=(400, 300))
    X = np.repeat(base, 10, axis=1) + rng.normal(size=(400, 3000)) * 0.2
    start = time.perf_counter()
    fit = Correlation().fit(X, Wells())
    X[::50, ::3] = NAN
    lacking = Correlation().fit(X, Wells())
    assert time.perf_counter() - start < 20
    # One of each ten copies stays at least, and none correlates with another that stayed.
    assert 300 <= fit["keep"].sum() < 400
    assert 300 <= lacking["keep"].sum() < 400
    R = pd.DataFrame(X[:, lacking["keep"] > 0]).corr().to_numpy()
    assert (R - np.eye(len(R))).max() <= 0.9


def test_mad_variation_is_that_of_the_jump_recipe():
    X = np.array(
        [[1.0, 1000, 0, 5, -2], [2, 1000.1, 1, 5, -3], [3, 1000.2, -1, 5, -4], [4, 1000.3, 7, 6, -9]]
    )
    fit = MadVariation(on="controls").fit(X, Wells())
    np.testing.assert_allclose(fit["variation"], [1 / 2.5, 0.1 / 1000.15, 2.0, 0, 1 / 3.5], atol=1e-9)
    assert (fit["keep"] > 0).tolist() == [True, False, True, False, True]
    assert kept(MadVariation(), X - [0, 0, 0.5, 0, 0]) == [True, False, False, False, True]  # a median of 0


def test_outliers_by_quantile_equal_pandas():
    X = np.random.default_rng(6).standard_t(2, size=(300, 40)) * 12
    X[::7, 3] = NAN
    found = Outliers(cutoff=100, quantile=0.99).fit(X, Wells())
    expected = pd.DataFrame(X).abs().quantile(0.99)
    np.testing.assert_allclose(found["largest"], expected)
    assert (found["keep"] > 0).tolist() == (expected <= 100).tolist()
    assert 0 < found["keep"].sum() < 40


def test_noise_by_compound_and_without_replicates():
    wells = wells_of(8, 1)
    X = np.arange(8.0)[:, None]
    assert Noise(by="compound").fit(X, wells)["noise"].tolist() == Noise().fit(X, wells)["noise"].tolist()
    alone = Wells(
        wells.rows.with_columns(treatment=pl.Series(["a", "b", None, "c", "d", "e", "f", "g"])), PLACE
    )
    expected = r"noise: no treatment has two wells in plate 'p7' .* \(7 have one, 1 wells have none\): bring a layout"
    with pytest.raises(RecipeError, match=expected):
        Noise().fit(X, alone)
    with pytest.raises(
        RecipeError, match=r"noise: the wells of plate 'p7' .* come without the column 'treatment'"
    ):
        Noise().fit(X, Wells(wells.rows.drop("treatment"), PLACE))
    with pytest.raises(
        UnknownNameError, match=r"grouping \(by=\) of step noise 'treatmnt'. Did you mean 'treatment'"
    ):
        Noise(by="treatmnt")


def test_the_default_pattern_names_every_feature_of_pycytominers_list():
    from importlib.resources import files

    listed = (files("pycytominer") / "data" / "blocklist_features.txt").read_text().split()[1:]
    assert len(listed) == 55
    pattern = re.compile(UNSTABLE)
    assert [name for name in listed if not pattern.fullmatch(name)] == []


def test_blocklist_on_a_plate_is_pycytominers_for_the_same_channels(data_dir):
    tables = (data_dir / "cellprofiler" / "cpg0043-segmentation").rglob("*.csv")
    compartments = {path.stem: pl.read_csv(path, n_rows=1).columns for path in tables}
    names = tuple(
        f"{kind}_{name}" for kind in ("Cells", "Cytoplasm", "Nuclei") for name in compartments[kind]
    )
    frame = pd.DataFrame(np.zeros((2, len(names))), columns=list(names))
    expected = feature_select(frame, features=list(names), operation="blocklist").columns
    X = np.zeros((2, len(names)))
    left_out = set(
        itertools.compress(names, [not keep for keep in kept(Blocklist(), X, Wells(features=names))])
    )
    theirs = set(names) - set(expected)
    assert len(theirs) == 55
    assert theirs <= left_out
    # What ours leaves out beside is the same measurements of the channels that their list does not know.
    assert all(re.search("_(BFLow|BFHigh|Brightfield)(_|$)", name) for name in left_out - theirs)
    assert len(left_out) == 136


def test_blocklist_takes_a_file_or_a_pattern(tmp_path):
    names = ("Image_Count", "Cells_a", "Nuclei_Granularity_15_DNA", "Nuclei_Granularity_1_DNA")
    X, wells = np.zeros((2, 4)), Wells(place=PLACE, features=names)
    assert kept(Blocklist(), X, wells) == [True, True, False, True]
    file = tmp_path / "names.txt"
    file.write_text("blocklist\nCells_a \n\nCells_b\n", encoding="utf-8")
    assert kept(Blocklist(file=str(file)), X, wells) == [True, False, True, True]
    assert kept(Blocklist(pattern="Image_.*"), X, wells) == [False, True, True, True]
    assert kept(Blocklist(file=str(file), pattern="Image"), X, wells) == [
        True,
        False,
        True,
        True,
    ]  # whole names
    assert kept(Blocklist(file=str(file), pattern="Image_.*"), X, wells) == [False, False, True, True]
    with pytest.raises(
        RecipeError, match=r"blocklist\(file=.*none.txt\): No such file or directory: give a text file"
    ):
        Blocklist(file=str(tmp_path / "none.txt")).fit(X, wells)
    file.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(RecipeError, match=r"names.txt\): it is no UTF-8 text"):
        Blocklist(file=str(file)).fit(X, wells)
    with pytest.raises(RecipeError, match=r"blocklist\(pattern=\[\): no regular expression, unterminated"):
        Blocklist(pattern="[")
    with pytest.raises(RecipeError, match=r"the 4 features of plate 'p7' .* have no names to compare"):
        Blocklist().fit(X, Wells(place=PLACE))


def test_impute_fills_with_the_median_and_counts():
    X = np.array([[1.0, NAN, 7], [2, NAN, NAN], [9, NAN, 8]])
    step = Impute()
    fit = step.fit(X, Wells())
    assert fit["missing"].tolist() == [0, 3, 1]
    assert fit["keep"].tolist() == [1, 0, 1]
    later = np.array([[NAN, 3.0, NAN]])
    np.testing.assert_array_equal(step.transform(later, Wells(), fit), [[2, 3, 7.5]])
    assert step.notes(fit) == ("1 missing elements of 1 features are estimates",)
    assert step.notes(step.fit(X[:, :1], Wells())) == ()


def test_a_feature_without_any_value_leaves_by_every_filter_that_looks_at_values():
    X = np.column_stack([np.random.default_rng(7).normal(size=8) / 2, np.full(8, NAN)])
    wells = wells_of(8, 2)
    for step in (Variance(), MadVariation(), Frequency(), Correlation(), DropMissing(), Outliers(), Noise()):
        assert kept(step, X, wells) == [True, False], step.name
    # The wells that have no value count: all of 8 are missing, not more than all.
    assert kept(DropMissing(cutoff=1), X) == [True, True]


@pytest.mark.parametrize(
    ("cls", "parameters", "expected"),
    [
        (Variance, {"threshold": -1}, r"variance\(threshold=-1\): give a number of at least 0$"),
        (MadVariation, {"threshold": NAN}, r"mad_variation\(threshold=nan\): give a number of at least 0"),
        (Frequency, {"freq_cut": 2}, r"frequency\(freq_cut=2\): give a number of at least 0 and at most 1"),
        (Frequency, {"unique_cut": -0.1}, r"frequency\(unique_cut=-0.1\)"),
        (Correlation, {"threshold": 1.5}, r"correlation\(threshold=1.5\): .* at most 1"),
        (DropMissing, {"cutoff": 5}, r"drop_missing\(cutoff=5\): .* at most 1"),
        (Outliers, {"cutoff": -1}, r"outliers\(cutoff=-1\)"),
        (Outliers, {"quantile": 99}, r"outliers\(quantile=99\): .* at most 1"),
        (Noise, {"cutoff": float("inf")}, r"noise\(cutoff=inf\)"),
    ],
)
def test_a_parameter_out_of_its_range_is_refused(cls, parameters, expected):
    with pytest.raises(RecipeError, match=expected):
        cls(**parameters)
