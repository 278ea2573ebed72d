"""What a correction step is: fitted on some wells, its fit kept and applied to plates that come later.

A fit is a set of named float64 arrays, so the lake can store it and a later night can apply it. A step has a
*scope* (one fit per plate, per batch, or one for all) and is fitted *on* all wells of it, on the negative controls,
or on the treated ones. A mask in a fit holds 1 for yes and 0 for no; the mask ``keep`` names the features that go on.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from typing import Any, ClassVar

import numpy as np
import polars as pl
from numpy.typing import NDArray

from warehouse.errors import RecipeError
from warehouse.names import unknown

Matrix = NDArray[np.float64]
Fit = dict[str, Matrix]

SCOPES = ("plate", "batch", "all")
ROWS = ("all", "controls", "treated")
#: What a step may know of each well, beside its profile; NULL where the lake does not know it.
COLUMNS = (
    "source", "batch", "plate", "well", "row_number", "column_number", "treatment", "compound", "control_type",
    "cell_count",
)  # fmt: skip
# What the rounding of float64 can make of a feature that is constant, relative to its size.
ROUNDING = 16 * float(np.finfo(np.float64).eps)


@dataclass(frozen=True)
class Wells:
    """The wells that the rows of a matrix are of.

    Attributes:
        rows: (n) rows with `COLUMNS`; those that the recipe's caller does not know may be absent.
        place: where they lie, for messages: ``plate 'P1' of batch 'B1' of source 's'``, or ``the whole set``.
        features: names of the matrix's columns, for messages; may be empty.
    """

    rows: pl.DataFrame = field(default_factory=pl.DataFrame)
    place: str = "the whole set"
    features: tuple[str, ...] = ()

    def feature(self, number: int) -> str:
        """Name a column of the matrix for a message."""
        return repr(self.features[number]) if self.features else f"number {number + 1}"

    def are_controls(self) -> NDArray[np.bool_]:
        """Tell of each well whether it is a negative control, (n,)."""
        return (self.rows["control_type"] == "negative").fill_null(value=False).to_numpy()

    def at(self, rows: NDArray[np.intp] | NDArray[np.bool_]) -> "Wells":
        """The same place, less wells: by row numbers or by a mask."""
        chosen = self.rows.filter(pl.Series(rows)) if rows.dtype == bool else self.rows[rows]
        return Wells(chosen, self.place, self.features)


@dataclass(frozen=True)
class Step:
    """One correction.

    A subclass is a frozen dataclass whose fields are its parameters, `scope` and `on` among them.

    Attributes:
        name: what a recipe calls it.
        minimum: wells that a fit needs.
        complete: whether it refuses missing elements (NaN).
        featurewise: whether a feature's fit and result depend on that feature alone; such a step may be given
            the features in parts, and then needs all wells of its scope, but not all features, in memory.
        whole: whether `transform` must see all wells of a scope at once, as one that ranks them must.
        together: whether the wells it is fitted on get their result from `fit_transform`, and only wells that come
            later from `transform`; its scope is then ``all``.
        other_axes: arrays of its fit whose last axis is not the features.
        paper: where it comes from.
    """

    name: ClassVar[str]
    minimum: ClassVar[int] = 2
    complete: ClassVar[bool] = False
    featurewise: ClassVar[bool] = True
    whole: ClassVar[bool] = False
    together: ClassVar[bool] = False
    other_axes: ClassVar[frozenset[str]] = frozenset()
    paper: ClassVar[str] = ""
    scope: str = "plate"
    on: str = "all"

    def __post_init__(self) -> None:
        if self.scope not in SCOPES:
            raise unknown(self.scope, f"scope of step {self.name}", SCOPES)
        if self.on not in ROWS:
            raise unknown(self.on, f"choice of wells (on=) of step {self.name}", ROWS)

    @property
    def parameters(self) -> dict[str, Any]:
        """Every parameter with its value, under the name it has in a recipe's text."""
        return {part.name.rstrip("_"): getattr(self, part.name) for part in fields(self)}

    @property
    def text(self) -> str:
        """The step as a recipe writes it: parameters at their default left out."""
        default = {part.name.rstrip("_"): part.default for part in fields(self)}
        given = [f"{key}={value}" for key, value in self.parameters.items() if value != default[key]]
        return self.name + (f"({','.join(given)})" if given else "")

    def survey(self, X: Matrix, wells: Wells) -> Fit | None:
        """Learn from all wells of the set what `fit` must know beyond its own scope; None for nothing.

        It is stored once, for the whole set, and never computed again for plates that come later. Only a step that
        says so in `surveys` is asked.
        """
        raise NotImplementedError

    @property
    def surveys(self) -> bool:
        """Whether `survey` is to be asked."""
        return False

    def fit(self, X: Matrix, wells: Wells, survey: Fit | None = None) -> Fit:
        """Learn the correction from X (n, d), NaN where an element is missing.

        Args:
            X: the wells of one scope that the step is fitted `on`.
            wells: the same rows.
            survey: what `survey` found.

        Raises:
            RecipeError: it cannot be fitted; the message names place and feature and says what to do.
        """
        raise NotImplementedError

    def transform(self, X: Matrix, wells: Wells, fit: Fit) -> Matrix:
        """Return X (n, d) corrected, float64, (n, d), or (n, r) where a step gives other features; X stays as it is."""
        raise NotImplementedError

    def fit_transform(self, X: Matrix, wells: Wells) -> tuple[Fit, Matrix]:
        """Fit on X and return what becomes of it, for a step that is `together`."""
        raise NotImplementedError

    def names(self, features: Sequence[str], fit: Fit) -> tuple[str, ...] | None:
        """Name the features that `transform` gives where they are others than those given; None where they are not."""
        return None

    def notes(self, fit: Fit) -> tuple[str, ...]:
        """Say in a line what the fit chose or estimated, where a person should know of it."""
        return ()

    def check_rows(self, X: Matrix, wells: Wells) -> None:
        """Refuse a fit on fewer wells than it needs.

        Raises:
            RecipeError: how many there are, where, and what to do.
        """
        if len(X) >= self.minimum:
            return
        rows, remedy = "well(s)", "leave it out or bring more of its wells"
        if self.on == "controls":
            rows = "negative control(s)"
            remedy = f"mark its controls as negative in the layout, or use {self.name}(on=all)"
        elif self.on == "treated":
            rows, remedy = "treated well(s)", f"bring its layout, or use {self.name}(on=all)"
        message = f"{self.name}: {wells.place} has {len(X)} {rows}, at least {self.minimum} needed: {remedy}"
        raise RecipeError(message)


def refuse_missing(step: str, X: Matrix, wells: Wells) -> None:
    """Raise `RecipeError` naming the first feature of X (n, d) that has no value in some well."""
    # The sum is NaN where an element is; it needs no array of X's size.
    if not np.isnan(np.add.reduce(X, axis=None)):
        return
    missing = np.isnan(X).sum(axis=0)
    if not missing.any():
        return
    first = int(np.argmax(missing > 0))
    message = (
        f"{step}: feature {wells.feature(first)} has no value in {missing[first]} of {len(X)} wells of {wells.place}: "
        "put drop_missing before it, or leave these wells or this feature out of the feature set"
    )
    raise RecipeError(message)


def present_and_count(X: Matrix) -> tuple[NDArray[np.bool_], NDArray[np.int_]]:
    """Tell which elements of X (n, d) are there, and how many of each feature are, (d,)."""
    present = ~np.isnan(X)
    return present, present.sum(axis=0)


def mean_of(X: Matrix, present: NDArray[np.bool_], count: NDArray[np.int_]) -> Matrix:
    """Mean of the values present, (d,); 0 where there is none (the feature is then dropped by its `keep`)."""
    return np.asarray(np.where(present, X, 0.0).sum(axis=0) / np.maximum(count, 1))


def median_of(X: Matrix, count: NDArray[np.int_]) -> Matrix:
    """Median of the values present, (d,); 0 where there is none (the feature is then dropped by its `keep`)."""
    ordered = np.sort(X, axis=0)  # NaN last
    low, high = np.maximum(count - 1, 0) // 2, np.minimum(count // 2, len(X) - 1)
    feature = np.arange(X.shape[1])
    return np.where(count > 0, (ordered[low, feature] + ordered[high, feature]) / 2, 0.0)


def mask(values: NDArray[np.bool_]) -> Matrix:
    """Turn booleans into the 1 and 0 of a fit."""
    return values.astype(np.float64)
