"""A table of answers as one file, Parquet or CSV: whole or not at all."""

import gzip
from pathlib import Path

import polars as pl

from warehouse.errors import ExportError
from warehouse.export import whole
from warehouse.export.columns import SEPARATOR

_ENDINGS = (".parquet", ".csv.gz", ".csv")


def write_table(table: pl.DataFrame, out: str | Path, *, overwrite: bool = False) -> Path:
    """Write a table to a file.

    Args:
        table: its columns keep their names; in CSV a list of labels is one text, joined by `|`.
        out: a file whose name ends in .parquet, .csv or .csv.gz.
        overwrite: replace a file that is there.

    Returns:
        The file.

    Raises:
        ExportError: another ending, a file is there already, or it cannot be written; nothing is left of it.
    """
    path, ending = place(out, overwrite=overwrite)
    try:
        with whole.written((path,), overwrite=overwrite) as (temporary,):
            if ending == ".parquet":
                table.write_parquet(temporary)
            else:
                _write_csv(table, temporary, is_compressed=ending == ".csv.gz")
    except OSError as error:
        reason = error.strerror or error
        message = f"{path}: cannot be written: {reason}; nothing is left of it: name another place"
        raise ExportError(message) from error
    return path


def place(out: str | Path, *, overwrite: bool = False) -> tuple[Path, str]:
    """Check where a table is to go, best before it is computed.

    Returns:
        The file, and the ending of its name that says what it is.

    Raises:
        ExportError: as `write_table`.
    """
    path = Path(out).expanduser()
    ending = next((known for known in _ENDINGS if path.name.lower().endswith(known)), None)
    if ending is None:
        message = f"{path}: unknown kind of file {path.suffix!r}: end its name in {', '.join(_ENDINGS)}"
        raise ExportError(message)
    whole.refuse((path,), path.parent, overwrite)
    return path, ending


def _write_csv(table: pl.DataFrame, path: Path, *, is_compressed: bool) -> None:
    lists = [name for name, kind in table.schema.items() if kind == pl.List(pl.String)]
    flat = table.with_columns(pl.col(lists).list.join(SEPARATOR))
    with path.open("wb") as file:
        if not is_compressed:
            flat.write_csv(file)
            return
        # Without a name and a time: the same table gives the same bytes.
        with gzip.GzipFile("", "wb", compresslevel=6, fileobj=file, mtime=0) as zipped:
            flat.write_csv(zipped)  # type: ignore[call-overload]
