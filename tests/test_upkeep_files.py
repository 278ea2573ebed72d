"""Files of a lake: damage is named, compaction changes no answer, and what a snapshot reads is never deleted."""

import json
import multiprocessing
import os
import shutil
import signal
import time
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from builders import commit, new_lake, random_plate, small_lake, wide
from test_upkeep_checks import CELLS, imaged_plate

from warehouse.errors import LakeError
from warehouse.lake import Lake, now
from warehouse.status import faults
from warehouse.upkeep import compact as compaction
from warehouse.upkeep import files
from warehouse.upkeep.compact import compact
from warehouse.upkeep.verify import verify

SPAWN = multiprocessing.get_context("spawn")


@pytest.fixture(autouse=True)
def few_files_are_many(monkeypatch):
    monkeypatch.setattr(compaction, "MANY_FILES", 2)


def filled(path, plates=6):
    """A lake whose wells lie in files: 60 wells a plate, of which one plate was replaced."""
    lake = new_lake(path)
    for number in range(plates):
        commit(lake, random_plate(("s", "b", f"p{number}"), number, controls=16, treatments=44), wide(4))
    commit(lake, random_plate(("s", "b", "p1"), 99, controls=16, treatments=44), wide(4))
    commit(lake, imaged_plate(("s", "b", "p0")), CELLS)
    return lake


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    path = tmp_path_factory.mktemp("upkeep") / "lake"
    filled(path).close()
    return path


@pytest.fixture
def lake(made, tmp_path):
    shutil.copytree(made, tmp_path / "lake")
    with Lake.open(tmp_path / "lake") as opened:
        yield opened


def answers(lake, snapshots):
    """Every row of the tables of plates, at each of these snapshots."""
    tables = ("main.plates", "main.wells", "main.plate_loads", "main.plate_history", "wide.wells")
    query = "SELECT * FROM {} AT (VERSION => {}) ORDER BY ALL"
    return {n: {name: lake.frame(query.format(name, n)).rows() for name in tables} for n in snapshots}


def numbers(lake):
    rows = lake.connection.execute("SELECT snapshot_id FROM ducklake_snapshots('lake')").fetchall()
    return sorted(number for (number,) in rows)


def of_plates(lake):
    """Snapshots since the feature set is there."""
    return [number for number in numbers(lake) if number > 1]


def age(lake, until, what="snapshot"):
    """Make snapshots up to a number, or all files that wait for deletion, as old as the year."""
    old = "'2020-01-01 00:00:00+00'"
    query = {
        "snapshot": f"UPDATE {files.CATALOG}.ducklake_snapshot SET snapshot_time = {old} WHERE snapshot_id <= {until}",
        "scheduled": f"UPDATE {files.CATALOG}.ducklake_files_scheduled_for_deletion SET schedule_start = {old}",
    }
    lake.connection.execute(query[what])


# ------------------------------------------------------------------------------------------ verify


def a_file(lake, table="wells", schema="wide", current=True):
    return next(
        Path(file.path)
        for file in files.in_catalog(lake)
        if (file.schema, file.table, file.kind, file.is_current) == (schema, table, "data", current)
    )


@pytest.mark.parametrize("quick", [False, True])
def test_a_whole_lake_has_no_fault(lake, quick):
    told = []
    found = verify(lake, quick=quick, progress=lambda *words: told.append(words))
    assert (found.faults, found.orphans) == ([], [])
    named = files.in_catalog(lake)
    assert found.files == len(named)
    assert found.megabytes * 1e6 == pytest.approx(sum(Path(file.path).stat().st_size for file in named))
    assert found.rows == sum(file.rows for file in named if file.kind == "data")
    assert told[-1][0] == "checks"


def test_the_catalog_and_the_disk_name_the_same_files(lake):
    assert {file.path for file in files.in_catalog(lake)} == set(files.stored(lake))


def missing(path):
    path.unlink()


def truncated(path):
    path.write_bytes(path.read_bytes()[:-7])


def grown(path):
    path.write_bytes(path.read_bytes() + b"x")


def garbage(path):
    path.write_bytes(os.urandom(path.stat().st_size))


def emptied(path):
    path.write_bytes(b"")


def scrambled(path):
    """The footer is whole, the pages are not."""
    content = bytearray(path.read_bytes())
    content[4:900] = np.random.default_rng(0).bytes(896)
    path.write_bytes(content)


DAMAGES = {
    missing: "missing", truncated: "size", grown: "size", emptied: "size",
    garbage: "unreadable", scrambled: "unreadable",
}  # fmt: skip


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("current", [True, False])
def test_a_damaged_file_is_named_and_nothing_raises(lake, damage, current):
    path = a_file(lake, current=current)
    damage(path)
    for quick in (True, False):
        found = verify(lake, quick=quick)
        kinds = {fault.kind for fault in found.faults if fault.where == str(path)}
        if not (quick and damage is scrambled):  # a footer does not tell
            assert kinds == {DAMAGES[damage]}
            assert all(fault.detail.startswith("wide.wells, data file of 60 rows") for fault in found.faults
                       if fault.where == str(path))  # fmt: skip
        others = [fault for fault in found.faults if fault.where not in (str(path), "sql/checks")]
        assert others == []
    # Other files are read all the same.
    assert found.files == len(files.in_catalog(lake))


def test_a_delete_file_that_is_gone_is_named(lake):
    compact(lake)
    commit(lake, random_plate(("s", "b", "p2"), 98, controls=16, treatments=44), wide(4))
    path = next(Path(file.path) for file in files.in_catalog(lake) if file.kind == "delete")
    path.unlink()
    found = verify(lake)
    assert (found.faults[0].kind, found.faults[0].where) == ("missing", str(path))
    assert "delete file of 60 rows" in found.faults[0].detail


def test_another_parquet_file_in_its_place_is_found_by_its_rows(lake):
    path = a_file(lake)
    size = path.stat().st_size
    lake.connection.execute(f"COPY (SELECT 1 AS x FROM range(3)) TO '{path}' (FORMAT parquet)")
    assert verify(lake).faults[0].kind == "size"
    lake.connection.execute(
        f"UPDATE {files.CATALOG}.ducklake_data_file SET file_size_bytes = {path.stat().st_size} "
        f"WHERE file_size_bytes = {size} AND path = '{path.name}'"
    )
    fault = verify(lake, quick=True).faults[0]
    assert (fault.kind, fault.where) == ("rows", str(path))
    assert fault.detail.endswith("60 rows in the catalog, 3 in the file")


@pytest.mark.parametrize(
    ("vector", "said"),
    [
        ("[1, 2, 3]::FLOAT[]", "of 3 to 4 elements, the feature set has 4"),
        ("['nan'::FLOAT, 1, 2, 3]", "1 embeddings hold NaN or an infinity"),
        ("[1, '-inf'::FLOAT, 2, 3]", "1 embeddings hold NaN or an infinity"),
    ],
)
def test_embeddings_that_are_not_right_are_found(lake, vector, said):
    rows = f"SELECT * REPLACE (CASE WHEN well = 'A01' THEN {vector} ELSE embedding END AS embedding) FROM wide.wells"
    lake.transaction(lambda c: c.execute(f"INSERT INTO wide.wells {rows} WHERE plate = 'p3'"))
    found = [fault for fault in verify(lake).faults if fault.kind == "embedding"]
    assert any(said in fault.detail for fault in found)
    assert all("wide.wells" in fault.detail + fault.where for fault in found)


def test_embeddings_that_the_catalog_holds_are_looked_at_too(tmp_path):
    with small_lake(tmp_path / "lake") as lake:
        assert files.in_catalog(lake) == []
        assert verify(lake).faults == []  # NULL elements of an imported profile are no fault
        lake.transaction(
            lambda c: c.execute("UPDATE tiny.wells SET embedding = [1, 2]::FLOAT[] WHERE well = 'A01'")
        )
        assert [(fault.kind, fault.where, fault.detail) for fault in verify(lake).faults] == [
            ("embedding", "tiny.wells", "4 embeddings that are NULL, not finite, or not of 3 elements")
        ]


def test_a_file_of_nobody_is_listed_and_left(lake):
    stray = a_file(lake).with_name("stray.parquet")
    stray.write_bytes(b"12345")
    found = verify(lake)
    assert (found.faults, found.orphans) == ([], [(str(stray), 5)])
    assert stray.exists()


def test_a_fault_of_a_check_is_among_the_faults(lake):
    lake.transaction(lambda c: c.execute("UPDATE main.plate_loads SET wells_in = 7 WHERE plate = 'p2'"))
    kinds = [fault.kind for fault in verify(lake).faults]
    assert kinds == ["plate_balance", "wells_as_loaded (wide)"]


def test_a_folder_with_brackets_in_its_name(tmp_path):
    with filled(tmp_path / "a [b] *", plates=2) as lake:
        assert verify(lake).faults == []
        a_file(lake).unlink()
        assert {fault.kind for fault in verify(lake, quick=True).faults} >= {"missing"}


# ------------------------------------------------------------------------------------------ compact


def test_compacting_changes_no_answer_at_any_snapshot(lake):
    before = answers(lake, of_plates(lake))
    report = compact(lake)
    assert report.files_after < report.files_before
    assert (report.merged_files, report.expired, report.deleted_files) == (12, 0, 0)
    assert answers(lake, before) == before
    assert verify(lake).faults == []
    again = compact(lake)
    assert (again.merged_files, again.rewritten_files) == (0, 0)
    assert again.snapshots_before == again.snapshots_after


def test_a_dry_run_changes_nothing(lake):
    before = (numbers(lake), set(files.stored(lake)), files.in_catalog(lake))
    report = compact(lake, dry_run=True)
    assert (report.merged_files, report.files_after, report.files_before) == (
        12,
        report.files_before,
        sum(file.is_current for file in before[2]),
    )
    assert (numbers(lake), set(files.stored(lake)), files.in_catalog(lake)) == before


def test_mostly_deleted_files_are_rewritten_and_old_snapshots_stay(lake):
    compact(lake)
    for number in range(5):
        commit(lake, random_plate(("s", "b", f"p{number}"), 50 + number, controls=16, treatments=44), wide(4))
    before = answers(lake, of_plates(lake))
    report = compact(lake)
    assert report.rewritten_files == 1
    assert answers(lake, before) == before
    assert faults(lake) == {}
    assert not any(file.kind == "delete" and file.is_current for file in files.in_catalog(lake))


def test_old_snapshots_expire_but_not_those_that_are_needed(lake):
    scored = lake.snapshot()
    lake.transaction(
        lambda c: c.execute(
            "INSERT INTO main.evaluations (evaluation, feature_set, recipe, level, metric, n, parameters, left_out, "
            "snapshot, run, evaluated_at) VALUES ('e', 'wide', 'none', 'well', 'map', 3, '{}', '{}', ?, 'r', ?)",
            [scored, now()],
        )
    )
    commit(lake, random_plate(("s", "b", "p3"), 77, controls=16, treatments=44), wide(4))
    commit(lake, random_plate(("s", "b", "p4"), 78, controls=16, treatments=44), wide(4))
    last = lake.snapshot() - 2
    age(lake, last)
    before = answers(lake, [scored, last, last + 1, last + 2])
    report = compact(lake)
    # The last old one stays: it is what the lake was when the time began that is kept.
    assert [n for n in numbers(lake) if n <= last] == sorted({scored, last})
    assert (report.kept_for_evaluations, report.expired) == (1, last - 1)
    assert answers(lake, before) == before
    with pytest.raises(LakeError, match="3"):
        Lake.open(lake.address, as_of=3)
    assert verify(lake).faults == []


def expired(lake):
    """Compact, and let the snapshots that read the small files expire; returns the files that then wait."""
    compact(lake)
    for name in ("p7", "p8"):
        commit(lake, random_plate(("s", "b", name), 7, controls=16, treatments=44), wide(4))
    age(lake, lake.snapshot() - 1)
    assert compact(lake).expired > 5
    return files.scheduled(lake)


def test_what_nothing_reads_is_deleted_after_its_time_only(lake):
    waiting = expired(lake)
    assert len(waiting) > 12
    assert (compact(lake).deleted_files, compact(lake).waiting_files) == (0, len(waiting))
    age(lake, 0, "scheduled")
    before = answers(lake, of_plates(lake))
    assert compact(lake, dry_run=True).deleted_files == len(waiting)
    assert all(Path(path).exists() for path in waiting)
    assert compact(lake).deleted_files == len(waiting)
    assert not any(Path(path).exists() for path in waiting)
    assert answers(lake, before) == before
    assert verify(lake).faults == []


def test_a_file_that_is_gone_already_stops_no_deletion(lake):
    waiting = expired(lake)
    age(lake, 0, "scheduled")
    Path(min(waiting)).unlink()
    assert compact(lake).waiting_files == 0


def test_files_of_nobody_go_when_they_are_old(lake):
    stray = a_file(lake).with_name("ducklake-stray.parquet")
    stray.write_bytes(b"12345")
    assert compact(lake).deleted_files == 0
    assert stray.exists()
    os.utime(stray, (1e9, 1e9))
    assert compact(lake).deleted_files == 1
    assert not stray.exists()


def test_a_catalog_that_would_delete_what_is_read_is_stopped(lake):
    compact(lake)
    path = a_file(lake)
    lake.connection.execute(
        f"INSERT INTO {files.CATALOG}.ducklake_files_scheduled_for_deletion "
        f"VALUES (1, 'wide/wells/{path.name}', 1, '2020-01-01 00:00:00+00')"
    )
    with pytest.raises(
        LakeError, match=rf"lists 1 files that snapshots read \(first: {path}\): nothing was deleted"
    ):
        compact(lake)
    assert path.exists()


def test_a_lake_that_was_moved_keeps_its_files(lake, tmp_path):
    waiting = expired(lake)
    lake.close()
    (tmp_path / "lake").rename(tmp_path / "elsewhere")
    with Lake.open(tmp_path / "elsewhere") as moved:
        for path in files.stored(moved):
            os.utime(path, (1e9, 1e9))
        age(moved, 0, "scheduled")
        assert compact(moved).deleted_files == len(waiting)
        assert verify(moved).faults == []


def test_a_read_only_lake_is_refused(lake):
    with Lake.open(lake.address, read_only=True) as reader, pytest.raises(LakeError, match="open read-only"):
        compact(reader)


def test_a_reader_that_holds_an_old_snapshot_goes_on(lake):
    with Lake.open(lake.address, read_only=True) as reader, reader.reading():
        before = reader.frame("FROM wide.wells ORDER BY ALL").rows()
        commit(lake, random_plate(("s", "b", "p2"), 55, controls=16, treatments=44), wide(4))
        age(lake, lake.snapshot() - 1)
        report = compact(lake)
        assert report.expired > 5
        assert report.merged_files > 0
        # Tables that the reader has not touched before, too.
        assert reader.frame("FROM wide.wells ORDER BY ALL").rows() == before
        assert reader.value("SELECT count(DISTINCT plate) FROM main.wells") == 6


# ------------------------------------------------------------------------------------------ several at once


def write_plates(address, first, count, ready, stop):
    """Take plates in, one after the other, and replace every other one."""
    ready.set()
    with Lake.open(address) as lake:
        for number in range(first, first + count):
            commit(lake, random_plate(("s", "b", f"w{number}"), number, controls=16, treatments=44), wide(4))
            if number % 2:
                commit(
                    lake,
                    random_plate(("s", "b", f"w{number}"), number + 500, controls=16, treatments=44),
                    wide(4),
                )
    stop.set()


def compact_again_and_again(address, stop):
    compaction.MANY_FILES = 2
    with Lake.open(address) as lake:
        while not stop.is_set():
            compact(lake)


def beside_a_writer(address, plates):
    """Compact while a writer is at work and a reader reads; return how often the reader looked."""
    ready, stop = SPAWN.Event(), SPAWN.Event()
    writer = SPAWN.Process(target=write_plates, args=(address, 0, plates, ready, stop))
    keeper = SPAWN.Process(target=compact_again_and_again, args=(address, stop))
    writer.start()
    keeper.start()
    looks = 0
    with Lake.open(address, read_only=True) as reader:
        while writer.is_alive():
            torn = reader.frame("SELECT plate, count(*) AS n FROM wide.wells GROUP BY plate HAVING n <> 60")
            assert torn.rows() == []
            looks += 1
    for process in (writer, keeper):
        process.join(60)
        assert process.exitcode == 0
    with Lake.open(address) as lake:
        plates_in = lake.value("SELECT count(DISTINCT plate) FROM wide.wells WHERE plate LIKE 'w%'")
        assert plates_in == plates
        assert verify(lake).faults == []
    return looks


@pytest.mark.slow
def test_compacting_beside_a_writer_and_a_reader(lake):
    lake.close()
    assert beside_a_writer(lake.address, int(os.environ.get("WELLHOUSE_TEST_PLATES", "20"))) > 3


def killed_while_compacting(address, kills):
    """Kill `compact` at random moments; after each, nothing is lost. Returns how many were cut short."""
    rng = np.random.default_rng(0)
    cut = 0
    for number in range(kills):
        with Lake.open(address) as lake:
            commit(
                lake,
                random_plate(("s", "b", f"p{number % 6}"), 1000 + number, controls=16, treatments=44),
                wide(4),
            )
            age(lake, lake.snapshot() - 4)
            expected = lake.frame("FROM wide.wells ORDER BY ALL").rows()
        never = SPAWN.Event()
        process = SPAWN.Process(target=compact_again_and_again, args=(address, never))
        process.start()
        with Lake.open(address, read_only=True) as watch:
            begun = time.monotonic()
            snapshot = watch.snapshot()
            while watch.snapshot() == snapshot and time.monotonic() - begun < 20:
                time.sleep(0.002)
        time.sleep(float(rng.uniform(0, 0.4)))
        with suppress(ProcessLookupError):
            os.kill(process.pid, signal.SIGKILL)
        process.join()
        cut += process.exitcode == -signal.SIGKILL
        with Lake.open(address) as lake:
            assert lake.frame("FROM wide.wells ORDER BY ALL").rows() == expected
            assert verify(lake).faults == []
    return cut


@pytest.mark.slow
def test_a_compact_that_is_killed_loses_nothing(lake):
    lake.close()
    kills = int(os.environ.get("WELLHOUSE_TEST_KILLS", "3"))
    assert killed_while_compacting(lake.address, kills) == kills
    with Lake.open(lake.address) as again:
        compact(again)
        assert json.dumps([fault.detail for fault in verify(again).faults]) == "[]"
