"""Which pairs of rows are matches and which are left out, as lists made for some rows at a time."""

from collections.abc import Collection, Hashable, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from warehouse.metrics.score import codes

Rows = NDArray[np.int64]
Mask = NDArray[np.bool_]

#: Up to so many groups of a row are compared with as many of another; further ones are looked up.
FEW = 4
#: Groups that are looked up at a time.
LOOKED_UP = 2**20


class Groups:
    """Rows and the groups they are in: of one label or batch each, or of several.

    What a row of many groups takes, the others do not: groups are kept as one list, row after row.

    Attributes:
        codes: (n,) int64, the group of each row, -1 for none; None where a row is in several.
        sizes: (groups,) rows of each.
    """

    def __init__(self, codes: Rows | None, lengths: Rows, listed: Rows) -> None:
        """Take the code of each row or None, and (n,) numbers of groups and all groups, by row, then group."""
        self.codes = codes
        self.sizes = np.bincount(listed, minlength=1)
        self._lengths, self._listed = lengths, listed
        self._firsts = np.cumsum(lengths) - lengths
        self._members = np.repeat(np.arange(len(lengths)), lengths)[np.argsort(listed, kind="stable")]
        self._starts = np.cumsum(self.sizes) - self.sizes

    @classmethod
    def of_codes(cls, codes: Rows) -> "Groups":
        """One group a row, (n,); -1 for none."""
        return cls(codes, (codes >= 0).astype(np.int64), codes[codes >= 0])

    @classmethod
    def of(cls, values: Sequence[Hashable]) -> "Groups":
        """One group a value; None is in none."""
        return cls.of_codes(codes(values))

    @classmethod
    def of_sets(cls, sets: Sequence[Collection[str]]) -> "Groups":
        """A group for each member of the sets, in alphabetical order."""
        number = {member: i for i, member in enumerate(sorted({member for row in sets for member in row}))}
        row = np.repeat(np.arange(len(sets)), [len(members) for members in sets])
        listed = np.array([number[member] for members in sets for member in members], dtype=np.int64)
        row, listed = unique(row, listed, max(len(number), 1))
        lengths = np.bincount(row, minlength=len(sets))
        if lengths.max(initial=0) > 1:
            return cls(None, lengths, listed)
        coded = np.full(len(sets), -1)
        coded[row] = listed
        return cls(coded, lengths, listed)

    def __len__(self) -> int:
        """How many rows."""
        return len(self._lengths)

    def any(self, rows: Rows) -> Mask:
        """Whether each of these rows is in a group, (b,)."""
        found: Mask = self._lengths[rows] > 0
        return found

    def count(self, rows: Rows) -> Rows:
        """Rows of the groups of each row, (b,), counted in each group anew."""
        return self._counted[rows]

    @cached_property
    def _counted(self) -> Rows:
        upto = np.r_[0, np.cumsum(self.sizes[self._listed])]
        return np.asarray(upto[self._firsts + self._lengths] - upto[self._firsts])

    def entries(self, rows: Rows) -> tuple[Rows, Rows]:
        """The groups of each row: place in `rows` and group, (e,) each, by place, then group."""
        length = self._lengths[rows]
        return np.repeat(np.arange(len(rows)), length), self._listed[_spans(self._firsts[rows], length)]

    def pairs(self, rows: Rows) -> tuple[Rows, Rows]:
        """Each row with all that share a group, itself among them: place in `rows` and other row, (p,) each.

        By place, then other; each pair once.
        """
        place, group = self.entries(rows)
        length = self.sizes[group]
        place, other = np.repeat(place, length), self._members[_spans(self._starts[group], length)]
        return (place, other) if self.codes is not None else unique(place, other, len(self))

    def shared(self, rows: Rows, others: Rows) -> Mask:
        """Whether the rows of each pair share a group, (p,) and (p,) to (p,)."""
        if self.codes is not None:
            mine = self.codes[rows]
            return np.asarray((mine == self.codes[others]) & (mine >= 0))
        found = np.zeros(len(rows), dtype=bool)
        for one in self._first_few:
            mine = one[rows]
            for other in self._first_few:
                found |= (mine == other[others]) & (mine >= 0)
        # Few rows have more groups than were compared here.
        more = np.flatnonzero(~found & (np.maximum(self._lengths[rows], self._lengths[others]) > FEW))
        found[more[self.common(rows[more], others[more])[0]]] = True
        return found

    def common(self, rows: Rows, others: Rows) -> tuple[Rows, Rows]:
        """The groups that the rows of each pair share: number of the pair and group, (e,) each, in this order."""
        is_longer = self._lengths[rows] > self._lengths[others]
        # Of each pair, the groups of the row that has fewer are looked up among those of the other.
        short, long = np.where(is_longer, others, rows), np.where(is_longer, rows, others)
        pairs, groups = [np.empty(0, np.int64)], [np.empty(0, np.int64)]
        for some in portions(self._lengths[short], LOOKED_UP):
            place, group = self.entries(short[some])
            key = long[some[place]] * len(self.sizes) + group
            at = np.searchsorted(self._keys, key)
            found = self._keys[np.minimum(at, len(self._keys) - 1)] == key if len(key) else key < 0
            pairs.append(some[place[found]])
            groups.append(group[found])
        return np.concatenate(pairs), np.concatenate(groups)

    @cached_property
    def _keys(self) -> Rows:
        """Row and group of each entry as one number, ascending."""
        return np.asarray(np.repeat(np.arange(len(self)), self._lengths) * len(self.sizes) + self._listed)

    @cached_property
    def _first_few(self) -> Rows:
        """The first groups of each row, (`FEW` at the most, n); -1 for none."""
        table = np.full((min(FEW, int(self._lengths.max(initial=0))), len(self)), -1)
        for slot, own in enumerate(table):
            there = np.flatnonzero(self._lengths > slot)
            own[there] = self._listed[self._firsts[there] + slot]
        return table


def _spans(firsts: Rows, lengths: Rows) -> Rows:
    """Places first, first + 1, … of each span, one after the other."""
    before = np.cumsum(lengths) - lengths
    return np.asarray(np.repeat(firsts - before, lengths) + np.arange(int(lengths.sum())))


def portions(work: Rows, most: int) -> list[Rows]:
    """Cut the places of so much work each, (n,), into runs of about as much as `most`; a place is never cut."""
    return np.split(np.arange(len(work)), np.flatnonzero(np.diff(np.cumsum(work) // most)) + 1)


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
        if len(self.left_out) == 1 and self.left_out[0].any(rows).all():
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
        bound = self.match.count(rows) + 1
        for groups in self.left_out:
            bound += groups.count(rows)
        return bound
