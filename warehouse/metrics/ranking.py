"""Average precision from a pass over similarities: only matches are ranked, by counting what is nearer.

What is near is compared as copairs does: distances 1 - cosine in single precision, of cosines in double. A block's
similarities are in single precision themselves: what lies further from a match's than they can be off is counted,
the few that are nearer are multiplied again.
"""

import numpy as np
from numpy.typing import NDArray

from warehouse.metrics.passes import Arrays, Block, Vectors
from warehouse.metrics.relations import Relation, portions
from warehouse.names import unknown

Rows = NDArray[np.int64]
Floats = NDArray[np.float64]
Distances = NDArray[np.float32]

TIES = ("averaged", "copairs", "threshold")
#: Up to so many matches of a row, counting beats a product in double and a sort of the row.
FEW = 48
#: The same of rows that are no non-matches: so many, and a quarter of the library.
MANY = 256
#: Pairs that are listed at a time.
PAIRS = 2**20
#: Similarities in double that are held at a time.
SORTED = 2**23
#: What distances in single precision may differ by where the cosines do not.
ROUNDED = 4e-7


def distance(cosine: Floats) -> Distances:
    """Distance of which equals are ties: 1 - cosine, in single precision."""
    made: Distances = np.float32(1) - cosine.astype(np.float32)
    return made


class Ranking:
    """Average precision of each query's matches among its matches and non-matches.

    Attributes:
        value: (n,) average precision; NaN without a match, and for rows that are no query.
        matches: (n,) number of matches.
        total: (n,) number of matches and non-matches.
        entries: of each query and group of its own that a match shares, where that is asked for: row, group of the
            relation's `match`, average precision and number of matches of this group.

    Args:
        vectors: n of them.
        relation: what is compared.
        ties: of `TIES`.
        by_group: count each group of matches for itself.

    Raises:
        UnknownNameError: `ties` is in no list.
        EvaluationError: a profile that is compared is zero or not finite.
    """

    def __init__(self, vectors: Vectors, relation: Relation, ties: str, by_group: bool = False) -> None:
        if ties not in TIES:
            raise unknown(ties, "rule for ties", TIES)
        vectors.require(relation.queries | relation.library)
        n = len(vectors)
        self.vectors = vectors
        self.relation = relation
        self.rows_needed = relation.queries
        self.columns_needed = relation.library
        self.value = np.full(n, np.nan)
        self.matches = np.zeros(n, np.int64)
        self.total = np.zeros(n, np.int64)
        self.entries: list[tuple[Rows, Rows, Floats, Rows]] = []
        self._ties = ties
        self._by_group = by_group
        self._columns = np.flatnonzero(relation.library)
        self._column = np.cumsum(relation.library) - 1
        self._window = np.float32(vectors.slack + ROUNDED)

    def run(self, arrays: Arrays) -> None:
        """Rank all queries, in a pass of their own."""
        columns = None if self.relation.library.all() else self._columns
        for block in arrays.blocks(self.vectors, np.flatnonzero(self.relation.queries), columns):
            self.take(block)

    def take(self, block: Block) -> None:
        """Rank the queries among the rows of a block that holds the library."""
        places = np.flatnonzero(self.relation.queries[block.rows])
        if len(places) == 0:
            return
        across = len(self.relation.library) if block.columns is None else len(block.columns)
        if across > len(self._columns):
            columns = (
                self._columns if block.columns is None else np.searchsorted(block.columns, self._columns)
            )
            block, places = block.only(places, columns), np.arange(len(places))
        for some in portions(self.relation.work(block.rows[places]), PAIRS):
            self._rank(block, places[some])

    def _rank(self, block: Block, places: Rows) -> None:
        rows = block.rows[places]
        place, match = self.relation.matches(rows)
        out_place, out = self.relation.no_others(rows)
        count = np.bincount(place, minlength=len(rows))
        left_out = np.bincount(out_place, minlength=len(rows))
        self.matches[rows] = count
        self.total[rows] = count + len(self._columns) - left_out
        near = np.empty(len(place), np.float32)
        before, tied = np.zeros(len(place), np.int64), np.zeros(len(place), np.int64)
        many = (count > FEW) | ((count > 0) & (left_out > MANY + len(self._columns) // 4))
        dense = many[place]
        few = np.flatnonzero(~dense)
        cosine = self.vectors.exact(rows[place[few]], match[few])
        near[few] = distance(cosine)
        kept = ~many[out_place]
        before[few], tied[few] = self._counted(
            block, places, place[few], cosine, near[few], out_place[kept], self._column[out[kept]]
        )
        for number in np.array_split(
            np.flatnonzero(many), 1 + int(many.sum()) * len(self._columns) // SORTED
        ):
            if len(number):
                self._sorted(block, places, number, place, match, out_place, out, (near, before, tied))
        value = precision(place, near, before, tied, self._ties)
        which = np.flatnonzero(count)
        self.value[rows[which]] = value
        if self._by_group:
            self._take_groups(rows, place, match, near, before, tied)

    def _counted(
        self,
        block: Block,
        places: Rows,
        place: Rows,
        cosine: Floats,
        near: Distances,
        out_place: Rows,
        out: Rows,
    ) -> tuple[Rows, Rows]:
        """Count the non-matches nearer than and as near as each match: (p,) and (p,)."""
        # What lies outside a match's window is surely nearer, or surely farther.
        middle = cosine.astype(np.float32)
        low, high = middle - self._window, middle + self._window
        before, number, column = block.windows(places[place], low, high)
        # What is left out of the library was counted with the rest. A key orders by place, then similarity.
        key = np.sort(out_place * 8.0 + block.at(places[out_place], out))
        last = np.cumsum(np.bincount(out_place, minlength=len(places)))
        before -= last[place] - np.searchsorted(key, place * 8.0 + high, side="right")
        n = len(self._columns)
        is_out = _among(place[number] * n + column, out_place * n + out)
        number, column = number[~is_out], column[~is_out]
        rows = block.rows[places[place[number]]]
        again = distance(self.vectors.exact(rows, self._columns[column]))
        before += np.bincount(number[again < near[number]], minlength=len(place))
        return before, np.bincount(number[again == near[number]], minlength=len(place))

    def _sorted(
        self,
        block: Block,
        places: Rows,
        number: Rows,
        place: Rows,
        match: Rows,
        out_place: Rows,
        out: Rows,
        found: tuple[Distances, Rows, Rows],
    ) -> None:
        """Do the same for rows with many matches, `number` of the places: multiply all in double, and sort."""
        near, before, tied = found
        far = distance(block.products(places[number]))
        rows = block.rows[places]
        for row, i in zip(far, number.tolist(), strict=True):
            own = slice(*np.searchsorted(place, [i, i + 1]).tolist())
            mine = match[own]
            inside = self.relation.library[mine]
            near[own][inside] = row[self._column[mine[inside]]]
            beyond = mine[~inside]
            near[own][~inside] = distance(self.vectors.exact(np.full(len(beyond), rows[i]), beyond))
            row[self._column[out[slice(*np.searchsorted(out_place, [i, i + 1]).tolist())]]] = np.inf
            row.sort()
            # Looked up in order, which is several times faster.
            order = np.argsort(near[own], kind="stable")
            near[own], match[own] = near[own][order], mine[order]
            before[own] = np.searchsorted(row, near[own], side="left")
            tied[own] = np.searchsorted(row, near[own], side="right") - before[own]

    def _take_groups(
        self, rows: Rows, place: Rows, match: Rows, near: Distances, before: Rows, tied: Rows
    ) -> None:
        groups = len(self.relation.match.sizes)
        pair, group = self.relation.match.common(rows[place], match)
        key = place[pair] * groups + group
        order = np.argsort(key, kind="stable")
        key, pair = key[order], pair[order]
        value = precision(key, near[pair], before[pair], tied[pair], self._ties)
        entry, count = np.unique(key, return_counts=True)
        self.entries.append((rows[entry // groups], entry % groups, value, count))


def precision(query: Rows, near: Distances, before: Rows, tied: Rows, ties: str) -> Floats:
    """Average precision of each query that has a match.

    Args:
        query: (p,) of each match; equal ones stand together.
        near: (p,) distances.
        before: (p,) non-matches nearer than the match.
        tied: (p,) non-matches as near.
        ties: ``copairs``: a match goes before non-matches that are as near; ``averaged``: the mean over all orders
            of what is equally near; ``threshold``: equals are in the list together, as scikit-learn has it.

    Returns:
        One value a query, in their order.

    Source:
        Kalinin et al. 2025: the mean over matches of i / rank. Averaged: McSherry & Najork 2008.
    """
    if len(query) == 0:
        return np.empty(0)
    number = np.cumsum(np.r_[False, query[1:] != query[:-1]])
    if ((near[1:] < near[:-1]) & (number[1:] == number[:-1])).any():
        order = np.lexsort((near, number))
        near, before, tied = near[order], before[order], tied[order]
    starts = np.flatnonzero(np.r_[True, number[1:] != number[:-1]])
    count = np.diff(np.r_[starts, len(number)])
    i = np.arange(len(number)) - np.repeat(starts, count) + 1
    if ties == "copairs":
        part = i / (i + before)
    else:
        new = np.r_[True, (number[1:] != number[:-1]) | (near[1:] != near[:-1])]
        firsts = np.flatnonzero(new)
        equals = np.diff(np.r_[firsts, len(number)])
        if ties == "threshold":
            upto = np.repeat(i[firsts] + equals - 1, equals)
            part = upto / (upto + before + tied)
        else:
            part = i / (i + before)
            for first, p in zip(
                firsts[tied[firsts] > 0].tolist(), equals[tied[firsts] > 0].tolist(), strict=True
            ):
                part[first : first + p] = (
                    _averaged(int(i[first]) - 1, p, int(before[first]), int(tied[first])) / p
                )
    total: Floats = np.bincount(number, weights=part) / count
    return total


def _averaged(found: int, p: int, n: int, q: int) -> float:
    """What p matches as near as q non-matches add, after `found` matches and n non-matches, in the mean over orders."""
    # Place j of the p + q holds a match with chance p/(p+q), and then (j-1)(p-1)/(p+q-1) of them stand before it.
    j = np.arange(1, p + q + 1)
    earlier = (j - 1) * (p - 1) / max(p + q - 1, 1)
    return float((p / (p + q) * (found + 1 + earlier) / (found + n + j)).sum())


def _among(keys: Rows, known: Rows) -> NDArray[np.bool_]:
    """Whether each key is among known ones, which ascend."""
    if len(known) == 0:
        return np.zeros(len(keys), dtype=bool)
    at = np.minimum(np.searchsorted(known, keys), len(known) - 1)
    found: NDArray[np.bool_] = known[at] == keys
    return found
