"""The lake: made, opened, moved; whole transactions, several writers, readers beside them, kill -9."""

import multiprocessing
import os
import random
import re
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import duckdb
import pytest
from builders import commit, layout, plate, small_lake, state

from warehouse import __version__, extensions, resources
from warehouse.errors import LakeError
from warehouse.lake import CATALOG_FILE, DATA_FOLDER, Lake
from warehouse.status import faults

SPAWN = multiprocessing.get_context("spawn")
REPOSITORY = Path(__file__).resolve().parent.parent
KEY = ("s", "b", "p")
WELLS = {f"{row}{column:02d}": (1.0, 2.0, 3.0) for row in "ABCDEFGH" for column in range(1, 13)}
ADD_RUN = (
    "INSERT INTO main.runs (run, command, settings, code_version, started_at) "
    "VALUES (?, 'test', '{}', '1', now()::TIMESTAMP)"
)
SCHEMA = [resources.number_and_name(path) for path in resources.files("schema")]
NEWEST = SCHEMA[-1][0]


def add_run(lake, name, gated=True):
    lake.transaction(lambda connection: connection.execute(ADD_RUN, [name]), gated=gated)


def runs(lake):
    return lake.value("SELECT count(*) FROM main.runs")


# --- made and opened


def test_create_makes_all_tables_and_views(tmp_path):
    with Lake.create(tmp_path / "lake") as lake:
        made = set(lake.frame("SHOW TABLES")["name"])
    expected = {
        "schema_version",
        "write_gate",
        "runs",
        "plates",
        "wells",
        "annotations",
        "fields",
        "feature_sets",
    }
    expected |= {"plate_loads", "rejections", "recipes", "recipe_fits", "evaluations"}
    expected |= {"plate_history", "quarantine", "night_steps", "recipe_left_out"}
    expected |= {"field_quality", "quality_limits"}
    expected |= {resources.number_and_name(path)[1] for path in resources.files("sql", "main")}
    assert made == expected


def test_create_twice_is_a_no_op(tmp_path):
    with Lake.create(tmp_path / "lake") as lake:
        add_run(lake, "r1")
        before = lake.snapshot()
    with Lake.create(tmp_path / "lake") as lake:
        assert lake.snapshot() == before
        assert runs(lake) == 1
        assert lake.frame("SELECT version, name, code_version FROM main.schema_version").rows() == [
            (number, name, __version__) for number, name in SCHEMA
        ]


def half_made(path):
    """A lake whose making was cut short: the catalog is there, no table of ours is."""
    Lake.create(path / "whole").close()
    (path / "half" / DATA_FOLDER).mkdir(parents=True)
    connection = duckdb.connect()
    for name in ("ducklake", "sqlite_scanner"):
        extensions.load(connection, name)
    connection.execute(
        f"ATTACH 'ducklake:sqlite:{path}/half/{CATALOG_FILE}' AS half (DATA_PATH '{path}/half/{DATA_FOLDER}/')"
    )
    connection.close()
    return path / "half"


def test_half_made_lake_is_finished_by_create_and_refused_by_open(tmp_path):
    path = half_made(tmp_path)
    for read_only in (False, True):
        with pytest.raises(
            LakeError,
            match=rf"half has schema 0, this wellhouse .* reads {NEWEST}: .*`wellhouse init {path}`",
        ):
            Lake.open(path, read_only=read_only)
    with Lake.create(path) as lake:
        add_run(lake, "r1")
    with Lake.open(path) as lake:
        assert runs(lake) == 1


def test_create_that_was_killed_before_the_catalog_is_finished(tmp_path):
    (tmp_path / "lake" / DATA_FOLDER).mkdir(parents=True)
    with Lake.create(tmp_path / "lake") as lake:
        assert runs(lake) == 0


def test_a_file_a_foreign_folder_and_a_missing_folder_are_refused(tmp_path):
    file = tmp_path / "file"
    file.write_text("hello")
    with pytest.raises(LakeError, match=f"{file} is a file: a lake is a folder"):
        Lake.create(file)
    with pytest.raises(LakeError, match=f"{file} is not a lake \\(it holds no catalog.sqlite\\)"):
        Lake.open(file)
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    for name in ("thesis.docx", "data/mine.parquet"):
        (foreign / "data").mkdir(exist_ok=True)
        (foreign / name).write_text("mine")
        with pytest.raises(
            LakeError, match=f"{foreign} is not empty and holds no catalog.sqlite: name a new folder"
        ):
            Lake.create(foreign)
        (foreign / name).unlink()
    missing = tmp_path / "missing"
    with pytest.raises(
        LakeError,
        match=f"{missing} is not a lake \\(there is no such folder\\): .*`wellhouse init {missing}`",
    ):
        Lake.open(missing)
    assert not missing.exists()
    below = file / "lake"
    with pytest.raises(LakeError, match=f"cannot make the lake at {below}: Not a directory"):
        Lake.create(below)


def test_a_catalog_that_is_no_lake_is_refused(tmp_path):
    path = tmp_path / "lake"
    path.mkdir()
    (path / CATALOG_FILE).write_text("this is no database" * 100)
    for make in (Lake.create, Lake.open):
        with pytest.raises(
            LakeError, match=f"{path / CATALOG_FILE} cannot be opened as a lake: .*not a database"
        ):
            make(path)


def test_a_folder_takes_no_place_for_data_and_s3_alone_is_no_address(tmp_path):
    with pytest.raises(
        LakeError, match=f"{tmp_path / 'lake'} is a folder and keeps its data in itself: --data is"
    ):
        Lake.create(tmp_path / "lake", data="s3://bucket/x")
    assert not (tmp_path / "lake").exists()
    with pytest.raises(LakeError, match="a lake's address is a folder or postgres:…, not s3://…"):
        Lake.create("s3://bucket/lake")


def test_a_ducklake_of_somebody_else_is_refused(tmp_path):
    path = half_made(tmp_path)
    with duckdb.connect() as connection:
        for name in ("ducklake", "sqlite_scanner"):
            extensions.load(connection, name)
        connection.execute(f"ATTACH 'ducklake:sqlite:{path / CATALOG_FILE}' AS theirs")
        connection.execute("CREATE TABLE theirs.orders (i INTEGER)")
    with pytest.raises(
        LakeError, match=r"half is a DuckLake that Wellhouse did not make \(it holds orders\)"
    ):
        Lake.create(path)


def test_newer_schema_is_refused(tmp_path):
    path = tmp_path / "lake"
    with Lake.create(path) as lake:
        lake.transaction(
            lambda c: c.execute(
                "INSERT INTO main.schema_version VALUES (999, 'later', '9.9.9', now()::TIMESTAMP)"
            )
        )
    for make in (Lake.create, Lake.open, lambda where: Lake.open(where, read_only=True)):
        with pytest.raises(
            LakeError,
            match=re.escape(f"written by wellhouse 9.9.9 (schema 999); this is 0.1.0 (schema {NEWEST})"),
        ):
            make(path)


def test_older_lake_is_brought_up_to_date_but_not_read_only(tmp_path):
    """A later version of the code: one schema file more, and a view that reads its table and sorts before it."""
    lake = small_lake(tmp_path / "lake")
    lake.close()
    later = tmp_path / "later"
    for folder in ("warehouse", "schema", "sql"):
        shutil.copytree(REPOSITORY / folder, later / folder, ignore=shutil.ignore_patterns("__pycache__"))
    (later / "schema" / "90_notes.sql").write_text("CREATE TABLE main.notes (note VARCHAR NOT NULL);")
    (later / "sql" / "main" / "05_note_count.sql").write_text(
        "CREATE OR REPLACE VIEW main.note_count AS SELECT count(*) AS n FROM main.notes;"
    )
    script = (
        "import sys; from warehouse.lake import Lake; from warehouse.errors import LakeError\n"
        "try: Lake.open(sys.argv[1], read_only=True); print('opened')\n"
        "except LakeError as error: print(error)\n"
        "lake = Lake.open(sys.argv[1]); print(lake.value('SELECT n FROM main.note_count'))\n"
        "print(lake.frame('SELECT version, name FROM main.schema_version ORDER BY 1').rows())\n"
        "new = Lake.create(sys.argv[1] + '.new'); print(new.value('SELECT n FROM main.note_count'))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path / "lake")],
        cwd=later,
        env={**os.environ, "PYTHONPATH": str(later)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stderr == ""
    refused, *rest = done.stdout.splitlines()
    assert re.search(
        rf"lake has schema {NEWEST}, this wellhouse 0\.1\.0 reads 90: bring it up to date", refused
    )
    assert rest == ["0", str([*SCHEMA, (90, "notes")]), "0"]
    with pytest.raises(LakeError, match=rf"\(schema 90\); this is 0.1.0 \(schema {NEWEST}\)"):
        Lake.open(tmp_path / "lake")


def test_moved_lake_opens_reads_and_writes(tmp_path):
    small_lake(tmp_path / "lake").close()
    query = "SELECT treatment, embedding FROM tiny.treatments ORDER BY treatment"
    with Lake.open(tmp_path / "lake") as lake:
        before = lake.frame(query)
    (tmp_path / "else where").mkdir()
    (tmp_path / "lake").rename(tmp_path / "else where" / "o'lake")
    for read_only in (True, False):
        with Lake.open(tmp_path / "else where" / "o'lake", read_only=read_only) as lake:
            assert lake.frame(query).equals(before)
    with Lake.open(tmp_path / "else where" / "o'lake") as lake:
        commit(lake, plate(("s1", "b1", "p9"), WELLS))
        assert lake.value("SELECT count(*) FROM tiny.wells") == 14 + 96
    assert not (tmp_path / "lake").exists()


# --- transactions


def test_rollback_leaves_nothing(tmp_path):
    with Lake.create(tmp_path / "lake") as lake:
        before = lake.snapshot()

        def work(connection):
            connection.execute(ADD_RUN, ["r1"])
            connection.execute("CREATE SCHEMA half")
            message = "the extractor fell over"
            raise RuntimeError(message)

        with pytest.raises(RuntimeError, match="fell over"):
            lake.transaction(work)
        assert lake.snapshot() == before
        assert runs(lake) == 0
        assert lake.value("SELECT writes FROM main.write_gate") == 0
        add_run(lake, "r2")  # the connection is usable again
        assert runs(lake) == 1


def test_an_error_of_the_work_is_not_retried(tmp_path):
    with Lake.create(tmp_path / "lake") as lake:
        tries = []

        def work(connection):
            tries.append(1)
            connection.execute("SELECT nothing FROM main.runs")

        with pytest.raises(duckdb.BinderException, match="nothing"):
            lake.transaction(work)
        assert len(tries) == 1


def test_read_only_lake_refuses_writes(tmp_path):
    Lake.create(tmp_path / "lake").close()
    with Lake.open(tmp_path / "lake", read_only=True) as lake:
        with pytest.raises(LakeError, match=f"{tmp_path / 'lake'} is open read-only: open it for writing"):
            add_run(lake, "r1")
        with pytest.raises(duckdb.InvalidInputException, match="read-only"):
            lake.connection.execute("DELETE FROM main.runs")


def test_of_two_connections_that_check_and_insert_one_inserts(tmp_path):
    """The first is run again as a whole after the second came in between, and then sees what that wrote."""
    with Lake.create(tmp_path / "lake") as one, Lake.open(tmp_path / "lake") as two:
        seen = []

        def insert_once(connection):
            there = connection.execute("SELECT count(*) FROM main.runs WHERE run = 'r1'").fetchone()[0]
            if not there:
                connection.execute(ADD_RUN, ["r1"])
            return there

        def work(connection):
            seen.append(insert_once(connection))
            if len(seen) == 1:
                two.transaction(insert_once)
            return seen[-1]

        assert one.transaction(work) == 1
        assert seen == [0, 1]
        assert runs(one) == 1
        assert one.value("SELECT writes FROM main.write_gate") == 2


def test_reader_stops_no_writer_and_keeps_its_snapshot(tmp_path):
    with Lake.create(tmp_path / "lake") as writer, Lake.open(tmp_path / "lake", read_only=True) as reader:
        add_run(writer, "r1")
        with reader.reading():
            assert runs(reader) == 1
            started = time.monotonic()
            for number in range(5):
                add_run(writer, f"later {number}")
            assert time.monotonic() - started < 5  # well under SQLite's busy time-out of 10 s
            assert runs(reader) == 1
            assert reader.snapshot() == writer.snapshot() - 5
        assert runs(reader) == 6


def test_reading_ends_after_an_error(tmp_path):
    with Lake.create(tmp_path / "lake") as lake:
        with pytest.raises(duckdb.CatalogException, match="nowhere"), lake.reading():
            lake.frame("SELECT * FROM nowhere")
        add_run(lake, "r1")
        assert runs(lake) == 1


# --- several processes


def write_many(path, name, times, barrier, errors):
    try:
        with Lake.open(path) as lake:
            barrier.wait(60)
            for number in range(times):
                add_run(lake, f"{name} {number}")
    except BaseException as error:
        errors.put(repr(error))
        raise


def together(target, arguments):
    """Run two processes; return what they put in their queue of errors."""
    errors = SPAWN.Queue()
    processes = [SPAWN.Process(target=target, args=(*each, errors)) for each in arguments]
    for process in processes:
        process.start()
    for process in processes:
        process.join(120)
    found = []
    while not errors.empty():
        found.append(errors.get())
    assert [process.exitcode for process in processes] == [0, 0], found
    return found


def test_two_processes_lose_no_write(tmp_path):
    with Lake.create(tmp_path / "lake") as lake:
        barrier = SPAWN.Barrier(2)
        assert together(write_many, [(tmp_path / "lake", name, 30, barrier) for name in ("a", "b")]) == []
        names = set(lake.frame("SELECT run FROM main.runs")["run"])
        assert names == {f"{name} {number}" for name in ("a", "b") for number in range(30)}
        assert runs(lake) == 60
        assert lake.value("SELECT writes FROM main.write_gate") == 60


def make_lake(path, barrier, errors):
    try:
        barrier.wait(60)
        Lake.create(path).close()
    except BaseException as error:
        errors.put(repr(error))
        raise


def test_two_processes_make_one_lake(tmp_path):
    barrier = SPAWN.Barrier(2)
    assert together(make_lake, [(tmp_path / "lake", barrier)] * 2) == []
    with Lake.open(tmp_path / "lake") as lake:
        assert lake.frame("SELECT version FROM main.schema_version")["version"].to_list() == [
            number for number, _ in SCHEMA
        ]
        assert lake.frame("SELECT writes FROM main.write_gate")["writes"].to_list() == [0]


def commit_plates(path, content, plates, barrier, errors):
    try:
        with Lake.open(path) as lake:
            for number in range(plates):
                key = ("s", "b", f"p{number}")
                data = plate(key, WELLS, content, layout(key, [(well, "c", 1.0, "none") for well in WELLS]))
                barrier.wait(60)
                commit(lake, data)
    except BaseException as error:
        errors.put(repr(error))
        barrier.abort()
        raise


@pytest.mark.parametrize("contents", [("same", "same"), ("one", "other")])
def test_the_same_plate_at_the_same_moment_is_in_once(tmp_path, contents):
    plates = 4
    with Lake.create(tmp_path / "lake") as lake:
        barrier = SPAWN.Barrier(2)
        together(commit_plates, [(tmp_path / "lake", content, plates, barrier) for content in contents])
        assert faults(lake) == {}
        expected = [(f"p{number}",) for number in range(plates)]
        assert lake.frame("SELECT plate FROM main.plates ORDER BY plate").rows() == expected
        assert lake.frame("SELECT plate FROM main.plate_loads ORDER BY plate").rows() == expected
        assert lake.value("SELECT count(*) FROM main.wells") == 96 * plates
        assert lake.value("SELECT count(*) FROM tiny.wells") == 96 * plates
        assert lake.value("SELECT count(DISTINCT (plate, well)) FROM tiny.wells") == 96 * plates


def commit_for_ever(path, first, ready):
    with Lake.open(path) as lake:
        number = first
        while True:
            key = ("s", "b", f"p{number % 7}")
            plan = layout(key, [(well, f"c{number}", 1.0, "none") for well in WELLS])
            commit(lake, plate(key, WELLS, f"content {number}", plan))
            ready.set()
            number += 1


@pytest.mark.slow
def test_kill_in_mid_commit_leaves_whole_plates(tmp_path):
    """Five times, ten in the long form: a process that commits and replaces plates is killed at a random moment."""
    path, rng, loaded = tmp_path / "lake", random.Random(20_24), 0
    Lake.create(path).close()
    for turn in range(10 if os.environ.get("WELLHOUSE_LONG") else 5):
        ready = SPAWN.Event()
        child = SPAWN.Process(target=commit_for_ever, args=(path, turn * 1000, ready))
        child.start()
        assert ready.wait(60)
        time.sleep(rng.uniform(0.0, 0.4))
        os.kill(child.pid, signal.SIGKILL)
        child.join(30)
        assert child.exitcode == -signal.SIGKILL
        with Lake.open(path) as lake:
            assert faults(lake) == {}
            per_plate = lake.frame(
                "SELECT loads.plate, loads.wells_in, loads.content_hash, "
                "(SELECT count(*) FROM tiny.wells AS w WHERE w.plate = loads.plate) AS profiles, "
                "(SELECT count(*) FROM main.wells AS w WHERE w.plate = loads.plate) AS layout, "
                "(SELECT list(DISTINCT compound) FROM main.wells AS w WHERE w.plate = loads.plate) AS compounds "
                "FROM main.plate_loads AS loads ORDER BY ALL"
            )
            for name, wells, content, profiles, planned, compounds in per_plate.rows():
                assert (name, wells, profiles, planned) == (name, 96, 96, 96)
                assert compounds == [content.replace("content ", "c")]  # layout and profiles of one commit
            assert lake.value("SELECT count(*) FROM tiny.wells") == 96 * len(per_plate)
            assert len(per_plate) >= max(1, loaded)
            loaded = len(per_plate)
            assert commit(lake, plate(("s", "b", "p0"), WELLS, f"after {turn}")) == "replaced"
            assert commit(lake, plate(("s", "b", "p0"), WELLS, f"content {turn}", layout(
                ("s", "b", "p0"), [(well, f"c{turn}", 1.0, "none") for well in WELLS]
            ))) == "replaced"  # fmt: skip


# --- what a connection remembers


@pytest.mark.parametrize(("content", "outcome"), [("h1", "unchanged"), ("h2", "replaced")])
def test_remembered_sees_what_another_connection_wrote(tmp_path, content, outcome):
    with Lake.create(tmp_path / "lake") as mine, Lake.open(tmp_path / "lake") as other:
        commit(mine, plate(("s", "b", "p1"), WELLS))  # what the lake holds is remembered now
        assert commit(other, plate(KEY, WELLS, "h1")) == "added"
        assert commit(mine, plate(KEY, WELLS, content)) == outcome
        assert mine.frame("SELECT content_hash FROM main.plate_loads WHERE plate = 'p'").rows() == [
            (content,)
        ]
        assert mine.value("SELECT count(*) FROM tiny.wells WHERE plate = 'p'") == 96


def commit_one(path, content):
    with Lake.open(path) as lake:
        commit(lake, plate(KEY, WELLS, content))


def test_remembered_sees_what_another_process_wrote(tmp_path):
    with Lake.create(tmp_path / "lake") as lake:
        commit(lake, plate(("s", "b", "p1"), WELLS))
        for content, again, outcome in (("h1", "h1", "unchanged"), ("h2", "h3", "replaced")):
            child = SPAWN.Process(target=commit_one, args=(tmp_path / "lake", content))
            child.start()
            child.join(60)
            assert child.exitcode == 0
            assert commit(lake, plate(KEY, WELLS, again)) == outcome
            assert lake.value("SELECT count(*) FROM tiny.wells WHERE plate = 'p'") == 96


def test_remembered_is_forgotten_after_a_failed_transaction(tmp_path):
    with Lake.create(tmp_path / "lake") as lake:
        broken = plate(KEY, WELLS, "h1")
        broken = type(broken)(*[getattr(broken, name) for name in broken.__dataclass_fields__])
        object.__setattr__(broken, "wells", broken.wells.with_columns(unheard_of=1))
        with pytest.raises(duckdb.Error, match="unheard_of"):
            commit(lake, broken)
        assert state(lake)["feature_sets"] == []
        assert commit(lake, plate(KEY, WELLS, "h1")) == "added"


def test_wal_mode_is_on(tmp_path):
    Lake.create(tmp_path / "lake").close()
    with sqlite3.connect(tmp_path / "lake" / CATALOG_FILE) as catalog:
        assert catalog.execute("PRAGMA journal_mode").fetchone() == ("wal",)
