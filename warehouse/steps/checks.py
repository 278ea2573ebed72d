"""What steps refuse alike: a parameter out of its range, a column of the wells that is not there."""

from math import inf, isfinite

import polars as pl

from warehouse.errors import RecipeError
from warehouse.steps.base import Wells


def check_number(
    step: str, parameter: str, value: float, least: float, most: float = inf, *, is_above: bool = False
) -> None:
    """Refuse a parameter that is no number of its range.

    Args:
        step: its name.
        parameter: its name in a recipe's text.
        value: given.
        least: the lower bound.
        most: the upper bound.
        is_above: whether the lower bound itself is refused.

    Raises:
        RecipeError: the step, the parameter, the value and the range.
    """
    is_low = value <= least if is_above else value < least
    if isfinite(value) and not is_low and value <= most:
        return
    lower = f"above {least:g}" if is_above else f"of at least {least:g}"
    upper = f" and at most {most:g}" if isfinite(most) else ""
    message = f"{step}({parameter}={value}): give a number {lower}{upper}"
    raise RecipeError(message)


def column(wells: Wells, name: str, step: str) -> pl.Series:
    """Return what is known of each well, (n,).

    Raises:
        RecipeError: the caller gave no such column.
    """
    if name in wells.rows.columns:
        return wells.rows[name]
    message = (
        f"{step}: the wells of {wells.place} come without the column {name!r}: give it beside their source, batch, "
        f"plate and well, or leave {step} out of the recipe"
    )
    raise RecipeError(message)


def name_well(wells: Wells, row: int) -> str:
    """Name a well for a message, by what is known of it."""
    known = wells.rows.row(row, named=True)
    well = f"well {known['well']!r}" if known.get("well") is not None else f"the well in row {row}"
    return f"{well} of plate {known['plate']!r}" if known.get("plate") is not None else well
