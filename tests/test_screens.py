"""Reading screens: counts and values of the real files, the templates, and every fault by its message."""

import gzip
import re
import time
from collections.abc import Callable
from pathlib import Path

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from warehouse.errors import ScreenError
from warehouse.screens import (
    ANNOTATIONS_SCHEMA,
    LAYOUT_SCHEMA,
    MANIFEST_SCHEMA,
    TEMPLATE_ANNOTATIONS,
    TEMPLATE_LAYOUT,
    TEMPLATE_MANIFEST,
    Screen,
    check,
    read_annotations,
    read_layout,
    read_screen,
    write_templates,
)
from warehouse.screens.paths import locate, resolve
from warehouse.screens.plain import ANNOTATION_COLUMNS, LAYOUT_COLUMNS, MANIFEST_COLUMNS
from warehouse.screens.table import columns_of, read_table
from warehouse.wells import treatment_expression

REPOSITORY = Path(__file__).resolve().parent.parent

LONG = "plate,well,field,channel,path\nP1,B02,1,DNA,a.tif\nP1,B02,1,Actin,b.tif\n"
LAYOUT = "plate,well,compound,concentration,unit,control_type\nP1,B02,taxol,0.3,µM,\nP1,B03,DMSO,,,negative\n"


def written(folder: Path, name: str, text: str) -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


def with_images(folder: Path, *names: str) -> None:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


def manifest_of(folder: Path, text: str = LONG) -> Path:
    """A manifest whose images are there, so that only what the test is about can be at fault."""
    with_images(folder, "a.tif", "b.tif", "c.tif", "d.tif")
    return written(folder, "manifest.csv", text)


def fails(expected: str) -> "pytest.RaisesExc[ScreenError]":
    """The message holds this text, and is one line."""
    one_line = r"^[^\n]*" + re.escape(expected) + r"[^\n]*$"
    return pytest.raises(ScreenError, match=one_line)


# ── the plain CSV ────────────────────────────────────────────────────────────


def test_a_long_manifest(tmp_path: Path) -> None:
    screen = read_screen(manifest_of(tmp_path), layout=written(tmp_path, "layout.csv", LAYOUT))
    assert screen.manifest.schema == MANIFEST_SCHEMA
    assert screen.layout.schema == LAYOUT_SCHEMA
    assert screen.annotations.schema == ANNOTATIONS_SCHEMA
    assert screen.manifest.rows() == [
        ("default", "default", "P1", "B02", "1", None, "DNA", f"{tmp_path}/a.tif", None),
        ("default", "default", "P1", "B02", "1", None, "Actin", f"{tmp_path}/b.tif", None),
    ]
    assert screen.layout.rows() == [
        ("default", "default", "P1", "B02", "taxol", 0.3, "uM", "none"),
        ("default", "default", "P1", "B03", "DMSO", None, None, "negative"),
    ]
    assert screen.origin == str(tmp_path / "manifest.csv")
    assert screen.notes == ()
    check(screen)


def test_a_wide_manifest_is_the_long_one(tmp_path: Path) -> None:
    wide = "plate,well,field,path_DNA,path_Actin\nP1,B02,1,a.tif,b.tif\n"
    long = read_screen(manifest_of(tmp_path)).manifest
    assert read_screen(manifest_of(tmp_path, wide)).manifest.equals(long)


def test_planes_and_cells(tmp_path: Path) -> None:
    wide = "plate,well,field,cell,path_DNA,plane_DNA,path_Actin,plane_Actin\nP1,B02,1,7,a.tif,0,a.tif,1\n"
    long = "plate,well,field,cell,channel,path,plane\nP1,B02,1,7,DNA,a.tif,0\nP1,B02,1,7,Actin,a.tif,1\n"
    expected = [("7", "DNA", 0), ("7", "Actin", 1)]
    for text in (wide, long):
        assert (
            read_screen(manifest_of(tmp_path, text)).manifest.select("cell", "channel", "plane").rows()
            == expected
        )


def test_values_are_stripped_and_the_byte_order_mark_taken_off(tmp_path: Path) -> None:
    text = "\ufeffplate , well,field,channel,path\r\n\r\n P1 ,b2, 01 ,DNA, a.tif \r\n"
    path = manifest_of(tmp_path, text)
    assert read_screen(path).manifest.select("plate", "well", "field").rows() == [("P1", "B02", "01")]


def test_tabs_and_gzip(tmp_path: Path) -> None:
    plain = read_screen(manifest_of(tmp_path)).manifest
    for name, data in (
        ("m.tsv", LONG.replace(",", "\t").encode()),
        ("m.csv.gz", gzip.compress(LONG.encode())),
        ("m.tsv.gz", gzip.compress(LONG.replace(",", "\t").encode())),
    ):
        (tmp_path / name).write_bytes(data)
        assert read_screen(tmp_path / name).manifest.equals(plain)


def test_channels_are_chosen_and_ordered_and_the_rest_is_told(tmp_path: Path) -> None:
    wide = "plate,well,field,path_DNA,path_ER,path_Actin\nP1,B02,1,a.tif,b.tif,c.tif\n"
    screen = read_screen(manifest_of(tmp_path, wide), channels=["Actin", "DNA"])
    assert screen.manifest["channel"].to_list() == ["Actin", "DNA"]
    assert screen.notes == ("1 of 3 channels left out: ER",)
    screen = read_screen(manifest_of(tmp_path), channels=["DNA"])
    assert screen.manifest["channel"].to_list() == ["DNA"]
    assert screen.notes == ("1 of 2 channels left out: Actin",)
    for text in (wide, LONG):
        with fails("unknown channel 'DNAA'. Did you mean 'DNA'?"):
            read_screen(manifest_of(tmp_path, text), channels=["DNAA"])
    with fails("channels DNA, DNA: name at least one, and each once"):
        read_screen(manifest_of(tmp_path), channels=["DNA", "DNA"])


def test_a_field_without_one_channel_is_kept_and_told(tmp_path: Path) -> None:
    wide = "plate,well,field,path_DNA,path_Actin\nP1,B02,1,a.tif,b.tif\nP1,B02,2,c.tif,\n"
    screen = read_screen(manifest_of(tmp_path, wide))
    assert screen.manifest.select("field", "channel").rows() == [("1", "DNA"), ("1", "Actin"), ("2", "DNA")]
    assert screen.notes == ("1 of 2 fields have no image for channel Actin",)


def test_wells_without_layout_are_kept_and_told(tmp_path: Path) -> None:
    text = LONG + "P1,C01,1,DNA,c.tif\n"
    screen = read_screen(manifest_of(tmp_path, text), layout=written(tmp_path, "l.csv", LAYOUT))
    assert "1 of 2 wells of the manifest are not in the layout" in screen.notes
    assert screen.manifest.height == 3


def test_no_negative_control_and_foreign_annotations_are_told(tmp_path: Path) -> None:
    layout = written(tmp_path, "l.csv", "plate,well,compound\nP1,B02,taxol\n")
    labels = written(tmp_path, "a.csv", "compound,kind,label\ntaxol,moa,x\nTaxol,moa,x\n")
    screen = read_screen(manifest_of(tmp_path), layout=layout, annotations=labels)
    assert screen.notes == (
        "the layout has no negative control: corrections fitted on controls will refuse it",
        "1 of 2 annotated compounds are not in the layout",
    )


def test_one_compound_in_two_units_is_fine(tmp_path: Path) -> None:
    text = "plate,well,compound,concentration,unit\nP1,B02,taxol,1,uM\nP1,B03,taxol,1,nM\n"
    layout = read_layout(written(tmp_path, "l.csv", text))
    assert layout.select(treatment_expression()).to_series().to_list() == ["taxol@1uM", "taxol@1nM"]


def test_the_templates_can_be_read(tmp_path: Path) -> None:
    files = write_templates(tmp_path / "new")
    assert [path.name for path in files] == ["manifest.csv", "layout.csv", "annotations.csv"]
    assert [path.read_text() for path in files] == [TEMPLATE_MANIFEST, TEMPLATE_LAYOUT, TEMPLATE_ANNOTATIONS]
    with_images(tmp_path / "new", "images/P001/B02_1_DNA.tif")
    manifest, layout, annotations = files
    screen = read_screen(manifest, layout=layout, annotations=annotations)
    assert (screen.manifest.height, screen.layout.height, screen.annotations.height) == (6, 3, 2)
    assert screen.manifest.row(1)[:7] == ("lab1", "week1", "P001", "B02", "1", None, "Actin")
    assert screen.layout["compound"].to_list() == ["DMSO", "taxol", None]
    assert screen.annotations.row(0) == ("taxol", None, None, "moa", "Microtubule stabilizers")
    assert screen.notes == ()


def test_the_page_on_the_format_shows_the_templates_and_every_column() -> None:
    page = (REPOSITORY / "docs" / "screen_format.md").read_text(encoding="utf-8")
    for template in (TEMPLATE_MANIFEST, TEMPLATE_LAYOUT, TEMPLATE_ANNOTATIONS):
        assert f"```csv\n{template}```" in page
    tables = re.findall(r"^\| (`[^|]*) \|", page, flags=re.MULTILINE)
    shown = set(re.findall(r"`([^`]+)`", " ".join(tables)))
    assert shown == {
        *MANIFEST_COLUMNS,
        *LAYOUT_COLUMNS,
        *ANNOTATION_COLUMNS,
        "path_<Channel>",
        "plane_<Channel>",
    }


def test_templates_do_not_overwrite(tmp_path: Path) -> None:
    written(tmp_path, "layout.csv", "mine")
    assert [path.name for path in write_templates(tmp_path)] == ["manifest.csv", "annotations.csv"]
    assert (tmp_path / "layout.csv").read_text() == "mine"


# ── source and batch ─────────────────────────────────────────────────────────


def test_arguments_stand_in_for_columns_and_must_not_contradict_them(tmp_path: Path) -> None:
    screen = read_screen(manifest_of(tmp_path), source="s1", batch="w1")
    assert screen.manifest.select("source", "batch").unique().rows() == [("s1", "w1")]
    stated = "batch,plate,well,field,channel,path\nw2,P1,B02,1,DNA,a.tif\n"
    assert read_screen(manifest_of(tmp_path, stated), batch="w2").manifest["batch"].to_list() == ["w2"]
    with fails("manifest.csv, row 2: batch is 'w2', but batch 'w1' was asked for"):
        read_screen(manifest_of(tmp_path, stated), batch="w1")


def test_a_layout_takes_the_batch_of_its_plate_and_the_reverse(tmp_path: Path) -> None:
    stated = "source,batch,plate,well,field,channel,path\ns,w2,P1,B02,1,DNA,a.tif\n"
    bare = written(tmp_path, "l.csv", LAYOUT)
    screen = read_screen(manifest_of(tmp_path, stated), layout=bare)
    assert screen.layout.select("source", "batch").unique().rows() == [("s", "w2")]
    told = written(tmp_path, "l.csv", "batch,plate,well,compound\nw3,P1,B02,taxol\n")
    assert read_screen(manifest_of(tmp_path), layout=told).manifest["batch"].unique().to_list() == ["w3"]


def test_a_plate_in_two_batches(tmp_path: Path) -> None:
    text = "batch,plate,well,field,channel,path\nw1,P1,B02,1,DNA,a.tif\nw2,P1,B03,1,DNA,b.tif\n"
    with fails("manifest.csv: plate 'P1' (source 'default') is in 2 batches: 'w1' and 'w2'"):
        read_screen(manifest_of(tmp_path, text))
    layout = written(tmp_path, "l.csv", "batch,plate,well,compound\nw9,P1,B02,taxol\n")
    one = manifest_of(tmp_path, "".join(text.splitlines(keepends=True)[:2]))
    with fails("plate 'P1' (source 'default') is in 2 batches: 'w1' and 'w9'"):
        read_screen(one, layout=layout)
    two = "source,batch,plate,well,field,channel,path\ns1,w1,P1,B02,1,DNA,a.tif\ns2,w2,P1,B03,1,DNA,b.tif\n"
    assert read_screen(manifest_of(tmp_path, two)).manifest.height == 2
    with fails("l2.csv, row 2: plate 'P1' is in several sources of the manifest"):
        read_screen(manifest_of(tmp_path, two), layout=written(tmp_path, "l2.csv", LAYOUT))


# ── faults of a table ────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "t.csv: the file is empty"),
        ("a,b\n1,2\n3\n", "t.csv, row 3: 1 values for 2 columns"),
        ("a,b\n1,2,3\n", "t.csv, row 2: 3 values for 2 columns"),
        ("a,b\n\n1,2\n\n3\n", "t.csv, row 5: 1 values for 2 columns"),
        ("a,a\n1,2\n", "t.csv: column 'a' stands twice"),
        ("a,,b\n1,2,3\n", "t.csv: column 2 has no usable name ('')"),
        ("a;b\n1;2\n", "t.csv: values are separated by semicolons ('a;b')"),
        ('a,b\n1,"2\n3,4\n', "t.csv, line 3: unexpected end of data"),
    ],
)
def test_a_table_that_cannot_be_read(tmp_path: Path, text: str, expected: str) -> None:
    with fails(expected):
        read_table(written(tmp_path, "t.csv", text))


def test_files_that_are_no_tables(tmp_path: Path) -> None:
    with fails("absent.csv: there is no such file"):
        read_table(tmp_path / "absent.csv")
    (tmp_path / "latin.csv").write_bytes("unit\nµM\n".encode("latin-1"))
    with fails("latin.csv: not UTF-8 text (byte 0xb5)"):
        read_table(tmp_path / "latin.csv")
    (tmp_path / "cut.csv.gz").write_bytes(gzip.compress(LONG.encode())[:20])
    with fails("cut.csv.gz: cannot be read"):
        read_table(tmp_path / "cut.csv.gz")


@given(st.lists(st.lists(st.text("ab ,\"\t'é", max_size=4), min_size=2, max_size=2), min_size=1, max_size=6))
def test_a_table_reads_back_what_was_written(
    tmp_path_factory: pytest.TempPathFactory, rows: list[list[str]]
) -> None:
    path = tmp_path_factory.mktemp("t") / "t.csv"
    pl.DataFrame(rows, schema={"x": pl.String, "y": pl.String}, orient="row").write_csv(path)
    table = read_table(path)
    assert columns_of(table) == ["x", "y"]
    expected = [tuple(value.strip() or None for value in row) for row in rows]
    assert table.select("x", "y").rows() == expected
    assert table["__row"].to_list() == list(range(2, len(rows) + 2))


# ── faults of a manifest ─────────────────────────────────────────────────────

HEAD = "plate,well,field,channel,path\n"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("plate,wel,field,channel,path\nP1,B02,1,DNA,a.tif\n", "unknown column 'wel'. Did you mean 'well'?"),
        (
            "Plate,well,field,channel,path\nP1,B02,1,DNA,a.tif\n",
            "unknown column 'Plate'. Did you mean 'plate'?",
        ),
        (
            "plate,well,channel,path\nP1,B02,DNA,a.tif\n",
            "column 'field' is missing; the file has plate, well",
        ),
        ("plate,well,field,path\nP1,B02,1,a.tif\n", "column 'channel' is missing"),
        ("plate,well,field\nP1,B02,1\n", "no column names an image; the file has plate, well, field"),
        (
            "plate,well,field,path,path_DNA\nP1,B02,1,a,b\n",
            "both 'path_DNA' and 'channel', 'path' or 'plane'",
        ),
        (
            "plate,well,field,path_DNA,plane_DN\nP1,B02,1,a,1\n",
            "unknown column 'plane_DN'. Did you mean 'plane_DNA'",
        ),
        (
            "colour,shape\nred,round\n",
            "manifest.csv: the columns fit no known kind of manifest: colour, shape.",
        ),
        (HEAD, "the manifest has no rows"),
        (HEAD + "P1,B02,1,DNA,\n", "manifest.csv, row 2: path is empty"),
        (HEAD + "P1,B02,1,,a.tif\n", "manifest.csv, row 2: channel is empty"),
        (
            HEAD + "P1,B02,1,DNA,a.tif\n,B02,2,DNA,b.tif\n,B02,3,DNA,c.tif\n",
            "row 3: plate is empty (and 1 more row)",
        ),
        (HEAD + "P1,,1,DNA,a.tif\n", "row 2: well is empty"),
        (HEAD + "P1,B02,,DNA,a.tif\n", "row 2: field is empty"),
        (
            HEAD + "P\u200b1,B02,1,DNA,a.tif\n",
            r"row 2: plate 'P\u200b1' holds a character that cannot be seen",
        ),
        (HEAD + '"P\n1",B02,1,DNA,a.tif\n', r"row 2: plate 'P\n1' holds a character that cannot be seen"),
        (HEAD + "P1,B02,1,DNA,a.tif\nP1,B2x,1,DNA,b.tif\n", "row 3: 'B2x' is not a well"),
        (HEAD + "P1,AG01,1,DNA,a.tif\n", "row 2: well 'AG01' is off the largest plate, 1536 wells"),
        (
            HEAD + "P1,B02,1,DNA,a.tif\nP1,b2,1,DNA,b.tif\n",
            "row 3: plate P1, well B02, field 1: channel 'DNA' stands twice (first in row 2)",
        ),
        (
            HEAD + "P1,B02,1,DNA,a.tif\nP1,B03,1,DNA,a.tif\n",
            "a.tif' is used twice, also for plate P1, well B02, field 1, channel DNA (first in row 2)",
        ),
        (
            "plate,well,field,cell,channel,path\nP1,B02,1,,DNA,a.tif\nP1,B02,1,5,DNA,b.tif\n",
            "row 2: field '1' of well B02 is listed whole and as crops (and 1 more row)",
        ),
        (
            "plate,well,field,channel,path,plane\nP1,B02,1,DNA,a.tif,-1\n",
            "row 2: plane '-1' is not a whole number",
        ),
        (
            "plate,well,field,channel,path,plane\nP1,B02,1,DNA,a.tif,1.5\n",
            "row 2: plane '1.5' is not a whole number",
        ),
        (
            "plate,well,field,path_DNA,path_ER\nP1,B02,1,,\n",
            "row 2: no image is given for any channel (DNA, ER)",
        ),
        (HEAD + "P1,B02,1,DNA,../../etc/passwd\n", "row 2: path '../../etc/passwd' leads out of"),
        (HEAD + "P1,B02,1,DNA,x/../../y.tif\n", "row 2: path 'x/../../y.tif' leads out of"),
        (HEAD + "P1,B02,1,DNA,..\\..\\y.tif\n", "row 2: path '../../y.tif' leads out of"),
        (
            HEAD + "P1,B02,1,DNA,gs://bucket/a.tif\n",
            "row 2: 'gs://bucket/a.tif' is an address, and only files are read, on disk or on s3://",
        ),
        (
            HEAD + "P1,B02,1,DNA,no.tif\nP1,B02,2,DNA,no2.tif\n",
            "none of the 2 image files is there; looked below",
        ),
        (
            "plate,well,field,channel,path,plate_size\nP1,H12,1,DNA,a.tif,96\nP1,I01,1,DNA,b.tif,96\n",
            "manifest.csv, row 3: well 'I01' is off a 96-well plate (rows A–H, columns 1–12)",
        ),
        (
            "plate,well,field,channel,path,plate_size\nP1,A1,1,DNA,a.tif,100\n",
            "row 2: no plate has 100 wells",
        ),
    ],
)
def test_faults_of_a_manifest(tmp_path: Path, text: str, expected: str) -> None:
    with fails(expected):
        read_screen(manifest_of(tmp_path, text))


def test_the_plate_size_asked_for(tmp_path: Path) -> None:
    path = manifest_of(tmp_path, HEAD + "P1,Q01,1,DNA,a.tif\n")
    assert read_screen(path).manifest["well"].to_list() == ["Q01"]
    with fails(f"{path}, row 2: well 'Q01' is off a 384-well plate (rows A–P, columns 1–24)"):
        read_screen(path, plate_size=384)
    with fails("no plate has 385 wells"):
        read_screen(path, plate_size=385)


def test_formats_are_named(tmp_path: Path) -> None:
    with fails("unknown format 'jmup'. Did you mean 'jump'?"):
        read_screen(manifest_of(tmp_path), format="jmup")  # type: ignore[arg-type]
    with fails("column 'Image_Metadata_Plate_DAPI' is missing"):
        read_screen(manifest_of(tmp_path), format="bbbc021")


# ── paths ────────────────────────────────────────────────────────────────────


def test_relative_and_absolute_paths(tmp_path: Path) -> None:
    images, elsewhere = tmp_path / "images", tmp_path / "else"
    with_images(images, "a.tif", "sub/b.tif")
    with_images(elsewhere, "c.tif")
    text = HEAD + f"P1,B02,1,DNA,sub/./b.tif\nP1,B02,2,DNA,sub/../a.tif\nP1,B02,3,DNA,{images}/x.tif\n"
    path = written(tmp_path, "m.csv", text)
    expected = [f"{images}/sub/b.tif", f"{images}/a.tif", f"{images}/x.tif"]
    assert read_screen(path, images=images).manifest["path"].to_list() == expected
    stray = written(tmp_path, "n.csv", HEAD + f"P1,B02,1,DNA,{elsewhere}/c.tif\n")
    assert read_screen(stray).manifest["path"].to_list() == [f"{elsewhere}/c.tif"]
    with fails(f"n.csv, row 2: path '{elsewhere}/c.tif' is not below the images folder {images}"):
        read_screen(stray, images=images)
    sneaky = written(tmp_path, "o.csv", HEAD + f"P1,B02,1,DNA,{images}/../else/c.tif\n")
    with fails(f"is not below the images folder {images}"):
        read_screen(sneaky, images=images)
    with fails("there is no such folder"):
        read_screen(path, images=tmp_path / "absent")


def test_no_image_at_all_names_the_root_and_the_first_path(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    path = manifest_of(tmp_path)
    expected = (
        f"{path}: none of the 2 image files is there; looked below {tmp_path}/images, "
        f"first for {tmp_path}/images/a.tif. Is the images folder right?"
    )
    with fails(expected):
        read_screen(path, images=tmp_path / "images")


def test_a_folder_with_braces_is_told_as_it_is(tmp_path: Path) -> None:
    folder = tmp_path / "{plate}"
    folder.mkdir()
    with fails(f"leads out of {folder}"):
        read_screen(written(folder, "m.csv", HEAD + "P1,B02,1,DNA,../a.tif\n"))


@given(st.lists(st.sampled_from(["..", ".", "a", "b", ""]), min_size=1, max_size=7))
def test_no_relative_path_leaves_its_root(parts: list[str]) -> None:
    root, text = Path("/data/root"), "/".join(["a", *parts])
    table = pl.DataFrame({"path": [text]})
    depth, climbs = 0, False
    for part in ["a", *parts]:
        depth += {"..": -1, ".": 0, "": 0}.get(part, 1)
        climbs |= depth < 0
    try:
        resolved = resolve(table, "path", root, None, "t")["path"][0]
    except ScreenError:
        assert climbs or depth == 0  # the root itself is no file
    else:
        assert resolved.startswith("/data/root/")
        assert ".." not in resolved.split("/")


def test_where_a_folder_of_another_machine_is_found(tmp_path: Path) -> None:
    with_images(tmp_path, "B1/P1/Images/a.tif", "P2/Images/a.tif", "Images/a.tif", "flat.tif")
    there = "/home/ubuntu/bucket"
    assert locate(f"{there}/B1/P1/Images", tmp_path, "a.tif") == f"{tmp_path}/B1/P1/Images"
    assert locate(f"{there}/B1/P2/Images", tmp_path, "a.tif") == f"{tmp_path}/P2/Images"
    assert locate(f"{there}/B1/P3/Images", tmp_path, "a.tif") == f"{tmp_path}/Images"
    assert locate("D:/data/P1/raw", tmp_path, "flat.tif") == str(tmp_path)
    assert locate(f"{there}/P9/raw", tmp_path, "a.tif") == f"{tmp_path}{there}/P9/raw"
    assert locate("Week2/P9", tmp_path, "a.tif") == f"{tmp_path}/Week2/P9"


# ── faults of a layout and of annotations ────────────────────────────────────

WELLS = "plate,well,compound,concentration,unit,control_type\n"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (WELLS, "l.csv: the layout has no rows"),
        ("plate,well,compond\nP1,B02,x\n", "l.csv: unknown column 'compond'. Did you mean 'compound'?"),
        ("plate,well,unit\nP1,B02,uM\n", "l.csv: column 'compound' is missing"),
        ("a,b\n1,2\n", "l.csv: the columns fit no known kind of layout: a, b."),
        (
            WELLS + "P1,B02,x,1,uM,\nP1,b2,x,1.0,µM,none\n",
            "l.csv, row 3: well B02 of plate P1 is listed twice with the same content, first in row 2",
        ),
        (
            WELLS + "P1,B02,x,1,uM,\nP1,B02,x,3,uM,\n",
            "l.csv, row 3: well B02 of plate P1 is listed twice: concentration is 3.0 here and 1.0 in row 2",
        ),
        (
            WELLS + "P1,B02,x,,,\nP1,B02,y,,,\nP1,B02,y,,,\n",
            "compound is 'y' here and 'x' in row 2 (and 1 more row)",
        ),
        (WELLS + "P1,Q25,x,1,uM,\nP1,AF49,x,1,uM,\n", "l.csv, row 3: well 'AF49' is off the largest plate"),
        (WELLS + "P1,B02,x,1,uM,negcon\n",
         "row 2: unknown control_type 'negcon'. Use one of negative, none, positive."),
        (WELLS + "P1,B02,x,1,uM,negcon\n", "Did you mean 'negative'?"),
        (WELLS + "P1,B02,x,1,uM,poscon_cp\n", "unknown control_type 'poscon_cp'"),
        (WELLS + "P1,B02,x,1,uM,positiv\n", "Did you mean 'positive'?"),
        (WELLS + "P1,B02,x,high,uM,\n", "row 2: concentration 'high' is not a number of 0 or more"),
        (WELLS + 'P1,B02,x,"0,3",uM,\n', "row 2: concentration '0,3' is not a number of 0 or more"),
        (WELLS + "P1,B02,x,-1,uM,\n", "row 2: concentration '-1' is not a number of 0 or more"),
        (WELLS + "P1,B02,x,NaN,uM,\n", "row 2: concentration 'NaN' is not a number of 0 or more"),
        (WELLS + "P1,B02,x,inf,uM,\n", "row 2: concentration 'inf' is not a number of 0 or more"),
        (WELLS + "P1,B02,NA,,,\n", "row 2: compound is 'NA'. Leave the value empty"),
        (WELLS + "P1,B02,,0.3,uM,\n", "row 2: concentration 0.3 is given without a compound"),
        (WELLS + "P1,B02,x\u00ady,,,\n", r"compound 'x\xady' holds a character that cannot be seen"),
        (
            WELLS + "P1,B02,taxol,0.3,uM,\nP1,B03,taxol@0.3uM,,,\n",
            "row 2: treatment 'taxol@0.3uM' would name two compounds, one of them 'taxol'",
        ),
        ("batch,plate,well,compound\nw1,P1,B02,x\nw2,P1,B03,x\n",
         "plate 'P1' (source 'default') is in 2 batches"),
    ],
)  # fmt: skip
def test_faults_of_a_layout(tmp_path: Path, text: str, expected: str) -> None:
    path = written(tmp_path, "l.csv", text)
    with fails(expected):
        read_layout(path)
    if "batch," not in text:
        with fails(expected):
            read_screen(manifest_of(tmp_path), layout=path)


def test_a_layout_off_the_plate_asked_for(tmp_path: Path) -> None:
    path = written(tmp_path, "l.csv", WELLS + "P1,H13,x,1,uM,\n")
    with fails("l.csv, row 2: well 'H13' is off a 96-well plate (rows A–H, columns 1–12)"):
        read_layout(path, plate_size=96)
    sized = written(
        tmp_path, "s.csv", "plate,well,compound,plate_size\nP1,H12,x,96\nP2,P24,x,384\nP2,Q01,x,384\n"
    )
    with fails("s.csv, row 4: well 'Q01' is off a 384-well plate"):
        read_layout(sized)
    small = written(tmp_path, "small.csv", "plate,well,compound,plate_size\nP1,H12,x,96\n")
    wide = manifest_of(tmp_path, HEAD + "P1,B02,1,DNA,a.tif\nP1,I01,1,DNA,b.tif\n")
    with fails("manifest.csv, row 3: well 'I01' is off a 96-well plate"):
        read_screen(wide, layout=small)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("compound,kind,label\nx,mao,y\n",
         "row 2: unknown kind 'mao'. Use one of gene_family, moa, pathway, target."),
        ("compound,kind,label\nx,mao,y\n", "Did you mean 'moa'?"),
        ("compound,kind,label\nx,moa,\n", "row 2: label is empty"),
        ("compound,kind,label\n,moa,y\n", "row 2: compound is empty"),
        ("compound,kind,label\nx,moa,y\nx,moa,y\n", "row 3: moa 'y' of compound 'x' is listed twice"),
        ("compound,kind,labels\nx,moa,y\n", "unknown column 'labels'. Did you mean 'label'?"),
        ("compound,kind,label,concentration\nx,moa,y,a\n", "row 2: concentration 'a' is not a number"),
        ("a,b\n1,2\n", "a.csv: the columns fit no known kind of annotations: a, b."),
        ("broad_sample,moa\n,y\n", "row 2: label 'y' has no compound"),
    ],
)  # fmt: skip
def test_faults_of_annotations(tmp_path: Path, text: str, expected: str) -> None:
    with fails(expected):
        read_annotations(written(tmp_path, "a.csv", text))


# ── screens built by hand ────────────────────────────────────────────────────

ROW = {"source": "s", "batch": "b", "plate": "P1", "well": "B02", "field": "1", "cell": None,
       "channel": "DNA", "path": "/a.tif", "plane": None}  # fmt: skip
PLACE = {"source": "s", "batch": "b", "plate": "P1", "well": "B02", "compound": "x", "concentration": 1.0,
         "unit": "uM", "control_type": "none"}  # fmt: skip


def by_hand(row: dict[str, object], place: dict[str, object]) -> Screen:
    return Screen(
        manifest=pl.DataFrame([ROW | row], schema=MANIFEST_SCHEMA),
        layout=pl.DataFrame([PLACE | place], schema=LAYOUT_SCHEMA),
        annotations=pl.DataFrame(schema=ANNOTATIONS_SCHEMA),
        origin="hand",
    )


@pytest.mark.parametrize(
    ("row", "place", "expected"),
    [
        (
            {"well": "b2"},
            {},
            "hand (manifest), source s, batch b, plate P1, well b2, field 1, channel DNA: well 'b2'",
        ),
        ({"plane": -1}, {}, "plane -1 is below 0"),
        ({"path": None}, {}, "path is empty"),
        ({}, {"concentration": float("nan")}, "concentration nan is not a number of 0 or more"),
        ({}, {"concentration": -2.0}, "concentration -2.0 is not a number of 0 or more"),
        (
            {},
            {"control_type": None},
            "hand (layout), source s, batch b, plate P1, well B02, compound x: control_type",
        ),
        ({}, {"batch": "c"}, "plate 'P1' (source 's') is in 2 batches: 'b' and 'c'"),
    ],
)
def test_faults_of_a_screen_built_by_hand(
    row: dict[str, object], place: dict[str, object], expected: str
) -> None:
    check(by_hand({}, {}))
    with fails(expected):
        check(by_hand(row, place))


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda frame: frame.drop("plane"), "column 'plane' is missing; it must be Int64"),
        (lambda frame: frame.cast({"plane": pl.String}), "column 'plane' has type String; it must be Int64"),
        (lambda frame: frame.with_columns(wells=1), "unknown column 'wells'. Did you mean 'well'?"),
        (lambda frame: frame.head(0), "the manifest has no rows"),
    ],
)
def test_frames_that_do_not_keep_the_contract(
    change: Callable[[pl.DataFrame], pl.DataFrame], expected: str
) -> None:
    screen = by_hand({}, {})
    manifest = change(screen.manifest)
    with fails(expected):
        check(Screen(manifest, screen.layout, screen.annotations, "hand"))
    with fails(expected):
        Screen.validated(manifest, screen.layout, screen.annotations, origin="hand")


def test_validated_normalises_the_wells() -> None:
    raw = by_hand({"well": "b2"}, {"well": "B002"})
    screen = Screen.validated(raw.manifest, raw.layout, origin="hand", plate_size=96)
    assert (screen.manifest["well"][0], screen.layout["well"][0]) == ("B02", "B02")


# ── BBBC021 ──────────────────────────────────────────────────────────────────


def test_the_image_table_of_bbbc021(data_dir: Path) -> None:
    folder = data_dir / "bbbc021"
    start = time.perf_counter()
    screen = read_screen(
        folder / "BBBC021_v1_image.csv.gz",
        annotations=folder / "BBBC021_v1_moa.csv",
        images=folder / "fields",
    )
    seconds = time.perf_counter() - start
    images, layout = screen.manifest, screen.layout
    assert images.height == 3 * 13_200
    assert images.select("plate", "well", "field").unique().height == 13_200
    assert (images["plate"].n_unique(), images["batch"].n_unique(), layout.height) == (55, 10, 3_300)
    assert layout["compound"].n_unique() == 113
    assert images["channel"].head(3).to_list() == ["DNA", "Tubulin", "Actin"]
    assert set(images["field"].unique()) == {"1", "2", "3", "4"}
    dmso = layout.filter(pl.col("control_type") == "negative")
    assert dmso["compound"].unique().to_list() == ["DMSO"]
    assert dmso.height == 330
    # By hand from the second line of the file.
    first = images.row(0, named=True)
    assert (first["batch"], first["plate"], first["well"], first["field"]) == (
        "Week4",
        "Week4_27481",
        "G10",
        "1",
    )
    assert layout.row(0) == ("default", "Week4", "Week4_27481", "G10", "5-fluorouracil", 0.003, "uM", "none")
    # The one plate with images here is found by the last part of its folder.
    here = images.filter((pl.col("plate") == "Week2_24381") & (pl.col("well") == "B02"))
    there = [Path(path).is_file() for path in here["path"]]
    assert sum(there) == 8
    lacking = here.filter(~pl.Series(there))
    assert lacking.filter(pl.col("field") == "3")["channel"].to_list() == ["Actin"]
    assert screen.annotations.height == 103
    assert screen.annotations["label"].n_unique() == 12
    assert screen.notes == ()
    assert seconds < 5  # about 0.5 s; the margin is for a busy machine


def test_the_crops_of_bbbc021(data_dir: Path) -> None:
    folder = data_dir / "bbbc021"
    screen = read_screen(
        folder / "crops.csv", images=folder / "crops", annotations=folder / "BBBC021_v1_moa.csv"
    )
    assert screen.manifest.height == 3_000
    assert screen.manifest["path"].n_unique() == 1_000
    assert all(Path(path).is_file() for path in screen.manifest["path"].unique())
    assert screen.layout.height == 481
    treatments = screen.layout.select(treatment_expression(), "compound", "concentration").unique()
    assert treatments.height == 104
    labelled = treatments.join(screen.annotations, on=["compound", "concentration"], how="anti")
    assert labelled["treatment"].to_list() == ["DMSO"]
    assert screen.manifest.head(3).select(
        "batch", "plate", "well", "field", "cell", "channel", "plane"
    ).rows() == [
        ("Week4", "Week4_27861", "B02", "1", "180", "DNA", 0),
        ("Week4", "Week4_27861", "B02", "1", "180", "Tubulin", 1),
        ("Week4", "Week4_27861", "B02", "1", "180", "Actin", 2),
    ]
    actin = read_screen(folder / "crops.csv", images=folder / "crops", channels=["Actin", "DNA"])
    assert actin.manifest.head(2).select("channel", "plane").rows() == [("Actin", 2), ("DNA", 0)]


def test_crops_and_image_table_tell_the_same_of_a_well(data_dir: Path) -> None:
    whole = read_layout(data_dir / "bbbc021" / "BBBC021_v1_image.csv.gz")
    crops = read_layout(data_dir / "bbbc021" / "crops.csv")
    assert (whole.height, crops.height) == (3_300, 481)
    assert crops.join(whole, on=list(LAYOUT_SCHEMA), how="anti").height == 0


def test_the_mechanisms_of_bbbc021(data_dir: Path) -> None:
    labels = read_annotations(data_dir / "bbbc021" / "BBBC021_v1_moa.csv")
    assert labels.height == 103
    assert labels.row(0) == ("PP-2", 3.0, "uM", "moa", "Epithelial")
    assert "DMSO" not in labels["compound"]
    assert labels["label"].value_counts().sort("label").row(0) == ("Actin disruptors", 5)


IMAGE_HEAD = (
    "Image_FileName_DAPI,Image_PathName_DAPI,Image_FileName_Tubulin,Image_PathName_Tubulin,Image_FileName_Actin,"
    "Image_PathName_Actin,Image_Metadata_Plate_DAPI,Image_Metadata_Well_DAPI,"
    "Image_Metadata_Compound,Image_Metadata_Concentration\n"
)


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        (
            "a.tif,W1/P,b.tif,W1/P,c.tif,W1/P,P,B02,x,1\n",
            "row 2: Image_FileName_DAPI 'a.tif' has no site '_s<number>_'",
        ),
        ("a_s1_.tif,../P,b.tif,W1/P,c.tif,W1/P,P,B02,x,1\n", "row 2: folder '../P' climbs with '..'"),
        ("q/a_s1_.tif,W1/P,b.tif,W1/P,c.tif,W1/P,P,B02,x,1\n", "'q/a_s1_.tif' is not a bare file name"),
        (
            "a_s1_.tif,W1/P,b.tif,W1/P,c.tif,W1/P,P,B02,x,1\nd_s2_.tif,W1/P,e.tif,W1/P,f.tif,W1/P,P,B02,x,3\n",
            "row 3: well B02 of plate P is listed twice: concentration is 3.0 here and 1.0 in row 2",
        ),
    ],
)
def test_faults_of_the_image_table(tmp_path: Path, rows: str, expected: str) -> None:
    with fails(expected):
        read_screen(written(tmp_path, "image.csv", IMAGE_HEAD + rows))


# ── JUMP ─────────────────────────────────────────────────────────────────────


def tree_of(manifest: Path, root: Path, rows: int = 20) -> None:
    """Empty files where the first rows of a load_data.csv say that images are, two folders deep."""
    for row in read_table(manifest).head(rows).iter_rows(named=True):
        folder = Path(*Path(row["PathName_OrigDNA"]).parts[-2:])
        with_images(root, *(f"{folder}/{row[f'FileName_Orig{c}']}" for c in ("DNA", "ER")))


def test_one_load_data_of_jump(data_dir: Path, tmp_path: Path) -> None:
    path = data_dir / "jump/load_data_csv/2022_11_28_Batch1/BR00135656/load_data.csv.gz"
    tree_of(path, tmp_path)
    start = time.perf_counter()
    screen = read_screen(path, images=tmp_path)
    seconds = time.perf_counter() - start
    assert screen.manifest.height == 3_456 * 5
    assert screen.manifest["channel"].head(5).to_list() == ["DNA", "ER", "RNA", "AGP", "Mito"]
    assert screen.notes == ("3 of 8 channels left out: Brightfield_H, Brightfield, Brightfield_L",)
    folder = f"{tmp_path}/BR00135656__2022-08-31T19_43_09-Measurement1/Images"
    assert screen.manifest.row(0) == (
        "default", "2022_11_28_Batch1", "BR00135656", "A01", "1", None, "DNA",
        f"{folder}/r01c01f01p01-ch5sk1fk1fl1.tiff", None,
    )  # fmt: skip
    assert screen.layout.height == 0
    bright = read_screen(path, images=tmp_path, channels=["DNA", "Brightfield"])
    assert bright.manifest["channel"].head(2).to_list() == ["DNA", "Brightfield"]
    with fails("none of the 17280 image files is there"):
        read_screen(path)
    assert seconds < 5  # about 0.2 s


def test_ten_plates_of_jump_in_one_folder(data_dir: Path, tmp_path: Path) -> None:
    folder = data_dir / "jump/load_data_csv"
    tree_of(folder / "2022_11_28_Batch1/BR00135656/load_data.csv.gz", tmp_path, rows=1)
    screen = read_screen(folder, images=tmp_path)
    plates = screen.manifest.group_by("plate").agg(pl.len(), pl.col("well").n_unique()).sort("plate")
    assert plates["plate"].to_list() == [f"BR001356{n}" for n in range(56, 66)]
    assert set(plates["len"]) == {3_456 * 5}
    assert set(plates["well"]) == {384}
    assert screen.manifest["batch"].unique().to_list() == ["2022_11_28_Batch1"]


def test_plates_whose_images_fall_together_are_refused(data_dir: Path, tmp_path: Path) -> None:
    # Every plate's folder ends in "Images": one such folder must not serve them all.
    with_images(tmp_path, "Images/r01c01f01p01-ch5sk1fk1fl1.tiff")
    with fails("r01c01f01p01-ch5sk1fk1fl1.tiff' is used twice, also for plate BR00135656, well A01, field 1"):
        read_screen(data_dir / "jump/load_data_csv", images=tmp_path)


JUMP_HEAD = "FileName_OrigDNA,PathName_OrigDNA,Metadata_Plate,Metadata_Well,Metadata_Site\n"


def test_source_and_batch_of_jump_by_column_and_by_folder(tmp_path: Path) -> None:
    row = "a.tif,/there/P1/Images,P1,A01,1\n"
    with_images(tmp_path, "P1/Images/a.tif")
    gallery = tmp_path / "cpg0000/source_4/workspace/load_data_csv/B7/P1"
    gallery.mkdir(parents=True)
    path = written(gallery, "load_data.csv", JUMP_HEAD + row)
    assert read_screen(path, images=tmp_path).manifest.row(0)[:2] == ("source_4", "B7")
    assert read_screen(path, images=tmp_path, batch="mine").manifest.row(0)[:2] == ("source_4", "mine")
    head, row = f"Metadata_Source,Metadata_Batch,{JUMP_HEAD}", f"s,b,{row}"
    path = written(gallery, "load_data.csv", head + row)
    assert read_screen(path, images=tmp_path).manifest.row(0)[:2] == ("s", "b")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            "URL_OrigDNA,Metadata_Plate,Metadata_Well,Metadata_Site\nftp://images.org/a.tiff,P,A01,1\n",
            "row 2: 'ftp://images.org/a.tiff' is an address, and only files are read",
        ),
        (JUMP_HEAD + "a.tif,https://x.org/P,P,A01,1\n", "row 2: 'https://x.org/P' is an address"),
        ("FileName_OrigDNA,Metadata_Plate,Metadata_Well,Metadata_Site\na,P,A01,1\n",
         "column 'FileName_OrigDNA' has no 'PathName_OrigDNA' beside it"),
        (JUMP_HEAD.replace("Metadata_Site", "Metadata_Sites") + "a,b,P,A01,1\n",
         "column 'Metadata_Site' is missing"),
        (JUMP_HEAD.replace("DNA", "Brightfield") + "a,b,P,A01,1\n",
         "there are only brightfield channels (Brightfield)"),
        (JUMP_HEAD + "a.tif,/x/../etc,P,A01,1\n", "row 2: folder '/x/../etc' climbs with '..'"),
        (JUMP_HEAD + "a.tif,/x,,A01,1\n", "row 2: plate is empty"),
    ],
)  # fmt: skip
def test_faults_of_load_data(tmp_path: Path, text: str, expected: str) -> None:
    with fails(expected):
        read_screen(written(tmp_path, "load_data.csv", text), images=tmp_path)


def test_file_addresses_are_files(tmp_path: Path) -> None:
    with_images(tmp_path, "P/a.tiff")
    text = "URL_OrigDNA,Metadata_Plate,Metadata_Well,Metadata_Site\nfile:///there/P/a.tiff,P,A01,1\n"
    screen = read_screen(written(tmp_path, "load_data.csv", text), images=tmp_path)
    assert screen.manifest["path"].to_list() == [f"{tmp_path}/P/a.tiff"]


def test_an_empty_folder_is_no_manifest(tmp_path: Path) -> None:
    with fails("a folder without any load_data.csv"):
        read_screen(tmp_path)


# ── platemaps ────────────────────────────────────────────────────────────────


def test_the_platemaps_of_the_moa_screen(data_dir: Path) -> None:
    folder = data_dir / "moa_screen/platemaps"
    layout = read_layout(folder / "2023_05_15_Batch1")
    assert layout.height == 2 * 384
    assert layout["plate"].unique(maintain_order=True).to_list() == ["BR00122246", "BR00122250"]
    assert layout["batch"].unique().to_list() == ["2023_05_15_Batch1"]
    assert read_layout(folder / "2023_05_15_Batch1/barcode_platemap.csv").equals(layout)
    everything = read_layout(folder)
    assert everything.height == 3 * 384
    one = everything.filter(pl.col("plate") == "BR00122247")
    assert one.height == 384
    assert one["batch"].unique().to_list() == ["2023_05_17_Batch2"]
    assert one.filter(pl.col("compound") == "DMSO")["control_type"].to_list() == ["negative"] * 24
    assert (one["control_type"] == "negative").sum() == 24
    counts = one.filter(pl.col("compound") != "DMSO").group_by("compound").len()
    assert (counts.height, set(counts["len"])) == (90, {4})
    # By hand from the second line of the platemap.
    assert one.row(0)[3:] == ("A01", "BRD-K62391742-001-19-9", 5.0, "mM", "none")
    named = read_layout(folder, compound_column="Common Name")
    assert named["compound"][0] == "venetoclax"
    with fails("unknown compound column 'Comon Name'. Did you mean 'Common Name'?"):
        read_layout(folder, compound_column="Comon Name")


def test_the_mechanisms_of_the_moa_screen(data_dir: Path) -> None:
    folder = data_dir / "moa_screen/platemaps"
    labels = read_annotations(folder)
    assert (labels.height, labels["compound"].n_unique(), labels["label"].n_unique()) == (90, 90, 47)
    assert labels.row(0) == ("BRD-K62391742-001-19-9", None, None, "moa", "BCL inhibitor")
    assert read_annotations(folder / "2023_05_17_Batch2/platemap/S-C-7314-04-CMP-001.txt").equals(labels)


def test_the_target_plate_of_jump(data_dir: Path) -> None:
    platemap = data_dir / "jump/JUMP-Target-2_compound_platemap.tsv"
    compounds = data_dir / "jump/JUMP-Target-2_compound_metadata.tsv"
    layout = read_layout(platemap, plates=["P1", "P2"], compounds=compounds)
    assert layout.height == 2 * 384
    one = layout.filter(pl.col("plate") == "P1")
    counts = dict(one["control_type"].value_counts().rows())
    raw, meta = read_table(platemap), read_table(compounds)
    controls = meta.filter(pl.col("control_type").str.starts_with("poscon"))["broad_sample"].to_list()
    assert counts["positive"] == raw["broad_sample"].is_in(controls).sum() == 60
    assert counts["negative"] == raw["broad_sample"].null_count() == 64
    assert one.row(0)[3:] == ("A01", "BRD-K09338665-001-07-1", None, None, "none")
    labels = read_annotations(compounds)
    octanol = labels.filter(pl.col("compound") == "BRD-K09338665-001-07-1")
    assert octanol.height == 21
    assert octanol.row(0)[3:] == ("target", "GJA1")
    assert "NA" not in labels["label"]
    with fails("a platemap alone does not say for which plates"):
        read_layout(platemap)


def test_a_jump_screen_with_layout_and_labels(data_dir: Path, tmp_path: Path) -> None:
    path = data_dir / "jump/load_data_csv/2022_11_28_Batch1/BR00135656/load_data.csv.gz"
    tree_of(path, tmp_path, rows=1)
    screen = read_screen(
        path,
        images=tmp_path,
        layout=data_dir / "jump/JUMP-Target-2_compound_platemap.tsv",
        annotations=data_dir / "jump/JUMP-Target-2_compound_metadata.tsv",
    )
    assert screen.layout.select("batch", "plate").unique().rows() == [("2022_11_28_Batch1", "BR00135656")]
    assert dict(screen.layout["control_type"].value_counts().rows()) == {
        "none": 260,
        "positive": 60,
        "negative": 64,
    }
    assert screen.notes == ("3 of 8 channels left out: Brightfield_H, Brightfield, Brightfield_L",)


def platemap_folder(folder: Path, barcodes: str, **maps: str) -> Path:
    (folder / "platemap").mkdir(parents=True)
    written(folder, "barcode_platemap.csv", "Assay_Plate_Barcode,Plate_Map_Name\n" + barcodes)
    for name, text in maps.items():
        written(folder / "platemap", f"{name}.txt", text)
    return folder


MAP = "well_position\tbroad_sample\tsolvent\tcontrol_type\n"


def test_what_a_platemap_says_of_controls(tmp_path: Path) -> None:
    rows = (
        "A01\tBRD-1\tDMSO\t\nA02\t\tDMSO\tnegcon\nA03\tBRD-2\tDMSO\tposcon_cp\n"
        "A04\t\t\t\nA05\tBRD-3\tDMSO\tnegative control\nA06\tDMSO\tDMSO\tNA\nA07\t\tDMSO\tempty\n"
    )
    folder = platemap_folder(tmp_path / "B1", "P1,m\n", m=MAP + rows)
    assert read_layout(folder).select("well", "compound", "control_type").rows() == [
        ("A01", "BRD-1", "none"),
        ("A02", "DMSO", "negative"),
        ("A03", "BRD-2", "positive"),
        ("A04", None, "none"),
        ("A05", "BRD-3", "negative"),
        ("A06", "DMSO", "negative"),
        ("A07", "DMSO", "none"),
    ]


def test_a_plate_without_platemap_keeps_its_wells(tmp_path: Path) -> None:
    folder = platemap_folder(tmp_path / "B1", "P1,m\n", m=MAP + "A01\tBRD-1\tDMSO\tnegcon\n")
    with_images(tmp_path, "x/a.tif", "y/a.tif")
    path = written(tmp_path, "load_data.csv", JUMP_HEAD + "a.tif,/x,P1,A01,1\na.tif,/y,P2,A01,1\n")
    screen = read_screen(path, images=tmp_path, layout=folder)
    assert screen.manifest.select("batch", "plate").rows() == [("B1", "P1"), ("default", "P2")]
    assert screen.notes == ("1 of 2 wells of the manifest are not in the layout",)


@pytest.mark.parametrize(
    ("barcodes", "text", "expected"),
    [
        ("P1,m\nP2,lost\n", MAP + "A01\tx\tDMSO\t\n", "plate 'P2' needs platemap 'lost', which"),
        ("P1,m\nP1,m\n", MAP + "A01\tx\tDMSO\t\n", "barcode_platemap.csv, row 3: plate 'P1' is listed twice"),
        ("P1,../m\n", MAP + "A01\tx\tDMSO\t\n", "row 2: platemap '../m' is not a bare name"),
        ("P1,\n", MAP + "A01\tx\tDMSO\t\n", "row 2: Plate_Map_Name is empty"),
        ("", MAP + "A01\tx\tDMSO\t\n", "no plate is listed"),
        ("P1,m\n", MAP, "m.txt: the platemap has no wells"),
        ("P1,m\n", MAP + "A01\tx\tDMSO\tkontrol\n", "m.txt, row 2: unknown control_type 'kontrol'"),
        ("P1,m\n", MAP + "A01\tx\tDMSO\t\nA1\ty\tDMSO\t\n",
         "m.txt, row 3: well A01 of plate P1 is listed twice: compound is 'y' here and 'x' in row 2"),
        ("P1,m\n", "well_position\tbroad_sample\tmmoles_per_liter\nA01\tx\ta lot\n",
         "row 2: mmoles_per_liter 'a lot' is not a number"),
        ("P1,m\n", "well_position\tsolvent\nA01\tDMSO\n", "unknown compound column 'broad_sample'"),
    ],
)  # fmt: skip
def test_faults_of_platemaps(tmp_path: Path, barcodes: str, text: str, expected: str) -> None:
    with fails(expected):
        read_layout(platemap_folder(tmp_path / "B1", barcodes, m=text))


def test_two_platemaps_of_one_name_must_agree(tmp_path: Path) -> None:
    folder = platemap_folder(tmp_path / "B1", "P1,m\n", m="well_position\tbroad_sample\nA01\tx\n")
    same = written(folder / "platemap", "m.csv", "well_position,broad_sample\nA01,x\n")
    assert read_layout(folder).height == 1
    same.write_text("well_position,broad_sample\nA01,y\n")
    with fails("m.csv: differs from m.txt; both are platemap 'm'"):
        read_layout(folder)


def test_a_folder_without_barcodes(tmp_path: Path) -> None:
    with fails("no barcode_platemap.csv here or one folder below"):
        read_layout(tmp_path)


def test_a_compound_that_is_two_kinds_of_control(tmp_path: Path) -> None:
    platemap = written(tmp_path, "m.tsv", "well_position\tbroad_sample\nA01\tx\n")
    compounds = written(tmp_path, "c.tsv", "broad_sample\tcontrol_type\nx\tposcon\nx\tnegcon\n")
    with fails("c.tsv, row 3: compound 'x' is 'negative' here and 'positive' in row 2"):
        read_layout(platemap, plates=["P"], compounds=compounds)
