"""Layouts of many plates at once: the same rows, hashes and rules as plate by plate; layouts taken in from files."""

import json
import re
from pathlib import Path

import polars as pl
import pytest
from builders import TINY, commit, layout, new_lake, plate, small_lake, state
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from cli import app
from warehouse import correct, layouts
from warehouse.errors import ScreenError
from warehouse.layout_import import import_layout, near_names, placed
from warehouse.layouts import LayoutReport
from warehouse.runs import Run
from warehouse.screens.model import ANNOTATIONS_SCHEMA, LAYOUT_SCHEMA
from warehouse.screens.table import _quoted_rows, read_table
from warehouse.wells import position, with_positions

RUN = Run("test", {})
WELLS = "source, batch, plate, well, row_number, column_number, treatment, compound, concentration, unit, control_type"


def rows_of(lake) -> list[tuple]:
    plates = lake.frame("SELECT source, batch, plate, layout_hash FROM main.plates ORDER BY ALL").rows()
    return [*plates, *lake.frame(f"SELECT {WELLS} FROM main.wells ORDER BY ALL").rows()]


def one_by_one(lake, frame: pl.DataFrame) -> None:
    for key, wells in layouts.per_plate(frame).items():
        lake.transaction(lambda _, key=key, wells=wells: layouts.put_plate(lake, RUN, key, wells))


def many(plates: int = 5, wells: int = 7, compound: str = "c") -> pl.DataFrame:
    plan = [
        layout(
            (f"s{number % 2}", "b", f"p{number}"),
            [(f"{'BA'[i % 2]}{i + 1:02d}", f"{compound}{i}", i / 3, "none") for i in range(wells)],
        )
        for number in range(plates)
    ]
    return pl.concat(plan)


# ── put_layout ───────────────────────────────────────────────────────────────


def test_many_plates_at_once_are_what_they_are_one_by_one(tmp_path):
    frame = many().sample(fraction=1, shuffle=True, seed=1)
    bulk, single = new_lake(tmp_path / "bulk"), new_lake(tmp_path / "single")
    assert layouts.put_layout(bulk, RUN, frame) == LayoutReport(plates_added=5, wells_in=35)
    one_by_one(single, frame)
    assert rows_of(bulk) == rows_of(single)
    # Known by hand: A02 is the second well of p0.
    query = f"SELECT {WELLS} FROM main.wells WHERE plate = 'p0' AND well = 'A02'"
    assert bulk.frame(query).rows() == [
        ("s0", "b", "p0", "A02", 1, 2, "c1@0.333333333333uM", "c1", 1 / 3, "uM", "none")
    ]


def test_the_same_again_is_nothing_in_bulk_and_plate_by_plate(tmp_path):
    lake, frame = new_lake(tmp_path / "lake"), many()
    layouts.put_layout(lake, RUN, frame)
    before, snapshot = state(lake), lake.snapshot()
    assert layouts.put_layout(lake, Run("again", {}), frame.reverse()) == LayoutReport(
        plates_unchanged=5, wells_in=35
    )
    one_by_one_changed = [
        lake.transaction(lambda _, key=key, wells=wells: layouts.put_plate(lake, RUN, key, wells))
        for key, wells in layouts.per_plate(frame).items()
    ]
    assert one_by_one_changed == [False] * 5
    assert state(lake) == before
    layouts.put_layout(lake, RUN, frame)
    assert lake.snapshot() >= snapshot
    assert lake.value("SELECT count(*) FROM main.runs WHERE command = 'again'") == 0


def test_an_unchanged_layout_makes_no_snapshot(tmp_path):
    lake, frame = new_lake(tmp_path / "lake"), many()
    layouts.put_layout(lake, RUN, frame)
    snapshot = lake.snapshot()
    layouts.put_layout(lake, RUN, frame)
    assert lake.snapshot() == snapshot


def test_plates_are_written_in_groups_and_each_whole(tmp_path, monkeypatch):
    monkeypatch.setattr(layouts, "WELLS_A_TRANSACTION", 15)
    lake = new_lake(tmp_path / "lake")
    before = lake.snapshot()
    assert layouts.put_layout(lake, RUN, many()) == LayoutReport(plates_added=5, wells_in=35)
    assert lake.snapshot() - before == 3  # 2 + 2 + 1 plates of 7 wells
    single = new_lake(tmp_path / "single")
    one_by_one(single, many())
    assert rows_of(lake) == rows_of(single)


def test_a_plate_larger_than_a_group_is_a_group(tmp_path, monkeypatch):
    monkeypatch.setattr(layouts, "WELLS_A_TRANSACTION", 3)
    lake = new_lake(tmp_path / "lake")
    assert layouts.put_layout(lake, RUN, many()).plates_added == 5
    assert lake.value("SELECT count(*) FROM main.wells") == 35


def test_wells_that_a_later_layout_lacks_stay_unless_replaced(tmp_path):
    lake = new_lake(tmp_path / "lake")
    layouts.put_layout(lake, RUN, many())
    part = many(compound="other").filter(pl.col("well").is_in(["B01", "A02"]), pl.col("plate") != "p4")
    assert layouts.put_layout(lake, RUN, part) == LayoutReport(plates_relabelled=4, wells_in=8, wells_kept=20)
    single = new_lake(tmp_path / "single")
    one_by_one(single, many())
    one_by_one(single, part)
    assert rows_of(lake) == rows_of(single)
    # A part of what is there is no change, until the rest is to go.
    assert layouts.put_layout(lake, RUN, part) == LayoutReport(plates_unchanged=4, wells_in=8, wells_kept=20)
    assert layouts.put_layout(lake, RUN, part, replace=True) == LayoutReport(
        plates_relabelled=4, wells_in=8, wells_removed=20
    )
    assert lake.value("SELECT count(*) FROM main.wells WHERE plate <> 'p4'") == 8
    assert lake.value("SELECT count(*) FROM main.wells WHERE plate = 'p4'") == 7
    assert layouts.put_layout(lake, RUN, part, replace=True).plates_unchanged == 4


def test_a_plate_in_another_batch_stops_all(tmp_path):
    lake = new_lake(tmp_path / "lake")
    layouts.put_layout(lake, RUN, many(1))
    before = state(lake)
    moved = many(5).with_columns(
        pl.when(pl.col("plate") == "p0").then(pl.lit("b2")).otherwise("batch").alias("batch")
    )
    with pytest.raises(
        ScreenError, match=r"plate 'p0' of source 's0' is in the lake in batch 'b', and .* 'b2'"
    ):
        layouts.put_layout(lake, RUN, moved)
    assert state(lake) == before


def test_a_failure_in_the_middle_leaves_whole_plates(tmp_path, monkeypatch):
    monkeypatch.setattr(layouts, "WELLS_A_TRANSACTION", 14)
    lake = new_lake(tmp_path / "lake")
    bad = many().with_columns(
        pl.when(pl.col("plate") == "p3").then(pl.lit("ZZ99")).otherwise("well").alias("well")
    )
    with pytest.raises(ScreenError, match="well 'ZZ99' is off the largest plate"):
        layouts.put_layout(lake, RUN, bad)
    counts = lake.frame("SELECT plate, count(*) FROM main.wells GROUP BY plate ORDER BY plate").rows()
    assert all(count == 7 for _, count in counts)
    assert [plate for plate, _ in counts] == lake.frame("SELECT plate FROM main.plates ORDER BY 1")[
        "plate"
    ].to_list()
    layouts.put_layout(lake, RUN, many())
    assert lake.value("SELECT count(*) FROM main.wells") == 35


def test_loads_are_counted_anew_and_corrections_forgotten(tmp_path):
    """A layout after the profiles: the counts of each load, its history, and what was corrected by its controls."""
    lake = small_lake(tmp_path / "lake")
    correct.correct(lake, "tiny", "mad_robustize")
    corrected = 'SELECT DISTINCT plate FROM tiny."wells__mad_robustize" ORDER BY 1'
    held = lake.frame(corrected)["plate"].to_list()
    new = pl.concat(
        [
            layout(("s1", "b1", "p1"), [("A06", "taxol", 0.3, "none"), ("H12", "x", 1.0, "none")]),
            layout(("s1", "b2", "p3"), [("A01", "DMSO", None, "negative")]),
            layout(("s9", "b", "new"), [("A01", "DMSO", None, "negative")]),
        ]
    )
    report = layouts.put_layout(lake, RUN, new)
    assert (report.plates_added, report.plates_relabelled, report.plates_unchanged) == (1, 1, 1)
    counts = (
        "SELECT wells_in_layout, wells_in, wells_without_data, wells_without_layout FROM main.plate_loads "
    )
    # p1: 6 wells in the layout and 2 more; B01 and H12 have no profile; A06 has a layout now.
    assert lake.frame(counts + "WHERE plate = 'p1'").rows() == [(8, 6, 2, 0)]
    assert lake.frame("SELECT * FROM main.plate_balance WHERE NOT is_balanced").height == 0
    assert lake.frame(corrected)["plate"].to_list() == [name for name in held if name != "p1"]
    history = (
        "SELECT feature_set, plate, content_hash, former_hash, run FROM main.plate_history "
        "WHERE outcome = 'relabelled'"
    )
    assert lake.frame(history).rows() == [("tiny", "p1", "h1", "h1", RUN.run)]


def test_the_first_layout_of_a_plate_that_has_profiles(tmp_path):
    lake = new_lake(tmp_path / "lake")
    key = ("s0", "b", "p0")
    commit(lake, plate(key, {"A01": (1, 2, 3), "A02": (1, 2, 3)}), TINY)
    assert layouts.put_layout(lake, RUN, many(2)) == LayoutReport(
        plates_added=1, plates_relabelled=1, wells_in=14
    )
    counts = (
        "SELECT wells_in_layout, wells_in, wells_without_data, wells_without_layout FROM main.plate_loads"
    )
    assert lake.frame(counts).rows() == [(7, 2, 6, 1)]
    # Profiles after the layout: the layout is there.
    commit(lake, plate(("s1", "b", "p1"), {"A02": (1, 2, 3)}), TINY)
    assert lake.frame(counts + " WHERE plate = 'p1'").rows() == [(7, 1, 6, 0)]


@given(st.data())
@settings(max_examples=3, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_sequence_of_layouts_ends_as_one_by_one(tmp_path_factory, data):
    folder = tmp_path_factory.mktemp("lakes")
    bulk, single = new_lake(folder / "bulk"), new_lake(folder / "single")
    cell = st.tuples(
        st.sampled_from(["p1", "p2", "p3"]),
        st.sampled_from(["A01", "B02", "AF48"]),
        st.sampled_from([None, "x", "µ'\"y"]),
        st.sampled_from([None, 0.0, 0.1 + 0.2, 3.0]),
    )
    for _ in range(2):
        cells = data.draw(st.lists(cell, min_size=1, max_size=9, unique_by=lambda c: c[:2]))
        frame = pl.concat(
            [layout(("s", "b", p), [(w, c or "-", d if c else None, "none")]) for p, w, c, d in cells]
        )
        layouts.put_layout(bulk, RUN, frame)
        one_by_one(single, frame)
        assert rows_of(bulk) == rows_of(single)


def test_positions_of_many_wells_are_those_of_each():
    wells = ["B02", "A01", "AF48", "B02", "P24"]
    frame = with_positions(pl.DataFrame({"well": wells}))
    assert list(zip(frame["row_number"], frame["column_number"], strict=True)) == [position(w) for w in wells]
    assert with_positions(frame.select("well").clear()).height == 0
    with pytest.raises(ScreenError, match="'Q' is not a well"):
        with_positions(pl.DataFrame({"well": ["A01", "Q"]}))


# ── layouts from files ───────────────────────────────────────────────────────

PLAIN = "plate,well,compound,control_type\nP1,A01,DMSO,negative\nP1,A02,taxol,\n"


def written(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


def run(*arguments: str) -> tuple[int, str, str]:
    done = CliRunner().invoke(app, ["import-layout", *arguments])
    return done.exit_code, done.stdout, done.stderr


def test_the_command_prints_counts_and_notes(tmp_path):
    new_lake(tmp_path / "lake").close()
    plan = written(tmp_path / "layout.csv", PLAIN + "P1,A03,Tax-Ol,\n")
    labels = written(tmp_path / "labels.csv", "compound,kind,label\ntaxol,moa,Microtubule stabilizers\n")
    arguments = (str(plan), "--annotations", str(labels), "--batch", "b1", "--lake", str(tmp_path / "lake"))
    code, out, err = run(*arguments, "--json")
    assert code == 0
    assert json.loads(out) == {
        "wells_seen": 3, "wells_rejected": 0, "plates_added": 1, "plates_relabelled": 0, "plates_unchanged": 0,
        "wells_in": 3, "wells_kept": 0, "wells_removed": 0, "labels_added": 1, "rejections": {},
        "notes": ["1 compounds are spelled in several ways and kept apart as they are spelled: 'Tax-Ol', 'taxol'"],
    }  # fmt: skip
    assert (
        err
        == "note: 1 compounds are spelled in several ways and kept apart as they are spelled: 'Tax-Ol', 'taxol'\n"
    )
    code, out, _ = run(*arguments)
    assert code == 0
    assert out.splitlines()[4] == "plates_unchanged  1"


def test_a_layout_finds_the_plate_that_profiles_brought(tmp_path):
    lake = new_lake(tmp_path / "lake")
    commit(lake, plate(("s1", "b1", "P1"), {"A01": (1, 2, 3)}), TINY)
    done = import_layout(lake, [written(tmp_path / "layout.csv", PLAIN)])
    assert (done.report.plates_relabelled, done.report.wells_in) == (1, 2)
    assert lake.frame("SELECT DISTINCT source, batch FROM main.wells").rows() == [("s1", "b1")]
    query = "SELECT command, outcome, counts FROM main.runs WHERE command = 'import-layout'"
    ((command, outcome, counts),) = lake.frame(query).rows()
    assert (command, outcome, json.loads(counts)["wells_in"]) == ("import-layout", "done", 2)


def test_a_plate_of_that_name_in_two_sources_must_be_named(tmp_path):
    lake = new_lake(tmp_path / "lake")
    for source in ("s1", "s2"):
        commit(lake, plate((source, "b1", "P1"), {"A01": (1, 2, 3)}, source), TINY)
    plan = written(tmp_path / "layout.csv", PLAIN)
    with pytest.raises(
        ScreenError, match=r"plate 'P1' is in the lake in sources 's1' and 's2', .*: give --source"
    ):
        import_layout(lake, [plan])
    assert import_layout(lake, [plan], source="s2").report.plates_relabelled == 1
    assert lake.frame("SELECT DISTINCT source FROM main.wells")["source"].to_list() == ["s2"]
    # A batch that the layout names and the lake does not have of that plate is another plate's.
    other = layout(("default", "b9", "P1"), [("A01", "x", None, "none")])
    assert placed(lake, other).equals(other)


def test_several_files_must_agree(tmp_path):
    lake = new_lake(tmp_path / "lake")
    one, two = written(tmp_path / "a.csv", PLAIN), written(tmp_path / "b.csv", PLAIN.replace("taxol", "x"))
    with pytest.raises(ScreenError, match=r"the layouts together.*well A01 of plate P1 is listed twice"):
        import_layout(lake, [one, two])
    with pytest.raises(ScreenError, match="no layout was given"):
        import_layout(lake, [])
    two.write_text(PLAIN.replace("P1", "P2"))
    assert import_layout(lake, [one, two]).report.plates_added == 2
    three = written(tmp_path / "c.csv", PLAIN.replace("plate", "batch,plate").replace("P1", "b2,P1"))
    one.write_text(PLAIN.replace("plate", "batch,plate").replace("P1", "b1,P1").replace("A0", "B0"))
    with pytest.raises(ScreenError, match=r"plate 'P1' .source 'default'. is in 2 batches: 'b1' and 'b2'"):
        import_layout(new_lake(tmp_path / "other"), [one, three])
    assert lake.value("SELECT count(*) FROM main.wells") == 4


def test_near_names_look_at_the_lake_and_the_labels_too(tmp_path):
    lake = small_lake(tmp_path / "lake")
    plan = layout(("s", "b", "p"), [("A01", "TAXOL", None, "none"), ("A02", "U2-OS", None, "none")])
    labels = pl.DataFrame([("U-2 OS", None, None, "moa", "x")], schema=ANNOTATIONS_SCHEMA, orient="row")
    told = "2 compounds are spelled in several ways and kept apart as they are spelled: "
    assert near_names(lake, plan, labels) == [told + "'TAXOL', 'taxol'; 'U-2 OS', 'U2-OS'"]
    assert near_names(lake, plan, labels, shown=1) == [told + "'TAXOL', 'taxol'; …"]
    assert near_names(lake, plan.clear(), labels.clear()) == []
    assert list(plan.schema) == list(LAYOUT_SCHEMA)


# ── platemaps of other kinds ─────────────────────────────────────────────────

MAP = "cell_line,row,column,well,seeding_density\nU2-OS,C,3,C03,1000\nA673,C,4,C04,2000\n"


def test_platemaps_beside_their_barcodes(tmp_path):
    folder = written(tmp_path / "platemaps/m1.csv", MAP).parent
    written(folder / "Barcode_platemap_pilot.csv", "barcode,time_point,platemap_file\nP1,24,m1\nP2,48,m1\n")
    lake = new_lake(tmp_path / "lake")
    done = import_layout(lake, [folder], compound_column="cell_line")
    assert (done.wells_seen, done.report.plates_added, done.report.wells_in) == (4, 2, 4)
    # The folder's name says what is in it, and no batch.
    assert lake.frame("SELECT batch, plate, well, compound FROM main.wells ORDER BY ALL").rows() == [
        ("default", "P1", "C03", "U2-OS"), ("default", "P1", "C04", "A673"),
        ("default", "P2", "C03", "U2-OS"), ("default", "P2", "C04", "A673"),
    ]  # fmt: skip
    with pytest.raises(
        ScreenError, match=r"m1.csv: unknown compound column 'broad_sample'\. .*--compound-column"
    ):
        import_layout(lake, [folder])


def test_one_platemap_by_its_compound_column(tmp_path):
    lake, file = new_lake(tmp_path / "lake"), written(tmp_path / "m1.csv", MAP)
    assert import_layout(lake, [file], compound_column="cell_line", plates=["P1", "P2"]).report.wells_in == 4
    with pytest.raises(ScreenError, match="a platemap alone does not say for which plates"):
        import_layout(lake, [file], compound_column="cell_line")
    with pytest.raises(
        ScreenError, match=r"the columns fit no known kind of layout: cell_line, .*--compound-column"
    ):
        import_layout(lake, [file], plates=["P1"])


def test_the_platemaps_of_the_cell_atlas(tmp_path, data_dir):
    folder = data_dir / "cell_atlas/platemaps"
    lake = new_lake(tmp_path / "lake")
    done = import_layout(lake, [folder], compound_column="cell_line")
    maps = {file.stem: read_table(file).height for file in folder.glob("Assay_Plate*.csv")}
    barcodes = read_table(folder / "Barcode_platemap_pilot_data.csv")
    assert len(maps) == 13
    assert done.wells_seen == sum(maps[name] for name in barcodes["platemap_file"]) == 7134
    assert done.report == LayoutReport(plates_added=39, wells_in=7134)
    (note,) = done.notes
    assert note.startswith("6 compounds are spelled in several ways")
    assert "'A-673', 'A673'" in note


# ── large tables ─────────────────────────────────────────────────────────────

CELLS = st.text(st.sampled_from('ab ,\t"\n\r\x0b\u0085é1;'), max_size=4)


@example([["1"], ["", "", ""]], False)
@given(st.lists(st.lists(CELLS, min_size=1, max_size=3), max_size=5), st.booleans())
@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_table_without_quotes_is_read_fast_to_the_same_rows(tmp_path, rows, end):
    text = "a,b\n" + "\n".join(",".join(row) for row in rows) + "\n" * end
    path = tmp_path / "table.csv"
    path.write_text(text, encoding="utf-8", newline="")
    fault = None
    try:
        frame, numbers = _quoted_rows(text, path)
    except ScreenError as error:
        fault = str(error)
    if fault is not None:
        with pytest.raises(ScreenError, match=f"^{re.escape(fault)}$"):
            read_table(path)
        return
    plain = frame.with_columns(pl.all().str.strip_chars()).with_columns(
        pl.when(pl.all() != "").then(pl.all())
    )
    table = read_table(path)
    assert table.select("a", "b").equals(plain)
    assert table["__row"].to_list() == numbers.to_list()
