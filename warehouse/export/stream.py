"""Rows of one level in the order of its ids, in batches of bounded memory: plate by plate, a large plate by wells."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import duckdb
import numpy as np
import polars as pl

from warehouse import feature_sets, profiles
from warehouse.embeddings import to_matrix
from warehouse.errors import ExportError, ProfileError
from warehouse.export.columns import for_the_field
from warehouse.feature_sets import FeatureSet
from warehouse.lake import Lake
from warehouse.names import unknown
from warehouse.profiles import IDS, LEVELS, FittedRecipe, find_recipe, refuse_waiting
from warehouse.sqltext import relation

#: Embeddings of one batch, in bytes; a batch holds one well of cells or fields, or one plate of wells, at least.
BATCH_BYTES = 32 << 20
#: Levels whose rows lie on plates; those above are computed by their views in one piece.
ON_PLATES = ("cell", "field", "well")
#: One stretch of a level in its order: of one batch, whole plates, or wells of one plate.
_SPAN = "source = ? AND batch = ? AND plate BETWEEN ? AND ? AND well BETWEEN ? AND ?"
Span = tuple[str, str, str, str, str, str]


@dataclass(frozen=True)
class Selection:
    """What is to be written: `query` gives the rows of the level, with what was done to their wells.

    `wells` tells, for the lineage, which wells the level was computed from; None for all. `if_empty` says why there
    is no row, where there is none.
    """

    feature_set: FeatureSet
    recipe: FittedRecipe
    level: str
    where: str | None
    query: str
    wells: Mapping[str, object] | None = None
    if_empty: str | None = None


def select(lake: Lake, feature_set: str, level: str, recipe: str, where: str | None) -> Selection:
    """Find what is to be written.

    Raises:
        UnknownNameError: no such level, feature set or step.
        RecipeError: the recipe was never fitted, or plates wait for it.
        ProfileError: the recipe corrects no such level, or the predicate is none.
    """
    if level not in LEVELS:
        raise unknown(level, "level", LEVELS)
    target = feature_sets.find(lake, feature_set)
    fitted = find_recipe(lake, target, recipe)
    if fitted.name != "none" and level in ("cell", "field"):
        message = f"recipe {recipe!r} corrects wells; {level}s are there as they came in: leave --recipe out"
        raise ProfileError(message)
    refuse_waiting(lake, target.name, fitted)
    table = relation(target.name, profiles.view_of(level, where), fitted.name)
    query = f"SELECT * FROM {table}"
    if level in ("cell", "field"):
        query = (
            "SELECT measured.*, layout.treatment, layout.compound, layout.concentration, layout.unit, "
            f"layout.control_type FROM {table} AS measured LEFT JOIN main.wells AS layout "
            "USING (source, batch, plate, well)"
        )
    query = f"SELECT * FROM ({query})"
    if where is not None:
        query += f" WHERE ({profiles.predicate(where)}\n)"
    return Selection(target, fitted, level, where, query)


def batches(lake: Lake, selection: Selection) -> Iterator[tuple[pl.DataFrame, np.ndarray]]:
    """Read the rows in the order of the level's ids.

    Args:
        lake: inside `Lake.reading`.
        selection: of `select`.

    Yields:
        Metadata with the field's names, and the features, (n, d) float32, NaN where an element is missing.

    Raises:
        ProfileError: the predicate names a column that the level lacks, or fails on a value.
        ExportError: there is no row.
    """
    dim = len(selection.recipe.feature_names)
    limit = max(1, BATCH_BYTES // (4 * max(1, dim)))
    labels = lake.frame("SELECT * FROM main.treatment_annotations")
    is_empty = True
    for rows in _together(_frames(lake, selection, limit), limit):
        is_empty = False
        matrix = to_matrix(rows["embedding"], dim)
        rows = rows.drop("embedding")
        if "moa" not in rows.columns:
            rows = rows.join(labels, on="treatment", how="left", maintain_order="left")
        yield for_the_field(rows), matrix
    if is_empty:
        name, entry = selection.feature_set.name, selection.feature_set.entry_level
        why = selection.if_empty or (
            f"{name!r} has no rows of level {selection.level!r} (its finest level is {entry!r}): name another --level"
            if selection.where is None
            else f"no row of level {selection.level!r} of {name!r} meets --where {selection.where!r}"
        )
        message = f"nothing to export: {why}"
        raise ExportError(message)


def _together(frames: Iterator[pl.DataFrame], limit: int) -> Iterator[pl.DataFrame]:
    """Put small frames together: a file of a thousand row groups of ten rows is slow to read."""
    held: list[pl.DataFrame] = []
    for frame in frames:
        if held and sum(map(len, held)) + len(frame) > limit:
            yield pl.concat(held)
            held = []
        if len(frame):
            held.append(frame)
    if held:
        yield pl.concat(held)


def _frames(lake: Lake, selection: Selection, limit: int) -> Iterator[pl.DataFrame]:
    ids = ", ".join(IDS[selection.level])
    if selection.level in ON_PLATES:
        for span in _spans(lake, selection, limit):
            yield _asked(
                lake, selection, f"SELECT * FROM ({selection.query}) WHERE {_SPAN} ORDER BY {ids}", span
            )
    else:
        yield from _asked(lake, selection, f"{selection.query} ORDER BY {ids}").iter_slices(limit)


def _spans(lake: Lake, selection: Selection, limit: int) -> list[Span]:
    """Divide a level into stretches of at most `limit` rows: plates of one batch, wells of one plate, or one well."""
    # Rows of wells lie few on a plate; those of cells and fields are counted well by well.
    wells = "min(well), max(well)" if selection.level == "well" else "well, well"
    by = "source, batch, plate" if selection.level == "well" else "source, batch, plate, well"
    counted = f"SELECT source, batch, plate, {wells}, count(*) FROM ({selection.query}) GROUP BY {by}"
    units = _asked(lake, selection, f"{counted} ORDER BY {by}").rows()
    plates: dict[tuple[str, str, str], list[tuple[str, str, int]]] = {}
    for source, batch, plate, first, last, count in units:
        plates.setdefault((source, batch, plate), []).append((first, last, count))
    spans: list[Span] = []
    open_rows = 0
    for (source, batch, plate), parts in plates.items():
        rows = sum(count for _, _, count in parts)
        if rows > limit:
            spans += [(source, batch, plate, plate, *bounds) for bounds in _stretches(parts, limit)]
            open_rows = limit
            continue
        first, last = parts[0][0], parts[-1][1]
        if spans and spans[-1][:2] == (source, batch) and open_rows + rows <= limit:
            former = spans.pop()
            spans.append((source, batch, former[2], plate, min(former[4], first), max(former[5], last)))
            open_rows += rows
        else:
            spans.append((source, batch, plate, plate, first, last))
            open_rows = rows
    return spans


def _stretches(wells: Sequence[tuple[str, str, int]], limit: int) -> list[tuple[str, str]]:
    stretches: list[tuple[str, str]] = []
    rows = limit
    for first, last, count in wells:
        if rows + count > limit:
            stretches.append((first, last))
            rows = count
        else:
            stretches[-1] = (stretches[-1][0], last)
            rows += count
    return stretches


def _asked(lake: Lake, selection: Selection, query: str, parameters: Sequence[object] = ()) -> pl.DataFrame:
    try:
        return lake.frame(query, parameters)
    except duckdb.Error as error:
        if selection.where is None:
            raise
        message = f"--where {selection.where!r}: {str(error).splitlines()[0]}"
        raise ProfileError(message) from error
