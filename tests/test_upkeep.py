"""Moments, history and the way back: what a person types, what happened when, and plates as they were."""

import json
import multiprocessing
import sys
import time
from datetime import datetime

import polars as pl
import pytest
from builders import (
    LABELS,
    SMALL,
    TINY,
    commit,
    layout,
    neighbour_lake,
    neighbour_plate,
    plate,
    small_lake,
    small_plate,
)
from hypothesis import given, settings
from hypothesis import strategies as st

import cli
from warehouse import layouts, nearest
from warehouse.correct import correct
from warehouse.errors import LakeError, SearchError, UnknownNameError
from warehouse.feature_sets import FeatureSet
from warehouse.ingest import relabel_plate
from warehouse.lake import Lake
from warehouse.runs import Run
from warehouse.screens.model import ANNOTATIONS_SCHEMA
from warehouse.status import faults
from warehouse.upkeep import moments
from warehouse.upkeep.history import history
from warehouse.upkeep.rollback import Restored, rollback
from warehouse.upkeep.verify import verify

SPAWN = multiprocessing.get_context("spawn")
P1, P2, P3 = list(SMALL)[:3]
SHARED = ("plates", "wells", "plate_loads", "rejections", "annotations", "quarantine", "fields", "recipes")
#: An evaluation as `evaluate` writes it: the small lake has missing values, which metrics refuse.
EVALUATED = """evaluation, feature_set, recipe, level, metric, n, parameters, left_out, snapshot, run, evaluated_at)
VALUES ('e', 'tiny', 'none', 'well', 'map', 3, '{}', '{}', 4, 'r', now()::TIMESTAMP)"""
OTHER = FeatureSet("other", "import", "1", None, {}, (), ("a", "b", "c"), "well")


@pytest.fixture
def lake(tmp_path):
    with small_lake(tmp_path / "lake") as made:
        yield made


def content(lake, *more):
    """Every row of the tables that go back."""
    tables = [f"main.{name}" for name in (*SHARED, "recipe_fits", "recipe_left_out")] + ["tiny.wells", *more]
    return {name: sorted(map(repr, lake.frame(f"FROM {name}").rows())) for name in tables}


def changed(key, content="h2"):
    """The same plate with other profiles and another layout of one well."""
    wells = {"A01": (5, 5, 5), "A03": (6, 6, 6)}
    return plate(key, wells, content, layout(key, [("A03", "aspirin", 9.0, "none")]))


# ------------------------------------------------------------------------------------------ moments


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("17", 17),
        (" 0 ", 0),
        ("-1", -1),
        ("2026-11-20", datetime(2026, 11, 20, 23, 59, 59, 999999)),
        ("2026-11-20T18:30", datetime(2026, 11, 20, 18, 30)),
        ("2026-11-20 18:30:15.5", datetime(2026, 11, 20, 18, 30, 15, 500000)),
        ("2026-11-20T18:30:00Z", datetime(2026, 11, 20, 18, 30)),
        ("2026-11-20T01:30+02:00", datetime(2026, 11, 19, 23, 30)),
        ("20261120", 20261120),
    ],
)
def test_what_a_person_types(text, expected):
    assert moments.parse(text) == expected


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("yesterday", "'yesterday' is no moment: give a snapshot (17), one before the newest (-1), a date"),
        ("", "'' is no moment"),
        ("2026-13-01", "'2026-13-01' is no moment (month must be in 1..12)"),
        ("2026-02-30", "'2026-02-30' is no moment (day is out of range for month)"),
        ("2026-11-20T25:00", "is no moment (hour must be in 0..23)"),
        ("0001-01-01T00:00+14:00", "is no moment (date value out of range)"),
        ("1.5", "'1.5' is no moment"),
        ("１２", "'１２' is no moment"),
        ("9" * 30, "is no moment"),
        ("1; DROP TABLE x", "is no moment"),
    ],
)  # fmt: skip
def test_what_is_no_moment(text, said):
    with pytest.raises(LakeError) as caught:
        moments.parse(text)
    assert said in str(caught.value)


@given(st.datetimes(min_value=datetime(1000, 1, 1)))
def test_a_time_comes_back_as_it_was_written(moment):
    assert moments.parse(moment.isoformat()) == moment


@given(st.text(max_size=30))
@settings(max_examples=200)
def test_any_text_is_a_moment_or_a_message(text):
    try:
        found = moments.parse(text)
    except LakeError as error:
        found = str(error)
    assert not isinstance(found, str) or repr(text) in found


def test_moments_name_snapshots(lake):
    there = moments.snapshots(lake)
    assert [one.number for one in there] == list(range(len(there)))
    newest = there[-1]
    assert moments.find(lake, "-1") == there[-2]
    assert moments.find(lake, newest.number) == newest
    assert moments.find(lake, newest.time) == newest
    assert moments.find(lake, there[3].time.isoformat()) == there[3]
    assert moments.find(lake, f"{newest.time:%Y-%m-%d}") == newest
    assert moments.find(lake, "2999-01-01") == newest


@pytest.mark.parametrize("moment", ["99", "-99", "2001-01-01"])
def test_a_moment_that_is_not_there_names_the_oldest_and_the_newest(lake, moment):
    there = moments.snapshots(lake)
    wanted = "at 2001-01-01 23:59:59" if "2001" in moment else moment
    with pytest.raises(LakeError) as caught:
        moments.find(lake, moment)
    assert str(caught.value) == (
        f"no snapshot {wanted}: the oldest is {there[0]}, the newest {there[-1]} (UTC); `wellhouse history` lists them"
    )


def test_an_expired_snapshot_is_said_to_have_expired(lake):
    lake.connection.execute(
        "SELECT count(*) FROM ducklake_expire_snapshots('lake', versions => [2, 3])"
    ).fetchall()
    with pytest.raises(LakeError, match="no snapshot 3 any more: it has expired: the oldest is 0 of "):
        moments.find(lake, "3")


# ------------------------------------------------------------------------------------------ history


def test_history_says_what_happened(lake):
    run = Run("ingest", {})
    commit(lake, changed(P1), run=run)
    run.finish(lake, {})
    correct(lake, "tiny", "center(scope=all)")
    lake.transaction(lambda c: c.execute(f"INSERT INTO main.evaluations ({EVALUATED}"))
    table = history(lake)
    assert table.columns == ["snapshot", "time", "command", "username", "run", "changed"]
    assert table["snapshot"].to_list() == list(range(lake.snapshot(), -1, -1))
    said = dict(table.select("snapshot", "changed").rows())
    assert said[2] == "tiny: added p1"
    assert said[7] == "tiny: replaced p1"
    assert said[6].startswith("wrote annotations")
    assert any("fitted center" in text for text in said.values())
    assert any("evaluated tiny (none)" in text for text in said.values())
    by = dict(table.select("snapshot", "command").rows())
    assert (by[2], by[7], by[1]) == ("test", "ingest", None)
    assert dict(table.select("snapshot", "run").rows())[7] == run.run


def test_history_of_one_plate(lake):
    commit(lake, changed(P1))
    assert history(lake, plate="p1")["changed"].to_list() == ["tiny: replaced p1", "tiny: added p1"]
    assert history(lake, limit=2).height == 2
    assert history(lake, plate="nobody").is_empty()


# ------------------------------------------------------------------------------------------ as of


def test_nearest_as_of_searches_that_state_and_leaves_the_index(tmp_path):
    with neighbour_lake(tmp_path / "lake") as lake:
        then = lake.snapshot()
        expected = nearest.nearest(lake, "a@1uM", "tiny").neighbours
        commit(lake, neighbour_plate("p1", shift=3.0))
        report = nearest.build(lake, "tiny")
        kept = (tmp_path / report.path).read_bytes()
        newest = nearest.nearest(lake, "a@1uM", "tiny")
        assert newest.notes == ()
        assert not newest.neighbours.equals(expected)
        with Lake.open(lake.address, as_of=then) as old:
            answer = nearest.nearest(old, "a@1uM", "tiny")
            assert answer.neighbours.equals(expected)
            assert answer.notes == (
                f"the index is of other profiles than those as of {then}: the lake itself was searched",
            )
            with pytest.raises(
                SearchError, match=f"is open as of {then}: `nearest` searches it without an index"
            ):
                nearest.build(old, "tiny")
        assert (tmp_path / report.path).read_bytes() == kept


def test_nearest_as_of_uses_an_index_of_the_same_profiles(tmp_path):
    with neighbour_lake(tmp_path / "lake") as lake:
        then = lake.snapshot()
        nearest.build(lake, "tiny")
        layouts.put_annotations(
            lake, Run("x", {}), pl.DataFrame(LABELS, schema=ANNOTATIONS_SCHEMA, orient="row")
        )
        with Lake.open(lake.address, as_of=then) as old:
            assert nearest.nearest(old, "a@1uM", "tiny").notes == ()


# ------------------------------------------------------------------------------------------ rollback


def spoiled(lake):
    """Change a lake in every way; return what it was, and the snapshot."""
    correct(lake, "tiny", "center(scope=plate)")
    before, then = content(lake), lake.snapshot()
    commit(lake, changed(P1))
    commit(lake, plate(("s9", "b9", "p9"), {"A01": (1, 1, 1)}))
    commit(lake, plate(("s9", "b9", "p9"), {"A01": (1, 1, 1)}), OTHER)
    relabel_plate(lake, Run("x", {}), "tiny", P3, layout(P3, [("A01", "other", 1.0, "none")]))
    labels = [("aspirin", None, None, "moa", "COX")]
    layouts.put_annotations(lake, Run("x", {}), pl.DataFrame(labels, schema=ANNOTATIONS_SCHEMA, orient="row"))
    correct(lake, "tiny", "center(scope=plate)")
    correct(lake, "tiny", "center(scope=all)")
    return before, then


def recipe_tables(lake):
    query = "SELECT table_name FROM duckdb_tables() WHERE schema_name = 'tiny' AND contains(table_name, '__')"
    return {f'tiny."{name}"': sorted(map(repr, lake.frame(f'FROM tiny."{name}"').rows())) for (name,) in
            lake.connection.execute(query).fetchall()}  # fmt: skip


def test_the_whole_lake_goes_back_and_forward_again(lake):
    correct(lake, "tiny", "center(scope=plate)")
    recipes = recipe_tables(lake)
    before, then = spoiled(lake)
    after, after_recipes, now = content(lake), recipe_tables(lake), lake.snapshot()
    planned = rollback(lake, then, dry_run=True)
    assert (content(lake), lake.snapshot()) == (after, now)
    report = rollback(lake, then)
    assert report == planned
    assert report.plates == (
        Restored("other", "s9", "b9", "p9", "taken out"),
        Restored("tiny", *P1, "restored"),
        Restored("tiny", *P3, "restored"),
        Restored("tiny", "s9", "b9", "p9", "taken out"),
    )
    assert (report.to, report.snapshot, report.unchanged, report.tables) == (
        then,
        now,
        3,
        ("annotations", "recipes"),
    )
    assert content(lake) == before
    assert recipe_tables(lake) == recipes
    assert (faults(lake), verify(lake).faults) == ({}, [])
    # One snapshot of data, and one that completes the run.
    assert lake.snapshot() == now + 2
    assert rollback(lake, then).plates == ()
    assert lake.snapshot() == now + 2
    # Nothing is lost: forward again.
    rollback(lake, now)
    assert content(lake) == after
    assert recipe_tables(lake) == after_recipes
    assert faults(lake) == {}


def test_ledgers_stay_and_say_so(lake):
    lake.transaction(lambda c: c.execute(f"INSERT INTO main.evaluations ({EVALUATED}"))
    then = lake.snapshot()
    commit(lake, changed(P1))
    ledgers = {
        name: lake.frame(f"FROM main.{name}").rows() for name in ("runs", "plate_history", "evaluations")
    }
    before = lake.snapshot()
    rollback(lake, then)
    for name, rows in ledgers.items():
        assert set(map(repr, rows)) <= set(map(repr, lake.frame(f"FROM main.{name}").rows()))
    assert lake.frame(
        "SELECT feature_set, plate, content_hash, former_hash, former_snapshot FROM main.plate_history "
        "WHERE outcome = 'rolled back'"
    ).rows() == [("tiny", "p1", "h1", "h2", before)]
    run = lake.frame("SELECT settings, outcome, counts FROM main.runs WHERE command = 'rollback'").row(0)
    assert json.loads(run[0]) == {"to": then, "plate": None, "feature_set": None}
    assert run[1:] == ("done", '{"plates_restored": 1}')
    assert history(lake)["changed"].to_list()[1] == "tiny: rolled back p1"


def test_one_plate_goes_back_and_its_corrections_are_made_anew(lake):
    correct(lake, "tiny", "center(scope=plate)")
    recipe = recipe_tables(lake)
    then, before = lake.snapshot(), content(lake)
    commit(lake, changed(P1))
    commit(lake, changed(P2))
    correct(lake, "tiny", "center(scope=plate)")
    report = rollback(lake, then, plate="p1")
    assert (report.plates, report.unchanged) == ((Restored("tiny", *P1, "restored"),), 0)
    query = "SELECT well, embedding FROM tiny.wells WHERE plate = '{}' ORDER BY well"
    with Lake.open(lake.address, as_of=then) as old:
        assert lake.frame(query.format("p1")).equals(old.frame(query.format("p1")))
        assert not lake.frame(query.format("p2")).equals(old.frame(query.format("p2")))
    assert content(lake)["main.plates"] != before["main.plates"]
    table = next(iter(recipe))
    assert lake.value(f"SELECT count(*) FROM {table} WHERE plate = 'p1'") == 0
    correct(lake, "tiny", "center(scope=plate)")
    assert {row for row in recipe_tables(lake)[table] if "'p1'" in row} == {
        row for row in recipe[table] if "'p1'" in row
    }
    assert faults(lake) == {}


def test_one_feature_set_goes_back(lake):
    then = lake.snapshot()
    commit(lake, changed(P1))
    commit(lake, plate(("s9", "b9", "p9"), {"A01": (1, 1, 1)}), OTHER)
    report = rollback(lake, then, feature_set="other")
    assert report.plates == (Restored("other", "s9", "b9", "p9", "taken out"),)
    # No feature set holds the plate any more: its layout has gone with it.
    assert lake.value("SELECT count(*) FROM main.plates WHERE plate = 'p9'") == 0
    assert lake.value("SELECT content_hash FROM main.plate_loads WHERE plate = 'p1'") == "h2"
    assert faults(lake) == {}
    # The layout of p1 stays as it is now, and the counts of its load are made to fit it.
    rollback(lake, then, feature_set="tiny")
    assert lake.value("SELECT content_hash FROM main.plate_loads WHERE plate = 'p1'") == "h1"
    assert faults(lake) == {}


def test_after_a_rollback_the_same_lake_takes_plates_in(lake):
    """What an open lake remembers of plates is read anew."""
    then = lake.snapshot()
    key = ("s9", "b9", "p9")
    assert commit(lake, plate(key, {"A01": (1, 1, 1)})) == "added"
    rollback(lake, then)
    assert commit(lake, plate(("s9", "b8", "p9"), {"A01": (1, 1, 1)})) == "added"
    assert commit(lake, small_plate(P1)) == "unchanged"


def test_what_cannot_be_rolled_back_to(lake):
    with pytest.raises(LakeError, match="at snapshot 0 the lake was not made yet"):
        rollback(lake, 0)
    with pytest.raises(UnknownNameError, match=r"unknown plate 'p11'\. Did you mean 'p1'"):
        rollback(lake, 3, plate="p11")
    with pytest.raises(UnknownNameError, match=r"unknown feature set 'tinny'\. Did you mean 'tiny'"):
        rollback(lake, 3, feature_set="tinny")
    lake.transaction(
        lambda c: c.execute("INSERT INTO main.schema_version VALUES (99, 'next', '9', now()::TIMESTAMP)")
    )
    with pytest.raises(
        LakeError, match=r"snapshot 3 of .* has schema \d, the lake has 99 now: rollback does not go across"
    ):
        rollback(lake, 3)


def go_back(address, moment):
    with Lake.open(address) as lake:
        rollback(lake, moment)


@pytest.mark.slow
def test_a_rollback_beside_a_writer(lake):
    """Whichever comes first, the lake is whole, and the plate that came in afterwards is in once."""
    then = lake.snapshot()
    commit(lake, changed(P1))
    process = SPAWN.Process(target=go_back, args=(lake.address, then))
    process.start()
    number = 0
    while process.is_alive() or number < 5:
        commit(lake, plate(("s9", "b9", f"w{number}"), {"A01": (number, 1, 1)}))
        number += 1
        time.sleep(1.0)  # as a writer that makes what it commits
    process.join()
    assert process.exitcode == 0
    assert lake.value("SELECT content_hash FROM main.plate_loads WHERE plate = 'p1'") == "h1"
    assert faults(lake) == {}
    taken_out = lake.value(
        "SELECT count(*) FROM main.plate_history WHERE outcome = 'rolled back' AND plate LIKE 'w%'"
    )
    assert lake.value("SELECT count(*) FROM main.plate_loads WHERE plate LIKE 'w%'") == number - taken_out


# ------------------------------------------------------------------------------------------ the command line


@pytest.fixture
def call(lake, capsys, monkeypatch):
    monkeypatch.setenv("WELLHOUSE_LAKE", lake.address)

    def run(*words):
        monkeypatch.setattr(sys, "argv", ["wellhouse", *map(str, words)])
        capsys.readouterr()
        try:
            cli.main()
        except SystemExit as error:
            code = error.code or 0
        else:
            code = 0
        return (code, *capsys.readouterr())

    return run


def test_commands(lake, call):
    then = lake.snapshot()
    commit(lake, changed(P1))
    query = "SELECT count(*) AS n FROM tiny.wells WHERE plate = 'p1'"
    for moment, wells in ((None, 2), (then, 6), ("-1", 6), ("2999-01-01", 2)):
        words = ("sql", query, "--json", *(() if moment is None else ("--as-of", moment)))
        assert json.loads(call(*words)[1]) == [{"n": wells}]
    assert json.loads(call("status", "--as-of", then, "--json")[1])["snapshot"] == then
    code, out, _ = call("nearest", "taxol@3uM", "--feature-set", "tiny", "--as-of", then, "--json")
    assert (code, json.loads(out)["query"]) == (0, "taxol@3uM")
    assert json.loads(call("history", "--plate", "p1", "--json")[1])[0]["changed"] == "tiny: replaced p1"
    code, out, err = call("sql", query, "--as-of", "1999-01-01")
    assert (code, out) == (1, "")
    assert err.startswith("error: no snapshot at 1999-01-01 23:59:59: the oldest is 0 of ")
    code, out, err = call("rollback", "--dry-run", "--", "-1")
    assert (code, "p1" in out) == (0, True)
    assert "would go back to snapshot" in err
    code, out, err = call("rollback", then, "--plate", "p1", "--json")
    assert json.loads(out)["plates"][0]["outcome"] == "restored"
    code, out, err = call("rollback", then)
    assert f"went back to snapshot {then}; 4 unchanged" in err
    code, out, _ = call("compact", "--json")
    assert json.loads(out)["files_before"] == 0
    assert call("compact", "--dry-run")[0] == 0
    code, out, _ = call("verify", "--quick")
    assert (code, out.endswith("all is well\n")) == (0, True)
    lake.transaction(lambda c: c.execute("UPDATE main.plate_loads SET wells_in = 9 WHERE plate = 'p2'"))
    code, out, err = call("verify")
    assert (code, "plate_balance" in out) == (1, True)
    assert "error: 2 faults; 0 files" in err
    assert TINY.name in out
