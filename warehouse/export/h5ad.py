"""AnnData files: obs = metadata, X = features, uns = lineage; X grows batch by batch, obs is written at the end.

The anndata package writes obs, var and uns; X is laid out as its on-disk format says (an array, version 0.2.0).
"""

import json
from collections.abc import Callable
from typing import IO, Any, cast

import numpy as np
import polars as pl

from warehouse.errors import ExportError
from warehouse.export.writers import Writer

#: Bytes of one chunk of X.
_CHUNK_BYTES = 1 << 20
_MISSING = "an .h5ad file needs the package {}: pip install 'wellhouse[anndata]'"


class _Disk:
    """A file whose writes always succeed in the eyes of HDF5, which may crash the process after one that does not.

    The first failure is kept in `error`, what comes after it is dropped; `check` raises it.
    """

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self.error: OSError | None = None

    def check(self) -> None:
        """Raise the first failure, if there was one."""
        if self.error is not None:
            raise self.error

    def seek(self, offset: int, whence: int = 0) -> int:
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        return self._file.tell()

    def read(self, size: int) -> bytes:
        # What was dropped reads as zeros: HDF5 reads back only what it wrote.
        return self._file.read(size).ljust(size, b"\0")

    def write(self, data: bytes) -> int:
        def all_of_it() -> None:
            rest = memoryview(data)
            while rest:
                rest = rest[self._file.write(rest) :]

        self._try(all_of_it)
        return len(data)

    def truncate(self, size: int) -> int:
        self._try(lambda: self._file.truncate(size))
        return size

    def flush(self) -> None:
        self._try(self._file.flush)

    def _try(self, act: Callable[[], object]) -> None:
        if self.error is None:
            try:
                act()
            except OSError as error:
                self.error = error


class H5adWriter(Writer):
    """Metadata of all rows is held until the end, text as categories; features one batch at a time."""

    _file: Any = None
    _x: Any = None

    def write(self, rows: pl.DataFrame, matrix: np.ndarray) -> None:
        """Append to X, and keep the metadata."""
        if self._file is None:
            self._open()
        start, dim = self._x.shape[0], matrix.shape[1]
        self._x.resize((start + len(matrix), dim))
        self._x[start:] = matrix
        text = [name for name, kind in rows.schema.items() if kind == pl.String]
        names = obs_names(rows, self.head.ids)
        coded = rows.with_columns(pl.col(text).cast(pl.Categorical))
        # Gathered, a column is a copy: DuckDB keeps all of a batch, embeddings too, while one column of it is held.
        self._rows.append(coded.select(pl.all().gather(pl.int_range(pl.len()))))
        self._names.append(names)
        self._disk.check()

    def __exit__(self, *error: object) -> None:
        super().__exit__(*error)
        if error[0] is None:
            self._disk.check()

    def _open(self) -> None:
        try:
            import anndata  # noqa: F401  # looked for before anything is written
            import h5py
        except ModuleNotFoundError as error:
            message = _MISSING.format(error.name)
            raise ExportError(message) from error
        self._rows: list[pl.DataFrame] = []
        self._names: list[pl.Series] = []
        dim = len(self.head.features)
        # Unbuffered: a failure shows where it happens.
        self._disk = _Disk(self._files.enter_context(cast(IO[bytes], self.paths[0].open("w+b", buffering=0))))
        self._file = self._files.enter_context(h5py.File(self._disk, "w"))
        self._file.attrs.update({"encoding-type": "anndata", "encoding-version": "0.1.0"})
        rows = max(1, _CHUNK_BYTES // (4 * max(1, dim)))
        self._x = self._file.create_dataset(
            "X", shape=(0, dim), maxshape=(None, dim), chunks=(rows, max(1, dim)), dtype="<f4"
        )
        self._x.attrs.update({"encoding-type": "array", "encoding-version": "0.2.0"})

    def finish(self) -> None:
        """Write obs, var and uns.

        Raises:
            ExportError: a text holds what HDF5 cannot.
        """
        import pandas as pd
        from anndata.io import write_elem

        rows, names = pl.concat(self._rows), pl.concat(self._names)
        for text in (*names, *self.head.features):
            if "\0" in text:
                message = f"{text!r} holds a NUL character, which an .h5ad file cannot: export to .parquet"
                raise ExportError(message)
        obs = pd.DataFrame(
            {name: _column(rows[name]) for name in rows.columns},
            index=pd.Index(names.to_list(), dtype=object),
        )
        var = pd.DataFrame(index=pd.Index(list(self.head.features), dtype=object))
        write_elem(self._file, "obs", obs)
        write_elem(self._file, "var", var)
        write_elem(self._file, "uns", {"wellhouse": _plain(self.head.lineage)})
        for empty in ("obsm", "varm", "obsp", "varp", "layers"):
            write_elem(self._file, empty, {})


def obs_names(rows: pl.DataFrame, ids: tuple[str, ...]) -> pl.Series:
    r"""Name rows by their ids joined by `/`; several are written with `/` as `\/` and `\` as `\\`, so none meet."""
    parts = [pl.col(name) for name in ids]
    if len(ids) > 1:
        parts = [
            part.str.replace_all("\\", "\\\\", literal=True).str.replace_all("/", "\\/", literal=True)
            for part in parts
        ]
    return rows.select(pl.concat_str(parts, separator="/")).to_series()


def _column(values: pl.Series) -> Any:
    """Turn a column into pandas: text as categories, whole numbers and truth values with NA for what is missing."""
    import pandas as pd

    if values.dtype == pl.Categorical:
        used = values.cast(pl.String)
        categories = used.drop_nulls().unique().sort()
        codes = used.replace_strict(
            categories, pl.Series(range(len(categories)), dtype=pl.Int32), default=-1, return_dtype=pl.Int32
        )
        kinds = pd.Index(categories.to_list(), dtype=object)
        return pd.Categorical.from_codes(codes.to_numpy(), categories=kinds)
    if values.dtype.is_float():
        return values.to_numpy()
    # Masked arrays keep a number a number where one is missing; a column without is plain.
    if not values.null_count():
        return values.to_numpy()
    masked = pd.arrays.BooleanArray if values.dtype == pl.Boolean else pd.arrays.IntegerArray
    filled = values.fill_null(False) if values.dtype == pl.Boolean else values.fill_null(0)
    return masked(filled.to_numpy().copy(), values.is_null().to_numpy().copy())


def _plain(lineage: dict[str, Any]) -> dict[str, Any]:
    """Write lineage in types that every version of anndata reads: what is not known is left out, lists are JSON."""
    plain: dict[str, Any] = {}
    for key, value in lineage.items():
        if isinstance(value, dict) and key != "parameters":
            plain[key] = _plain(value)
        elif value is not None:
            plain[key] = value if isinstance(value, str | int | float) else json.dumps(value, sort_keys=True)
    return plain
