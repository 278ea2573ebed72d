"""Correction steps: each is fitted on some wells, and its fit is kept and applied to plates that come later.

A fit is a set of named float64 arrays, so the lake can store it and a later night can apply it. A step has a
*scope* (one fit per plate, per batch, or one for all) and is fitted *on* all wells of it or on the negative
controls. A mask in a fit holds 1 for yes and 0 for no.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from math import isfinite
from typing import Any, ClassVar, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from warehouse.errors import RecipeError
from warehouse.names import unknown

Matrix = NDArray[np.float64]
Fit = dict[str, Matrix]

SCOPES = ("plate", "batch", "all")
ROWS = ("all", "controls")
# What the rounding of float64 can make of a feature that is constant, relative to its size.
ROUNDING = 16 * float(np.finfo(np.float64).eps)


@runtime_checkable
class Step(Protocol):
    """One correction, as `recipes` sees it: `minimum` rows to fit on; `complete` steps refuse NaN."""

    name: ClassVar[str]
    minimum: ClassVar[int]
    complete: ClassVar[bool]

    @property
    def scope(self) -> str:
        """``plate``, ``batch`` or ``all``: which wells share one fit."""

    @property
    def controls(self) -> bool:
        """Whether it is fitted on the negative controls alone."""

    @property
    def parameters(self) -> dict[str, str | float]:
        """Every parameter with its value, under the name it has in a recipe's text."""

    @property
    def text(self) -> str:
        """The step as a recipe writes it: parameters at their default left out."""

    def fit(self, X: Matrix, where: str, features: Sequence[str] = ()) -> Fit:
        """Learn the correction from X (n, d); `where` and `features` name plate and features in messages."""

    def transform(self, X: Matrix, fit: Fit) -> Matrix:
        """Return X (n, d) corrected, in float64; X itself is left as it is."""


@dataclass(frozen=True)
class _Base:
    """What all steps share: scope, rows, and the check that there are enough of them."""

    name: ClassVar[str]
    minimum: ClassVar[int] = 2
    complete: ClassVar[bool] = False
    scope: str
    on: str

    def __post_init__(self) -> None:
        if self.scope not in SCOPES:
            raise unknown(self.scope, f"scope of step {self.name}", SCOPES)
        if self.on not in ROWS:
            raise unknown(self.on, f"choice of wells (on=) of step {self.name}", ROWS)

    @property
    def controls(self) -> bool:
        """Whether it is fitted on the negative controls alone."""
        return self.on == "controls"

    @property
    def parameters(self) -> dict[str, Any]:
        """Every parameter with its value, under the name it has in a recipe's text."""
        return {field.name.rstrip("_"): getattr(self, field.name) for field in fields(self)}

    @property
    def text(self) -> str:
        """The step as a recipe writes it: parameters at their default left out."""
        default = {field.name.rstrip("_"): field.default for field in fields(self)}
        given = [f"{key}={value}" for key, value in self.parameters.items() if value != default[key]]
        return self.name + (f"({','.join(given)})" if given else "")

    def _check_rows(self, X: Matrix, where: str) -> None:
        if len(X) >= self.minimum:
            return
        rows, remedy = "well(s)", "leave it out or bring more of its wells"
        if self.controls:
            rows = "negative control(s)"
            remedy = f"mark its controls as negative in the layout, or use {self.name}(on=all)"
        message = f"{self.name}: {where} has {len(X)} {rows}, at least {self.minimum} needed: {remedy}"
        raise RecipeError(message)


@dataclass(frozen=True)
class Standardize(_Base):
    """z-scores: (x − mean) / sd, ddof 0.

    A constant feature has divisor 1 (as in scikit-learn and pycytominer) and is marked in ``constant``; a
    feature without any value among the fitted rows is marked 0 in ``keep`` and leaves the feature set. NaN is
    skipped.

    Source: pycytominer 1.7.1 `normalize(method="standardize")`; Ljosa et al. 2013.
    """

    name: ClassVar[str] = "standardize"
    scope: str = "plate"
    on: str = "controls"

    def fit(self, X: Matrix, where: str, features: Sequence[str] = ()) -> Fit:
        """Fit mean, sd, constant and keep, each (d,)."""
        self._check_rows(X, where)
        present, count = _present(X)
        mean = _mean(X, present, count)
        deviation = np.where(present, X - mean, 0.0)
        sd = np.sqrt((deviation**2).sum(axis=0) / np.maximum(count, 1))
        size = np.where(present, np.abs(X), 0.0).max(axis=0)
        constant = (sd <= ROUNDING * size) & (count > 0)
        sd[constant | (count == 0)] = 1.0
        return {"mean": mean, "sd": sd, "constant": _mask(constant), "keep": _mask(count > 0)}

    def transform(self, X: Matrix, fit: Fit) -> Matrix:
        """Return (x − mean) / sd."""
        return (X - fit["mean"]) / fit["sd"]


@dataclass(frozen=True)
class MadRobustize(_Base):
    """Robust z-scores: (x − median) / (1.4826 · MAD).

    A feature whose MAD is 0 would come out at 1e18 in pycytominer. Here it is marked in ``constant``, 0 in
    ``keep``, and leaves the feature set. NaN is skipped.

    Source: pycytominer 1.7.1 `normalize(method="mad_robustize")`.
    """

    name: ClassVar[str] = "mad_robustize"
    scope: str = "plate"
    on: str = "all"

    def fit(self, X: Matrix, where: str, features: Sequence[str] = ()) -> Fit:
        """Fit median, mad (times 1.4826), constant and keep, each (d,)."""
        self._check_rows(X, where)
        present, count = _present(X)
        median = _median(X, present, count)
        mad = 1.4826 * _median(np.abs(X - median), present, count)
        size = np.where(present, np.abs(X), 0.0).max(axis=0)
        constant = (mad <= ROUNDING * size) & (count > 0)
        keep = (count > 0) & ~constant
        mad[~keep] = 1.0
        return {"median": median, "mad": mad, "constant": _mask(constant), "keep": _mask(keep)}

    def transform(self, X: Matrix, fit: Fit) -> Matrix:
        """Return (x − median) / (1.4826 · MAD)."""
        return (X - fit["median"]) / fit["mad"]


@dataclass(frozen=True)
class Center(_Base):
    """Subtract the mean of each batch's wells (or each plate's, or the controls').

    A feature without any value among the fitted rows is marked 0 in ``keep``. NaN is skipped.
    """

    name: ClassVar[str] = "center"
    minimum: ClassVar[int] = 1
    scope: str = "batch"
    on: str = "all"

    def fit(self, X: Matrix, where: str, features: Sequence[str] = ()) -> Fit:
        """Fit mean and keep, each (d,)."""
        self._check_rows(X, where)
        present, count = _present(X)
        return {"mean": _mean(X, present, count), "keep": _mask(count > 0)}

    def transform(self, X: Matrix, fit: Fit) -> Matrix:
        """Return x − mean."""
        return X - fit["mean"]


@dataclass(frozen=True)
class Sphering(_Base):
    """Sphering on negative controls: x' = Q(x − mean), Q = U(Δ + λ)^-½ Uᵀ, of Σ = XᵀX / n = UΔUᵀ.

    Only the directions in which the controls vary are kept; every other one has Δ = 0 and is scaled by λ^-½,
    so 6,400 features with a few hundred controls need no 6,400 × 6,400 matrix. NaN is refused.

    Source: Moshkov et al. 2024, sphering; X is centred on the controls' mean as in the authors' code.
    """

    name: ClassVar[str] = "sphering"
    complete: ClassVar[bool] = True
    scope: str = "all"
    on: str = "controls"
    lambda_: float = 1e-3

    def __post_init__(self) -> None:
        super().__post_init__()
        if not (isfinite(self.lambda_) and self.lambda_ > 0):
            message = f"sphering(lambda={self.lambda_}): give a number above 0, as in sphering(lambda=0.001)"
            raise RecipeError(message)

    def fit(self, X: Matrix, where: str, features: Sequence[str] = ()) -> Fit:
        """Fit mean (d,), components (r, d), eigenvalues (r,) of Σ, and lambda (1,)."""
        self._check_rows(X, where)
        refuse_missing(self.name, X, where, features)
        n, d = X.shape
        mean = X.mean(axis=0)
        centred = X - mean
        # With more rows than features R of the QR decomposition has the same singular values and directions.
        small = np.linalg.qr(centred, mode="r") if n > d else centred
        _, singular, directions = np.linalg.svd(small, full_matrices=False)
        # At least one direction, so that a fit never holds an empty matrix.
        rank = max(1, int((singular > np.finfo(np.float64).eps * max(n, d) * singular[0]).sum()))
        return {
            "mean": mean,
            "components": np.ascontiguousarray(directions[:rank]),
            "eigenvalues": singular[:rank] ** 2 / n,
            "lambda": np.array([self.lambda_]),
        }

    def transform(self, X: Matrix, fit: Fit) -> Matrix:
        """Return Q(x − mean)."""
        centred = X - fit["mean"]
        components = fit["components"]
        scale = 1 / np.sqrt(fit["eigenvalues"] + fit["lambda"])
        projected = centred @ components.T
        if len(components) == components.shape[1]:
            return np.asarray((projected * scale) @ components)
        outside = float(1 / np.sqrt(fit["lambda"][0]))
        return np.asarray(outside * centred + (projected * (scale - outside)) @ components)


STEPS: tuple[type[_Base], ...] = (Standardize, MadRobustize, Center, Sphering)


def _present(X: Matrix) -> tuple[NDArray[np.bool_], NDArray[np.int_]]:
    present = ~np.isnan(X)
    return present, present.sum(axis=0)


def _mean(X: Matrix, present: NDArray[np.bool_], count: NDArray[np.int_]) -> Matrix:
    """Mean of the values present; 0 where there is none (the feature is then dropped by its `keep`)."""
    return np.asarray(np.where(present, X, 0.0).sum(axis=0) / np.maximum(count, 1))


def _median(X: Matrix, present: NDArray[np.bool_], count: NDArray[np.int_]) -> Matrix:
    """Median of the values present; 0 where there is none (the feature is then dropped by its `keep`)."""
    ordered = np.sort(X, axis=0)  # NaN last
    low, high = np.maximum(count - 1, 0) // 2, np.minimum(count // 2, len(X) - 1)
    feature = np.arange(X.shape[1])
    return np.where(count > 0, (ordered[low, feature] + ordered[high, feature]) / 2, 0.0)


def _mask(values: NDArray[np.bool_]) -> Matrix:
    return values.astype(np.float64)


def refuse_missing(step: str, X: Matrix, where: str, features: Sequence[str] = ()) -> None:
    """Raise `RecipeError` naming the first feature of X (n, d) that has no value in some well."""
    missing = np.isnan(X).sum(axis=0)
    if not missing.any():
        return
    first = int(np.argmax(missing > 0))
    feature = repr(features[first]) if features else f"number {first + 1}"
    message = (
        f"{step}: feature {feature} has no value in {missing[first]} of {len(X)} wells of {where}: "
        "leave these wells or this feature out of the feature set"
    )
    raise RecipeError(message)
