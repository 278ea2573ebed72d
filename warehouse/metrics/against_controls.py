"""How far a treatment's replicates stand from the negative controls: grit and mp-value."""

from collections.abc import Sequence

import numpy as np
import polars as pl
from numpy.typing import NDArray

from warehouse.errors import EvaluationError
from warehouse.metrics.directions import canonical, directed, members
from warehouse.metrics.order import exactly
from warehouse.metrics.passes import BLOCK
from warehouse.metrics.score import (
    Labels,
    Score,
    check_length,
    codes,
    count_reasons,
    label_sets,
    no_queries,
    require_queries,
)

Rows = NDArray[np.int64]
Floats = NDArray[np.float64]
Mask = NDArray[np.bool_]

#: Share of the variance that the components of `mp_value` keep.
VARIANCE = 0.9
#: What rounding alone makes of the spread of equal similarities.
FLAT = 1e-9
#: Share of the largest variance below which there is none, in `mp_value`.
SINGULAR = 1e-12
#: Share of the variance of all wells in some direction that the rest of a deal has, below which the pseudo-inverse
#: decides. (The last component has a tenth of the whole variance, by the number of features, at the least.)
DOUBTFUL = 1e-6
#: Elements of the deals that are held at a time: 32 MiB.
DEALT = 2**22


def grit(
    X: NDArray[np.floating],
    labels: Labels,
    controls: Sequence[bool] | Mask,
    plates: Sequence[str],
    ids: Sequence[str] | None = None,
    *,
    similarity: str = "correlation",
    same_plate: bool = False,
) -> Score:
    """Mean z-score of a well's similarities with its group, by its similarities with the negative controls.

    z = (s - mean) / sd over the similarities of this well with the controls, sd over their number (not less one); the
    mean of z over the other wells of its group; the mean over wells. A well with several labels has the mean over all
    that share one.

    Args:
        X: (n, d) wells.
        labels: n sets of labels: the group, here the treatment.
        controls: n booleans, true for a negative control; its labels do not matter.
        plates: n plates.
        ids: n names for messages.
        similarity: ``"correlation"`` or ``"cosine"``.
        same_plate: compare with controls and wells of the well's own plate only.

    Returns:
        A score; `per_query` has row, value (grit of the well), n (others of its group); `per_group` has label, value
        (mean of its wells), n_queries.

    Raises:
        EvaluationError: a well is zero, constant or not finite, a length differs, or no well is left: it needs another
            of its group and two controls that differ in similarity.
        UnknownNameError: `similarity` is in no list.

    Source:
        cytominer-eval, `grit` (z-scores, mean over replicates).
    """
    n = len(X)
    for what, values in (("labels", labels), ("controls", controls), ("plates", plates)):
        check_length(what, values, n)
    is_control, sets = _split(labels, controls)
    labelled = np.array([bool(row) for row in sets], dtype=bool)
    vectors = directed(X, ids, similarity, labelled | is_control)
    plate = codes(plates)
    reference = np.flatnonzero(is_control)
    groups = members(sets)
    reasons: list[str | None] = _reasons(labelled, is_control)
    values, others = np.full(n, np.nan), np.zeros(n, np.int64)
    wells = np.flatnonzero(labelled)
    for part in np.array_split(wells, 1 + len(wells) * len(reference) // BLOCK):
        far = np.round(vectors.exact_unit[part] @ vectors.exact_unit[reference].T, 12)
        for row, against in zip(part.tolist(), far, strict=True):
            alike = np.unique(np.concatenate([groups[label] for label in sets[row]]))
            alike = alike[alike != row]
            if same_plate:
                alike = alike[plate[alike] == plate[row]]
                against = against[plate[reference] == plate[row]]
            others[row] = len(alike)
            if len(alike) == 0:
                reasons[row] = "no replicate"
            elif len(against) < 2:
                reasons[row] = "fewer than two controls"
            elif against.std() < FLAT:
                reasons[row] = "controls all alike"
            else:
                near = exactly(vectors, np.full(len(alike), row), alike)
                values[row] = ((near - against.mean()) / against.std()).mean()
    queries = np.flatnonzero(~np.isnan(values))
    left = count_reasons(reasons)
    require_queries("grit", len(queries), left)
    scored = {label: rows[~np.isnan(values[rows])] for label, rows in groups.items()}
    scored = {label: rows for label, rows in scored.items() if len(rows)}
    per_group = pl.DataFrame(
        {
            "label": list(scored),
            "value": [float(values[rows].mean()) for rows in scored.values()],
            "n_queries": [len(rows) for rows in scored.values()],
        }
    )
    per_query = pl.DataFrame({"row": queries, "value": values[queries], "n": others[queries]})
    return Score(float(values[queries].mean()), len(queries), None, per_query, per_group, left)


def mp_value(
    X: NDArray[np.floating],
    labels: Labels,
    controls: Sequence[bool] | Mask,
    ids: Sequence[str] | None = None,
    *,
    permutations: int = 100,
    alpha: float = 0.05,
    seed: int = 0,
) -> Score:
    """Share of treatments that stand apart from the negative controls: whose mp-value is below alpha.

    For each treatment: principal components of its wells and the controls together, as many as keep 90 % of the
    variance; the Mahalanobis distance of the mean of its wells from that of the controls, by the controls' covariance
    (over their number; a pseudo-inverse where it is singular: where the variance in some direction is below 1e-12 of
    the largest); the same after dealing the wells anew to treatment and
    controls. The mp-value is the share of deals whose distance is at least as large. (cytominer-eval also scales the
    components, which changes no such distance.)

    Args:
        X: (n, d) wells.
        labels: n sets of labels: the treatment.
        controls: n booleans, true for a negative control; its labels do not matter.
        ids: n names for messages.
        permutations: how many deals.
        alpha: below which a treatment counts.
        seed: of the deals, which depend, further, on the numbers of wells and controls only; they are applied to wells
            in an order that their profiles alone decide. A treatment's mp-value so depends on itself and the controls.

    Returns:
        A score over treatments: `per_group` has label, value (1 below alpha), mp_value, distance (squared), n (wells).

    Raises:
        EvaluationError: a well is zero or not finite, a length differs, permutations or alpha does not fit, there are
            fewer than two controls, they are all alike, or no treatment is left.

    Source:
        Hutz et al. 2013; cytominer-eval, `mp_value`.
    """
    n = len(X)
    check_length("labels", labels, n)
    check_length("controls", controls, n)
    if permutations < 1:
        message = f"mp_value: permutations is {permutations}; it must be at least 1"
        raise EvaluationError(message)
    if not 0 < alpha < 1:
        message = f"mp_value: alpha is {alpha}: take one between 0 and 1, such as 0.05"
        raise EvaluationError(message)
    is_control, sets = _split(labels, controls)
    labelled = np.array([bool(row) for row in sets], dtype=bool)
    vectors = directed(X, ids, "cosine", labelled | is_control)
    reference = np.flatnonzero(is_control)
    left = count_reasons(_reasons(labelled, is_control))
    if len(reference) < 2:
        message = f"mp_value: {len(reference)} negative controls among {n} wells: give at least two"
        raise EvaluationError(message)
    groups = members(sets)
    require_queries("mp_value", len(groups), left)
    profiles = np.asarray(X, dtype=np.float64)
    profiles = profiles / np.abs(profiles[labelled | is_control]).max()
    spread = profiles[reference].std(axis=0)
    if not (spread > 1e-12).any():
        message = f"mp_value: all {len(reference)} negative controls are alike: they have no covariance"
        raise EvaluationError(message)
    reference = canonical(vectors, reference, sets)
    measured = {}
    for label, rows in groups.items():
        own = canonical(vectors, rows, sets)
        deals = _deals(len(own), len(own) + len(reference), permutations, seed)
        measured[label] = _distances(profiles[np.concatenate([own, reference])], deals)
    chance = [float((found[1:] >= found[0] * (1 - 1e-9)).mean()) for found in measured.values()]
    per_group = pl.DataFrame(
        {
            "label": list(groups),
            "value": [float(value < alpha) for value in chance],
            "mp_value": chance,
            "distance": [float(found[0]) for found in measured.values()],
            "n": [len(rows) for rows in groups.values()],
        }
    )
    correct = int(per_group["value"].sum())
    empty = no_queries()
    return Score(correct / len(groups), len(groups), correct, empty, per_group, left, "group")


def _split(labels: Labels, controls: Sequence[bool] | Mask) -> tuple[Mask, list[frozenset[str]]]:
    """Give who is a control, and the labels of all others."""
    is_control = np.array(controls, dtype=bool)
    sets = label_sets(labels)
    return is_control, [frozenset() if c else row for row, c in zip(sets, is_control, strict=True)]


def _reasons(labelled: Mask, is_control: Mask) -> list[str | None]:
    return [
        "negative control" if control else None if used else "no label"
        for used, control in zip(labelled, is_control, strict=True)
    ]


def _deals(size: int, total: int, permutations: int, seed: int) -> Rows:
    """Places (1 + permutations, size) of the treatment's wells among all: as they are, then dealt anew."""
    rng = np.random.default_rng([seed, size, total])
    dealt = [rng.permutation(total)[:size] for _ in range(permutations)]
    return np.stack([np.arange(size), *dealt])


def _distances(wells: Floats, deals: Rows) -> Floats:
    """Squared Mahalanobis distance of the mean of the wells of each deal from the mean of the rest.

    With scores Y (rows summing to zero) of scatter L and r wells P dealt out of r + c, the scatter of the rest about
    its mean is A = L - VᵀV, V = [P; s/√c], s the sum of P; the difference of the means is s (1/r + 1/c). In units in
    which L is 1, sᵀA⁻¹s is sᵀ(1 - VᵀV)⁻¹s, or by Woodbury sᵀs + hᵀ(1 - VVᵀ)⁻¹h, h = Vs: whichever is smaller. The
    smallest eigenvalue of either is how much of its variance the rest has kept in any direction.
    """
    total, size = len(wells), deals.shape[1]
    rest = total - size
    centred = wells - wells.mean(axis=0)
    # Of the two products of scores, the one with fewer rows.
    is_tall = total > centred.shape[1]
    variance, directions = np.linalg.eigh(centred.T @ centred if is_tall else centred @ centred.T)
    variance, directions = np.maximum(variance[::-1], 0), directions[:, ::-1]
    share = np.cumsum(variance) / variance.sum()
    kept = int(np.searchsorted(share, VARIANCE, side="right")) + 1
    variance, directions = variance[:kept], directions[:, :kept]
    scores = centred @ directions if is_tall else directions * np.sqrt(variance)
    if kept > rest - 1:
        return np.array([_by_pseudo_inverse(scores, own) for own in deals])
    scaled = scores / np.sqrt(variance)
    step = max(1, DEALT // (size * kept + min(size + 1, kept) ** 2))
    quadratic, smallest = np.empty(len(deals)), np.empty(len(deals))
    for first in range(0, len(deals), step):
        part = slice(first, first + step)
        dealt = scaled[deals[part]]
        sums = dealt.sum(axis=1)
        v = np.concatenate([dealt, sums[:, None] / np.sqrt(rest)], axis=1)
        is_wide = kept > size + 1
        scatter = v @ v.transpose(0, 2, 1) if is_wide else v.transpose(0, 2, 1) @ v
        values, axes = np.linalg.eigh(np.eye(scatter.shape[1]) - scatter)
        smallest[part] = values[:, 0]
        h = (v @ sums[:, :, None] if is_wide else sums[:, :, None]).transpose(0, 2, 1) @ axes
        with np.errstate(divide="ignore", invalid="ignore"):
            found = (h[:, 0] ** 2 / values).sum(axis=1)
        quadratic[part] = found + (sums**2).sum(axis=1) if is_wide else found
    made = rest * (1 / size + 1 / rest) ** 2 * quadratic
    for i in np.flatnonzero(~(smallest > DOUBTFUL)).tolist():
        made[i] = _by_pseudo_inverse(scores, deals[i])
    return np.asarray(made)


def _by_pseudo_inverse(scores: Floats, own: Rows) -> float:
    """The same where the covariance of the rest is singular."""
    is_rest = np.ones(len(scores), dtype=bool)
    is_rest[own] = False
    rest = scores[is_rest]
    difference = scores[own].mean(axis=0) - rest.mean(axis=0)
    inverse = np.linalg.pinv(
        np.cov(rest.T, bias=True).reshape(len(difference), -1), rcond=SINGULAR, hermitian=True
    )
    return float(difference @ inverse @ difference)
