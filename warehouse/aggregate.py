"""Cell to field to well: one profile per group of rows, by mean, median or trimmed mean, feature by feature."""

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from warehouse.errors import ProfileError
from warehouse.names import unknown

# Rows that one worker takes at a time: enough to hide the cost of a task, few enough to balance the workers.
ROWS_PER_TASK = 16_384


def aggregate(
    codes: NDArray[np.integer], profiles: NDArray[np.floating], operator: str, threads: int | None = None
) -> tuple[NDArray[np.integer], NDArray[np.float32]]:
    """Aggregate the rows of each group to one profile.

    NaN elements are skipped feature by feature; a feature that is NaN in the whole group stays NaN. The
    result depends neither on the order of the rows (but for the rounding of a sum) nor on the threads.

    Args:
        codes: (n,) integers, the group of each row, in any order.
        profiles: (n, d) floats.
        operator: ``"mean"`` (accumulated in float64), ``"median"`` (an even count gives the mean of the
            middle two) or ``"trimmed_mean"`` (less a tenth of the values below and a tenth above, rounded down).
        threads: workers; default one a core, at most eight.

    Returns:
        The g distinct codes in ascending order, and their profiles, (g, d) float32.

    Raises:
        UnknownNameError: the operator is in no list.
        ProfileError: the shapes do not fit together.

    Source:
        Moshkov et al. 2024 (median of cells per field, mean of fields per well); pycytominer 1.7.1;
        scipy.stats.trim_mean with 0.1.
    """
    if operator not in OPERATORS:
        raise unknown(operator, "aggregation operator", OPERATORS)
    if profiles.ndim != 2 or codes.shape != profiles.shape[:1]:
        message = (
            f"aggregate: {codes.shape} codes do not fit profiles of shape {profiles.shape}: "
            "give one code per row of an (n, d) array"
        )
        raise ProfileError(message)
    order, groups, bounds = _sorted_groups(codes)
    result = np.empty((len(groups), profiles.shape[1]), np.float32)
    reduce = OPERATORS[operator]

    def work(task: tuple[int, int]) -> None:
        for group in range(*task):
            rows = slice(int(bounds[group]), int(bounds[group + 1]))
            result[group] = reduce(profiles[rows] if order is None else profiles[order[rows]])

    with ThreadPoolExecutor(threads or min(os.cpu_count() or 1, 8)) as pool:
        list(pool.map(work, _tasks(bounds)))
    return groups, result


def _sorted_groups(
    codes: NDArray[np.integer],
) -> tuple[NDArray[np.intp] | None, NDArray[np.integer], NDArray[np.intp]]:
    """Return the order that sorts the rows (None when they are sorted), the groups, their bounds (g + 1,)."""
    order = None if bool(np.all(codes[1:] >= codes[:-1])) else np.argsort(codes, kind="stable")
    ordered = codes if order is None else codes[order]
    starts = np.flatnonzero(np.r_[len(codes) > 0, ordered[1:] != ordered[:-1]])
    return order, ordered[starts], np.append(starts, len(codes))


def _tasks(bounds: NDArray[np.intp]) -> list[tuple[int, int]]:
    """Cut the groups into runs of about `ROWS_PER_TASK` rows: (first group, group after the last)."""
    run = bounds[:-1] // ROWS_PER_TASK
    edges = [0, *(np.flatnonzero(np.diff(run)) + 1).tolist(), len(run)]
    return list(pairwise(edges))


def _mean(rows: NDArray[np.floating]) -> NDArray[np.float64]:
    total: NDArray[np.float64] = np.add.reduce(rows, axis=0, dtype=np.float64)
    missing = np.isnan(total)
    count: NDArray[np.float64] = np.full(total.shape, float(len(rows)))
    if missing.any():
        # Only the features with a NaN are gone through a second time.
        part = rows[:, missing]
        present = ~np.isnan(part)
        total[missing] = np.add.reduce(np.where(present, part, 0), axis=0, dtype=np.float64)
        count[missing] = present.sum(axis=0)
    mean: NDArray[np.float64] = np.divide(total, count, out=np.full(total.shape, np.nan), where=count > 0)
    return mean


def _median(rows: NDArray[np.floating]) -> NDArray[np.float64]:
    # One contiguous run per feature: NumPy's vectorised sort of it beats a partition along the columns.
    by_feature = np.array(rows.T, order="C")
    by_feature.sort(axis=1)
    n = len(rows)
    middle = by_feature[:, (n - 1) // 2].astype(np.float64)
    middle += by_feature[:, n // 2]
    middle /= 2
    missing = np.isnan(by_feature[:, -1])  # NaN sorts last
    if missing.any():
        part = by_feature[missing]
        count = (~np.isnan(part)).sum(axis=1)
        row = np.arange(len(part))
        # A feature without any value has count 0: index -1 or 0 is then NaN itself.
        middle[missing] = (part[row, (count - 1) // 2].astype(np.float64) + part[row, count // 2]) / 2
    return middle


def _trimmed_mean(rows: NDArray[np.floating]) -> NDArray[np.float64]:
    by_feature = np.array(rows.T, order="C")
    by_feature.sort(axis=1)
    n = len(rows)
    mean: NDArray[np.float64] = by_feature[:, n // 10 : n - n // 10].mean(axis=1, dtype=np.float64)
    missing = np.isnan(by_feature[:, -1])  # NaN sorts last
    if missing.any():
        part = by_feature[missing]
        count = (~np.isnan(part)).sum(axis=1)[:, None]
        place = np.arange(n)
        kept = (place >= count // 10) & (place < count - count // 10)
        total = np.add.reduce(np.where(kept, part, 0), axis=1, dtype=np.float64)
        left = kept.sum(axis=1)
        mean[missing] = np.divide(total, left, out=np.full(total.shape, np.nan), where=left > 0)
    return mean


OPERATORS: dict[str, Callable[[NDArray[np.floating]], NDArray[np.float64]]] = {
    "mean": _mean,
    "median": _median,
    "trimmed_mean": _trimmed_mean,
}
