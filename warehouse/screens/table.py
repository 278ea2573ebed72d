"""Reading a CSV or TSV file strictly, and naming the place of a fault in it."""

import csv
import gzip
import io
import zlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import polars as pl

from warehouse.errors import ScreenError
from warehouse.names import unknown

FILE = "__file"
ROW = "__row"
TRACE = (FILE, ROW)
"""Where a row comes from: its file, and its row as a spreadsheet counts (the header is row 1)."""

IDS = ("source", "batch", "plate", "well", "field", "cell", "channel", "compound", "kind", "label")


def read_table(path: Path) -> pl.DataFrame:
    """Read a CSV or TSV file, plain or gzipped, as text.

    A file is tab-separated if its header holds a tab, else comma-separated. A byte order mark and the
    white space around every value are taken off; an empty value is null; blank lines are passed over.

    Args:
        path: the file.

    Returns:
        One String column per column of the file, and the columns `TRACE`.

    Raises:
        ScreenError: the file is absent, not UTF-8, empty, has a nameless or repeated column, or a row
            with more or fewer values than the header.
    """
    text = _text(path)
    frame, rows = _plain_rows(text, path) or _quoted_rows(text, path)
    frame = frame.with_columns(pl.all().str.strip_chars())
    return frame.with_columns(
        pl.when(pl.all() != "").then(pl.all()), pl.lit(str(path)).alias(FILE), rows.alias(ROW)
    )


def _plain_rows(text: str, path: Path) -> tuple[pl.DataFrame, pl.Series] | None:
    """Parse a text in which every separator parts two values and every line is a row; None for all others.

    A table of a million wells is read in a tenth of the time that `_quoted_rows` takes, to the same values.
    """
    if '"' in text or "\r" in text or "\n\n" in text or text.startswith("\n"):
        return None
    first = text.partition("\n")[0]
    separator = "\t" if "\t" in first else ","
    header = _header(path, first.split(separator))
    lines = pl.Series(text.removesuffix("\n").split("\n"))
    # Line by line: Polars passes over empty values beyond the last column, and fills those that a line lacks.
    counts = lines.str.count_matches(separator, literal=True)
    if len(header) == 1 or len(lines) < 2 or (counts != len(header) - 1).any():
        return None
    try:
        frame = pl.read_csv(
            text.encode(), separator=separator, quote_char=None, infer_schema=False, new_columns=header
        )
    except pl.exceptions.ComputeError:
        return None
    return frame, pl.int_range(2, frame.height + 2, dtype=pl.Int64, eager=True)


def _quoted_rows(text: str, path: Path) -> tuple[pl.DataFrame, pl.Series]:
    """Parse any CSV or TSV, and name the row that is at fault."""
    first = text.partition("\n")[0]
    reader = csv.reader(io.StringIO(text, newline=""), delimiter="\t" if "\t" in first else ",", strict=True)
    try:
        rows = list(reader)
    except csv.Error as error:
        message = f"{path}, line {reader.line_num}: {error}. Check the quotes in that line."
        raise ScreenError(message) from None
    header = _header(path, rows[0] if rows else [])
    # `row` counts blank lines too, so that it is what a spreadsheet shows.
    kept = [(n, row) for n, row in enumerate(rows[1:], start=2) if row and (len(row) > 1 or row[0].strip())]
    for n, row in kept:
        if len(row) != len(header):
            seen = f"{len(row)} values for {len(header)} columns"
            message = f"{path}, row {n}: {seen}. Give each column one value; an empty one counts."
            raise ScreenError(message)
    columns: Iterable[Sequence[str]] = (
        zip(*(row for _, row in kept), strict=True) if kept else [[] for _ in header]
    )
    frame = pl.DataFrame(
        {name: pl.Series(values, dtype=pl.String) for name, values in zip(header, columns, strict=True)}
    )
    return frame, pl.Series(ROW, [n for n, _ in kept], dtype=pl.Int64)


def _text(path: Path) -> str:
    try:
        data = path.read_bytes()
        data = gzip.decompress(data) if data[:2] == b"\x1f\x8b" else data
        return data.decode("utf-8-sig")
    except FileNotFoundError:
        message = f"{path}: there is no such file. Correct the path."
    except UnicodeDecodeError as error:
        message = (
            f"{path}: not UTF-8 text (byte {error.object[error.start]:#04x}). Save the file as CSV in UTF-8."
        )
    except (OSError, EOFError, zlib.error) as error:
        message = f"{path}: cannot be read ({error}). Give a CSV or TSV file, plain or gzipped."
    raise ScreenError(message)


def _header(path: Path, row: Sequence[str]) -> list[str]:
    header = [name.strip() for name in row]
    if not any(header):
        message = f"{path}: the file is empty. The first row must name the columns."
        raise ScreenError(message)
    if len(header) == 1 and ";" in header[0]:
        message = (
            f"{path}: values are separated by semicolons ({header[0]!r}). Separate them by commas or tabs."
        )
        raise ScreenError(message)
    for n, name in enumerate(header, start=1):
        if not name or name in TRACE:
            message = f"{path}: column {n} has no usable name ({name!r}). Name it or take it out."
            raise ScreenError(message)
        if header.index(name) != n - 1:
            message = f"{path}: column {name!r} stands twice. Keep one."
            raise ScreenError(message)
    return header


def columns_of(table: pl.DataFrame) -> list[str]:
    """Return the columns of the file itself, without the trace."""
    return [name for name in table.columns if name not in TRACE]


def check_columns(
    table: pl.DataFrame, path: Path, required: Sequence[str], known: Sequence[str] | None = None
) -> None:
    """Refuse a table that lacks a required column or, where `known` is given, has one that is not known.

    Raises:
        ScreenError: naming the file, the column and the nearest known one.
    """
    if known is not None:
        for name in columns_of(table):
            if name not in known:
                message = f"{path}: {unknown(name, 'column', known)} Rename it or take it out."
                raise ScreenError(message)
    missing = [name for name in required if name not in table.columns]
    if missing:
        seen = ", ".join(columns_of(table))
        message = f"{path}: column {missing[0]!r} is missing; the file has {seen}. Add it."
        raise ScreenError(message)


def place(bad: pl.DataFrame, origin: str) -> str:
    """Name the first row of `bad`: by file and row where it is traced, else by its ids."""
    row = bad.row(0, named=True)
    if ROW in row:
        return f"{row[FILE]}, row {row[ROW]}"
    ids = ", ".join(f"{name} {row[name]}" for name in IDS if row.get(name) is not None)
    return f"{origin}, {ids}" if ids else origin


def literal(value: object) -> str:
    """Write a value so that `refuse` takes braces in it as they are."""
    return str(value).replace("{", "{{").replace("}", "}}")


def refuse(bad: pl.DataFrame, origin: str, says: str, remedy: str) -> None:
    """Raise for the first of the rows in `bad`; return quietly where there are none.

    Args:
        bad: the rows at fault.
        origin: what the table is, for rows without a trace.
        says: the fault, with ``{column}`` for values of that row.
        remedy: what to do.

    Raises:
        ScreenError: one line naming the place, the value, how many more rows, and the remedy.
    """
    if not bad.height:
        return
    more = f" (and {bad.height - 1} more {'row' if bad.height == 2 else 'rows'})" if bad.height > 1 else ""
    values: Mapping[str, object] = bad.row(0, named=True)
    message = f"{place(bad, origin)}: {says.format(**values)}{more}. {remedy}"
    raise ScreenError(message)


def numbers(table: pl.DataFrame, column: str, origin: str) -> pl.DataFrame:
    """Turn a text column into Float64; null stays null.

    Raises:
        ScreenError: a value is not a finite number of 0 or more.
    """
    value = pl.col(column).cast(pl.Float64, strict=False)
    good = value.is_finite() & (value >= 0)
    bad = table.filter(pl.col(column).is_not_null() & ~good.fill_null(False))
    says = f"{column} {{{column}!r}} is not a number of 0 or more"
    refuse(bad, origin, says, "Write it with a decimal point, or leave it empty if there is none.")
    return table.with_columns(value)


def whole_numbers(table: pl.DataFrame, column: str, origin: str) -> pl.DataFrame:
    """Turn a text column into Int64; null stays null.

    Raises:
        ScreenError: a value is not a whole number of 0 or more.
    """
    bad = table.filter(~pl.col(column).str.contains("^[0-9]{1,9}$"))
    says = f"{column} {{{column}!r}} is not a whole number of 0 or more"
    refuse(bad, origin, says, "Correct it, or leave it empty.")
    return table.with_columns(pl.col(column).cast(pl.Int64))
