"""Taking the k nearest allowed neighbours of every query, whatever it is that is not allowed."""

from collections import Counter
from collections.abc import Collection, Hashable, Sequence

import numpy as np
import polars as pl
from numpy.typing import NDArray

from warehouse.errors import EvaluationError
from warehouse.metrics.order import LISTS, Sharing, nearest, parts, taken
from warehouse.metrics.passes import Block, Vectors
from warehouse.metrics.score import Labels, Score, check_length, count_reasons, label_sets, require_queries
from warehouse.names import unknown

Names = Sequence[Hashable]
Batches = Sequence[Collection[str]]
LabelSets = list[frozenset[str]]

READINGS = ("batch", "batch_and_label")
UNMATCHED = ("left_out", "wrong")


def planned(
    vectors: Vectors,
    name: str,
    labels: Labels,
    *,
    compounds: Names | None = None,
    treatments: Names | None = None,
    batches: Batches | None = None,
    reading: str = "batch",
    unmatched: str = "wrong",
    bray: bool = False,
    k: int = 1,
) -> "Neighbours":
    """Check what was given, drop what has no label (or, for Bray, labels of one batch), and set up the exclusions."""
    if reading not in READINGS:
        raise unknown(reading, "reading of NSB", READINGS)
    if unmatched not in UNMATCHED:
        raise unknown(unmatched, "rule for wells without a match", UNMATCHED)
    if k < 1:
        message = f"{name}: k is {k}; it must be at least 1"
        raise EvaluationError(message)
    n = len(vectors)
    check_length("labels", labels, n)
    sets = label_sets(labels)
    reasons: list[str | None] = [None if row else "no label" for row in sets]
    apart = []
    for what, values in (("compounds", compounds), ("treatments", treatments)):
        if values is not None:
            check_length(what, values, n)
            apart.append(Sharing.of(values))
    apart_of_label = None
    if batches is not None:
        check_length("batches", batches, n)
        vectors.require(np.array([reason is None for reason in reasons], dtype=bool))
        # Those of rows that are not compared do not matter.
        own_batches = [own if why is None else () for own, why in zip(batches, reasons, strict=True)]
        if bray:
            sets = _without_one_batch_labels(sets, batches, reasons)
        for row, own in enumerate(batches):
            if reasons[row] is None and not own:
                reasons[row] = "no batch"
        if reading == "batch":
            apart.append(Sharing.of_sets(own_batches))
        else:
            apart_of_label = Sharing.of_sets(own_batches)
    return Neighbours(vectors, name, sets, reasons, apart, apart_of_label, unmatched == "left_out", k)


class Neighbours:
    """Takes the k nearest allowed neighbours of every query, and counts how many queries they are right about."""

    def __init__(
        self,
        vectors: Vectors,
        name: str,
        sets: LabelSets,
        reasons: list[str | None],
        apart: list[Sharing],
        apart_of_label: Sharing | None,
        must_match: bool,
        k: int,
    ) -> None:
        self._vectors = vectors
        self._name = name
        self._sets = sets
        self._reasons = reasons
        self._apart = apart
        self._apart_of_label = apart_of_label
        self._must_match = must_match
        self._compared = np.array([reason is None for reason in reasons], dtype=bool)
        require_queries(name, int(np.count_nonzero(self._compared)), count_reasons(reasons))
        vectors.require(self._compared)
        self.rows_needed = self.columns_needed = self._compared
        self._columns = np.flatnonzero(self._compared)
        self._labels = Sharing.of_sets(
            [row if used else () for row, used in zip(sets, self._compared, strict=True)]
        )
        self._shows_votes = name == "knn" or k > 1
        # No more can be neighbours than there are others.
        self._k = max(1, min(k, len(self._columns) - 1))
        self._nearest = np.full(len(vectors), -1)
        self._cosine = np.full(len(vectors), np.nan)
        self._votes: dict[int, tuple[frozenset[str], int]] = {}
        self._matched = np.ones(len(vectors), dtype=bool)

    def take(self, block: Block) -> None:
        """Find the neighbours of these rows."""
        # Lists of k neighbours are several times as large as as many similarities.
        width = len(self._columns) + LISTS * self._k
        for chosen in parts(np.flatnonzero(self._compared[block.rows]), width):
            self._take(block, chosen)

    def _take(self, block: Block, chosen: NDArray[np.int64]) -> None:
        rows, columns = block.rows[chosen], self._columns
        left_out = rows[:, None] == columns
        for sharing in self._apart:
            left_out |= sharing(rows, columns)
        if self._apart_of_label is not None or self._must_match:
            match = self._labels(rows, columns)
            if self._apart_of_label is not None:
                left_out |= match & self._apart_of_label(rows, columns)
            if self._must_match:
                self._matched[rows] = (match & ~left_out).any(axis=1)
        near = taken(block, chosen, columns)
        near[left_out] = -np.inf
        found, cosines = nearest(self._vectors, rows, columns, near, self._k)
        self._nearest[rows], self._cosine[rows] = found[:, 0], cosines[:, 0]
        for row, own in zip(rows.tolist(), found, strict=True):
            if own[0] >= 0:
                self._votes[row] = self._vote(own[own >= 0].tolist())

    def score(self) -> Score:
        """Count the queries whose neighbours are right."""
        reasons = list(self._reasons)
        for row in self._columns:
            if self._nearest[row] < 0:
                reasons[row] = "no candidate"
            elif not self._matched[row]:
                reasons[row] = "no candidate with its label"
        queries = np.array([row for row in self._columns if reasons[row] is None], dtype=np.int64)
        left = count_reasons(reasons)
        require_queries(self._name, len(queries), left)
        voted = [self._votes[row] for row in queries.tolist()]
        correct = [bool(self._sets[row] & won) for row, (won, _) in zip(queries.tolist(), voted, strict=True)]
        columns: dict[str, object] = {
            "row": queries,
            "value": np.array(correct, dtype=np.float64),
            "neighbour": self._nearest[queries],
            "similarity": self._cosine[queries],
        }
        if self._shows_votes:
            columns["predicted"] = ["; ".join(sorted(won)) for won, _ in voted]
            columns["votes"] = np.array([votes for _, votes in voted], dtype=np.int64)
        return Score(
            sum(correct) / len(correct), len(correct), sum(correct), pl.DataFrame(columns), None, left
        )

    def _vote(self, neighbours: list[int]) -> tuple[frozenset[str], int]:
        """Give the labels that neighbours, nearest first, vote for, and how many votes each of them has."""
        voters = [self._sets[other] for other in neighbours]
        if len(voters) == 1:
            return voters[0], 1
        votes = Counter(label for voter in voters for label in voter)
        most = max(votes.values())
        ahead = {label for label, count in votes.items() if count == most}
        return next(voter & ahead for voter in voters if voter & ahead), most


def _without_one_batch_labels(sets: LabelSets, batches: Batches, reasons: list[str | None]) -> LabelSets:
    """Drop the labels that occur in one batch only; say in `reasons` which rows have none left."""
    of_label: dict[str, set[str]] = {}
    for row, row_batches in zip(sets, batches, strict=True):
        for label in row:
            of_label.setdefault(label, set()).update(row_batches)
    kept = [frozenset(label for label in row if len(of_label[label]) > 1) for row in sets]
    for index, (label_set, row_batches) in enumerate(zip(kept, batches, strict=True)):
        if reasons[index] is None and row_batches and not label_set:
            reasons[index] = "label in one batch only"
    return kept
