"""Importing well profiles: kinds of files, missing values, rejections, refusals, and the field's real files."""

import gzip
import re
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from builders import LABELS, layout, new_lake, state

from warehouse import feature_sets, profiles
from warehouse.errors import ProfileError, ScreenError, UnknownNameError
from warehouse.importers import ImportSettings, import_profiles, read_feature_list
from warehouse.screens import read_annotations, read_layout
from warehouse.screens.model import ANNOTATIONS_SCHEMA
from warehouse.status import faults

HEAD = "Metadata_Plate,Metadata_Well,Cells_b,Cells_a"
TWO_WELLS = f"{HEAD}\np,A1,1.5,2\np,a02,-3,4e-1\n"
KEY = ("default", "default", "p")
PLAN = [("A01", "DMSO", None, "negative"), ("A02", "taxol", 0.3, "none"), ("A03", "taxol", 3.0, "none")]


@pytest.fixture
def lake(tmp_path):
    with new_lake(tmp_path / "lake") as made:
        yield made


@pytest.fixture(scope="module")
def refusing(tmp_path_factory):
    """A lake into which nothing gets."""
    with new_lake(tmp_path_factory.mktemp("import") / "lake") as made:
        yield made


def csv(folder, text, name="p.csv"):
    path = Path(folder) / name
    path.write_text(text, encoding="utf-8")
    return path


def embeddings(lake, feature_set="cp"):
    query = f"SELECT plate, well, embedding FROM {feature_set}.wells ORDER BY source, plate, well"
    return lake.frame(query).rows()


# --- files


@pytest.mark.parametrize("kind", ["csv", "csv.gz", "tsv", "tsv.gz", "parquet", "CSV"])
def test_every_kind_of_file_gives_the_same_rows(lake, tmp_path, kind):
    path = tmp_path / f"profiles.{kind}"
    text = TWO_WELLS.replace(",", "\t") if "tsv" in kind else TWO_WELLS
    if kind == "parquet":
        pl.read_csv(csv(tmp_path, TWO_WELLS)).write_parquet(path)
    elif kind.endswith(".gz"):
        path.write_bytes(gzip.compress(text.encode()))
    else:
        path.write_text(text)
    (report,) = import_profiles(lake, [path], "cp")
    assert (report.plate, report.outcome, report.wells_in, report.wells_rejected) == ("p", "added", 2, 0)
    assert embeddings(lake) == [("p", "A01", [1.5, 2.0]), ("p", "A02", [-3.0, pytest.approx(0.4)])]
    assert feature_sets.find(lake, "cp").feature_names == ("Cells_b", "Cells_a")  # the file's order


def test_missing_elements_stay_missing(lake, tmp_path):
    """Every way in which the field writes a missing value; never zero, never NaN."""
    ways = ["", "nan", "NaN", "NA", "null"]
    text = f"{HEAD}\n" + "".join(f"p,A{i + 1},{way},{i}\n" for i, way in enumerate(ways))
    frame = pl.DataFrame(
        {
            "Metadata_Plate": ["q", "q"],
            "Metadata_Well": ["A1", "A2"],
            "Cells_b": [None, float("nan")],
            "Cells_a": [0.0, 1.0],
        }
    )
    frame.write_parquet(tmp_path / "q.parquet")
    import_profiles(lake, [csv(tmp_path, text), tmp_path / "q.parquet"], "cp")
    assert [row[2] for row in embeddings(lake)] == [[None, float(i)] for i in (0, 1, 2, 3, 4, 0, 1)]
    nan = "SELECT count(*) FROM (SELECT unnest(embedding) AS x FROM cp.wells) WHERE isnan(x) OR x = 0"
    assert lake.value(nan) == 2  # the two zeros that the files hold
    assert np.isnan(profiles.read(lake, "cp", level="well").matrix[:, 0]).all()


def test_rows_without_any_value_and_infinite_ones_are_rejected_and_counted(lake, tmp_path):
    text = f"{HEAD}\np,A1,1,2\np,A2,,\np,A3,inf,3\np,A4,,-inf\np,A5,1e39,1\np,A6,,5\n"
    (report,) = import_profiles(lake, [csv(tmp_path, text)], "cp")
    assert (report.wells_in, report.wells_rejected) == (2, 4)
    assert [row[1:] for row in embeddings(lake)] == [("A01", [1.0, 2.0]), ("A06", [None, 5.0])]
    assert lake.frame("SELECT well, field, cell, reason FROM main.rejections ORDER BY well").rows() == [
        ("A02", None, None, "no feature has a value"),
        ("A03", None, None, "feature Cells_b is inf"),
        ("A04", None, None, "feature Cells_a is -inf"),
        ("A05", None, None, "feature Cells_b is inf"),
    ]
    assert lake.frame("SELECT wells_in FROM main.plate_loads")["wells_in"].to_list() == [2]
    assert faults(lake) == {}


def test_counts_of_cells_and_fields_come_along(lake, tmp_path):
    text = "Metadata_Plate,Metadata_Well,Metadata_Object_Count,Metadata_Site_Count,emb0\np,A1,120,9,1\np,A2,,8,2\n"
    import_profiles(lake, [csv(tmp_path, text)], "cp")
    assert lake.frame("SELECT well, cell_count, field_count FROM cp.wells ORDER BY well").rows() == [
        ("A01", 120, 9),
        ("A02", None, 8),
    ]


def test_metadata_columns_are_no_features(lake, tmp_path):
    text = "Image_Metadata_Plate,Image_Metadata_Well,Image_FileName_DNA,Metadata_x,Image_Count,Nuclei_a\n"
    text += "p,A1,a.tif,7,3,1\n"
    import_profiles(lake, [csv(tmp_path, text)], "cp")
    assert feature_sets.find(lake, "cp").feature_names == ("Image_Count", "Nuclei_a")


def test_a_list_of_features_says_which_and_in_which_order(lake, tmp_path):
    text = "Metadata_Plate,Metadata_Well,height,Cells_a,width\np,A1,1,2,3\n"
    listed = csv(tmp_path, "width\n\n height \n", "features.txt")
    settings = ImportSettings(features=read_feature_list(listed))
    import_profiles(lake, [csv(tmp_path, text)], "cp", settings=settings)
    assert embeddings(lake) == [("p", "A01", [3.0, 1.0])]
    with pytest.raises(UnknownNameError, match=r"unknown feature in .*p.csv 'widht'. Did you mean 'width'\?"):
        import_profiles(lake, [tmp_path / "p.csv"], "x", settings=ImportSettings(features=("widht",)))


def test_lists_of_features_that_are_none(tmp_path):
    with pytest.raises(ProfileError, match=r"gone.txt: there is no such file of feature names"):
        read_feature_list(tmp_path / "gone.txt")
    with pytest.raises(ProfileError, match=r"twice.txt: feature 'b' stands twice"):
        read_feature_list(csv(tmp_path, "b\na\nb\n", "twice.txt"))
    with pytest.raises(ProfileError, match=r"empty.txt: holds no name"):
        read_feature_list(csv(tmp_path, "\n \n", "empty.txt"))


# --- refusals: what, where, the value


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "p.csv: cannot be read as a table: empty CSV"),
        (f"{HEAD}\n", "p.csv: the file has no rows: nothing to import"),
        (f"{HEAD}\np,A1,1,2\np,A01,3,4\n", "p.csv: well 'A01' of plate 'p' has more than one profile: keep one row"),
        (f"{HEAD}\np,A1,1,2\np,A2,3,x7\n", "p.csv: row 3, column 'Cells_a': 'x7' is not a number"),
        ("Metadata_Well,Cells_a\nA1,1\n", "; it has Metadata_Well, Cells_a, …: name it with --column plate=NAME"),
        ("Metadata_Well,Cells_a\nA1,1\n", "p.csv: no column for plate (Metadata_Plate or"),
        ("Metadata_Plate,Cells_a\np,1\n", "p.csv: no column for well (Metadata_Well or"),
        (f"{HEAD},colour\np,A1,1,2,3\n", "p.csv: column 'colour' is neither metadata (Metadata_…) nor a known"),
        ("Metadata_Plate,Metadata_Well\np,A1\n", "p.csv: no column is a feature (Cells_, Nuclei_, …)"),
        (f"{HEAD}\np,A1,1,2\n,A2,1,2\n", "p.csv: row 3 has no plate: every profile needs one"),
        (f"{HEAD}\np,,1,2\n", "p.csv: row 2 has no well: every profile needs one"),
        (f"{HEAD}\np,AG1,1,2\n", "p.csv: well 'AG1' is off the largest plate, 1536 wells"),
        (f"{HEAD}\np,A49,1,2\n", "p.csv: well 'A49' is off the largest plate"),
        (f"{HEAD}\np,well 1,1,2\n", "p.csv: 'well 1' is not a well"),
        (f"{HEAD}\np,A1,1,2,3,4\n", "p.csv: cannot be read as a table: found more fields than defined in 'Schema'"),
    ],
)  # fmt: skip
def test_files_that_cannot_be_taken_in(refusing, tmp_path, text, message):
    before = refusing.snapshot()
    with pytest.raises(ProfileError, match=re.escape(message)):
        import_profiles(refusing, [csv(tmp_path, text)], "cp")
    assert refusing.snapshot() == before


def test_files_that_are_no_tables(refusing, tmp_path):
    (tmp_path / "p.parquet").write_bytes(b"PAR1 no, not really")
    (tmp_path / "p.csv.gz").write_bytes(gzip.compress(TWO_WELLS.encode())[:-20])
    for name, message in (
        ("p.parquet", "cannot be read as a table"),
        ("p.csv.gz", "cannot be read as a table"),
        ("gone.csv", "there is no such file"),
        ("", "is a folder: name the files in it"),
        (
            csv(tmp_path, TWO_WELLS, "p.xlsx").name,
            "unknown kind of file '.xlsx': give .csv, .csv.gz, .tsv or .parquet",
        ),
    ):
        with pytest.raises(ProfileError, match=f"{re.escape(str(tmp_path / name))}: {message}"):
            import_profiles(refusing, [tmp_path / name], "cp")
    with pytest.raises(ProfileError, match="no file of profiles was given"):
        import_profiles(refusing, [], "cp")


def test_files_with_other_features_are_refused_together(refusing, tmp_path):
    one = csv(tmp_path, TWO_WELLS, "one.csv")
    other = csv(tmp_path, f"{HEAD},Cells_c\nq,A1,1,2,3\n", "other.csv")
    turned = csv(tmp_path, "Metadata_Plate,Metadata_Well,Cells_a,Cells_b\nq,A1,1,2\n", "turned.csv")
    with pytest.raises(
        ProfileError,
        match=rf"other.csv: has 3 features, {one} has 2; 1 are in one only \(first: \['Cells_c'\]\)",
    ):
        import_profiles(refusing, [one, other], "cp")
    with pytest.raises(
        ProfileError, match=r"turned.csv: has 2 .*0 are in one only \(first: none, the order differs\)"
    ):
        import_profiles(refusing, [one, turned], "cp")
    assert feature_sets.names(refusing) == []


def test_other_features_than_the_lake_holds_are_refused(lake, tmp_path):
    import_profiles(lake, [csv(tmp_path, TWO_WELLS)], "cp")
    before = lake.snapshot()
    with pytest.raises(
        ProfileError, match=r"feature set 'cp' has feature_names 2 features, this input has 3"
    ):
        import_profiles(lake, [csv(tmp_path, f"{HEAD},Cells_c\nq,A1,1,2,3\n")], "cp")
    assert lake.snapshot() == before


def test_a_plate_in_two_files_or_batches_is_refused(refusing, tmp_path):
    one, two = csv(tmp_path, TWO_WELLS, "one.csv"), csv(tmp_path, f"{HEAD}\np,A5,1,2\n", "two.csv")
    with pytest.raises(
        ScreenError, match=f"plate 'p' is in {one} \\(batch 'default'\\) and in {two} \\(batch 'default'\\)"
    ):
        import_profiles(refusing, [one, two], "cp")
    split = csv(tmp_path, f"Metadata_Batch,{HEAD}\nb1,p,A1,1,2\nb2,p,A2,1,2\n", "split.csv")
    with pytest.raises(ScreenError, match=r"plate 'p' is in .* \(batch 'b1'\) and in .* \(batch 'b2'\)"):
        import_profiles(refusing, [split], "cp")
    assert refusing.value("SELECT count(*) FROM main.plates") == 0


def test_a_plate_that_the_lake_has_in_another_batch_stops_all(lake, tmp_path):
    import_profiles(lake, [csv(tmp_path, TWO_WELLS)], "cp", settings=ImportSettings(batch="b1"))
    before = lake.snapshot()
    both = csv(tmp_path, f"{HEAD}\na,A1,1,2\np,A1,1,2\n", "both.csv")
    with pytest.raises(
        ScreenError, match=r"plate 'p' of source 'default' is in the lake in batch 'b1', .* 'b2'"
    ):
        import_profiles(lake, [both], "cp", settings=ImportSettings(batch="b2"))
    assert lake.snapshot() == before  # the plate `a` before it did not come in either


# --- layout, batch, source


def test_batch_and_source_come_from_the_file_then_the_settings_then_the_layout(lake, tmp_path):
    plan = layout(("s9", "b9", "p"), PLAN)
    given = ImportSettings(source="given", batch="given")
    cases = {
        "from_file": (f"Metadata_Source,Metadata_Batch,{HEAD}\ns1,b1,p,A1,1,2\n", None, None, ("s1", "b1")),
        "from_empty": (f"Metadata_Source,Metadata_Batch,{HEAD}\ns9,,p,A1,1,2\n", plan, None, ("s9", "b9")),
        "from_layout": (TWO_WELLS, plan, None, ("s9", "b9")),
        "from_settings": (TWO_WELLS.replace("p,", "q,"), plan, given, ("given", "given")),
    }
    for name, (text, wells, settings, expected) in cases.items():
        (report,) = import_profiles(
            lake, [csv(tmp_path, text, f"{name}.csv")], name, layout=wells, settings=settings
        )
        assert (report.source, report.batch) == expected
    file = csv(tmp_path, f"Metadata_Batch,{HEAD}\nb1,p,A1,1,2\n", "from_file.csv")
    for wells, settings, message in (
        (plan, None, r"plate 'p' is of batch 'b1' by the file and 'b9' by the layout: mend one"),
        (None, given, r"plate 'p' is of batch 'b1' by the file and 'given' by --batch: mend one"),
    ):
        with pytest.raises(ScreenError, match=message):
            import_profiles(lake, [file], "x", layout=wells, settings=settings)


def test_a_plate_that_would_lose_wells_fails_and_the_others_go_on(lake, tmp_path):
    both = f"{HEAD}\np,A1,1,2\np,A2,3,4\nq,A1,5,6\n"
    import_profiles(lake, [csv(tmp_path, both)], "cp")
    part = f"{HEAD}\np,A3,1,2\nq,A1,5,7\n"
    failed, replaced = import_profiles(lake, [csv(tmp_path, part, "part.csv")], "cp")
    assert (failed.plate, failed.outcome, failed.wells_in) == ("p", "failed", 0)
    assert "has 2 wells of it and this content lacks 2 of them (A01, A02)" in failed.reason
    assert (replaced.plate, replaced.outcome, replaced.reason) == ("q", "replaced", None)
    assert lake.value("SELECT count(*) FROM cp.wells WHERE plate = 'p'") == 2
    (let_go, _) = import_profiles(lake, [csv(tmp_path, part, "part.csv")], "cp", replace=True)
    assert let_go.outcome == "replaced"
    assert lake.frame("SELECT well FROM cp.wells WHERE plate = 'p'")["well"].to_list() == ["A03"]


def test_a_layout_without_a_source_fits_a_file_that_names_one(lake, tmp_path):
    """As a Broad platemap beside JUMP profiles: only the profiles say the source."""
    text = f"Metadata_Source,{HEAD}\ns4,p,A1,1,2\ns4,p,A2,1,3\n"
    (report,) = import_profiles(
        lake, [csv(tmp_path, text)], "cp", layout=layout(("default", "b7", "p"), PLAN)
    )
    assert (report.source, report.batch, report.wells_without_layout) == ("s4", "b7", 0)
    assert lake.frame("SELECT DISTINCT source, batch FROM main.wells").rows() == [("s4", "b7")]
    # A layout of another source is not this plate's.
    other = csv(tmp_path, text.replace("s4", "s5"), "other.csv")
    (report,) = import_profiles(lake, [other], "cp", layout=layout(("s4", "b7", "p"), PLAN))
    assert (report.source, report.wells_without_layout) == ("s5", 2)


def test_columns_by_other_names(lake, tmp_path):
    text = "Assay_Barcode,Pos,Week,Cells_a\np,A1,w1,1\n"
    settings = ImportSettings(columns={"plate": "Assay_Barcode", "well": "Pos", "batch": "Week"})
    (report,) = import_profiles(lake, [csv(tmp_path, text)], "cp", settings=settings)
    assert (report.plate, report.batch) == ("p", "w1")
    with pytest.raises(ProfileError, match=r"p.csv: no column 'Weak' for batch. Did you mean 'Week'\?"):
        import_profiles(lake, [tmp_path / "p.csv"], "x", settings=ImportSettings(columns={"batch": "Weak"}))


def test_same_import_twice_is_unchanged(lake, tmp_path):
    labels = pl.DataFrame(LABELS, schema=ANNOTATIONS_SCHEMA, orient="row")
    path, plan = csv(tmp_path, TWO_WELLS), layout(KEY, PLAN)
    (first,) = import_profiles(lake, [path], "cp", layout=plan, annotations=labels)
    before, rows = lake.snapshot(), state(lake)
    (second,) = import_profiles(lake, [path], "cp", layout=plan, annotations=labels)
    assert (first.outcome, second.outcome) == ("added", "unchanged")
    assert second.wells_in == 2
    assert lake.snapshot() == before
    assert state(lake) == rows
    # The same rows in another order are the same content; one other number is not.
    turned = csv(tmp_path, f"{HEAD}\np,a02,-3,4e-1\np,A1,1.5,2\n", "turned.csv")
    assert import_profiles(lake, [turned], "cp")[0].outcome == "unchanged"
    changed = csv(tmp_path, TWO_WELLS.replace("1.5", "1.6"), "changed.csv")
    (third,) = import_profiles(lake, [changed], "cp")
    assert (third.outcome, third.wells_without_layout) == ("replaced", 0)  # the layout of before still holds
    relabelled = layout(KEY, [("A02", "nocodazole", 1.0, "none")])
    assert [import_profiles(lake, [changed], "cp", layout=relabelled)[0].outcome for _ in range(2)] == [
        "relabelled",
        "unchanged",
    ]


def test_progress_tells_each_plate(lake, tmp_path):
    told = []
    text = f"{HEAD}\nq,A1,1,2\np,A1,1,2\n"
    import_profiles(lake, [csv(tmp_path, text)], "cp", progress=lambda *each: told.append(each))
    assert told == [("p", 1, 2), ("q", 2, 2)]


# --- the field's own files


def test_bbbc021_profiles_of_ljosa(lake, data_dir):
    folder = data_dir / "bbbc021"
    file = folder / "ljosa_jbiomolscreen_2013_per_well_mean.csv.gz"
    reports = import_profiles(
        lake,
        [file],
        "ljosa",
        layout=read_layout(folder / "BBBC021_v1_image.csv.gz"),
        annotations=read_annotations(folder / "BBBC021_v1_moa.csv"),
    )
    assert len(reports) == 55
    assert sum(report.wells_in for report in reports) == 632
    assert sum(report.wells_rejected + report.wells_without_layout for report in reports) == 0
    assert lake.value("SELECT count(*) FROM main.batches") == 10
    kinds = "SELECT control_type = 'negative', count(*) FROM ljosa.well_profiles GROUP BY ALL ORDER BY ALL"
    assert lake.frame(kinds).rows() == [(False, 302), (True, 330)]
    treatments = "SELECT count(*) FROM ljosa.treatments WHERE control_type = 'none' AND moa IS NOT NULL"
    assert lake.value(treatments) == 103
    # One number, read past the code: the first profile of the file.
    with gzip.open(file, "rt") as text:
        names, first = (next(text).strip().split(",") for _ in range(2))
    stored = lake.value("SELECT embedding[1] FROM ljosa.wells WHERE plate = ? AND well = ?", first[:2])
    assert names[2] == feature_sets.find(lake, "ljosa").feature_names[0]
    assert stored == np.float32(first[2])
    assert faults(lake) == {}


def test_moa_screen_batch_1(lake, data_dir):
    file = data_dir / "moa_screen" / "Batch1_normalized_feature_select_negcon_batch.csv.gz"
    reports = import_profiles(lake, [file], "moa")
    assert {report.plate: report.wells_in for report in reports} == {"BR00122250": 384, "BR00122246": 383}
    assert {report.batch for report in reports} == {"2023_05_15_Batch1"}
    assert feature_sets.find(lake, "moa").dim == 777
    assert lake.value("SELECT sum(cell_count) > 0 FROM moa.wells") is True
