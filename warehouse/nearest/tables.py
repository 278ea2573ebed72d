"""Tables over all rows of a level: the k-NN graph, pairs above a threshold, what is unlike anything annotated."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np
import polars as pl
from numpy.typing import NDArray

from warehouse.errors import SearchError
from warehouse.names import unknown
from warehouse.nearest import statistics
from warehouse.nearest.filters import Filters, Sharing, check_k
from warehouse.profiles import IDS, LABEL_KINDS
from warehouse.search.vectors import cosines, slack

if TYPE_CHECKING:
    from warehouse.nearest.searcher import Searcher

Rows = NDArray[np.int64]

#: Queries that are searched at once, and neighbours that they are given in all.
_QUERIES, _NEIGHBOURS = 4096, 1 << 22
#: Pairs that a table may hold; more are no answer to anybody.
MOST_PAIRS = 5_000_000


def graph(searcher: Searcher, k: int = 20, filters: Filters | None = None) -> pl.DataFrame:
    """Find the k nearest neighbours of every row.

    Args:
        searcher: a level.
        k: how many.
        filters: what neighbours must not share; a predicate chooses the rows that the graph is of.

    Returns:
        The ids of each row, rank, similarity (cosine), and the ids of the neighbour as neighbour_…, by row, then rank.

    Raises:
        SearchError: k is no whole number from 1 up.
    """
    check_k(k)
    filters = filters or Filters()
    allowed = searcher.allowed(filters)
    rows = np.flatnonzero(searcher.index.alive if allowed is None else searcher.index.alive & allowed)
    parts = [_edges(searcher, [], [], [])]
    for of, found, near in _nearest_of(searcher, rows, min(k, len(searcher.index)), filters, allowed):
        parts.append(_edges(searcher, of, found, near))
    return pl.concat(parts).sort(*IDS[searcher.level], "rank")


def pairs(searcher: Searcher, threshold: float, filters: Filters | None = None) -> pl.DataFrame:
    """Find all pairs of rows that are at least so similar, each once.

    Args:
        searcher: a level.
        threshold: the least cosine, from -1 to 1.
        filters: what the two must not share; a predicate chooses the rows that are paired.

    Returns:
        The ids of one row, those of the other as neighbour_…, similarity (cosine); most similar first, then by ids. The
        first row of a pair is the one whose ids come first.

    Raises:
        SearchError: the threshold is no cosine, or more than `MOST_PAIRS` pairs reach it.
    """
    if not -1 <= threshold <= 1:
        message = f"threshold {threshold}: give a cosine, from -1 to 1"
        raise SearchError(message)
    filters = filters or Filters()
    allowed = searcher.allowed(filters)
    index, ids = searcher.index, IDS[searcher.level]
    rows = np.flatnonzero(index.alive if allowed is None else index.alive & allowed)
    order = searcher.rows[rows].with_row_index("__at").sort(*ids)["__at"].to_numpy()
    rows = rows[order]
    shares = [_Shared(searcher.sharing, kind, rows) for kind in filters.shared]
    first: list[Rows] = []
    second: list[Rows] = []
    near: list[NDArray[np.float32]] = []
    total = 0
    for a, b in _near_pairs(searcher, rows, threshold):
        for shared in shares:
            is_apart = ~shared.both(a, b)
            a, b = a[is_apart], b[is_apart]
        # One product after the other is what `cosines` gives, whichever of the two is the query.
        exact = _exact(searcher, rows[a], rows[b])
        is_near = exact >= np.float32(threshold)
        total += int(is_near.sum())
        if total > MOST_PAIRS:
            message = f"more than {MOST_PAIRS:,} pairs are as similar as {threshold}: give a higher threshold"
            raise SearchError(message)
        first.append(rows[a[is_near]])
        second.append(rows[b[is_near]])
        near.append(exact[is_near])
    one, other = (np.concatenate([np.empty(0, np.int64), *found]) for found in (first, second))
    similarity = pl.Series("similarity", np.concatenate([np.empty(0, np.float32), *near]), dtype=pl.Float32)
    made = pl.concat([_ids(searcher, one), _ids(searcher, other, "neighbour_")], how="horizontal")
    neighbour = [f"neighbour_{name}" for name in ids]
    return made.with_columns(similarity).sort(
        "similarity", *ids, *neighbour, descending=[True, *[False] * (2 * len(ids))]
    )


def novelty(searcher: Searcher, kind: str = "moa") -> pl.DataFrame:
    """Ask which rows are unlike anything annotated.

    Each row without a label of the kind is compared with the annotated rows of other compounds. How far annotated
    rows are from those of other compounds is the null. Negative controls are not asked about.

    Args:
        searcher: a level.
        kind: of label.

    Returns:
        One row for each such row, most novel first: its ids, the nearest annotated row as neighbour_…, with its
        labels of the kind as neighbour_moa, say, similarity (cosine), p_value (share of annotated rows that are as
        far), q_value.

    Raises:
        UnknownNameError: no such kind of label.
        SearchError: fewer than two compounds are annotated.

    Source:
        After Bray et al. 2022: treatments different from every annotated mechanism.
    """
    if kind not in LABEL_KINDS:
        raise unknown(kind, "kind of label", LABEL_KINDS)
    rows, alive = searcher.labelled_rows, searcher.index.alive
    is_annotated = rows[kind].is_not_null().to_numpy() & alive
    if rows.filter(pl.Series(is_annotated, dtype=pl.Boolean))["compound"].n_unique() < 2:
        message = f"fewer than two compounds have a label of kind {kind!r}: bring labels with --annotations"
        raise SearchError(message)
    is_asked = ~is_annotated & alive & rows["control_type"].ne_missing("negative").to_numpy()
    filters = Filters(not_same_compound=True)

    def nearest(of: Rows) -> tuple[Rows, NDArray[np.float32]]:
        found, near = np.full(len(of), -1), np.full(len(of), np.nan, np.float32)
        place = {row: at for at, row in enumerate(of.tolist())}
        for some, rows_of, similarity in _nearest_of(searcher, of, 1, filters, is_annotated):
            at = [place[row] for row in some.tolist()]
            found[at], near[at] = rows_of, similarity
        return found, near

    asked = np.flatnonzero(is_asked)
    found, near = nearest(asked)
    _, null = nearest(np.flatnonzero(is_annotated))
    p_values, q_values = statistics.novelty(near, null[~np.isnan(null)])
    there = found >= 0
    made = pl.concat(
        [_ids(searcher, asked[there]), _ids(searcher, found[there], "neighbour_")], how="horizontal"
    ).with_columns(
        rows[found[there]][kind].alias(f"neighbour_{kind}"),
        pl.Series("similarity", near[there], dtype=pl.Float32),
        pl.Series("p_value", p_values[there], dtype=pl.Float64),
        pl.Series("q_value", q_values[there], dtype=pl.Float64),
    )
    return made.sort("similarity", *IDS[searcher.level])


def _nearest_of(
    searcher: Searcher, rows: Rows, k: int, filters: Filters, allowed: NDArray[np.bool_] | None
) -> Iterator[tuple[Rows, Rows, NDArray[np.float32]]]:
    """Search with rows of the level, many at once: of which row, the row found, how similar; by row and rank."""
    step = max(1, min(_QUERIES, _NEIGHBOURS // k))
    for begin in range(0, len(rows), step):
        block = rows[begin : begin + step]
        queries = searcher.queries_of(block)
        left_out = [searcher.sharing.left_out(query, filters, is_strict=False) for query in queries]
        found = searcher.index.search(searcher.index.vectors(block), k, allowed, left_out)
        of, at = np.nonzero(found.rows >= 0)
        yield block[of], found.rows[of, at], found.similarities[of, at]


def _edges(searcher: Searcher, of: object, found: object, near: object) -> pl.DataFrame:
    one, other = np.asarray(of, dtype=np.int64), np.asarray(found, dtype=np.int64)
    starts = np.flatnonzero(np.diff(one, prepend=-1)) if len(one) else np.empty(0, np.int64)
    rank = np.arange(len(one)) - np.repeat(starts, np.diff(np.append(starts, len(one)))) + 1
    values = (
        pl.Series("rank", rank, dtype=pl.Int64),
        pl.Series("similarity", np.asarray(near, dtype=np.float32), dtype=pl.Float32),
    )
    return pl.concat(
        [_ids(searcher, one).with_columns(*values), _ids(searcher, other, "neighbour_")], how="horizontal"
    )


def _ids(searcher: Searcher, rows: Rows, prefix: str = "") -> pl.DataFrame:
    return searcher.rows.select(IDS[searcher.level])[rows].rename(lambda name: prefix + name)


def _near_pairs(searcher: Searcher, rows: Rows, threshold: float) -> Iterator[tuple[Rows, Rows]]:
    """Give the places of pairs that single precision finds near enough, block by block, the first before the second."""
    index = searcher.index
    bar = np.float32(threshold - 2 * slack(index.dim))
    step = 2048
    for begin in range(0, len(rows), step):
        block = index.vectors(rows[begin : begin + step])
        for later in range(begin, len(rows), step):
            near = block @ index.vectors(rows[later : later + step]).T
            a, b = np.nonzero(near >= bar)
            is_once = a + begin < b + later
            yield a[is_once] + begin, b[is_once] + later


def _exact(searcher: Searcher, one: Rows, other: Rows) -> NDArray[np.float32]:
    made = np.empty(len(one), dtype=np.float32)
    for begin in range(0, len(one), 65536):
        part = slice(begin, begin + 65536)
        queries = searcher.index.vectors(one[part])
        made[part] = cosines(searcher.index.vectors(other[part]), np.arange(len(queries))[:, None], queries)[
            :, 0
        ]
    return made


class _Shared:
    """Whether two rows have a compound, a batch, … in common."""

    def __init__(self, sharing: Sharing, kind: str, rows: Rows) -> None:
        from scipy.sparse import csr_matrix

        held = pl.DataFrame({"row": np.arange(len(rows)), "value": sharing.values(kind)[rows]})
        held = held.explode("value").drop_nulls("value")
        codes = held["value"].rank("dense").to_numpy().astype(np.int64) - 1
        ones = np.ones(len(held), dtype=np.int32)
        shape = (len(rows), int(codes.max(initial=-1)) + 1)
        self._held = csr_matrix((ones, (held["row"].to_numpy(), codes)), shape=shape)

    def both(self, a: Rows, b: Rows) -> NDArray[np.bool_]:
        """Tell of each pair of places whether they share a value."""
        if len(a) == 0 or self._held.shape[1] == 0:
            return np.zeros(len(a), dtype=bool)
        common: NDArray[np.bool_] = np.asarray(self._held[a].multiply(self._held[b]).sum(axis=1)).ravel() > 0
        return common
