"""Queries, their library and their matches, as Moshkov et al. 2024 set them up (Methods)."""

from collections.abc import Iterator

import numpy as np
import polars as pl
from numpy.typing import NDArray

from warehouse.metrics.order import LISTS, Sharing, parts, taken
from warehouse.metrics.passes import Block, Vectors
from warehouse.metrics.score import Labels, Score, check_length, count_reasons, label_sets, require_queries

Rows = NDArray[np.int64]
Singles = NDArray[np.float32]


class Queries:
    """Queries, library and matches of labelled profiles; the base of the plans below."""

    def __init__(self, vectors: Vectors, labels: Labels, name: str) -> None:
        check_length("labels", labels, len(vectors))
        sets = label_sets(labels)
        self.vectors = vectors
        self.name = name
        self.library = np.flatnonzero(np.array([bool(row) for row in sets], dtype=bool))
        compared = np.zeros(len(vectors), dtype=bool)
        compared[self.library] = True
        vectors.require(compared)
        self.sharing = Sharing.of_sets(sets)
        self.matches = np.zeros(len(vectors), np.int64)
        self.matches[self.library] = self.sharing.count(self.library)
        self.reasons: list[str | None] = [None if row else "no label" for row in sets]
        for row in self.library[self.matches[self.library] == 0]:
            self.reasons[row] = "no match"
        require_queries(name, int(np.count_nonzero(self.matches)), count_reasons(self.reasons))
        self.values = np.full(len(vectors), np.nan)
        self.rows_needed, self.columns_needed = self.matches > 0, compared

    def of(self, block: Block, k: int = 0) -> Iterator[tuple[Rows, Singles]]:
        """Give queries of a block and their similarities with the library, -inf with themselves.

        So many at a time that lists of the k nearest of each are held too.
        """
        width = len(self.library) + LISTS * k
        for chosen in parts(np.flatnonzero(self.matches[block.rows] > 0), width):
            rows = block.rows[chosen]
            near = taken(block, chosen, self.library)
            near[np.arange(len(rows)), np.searchsorted(self.library, rows)] = -np.inf
            yield rows, near

    def score(self) -> Score:
        """Average the values of the queries."""
        return self.averaged({}, None)

    def averaged(self, more: dict[str, NDArray[np.generic]], per_group: pl.DataFrame | None) -> Score:
        """Average the values, with more columns (n,) for each query."""
        queries = np.array([row for row, reason in enumerate(self.reasons) if reason is None], dtype=np.int64)
        left = count_reasons(self.reasons)
        require_queries(self.name, len(queries), left)
        columns = {"value": self.values, "n_matches": self.matches, **more}
        frame = pl.DataFrame({"row": queries, **{name: of[queries] for name, of in columns.items()}})
        return Score(float(self.values[queries].mean()), len(queries), None, frame, per_group, left)
