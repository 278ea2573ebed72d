"""The lake as any DuckDB client sees it: no code of ours, any alias, beside a writer."""

import json
import os
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path

import pytest
from builders import commit, new_lake, random_plate, small_lake, wide

CLIENT = """
import json, sys, duckdb
catalog, alias, feature_set, times, *extensions = sys.argv[1:]
assert "warehouse" not in sys.modules
connection = duckdb.connect(config={"autoinstall_known_extensions": "false", "autoload_known_extensions": "false"})
for file in extensions:
    connection.execute(f"LOAD '{file}'")
connection.execute(f"ATTACH 'ducklake:sqlite:{catalog}' AS {alias} (READ_ONLY)")
for _ in range(int(times)):
    treatments = connection.execute(
        f"SELECT treatment, well_count, embedding FROM {alias}.{feature_set}.treatments ORDER BY treatment"
    ).fetchall()
    # Of one moment: the loads and the wells that they count.
    counted, there = connection.execute(
        f"SELECT (SELECT sum(wells_in) FROM {alias}.main.plate_loads), "
        f"(SELECT count(*) FROM {alias}.{feature_set}.wells)"
    ).fetchone()
    assert counted == there, (counted, there)
wells = connection.execute(f"SELECT plate, well, treatment FROM {alias}.main.wells ORDER BY ALL").fetchall()
try:
    connection.execute(f"DELETE FROM {alias}.main.wells")
    refused = False
except duckdb.Error:
    refused = True
print(json.dumps({"treatments": treatments, "wells": wells, "refused": refused}))
"""


def extension(name):
    folder = Path(next(iter(find_spec(f"duckdb_extension_{name}").submodule_search_locations)))
    return str(next(folder.rglob(f"{name}.duckdb_extension")))


def client(folder, alias, feature_set="tiny", times=1, cwd="/"):
    """Start a Python that cannot import our code, and attach the lake as a stranger would."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    files = [extension(name) for name in ("ducklake", "sqlite_scanner")]
    return subprocess.Popen(
        [
            sys.executable,
            "-c",
            CLIENT,
            str(folder / "catalog.sqlite"),
            alias,
            feature_set,
            str(times),
            *files,
        ],
        env=environment,
        cwd=cwd,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def answer(process):
    out, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
    return json.loads(out)


@pytest.mark.parametrize("alias", ["lake", "screens"])
def test_any_client_reads_the_same_numbers_under_any_alias(tmp_path, alias):
    with small_lake(tmp_path / "lake") as lake:
        treatments = lake.frame(
            "SELECT treatment, well_count, embedding FROM tiny.treatments ORDER BY treatment"
        ).rows()
        wells = lake.frame("SELECT plate, well, treatment FROM main.wells ORDER BY ALL").rows()
        while_open = answer(client(tmp_path / "lake", alias, cwd=tmp_path))
    closed = answer(client(tmp_path / "lake", alias, cwd=tmp_path))
    assert while_open == closed
    assert closed["treatments"] == [list(row) for row in treatments]
    assert closed["wells"] == [list(row) for row in wells]
    assert len(closed["wells"]) == 14
    assert closed["refused"] is True


def test_a_client_reads_whole_plates_while_a_writer_writes(tmp_path):
    with new_lake(tmp_path / "lake") as lake:
        commit(lake, random_plate(("s", "b", "p0"), 0), wide(4))
        reader = client(tmp_path / "lake", "other", "wide", times=20, cwd=tmp_path)
        number, slowest = 1, 0.0
        while reader.poll() is None and number < 2000:
            started = time.monotonic()
            commit(lake, random_plate(("s", "b", f"p{number % 9}"), number), wide(4))
            slowest = max(slowest, time.monotonic() - started)
            number += 1
        found = answer(reader)
        assert {name for name, *_ in found["treatments"]} == {"DMSO", *(f"c{i}@1uM" for i in range(6))}
        assert number > 5
        assert slowest < 5  # no writer waited for the reader
