"""Correlations of learned with named features, against SciPy pair by pair."""

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import pearsonr, spearmanr

from warehouse.errors import EvaluationError, UnknownNameError
from warehouse.metrics import features as module
from warehouse.metrics.features import cellprofiler_groups, feature_correlation, without_correlation


def wells(seed, n=40, d=4, m=9, missing=0):
    """Learned features that mix named ones, with gaps in either."""
    rng = np.random.default_rng(seed)
    named = rng.normal(size=(n, m)) * 10.0 ** np.arange(-4, m - 4)
    learned = named / named.std(axis=0) @ rng.normal(size=(m, d)) + rng.normal(size=(n, d))
    for X in (named, learned):
        X[rng.integers(0, n, missing), rng.integers(0, X.shape[1], missing)] = np.nan
    return learned, named, [f"l{i}" for i in range(d)], [f"n{i}" for i in range(m)]


def naive(learned, named, method, top):
    """Correlate pair by pair over the wells that both have."""
    rows = []
    for i in range(learned.shape[1]):
        found = []
        for j in range(named.shape[1]):
            there = ~np.isnan(learned[:, i]) & ~np.isnan(named[:, j])
            r = (pearsonr if method == "pearson" else spearmanr)(learned[there, i], named[there, j])[0]
            found.append((-abs(r), f"n{j}", r, int(there.sum())))
        rows += [(f"l{i}", rank, *row[1:]) for rank, row in enumerate(sorted(found)[:top], 1)]
    return rows


@pytest.mark.parametrize("method", ["pearson", "spearman"])
@pytest.mark.parametrize("missing", [0, 30])
def test_equals_scipy_pair_by_pair(method, missing):
    learned, named, learned_names, named_names = wells(1, missing=missing)
    table = feature_correlation(learned, named, learned_names, named_names, 4, method=method)
    expected = naive(learned, named, method, 4)
    assert table.columns == ["learned", "rank", "named", "correlation", "n"]
    assert table.drop("correlation").rows() == [(*row[:3], row[4]) for row in expected]
    np.testing.assert_allclose(table["correlation"], [row[3] for row in expected], atol=1e-12)
    assert table["correlation"].min() < 0
    assert (table["n"].min() < 40) == bool(missing)


def test_worked_by_hand():
    named = np.array([[1.0, 2, 4], [2, 1, 4], [3, 0, 4], [4, -1, 5]])
    learned = np.array([[2.0], [4], [6], [8]])
    table = feature_correlation(learned, named, ["l"], ["up", "down", "step"], top=5)
    # Both lines correlate wholly; of equals the first by name. (step - mean) is (-1, -1, -1, 3)/4: r = .7746.
    assert table.rows() == [
        ("l", 1, "down", pytest.approx(-1), 4),
        ("l", 2, "up", pytest.approx(1), 4),
        ("l", 3, "step", pytest.approx(np.sqrt(0.6)), 4),
    ]


def test_the_best_of_each_group():
    learned, named, learned_names, named_names = wells(2)
    groups = ["a", "b", None] * 3
    table = feature_correlation(learned, named, learned_names, named_names, 2, groups=groups)
    assert table.columns == ["learned", "group", "rank", "named", "correlation", "n"]
    assert table["rank"].to_list() == [1, 2] * 8
    for group in ("a", "b"):
        chosen = [i for i in range(9) if groups[i] == group]
        alone = feature_correlation(learned, named[:, chosen], learned_names, [f"n{i}" for i in chosen], 2)
        mine = table.filter(pl.col("group") == group).drop("group")
        assert mine.drop("correlation").equals(alone.drop("correlation"))
        np.testing.assert_allclose(mine["correlation"], alone["correlation"], atol=1e-12)


def test_constant_and_missing_features_correlate_with_nothing():
    learned, named, learned_names, named_names = wells(3)
    learned[:, 1] = 0.1  # its mean is not exactly 0.1
    named[:, 0] = 7
    named[:, 1] = np.nan
    named[2:, 2] = np.nan
    table = feature_correlation(learned, named, learned_names, named_names, top=20)
    assert table.filter(learned="l1").rows() == [("l1", 1, None, None, None)]
    assert sorted(table.filter(learned="l0")["named"]) == ["n3", "n4", "n5", "n6", "n7", "n8"]
    assert without_correlation(learned, learned_names) == {"constant": ["l1"]}
    assert without_correlation(named, named_names) == {
        "constant": ["n0"],
        "fewer than 3 values": ["n1", "n2"],
    }
    # Constant over the wells that the two share, though not over its own.
    named[:, 3] = np.where(np.arange(40) < 20, 1, np.arange(40))
    learned[20:, 2] = np.nan
    assert (
        "n3"
        not in feature_correlation(learned, named, learned_names, named_names, 20).filter(learned="l2")[
            "named"
        ]
    )


@settings(max_examples=12, deadline=None)
@given(seed=st.integers(0, 2**31), method=st.sampled_from(["pearson", "spearman"]))
def test_neither_the_order_of_wells_nor_scale_changes_anything(seed, method):
    learned, named, learned_names, named_names = wells(4, missing=20)
    rng = np.random.default_rng(seed)
    order = rng.permutation(40)
    before = feature_correlation(learned, named, learned_names, named_names, method=method)
    after = feature_correlation(
        learned[order] * -3 + 1,
        named[order] * rng.uniform(0.1, 9, 9),
        learned_names,
        named_names,
        method=method,
    )
    assert after.drop("correlation").equals(before.drop("correlation"))
    np.testing.assert_allclose(after["correlation"], -before["correlation"], atol=1e-9)
    columns = rng.permutation(9)
    shuffled = feature_correlation(
        learned, named[:, columns], learned_names, [named_names[i] for i in columns], method=method
    )
    assert shuffled.drop("correlation").equals(before.drop("correlation"))


def test_the_size_of_a_block_changes_nothing(monkeypatch):
    learned, named, learned_names, named_names = wells(5, missing=8)
    whole = feature_correlation(learned, named, learned_names, named_names)
    monkeypatch.setattr(module, "BLOCK", 20)
    parts = feature_correlation(learned, named, learned_names, named_names)
    assert parts.drop("correlation").equals(whole.drop("correlation"))
    np.testing.assert_allclose(parts["correlation"], whole["correlation"], atol=1e-12)


def test_names_of_cellprofiler_say_what_they_measure():
    table = cellprofiler_groups(
        [
            "Cells_AreaShape_Zernike_2_0",
            "Nuclei_Texture_AngularSecondMoment_AGP_10_00_256",
            "Cytoplasm_RadialDistribution_FracAtD_Mito_1of4",
            "Cells_Correlation_Correlation_DNA_ER",
            "Cells_Granularity_10_RNA",
            "Nuclei_Intensity_IntegratedIntensity_CorrDAPI",
            "Cells_Location_CenterMassIntensity_X_AGP",
            "Cells_Location_Center_X",
            "Cells_Neighbors_NumberOfNeighbors_Adjacent",
            "Nuclei_Count",
            "embedding",
        ]
    )
    assert table.columns == ["feature", "compartment", "kind", "channel"]
    assert table.drop("feature").rows() == [
        ("Cells", "AreaShape", None),
        ("Nuclei", "Texture", "AGP"),
        ("Cytoplasm", "RadialDistribution", "Mito"),
        ("Cells", "Correlation", "DNA_ER"),
        ("Cells", "Granularity", "RNA"),
        ("Nuclei", "Intensity", "CorrDAPI"),
        ("Cells", "Location", "AGP"),
        ("Cells", "Location", None),
        ("Cells", "Neighbors", None),
        (None, None, None),
        (None, None, None),
    ]


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"method": "pearsn"}, UnknownNameError, r"unknown correlation 'pearsn'. Did you mean 'pearson'"),
        ({"top": 0}, EvaluationError, r"top is 0: ask for 1 feature or more"),
        (
            {"learned_names": ["l"]},
            EvaluationError,
            r"learned features of shape \(40, 4\) do not fit 1 names",
        ),
        ({"named": np.ones((39, 9))}, EvaluationError, r"40 wells of learned and 39 of named features"),
        ({"named_names": ["n"] * 9}, EvaluationError, r"named feature 'n' is there more than once"),
        ({"groups": ["a"]}, EvaluationError, r"1 groups for 9 named features"),
        (
            {"named": np.full((40, 9), -np.inf)},
            EvaluationError,
            r"named feature 'n0' is -inf in row 0: leave the well",
        ),
    ],
)
def test_what_it_lacks_is_said(changes, error, message):
    learned, named, learned_names, named_names = wells(6)
    given_ = {"learned": learned, "named": named, "learned_names": learned_names, "named_names": named_names}
    with pytest.raises(error, match=message):
        feature_correlation(**(given_ | changes))


def test_too_few_wells_are_explained():
    with pytest.raises(
        EvaluationError, match=r"2 wells of learned and 2 of named features: give the same wells"
    ):
        feature_correlation(np.eye(2), np.eye(2), ["a", "b"], ["c", "d"])


def test_bbbc021_intensities_go_with_themselves(data_dir):
    path = data_dir / "bbbc021" / "ljosa_jbiomolscreen_2013_per_well_mean.csv.gz"
    table = pl.read_csv(path, infer_schema_length=None).drop("Image_Metadata_Plate", "Image_Metadata_Well")
    table = table.select(table.columns[::4])
    named = table.to_numpy().astype(np.float64)
    groups = cellprofiler_groups(table.columns)
    assert groups["compartment"].unique().sort().to_list() == ["Cells", "Cytoplasm", "Nuclei"]
    # Two axes of the table's main directions stand for learned features.
    centred = (named - named.mean(axis=0)) / np.where(named.std(axis=0) > 0, named.std(axis=0), 1)
    axes = np.linalg.svd(centred, full_matrices=False)
    learned = axes.U[:, :6] * axes.S[:6]
    best = feature_correlation(
        learned, named, [f"pc{i}" for i in range(6)], table.columns, 1, groups=groups["kind"].to_list()
    )
    expected = np.corrcoef(learned[:, 0], named[:, table.columns.index(best["named"][0])])[0, 1]
    assert best["correlation"][0] == pytest.approx(expected, abs=1e-9)
    assert best.filter(learned="pc0")["correlation"].abs().max() > 0.8
    itself = feature_correlation(named[:, 5:9], named, table.columns[5:9], table.columns, 1)
    assert itself["named"].to_list() == table.columns[5:9]
