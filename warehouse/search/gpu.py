"""Flat candidates on GPUs: half precision, shared out over all of them; filters by sub-indexes, never by selectors.

FAISS's GPU indexes pay no heed to a selector except where cuVS does the search. So none is given here: a query's own
few rows are fetched besides and dropped, and where a filter takes out more, the rows that it leaves are an index of
their own.

Source: Johnson, Douze & Jégou 2019 (FAISS on GPUs).
"""

from typing import Any

import numpy as np

from warehouse.errors import SearchError
from warehouse.search import faiss_build, structures
from warehouse.search.vectors import Rows, Vectors, slack

#: Sub-indexes that are kept on the GPU: those of the last filters.
_KEPT = 4


class FlatOnGpu:
    """All vectors on the GPUs, and the rows that recent filters left.

    Attributes:
        most: neighbours that a GPU gives at most; who needs more asks the CPU.
        slack: bound of the difference between a similarity here and the exact one.
    """

    most = structures.GPU_MOST

    def __init__(self, vectors: Vectors, *, halves: Any = None) -> None:
        """Copy vectors to the GPUs.

        Args:
            vectors: (n, d) of length 1.
            halves: makes an empty index of a dimension, for tests on machines without a GPU; None for the GPUs.
        """
        # A half is off by 2^-11 of itself at most, and by 2^-25 where it is very small: both factors of a product are
        # rounded so. Sums are made in single precision.
        d = vectors.shape[1]
        self.slack = 2.002 * 2**-11 + d**0.5 * 2**-24 + slack(d)
        self._vectors = vectors
        self._empty = halves or _on_gpus
        self._all = self._filled(None)
        self._sub: dict[bytes, Any] = {}

    def search(self, unit: Vectors, k: int, rows: Rows | None) -> tuple[Vectors, Rows]:
        """Return the k nearest of all rows, or of some; (q, k) similarities in half precision, and row numbers."""
        if rows is None:
            near, at = self._all.search(unit, k)
            return near, at
        key = rows.tobytes()
        if key not in self._sub:
            while len(self._sub) >= _KEPT:
                self._sub.pop(next(iter(self._sub)))
            self._sub[key] = self._filled(rows)
        near, at = self._sub[key].search(unit, k)
        return near, np.where(at >= 0, rows[at], -1)

    def _filled(self, rows: Rows | None) -> Any:
        try:
            return self._copied(rows)
        except RuntimeError as error:
            said = str(error).splitlines()[0]
            message = (
                f"the GPU does not take the vectors ({said}): index them as ivf_pq, or search on the cpu"
            )
            raise SearchError(message) from error

    def _copied(self, rows: Rows | None) -> Any:
        made = self._empty(self._vectors.shape[1])
        if not made.is_trained:
            made.train(np.ascontiguousarray(self._vectors[:1]))
        total = len(self._vectors) if rows is None else len(rows)
        step = max(1, (64 << 20) // (4 * self._vectors.shape[1]))
        for first in range(0, total, step):
            part = slice(first, min(first + step, total))
            made.add(np.ascontiguousarray(self._vectors[part if rows is None else rows[part]]))
        return made


def _on_gpus(dim: int) -> Any:
    faiss = faiss_build.load()
    options = faiss.GpuMultipleClonerOptions()
    options.useFloat16 = True
    options.shard = True
    return faiss.index_cpu_to_all_gpus(faiss.IndexFlatIP(dim), co=options)
