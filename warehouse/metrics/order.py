"""Which rows share something, and in which exact order others stand to them, by similarities in single precision.

What is nearer to a decision than the slack of the product is decided in double. Cosines are rounded to 12 decimals,
so that multiples of one profile are equally near whatever their last digits.
"""

from collections.abc import Collection, Hashable, Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from warehouse.metrics.passes import Block, Host, Vectors, block_rows
from warehouse.metrics.relations import Groups, portions

Rows = NDArray[np.int64]
Mask = NDArray[np.bool_]
Floats = NDArray[np.float64]
Singles = NDArray[np.float32]

#: Pairs that share are listed so many at a time.
LISTED = 2**21
#: Similarities are counted in so many bins; about as wide as the slack at 384 dimensions.
BINS = 2**18
#: What a neighbour in a list takes while `nearest` makes it, in similarities.
LISTS = 32


class Sharing:
    """Tells which rows share a member: a label, a batch. A row without members shares with none, itself included."""

    def __init__(self, groups: Groups) -> None:
        self._groups = groups

    @classmethod
    def of(cls, values: Sequence[Hashable]) -> "Sharing":
        """Rows share where their values are equal; None is no value."""
        return cls(Groups.of(values))

    @classmethod
    def of_sets(cls, sets: Sequence[Collection[str]]) -> "Sharing":
        """Rows share where a member of their sets is."""
        return cls(Groups.of_sets(sets))

    def __call__(self, rows: Rows, columns: Rows) -> Mask:
        """Tell, (b,) and (c,) ascending to (b, c), which pairs share a member."""
        coded = self._groups.codes
        if coded is not None:
            code = coded[rows][:, None]
            return np.asarray((code == coded[columns]) & (code >= 0))
        found = np.zeros((len(rows), len(columns)), dtype=bool)
        where = np.full(len(self._groups), -1)
        where[columns] = np.arange(len(columns))
        for some in portions(self._groups.count(rows), LISTED):
            place, other = self._groups.pairs(rows[some])
            column = where[other]
            found[some[place[column >= 0]], column[column >= 0]] = True
        return found

    def pairs(self, rows: Rows, columns: Rows) -> Mask:
        """Tell, (m,) and (m,) to (m,), which pairs share a member."""
        return self._groups.shared(rows, columns)

    def repeated(self, drawn: Rows) -> Mask:
        """Tell which rows share a member with an earlier one of their set, (g, c) to (g, c)."""
        # In each set and group, all rows but the first.
        place, group = self._groups.entries(drawn.ravel())
        key = place // max(drawn.shape[1], 1) * len(self._groups.sizes) + group
        order = np.argsort(key, kind="stable")
        found = np.zeros(drawn.size, dtype=bool)
        found[place[order[1:][np.diff(key[order]) == 0]]] = True
        return found.reshape(drawn.shape)

    def count(self, rows: Rows) -> Rows:
        """Count, for each of these rows, the others among them that it shares with."""
        if self._groups.codes is not None:
            code = self._groups.codes[rows]
            sizes = np.bincount(code[code >= 0], minlength=1)
            return np.asarray(np.where(code >= 0, sizes[code] - 1, 0))
        counted = np.zeros(len(rows), np.int64)
        step = block_rows(len(rows))
        for first in range(0, len(rows), step):
            part = rows[first : first + step]
            counted[first : first + step] = self(part, rows).sum(axis=1) - self.pairs(part, part)
        return counted


def nearest(vectors: Vectors, rows: Rows, columns: Rows, near: Singles, k: int) -> tuple[Rows, Floats]:
    """Find the k nearest columns of each row, nearest first; of equally near ones, the first row.

    Args:
        vectors: n of them.
        rows: (b,) row numbers.
        columns: (c,) row numbers, ascending.
        near: (b, c) float32 similarities of the two, as a block has them; -inf where a pair may not be compared.
        k: how many.

    Returns:
        Row numbers (b, k), -1 where there are fewer, and their cosines (b, k), NaN there.
    """
    found, cosine = np.full((len(rows), k), -1), np.full((len(rows), k), np.nan)
    there = min(k, len(columns))
    if there == 0 or len(rows) == 0:
        return found, cosine
    cut = len(columns) - there
    last = near.max(axis=1) if there == 1 else np.partition(near, cut, axis=1)[:, cut]
    bound = np.maximum(last - np.float32(2.1 * vectors.slack), np.float32(-2))
    at, place = np.nonzero(near >= bound[:, None])
    exact = exactly(vectors, rows[at], columns[place])
    order = np.lexsort((place, -exact, at))
    at, place, exact = at[order], place[order], exact[order]
    rank = np.arange(len(at)) - np.searchsorted(at, at)
    kept = rank < k
    found[at[kept], rank[kept]] = columns[place[kept]]
    cosine[at[kept], rank[kept]] = exact[kept]
    return found, cosine


def taken(block: Block, chosen: Rows, columns: Rows) -> Singles:
    """Copy the similarities of some rows of a block, (b,) places in it, with some rows (c,), to (b, c)."""
    places = columns if block.columns is None else np.searchsorted(block.columns, columns)
    near = block.host()
    near = near if len(chosen) == len(near) else near[chosen]
    return near.copy() if len(places) == near.shape[1] else np.take(near, places, axis=1)


def parts(chosen: Rows, width: int) -> Iterator[Rows]:
    """Cut places of rows so that a table of them and `width` columns is as large as a block at the most.

    The blocks of a GPU are larger than what is made of them here should be.
    """
    step = block_rows(width)
    for first in range(0, len(chosen), step):
        yield chosen[first : first + step]


def at_least_as_near(vectors: Vectors, row: int, columns: Rows, near: Singles, chosen: Rows) -> Rows:
    """Count the columns that are at least as near to a row as each chosen one, itself counted.

    Args:
        vectors: n of them.
        row: of them.
        columns: (c,) row numbers.
        near: (c,) float32 similarities; -inf where a pair may not be compared.
        chosen: (m,) places in `columns`.

    Returns:
        (m,) counts.
    """
    own = np.sort(near[chosen])
    after = np.searchsorted(own, near)
    gap = np.minimum(
        np.abs(near - own[np.minimum(after, len(own) - 1)]), np.abs(near - own[np.maximum(after - 1, 0)])
    )
    close = np.flatnonzero(gap <= 2 * vectors.slack)
    exact = near.astype(np.float64)
    exact[close] = exactly(vectors, np.full(len(close), row), columns[close])
    return len(near) - np.searchsorted(np.sort(exact), exact[chosen], side="left")


def exactly(vectors: Vectors, rows: Rows, columns: Rows) -> Floats:
    """Cosines of pairs, (m,) and (m,) to (m,), rounded to 12 decimals."""
    return np.asarray(np.round(vectors.exact(rows, columns), 12))


class PairOrder:
    """Exact order statistics of the similarities of all pairs of some rows, in memory that does not grow with them.

    The pass counts similarities in bins. Only where a value between the edges of a bin is asked for, a second pass
    looks into that bin, and no other.
    """

    def __init__(
        self,
        vectors: Vectors,
        compared: Mask,
        apart: Sharing | None = None,
        together: Sharing | None = None,
    ) -> None:
        """Count pairs among `compared`, (n,) booleans: not those that share in `apart`, only those in `together`."""
        self._vectors = vectors
        self.rows_needed = self.columns_needed = compared
        self._rows = np.flatnonzero(compared)
        self._apart, self._together = apart, together
        self._counts = np.zeros(BINS, np.int64)

    @property
    def n(self) -> int:
        """How many pairs were taken."""
        return int(self._counts.sum())

    def run(self) -> "PairOrder":
        """Take all pairs, in a pass of their own."""
        for block in Host().blocks(self._vectors, self._rows, self._rows):
            self.take(block)
        return self

    def take(self, block: Block) -> None:
        """Count the similarities of these rows with later ones."""
        for _, _, near, wanted in self._pairs(block):
            places = ((near[wanted] + np.float32(1)) * np.float32(BINS / 2)).astype(np.int32)
            self._counts += np.bincount(np.clip(places, 0, BINS - 1, out=places), minlength=BINS)

    def bounds(self, rank: int) -> tuple[float, float]:
        """Give what the cosine of this rank (0 is the lowest) lies between."""
        place = int(np.searchsorted(np.cumsum(self._counts), rank, side="right"))
        # One bin more on both sides: where an edge falls is rounded too.
        low, high = (place - 1) * 2 / BINS - 1, (place + 2) * 2 / BINS - 1
        return low - self._vectors.slack, high + self._vectors.slack

    def at(self, *ranks: int) -> list[float]:
        """Give the cosines of these ranks (0 is the lowest), rounded to 12 decimals."""
        slack = self._vectors.slack
        edges = [(low - slack, high + slack) for low, high in map(self.bounds, ranks)]
        below = np.zeros(len(ranks), np.int64)
        found: list[list[Floats]] = [[] for _ in ranks]
        for block in Host().blocks(self._vectors, self._rows, self._rows):
            for rows, columns, near, wanted in self._pairs(block):
                near[~wanted] = np.inf
                for i, (low, high) in enumerate(edges):
                    below[i] += np.count_nonzero(near < low)
                    at, place = np.nonzero((near >= low) & (near <= high))
                    found[i].append(exactly(self._vectors, rows[at], columns[place]))
        inside = [np.sort(np.concatenate(one)) for one in found]
        return [float(one[rank - under]) for one, rank, under in zip(inside, ranks, below, strict=True)]

    def above(self, value: float) -> int:
        """Count the pairs whose cosine, rounded to 12 decimals, is larger."""
        counted, width = 0, 2 * self._vectors.slack
        for block in Host().blocks(self._vectors, self._rows, self._rows):
            for rows, columns, near, wanted in self._pairs(block):
                near[~wanted] = -np.inf
                is_above = near > value + width
                at, place = np.nonzero((near >= value - width) & ~is_above)
                exact = exactly(self._vectors, rows[at], columns[place])
                counted += int(np.count_nonzero(is_above)) + int(np.count_nonzero(exact > value))
        return counted

    def _pairs(self, block: Block) -> Iterator[tuple[Rows, Rows, Singles, Mask]]:
        """Give rows (b,), columns (c,), their similarities and which of these are counted, each pair once."""
        for chosen in parts(np.flatnonzero(self.rows_needed[block.rows]), len(self._rows)):
            rows = block.rows[chosen]
            columns = self._rows[self._rows > rows[0]]
            wanted = columns > rows[:, None]
            if self._apart is not None:
                wanted &= ~self._apart(rows, columns)
            if self._together is not None:
                wanted &= self._together(rows, columns)
            yield rows, columns, taken(block, chosen, columns), wanted
