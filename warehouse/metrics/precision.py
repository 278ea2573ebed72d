"""Average precision of retrieving matches, by blocks of queries and without a list of pairs."""

from collections.abc import Callable, Hashable, Sequence

import numpy as np
import polars as pl
from numpy.typing import NDArray

from warehouse.errors import EvaluationError
from warehouse.metrics.score import (
    Labels,
    Score,
    Vectors,
    check_length,
    codes,
    count_reasons,
    label_sets,
    membership,
    require_queries,
    unit_vectors,
)
from warehouse.names import unknown

TIES = ("copairs", "averaged")
BLOCK = 2**20  # similarities held at a time
FEW = 24  # up to so many matches, counting beats sorting a query's non-matches

Rows = NDArray[np.intp]
Mask = NDArray[np.bool_]
Pairs = Callable[[Rows], Mask]


def average_precision(
    X: NDArray[np.floating],
    metadata: pl.DataFrame,
    pos_sameby: Sequence[str],
    pos_diffby: Sequence[str],
    neg_sameby: Sequence[str],
    neg_diffby: Sequence[str],
    *,
    ties: str = "copairs",
    ids: Sequence[str] | None = None,
) -> pl.DataFrame:
    """Average precision of every profile's matches among its matches and non-matches, by cosine.

    A match (non-match) has equal values in every column of `pos_sameby` (`neg_sameby`) and different ones in
    every column of `pos_diffby` (`neg_diffby`). AP = mean over the matches of i / rank of the i-th.

    Args:
        X: (n, d) profiles.
        metadata: n rows with the columns named; they hold no null.
        pos_sameby: columns alike in a match.
        pos_diffby: columns that differ in a match.
        neg_sameby: columns alike in a non-match.
        neg_diffby: columns that differ in a non-match.
        ties: ``"copairs"``: a match goes before a non-match that is equally near (in float32, as copairs
            compares them); ``"averaged"``: the mean over all orders of equally near profiles.
        ids: n names for messages.

    Returns:
        The metadata with average_precision (null where there is no match), n_matches, n_total.

    Raises:
        EvaluationError: a profile is zero or not finite, a column holds a null, or no rule is given.
        UnknownNameError: a column or `ties` is in no list.

    Source:
        Kalinin et al. 2025; copairs 0.5.5 `average_precision`. Averaged ties: McSherry & Najork 2008.
    """
    unit = unit_vectors(X, ids)
    check_length("rows of metadata", range(len(metadata)), len(unit))
    positive = _pairs(metadata, pos_sameby, pos_diffby, "match")
    negative = _pairs(metadata, neg_sameby, neg_diffby, "non-match")
    precision, matches, total = _rank(unit, np.arange(len(unit)), positive, negative, ties)
    return metadata.with_columns(
        pl.Series("average_precision", precision, pl.Float64).fill_nan(None),
        pl.Series("n_matches", matches, pl.Int64),
        pl.Series("n_total", total, pl.Int64),
    )


def mean_average_precision(precisions: pl.DataFrame, sameby: Sequence[str]) -> Score:
    """Mean of `average_precision` per group, and the mean of the groups.

    Args:
        precisions: what `average_precision` returned.
        sameby: the columns that make a group.

    Returns:
        A score over groups: `per_group` has the group, mean_average_precision and n_queries. A profile
        without a match is left out and counted; a group with no other is not there.

    Raises:
        EvaluationError: no profile has a match.
        UnknownNameError: a column is not there.
    """
    _known(precisions, sameby)
    counted = precisions.filter(pl.col("average_precision").is_not_null())
    left = {"no match": len(precisions) - len(counted)} if len(counted) < len(precisions) else {}
    return _grouped("mean average precision", counted, list(sameby), left)


def map_vs_controls(
    X: NDArray[np.floating],
    treatments: Sequence[Hashable],
    plates: Sequence[Hashable],
    controls: Sequence[bool] | NDArray[np.bool_],
    ids: Sequence[str] | None = None,
    *,
    ties: str = "copairs",
) -> Score:
    """Mean average precision of a treatment's replicates against the negative controls of their plate.

    Args:
        X: (n, d) wells.
        treatments: n treatments, None for a well without one; what a control has here does not matter.
        plates: n plates; wells are compared within a plate only.
        controls: n booleans, true for a negative control.
        ids: n names for messages.
        ties: as in `average_precision`.

    Returns:
        A score over treatments: `per_group` has treatment, mean_average_precision, n_queries (wells);
        `per_query` has row, treatment, average_precision, n_matches, n_total.

    Raises:
        EvaluationError: a profile is zero or not finite, or no well has a replicate and a control.

    Source:
        Kalinin et al. 2025, phenotypic activity.
    """
    unit = unit_vectors(X, ids)
    for what, values in (("treatments", treatments), ("plates", plates), ("controls", controls)):
        check_length(what, values, len(unit))
    control = np.asarray(controls, dtype=bool)
    treatment = np.where(control, -1, codes(treatments))
    plate = codes(plates)
    reasons: list[str | None] = [
        "no treatment" if t < 0 and not c else None for t, c in zip(treatment, control, strict=True)
    ]
    parts = []
    for number in range(plate.max(initial=-1) + 1):
        on = np.flatnonzero(plate == number)
        queries = np.flatnonzero(treatment[on] >= 0)
        group, is_control = treatment[on], control[on]

        def replicate(block: Rows, group: NDArray[np.int64] = group) -> Mask:
            return np.asarray(group[block, None] == group)

        def against(block: Rows, is_control: Mask = is_control) -> Mask:
            return np.broadcast_to(is_control, (len(block), len(is_control)))

        precision, matches, total = _rank(unit[on], queries, replicate, against, ties)
        for row, m, t in zip(on[queries], matches, total, strict=True):
            if m == 0 or m == t:
                reasons[row] = "no replicate on its plate" if m == 0 else "no negative control on its plate"
        parts.append(
            pl.DataFrame(
                {
                    "row": on[queries],
                    "treatment": [treatments[row] for row in on[queries]],
                    "average_precision": precision,
                    "n_matches": matches,
                    "n_total": total,
                }
            )
        )
    every = pl.concat(parts) if parts else pl.DataFrame(schema=["row", "treatment", "average_precision"])
    counted = every.filter(pl.Series([reasons[row] is None for row in every["row"]], dtype=pl.Boolean))
    return _grouped("map_vs_controls", counted.sort("row"), ["treatment"], count_reasons(reasons))


def map_labels(
    X: NDArray[np.floating],
    labels: Labels,
    compounds: Sequence[Hashable] | None = None,
    ids: Sequence[str] | None = None,
    *,
    ties: str = "copairs",
) -> Score:
    """Mean average precision of treatments that share a label, among all labelled treatments.

    Args:
        X: (n, d) treatment profiles.
        labels: n sets of labels, or n texts; a treatment without label is neither query nor in the library.
        compounds: n compounds; where given, other concentrations of the query's are left out of its library.
        ids: n names for messages.
        ties: as in `average_precision`.

    Returns:
        A score over queries, which are the treatments with at least one match; `per_query` has row,
        average_precision, n_matches, n_total; `per_group` the mean over the queries of each label.

    Raises:
        EvaluationError: a profile is zero or not finite, or no treatment has a match.

    Source:
        Kalinin et al. 2025 for AP; Moshkov et al. 2024 for query, library and match (there interpolated).
    """
    check_length("labels", labels, len(X))
    sets = label_sets(labels)
    reasons: list[str | None] = [None if row else "no label" for row in sets]
    member = membership(sets)
    labelled = np.array([bool(row) for row in sets], dtype=bool)
    unit = unit_vectors(X, ids, labelled)
    compound = np.full(len(unit), -1)
    if compounds is not None:
        check_length("compounds", compounds, len(unit))
        compound = codes(compounds)

    def library(block: Rows) -> Mask:
        same = (compound[block, None] == compound) & (compound[block, None] >= 0)
        return np.asarray(labelled & ~same)

    def match(block: Rows) -> Mask:
        return np.asarray((member[block] @ member.T > 0) & library(block))

    def other(block: Rows) -> Mask:
        return np.asarray((member[block] @ member.T == 0) & library(block))

    queries = np.flatnonzero(labelled)
    precision, matches, total = _rank(unit, queries, match, other, ties)
    for row in queries[matches == 0]:
        reasons[row] = "no match"
    per_query = pl.DataFrame(
        {"row": queries, "average_precision": precision, "n_matches": matches, "n_total": total}
    ).filter(pl.col("n_matches") > 0)
    left = count_reasons(reasons)
    require_queries("map_labels", len(per_query), left)
    per_label = per_query.with_columns(pl.Series("label", [sorted(sets[row]) for row in per_query["row"]]))
    groups = _means(per_label.explode("label"), ["label"])
    value = float(per_query["average_precision"].to_numpy().mean())
    return Score(value, len(per_query), None, per_query, groups, left)


def _rank(
    unit: Vectors, queries: Rows, positive: Pairs, negative: Pairs, ties: str
) -> tuple[NDArray[np.float64], NDArray[np.int64], NDArray[np.int64]]:
    """Return average precision (NaN without a match), number of matches and of all ranked, per query."""
    if ties not in TIES:
        raise unknown(ties, "rule for ties", TIES)
    precision = np.full(len(queries), np.nan)
    matches = np.zeros(len(queries), np.int64)
    total = np.zeros(len(queries), np.int64)
    step = max(1, BLOCK // max(len(unit), 1))
    for start in range(0, len(queries), step):
        block = queries[start : start + step]
        # In float32 after a product in float64: profiles that are equally near are so in every block.
        distance = np.float32(1) - (unit[block] @ unit.T).astype(np.float32)
        is_match, is_other = positive(block).copy(), negative(block).copy()
        itself = (np.arange(len(block)), block)
        is_match[itself] = is_other[itself] = False
        other = np.where(is_other, distance, np.float32(np.inf))
        matches[start : start + step] = is_match.sum(axis=1)
        total[start : start + step] = is_match.sum(axis=1) + is_other.sum(axis=1)
        for row in np.flatnonzero(is_match.any(axis=1)):
            near = np.sort(distance[row][is_match[row]])
            value = _favouring(near, other[row]) if ties == "copairs" else _averaged(near, other[row])
            precision[start + row] = value
    return precision, matches, total


def _favouring(near: NDArray[np.float32], other: NDArray[np.float32]) -> float:
    """AP of sorted match distances; among equals a match goes first."""
    if len(near) <= FEW:
        before = np.array([np.count_nonzero(other < distance) for distance in near])
    else:
        before = np.searchsorted(np.sort(other), near, side="left")
    i = np.arange(1, len(near) + 1)
    return float((i / (i + before)).mean())


def _averaged(near: NDArray[np.float32], other: NDArray[np.float32]) -> float:
    """AP of sorted match distances, its mean over all orders of equals."""
    ordered = np.sort(other)
    values, counts = np.unique(near, return_counts=True)
    below = np.searchsorted(ordered, values, side="left")
    tied = np.searchsorted(ordered, values, side="right") - below
    found, total = 0, 0.0
    for p, n, q in zip(counts.tolist(), below.tolist(), tied.tolist(), strict=True):
        # Place j of p + q equals holds a match with chance p/(p+q), (j-1)(p-1)/(p+q-1) of them before it.
        j = np.arange(1, p + q + 1)
        earlier = (j - 1) * (p - 1) / max(p + q - 1, 1)
        total += float((p / (p + q) * (found + 1 + earlier) / (found + n + j)).sum())
        found += p
    return total / found


def _pairs(metadata: pl.DataFrame, sameby: Sequence[str], diffby: Sequence[str], what: str) -> Pairs:
    """Return the mask (queries, n) of pairs alike in `sameby` and different in each of `diffby`."""
    both = sorted(set(sameby) & set(diffby))
    if both or not (*sameby, *diffby):
        fault = f"column {both[0]!r} is in sameby and diffby" if both else "no column is given"
        message = f"rule for a {what}: {fault}: name the columns that are alike and those that differ"
        raise EvaluationError(message)
    _known(metadata, [*sameby, *diffby])
    coded = {}
    for column in (*sameby, *diffby):
        coded[column] = codes(metadata[column].to_list())
        if (coded[column] < 0).any():
            row = int(np.argmin(coded[column]))
            message = f"column {column!r} is null in row {row}: fill it or leave the profile out"
            raise EvaluationError(message)

    def mask(block: Rows) -> Mask:
        result = np.ones((len(block), len(metadata)), dtype=bool)
        for column in sameby:
            result &= coded[column][block, None] == coded[column]
        for column in diffby:
            result &= coded[column][block, None] != coded[column]
        return result

    return mask


def _known(frame: pl.DataFrame, columns: Sequence[str]) -> None:
    for column in columns:
        if column not in frame.columns:
            raise unknown(column, "column of the metadata", frame.columns)


def _means(precisions: pl.DataFrame, sameby: list[str]) -> pl.DataFrame:
    mean = pl.col("average_precision").mean().alias("mean_average_precision")
    return precisions.group_by(sameby).agg(mean, pl.len().cast(pl.Int64).alias("n_queries")).sort(sameby)


def _grouped(metric: str, counted: pl.DataFrame, sameby: list[str], left: dict[str, int]) -> Score:
    require_queries(metric, len(counted), left)
    groups = _means(counted, sameby)
    value = float(groups["mean_average_precision"].to_numpy().mean())
    return Score(value, len(groups), None, counted, groups, left)
