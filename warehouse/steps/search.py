"""The choice of sphering's λ on held-out replicates: no label that an evaluation uses is looked at.

Treatments with wells on two plates have these split into two halves, plate by plate; where most of them lie in two
batches, batch by batch. Sphering is fitted on the controls of one half. Each treatment's mean profile of one half
then looks for itself, by cosine, among the treatments' mean profiles of the other; the score of a λ is the mean of
1 / rank, over treatments, both directions, and both halves as the one that is fitted on. The largest score wins; of
equal ones the largest λ, which changes profiles least.

Where halves are of plates, a treatment looks among those of the same batches only. Among others too, what tells
batches apart would help it to find itself, and sphering, which takes that out, would seem to do harm.
"""

from math import isfinite

import numpy as np
import polars as pl
from numpy.typing import NDArray

from warehouse.errors import RecipeError
from warehouse.steps.base import Fit, Matrix, Wells, refuse_missing
from warehouse.steps.linear import principal

AUTO = "auto"
#: The values tried: half-decades from 10^-5 to 10^3.
CANDIDATES = 10.0 ** np.arange(-5, 3.25, 0.5)
#: Treatments that are compared: with more, every so-manyth in the order of their names.
MOST = 2000
# Scores that differ by no more are equal.
SAME = 1e-9
_PLATE = ("source", "batch", "plate")


def positive(value: float | str) -> float | str:
    """Read λ: a number above 0, or ``auto``.

    Raises:
        RecipeError: it is neither.
    """
    try:
        number = value if value == AUTO else float(value)
    except ValueError:
        number = float("nan")
    if not isinstance(number, str) and not (isfinite(number) and number > 0):
        message = (
            f"sphering(lambda={value}): give a number above 0, as in sphering(lambda=0.001), or lambda=auto"
        )
        raise RecipeError(message)
    return number


def describe(fit: Fit) -> str:
    """Tell which λ was chosen, and by what."""
    best = float(fit["search_score"][fit["search_lambda"] == fit["lambda"][0]][0])
    low, high = fit["search_score"].min(), fit["search_score"].max()
    return (
        f"lambda={fit['lambda'][0]:.3g} chosen among {len(fit['search_lambda'])}: replicates of "
        f"{fit['search_n'][0]:.0f} treatments find each other with a mean 1/rank of {best:.3f} "
        f"(all: {low:.3f} to {high:.3f})"
    )


def choose_lambda(X: Matrix, wells: Wells, on: str) -> Fit:
    """Choose λ for wells X (n, d).

    Args:
        X: all wells of the set.
        wells: the same rows, with source, batch, plate, treatment and control_type.
        on: which wells sphering is fitted on.

    Returns:
        ``lambda`` (1,), ``search_lambda`` and ``search_score`` (m,), ``search_n`` (1,) treatments compared.

    Raises:
        RecipeError: no two treatments that can be compared have wells on two plates, or there are no controls.
    """
    refuse_missing("sphering", X, wells)
    fitted = _fitted(wells, on)
    treatment = wells.rows["treatment"].to_list() if "treatment" in wells.rows.columns else [None] * len(X)
    usable = np.array([name is not None for name in treatment], dtype=bool) & ~wells.are_controls()
    half, compared, pool = _halves(wells, treatment, usable)
    means = [_means(X, usable & (half == side), treatment, compared) for side in (0, 1)]
    scores = []
    for side in (0, 1):
        rows = fitted & (half == side)
        if rows.sum() >= 2:
            scores.append(_scores(X[rows], means[0], means[1], pool))
    if not scores:
        message = (
            f"sphering(lambda=auto): neither half of {wells.place} has two of the wells that it is fitted on "
            f"(on={on}): mark the controls as negative in the layout, or give a number, as in sphering(lambda=0.001)"
        )
        raise RecipeError(message)
    score = np.mean(scores, axis=0)
    best = np.flatnonzero(score >= score.max() - SAME)[-1]
    return {
        "lambda": CANDIDATES[best : best + 1].copy(),
        "search_lambda": CANDIDATES.copy(),
        "search_score": score,
        "search_n": np.array([float(len(compared))]),
    }


def _fitted(wells: Wells, on: str) -> NDArray[np.bool_]:
    controls = wells.are_controls()
    return {"controls": controls, "treated": ~controls, "all": np.ones_like(controls)}[on]


def _halves(
    wells: Wells, treatment: list[str | None], usable: NDArray[np.bool_]
) -> tuple[NDArray[np.int_], list[str], NDArray[np.int_]]:
    """Give each well a half (n,), 0 or 1; name the treatments that have wells in both; number their pools (t,)."""
    rows = wells.rows.select(*_PLATE).with_columns(
        pl.Series("treatment", treatment, dtype=pl.String), pl.Series("usable", usable)
    )
    several = [_treatments_in_several(rows, _PLATE[:depth]) for depth in (2, 3)]
    by_batch = 2 * several[0] >= several[1] > 0
    half = _split(rows, _PLATE[:2] if by_batch else _PLATE)
    compared = (
        rows.with_columns(pl.Series("half", half), code=pl.struct(_PLATE[:2]).rank("dense"))
        .filter("usable")
        .group_by("treatment")
        .agg(pl.col("half").n_unique(), pool=pl.col("code").unique().sort().cast(pl.String).str.join(" "))
        .filter(pl.col("half") == 2)
        .with_columns(pool=pl.lit(0) if by_batch else pl.col("pool").rank("dense"))
        .filter(pl.len().over("pool") > 1)
        .sort("treatment")
    )
    if compared.is_empty():
        message = (
            f"sphering(lambda=auto): no two treatments of {wells.place} have wells on two plates of the same batches: "
            "there are no replicates to choose lambda by; give a number, as in sphering(lambda=0.001)"
        )
        raise RecipeError(message)
    compared = compared.gather_every(-(-len(compared) // MOST))
    return half, compared["treatment"].to_list(), compared["pool"].to_numpy().astype(np.int_)


def _treatments_in_several(rows: pl.DataFrame, by: tuple[str, ...]) -> int:
    counted = rows.filter("usable").group_by("treatment").agg(pl.struct(by).n_unique().alias("count"))
    return counted.filter(pl.col("count") > 1).height


def _split(rows: pl.DataFrame, by: tuple[str, ...]) -> NDArray[np.int_]:
    """Deal plates (or batches), in order, each to the half whose treatments it has least in common with."""
    coded = rows.with_columns(pl.struct(by).rank("dense").alias("unit") - 1)
    held: dict[int, list[str]] = dict(
        coded.filter("usable").group_by("unit").agg(pl.col("treatment").unique().sort()).iter_rows()
    )
    seen: tuple[dict[str, int], dict[str, int]] = ({}, {})
    sizes, side = [0, 0], np.zeros(1 + int(coded["unit"].to_numpy().max()), dtype=np.int_)
    for unit in range(len(side)):
        names = held.get(unit, [])
        common = [sum(part.get(name, 0) for name in names) for part in seen]
        chosen = min((0, 1), key=lambda number: (common[number], sizes[number], number))
        side[unit], sizes[chosen] = chosen, sizes[chosen] + 1
        for name in names:
            seen[chosen][name] = seen[chosen].get(name, 0) + 1
    return np.asarray(side[coded["unit"].to_numpy()])


def _means(X: Matrix, rows: NDArray[np.bool_], treatment: list[str | None], compared: list[str]) -> Matrix:
    """Mean profile (t, d) of each treatment compared, over these rows."""
    number = {name: i for i, name in enumerate(compared)}
    chosen = np.array([row for row in np.flatnonzero(rows) if treatment[row] in number], dtype=np.intp)
    code = np.array([number[str(treatment[row])] for row in chosen], dtype=np.intp)
    order = np.argsort(code, kind="stable")
    code, chosen = code[order], chosen[order]
    starts = np.searchsorted(code, np.arange(len(compared)))
    return np.asarray(
        np.add.reduceat(X[chosen], starts, axis=0) / np.bincount(code, minlength=len(compared))[:, None]
    )


def _scores(controls: Matrix, one: Matrix, other: Matrix, pool: NDArray[np.int_]) -> Matrix:
    """Score of each candidate, sphering fitted on these controls."""
    apart = pool[:, None] != pool
    mean = controls.mean(axis=0)
    singular, components = principal(controls, mean)
    eigenvalues = singular**2 / len(controls)
    one, other = one - mean, other - mean
    along, across = one @ components.T, other @ components.T
    # What lies outside the components, as inner products: sphering scales all of it alike.
    is_full = len(components) == components.shape[1]
    beside = 0.0 if is_full else one @ other.T - along @ across.T
    lengths = [
        0.0 if is_full else np.maximum((X**2).sum(axis=1) - (inner**2).sum(axis=1), 0)
        for X, inner in ((one, along), (other, across))
    ]
    found = []
    for value in CANDIDATES:
        weight = 1 / (eigenvalues + value)
        near = (along * weight) @ across.T + beside / value
        first, second = (
            np.sqrt((inner**2 * weight).sum(axis=1) + length / value)
            for inner, length in zip((along, across), lengths, strict=True)
        )
        near /= np.maximum(first[:, None] * second, np.finfo(np.float64).tiny)
        # Rounded, so that equal profiles are equally near whatever the order of a sum.
        near = near.round(12)
        near[apart] = -np.inf
        found.append((_mean_reciprocal_rank(near) + _mean_reciprocal_rank(near.T)) / 2)
    return np.array(found)


def _mean_reciprocal_rank(near: Matrix) -> float:
    """Mean of 1 / rank of the diagonal in each row; an equal one counts half a place."""
    own = np.diagonal(near)[:, None]
    rank = 1 + (near > own).sum(axis=1) + ((near == own).sum(axis=1) - 1) / 2
    return float((1 / rank).mean())
