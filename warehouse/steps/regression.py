"""Effects of where a well lies and of how many cells it holds, taken out of each feature."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import polars as pl
from numpy.typing import NDArray

from warehouse.errors import RecipeError
from warehouse.steps.base import ROUNDING, Fit, Matrix, Step, Wells, mask, mean_of, present_and_count
from warehouse.steps.checks import check_number, column, name_well

_POSITION = ("row_number", "column_number")


@dataclass(frozen=True)
class WellPosition(Step):
    """Subtract from each well the mean of all wells in its position, over the plates of the fit.

    A position is a row and a column, so plates of one format belong in a fit. Plates must not all carry the same
    layout: where a position always holds the same treatment, its effect goes too. Every position needs
    `least_wells` wells, as the mean of one is the well itself. A feature without any value in some position is
    marked 0 in ``keep``. NaN is skipped.

    Source: the JUMP production recipe, which subtracts the mean of each well over all plates.
    """

    name: ClassVar[str] = "well_position"
    paper: ClassVar[str] = "Arevalo et al. 2024"
    other_axes: ClassVar[frozenset[str]] = frozenset(_POSITION)
    scope: str = "all"
    on: str = "all"
    least_wells: float = 2

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number(self.name, "least_wells", self.least_wells, 1)

    def fit(self, X: Matrix, wells: Wells, survey: Fit | None = None) -> Fit:
        """Fit row_number and column_number (p,), mean (p, d), and keep (d,)."""
        self.check_rows(X, wells)
        positions = _positions(wells, self.name)
        found, group, sizes = np.unique(positions, axis=0, return_inverse=True, return_counts=True)
        if sizes.min() < self.least_wells:
            message = (
                f"{self.name}: {name_well(wells, int(np.flatnonzero(sizes[group] < self.least_wells)[0]))} "
                f"({(sizes < self.least_wells).sum()} positions in all) has too few others in its position: "
                f"{wells.place} has {sizes.min()} well(s) there, at least {self.least_wells:g} needed: bring more "
                f"plates of the same format, leave these wells out, or use {self.name}(least_wells={sizes.min()})"
            )
            raise RecipeError(message)
        order = np.argsort(group, kind="stable")
        starts = np.cumsum(sizes) - sizes
        ordered = X[order]
        present = ~np.isnan(ordered)
        count = np.add.reduceat(present, starts, axis=0, dtype=np.intp)
        ordered[~present] = 0.0
        mean = np.add.reduceat(ordered, starts, axis=0) / np.maximum(count, 1)
        return {
            "row_number": found[:, 0].astype(np.float64),
            "column_number": found[:, 1].astype(np.float64),
            "mean": mean,
            "keep": mask(count.min(axis=0) > 0),
        }

    def transform(self, X: Matrix, wells: Wells, fit: Fit) -> Matrix:
        """Return x − the mean of its position.

        Raises:
            RecipeError: a well lies where no well of the fit did.
        """
        positions = _positions(wells, self.name)
        known = np.column_stack([fit[name] for name in _POSITION]).astype(np.intp)
        place = {(row, number): index for index, (row, number) in enumerate(known.tolist())}
        at = np.array([place.get((row, number), -1) for row, number in positions.tolist()], dtype=np.intp)
        if (at < 0).any():
            message = (
                f"{self.name}: {name_well(wells, int(np.argmax(at < 0)))} ({(at < 0).sum()} wells in all) lies in a "
                f"position that no fitted well had: fit it anew with --refit, or leave these wells out"
            )
            raise RecipeError(message)
        result = fit["mean"][at]
        return np.subtract(X, result, out=result)


@dataclass(frozen=True)
class CellCount(Step):
    """Take out of each feature what a straight line through the wells' cell counts explains: x − (a + b · cells).

    The intercept goes too, as in the JUMP recipe: over the fitted wells each feature has mean 0 afterwards.
    Features with no more than `least_values` different values are left as they are (the JUMP recipe takes 100).
    A feature that has values at one cell count only is marked 0 in ``keep``. NaN is skipped.

    Source: the JUMP production recipe, ordinary least squares of every feature on the cell count.
    """

    name: ClassVar[str] = "cell_count"
    minimum: ClassVar[int] = 3
    paper: ClassVar[str] = "Arevalo et al. 2024"
    scope: str = "all"
    on: str = "all"
    least_values: float = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number(self.name, "least_values", self.least_values, 0)

    def fit(self, X: Matrix, wells: Wells, survey: Fit | None = None) -> Fit:
        """Fit intercept, slope and keep, each (d,)."""
        self.check_rows(X, wells)
        cells = _cells(wells, self.name)
        if cells.min() == cells.max():
            message = (
                f"{self.name}: all {len(X)} wells of {wells.place} have {cells[0]:g} cells, so no line can be fitted: "
                f"leave {self.name} out of the recipe, or fit it over more plates with {self.name}(scope=all)"
            )
            raise RecipeError(message)
        present, count = present_and_count(X)
        mean = mean_of(X, present, count)
        there = present.astype(np.float64)
        cell_mean = cells @ there / np.maximum(count, 1)
        # About the middle of all counts, as sums of squares of large numbers lose their differences.
        middle = cells - cells.mean()
        moved = cell_mean - cells.mean()
        spread = middle**2 @ there - count * moved**2
        there[:] = X
        there -= mean
        there[~present] = 0.0
        together = middle @ there
        varies = spread > ROUNDING * max(1.0, float(cells.max())) ** 2
        slope = np.divide(together, spread, out=np.zeros_like(spread), where=varies)
        intercept = mean - slope * cell_mean
        keep = varies & (count > 0)
        if self.least_values:
            few = _different(X) <= self.least_values
            slope[few] = intercept[few] = 0.0
            keep |= few & (count > 0)
        return {"intercept": intercept, "slope": slope, "keep": mask(keep)}

    def transform(self, X: Matrix, wells: Wells, fit: Fit) -> Matrix:
        """Return x − (intercept + slope · cells).

        Raises:
            RecipeError: a well's cell count is not known.
        """
        result = np.outer(_cells(wells, self.name), fit["slope"])
        result += fit["intercept"]
        return np.subtract(X, result, out=result)


def _positions(wells: Wells, step: str) -> NDArray[np.intp]:
    """The row and column of each well, (n, 2)."""
    frame = pl.DataFrame([column(wells, name, step).alias(name) for name in _POSITION])
    unknown = frame.select(pl.any_horizontal(pl.all().is_null())).to_series().to_numpy()
    if unknown.any():
        message = (
            f"{step}: {name_well(wells, int(np.argmax(unknown)))} ({unknown.sum()} wells in all) has no row and "
            "column: give wells names such as A01, or leave these wells out"
        )
        raise RecipeError(message)
    return frame.to_numpy().astype(np.intp)


def _cells(wells: Wells, step: str) -> Matrix:
    """The cell count of each well, (n,)."""
    counts = column(wells, "cell_count", step).cast(pl.Float64)
    unknown = counts.is_null().to_numpy()
    if unknown.any():
        message = (
            f"{step}: {name_well(wells, int(np.argmax(unknown)))} ({unknown.sum()} of {len(counts)} wells of "
            f"{wells.place}) has no cell count: bring it in with the profiles, leave these wells out, or leave {step} "
            "out of the recipe"
        )
        raise RecipeError(message)
    return counts.to_numpy()


def _different(X: Matrix) -> NDArray[np.intp]:
    """How many different values each feature of X (n, d) has, (d,)."""
    ordered = np.sort(X, axis=0)
    there = ~np.isnan(ordered)
    return np.asarray(((ordered[1:] != ordered[:-1]) & there[1:]).sum(axis=0) + there[0])
