"""Formats of existing profiles: CellProfiler, DeepProfiler, matrices, levels of tables; joins, refusals, real files."""

import io
import pickle
import re
import sqlite3
import zipfile
from dataclasses import replace

import numpy as np
import polars as pl
import pytest
from builders import new_lake
from exports import FEATURES, IMAGES, NAMES, joined, tables, write_csv, write_npz, write_sqlite

from warehouse import feature_sets, formats
from warehouse.errors import ProfileError, UnknownNameError
from warehouse.importers import ImportSettings, import_profiles
from warehouse.status import faults


@pytest.fixture
def lake(tmp_path):
    with new_lake(tmp_path / "lake") as made:
        yield made


@pytest.fixture(scope="module")
def refusing(tmp_path_factory):
    """A lake into which nothing gets."""
    with new_lake(tmp_path_factory.mktemp("import") / "lake") as made:
        yield made


def cells(lake, name="cp"):
    query = f"SELECT well, field, cell, embedding FROM {name}.cells ORDER BY well, field, cell"
    return {row[:3]: row[3] for row in lake.frame(query).iter_rows()}


def expected(found):
    places = {number: (f"{well[0]}{int(well[1:]):02d}", str(site)) for number, _, well, site in IMAGES}
    return {
        (*places[image], str(cell)): [float(np.float32(value)) for value in values]
        for (image, cell), values in joined(found).items()
    }


def rejections(lake):
    return lake.frame("SELECT well, field, cell, reason FROM main.rejections ORDER BY ALL").rows()


# --- CellProfiler


@pytest.mark.parametrize("kind", ["csv", "csv sites", "sqlite", "sqlite per", "sqlite plain"])
def test_compartments_are_joined_on_their_keys(lake, tmp_path, kind):
    """Nuclei are numbered against their cells: a join by the order of rows, or by ObjectNumber, would mix them."""
    found = tables()
    if kind == "csv sites":
        for number, *_ in IMAGES:
            site = {
                name: [row for row in rows if row["ImageNumber"] == number] for name, rows in found.items()
            }
            path = write_csv(tmp_path / "export" / f"site-{number}", site).parent
    elif kind == "csv":
        path = write_csv(tmp_path / "export", found)
    else:
        path = write_sqlite(tmp_path / "x.db", found, per="per" in kind, prefixed="plain" not in kind)
    (report,) = import_profiles(lake, [path], "cp")
    assert (report.plate, report.outcome, report.level) == ("P1", "added", "cell")
    assert (report.rows_in, report.rows_rejected, report.wells_in) == (12, 0, 2)
    assert feature_sets.find(lake, "cp").feature_names == NAMES
    assert cells(lake) == expected(found)
    assert lake.frame("SELECT well, field, cell_count FROM cp.fields ORDER BY ALL").rows() == [
        ("A01", "1", 4),
        ("A01", "2", 4),
        ("B02", "1", 4),
    ]
    place = lake.frame(
        "SELECT x_px, y_px, cell_area_px, embedding FROM cp.cells WHERE cell = '2' AND field = '2'"
    ).row(0)
    assert place[:2] == pytest.approx(
        [place[3][NAMES.index(f"Nuclei_Location_Center_{axis}")] for axis in "XY"]
    )
    assert faults(lake) == {}


@pytest.mark.parametrize("kind", ["csv", "sqlite"])
def test_order_of_rows_and_size_of_parts_change_nothing(lake, tmp_path, kind):
    found = tables(cells=7)
    rng = np.random.default_rng(1)
    mixed = {name: [rows[i] for i in rng.permutation(len(rows))] for name, rows in found.items()}
    write = write_csv if kind == "csv" else write_sqlite
    import_profiles(lake, [write(tmp_path / "one", found)], "cp")
    settings = ImportSettings(part_rows=2)
    (report,) = import_profiles(lake, [write(tmp_path / "two", mixed)], "cp", settings=settings)
    assert report.outcome == "unchanged"
    assert cells(lake) == expected(found)


def test_rows_that_do_not_join_are_counted_and_listed(lake, tmp_path):
    found = tables()
    cell, cytoplasm, nuclei = found["Cells"], found["Cytoplasm"], found["Nuclei"]
    cell[0]["Parent_Nuclei"] = 99  # image 1, cell 1: points nowhere; its nucleus 4 is then of no cell
    cytoplasm[0]["Parent_Nuclei"] = 99
    cell[1]["Parent_Nuclei"] = cytoplasm[1]["Parent_Nuclei"] = 0  # cell 2: no nucleus; nucleus 3 is left
    cytoplasm.pop(2)  # cell 3: no cytoplasm
    nuclei.append(dict(nuclei[4]))  # image 2: nucleus 4, of cell 1, twice
    cell.append(dict(cell[5]))  # image 2: cell 2 twice
    cytoplasm.append(dict(cytoplasm[5], ObjectNumber=77))  # image 2, cell 3: two cytoplasms
    cytoplasm.append(dict(cytoplasm[-1], ImageNumber=3, Parent_Cells=50))  # of no cell
    cytoplasm[7]["Parent_Nuclei"] = 2  # image 3, cell 1: Cells says nucleus 4
    (report,) = import_profiles(lake, [write_sqlite(tmp_path / "x.sqlite", found)], "cp")
    listed = rejections(lake)
    assert report.rows_rejected == len(listed)
    assert {row[:3]: row[3] for row in listed} == {
        ("A01", "1", "1"): "Cells_Parent_Nuclei is 99, and Nuclei has no such object in its image",
        ("A01", "1", "2"): "Cells_Parent_Nuclei points to no object of Nuclei",
        ("A01", "1", "3"): "no row of Cytoplasm has it as Cytoplasm_Parent_Cells",
        ("A01", "1", "Nuclei 3"): "no Cells has it as Cells_Parent_Nuclei",
        ("A01", "1", "Nuclei 4"): "no Cells has it as Cells_Parent_Nuclei",
        ("A01", "2", "1"): "Cells_Parent_Nuclei is 4, which stands 2 times in Nuclei",
        ("A01", "2", "2"): "its object number 2 stands more than once in Cells",
        ("A01", "2", "3"): "2 rows of Cytoplasm have it as Cytoplasm_Parent_Cells",
        ("B02", "1", "1"): "Cytoplasm_Parent_Nuclei is 2, by Cells_Parent_Nuclei it is 4",
        (
            "B02",
            "1",
            "Cytoplasm 77",
        ): "Cytoplasm_Parent_Cells is 50, and there is no such object in its image",
    }
    assert set(cells(lake)) == {
        ("A01", "1", "4"),
        ("A01", "2", "4"),
        *(("B02", "1", str(number)) for number in (2, 3, 4)),
    }
    assert faults(lake) == {}


def test_missing_and_infinite_numbers(lake, tmp_path):
    found = tables()
    found["Cells"][0]["Intensity_A"] = "nan"  # text in a column of numbers, as real files have it
    found["Cells"][1]["Intensity_A"] = None
    found["Cells"][2]["Intensity_A"] = ""
    found["Cells"][3]["Intensity_A"] = "inf"
    found["Nuclei"][4]["Intensity_C"] = 1e300
    import_profiles(lake, [write_sqlite(tmp_path / "x.sqlite", found)], "cp")
    missing = [key for key, values in cells(lake).items() if values[1] is None]
    assert missing == [("A01", "1", "1"), ("A01", "1", "2"), ("A01", "1", "3")]
    assert rejections(lake) == [
        ("A01", "1", "4", "feature Cells_Intensity_A is inf"),
        ("A01", "2", "1", "feature Nuclei_Intensity_C is inf"),
    ]
    found["Cells"][0]["Intensity_A"] = "bright"
    (report,) = import_profiles(lake, [write_sqlite(tmp_path / "y.sqlite", found)], "cp")
    assert report.outcome == "failed"
    assert (
        "y.sqlite table Cells, column 'Cells_Intensity_A': 'bright' is not a number: mend it" in report.reason
    )


def test_plate_and_well_from_columns_and_options(lake, tmp_path):
    found = tables(images=IMAGES[:1])
    found["Image"] = [{"ImageNumber": 1, "Barcode": 17.0}]
    path = write_csv(tmp_path / "export", found)
    with pytest.raises(
        ProfileError, match=r"Image.csv: no column for plate .*--column plate=NAME, or give --plate"
    ):
        import_profiles(lake, [path], "cp")
    settings = ImportSettings(columns={"plate": "Barcode"}, source="s", batch="b")
    with pytest.raises(
        ProfileError, match=r"Image.csv: no column for well .*--column well=NAME, or give --well"
    ):
        import_profiles(lake, [path], "cp", settings=settings)
    (report,) = import_profiles(lake, [path], "cp", settings=replace(settings, well="c3"))
    assert (report.source, report.batch, report.plate) == ("s", "b", "17.0")
    assert {key[:2] for key in cells(lake)} == {
        ("C03", "1")
    }  # without a site, the image's number is the field


def test_compartments_of_choice(lake, tmp_path):
    found = tables()
    path = write_sqlite(tmp_path / "x.sqlite", found)
    settings = ImportSettings(compartments=("Nuclei",))
    (report,) = import_profiles(lake, [path], "nuclei", settings=settings)
    assert report.rows_in == 12
    assert feature_sets.find(lake, "nuclei").dim == 3
    assert report.notes == ("tables left out: Cells, Cytoplasm; --compartments takes them in",)
    with pytest.raises(
        UnknownNameError, match=r"unknown compartment in .*x.sqlite 'Nucleus'. Did you mean 'Nuclei'"
    ):
        import_profiles(lake, [path], "x", settings=ImportSettings(compartments=("Nucleus",)))
    for rows in (found["Cells"], found["Cytoplasm"]):
        for row in rows:
            row.pop("Parent_Nuclei")
    with pytest.raises(
        ProfileError,
        match=r"y.sqlite: no column links Nuclei to Cells or Cytoplasm .*never joined by their order",
    ):
        import_profiles(lake, [write_sqlite(tmp_path / "y.sqlite", found)], "x")


def test_a_compartment_that_is_counted_and_not_there(refusing, tmp_path):
    found = tables()
    found["Image"] = [row | {"Count_Cytoplasm": 4} for row in found["Image"]]
    del found["Cytoplasm"]
    with pytest.raises(
        ProfileError,
        match=r"the images count objects of Cytoplasm, and there is no table Cytoplasm: .*Cells,Nuclei",
    ):
        import_profiles(refusing, [write_csv(tmp_path / "export", found)], "cp")


def test_a_site_without_one_file_is_rejected_and_the_others_go_in(lake, tmp_path):
    found = tables()
    for number, *_ in IMAGES:
        site = {name: [row for row in rows if row["ImageNumber"] == number] for name, rows in found.items()}
        write_csv(tmp_path / "export" / f"site-{number}", site)
    (tmp_path / "export" / "site-2" / "Nuclei.csv").unlink()
    (report,) = import_profiles(lake, [tmp_path / "export"], "cp")
    assert (report.rows_in, report.rows_rejected, report.images_rejected) == (8, 1, 1)
    assert rejections(lake) == [("A01", "2", None, "site-2: there is no table Nuclei")]
    assert faults(lake) == {}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda found: found["Image"].append(found["Image"][0]), "image 1 stands more than once"),
        (lambda found: found["Image"][1].update(Metadata_Site=1), "field '1' of well 'A01' of plate 'P1' has more"),
        (lambda found: found["Image"][1].update(Metadata_Plate=None), "row 3 has no plate"),
        (lambda found: found["Image"][1].update(Metadata_Well="Z99"), "well 'Z99' is off the largest plate"),
        (lambda found: found.pop("Image"), "no table Image or Per_Image; it has Cells, Cytoplasm, Nuclei"),
        (lambda found: [found.pop(name) for name in FEATURES], "no table of objects (Cells, Nuclei, …)"),
    ],
)  # fmt: skip
def test_exports_that_cannot_be_taken_in(refusing, tmp_path, change, message):
    found = tables()
    change(found)
    before = refusing.snapshot()
    with pytest.raises(ProfileError, match=re.escape(message)):
        import_profiles(refusing, [write_sqlite(tmp_path / "x.sqlite", found)], "cp")
    assert refusing.snapshot() == before


def test_objects_of_an_image_that_is_not_there(lake, tmp_path):
    found = tables()
    found["Image"].pop()
    import_profiles(lake, [write_sqlite(tmp_path / "x.sqlite", found)], "cp")
    listed = rejections(lake)
    assert len(listed) == 12  # four objects of three tables
    assert listed[0][2:] == ("Cells 1 of image 3", f"its image is not in {tmp_path / 'x.sqlite'} table")


def test_files_that_are_cut_short_or_no_sqlite(refusing, tmp_path):
    path = write_sqlite(tmp_path / "x.sqlite", tables(cells=200))
    size = path.stat().st_size
    path.write_bytes(path.read_bytes()[: size // 2])
    with pytest.raises(
        ProfileError, match=rf"x.sqlite: is cut short: it has {size // 2} of {size} bytes: copy it again"
    ):
        import_profiles(refusing, [path], "cp")
    data = bytearray(write_sqlite(tmp_path / "y.sqlite", tables(cells=200)).read_bytes())
    data[4096:] = b"\xff" * (len(data) - 4096)
    (tmp_path / "y.sqlite").write_bytes(data)
    with pytest.raises(
        ProfileError, match=r"y.sqlite: SQLite cannot read it \(.*malformed\): was it copied whole\?"
    ):
        import_profiles(refusing, [tmp_path / "y.sqlite"], "cp")
    (tmp_path / "z.sqlite").write_bytes(b"SQLite format 3\0")
    with pytest.raises(ProfileError, match=r"z.sqlite: "):
        import_profiles(refusing, [tmp_path / "z.sqlite"], "cp")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ProfileError, match=r"empty: no Image.csv in this folder or below it"):
        import_profiles(refusing, [tmp_path / "empty"], "cp", format_name="cellprofiler_csv")


# --- DeepProfiler


def test_sites_of_deepprofiler(lake, tmp_path):
    rng = np.random.default_rng(0)
    matrix, places = rng.normal(size=(3, 5)).astype(np.float32), np.array([[1, 2], [3, 4], [5, 6]])
    top = tmp_path / "features"
    write_npz(top / "week1" / "A01" / "1.npz", matrix, locations=places, metadata={"Metadata_Well": "A01"})
    write_npz(top / "week1" / "A01" / "2.npz", matrix[:1] + 1)
    write_npz(top / "week1" / "B02_s3.npz", np.empty((0, 5), np.float32))
    write_npz(top / "week2" / "C03" / "1.npz", matrix + 2)
    reports = import_profiles(lake, [top], "dp")
    assert [(report.plate, report.rows_in, report.wells_in) for report in reports] == [
        ("week1", 4, 1),
        ("week2", 3, 1),
    ]
    found = lake.frame(
        "SELECT field, cell, x_px, y_px, embedding FROM dp.cells WHERE plate = 'week1' ORDER BY ALL"
    )
    assert [row[:4] for row in found.iter_rows()] == [
        ("1", "1", 1.0, 2.0),
        ("1", "2", 3.0, 4.0),
        ("1", "3", 5.0, 6.0),
        ("2", "1", None, None),
    ]
    np.testing.assert_array_equal(np.array(found["embedding"].to_list())[:3], matrix)
    assert feature_sets.find(lake, "dp").feature_names == tuple(f"feature_{index}" for index in range(5))
    assert faults(lake) == {}
    named = sorted(top.rglob("*.npz"))  # a folder's files named one by one are the same plates
    assert {report.outcome for report in import_profiles(lake, named, "dp")} == {"unchanged"}


class _Bomb:
    def __reduce__(self):
        return (pytest.fail, ("a pickle was read",))


def test_nothing_is_unpickled(lake, tmp_path):
    path = write_npz(tmp_path / "week1" / "A01" / "1.npz", np.ones((2, 3), np.float32), metadata=_Bomb())
    (report,) = import_profiles(lake, [tmp_path], "dp")
    assert (report.outcome, report.rows_in) == ("added", 2)
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "|O", "fortran_order": False, "shape": (2, 3)})
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("features.npy", header.getvalue() + pickle.dumps(_Bomb()))
    with pytest.raises(
        ProfileError, match=r"1.npz: no array 'features' of numbers: is this of DeepProfiler\?"
    ):
        import_profiles(lake, [path], "bomb")


def test_sites_that_cannot_be_read_are_rejected_and_the_others_go_in(lake, tmp_path):
    top = tmp_path / "week1"
    matrix = np.ones((2, 3), np.float32)
    whole = write_npz(top / "A01" / "1.npz", matrix).read_bytes()
    write_npz(top / "A01" / "2.npz", matrix).write_bytes(whole[:-40])
    write_npz(top / "A01" / "3.npz", np.ones((2, 4), np.float32))
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        header, {"descr": "<f4", "fortran_order": False, "shape": (10**9, 3)}
    )
    with zipfile.ZipFile(top / "A01" / "4.npz", "w") as archive:
        archive.writestr("features.npy", header.getvalue() + b"\0" * 24)
    with zipfile.ZipFile(top / "A01" / "5.npz", "w", zipfile.ZIP_BZIP2) as archive:
        archive.writestr("features.npy", b"\0" * 10**8)
    (report,) = import_profiles(lake, [top], "dp")
    assert (report.rows_in, report.rows_rejected, report.images_rejected) == (2, 4, 4)
    reasons = [row[3] for row in rejections(lake)]
    assert re.search(r"2.npz: cannot be read as .npz: File is not a zip file", reasons[0])
    assert reasons[1].endswith("3.npz: has 4 features, the first site of its plate has 3")
    assert "4.npz: features claims the shape (1000000000, 3), and holds" in reasons[2]
    assert "5.npz: features claims 100000000 bytes of" in reasons[3]


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["x.npz"], "x.npz: the path does not say plate, well and site: name it <plate>/<well>/<site>.npz"),
        (["A01/1.npz", "A1_1.npz"], "site '1' of well 'A01' is"),
    ],
)
def test_paths_of_deepprofiler_that_do_not_say_what_they_are(refusing, tmp_path, names, message):
    for name in names:
        write_npz(tmp_path / "week1" / name, np.ones((1, 2), np.float32))
    with pytest.raises(ProfileError, match=re.escape(message)):
        import_profiles(refusing, [tmp_path / "week1"], "dp")


# --- matrices


def test_a_matrix_with_a_table_of_its_rows(lake, tmp_path):
    matrix = np.random.default_rng(0).normal(size=(4, 3))
    matrix[1, 1] = np.nan
    np.save(tmp_path / "m.npy", matrix)
    keys = pl.DataFrame(
        {"Metadata_Plate": ["p", "q", "p", "q"], "Metadata_Well": ["B1", "A1", "A1", "A2"], "colour": "x"}
    )
    keys.write_csv(tmp_path / "keys.csv")
    lists = pl.DataFrame({"vector": matrix.astype(np.float32).tolist()}).with_columns(
        pl.col("vector").list.eval(pl.element().fill_nan(None))
    )
    lists.write_parquet(tmp_path / "m.parquet")
    settings = ImportSettings(metadata=tmp_path / "keys.csv")
    for name in ("m.npy", "m.parquet"):
        reports = import_profiles(lake, [tmp_path / name], name[2:], settings=settings)
        assert [(report.plate, report.rows_in) for report in reports] == [("p", 2), ("q", 2)]
        found = lake.frame(f"SELECT plate, well, embedding FROM {name[2:]}.wells ORDER BY ALL").rows()
        for row, (plate, well, embedding) in zip((2, 0, 1, 3), found, strict=True):
            assert (plate, well) == (
                keys["Metadata_Plate"][row],
                f"{keys['Metadata_Well'][row][0]}0{keys['Metadata_Well'][row][1]}",
            )
            assert embedding == [None if np.isnan(x) else float(np.float32(x)) for x in matrix[row]]


def test_matrices_that_do_not_fit(refusing, tmp_path):
    np.save(tmp_path / "m.npy", np.ones((4, 3)))
    np.save(tmp_path / "flat.npy", np.ones(4))
    np.save(tmp_path / "objects.npy", np.array([_Bomb()], dtype=object), allow_pickle=True)
    keys = pl.DataFrame({"Metadata_Plate": ["p"] * 5, "Metadata_Well": [f"A{i}" for i in range(1, 6)]})
    keys.write_csv(tmp_path / "keys.csv")
    settings = ImportSettings(metadata=tmp_path / "keys.csv")
    for name, given, message in (
        ("m.npy", settings, r"m.npy: has 4 rows, .*keys.csv has 5: one row a row of the matrix is needed"),
        ("m.npy", None, r"m.npy: a matrix says nothing of its rows: give --metadata FILE"),
        ("m.npy", replace(settings, metadata=tmp_path / "gone.csv"), r"gone.csv: there is no such file"),
        (
            "flat.npy",
            settings,
            r"flat.npy: is of shape \(4,\) and type float64: a matrix of numbers is needed",
        ),
        ("objects.npy", settings, r"objects.npy: cannot be read as .npy: .*Python objects"),
        ("gone.npy", settings, r"gone.npy: there is no such file"),
    ):
        with pytest.raises(ProfileError, match=message):
            import_profiles(refusing, [tmp_path / name], "m", settings=given)
    keys[:4].write_csv(tmp_path / "keys.csv")
    with pytest.raises(
        ProfileError, match=r"m.npy: has 3 columns, and 2 features are named: name as many, or none"
    ):
        import_profiles(refusing, [tmp_path / "m.npy"], "m", settings=replace(settings, features=("a", "b")))


# --- levels of tables


def test_levels_by_columns_and_as_told(lake, tmp_path):
    rows = pl.DataFrame(
        {
            "Metadata_Plate": "p",
            "Metadata_Well": ["A1", "A1", "A1", "A2"],
            "Metadata_Site": [1, 1, 2, 1],
            "Metadata_ObjectNumber": [1, 2, 1, 1],
            "x_px": [0.5, 1.5, 2.5, None],
            "emb0": [1.0, 3.0, 5.0, 7.0],
            "emb1": [None, 4.0, None, 8.0],
        }
    )
    rows.write_parquet(tmp_path / "cells.parquet")
    rows.drop("x_px").write_csv(tmp_path / "cells.csv")
    rows[1:].drop("x_px", "Metadata_ObjectNumber").write_parquet(tmp_path / "fields.parquet")
    for name in ("cells.parquet", "cells.csv"):
        (report,) = import_profiles(lake, [tmp_path / name], "c", replace=True)
        assert (report.level, report.rows_in) == ("cell", 4)
        fields = lake.frame("SELECT well, field, cell_count, embedding FROM c.fields ORDER BY ALL").rows()
        assert fields == [
            ("A01", "1", 2, [2.0, 4.0]),
            ("A01", "2", 1, [5.0, None]),
            ("A02", "1", 1, [7.0, 8.0]),
        ]
        wells = lake.frame("SELECT well, field_count, cell_count, embedding FROM c.wells ORDER BY ALL").rows()
        assert wells == [("A01", 2, 3, [3.5, 4.0]), ("A02", 1, 1, [7.0, 8.0])]
    (report,) = import_profiles(lake, [tmp_path / "fields.parquet"], "f")
    assert (report.level, report.rows_in) == ("field", 3)
    wells = lake.frame("SELECT well, field_count, cell_count, embedding FROM f.wells ORDER BY ALL").rows()
    assert wells == [
        ("A01", 2, None, [4.0, 4.0]),
        ("A02", 1, None, [7.0, 8.0]),
    ]  # how many cells is not known
    assert lake.frame(
        "SELECT profiles_seen, cells_seen FROM main.plate_loads WHERE feature_set = 'f'"
    ).rows() == [(3, 0)]
    assert faults(lake) == {}
    for level, message in (
        ("well", r"well 'A1?0?1' of plate 'p' has more than one profile: keep one row a well"),
        ("treatment", r"level 'treatment' lies above wells and cannot be taken in"),
        ("filed", r"unknown level 'filed'. Did you mean 'field'\?"),
    ):
        with pytest.raises((ProfileError, UnknownNameError), match=message):
            import_profiles(lake, [tmp_path / "fields.parquet"], "x", settings=ImportSettings(level=level))
    with pytest.raises(ProfileError, match=r"told to be of level 'cell', and no column is known for cell"):
        import_profiles(lake, [tmp_path / "fields.parquet"], "x", settings=ImportSettings(level="cell"))
    rows.drop("Metadata_ObjectNumber", "x_px")[1:].with_columns(Metadata_Plate=pl.lit("q")).write_csv(
        tmp_path / "q.csv"
    )
    with pytest.raises(
        ProfileError,
        match=r"q.csv: its rows are of level 'field', those of .*cells.csv of 'cell': import them as two",
    ):
        import_profiles(lake, [tmp_path / "cells.csv", tmp_path / "q.csv"], "x")


def test_a_consensus_is_refused(refusing, tmp_path):
    path = tmp_path / "consensus.csv"
    path.write_text("Metadata_Plate,Metadata_pert_iname,Cells_a\np,taxol,1\n")
    with pytest.raises(ProfileError, match=r"no column for well .*lie above wells and cannot be taken in"):
        import_profiles(refusing, [path], "x")


def test_lists_of_numbers_are_features(lake, tmp_path):
    rows = {
        "plate": ["p", "p"],
        "well": ["A1", "A2"],
        "dna_emb": [[1.0, 2.0], [3.0, None]],
        "er_emb": [[5.0], None],
    }
    pl.DataFrame(rows).write_parquet(tmp_path / "x.parquet")
    import_profiles(lake, [tmp_path / "x.parquet"], "x")
    assert feature_sets.find(lake, "x").feature_names == ("dna_emb_0", "dna_emb_1", "er_emb_0")
    assert lake.frame("SELECT embedding FROM x.wells ORDER BY well")["embedding"].to_list() == [
        [1.0, 2.0, 5.0],
        [3.0, None, None],
    ]
    pl.DataFrame(rows | {"dna_emb": [[1.0, 2.0], [3.0]]}).write_parquet(tmp_path / "y.parquet")
    (report,) = import_profiles(lake, [tmp_path / "y.parquet"], "y")
    assert report.outcome == "failed"
    assert "y.parquet: row 2, column 'dna_emb': 1 numbers, the first row has 2" in report.reason


# --- the registry


def test_formats_are_named_once_and_known(refusing, tmp_path):
    names = [one.name for one in formats.ALL]
    assert len(set(names)) == len(names)
    assert formats.find("matrix").name == "matrix"
    with pytest.raises(
        UnknownNameError, match=r"unknown format 'deeprofiler'. Did you mean 'deepprofiler'\?"
    ):
        import_profiles(refusing, [tmp_path], "x", format_name="deeprofiler")
    for one in formats.ALL:
        assert not one.recognises(tmp_path / "gone")
        assert one.description


# --- real files


@pytest.mark.parametrize(
    ("path", "settings", "counts", "dim"),
    [
        ("cellprofiler/NF1/all_cellprofiler.sqlite", {}, (242, 191, 32, 8), 1189),
        ("cellprofiler/cell_health/test-SQ00014613.sqlite", {}, (12, 0, 2, 2), 1777),
        ("cellprofiler/ExampleHuman", {"plate": "AS_09125", "well": "D03"}, (289, 0, 1, 1), 300),
        pytest.param("cellprofiler/cpg0043-segmentation", {}, (109, 0, 1, 1), 6022, marks=pytest.mark.slow),
        pytest.param("cellprofiler/collate_BR00121431/analysis", {}, (125, 2, 2, 2), 5786, marks=pytest.mark.slow),
        ("deepprofiler/SQ00014812", {}, (158, 0, 1, 1), 6400),
        ("deepprofiler/bbbc021", {}, (663, 0, 6, 3), 50),
    ],
)  # fmt: skip
def test_real_cells(lake, data_dir, path, settings, counts, dim):
    (report,) = import_profiles(lake, [data_dir / path], "real", settings=ImportSettings(**settings))
    fields = lake.value("SELECT count(*) FROM real.fields")
    assert (report.rows_in, report.rows_rejected, fields, report.wells_in) == counts
    assert feature_sets.find(lake, "real").dim == dim
    assert faults(lake) == {}


def test_real_joins_are_those_of_sql(lake, data_dir):
    """Every cell of NF1, one measurement of each compartment, against SQLite's own join on the parents."""
    path = data_dir / "cellprofiler" / "NF1" / "all_cellprofiler.sqlite"
    import_profiles(lake, [path], "nf1")
    names = feature_sets.find(lake, "nf1").feature_names
    measured = [f"{table}_AreaShape_Area" for table in FEATURES]
    picked = ", ".join(f"embedding[{names.index(name) + 1}]" for name in measured)
    ours = lake.frame(f"SELECT well, field, cell, {picked} FROM nf1.cells").rows()
    query = f"""
        SELECT Image_Metadata_Well, Image_Metadata_Site, Cells_Number_Object_Number, {", ".join(measured)}
        FROM Per_Cells AS c
        JOIN Per_Cytoplasm AS y ON y.ImageNumber = c.ImageNumber AND Cytoplasm_Parent_Cells = Cells_Number_Object_Number
        JOIN Per_Nuclei AS n ON n.ImageNumber = c.ImageNumber AND Nuclei_Number_Object_Number = Cytoplasm_Parent_Nuclei
        JOIN Per_Image AS i ON i.ImageNumber = c.ImageNumber
    """
    with sqlite3.connect(f"file:{path}?immutable=1", uri=True) as connection:
        theirs = connection.execute(query).fetchall()
    connection.close()
    named = [
        (f"{well[0]}{int(well[1:]):02d}", site, str(cell), *map(np.float32, values))
        for well, site, cell, *values in theirs
    ]
    assert sorted(ours) == sorted(named)
