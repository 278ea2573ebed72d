"""Formats of existing profiles: a registry of readers that all give the same thing, plates in parts.

To add a format, write a module with two functions and enter it in `ALL`:

- `recognises(path) -> bool`: by suffix, names in a folder, the first bytes; it never raises, and reads little.
- `read(paths, settings) -> list[Plate]`: reads keys and names of features only. Each `Plate` says what the input says
  of source, batch and plate, its level (cell, field, well), its features in order, and gives `Part`s when asked: a
  frame of keys and an (n, d) float32 matrix with NaN for what is missing. All cells of a field come in one part, and
  memory is bounded by a part, not by the file. Anything the input holds that is no row of a part is a rejection with
  its reason, or a note.

A format whose input is a table of rows, however stored, calls `rows.row_plates` with the keys of all rows and a
function that fetches the numbers of some of them: levels, key columns, plates, parts and checks are then done there.
Files are hostile: nothing is unpickled, and no name of theirs becomes a path or SQL.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path

from warehouse.errors import ProfileError
from warehouse.formats import anndata, cellprofiler_csv, cellprofiler_sqlite, deepprofiler, matrix, tables
from warehouse.formats.model import Format, ImportSettings, Part, Plate
from warehouse.names import unknown

__all__ = ["ALL", "Format", "ImportSettings", "Part", "Plate", "find", "open_plates", "recognise"]

ALL: tuple[Format, ...] = (
    Format(
        "cellprofiler_sqlite",
        "CellProfiler SQLite: object tables joined to cells",
        cellprofiler_sqlite.recognises,
        cellprofiler_sqlite.read,
    ),
    Format(
        "cellprofiler_csv",
        "CellProfiler CSV in folders, a whole export or one folder a site: object tables joined to cells",
        cellprofiler_csv.recognises,
        cellprofiler_csv.read,
        together=True,
    ),
    Format(
        "deepprofiler",
        "DeepProfiler .npz, features/<plate>/<well>/<site>.npz: cells",
        deepprofiler.recognises,
        deepprofiler.read,
        together=True,
    ),
    Format(
        "anndata", "AnnData .h5ad: observations are wells, fields or cells", anndata.recognises, anndata.read
    ),
    Format(
        "matrix",
        "a matrix, .npy, or Parquet of one column of lists, with --metadata FILE: its rows in the same order",
        matrix.recognises,
        matrix.read,
    ),
    Format(
        "table",
        "CSV, TSV (.gz) or Parquet with keys and features: wells, fields or cells",
        tables.recognises,
        tables.read,
    ),
)


def find(name: str) -> Format:
    """Look a format up.

    Raises:
        UnknownNameError: with the list.
    """
    for one in ALL:
        if one.name == name:
            return one
    raise unknown(name, "format", [one.name for one in ALL])


def recognise(path: Path, settings: ImportSettings) -> Format:
    """Find the format of a path, by its name and its first bytes.

    Raises:
        ProfileError: it is of no known format.
    """
    if settings.metadata is not None:
        return find("matrix")
    for one in ALL:
        if one.recognises(path):
            return one
    tables.check_file(path)
    raise AssertionError  # pragma: no cover: a file that check_file lets pass is recognised as a table


def open_plates(
    paths: Sequence[Path], settings: ImportSettings, name: str | None = None
) -> Iterator[list[Plate] | tuple[Path, ProfileError]]:
    """Open the inputs of one import, and yield the plates of each, or the input that cannot be read and why.

    Args:
        paths: files and folders.
        settings: what they mean.
        name: of their format; None to recognise each.
    """
    together: dict[str, list[Path]] = {}
    calls: list[tuple[Format, list[Path]]] = []
    for path in paths:
        try:
            one = find(name) if name is not None else recognise(path, settings)
        except ProfileError as error:
            yield path, error
            continue
        if one.together and one.name in together:
            together[one.name].append(path)
            continue
        group = together.setdefault(one.name, [path]) if one.together else [path]
        calls.append((one, group))
    for one, group in calls:
        try:
            yield one.read(group, settings)
        except ProfileError as error:
            yield group[0], error
