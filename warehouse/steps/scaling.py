"""Scaling feature by feature: z-scores, robust z-scores, centring."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from warehouse.steps.base import (
    ROUNDING,
    Fit,
    Matrix,
    Step,
    Wells,
    mask,
    mean_of,
    median_of,
    present_and_count,
)
from warehouse.steps.checks import check_number


@dataclass(frozen=True)
class Standardize(Step):
    """z-scores: (x − mean) / sd, ddof 0.

    A constant feature has divisor 1 (as in scikit-learn and pycytominer) and is marked in ``constant``; a
    feature without any value among the fitted rows is marked 0 in ``keep`` and leaves the feature set. NaN is
    skipped.

    Source: pycytominer 1.7.1 `normalize(method="standardize")`; Ljosa et al. 2013.
    """

    name: ClassVar[str] = "standardize"
    paper: ClassVar[str] = "Ljosa et al. 2013"
    scope: str = "plate"
    on: str = "controls"

    def fit(self, X: Matrix, wells: Wells, survey: Fit | None = None) -> Fit:
        """Fit mean, sd, constant and keep, each (d,)."""
        self.check_rows(X, wells)
        present, count = present_and_count(X)
        mean = mean_of(X, present, count)
        sd = np.sqrt(variance_of(X, mean, count))
        constant = (sd <= ROUNDING * size_of(X)) | is_constant(X)
        sd[constant | (count == 0)] = 1.0
        # The mean of many equal values is a rounding away from them, and they are to become 0.
        mean[constant] = median_of(X[:, constant], count[constant])
        constant &= count > 0
        return {"mean": mean, "sd": sd, "constant": mask(constant), "keep": mask(count > 0)}

    def transform(self, X: Matrix, wells: Wells, fit: Fit) -> Matrix:
        """Return (x − mean) / sd."""
        return _scaled(X, fit["mean"], fit["sd"])


@dataclass(frozen=True)
class Robustize(Step):
    """Robust z-scores: (x − median) / (third quartile − first quartile), quartiles interpolated.

    A feature whose quartiles are equal has divisor 1 (as in scikit-learn and pycytominer) and is marked in
    ``constant``; one without any value among the fitted rows is marked 0 in ``keep``. NaN is skipped.

    Source: pycytominer 1.7.1 `normalize(method="robustize")`.
    """

    name: ClassVar[str] = "robustize"
    scope: str = "plate"
    on: str = "all"

    def fit(self, X: Matrix, wells: Wells, survey: Fit | None = None) -> Fit:
        """Fit median, iqr, constant and keep, each (d,)."""
        self.check_rows(X, wells)
        _, count = present_and_count(X)
        low, median, high = quantiles_of(X, count, (0.25, 0.5, 0.75))
        iqr = high - low
        constant = (iqr <= ROUNDING * size_of(X)) & (count > 0)
        iqr[constant | (count == 0)] = 1.0
        return {"median": median, "iqr": iqr, "constant": mask(constant), "keep": mask(count > 0)}

    def transform(self, X: Matrix, wells: Wells, fit: Fit) -> Matrix:
        """Return (x − median) / iqr."""
        return _scaled(X, fit["median"], fit["iqr"])


@dataclass(frozen=True)
class MadRobustize(Step):
    """Robust z-scores: (x − median) / (scale · MAD); scale 1.4826 makes it the sd of normal values.

    The JUMP recipe and Kim et al. divide by the MAD itself: scale 1. A feature whose MAD is 0 would come out at
    1e18 in pycytominer. Here it is marked in ``constant``, 0 in ``keep``, and leaves the feature set. NaN is skipped.

    Source: pycytominer 1.7.1 `normalize(method="mad_robustize")`.
    """

    name: ClassVar[str] = "mad_robustize"
    scope: str = "plate"
    on: str = "all"
    scale: float = 1.4826

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number(self.name, "scale", self.scale, 0, is_above=True)

    def fit(self, X: Matrix, wells: Wells, survey: Fit | None = None) -> Fit:
        """Fit median, mad (times scale), constant and keep, each (d,)."""
        self.check_rows(X, wells)
        _, count = present_and_count(X)
        median = median_of(X, count)
        mad = self.scale * median_of(_distance(X, median), count)
        constant = (mad <= ROUNDING * size_of(X)) & (count > 0)
        keep = (count > 0) & ~constant
        mad[~keep] = 1.0
        return {"median": median, "mad": mad, "constant": mask(constant), "keep": mask(keep)}

    def transform(self, X: Matrix, wells: Wells, fit: Fit) -> Matrix:
        """Return (x − median) / (scale · MAD)."""
        return _scaled(X, fit["median"], fit["mad"])


@dataclass(frozen=True)
class Center(Step):
    """Subtract the mean of each batch's wells (or each plate's, or the controls').

    A feature without any value among the fitted rows is marked 0 in ``keep``. NaN is skipped.
    """

    name: ClassVar[str] = "center"
    minimum: ClassVar[int] = 1
    scope: str = "batch"
    on: str = "all"

    def fit(self, X: Matrix, wells: Wells, survey: Fit | None = None) -> Fit:
        """Fit mean and keep, each (d,)."""
        self.check_rows(X, wells)
        present, count = present_and_count(X)
        return {"mean": mean_of(X, present, count), "keep": mask(count > 0)}

    def transform(self, X: Matrix, wells: Wells, fit: Fit) -> Matrix:
        """Return x − mean."""
        return X - fit["mean"]


def variance_of(X: Matrix, mean: Matrix, count: NDArray[np.int_]) -> Matrix:
    """Variance (ddof 0) of the values present in X (n, d) about their mean (d,); 0 where there is none."""
    deviation = X - mean
    np.copyto(deviation, 0.0, where=np.isnan(deviation))
    return np.asarray(np.einsum("ij,ij->j", deviation, deviation) / np.maximum(count, 1))


def size_of(X: Matrix) -> Matrix:
    """The largest |x| of each feature of X (n, d), (d,); 0 where there is no value."""
    largest = np.maximum(np.abs(np.fmax.reduce(X, axis=0)), np.abs(np.fmin.reduce(X, axis=0)))
    return np.asarray(np.nan_to_num(largest))


def is_constant(X: Matrix) -> NDArray[np.bool_]:
    """Tell of each feature of X (n, d) whether its values are equal but for rounding, or none is there, (d,)."""
    spread = np.nan_to_num(np.fmax.reduce(X, axis=0) - np.fmin.reduce(X, axis=0))
    return np.asarray(spread <= ROUNDING * size_of(X))


def quantiles_of(X: Matrix, count: NDArray[np.int_], levels: Sequence[float] | Matrix) -> Matrix:
    """Quantiles of the values present in X (n, d), interpolated linearly, (levels, d); 0 where there is none."""
    ordered = np.sort(X, axis=0)  # NaN last
    at = np.asarray(levels, dtype=np.float64)[:, None] * np.maximum(count - 1, 0)
    # A level that means one value is not to miss it by a rounding: equal values have equal quantiles.
    at = np.where(np.abs(at - np.rint(at)) < 1e-9 * np.maximum(count, 1), np.rint(at), at)
    below = np.floor(at).astype(np.intp)
    above = np.minimum(below + 1, np.maximum(count - 1, 0))
    feature = np.arange(X.shape[1])
    low = ordered[below, feature]
    found = low + (ordered[above, feature] - low) * (at - below)
    return np.where(count > 0, found, 0.0)


def _scaled(X: Matrix, middle: Matrix, width: Matrix) -> Matrix:
    """Return (x − middle) / width in one new array."""
    result = X - middle
    result /= width
    return result


def _distance(X: Matrix, middle: Matrix) -> Matrix:
    """Return |x − middle| in one new array."""
    result = X - middle
    return np.abs(result, out=result)
