"""Which pairs of rows are matches and which are left out, as lists made for some rows at a time."""

from collections.abc import Collection, Hashable, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from warehouse.metrics.score import codes

Rows = NDArray[np.int64]
Mask = NDArray[np.bool_]


class Groups:
    """Rows and the groups they are in: of one label or batch each, or of several.

    Attributes:
        codes: (n, k) int64, the groups of each row; -1 for none.
        sizes: (groups,) rows of each.
    """

    def __init__(self, coded: Rows) -> None:
        self.codes = coded
        row, slot = np.nonzero(coded >= 0)
        of = coded[row, slot]
        order = np.argsort(of, kind="stable")
        self._members = row[order]
        self.sizes = np.bincount(of, minlength=1)
        self._starts = np.cumsum(self.sizes) - self.sizes

    @classmethod
    def of(cls, values: Sequence[Hashable]) -> "Groups":
        """One group a value; None is in none."""
        return cls(codes(values)[:, None])

    @classmethod
    def of_sets(cls, sets: Sequence[Collection[str]]) -> "Groups":
        """A group for each member of the sets."""
        number = {member: i for i, member in enumerate(sorted({member for row in sets for member in row}))}
        coded = np.full((len(sets), max((len(row) for row in sets), default=1) or 1), -1)
        for row, members in enumerate(sets):
            coded[row, : len(members)] = sorted(number[member] for member in set(members))
        return cls(coded)

    @property
    def single(self) -> bool:
        """Whether each row is in one group at the most."""
        return bool(self.codes.shape[1] == 1)

    def count(self, rows: Rows) -> Rows:
        """Rows of the groups of each row, (b,), counted in each group anew."""
        chosen = self.codes[rows]
        counted: Rows = np.where(chosen >= 0, self.sizes[chosen], 0).sum(axis=1)
        return counted

    def pairs(self, rows: Rows) -> tuple[Rows, Rows]:
        """Each row with all that share a group, itself among them: place in `rows` and other row, (p,) each.

        By place, then other; each pair once.
        """
        place, slot = np.nonzero(self.codes[rows] >= 0)
        group = self.codes[rows[place], slot]
        length = self.sizes[group]
        first = np.repeat(self._starts[group] - (np.cumsum(length) - length), length)
        place, other = np.repeat(place, length), self._members[first + np.arange(len(first))]
        return (place, other) if self.single else unique(place, other, len(self.codes))

    def shared(self, rows: Rows, others: Rows) -> Mask:
        """Whether the rows of each pair share a group, (p,) and (p,) to (p,)."""
        found = np.zeros(len(rows), dtype=bool)
        for one in self.codes.T:
            mine = one[rows]
            for other in self.codes.T:
                found |= (mine == other[others]) & (mine >= 0)
        return found


def unique(place: Rows, other: Rows, n: int) -> tuple[Rows, Rows]:
    """Pairs by place, then other (below n), each once."""
    # By a sort: the table of hashes of np.unique is ten times slower on so many.
    key = np.sort(place * n + other)
    key = key[np.diff(key, prepend=-1) > 0]
    return key // n, key % n


@dataclass(frozen=True)
class Relation:
    """What each query is compared with.

    Attributes:
        queries: (n,) booleans.
        library: (n,) booleans, the rows that are non-matches unless they are left out.
        match: a match shares one of these groups and is another row,
        unless: and none of any of these.
        left_out: rows that share one of any of these are no non-matches; the query is none either.
    """

    queries: Mask
    library: Mask
    match: Groups
    unless: tuple[Groups, ...] = ()
    left_out: tuple[Groups, ...] = field(default=())

    def matches(self, rows: Rows) -> tuple[Rows, Rows]:
        """Matches of rows: place in `rows` and row of the match, (p,) each, by place."""
        place, other = self.match.pairs(rows)
        kept = other != rows[place]
        for groups in self.unless:
            kept &= ~groups.shared(rows[place], other)
        return place[kept], other[kept]

    def no_others(self, rows: Rows) -> tuple[Rows, Rows]:
        """Rows of the library that are no non-matches: place in `rows` and row, (p,) each, by place, then row."""
        if len(self.left_out) == 1 and (self.left_out[0].codes[rows] >= 0).any(axis=1).all():
            place, other = self.left_out[0].pairs(rows)  # the query among them
            kept = self.library[other]
            return place[kept], other[kept]
        pairs = [(np.arange(len(rows)), rows), *(groups.pairs(rows) for groups in self.left_out)]
        place = np.concatenate([one for one, _ in pairs])
        other = np.concatenate([one for _, one in pairs])
        kept = self.library[other]
        return unique(place[kept], other[kept], len(self.library))

    def work(self, rows: Rows) -> Rows:
        """Bound of the pairs that either of the two makes for each row, (b,)."""
        bound: Rows = self.match.count(rows) + 1
        for groups in self.left_out:
            bound += groups.count(rows)
        return bound
