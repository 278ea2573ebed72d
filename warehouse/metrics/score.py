"""What every metric shares: its result, and the vectors and labels it accepts."""

from collections.abc import Collection, Hashable, Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl
from numpy.typing import NDArray

from warehouse.errors import EvaluationError

Vectors = NDArray[np.float64]
Labels = Sequence[Collection[str] | str | None]


@dataclass(frozen=True)
class Score:
    """A metric's value and how it came about.

    Args:
        value: the metric.
        n: how many queries (or groups, for a mean over groups) it is the mean of; rows, where it is no mean.
        correct: how many queries were right, where that is counted.
        per_query: one row per query that was counted: `row` (int64, of X), `value` (what the mean is taken of), more.
            Empty where the metric has no queries.
        per_group: one row per treatment, label or step of a curve, where the metric has such: the columns that name
            it, `value`, more.
        left_out: reason to number of rows that were no query.
        unit: what the value is the mean of: `query` (`per_query.value`), `group` (`per_group.value`), or None where
            it is no mean. Differences between feature sets are resampled by it.
    """

    value: float
    n: int
    correct: int | None
    per_query: pl.DataFrame
    per_group: pl.DataFrame | None
    left_out: dict[str, int]
    unit: str | None = "query"


def unit_vectors(
    X: NDArray[np.floating], ids: Sequence[str] | None, compared: NDArray[np.bool_] | None = None
) -> Vectors:
    """Return X (n, d) in float64 with every row scaled to length 1.

    Args:
        X: profiles.
        ids: n names for messages.
        compared: n booleans; a row that the metric never compares (it has no label, say) comes back as zeros,
            whatever it holds. None: all are.

    Raises:
        EvaluationError: X is not 2-D, `ids` do not fit, or a row that is compared is zero or not finite; its
            id is named.
    """
    if X.ndim != 2 or (ids is not None and len(ids) != len(X)):
        message = f"profiles of shape {X.shape} do not fit {len(ids or ())} ids: give one id per row"
        raise EvaluationError(message)
    if compared is None or len(compared) != len(X) or compared.all():
        return _scaled(X, np.arange(len(X)), ids)
    unit = np.zeros(X.shape)
    unit[compared] = _scaled(X[compared], np.flatnonzero(compared), ids)
    return unit


def _scaled(X: NDArray[np.floating], rows: NDArray[np.int64], ids: Sequence[str] | None) -> Vectors:
    """Scale rows to length 1; `rows` are their numbers among all, for messages."""
    vectors = np.asarray(X, dtype=np.float64)
    finite = np.isfinite(vectors).all(axis=1)
    if not finite.all():
        place = int(np.argmin(finite))
        feature = int(np.argmin(np.isfinite(vectors[place])))
        message = (
            f"profile {row_name(int(rows[place]), ids)} has {vectors[place, feature]} in feature {feature + 1} "
            f"({int((~finite).sum())} such profiles): leave it out, or apply a recipe that drops the feature"
        )
        raise EvaluationError(message)
    # Scaled by the largest element first, so that no square over- or underflows.
    largest = np.abs(vectors).max(axis=1, initial=0.0)
    if (largest == 0).any():
        place = int(np.argmin(largest))
        message = (
            f"profile {row_name(int(rows[place]), ids)} is all zeros ({int((largest == 0).sum())} such profiles): "
            "it has no direction to compare; leave it out"
        )
        raise EvaluationError(message)
    vectors = vectors / largest[:, None]
    scaled: Vectors = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    return scaled


def check_length(what: str, values: Sequence[object] | NDArray[np.generic], n: int) -> None:
    """Raise `EvaluationError` unless there is one value per profile."""
    if len(values) != n:
        message = f"{len(values)} {what} for {n} profiles: give one per profile, in the same order"
        raise EvaluationError(message)


def label_sets(labels: Labels) -> list[frozenset[str]]:
    """Return each row's labels as a set; None and an empty text mean no label."""
    return [frozenset([row] if isinstance(row, str) and row else row or ()) for row in labels]


def membership(sets: Sequence[Collection[str]]) -> NDArray[np.float32]:
    """Return (n, members) ones and zeros, so that A @ B.T > 0 says which rows share a member."""
    column = {member: i for i, member in enumerate(sorted({member for row in sets for member in row}))}
    matrix = np.zeros((len(sets), max(len(column), 1)), np.float32)
    for row, members in enumerate(sets):
        for member in members:
            matrix[row, column[member]] = 1
    return matrix


def codes(values: Sequence[Hashable]) -> NDArray[np.int64]:
    """Return one integer per value, equal where the values are; None is -1."""
    seen: dict[Hashable, int] = {}
    return np.array([-1 if v is None else seen.setdefault(v, len(seen)) for v in values], dtype=np.int64)


def count_reasons(reasons: Sequence[str | None]) -> dict[str, int]:
    """Count the reasons, leaving out None, in alphabetical order."""
    given = [reason for reason in reasons if reason is not None]
    return {reason: given.count(reason) for reason in sorted(set(given))}


def no_queries() -> pl.DataFrame:
    """Return the `per_query` of a metric that is no mean over rows."""
    return pl.DataFrame(schema={"row": pl.Int64, "value": pl.Float64})


def require_queries(metric: str, n: int, left_out: dict[str, int]) -> None:
    """Raise `EvaluationError` when no query is left."""
    if n == 0:
        why = ", ".join(f"{count} with {reason}" for reason, count in left_out.items()) or "no profiles"
        message = f"{metric}: no query is left ({why}): check labels, batches and controls of these profiles"
        raise EvaluationError(message)


def row_name(row: int, ids: Sequence[str] | None) -> str:
    """Name a row in a message: by its id, or its number where there are none."""
    return repr(ids[row]) if ids is not None else f"in row {row}"
