"""Upkeep of a team lake: Postgres and S3, by the same commands."""

import os
from datetime import timedelta

import pytest
from builders import commit, plate, random_plate, wide
from test_upkeep_files import age, answers, beside_a_writer, killed_while_compacting, of_plates

from warehouse.errors import LakeError
from warehouse.lake import Lake
from warehouse.status import faults
from warehouse.upkeep import compact as compaction
from warehouse.upkeep import files
from warehouse.upkeep.compact import CompactSettings, compact
from warehouse.upkeep.history import history
from warehouse.upkeep.moments import find
from warehouse.upkeep.rollback import rollback
from warehouse.upkeep.verify import verify


@pytest.fixture
def bucket(s3):
    return s3.new_bucket()


@pytest.fixture
def lake(postgres, s3, bucket, monkeypatch):
    monkeypatch.setattr(compaction, "MANY_FILES", 2)
    with Lake.create(f"postgres:{postgres.new_database()}", data=f"s3://{bucket}/lake") as made:
        for number in range(4):
            commit(made, random_plate(("s", "b", f"p{number}"), number, controls=16, treatments=44), wide(4))
        commit(made, random_plate(("s", "b", "p1"), 99, controls=16, treatments=44), wide(4))
        yield made


def test_verify_names_what_is_damaged(lake, s3, bucket):
    assert (verify(lake).faults, verify(lake, quick=True).faults) == ([], [])
    named = files.in_catalog(lake)
    assert {file.path for file in named} == set(files.stored(lake))
    wells = [file for file in named if (file.schema, file.table) == ("wide", "wells")]
    local = [s3.folder / file.path.removeprefix("s3://") for file in wells]
    assert all(path.is_file() for path in local)
    local[0].unlink()
    local[1].write_bytes(local[1].read_bytes()[:-1])
    local[2].write_bytes(os.urandom(wells[2].size))
    stray = local[0].with_name("stray.parquet")
    stray.write_bytes(b"123")
    found = verify(lake)
    kinds = {fault.where: fault.kind for fault in found.faults if fault.where != "sql/checks"}
    # This server may list a file for a moment that was taken from under it.
    assert kinds.pop(wells[0].path) in ("missing", "unreadable")
    assert kinds == {wells[1].path: "size", wells[2].path: "unreadable"}
    assert found.orphans == [(f"s3://{stray.relative_to(s3.folder)}", 3)]


def test_compact_changes_no_answer_and_deletes_what_nothing_reads(lake):
    before = answers(lake, of_plates(lake))
    report = compact(lake)
    assert (report.merged_files, report.files_after) == (8, 2)
    assert answers(lake, before) == before
    for name in ("p7", "p8"):
        commit(lake, random_plate(("s", "b", name), 7, controls=16, treatments=44), wide(4))
    age(lake, lake.snapshot() - 1)
    last = answers(lake, [lake.snapshot() - 1, lake.snapshot()])
    assert compact(lake).expired > 4
    waiting = files.scheduled(lake)
    assert len(waiting) >= 8
    assert waiting <= set(files.stored(lake))
    age(lake, 0, "scheduled")
    assert compact(lake).deleted_files == len(waiting)
    assert not waiting & set(files.stored(lake))
    assert answers(lake, last) == last
    assert verify(lake).faults == []
    with pytest.raises(LakeError):
        find(lake, 3)


def test_orphans_go_when_they_are_old(lake, s3, bucket):
    stray = next((s3.folder / bucket).rglob("wells")) / "ducklake-stray.parquet"
    stray.write_bytes(b"123")
    assert compact(lake).deleted_files == 0
    os.utime(stray, (1e9, 1e9))
    assert compact(lake, CompactSettings(grace=timedelta(days=2))).deleted_files == 1
    assert not stray.exists()


def test_a_reader_that_holds_an_old_snapshot_goes_on(lake):
    with Lake.open(lake.address, read_only=True) as reader, reader.reading():
        before = reader.frame("FROM wide.wells ORDER BY ALL").rows()
        commit(lake, random_plate(("s", "b", "p2"), 55, controls=16, treatments=44), wide(4))
        age(lake, lake.snapshot() - 1)
        assert compact(lake).merged_files > 0
        assert reader.frame("FROM wide.wells ORDER BY ALL").rows() == before
        assert reader.value("SELECT count(DISTINCT plate) FROM main.wells") == 4


def test_rollback_and_history(lake):
    then = lake.snapshot()
    before = answers(lake, [then])[then]
    commit(lake, random_plate(("s", "b", "p1"), 5, controls=16, treatments=44), wide(4))
    commit(lake, plate(("s", "b", "p9"), {"A01": (1, 2, 3)}))
    forward = lake.snapshot()
    after = answers(lake, [forward])[forward]
    assert [one.outcome for one in rollback(lake, then).plates] == ["taken out", "restored"]
    assert faults(lake) == {}
    for number, expected in ((lake.snapshot(), before), (forward, after)):
        found = answers(lake, [number])[number]
        assert {name: rows for name, rows in found.items() if name != "main.plate_history"} == {
            name: rows for name, rows in expected.items() if name != "main.plate_history"
        }
    assert "tiny: rolled back p9; wide: rolled back p1" in history(lake)["changed"].to_list()


@pytest.mark.slow
def test_compacting_beside_a_writer_and_a_reader(lake):
    assert beside_a_writer(lake.address, int(os.environ.get("WELLHOUSE_TEST_PLATES", "12"))) > 3


@pytest.mark.slow
def test_a_compact_that_is_killed_loses_nothing(lake):
    kills = int(os.environ.get("WELLHOUSE_TEST_KILLS", "2"))
    assert killed_while_compacting(lake.address, kills) == kills
