"""Vectors of length 1, exact cosines between them, and how far a product in single precision may be off."""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from warehouse.errors import SearchError

Vectors = NDArray[np.float32]
Rows = NDArray[np.int64]

#: Rows that are scaled at a time, and pairs of rows that are multiplied in double at a time: both stay in the cache.
_ROWS = 2048
_PAIRS = 4096


def unit_rows(vectors: NDArray[np.floating], name: Callable[[int], str], what: str = "vector") -> Vectors:
    """Scale each row to length 1.

    Args:
        vectors: (n, d) floats.
        name: of a row, for messages.
        what: the rows are, for messages.

    Returns:
        (n, d) float32.

    Raises:
        SearchError: a row is zero or not finite; the first one is named, and their number.
    """
    n, d = vectors.shape
    made = np.empty((n, d), dtype=np.float32)
    for first in range(0, n, _ROWS):
        exact = np.asarray(vectors[first : first + _ROWS], dtype=np.float64)
        # By the largest element first, so that no square over- or underflows.
        largest = np.abs(exact).max(axis=1, keepdims=True, initial=0.0)
        if not np.isfinite(largest).all() or (largest == 0).any():
            _refuse(vectors, name, what)
        exact = exact / largest
        exact /= np.sqrt((exact * exact).sum(axis=1, keepdims=True))
        made[first : first + _ROWS] = exact
    return made


def _refuse(vectors: NDArray[np.floating], name: Callable[[int], str], what: str) -> None:
    exact = np.asarray(vectors, dtype=np.float64)
    finite = np.isfinite(exact).all(axis=1)
    if not finite.all():
        row = int(np.argmin(finite))
        value = exact[row][~np.isfinite(exact[row])][0]
        message = (
            f"{what} {name(row)!r} holds {value} ({int((~finite).sum())} such): "
            "leave it out, or apply a recipe that drops the feature"
        )
        raise SearchError(message)
    zero = ~exact.any(axis=1)
    row = int(np.argmax(zero))
    message = f"{what} {name(row)!r} is all zeros ({int(zero.sum())} such): it has no direction; leave it out"
    raise SearchError(message)


def slack(d: int) -> float:
    """Bound how far a product of two unit vectors of d elements, summed in single precision, is from the exact one.

    BLAS and FAISS sum in an order of their own, with eight accumulators at the least.
    """
    eps = float(np.finfo(np.float32).eps)
    return float(max(4 * eps * max(d**0.5, 4.0), (d / 8 + 8) * eps / 2))


def cosines(vectors: Vectors, rows: Rows, queries: Vectors) -> Vectors:
    """Cosine of each query with rows of its own, in double, rounded to single.

    The same for equal vectors wherever they stand, and for (a, b) and (b, a).

    Args:
        vectors: (n, d) of length 1.
        rows: (q, c) row numbers.
        queries: (q, d) of length 1.

    Returns:
        (q, c) float32, within [-1, 1].
    """
    q, c = rows.shape
    made = np.empty((q, c), dtype=np.float32)
    step = max(1, _PAIRS // max(c, 1))
    for first in range(0, q, step):
        part = slice(first, first + step)
        for begin in range(0, c, _PAIRS):
            chosen = rows[part, begin : begin + _PAIRS]
            products = vectors[chosen] * queries[part, None, :].astype(np.float64)
            made[part, begin : begin + _PAIRS] = products.sum(axis=2)
    return np.clip(made, -1.0, 1.0, out=made)
