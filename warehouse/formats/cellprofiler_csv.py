"""CellProfiler CSV: Image.csv, Cells.csv, … in one folder for a whole export, or in one folder a site below one."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
import polars as pl

from warehouse.errors import ProfileError
from warehouse.formats.cellprofiler import plates_of
from warehouse.formats.cellprofiler_tables import ROW, Export, Table
from warehouse.formats.model import ImportSettings, Plate
from warehouse.formats.tables import Column, numbers
from warehouse.formats.text import TextTable

_IMAGE = "Image.csv"


def recognises(path: Path) -> bool:
    """Whether a path is a folder with an Image.csv in it or below, or such a file."""
    if path.name == _IMAGE:
        return path.is_file()
    return path.is_dir() and next(path.rglob(_IMAGE), None) is not None


def read(paths: Sequence[Path], settings: ImportSettings) -> list[Plate]:
    """Open folders of CellProfiler's CSV files; all folders of one call are one input.

    Raises:
        ProfileError: no folder has an Image.csv, a file cannot be read, or as `plates_of`.
    """
    folders = []
    for path in paths:
        top = path if path.is_dir() else path.parent
        below = sorted(file.parent for file in top.rglob(_IMAGE))
        if not below:
            message = f"{path}: no {_IMAGE} in this folder or below it: is this an export of CellProfiler?"
            raise ProfileError(message)
        folders += below
    exports = [_export(folder) for folder in dict.fromkeys(folders)]
    return plates_of(paths[0], exports, settings)


def _export(folder: Path) -> Export:
    tables = {}
    for file in sorted(folder.glob("*.csv")):
        if file.name == "Experiment.csv":  # settings of the pipeline, as key and value
            continue
        text = TextTable(file)
        table = Table(file.stem, str(file), tuple(text.schema), partial(_select, text), partial(_fetch, text))
        if file.name == _IMAGE or table.is_of_objects():
            tables[table.name] = table
    return Export(folder, tables.pop("Image"), tables)


def _select(table: TextTable, columns: Sequence[str]) -> pl.DataFrame:
    return table.select(columns).with_row_index(ROW)


def _fetch(table: TextTable, rows: np.ndarray, columns: Sequence[str]) -> np.ndarray:
    first, last = int(rows[0]), int(rows[-1])
    part = table.rows(first, last, columns)
    part = part if len(part) == len(rows) else part[rows - first]
    return numbers(table.path, part, [Column(name) for name in columns], first).astype(np.float64)
