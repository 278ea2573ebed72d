"""Ranks: a feature's values become the quantiles of a normal distribution, in their order."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from warehouse.errors import RecipeError
from warehouse.steps.base import Fit, Matrix, Step, Wells, mask, present_and_count
from warehouse.steps.scaling import is_constant, quantiles_of

POINTS = 1001  # quantiles of each feature that a fit holds at most
_VALUES = 1 << 21  # ranked at once


@dataclass(frozen=True)
class InverseNormal(Step):
    """Rank-based inverse normal transform: Φ⁻¹((r − ⅜) / (n − ¾ + 1)), r from 1 among the n values present.

    Equal values share the mean of their ranks, so the order of wells does not matter; the JUMP recipe draws lots
    between them. A missing element stays missing; a constant feature becomes 0 and is marked in ``constant``;
    one without any value is marked 0 in ``keep``.

    With scope ``plate`` every plate ranks its own wells. With scope ``all`` the wells of the fit get their exact
    ranks, and those that come later the rank that their value has between up to 1,001 stored quantiles, within the
    range of the fit: rank 1 or n beyond it. With scope ``batch`` all wells are ranked between the quantiles. They
    lie at equal steps of the score, so a score is exact where the fit has at most 1,001 wells, and within 0.01
    otherwise.

    Source: the JUMP production recipe; Blom 1958 for the constants.
    """

    name: ClassVar[str] = "inverse_normal"
    paper: ClassVar[str] = "Arevalo et al. 2024"
    other_axes: ClassVar[frozenset[str]] = frozenset({"levels"})
    scope: str = "all"
    on: str = "all"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.on != "all":
            message = f"{self.name}(on={self.on}): a rank is one among all wells: leave on= out"
            raise RecipeError(message)

    @property
    def whole(self) -> bool:  # type: ignore[override]
        """Whether `transform` ranks the wells it is given."""
        return self.scope == "plate"

    @property
    def together(self) -> bool:  # type: ignore[override]
        """Whether the wells of the fit get exact ranks, for which the stored quantiles may be too few."""
        return self.scope == "all"

    def fit(self, X: Matrix, wells: Wells, survey: Fit | None = None) -> Fit:
        """Fit constant and keep (d,) and, but for scope plate, count (d,), levels (g,) and quantiles (g, d)."""
        self.check_rows(X, wells)
        _, count = present_and_count(X)
        constant = (count > 0) & is_constant(X)
        fit = {"constant": mask(constant), "keep": mask(count > 0)}
        if self.scope != "plate":
            levels = _levels(len(X))
            fit |= {
                "levels": levels,
                "quantiles": quantiles_of(X, count, levels),
                "count": count.astype(np.float64),
            }
        return fit

    def transform(self, X: Matrix, wells: Wells, fit: Fit) -> Matrix:
        """Return the normal score of each element: of its rank in X or, where there are any, between the quantiles."""
        if "quantiles" not in fit:
            return scores(X)
        return among(X, fit["levels"], fit["quantiles"], fit["count"])

    def fit_transform(self, X: Matrix, wells: Wells) -> tuple[Fit, Matrix]:
        """Fit on X and return the scores of exact ranks."""
        return self.fit(X, wells), scores(X)


def scores(X: Matrix) -> Matrix:
    """Return the normal score of each element's rank among its column's values, (n, d); NaN stays."""
    result = np.empty_like(X)
    for columns in _blocks(X):
        ranks, count = _ranks(np.ascontiguousarray(X[:, columns].T))
        result[:, columns] = _score(ranks.T, count)
    return result


def among(X: Matrix, levels: Matrix, quantiles: Matrix, count: Matrix) -> Matrix:
    """Return normal scores of X (n, d) among values that are known by their quantiles.

    Args:
        X: wells; NaN stays.
        levels: (g,) from 0, the least value, to 1, the largest.
        quantiles: (g, d) of each feature at these levels.
        count: (d,) values that they are the quantiles of.
    """
    result = np.empty_like(X)
    for feature, values in enumerate(X.T):
        known = quantiles[:, feature]
        # A value that many wells share spans several quantiles: it gets the middle of them.
        share = (np.interp(values, known, levels) - np.interp(-values, -known[::-1], -levels[::-1])) / 2
        rank = 1 + share * (count[feature] - 1)
        result[:, feature] = _score(rank, count[feature])
    return result


def _levels(n: int) -> Matrix:
    """Levels to know n values by: every one of them or, of many, at equal steps of the score."""
    from scipy.special import ndtr

    if n <= POINTS:
        return np.linspace(0, 1, n)
    last = float(_score(np.array([n]), np.array([n]))[0])
    ranks = ndtr(np.linspace(-last, last, POINTS)) * (n + 0.25) + 0.375
    return np.asarray(np.clip((ranks - 1) / (n - 1), 0, 1))


def _ranks(values: Matrix) -> tuple[Matrix, NDArray[np.intp]]:
    """Rank along each row (d, n) from 1, equal values by their mean, NaN where there is none; and count them."""
    d, n = values.shape
    order = np.argsort(values, axis=1)  # NaN last
    ordered = np.take_along_axis(values, order, axis=1)
    count = n - np.isnan(ordered).sum(axis=1)
    place = np.arange(n)
    differs = ordered[:, 1:] != ordered[:, :-1]
    first, last = np.zeros((d, n), dtype=np.intp), np.full((d, n), n - 1, dtype=np.intp)
    first[:, 1:] = np.maximum.accumulate(np.where(differs, place[1:], 0), axis=1)
    last[:, :-1] = np.minimum.accumulate(np.where(differs, place[:-1], n - 1)[:, ::-1], axis=1)[:, ::-1]
    ordered = (first + last) / 2 + 1
    ordered[place >= count[:, None]] = np.nan
    ranks = np.empty_like(ordered)
    np.put_along_axis(ranks, order, ordered, axis=1)
    return ranks, count


def _score(rank: Matrix | NDArray[np.intp], count: Matrix | NDArray[np.intp]) -> Matrix:
    from scipy.special import ndtri  # here, as a command that ranks nothing need not wait for it

    return np.asarray(ndtri((rank - 0.375) / (count + 0.25)))


def _blocks(X: Matrix) -> Iterator[slice]:
    step = max(1, _VALUES // max(1, len(X)))
    return (slice(first, first + step) for first in range(0, X.shape[1], step))
