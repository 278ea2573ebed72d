"""The rows that a recipe corrects: read out of the lake in stretches of plates, and given back as wells."""

import itertools
from collections.abc import Iterator, Sequence

import numpy as np
import polars as pl

from warehouse import fitting, levels
from warehouse.embeddings import apart, to_column, to_matrix
from warehouse.feature_sets import FeatureSet
from warehouse.fits import Plate
from warehouse.lake import Lake
from warehouse.recipes import KEYS, Recipe
from warehouse.scratch import Scratch
from warehouse.sqltext import relation

# The rows that a recipe corrects: where they are, what steps may know of their well (`steps.COLUMNS`), and the counts
# that go on with its profile.
_TABLES = {"well": "wells", "field": "fields"}
_WELL = (
    "layout.row_number, layout.column_number, layout.treatment, layout.compound, "
    "coalesce(layout.control_type, 'none') AS control_type"
)
_KEY = "SELECT profiles.source, profiles.batch, profiles.plate, profiles.well, "
_ROWS = {
    "well": _KEY + _WELL + ", profiles.field_count, profiles.cell_count, profiles.embedding",
    "field": _KEY + "profiles.field, " + _WELL + ", profiles.cell_count, profiles.embedding",
}
_ORDER = {
    "well": " ORDER BY profiles.source, profiles.batch, profiles.plate, profiles.well",
    "field": " ORDER BY profiles.source, profiles.batch, profiles.plate, profiles.well, profiles.field",
}
_LAYOUT = (
    "LEFT JOIN main.wells AS layout ON profiles.source = layout.source AND profiles.batch = layout.batch "
    "AND profiles.plate = layout.plate AND profiles.well = layout.well"
)

# Bounds, by which files of other plates are passed over, and the very plates between them.
_STRETCH = (
    "profiles.source = ? AND profiles.batch = ? AND profiles.plate BETWEEN ? AND ? "
    "AND list_contains(?, profiles.plate)"
)


def plates(lake: Lake, target: FeatureSet) -> list[Plate]:
    """Name the plates of a feature set that have wells, ordered."""
    rows = lake.connection.execute(
        "SELECT source, batch, plate FROM main.plate_loads WHERE feature_set = ? AND wells_in > 0 ORDER BY ALL",
        [target.name],
    ).fetchall()
    return [(source, batch, plate) for source, batch, plate in rows]


def counts(lake: Lake, target: FeatureSet, recipe: Recipe, plates: Sequence[Plate]) -> pl.DataFrame:
    """Count the rows of plates that a recipe corrects, without reading an embedding: all, controls, treated."""
    table = relation(target.name, _TABLES[recipe.level])
    query = (
        'SELECT profiles.source, profiles.batch, profiles.plate, count(*) AS "all", '
        "count(*) FILTER (layout.control_type = 'negative') AS controls, "
        "count(*) FILTER (layout.control_type IS DISTINCT FROM 'negative') AS treated "
        f"FROM {table} AS profiles " + _LAYOUT + " WHERE " + _STRETCH + " GROUP BY 1, 2, 3 ORDER BY 1, 2, 3"
    )
    schema: dict[str, type[pl.DataType]] = dict.fromkeys(KEYS, pl.String)
    schema |= dict.fromkeys(("all", "controls", "treated"), pl.Int64)
    counts = [pl.DataFrame(schema=schema)]
    for (source, batch), part in itertools.groupby(plates, key=lambda plate: plate[:2]):
        names = [plate for _, _, plate in part]
        counts.append(lake.frame(query, [source, batch, names[0], names[-1], names]))
    return pl.concat(counts)


def read(
    lake: Lake, target: FeatureSet, recipe: Recipe, counts: pl.DataFrame, memory_mb: int
) -> tuple[pl.DataFrame, Scratch]:
    """Read the rows of plates, ordered, and their profiles: in memory, or where they take too much, in a file."""
    n, d = int(counts["all"].sum()), target.dim
    work = Scratch(n, d, in_memory=8 * n * d <= (memory_mb << 20) // 2)
    table = relation(target.name, _TABLES[recipe.level])
    query = (
        _ROWS[recipe.level]
        + f" FROM {table} AS profiles "
        + _LAYOUT
        + " WHERE "
        + _STRETCH
        + _ORDER[recipe.level]
    )
    parts, first = [], 0
    for source, batch, plates, _ in _stretches(counts, (memory_mb << 20) // (32 * 4 * d)):
        frame = lake.frame(query, [source, batch, plates[0], plates[-1], plates])
        matrix = to_matrix(frame["embedding"], d)
        parts.append(apart(frame.drop("embedding")))
        fitting.refuse_infinite(matrix, parts[-1], target.feature_names)
        work.write(first, matrix.astype(np.float64))
        first += len(frame)
    return pl.concat(parts), work


def _stretches(counts: pl.DataFrame, limit: int) -> Iterator[tuple[str, str, list[str], int]]:
    """Put plates of one batch together, in order, up to a number of rows, and count them; a large plate comes alone."""
    for (source, batch), of_batch in itertools.groupby(counts.iter_rows(), key=lambda row: (row[0], row[1])):
        plates, rows = list[str](), 0
        for _, _, plate, count, *_ in of_batch:
            if plates and rows + count > limit:
                yield source, batch, plates, rows
                plates, rows = [], 0
            plates.append(plate)
            rows += count
        yield source, batch, plates, rows


def corrected_wells(
    recipe: Recipe, rows: pl.DataFrame, work: Scratch, memory_mb: int
) -> Iterator[pl.DataFrame]:
    """Give the corrected wells, in parts of whole plates: source, batch, plate, well, counts, embedding."""
    counts = rows.group_by(KEYS, maintain_order=True).agg(pl.len())
    first = 0
    for *_, count in _stretches(counts, (memory_mb << 20) // (32 * 8 * work.shape[1])):
        part = rows[first : first + count]
        corrected = work.read(first, first + count).astype(np.float32)
        first += count
        if recipe.level == "well":
            columns = part.select(*KEYS, "well", "field_count", "cell_count")
            yield columns.with_columns(to_column(corrected))
            continue
        fields = part.select(*KEYS, "well", "field", "cell_count").with_columns(to_column(corrected))
        for plate in fields.partition_by(KEYS, maintain_order=True):
            keys = [pl.lit(plate[key][0]).alias(key) for key in KEYS]
            yield levels.wells_from_fields(plate.drop(KEYS), work.shape[1], "mean").with_columns(keys)
