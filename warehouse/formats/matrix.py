"""A plain matrix, `.npy` or Parquet of one column of lists, and a table of the same rows that says what they are."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
import polars as pl

from warehouse.errors import ProfileError
from warehouse.formats.model import ImportSettings, Plate
from warehouse.formats.rows import Fetch, row_plates
from warehouse.formats.tables import check_file, features_beside, list_columns, parquet_rows, read_metadata


def recognises(path: Path) -> bool:
    """Whether a path is an `.npy` file; a Parquet matrix is one where a table of its rows is given."""
    return path.name.lower().endswith(".npy") and path.is_file()


def read(paths: Sequence[Path], settings: ImportSettings) -> list[Plate]:
    """Open one matrix and the table of its rows.

    Raises:
        ProfileError: no table is given, the numbers of rows differ, the matrix is none, or as `rows.row_plates`.
    """
    if len(paths) != 1 or settings.metadata is None:
        message = f"{paths[0]}: a matrix says nothing of its rows: give --metadata FILE, one row a row of the matrix"
        raise ProfileError(message)
    path, table = paths[0], read_metadata(settings.metadata)
    if path.name.lower().endswith(".npy"):
        rows, dim, fetch = _array(path)
    else:
        rows, dim, fetch = _parquet(path)
    if rows != len(table):
        message = (
            f"{path}: has {rows} rows, {settings.metadata} has {len(table)}: one row a row of the matrix is needed, in "
            "the same order"
        )
        raise ProfileError(message)
    features = settings.features or features_beside(path) or tuple(f"feature_{index}" for index in range(dim))
    if len(features) != dim:
        message = f"{path}: has {dim} columns, and {len(features)} features are named: name as many, or none"
        raise ProfileError(message)
    return row_plates(path, table, features, fetch, settings)


def _array(path: Path) -> tuple[int, int, Fetch]:
    if not path.is_file():
        message = f"{path}: there is no such file"
        raise ProfileError(message)
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)  # mapped: only the rows asked for are read
    except (OSError, ValueError, EOFError) as error:
        message = f"{path}: cannot be read as .npy: {' '.join(str(error).split())}"
        raise ProfileError(message) from error
    if array.ndim != 2 or array.dtype.kind not in "fiu" or not array.shape[1]:
        message = f"{path}: is of shape {array.shape} and type {array.dtype}: a matrix of numbers is needed"
        raise ProfileError(message)
    return array.shape[0], array.shape[1], partial(_mapped, array)


def _mapped(array: np.ndarray, positions: np.ndarray) -> np.ndarray:
    with np.errstate(over="ignore"):  # beyond float32 is infinite: that row is rejected by name
        rows: np.ndarray = array[positions].astype(np.float32)
    return rows


def _parquet(path: Path) -> tuple[int, int, Fetch]:
    check_file(path)
    columns = list_columns(path)
    if len(columns) != 1:
        message = (
            f"{path}: has {len(columns)} columns of lists of numbers: a matrix with --metadata is one; a table with "
            "its own keys is given without --metadata"
        )
        raise ProfileError(message)
    rows = int(pl.scan_parquet(path).select(pl.len()).collect().item())
    return rows, int(columns[0].width or 0), parquet_rows(path, columns)
