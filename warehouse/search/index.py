"""Exact similarity search: a flat FAISS index whose filters act before the ranking.

FAISS finds candidates in float32; the candidates are compared again in float64. So an answer does not depend
on FAISS's order of summing, and equally near rows come in the order of their ids. The index is FAISS's CPU
one in either build: on the GPU its flat index ignores a selector, and a filter after the ranking loses rows.
"""

import json
import os
import tempfile
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from warehouse.errors import SearchError

Mask = NDArray[np.bool_]


class FlatIndex:
    """Cosine search over n vectors.

    Args:
        vectors: (n, d) floats; kept in float32, scaled to length 1.
        ids: n texts, each once; they name rows in messages and order the equally near.

    Raises:
        SearchError: a vector is zero or not finite, an id comes twice, shapes do not fit, or FAISS is absent.
    """

    def __init__(self, vectors: NDArray[np.floating], ids: Sequence[str]) -> None:
        if vectors.ndim != 2 or len(ids) != len(vectors) or vectors.size == 0:
            message = (
                f"vectors of shape {vectors.shape} and {len(ids)} ids: give one id per row, and one row up"
            )
            raise SearchError(message)
        self._build(_unit(vectors, ids, "vector"), ids)

    def _build(self, unit: NDArray[np.float32], ids: Sequence[str]) -> None:
        self.ids = list(ids)
        order = np.argsort(np.array(self.ids, dtype=object), kind="stable")
        for before, after in pairwise(order.tolist()):
            if self.ids[before] == self.ids[after]:
                message = (
                    f"id {self.ids[after]!r} names rows {before} and {after}: an index needs each id once"
                )
                raise SearchError(message)
        self._place = np.empty(len(order), np.int64)
        self._place[order] = np.arange(len(order))
        self._faiss = _faiss()
        self._vectors = unit
        self._index = self._faiss.IndexFlatIP(unit.shape[1])
        self._index.add(unit)

    def __len__(self) -> int:
        return len(self.ids)

    def vectors(self, rows: Sequence[int] | NDArray[np.integer]) -> NDArray[np.float32]:
        """Return the unit vectors of these rows, (rows, d)."""
        chosen: NDArray[np.float32] = self._vectors[np.asarray(rows, dtype=np.int64)]
        return chosen

    def search(
        self, queries: NDArray[np.floating], k: int, allowed: Mask | Sequence[Mask] | None = None
    ) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """Return the k nearest allowed rows of each query.

        Args:
            queries: (q, d) floats.
            k: how many, at least 1.
            allowed: (n,) booleans for all queries, or one such mask per query; rows that may be answers.

        Returns:
            Similarities (q, k), cosine in float32, and row numbers (q, k), by (similarity descending, id
            ascending). Where fewer than k rows are allowed the rest is NaN and -1.

        Raises:
            SearchError: a query is zero or not finite, or a shape or k does not fit.
        """
        if queries.ndim != 2 or queries.shape[1] != self._vectors.shape[1] or k < 1:
            width = self._vectors.shape[1]
            message = f"queries of shape {queries.shape}, k={k}: give (q, {width}) vectors and k from 1 up"
            raise SearchError(message)
        unit = _unit(queries, [str(i) for i in range(len(queries))], "query")
        similarity = np.full((len(unit), k), np.nan, np.float32)
        rows = np.full((len(unit), k), -1, np.int64)
        for mask, members in self._by_mask(allowed, len(unit)):
            found = self._search(unit[members], k, mask)
            for query, (near, at) in zip(members, found, strict=True):
                similarity[query, : len(at)] = near
                rows[query, : len(at)] = at
        return similarity, rows

    def save(self, path: Path, sidecar: Mapping[str, Any]) -> None:
        """Write vectors, ids and the caller's JSON `sidecar` as one file, whole or not at all.

        They share a file so that no crash and no reader in between sees the vectors of one index with the
        side-car of another.
        """
        path.parent.mkdir(parents=True, exist_ok=True)
        text = json.dumps({"ids": self.ids, "sidecar": dict(sidecar)}, allow_nan=False)
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        try:
            with os.fdopen(handle, "wb") as file:
                np.savez(file, vectors=self._vectors, about=np.frombuffer(text.encode(), np.uint8))
                file.flush()
                os.fsync(file.fileno())
            Path(temporary).replace(path)
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise

    @classmethod
    def load(cls, path: Path) -> tuple["FlatIndex", dict[str, Any]]:
        """Read an index and its side-car.

        Raises:
            SearchError: the file is absent or damaged.
        """
        about, vectors = _read(path, with_vectors=True)
        # Not through __init__: scaling once more would change last digits, and with them ties.
        index = cls.__new__(cls)
        index._build(vectors, about["ids"])
        return index, about["sidecar"]

    @staticmethod
    def card(path: Path) -> dict[str, Any]:
        """Read the side-car alone, without the vectors and without FAISS.

        Raises:
            SearchError: the file is absent or damaged.
        """
        about, _ = _read(path, with_vectors=False)
        sidecar: dict[str, Any] = about["sidecar"]
        return sidecar

    def _by_mask(
        self, allowed: Mask | Sequence[Mask] | None, q: int
    ) -> list[tuple[Mask | None, NDArray[np.intp]]]:
        """Return each distinct mask with the queries that have it, so that FAISS takes them together."""
        n = len(self._vectors)
        if allowed is None:
            return [(None, np.arange(q))]
        masks = np.asarray(allowed)
        if masks.dtype != bool or masks.shape not in ((n,), (q, n)):
            message = (
                f"allowed of shape {masks.shape}, {masks.dtype}: "
                f"give ({n},) booleans, or ({q}, {n}) for each query"
            )
            raise SearchError(message)
        if masks.ndim == 1:
            return [(masks, np.arange(q))]
        members: dict[bytes, list[int]] = {}
        for query, mask in enumerate(masks):
            members.setdefault(np.packbits(mask).tobytes(), []).append(query)
        return [(masks[group[0]], np.array(group)) for group in members.values()]

    def _search(
        self, unit: NDArray[np.float32], k: int, mask: Mask | None
    ) -> list[tuple[NDArray[np.float32], NDArray[np.int64]]]:
        """Return similarities and rows of each query, all under one mask."""
        total = len(self._vectors) if mask is None else int(mask.sum())
        bits = None if mask is None else np.packbits(mask, bitorder="little")
        selector = None if bits is None else self._faiss.IDSelectorBitmap(bits)
        parameters = None if selector is None else self._faiss.SearchParameters(sel=selector)
        # FAISS sums d products in float32, in an order of its own: more than its rounding can hide.
        slack = 4 * float(np.finfo(np.float32).eps) * max(self._vectors.shape[1] ** 0.5, 4.0)
        answers: list[tuple[NDArray[np.float32], NDArray[np.int64]]] = [
            (np.empty(0, np.float32), np.empty(0, np.int64)) for _ in unit
        ]
        open_queries, fetch = np.arange(len(unit)), min(total, k + 16)
        while len(open_queries) and total:
            near, candidates = self._index.search(unit[open_queries], fetch, params=parameters)
            unresolved = []
            for query, last, rows in zip(open_queries, near[:, -1], candidates, strict=True):
                exact = self._exact(unit[query], rows)
                order = np.lexsort((self._place[rows], -exact))[:k]
                # Whatever FAISS has not returned lies below its last candidate, by all but its rounding.
                if fetch < total and not last + slack < exact[order[-1]]:
                    unresolved.append(query)
                else:
                    answers[query] = (exact[order], rows[order])
            open_queries, fetch = np.array(unresolved, dtype=np.intp), min(total, fetch * 4)
        return answers

    def _exact(self, query: NDArray[np.float32], rows: NDArray[np.int64]) -> NDArray[np.float32]:
        """Cosine in float64, rounded to float32: the same for equal vectors wherever they stand."""
        products = self._vectors[rows].astype(np.float64) * query
        cosine: NDArray[np.float32] = np.clip(products.sum(axis=1), -1.0, 1.0).astype(np.float32)
        return cosine


def _read(path: Path, with_vectors: bool) -> tuple[dict[str, Any], NDArray[np.float32]]:
    try:
        with np.load(path, allow_pickle=False) as stored:
            vectors = stored["vectors"] if with_vectors else np.empty((0, 0), np.float32)
            return json.loads(stored["about"].tobytes()), vectors
    except FileNotFoundError:
        message = f"no index at {path}: build it with `wellhouse index`"
        raise SearchError(message) from None
    except Exception as error:
        message = f"index {path} cannot be read ({error}): build it again with `wellhouse index`"
        raise SearchError(message) from error


def _unit(vectors: NDArray[np.floating], ids: Sequence[str], what: str) -> NDArray[np.float32]:
    """Scale each row to length 1; refuse zero and non-finite ones by id."""
    exact = np.asarray(vectors, dtype=np.float64)
    finite = np.isfinite(exact).all(axis=1)
    if not finite.all():
        row = int(np.argmin(finite))
        value = exact[row][~np.isfinite(exact[row])][0]
        message = (
            f"{what} {ids[row]!r} holds {value} ({int((~finite).sum())} such): "
            "leave it out, or apply a recipe that drops the feature"
        )
        raise SearchError(message)
    # By the largest element first, so that no square over- or underflows.
    largest = np.abs(exact).max(axis=1, keepdims=True, initial=0.0)
    if (largest == 0).any():
        row = int(np.argmin(largest))
        count = int((largest == 0).sum())
        message = f"{what} {ids[row]!r} is all zeros ({count} such): it has no direction; leave it out"
        raise SearchError(message)
    scaled = exact / largest
    return np.ascontiguousarray(scaled / np.linalg.norm(scaled, axis=1, keepdims=True), dtype=np.float32)


def _faiss() -> ModuleType:
    """Import FAISS on first use."""
    try:
        import faiss
    except ImportError as error:
        message = "FAISS is not installed: pip install 'wellhouse[cpu]', or 'wellhouse[gpu]', not both"
        raise SearchError(message) from error
    module: ModuleType = faiss
    return module
