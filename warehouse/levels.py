"""From cells to fields to wells, while a plate is in memory; the views above `wells` take over from there.

Source: Moshkov et al. 2024, Methods: cell to field by median, field to well by mean; other operators are a
setting of the feature set.
"""

import numpy as np
import polars as pl

from warehouse.aggregate import aggregate
from warehouse.embeddings import to_column, to_matrix
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
        matrix: (n, d) float32, finite.
        operator: of `FIELD_OPERATORS`.

    Returns:
        One row a field, ordered by well and field: well, field, cell_count, embedding.
    """
    return _grouped(ids, ["well", "field"], matrix, operator).rename({"rows": "cell_count"})


def wells_from_fields(fields: pl.DataFrame, dim: int, operator: str) -> pl.DataFrame:
    """Aggregate fields to wells.

    Args:
        fields: columns `well`, `field`, `cell_count`, `embedding`.
        dim: length of an embedding.
        operator: of `WELL_OPERATORS`.

    Returns:
        One row a well, ordered by well: well, field_count, cell_count, embedding.
    """
    matrix = to_matrix(fields["embedding"], dim)
    counts = fields["cell_count"].to_numpy()
    if operator == "weighted_mean":
        # Σ n·x / Σ n as a mean of fields scaled by n over the mean n of their well.
        shares = fields.select(pl.col("cell_count") / pl.col("cell_count").mean().over("well")).to_series()
        matrix = (matrix * shares.to_numpy()[:, None]).astype(np.float32)
        operator = "mean"
    wells = _grouped(fields.select("well"), ["well"], matrix, operator).rename({"rows": "field_count"})
    cells = fields.select("well", cell_count=pl.Series(counts, dtype=pl.Int32)).group_by("well").sum()
    return wells.join(cells, on="well", how="left", validate="1:1").select(
        "well", "field_count", "cell_count", "embedding"
    )


def _grouped(ids: pl.DataFrame, keys: list[str], matrix: np.ndarray, operator: str) -> pl.DataFrame:
    groups = ids.group_by(keys).agg(rows=pl.len().cast(pl.Int32)).sort(keys)
    numbered = groups.with_row_index("code")
    codes = ids.join(numbered, on=keys, how="left", maintain_order="left")["code"].to_numpy()
    _, profiles = aggregate(codes.astype(np.int64), matrix, operator)
    return groups.with_columns(to_column(profiles))
