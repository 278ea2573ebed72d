"""Tables kept as text: a small one in memory, a large one as a temporary Parquet file, so that rows can be picked."""

import tempfile
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

import polars as pl

from warehouse.errors import ProfileError

#: Files up to this size are read whole, a .gz up to an eighth of it.
IN_MEMORY_BYTES = 2**25
_MISSING = ["", "nan", "NaN", "NA", "null"]


class TextTable:
    """A CSV or TSV (.gz), every column as text, missing values as NULL; rows are picked by position.

    Raises:
        ProfileError: it cannot be read, or two columns have one name.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        separator = self._separator = "\t" if ".tsv" in path.name.lower() else ","
        try:
            # Look at the header before a reader renames the second of two columns of one name.
            head = _head(path, separator)
            for name in head:
                if name is not None and head.count(name) > 1:
                    message = f"{path}: column {name!r} stands {head.count(name)} times: keep one"
                    raise ProfileError(message)
            limit = IN_MEMORY_BYTES // (8 if path.name.lower().endswith(".gz") else 1)
            if path.stat().st_size <= limit:
                self._parquet = None
                table = _read(path, separator, path.stat().st_mtime_ns)
                self.schema, self._rows = table.schema, len(table)
            else:
                self._folder = tempfile.TemporaryDirectory(prefix="wellhouse-")  # goes with this object
                copy = Path(self._folder.name) / "rows.parquet"
                scan = pl.scan_csv(path, separator=separator, infer_schema=False, null_values=_MISSING)
                scan = scan.rename(_quoted(scan.collect_schema().names(), head))
                scan.sink_parquet(copy, compression="lz4", row_group_size=4096)
                self._parquet = pl.scan_parquet(copy)
                self.schema = self._parquet.collect_schema()
                self._rows = int(self._parquet.select(pl.len()).collect().item())
        except (pl.exceptions.PolarsError, OSError) as error:
            raise unreadable(path, error) from error

    def __len__(self) -> int:
        return self._rows

    def select(self, columns: Sequence[str]) -> pl.DataFrame:
        """Return some columns of all rows."""
        return self._scan().select(columns).collect()

    def rows(self, first: int, last: int, columns: Sequence[str]) -> pl.DataFrame:
        """Return some columns of the rows from `first` to `last`, both included."""
        return self._scan().slice(first, last - first + 1).select(columns).collect()

    def _scan(self) -> pl.LazyFrame:
        if self._parquet is not None:
            return self._parquet
        try:
            return _read(self.path, self._separator, self.path.stat().st_mtime_ns).lazy()
        except (pl.exceptions.PolarsError, OSError) as error:
            raise unreadable(self.path, error) from error


@lru_cache(maxsize=4)  # thousands of files may be open: only the tables at hand are held
def _read(path: Path, separator: str, _: int) -> pl.DataFrame:
    table = pl.read_csv(path, separator=separator, infer_schema=False, null_values=_MISSING)
    return table.rename(_quoted(table.columns, _head(path, separator)))


def _head(path: Path, separator: str) -> tuple[str | None, ...]:
    return pl.read_csv(path, separator=separator, has_header=False, n_rows=1, infer_schema=False).row(0)


def _quoted(columns: Sequence[str], head: Sequence[str | None]) -> dict[str, str]:
    """Map names in which Polars leaves a quotation mark doubled to what they are: of a row of values it does not."""
    pairs = zip(columns, head, strict=False)
    return {
        found: name for found, name in pairs if name and found != name and found == name.replace('"', '""')
    }


def unreadable(path: Path, error: Exception) -> ProfileError:
    """Build the error for a file that its reader gives up on."""
    return ProfileError(f"{path}: cannot be read as a table: {str(error).splitlines()[0]}")
