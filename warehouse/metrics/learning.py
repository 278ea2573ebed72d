"""What metrics that learn or measure distances share: profiles without gaps, an order of their own, folds."""

from collections.abc import Hashable, Sequence
from hashlib import blake2b

import numpy as np
from numpy.typing import NDArray

from warehouse.errors import EvaluationError
from warehouse.metrics.score import check_length, row_name, unit_vectors

Floats = NDArray[np.float64]
Rows = NDArray[np.int64]
Mask = NDArray[np.bool_]

#: Elements beyond are refused where distances are measured, so that their squares neither over- nor underflow; and
#: profiles that have none as large as the least.
LARGEST = 1e30
LEAST = 1e-100


def finite_profiles(X: NDArray[np.floating], ids: Sequence[str] | None, used: Mask | None = None) -> Floats:
    """Return X (n, d) in float64; unlike a cosine, a distance needs no direction, so zeros are welcome.

    Args:
        X: profiles.
        ids: n names for messages.
        used: (n,) booleans; a row that is not may hold anything. None: all are.

    Raises:
        EvaluationError: X is not 2-D, `ids` do not fit, or a row that is used is not finite or has an element
            beyond `LARGEST`, or all elements are below `LEAST`, but for zeros.
    """
    if X.ndim != 2 or (ids is not None and len(ids) != len(X)):
        unit_vectors(X, ids)
    faulty = ~np.isfinite(X).all(axis=1)
    if used is not None:
        faulty &= used
    if faulty.any():
        unit_vectors(X, ids, faulty)
    found = np.asarray(X, dtype=np.float64)
    extent = np.abs(found).max(axis=1, initial=0.0)
    if used is not None:
        extent = np.where(used, extent, 0.0)
    if 0 < extent.max(initial=0.0) < LEAST:
        message = (
            f"no element of {len(found)} profiles is larger than {extent.max():g}: below {LEAST:g} distances are lost; "
            "apply a recipe that scales the features"
        )
        raise EvaluationError(message)
    large = extent > LARGEST
    if large.any():
        row = int(np.argmax(large))
        feature = int(np.argmax(np.abs(found[row])))
        message = (
            f"profile {row_name(row, ids)} has {found[row, feature]:g} in feature {feature + 1} "
            f"({int(large.sum())} such profiles), beyond {LARGEST:g}: leave it out, or apply a recipe that "
            "scales the feature"
        )
        raise EvaluationError(message)
    return found


def groups_of(compounds: Sequence[Hashable], X: Floats) -> list[str]:
    """Name what must not be parted: the compound, or the profile itself (by its content) where there is none."""
    return [
        f"compound {compound}"
        if compound is not None
        else f"profile {blake2b(row.tobytes(), digest_size=16).hexdigest()}"
        for compound, row in zip(compounds, X, strict=True)
    ]


def in_canonical_order(rows: Rows, X: Floats, *names: Sequence[object], elements_first: bool = False) -> Rows:
    """Sort rows by their names, then by their elements, so that nothing drawn depends on the order they came in.

    Args:
        rows: (m,) of n.
        X: (n, d) profiles.
        names: of the n rows, first to last by weight.
        elements_first: sort by elements, then by names, so that nothing depends on what groups are called either.
    """
    by_name = [np.array([str(name[row]) for row in rows.tolist()]) for name in names]
    by_element = list(X[rows].T)
    keys = [*by_element, *by_name] if elements_first else [*by_name, *by_element]
    return rows[np.lexsort(keys[::-1])] if keys else rows


def given_folds(metric: str, folds: Sequence[int] | NDArray[np.integer], n: int) -> Rows:
    """Check folds that were brought, (n,) with -1 for a row in none.

    Raises:
        EvaluationError: their number is not n, or they are fewer than two.
    """
    check_length("folds", folds, n)
    fold = np.asarray(folds, dtype=np.int64)
    there = np.unique(fold[fold >= 0])
    if len(there) < 2:
        message = (
            f"{metric}: the folds given are {', '.join(map(str, there)) or 'empty'}: give at least two, "
            "since each is predicted by the others"
        )
        raise EvaluationError(message)
    return fold


def draw_folds(metric: str, groups: Sequence[str], folds: int, seed: int) -> Rows:
    """Deal whole groups into folds of nearly the same number of groups, (n,) texts to (n,) numbers.

    Raises:
        EvaluationError: there are fewer groups than folds.
    """
    names, group = np.unique(np.asarray(groups, dtype=object).astype(str), return_inverse=True)
    require_groups(metric, len(names), folds)
    dealt = np.random.default_rng(seed).permutation(len(names)) % folds
    return np.asarray(dealt[group], dtype=np.int64)


def require_groups(metric: str, there: int, folds: int) -> None:
    """Raise `EvaluationError` unless whole compounds can be dealt into this many folds, two at the least."""
    if folds < 2 or there < folds:
        message = (
            f"{metric}: {folds} folds of {there} compounds: a compound stays whole; "
            "take at least two folds and no more than compounds, or give folds"
        )
        raise EvaluationError(message)


def scaled(X: Floats, training: Rows | Mask) -> Floats:
    """Scale the features of all rows by mean and standard deviation of the training rows alone, (n, d).

    A feature that is constant in training is only centred.
    """
    from sklearn.preprocessing import StandardScaler

    made: Floats = StandardScaler().fit(X[training]).transform(X)
    return made
