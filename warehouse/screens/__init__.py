"""Reading what describes a screen: its images, what is in its wells, what is known of its compounds."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal, NoReturn

import polars as pl

from warehouse import places
from warehouse.errors import ScreenError
from warehouse.names import unknown
from warehouse.screens import bbbc021, checks, jump, jump_metadata, plain, platemaps
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
from warehouse.screens.remote import at_hand
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
    "layout": "plate, well, compound (plain), well_position (Broad; or well, with --compound-column), "
    "Image_Metadata_… (BBBC021)",
    "annotations": "compound, kind, label (plain), broad_sample, moa (Broad), compound, moa (BBBC021)",
}
_READERS = {"plain": plain.manifest, "jump": jump.manifest, "bbbc021": bbbc021.manifest}


def read_screen(
    manifest: Path | str,
    *,
    layout: Path | str | None = None,
    annotations: Path | str | None = None,
    images: Path | str | None = None,
    source: str | None = None,
    batch: str | None = None,
    format: Format = "auto",
    channels: Sequence[str] | None = None,
    plate_size: int | None = None,
    compound_column: str | None = None,
    must_exist: bool = True,
) -> Screen:
    """Read a screen and check it as a whole.

    Tables and images may be on S3, given as text `s3://bucket/key`; the column `path` of the screen's manifest
    holds such addresses then.

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

        must_exist: refuse a manifest of which not one image is there.

    Raises:
        ScreenError: the first fault found, in one line.
        PlaceError: S3 refuses what is on it.
        LakeUnavailableError: S3 cannot be reached.
    """
    images = images if images is None or places.is_remote(images) else Path(images)
    check_images(images)
    with at_hand(manifest, layout, annotations) as (tables, named):
        given = {"source": source, "batch": batch}
        screen = _read(tables, images, given, format, channels, plate_size, compound_column, str(manifest))
        root = images or (tables[0] if tables[0].is_dir() else tables[0].parent)
        if named is not str:
            paths = pl.Series("path", map(named, screen.manifest["path"]), dtype=pl.String)
            notes = tuple(map(named, screen.notes))
            screen = replace(screen, manifest=screen.manifest.with_columns(paths), notes=notes)
    if must_exist:
        check_some_exist(screen.manifest, named(str(root)), str(manifest))
    return screen


def _read(
    tables: tuple[Path, Path | None, Path | None],
    images: Path | str | None,
    given: Mapping[str, str | None],
    format: Format,
    channels: Sequence[str] | None,
    plate_size: int | None,
    compound_column: str | None,
    origin: str,
) -> Screen:
    manifest, layout, annotations = tables
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
    rows, plan = settle(rows, plan, given, origin)
    rows = _with_sizes(rows, plan)
    return Screen.validated(
        _in_order(rows, MANIFEST_SCHEMA),
        _in_order(plan, LAYOUT_SCHEMA),
        _in_order(labels, ANNOTATIONS_SCHEMA),
        origin=origin,
        plate_size=plate_size,
        notes=notes,
    )


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
    """Read a layout alone: plain CSV, JUMP's metadata tables, the Broad's platemaps, BBBC021's image CSV or crops.

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
    if jump_metadata.is_metadata(path):
        return _whole_metadata(path, source, batch, compound_column).layout
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
    if jump_metadata.is_metadata(path):
        return _whole_metadata(path, None, None, compound_column).annotations
    rows = _annotation_rows(path, compound_column, format)
    checks.check_annotations(rows, str(path))
    return rows.select(*ANNOTATIONS_SCHEMA)


def _whole_metadata(
    path: Path, source: str | None, batch: str | None, compound_column: str | None
) -> jump_metadata.Metadata:
    """Read JUMP's tables where every row must go in, as nothing here could tell of the others."""
    found = jump_metadata.read(path, source=source, batch=batch, compound_column=compound_column)
    if found.rejections.height:
        row = found.rejections.row(0, named=True)
        message = (
            f"{path}, row {row['row']}: well {row['well']!r} of plate {row['plate']!r}: {row['reason']} (of "
            f"{found.rejections.height} rows that cannot go in). Correct them, or take the tables in by "
            "`wellhouse import-layout`, which leaves such rows out and counts them."
        )
        raise ScreenError(message)
    return found


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
    if name == "auto" and platemaps.is_platemap(columns, compound_column):
        name = "jump"
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
