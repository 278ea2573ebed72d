"""Making the controls of batches alike: typical variation normalisation and CORAL."""

from dataclasses import dataclass
from math import isfinite
from typing import ClassVar

import numpy as np
import polars as pl
from numpy.typing import NDArray

from warehouse.errors import RecipeError
from warehouse.names import unknown
from warehouse.steps.base import Fit, Matrix, Step, Wells, refuse_missing
from warehouse.steps.linear import apply, principal, symmetric

ABOUT = ("mean", "zero")
_KEYS = {"plate": ("source", "batch", "plate"), "batch": ("source", "batch")}


def _check_epsilon(step: str, epsilon: float) -> None:
    if not (isfinite(epsilon) and epsilon > 0):
        message = f"{step}(epsilon={epsilon}): give a number above 0, as in {step}(epsilon=0.5)"
        raise RecipeError(message)


@dataclass(frozen=True)
class TVN(Step):
    """Typical variation normalisation, the step within each batch: x' = x(C + εI)^-½, C the covariance of its controls.

    It subtracts nothing: what comes before it, as in the recipe ``efaar_tvn``, centres on the controls. The
    covariance has ddof 1. NaN is refused.

    Source: EFAAR's benchmark, `tvn_on_controls`; after Ando et al. 2017.
    """

    name: ClassVar[str] = "tvn"
    complete: ClassVar[bool] = True
    featurewise: ClassVar[bool] = False
    other_axes: ClassVar[frozenset[str]] = frozenset({"inside", "outside"})
    paper: ClassVar[str] = "Ando et al. 2017; Celik et al. 2024 (EFAAR)"
    scope: str = "batch"
    on: str = "controls"
    epsilon: float = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_epsilon(self.name, self.epsilon)

    def fit(self, X: Matrix, wells: Wells, survey: Fit | None = None) -> Fit:
        """Fit the map: ``matrix`` (d, d), or components (r, d) with their scale where that is smaller."""
        self.check_rows(X, wells)
        refuse_missing(self.name, X, wells)
        return _power(X, X.mean(axis=0), len(X) - 1, self.epsilon, -0.5)

    def transform(self, X: Matrix, wells: Wells, fit: Fit) -> Matrix:
        """Return x(C + εI)^-½."""
        return apply(X, fit)


@dataclass(frozen=True)
class Coral(Step):
    """CORAL: the controls of each batch get the covariance of all controls, x' = (x − mean)(C_b + εI)^-½ (C + εI)^½.

    ``about=mean``: covariances about each batch's own mean with ddof 1, and x less the mean of its batch's controls;
    C is that of all controls, each less the mean of its batch. After standardize(scope=batch) this is what EFAAR's
    benchmark does with ε ½. ``about=zero``: second moments about 0 with divisor n, nothing subtracted, as in the code
    of Moshkov et al. for BBBC021 (ε 1, by week, after sphering). NaN is refused. The map is d × d: where features
    outnumber the controls by far, put pca(on=controls) before it.

    Source: Sun et al. 2016; Ando et al. 2017.
    """

    name: ClassVar[str] = "coral"
    complete: ClassVar[bool] = True
    featurewise: ClassVar[bool] = False
    paper: ClassVar[str] = "Sun et al. 2016; Ando et al. 2017"
    scope: str = "batch"
    on: str = "controls"
    epsilon: float = 1.0
    about: str = "mean"

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_epsilon(self.name, self.epsilon)
        if self.about not in ABOUT:
            raise unknown(self.about, "origin (about=) of step coral", ABOUT)
        if self.scope == "all":
            message = "coral(scope=all): it makes batches alike, or plates: use scope=batch or scope=plate"
            raise RecipeError(message)

    @property
    def surveys(self) -> bool:
        """Always: the target is the covariance of the whole set."""
        return True

    def survey(self, X: Matrix, wells: Wells) -> Fit | None:
        """Find the square root of the target covariance, ``target`` (d, d).

        Raises:
            RecipeError: there is one batch only, or one without enough controls.
        """
        groups = wells.rows.select(_KEYS[self.scope])
        if (count := groups.n_unique()) < 2:
            key = ", ".join(f"{name} {value!r}" for name, value in groups.row(0, named=True).items())
            message = (
                f"coral: {wells.place} is {count} {self.scope} ({key}), and there is no other to make it alike to: "
                f"leave coral out{', or use coral(scope=plate)' if self.scope == 'batch' else ''}"
            )
            raise RecipeError(message)
        chosen = self._chosen(wells)
        controls = X[chosen]
        self.check_rows(controls, wells)
        refuse_missing(self.name, controls, wells.at(chosen))
        if self.about == "zero":
            return {"target": _dense(_power(controls, None, len(controls), self.epsilon, 0.5))}
        code = groups.select(pl.struct(pl.all()).rank("dense") - 1).to_series().to_numpy()[chosen]
        total = np.zeros((count, X.shape[1]))
        np.add.at(total, code, controls)
        controls = controls - (total / np.maximum(np.bincount(code, minlength=count), 1)[:, None])[code]
        return {"target": _dense(_power(controls, None, len(controls) - 1, self.epsilon, 0.5))}

    def fit(self, X: Matrix, wells: Wells, survey: Fit | None = None) -> Fit:
        """Fit ``matrix`` (d, d) and, about the mean, ``mean`` (d,)."""
        self.check_rows(X, wells)
        refuse_missing(self.name, X, wells)
        assert survey is not None, "coral is fitted with what its survey found"
        mean = X.mean(axis=0)
        divisor = len(X) - 1 if self.about == "mean" else len(X)
        whitening = _power(X, mean if self.about == "mean" else None, divisor, self.epsilon, -0.5)
        # Both are symmetric: (A·B)ᵀ = B·A maps a row by A, then by B.
        matrix = {"matrix": np.ascontiguousarray(apply(survey["target"], whitening))}
        return matrix | {"mean": mean} if self.about == "mean" else matrix

    def transform(self, X: Matrix, wells: Wells, fit: Fit) -> Matrix:
        """Return the profiles as the whole set's controls vary."""
        return apply(X, fit)

    def _chosen(self, wells: Wells) -> NDArray[np.bool_]:
        controls = wells.are_controls()
        return {"controls": controls, "treated": ~controls, "all": np.ones_like(controls)}[self.on]


def _power(X: Matrix, mean: Matrix | None, divisor: int, epsilon: float, power: float) -> Fit:
    """(C + εI)^power as a map, C = (X − mean)ᵀ(X − mean) / divisor."""
    singular, components = principal(X, mean)
    return symmetric(components, (singular**2 / divisor + epsilon) ** power, epsilon**power)


def _dense(map_: Fit) -> Matrix:
    """The map as one matrix (d, d)."""
    if "matrix" in map_:
        return map_["matrix"]
    return apply(np.eye(map_["components"].shape[1]), map_)
