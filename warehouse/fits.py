"""Fits in the lake: written as rows, read back as they were made; and which plates a recipe had to leave out."""

from collections.abc import Collection, Sequence

import duckdb
import numpy as np
import polars as pl

from warehouse import layouts
from warehouse.fitting import StoredFit
from warehouse.lake import Lake
from warehouse.recipes import KEYS, Recipe
from warehouse.steps import Matrix

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
    frames = [
        _rows(array).with_columns(
            pl.lit(feature_set).alias("feature_set"),
            pl.lit(recipe.slug).alias("recipe"),
            pl.lit(fit.step_index).cast(pl.Int32).alias("step"),
            pl.lit(recipe.steps[fit.step_index].name).alias("step_name"),
            pl.lit(fit.source).cast(pl.String).alias("source"),
            pl.lit(fit.batch).cast(pl.String).alias("batch"),
            pl.lit(fit.plate).cast(pl.String).alias("plate"),
            pl.lit(name).alias("array_name"),
        )
        for fit in fits
        for name, array in fit.arrays.items()
    ]
    if frames:
        layouts.insert(connection, "main.recipe_fits", pl.concat(frames))


def _rows(array: Matrix) -> pl.DataFrame:
    lines = np.atleast_2d(array)
    # Without Python numbers in between: a matrix of 1,500 x 1,500 would take 70 MB of them.
    values = pl.Series("array_values", np.ascontiguousarray(lines)).cast(pl.List(pl.Float64))
    numbers = pl.int_range(len(lines), dtype=pl.Int32, eager=True).alias("array_row")
    if array.ndim < 2:
        numbers = pl.Series("array_row", [None], dtype=pl.Int32)
    return pl.DataFrame([numbers, values])


def _settled_before(lake: Lake, feature_set: str, recipe: str) -> list[StoredFit]:
    """What the whole set settled, of fits made before that was stored apart: every plate's mask was the settled one."""
    rows = lake.connection.execute(
        "SELECT step, any_value(array_values) FILTER (array_name = 'keep') FROM main.recipe_fits "
        "WHERE feature_set = ? AND recipe = ? GROUP BY step HAVING count(*) FILTER (source IS NULL) = 0",
        [feature_set, recipe],
    ).fetchall()
    return [
        StoredFit(step, None, None, None, {} if keep is None else {"keep": np.array(keep)})
        for step, keep in rows
    ]


def stored(
    lake: Lake,
    feature_set: str,
    recipe: str,
    chosen: Collection[Plate],
    anew: Collection[tuple[str, str, str | None]],
    steps: int,
    *,
    with_own: bool = False,
) -> list[StoredFit]:
    """Read the fits that these plates go by, as they were made: of the whole set, and of their batches.

    Args:
        lake: an open lake.
        feature_set: its name.
        recipe: as in `wells__<recipe>`.
        chosen: plates that are to be corrected.
        anew: plates, and as (source, batch, None) batches, that are fitted anew.
        steps: how many the recipe has.
        with_own: whether to read the plates' own fits too, by which they were corrected.
    """
    keys: set[tuple[str, str, str | None]] = {(source, batch, None) for source, batch, _ in chosen}
    keys = (keys | set(chosen) if with_own else keys) - set(anew)
    wanted = pl.DataFrame(sorted(keys, key=str), schema=dict.fromkeys(KEYS, pl.String), orient="row")
    lake.connection.register("wanted", wanted)
    try:
        frame = lake.frame(
            "SELECT step, source, batch, plate, array_name, array_row, array_values FROM main.recipe_fits "
            "WHERE feature_set = ? AND recipe = ? AND (source IS NULL OR (source, batch, coalesce(plate, '')) IN "
            "(SELECT (source, batch, coalesce(plate, '')) FROM wanted)) ORDER BY ALL",
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
    if len([fit for fit in found if fit.source is None]) < steps:
        found += _settled_before(lake, feature_set, recipe)
    return found


def _text(value: object) -> str | None:
    return None if value is None else str(value)
