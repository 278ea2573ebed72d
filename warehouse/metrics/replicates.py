"""How much more alike replicates are than other wells, and profiles with a common label than others.

The three here compare medians or pairs with those of non-replicates; `grit` and `mp_value` compare with the negative
controls. Similarity is Pearson's correlation, as in the definitions, or the cosine (``similarity="cosine"``).
"""

import math
from collections.abc import Hashable, Sequence

import numpy as np
import polars as pl
from numpy.typing import NDArray

from warehouse.errors import EvaluationError
from warehouse.metrics.against_controls import grit, mp_value
from warehouse.metrics.directions import canonical, directed, medians, members, own_median, teams
from warehouse.metrics.order import PairOrder, Sharing, exactly
from warehouse.metrics.passes import Block, Vectors, one_pass
from warehouse.metrics.registry import Metric
from warehouse.metrics.score import (
    Labels,
    Score,
    check_length,
    count_reasons,
    label_sets,
    no_queries,
    require_queries,
)

Rows = NDArray[np.int64]
Floats = NDArray[np.float64]

#: Of the null, that a median must be above.
PERCENTILE = 95
#: How often wells of a draw are drawn again because two of them are replicates.
AGAIN = 20
#: Pairs of a null that are held at a time.
PAIRS = 2**22
#: Up to so many pairs of replicates are listed, of all treatments and of one.
LISTED, OF_GROUP = 2**21, 2**18


def percent_replicating(
    X: NDArray[np.floating],
    labels: Labels,
    ids: Sequence[str] | None = None,
    *,
    similarity: str = "correlation",
    nulls: int = 1000,
    seed: int = 0,
) -> Score:
    """Share of treatments whose replicates are more alike than 95 % of sets of as many non-replicate wells.

    For each treatment: the median similarity of all pairs of its wells, strictly above the 95th percentile (linear) of
    the same median over random wells. There is one null for each number of replicates. Wells of a set are drawn again
    up to 20 times until no two are replicates; pairs of replicates that are left then (where a treatment has more
    wells than there are treatments) are not counted.

    Of a treatment with more than 128 wells not all pairs count, but those within up to 8 random teams of 64 wells, and
    just so in its null.

    Args:
        X: (n, d) wells.
        labels: n sets of labels: the treatment; a well without one (a control) is left out and counted.
        ids: n names for messages.
        similarity: ``"correlation"`` or ``"cosine"``.
        nulls: how many random sets, for each number of replicates.
        seed: of the draws. They are applied to the wells in an order that their profiles alone decide, so that the
            order of rows and the names of treatments do not matter.

    Returns:
        A score over treatments: `per_group` has label, value (1 above the null), median, threshold, n (wells).

    Raises:
        EvaluationError: a well is zero, constant or not finite, a length differs, no treatment has two wells, or there
            is but one treatment.
        UnknownNameError: `similarity` is in no list.

    Source:
        Way et al. 2022 (percent replicating); Chandrasekaran et al. 2024, JUMP pilots (1,000 nulls).
    """
    return _share_above(X, labels, None, ids, similarity, nulls, seed, "percent_replicating", "no replicate")


def percent_matching(
    X: NDArray[np.floating],
    labels: Labels,
    compounds: Sequence[Hashable],
    ids: Sequence[str] | None = None,
    *,
    similarity: str = "correlation",
    nulls: int = 1000,
    seed: int = 0,
) -> Score:
    """Share of labels whose compounds are more alike than 95 % of sets of as many that share no label.

    As `percent_replicating`, over the labels (mechanisms, targets) of treatments: a label's pairs are those of
    different compounds, and no two profiles of a random set share a label or a compound. (Where the teams of a label
    with more than 128 profiles hold no such pair, all pairs count.)

    Args:
        X: (n, d) treatment profiles.
        labels: n sets of labels, or n texts; a profile with several counts for each.
        compounds: n compounds.
        ids: n names for messages.
        similarity: ``"correlation"`` or ``"cosine"``.
        nulls: how many random sets, for each number of profiles.
        seed: of the draws, as in `percent_replicating`.

    Returns:
        A score over labels, as of `percent_replicating`. Left out are profiles without label, and those whose labels
        no other compound has.

    Raises:
        EvaluationError: as `percent_replicating`.
        UnknownNameError: `similarity` is in no list.

    Source:
        Way et al. 2022 (percent matching).
    """
    check_length("compounds", compounds, len(X))
    return _share_above(
        X,
        labels,
        compounds,
        ids,
        similarity,
        nulls,
        seed,
        "percent_matching",
        "no other compound of its label",
    )


def _share_above(
    X: NDArray[np.floating],
    labels: Labels,
    compounds: Sequence[Hashable] | None,
    ids: Sequence[str] | None,
    similarity: str,
    nulls: int,
    seed: int,
    name: str,
    alone: str,
) -> Score:
    check_length("labels", labels, len(X))
    if nulls < 1:
        message = f"{name}: nulls is {nulls}; it must be at least 1"
        raise EvaluationError(message)
    sets = label_sets(labels)
    compared = np.array([bool(row) for row in sets], dtype=bool)
    vectors = directed(X, ids, similarity, compared)
    left_out = None if compounds is None else Sharing.of(compounds)
    found = {}
    for label, rows in members(sets).items():
        median = own_median(vectors, rows, sets, left_out, seed)
        if not math.isnan(median):
            found[label] = (median, rows)
    counted = {row for _, rows in found.values() for row in rows.tolist()}
    reasons = [
        None if row in counted else (alone if used else "no label") for row, used in enumerate(compared)
    ]
    left = count_reasons(reasons)
    require_queries(name, len(found), left)
    order = canonical(vectors, np.flatnonzero(compared), sets)
    apart = [Sharing.of_sets(sets), *([] if left_out is None else [left_out])]
    shapes = sorted({teams(len(rows)) for _, rows in found.values()})
    # No more wells than there are labels can do without two replicates.
    most = len({label for row in sets for label in row})
    thresholds = {}
    for count, size in shapes:
        again = AGAIN if size <= most else 0
        rng = np.random.default_rng([seed, count * size])
        null = _null(vectors, order, apart, (count, size), nulls, again, rng)
        if np.isnan(null).all():
            message = f"{name}: all {len(order)} profiles have one label: there are no others to compare with"
            raise EvaluationError(message)
        thresholds[count, size] = float(np.nanpercentile(null, PERCENTILE))
    per_group = pl.DataFrame(
        {
            "label": list(found),
            "value": [float(median > thresholds[teams(len(rows))]) for median, rows in found.values()],
            "median": [median for median, _ in found.values()],
            "threshold": [thresholds[teams(len(rows))] for _, rows in found.values()],
            "n": [len(rows) for _, rows in found.values()],
        }
    )
    correct = int(per_group["value"].sum())
    return Score(correct / len(found), len(found), correct, no_queries(), per_group, left, "group")


def _null(
    vectors: Vectors,
    order: Rows,
    apart: list[Sharing],
    shape: tuple[int, int],
    nulls: int,
    again: int,
    rng: np.random.Generator,
) -> Floats:
    """Median similarities of sets of teams of random rows that share nothing in `apart`, (nulls,)."""
    values = []
    step = max(1, PAIRS // (shape[0] * shape[1] ** 2))
    for first in range(0, nulls, step):
        drawn = order[rng.integers(len(order), size=(min(step, nulls - first), *shape))]
        clash = _clashes(drawn, apart)
        for _ in range(again):
            if not clash.any():
                break
            drawn[clash] = order[rng.integers(len(order), size=int(clash.sum()))]
            clash = _clashes(drawn, apart)
        values.append(medians(vectors, drawn, *(apart if clash.any() else [])))
    return np.concatenate(values)


def _clashes(drawn: Rows, apart: list[Sharing]) -> NDArray[np.bool_]:
    """Tell which rows share something with an earlier one of their team, (g, t, c) to (g, t, c)."""
    of_teams = drawn.reshape(-1, drawn.shape[-1])
    found = np.zeros(of_teams.shape, dtype=bool)
    for sharing in apart:
        found |= sharing.repeated(of_teams)
    return found.reshape(drawn.shape)


def replicate_reproducibility(
    X: NDArray[np.floating],
    labels: Labels,
    ids: Sequence[str] | None = None,
    *,
    similarity: str = "correlation",
) -> Score:
    """Share of pairs of replicates that are more alike than 95 % of all pairs of non-replicates.

    Strictly above the 95th percentile (linear between neighbours), which is exact: of all pairs, not of a sample.

    Args:
        X: (n, d) wells.
        labels: n sets of labels: the treatment; a well without one (a control) is left out and counted.
        ids: n names for messages.
        similarity: ``"correlation"`` or ``"cosine"``.

    Returns:
        A score over pairs, n of them: `per_group` has, for each treatment, label, value (the share of its pairs),
        median (similarity), n_pairs. The value is the mean over pairs, not over treatments.

    Raises:
        EvaluationError: a well is zero, constant or not finite, a length differs, no treatment has two wells, or no
            two wells are of different treatments.
        UnknownNameError: `similarity` is in no list.

    Source:
        cytominer-eval, `replicate_reproducibility`.
    """
    check_length("labels", labels, len(X))
    sets = label_sets(labels)
    compared = np.array([bool(row) for row in sets], dtype=bool)
    vectors = directed(X, ids, similarity, compared)
    return one_pass(vectors, [_Reproducibility(vectors, sets, compared)])[0]


class _Reproducibility:
    """Takes the similarities of non-replicates, then holds those of replicates against them."""

    def __init__(self, vectors: Vectors, sets: list[frozenset[str]], compared: NDArray[np.bool_]) -> None:
        self._vectors = vectors
        self._groups = {label: rows for label, rows in members(sets).items() if len(rows) > 1}
        grouped = {row for rows in self._groups.values() for row in rows.tolist()}
        self._left = count_reasons(
            [
                "no label" if not used else None if row in grouped else "no replicate"
                for row, used in enumerate(compared)
            ]
        )
        require_queries("replicate_reproducibility", len(self._groups), self._left)
        sharing = Sharing.of_sets(sets)
        self._order = PairOrder(vectors, compared, sharing)
        self.rows_needed = self.columns_needed = compared
        # Where there are too many pairs of replicates to be listed, they are counted in passes too.
        pairs = sum(len(rows) * (len(rows) - 1) // 2 for rows in self._groups.values())
        self._replicates = PairOrder(vectors, compared, together=sharing) if pairs > LISTED else None

    def take(self, block: Block) -> None:
        """Count the similarities of these rows."""
        self._order.take(block)
        if self._replicates is not None:
            self._replicates.take(block)

    def score(self) -> Score:
        """Count the pairs of replicates above the percentile."""
        n = self._order.n
        if n == 0:
            message = (
                "replicate_reproducibility: all wells are of one treatment: there are none to compare with"
            )
            raise EvaluationError(message)
        if self._replicates is None:
            # A pair with two labels in common is one pair.
            pairs = np.unique(
                np.concatenate([_within(rows) for rows in self._groups.values()], axis=1), axis=1
            )
            similar = exactly(self._vectors, pairs[0], pairs[1])
            threshold, all_pairs = self._percentile(n, similar), len(similar)
            correct = int(np.count_nonzero(similar > threshold))
        else:
            threshold, all_pairs = self._percentile(n, None), self._replicates.n
            correct = self._replicates.above(threshold)
        each = [self._of_group(rows, threshold) for rows in self._groups.values()]
        per_group = pl.DataFrame(
            {
                "label": list(self._groups),
                "value": [value for value, _ in each],
                "median": [median for _, median in each],
                "n_pairs": [len(rows) * (len(rows) - 1) // 2 for rows in self._groups.values()],
            }
        )
        empty = no_queries()
        return Score(correct / all_pairs, all_pairs, correct, empty, per_group, self._left, None)

    def _of_group(self, rows: Rows, threshold: float) -> tuple[float, float]:
        """Share of the pairs of a treatment above the threshold, and their median."""
        pairs = len(rows) * (len(rows) - 1) // 2
        if pairs <= OF_GROUP:
            similar = exactly(self._vectors, *_within(rows))
            return float((similar > threshold).mean()), float(np.median(similar))
        here = np.zeros(len(self._vectors), dtype=bool)
        here[rows] = True
        order = PairOrder(self._vectors, here).run()
        middle = order.at((pairs - 1) // 2, pairs // 2)
        return order.above(threshold) / pairs, sum(middle) / 2

    def _percentile(self, n: int, similar: Floats | None) -> float:
        """Give the 95th percentile, or where no replicates are near it, anything that lies where it does.

        `similar` holds the similarities of replicates; None: not known.
        """
        rank, share = divmod(round(PERCENTILE * (n - 1) / 100, 9), 1)
        below, above = int(rank), min(int(rank) + (share > 0), n - 1)
        low, high = self._order.bounds(below)[0], self._order.bounds(above)[1]
        if similar is None or ((similar >= low) & (similar <= high)).any():
            low, high = self._order.at(below, above)
        return low + (high - low) * share


def _within(rows: Rows) -> Rows:
    """All pairs of rows, (2, c (c - 1) / 2)."""
    return np.asarray(rows[np.stack(np.triu_indices(len(rows), 1))])


METRICS: tuple[Metric, ...] = (
    Metric(
        name="percent_replicating",
        function=percent_replicating,
        needs=("labels",),
        higher_is_better=True,
        range=(0.0, 1.0),
        paper="Way et al. 2022; Chandrasekaran et al. 2024 (percent replicating)",
        level="well",
        label_kind="treatment",
    ),
    Metric(
        name="percent_matching",
        function=percent_matching,
        needs=("labels", "compounds"),
        higher_is_better=True,
        range=(0.0, 1.0),
        paper="Way et al. 2022 (percent matching)",
        level="treatment",
    ),
    Metric(
        name="replicate_reproducibility",
        function=replicate_reproducibility,
        needs=("labels",),
        higher_is_better=True,
        range=(0.0, 1.0),
        paper="cytominer-eval (replicate reproducibility)",
        level="well",
        label_kind="treatment",
    ),
    Metric(
        name="grit",
        function=grit,
        needs=("labels", "controls", "plates"),
        higher_is_better=True,
        range=(-math.inf, math.inf),
        paper="cytominer-eval (grit)",
        level="well",
        label_kind="treatment",
    ),
    Metric(
        name="mp_value",
        function=mp_value,
        needs=("labels", "controls"),
        higher_is_better=True,
        range=(0.0, 1.0),
        paper="Hutz et al. 2013; cytominer-eval (mp-value)",
        level="well",
        label_kind="treatment",
    ),
)
