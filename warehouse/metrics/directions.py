"""Directions whose cosine is the cosine or the correlation of profiles, and the similarities within small groups."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from warehouse.errors import EvaluationError
from warehouse.metrics.order import Sharing
from warehouse.metrics.passes import Vectors
from warehouse.metrics.score import row_name, unit_vectors
from warehouse.names import unknown

Rows = NDArray[np.int64]
Floats = NDArray[np.float64]
Mask = NDArray[np.bool_]

SIMILARITIES = ("correlation", "cosine")
#: Elements of gathered profiles that are held at a time: 32 MiB.
HELD = 2**22
#: Of a set of up to so many wells all pairs are compared; of a larger one those within so many teams of so many wells.
WHOLE, TEAMS, TEAM = 128, 8, 64


def directed(X: NDArray[np.floating], ids: Sequence[str] | None, similarity: str, compared: Mask) -> Vectors:
    """Give vectors of length 1 whose cosine is the similarity: Pearson's correlation is that of centred profiles.

    Args:
        X: (n, d) profiles.
        ids: n names for messages.
        similarity: of `SIMILARITIES`.
        compared: (n,) booleans; what the other rows hold does not matter.

    Raises:
        EvaluationError: a compared profile is zero, not finite or, for the correlation, the same in every feature.
        UnknownNameError: `similarity` is in no list.
    """
    if similarity not in SIMILARITIES:
        raise unknown(similarity, "similarity", SIMILARITIES)
    unit = unit_vectors(X, ids, compared)
    if similarity == "cosine":
        return Vectors.of(unit, ids)
    centred = unit - unit.mean(axis=1, keepdims=True)
    # What is left of a constant profile is the rounding of its mean.
    centred[np.abs(centred).max(axis=1, initial=0.0) < 1e-12] = 0
    flat = compared & ~centred.any(axis=1)
    if flat.any():
        row = int(np.argmax(flat))
        message = (
            f"profile {row_name(row, ids)} is the same in every feature ({int(flat.sum())} such profiles): it has no "
            "correlation; leave it out, or compare by cosine"
        )
        raise EvaluationError(message)
    return Vectors.of(centred, ids)


def members(sets: Sequence[frozenset[str]]) -> dict[str, Rows]:
    """Give the rows of each label, (c,) ascending; labels in alphabetical order."""
    found: dict[str, list[int]] = {}
    for row, labels in enumerate(sets):
        for label in labels:
            found.setdefault(label, []).append(row)
    return {label: np.array(found[label], dtype=np.int64) for label in sorted(found)}


def canonical(vectors: Vectors, rows: Rows, sets: Sequence[frozenset[str]]) -> Rows:
    """Put rows in an order that does not depend on the one they came in: by what their profiles project to.

    The direction they are projected to is fixed for each number of features. Equal profiles stand by their labels.
    """
    onto = np.random.default_rng(vectors.exact_unit.shape[1]).normal(size=vectors.exact_unit.shape[1])
    along = np.round(vectors.exact_unit[rows] @ onto, 9).tolist()
    keys = [(place, sorted(sets[row])) for place, row in zip(along, rows.tolist(), strict=True)]
    return rows[sorted(range(len(rows)), key=keys.__getitem__)]


def grams(vectors: Vectors, rows: Rows) -> Floats:
    """Cosines within each of g groups of c rows, (g, c) to (g, c, c), rounded to 12 decimals."""
    unit = vectors.exact_unit[rows]
    return np.asarray(np.round(unit @ unit.transpose(0, 2, 1), 12))


def teams(size: int) -> tuple[int, int]:
    """Give in how many teams of how many wells a set is compared: one of all, or of a large set several."""
    return (1, size) if size <= WHOLE else (min(TEAMS, size // TEAM), TEAM)


def medians(vectors: Vectors, rows: Rows, *apart: Sharing | None) -> Floats:
    """Median similarity of the pairs within the teams of each set that share nothing in `apart`.

    Args:
        vectors: n of them.
        rows: (g, t, c) row numbers: g sets of t teams of c.
        apart: pairs that share in one of these are not counted.

    Returns:
        (g,) medians; NaN where no pair is left.
    """
    count, groups, size = rows.shape
    made = np.full(count, np.nan)
    one, other = np.triu_indices(size, 1)
    if len(one) == 0:
        return made
    step = max(1, HELD // (groups * size * max(size, vectors.exact_unit.shape[1])))
    for first in range(0, count, step):
        part = rows[first : first + step].reshape(-1, size)
        near = grams(vectors, part)[:, one, other]
        for sharing in apart:
            if sharing is not None:
                shared = sharing.pairs(part[:, one].ravel(), part[:, other].ravel())
                near[shared.reshape(near.shape)] = np.nan
        near = near.reshape(-1, groups * len(one))
        if np.isnan(near).any():
            there = ~np.isnan(near).all(axis=1)
            made[first : first + step][there] = np.nanmedian(near[there], axis=1)
        else:
            made[first : first + step] = np.median(near, axis=1)
    return made


def own_median(
    vectors: Vectors, rows: Rows, sets: Sequence[frozenset[str]], apart: Sharing | None, seed: int
) -> float:
    """Median similarity of the pairs of a group, (c,) ascending, that do not share in `apart`; NaN if there is none.

    Of a large group that of teams, dealt by seed to wells in an order that their profiles decide; where no pair of
    these counts, that of all pairs.
    """
    count, size = teams(len(rows))
    if count == 1:
        return float(medians(vectors, rows[None, None], apart)[0])
    mixed = np.random.default_rng([seed, len(rows)]).permutation(canonical(vectors, rows, sets))
    found = float(medians(vectors, mixed[: count * size].reshape(1, count, size), apart)[0])
    if apart is None or not np.isnan(found):
        return found
    near = [np.empty(0)]
    for part in np.array_split(np.arange(len(rows)), 1 + len(rows) ** 2 // HELD):
        counted = ~apart(rows[part], rows) & (np.arange(len(rows)) > part[:, None])
        if counted.any():
            near.append((vectors.exact_unit[rows[part]] @ vectors.exact_unit[rows].T)[counted])
    every = np.round(np.concatenate(near), 12)
    return float(np.median(every)) if len(every) else np.nan
