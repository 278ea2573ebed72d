"""Plates whose features differ: refused, rejected, cut to what is common, or split; never filled."""

import numpy as np
import polars as pl
import pytest
from builders import new_lake

from warehouse import feature_sets
from warehouse.errors import ProfileError, UnknownNameError
from warehouse.importers import ImportSettings, import_profiles
from warehouse.status import faults


@pytest.fixture
def lake(tmp_path):
    with new_lake(tmp_path / "lake") as made:
        yield made


def plate(folder, name, features):
    """A plate of one well; feature `Cells_x` of plate p has the value of `ord('x')`."""
    row = {
        "Metadata_Plate": name,
        "Metadata_Well": "A1",
        **{f"Cells_{one}": float(ord(one)) for one in features},
    }
    path = folder / f"{name}.parquet"
    pl.DataFrame([row]).write_parquet(path)
    return path


def taken(lake, name):
    names = feature_sets.find(lake, name).feature_names
    rows = lake.frame(f"SELECT plate, embedding FROM {name}.wells ORDER BY plate").rows()
    for _, embedding in rows:  # every number is under its own name
        assert embedding == [float(ord(one[-1])) for one in names]
    return "".join(one[-1] for one in names), [row[0] for row in rows]


@pytest.fixture
def files(tmp_path):
    return [
        plate(tmp_path, *each) for each in (("p1", "abcd"), ("p2", "dcb"), ("p3", "bcda"), ("p4", "xbcd"))
    ]


def outcomes(reports):
    return "".join(report.outcome[0] for report in reports)


def test_refuse_is_the_default(lake, files):
    before = lake.snapshot()
    with pytest.raises(
        ProfileError, match=r"p2.parquet: has 3 features, .*p1.parquet has 4; 1 are in one only .*Cells_a"
    ):
        import_profiles(lake, files, "cp")
    assert lake.snapshot() == before
    with pytest.raises(
        UnknownNameError, match=r"unknown rule of --align 'intersection'. Did you mean 'intersect'\?"
    ):
        import_profiles(lake, files, "cp", settings=ImportSettings(align="intersection"))


def test_reject_lets_the_others_in(lake, files):
    reports = import_profiles(lake, files, "cp", settings=ImportSettings(align="reject"))
    assert (
        outcomes(reports) == "afaf"
    )  # p3 has the same names in another order: nothing is lost by ordering them
    assert "has 3 features, feature set 'cp' has 4: it lacks 1 (first: 'Cells_a')" in reports[1].reason
    assert "it lacks 1 (first: 'Cells_a') and has besides 1 (first: 'Cells_x')" in reports[3].reason
    assert taken(lake, "cp") == ("abcd", ["p1", "p3"])
    assert faults(lake) == {}


def test_intersect_keeps_what_all_have_in_the_first_order(lake, files, tmp_path):
    settings = ImportSettings(align="intersect")
    reports = import_profiles(lake, files, "cp", settings=settings)
    assert outcomes(reports) == "aaaa"
    assert [report.features_dropped for report in reports] == [1, 0, 1, 1]
    assert reports[3].notes == ("1 features are not in feature set 'cp': Cells_x",)
    assert taken(lake, "cp") == ("bcd", ["p1", "p2", "p3", "p4"])
    # The next night: the lake's list stands; a plate with more is cut to it, one that lacks a name is refused.
    more, less = plate(tmp_path, "p5", "zdcba"), plate(tmp_path, "p6", "ab")
    reports = import_profiles(lake, [less, more], "cp", settings=settings)
    assert outcomes(reports) == "af"
    assert (
        "plate 'p6' has 2 features, feature set 'cp' has 3: it lacks 2 (first: 'Cells_c')"
        in reports[1].reason
    )
    assert taken(lake, "cp") == ("bcd", ["p1", "p2", "p3", "p4", "p5"])
    with pytest.raises(
        ProfileError, match=r"the 2 plates have no feature in common: import them with --align split"
    ):
        import_profiles(lake, [less, plate(tmp_path, "p7", "z")], "other", settings=settings)


def test_split_gives_each_list_a_feature_set_and_finds_it_again(lake, files, tmp_path):
    settings = ImportSettings(align="split")
    reports = import_profiles(lake, files, "cp", settings=settings)
    assert [report.feature_set for report in reports] == ["cp", "cp_2", "cp", "cp_3"]
    assert outcomes(import_profiles(lake, files[::-1], "cp", settings=settings)) == "uuuu"
    late = [plate(tmp_path, "p8", "bdc"), plate(tmp_path, "p9", "q")]
    reports = import_profiles(lake, late, "cp", settings=settings)
    assert [report.feature_set for report in reports] == ["cp_2", "cp_4"]
    assert taken(lake, "cp_2") == ("dcb", ["p2", "p8"])
    assert faults(lake) == {}


@pytest.mark.slow
def test_both_rounds_of_the_cell_atlas(lake, data_dir):
    """Twelve plates, twelve lists of features; two nights."""
    split, cut = ImportSettings(align="split"), ImportSettings(align="intersect")
    for number, wells in ((1, 1120), (2, 1082)):
        files = sorted((data_dir / "cell_atlas" / f"round{number}").glob("*.parquet"))
        reports = import_profiles(lake, files, "atlas", settings=split)
        assert (outcomes(reports), sum(report.rows_in for report in reports)) == ("a" * 6, wells)
    assert len([name for name in feature_sets.names(lake) if name.startswith("atlas")]) == 12
    both = sorted((data_dir / "cell_atlas").glob("round[12]/*.parquet"))
    reports = import_profiles(lake, both, "common", settings=cut)
    assert outcomes(reports) == "a" * 12
    names = feature_sets.find(lake, "common").feature_names
    first = pl.read_parquet(both[0])
    assert names == tuple(name for name in first.columns if name in set(names))
    stored = lake.frame(
        "SELECT embedding FROM common.wells WHERE plate = ? ORDER BY well", [first["Metadata_Plate"][0]]
    )
    wells = first.sort("Metadata_Well").select(names).to_numpy()  # A01, A02, …: text order is well order here
    np.testing.assert_array_equal(
        np.array(stored["embedding"].to_list(), dtype=np.float32), wells.astype(np.float32)
    )
