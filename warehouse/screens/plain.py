"""The plain CSV: manifest of images, layout of wells, list of annotations; see docs/screen_format.md."""

from collections.abc import Sequence
from pathlib import Path

import polars as pl

from warehouse.errors import ScreenError
from warehouse.screens.paths import resolve
from warehouse.screens.table import check_columns, columns_of, numbers, refuse, whole_numbers
from warehouse.screens.wide import chosen, left_out, to_long
from warehouse.wells import unit_expression

MANIFEST_COLUMNS = (
    "source",
    "batch",
    "plate",
    "well",
    "field",
    "cell",
    "channel",
    "path",
    "plane",
    "plate_size",
)
LAYOUT_COLUMNS = (
    "source",
    "batch",
    "plate",
    "well",
    "compound",
    "concentration",
    "unit",
    "control_type",
    "plate_size",
)
ANNOTATION_COLUMNS = ("compound", "concentration", "unit", "kind", "label")

TEMPLATE_MANIFEST = """\
source,batch,plate,well,field,path_DNA,path_Actin
lab1,week1,P001,B02,1,images/P001/B02_1_DNA.tif,images/P001/B02_1_Actin.tif
lab1,week1,P001,B02,2,images/P001/B02_2_DNA.tif,images/P001/B02_2_Actin.tif
lab1,week1,P001,B03,1,images/P001/B03_1_DNA.tif,images/P001/B03_1_Actin.tif
"""
TEMPLATE_LAYOUT = """\
source,batch,plate,well,compound,concentration,unit,control_type
lab1,week1,P001,B02,DMSO,,,negative
lab1,week1,P001,B03,taxol,0.3,uM,none
lab1,week1,P001,B04,,,,none
"""
TEMPLATE_ANNOTATIONS = """\
compound,concentration,unit,kind,label
taxol,,,moa,Microtubule stabilizers
taxol,,,target,TUBB
"""

# What pandas, R and SQL write for "nothing": as an id it would pool wells that have nothing in common.
_NOTHING = ("na", "n/a", "nan", "null", "none", "<na>")


def write_templates(folder: Path) -> list[Path]:
    """Write the three templates into a folder, leaving files that are there already as they are.

    Args:
        folder: where to write ``manifest.csv``, ``layout.csv`` and ``annotations.csv``; made if absent.

    Returns:
        The files that were written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    texts = {"manifest": TEMPLATE_MANIFEST, "layout": TEMPLATE_LAYOUT, "annotations": TEMPLATE_ANNOTATIONS}
    written = []
    for name, text in texts.items():
        path = folder / f"{name}.csv"
        if not path.exists():
            path.write_text(text, encoding="utf-8")
            written.append(path)
    return written


def is_manifest(columns: Sequence[str]) -> bool:
    """Tell whether these look like the columns of a plain manifest, a misspelt one among them."""
    shared = {name.casefold() for name in columns} & set(MANIFEST_COLUMNS)
    return len(shared) >= 2


def manifest(
    table: pl.DataFrame, path: Path, images: Path | str | None, channels: Sequence[str] | None
) -> tuple[pl.DataFrame, list[str]]:
    """Read a plain manifest, long (channel, path, plane) or wide (path_DNA, plane_DNA, …).

    Args:
        table: the file as text, from `read_table`.
        path: the file.
        images: folder that relative paths start from; None for the file's own folder.
        channels: channels to read, in this order; None for all.

    Returns:
        The rows with trace, and notes.

    Raises:
        ScreenError: naming the file, the row and the value.
    """
    names = columns_of(table)
    of_channel = {
        name.removeprefix("path_"): name for name in names if name.startswith("path_") and name != "path_"
    }
    planes = {channel: f"plane_{channel}" for channel in of_channel if f"plane_{channel}" in names}
    is_long = any(name in names for name in ("channel", "path", "plane"))
    extra = [*of_channel.values(), *(f"plane_{channel}" for channel in of_channel)]
    check_columns(table, path, ["plate", "well", "field"], (*MANIFEST_COLUMNS, *extra))
    if is_long and of_channel:
        message = (
            f"{path}: both {next(iter(of_channel.values()))!r} and 'channel', 'path' or 'plane' are columns. "
            "Give one row a channel, or one column a channel, not both."
        )
        raise ScreenError(message)
    if not of_channel:
        if not is_long:
            message = (
                f"{path}: no column names an image; the file has {', '.join(names)}. "
                "Add 'channel' and 'path', or a column a channel such as 'path_DNA'."
            )
            raise ScreenError(message)
        check_columns(table, path, ["channel", "path"])
    origin = str(path)
    if "plate_size" in names:
        table = whole_numbers(table, "plate_size", origin)
    root = images or path.parent
    if of_channel:
        for name in of_channel.values():
            table = resolve(table, name, root, images, origin)
        for name in planes.values():
            table = whole_numbers(table, name, origin)
        read = chosen(list(of_channel), channels, list(of_channel))
        rows, notes = to_long(table, {channel: of_channel[channel] for channel in read}, planes, origin)
        return _with_cell(rows), [*left_out(list(of_channel), read), *notes]
    refuse(
        table.filter(pl.col("path").is_null()),
        origin,
        "path is empty",
        "Give the image's path, or take the row out.",
    )
    refuse(
        table.filter(pl.col("channel").is_null()),
        origin,
        "channel is empty",
        "Name the channel, such as DNA.",
    )
    table = resolve(table, "path", root, images, origin)
    table = table if "plane" in names else table.with_columns(pl.lit(None, dtype=pl.String).alias("plane"))
    table = whole_numbers(table, "plane", origin)
    available = table["channel"].unique(maintain_order=True).to_list()
    read = chosen(available, channels, available)
    rows = table.filter(pl.col("channel").is_in(read))
    return _with_cell(rows), left_out(available, read)


def layout(table: pl.DataFrame, path: Path) -> pl.DataFrame:
    """Read a plain layout.

    Raises:
        ScreenError: naming the file, the row and the value.
    """
    check_columns(table, path, ["plate", "well", "compound"], LAYOUT_COLUMNS)
    origin = str(path)
    table = _with_text(table, ("concentration", "unit", "control_type"))
    _refuse_nothings(table, ("compound", "unit"), origin)
    table = numbers(table, "concentration", origin)
    if "plate_size" in table.columns:
        table = whole_numbers(table, "plate_size", origin)
    dose = table.filter(pl.col("compound").is_null() & (pl.col("concentration") > 0))
    refuse(
        dose,
        origin,
        "concentration {concentration} is given without a compound",
        "Name the compound, or empty both.",
    )
    return table.with_columns(
        unit_expression(), pl.col("control_type").str.to_lowercase().fill_null("none").alias("control_type")
    )


def annotations(table: pl.DataFrame, path: Path) -> pl.DataFrame:
    """Read a plain list of annotations.

    Raises:
        ScreenError: naming the file, the row and the value.
    """
    check_columns(table, path, ["compound", "kind", "label"], ANNOTATION_COLUMNS)
    table = _with_text(table, ("concentration", "unit"))
    _refuse_nothings(table, ("compound", "unit", "label"), str(path))
    table = numbers(table, "concentration", str(path))
    return table.with_columns(unit_expression(), pl.col("kind").str.to_lowercase())


def _with_text(table: pl.DataFrame, names: Sequence[str]) -> pl.DataFrame:
    missing = [name for name in names if name not in table.columns]
    return table.with_columns(pl.lit(None, dtype=pl.String).alias(name) for name in missing)


def _with_cell(table: pl.DataFrame) -> pl.DataFrame:
    return _with_text(table, ("cell",))


def _refuse_nothings(table: pl.DataFrame, names: Sequence[str], origin: str) -> None:
    for name in names:
        bad = table.filter(pl.col(name).str.to_lowercase().is_in(_NOTHING))
        refuse(
            bad,
            origin,
            f"{name} is {{{name}!r}}",
            "Leave the value empty if there is none, or spell the name out.",
        )
