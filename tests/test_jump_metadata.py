"""JUMP's metadata tables: small ones worked by hand, each message, and the real ones where they are there."""

import gzip
import re
import time
from pathlib import Path

import polars as pl
import pytest
from builders import new_lake

from warehouse.errors import ScreenError
from warehouse.layout_import import import_layout
from warehouse.layouts import LayoutReport
from warehouse.screens import jump_metadata, read_annotations, read_layout, read_screen
from warehouse.screens.table import read_table
from warehouse.status import status

TABLES = {
    "well.csv.gz": """\
Metadata_Source,Metadata_Plate,Metadata_Well,Metadata_JCP2022
source_1,P1,AF48,JCP2022_033924
source_1,P1,A2,JCP2022_000001
source_4,P2,A01,JCP2022_033924
source_4,P2,A02,JCP2022_999999
source_4,P2,A03,JCP2022_UNKNOWN
source_4,P2,A04,JCP2022_800003
source_4,P2,A05,JCP2022_915128
source_4,P2,A06,JCP2022_037716
source_4,P2,A07,
""",
    "plate.csv": """\
Metadata_Source,Metadata_Batch,Metadata_Plate,Metadata_PlateType
source_1,B1,P1,COMPOUND
source_4,B2,P2,CRISPR
source_4,B2,P3,CRISPR
""",
    "perturbation_control.csv": """\
Metadata_JCP2022,Metadata_pert_type,Metadata_Name,Metadata_modality
JCP2022_999999,empty,Empty,any
JCP2022_033924,negcon,DMSO,compound
JCP2022_037716,poscon_cp,AMG900,compound
JCP2022_915128,negcon,BFP,orf
JCP2022_800001,negcon,no-guide,crispr
""",
    "crispr.csv": """\
Metadata_JCP2022,Metadata_NCBI_Gene_ID,Metadata_Symbol
JCP2022_800001,,no-guide
JCP2022_800003,2,A2M
""",
    "orf.csv.gz": """\
Metadata_JCP2022,Metadata_Name,Metadata_Symbol,Metadata_NCBI_Gene_ID,Metadata_pert_type
JCP2022_915128,ORFC1,BFP,BFP,negcon
JCP2022_900002,ORF2,A2M,2,trt
JCP2022_900003,ORF3,NA,NA,trt
""",
}
LAYOUT = [
    ("source_1", "B1", "P1", "AF48", "JCP2022_033924", "negative"),
    ("source_1", "B1", "P1", "A02", "JCP2022_000001", "none"),
    ("source_4", "B2", "P2", "A01", "JCP2022_033924", "negative"),
    ("source_4", "B2", "P2", "A02", None, "none"),
    ("source_4", "B2", "P2", "A03", None, "none"),
    ("source_4", "B2", "P2", "A04", "JCP2022_800003", "none"),
    ("source_4", "B2", "P2", "A05", "JCP2022_915128", "negative"),
    ("source_4", "B2", "P2", "A06", "JCP2022_037716", "positive"),
    ("source_4", "B2", "P2", "A07", None, "none"),
]


def tables(folder: Path, **changed: str | None) -> Path:
    """The small tables, some changed (`plate=…`), others taken out (`plate=None`)."""
    folder.mkdir(exist_ok=True)
    for name, text in TABLES.items():
        text = changed.get(name.split(".")[0], text)
        if text is not None:
            data = text.encode()
            (folder / name).write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
    if changed.get("compound"):
        (folder / "compound.csv").write_text(str(changed["compound"]), encoding="utf-8")
    return folder


def fails(message: str):
    return pytest.raises(ScreenError, match=re.escape(message))


def plus(name: str, rows: str) -> str:
    return TABLES[name] + rows


def test_small_tables_by_hand(tmp_path):
    folder = tables(tmp_path / "jump")
    found = jump_metadata.read(folder)
    assert (
        found.layout.select("source", "batch", "plate", "well", "compound", "control_type").rows() == LAYOUT
    )
    assert found.layout["concentration"].null_count() == found.layout["unit"].null_count() == 9
    # A gene is a target; controls without a gene, and reagents without a symbol, have none.
    assert found.annotations.rows() == [
        ("JCP2022_900002", None, None, "target", "A2M"), ("JCP2022_800003", None, None, "target", "A2M"),
    ]  # fmt: skip
    assert (found.wells_seen, found.rejections.height) == (9, 0)
    assert found.plate_types == {"COMPOUND": 1, "CRISPR": 2}
    assert found.notes == (
        "1 wells are empty",
        "2 wells hold what nobody knows: they go in without a compound",
        "1 wells have one of 1 ids that are in no table: kept by their id",
    )
    assert jump_metadata.read(folder / "well.csv.gz").layout.equals(found.layout)
    assert read_layout(folder).equals(found.layout)
    assert read_annotations(folder).equals(found.annotations)


def test_into_a_lake_and_again(tmp_path):
    lake, folder = new_lake(tmp_path / "lake"), tables(tmp_path / "jump")
    done = import_layout(lake, [folder])
    assert done.report == LayoutReport(plates_added=2, wells_in=9)
    assert (done.wells_seen, done.wells_rejected, done.labels_added) == (9, 0, 2)
    query = "SELECT source, batch, plate, well, compound, control_type FROM main.wells ORDER BY ALL"
    assert lake.frame(query).rows() == sorted(LAYOUT, key=lambda row: row[:4])
    snapshot = lake.snapshot()
    again = import_layout(lake, [folder])
    assert (again.report, again.labels_added) == (LayoutReport(plates_unchanged=2, wells_in=9), 0)
    assert lake.snapshot() == snapshot


def test_rows_that_cannot_go_in_are_counted_with_their_reasons(tmp_path):
    bad = """\
source_4,P2,Q01,JCP2022_000001
source_1,P1,AG01,JCP2022_000001
source_4,P2,nonsense,JCP2022_000001
source_4,P9,A01,JCP2022_000001
,P2,B01,JCP2022_000001
source_4,,B01,JCP2022_000001
source_4,P2,,JCP2022_000001
source_4,P2,a1,JCP2022_033924
source_4,P2,B02,JCP2022_000001
source_4,P2,B02,JCP2022_000002
source_9,P2,Q01,JCP2022_000001
"""
    folder = tables(tmp_path / "jump", well=plus("well.csv.gz", bad))
    found = jump_metadata.read(folder)
    assert found.rejections.select("row", "well", "reason").rows() == [
        (11, "Q01", "off the 384-well plate of its source"),
        (12, "AG01", "no well of a plate of up to 1536"),
        (13, "nonsense", "no well of a plate of up to 1536"),
        (14, "A01", "its plate has no batch (give --batch to take it in)"),
        (15, "B01", "source is empty"),
        (16, "B01", "plate is empty"),
        (17, None, "well is empty"),
        (18, "A01", "listed again with the same perturbation"),
        (19, "B02", "listed again with another perturbation: none is taken"),
        (20, "B02", "listed again with another perturbation: none is taken"),
        (21, "Q01", "its plate has no batch (give --batch to take it in)"),
    ]
    assert found.wells_seen == 20 == found.layout.height + found.rejections.height
    assert found.layout.height == 9
    lake = new_lake(tmp_path / "lake")
    done = import_layout(lake, [folder])
    assert (done.wells_seen, done.wells_rejected, done.report.wells_in) == (20, 11, 9)
    assert done.rejections["no well of a plate of up to 1536"] == (
        f"2 rows, the first: {folder}, row 12: plate 'P1', well 'AG01'"
    )
    with fails(
        f"{folder}, row 11: well 'Q01' of plate 'P2': off the 384-well plate of its source (of 11 rows"
    ):
        read_layout(folder)
    with fails("take the tables in by `wellhouse import-layout`"):
        read_annotations(folder)
    # The argument tells the batch of plates that the table lacks: P9, and the source 9 plate of 1536 wells.
    with fails("batch is 'B1', but batch 'B2' was asked for"):
        import_layout(lake, [folder], batch="B2")


def test_a_source_that_is_not_of_jump_may_have_any_plate(tmp_path):
    well = plus("well.csv.gz", "lab,P7,AF48,JCP2022_000001\n")
    plate = plus("plate.csv", "lab,B7,P7,COMPOUND\n")
    assert jump_metadata.read(tables(tmp_path / "jump", well=well, plate=plate)).layout.height == 10


def test_the_batch_may_be_given_where_no_table_tells_it(tmp_path):
    folder = tables(tmp_path / "jump", plate=None)
    with fails(
        f"{folder}: there is no plate.csv or plate.csv.gz to tell the batches. Add it, or give --batch."
    ):
        jump_metadata.read(folder)
    found = jump_metadata.read(folder, batch="B7")
    assert found.layout["batch"].unique().to_list() == ["B7"]
    assert (found.layout.height, found.plate_types) == (9, {})
    with fails("source is 'source_1', but source 's' was asked for"):
        jump_metadata.read(folder, batch="B7", source="s")


def test_compounds_by_another_column(tmp_path):
    folder = tables(tmp_path / "jump")
    found = jump_metadata.read(folder, compound_column="Metadata_Name")
    assert found.layout["compound"].to_list() == [
        "DMSO", "JCP2022_000001", "DMSO", None, None, "JCP2022_800003", "BFP", "AMG900", None,
    ]  # fmt: skip
    assert found.annotations["compound"].to_list() == ["ORF2", "JCP2022_800003"]
    with fails("'A2M' names 'JCP2022_800003' here and 'JCP2022_900002' in"):
        jump_metadata.read(folder, compound_column="Metadata_Symbol")
    with fails("unknown compound column 'Metadata_name'. Did you mean 'Metadata_Name'?"):
        jump_metadata.read(folder, compound_column="Metadata_name")


def test_structures_with_several_ids_are_told(tmp_path):
    compound = "Metadata_JCP2022,Metadata_InChIKey\nJCP2022_000001,KEY\nJCP2022_000002,KEY\nJCP2022_000003,\n"
    found = jump_metadata.read(tables(tmp_path / "jump", compound=compound))
    assert found.notes[-1] == (
        "1 InChIKeys have several ids, which stay apart (first: KEY: JCP2022_000001, JCP2022_000002)"
    )
    assert not any("in no table" in note for note in found.notes)


CONTRADICTIONS = [
    (
        {"plate": plus("plate.csv", "source_4,B3,P2,CRISPR\n")},
        "plate.csv, row 5: plate 'P2' of 'source_4' is in batch 'B3' here and in 'B2' in row 3. A plate has one batch",
    ),
    (
        {"perturbation_control": plus("perturbation_control.csv", "JCP2022_033924,poscon,DMSO,orf\n")},
        "perturbation_control.csv, row 7: 'JCP2022_033924' is 'poscon' here and 'negcon' in row 3. Give each",
    ),
    (
        {"perturbation_control": plus("perturbation_control.csv", "JCP2022_5,vehicle,x,orf\n")},
        "row 7: unknown Metadata_pert_type 'vehicle'. Use negcon, poscon…, empty or trt.",
    ),
    (
        {"perturbation_control": plus("perturbation_control.csv", ",negcon,x,orf\n")},
        "perturbation_control.csv, row 7: Metadata_JCP2022 is empty",
    ),
    ({"perturbation_control": None}, "there is no perturbation_control.csv, so nothing says which wells are controls"),
    (
        {"well": "Metadata_Source,Metadata_Plate,Metadata_Well\ns,p,A01\n"},
        "well.csv.gz: column 'Metadata_JCP2022' is missing; the file has Metadata_Source, Metadata_Plate,",
    ),
    ({"plate": "Metadata_Source,Metadata_Plate\ns,p\n"}, "plate.csv: column 'Metadata_Batch' is missing"),
    ({"orf": "Metadata_JCP2022,Metadata_Symbol\nx,y\n"}, "orf.csv.gz: column 'Metadata_NCBI_Gene_ID' is missing"),
    ({"well": TABLES["well.csv.gz"].splitlines()[0] + "\n"}, "well.csv.gz: the table has no rows"),
    (
        {"well": plus("well.csv.gz", "source_4,P2,B01\n")},
        "well.csv.gz, row 11: 3 values for 4 columns",
    ),
    (
        {"well": plus("well.csv.gz", "source_4,P2,B01,x\u200by\n")},
        "well.csv.gz, row 11: id 'x\\u200by' holds a character that cannot be seen",
    ),
    (
        {"plate": plus("plate.csv", ",B2,P7,CRISPR\n")},
        "plate.csv, row 5: source is empty",
    ),
]  # fmt: skip


@pytest.mark.parametrize(("changed", "message"), CONTRADICTIONS)
def test_tables_that_contradict_themselves_stop_all(tmp_path, changed, message):
    lake = new_lake(tmp_path / "lake")
    with fails(message):
        import_layout(lake, [tables(tmp_path / "jump", **changed)])
    assert lake.value("SELECT count(*) FROM main.plates") == 0


def test_a_cut_file_and_a_table_that_is_there_twice(tmp_path):
    folder = tables(tmp_path / "jump")
    whole = (folder / "well.csv.gz").read_bytes()
    (folder / "well.csv.gz").write_bytes(whole[: len(whole) // 2])
    with fails(
        "well.csv.gz: cannot be read (Compressed file ended before the end-of-stream marker was reached)"
    ):
        jump_metadata.read(folder)
    (folder / "well.csv.gz").write_bytes(whole)
    (folder / "plate.csv.gz").write_bytes(whole)
    with fails(f"{folder}: both plate.csv.gz and plate.csv are there. Keep one."):
        jump_metadata.read(folder)
    assert not jump_metadata.is_metadata(tmp_path / "none")
    with fails("there is no well.csv or well.csv.gz"):
        jump_metadata.read(tmp_path)


# ── the real tables ──────────────────────────────────────────────────────────


@pytest.fixture(scope="module")
def jump(data_dir: Path) -> Path:
    if not (data_dir / "jump/well.csv.gz").is_file():
        pytest.skip(f"JUMP's metadata not found at {data_dir / 'jump'}")
    return data_dir / "jump"


@pytest.mark.slow
def test_a_million_wells_in_under_a_minute(tmp_path, jump):
    lake = new_lake(tmp_path / "lake")
    start = time.perf_counter()
    done = import_layout(lake, [jump])
    seconds = time.perf_counter() - start
    assert (done.wells_seen, done.wells_rejected) == (1_046_926, 0)
    assert done.report == LayoutReport(plates_added=2250, wells_in=1_046_926)
    assert seconds < 60
    # Against the tables themselves, read by another reader.
    raw = pl.read_csv(gzip.decompress((jump / "well.csv.gz").read_bytes()), infer_schema=False)
    controls = pl.read_csv(jump / "perturbation_control.csv", infer_schema=False)
    wells = raw.join(controls, on="Metadata_JCP2022", how="left")
    expected = wells.group_by("Metadata_pert_type").len().rows()
    kinds = {"negcon": "negative", "poscon": "positive", "empty": "none", None: "none"}
    counts: dict[str, int] = {}
    for kind, count in expected:
        counts[kinds[kind]] = counts.get(kinds[kind], 0) + count
    assert dict(lake.frame("SELECT control_type, count(*) FROM main.wells GROUP BY ALL").rows()) == counts
    unnamed = raw["Metadata_JCP2022"].is_in(["JCP2022_999999", "JCP2022_UNKNOWN"]).sum()
    assert lake.value("SELECT count(*) FROM main.wells WHERE compound IS NULL") == unnamed == 49_637
    large = "SELECT DISTINCT source FROM main.wells WHERE row_number > 16 ORDER BY 1"
    assert lake.frame(large)["source"].to_list() == ["source_1", "source_9"]
    state = status(lake)
    assert (state.shared["wells"], state.shared["batches"], state.faults) == (1_046_926, 135, {})
    snapshot = lake.snapshot()
    assert import_layout(lake, [jump]).report == LayoutReport(plates_unchanged=2250, wells_in=1_046_926)
    assert lake.snapshot() == snapshot


def test_the_platemaps_of_target_2_and_moa(jump):
    for name, folder, positive, kind in (
        ("Target-2", jump, 60, "target"),
        ("MOA", jump / "JUMP-MOA", 0, "moa"),
    ):
        compounds = folder / f"JUMP-{name}_compound_metadata.tsv"
        wells = read_layout(folder / f"JUMP-{name}_compound_platemap.tsv", plates=["P"], compounds=compounds)
        assert wells.height == 384
        negative = 64 if name == "Target-2" else 24
        counts = {"negative": negative, "positive": positive, "none": 384 - negative - positive}
        assert dict(wells["control_type"].value_counts().rows()) == {k: n for k, n in counts.items() if n}
        labels = read_annotations(compounds)
        assert labels["kind"].unique().to_list() == [kind]
        assert labels.join(wells, on="compound", how="anti").height == 0


def test_the_image_manifests(tmp_path, jump):
    files = sorted((jump / "load_data_csv").rglob("load_data.csv.gz"))
    assert len(files) == 10
    for file in files:
        table = read_table(file)
        channels = [name for name in table.columns if name.startswith("FileName_Orig")]
        bright = [name for name in channels if "Brightfield" in name]
        with fails("none of the 17280 image files is there"):
            read_screen(file)
        # One image is there: the others are told when images are read.
        images = tmp_path / file.parent.name
        folder = images / Path(table["PathName_OrigDNA"][0]).parent.name / "Images"
        folder.mkdir(parents=True)
        (folder / table["FileName_OrigDNA"][0]).touch()
        screen = read_screen(file, images=images)
        read = len(channels) - len(bright)
        assert (table.height, read) == (3456, 5)
        assert screen.manifest.height == table.height * read
        left = ", ".join(name.removeprefix("FileName_Orig") for name in bright)
        assert screen.notes == (f"{len(bright)} of {len(channels)} channels left out: {left}",)
        every = [name.removeprefix("FileName_Orig") for name in channels]
        assert read_screen(file, images=images, channels=every).manifest.height == table.height * len(
            channels
        )
        assert screen.manifest["batch"].unique().to_list() == ["2022_11_28_Batch1"]
