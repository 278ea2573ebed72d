"""The correlation filter: of features that say the same, one is kept."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from warehouse.steps.base import Fit, Matrix, Wells, mask, mean_of, present_and_count
from warehouse.steps.checks import check_number
from warehouse.steps.filters import Filter
from warehouse.steps.scaling import is_constant

_VALUES = 1 << 22  # of X that are worked on at once
# What cancellation can leave of the squares of a feature that is equal in all wells of a pair, relative to them.
_CANCELLED = 1e-12
_BLOCK = 512  # features whose correlations are worked on at once


@dataclass(frozen=True)
class Correlation(Filter):
    """Of each pair of features whose Pearson correlation is above a threshold, leave out the more redundant one.

    That is the one with the larger sum of |r| over all features; of two with the same sum, the later. The sign
    counts: r = −0.95 is not above 0.9. A pair's r is over the wells in which both have a value. A feature that is
    constant, or shares no two wells with another, correlates with none.

    Source: pycytominer 1.7.1 `feature_select(operation="correlation_threshold")`.
    """

    name: ClassVar[str] = "correlation"
    featurewise: ClassVar[bool] = False
    threshold: float = 0.9

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number(self.name, "threshold", self.threshold, 0, 1)

    def fit(self, X: Matrix, wells: Wells, survey: Fit | None = None) -> Fit:
        """Fit redundancy (the sum of |r|) and keep, each (d,)."""
        self.check_rows(X, wells)
        present, count = present_and_count(X)
        mean = mean_of(X, present, count)
        del present
        constant = is_constant(X)
        R = correlations(X, mean, count)
        R[constant] = 0.0
        R[:, constant] = 0.0
        redundancy = np.zeros(len(R))
        for first in range(0, len(R), _BLOCK):
            redundancy[first : first + _BLOCK] = np.abs(R[first : first + _BLOCK]).sum(axis=1)
        keep = count > 0
        # Equal features have equal sums but for rounding, which must not choose between them.
        place = np.argsort(np.argsort(np.round(redundancy, 9), kind="stable"))
        for first in range(0, len(R), _BLOCK):
            rows, columns = np.nonzero(R[first : first + _BLOCK] > self.threshold)
            rows += first
            keep[rows[place[rows] > place[columns]]] = False
        return {"redundancy": redundancy, "keep": mask(keep)}


def correlations(X: Matrix, mean: Matrix, count: NDArray[np.int_]) -> Matrix:
    """Pearson's r of every two features of X (n, d) over the wells in which both have a value, (d, d).

    Args:
        X: wells; NaN where an element is missing.
        mean: (d,) of the values present.
        count: (d,) of them.

    Returns:
        0 where a feature does not vary over the wells of the pair.
    """
    R = np.zeros((X.shape[1], X.shape[1]))
    for part in _centred(X, mean):
        R += part.T @ part  # one operand: BLAS computes one half only
    spread = np.sqrt(np.diag(R))
    _divide(R, spread[:, None])
    _divide(R, spread)
    # The sums above take a missing element for the mean: right for features that lack none.
    lacking = np.flatnonzero(count < len(X))
    for first in range(0, len(lacking), _BLOCK):
        chosen = lacking[first : first + _BLOCK]
        pairs = _pairwise(X, mean, chosen)
        R[chosen] = pairs
        R[:, chosen] = pairs.T
    return R


def _pairwise(X: Matrix, mean: Matrix, chosen: NDArray[np.intp]) -> Matrix:
    """Correlate some features (c,) with all, pair by pair over the wells that both have, (c, d)."""
    n, xy, x, y, xx, yy = np.zeros((6, len(chosen), X.shape[1]))
    for rows, part in zip(_stretches(X), _centred(X, mean), strict=True):
        there = (~np.isnan(X[rows])).astype(np.float64)
        mine, my_there = part[:, chosen].T, there[:, chosen].T
        n += my_there @ there
        xy += mine @ part
        x += mine @ there
        y += my_there @ part
        xx += mine**2 @ there
        yy += my_there @ np.square(part, out=part)
    np.maximum(n, 1, out=n)
    xy -= x * y / n
    for squares, total in ((xx, x), (yy, y)):
        least = _CANCELLED * squares
        squares -= total * total / n
        squares[squares <= least] = 0.0
    return _divide(xy, np.sqrt(xx * yy))


def _divide(A: Matrix, b: Matrix) -> Matrix:
    """Divide A in place, to 0 where b is 0."""
    np.divide(A, b, out=A, where=b > 0)
    A *= b > 0
    return A


def _stretches(X: Matrix) -> Iterator[slice]:
    step = max(1, _VALUES // max(1, X.shape[1]))
    return (slice(first, first + step) for first in range(0, len(X), step))


def _centred(X: Matrix, mean: Matrix) -> Iterator[Matrix]:
    """Yield the rows of X less the mean, in stretches; a missing element is 0."""
    for rows in _stretches(X):
        part = X[rows] - mean
        np.copyto(part, 0.0, where=np.isnan(part))
        yield part
