"""From a table of rows, however it is stored, to plates in parts: what most formats have in common."""

from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path

import numpy as np
import polars as pl

from warehouse.errors import ProfileError
from warehouse.formats.keys import find_keys, geometry, level_of, read_keys
from warehouse.formats.model import ImportSettings, Level, Part, Plate

#: Fetches the numbers of some rows, given their positions in ascending order: (n, d) float32, NaN = missing.
Fetch = Callable[[np.ndarray], np.ndarray]


def row_plates(
    path: Path, table: pl.DataFrame, features: tuple[str, ...], fetch: Fetch, settings: ImportSettings
) -> list[Plate]:
    """Cut a table of profiles into plates.

    Args:
        path: for messages.
        table: the columns of all rows that are not features; the keys are found among them by name.
        features: names of the columns of numbers, in order.
        fetch: gives the numbers of the rows at ascending positions.
        settings: what columns mean.

    Returns:
        One plate for each source, batch and plate that the table names, in the order of their first rows.

    Raises:
        ProfileError: the table has no rows, a key is not there, empty, or two rows have the same keys.
    """
    if not len(table):
        message = f"{path}: the file has no rows: nothing to import"
        raise ProfileError(message)
    found = find_keys(path, table.columns, settings)
    level = level_of(path, found, settings)
    keys = read_keys(path, table, found, level, settings)
    if level == "cell":
        keys = keys.with_columns(geometry(table))
    by = [key for key in ("source", "batch", "plate") if key in keys.columns]
    plates = []
    for values, rows in keys.with_row_index("row").group_by(by, maintain_order=True):
        # An empty value says nothing: the layout or the command line may.
        said = {str(key): str(value) for key, value in zip(by, values, strict=True) if value is not None}
        plates.append(_plate(path, said, level, features, rows.drop(by), fetch, settings))
    return plates


def _plate(
    path: Path,
    said: dict[str, str],
    level: Level,
    features: tuple[str, ...],
    rows: pl.DataFrame,
    fetch: Fetch,
    settings: ImportSettings,
) -> Plate:
    # Cells of one field must come together, and nearly always stand together in the file too: then a part is a run.
    if level == "cell" and len(_field_starts(rows)) > rows.select("well", "field").n_unique():
        rows = rows.sort("well", "field", maintain_order=True)

    def parts() -> Iterator[Part]:
        for start, end in _spans(rows, level, settings.rows_at_once(len(features))):
            part = rows[start:end].sort("row")
            yield Part(part.drop("row"), fetch(part["row"].to_numpy()))

    return Plate(path, said, level, features, parts)


def _field_starts(rows: pl.DataFrame) -> list[int]:
    """Find the rows at which another field begins than that of the row before."""
    changed = rows.select(
        ((pl.col("well") != pl.col("well").shift()) | (pl.col("field") != pl.col("field").shift())).fill_null(
            True
        )
    ).to_series()
    return changed.arg_true().to_list()


def _spans(rows: pl.DataFrame, level: Level, limit: int) -> Iterator[tuple[int, int]]:
    """Cut rows into runs of at most `limit`, or of one field of cells where that has more."""
    starts = _field_starts(rows) if level == "cell" else list(range(0, len(rows), limit))
    first = 0
    for start, end in pairwise([*starts, len(rows)]):
        if end - first > limit and start > first:
            yield first, start
            first = start
    if first < len(rows):
        yield first, len(rows)
