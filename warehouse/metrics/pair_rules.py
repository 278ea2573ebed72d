"""Average precision by rules over columns of metadata, as copairs states them."""

from collections.abc import Sequence

import numpy as np
import polars as pl
from numpy.typing import NDArray

from warehouse.errors import EvaluationError
from warehouse.metrics.mean_precision import Chance, by_query
from warehouse.metrics.passes import Arrays, Host, Vectors
from warehouse.metrics.ranking import Ranking
from warehouse.metrics.relations import Groups, Relation
from warehouse.metrics.score import Score, check_length, codes, require_queries
from warehouse.names import unknown

Codes = NDArray[np.int64]

#: Columns that results have.
RESERVED = frozenset(
    {"row", "value", "normalised_value", "n_matches", "n_total", "n_queries", "p_value", "q_value"}
)


def average_precision(
    X: NDArray[np.floating],
    metadata: pl.DataFrame,
    pos_sameby: Sequence[str],
    pos_diffby: Sequence[str],
    neg_sameby: Sequence[str],
    neg_diffby: Sequence[str],
    *,
    ties: str = "averaged",
    ids: Sequence[str] | None = None,
    arrays: Arrays | None = None,
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
        ties: ``"averaged"``, ``"copairs"`` or ``"threshold"``; see `ranking.precision`. Equal are distances that
            are so in float32, as copairs compares them.
        ids: n names for messages.
        arrays: where products are made; None: NumPy.

    Returns:
        The metadata with average_precision and normalised_average_precision (null where there is no match),
        n_matches, n_total.

    Raises:
        EvaluationError: a profile is zero or not finite, a column holds a null, or no rule is given.
        UnknownNameError: a column or `ties` is in no list.

    Source:
        Kalinin et al. 2025; copairs 0.5.5 `average_precision`.
    """
    vectors = Vectors.of(X, ids)
    n = len(vectors)
    check_length("rows of metadata", range(len(metadata)), n)
    coded = {
        **_codes(metadata, pos_sameby, pos_diffby, "match"),
        **_codes(metadata, neg_sameby, neg_diffby, "non-match"),
    }
    match = Groups.of_codes(_joint(coded, pos_sameby, n))
    unless = tuple(Groups.of_codes(coded[column]) for column in pos_diffby)
    part = _joint(coded, neg_sameby, n)
    # Within a part, so that a row's groups there hold no row of another.
    left_out = tuple(Groups.of_codes(_joint({**coded, "": part}, ["", column], n)) for column in neg_diffby)
    every = np.ones(n, dtype=bool)
    value, matches, total = np.full(n, np.nan), np.zeros(n, np.int64), np.zeros(n, np.int64)
    vectors.require()
    for number in range(int(part.max(initial=-1)) + 1):
        inside = every if len(neg_sameby) == 0 else part == number
        ranking = Ranking(vectors, Relation(inside, inside, match, unless, left_out), ties)
        ranking.run(arrays or Host())
        value[inside], matches[inside] = ranking.value[inside], ranking.matches[inside]
        total[inside] = ranking.total[inside]
    made = by_query(np.arange(n), value, matches, total)
    return metadata.with_columns(
        made["value"].fill_nan(None).alias("average_precision"),
        made["normalised_value"].alias("normalised_average_precision"),
        made["n_matches"],
        made["n_total"],
    )


def mean_average_precision(
    precisions: pl.DataFrame,
    sameby: Sequence[str],
    *,
    null: int = 10_000,
    seed: int = 0,
    count_equal: bool = False,
) -> Score:
    """Mean of `average_precision` per group, with p-values, and the mean of the groups.

    Args:
        precisions: what `average_precision` returned.
        sameby: the columns that make a group.
        null: draws of chance for the p-values; 0: none.
        seed: of the draws.
        count_equal: whether draws that equal a value count against it; copairs counts larger ones only.

    Returns:
        A score over groups: `per_group` has the group, value (mean average precision), n_queries, normalised_value,
        p_value and q_value. A profile without a match, or without a value in a column, is left out and counted; a
        group with no other is not there.

    Raises:
        EvaluationError: no profile has a match, or a column has a name that the result needs.
        UnknownNameError: a column is not there.

    Source:
        copairs 0.5.5 `mean_average_precision`.
    """
    _known(precisions, sameby)
    for column in sameby:
        if column in RESERVED:
            message = f"column {column!r} cannot name a group: the table of the groups has one of its own; rename it"
            raise EvaluationError(message)
    queries = pl.DataFrame(
        [
            pl.Series("row", np.arange(len(precisions))),
            precisions["average_precision"].alias("value"),
            precisions["normalised_average_precision"].alias("normalised_value"),
            precisions["n_matches"],
            precisions["n_total"],
            *precisions.select(sameby),
        ]
    )
    counted = queries.filter(pl.col("value").is_not_null())
    left = {"no match": len(queries) - len(counted)}
    grouped = counted.drop_nulls(list(sameby))
    left["no group"] = len(counted) - len(grouped)
    counted, left = grouped, {reason: number for reason, number in left.items() if number}
    require_queries("mean average precision", len(counted), left)
    groups = Chance(null, seed, count_equal).groups(counted, list(sameby))
    return Score(float(groups["value"].to_numpy().mean()), len(groups), None, counted, groups, left, "group")


def _codes(
    metadata: pl.DataFrame, sameby: Sequence[str], diffby: Sequence[str], what: str
) -> dict[str, Codes]:
    """One integer per value of each column of a rule."""
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
    return coded


def _joint(coded: dict[str, Codes], columns: Sequence[str], n: int) -> Codes:
    """One integer per combination of values; 0 for all where there is no column."""
    joint = np.zeros(n, np.int64)
    for column in columns:
        joint = joint * (int(coded[column].max(initial=0)) + 1) + coded[column]
        joint = np.unique(joint, return_inverse=True)[1]
    return joint


def _known(frame: pl.DataFrame, columns: Sequence[str]) -> None:
    for column in columns:
        if column not in frame.columns:
            raise unknown(column, "column of the metadata", frame.columns)
