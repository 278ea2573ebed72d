"""Queries put together by what they must not have, and candidates that are dropped for it."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from warehouse.search.vectors import Rows, Vectors

#: Rows that a query must not have, as arrays of row numbers; queries that leave out the same share an array.
Excluded = Sequence[Rows]

#: Queries from which on FAISS's blocked products are quicker than one product after the other.
MANY = 16
#: Rows left out of one query alone: so many are fetched besides and dropped; more are masked.
FEW = 512


class Group(NamedTuple):
    """Queries that have the same long arrays: their numbers, these arrays, the short ones of each."""

    members: NDArray[np.intp]
    shared: list[Rows]
    own: list[Excluded]

    def is_mixed(self, n: int) -> bool:
        """Tell whether to search together with other groups: where a mask would serve few, or leaves most of n rows."""
        return bool(self.shared) and (len(self.members) < MANY or 2 * sum(map(len, self.shared)) < n)


def groups(excluded: Sequence[Excluded] | None, q: int) -> list[Group]:
    """Put queries that have the same long arrays together."""
    if excluded is None:
        return [Group(np.arange(q), [], [[] for _ in range(q)])]
    made = []
    members: dict[tuple[int, ...], list[int]] = {}
    for query, arrays in enumerate(excluded):
        key = tuple(sorted({id(rows) for rows in _long(arrays)}))
        members.setdefault(key, []).append(query)
    for group in members.values():
        shared = {id(rows): rows for rows in _long(excluded[group[0]])}
        own: list[Excluded] = [
            [rows for rows in excluded[query] if id(rows) not in shared] for query in group
        ]
        made.append(Group(np.array(group), list(shared.values()), own))
    return made


def _long(arrays: Excluded) -> list[Rows]:
    """Choose the arrays that are masked: the long ones, or all where the short ones come to much together."""
    short = sum(len(rows) for rows in arrays if len(rows) <= FEW)
    return [rows for rows in arrays if len(rows) > FEW or short > FEW]


def dropped(near: Vectors, rows: Rows, is_out: NDArray[np.bool_], keep: int) -> tuple[Vectors, Rows]:
    """Take candidates out of each query's, the others moving up; `keep` of them, -1 and -inf at the end."""
    if is_out.any():
        order = np.argsort(is_out, axis=1, kind="stable")
        rows = np.take_along_axis(np.where(is_out, -1, rows), order, 1)
        near = np.take_along_axis(np.where(is_out, -np.inf, near), order, 1)
    return near[:, :keep], rows[:, :keep]


def among(rows: Rows, left_out: Sequence[Rows], n: int) -> NDArray[np.bool_]:
    """Tell which candidates (q, c) are among the rows that their query leaves out itself."""
    lengths = [len(one) for one in left_out]
    if not any(lengths):
        return np.zeros(rows.shape, dtype=bool)
    owner = np.repeat(np.arange(len(left_out), dtype=np.int64), lengths)
    banned = np.sort(owner * n + np.concatenate(left_out))
    asked = np.arange(len(rows), dtype=np.int64)[:, None] * n + rows
    place = np.minimum(np.searchsorted(banned, asked), len(banned) - 1)
    found: NDArray[np.bool_] = (banned[place] == asked) & (rows >= 0)
    return found


def places(rows: Rows, wanted: Rows) -> Rows:
    """Tell where these rows are in a sorted array of rows, leaving out those that are not."""
    at = np.minimum(np.searchsorted(rows, wanted), len(rows) - 1).astype(np.int64)
    found: Rows = at[rows[at] == wanted]
    return found


def slices(q: int, c: int) -> Iterator[slice]:
    """Cut queries so that their candidates do not fill the memory."""
    step = max(1, (1 << 20) // max(c, 1))
    for first in range(0, q, step):
        yield slice(first, first + step)
