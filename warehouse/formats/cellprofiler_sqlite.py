"""CellProfiler SQLite: tables Image, Cells, Nuclei, Cytoplasm (or Per_Image, Per_Cells, …), read by groups of images.

Rows of a group are fetched by their row ids: a run where the rows of its images stand together, else one by one, so
that memory is bounded by the group in whatever order rows are.
"""

import re
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from urllib.parse import quote

import numpy as np
import polars as pl

from warehouse.errors import ProfileError
from warehouse.formats.cellprofiler import plates_of
from warehouse.formats.cellprofiler_tables import ROW, Export, Table
from warehouse.formats.model import ImportSettings, Plate
from warehouse.sqltext import identifier

_MAGIC = b"SQLite format 3\0"
_MISSING = {"", "nan", "-nan", "na", "none", "null"}
#: Rows turned into numbers at once, and row ids bound in one query.
_AT_ONCE = 256


def recognises(path: Path) -> bool:
    """Whether a path is an SQLite file, by its first bytes."""
    try:
        with path.open("rb") as file:
            return file.read(len(_MAGIC)) == _MAGIC
    except OSError:
        return False


def read(paths: Sequence[Path], settings: ImportSettings) -> list[Plate]:
    """Open SQLite files of CellProfiler.

    Raises:
        ProfileError: one is cut short or no SQLite file, has no table of images or of objects, or as `plates_of`.
    """
    return [plate for path in paths for plate in plates_of(path, [_export(path)], settings)]


def _export(path: Path) -> Export:
    _refuse_cut_short(path)
    with _connected(path) as connection:
        listed = connection.execute(
            "SELECT name FROM sqlite_master WHERE type = 'table' AND sql NOT LIKE 'CREATE VIRTUAL%'"
        ).fetchall()
        tables: dict[str, Table] = {}
        for (stored,) in listed:
            columns = tuple(row[1] for row in connection.execute(f"PRAGMA table_info({identifier(stored)})"))
            name = re.sub(r"^(?:.*_)?Per_", "", stored)
            table = Table(
                name,
                f"{path} table {stored}",
                columns,
                partial(_select, path, stored),
                partial(_fetch, path, stored),
            )
            if name == "Image" or table.is_of_objects():
                if name in tables:
                    message = f"{path}: tables {tables[name].origin.split()[-1]} and {stored} are both {name}: keep one"
                    raise ProfileError(message)
                tables[name] = table
    images = tables.pop("Image", None)
    if images is None:
        names = ", ".join(name for (name,) in listed[:6]) or "none"
        message = f"{path}: no table Image or Per_Image; it has {names}: is this an export of CellProfiler?"
        raise ProfileError(message)
    return Export(path, images, tables)


def _refuse_cut_short(path: Path) -> None:
    """Compare the file's size with the one that its header tells."""
    if not path.is_file():
        message = f"{path}: there is no such file"
        raise ProfileError(message)
    with path.open("rb") as file:
        head = file.read(100)
    if not head.startswith(_MAGIC):
        message = f"{path}: is no SQLite file"
        raise ProfileError(message)
    page = int.from_bytes(head[16:18], "big")
    told, size = (65536 if page == 1 else page) * int.from_bytes(head[28:32], "big"), path.stat().st_size
    # The header's size holds where the two counters of changes agree (SQLite file format, 1.3.7).
    if head[24:28] == head[92:96] and size < told:
        message = f"{path}: is cut short: it has {size} of {told} bytes: copy it again"
        raise ProfileError(message)


@contextmanager
def _connected(path: Path) -> Iterator[sqlite3.Connection]:
    # Without a log beside it nobody is writing the file: then it is read where nothing can be written beside it, too.
    logs = [path.with_name(path.name + end) for end in ("-wal", "-journal")]
    mode = "mode=ro" if any(log.exists() for log in logs) else "immutable=1"
    try:
        connection = sqlite3.connect(f"file:{quote(str(path.absolute()))}?{mode}", uri=True)
        try:
            connection.execute("PRAGMA trusted_schema = OFF")
            yield connection
        finally:
            connection.close()
    except sqlite3.Error as error:
        message = f"{path}: SQLite cannot read it ({error}): was it copied whole?"
        raise ProfileError(message) from error


def _select(path: Path, table: str, columns: Sequence[str]) -> pl.DataFrame:
    names = ", ".join(map(identifier, columns))
    with _connected(path) as connection:
        rows = connection.execute(f"SELECT rowid, {names} FROM {identifier(table)} ORDER BY rowid")
        found = [
            pl.DataFrame(_columns(part, [ROW, *columns])) for part in iter(lambda: rows.fetchmany(50_000), [])
        ]
    if not found:
        return pl.DataFrame(schema={ROW: pl.Int64, **dict.fromkeys(columns, pl.String)})
    return pl.concat(found, how="vertical_relaxed")


def _columns(rows: list[tuple[object, ...]], names: Sequence[str]) -> dict[str, pl.Series]:
    return {
        name: pl.Series(name, values, strict=False)
        for name, values in zip(names, zip(*rows, strict=True), strict=True)
    }


def _fetch(path: Path, table: str, rows: np.ndarray, columns: Sequence[str]) -> np.ndarray:
    """Read some columns of the rows with ascending ids: (n, d) float64, NaN = missing."""
    names, stored = ", ".join(map(identifier, columns)), identifier(table)
    first, last = int(rows[0]), int(rows[-1])
    values = np.empty((len(rows), len(columns)))
    with _connected(path) as connection:
        if last - first + 1 == len(rows):
            found = connection.execute(
                f"SELECT {names} FROM {stored} WHERE rowid BETWEEN ? AND ? ORDER BY rowid", (first, last)
            )
            done = 0
            while part := found.fetchmany(_AT_ONCE):
                values[done : done + len(part)] = _numbers(part, columns, f"{path} table {table}")
                done += len(part)
            return values
        for start in range(0, len(rows), _AT_ONCE):
            ids = rows[start : start + _AT_ONCE].tolist()
            marks = ", ".join("?" * len(ids))
            part = connection.execute(
                f"SELECT {names} FROM {stored} WHERE rowid IN ({marks}) ORDER BY rowid", ids
            ).fetchall()
            values[start : start + len(ids)] = _numbers(part, columns, f"{path} table {table}")
    return values


def _numbers(rows: list[tuple[object, ...]], columns: Sequence[str], origin: str) -> np.ndarray:
    try:
        return np.array(rows, dtype=np.float64)  # None is NaN, and so is the text nan
    except (ValueError, TypeError):
        return np.array(
            [[_number(value, name, origin) for value, name in zip(row, columns, strict=True)] for row in rows]
        )


def _number(value: object, column: str, origin: str) -> float:
    if value is None or (isinstance(value, str) and value.strip().casefold() in _MISSING):
        return np.nan
    try:
        return float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError) as error:
        message = (
            f"{origin}, column {column!r}: {value!r} is not a number: mend it, or list the features with "
            "--features FILE"
        )
        raise ProfileError(message) from error
