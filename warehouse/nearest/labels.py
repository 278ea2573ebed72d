"""The labels of rows that are searched: read when they are asked for, as annotations come later than profiles."""

import duckdb
import polars as pl

from warehouse.lake import Lake
from warehouse.sqltext import expand

_TREATMENTS = ("compound", "concentration", "unit")

#: Labels hold for a compound, or for one concentration of it: `sql/parts/labels.sql` says how.
_OF_TREATMENTS = (
    "SELECT grouped.compound, grouped.concentration, grouped.unit, grouped.part_labels "
    "FROM searched_treatments AS grouped LEFT JOIN main.compound_labels AS labels ON grouped.compound = labels.compound"
)
_OF_COMPOUNDS = "SELECT compound, moa, target, pathway, gene_family FROM main.compound_annotations"
#: Where a lake is read as of a time before there was the view `compound_labels`.
_BEFORE = (
    "SELECT grouped.compound, grouped.concentration, grouped.unit, "
    "labels.moa, labels.target, labels.pathway, labels.gene_family FROM searched_treatments AS grouped "
    "LEFT JOIN main.treatments AS named ON grouped.compound = named.compound "
    "AND grouped.concentration IS NOT DISTINCT FROM named.concentration "
    "AND grouped.unit IS NOT DISTINCT FROM named.unit "
    "LEFT JOIN main.treatment_annotations AS labels ON named.treatment = labels.treatment"
)


def labelled(lake: Lake, rows: pl.DataFrame) -> pl.DataFrame:
    """Add the labels that hold for each row.

    Args:
        lake: an open lake.
        rows: n rows with compound, and where they are of one treatment, concentration and unit.

    Returns:
        The n rows, in their order, with moa, target, pathway and gene_family: sorted lists, NULL where there are none.
    """
    by = [name for name in _TREATMENTS if name in rows.columns]
    if by == ["compound"]:
        found = lake.frame(_OF_COMPOUNDS)
    else:
        lake.connection.register("searched_treatments", rows.select(by).unique())
        try:
            found = lake.frame(expand(_OF_TREATMENTS, "main"))
        except duckdb.CatalogException:
            found = lake.frame(_BEFORE)
        finally:
            lake.connection.unregister("searched_treatments")
    return rows.join(found, on=by, how="left", nulls_equal=True, maintain_order="left", validate="m:1")
