"""What makes a screen contradict itself: each check raises for the first fault it meets."""

from collections.abc import Mapping, Sequence

import polars as pl

from warehouse.errors import ScreenError
from warehouse.names import suggestion
from warehouse.screens.table import FILE, ROW, literal, place, refuse
from warehouse.wells import (
    FORMATS,
    check_on_plate,
    check_plate_size,
    column_expression,
    row_expression,
    treatment_expression,
    well_expression,
)

WELL = ["source", "batch", "plate", "well"]
FIELD = [*WELL, "field"]
IMAGE = [*FIELD, "cell", "channel"]

# Control, format and separator characters: two ids that look alike and are not.
_UNSEEN = r"[\p{Cc}\p{Cf}\x{2028}\x{2029}]"

# What other formats call the same thing.
_ALIASES = {
    "negcon": "negative", "neg": "negative", "dmso": "negative", "control": "negative", "vehicle": "negative",
    "poscon": "positive", "pos": "positive", "trt": "none", "treatment": "none", "compound": "none",
    "target_list": "target", "gene": "target", "mechanism": "moa",
}  # fmt: skip


def check_schema(frame: pl.DataFrame, schema: Mapping[str, pl.DataType], origin: str) -> None:
    """Refuse a frame whose columns or types are not those of the contract (the trace is allowed besides).

    Raises:
        ScreenError: naming the column, its type and the type that is needed.
    """
    for name, dtype in schema.items():
        seen = frame.schema.get(name)
        if seen != dtype:
            found = "is missing" if seen is None else f"has type {seen}"
            message = f"{origin}: column {name!r} {found}; it must be {dtype}. Build it with read_screen."
            raise ScreenError(message)
    for name in frame.columns:
        if name not in schema and name not in (FILE, ROW):
            hint = suggestion(name, schema)
            message = f"{origin}: unknown column {name!r}.{hint} Known: {', '.join(schema)}. Take it out."
            raise ScreenError(message)


def check_ids(frame: pl.DataFrame, required: Sequence[str], optional: Sequence[str], origin: str) -> None:
    """Refuse ids that are missing, and ids and labels with characters that cannot be seen.

    Raises:
        ScreenError: naming the row, the column and the value.
    """
    for name in required:
        missing = frame.filter(pl.col(name).is_null() | (pl.col(name) == ""))
        refuse(missing, origin, f"{name} is empty", "Every row must have one.")
    for name in (*required, *optional):
        unseen = frame.filter(pl.col(name).str.contains(_UNSEEN))
        says = f"{name} {{{name}!r}} holds a character that cannot be seen"
        refuse(unseen, origin, says, "Retype the value.")


def normalised_wells(frame: pl.DataFrame, plate_size: int | None, origin: str) -> pl.DataFrame:
    """Bring the wells to normal form and refuse those that their plate does not have.

    Args:
        frame: rows with a column `well`, and a column `plate_size` (Int64) where plates differ.
        plate_size: number of wells of every plate; None accepts up to 1536.
        origin: what the table is, for messages.

    Returns:
        The frame without `plate_size`.

    Raises:
        ScreenError: naming the well, the file and row, and the plate size.
    """
    check_plate_size(plate_size)
    size = pl.col("plate_size") if "plate_size" in frame.columns else pl.lit(None, dtype=pl.Int64)
    out = frame.with_columns(pl.coalesce(size, pl.lit(plate_size, dtype=pl.Int64)).alias("__size"))
    limit = pl.col("__size").fill_null(max(FORMATS))
    rows, columns = (limit.replace_strict({n: f[k] for n, f in FORMATS.items()}, default=0) for k in (0, 1))
    bad = out.filter(
        well_expression().is_null() | (row_expression() > rows) | (column_expression() > columns)
    )
    if bad.height:
        check_on_plate(bad["well"][0], bad["__size"][0], place(bad.select(pl.exclude("__size")), origin))
    return out.with_columns(well_expression()).drop("__size", "plate_size", strict=False)


def check_normal_wells(frame: pl.DataFrame, origin: str) -> None:
    """Refuse wells that are not in normal form.

    Raises:
        ScreenError: naming the well.
    """
    bad = frame.filter(~pl.col("well").eq_missing(well_expression()))
    refuse(
        bad,
        origin,
        "well {well!r} is not in normal form, such as B02",
        "Build the screen with Screen.validated.",
    )


def check_manifest(manifest: pl.DataFrame, origin: str) -> None:
    """Refuse an empty manifest, an image listed twice, a file read twice, and fields half whole, half crops.

    Raises:
        ScreenError: naming the first fault.
    """
    if not manifest.height:
        message = f"{origin}: the manifest has no rows. List one image a row."
        raise ScreenError(message)
    check_ids(manifest, [*FIELD, "channel", "path"], ["cell"], origin)
    bad_plane = manifest.filter(pl.col("plane") < 0)
    refuse(bad_plane, origin, "plane {plane} is below 0", "Count the planes of a file from 0.")
    again = manifest.filter(~pl.struct(IMAGE).is_first_distinct())
    _refuse_pair(
        manifest,
        again,
        IMAGE,
        origin,
        "plate {plate}, well {well}, field {field}{cell}: channel {channel!r} stands twice",
    )
    # The usual cause is a copied path, or several plates whose folders were looked up in one place.
    again = manifest.filter(~pl.struct("path", "plane").is_first_distinct())
    _refuse_pair(
        manifest,
        again,
        ["path", "plane"],
        origin,
        "path {path!r} is used twice, also for plate {plate}, well {well}, field {field}, channel {channel}",
    )
    mixed = (
        manifest.filter(pl.col("cell").is_null().n_unique().over(FIELD) > 1)
        if manifest["cell"].null_count()
        else manifest.head(0)
    )
    refuse(
        mixed, origin, "field {field!r} of well {well} is listed whole and as crops", "Keep one of the two."
    )


def check_layout(layout: pl.DataFrame, origin: str) -> None:
    """Refuse wells listed twice, doses that are none, unknown control types, and treatments that collide.

    Raises:
        ScreenError: naming the first fault.
    """
    check_ids(layout, [*WELL, "control_type"], ["compound", "unit"], origin)
    _check_dose(layout, origin)
    check_choice(layout, "control_type", ("negative", "none", "positive"), origin)
    again = layout.filter(~pl.struct(WELL).is_first_distinct())
    if again.height:
        _refuse_well(layout, again, origin)
    named = layout.filter(pl.col("compound").is_not_null()).with_columns(treatment_expression())
    clash = named.filter(pl.col("compound").n_unique().over("treatment") > 1)
    says = "treatment {treatment!r} would name two compounds, one of them {compound!r}"
    refuse(clash, origin, says, "Rename the compound that holds '@'.")


def check_annotations(annotations: pl.DataFrame, origin: str) -> None:
    """Refuse labels without a compound, kind or text, or listed twice, doses that are none, unknown kinds.

    Raises:
        ScreenError: naming the first fault.
    """
    check_ids(annotations, ["compound", "kind", "label"], ["unit"], origin)
    _check_dose(annotations, origin)
    check_choice(annotations, "kind", ("gene_family", "moa", "pathway", "target"), origin)
    label = ["compound", "concentration", "unit", "kind", "label"]
    again = annotations.filter(~pl.struct(label).is_first_distinct())
    refuse(
        again, origin, "{kind} {label!r} of compound {compound!r} is listed twice", "Keep one row a label."
    )


def check_batches(manifest: pl.DataFrame, layout: pl.DataFrame, origin: str) -> None:
    """Refuse a plate that stands in two batches of one source, be it in the manifest, the layout or between.

    Raises:
        ScreenError: naming the plate and its batches.
    """
    plates = pl.concat([frame.select("source", "plate", "batch") for frame in (manifest, layout)]).unique()
    by_plate = (
        plates.group_by("source", "plate").agg(pl.col("batch").sort()).filter(pl.col("batch").list.len() > 1)
    )
    if by_plate.height:
        row = by_plate.sort("source", "plate").row(0, named=True)
        batches = " and ".join(map(repr, row["batch"]))
        message = (
            f"{origin}: plate {row['plate']!r} (source {row['source']!r}) is in {len(row['batch'])} batches: "
            f"{batches}. A plate has one batch: correct it, or name the plates apart."
        )
        raise ScreenError(message)


def check_choice(frame: pl.DataFrame, column: str, allowed: Sequence[str], origin: str) -> None:
    """Refuse a value that is in no list, offering the one that was probably meant.

    Raises:
        ScreenError: naming the row, the value, the nearest one and the list.
    """
    bad = frame.filter(~pl.col(column).is_in(allowed))
    if bad.height:
        value = str(bad[column][0])
        alias = next((meant for other, meant in _ALIASES.items() if value.casefold().startswith(other)), None)
        hint = f" Did you mean {alias!r}?" if alias in allowed else suggestion(value, allowed)
        refuse(bad, origin, f"unknown {column} {{{column}!r}}", f"Use one of {', '.join(allowed)}.{hint}")


def _check_dose(frame: pl.DataFrame, origin: str) -> None:
    dose = pl.col("concentration")
    bad = frame.filter(~(dose.is_finite() & (dose >= 0)))
    refuse(
        bad,
        origin,
        "concentration {concentration} is not a number of 0 or more",
        "Leave it empty if there is none.",
    )


def _refuse_pair(
    frame: pl.DataFrame, again: pl.DataFrame, key: Sequence[str], origin: str, says: str
) -> None:
    """Name the second row of a pair, and where the first one stands."""
    if not again.height:
        return
    row = again.row(0, named=True)
    same = pl.all_horizontal(
        pl.col(name).eq_missing(pl.lit(row[name], dtype=frame.schema[name])) for name in key
    )
    earlier = frame.filter(same).row(0, named=True)
    cell = "" if row["cell"] is None else f", cell {row['cell']}"
    # "also for" must name the other use, so the earlier row's ids go into the sentence.
    told = literal(says.format(**{**earlier, "cell": cell}))
    before = f" (first in row {earlier[ROW]})" if ROW in earlier and earlier[FILE] == row[FILE] else ""
    refuse(again, origin, told + before, "Give each image one row and one file.")


def _refuse_well(layout: pl.DataFrame, again: pl.DataFrame, origin: str) -> None:
    content = ["compound", "concentration", "unit", "control_type"]
    row = again.row(0, named=True)
    same = pl.all_horizontal(pl.col(name) == pl.lit(row[name]) for name in WELL)
    earlier = layout.filter(same).row(0, named=True)
    before = f"row {earlier[ROW]}" if ROW in earlier and earlier[FILE] == row[FILE] else "the first listing"
    well = f"well {row['well']} of plate {row['plate']}"
    if all(row[name] == earlier[name] for name in content):
        says = f"{well} is listed twice with the same content, first in {before}"
    else:
        differ = next(name for name in content if row[name] != earlier[name])
        says = f"{well} is listed twice: {differ} is {row[differ]!r} here and {earlier[differ]!r} in {before}"
    refuse(again, origin, literal(says), "Keep one row a well.")
