"""Similarity search whose filters act before the ranking: candidates in single precision, ranked in double.

What may come back is settled before anything is ranked, on whatever finds the candidates: a product in NumPy for
one or a few queries, FAISS for many, a FAISS structure where the index has one, a GPU. Candidates are then compared
in double, and equally near rows come in the order of their keys: an exact answer does not depend on who found the
candidates.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import polars as pl
from numpy.typing import NDArray

from warehouse.errors import SearchError
from warehouse.search import faiss_build
from warehouse.search.groups import MANY, Excluded, Group, among, dropped, groups, places, slices
from warehouse.search.keys import name_of, refuse_twice
from warehouse.search.structures import Structure
from warehouse.search.vectors import Rows, Vectors, cosines, slack, unit_rows

Mask = NDArray[np.bool_]
#: Below this share of allowed rows these are gathered and searched, and no structure is asked.
_SELECTIVE = 0.1
#: Candidates beyond k whose cosines are computed in double.
_MARGIN = 16
_BYTES = 64 << 20
#: Products of which the best is looked at, and the least that a product of unit vectors can be.
_PARTS, _LOWEST = 64, -2.0
#: Candidates of each query from which on it is answered alone.
_MOST_MIXED = 512


class Found(NamedTuple):
    """Similarities (q, k) float32 and row numbers (q, k) int64; NaN and -1 where fewer than k rows are allowed."""

    similarities: Vectors
    rows: Rows


class Index:
    """Cosine search over n vectors.

    Attributes:
        keys: n rows, the columns that name them, in the order by which ties are broken.
        structure: what proposes candidates, or None where all rows are compared.
    """

    def __init__(
        self,
        vectors: Vectors,
        keys: pl.DataFrame,
        *,
        gone: NDArray[np.int64] | None = None,
        structure: Structure | None = None,
        device: str = "cpu",
    ) -> None:
        """Search vectors that are of length 1 already; `Index.of` scales and checks.

        Args:
            vectors: (n, d) float32 of length 1; may be a memory map.
            keys: n rows.
            gone: rows that are no longer there, and never come back.
            structure: proposes candidates.
            device: `cpu` or `gpu`.

        Raises:
            SearchError: FAISS is absent, or the device is.
        """
        faiss_build.check(device)
        self._faiss = faiss_build.load()
        self._vectors = vectors
        self.keys = keys
        self.structure = structure
        self._alive: Mask | None = None
        if gone is not None and len(gone):
            self._alive = np.ones(len(vectors), dtype=bool)
            self._alive[gone] = False
        self._flat = None
        if device == "gpu":
            from warehouse.search.gpu import FlatOnGpu

            self.structure = None if structure is None else structure.to_gpu()
            self._flat = FlatOnGpu(vectors) if structure is None else None

    @classmethod
    def of(
        cls, vectors: NDArray[np.floating], ids: Sequence[str] | pl.DataFrame, *, device: str = "cpu"
    ) -> "Index":
        """Index vectors of any length.

        Args:
            vectors: (n, d) floats.
            ids: n texts, each once, or a frame of n rows, each once.
            device: `cpu` or `gpu`.

        Raises:
            SearchError: a vector is zero or not finite, an id comes twice, shapes do not fit, or FAISS is absent.
        """
        keys = (
            ids
            if isinstance(ids, pl.DataFrame)
            else pl.DataFrame({"id": list(ids)}, schema={"id": pl.String})
        )
        if vectors.ndim != 2 or len(keys) != len(vectors) or vectors.size == 0:
            message = (
                f"vectors of shape {vectors.shape} and {len(keys)} ids: give one id per row, and one row up"
            )
            raise SearchError(message)
        refuse_twice(keys)
        return cls(unit_rows(vectors, lambda row: name_of(keys, row)), keys, device=device)

    def __len__(self) -> int:
        return len(self._vectors)

    @property
    def dim(self) -> int:
        """Length of a vector."""
        return int(self._vectors.shape[1])

    @property
    def alive(self) -> Mask:
        """(n,) which rows are there."""
        return np.ones(len(self), dtype=bool) if self._alive is None else self._alive

    def vectors(self, rows: Sequence[int] | NDArray[np.integer]) -> Vectors:
        """Return the unit vectors of these rows, (rows, d)."""
        chosen: Vectors = self._vectors[np.asarray(rows, dtype=np.int64)]
        return chosen

    def search(
        self,
        queries: NDArray[np.floating],
        k: int,
        allowed: Mask | None = None,
        excluded: Sequence[Excluded] | None = None,
    ) -> Found:
        """Return the k nearest allowed rows of each query.

        Args:
            queries: (q, d) floats, of any length.
            k: how many, at least 1.
            allowed: (n,) rows that may be answers; None for all.
            excluded: for each query, arrays of rows that may not. An array that several queries share (the rows of
                a batch, say) should be one object: such queries are searched together.

        Returns:
            By (similarity descending, keys ascending).

        Raises:
            SearchError: a query is zero or not finite, or a shape or k does not fit.
        """
        n, q = len(self), len(queries)
        if queries.ndim != 2 or queries.shape[1] != self.dim or k < 1:
            message = f"queries of shape {queries.shape}, k={k}: give (q, {self.dim}) vectors and k from 1 up"
            raise SearchError(message)
        if allowed is not None and (allowed.dtype != bool or allowed.shape != (n,)):
            message = f"allowed of shape {allowed.shape}, {allowed.dtype}: give ({n},) booleans"
            raise SearchError(message)
        if excluded is not None and len(excluded) != q:
            message = f"excluded for {len(excluded)} queries: give a list of row numbers for each of the {q}"
            raise SearchError(message)
        unit = unit_rows(queries, str, "query")
        found = Found(np.full((q, k), np.nan, np.float32), np.full((q, k), -1, np.int64))
        base = allowed if self._alive is None else self._alive if allowed is None else self._alive & allowed
        formed = groups(excluded, q)
        mixed = [group for group in formed if group.is_mixed(n)]
        if self.structure is None and sum(len(group.members) for group in mixed) >= MANY:
            formed = [group for group in formed if not group.is_mixed(n)]
            self._mixed(unit, mixed, k, base, found)
        for members, shared, own in formed:
            mask = base
            if shared:
                mask = np.ones(n, dtype=bool) if base is None else base.copy()
                for rows in shared:
                    mask[rows] = False
            self._group(unit, members, k, mask, own, found)
        return found

    def _mixed(self, unit: Vectors, formed: list[Group], k: int, mask: Mask | None, found: Found) -> None:
        """Answer queries that leave out many rows, each group its own: what none may have is dropped afterwards.

        Where too little is left of what was fetched, more is, and in the end a query is answered alone.
        """
        members = np.concatenate([group.members for group in formed])
        group_of = np.repeat(np.arange(len(formed)), [len(group.members) for group in formed])
        own = [arrays for group in formed for arrays in group.own]
        left_out = [np.concatenate([np.empty(0, np.int64), *arrays]) for arrays in own]
        rows = None if mask is None else np.flatnonzero(mask)
        total = len(self) if rows is None else len(rows)
        still, fetch = np.arange(len(members)), 2 * (k + _MARGIN) + max(map(len, left_out))
        while len(still) >= MANY and total:
            fetch = min(fetch, total)
            near, at = self._nearest(np.ascontiguousarray(unit[members[still]]), fetch, rows)
            lowest = near[:, -1] if fetch < total else np.full(len(near), -np.inf, np.float32)
            is_out = among(at, [left_out[i] for i in still], len(self))
            for number in np.unique(group_of[still]):
                is_barred = np.zeros(len(self), dtype=bool)
                for shared in formed[number].shared:
                    is_barred[shared] = True
                mine = group_of[still] == number
                is_out[mine] |= is_barred[at[mine]]
            near, at = dropped(near, at, is_out, k + _MARGIN)
            self._rank(unit, members[still], at, k, found)
            # What was fetched and not compared, and what was not fetched, lie below these.
            bar = np.where(near[:, -1] > -np.inf, np.maximum(near[:, -1], lowest), lowest)
            still = still[self._is_open(bar, found.similarities[members[still], k - 1])]
            if fetch == total or fetch > _MOST_MIXED:
                break
            fetch *= 4
        for i in still:
            rest = np.concatenate([*formed[group_of[i]].shared, left_out[i]])
            self._one(unit, int(members[i]), k, mask, None, rest, found)

    def _is_open(self, bar: Vectors, last: Vectors) -> Mask:
        """Tell whether rounding may have kept a row away that is nearer than the k-th: all such are below the bar."""
        is_settled: Mask = (bar + 2 * self._rounding < last) | np.isneginf(bar)
        return ~is_settled

    def _group(
        self, unit: Vectors, members: Rows, k: int, mask: Mask | None, own: list[Excluded], found: Found
    ) -> None:
        """Answer queries that share a mask, each with a few rows of its own left out."""
        total = len(self) if mask is None else int(mask.sum())
        if total == 0:
            return
        left_out = [np.concatenate([np.empty(0, np.int64), *arrays]) for arrays in own]
        most = max((len(rows) for rows in left_out), default=0)
        is_selective = total < _SELECTIVE * len(self)
        # So many that as many as are wanted should be left of them.
        wanted = k + most if mask is None else int(1.5 * (k + most) * len(self) / total)
        if self.structure is not None and not is_selective and wanted <= self.structure.most:
            rest = self._by_structure(unit, members, k, mask, left_out, wanted, found)
        elif (len(members) >= MANY or self._flat is not None) and total > k + most + _MARGIN:
            rest = self._by_blocks(unit, members, k, mask, left_out, most, found)
        else:
            rest = range(len(members))
        if len(rest):
            rows = np.flatnonzero(mask) if mask is not None and is_selective else None
            for i in rest:
                self._one(unit, int(members[i]), k, mask, rows, left_out[i], found)

    def _one(
        self,
        unit: Vectors,
        query: int,
        k: int,
        mask: Mask | None,
        rows: Rows | None,
        left_out: Rows,
        found: Found,
    ) -> None:
        """Answer one query exactly: all that rounding could have put among the k nearest is compared in double."""
        vector = unit[query]
        if rows is not None:
            products = self._product(vector, rows)
        else:
            products = self._product(vector, None)
            if mask is not None:
                products[~mask] = -np.inf
        if len(left_out):
            at = left_out if rows is None else places(rows, left_out)
            products[at] = -np.inf
        near = np.flatnonzero(products >= max(_bar(products, k) - 2 * slack(self.dim), _LOWEST))
        chosen = near if rows is None else rows[near]
        self._rank(unit, np.array([query]), chosen[None, :], k, found)

    def _product(self, vector: Vectors, rows: Rows | None) -> Vectors:
        """Multiply a query with all rows, or with some; (rows,) float32."""
        total = len(self) if rows is None else len(rows)
        step = max(1, _BYTES // (4 * self.dim)) if rows is not None else total
        made = np.empty(total, dtype=np.float32)
        for first in range(0, total, step):
            part = slice(first, first + step)
            np.dot(self._vectors if rows is None else self._vectors[rows[part]], vector, out=made[part])
        return made

    def _by_blocks(
        self,
        unit: Vectors,
        members: NDArray[np.intp],
        k: int,
        mask: Mask | None,
        left_out: list[Rows],
        most: int,
        found: Found,
    ) -> Sequence[int]:
        """Answer many queries by FAISS; return those that rounding leaves open."""
        fetch = min(k + most + _MARGIN, len(self) if mask is None else int(mask.sum()))
        asked = np.ascontiguousarray(unit[members])
        near, rows = self._nearest(asked, fetch, None if mask is None else np.flatnonzero(mask))
        near, rows = dropped(near, rows, among(rows, left_out, len(self)), k + _MARGIN)
        self._rank(unit, members, rows, k, found)
        return np.flatnonzero(self._is_open(near[:, -1], found.similarities[members, k - 1])).tolist()

    @property
    def _rounding(self) -> float:
        return slack(self.dim) if self._flat is None else self._flat.slack

    def _nearest(self, asked: Vectors, fetch: int, rows: Rows | None) -> tuple[Vectors, Rows]:
        """Return the nearest of all rows, or of some, by single (or half) precision, best first; (q, fetch) each."""
        if self._flat is not None and fetch <= self._flat.most:
            return self._flat.search(asked, fetch, rows)
        by = self._faiss.METRIC_INNER_PRODUCT
        if rows is None:
            near, at = self._faiss.knn(asked, self._vectors, fetch, metric=by)
            return near, at
        parts: list[tuple[Vectors, Rows]] = []
        step = max(fetch, _BYTES // (4 * self.dim))
        for first in range(0, len(rows), step):
            block = rows[first : first + step]
            near, at = self._faiss.knn(asked, self._vectors[block], min(fetch, len(block)), metric=by)
            parts.append((near, block[at]))
        near, at = (np.concatenate(one, axis=1) for one in zip(*parts, strict=True))
        order = np.argsort(-near, axis=1, kind="stable")[:, :fetch]
        return np.take_along_axis(near, order, 1), np.take_along_axis(at, order, 1)

    def _by_structure(
        self,
        unit: Vectors,
        members: NDArray[np.intp],
        k: int,
        mask: Mask | None,
        left_out: list[Rows],
        wanted: int,
        found: Found,
    ) -> Sequence[int]:
        """Answer queries by what the structure proposes; return those that it leaves with fewer than k rows.

        No selector is given to it: a GPU heeds none, and HNSW and IVF look only near the query, where a filter may have
        left nothing. More is fetched instead, and what is not allowed dropped.
        """
        assert self.structure is not None
        asked = np.ascontiguousarray(unit[members])
        rows = self.structure.candidates(asked, k, wanted)
        covered = self.structure.settings.covered
        if covered < len(self):
            late = np.arange(covered, len(self))
            late = late if mask is None else late[mask[late]]
            if len(late):
                rows = np.concatenate([rows, self._nearest(asked, min(len(late), wanted), late)[1]], axis=1)
        if mask is not None:
            rows = np.where((rows >= 0) & mask[rows], rows, -1)
        rows = np.where(among(rows, left_out, len(self)), -1, rows)
        self._rank(unit, members, rows, k, found)
        filled = (found.rows[members] >= 0).sum(axis=1)
        total = len(self) if mask is None else int(mask.sum())
        kept = [np.unique(rows if mask is None else rows[mask[rows]]) for rows in left_out]
        due = np.array([min(k, total - len(rows)) for rows in kept])
        return np.flatnonzero(filled < due).tolist()

    def _rank(self, unit: Vectors, members: NDArray[np.intp], rows: Rows, k: int, found: Found) -> None:
        """Compare candidates (members, c), -1 for none, in double, and put the k best of each into the answer."""
        for part in slices(len(members), rows.shape[1]):
            chosen = rows[part]
            exact = cosines(self._vectors, np.maximum(chosen, 0), unit[members[part]])
            exact[chosen < 0] = -np.inf
            order = np.argsort(-exact, axis=1, kind="stable")
            exact, chosen = np.take_along_axis(exact, order, 1), np.take_along_axis(chosen, order, 1)
            for i in np.flatnonzero((exact[:, 1:] == exact[:, :-1]).any(axis=1)):
                chosen[i] = self._ties(exact[i], chosen[i])
            there = min(k, chosen.shape[1])
            is_there = exact[:, :there] > -np.inf
            at = members[part]
            found.similarities[at, :there] = np.where(is_there, exact[:, :there], np.nan)
            found.rows[at, :there] = np.where(is_there, chosen[:, :there], -1)

    def _ties(self, exact: Vectors, rows: Rows) -> Rows:
        """Order rows of the same similarity, which lie together, by their keys."""
        there = int((exact > -np.inf).sum())
        keys = self.keys[rows[:there]].with_columns(
            pl.Series("__near", -exact[:there]), pl.Series("__row", rows[:there])
        )
        ordered = keys.sort("__near", *self.keys.columns)["__row"].to_numpy()
        return np.concatenate([ordered, rows[there:]])


def _bar(products: Vectors, k: int) -> float:
    """Return a product that at least k reach, and not many more; -inf where there are not so many."""
    n = len(products)
    parts = n // _PARTS
    if parts >= 4 * k:
        # The k-th best of the best of each part: to find these is one pass, to order all of them many.
        best = products[: parts * _PARTS].reshape(_PARTS, parts).max(axis=0)
        bar = float(np.partition(best, parts - k)[parts - k])
        if np.count_nonzero(products >= bar) <= 4 * k + _PARTS:
            return bar
    return float(np.partition(products, n - k)[n - k]) if n > k else -np.inf
