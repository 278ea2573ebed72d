"""Platemaps of JUMP and the Broad: what is in each well, and what is known of each compound."""

from collections.abc import Sequence
from pathlib import Path

import polars as pl

from warehouse.errors import ScreenError
from warehouse.names import unknown
from warehouse.screens.identity import HINTS
from warehouse.screens.jump import gallery_names
from warehouse.screens.table import (
    ROW,
    TRACE,
    check_columns,
    columns_of,
    literal,
    numbers,
    read_table,
    refuse,
)

BARCODES = "barcode_platemap.csv"
_BARCODE, _MAP = "Assay_Plate_Barcode", "Plate_Map_Name"
# Tables of barcodes that name their columns and themselves a little differently, with the platemaps beside them.
_BARCODE_NAMES = {"barcode": _BARCODE, "platemap_file": _MAP}
_WELL, _SAMPLE, _CONTROL = "well_position", "broad_sample", "control_type"
_SUFFIXES = (".txt", ".tsv", ".csv", ".txt.gz", ".tsv.gz", ".csv.gz")

# Column → unit. The number is kept as it is: a stock of 5 mmol/l is not what the cells see.
_DOSES = {
    "mmoles_per_liter": "mM",
    "mmoles_per_liter2": "mM",
    "umoles_per_liter": "uM",
    "concentration_uM": "uM",
}
_LABELS = {
    "moa": "moa", "MoA": "moa", "MOA": "moa", "Metadata_moa": "moa",
    "target": "target", "target_list": "target", "pathway": "pathway", "gene_family": "gene_family",
}  # fmt: skip
_CONTROLS = {
    "negcon": "negative", "negative control": "negative", "negative": "negative",
    "positive": "positive", "positive control": "positive",
    "trt": "none", "treatment": "none", "none": "none", "empty": "none",
}  # fmt: skip


def is_layout(columns: Sequence[str]) -> bool:
    """Tell whether these are columns of a platemap or of a table of barcodes."""
    return _WELL in columns or _is_barcodes(columns)


def is_platemap(columns: Sequence[str], compound_column: str | None) -> bool:
    """Tell whether these are columns of a platemap in which `compound_column` says what is in the wells."""
    return compound_column in columns and "well" in columns and "plate" not in columns


def is_annotations(columns: Sequence[str]) -> bool:
    """Tell whether these are columns of a platemap or a table of compounds, with labels."""
    return (_SAMPLE in columns or _WELL in columns) and any(name in _LABELS for name in columns)


def layout(
    path: Path, plates: Sequence[str] | None, compounds: Path | None, compound_column: str | None
) -> pl.DataFrame:
    """Read the layout of every plate of a folder of platemaps, or of one platemap.

    Args:
        path: barcode_platemap.csv, the folder that holds it beside ``platemap/``, a folder of such folders
            (one a batch), or one platemap, which then holds for each of `plates`.
        plates: the plates of a single platemap.
        compounds: a table of compounds with `control_type`, joined on broad_sample where the platemap does
            not say which wells are controls.
        compound_column: the column that names the compound; None for broad_sample.

    Returns:
        One row per plate and well, with trace (the row in the platemap) and hints of source and batch.

    Raises:
        ScreenError: naming the file, the row and the value.
    """
    controls = None if compounds is None else _controls(read_table(compounds), str(compounds))
    if path.is_file() and not _is_barcodes((table := read_table(path)).columns):
        if not plates:
            message = (
                f"{path}: a platemap alone does not say for which plates. Give the folder with {BARCODES}."
            )
            raise ScreenError(message)
        wells = _wells(table, path, compound_column, controls)
        return pl.DataFrame({"plate": plates}, schema={"plate": pl.String}).join(wells, how="cross")
    parts: list[pl.DataFrame] = []
    for barcodes in _barcode_files(path):
        maps: dict[str, pl.DataFrame] = {}
        source, batch = _names(barcodes)
        for plate, name in _barcodes(barcodes):
            if name not in maps:
                file, rows = _platemap(barcodes, plate, name)
                maps[name] = _wells(rows, file, compound_column, controls)
            parts.append(maps[name].select(
                pl.lit(plate).alias("plate"), pl.all(),
                pl.lit(source, dtype=pl.String).alias(HINTS["source"]),
                pl.lit(batch, dtype=pl.String).alias(HINTS["batch"]),
            ))  # fmt: skip
    return pl.concat(parts)


def annotations(path: Path, compound_column: str | None) -> pl.DataFrame:
    """Read labels of compounds from a table of compounds, a platemap, or all platemaps of a folder.

    A cell with several labels parts them by ``|``: each is a row. The same label of a compound counts once.

    Args:
        path: the table or the folder.
        compound_column: the column that names the compound; None for broad_sample.

    Raises:
        ScreenError: naming the file and the column.
    """
    if path.is_file() and not _is_barcodes((table := read_table(path)).columns):
        tables = [(path, table)]
    else:
        named = [(file, plate, name) for file in _barcode_files(path) for plate, name in _barcodes(file)]
        tables = [
            _platemap(*one)
            for one in {(file, name): (file, plate, name) for file, plate, name in named}.values()
        ]
    parts = []
    for file, one in tables:
        names = [name for name in columns_of(one) if name in _LABELS]
        if not names:
            seen = ", ".join(columns_of(one))
            message = f"{file}: no column holds labels; the file has {seen}. Add one of {', '.join(_LABELS)}."
            raise ScreenError(message)
        compound = _compound(one, file, compound_column)
        for name in names:
            text = pl.col(name).replace("NA", None).str.split("|")
            kind = pl.lit(_LABELS[name]).alias("kind")
            parts.append(one.select(compound, kind, text.alias("label"), *TRACE).explode("label"))
    labels = pl.concat(parts).with_columns(pl.col("label").str.strip_chars())
    nameless = labels.filter(pl.col("compound").is_null() & (pl.col("label") != ""))
    refuse(
        nameless, str(path), "label {label!r} has no compound", "Name the compound, or take the label out."
    )
    labels = labels.filter(pl.col("label") != "").unique(
        ["compound", "kind", "label"], keep="first", maintain_order=True
    )
    nothing = (
        pl.lit(None, dtype=pl.Float64).alias("concentration"),
        pl.lit(None, dtype=pl.String).alias("unit"),
    )
    return labels.select("compound", *nothing, "kind", "label", *TRACE)


def _barcode_files(path: Path) -> list[Path]:
    if path.is_file():
        return [path]
    here = [path / BARCODES] if (path / BARCODES).is_file() else _barcodes_named_otherwise(path)
    found = here or sorted(path.glob(f"*/{BARCODES}"))
    if not found:
        message = f"{path}: no {BARCODES} here or one folder below. Give the folder that holds it."
        raise ScreenError(message)
    return found


def _barcodes_named_otherwise(folder: Path) -> list[Path]:
    stem = BARCODES.removesuffix(".csv")
    return sorted(
        file
        for file in folder.glob("*")
        if file.name.casefold().startswith(stem)
        and file.name.casefold().endswith(_SUFFIXES)
        and file.is_file()
    )


def _is_barcodes(columns: Sequence[str]) -> bool:
    return {_BARCODE, _MAP} <= set(columns) or set(_BARCODE_NAMES) <= set(columns)


def _barcodes(path: Path) -> list[tuple[str, str]]:
    table = read_table(path)
    if set(_BARCODE_NAMES) <= set(table.columns):
        table = table.rename(_BARCODE_NAMES)
    check_columns(table, path, [_BARCODE, _MAP])
    for name in (_BARCODE, _MAP):
        refuse(
            table.filter(pl.col(name).is_null()),
            str(path),
            f"{name} is empty",
            "Every plate needs a platemap.",
        )
    twice = table.filter(~pl.col(_BARCODE).is_first_distinct())
    refuse(twice, str(path), f"plate {{{_BARCODE}!r}} is listed twice", "Keep one row a plate.")
    climbs = table.filter(pl.col(_MAP).str.contains(r"[/\\]|^\.+$"))
    refuse(
        climbs,
        str(path),
        f"platemap {{{_MAP}!r}} is not a bare name",
        "Name a file of the folder 'platemap'.",
    )
    if not table.height:
        message = f"{path}: no plate is listed. Add one row a plate."
        raise ScreenError(message)
    return table.select(_BARCODE, _MAP).rows()


def _names(barcodes: Path) -> tuple[str | None, str | None]:
    """Source and batch as the gallery's folders say; the batch is the folder of the barcodes, if it names one."""
    source, _ = gallery_names(barcodes.parent, "platemaps")
    folder = barcodes.resolve().parent.name
    return source, None if folder == "platemaps" else folder


def _platemap(barcodes: Path, plate: str, name: str) -> tuple[Path, pl.DataFrame]:
    folder = barcodes.parent / "platemap"
    folder = folder if folder.is_dir() else barcodes.parent
    found = [file for suffix in ("", *_SUFFIXES) if (file := folder / f"{name}{suffix}").is_file()]
    if not found:
        message = (
            f"{barcodes}: plate {plate!r} needs platemap {name!r}, which {folder} does not hold. Add it."
        )
        raise ScreenError(message)
    tables = [read_table(file) for file in found]
    for file, table in zip(found[1:], tables[1:], strict=True):
        if not table.drop(TRACE).equals(tables[0].drop(TRACE)):
            message = f"{file}: differs from {found[0].name}; both are platemap {name!r}. Take one out."
            raise ScreenError(message)
    return found[0], tables[0]


def _compound(table: pl.DataFrame, file: Path, column: str | None) -> pl.Expr:
    column = column or _SAMPLE
    if column not in table.columns:
        message = (
            f"{file}: {unknown(column, 'compound column', columns_of(table))} Name it with --compound-column."
        )
        raise ScreenError(message)
    return pl.col(column).replace("NA", None).alias("compound")


def _wells(
    table: pl.DataFrame, file: Path, column: str | None, controls: pl.DataFrame | None
) -> pl.DataFrame:
    well = "well" if "well" in table.columns and _WELL not in table.columns else _WELL
    check_columns(table, file, [well])
    origin = str(file)
    if not table.height:
        message = f"{file}: the platemap has no wells. List one well a row."
        raise ScreenError(message)
    dose = next((name for name in _DOSES if name in table.columns), None)
    if dose is not None:
        table = numbers(table.with_columns(pl.col(dose).replace("NA", None)), dose, origin)
    rows = table.with_columns(_compound(table, file, column), pl.col(well).alias("well"))
    if _CONTROL in table.columns:
        rows = _with_control_types(rows, origin)
    elif controls is not None and _SAMPLE in table.columns:
        rows = rows.join(controls, on=_SAMPLE, how="left", maintain_order="left")
    else:
        rows = rows.with_columns(pl.lit(None, dtype=pl.String).alias(_CONTROL))
    solvent = pl.col("solvent") if "solvent" in table.columns else pl.lit(None, dtype=pl.String)
    sample = pl.col(_SAMPLE) if _SAMPLE in table.columns else pl.col("compound")
    # A well with the solvent alone: the Broad leaves its sample empty, others name the solvent.
    is_empty = sample.replace("NA", None).is_null()
    is_solvent = pl.when(is_empty).then(solvent).otherwise(sample).str.to_uppercase() == "DMSO"
    is_solvent = is_solvent.fill_null(False)
    amount = pl.lit(None, dtype=pl.Float64) if dose is None else pl.col(dose)
    unit = pl.lit(None if dose is None else _DOSES[dose], dtype=pl.String)
    return rows.select(
        "well",
        pl.when(is_solvent).then(pl.lit("DMSO")).otherwise("compound").alias("compound"),
        pl.when(~is_solvent).then(amount).alias("concentration"),
        pl.when(~is_solvent & amount.is_not_null()).then(unit).alias("unit"),
        # What the file says of a control comes first.
        pl.coalesce(_CONTROL, pl.when(is_solvent).then(pl.lit("negative")), pl.lit("none")).alias(_CONTROL),
        *TRACE,
    )


def _with_control_types(table: pl.DataFrame, origin: str) -> pl.DataFrame:
    word = pl.col(_CONTROL).str.to_lowercase().replace("na", None)
    mapped = word.replace_strict(_CONTROLS, default=None, return_dtype=pl.String)
    mapped = pl.when(word.str.starts_with("poscon")).then(pl.lit("positive")).otherwise(mapped)
    bad = table.filter(word.is_not_null() & mapped.is_null())
    says = f"unknown control_type {{{_CONTROL}!r}}"
    refuse(bad, origin, says, "Use negcon, poscon… or trt, or leave it empty.")
    return table.with_columns(mapped.alias(_CONTROL))


def _controls(table: pl.DataFrame, origin: str) -> pl.DataFrame | None:
    """Return broad_sample → control_type, or None where the table does not tell."""
    if _CONTROL not in table.columns or _SAMPLE not in table.columns:
        return None
    rows = _with_control_types(table, origin).filter(pl.col(_SAMPLE).is_not_null())
    types = rows.select(_SAMPLE, pl.col(_CONTROL).fill_null("none"), *TRACE)
    types = types.unique([_SAMPLE, _CONTROL], keep="first", maintain_order=True)
    twice = types.filter(~pl.col(_SAMPLE).is_first_distinct())
    if twice.height:
        sample, kind = twice.select(_SAMPLE, _CONTROL).row(0)
        other = types.filter(pl.col(_SAMPLE) == sample).row(0, named=True)
        says = f"compound {sample!r} is {kind!r} here and {other[_CONTROL]!r} in row {other[ROW]}"
        refuse(twice, origin, literal(says), "Give each compound one control_type.")
    return types.select(_SAMPLE, _CONTROL)
