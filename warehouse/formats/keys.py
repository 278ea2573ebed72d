"""Which columns of a table of profiles are keys, what level its rows are of, and whether the keys are sound."""

from pathlib import Path

import polars as pl

from warehouse.errors import ProfileError, WellhouseError
from warehouse.formats.model import GEOMETRY, IDS, LEVELS, ImportSettings, Level
from warehouse.names import suggestion, unknown
from warehouse.wells import normalise

#: Names under which the field's files keep each key, the preferred one first (see docs/profile_formats.md).
KEY_COLUMNS = {
    "source": ("Metadata_Source", "source"),
    "batch": ("Metadata_Batch", "Metadata_batch", "batch"),
    "plate": ("Metadata_Plate", "Image_Metadata_Plate", "plate"),
    "well": ("Metadata_Well", "Image_Metadata_Well", "Metadata_well_position", "well"),
    "field": ("Metadata_Site", "Image_Metadata_Site", "Metadata_Field", "field"),
    "cell": ("Metadata_ObjectNumber", "Metadata_Cells_Number_Object_Number", "ObjectNumber", "cell"),
    "cell_count": ("Metadata_Object_Count", "Metadata_Count_Cells", "cell_count"),
    "field_count": ("Metadata_Site_Count", "field_count"),
}
#: Names of a cell's geometry in tables: those that `wellhouse export` writes (JUMP's single cells have the first two),
#: and the lake's own.
GEOMETRY_COLUMNS = {
    "x_px": ("Metadata_Nuclei_Location_Center_X", "x_px"),
    "y_px": ("Metadata_Nuclei_Location_Center_Y", "y_px"),
    "box_left_px": ("Metadata_Cells_AreaShape_BoundingBoxMinimum_X", "box_left_px"),
    "box_top_px": ("Metadata_Cells_AreaShape_BoundingBoxMinimum_Y", "box_top_px"),
    "box_right_px": ("Metadata_Cells_AreaShape_BoundingBoxMaximum_X", "box_right_px"),
    "box_bottom_px": ("Metadata_Cells_AreaShape_BoundingBoxMaximum_Y", "box_bottom_px"),
    "nucleus_area_px": ("Metadata_Nuclei_AreaShape_Area", "nucleus_area_px"),
    "cell_area_px": ("Metadata_Cells_AreaShape_Area", "cell_area_px"),
    "is_border": ("Metadata_is_border", "is_border"),
}
#: What the field calls profiles of more than a well.
ABOVE_WELLS = ("treatment", "consensus", "batch", "source", "compound")
_COUNTS = ("cell_count", "field_count")


def find_keys(path: Path, names: list[str], settings: ImportSettings) -> dict[str, str]:
    """Find the column of each key: the one that was named, else the first known name that is there.

    Raises:
        ProfileError: a column that was named is not there, or there is none for plate or well and no option says it.
    """
    found: dict[str, str] = {}
    for key, candidates in KEY_COLUMNS.items():
        wanted = settings.columns.get(key)
        if wanted is not None and wanted not in names:
            message = f"{path}: no column {wanted!r} for {key}.{suggestion(wanted, names)}"
            raise ProfileError(message)
        column = wanted or next((name for name in candidates if name in names), None)
        if column is not None:
            found[key] = column
        elif key in ("plate", "well") and getattr(settings, key) is None:
            message = (
                f"{path}: no column for {key} ({' or '.join(candidates)}); it has {', '.join(names[:6])}, "
                f"…: name it with --column {key}=NAME, or give --{key} where all rows are of one"
            )
            if key == "well":
                message += "; profiles of treatments (a consensus) lie above wells and cannot be taken in"
            raise ProfileError(message)
    return found


def level_of(path: Path, found: dict[str, str], settings: ImportSettings) -> Level:
    """Settle what one row is: as told, else a cell where there is a column for it, else a field, else a well.

    Raises:
        ProfileError: there is no column for a key of the level that was told.
    """
    level = as_level(settings.level)
    if level is None:
        return "cell" if {"cell", "field"} <= found.keys() else "field" if "field" in found else "well"
    for key in ("field", "cell")[: LEVELS[::-1].index(level)]:
        if key not in found:
            message = (
                f"{path}: rows are told to be of level {level!r}, and no column is known for {key} "
                f"({' or '.join(KEY_COLUMNS[key])}): name it with --column {key}=NAME"
            )
            raise ProfileError(message)
    return level


def as_level(text: str | None) -> Level | None:
    """Check the name of a level.

    Raises:
        ProfileError: the level lies above wells: what is there is computed from wells by views.
        UnknownNameError: with the list.
    """
    for level in LEVELS:
        if text == level:
            return level
    if text is None:
        return None
    if text in ABOVE_WELLS:
        message = (
            f"level {text!r} lies above wells and cannot be taken in: what is above wells is computed from them by "
            "views: take in the profiles of wells"
        )
        raise ProfileError(message)
    raise unknown(text, "level", LEVELS)


def read_keys(
    path: Path, table: pl.DataFrame, found: dict[str, str], level: Level, settings: ImportSettings
) -> pl.DataFrame:
    """Take the keys out of a table: text, wells in their normal form, counts as whole numbers.

    Args:
        path: for messages.
        table: with at least the columns of `found`.
        found: key to column.
        level: of the rows.
        settings: which plate and well to take where there is no column.

    Returns:
        As many rows, in their order: plate, the keys of the level, and what else the table says.

    Raises:
        ProfileError: a key is empty, a well is none, a count is none, or two rows have the same keys.
    """
    wanted = {"source", "batch", "plate", *IDS[level], *(_COUNTS if level == "well" else _COUNTS[:1])}
    if level == "cell":
        wanted -= set(_COUNTS)
    columns = {key: column for key, column in found.items() if key in wanted}
    frame = table.select(
        _count(column).alias(key) if key in _COUNTS else text(table, column).alias(key)
        for key, column in columns.items()
    )
    told = {key: getattr(settings, key) for key in ("plate", "well") if key not in columns}
    frame = frame.with_columns(pl.lit(value, dtype=pl.String).alias(key) for key, value in told.items())
    for key in _COUNTS:
        if key not in columns or key not in frame.columns:
            continue
        lost = (frame[key].is_null() & table[columns[key]].is_not_null()).arg_true()
        if len(lost):
            row = int(lost[0])
            message = (
                f"{path}: row {row + 2}, column {columns[key]!r}: {table[columns[key]][row]!r} is not a count"
            )
            raise ProfileError(message)
    for key in ["plate", *IDS[level]]:
        empty = (frame[key].is_null() | (frame[key] == "")).arg_true()
        if len(empty):
            message = f"{path}: row {int(empty[0]) + 2} has no {key}: every profile needs one"
            raise ProfileError(message)
    frame = frame.with_columns(normal_wells(path, frame["well"]))
    _refuse_repeats(path, frame, level)
    return frame


def normal_wells(path: Path, wells: pl.Series) -> pl.Series:
    """Bring a column of wells to their normal form.

    Raises:
        ProfileError: the first text that is no well.
    """
    distinct = wells.drop_nulls().unique(maintain_order=True)
    try:
        normal = [normalise(well) for well in distinct]
    except WellhouseError as error:
        message = f"{path}: {error}"
        raise ProfileError(message) from error
    if not len(distinct):
        return wells.cast(pl.String)
    return wells.replace_strict(
        distinct, pl.Series(normal, dtype=pl.String), default=None, return_dtype=pl.String
    )


def geometry(table: pl.DataFrame) -> list[pl.Series]:
    """Take out of a table of cells what it says of their place and size; what is no number is NULL."""
    found = []
    for name, candidates in GEOMETRY_COLUMNS.items():
        column = next((candidate for candidate in candidates if candidate in table.columns), None)
        if column is None:
            continue
        given = table[column].alias(name)
        if GEOMETRY[name] == pl.Boolean and given.dtype == pl.String:
            given = given.str.to_lowercase().replace_strict({"true": True, "false": False}, default=None)
        found.append(given.cast(GEOMETRY[name], strict=False))
    return found


def text(table: pl.DataFrame, column: str) -> pl.Expr:
    """Write a key as text; a whole number that a file keeps as a float is written without its `.0`."""
    key = pl.col(column)
    if table.schema[column].is_float():
        whole = key.cast(pl.Int64, strict=False)
        key = pl.when(whole == key).then(whole.cast(pl.String)).otherwise(key.cast(pl.String))
    return key.cast(pl.String).str.strip_chars()


def _count(column: str) -> pl.Expr:
    return pl.col(column).cast(pl.Float64, strict=False).round().cast(pl.Int32, strict=False)


def _refuse_repeats(path: Path, frame: pl.DataFrame, level: Level) -> None:
    by = [key for key in ("source", "plate", *IDS[level]) if key in frame.columns]
    repeated = frame.select(by).is_duplicated()
    if not repeated.any():
        return
    row = frame.filter(repeated).row(0, named=True)
    where = "".join(f"{key} {row[key]!r} of " for key in reversed(IDS[level]))
    hint = "keep one row a well" if level == "well" else f"keep one row a {level}"
    if level == "well":
        hint += "; where rows are fields or cells, name their keys with --column field=NAME (and cell=NAME)"
    message = f"{path}: {where}plate {row['plate']!r} has more than one profile: {hint}"
    raise ProfileError(message)
