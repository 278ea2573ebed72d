"""Harmony: batches are mixed cluster by cluster, and later plates are mapped onto the result as Symphony does."""

import logging
from dataclasses import dataclass
from math import isfinite
from typing import Any, ClassVar

import numpy as np
import polars as pl
from numpy.typing import NDArray

from warehouse.errors import RecipeError
from warehouse.names import unknown
from warehouse.steps.base import Fit, Matrix, Step, Wells, refuse_missing

KEYS = {"source": ("source",), "batch": ("source", "batch"), "plate": ("source", "batch", "plate")}
#: Harmony's default: a cluster for so many wells, and no more clusters than that.
WELLS_PER_CLUSTER, MOST_CLUSTERS = 30, 100
# Between the parts of a batch's name, and after its end in a row of the fit.
_SEPARATOR, _END = "\x1f", -1.0


@dataclass(frozen=True)
class Harmony(Step):
    """Harmony over all wells, and what it learnt for plates that come later.

    The wells it is fitted on get what harmonypy returns. Each later well is assigned to the clusters by its cosine
    to their centroids, softly with width σ, and moved by its batch's correction in each. A batch that was not among
    those fitted, and with ``by=plate`` every later plate, gets a correction of its own: the same ridge regression,
    of its wells that come together, against the clusters as they stand.

    ``by`` is what counts as a batch. ``clusters=0`` stands for min(n / 30, 100). ``lambda`` is the ridge penalty of
    each batch. NaN is refused.

    Source: Korsunsky et al. 2019, harmonypy 2.1.0; Kang et al. 2021 (Symphony) for later plates.
    """

    name: ClassVar[str] = "harmony"
    complete: ClassVar[bool] = True
    featurewise: ClassVar[bool] = False
    whole: ClassVar[bool] = True
    together: ClassVar[bool] = True
    other_axes: ClassVar[frozenset[str]] = frozenset({"weights", "batches"})
    paper: ClassVar[str] = "Korsunsky et al. 2019; Kang et al. 2021"
    scope: str = "all"
    on: str = "all"
    by: str = "batch"
    clusters: float = 0
    theta: float = 2
    lambda_: float = 1
    sigma: float = 0.1
    iterations: float = 10
    seed: float = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.by not in KEYS:
            raise unknown(self.by, "batch (by=) of step harmony", KEYS)
        for name, value in (("scope", self.scope), ("on", self.on)):
            if value != "all":
                message = f"harmony({name}={value}): it mixes all wells of the whole set: leave {name} out"
                raise RecipeError(message)
        for name, least, most in (("clusters", 0, 10_000), ("iterations", 1, 1_000), ("seed", 0, 2**31 - 1)):
            value = self.parameters[name]
            if not (isfinite(value) and least <= value <= most and value % 1 == 0):
                message = f"harmony({name}={value:g}): give a whole number from {least} to {most}"
                raise RecipeError(message)
            object.__setattr__(self, name, int(value))
        for name in ("lambda", "sigma", "theta"):
            value = self.parameters[name]
            if not (0 < value <= 1e6 or (name == "theta" and value == 0)):
                message = f"harmony({name}={value:g}): give a number above 0, up to a million"
                raise RecipeError(message)

    def fit_transform(self, X: Matrix, wells: Wells) -> tuple[Fit, Matrix]:
        """Run Harmony; the fit is what later plates need.

        Returns:
            ``centroids`` (k, d) of length 1; ``weights`` (k,) and ``sums`` (k, d): the fitted wells in each cluster and
            the sum of their corrected profiles; and, unless ``by=plate``, ``batches`` (b, …), the names as UTF-8, and
            ``corrections`` (b·k, d), what wells of a batch and cluster are moved by.

        Raises:
            RecipeError: harmonypy is not installed, there is one batch only, too few wells, or an empty profile.
        """
        self.check_rows(X, wells)
        refuse_missing(self.name, X, wells)
        labels = self._labels(wells)
        batches, code = np.unique(labels, return_inverse=True)
        if len(batches) < 2:
            message = (
                f"harmony: all {len(X)} wells of {wells.place} are of one {self.by}, {_readable(batches[0])}: there is "
                f"nothing to mix; leave harmony out{', or use harmony(by=plate)' if self.by != 'plate' else ''}"
            )
            raise RecipeError(message)
        clusters = int(self.clusters) or max(1, min(round(len(X) / WELLS_PER_CLUSTER), MOST_CLUSTERS))
        if clusters > len(X):
            message = (
                f"harmony(clusters={clusters}): {wells.place} has {len(X)} wells only: give fewer clusters, or 0 (of a "
                "recipe with a name, write its steps: wellhouse recipes shows them)"
            )
            raise RecipeError(message)
        self._refuse_zero(X, wells)
        found = _run_harmony(
            X,
            {"batch": labels},
            "batch",
            theta=self.theta,
            lamb=self.lambda_,
            sigma=self.sigma,
            nclust=clusters,
            max_iter_harmony=int(self.iterations),
            random_state=int(self.seed),
            verbose=False,
        )
        shares, corrected = np.asarray(found.R), np.array(found.Z_corr, dtype=np.float64)
        fit = {
            "centroids": np.array(found.Y.T, dtype=np.float64),
            "weights": shares.sum(axis=0),
            "sums": shares.T @ corrected,
        }
        if self.by != "plate":
            corrections = _corrections(X, shares, code, len(batches), self.lambda_)
            fit |= {"batches": _as_numbers(batches), "corrections": corrections.reshape(-1, X.shape[1])}
        return fit, corrected

    def transform(self, X: Matrix, wells: Wells, fit: Fit) -> Matrix:
        """Return later plates, each well less its batch's correction in the clusters that it is in."""
        self._refuse_zero(X, wells)
        labels = self._labels(wells)
        known = {_SEPARATOR.join(parts): number for number, parts in enumerate(known_batches(fit))}
        count, d = fit["centroids"].shape
        near = _unit(X) @ fit["centroids"].T * (2 / self.sigma)
        shares = np.exp(near - near.max(axis=1, keepdims=True))
        shares /= shares.sum(axis=1, keepdims=True)
        result = np.empty_like(X)
        for batch in np.unique(labels):
            rows = labels == batch
            if batch in known:
                corrections = fit["corrections"].reshape(-1, count, d)[known[batch]]
            else:
                corrections = _correction_of_new(X[rows], shares[rows], fit, self.lambda_)
            result[rows] = X[rows] - shares[rows] @ corrections
        return result

    def _labels(self, wells: Wells) -> NDArray[np.object_]:
        joined = pl.concat_str(pl.col(KEYS[self.by]), separator=_SEPARATOR)
        return np.asarray(wells.rows.select(joined).to_series().to_numpy().astype(object))

    def _refuse_zero(self, X: Matrix, wells: Wells) -> None:
        empty = np.flatnonzero(~X.any(axis=1))
        if len(empty):
            row = wells.rows.row(int(empty[0]), named=True)
            message = (
                f"harmony: well {row.get('well')!r} of plate {row.get('plate')!r} of batch {row.get('batch')!r} has a "
                f"profile of zeros ({len(empty)} well(s) in all), which has no direction: leave it out"
            )
            raise RecipeError(message)


def known_batches(fit: Fit) -> list[tuple[str, ...]]:
    """Tell which batches a fit has corrections of, in their order: each by its `KEYS`; none with ``by=plate``."""
    return [tuple(name.split(_SEPARATOR)) for name in _as_text(fit["batches"])] if "batches" in fit else []


def _run_harmony(*arguments: object, **settings: object) -> Any:
    """Call harmonypy, which is not installed with the base."""
    try:
        import harmonypy
    except ImportError:
        message = "step harmony needs the package harmonypy: pip install 'wellhouse[harmony]'"
        raise RecipeError(message) from None
    logging.getLogger("harmonypy").setLevel(logging.WARNING)
    try:
        return harmonypy.run_harmony(*arguments, **settings)
    except (RuntimeError, FloatingPointError) as error:
        message = (
            f"harmony: {str(error).splitlines()[0]}: look at its parameters and at the size of the features"
        )
        raise RecipeError(message) from error


def _corrections(
    X: Matrix, shares: Matrix, code: NDArray[np.intp], count: int, penalty: float
) -> NDArray[np.float64]:
    """Ridge regression of the profiles in each cluster on their batch, (batches, clusters, d): Harmony's last step.

    In a cluster with intercept a and corrections w_b, of weights n_b and sums s_b: (n_b + λ)·w_b = s_b − n_b·a.
    Put into Σ_b n_b·(a + w_b) = Σ_b s_b it gives a·Σ_b λn_b / (n_b + λ) = Σ_b λs_b / (n_b + λ).
    """
    weight = np.stack([shares[code == batch].sum(axis=0) for batch in range(count)])
    total = np.stack([shares[code == batch].T @ X[code == batch] for batch in range(count)])
    drawn = penalty / (weight + penalty)
    intercept = (drawn[:, :, None] * total).sum(axis=0) / np.maximum(
        (drawn * weight).sum(axis=0), np.finfo(np.float64).tiny
    )[:, None]
    return np.asarray((total - weight[:, :, None] * intercept) / (weight + penalty)[:, :, None])


def _correction_of_new(X: Matrix, shares: Matrix, fit: Fit, penalty: float) -> Matrix:
    """The same regression for a batch that is new, (clusters, d); the fitted wells take part as corrected."""
    own, total = shares.sum(axis=0)[:, None], shares.T @ X
    weight = fit["weights"][:, None] + own
    # w·(own + λ) = total − own·a and a·weight = sums + total − own·w, solved for w.
    return np.asarray((total * weight - own * (fit["sums"] + total)) / ((own + penalty) * weight - own * own))


def _unit(X: Matrix) -> Matrix:
    return np.asarray(X / np.linalg.norm(X, axis=1, keepdims=True))


def _readable(batch: str) -> str:
    return " of ".join(repr(part) for part in reversed(batch.split(_SEPARATOR)))


def _as_numbers(names: NDArray[np.object_]) -> Matrix:
    """Texts as rows of their UTF-8 bytes: a fit holds numbers only."""
    coded = [name.encode() for name in names]
    rows = np.full((len(coded), max(map(len, coded))), _END)
    for row, text in zip(rows, coded, strict=True):
        row[: len(text)] = list(text)
    return rows


def _as_text(rows: Matrix) -> list[str]:
    return [bytes(row[row != _END].astype(np.uint8)).decode() for row in rows]
