"""Files that a user brings to an evaluation: clusters, splits, known pairs, assays."""

from dataclasses import dataclass, fields
from hashlib import blake2b
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray

from warehouse.errors import EvaluationError
from warehouse.names import unknown


@dataclass(frozen=True)
class Inputs:
    """Paths of CSV or Parquet files; None where there is none.

    Attributes:
        clusters: columns that name rows of the level (treatment, say) and `cluster`: labels a method brings itself.
        folds: columns that name rows, or their compound, and `fold`, a whole number: splits for training and test.
        pairs: `NAME_a` and `NAME_b`, where NAME is a column of the level (compound_a, compound_b): known pairs.
        assays: a column that names rows or their compound, `assay`, and `active`, 0 or 1.
    """

    clusters: Path | None = None
    folds: Path | None = None
    pairs: Path | None = None
    assays: Path | None = None

    def marks(self) -> dict[str, str]:
        """Hash the content of each file that is given, by its name here.

        Raises:
            EvaluationError: a file cannot be read.
        """
        paths = {one.name: getattr(self, one.name) for one in fields(self)}
        return {
            name: blake2b(_bytes(path), digest_size=16).hexdigest() for name, path in paths.items() if path
        }


def clusters_of(path: Path, rows: pl.DataFrame) -> tuple[list[str | None], int]:
    """Give each row its cluster, None where the file has none for it; and count the lines that fit no row.

    Raises:
        EvaluationError: the file is none of this form, or fits no row.
    """
    found, lost = _one_a_row(path, rows, "cluster")
    return found.to_list(), lost


def folds_of(path: Path, rows: pl.DataFrame) -> tuple[NDArray[np.int64], int]:
    """Give each row its fold, (n,) int64, -1 where the file has none for it; and count the lines that fit no row.

    Raises:
        EvaluationError: the file is none of this form, fits no row, or a fold is no whole number from 0 on.
    """
    found, lost = _one_a_row(path, rows, "fold")
    numbers = found.cast(pl.Int64, strict=False)
    wrong = found.filter(found.is_not_null() & (numbers.is_null() | (numbers < 0)))
    if len(wrong):
        message = f"{path}: fold {wrong[0]!r} is no whole number from 0 on"
        raise EvaluationError(message)
    return numbers.fill_null(-1).to_numpy(), lost


def pairs_of(path: Path, rows: pl.DataFrame) -> tuple[NDArray[np.int64], int]:
    """Give the row numbers of known pairs, (m, 2) int64, and how many pairs of the file name a row that is not there.

    Raises:
        EvaluationError: the file is none of this form, a name stands for several rows, or no pair is left.
    """
    table = _table(path)
    columns = [
        name[:-2] for name in table.columns if name.endswith("_a") and name[:-2] + "_b" in table.columns
    ]
    if len(columns) != 1:
        message = (
            f"{path} has columns {', '.join(table.columns)}: give NAME_a and NAME_b, where NAME is a column of the "
            "level, such as compound_a and compound_b"
        )
        raise EvaluationError(message)
    (column,) = columns
    if column not in rows.columns:
        raise unknown(column, f"column of this level, in {path}", rows.columns)
    _refuse_lists(path, column, rows)
    where = rows.select(pl.col(column).cast(pl.String).alias("name")).with_row_index("row")
    where = where.filter(pl.col("name").is_not_null())
    asked = pl.concat([table[f"{column}_a"], table[f"{column}_b"]])
    repeated = where.filter(pl.col("name").is_duplicated() & pl.col("name").is_in(asked.implode()))
    if len(repeated):
        name = repeated["name"][0]
        count = len(repeated.filter(pl.col("name") == name))
        message = f"{path}: {column} {name!r} stands for {count} rows of this level: score a level with one row each"
        raise EvaluationError(message)
    numbers = dict(where.select("name", "row").iter_rows())
    pairs = [
        (numbers[a], numbers[b])
        for a, b in table.select(f"{column}_a", f"{column}_b").iter_rows()
        if a in numbers and b in numbers
    ]
    if not pairs:
        message = f"{path}: none of {len(table)} pairs has both of its {column}s among {len(rows)} rows"
        raise EvaluationError(message)
    return np.array(pairs, np.int64), len(table) - len(pairs)


def assays_of(path: Path, rows: pl.DataFrame) -> tuple[NDArray[np.float64], list[str], int]:
    """Give a matrix (n, assays) of 0, 1 and NaN (no label), the assays' names, sorted, and the lines that fit no row.

    Raises:
        EvaluationError: the file is none of this form, fits no row, or has both 0 and 1 for one row and assay.
    """
    table = _table(path)
    keys = _keys(path, table, rows, ("assay", "active"))
    active = table["active"].cast(pl.Float64, strict=False)
    wrong = table["active"].filter(active.is_null() | ~active.is_in([0.0, 1.0]))
    if len(wrong):
        message = f"{path}: active is {wrong[0]!r}: write 1, or 0, and no line where it is not known"
        raise EvaluationError(message)
    if table["assay"].null_count():
        message = (
            f"{path}: {table['assay'].null_count()} lines name no assay: fill the column, or leave them out"
        )
        raise EvaluationError(message)
    table = table.with_columns(active=active).unique()
    twice = table.filter(pl.struct(*keys, "assay").is_duplicated())
    if len(twice):
        message = f"{path}: {twice[keys[0]][0]!r} is both active and inactive in assay {twice['assay'][0]!r}"
        raise EvaluationError(message)
    named = rows.select(pl.col(keys).cast(pl.String)).with_row_index("row")
    joined = named.join(table, on=keys)
    if joined.is_empty():
        message = f"{path}: no line fits a row by {', '.join(keys)}"
        raise EvaluationError(message)
    names = sorted(joined["assay"].unique().to_list())
    matrix = np.full((len(rows), len(names)), np.nan)
    place = {name: number for number, name in enumerate(names)}
    matrix[joined["row"].to_numpy(), [place[name] for name in joined["assay"]]] = joined["active"].to_numpy()
    return matrix, names, len(table.join(named, on=keys, how="anti"))


def _one_a_row(path: Path, rows: pl.DataFrame, column: str) -> tuple[pl.Series, int]:
    table = _table(path)
    keys = _keys(path, table, rows, (column,))
    table = table.select(*keys, column).unique()
    twice = table.filter(pl.struct(*keys).is_duplicated())
    if len(twice):
        message = f"{path}: {'/'.join(map(str, twice.select(keys).row(0)))} has more than one {column}"
        raise EvaluationError(message)
    named = rows.select(pl.col(keys).cast(pl.String))
    found = named.join(table, on=keys, how="left", maintain_order="left", validate="m:1")[column]
    if found.null_count() == len(found):
        message = f"{path}: no line fits a row by {', '.join(keys)}"
        raise EvaluationError(message)
    return found, len(table.join(named, on=keys, how="anti"))


def _keys(path: Path, table: pl.DataFrame, rows: pl.DataFrame, values: tuple[str, ...]) -> list[str]:
    """Return the columns that name rows: all but the values."""
    for value in values:
        if value not in table.columns:
            raise unknown(value, f"column of {path}", table.columns)
    keys = [name for name in table.columns if name not in values]
    for name in keys:
        if name not in rows.columns:
            raise unknown(name, f"column of this level, in {path}", rows.columns)
        _refuse_lists(path, name, rows)
    if not keys:
        message = f"{path} has only {', '.join(values)}: give a column that names rows too, such as treatment"
        raise EvaluationError(message)
    return keys


def _refuse_lists(path: Path, name: str, rows: pl.DataFrame) -> None:
    if rows[name].dtype.is_nested():
        message = f"{path}: {name} is a list in each row, and names none: use treatment or compound"
        raise EvaluationError(message)


def _table(path: Path) -> pl.DataFrame:
    """Read a CSV or Parquet file, every column as text."""
    _bytes(path, 1)
    try:
        if path.suffix == ".parquet":
            table = pl.read_parquet(path, glob=False).select(pl.all().cast(pl.String))
        else:
            table = pl.read_csv(path, infer_schema=False, glob=False)
    except (pl.exceptions.PolarsError, ValueError) as error:
        message = f"{path} is no CSV or Parquet table: {str(error).splitlines()[0]}"
        raise EvaluationError(message) from error
    return table


def _bytes(path: Path, count: int = -1) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(count)
    except OSError as error:
        message = f"{path} cannot be read: {error.strerror}"
        raise EvaluationError(message) from error
