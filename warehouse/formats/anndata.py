"""AnnData files (.h5ad): keys from obs, features from var, numbers from X, dense or CSR; layers and raw are ignored.

Hostile files: HDF5 can point to other files (external links, virtual and external datasets) and claim sizes that it
does not hold; both are refused. Nothing in it is a pickle, and h5py makes no objects of it but arrays and texts.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from warehouse.errors import ProfileError
from warehouse.formats.keys import GEOMETRY_COLUMNS, KEY_COLUMNS
from warehouse.formats.model import ImportSettings, Plate
from warehouse.formats.rows import row_plates
from warehouse.names import unknown

#: Claimed bytes for each byte stored, at most: gzip, the usual filter, reaches about a thousand.
_LARGEST_RATIO = 2000
_ALWAYS_ALLOWED = 1 << 20
#: Groups within groups: obs, a column of categories, its categories with their mask.
_DEEPEST = 3


def recognises(path: Path) -> bool:
    """Tell whether a path is an AnnData file, by its name."""
    return path.name.lower().endswith(".h5ad") and path.is_file()


def read(paths: Sequence[Path], settings: ImportSettings) -> list[Plate]:
    """Read keys and names of features of AnnData files.

    Raises:
        ProfileError: the packages h5py and anndata are not there, or a file is none, lacks a part or a key, or points
            out of itself.
    """
    return [plate for path in paths for plate in _read(path, settings)]


def _read(path: Path, settings: ImportSettings) -> list[Plate]:
    with _opened(path) as file:
        rows, _ = _shape(path, file)
        names = _texts(path, file["var"], "var")
        known = {
            name for columns in (KEY_COLUMNS, GEOMETRY_COLUMNS) for one in columns.values() for name in one
        }
        table = _obs(path, file["obs"], {*known, *settings.columns.values()})
    if len(table) != rows:
        message = f"{path}: X has {rows} rows, obs has {len(table)}: write it again with AnnData.write_h5ad"
        raise ProfileError(message)
    twice = sorted({name for name in names if names.count(name) > 1}) if len(set(names)) < len(names) else []
    if twice:
        message = f"{path}: feature {twice[0]!r} stands twice in var: make names unique (AnnData.var_names_make_unique)"
        raise ProfileError(message)
    features = tuple(names) if settings.features is None else settings.features
    positions = {name: position for position, name in enumerate(names)}
    for name in features:
        if name not in positions:
            raise unknown(name, f"feature in {path}", names)
    columns = None if features == tuple(names) else np.array([positions[name] for name in features])
    return row_plates(path, table, features, partial(_numbers, path, columns), settings)


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    try:
        import anndata  # noqa: F401  # reads the parts of obs; looked for before the file is opened
        import h5py
    except ModuleNotFoundError as error:
        message = (
            f"{path}: reading an .h5ad file needs the package {error.name}: pip install 'wellhouse[anndata]'"
        )
        raise ProfileError(message) from error
    try:
        with h5py.File(path, "r") as file:
            for part in ("obs", "var", "X"):
                if file.get(part, getlink=True) is None:
                    message = (
                        f"{path}: holds no {part!r}: write a file with obs, var and X (AnnData.write_h5ad)"
                    )
                    raise ProfileError(message)
                _check(path, file, part)
            yield file
    except (OSError, RuntimeError, KeyError, TypeError, ValueError) as error:
        message = f"{path}: cannot be read as an AnnData file: {str(error).splitlines()[0]}"
        raise ProfileError(message) from error


def _check(path: Path, parent: Any, name: str, depth: int = 0) -> None:
    """Refuse what lies in another file, or claims to be far larger than it is; X may be large, it is read in parts.

    Raises:
        ProfileError: naming the part.
    """
    import h5py

    where = f"{parent.name.rstrip('/')}/{name}"
    fault = None
    if not isinstance(parent.get(name, getlink=True), h5py.HardLink):
        fault = "is a link to elsewhere"
    elif depth > _DEEPEST:
        fault = "lies deeper than AnnData's parts do"
    elif isinstance(parent[name], h5py.Group):
        for child in parent[name]:
            _check(path, parent[name], child, depth + 1)
    elif parent[name].is_virtual or parent[name].external:
        fault = "keeps its values in another file"
    elif not where.startswith("/X") or where == "/X/indptr":
        part = parent[name]
        claimed = part.size * part.dtype.itemsize if part.size else 0
        if claimed > _ALWAYS_ALLOWED + _LARGEST_RATIO * part.id.get_storage_size():
            fault = f"claims {claimed} bytes and holds {part.id.get_storage_size()}"
    if fault:
        message = f"{path}: {where} {fault}: write the file again with AnnData.write_h5ad"
        raise ProfileError(message)


def _shape(path: Path, file: Any) -> tuple[int, int]:
    """Return rows and columns of X, and refuse an X that cannot be read row by row.

    Raises:
        ProfileError: X is neither dense nor CSR, holds no numbers, or is not as wide as var is long.
    """
    x = file["X"]
    is_sparse = not hasattr(x, "shape")
    kind = (
        str(x.attrs.get("encoding-type", x.attrs.get("h5sparse_format", "a group"))) if is_sparse else "array"
    )
    if is_sparse and kind not in ("csr_matrix", "csr"):
        message = f"{path}: X is stored as {kind!r}: rows can be read from a dense array or a csr_matrix; make it one"
        raise ProfileError(message)
    shape = tuple(
        int(n) for n in (x.attrs.get("shape", x.attrs.get("h5sparse_shape", ())) if is_sparse else x.shape)
    )
    numbers = x["data"] if is_sparse else x
    wide = len(_names(file["var"]))
    if len(shape) != 2 or shape[1] != wide or not wide or numbers.dtype.kind not in "fiub":
        message = (
            f"{path}: X is {kind} of {numbers.dtype} with shape {shape}, var has {wide} rows: X must hold numbers, one "
            "row a profile and one column a feature"
        )
        raise ProfileError(message)
    return shape[0], shape[1]


def _names(group: Any) -> Any:
    """Return the dataset of a frame's index."""
    index = group[group.attrs["_index"]]
    return index if hasattr(index, "shape") else index["values"]


def _element(group: Any, name: str) -> Any:
    """Read an array or a column of a frame with the anndata package, which knows the ways in which they are kept.

    Raises:
        ValueError: it is kept in none of them.
    """
    from anndata.io import read_elem

    try:
        return read_elem(group[name])
    except Exception as error:  # its errors have no common class
        message = f"{group.name}/{name}: {str(error).splitlines()[0]}"
        raise ValueError(message) from error


def _texts(path: Path, group: Any, what: str) -> list[str]:
    values = [str(value) for value in _element(group, group.attrs["_index"])]
    if not all(values):
        message = f"{path}: a name in {what} is empty: name every feature"
        raise ProfileError(message)
    return values


def _obs(path: Path, group: Any, wanted: set[str]) -> pl.DataFrame:
    """Read the columns of obs that may be keys; the others stand in the table without values."""
    rows = len(_names(group))
    names = [group.attrs["_index"], *group.attrs["column-order"]]
    columns = []
    for name in dict.fromkeys(map(str, names)):
        if name in wanted and name in group:
            column = _column(name, _element(group, name))
        else:
            column = pl.Series(name, [None], dtype=pl.String).new_from_index(0, rows)
        if len(column) != rows:
            message = f"{path}: column {name!r} of obs has {len(column)} rows, its index {rows}: write the file again"
            raise ProfileError(message)
        columns.append(column)
    return pl.DataFrame(columns)


def _column(name: str, element: Any) -> pl.Series:
    """Turn a column into numbers or text, NULL where a value is missing."""
    import pandas as pd

    values = pd.Series(element)
    if isinstance(values.dtype, pd.CategoricalDtype):
        # Text again: a category that no row has is no value.
        values = values.astype(values.cat.categories.dtype if not values.isna().any() else object)
    missing = values.isna().to_numpy()
    listed = [None if gone else value for value, gone in zip(values.tolist(), missing, strict=True)]
    if pd.api.types.is_numeric_dtype(values.dtype) or all(
        isinstance(v, int | float) for v in listed if v is not None
    ):
        return pl.Series(name, listed, strict=False)
    return pl.Series(name, [None if value is None else str(value) for value in listed], dtype=pl.String)


def _numbers(path: Path, columns: np.ndarray | None, rows: np.ndarray) -> np.ndarray:
    """Read the numbers of some rows.

    Args:
        path: the file; opened anew, so that no plate holds it open.
        columns: positions of the features that are wanted, None for all in their order.
        rows: positions, ascending.

    Returns:
        (n, d) float32, NaN for what is missing; an element that a sparse X does not store is zero.
    """
    with _opened(path) as file:
        _, dim = _shape(path, file)
        read_run = _dense if hasattr(file["X"], "shape") else _sparse
        matrix = np.empty((len(rows), dim if columns is None else len(columns)), dtype=np.float32)
        done = 0
        for run in np.split(rows, np.flatnonzero(np.diff(rows) != 1) + 1):
            values = read_run(file["X"], int(run[0]), int(run[-1]) + 1, dim)
            with np.errstate(over="ignore"):  # beyond float32 is infinite: that row is rejected by name
                matrix[done : done + len(run)] = values if columns is None else values[:, columns]
            done += len(run)
        return matrix


def _dense(x: Any, start: int, end: int, dim: int) -> np.ndarray:
    del dim
    values: np.ndarray = x[start:end]
    return values


def _sparse(x: Any, start: int, end: int, dim: int) -> np.ndarray:
    from scipy.sparse import csr_matrix

    bounds = x["indptr"][start : end + 1].astype(np.int64)
    first, last = int(bounds[0]), int(bounds[-1])
    if first < 0 or (np.diff(bounds) < 0).any() or last > len(x["data"]):
        message = f"rows {start} to {end} of the sparse X end before they begin, or beyond its data"
        raise ValueError(message)
    indices = x["indices"][first:last]
    if len(indices) and not (indices.min() >= 0 and indices.max() < dim):
        message = f"rows {start} to {end} of the sparse X name column {indices.max()} of {dim}"
        raise ValueError(message)
    values: np.ndarray = csr_matrix(
        (x["data"][first:last], indices, bounds - first), shape=(end - start, dim)
    ).toarray()
    return values
