"""Names of wells and of treatments, and where a well lies on its plate."""

import math
import re

import polars as pl

from warehouse.errors import ScreenError

FORMATS = {6: (2, 3), 12: (3, 4), 24: (4, 6), 48: (6, 8), 96: (8, 12), 384: (16, 24), 1536: (32, 48)}
"""Standard plate formats: number of wells → (rows, columns)."""

LARGEST = max(FORMATS)

_WELL = r"^[A-Za-z]{1,2}[0-9]{1,3}$"
_LETTERS = tuple(chr(65 + i) for i in range(26)) + tuple("A" + chr(65 + i) for i in range(6))
_ROWS = {letters: number for number, letters in enumerate(_LETTERS, start=1)}

# Matched after "µ" (U+00B5) and "μ" (U+03BC) are written "u" and case is folded. "M" alone is not here:
# folded it is "m", which may be metres, so it is kept as written.
_UNITS = {
    "um": "uM", "umol/l": "uM", "micromolar": "uM", "nm": "nM", "nmol/l": "nM", "nanomolar": "nM",
    "mm": "mM", "mmol/l": "mM", "millimolar": "mM", "pm": "pM", "pmol/l": "pM",
    "ug/ml": "ug/mL", "mg/ml": "mg/mL", "ng/ml": "ng/mL",
}  # fmt: skip


def well_name(row: int, column: int) -> str:
    """Name the well at a position.

    Args:
        row: 1-based row, 1 to 32.
        column: 1-based column, 1 to 48.

    Returns:
        The normal form, such as ``"B02"`` or ``"AF48"``.

    Raises:
        ScreenError: the position lies beyond a 1536-well plate.
    """
    rows, columns = FORMATS[LARGEST]
    if not (1 <= row <= rows and 1 <= column <= columns):
        message = (
            f"row {row}, column {column} lies off a {LARGEST}-well plate ({_extent(LARGEST)}). Correct it."
        )
        raise ScreenError(message)
    return f"{_LETTERS[row - 1]}{column:02d}"


def position(well: str) -> tuple[int, int]:
    """Return the 1-based (row, column) of a well.

    Args:
        well: one or two letters and a number, in any case, with or without leading zeros.

    Raises:
        ScreenError: the text is no well, or lies beyond a 1536-well plate.
    """
    text = well.strip()
    if not re.match(_WELL, text, flags=re.ASCII):
        message = (
            f"{well!r} is not a well. Write letters for the row and a number for the column, such as B02."
        )
        raise ScreenError(message)
    letters = text.rstrip("0123456789").upper()
    row, column = _ROWS.get(letters, 0), int(text[len(letters) :])
    if row == 0 or not 1 <= column <= FORMATS[LARGEST][1]:
        message = (
            f"well {well!r} is off the largest plate, {LARGEST} wells ({_extent(LARGEST)}). Correct the well."
        )
        raise ScreenError(message)
    return row, column


def normalise(well: str) -> str:
    """Bring a well to its normal form, letters and two digits: ``B2``, ``b02`` and ``B002`` become ``B02``.

    Raises:
        ScreenError: the text is no well, or lies beyond a 1536-well plate.
    """
    return well_name(*position(well))


def check_on_plate(well: str, plate_size: int | None, file: str | None = None) -> None:
    """Refuse a well that its plate does not have.

    Args:
        well: the well, in any accepted spelling.
        plate_size: number of wells of the plate, one of `FORMATS`; None accepts up to 1536 wells.
        file: where the well stands (file and row), to be named in the message.

    Raises:
        ScreenError: the well is off the plate, is no well, or the plate size is none that exists.
    """
    place = f"{file}: " if file else ""
    check_plate_size(plate_size, file)
    try:
        row, column = position(well)
    except ScreenError as error:
        message = f"{place}{error}"
        raise ScreenError(message) from None
    rows, columns = FORMATS[plate_size or LARGEST]
    if row > rows or column > columns:
        message = (
            f"{place}well {well!r} is off a {plate_size}-well plate ({_extent(plate_size or LARGEST)}). "
            "Correct the well or the plate size."
        )
        raise ScreenError(message)


def check_plate_size(plate_size: int | None, file: str | None = None) -> None:
    """Refuse a plate size that is no standard format; None passes.

    Raises:
        ScreenError: the number is none of `FORMATS`.
    """
    if plate_size is not None and plate_size not in FORMATS:
        place = f"{file}: " if file else ""
        message = f"{place}no plate has {plate_size} wells. Use one of {', '.join(map(str, FORMATS))}."
        raise ScreenError(message)


def normalise_unit(unit: str | None) -> str | None:
    """Bring a unit of concentration to one spelling: ``µM``, ``μM`` and ``um`` become ``uM``.

    A unit that is not known is kept as it is written, without the white space around it; empty is None.
    """
    text = (unit or "").strip()
    if not text:
        return None
    plain = text.replace("\u00b5", "u").replace("\u03bc", "u")
    return _UNITS.get(plain.casefold(), plain)


def treatment_name(compound: str | None, concentration: float | None, unit: str | None) -> str | None:
    """Name a treatment, such as ``"taxol@0.3uM"``.

    Args:
        compound: the compound; None gives None.
        concentration: in `unit`; None or 0 leaves the part from ``@`` out. Written with up to 12
            significant digits, which hides the noise of float arithmetic and merges no two real doses.
        unit: the unit of the concentration, normalised here; may be None.

    Raises:
        ScreenError: the concentration is negative or not finite.
    """
    if compound is None:
        return None
    dose = _dose(concentration)
    return compound if dose is None else f"{compound}@{dose}{normalise_unit(unit) or ''}"


def treatment_expression(
    compound: str = "compound", concentration: str = "concentration", unit: str = "unit"
) -> pl.Expr:
    """Build `treatment_name` over columns (String, Float64, String) as one String expression.

    Args:
        compound: name of the column of compounds.
        concentration: name of the column of concentrations.
        unit: name of the column of units.
    """
    dose = pl.col(concentration).cast(pl.Float64).map_batches(_doses, return_dtype=pl.String)
    suffix = pl.concat_str(pl.lit("@"), dose, unit_expression(unit).fill_null(""))
    return pl.concat_str(pl.col(compound), suffix.fill_null("")).alias("treatment")


def unit_expression(unit: str = "unit") -> pl.Expr:
    """Build `normalise_unit` over a String column."""
    plain = pl.col(unit).str.strip_chars().str.replace_all("[\u00b5\u03bc]", "u")
    known = plain.str.to_lowercase().replace_strict(_UNITS, default=None, return_dtype=pl.String)
    return pl.when(plain != "").then(pl.coalesce(known, plain)).alias(unit)


def well_expression(well: str = "well") -> pl.Expr:
    """Build `normalise` over a String column; null where the text is no well of a plate of up to 1536."""
    row, column = row_expression(well), column_expression(well)
    inside = row.is_not_null() & column.is_between(1, FORMATS[LARGEST][1])
    digits = column.cast(pl.String).str.zfill(2)
    return pl.when(inside).then(pl.concat_str(_letters(well), digits)).alias(well)


def row_expression(well: str = "well") -> pl.Expr:
    """Build the 1-based row (Int64) of a String column of wells; null where there is none."""
    return _letters(well).replace_strict(_ROWS, default=None, return_dtype=pl.Int64)


def column_expression(well: str = "well") -> pl.Expr:
    """Build the 1-based column (Int64) of a String column of wells; null where there is none."""
    return pl.col(well).str.strip_chars().str.extract(r"^[A-Za-z]{1,2}([0-9]{1,3})$").cast(pl.Int64)


def with_positions(frame: pl.DataFrame) -> pl.DataFrame:
    """Add `position` of the column `well` to any number of rows, as `row_number` and `column_number` (Int32).

    Each distinct well is looked at once: a plate has at most 1,536 of them, a screen a million rows.

    Raises:
        ScreenError: a well is none, or lies beyond a 1536-well plate.
    """
    distinct = frame["well"].unique()
    places = [position(well) for well in distinct]
    schema = {"well": pl.String, "row_number": pl.Int32, "column_number": pl.Int32}
    rows = [(well, *place) for well, place in zip(distinct, places, strict=True)]
    known = pl.DataFrame(rows, schema=schema, orient="row")
    return frame.join(known, on="well", how="left", maintain_order="left")


def _letters(well: str) -> pl.Expr:
    text = pl.col(well).str.strip_chars()
    return text.str.extract(r"^([A-Za-z]{1,2})[0-9]{1,3}$").str.to_uppercase()


def _extent(plate_size: int) -> str:
    rows, columns = FORMATS[plate_size]
    return f"rows A–{_LETTERS[rows - 1]}, columns 1–{columns}"


def _dose(concentration: float | None) -> str | None:
    if concentration is None or concentration == 0:
        return None
    if not math.isfinite(concentration) or concentration < 0:
        message = f"concentration {concentration} is not a dose. Give a number of 0 or more, or none."
        raise ScreenError(message)
    return f"{concentration:.12g}"


def _doses(concentrations: pl.Series) -> pl.Series:
    """Format each distinct dose once: a screen has millions of rows and a few dozen doses."""
    distinct = concentrations.unique()
    texts = pl.Series([_dose(value) for value in distinct], dtype=pl.String)
    if concentrations.is_empty():
        return concentrations.cast(pl.String)
    return concentrations.replace_strict(distinct, texts, return_dtype=pl.String)
