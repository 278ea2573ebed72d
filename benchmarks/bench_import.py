"""Importing: CellProfiler SQLite against CytoTable on the same file in one run, and plates of well profiles.

`WELLHOUSE_BENCH_LONG=1` takes all 2,500 plates of wells in (about ten minutes), instead of 100.
"""

import os
import shutil
import sqlite3
import subprocess
import sys
import tempfile
import threading
import venv
from pathlib import Path
from time import perf_counter, sleep

import numpy as np
import polars as pl
import psutil

from benchmarks.measure import Row, in_process, peak_mib

CELLS, FEATURES, CELLS_PER_IMAGE = 75_000, 500, 150  # about 1 GB
WELLS, DIM = 384, 384
SHORT, LONG = 100, 2500
CYTOTABLE = (
    "cytotable==1.2.6",
    "duckdb==1.5.5",
    "duckdb-extension-sqlite-scanner==1.5.5",
    "duckdb-extension-httpfs==1.5.5",
)
LINKS = {"Cells": ("Parent_Nuclei",), "Cytoplasm": ("Parent_Cells", "Parent_Nuclei"), "Nuclei": ()}

#: Run in CytoTable's own environment: its preset for files of this layout, joined, to one Parquet file.
_CYTOTABLE_RUN = """
import sys
from cytotable import convert

if __name__ == "__main__":
    convert(source_path=sys.argv[1], dest_path=sys.argv[2], dest_datatype="parquet",
            preset="cell-health-cellprofiler-to-cytominer-database")
"""
#: CytoTable installs DuckDB's extensions by name; the wheels' files, put into its home once, do without a download.
_EXTENSIONS = """
import sys, duckdb
from pathlib import Path
for name in ("sqlite_scanner", "httpfs"):
    file = next(Path(sys.prefix).rglob(f"{name}.duckdb_extension"))
    duckdb.execute(f"INSTALL '{file}'")
"""


def run() -> list[Row]:
    """Measure all; each import in a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        return [*_sqlite(Path(folder)), *_wells(Path(folder))]


def _sqlite(folder: Path) -> list[Row]:
    """Import files of a quarter, half and all cells, in order and shuffled, and let CytoTable join the smallest.

    CytoTable takes long over the large one (more than fifteen minutes of two cores): WELLHOUSE_BENCH_LONG=1 waits.
    """
    sizes = ((CELLS // 4, False), (CELLS // 2, False), (CELLS, True), (CELLS, False))
    race = CELLS if os.environ.get("WELLHOUSE_BENCH_LONG") else CELLS // 4
    peaks, rows, timed = [], [], dict[int, dict[str, float]]()
    for cells, shuffled in sizes:
        file = folder / f"{cells}{'-shuffled' * shuffled}.sqlite"
        make_sqlite(file, cells, shuffled=shuffled)
        ours = _watched(
            [sys.executable, "-m", "benchmarks.bench_import", "import", str(file), str(folder / "lake")]
        )
        shutil.rmtree(folder / "lake")
        size = file.stat().st_size / 1e6
        peaks.append(f"{size:.0f} MB{' shuffled' * shuffled}: {ours['mib']:.0f} MiB, {ours['seconds']:.0f} s")
        print(peaks[-1], file=sys.stderr)
        if not shuffled:
            timed[cells] = ours | {"mb": size}
        if cells != race or shuffled:
            file.unlink()
    python, environment = _cytotable()
    command = [
        str(python),
        "-c",
        _CYTOTABLE_RUN,
        str(folder / f"{race}.sqlite"),
        str(folder / "joined.parquet"),
    ]
    theirs, ours = _watched(command, environment), timed[race]
    against = f"CytoTable 1.2.6 to Parquet: {theirs['seconds']:.0f} s, {theirs['mib']:.0f} MiB"
    measured = f"{ours['seconds']:.0f} s, {ours['mib']:.0f} MiB"
    name = f"CellProfiler SQLite, {ours['mb']:.0f} MB, joined, aggregated and committed"
    rows.append(Row(f"{name}: time", measured, against, theirs["seconds"] / ours["seconds"], "≥ 2"))
    rows.append(Row(f"{name}: peak memory", measured, against, ours["mib"] / theirs["mib"], "≤ 0.5"))
    small, large = timed[CELLS // 4], timed[CELLS]
    growth = large["mib"] / small["mib"]
    rows.append(
        Row("the same: memory over size", "; ".join(peaks), "4 × the size", growth, "≈ 1 (2 GB at 10 GB)")
    )
    return rows


def _wells(folder: Path) -> list[Row]:
    """Import Parquet files of one plate of well profiles each."""
    plates = LONG if os.environ.get("WELLHOUSE_BENCH_LONG") else SHORT
    found = in_process("benchmarks.bench_import", "wells", str(folder), str(plates))
    measured = f"{found['seconds']:.0f} s, {found['mib']:.0f} MiB"
    all_plates = found["seconds"] * LONG / plates
    rate = f"{plates * WELLS / found['seconds']:.0f} wells/s; {LONG} plates at this rate: {all_plates:.0f} s"
    return [
        Row(
            f"{plates} plates of {WELLS} wells × {DIM}, a Parquet file each",
            measured,
            rate,
            all_plates / 600,
            "≤ 1 (ten minutes)",
        )
    ]


def make_sqlite(path: Path, cells: int, *, shuffled: bool = False) -> None:
    """Write a CellProfiler database with seeded numbers; `shuffled`: no two rows of an image stand together."""
    rng = np.random.default_rng(0)
    images = -(-cells // CELLS_PER_IMAGE)
    with sqlite3.connect(path) as connection:
        connection.execute("PRAGMA journal_mode = OFF")
        connection.execute("PRAGMA synchronous = OFF")
        connection.execute(
            "CREATE TABLE Image (TableNumber TEXT, ImageNumber INTEGER, Image_Metadata_Plate TEXT, "
            "Image_Metadata_Well TEXT, Image_Metadata_Site INTEGER, Image_FileName_DNA TEXT)"
        )
        wells = [f"{chr(65 + image // 9 // 24 % 16)}{image // 9 % 24 + 1:02d}" for image in range(images)]
        connection.executemany(
            "INSERT INTO Image VALUES ('t', ?, 'P1', ?, ?, ?)",
            [(i + 1, wells[i], i % 9 + 1, f"{i}.tif") for i in range(images)],
        )
        for name, links in LINKS.items():
            integers = [f"{name}_Number_Object_Number", *(f"{name}_{link}" for link in links)]
            columns = ["TableNumber TEXT", "ImageNumber INTEGER", "ObjectNumber INTEGER"]
            columns += [f"{column} INTEGER" for column in integers]
            columns += [f"{name}_Feature_{index} FLOAT" for index in range(FEATURES)]
            connection.execute(f"CREATE TABLE {name} ({', '.join(columns)})")
            order = rng.permutation(cells) if shuffled else np.arange(cells)
            marks = ", ".join("?" * (2 + len(integers) + FEATURES))
            for start in range(0, cells, 2000):
                rows = order[start : start + 2000]
                values = rng.normal(size=(len(rows), FEATURES)).tolist()
                ids = [
                    (row // CELLS_PER_IMAGE + 1, *[row % CELLS_PER_IMAGE + 1] * (1 + len(integers)))
                    for row in rows.tolist()
                ]
                connection.executemany(
                    f"INSERT INTO {name} VALUES ('t', {marks})",
                    [(*a, *b) for a, b in zip(ids, values, strict=True)],
                )
    connection.close()


def _cytotable() -> tuple[Path, dict[str, str]]:
    """Build CytoTable's environment once, beside the project's own, and return its Python and variables."""
    folder = Path(os.environ.get("VENVS", Path.home() / ".cache" / "wellhouse")) / "cytotable-1.2.6"
    python, home = folder / "bin" / "python", folder / "home"
    environment = os.environ | {"HOME": str(home), "PATH": f"{python.parent}:{os.environ['PATH']}"}
    if not home.is_dir():
        venv.create(folder, with_pip=True)
        subprocess.run([python, "-m", "pip", "install", "--quiet", *CYTOTABLE], check=True)
        home.mkdir()
        subprocess.run([python, "-c", _EXTENSIONS], check=True, env=environment)
    return python, environment


def _watched(command: list[str], environment: dict[str, str] | None = None) -> dict[str, float]:
    """Run a command; return its wall time in seconds and the peak memory of its session in MiB.

    Memory is what each process has for itself plus its share of what several have (PSS), looked at once a second.
    """
    peak, start = 0.0, perf_counter()
    with (
        tempfile.TemporaryDirectory() as folder,
        subprocess.Popen(
            command,
            env=environment,
            cwd=None if environment is None else folder,
            stdout=subprocess.DEVNULL,
            start_new_session=True,  # CytoTable's workers leave its group, and not its session
            stderr=subprocess.PIPE,
        ) as process,
    ):
        errors: list[bytes] = []
        reader = threading.Thread(
            target=lambda: errors.append(process.stderr.read() if process.stderr else b"")
        )
        reader.start()
        while process.poll() is None:
            total = 0
            for one in psutil.process_iter():
                try:
                    if os.getsid(one.pid) == process.pid:
                        total += one.memory_full_info().pss
                except (psutil.Error, OSError):  # it has just ended
                    continue
            peak = max(peak, total / 2**20)
            sleep(1)
        seconds = perf_counter() - start
        reader.join()
    if process.returncode:
        raise RuntimeError(errors[0].decode()[-2000:])
    return {"seconds": seconds, "mib": peak}


def import_file(file: Path, lake_path: Path) -> None:
    """Take one SQLite file into a new lake."""
    from warehouse.importers import import_profiles
    from warehouse.lake import Lake

    with Lake.create(lake_path) as lake:
        (report,) = import_profiles(lake, [file], "cellprofiler")
        if report.outcome != "added" or report.rows_rejected:
            raise RuntimeError(str(report))


def import_wells(folder: Path, plates: int) -> dict[str, float]:
    """Write plates of seeded profiles, take them in, and return the wall time and this process's peak memory."""
    from warehouse.importers import import_profiles
    from warehouse.lake import Lake

    rng = np.random.default_rng(0)
    wells = [f"{chr(65 + well // 24)}{well % 24 + 1:02d}" for well in range(WELLS)]
    files = []
    for number in range(plates):
        keys = pl.DataFrame({"Metadata_Plate": [f"P{number:04d}"] * WELLS, "Metadata_Well": wells})
        values = pl.DataFrame(
            rng.normal(size=(WELLS, DIM)).astype(np.float32), schema=[f"emb{i}" for i in range(DIM)]
        )
        files.append(folder / f"P{number:04d}.parquet")
        pl.concat([keys, values], how="horizontal").write_parquet(files[-1])
    start = perf_counter()
    with Lake.create(folder / "wells-lake") as lake:
        reports = import_profiles(lake, files, "embeddings")
    seconds = perf_counter() - start
    if {report.outcome for report in reports} != {"added"}:
        raise RuntimeError(str(reports[0]))
    return {"seconds": seconds, "mib": peak_mib()}


if __name__ == "__main__":
    import json

    if sys.argv[1] == "import":
        import_file(Path(sys.argv[2]), Path(sys.argv[3]))
    elif sys.argv[1] == "wells":
        print(json.dumps(import_wells(Path(sys.argv[2]), int(sys.argv[3]))))
