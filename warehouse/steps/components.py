"""Principal components: profiles in the directions in which they vary most."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from warehouse.errors import RecipeError
from warehouse.steps.base import Fit, Matrix, Step, Wells, refuse_missing
from warehouse.steps.linear import apply, principal

ALL = "all"


@dataclass(frozen=True)
class PCA(Step):
    """Principal components: (x − mean)Vᵀ, V the directions of most variance of the fitted wells, first the largest.

    The largest element of each direction is positive, as in scikit-learn. ``components`` is how many are kept, or,
    below 1, the share of the variance that they must exceed; ``all`` keeps each that varies, at most one less than
    there are wells. NaN is refused. Results are other features, named pc_1, pc_2, …

    Source: scikit-learn `PCA`.
    """

    name: ClassVar[str] = "pca"
    complete: ClassVar[bool] = True
    featurewise: ClassVar[bool] = False
    other_axes: ClassVar[frozenset[str]] = frozenset({"variance", "share"})
    paper: ClassVar[str] = "Pearson 1901"
    scope: str = "all"
    on: str = "all"
    components: float | str = ALL

    def __post_init__(self) -> None:
        super().__post_init__()
        try:
            number = self.components if self.components == ALL else float(self.components)
        except ValueError:
            number = -1.0
        if not isinstance(number, str) and not (0 < number < 1 or (number >= 1 and number % 1 == 0)):
            message = (
                f"pca(components={self.components}): give a whole number, a share of the variance below 1 as in "
                "pca(components=0.95), or all"
            )
            raise RecipeError(message)
        is_count = not isinstance(number, str) and number >= 1
        object.__setattr__(self, "components", int(number) if is_count else number)
        if self.scope != "all":
            message = (
                f"pca(scope={self.scope}): each {self.scope} would get directions of its own: use scope=all"
            )
            raise RecipeError(message)

    def fit(self, X: Matrix, wells: Wells, survey: Fit | None = None) -> Fit:
        """Fit mean (d,), matrix (k, d), variance (k,) with ddof 1 and share (k,) of the whole."""
        self.check_rows(X, wells)
        refuse_missing(self.name, X, wells)
        mean = X.mean(axis=0)
        singular, directions = principal(X, mean)
        if singular[0] <= 0:
            message = (
                f"pca: all {len(X)} wells of {wells.place} that it is fitted on (on={self.on}) have the same profile: "
                "there is no direction to keep; leave pca out, or fit it on other wells"
            )
            raise RecipeError(message)
        share = singular**2 / (singular**2).sum()
        count = self._count(share, X, wells)
        return {
            "mean": mean,
            "matrix": np.ascontiguousarray(directions[:count]),
            "variance": singular[:count] ** 2 / (len(X) - 1),
            "share": share[:count],
        }

    def transform(self, X: Matrix, wells: Wells, fit: Fit) -> Matrix:
        """Return the components, (n, k)."""
        return apply(X, fit)

    def names(self, features: Sequence[str], fit: Fit) -> tuple[str, ...] | None:
        """Name the components."""
        return tuple(f"pc_{i + 1}" for i in range(len(fit["matrix"])))

    def notes(self, fit: Fit) -> tuple[str, ...]:
        """Tell how many components there are, and what share of the variance they hold."""
        count, d = fit["matrix"].shape
        return (f"{count} components of {d} features hold {fit['share'].sum():.1%} of the variance",)

    def _count(self, share: Matrix, X: Matrix, wells: Wells) -> int:
        if isinstance(self.components, str):
            return len(share)
        if self.components < 1:
            return min(len(share), int(np.searchsorted(np.cumsum(share), self.components, side="right")) + 1)
        if self.components > len(share):
            message = (
                f"pca(components={self.components}): {len(X)} wells of {wells.place} (on={self.on}) with "
                f"{X.shape[1]} features vary in {len(share)} directions only: give at most {len(share)}, or all"
            )
            raise RecipeError(message)
        return int(self.components)
