"""From cells to fields to wells, while a plate is in memory; the views above `wells` take over from there.

Source: Moshkov et al. 2024, Methods: cell to field by median, field to well by mean; other operators are a
setting of the feature set.
"""

import numpy as np
import polars as pl

from warehouse.aggregate import aggregate
from warehouse.embeddings import to_column, to_matrix
from warehouse.errors import ProfileError
from warehouse.names import unknown

#: Operators of each step. `weighted_mean` weighs a field by its cells: after `mean`, it is the mean over the
#: cells of the well.
FIELD_OPERATORS = ("median", "mean")
WELL_OPERATORS = ("mean", "median", "weighted_mean")


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
        weights = fields["cell_count"].to_numpy().astype(np.float32)[:, None]
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


def _grouped(ids: pl.DataFrame, keys: list[str], matrix: np.ndarray, operator: str) -> pl.DataFrame:
    groups = ids.group_by(keys).agg(rows=pl.len().cast(pl.Int32)).sort(keys)
    numbered = groups.with_row_index("code")
    codes = ids.join(numbered, on=keys, how="left", maintain_order="left")["code"].to_numpy()
    _, profiles = aggregate(codes.astype(np.int64), matrix, operator)
    return groups.with_columns(to_column(profiles))
