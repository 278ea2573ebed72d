"""JUMP's metadata tables (well, plate, perturbation_control, orf, crispr, compound): a layout of a million wells.

https://github.com/jump-cellpainting/datasets: each table is a CSV file, plain or gzipped, in one folder.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import polars as pl

from warehouse.errors import ScreenError
from warehouse.names import unknown
from warehouse.screens import checks
from warehouse.screens.identity import settle
from warehouse.screens.model import ANNOTATIONS_SCHEMA, LAYOUT_SCHEMA, MANIFEST_SCHEMA, empty
from warehouse.screens.table import FILE, ROW, TRACE, check_columns, columns_of, literal, read_table, refuse
from warehouse.wells import FORMATS, column_expression, row_expression, well_expression

_SOURCE, _BATCH, _PLATE, _WELL = (f"Metadata_{name}" for name in ("Source", "Batch", "Plate", "Well"))
_ID, _TYPE, _SYMBOL, _GENE = (
    f"Metadata_{name}" for name in ("JCP2022", "pert_type", "Symbol", "NCBI_Gene_ID")
)
_INCHIKEY = "Metadata_InChIKey"

#: Columns that a table must have; those of tables that need not be there may be fewer.
_TABLES = {
    "well": (_SOURCE, _PLATE, _WELL, _ID),
    "plate": (_SOURCE, _BATCH, _PLATE),
    "perturbation_control": (_ID, _TYPE),
    "orf": (_ID, _SYMBOL, _GENE),
    "crispr": (_ID, _SYMBOL, _GENE),
    "compound": (_ID,),
}
_SUFFIXES = (".csv.gz", ".csv")

#: Sources with 1536-well plates; all others of JUMP have 384 wells.
_LARGE_PLATES = ("source_1", "source_9")
_OF_JUMP = r"^source_[0-9]+$"

#: Stands for whatever is not known to be in a well: wells that have nothing in common.
UNKNOWN = "JCP2022_UNKNOWN"
_CONTROLS = {"negcon": "negative", "trt": "none", "empty": "empty"}


@dataclass(frozen=True)
class Metadata:
    """What JUMP's tables say.

    Attributes:
        layout: one row per well, columns of `LAYOUT_SCHEMA`.
        annotations: one row per gene of a reagent, columns of `ANNOTATIONS_SCHEMA`.
        wells_seen: rows of the table of wells; those that are not in the layout are in `rejections`.
        rejections: one row per row left out: row (as a spreadsheet counts), source, plate, well, reason.
        plate_types: number of plates of each type, such as COMPOUND; empty where the table does not tell.
        notes: sentences on what is kept without being known, each with its count.
    """

    layout: pl.DataFrame
    annotations: pl.DataFrame
    wells_seen: int
    rejections: pl.DataFrame
    plate_types: dict[str, int]
    notes: tuple[str, ...]


def is_metadata(path: Path) -> bool:
    """Tell whether this is JUMP's table of wells, or a folder that holds one."""
    if path.is_dir():
        return any((path / f"well{suffix}").is_file() for suffix in _SUFFIXES)
    return path.is_file() and any(path.name == f"well{suffix}" for suffix in _SUFFIXES)


def read(
    path: Path, *, source: str | None = None, batch: str | None = None, compound_column: str | None = None
) -> Metadata:
    """Read JUMP's tables: wells with their batches and perturbations, controls, and the genes of reagents.

    A compound is named by its JCP2022 id. Wells that are empty, or of which nobody knows what is in them, have
    no compound; ids that are in no table are kept. Rows that name no well, stand twice, or are of a plate
    without a batch are left out, each with its reason.

    Args:
        path: the folder, or its table of wells.
        source: must agree with the tables, where given.
        batch: of plates for which the tables name none.
        compound_column: name compounds by this column of the tables that have it; the others by their id.

    Raises:
        ScreenError: a table is absent, damaged, or contradicts itself or another; nothing can then be trusted.
    """
    folder = path if path.is_dir() else path.parent
    wells_file = _file(folder, "well") if path.is_dir() else path
    if wells_file is None:
        message = f"{folder}: there is no well.csv or well.csv.gz. Give the folder of JUMP's tables."
        raise ScreenError(message)
    wells = _checked(wells_file, "well")
    tables = {name: _checked(file, name) for name in list(_TABLES)[1:] if (file := _file(folder, name))}
    if "perturbation_control" not in tables:
        message = f"{folder}: there is no perturbation_control.csv, so nothing says which wells are controls. Add it."
        raise ScreenError(message)
    plates, plate_types = _plates(tables.get("plate"), folder, batch)
    controls = _controls(tables["perturbation_control"], str(folder))
    names = _names(tables, compound_column, folder)
    rows = wells.rename({_SOURCE: "source", _PLATE: "plate", _WELL: "well", _ID: "id"})
    rows = rows.join(plates, on=["source", "plate"], how="left", maintain_order="left")
    rows = rows.with_columns(pl.coalesce("batch", pl.lit(batch, dtype=pl.String)).alias("batch"))
    checks.check_ids(rows, [], ["source", "plate", "id"], str(wells_file))
    rows = _with_reasons(rows)
    rejections = rows.filter(pl.col("reason").is_not_null())
    rows = rows.filter(pl.col("reason").is_null()).drop("reason")
    layout, notes = _layout(rows, controls, names, tables)
    _, layout = settle(empty(MANIFEST_SCHEMA), layout, {"source": source, "batch": batch}, str(wells_file))
    checks.check_layout(layout.select(*LAYOUT_SCHEMA, *TRACE), str(wells_file))
    return Metadata(
        layout.select(*LAYOUT_SCHEMA),
        _genes(tables, controls, names),
        wells.height,
        rejections.select(pl.col(ROW).alias("row"), "source", "plate", "well", "reason"),
        plate_types,
        (*notes, *_same_structures(tables.get("compound"))),
    )


def _file(folder: Path, name: str) -> Path | None:
    found = [file for suffix in _SUFFIXES if (file := folder / f"{name}{suffix}").is_file()]
    if len(found) > 1:
        message = f"{folder}: both {found[0].name} and {found[1].name} are there. Keep one."
        raise ScreenError(message)
    return found[0] if found else None


def _checked(file: Path, name: str) -> pl.DataFrame:
    table = read_table(file)
    check_columns(table, file, _TABLES[name])
    if not table.height:
        message = f"{file}: the table has no rows. Give the whole table."
        raise ScreenError(message)
    return table


def _plates(
    table: pl.DataFrame | None, folder: Path, batch: str | None
) -> tuple[pl.DataFrame, dict[str, int]]:
    """Return the batch of each plate (plates without one left out), and how many plates there are of each type."""
    if table is None:
        if batch is None:
            message = f"{folder}: there is no plate.csv or plate.csv.gz to tell the batches. Add it, or give --batch."
            raise ScreenError(message)
        return pl.DataFrame(schema=dict.fromkeys(("source", "plate", "batch"), pl.String)), {}
    rows = table.rename({_SOURCE: "source", _PLATE: "plate", _BATCH: "batch"})
    checks.check_ids(rows, ["source", "plate"], ["batch"], str(folder))
    told = rows.filter(pl.col("batch").is_not_null())
    plates = told.unique(["source", "plate", "batch"], keep="first", maintain_order=True)
    twice = plates.filter(~pl.struct("source", "plate").is_first_distinct())
    if twice.height:
        key = twice.row(0, named=True)
        first = plates.filter((pl.col("source") == key["source"]) & (pl.col("plate") == key["plate"]))
        says = (
            f"plate {key['plate']!r} of {key['source']!r} is in batch {key['batch']!r} here and in "
            f"{first['batch'][0]!r} in row {first[ROW][0]}"
        )
        refuse(twice, str(folder), literal(says), "A plate has one batch: correct it.")
    types = {}
    if "Metadata_PlateType" in rows.columns:
        counted = rows.unique(["source", "plate"]).drop_nulls("Metadata_PlateType")
        types = dict(counted["Metadata_PlateType"].value_counts().sort("Metadata_PlateType").rows())
    return plates.select("source", "plate", "batch"), types


def _controls(table: pl.DataFrame, origin: str) -> pl.DataFrame:
    """Return id → control_type (negative, positive, none, empty)."""
    refuse(table.filter(pl.col(_ID).is_null()), origin, f"{_ID} is empty", "Every row must have one.")
    word = pl.col(_TYPE).str.to_lowercase()
    listed = word.replace_strict(_CONTROLS, default=None, return_dtype=pl.String)
    kind = pl.when(word.str.starts_with("poscon")).then(pl.lit("positive")).otherwise(listed)
    rows = table.with_columns(kind.alias("control_type"))
    bad = rows.filter(pl.col("control_type").is_null())
    refuse(bad, origin, f"unknown {_TYPE} {{{_TYPE}!r}}", "Use negcon, poscon…, empty or trt.")
    rows = rows.unique([_ID, "control_type"], keep="first", maintain_order=True)
    twice = rows.filter(~pl.col(_ID).is_first_distinct())
    if twice.height:
        row = twice.row(0, named=True)
        first = rows.filter(pl.col(_ID) == row[_ID]).row(0, named=True)
        says = f"{row[_ID]!r} is {row[_TYPE]!r} here and {first[_TYPE]!r} in row {first[ROW]}"
        refuse(twice, origin, literal(says), f"Give each perturbation one {_TYPE}.")
    return rows.select(pl.col(_ID).alias("id"), "control_type")


def _names(tables: dict[str, pl.DataFrame], column: str | None, folder: Path) -> pl.DataFrame:
    """Return id → name by a column of the tables, for the ids that have one; of two tables the first tells."""
    none = pl.DataFrame(schema={"id": pl.String, "name": pl.String})
    if column in (None, _ID):
        return none
    with_column = [table for name, table in tables.items() if name != "plate" and column in table.columns]
    if not with_column:
        columns = {name for key, table in tables.items() if key != "plate" for name in columns_of(table)}
        message = f"{folder}: {unknown(str(column), 'compound column', columns)}"
        raise ScreenError(message)
    named = [
        table.select(pl.col(_ID).alias("id"), pl.col(column).replace("NA", None).alias("name"), *TRACE)
        for table in with_column
    ]
    names = pl.concat(named).drop_nulls(["id", "name"]).unique("id", keep="first", maintain_order=True)
    twice = names.filter(~pl.col("name").is_first_distinct())
    if twice.height:
        row = twice.row(0, named=True)
        first = names.filter(pl.col("name") == row["name"]).row(0, named=True)
        says = (
            f"{row['name']!r} names {row['id']!r} here and {first['id']!r} in {first[FILE]}, row {first[ROW]}"
        )
        refuse(twice, str(folder), literal(says), f"Two perturbations would be one: go by {_ID}.")
    return names.select("id", "name")


def _with_reasons(rows: pl.DataFrame) -> pl.DataFrame:
    """Bring wells to normal form, and say of each row that cannot go in why."""
    rows = rows.join(_well_places(rows["well"]), on="well", how="left", maintain_order="left")
    of_jump = pl.col("source").str.contains(_OF_JUMP)
    is_small = of_jump & ~pl.col("source").is_in(_LARGE_PLATES)
    down, across = FORMATS[384]
    missing = [
        pl.when(pl.col(name).is_null()).then(pl.lit(f"{name} is empty"))
        for name in ("source", "plate", "well")
    ]
    reason = pl.coalesce(
        *missing,
        pl.when(pl.col("normal").is_null()).then(pl.lit("no well of a plate of up to 1536")),
        pl.when(is_small & ((pl.col("down") > down) | (pl.col("across") > across))).then(
            pl.lit("off the 384-well plate of its source")
        ),
        pl.when(pl.col("batch").is_null()).then(
            pl.lit("its plate has no batch (give --batch to take it in)")
        ),
    )
    rows = rows.with_columns(reason.alias("reason"), pl.coalesce("normal", "well").alias("well"))
    # Of wells that stand twice, those alike are one; of those that differ, nobody can say which is right.
    key = ["source", "plate", "well"]
    good = rows.filter(pl.col("reason").is_null())
    if good.select(key).n_unique() < good.height:
        is_good = pl.col("reason").is_null()
        same = pl.struct(*key, "id", is_good.alias("good")).is_first_distinct()
        differs = (pl.col("id").n_unique() > 1).over(*key, is_good)
        twice = pl.coalesce(
            pl.when(differs).then(pl.lit("listed again with another perturbation: none is taken")),
            pl.when(~same).then(pl.lit("listed again with the same perturbation")),
        )
        rows = rows.with_columns(pl.when(is_good).then(twice).otherwise("reason").alias("reason"))
    return rows.drop("normal", "down", "across")


def _well_places(wells: pl.Series) -> pl.DataFrame:
    """Return each distinct well with its normal form, row and column: a million rows name a few hundred."""
    distinct = pl.DataFrame({"well": wells.drop_nulls().unique()}, schema={"well": pl.String})
    return distinct.with_columns(
        well_expression().alias("normal"),
        row_expression().alias("down"),
        column_expression().alias("across"),
    )


def _layout(
    rows: pl.DataFrame, controls: pl.DataFrame, names: pl.DataFrame, tables: dict[str, pl.DataFrame]
) -> tuple[pl.DataFrame, list[str]]:
    known = pl.concat(
        [table.select(pl.col(_ID).alias("id")) for name, table in tables.items() if name != "plate"]
    )
    rows = rows.join(controls, on="id", how="left", maintain_order="left")
    rows = rows.join(names, on="id", how="left", maintain_order="left")
    is_empty = (pl.col("control_type") == "empty").fill_null(False)
    is_unknown = pl.col("id").is_null() | (pl.col("id") == UNKNOWN)
    strange = rows.filter(~is_empty & ~is_unknown).join(known, on="id", how="anti")
    told = [
        (rows.filter(is_empty).height, "wells are empty"),
        (rows.filter(is_unknown).height, "wells hold what nobody knows: they go in without a compound"),
    ]
    notes = [f"{count} {what}" for count, what in told if count]
    if strange.height:
        ids = strange["id"].n_unique()
        notes.append(f"{strange.height} wells have one of {ids} ids that are in no table: kept by their id")
    compound = pl.when(~is_empty & ~is_unknown).then(pl.coalesce("name", "id"))
    layout = rows.select(
        "source", "batch", "plate", "well",
        compound.alias("compound"),
        pl.lit(None, dtype=pl.Float64).alias("concentration"),
        pl.lit(None, dtype=pl.String).alias("unit"),
        pl.col("control_type").replace("empty", "none").fill_null("none"),
        *TRACE,
    )  # fmt: skip
    return layout, notes


def _genes(tables: dict[str, pl.DataFrame], controls: pl.DataFrame, names: pl.DataFrame) -> pl.DataFrame:
    """Label each ORF and CRISPR reagent with the symbol of its gene, as a target; a control without a gene has none."""
    parts = [
        tables[name].select(pl.col(_ID).alias("id"), pl.col(_SYMBOL).alias("label"), _GENE)
        for name in ("orf", "crispr")
        if name in tables
    ]
    if not parts:
        return empty(ANNOTATIONS_SCHEMA)
    is_gene = (
        pl.col(_GENE).str.contains("^[0-9]+$") & pl.col("label").is_not_null() & (pl.col("label") != "NA")
    )
    rows = pl.concat(parts).filter(is_gene & pl.col("id").is_not_null())
    negative = controls.filter(pl.col("control_type") == "negative")
    rows = rows.join(negative, on="id", how="anti").join(names, on="id", how="left", maintain_order="left")
    labels = rows.select(
        pl.coalesce("name", "id").alias("compound"),
        pl.lit(None, dtype=pl.Float64).alias("concentration"),
        pl.lit(None, dtype=pl.String).alias("unit"),
        pl.lit("target").alias("kind"),
        "label",
    ).unique(maintain_order=True)
    checks.check_annotations(labels, "orf and crispr")
    return labels


def _same_structures(table: pl.DataFrame | None) -> Sequence[str]:
    """Tell of structures that have several ids: they stay apart, as the ids are what the wells name."""
    if table is None or _INCHIKEY not in table.columns:
        return ()
    ids = table.drop_nulls(_INCHIKEY).group_by(_INCHIKEY).agg(pl.col(_ID).unique().sort())
    several = ids.filter(pl.col(_ID).list.len() > 1).sort(_INCHIKEY)
    if not several.height:
        return ()
    key, first = several.row(0)
    return (
        f"{several.height} InChIKeys have several ids, which stay apart (first: {key}: {', '.join(first)})",
    )
