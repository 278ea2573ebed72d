"""Embeddings between NumPy and the lake: a matrix here, one `FLOAT[]` column there; NULL elements are NaN here."""

import io
from collections.abc import Sequence

import numpy as np
import polars as pl
import pyarrow as pa


def to_column(matrix: np.ndarray, name: str = "embedding") -> pl.Series:
    """Turn a matrix into a column of lists.

    Args:
        matrix: (n, d), any float dtype; NaN stands for a missing element.
        name: of the column.

    Returns:
        A Series of length n, dtype List(Float32), with NULL elements where the matrix has NaN.
    """
    rows, dim = matrix.shape
    # from_pandas turns NaN into NULL: in DuckDB a NaN is a number, and would poison every average.
    values = pa.array(np.ascontiguousarray(matrix, dtype=np.float32).ravel(), from_pandas=True)
    offsets = (
        pa.array(np.arange(0, rows * dim + 1, dim, dtype=np.int64)) if dim else pa.array([0] * (rows + 1))
    )
    column = pl.from_arrow(pa.LargeListArray.from_arrays(offsets, values))
    assert isinstance(column, pl.Series)
    return column.alias(name)


def to_matrix(column: pl.Series, dim: int) -> np.ndarray:
    """Turn a column of lists back into a matrix.

    Args:
        column: dtype List(Float32), every list of length `dim`, no NULL list.
        dim: the feature set's dimension.

    Returns:
        (n, dim) float32; NULL elements are NaN.

    Raises:
        ValueError: a list has another length.
    """
    lengths = column.list.len()
    if len(column) and not (lengths == dim).all():
        wrong = int((lengths != dim).arg_true()[0])
        message = f"row {wrong} of {column.name!r} has {lengths[wrong]} elements, its feature set has {dim}"
        raise ValueError(message)
    flat = column.explode(empty_as_null=False) if len(column) else pl.Series([], dtype=pl.Float32)
    values = flat.cast(pl.Float32).fill_null(np.nan).to_numpy()
    return np.ascontiguousarray(values, dtype=np.float32).reshape(len(column), dim)


def apart(frame: pl.DataFrame) -> pl.DataFrame:
    """Copy columns that came from DuckDB: those of one answer share a piece of memory, embeddings and all.

    To keep a few of them is to keep all of it.
    """
    copy = io.BytesIO()
    frame.write_ipc(copy)
    copy.seek(0)
    return pl.read_ipc(copy)


def first_bad_feature(row: np.ndarray, feature_names: Sequence[str]) -> str | None:
    """Name the first feature of one profile that is not finite, with its value; None where all are."""
    bad = np.flatnonzero(~np.isfinite(row))
    return f"{feature_names[bad[0]]} is {row[bad[0]]}" if len(bad) else None
