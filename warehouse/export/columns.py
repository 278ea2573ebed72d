"""The names that the field gives to what the lake knows of a row; docs/export.md lists them."""

import polars as pl

#: Column of the lake → column of the file, in the order of the file. `control_type` becomes two columns, below.
NAMES = {
    "source": "Metadata_Source",
    "batch": "Metadata_Batch",
    "plate": "Metadata_Plate",
    "well": "Metadata_Well",
    "field": "Metadata_Site",
    "cell": "Metadata_ObjectNumber",
    "treatment": "Metadata_Treatment",
    "compound": "Metadata_Compound",
    "concentration": "Metadata_Concentration",
    "unit": "Metadata_Concentration_Unit",
    "control_type": "Metadata_control_type",
    "moa": "Metadata_moa",
    "target": "Metadata_target",
    "pathway": "Metadata_pathway",
    "gene_family": "Metadata_gene_family",
    "treatments": "Metadata_Treatments",
    "plates": "Metadata_Plates",
    "batches": "Metadata_Batches",
    "sources": "Metadata_Sources",
    "positions": "Metadata_Positions",
    "well_count": "Metadata_Well_Count",
    "control_count": "Metadata_Control_Count",
    "plate_count": "Metadata_Plate_Count",
    "batch_count": "Metadata_Batch_Count",
    "source_count": "Metadata_Source_Count",
    "field_count": "Metadata_Site_Count",
    "cell_count": "Metadata_Object_Count",
    "replicate_cosine": "Metadata_Replicate_Cosine",
    "x_px": "Metadata_Nuclei_Location_Center_X",
    "y_px": "Metadata_Nuclei_Location_Center_Y",
    "box_left_px": "Metadata_Cells_AreaShape_BoundingBoxMinimum_X",
    "box_top_px": "Metadata_Cells_AreaShape_BoundingBoxMinimum_Y",
    "box_right_px": "Metadata_Cells_AreaShape_BoundingBoxMaximum_X",
    "box_bottom_px": "Metadata_Cells_AreaShape_BoundingBoxMaximum_Y",
    "nucleus_area_px": "Metadata_Nuclei_AreaShape_Area",
    "cell_area_px": "Metadata_Cells_AreaShape_Area",
}
PERT_TYPE = "Metadata_pert_type"
#: The lake's control types → the field's: what is done to the cells, and which control it is.
_PERT_TYPES = {"none": "trt", "negative": "control", "positive": "control"}
_CONTROL_TYPES = {"negative": "negcon", "positive": "poscon", "mixed": "mixed"}
#: Parts the labels, and the batches, of one row.
SEPARATOR = "|"


def for_the_field(rows: pl.DataFrame) -> pl.DataFrame:
    """Give rows of a level the field's names and values.

    Args:
        rows: columns of the lake, the embedding left out.

    Returns:
        The same rows in the same order; lists are texts, joined by `|`; columns without a name in the field are
        called `Metadata_` and their name in the lake.
    """
    known = [name for name in NAMES if name in rows.columns]
    ordered = [*known, *(name for name in rows.columns if name not in NAMES)]
    made: list[pl.Expr] = []
    for name in ordered:
        column = pl.col(name)
        if rows.schema[name] == pl.List(pl.String):
            column = column.list.join(SEPARATOR)
        if name == "control_type":
            made.append(
                _pert_type("treatment" if "treatment" in rows.columns else "compound").alias(PERT_TYPE)
            )
            column = column.replace_strict(_CONTROL_TYPES, default=None, return_dtype=pl.String)
        made.append(column.alias(NAMES.get(name, f"Metadata_{name}")))
    return rows.select(made)


def _pert_type(name: str) -> pl.Expr:
    """Tell treatments, controls and empty wells apart; NULL where wells disagree, or no layout was given."""
    kind = pl.col("control_type").replace_strict(_PERT_TYPES, default=None, return_dtype=pl.String)
    is_empty = (pl.col("control_type") == "none") & pl.col(name).is_null()
    return pl.when(is_empty).then(pl.lit("empty")).otherwise(kind)
