"""Committing plates: outcomes, every table's rows, replacement, refusals that leave the lake as it was."""

from dataclasses import replace

import duckdb
import polars as pl
import pytest
from builders import SMALL, TINY, commit, layout, new_lake, plate, profiles, small_lake, small_plate, state

from warehouse import feature_sets, ingest, layouts, quarantine
from warehouse.errors import LakeUnavailableError, ProfileError, ScreenError, UnknownNameError
from warehouse.runs import Run
from warehouse.status import faults

KEY = ("s", "b", "p")
ONE = {"A01": (1.0, 2.0, 3.0), "A02": (4.0, 5.0, 6.0)}
TWO = {"A01": (7.0, 8.0, 9.0)}
PLAN = [("A01", "DMSO", None, "negative"), ("A02", "taxol", 0.3, "none"), ("B01", "taxol", 3.0, "none")]
COUNTS = "wells_in_layout, wells_in, wells_without_data, wells_without_layout"


@pytest.fixture
def lake(tmp_path):
    with new_lake(tmp_path / "lake") as made:
        yield made


@pytest.fixture(scope="module")
def one_plate(tmp_path_factory):
    """A lake that tests only try to change."""
    with new_lake(tmp_path_factory.mktemp("ingest") / "lake") as made:
        commit(made, plate(KEY, ONE))
        yield made


def counts(lake, feature_set="tiny"):
    query = f"SELECT {COUNTS} FROM main.plate_loads WHERE feature_set = ? AND plate = 'p'"
    return lake.frame(query, [feature_set]).rows()


def test_all_tables_of_a_plate(lake):
    run = Run("import-profiles", {"files": ["a.csv"]})
    rejected = [("A03", "f1", None, "no nuclei"), ("A04", None, None, "feature f1 is inf")]
    data = plate(
        KEY,
        ONE,
        "h1",
        layout(KEY, PLAN),
        rejected,
        images_seen=5,
        images_rejected=1,
        cells_seen=40,
        cells_rejected=4,
    )
    assert commit(lake, data, run=run) == "added"
    assert lake.frame("SELECT * EXCLUDE (added_at) FROM main.plates").rows() == [
        ("s", "b", "p", layouts.content(layout(KEY, PLAN)), run.run)
    ]
    assert lake.frame("SELECT * FROM main.wells ORDER BY well").rows() == [
        ("s", "b", "p", "A01", 1, 1, "DMSO", "DMSO", None, None, "negative"),
        ("s", "b", "p", "A02", 1, 2, "taxol@0.3uM", "taxol", 0.3, "uM", "none"),
        ("s", "b", "p", "B01", 2, 1, "taxol@3uM", "taxol", 3.0, "uM", "none"),
    ]
    assert lake.frame("SELECT * FROM tiny.wells ORDER BY well").rows() == [
        ("s", "b", "p", "A01", None, None, [1.0, 2.0, 3.0]),
        ("s", "b", "p", "A02", None, None, [4.0, 5.0, 6.0]),
    ]
    assert lake.frame("SELECT * FROM main.rejections ORDER BY well").rows() == [
        ("tiny", "s", "b", "p", "A03", "f1", None, "no nuclei"),
        ("tiny", "s", "b", "p", "A04", None, None, "feature f1 is inf"),
    ]
    assert lake.frame(
        "SELECT * EXCLUDE (loaded_at, arrival, profiles_seen, profiles_rejected) FROM main.plate_loads"
    ).rows() == [("tiny", "s", "b", "p", "h1", 5, 4, 1, 40, 36, 4, 3, 2, 1, 0, run.run)]
    stored = "SELECT * EXCLUDE (created_at, treatment_operator, consensus_operator) FROM main.feature_sets"
    assert lake.frame(stored).rows() == [
        ("tiny", "import", "1", None, "{}", [], 3, ["f1", "f2", "f3"], "well", "median", "mean", run.run)
    ]
    assert lake.frame("SELECT run, command, settings FROM main.runs").rows() == [
        (run.run, "import-profiles", '{"files": ["a.csv"]}')
    ]
    assert lake.frame("SELECT is_balanced FROM main.plate_balance")["is_balanced"].to_list() == [True]
    assert feature_sets.find(lake, "tiny") == TINY


def test_cells_fields_and_images_of_a_plate(lake):
    cells = pl.DataFrame(
        {
            "well": ["A01", "A01"],
            "field": ["1", "1"],
            "cell": ["1", "2"],
            "x_px": [3.5, 4.5],
            "is_border": [True, False],
        }
    ).with_columns(embedding=pl.Series([[1.0, 2.0, 3.0], [3.0, 4.0, 5.0]], dtype=pl.List(pl.Float32)))
    fields = pl.DataFrame({"well": ["A01"], "field": ["1"], "cell_count": [2]}).with_columns(
        embedding=pl.Series([[2.0, 3.0, 4.0]], dtype=pl.List(pl.Float32))
    )
    image = {
        "well": ["A01"],
        "field": ["1"],
        "cell": [None],
        "channels": [["DNA"]],
        "paths": [["a.tif"]],
        "planes": [[None]],
    }
    images = pl.DataFrame(
        {**image, "digests": [["d1"]]}, schema_overrides={"cell": pl.String, "planes": pl.List(pl.Int32)}
    )
    by_cell = replace(TINY, name="by_cell", entry_level="cell")
    data = replace(
        plate(KEY, {"A01": (2.0, 3.0, 4.0)}), cells=[cells[:1], cells[1:]], fields=fields, images=images,
        images_seen=1, cells_seen=2,
    )  # fmt: skip
    assert commit(lake, data, by_cell) == "added"
    assert lake.frame(
        "SELECT well, field, cell, x_px, y_px, is_border, embedding FROM by_cell.cells ORDER BY cell"
    ).rows() == [
        ("A01", "1", "1", 3.5, None, True, [1.0, 2.0, 3.0]),
        ("A01", "1", "2", 4.5, None, False, [3.0, 4.0, 5.0]),
    ]
    assert lake.frame("SELECT * FROM by_cell.fields").rows() == [
        ("s", "b", "p", "A01", "1", 2, [2.0, 3.0, 4.0])
    ]
    # Another extractor brings the same image: it is in once, as it was brought last.
    second = replace(data, images=images.with_columns(digests=pl.Series([["d2"]])))
    assert commit(lake, second, replace(by_cell, name="other")) == "added"
    assert lake.frame("SELECT well, field, cell, digests FROM main.fields").rows() == [
        ("A01", "1", None, ["d2"])
    ]
    # Replacing takes cells and fields of this feature set out, and of no other.
    one = fields.with_columns(cell_count=pl.lit(1, dtype=pl.Int32))
    fewer = replace(data, content_hash="h2", cells=[cells[:1]], fields=one, cells_seen=1)
    assert commit(lake, fewer, by_cell) == "replaced"
    assert lake.value("SELECT count(*) FROM by_cell.cells") == 1
    assert lake.value("SELECT count(*) FROM other.cells") == 2
    assert faults(lake) == {}


def test_the_same_content_again_writes_nothing(lake):
    commit(lake, plate(KEY, ONE, "h1", layout(KEY, PLAN)))
    before, snapshot = state(lake), lake.snapshot()
    shuffled = layout(KEY, PLAN[::-1])
    assert commit(lake, plate(KEY, ONE, "h1", shuffled)) == "unchanged"
    assert commit(lake, plate(KEY, ONE, "h1", None)) == "unchanged"
    assert state(lake) == before  # no run either
    assert lake.snapshot() == snapshot
    assert commit(lake, plate(KEY, ONE, "h2", None)) == "replaced"


def test_replaced_content_is_reached_by_time_travel(lake):
    rejected = [("A03", None, None, "was broken")]
    commit(lake, plate(KEY, ONE, "h1", layout(KEY, PLAN), rejected))
    before = lake.snapshot()
    assert commit(lake, plate(KEY, TWO, "h2", layout(KEY, PLAN))) == "replaced"
    assert lake.snapshot() == before + 1
    query = "SELECT well, embedding FROM tiny.wells {} ORDER BY well"
    assert lake.frame(query.format("")).rows() == [("A01", [7.0, 8.0, 9.0])]
    assert lake.frame(query.format(f"AT (VERSION => {before})")).rows() == [
        ("A01", [1.0, 2.0, 3.0]),
        ("A02", [4.0, 5.0, 6.0]),
    ]
    assert counts(lake) == [(3, 1, 2, 0)]
    assert lake.value("SELECT count(*) FROM main.rejections") == 0
    assert lake.value("SELECT count(*) FROM main.plate_loads") == 1
    assert lake.value("SELECT count(*) FROM main.wells") == 3


def test_layout_none_keeps_the_earlier_layout(lake):
    commit(lake, plate(KEY, ONE, "h1", layout(KEY, PLAN)))
    assert commit(lake, plate(KEY, TWO, "h2", None)) == "replaced"
    assert lake.value("SELECT count(*) FROM main.wells") == 3
    assert counts(lake) == [(3, 1, 2, 0)]


def test_relabelling_counts_again_for_every_feature_set(lake):
    """The profiles stay; wells with and without layout are those of the layout that holds now."""
    other = replace(TINY, name="other")
    commit(lake, plate(KEY, ONE, "h1"))
    commit(lake, plate(KEY, {"B01": (1.0, 1.0, 1.0)}, "h1"), other)
    assert counts(lake) == [(0, 2, 0, 2)]
    assert lake.value("SELECT layout_hash FROM main.plates") is None
    assert commit(lake, plate(KEY, ONE, "h1", layout(KEY, PLAN))) == "relabelled"
    assert counts(lake) == [(3, 2, 1, 0)]
    assert counts(lake, "other") == [(3, 1, 2, 0)]
    # Wells that come later are added, one that comes again is what it is now, the rest stays.
    more = [("A02", "nocodazole", 1.0, "none"), ("C01", "taxol", 0.3, "none")]
    assert commit(lake, plate(KEY, ONE, "h1", layout(KEY, more))) == "relabelled"
    assert counts(lake) == [(4, 2, 2, 0)]
    assert counts(lake, "other") == [(4, 1, 3, 0)]
    assert lake.frame("SELECT well, treatment FROM main.wells ORDER BY well").rows() == [
        ("A01", "DMSO"),
        ("A02", "nocodazole@1uM"),
        ("B01", "taxol@3uM"),
        ("C01", "taxol@0.3uM"),
    ]
    assert commit(lake, plate(KEY, ONE, "h1", layout(KEY, PLAN[:1]))) == "unchanged"
    assert faults(lake) == {}


def test_a_new_layout_with_new_content_is_replaced(lake):
    commit(lake, plate(KEY, ONE, "h1", layout(KEY, PLAN[:1])))
    assert commit(lake, plate(KEY, TWO, "h2", layout(KEY, PLAN))) == "replaced"
    assert counts(lake) == [(3, 1, 2, 0)]
    assert lake.value("SELECT count(*) FROM main.plates") == 1


def test_relabel_plate(lake):
    commit(lake, plate(KEY, ONE, "h1", layout(KEY, PLAN[:1])))
    before, snapshot = state(lake), lake.snapshot()
    assert ingest.relabel_plate(lake, Run("t", {}), "tiny", KEY, None) == "unchanged"
    assert ingest.relabel_plate(lake, Run("t", {}), "tiny", KEY, layout(KEY, PLAN[:1])) == "unchanged"
    assert (state(lake), lake.snapshot()) == (before, snapshot)
    assert counts(lake) == [(1, 2, 0, 1)]
    assert ingest.relabel_plate(lake, Run("t", {}), "tiny", KEY, layout(KEY, PLAN)) == "relabelled"
    assert counts(lake) == [(3, 2, 1, 0)]


def test_wells_without_layout_and_without_data_are_counted(tmp_path):
    with small_lake(tmp_path / "small") as lake:
        rows = lake.frame(
            f"SELECT plate, {COUNTS}, is_balanced FROM main.plate_balance ORDER BY plate"
        ).rows()
        assert rows == [
            ("p1", 6, 6, 1, 1, True),
            ("p2", 2, 2, 0, 0, True),
            ("p3", 3, 3, 0, 0, True),
            ("p4", 3, 3, 0, 0, True),
        ]
        assert lake.value("SELECT count(*) FROM tiny.wells") == 14


def test_a_plate_without_profiles_is_in_with_its_reasons(lake):
    rejected = [(well, None, None, "no nuclei") for well, *_ in PLAN]
    data = plate(KEY, {}, "h1", layout(KEY, PLAN), rejected, profiles_seen=3, profiles_rejected=3)
    assert commit(lake, data) == "added"
    assert counts(lake) == [(3, 0, 3, 0)]
    assert lake.value("SELECT count(*) FROM main.rejections") == 3
    assert commit(lake, data) == "unchanged"
    assert faults(lake) == {}
    assert lake.frame("SELECT * FROM tiny.treatments").is_empty()


def test_a_plate_in_a_second_batch_is_refused(lake):
    commit(lake, plate(KEY, ONE, "h1", layout(KEY, PLAN)))
    before, rows = lake.snapshot(), state(lake)
    for feature_set in (TINY, replace(TINY, name="other")):
        with pytest.raises(
            ScreenError,
            match="plate 'p' of source 's' is in the lake in batch 'b', and comes now in batch 'b2'",
        ):
            commit(lake, plate(("s", "b2", "p"), TWO, "h2", layout(("s", "b2", "p"), PLAN)), feature_set)
    assert lake.snapshot() == before
    assert state(lake) == rows
    assert feature_sets.names(lake) == ["tiny"]
    # The same name in another source is another plate.
    assert commit(lake, plate(("s2", "b2", "p"), TWO, "h2")) == "added"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"extractor": "dino"}, "has extractor import, this input has dino"),
        ({"version": "2"}, "has extractor_version 1|has version 1, this input has 2"),
        ({"weights": "ab12"}, "has weights None, this input has ab12"),
        ({"parameters": {"size": 9}}, r"has parameters.size None, this input has 9"),
        ({"channels": ("DNA",)}, r"has channels \(\), this input has \('DNA',\)"),
        (
            {"feature_names": ("f1", "f2")},
            r"feature_names 3 features, this input has 2, 1 missing \(first: \['f3'\]\), 0 new",
        ),
        (
            {"feature_names": ("f1", "f2", "g")},
            r"has 3, 1 missing \(first: \['f3'\]\), 1 new \(first: \['g'\]\)",
        ),
        ({"feature_names": ("f2", "f1", "f3")}, "this input has the same in another order"),
        ({"entry_level": "cell"}, "has entry_level well, this input has cell"),
        ({"field_operator": "mean"}, "has field_operator median, this input has mean"),
        ({"well_operator": "median"}, "has well_operator mean, this input has median"),
    ],
)
def test_another_identity_under_one_name_is_refused(one_plate, change, message):
    lake = one_plate
    before = lake.snapshot()
    wanted = replace(TINY, **change)
    assert wanted.identity() != TINY.identity()
    for refused in (
        lambda: commit(lake, plate(("s", "b", "p2"), ONE), wanted),
        lambda: ingest.check_feature_set(lake, wanted),
    ):
        with pytest.raises(
            ProfileError, match=f"feature set 'tiny' .*({message}).*name another --feature-set"
        ):
            refused()
    assert lake.snapshot() == before


@pytest.mark.parametrize(
    "name", ["main", "Tiny", "a__b", "1a", "a b", "a;", "", "x" * 64, "information_schema"]
)
def test_names_that_can_be_no_schema_are_refused(one_plate, name):
    with pytest.raises(ProfileError, match=f"feature set name '{name}': use up to 63 lower-case letters"):
        commit(one_plate, plate(KEY, ONE), replace(TINY, name=name))


def test_an_unknown_feature_set_offers_the_nearest(one_plate):
    with pytest.raises(
        UnknownNameError, match=r"unknown feature set 'tinny'. Did you mean 'tiny'\? Known: tiny"
    ):
        feature_sets.find(one_plate, "tinny")


@pytest.mark.parametrize("present", [False, True])
def test_an_error_in_the_middle_leaves_everything_as_it_was(lake, present):
    """The wells are written last but one; cells that cannot be read to their end, and a column that no table has."""
    if present:
        commit(lake, plate(KEY, ONE, "h1", layout(KEY, PLAN)))
    before, rows = lake.snapshot(), state(lake)
    cell = pl.DataFrame({"well": ["A01"], "field": ["1"], "cell": ["1"]}).with_columns(
        profiles(TWO)["embedding"]
    )

    def cut_short():
        yield cell
        message = "No space left on device"
        raise OSError(message)

    class CutShort:
        def __iter__(self):
            return cut_short()

    changed = plate(KEY, TWO, "h2", layout(KEY, PLAN[:1]), [("A09", None, None, "x")])
    with pytest.raises(
        LakeUnavailableError, match=r"disk is full, or fails \(No space left on device\); nothing was"
    ):
        commit(lake, replace(changed, cells=CutShort()))
    with pytest.raises(duckdb.Error, match="colour"):
        commit(lake, replace(changed, rejections=changed.rejections.with_columns(colour=1)))
    with pytest.raises(duckdb.Error, match=r"NOT NULL|Constraint"):
        commit(lake, replace(changed, wells=changed.wells.with_columns(well=pl.lit(None, dtype=pl.String))))
    assert lake.snapshot() == before
    assert state(lake) == rows
    assert commit(lake, changed) == ("replaced" if present else "added")


def test_annotations_are_added_once(lake):
    frame = pl.DataFrame(
        [
            ("taxol", None, None, "moa", "A"),
            ("taxol", None, None, "moa", "A"),
            ("taxol", 0.3, "uM", "moa", "B"),
        ],
        schema={
            "compound": pl.String,
            "concentration": pl.Float64,
            "unit": pl.String,
            "kind": pl.String,
            "label": pl.String,
        },
        orient="row",
    )
    assert layouts.put_annotations(lake, Run("t", {}), frame) == 2
    before = lake.snapshot()
    assert layouts.put_annotations(lake, Run("t", {}), frame) == 0
    assert layouts.put_annotations(lake, Run("t", {}), frame.clear()) == 0
    assert lake.snapshot() == before
    assert layouts.put_annotations(lake, Run("t", {}), frame.with_columns(label=pl.lit("C"))) == 2
    assert lake.value("SELECT count(*) FROM main.annotations") == 4


def test_a_run_is_written_once_and_only_with_a_change(tmp_path):
    with new_lake(tmp_path / "lake") as lake:
        run = Run("test", {"files": ["x"]})
        for key in SMALL:
            commit(lake, small_plate(key), run=run)
        assert lake.frame("SELECT run FROM main.runs")["run"].to_list() == [run.run]
        for key in SMALL:
            assert commit(lake, small_plate(key)) == "unchanged"
        assert lake.value("SELECT count(*) FROM main.runs") == 1


def test_a_replacement_that_would_lose_wells_is_refused(lake):
    commit(lake, plate(KEY, ONE, "h1", layout(KEY, PLAN)))
    before = lake.snapshot()
    kept = sorted(ONE)[0]
    part = plate(KEY, {kept: ONE[kept]}, "h2", layout(KEY, PLAN))
    lost = sorted(ONE)[1]
    with pytest.raises(
        ScreenError, match=rf"has {len(ONE)} wells of it and this content lacks .*\({lost}.*--replace"
    ):
        commit(lake, part, replace=False)
    assert lake.snapshot() == before
    assert lake.value("SELECT count(*) FROM tiny.wells") == len(ONE)
    assert commit(lake, part, replace=True) == "replaced"
    assert (
        commit(lake, plate(KEY, ONE, "h3"), replace=False) == "replaced"
    )  # more wells than before lose none


def test_every_commit_of_a_plate_stands_in_its_history(lake):
    first, second = Run("t", {}), Run("t", {})
    commit(lake, plate(KEY, ONE, "h1"), run=first)
    held = lake.snapshot()
    commit(lake, plate(KEY, ONE, "h1"), run=second)
    commit(lake, plate(KEY, TWO, "h2"), run=second)
    ingest.relabel_plate(lake, second, "tiny", KEY, layout(KEY, PLAN))
    rows = lake.frame(
        "SELECT outcome, content_hash, former_hash, former_snapshot, run FROM main.plate_history "
        "ORDER BY happened_at"
    ).rows()
    assert rows == [
        ("added", "h1", None, None, first.run),
        ("replaced", "h2", "h1", held, second.run),
        ("relabelled", "h2", "h2", held + 1, second.run),
    ]
    former = lake.frame(f"SELECT well, embedding FROM tiny.wells AT (VERSION => {held}) ORDER BY well").rows()
    assert former == [(well, list(map(float, vector))) for well, vector in sorted(ONE.items())]


def test_a_run_is_finished_with_its_counts_and_snapshots(lake):
    run, idle = Run("ingest", {}), Run("ingest", {})
    before = lake.snapshot()
    commit(lake, plate(KEY, ONE, "h1"), run=run)
    after = lake.snapshot()
    run.finish(lake, {"plates_added": 1, "wells_in": 2})
    commit(lake, plate(KEY, ONE, "h1"), run=idle)
    idle.finish(lake, {"plates_unchanged": 1})
    rows = lake.frame(
        "SELECT run, outcome, snapshot_before, snapshot_after, counts, seconds >= 0 FROM main.runs"
    ).rows()
    assert rows == [(run.run, "done", before, after, '{"plates_added": 1, "wells_in": 2}', True)]
    assert lake.snapshot() == after + 1


def test_quarantine_holds_a_plate_until_it_is_in(lake):
    run = Run("t", {})
    before = lake.snapshot()
    quarantine.put(lake, run, "tiny", KEY, "f1 is inf", job={"kind": "profiles"}, arrival="a1")
    quarantine.put(lake, run, "tiny", KEY, "f2 is inf", job={"kind": "profiles"}, arrival="a2")
    (held,) = quarantine.read(lake, KEY[2])
    assert (held.feature_set, held.key, held.reason, held.arrival, held.tries) == (
        "tiny",
        KEY,
        "f2 is inf",
        "a2",
        2,
    )
    assert held.job == {"kind": "profiles"}
    with pytest.raises(UnknownNameError, match=r"unknown plate in quarantine 'x'. Known: p\."):
        quarantine.read(lake, "x")
    commit(lake, plate(KEY, ONE, "h1"), run=run)
    assert quarantine.read(lake) == []
    assert lake.snapshot() == before + 3
    assert lake.frame("SELECT outcome FROM main.plate_history ORDER BY happened_at")["outcome"].to_list() == [
        "quarantined", "quarantined", "added",
    ]  # fmt: skip


def test_files_that_were_only_touched_are_noted(lake):
    data = replace(plate(KEY, ONE, "h1"), arrival="a1")
    assert commit(lake, data) == "added"
    snapshot = lake.snapshot()
    assert commit(lake, data) == "unchanged"
    assert lake.snapshot() == snapshot
    assert commit(lake, replace(data, arrival="a2")) == "unchanged"
    assert lake.value("SELECT arrival FROM main.plate_loads") == "a2"
    assert ingest.relabel_plate(lake, Run("t", {}), "tiny", KEY, None, "a3") == "unchanged"
    assert lake.value("SELECT arrival FROM main.plate_loads") == "a3"
