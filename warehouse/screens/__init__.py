"""Reading what describes a screen: its images, what is in its wells, what is known of its compounds."""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal, NoReturn

import polars as pl

from warehouse.errors import ScreenError
from warehouse.names import unknown
from warehouse.screens import bbbc021, checks, jump, plain, platemaps
from warehouse.screens.identity import settle
from warehouse.screens.model import (
    ANNOTATIONS_SCHEMA,
    LAYOUT_SCHEMA,
    MANIFEST_SCHEMA,
    Screen,
    check,
    empty,
    normal_layout,
)
from warehouse.screens.paths import check_images, check_some_exist
from warehouse.screens.plain import TEMPLATE_ANNOTATIONS, TEMPLATE_LAYOUT, TEMPLATE_MANIFEST, write_templates
from warehouse.screens.table import TRACE, columns_of, read_table

__all__ = [
    "ANNOTATIONS_SCHEMA",
    "FORMATS",
    "LAYOUT_SCHEMA",
    "MANIFEST_SCHEMA",
    "TEMPLATE_ANNOTATIONS",
    "TEMPLATE_LAYOUT",
    "TEMPLATE_MANIFEST",
    "Format",
    "Screen",
    "check",
    "read_annotations",
    "read_layout",
    "read_screen",
    "write_templates",
]

Format = Literal["auto", "plain", "jump", "bbbc021"]
FORMATS = ("auto", "plain", "jump", "bbbc021")

_WANTED = {
    "manifest": "plate, well, field, channel, path (plain), FileName_Orig… (JUMP), Image_… (BBBC021)",
    "layout": "plate, well, compound (plain), well_position (Broad), Image_Metadata_… (BBBC021)",
    "annotations": "compound, kind, label (plain), broad_sample, moa (Broad), compound, moa (BBBC021)",
}
_READERS = {"plain": plain.manifest, "jump": jump.manifest, "bbbc021": bbbc021.manifest}


def read_screen(
    manifest: Path,
    *,
    layout: Path | None = None,
    annotations: Path | None = None,
    images: Path | None = None,
    source: str | None = None,
    batch: str | None = None,
    format: Format = "auto",
    channels: Sequence[str] | None = None,
    plate_size: int | None = None,
    compound_column: str | None = None,
) -> Screen:
    """Read a screen and check it as a whole.

    Args:
        manifest: the table of images; for JUMP also a folder, of which every load_data.csv below is read.
        layout: the table or folder of wells; None where BBBC021's manifest is the layout as well, else an
            empty layout. Its format is recognised by itself, as is that of the annotations.
        annotations: the table or folder of labels; None for none.
        images: folder of the images; None for the manifest's own, or those that a JUMP manifest names.
        source: the source, where the manifest has none.
        batch: the batch, where the manifest has none.
        format: the manifest's format; ``"auto"`` recognises it by its columns.
        channels: the channels to read, in this order; None for all (of JUMP: all but brightfield).
        plate_size: number of wells of every plate; None accepts up to 1536.
        compound_column: of a Broad platemap, the column that names the compound; None for broad_sample.

    Raises:
        ScreenError: the first fault found, in one line.
    """
    check_images(images)
    files = _manifest_files(manifest)
    parts, plans, notes = [], [], []
    for file in files:
        table = read_table(file)
        name = _manifest_format(table, file, format)
        rows, told = _READERS[name](table, file, images, channels)
        parts.append(rows)
        notes += told if len(files) == 1 else [f"{file.parent.name}: {note}" for note in told]
        if layout is None and name == "bbbc021":
            plans.append(bbbc021.layout(table, file))
    rows = pl.concat(parts, how="diagonal")
    if layout is not None:
        plates = rows["plate"].drop_nulls().unique(maintain_order=True).to_list()
        plans.append(_layout_rows(layout, plates, annotations, compound_column))
    plan = plans[0] if plans else empty(LAYOUT_SCHEMA)
    labels = (
        empty(ANNOTATIONS_SCHEMA) if annotations is None else _annotation_rows(annotations, compound_column)
    )
    rows, plan = settle(rows, plan, {"source": source, "batch": batch}, str(manifest))
    rows = _with_sizes(rows, plan)
    screen = Screen.validated(
        _in_order(rows, MANIFEST_SCHEMA),
        _in_order(plan, LAYOUT_SCHEMA),
        _in_order(labels, ANNOTATIONS_SCHEMA),
        origin=str(manifest),
        plate_size=plate_size,
        notes=notes,
    )
    check_some_exist(
        screen.manifest, images or (manifest if manifest.is_dir() else manifest.parent), str(manifest)
    )
    return screen


def read_layout(
    path: Path,
    *,
    source: str | None = None,
    batch: str | None = None,
    format: Format = "auto",
    plate_size: int | None = None,
    plates: Sequence[str] | None = None,
    compounds: Path | None = None,
    compound_column: str | None = None,
) -> pl.DataFrame:
    """Read a layout alone: a plain CSV, JUMP's or the Broad's platemaps, or BBBC021's image CSV or crops.

    Args:
        path: the file, or the folder that holds barcode_platemap.csv.
        source: the source, where the layout has none.
        batch: the batch, where the layout has none.
        format: the layout's format; ``"auto"`` recognises it by its columns.
        plate_size: number of wells of every plate; None accepts up to 1536.
        plates: the plates that a single platemap holds for.
        compounds: for platemaps without control_type, the table of compounds that has it.
        compound_column: of a platemap, the column that names the compound; None for broad_sample.

    Returns:
        One row per well, columns of `LAYOUT_SCHEMA`.

    Raises:
        ScreenError: the first fault found, in one line.
    """
    rows = _layout_rows(path, plates, compounds, compound_column, format)
    _, rows = settle(empty(MANIFEST_SCHEMA), rows, {"source": source, "batch": batch}, str(path))
    rows = normal_layout(_in_order(rows, LAYOUT_SCHEMA), plate_size, str(path))
    checks.check_batches(empty(MANIFEST_SCHEMA), rows, str(path))
    return rows.select(*LAYOUT_SCHEMA)


def read_annotations(
    path: Path, *, format: Format = "auto", compound_column: str | None = None
) -> pl.DataFrame:
    """Read annotations alone: a plain CSV, BBBC021_v1_moa.csv, or a Broad table or platemap with labels.

    Args:
        path: the file, or the folder that holds barcode_platemap.csv.
        format: the file's format; ``"auto"`` recognises it by its columns.
        compound_column: of a Broad table, the column that names the compound; None for broad_sample.

    Returns:
        One row per label, columns of `ANNOTATIONS_SCHEMA`.

    Raises:
        ScreenError: the first fault found, in one line.
    """
    rows = _annotation_rows(path, compound_column, format)
    checks.check_annotations(rows, str(path))
    return rows.select(*ANNOTATIONS_SCHEMA)


def _manifest_files(manifest: Path) -> list[Path]:
    if not manifest.is_dir():
        return [manifest]
    files = jump.files_below(manifest)
    if not files:
        message = f"{manifest}: a folder without any load_data.csv. Give the manifest's file."
        raise ScreenError(message)
    return files


def _manifest_format(table: pl.DataFrame, path: Path, format: str) -> str:
    columns = columns_of(table)
    if _asked(format) != "auto":
        return format
    # A plain manifest comes last: its names are the most general.
    for name, module in (("jump", jump), ("bbbc021", bbbc021), ("plain", plain)):
        if module.is_manifest(columns):
            return name
    _refuse_unrecognised("manifest", path, columns)


def _layout_rows(
    path: Path,
    plates: Sequence[str] | None,
    compounds: Path | None,
    compound_column: str | None,
    format: str = "auto",
) -> pl.DataFrame:
    if path.is_dir():
        table, columns = None, ["well_position"]
    else:
        table = read_table(path)
        columns = columns_of(table)
    name = _asked(format)
    if name == "auto":
        kinds = (("jump", platemaps.is_layout), ("bbbc021", bbbc021.is_manifest), ("plain", _is_plain_layout))
        name = next((kind for kind, fits in kinds if fits(columns)), "auto")
    if name == "jump":
        known = compounds if compounds is not None and compounds.is_file() else None
        return platemaps.layout(path, plates, known, compound_column)
    if table is None or name == "auto":
        _refuse_unrecognised("layout", path, columns)
    if not table.height:
        message = f"{path}: the layout has no rows. List one well a row."
        raise ScreenError(message)
    return bbbc021.layout(table, path) if name == "bbbc021" else plain.layout(table, path)


def _annotation_rows(path: Path, compound_column: str | None, format: str = "auto") -> pl.DataFrame:
    if path.is_dir():
        return platemaps.annotations(path, compound_column)
    table = read_table(path)
    columns = columns_of(table)
    name = _asked(format)
    if name == "jump" or (
        name == "auto" and (platemaps.is_layout(columns) or platemaps.is_annotations(columns))
    ):
        return platemaps.annotations(path, compound_column)
    if name == "bbbc021" or (name == "auto" and bbbc021.is_annotations(columns)):
        return bbbc021.annotations(table, path)
    if name == "auto" and "compound" not in columns and "label" not in columns:
        _refuse_unrecognised("annotations", path, columns)
    return plain.annotations(table, path)


def _is_plain_layout(columns: Sequence[str]) -> bool:
    return len({name.casefold() for name in columns} & set(plain.LAYOUT_COLUMNS)) >= 2


def _asked(format: str) -> str:
    if format not in FORMATS:
        message = str(unknown(format, "format", FORMATS))
        raise ScreenError(message)
    return format


def _refuse_unrecognised(what: str, path: Path, columns: Sequence[str]) -> NoReturn:
    seen = ", ".join(columns)
    message = f"{path}: the columns fit no known kind of {what}: {seen}. Needed are {_WANTED[what]}."
    raise ScreenError(message)


def _with_sizes(rows: pl.DataFrame, plan: pl.DataFrame) -> pl.DataFrame:
    """Hold the wells of the manifest to the size that the layout gives their plate."""
    if "plate_size" in rows.columns or "plate_size" not in plan.columns:
        return rows
    key = ["source", "batch", "plate"]
    sizes = plan.select(*key, "plate_size").drop_nulls().unique(key, keep="first", maintain_order=True)
    return rows.join(sizes, on=key, how="left", maintain_order="left")


def _in_order(frame: pl.DataFrame, schema: dict[str, pl.DataType]) -> pl.DataFrame:
    """Keep the columns of the contract, the plate's size, and the trace."""
    return frame.select(*schema, *(name for name in ("plate_size", *TRACE) if name in frame.columns))
