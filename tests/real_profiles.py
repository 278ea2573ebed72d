"""Published profiles of BBBC021 as arrays, made from the authors' tables without a lake."""

from functools import cache
from pathlib import Path

import numpy as np
import polars as pl

from warehouse.fitting import fit_transform
from warehouse.recipes import parse


@cache
def bbbc021_wells(data_dir: Path) -> tuple[np.ndarray, pl.DataFrame, pl.DataFrame]:
    """Wells z-scored on their plate's DMSO: profiles (632, 516), what is known of them, the layout of all wells."""
    folder = data_dir / "bbbc021"
    wells = pl.read_csv(folder / "ljosa_jbiomolscreen_2013_per_well_mean.csv.gz", infer_schema_length=None)
    wells = wells.rename({"Image_Metadata_Plate": "plate", "Image_Metadata_Well": "well"})
    images = pl.read_csv(folder / "BBBC021_v1_image.csv.gz", infer_schema_length=None)
    layout = images.select(
        plate="Image_Metadata_Plate_DAPI",
        well="Image_Metadata_Well_DAPI",
        compound="Image_Metadata_Compound",
        concentration="Image_Metadata_Concentration",
        batch=pl.col("Image_Metadata_Plate_DAPI").str.split("_").list.first(),
    ).unique()
    is_control = pl.col("compound") == "DMSO"
    groups = (
        wells.select("plate", "well")
        .join(layout, on=["plate", "well"], how="left", maintain_order="left", validate="1:1")
        .with_columns(
            source=pl.lit("bbbc021"),
            control_type=pl.when(is_control).then(pl.lit("negative")).otherwise(pl.lit("none")),
        )
    )
    z = fit_transform(parse("standardize"), wells.drop("plate", "well").to_numpy(), groups).profiles
    return z, groups, layout


def bbbc021(data_dir: Path) -> tuple[np.ndarray, pl.DataFrame, pl.DataFrame]:
    """Treatments as means of these wells: profiles (103, 516); compound, concentration, row, batches, plates, moa."""
    z, groups, layout = bbbc021_wells(data_dir)
    treatments = (
        groups.with_row_index("row")
        .filter(pl.col("control_type") == "none")
        .group_by("compound", "concentration")
        .agg("row", batches=pl.col("batch").unique(), plates=pl.col("plate").unique())
        .join(pl.read_csv(data_dir / "bbbc021" / "BBBC021_v1_moa.csv"), on=["compound", "concentration"])
        .sort("compound", "concentration")
    )
    X = np.stack([z[rows].mean(axis=0) for rows in treatments["row"].to_list()])
    return X, treatments, layout
