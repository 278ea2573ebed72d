"""How many known pairs (of genes in one pathway, say) stand out among all pairs of profiles."""

from collections.abc import Sequence

import numpy as np
import polars as pl
from numpy.typing import NDArray

from warehouse.errors import EvaluationError
from warehouse.metrics.order import PairOrder, exactly
from warehouse.metrics.passes import Block, Vectors, one_pass
from warehouse.metrics.score import Score, no_queries, require_queries

Rows = NDArray[np.int64]


def known_pairs_recall(
    X: NDArray[np.floating],
    pairs: Rows,
    ids: Sequence[str] | None = None,
    *,
    share: float = 0.05,
) -> Score:
    """Share of known pairs whose cosine is in the top or the bottom 5 % of the cosines of all pairs.

    All pairs are the n (n - 1) / 2 of different rows, the known ones among them. The rank of a cosine from below is
    the share of all that are at most as large, from above the share that are smaller: a pair counts where the first is
    at most 5 %, or the second at least 95 %. Equal cosines so count in neither, where they reach over the edge. (The
    authors draw rows at random for the distribution; here it is whole, and exact.)

    Args:
        X: (n, d) profiles, all of which are compared.
        pairs: (m, 2) row numbers; a pair of a row with itself, or one that was named before, is left out and counted.
        ids: n names, for messages and for `per_group`; row numbers else.
        share: of the ranks at either end.

    Returns:
        A score: n is the number of pairs; `per_group` has first, second, value (1 in either end), end ("top",
        "bottom", or null) and similarity.

    Raises:
        EvaluationError: a profile is zero or not finite, a pair names a row that is not there, share is not between 0
            and 0.5, or no pair is left.

    Source:
        Celik et al. 2024 (EFAAR), biological relationship benchmark: recall at 5 % and 95 %.
    """
    vectors = Vectors.of(X, ids)
    return one_pass(vectors, [KnownPairs(vectors, pairs, share=share)])[0]


class KnownPairs:
    """Plan of `known_pairs_recall`."""

    def __init__(self, vectors: Vectors, pairs: Rows, *, share: float = 0.05) -> None:
        n = len(vectors)
        if not 0 < share <= 0.5:
            message = f"known_pairs_recall: share is {share}; give one above 0 and at most 0.5, such as 0.05"
            raise EvaluationError(message)
        pairs = np.asarray(pairs, dtype=np.int64).reshape(-1, 2)
        outside = pairs[((pairs < 0) | (pairs >= n)).any(axis=1)]
        if len(outside):
            message = f"known pair {tuple(outside[0].tolist())} names a row that is not there: there are {n} profiles"
            raise EvaluationError(message)
        vectors.require()
        self._vectors = vectors
        self._share = share
        others = pairs[pairs[:, 0] != pairs[:, 1]]
        self._pairs = np.unique(np.sort(others, axis=1), axis=0)
        counts = {
            "named twice": len(others) - len(self._pairs),
            "pair with itself": len(pairs) - len(others),
        }
        self._left = {reason: count for reason, count in counts.items() if count}
        require_queries("known_pairs_recall", len(self._pairs), self._left)
        self._order = PairOrder(vectors, np.ones(n, dtype=bool))
        self.rows_needed = self.columns_needed = self._order.rows_needed

    def take(self, block: Block) -> None:
        """Count the similarities of these rows."""
        self._order.take(block)

    def score(self) -> Score:
        """Hold the known pairs against the two ends."""
        cosine = exactly(self._vectors, self._pairs[:, 0], self._pairs[:, 1])
        n = self._order.n
        # At most share * n are as low where the next one up is higher; the same from above.
        last = int(np.floor(round(self._share * n, 6)))
        ranks = last, n - 1 - last
        bounds = [self._order.bounds(rank) for rank in ranks]
        if any(((cosine >= low) & (cosine <= high)).any() for low, high in bounds):
            bounds = [(exact, exact) for exact in self._order.at(*ranks)]
        # Where no known pair is between the bounds of what lies at the edge, what it is does not matter.
        bottom, top = cosine < bounds[0][0], cosine > bounds[1][1]
        found = bottom | top
        end = [("top" if above else "bottom") if out else None for out, above in zip(found, top, strict=True)]
        ids = self._vectors.ids
        names = [str(row) for row in range(len(self._vectors))] if ids is None else list(ids)
        per_group = pl.DataFrame(
            {
                "first": [names[row] for row in self._pairs[:, 0]],
                "second": [names[row] for row in self._pairs[:, 1]],
                "value": found.astype(np.float64),
                "end": pl.Series(end, dtype=pl.String),
                "similarity": cosine,
            }
        )
        empty = no_queries()
        correct = int(found.sum())
        return Score(correct / len(found), len(found), correct, empty, per_group, self._left, "group")
