"""Small exports of CellProfiler and DeepProfiler with known numbers, for the tests of formats."""

import csv
import sqlite3
from pathlib import Path

import numpy as np

#: Rows of the images: ImageNumber, plate, well, site.
IMAGES = [(1, "P1", "A1", 1), (2, "P1", "A1", 2), (3, "P1", "B02", 1)]
IMAGE_COLUMNS = ["ImageNumber", "Metadata_Plate", "Metadata_Well", "Metadata_Site"]
LINKS = {"Cells": ["Parent_Nuclei"], "Cytoplasm": ["Parent_Cells", "Parent_Nuclei"], "Nuclei": []}
FEATURES = {
    "Cells": ["AreaShape_Area", "Intensity_A"],
    "Cytoplasm": ["Intensity_B"],
    "Nuclei": ["Location_Center_X", "Location_Center_Y", "Intensity_C"],
}
#: All names, as they come out.
NAMES = tuple(f"{table}_{name}" for table, names in FEATURES.items() for name in names)


def tables(seed: int = 0, images=IMAGES, cells: int = 4) -> dict[str, list[dict]]:
    """Rows of each table: in every image the nucleus of cell i is nucleus cells + 1 - i, its cytoplasm is i + 10."""
    rng = np.random.default_rng(seed)
    found: dict[str, list[dict]] = {"Image": [dict(zip(IMAGE_COLUMNS, row, strict=True)) for row in images]}
    for table, links in LINKS.items():
        found[table] = []
        for number, *_ in images:
            for cell in range(1, cells + 1):
                nucleus = cells + 1 - cell
                own = {"Cells": cell, "Cytoplasm": cell + 10, "Nuclei": nucleus}[table]
                parents = {"Parent_Nuclei": nucleus, "Parent_Cells": cell}
                row = {"ImageNumber": number, "ObjectNumber": own, **{link: parents[link] for link in links}}
                found[table].append(row | {name: round(float(rng.normal()), 6) for name in FEATURES[table]})
    return found


def joined(found: dict[str, list[dict]]) -> dict[tuple[int, int], list[float]]:
    """Join the tables by naive loops: (image, cell) to numbers, in the order of `NAMES`."""
    result = {}
    for cell in found["Cells"]:
        image = cell["ImageNumber"]
        (cytoplasm,) = [
            row
            for row in found["Cytoplasm"]
            if (row["ImageNumber"], row["Parent_Cells"]) == (image, cell["ObjectNumber"])
        ]
        (nucleus,) = [
            row
            for row in found["Nuclei"]
            if (row["ImageNumber"], row["ObjectNumber"]) == (image, cell["Parent_Nuclei"])
        ]
        rows = {"Cells": cell, "Cytoplasm": cytoplasm, "Nuclei": nucleus}
        result[image, cell["ObjectNumber"]] = [
            rows[table][name] for table in FEATURES for name in FEATURES[table]
        ]
    return result


def write_csv(folder: Path, found: dict[str, list[dict]]) -> Path:
    """Write a folder of CSV files, names without their compartments."""
    folder.mkdir(parents=True, exist_ok=True)
    for table, rows in found.items():
        with (folder / f"{table}.csv").open("w", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
    return folder


def write_sqlite(
    path: Path, found: dict[str, list[dict]], *, per: bool = False, prefixed: bool = True
) -> Path:
    """Write an SQLite file; `per`: tables are Per_Image, Per_Cells, …; `prefixed`: columns carry the compartment."""
    with sqlite3.connect(path) as connection:
        for table, rows in found.items():
            names = list(rows[0])
            stored = [
                name
                if not prefixed or name in ("ImageNumber", "ObjectNumber", "TableNumber")
                else f"{table}_{name}"
                for name in names
            ]
            kinds = ["INTEGER" if name.endswith("Number") else "FLOAT" for name in names]
            if table == "Image":
                kinds = ["" for _ in names]
            columns = ", ".join(f'"{name}" {kind}' for name, kind in zip(stored, kinds, strict=True))
            connection.execute(f'CREATE TABLE "{"Per_" * per}{table}" ({columns})')
            marks = ", ".join("?" * len(names))
            connection.executemany(
                f'INSERT INTO "{"Per_" * per}{table}" VALUES ({marks})', [tuple(row.values()) for row in rows]
            )
    connection.close()
    return path


def write_npz(path: Path, features: np.ndarray, **arrays: object) -> Path:
    """Write one site of DeepProfiler; `metadata` becomes a pickled object, as in real files."""
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez(path, features=features, **{name: np.asarray(value) for name, value in arrays.items()})
    return path
