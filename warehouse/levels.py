"""From cells to fields to wells, while a plate is in memory; the views above `wells` take over from there.

Source: Moshkov et al. 2024, Methods: cell to field by median, field to well by mean; other operators are a
setting of the feature set.
"""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import polars as pl
import pyarrow as pa

from warehouse.aggregate import aggregate
from warehouse.embeddings import to_column, to_matrix
from warehouse.errors import ProfileError
from warehouse.feature_sets import FeatureSet
from warehouse.lake import Lake
from warehouse.names import unknown
from warehouse.sqltext import relation

#: Operators of each step. `weighted_mean` weighs a field by its cells: after `mean`, it is the mean over the
#: cells of the well.
FIELD_OPERATORS = ("median", "mean", "trimmed_mean")
WELL_OPERATORS = ("mean", "median", "trimmed_mean", "weighted_mean")

#: Embeddings that are taken out of the lake at a time.
BYTES_AT_ONCE = 16 << 20
_PLATE = "source = ? AND batch = ? AND plate = ?"


def check_operators(field_operator: str, well_operator: str) -> None:
    """Refuse operators that do not exist.

    Raises:
        UnknownNameError: with the list.
    """
    if field_operator not in FIELD_OPERATORS:
        raise unknown(field_operator, "field operator", FIELD_OPERATORS)
    if well_operator not in WELL_OPERATORS:
        raise unknown(well_operator, "well operator", WELL_OPERATORS)


def fields_from_cells(ids: pl.DataFrame, matrix: np.ndarray, operator: str) -> pl.DataFrame:
    """Aggregate cells to fields.

    Args:
        ids: columns `well`, `field`, one row a cell.
        matrix: (n, d) float32; a NaN element is passed over, and stays NaN where all of a field are.
        operator: of `FIELD_OPERATORS`.

    Returns:
        One row a field, ordered by well and field: well, field, cell_count, embedding.
    """
    return _grouped(ids, ["well", "field"], matrix, operator).rename({"rows": "cell_count"})


def wells_from_fields(fields: pl.DataFrame, dim: int, operator: str) -> pl.DataFrame:
    """Aggregate fields to wells.

    Args:
        fields: columns `well`, `field`, `cell_count` (NULL: not known), `embedding`.
        dim: length of an embedding.
        operator: of `WELL_OPERATORS`.

    Returns:
        One row a well, ordered by well: well, field_count, cell_count, embedding.
    """
    matrix = to_matrix(fields["embedding"], dim)
    ids = fields.select("well")
    if operator == "weighted_mean":
        if fields["cell_count"].null_count():
            message = "weighted_mean weighs fields by their cells, and not every field says how many it has: use mean"
            raise ProfileError(message)
        # Σ n·x / Σ n over the fields that have the element, as a quotient of two means.
        # In double: where products cancel each other, their rounding to single would be all that is left.
        weights = fields["cell_count"].to_numpy().astype(np.float64)[:, None]
        weighted = _grouped(ids, ["well"], matrix * weights, "mean")
        shares = _grouped(ids, ["well"], np.where(np.isnan(matrix), np.nan, weights), "mean")
        means = to_matrix(weighted["embedding"], dim) / to_matrix(shares["embedding"], dim)
        wells = weighted.with_columns(to_column(means))
    else:
        wells = _grouped(ids, ["well"], matrix, operator)
    # A count that one field does not say is not known for the well; a sum would pass over it.
    known = pl.when(pl.col("cell_count").is_null().any()).then(None).otherwise(pl.col("cell_count").sum())
    cells = fields.group_by("well").agg(known.cast(pl.Int32).alias("cell_count"))
    return (
        wells.rename({"rows": "field_count"})
        .join(cells, on="well", how="left", validate="1:1")
        .select("well", "field_count", "cell_count", "embedding")
    )


def plate_from_cells(
    lake: Lake, target: FeatureSet, key: tuple[str, str, str]
) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Aggregate a plate from its cells in the lake, in the order in which they lie there.

    Args:
        lake: an open lake.
        target: a feature set that begins with cells.
        key: source, batch and plate.

    Returns:
        Fields and wells, as `fields_from_cells` and `wells_from_fields`; without rows where the plate has no cells.
        Memory is bounded by fields and by cells whose field is not complete yet: few, where the cells of a field
        were committed together.
    """
    table = relation(target.name, "cells")
    counted = (
        f"SELECT well, field, count(*)::INTEGER AS rows FROM {table} WHERE {_PLATE} GROUP BY well, field"
    )
    whole = lake.frame(counted, key)
    made, waiting_ids, waiting = [], [], []
    # An array is given out a third faster than a list, and cannot have another length.
    asked = f"SELECT well, field, embedding::FLOAT[{target.dim:d}] AS embedding FROM {table} WHERE {_PLATE}"
    rows_at_once = max(1, BYTES_AT_ONCE // (4 * target.dim))
    for batch in ahead(lake.connection.execute(asked, key).to_arrow_reader(rows_at_once)):
        ids = pl.DataFrame(batch.select(["well", "field"]))
        values = batch.column("embedding").flatten().to_numpy(zero_copy_only=False)  # NULL is NaN here
        matrix = values.reshape(len(ids), target.dim)
        is_whole = _is_whole(ids, whole)
        inside = np.flatnonzero(is_whole)
        if len(inside):
            # Where cells lie field by field, only a first and a last field are cut: no copy is made then.
            in_one = len(inside) == inside[-1] + 1 - inside[0]
            taken = slice(inside[0], inside[-1] + 1) if in_one else is_whole
            made.append(fields_from_cells(ids.filter(is_whole), matrix[taken], target.field_operator))
        waiting_ids.append(ids.filter(~is_whole))
        waiting.append(matrix[~is_whole])
    if waiting:
        made.append(fields_from_cells(pl.concat(waiting_ids), np.concatenate(waiting), target.field_operator))
    empty = fields_from_cells(whole.clear().select("well", "field"), np.empty((0, target.dim)), "mean")
    fields = pl.concat([empty, *made]).sort("well", "field")
    return fields, wells_from_fields(fields, target.dim, target.well_operator)


def _is_whole(ids: pl.DataFrame, whole: pl.DataFrame) -> np.ndarray:
    """Tell of each row whether all rows of its field are there; `whole` says how many these are."""
    there = ids.group_by("well", "field").agg(rows=pl.len().cast(pl.Int32))
    complete = there.join(whole, on=["well", "field", "rows"], how="semi").select("well", "field", found=True)
    found = ids.join(complete, on=["well", "field"], how="left", maintain_order="left")["found"]
    is_whole: np.ndarray = found.is_not_null().to_numpy()
    return is_whole


def ahead(batches: pa.RecordBatchReader) -> Iterator[pa.RecordBatch]:
    """Read each batch while the one before it is worked on: DuckDB gives rows out on one core."""
    with ThreadPoolExecutor(1) as reader:
        coming = reader.submit(next, batches, None)
        while (batch := coming.result()) is not None:
            coming = reader.submit(next, batches, None)
            yield batch


def _grouped(ids: pl.DataFrame, keys: list[str], matrix: np.ndarray, operator: str) -> pl.DataFrame:
    groups = ids.group_by(keys).agg(rows=pl.len().cast(pl.Int32)).sort(keys)
    numbered = groups.with_row_index("code")
    codes = ids.join(numbered, on=keys, how="left", maintain_order="left")["code"].to_numpy()
    _, profiles = aggregate(codes.astype(np.int64), matrix, operator)
    return groups.with_columns(to_column(profiles))
