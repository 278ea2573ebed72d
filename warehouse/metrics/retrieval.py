"""How well a profile's most similar profiles share its labels: interpolated precision, enrichment, the first k.

In all but `known_pairs_recall`, a query is a profile with a label that at least one other has, the library all other
profiles with a label, and a match one that shares at least one label (Moshkov et al. 2024, Methods).
"""

import math
from collections.abc import Sequence

import numpy as np
import polars as pl
from numpy.typing import NDArray

from warehouse.errors import EvaluationError
from warehouse.metrics.known_pairs import KnownPairs, known_pairs_recall
from warehouse.metrics.order import at_least_as_near, nearest
from warehouse.metrics.passes import Block, Pairwise, Vectors, one_pass
from warehouse.metrics.queries import Queries
from warehouse.metrics.registry import Metric
from warehouse.metrics.score import Labels, Score
from warehouse.names import unknown

Rows = NDArray[np.int64]
Floats = NDArray[np.float64]

INFINITE = ("cell", "drop")


def interpolated_map(
    X: NDArray[np.floating], labels: Labels, ids: Sequence[str] | None = None, *, points: int = 0
) -> Score:
    """Mean over queries of the mean interpolated precision, by cosine, at recall points common to all queries.

    p(r) = max over r' ≥ r of the precision where r' is reached; r runs evenly from 0 to 1. Equally near profiles are
    found together, so that no order of rows decides.

    Args:
        X: (n, d) treatment profiles.
        labels: n sets of labels, or n texts.
        ids: n names for messages.
        points: how many recall points; 0: as many as the largest number of matches of a query. (The authors' code
            takes as many as there are treatments.)

    Returns:
        A score; `per_query` has row, value (average precision), n_matches.

    Raises:
        EvaluationError: a labelled profile is zero or not finite, a length differs, points is negative, or no query
            is left.

    Source:
        Moshkov et al. 2024, Methods, equations 3–5.
    """
    vectors = Vectors.of(X, ids)
    return one_pass(vectors, [InterpolatedPrecision(vectors, labels, points=points)])[0]


class InterpolatedPrecision(Queries):
    """Plan of `interpolated_map`."""

    def __init__(self, vectors: Vectors, labels: Labels, *, points: int = 0) -> None:
        if points < 0:
            message = f"interpolated_map: points is {points}; give a number of recall points, or 0"
            raise EvaluationError(message)
        super().__init__(vectors, labels, "interpolated_map")
        count = points or int(self.matches.max(initial=1))
        # Recall point j of m needs the match number ceil(j / (m - 1) * matches), in whole numbers.
        self._steps, self._of = np.arange(count), max(count - 1, 1)

    def take(self, block: Block) -> None:
        """Rank the matches of these rows."""
        for rows, near in self.of(block):
            for row, own in zip(rows.tolist(), near, strict=True):
                self.values[row] = self._precision(row, own)

    def _precision(self, row: int, near: NDArray[np.float32]) -> float:
        match = self.sharing(np.array([row]), self.library)[0] & (self.library != row)
        reached = at_least_as_near(self.vectors, row, self.library, near, np.flatnonzero(match))
        reached.sort()
        found = np.searchsorted(reached, reached, side="right")
        best = np.maximum.accumulate((found / reached)[::-1])[::-1]
        needed = -(-self._steps * len(best) // self._of)
        return float(best[np.maximum(needed, 1) - 1].mean())


def enrichment_folds(
    X: NDArray[np.floating],
    labels: Labels,
    ids: Sequence[str] | None = None,
    *,
    top: float = 0.01,
    inf: str = "cell",
) -> Score:
    """Mean odds ratio of matches among a query's top 1 % of connections, against the rest of its library.

    Top: those whose cosine is strictly above the query's own 99th percentile (linear between neighbours), self left
    out. Odds ratio: of one-sided Fisher's exact test, the one of the sample, (matches in top × others in rest) /
    (others in top × matches in rest).

    Args:
        X: (n, d) treatment profiles.
        labels: n sets of labels, or n texts.
        ids: n names for messages.
        top: share of the connections.
        inf: what an infinite odds ratio becomes (all of the top are matches, or all matches are in the top):
            ``"cell"``: the number of others in the rest, as in the authors' code; ``"drop"``: left out and counted.

    Returns:
        A score; `per_query` has row, value (odds ratio), n_matches, in_top (matches there), of_top and p_value. A
        query whose table has an empty row or column (nothing is above the percentile, or all are matches) has no odds
        ratio, is left out and counted.

    Raises:
        EvaluationError: a labelled profile is zero or not finite, a length differs, top is not between 0 and 1, or no
            query is left.
        UnknownNameError: `inf` is in no list.

    Source:
        Moshkov et al. 2024, Methods, "Folds of enrichment".
    """
    vectors = Vectors.of(X, ids)
    return one_pass(vectors, [EnrichmentFolds(vectors, labels, top=top, inf=inf)])[0]


class EnrichmentFolds(Queries):
    """Plan of `enrichment_folds`."""

    def __init__(self, vectors: Vectors, labels: Labels, *, top: float = 0.01, inf: str = "cell") -> None:
        if inf not in INFINITE:
            raise unknown(inf, "rule for infinite odds", INFINITE)
        if not 0 < top < 1:
            message = f"enrichment_folds: top is {top}; give a share between 0 and 1, such as 0.01"
            raise EvaluationError(message)
        super().__init__(vectors, labels, "enrichment_folds")
        self._inf = inf
        # The place of the percentile among the sorted similarities: between two of them, unless it is whole.
        place = round((1 - top) * (len(self.library) - 2), 9)
        self._is_between = place != int(place)
        self._count = len(self.library) - 1 - int(max(place, 0))
        self._in_top = np.zeros(len(vectors), np.int64)
        self._of_top = np.zeros(len(vectors), np.int64)

    def take(self, block: Block) -> None:
        """Count the matches in the top of these rows."""
        for rows, near in self.of(block, self._count):
            found, cosine = nearest(self.vectors, rows, self.library, near, self._count)
            below = cosine[:, -1:]
            above = cosine > below
            if self._is_between:
                # Strictly above a value between the last two is what is at least as near as the last but one.
                above = np.where(below < cosine[:, -2:-1], cosine >= cosine[:, -2:-1], above)
            match = self.sharing.pairs(np.repeat(rows, self._count), found.ravel()).reshape(found.shape)
            self._in_top[rows] = (match & above).sum(axis=1)
            self._of_top[rows] = above.sum(axis=1)

    def score(self) -> Score:
        """Turn the counts into odds ratios."""
        from scipy.stats import hypergeom

        library = len(self.library) - 1
        a, top, m = self._in_top, self._of_top, self.matches
        others, rest = library - m - (top - a), m - a
        above, below = a * others, (top - a) * rest
        self.values = np.divide(above, below, out=np.full(len(a), np.inf), where=below > 0)
        # A row or column of zeros: no odds.
        self.values[(top == 0) | (m == library)] = np.nan
        infinite = np.isinf(self.values)
        if self._inf == "cell":
            self.values[infinite] = others[infinite]
        for row in self.library:
            if self.reasons[row] is None and np.isnan(self.values[row]):
                self.reasons[row] = "no odds ratio"
            elif self.reasons[row] is None and np.isinf(self.values[row]):
                self.reasons[row] = "infinite odds ratio"
        chance = hypergeom.sf(a - 1, max(library, 0), np.minimum(m, max(library, 0)), top)
        return self.averaged({"in_top": a, "of_top": top, "p_value": chance}, None)


def hit_at_k(
    X: NDArray[np.floating],
    labels: Labels,
    ids: Sequence[str] | None = None,
    *,
    k: int = 10,
    longest: int = 50,
) -> Score:
    """Share of queries that have a match among their k nearest, by cosine.

    Args:
        X: (n, d) profiles.
        labels: n sets of labels, or n texts.
        ids: n names for messages.
        k: how many of the nearest count; of equally near ones, the first rows.
        longest: the curve in `per_group` goes to this k, or to `k` if that is more, or to all there are.

    Returns:
        A score: the value at `k`; `per_query` has row, value, n_matches; `per_group` has k and value, the curve.

    Raises:
        EvaluationError: a labelled profile is zero or not finite, a length differs, k is less than 1, or no query is
            left.

    Source:
        Hit@k as of link prediction (Bordes et al. 2013). cytominer-eval's `hitk` lists the ranks of all matches.
    """
    vectors = Vectors.of(X, ids)
    return one_pass(vectors, [AtK(vectors, labels, of="hit", k=k, longest=longest)])[0]


def precision_at_k(
    X: NDArray[np.floating],
    labels: Labels,
    ids: Sequence[str] | None = None,
    *,
    k: int = 10,
    longest: int = 50,
) -> Score:
    """Mean over queries of the share of matches among the k nearest; where there are fewer, among these.

    Arguments, score and errors are those of `hit_at_k`.

    Source:
        Manning et al. 2008, section 8.4.
    """
    vectors = Vectors.of(X, ids)
    return one_pass(vectors, [AtK(vectors, labels, of="precision", k=k, longest=longest)])[0]


def f1_at_k(
    X: NDArray[np.floating],
    labels: Labels,
    ids: Sequence[str] | None = None,
    *,
    k: int = 10,
    longest: int = 50,
) -> Score:
    """Mean over queries of F1 = 2 × found / (k + matches), of `found` matches among the k nearest.

    Arguments, score and errors are those of `hit_at_k`.

    Source:
        Kim et al. 2025, Methods ("F1-scores at k nearest neighbors") and figure 4c.
    """
    vectors = Vectors.of(X, ids)
    return one_pass(vectors, [AtK(vectors, labels, of="f1", k=k, longest=longest)])[0]


def hit_plan(vectors: Vectors, labels: Labels, *, k: int = 10, longest: int = 50) -> Pairwise:
    """Plan `hit_at_k`."""
    return AtK(vectors, labels, of="hit", k=k, longest=longest)


def precision_plan(vectors: Vectors, labels: Labels, *, k: int = 10, longest: int = 50) -> Pairwise:
    """Plan `precision_at_k`."""
    return AtK(vectors, labels, of="precision", k=k, longest=longest)


def f1_plan(vectors: Vectors, labels: Labels, *, k: int = 10, longest: int = 50) -> Pairwise:
    """Plan `f1_at_k`."""
    return AtK(vectors, labels, of="f1", k=k, longest=longest)


class AtK(Queries):
    """Plan of what is asked of the k nearest."""

    def __init__(self, vectors: Vectors, labels: Labels, *, of: str, k: int, longest: int) -> None:
        if k < 1:
            message = f"{of}_at_k: k is {k}; it must be at least 1"
            raise EvaluationError(message)
        super().__init__(vectors, labels, f"{of}_at_k")
        self._of = of
        self._k = k
        self._there = max(len(self.library) - 1, 1)
        self._found = np.zeros((len(vectors), min(max(k, longest), self._there)), np.int32)

    def take(self, block: Block) -> None:
        """Count the matches among the nearest of these rows."""
        width = self._found.shape[1]
        for rows, near in self.of(block, width):
            found, _ = nearest(self.vectors, rows, self.library, near, width)
            match = self.sharing.pairs(np.repeat(rows, width), found.ravel()).reshape(found.shape)
            self._found[rows] = match.cumsum(axis=1)

    def score(self) -> Score:
        """Average at k, and at each step of the curve."""
        queries = self.library[self.matches[self.library] > 0]
        steps = np.arange(1, self._found.shape[1] + 1)
        curve = [float(self._at(queries, step).mean()) if len(queries) else np.nan for step in steps.tolist()]
        self.values[queries] = self._at(queries, self._k)
        return self.averaged({}, pl.DataFrame({"k": steps, "value": curve}))

    def _at(self, rows: Rows, k: int) -> Floats:
        k = min(k, self._there)
        found: Floats = self._found[rows, k - 1].astype(np.float64)
        if self._of == "hit":
            found = np.minimum(found, 1)
        elif self._of == "precision":
            found /= k
        else:
            found *= 2 / (k + self.matches[rows])
        return found


METRICS: tuple[Metric, ...] = (
    Metric(
        name="interpolated_map",
        function=interpolated_map,
        needs=("labels",),
        higher_is_better=True,
        range=(0.0, 1.0),
        paper="Moshkov et al. 2024 (equations 3–5)",
        level="treatment",
        plan=InterpolatedPrecision,
    ),
    Metric(
        name="enrichment_folds",
        function=enrichment_folds,
        needs=("labels",),
        higher_is_better=True,
        range=(0.0, math.inf),
        paper="Moshkov et al. 2024 (folds of enrichment)",
        level="treatment",
        plan=EnrichmentFolds,
    ),
    Metric(
        name="known_pairs_recall",
        function=known_pairs_recall,
        needs=("pairs",),
        higher_is_better=True,
        range=(0.0, 1.0),
        paper="Celik et al. 2024 (EFAAR)",
        level="compound",
        plan=KnownPairs,
    ),
    Metric(
        name="hit_at_k",
        function=hit_at_k,
        needs=("labels",),
        higher_is_better=True,
        range=(0.0, 1.0),
        paper="Bordes et al. 2013 (hit@k)",
        level="treatment",
        plan=hit_plan,
    ),
    Metric(
        name="precision_at_k",
        function=precision_at_k,
        needs=("labels",),
        higher_is_better=True,
        range=(0.0, 1.0),
        paper="Manning et al. 2008 (precision@k)",
        level="treatment",
        plan=precision_plan,
    ),
    Metric(
        name="f1_at_k",
        function=f1_at_k,
        needs=("labels",),
        higher_is_better=True,
        range=(0.0, 1.0),
        paper="Kim et al. 2025 (F1 at k neighbours)",
        level="consensus",
        plan=f1_plan,
    ),
)
