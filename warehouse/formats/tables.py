"""Tables of profiles: CSV, TSV (.gz) and Parquet of CellProfiler, pycytominer, embeddings; rows of any level."""

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow.parquet as pq

from warehouse import feature_lists
from warehouse.errors import ProfileError
from warehouse.formats.keys import KEY_COLUMNS, find_keys
from warehouse.formats.model import GEOMETRY, ImportSettings, Plate
from warehouse.formats.rows import Fetch, row_plates
from warehouse.formats.text import TextTable, unreadable
from warehouse.names import unknown

SUFFIXES = (".csv", ".csv.gz", ".tsv", ".tsv.gz", ".parquet")
#: Columns that are measurements where no list of features is given: CellProfiler's compartments, and numbered
#: embeddings. Every other column must be metadata by name, or the list must be given.
_FEATURE = re.compile(
    r"(?:(?:Cells|Nuclei|Cytoplasm|Image)_(?!Metadata_|FileName_|PathName_|URL_).+"
    r"|(?:emb|efficientnet_|X_|embedding_|feature_)\d+)"
)
_METADATA = re.compile(r"(?:Image_)?(?:Metadata|FileName|PathName|URL)_.+")


@dataclass(frozen=True)
class Column:
    """One column of numbers, or of lists of `width` numbers (features `name_0` to `name_<width - 1>`)."""

    name: str
    width: int | None = None


def recognises(path: Path) -> bool:
    """Whether a path is a file with the suffix of a table."""
    return path.is_file() and path.name.lower().endswith(SUFFIXES)


def read(paths: Sequence[Path], settings: ImportSettings) -> list[Plate]:
    """Open files of profiles.

    Raises:
        ProfileError: one cannot be read, lacks a key, repeats a row or a column, or holds what is no number.
    """
    return [plate for path in paths for plate in _read_one(path, settings)]


def _read_one(path: Path, settings: ImportSettings) -> list[Plate]:
    check_file(path)
    if path.name.lower().endswith(".parquet"):
        return _parquet(path, settings)
    table = TextTable(path)
    if settings.features is None:
        settings = replace(settings, features=features_beside(path))
    columns = features_of(path, table.schema, settings)
    names = [column.name for column in columns]
    rows = table.select([name for name in table.schema if name not in set(names)])
    check_numbers(path, table, columns)

    def fetch(positions: np.ndarray) -> np.ndarray:
        first, last = int(positions[0]), int(positions[-1])
        part = table.rows(first, last, names)
        return numbers(path, part if len(part) == len(positions) else part[positions - first], columns, first)

    return row_plates(path, rows, feature_names(columns), fetch, settings)


def check_numbers(path: Path, table: TextTable, columns: Sequence[Column]) -> None:
    """Refuse a text table with a value that is no number, before anything of it is taken in.

    Raises:
        ProfileError: the first such value, with its row and column.
    """
    names, step = [column.name for column in columns], max(256, 2**24 // (8 * max(len(columns), 1)))
    for first in range(0, len(table), step):
        numbers(path, table.rows(first, first + step - 1, names), columns, first)


def _parquet(path: Path, settings: ImportSettings) -> list[Plate]:
    try:
        scan = pl.scan_parquet(path)
        schema = scan.collect_schema()
        if settings.features is None:
            settings = replace(settings, features=_features_in(path))
        columns = features_of(path, schema, settings, lambda name: _list_width(path, name))
        rows = scan.drop(column.name for column in columns).collect()
        if not rows.width:
            rows = pl.DataFrame({"row": range(pq.read_metadata(path).num_rows)})
    except (pl.exceptions.PolarsError, OSError) as error:
        raise unreadable(path, error) from error
    return row_plates(path, rows, feature_names(columns), parquet_rows(path, columns), settings)


def read_metadata(path: Path) -> pl.DataFrame:
    """Read a table of keys, without looking for features.

    Raises:
        ProfileError: it cannot be read.
    """
    check_file(path)
    if path.name.lower().endswith(".parquet"):
        try:
            return pl.read_parquet(path)
        except (pl.exceptions.PolarsError, OSError) as error:
            raise unreadable(path, error) from error
    table = TextTable(path)
    return table.select(list(table.schema))


def list_columns(path: Path) -> list[Column]:
    """Find the columns of lists of numbers of a Parquet file.

    Raises:
        ProfileError: it cannot be read.
    """
    try:
        schema = pl.scan_parquet(path).collect_schema()
        return [
            Column(name, _list_width(path, name))
            for name, kind in schema.items()
            if isinstance(kind, pl.List | pl.Array)
        ]
    except (pl.exceptions.PolarsError, OSError) as error:
        raise unreadable(path, error) from error


def _features_in(path: Path) -> tuple[str, ...] | None:
    """Read the list of features that a Parquet file of ours carries; None where it has none."""
    written = (pq.read_schema(path).metadata or {}).get(feature_lists.FEATURES_KEY)
    return None if written is None else tuple(map(str, json.loads(written)))


def parquet_rows(path: Path, columns: Sequence[Column]) -> Fetch:
    """Make the function that fetches rows of a Parquet file: a slice where they stand together, else a filter."""

    def fetch(positions: np.ndarray) -> np.ndarray:
        scan = pl.scan_parquet(path)
        first, last = int(positions[0]), int(positions[-1])
        names = [column.name for column in columns]
        try:
            table = scan.slice(first, last - first + 1).select(names).collect()
        except (pl.exceptions.PolarsError, OSError) as error:
            raise unreadable(path, error) from error
        if len(positions) < last - first + 1:
            table = table[positions - first]
        return numbers(path, table, columns, first)

    return fetch


def check_file(path: Path) -> None:
    """Refuse what is no file, or of a kind that is not read.

    Raises:
        ProfileError: the path, and what may be given.
    """
    if not path.is_file():
        message = f"{path}: " + (
            "is a folder: name the files in it" if path.is_dir() else "there is no such file"
        )
        raise ProfileError(message)
    if not path.name.lower().endswith(SUFFIXES):
        message = f"{path}: unknown kind of file {path.suffix!r}: give .csv, .csv.gz, .tsv or .parquet"
        raise ProfileError(message)


def features_of(
    path: Path,
    schema: pl.Schema,
    settings: ImportSettings,
    width: Callable[[str], int] | None = None,
) -> list[Column]:
    """Find the columns that are features: those listed, else by their names; lists of numbers are embeddings.

    Raises:
        ProfileError: a column is neither known metadata nor a known kind of feature, or none is a feature.
        UnknownNameError: a listed feature is no column.
    """
    find_keys(
        path, schema.names(), settings
    )  # what is wrong with a key is said before what is wrong with a feature
    known = {name for names in KEY_COLUMNS.values() for name in names} | {
        *settings.columns.values(),
        *GEOMETRY,
    }
    if settings.features is not None:
        for name in settings.features:
            if name not in schema:
                raise unknown(name, f"feature in {path}", schema.names())
        chosen = list(settings.features)
    else:
        chosen = []
        for name, kind in schema.items():
            if name in known or _METADATA.fullmatch(name):
                continue
            if not (_FEATURE.fullmatch(name) or isinstance(kind, pl.List | pl.Array)):
                message = (
                    f"{path}: column {name!r} is neither metadata (Metadata_…) nor a known kind of feature "
                    "(Cells_, Nuclei_, Cytoplasm_, Image_, emb0, X_1): list the features with --features FILE"
                )
                raise ProfileError(message)
            chosen.append(name)
    if not chosen:
        message = f"{path}: no column is a feature (Cells_, Nuclei_, …): list them with --features FILE"
        raise ProfileError(message)
    found = []
    for name in chosen:
        is_list = isinstance(schema[name], pl.List | pl.Array)
        found.append(Column(name, width(name) if is_list and width else None))
    return found


def feature_names(columns: Sequence[Column]) -> tuple[str, ...]:
    """Name each number: the column, or the column and a position in its lists."""
    names: list[str] = []
    for column in columns:
        if column.width is None:
            names.append(column.name)
        else:
            names += [f"{column.name}_{position}" for position in range(column.width)]
    return tuple(names)


def _list_width(path: Path, name: str) -> int:
    """Read how long the first list of a column is; the others must be as long."""
    head = pl.scan_parquet(path).select(name).drop_nulls().head(1).collect()
    return len(head[name][0]) if len(head) else 0


def numbers(path: Path, table: pl.DataFrame, columns: Sequence[Column], first: int = 0) -> np.ndarray:
    """Turn columns into a matrix.

    Args:
        path: for messages.
        table: with at least these columns, of text or of numbers.
        columns: in order.
        first: position in the file of the table's first row, for messages.

    Returns:
        (n, d) float32; NaN where a value is missing.

    Raises:
        ProfileError: a value is no number, or a list has another length than the first.
    """
    widths = [1 if column.width is None else column.width for column in columns]
    starts = [0, *accumulate(widths)]
    matrix = np.empty((len(table), starts[-1]), np.float32)
    plain = [index for index, column in enumerate(columns) if column.width is None]
    if plain:
        matrix[:, [starts[index] for index in plain]] = _plain(
            path, table.select(columns[i].name for i in plain), first
        )
    for index, column in enumerate(columns):
        if column.width is not None:
            matrix[:, starts[index] : starts[index + 1]] = _block(path, table, column, first)
    return matrix


def _plain(path: Path, given: pl.DataFrame, first: int) -> np.ndarray:
    floats = given.select(pl.all().cast(pl.Float64, strict=False))
    for name, lost, empty in zip(
        given.columns, floats.null_count().row(0), given.null_count().row(0), strict=True
    ):
        if lost == empty:
            continue
        row = int((floats[name].is_null() & given[name].is_not_null()).arg_true()[0])
        message = (
            f"{path}: row {first + row + 2}, column {name!r}: {given[name][row]!r} is not a number: mend it, or list "
            "the features with --features FILE"
        )
        raise ProfileError(message)
    with np.errstate(over="ignore"):  # beyond float32 is infinite: that row is rejected by name
        return floats.fill_null(np.nan).to_numpy().astype(np.float32)


def _block(path: Path, table: pl.DataFrame, column: Column, first: int) -> np.ndarray:
    lists = table[column.name].cast(pl.List(pl.Float32), strict=False)
    lengths = lists.list.len()
    wrong = (lengths != column.width).fill_null(False).arg_true()
    if len(wrong):
        row = int(wrong[0])
        message = (
            f"{path}: row {first + row + 1}, column {column.name!r}: {lengths[row]} numbers, the first row has "
            f"{column.width}: every profile of a feature set has as many"
        )
        raise ProfileError(message)
    matrix = np.full((len(table), int(column.width or 0)), np.nan, np.float32)
    there = lists.is_not_null()
    flat = lists.filter(there).explode(empty_as_null=False)
    matrix[there.to_numpy()] = flat.fill_null(np.nan).to_numpy().reshape(-1, matrix.shape[1])
    return matrix


def read_feature_list(path: Path) -> tuple[str, ...]:
    """Read names of features, one a line, in order.

    Raises:
        ProfileError: no file, no name, or a name twice.
    """
    if not path.is_file():
        message = f"{path}: there is no such file of feature names"
        raise ProfileError(message)
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (UnicodeDecodeError, OSError) as error:
        message = f"{path}: not a text file of feature names ({error}): write one name a line, in UTF-8"
        raise ProfileError(message) from error
    names = feature_lists.from_text(text)
    twice = {name for name in names if names.count(name) > 1} if len(set(names)) < len(names) else set()
    if not names or twice:
        message = f"{path}: " + (f"feature {sorted(twice)[0]!r} stands twice" if twice else "holds no name")
        raise ProfileError(message)
    return tuple(names)


def features_beside(path: Path) -> tuple[str, ...] | None:
    """Read the list that `wellhouse export` puts beside a file, `x.features.txt` for `x.csv`; None where there is none.

    Raises:
        ProfileError: it holds no name, or a name twice.
    """
    ending = next(
        (known for known in (".csv.gz", ".tsv.gz") if path.name.lower().endswith(known)), path.suffix
    )
    beside = path.with_name(f"{path.name[: len(path.name) - len(ending)]}.features.txt")
    return read_feature_list(beside) if beside.is_file() else None
