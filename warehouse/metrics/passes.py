"""One pass over all similarities, in blocks of rows, for all metrics of pairs that a call asks for.

The product is in single precision. What a metric decides by it is off by at most `Vectors.slack`: where two
similarities are nearer to each other than that, it compares them again in double (`Vectors.exact`).
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from warehouse.errors import EvaluationError
from warehouse.metrics.score import Score, unit_vectors
from warehouse.search.vectors import slack

Rows = NDArray[np.int64]
Floats = NDArray[np.float32]
Mask = NDArray[np.bool_]

#: Similarities held at a time: 64 MiB; and rows, where that would be many: the first touch of memory costs.
BLOCK = 2**24
ROWS = 1024


@dataclass(frozen=True)
class Vectors:
    """Profiles as vectors of length 1.

    Attributes:
        exact_unit: (n, d) float64; zeros where a profile has no direction (all zeros, or not finite).
        unit: the same in float32.
        profiles: (n, d), as they came.
        ids: n names for messages, or None.
    """

    exact_unit: NDArray[np.float64]
    unit: Floats
    profiles: NDArray[np.floating]
    ids: Sequence[str] | None

    @classmethod
    def of(cls, X: NDArray[np.floating], ids: Sequence[str] | None = None) -> "Vectors":
        """Scale the rows of X (n, d); those without a direction are zeros until `require` refuses them."""
        finite = np.isfinite(X).all(axis=1) if X.ndim == 2 else np.ones(len(X), dtype=bool)
        usable = finite & (X != 0).any(axis=1) if X.ndim == 2 else finite
        exact = unit_vectors(X, ids, usable)
        return cls(exact, exact.astype(np.float32), X, ids)

    def __len__(self) -> int:
        return len(self.unit)

    @property
    def slack(self) -> float:
        """Bound of |float32 product - cosine|."""
        return slack(self.unit.shape[1])

    def require(self, compared: Mask | None = None) -> None:
        """Refuse rows that are compared, (n,) booleans or None for all, and have no direction.

        Raises:
            EvaluationError: the first such row by name, and their number.
        """
        if not (self._directed if compared is None else self._directed[compared]).all():
            unit_vectors(self.profiles, self.ids, compared)

    @cached_property
    def _directed(self) -> Mask:
        """Rows with a direction, (n,)."""
        return np.asarray(self.exact_unit.any(axis=1))

    def exact(self, rows: Rows, columns: Rows) -> NDArray[np.float64]:
        """Cosines of pairs, (m,) and (m,) to (m,), in double; the same for (a, b) and (b, a)."""
        made = np.empty(len(rows))
        step = max(1, 2**18 // max(self.exact_unit.shape[1], 1))
        for first in range(0, len(rows), step):
            part = slice(first, first + step)
            made[part] = np.einsum("ij,ij->i", self.exact_unit[rows[part]], self.exact_unit[columns[part]])
        return made


class Block:
    """Similarities of some rows with all, as a metric sees them.

    It holds while it is taken; the next block is written over it.

    Attributes:
        rows: (b,) int64, which rows.
        similarity: (b, n) float32, each row with itself included, or (b, c) with the columns that are given; not to be
            written to.
        columns: (c,) int64, the rows that the columns are, ascending; None: all.
        vectors: that were multiplied; None where only the single precision is asked for.
    """

    def __init__(
        self, rows: Rows, similarity: Floats, columns: Rows | None = None, vectors: Vectors | None = None
    ) -> None:
        self.rows = rows
        self.similarity = similarity
        self.columns = columns
        self.vectors = vectors

    def host(self) -> Floats:
        """All similarities in the host's memory, as `similarity`."""
        return self.similarity

    def only(self, places: Rows, columns: Rows) -> "Block":
        """Keep some rows, by their places in the block, and some columns, by their places in a row."""
        kept = self.similarity if len(places) == len(self.rows) else self.similarity[places]
        across = columns if self.columns is None else self.columns[columns]
        return Block(self.rows[places], np.take(kept, columns, axis=1), across, self.vectors)

    def products(self, places: Rows) -> NDArray[np.float64]:
        """Similarities of some rows, by their places (b,), with all columns again, in double."""
        assert self.vectors is not None, "a block of which exact products are asked is made with its vectors"
        unit = self.vectors.exact_unit
        exact: NDArray[np.float64] = (
            unit[self.rows[places]] @ (unit if self.columns is None else unit[self.columns]).T
        )
        return exact

    def at(self, places: Rows, columns: Rows) -> Floats:
        """Similarities (p,) of pairs: places of rows in the block, (p,), and columns, (p,)."""
        found: Floats = self.similarity[places, columns]
        return found

    def windows(self, places: Rows, low: Floats, high: Floats) -> tuple[Rows, Rows, Rows]:
        """Look into windows of similarity, (p,) of them, each of a row: low < similarity ≤ high.

        Args:
            places: (p,) of rows in the block, ascending.
            low: (p,), for which NaN is not allowed.
            high: (p,), the same.

        Returns:
            How many columns lie above each window, (p,); and all that lie in one: its number (q,), ascending, and the
            column (q,).
        """
        above = np.empty(len(places), np.int64)
        sizes = np.zeros(len(places), np.int64)
        found = [np.empty(0, np.int64)]
        firsts = np.flatnonzero(np.diff(places, prepend=-1)).tolist()
        over, inside = np.empty((2, self.similarity.shape[1]), dtype=bool)
        for first, last in pairwise([*firsts, len(places)]):
            near, kept = self.similarity[places[first]], None
            if last - first > 1:
                # Nothing below the lowest window matters: where that is nearly all, it is not looked at again.
                np.greater(near, low[first:last].min(), out=inside)
                if np.count_nonzero(inside) < len(near) // 8:
                    kept = inside.nonzero()[0]
                    near = near[kept]
            out, within = over[: len(near)], inside[: len(near)]
            for i in range(first, last):
                np.greater(near, high[i], out=out)
                np.greater(near, low[i], out=within)
                above[i] = np.count_nonzero(out)
                np.not_equal(within, out, out=within)
                columns = within.nonzero()[0]
                if len(columns):
                    sizes[i] = len(columns)
                    found.append(columns if kept is None else kept[columns])
        return above, np.repeat(np.arange(len(places)), sizes), np.concatenate(found)


class Arrays(Protocol):
    """Where the products are made."""

    def blocks(self, vectors: Vectors, rows: Rows, columns: Rows | None) -> Iterator[Block]:
        """Multiply rows with columns (None: all), a block of rows at a time, in order."""


class Host:
    """NumPy, in this process's memory."""

    def blocks(self, vectors: Vectors, rows: Rows, columns: Rows | None) -> Iterator[Block]:
        """As `Arrays.blocks`, always into the same memory: fresh pages would cost a fifth of the product."""
        if len(rows) == 0:
            return
        across = vectors.unit if columns is None else vectors.unit[columns]
        held = np.empty((min(block_rows(len(across)), len(rows)), len(across)), np.float32)
        for first in range(0, len(rows), len(held)):
            part = rows[first : first + len(held)]
            product = np.matmul(vectors.unit[part], across.T, out=held[: len(part)])
            yield Block(part, product, columns, vectors)


def block_rows(n: int) -> int:
    """How many rows of n columns make a block."""
    return min(max(1, BLOCK // max(n, 1)), ROWS)


class Pairwise(Protocol):
    """A metric of pairs: takes blocks of rows, in order and each once, then gives its score.

    It may have `rows_needed` and `columns_needed`, (n,) booleans: the pass leaves out rows that no metric needs, and
    columns. A metric without these is given all.
    """

    def take(self, block: Block) -> None:
        """Take what the metric needs of these similarities."""

    def score(self) -> Score:
        """Give the score, after all blocks.

        Raises:
            EvaluationError: nothing could be scored.
        """


def one_pass(vectors: Vectors, plans: Sequence[Pairwise], arrays: Arrays | None = None) -> list[Score]:
    """Multiply all rows with all rows once, a block at a time, and let every metric take what it needs.

    Args:
        vectors: n of them.
        plans: made over these vectors.
        arrays: where products are made; None: NumPy.

    Returns:
        One score a plan.

    Raises:
        EvaluationError: a metric has nothing to score, or there are no profiles.
    """
    feed(vectors, plans, arrays)
    return [plan.score() for plan in plans]


def feed(vectors: Vectors, plans: Sequence[Pairwise], arrays: Arrays | None = None) -> None:
    """Do the pass of `one_pass`, and leave it to the caller to ask each plan for its score, or why it has none.

    Raises:
        EvaluationError: there are no profiles.
    """
    if len(vectors) == 0:
        message = "there are no profiles to compare"
        raise EvaluationError(message)
    arrays = arrays or Host()
    rows, columns = _needed(vectors, plans, "rows_needed"), _needed(vectors, plans, "columns_needed")
    across = None if columns.all() else np.flatnonzero(columns)
    for block in arrays.blocks(vectors, np.flatnonzero(rows), across):
        for plan in plans:
            plan.take(block)


def _needed(vectors: Vectors, plans: Sequence[Pairwise], which: str) -> Mask:
    """Rows that some plan needs; all, where one does not say."""
    needed = np.zeros(len(vectors), dtype=bool)
    for plan in plans:
        own: Mask | None = getattr(plan, which, None)
        needed |= True if own is None else own
    return needed
