"""Trouble of the world: Postgres stopped, S3 refusing, a full disk, a folder that cannot be written, a file gone.

Each time: one clear line, nothing half-written, and the next run completes.
"""

import os
import shutil
import subprocess
from contextlib import contextmanager

import duckdb
import pytest
from builders import commit, new_lake, random_plate, wide
from writers import big_plate

from benchmarks.servers import KEY_ID, SECRET
from warehouse import trouble
from warehouse.errors import LakeUnavailableError
from warehouse.lake import Lake
from warehouse.status import faults


@pytest.fixture
def team(postgres, s3):
    """An open team lake that holds the plate p0 of `wide`."""
    address, bucket = f"postgres:{postgres.new_database()}", s3.new_bucket()
    with Lake.create(address, data=f"s3://{bucket}/lake") as lake:
        commit(lake, big_plate("p0"), wide(64))
        yield lake


def is_whole(lake, plates):
    """Check that the lake holds these plates, whole, and no part of another."""
    assert faults(lake) == {}
    assert lake.frame("SELECT plate FROM main.plate_loads ORDER BY 1")["plate"].to_list() == plates
    assert lake.frame("SELECT plate FROM main.plates ORDER BY 1")["plate"].to_list() == plates
    for table in ("main.wells", "wide.wells"):
        row = lake.frame(f"SELECT count(*), count(DISTINCT (plate, well)) FROM {table}").row(0)
        assert row == (384 * len(plates), 384 * len(plates))


def fails(lake, work, *said):
    """Run work that must fail for trouble; return the message, which is one line and names the lake."""
    with pytest.raises(LakeUnavailableError) as caught:
        work()
    message = str(caught.value)
    assert message.startswith(lake.address + ": ")
    assert "\n" not in message
    assert SECRET not in message
    assert KEY_ID not in message
    for text in said:
        assert text in message
    return message


def test_postgres_is_stopped_between_plates_and_comes_back(team, postgres):
    with postgres.stopped():
        fails(
            team, lambda: commit(team, big_plate("p1"), wide(64)),
            "Postgres, which holds the lake's catalog, does not answer (", "nothing was written: start it",
        )  # fmt: skip
        fails(team, lambda: team.value("SELECT count(*) FROM main.plates"), "does not answer")
        fails(team, lambda: Lake.open(team.address), "does not answer (", "then run this again")
    assert commit(team, big_plate("p1"), wide(64)) == "added"
    is_whole(team, ["p0", "p1"])


@pytest.mark.parametrize("comes_back", [False, True])
def test_postgres_is_stopped_in_the_middle_of_a_plate(team, postgres, comes_back):
    def work(connection):
        connection.execute("INSERT INTO main.quality_limits SELECT * FROM main.quality_limits WHERE false")
        connection.execute("DELETE FROM wide.wells")
        postgres.stop()
        if comes_back:
            postgres.start()
        connection.execute("DELETE FROM main.wells")
        connection.execute("SELECT count(*) FROM main.plates").fetchall()

    try:
        message = fails(team, lambda: team.transaction(work), "does not answer")
    finally:
        postgres.start()
    assert "nothing was written" in message or "it is in whole or not at all" in message
    is_whole(team, ["p0"])
    assert commit(team, big_plate("p1"), wide(64)) == "added"
    with Lake.open(team.address, read_only=True) as again:
        is_whole(again, ["p0", "p1"])


def test_s3_is_stopped_or_refuses_writes(team, s3):
    for state in (s3.stopped, s3.refusing_writes):
        with state():
            fails(
                team, lambda: commit(team, big_plate("p1"), wide(64)),
                "S3 refuses, or does not answer (", "nothing was written: check that it runs, AWS_ENDPOINT_URL",
            )  # fmt: skip
        is_whole(team, ["p0"])
    # A new connection: nothing of the file is in a cache.
    with s3.stopped(), Lake.open(team.address, read_only=True) as reader:
        fails(reader, lambda: reader.frame("SELECT * FROM wide.wells"), "S3 refuses, or does not answer (")
    assert commit(team, big_plate("p1"), wide(64)) == "added"
    is_whole(team, ["p0", "p1"])


def test_a_file_is_gone_from_s3(team, s3):
    place = str(team.value("SELECT data_path FROM ducklake_settings('lake')")).removeprefix("s3://")
    for path in list((s3.folder / place).rglob("*.parquet")):
        path.unlink()
    with Lake.open(team.address, read_only=True) as reader:
        fails(
            reader,
            lambda: reader.frame("SELECT * FROM wide.wells"),
            "a data file of the lake is gone (",
            "verify",
        )


def test_a_file_is_gone_from_the_folder(tmp_path):
    with new_lake(tmp_path / "lake") as lake:
        commit(lake, big_plate("p0"), wide(64))
        path = next((tmp_path / "lake" / "data" / "wide").rglob("*.parquet"))
        path.unlink()
        fails(
            lake,
            lambda: lake.frame("SELECT * FROM wide.wells"),
            "a data file of the lake is gone (",
            path.name,
        )


@contextmanager
def mounted(folder, *options):
    """Mount something over a folder inside the block; skips where only root may and we are not."""
    if os.geteuid() != 0 or shutil.which("mount") is None:
        pytest.skip("mounting a small disk needs root")
    done = subprocess.run(["mount", *options, str(folder)], capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"mount is not allowed here: {done.stderr.strip()}")
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


@pytest.mark.parametrize("free_kib", [0, 16, 48, 100])
def test_a_full_disk(tmp_path, free_kib):
    """Full at once, in the catalog, at the first or at the last file: each time nothing of the plate is in."""
    disk = tmp_path / "disk"
    disk.mkdir()
    with mounted(disk, "-t", "tmpfs", "-o", "size=8m", "tmpfs"), new_lake(disk / "lake") as lake:
        commit(lake, big_plate("p0"), wide(64))
        filler = disk / "filler"
        filler.write_bytes(b"x" * (shutil.disk_usage(disk).free - free_kib * 1024))
        fails(
            lake,
            lambda: commit(lake, big_plate("p1"), wide(64)),
            "the disk is full, or fails (",
            "free some space",
        )
        filler.unlink()
        is_whole(lake, ["p0"])
        assert commit(lake, big_plate("p1"), wide(64)) == "added"
        is_whole(lake, ["p0", "p1"])


def test_a_folder_of_data_that_cannot_be_written(tmp_path):
    with new_lake(tmp_path / "lake") as lake:
        commit(lake, big_plate("p0"), wide(64))
        data = tmp_path / "lake" / "data"
        with mounted(data, "--bind", str(data)):
            subprocess.run(["mount", "-o", "remount,ro,bind", str(data)], check=True)
            fails(
                lake, lambda: commit(lake, big_plate("p1"), wide(64)),
                "files of the lake cannot be read or written here (", "Read-only file system", "nothing was written",
            )  # fmt: skip
            is_whole(lake, ["p0"])
        assert commit(lake, big_plate("p1"), wide(64)) == "added"
        is_whole(lake, ["p0", "p1"])


def test_a_lake_that_cannot_be_written_at_all(tmp_path):
    folder = tmp_path / "lake"
    with new_lake(folder) as lake:
        commit(lake, big_plate("p0"), wide(64))
        address = lake.address
    with mounted(folder, "--bind", str(folder)):
        subprocess.run(["mount", "-o", "remount,ro,bind", str(folder)], check=True)
        for read_only in (False, True):
            with pytest.raises(
                LakeUnavailableError, match=f"{address}: files of the lake cannot be read or written"
            ):
                Lake.open(address, read_only=read_only)
    with Lake.open(address) as lake:
        is_whole(lake, ["p0"])


# --- what is trouble, and what is not


@pytest.mark.parametrize(
    "error",
    [
        duckdb.BinderException('column "No space left on device" not found'),
        duckdb.CatalogException("Table with name Permission denied does not exist"),
        duckdb.ConversionException("Could not convert string 'HTTP Error' to INT32"),
        duckdb.IOException('No files found that match the pattern "mine.csv"'),
        duckdb.TransactionException("Failed to commit: write-write conflict"),
        FileNotFoundError(2, "No such file or directory", "image.tif"),
        PermissionError(13, "Permission denied", "image.tif"),
        ValueError("No space left on device"),
    ],
)
def test_other_errors_are_no_trouble(error):
    assert trouble.explain(error) is None


def test_a_full_disk_under_python_is_trouble(tmp_path):
    with new_lake(tmp_path / "lake") as lake:

        def work(_):
            raise OSError(28, "No space left on device", "/tmp/spool")

        fails(lake, lambda: lake.transaction(work), "the disk is full", "/tmp/spool", "nothing was written")
        assert commit(lake, random_plate(("s", "b", "p"), 1), wide(4)) == "added"
