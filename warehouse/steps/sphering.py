"""Sphering: profiles are turned and scaled so that the negative controls vary alike in all directions."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import isfinite
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from warehouse.errors import RecipeError
from warehouse.names import unknown
from warehouse.steps.base import ROUNDING, Fit, Matrix, Step, Wells, refuse_missing
from warehouse.steps.linear import apply, principal, symmetric
from warehouse.steps.search import AUTO, choose_lambda, describe, positive

METHODS = ("moshkov", "zca", "zca_cor", "pca", "pca_cor")


@dataclass(frozen=True)
class Sphering(Step):
    """Sphering on negative controls, in five forms; all subtract the controls' mean. NaN is refused.

    ``moshkov``: x' = Q(x − mean), Q = U(Δ + λ)^-½ Uᵀ, of Σ = XᵀX / n = UΔUᵀ over the controls. The directions in which
    they do not vary have Δ = 0 and are scaled by λ^-½, so it needs no more controls than features, and 6,400 features
    with a few hundred controls need no 6,400 × 6,400 matrix. With ``lambda=auto`` λ is chosen on held-out replicates
    (`warehouse.steps.search`).

    ``zca``, ``zca_cor``, ``pca``, ``pca_cor``: x' = (x − mean)W, W = V·diag(√(n − 1) / (S + ε)) of X − mean = U·S·Vᵀ
    over the controls; zca turns back by Vᵀ, cor divides by each feature's standard deviation before. Where controls
    are too few to vary in as many directions as there are features, zca scales the others like the last in which they
    do, as pycytominer; pca leaves those out, where pycytominer adds arbitrary ones. Where controls are enough, and
    features follow from each other, the fit is refused. Results of pca are other features, named sphered_1, …

    Source: Moshkov et al. 2024, X centred on the controls' mean as in the authors' code; Kessy et al. 2016 and
    pycytominer 1.7.1 `Spherize`.
    """

    name: ClassVar[str] = "sphering"
    complete: ClassVar[bool] = True
    featurewise: ClassVar[bool] = False
    other_axes: ClassVar[frozenset[str]] = frozenset(
        {"lambda", "eigenvalues", "inside", "outside", "search_lambda", "search_score", "search_n"}
    )
    paper: ClassVar[str] = "Moshkov et al. 2024; Kessy et al. 2016"
    scope: str = "all"
    on: str = "controls"
    method: str = "moshkov"
    lambda_: float | str = 1e-3
    epsilon: float = 1e-6

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.method not in METHODS:
            raise unknown(self.method, "method of step sphering", METHODS)
        is_moshkov = self.method == "moshkov"
        foreign, own = ("epsilon", "lambda") if is_moshkov else ("lambda", "epsilon")
        if self.parameters[foreign] != {"epsilon": 1e-6, "lambda": 1e-3}[foreign]:
            message = f"sphering(method={self.method}) takes no {foreign}: leave it out, or give {own}"
            raise RecipeError(message)
        object.__setattr__(self, "lambda_", positive(self.lambda_))
        if not (isfinite(self.epsilon) and self.epsilon >= 0):
            message = f"sphering(epsilon={self.epsilon}): give a number of at least 0, as in epsilon=1e-6"
            raise RecipeError(message)
        if self.surveys and self.scope != "all":
            message = (
                f"sphering(lambda=auto,scope={self.scope}): one lambda is chosen for scope=all: give a number"
            )
            raise RecipeError(message)
        if self.method.startswith("pca") and self.scope != "all":
            message = (
                f"sphering(method={self.method},scope={self.scope}): the directions of one {self.scope} are not those "
                f"of another: use scope=all, or method={self.method.replace('pca', 'zca')}"
            )
            raise RecipeError(message)

    @property
    def surveys(self) -> bool:
        """Whether lambda is to be chosen."""
        return self.lambda_ == AUTO

    def survey(self, X: Matrix, wells: Wells) -> Fit | None:
        """Choose lambda (1,): what was tried in search_lambda and search_score (m,), on search_n (1,) treatments."""
        return choose_lambda(X, wells, self.on) if self.surveys else None

    def fit(self, X: Matrix, wells: Wells, survey: Fit | None = None) -> Fit:
        """Fit mean (d,) and the map: ``matrix`` (d, d), or components (r, d) with their scale where that is smaller.

        Moshkov's has eigenvalues (r,) of Σ and lambda (1,) besides.
        """
        self.check_rows(X, wells)
        refuse_missing(self.name, X, wells)
        mean = X.mean(axis=0)
        if self.method != "moshkov":
            return {"mean": mean} | self._spherize(X, mean, wells)
        singular, components = principal(X, mean)
        eigenvalues = singular**2 / len(X)
        chosen = survey["lambda"] if self.surveys and survey is not None else np.array([self.lambda_])
        fit = {"mean": mean, "eigenvalues": eigenvalues, "lambda": chosen}
        dense = symmetric(components, *_scales(fit))
        return fit | (dense if "matrix" in dense else {"components": components})

    def transform(self, X: Matrix, wells: Wells, fit: Fit) -> Matrix:
        """Return the sphered profiles, (n, d), of pca (n, r)."""
        if "matrix" not in fit and "lambda" in fit:
            inside, outside = _scales(fit)
            fit = fit | {"inside": inside, "outside": np.array([outside])}
        return apply(X, fit)

    def names(self, features: Sequence[str], fit: Fit) -> tuple[str, ...] | None:
        """Name the directions of pca."""
        if not self.method.startswith("pca"):
            return None
        return tuple(f"sphered_{i + 1}" for i in range(len(fit["matrix"])))

    def notes(self, fit: Fit) -> tuple[str, ...]:
        """Tell which lambda was chosen, and by what."""
        return (describe(fit),) if "search_score" in fit else ()

    def _spherize(self, X: Matrix, mean: Matrix, wells: Wells) -> Fit:
        n, d = X.shape
        scale = X.std(axis=0) if self.method.endswith("_cor") else None
        self._refuse_constant(X, wells)
        singular, components = principal(X, mean, scale)
        # A step before that centres each plate on its own controls takes a direction a plate.
        plates = wells.rows["plate"].n_unique() if "plate" in wells.rows.columns else 1
        if len(singular) < d <= n - plates:
            raise RecipeError(self._dependent(components, wells))
        inside = np.sqrt(n - 1) / (singular + self.epsilon)
        if self.method.startswith("pca"):
            matrix = inside[:, None] * components
        else:
            made = symmetric(components, inside, float(inside[-1]))
            if "matrix" not in made:
                return made if scale is None else made | {"scale": scale}
            matrix = made["matrix"]
        return {"matrix": matrix if scale is None else matrix / scale}

    def _refuse_constant(self, X: Matrix, wells: Wells) -> None:
        low, high = X.min(axis=0), X.max(axis=0)
        constant = np.flatnonzero(high - low <= ROUNDING * np.maximum(np.abs(low), np.abs(high)))
        if not len(constant):
            return
        first = constant[0]
        message = (
            f"sphering(method={self.method}): feature {wells.feature(int(first))} is {X[0, first]:g} in all {len(X)} "
            f"wells of {wells.place} that it is fitted on ({len(constant)} of {X.shape[1]} features are constant): put "
            "variance before it, or use sphering(method=moshkov)"
        )
        raise RecipeError(message)

    def _dependent(self, components: Matrix, wells: Wells) -> str:
        """Say which features are combinations of others."""
        rank, d = components.shape
        # A feature that others determine has much of its length among the directions in which nothing varies.
        lost = 1 - (components**2).sum(axis=0)
        worst, *others = (wells.feature(int(i)) for i in np.argsort(-lost, kind="stable")[:3])
        return (
            f"sphering(method={self.method}): {wells.place}: {d} features vary in {rank} directions only: feature "
            f"{worst} follows from others (look at {', '.join(others)}): put correlation before it or "
            f"pca(on={self.on}), or use sphering(method=moshkov)"
        )


def _scales(fit: Fit) -> tuple[NDArray[np.float64], float]:
    """How much Moshkov's sphering scales along each component, and outside of all."""
    return 1 / np.sqrt(fit["eigenvalues"] + fit["lambda"]), float(1 / np.sqrt(fit["lambda"][0]))
