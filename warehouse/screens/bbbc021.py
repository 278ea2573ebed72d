"""BBBC021's own tables: the image CSV, the single-cell crops and the mechanisms of action.

Source: Caie et al. 2010, Mol Cancer Ther 9:1913; Ljosa et al. 2012, Nat Methods 9:637 (BBBC021v1).
"""

from collections.abc import Sequence
from pathlib import Path

import polars as pl

from warehouse.screens.identity import HINTS
from warehouse.screens.paths import join_folders, resolve
from warehouse.screens.table import TRACE, check_columns, numbers, refuse
from warehouse.screens.wide import chosen, left_out, to_long

# In the order of the planes of a crop; the file's name for a channel → the stain's.
CHANNELS = {"DAPI": "DNA", "Tubulin": "Tubulin", "Actin": "Actin"}

_IDS = {"Image_Metadata_Plate_DAPI": "plate", "Image_Metadata_Well_DAPI": "well"}
_COMPOUND, _DOSE = "Image_Metadata_Compound", "Image_Metadata_Concentration"
_CROP = ("file", "site", "cell_index")
_UNIT = "uM"


def is_manifest(columns: Sequence[str]) -> bool:
    """Tell whether these are columns of the image CSV or of the table of crops."""
    return any(name.startswith(("Image_Metadata_", "Image_FileName_DAPI")) for name in columns)


def is_annotations(columns: Sequence[str]) -> bool:
    """Tell whether these are the columns of BBBC021_v1_moa.csv."""
    return set(columns) == {"compound", "concentration", "moa"}


def manifest(
    table: pl.DataFrame, path: Path, images: Path | str | None, channels: Sequence[str] | None
) -> tuple[pl.DataFrame, list[str]]:
    """Read the image CSV (one row a field) or the table of crops (one row a cell).

    The batch is the week: the first folder of the DAPI image's path, or the plate's name up to ``_``.

    Args:
        table: the file as text, from `read_table`.
        path: the file.
        images: folder of the images; None for the file's own folder.
        channels: channels to read, in this order, of DNA, Tubulin and Actin; None for all.

    Returns:
        The rows with trace, and notes.

    Raises:
        ScreenError: naming the file, the row and the value.
    """
    read = chosen(list(CHANNELS.values()), channels, list(CHANNELS.values()))
    notes = left_out(list(CHANNELS.values()), read)
    is_crops = all(name in table.columns for name in _CROP)
    rows, told = _crops(table, path, images, read) if is_crops else _fields(table, path, images, read)
    return rows, [*notes, *told]


def _fields(
    table: pl.DataFrame, path: Path, images: Path | str | None, read: Sequence[str]
) -> tuple[pl.DataFrame, list[str]]:
    files = {stain: f"Image_FileName_{name}" for name, stain in CHANNELS.items()}
    folders = {stain: f"Image_PathName_{name}" for name, stain in CHANNELS.items()}
    check_columns(table, path, [*_IDS, *files.values(), *folders.values()])
    origin = str(path)
    table = table.rename(_IDS).with_columns(
        pl.col(folders["DNA"]).str.extract(r"^([^/\\]+)").alias(HINTS["batch"]),
        pl.col(files["DNA"]).str.extract(r"_s([0-9]+)_").alias("field"),
        pl.lit(None, dtype=pl.String).alias("cell"),
    )
    name = files["DNA"]
    no_site = table.filter(pl.col("field").is_null())
    refuse(no_site, origin, f"{name} {{{name}!r}} has no site '_s<number>_'", "Correct the file name.")
    for stain in read:
        table = join_folders(
            table, folders[stain], files[stain], f"path_{stain}", path.parent, images, origin
        )
    return to_long(table, {stain: f"path_{stain}" for stain in read}, {}, origin)


def _crops(
    table: pl.DataFrame, path: Path, images: Path | str | None, read: Sequence[str]
) -> tuple[pl.DataFrame, list[str]]:
    check_columns(table, path, list(_IDS))
    origin = str(path)
    table = table.rename({**_IDS, "file": "path", "site": "field", "cell_index": "cell"})
    for name, column in (("path", "file"), ("cell", "cell_index")):
        refuse(
            table.filter(pl.col(name).is_null()), origin, f"{column} is empty", "Every crop must have one."
        )
    table = resolve(table, "path", images or path.parent, images, origin)
    table = table.with_columns(pl.col("plate").str.extract("^([^_]+)_").alias(HINTS["batch"]))
    planes = {stain: number for number, stain in enumerate(CHANNELS.values())}
    return to_long(table, dict.fromkeys(read, "path"), planes, origin)


def layout(table: pl.DataFrame, path: Path) -> pl.DataFrame:
    """Read what is in each well, from the image CSV or the table of crops; DMSO is the negative control.

    Args:
        table: the file as text, from `read_table`.
        path: the file.

    Returns:
        One row for every different account of a well, so that a contradiction comes to light.

    Raises:
        ScreenError: naming the file, the row and the value.
    """
    check_columns(table, path, [*_IDS, _COMPOUND, _DOSE])
    folder = pl.col(
        "Image_PathName_DAPI" if "Image_PathName_DAPI" in table.columns else "Image_Metadata_Plate_DAPI"
    )
    batch = folder.str.extract(r"^([^/\\]+)" if "Image_PathName_DAPI" in table.columns else "^([^_]+)_")
    rows = table.select(
        batch.alias(HINTS["batch"]),
        *(pl.col(name).alias(to) for name, to in _IDS.items()),
        pl.col(_COMPOUND).alias("compound"),
        pl.col(_DOSE).alias("concentration"),
        *TRACE,
    )
    rows = numbers(rows, "concentration", str(path))
    rows = rows.unique(["plate", "well", "compound", "concentration"], keep="first", maintain_order=True)
    is_negative = pl.col("compound") == "DMSO"
    return rows.with_columns(
        pl.when(pl.col("concentration").is_not_null()).then(pl.lit(_UNIT)).alias("unit"),
        pl.when(is_negative).then(pl.lit("negative")).otherwise(pl.lit("none")).alias("control_type"),
    )


def annotations(table: pl.DataFrame, path: Path) -> pl.DataFrame:
    """Read the mechanisms of action, each of a compound at a concentration.

    Raises:
        ScreenError: naming the file, the row and the value.
    """
    check_columns(table, path, ["compound", "concentration", "moa"])
    # "DMSO" has the mechanism "DMSO" in this file: a control, no mechanism, so its row is left out.
    table = numbers(table.filter(pl.col("compound").ne_missing("DMSO")), "concentration", str(path))
    return table.select(
        "compound", "concentration",
        pl.lit(_UNIT).alias("unit"), pl.lit("moa").alias("kind"), pl.col("moa").alias("label"),
        *TRACE,
    )  # fmt: skip
