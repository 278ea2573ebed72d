"""Fits in the lake: written as rows, read back as they were made; and which plates a recipe had to leave out."""

from collections.abc import Collection, Sequence

import duckdb
import numpy as np
import polars as pl

from warehouse import layouts
from warehouse.fitting import StoredFit
from warehouse.lake import Lake
from warehouse.recipes import KEYS, Recipe

Plate = tuple[str, str, str]


def left_out(lake: Lake, feature_set: str, recipe: str) -> dict[Plate, str]:
    """Read which plates the recipe's table is known to lack, and why."""
    rows = lake.connection.execute(
        "SELECT source, batch, plate, reason FROM main.recipe_left_out WHERE feature_set = ? AND recipe = ?",
        [feature_set, recipe],
    ).fetchall()
    return {(source, batch, plate): reason for source, batch, plate, reason in rows}


def put_left_out(
    connection: duckdb.DuckDBPyConnection, feature_set: str, recipe: str, lacking: dict[Plate, str]
) -> None:
    """Write which plates a recipe had to leave out, and why; for use inside `Lake.transaction`."""
    connection.execute(
        "DELETE FROM main.recipe_left_out WHERE feature_set = ? AND recipe = ?", [feature_set, recipe]
    )
    if lacking:
        rows = [(feature_set, recipe, *plate, reason) for plate, reason in sorted(lacking.items())]
        columns = ("feature_set", "recipe", *KEYS, "reason")
        layouts.insert(connection, "main.recipe_left_out", pl.DataFrame(rows, schema=columns, orient="row"))


def store(
    connection: duckdb.DuckDBPyConnection, feature_set: str, recipe: Recipe, fits: Sequence[StoredFit]
) -> None:
    """Write fits as rows: a one-dimensional array is one row, a matrix one row a line."""
    rows = [
        (
            feature_set,
            recipe.slug,
            fit.step_index,
            recipe.steps[fit.step_index].name,
            fit.source,
            fit.batch,
            fit.plate,
            name,
            None if array.ndim < 2 else line,
            values.tolist(),
        )
        for fit in fits
        for name, array in fit.arrays.items()
        for line, values in enumerate(np.atleast_2d(array))
    ]
    if not rows:
        return
    schema: dict[str, pl.DataType | type[pl.DataType]] = {
        "feature_set": pl.String,
        "recipe": pl.String,
        "step": pl.Int32,
        "step_name": pl.String,
        "source": pl.String,
        "batch": pl.String,
        "plate": pl.String,
        "array_name": pl.String,
        "array_row": pl.Int32,
        "array_values": pl.List(pl.Float64),
    }
    layouts.insert(connection, "main.recipe_fits", pl.DataFrame(rows, schema=schema, orient="row"))


def stored(
    lake: Lake,
    feature_set: str,
    recipe: str,
    chosen: Collection[Plate],
    anew: Collection[tuple[str, str, str | None]],
) -> list[StoredFit]:
    """Read the fits that these plates go by, as they were made: of the whole set, and of their batches."""
    batches = {(source, batch, None) for source, batch, _ in chosen} - set(anew)
    wanted = pl.DataFrame(sorted(batches, key=str), schema=dict.fromkeys(KEYS, pl.String), orient="row")
    lake.connection.register("wanted", wanted)
    try:
        frame = lake.frame(
            "SELECT step, source, batch, plate, array_name, array_row, array_values FROM main.recipe_fits "
            "WHERE feature_set = ? AND recipe = ? AND (source IS NULL OR "
            "(plate IS NULL AND (source, batch) IN (SELECT (source, batch) FROM wanted))) ORDER BY ALL",
            [feature_set, recipe],
        )
    finally:
        lake.connection.unregister("wanted")
    fits: dict[tuple[object, ...], dict[str, list[tuple[int | None, list[float]]]]] = {}
    for step, source, batch, plate, name, line, values in frame.iter_rows():
        fits.setdefault((step, source, batch, plate), {}).setdefault(name, []).append((line, values))
    found = []
    for (step, source, batch, plate), arrays in fits.items():
        made = {
            name: np.array(lines[0][1]) if lines[0][0] is None else np.array([values for _, values in lines])
            for name, lines in arrays.items()
        }
        found.append(StoredFit(int(str(step)), _text(source), _text(batch), _text(plate), made))
    return found


def _text(value: object) -> str | None:
    return None if value is None else str(value)
