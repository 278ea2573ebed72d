"""Writers of files: Parquet, CSV and NumPy; each takes batches of metadata and features, and holds one at a time."""

import gzip
import io
import json
from abc import ABC, abstractmethod
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Self, cast

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from warehouse.errors import ExportError
from warehouse.feature_lists import FEATURES_KEY, LINEAGE_KEY, to_text

#: 7.038531e-26, the float32 that `_decimal` is about.
_LOST = np.array(0x15AE43FD, dtype=np.uint32).view(np.float32)


@dataclass(frozen=True)
class Head:
    """What a file says of itself: d names of features, the columns that name a row, and where the rows are from."""

    features: tuple[str, ...]
    ids: tuple[str, ...]
    lineage: dict[str, Any]

    def parquet_metadata(self) -> dict[bytes, bytes]:
        """Return the features and the lineage as a Parquet schema keeps them."""
        features, lineage = (json.dumps(part, ensure_ascii=False) for part in (self.features, self.lineage))
        return {FEATURES_KEY: features.encode(), LINEAGE_KEY: lineage.encode()}


class Writer(ABC):
    """Writes one export; a context, which closes its files whether or not all went well.

    Args:
        paths: the file and its companions, in the order of its kind.
        head: what the file says of itself.
    """

    #: What is added to the name, less its suffix, of each companion.
    companions: tuple[str, ...] = ()

    def __init__(self, paths: Sequence[Path], head: Head) -> None:
        self.paths, self.head = paths, head
        self._files = ExitStack()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._files.close()

    @abstractmethod
    def write(self, rows: pl.DataFrame, matrix: np.ndarray) -> None:
        """Append rows: metadata, and features (n, d) float32 with NaN for a missing element."""

    def finish(self) -> None:  # noqa: B027
        """Write what comes after the last row."""


class ParquetWriter(Writer):
    """One column a metadata and a feature; features and lineage in the schema's metadata."""

    _writer: pq.ParquetWriter | None = None

    def write(self, rows: pl.DataFrame, matrix: np.ndarray) -> None:
        """Append one row group."""
        _refuse_collisions(rows, self.head.features)
        metadata = to_arrow(rows)
        fields = [*metadata.schema, *(pa.field(name, pa.float32()) for name in self.head.features)]
        schema = pa.schema(fields, metadata=self.head.parquet_metadata())
        if self._writer is None:
            # Features are rarely repeated: a dictionary of them only costs.
            self._writer = self._files.enter_context(
                pq.ParquetWriter(
                    self.paths[0], schema, compression="zstd", use_dictionary=metadata.schema.names
                )
            )
        # from_pandas turns NaN into NULL: missing is NULL in every file of ours that has it.
        columns = [pa.array(column, from_pandas=True) for column in np.ascontiguousarray(matrix.T)]
        table = pa.Table.from_arrays([*metadata.columns, *columns], schema=schema)
        self._writer.write_table(table, row_group_size=max(1, len(rows)))


class CsvWriter(Writer):
    """One line a row; a missing value is empty. The list of features and the lineage stand beside it."""

    companions = (".features.txt", ".lineage.json")
    is_compressed = False
    _file: IO[bytes] | None = None

    def write(self, rows: pl.DataFrame, matrix: np.ndarray) -> None:
        """Append lines; the first ones come after the header."""
        _refuse_collisions(rows, self.head.features)
        is_first = self._file is None
        if self._file is None:
            self._file = self._files.enter_context(self.paths[0].open("wb"))
            if self.is_compressed:
                # Without a name and a time: the same rows give the same bytes.
                zipped = gzip.GzipFile("", "wb", compresslevel=6, fileobj=self._file, mtime=0)
                self._file = cast(IO[bytes], self._files.enter_context(zipped))
        columns = zip(self.head.features, np.ascontiguousarray(matrix.T), strict=True)
        features = [pl.Series(name, _decimal(column)).fill_nan(None) for name, column in columns]
        text = io.BytesIO()
        rows.hstack(features).write_csv(text, include_header=is_first)
        self._file.write(text.getbuffer())

    def finish(self) -> None:
        """Write the companions."""
        self.paths[1].write_text(to_text(self.head.features), encoding="utf-8")
        text = json.dumps(self.head.lineage, indent=2, ensure_ascii=False)
        self.paths[2].write_text(f"{text}\n", encoding="utf-8")


class GzippedCsvWriter(CsvWriter):
    """The same, compressed."""

    is_compressed = True


class NumpyWriter(Writer):
    """The features as a matrix (n, d) float32; rows' metadata, in the same order, and features' names beside it."""

    companions = (".metadata.parquet", ".features.txt")
    _file: IO[bytes] | None = None
    _metadata: pq.ParquetWriter | None = None
    _rows = 0

    def write(self, rows: pl.DataFrame, matrix: np.ndarray) -> None:
        """Append rows to the matrix and to its metadata."""
        metadata = to_arrow(rows)
        if self._file is None or self._metadata is None:
            self._file = self._files.enter_context(self.paths[0].open("wb"))
            self._head(0)
            schema = metadata.schema.with_metadata(self.head.parquet_metadata())
            self._metadata = self._files.enter_context(
                pq.ParquetWriter(self.paths[1], schema, compression="zstd")
            )
        self._metadata.write_table(metadata.replace_schema_metadata(self._metadata.schema.metadata))
        self._file.write(np.ascontiguousarray(matrix, dtype="<f4").tobytes())
        self._rows += len(rows)

    def finish(self) -> None:
        """Write the number of rows into the header, and the names of the features."""
        assert self._file is not None
        end = self._file.tell()
        self._file.seek(0)
        self._head(self._rows)
        # NumPy leaves room in a header for the number of rows to grow.
        if end != self._file.tell() + 4 * self._rows * len(self.head.features):
            message = f"{self.paths[0]}: the header of {self._rows} rows has another length than that of none"
            raise ExportError(message)
        self.paths[2].write_text(to_text(self.head.features), encoding="utf-8")

    def _head(self, rows: int) -> None:
        assert self._file is not None
        shape = (rows, len(self.head.features))
        head = {"descr": "<f4", "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(self._file, head)


def _decimal(column: np.ndarray) -> np.ndarray:
    """Return float32 values in a type whose fewest digits, read as a double and rounded, give the same float32.

    Of all float32 one alone (and its negative) is lost on that way: its eight digits lie beside the middle between
    it and its neighbour, closer than a double can tell. Tried with each of them.
    """
    return column.astype(np.float64) if (np.abs(column) == _LOST).any() else column


def to_arrow(rows: pl.DataFrame) -> pa.Table:
    """Turn metadata into Arrow with the plain types that every reader knows."""
    table = rows.to_arrow(compat_level=pl.CompatLevel.oldest())
    plain = [
        pa.field(field.name, pa.string() if pa.types.is_large_string(field.type) else field.type)
        for field in table.schema
    ]
    return table.cast(pa.schema(plain))


def _refuse_collisions(rows: pl.DataFrame, features: Sequence[str]) -> None:
    twice = sorted(set(rows.columns) & set(features))
    if twice:
        message = (
            f"feature {twice[0]!r} has the name of a column of metadata: a table cannot hold both; export to .h5ad or "
            ".npy, which keep them apart"
        )
        raise ExportError(message)
