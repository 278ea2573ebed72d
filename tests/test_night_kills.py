"""A night that is killed at any moment loses nothing, doubles nothing, and is finished by the next one.

The short form runs with all tests; WELLHOUSE_LONG=1 (`make proofs`) does 50 kills on each kind of lake.
"""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import polars as pl
import pytest
from conftest import REPOSITORY
from test_nights import NIGHT, write_layout, write_plate

from warehouse import feature_sets
from warehouse.lake import Lake
from warehouse.status import faults
from warehouse.upkeep.verify import verify

LONG = bool(os.environ.get("WELLHOUSE_LONG"))
KILLS = 50 if LONG else 2
PLATES = 12 if LONG else 4
#: Tables of a finished night, and what in them is of the moment and not of the plates.
TABLES = {
    "main.plates": "run, added_at",
    "main.wells": "",
    "main.annotations": "",
    "main.plate_loads": "run, loaded_at",
    "main.rejections": "",
    "main.feature_sets": "run, created_at",
    "main.recipes": "run, fitted_at",
    "main.recipe_fits": "",
    "main.recipe_left_out": "",
    "main.evaluations": "evaluation, snapshot, run, evaluated_at, fingerprint",
    "main.quarantine": "tries, run, first_at, last_at",
    "cellprofiler.wells": "",
    "cellprofiler.wells__standardize": "",
    "cellprofiler.treatments__standardize": "",
}


def content(lake: Lake) -> dict[str, list[str]]:
    """Every row of every table, in an order of their own."""
    found = {}
    for table, passing in TABLES.items():
        columns = f"* EXCLUDE ({passing})" if passing else "*"
        found[table] = sorted(map(repr, lake.frame(f"SELECT {columns} FROM {table}").rows()))
    return found


def incoming(folder: Path) -> None:
    """Plates that differ, one of which fails, and a configuration with every step."""
    names = [f"p{i:02d}" for i in range(PLATES)]
    for seed, name in enumerate(names):
        write_plate(folder / "incoming", name, seed)
    (folder / "incoming" / "broken.parquet").write_bytes(b"not a table")
    write_layout(folder, names)
    labels = [f"c{i},moa,{'even' if i % 2 == 0 else 'odd'}" for i in range(4, 12)]
    (folder / "labels.csv").write_text("\n".join(["compound,kind,label", *labels]) + "\n", encoding="utf-8")
    settings = f'reports = "reports"\ncompact = true\n{NIGHT}'
    (folder / "night.toml").write_text(settings, encoding="utf-8")


def start(folder: Path, address: str) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "cli", "nightly", str(folder / "night.toml"), "--lake", address]
    with (folder / "night.log").open("ab") as log:
        return subprocess.Popen(command, cwd=REPOSITORY, stdout=log, stderr=log, start_new_session=True)


def night(folder: Path, address: str) -> float:
    """Do an undisturbed night and return its seconds; 1 is its exit code, as a plate is broken."""
    began = time.monotonic()
    process = start(folder, address)
    code = process.wait(300)
    assert code in (0, 1), (folder / "night.log").read_text(encoding="utf-8")[-3000:]
    return time.monotonic() - began


def look(address: str) -> None:
    """Nothing is half there: files, counts, checks; and a plate is in whole or not at all."""
    with Lake.open(address, read_only=True) as lake:
        found = verify(lake)
        assert found.faults == []
        assert faults(lake) == {}
        if "cellprofiler" in feature_sets.names(lake):
            wells = lake.frame("SELECT plate, count(*) AS n FROM cellprofiler.wells GROUP BY plate")
            assert wells.filter(pl.col("n") != 12).is_empty()
            loads = lake.value("SELECT count(*) FROM main.plate_loads")
            assert len(wells) == loads


def survive(folder: Path, make, kills: int, seed: int) -> tuple[int, int]:
    """Kill nights until there were enough; return kills and nights that were finished in spite of them."""
    rng = random.Random(seed)
    incoming(folder)
    untouched = make("untouched")
    seconds = night(folder, untouched)
    with Lake.open(untouched, read_only=True) as lake:
        expected = content(lake)
    look(untouched)
    done = finished = 0
    address = make(f"killed {finished}")
    while done < kills:
        process = start(folder, address)
        try:
            # Most moments lie after the start of Python; later ones let a night end that others have begun.
            process.wait(rng.uniform(0.25, 1.0) * seconds)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            done += 1
            look(address)
            if done < kills:
                continue
            night(folder, address)
        finished += 1
        with Lake.open(address, read_only=True) as lake:
            assert content(lake) == expected
        look(address)
        address = make(f"killed {finished}")
    return done, finished


@pytest.mark.slow
def test_kills_on_a_local_lake(tmp_path):
    def make(name: str) -> str:
        Lake.create(tmp_path / name).close()
        return str(tmp_path / name)

    done, finished = survive(tmp_path, make, KILLS, seed=1)
    assert done == KILLS
    assert finished >= 1
    print(
        f"{done} kills on SQLite, {finished} nights finished in spite of them, each row for row as undisturbed"
    )


@pytest.mark.slow
def test_kills_on_a_team_lake(tmp_path, postgres, s3, monkeypatch):
    for name, value in s3.environment.items():
        monkeypatch.setenv(name, value)

    def make(name: str) -> str:
        address = f"postgres:{postgres.new_database()}"
        Lake.create(address, data=f"s3://{s3.new_bucket()}/lake").close()
        return address

    done, finished = survive(tmp_path, make, KILLS, seed=2)
    assert done == KILLS
    assert finished >= 1
    print(
        f"{done} kills on Postgres + S3, {finished} nights finished in spite of them, each row for row as undisturbed"
    )
