"""1-nearest-neighbour accuracy of labels, leaving out the same compound (NSC) and the same batch (NSB).

*Which batches does a treatment have?* Those of the wells that make up its profile. On BBBC021 with the week
as batch this gives 67 of 92. The batches in which a treatment was ever imaged do not: taxol at 0.3 µM stands
on plates of all ten weeks, but wells of one week enter its profile; by ten weeks it has no candidate left (67
of 91). Batches of the compound instead of the treatment come to the same 67 of 92 there, as no compound's
profiled wells span two weeks; they are not used.
"""

from collections.abc import Collection, Hashable, Sequence

import numpy as np
import polars as pl
from numpy.typing import NDArray

from warehouse.errors import EvaluationError
from warehouse.metrics.score import (
    Labels,
    Score,
    check_length,
    codes,
    count_reasons,
    label_sets,
    membership,
    require_queries,
    unit_vectors,
)
from warehouse.names import unknown

BLOCK = 2**20  # similarities held at a time


def nsc(
    X: NDArray[np.floating],
    labels: Labels,
    compounds: Sequence[Hashable],
    ids: Sequence[str] | None = None,
) -> Score:
    """`one_nn_accuracy` leaving out every concentration of the query's compound."""
    return one_nn_accuracy(X, labels, compounds, None, "nsc", ids)


def nsb(
    X: NDArray[np.floating],
    labels: Labels,
    compounds: Sequence[Hashable],
    batches: Sequence[Collection[str]],
    ids: Sequence[str] | None = None,
) -> Score:
    """`one_nn_accuracy` leaving out the same compound and every treatment that shares a batch."""
    return one_nn_accuracy(X, labels, compounds, batches, "nsb", ids)


def one_nn_accuracy(
    X: NDArray[np.floating],
    labels: Labels,
    compounds: Sequence[Hashable],
    batches: Sequence[Collection[str]] | None,
    exclude: str,
    ids: Sequence[str] | None = None,
) -> Score:
    """Share of treatments whose nearest other treatment by cosine has one of their labels.

    Args:
        X: (n, d) treatment profiles.
        labels: n sets of labels, or n texts; a treatment without label is neither query nor candidate.
        compounds: n compounds; a treatment is never compared with another concentration of its own.
        batches: n sets: the batches of the wells that make up each profile. Only for ``"nsb"``.
        exclude: ``"nsc"`` (same compound) or ``"nsb"`` (further, any treatment that shares a batch; labels
            found in one batch only are dropped, and with them the treatments that have no other).
        ids: n names for messages.

    Returns:
        A score; `per_query` has query and neighbour (row numbers), similarity (cosine), is_correct. Of
        equally near neighbours the first row counts.

    Raises:
        EvaluationError: a profile is zero or not finite, a length differs, or no query is left.
        UnknownNameError: `exclude` is in no list.

    Source:
        Ljosa et al. 2013 (NSC), Ando et al. 2017 and Bray et al. 2022 (NSB).
    """
    if exclude not in ("nsc", "nsb"):
        raise unknown(exclude, "rule of exclusion", ("nsc", "nsb"))
    n = len(X)
    check_length("labels", labels, n)
    check_length("compounds", compounds, n)
    sets = label_sets(labels)
    unit = unit_vectors(X, ids, np.array([bool(row) for row in sets], dtype=bool))
    reasons: list[str | None] = [None if row else "no label" for row in sets]
    shared_batch = None
    if exclude == "nsb":
        if batches is None:
            message = "nsb needs the batches of each profile: give them, or use nsc"
            raise EvaluationError(message)
        check_length("batches", batches, n)
        shared_batch = membership(batches)
        sets = _without_one_batch_labels(sets, batches, reasons)
    candidates = np.array([reason is None for reason in reasons], dtype=bool)
    compound = codes(compounds)

    neighbour = np.full(n, -1)
    similarity = np.full(n, -np.inf)
    queries = np.flatnonzero(candidates)
    for block in np.array_split(queries, max(1, len(queries) * n // BLOCK)):
        # Rounded, so that equal profiles are equally near whatever the order of a sum.
        near = np.round(unit[block] @ unit.T, 12)
        left_out = (compound[block, None] == compound) & (compound[block, None] >= 0)
        if shared_batch is not None:
            left_out |= shared_batch[block] @ shared_batch.T > 0
        near[left_out | ~candidates] = -np.inf
        near[np.arange(len(block)), block] = -np.inf
        neighbour[block] = near.argmax(axis=1)
        similarity[block] = near.max(axis=1)
    for row in queries[np.isneginf(similarity[queries])]:
        reasons[row] = "no candidate"
    queries = queries[~np.isneginf(similarity[queries])]
    left = count_reasons(reasons)
    require_queries(exclude, len(queries), left)
    correct = [bool(sets[query] & sets[neighbour[query]]) for query in queries]
    per_query = pl.DataFrame(
        {
            "query": queries,
            "neighbour": neighbour[queries],
            "similarity": similarity[queries],
            "is_correct": correct,
        }
    )
    return Score(sum(correct) / len(correct), len(correct), sum(correct), per_query, None, left)


def _without_one_batch_labels(
    sets: list[frozenset[str]], batches: Sequence[Collection[str]], reasons: list[str | None]
) -> list[frozenset[str]]:
    """Drop the labels that occur in one batch only; say in `reasons` which rows have none left."""
    of_label: dict[str, set[str]] = {}
    for row, row_batches in zip(sets, batches, strict=True):
        for label in row:
            of_label.setdefault(label, set()).update(row_batches)
    kept = [frozenset(label for label in row if len(of_label[label]) > 1) for row in sets]
    for index, (label_set, row_batches) in enumerate(zip(kept, batches, strict=True)):
        if reasons[index] is None and not row_batches:
            reasons[index] = "no batch"
        elif reasons[index] is None and not label_set:
            reasons[index] = "label in one batch only"
    return kept
