"""Approximate candidates: HNSW, IVF and IVF-PQ of FAISS, trained and filled in blocks, their recall measured.

They only propose rows; the cosines of what they propose are computed exactly, so an answer is ordered as an exact
one is, and may lack rows. How many it lacks is measured when a structure is made, against the exact search of the
same vectors, and stored with it.

Sources: Malkov & Yashunin 2020 (HNSW); Jégou et al. 2011 (IVF-PQ); Douze et al. 2024 (the FAISS library).
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from warehouse.errors import SearchError
from warehouse.names import unknown
from warehouse.search import faiss_build
from warehouse.search.vectors import Rows, Vectors, cosines, slack

KINDS = ("flat", "hnsw", "ivf", "ivf_pq")

#: Recall is measured at this many neighbours, of this many of the rows.
RECALL_AT = 20
_SAMPLE = 500
#: Neighbours that a GPU gives at most.
GPU_MOST = 2048
#: Bytes of vectors that are added at a time, and that a quantizer is trained on at most.
_BLOCK = 64 << 20
_TRAINING = 1 << 30
_SEED = 20
#: Nodes that a search of HNSW keeps in view at most: with more a flat search is quicker.
_MOST_NODES = 4096


@dataclass(frozen=True)
class Settings:
    """How a structure is asked.

    Attributes:
        kind: of `KINDS`.
        effort: lists visited (IVF, IVF-PQ), or nodes kept in view (HNSW).
        refine: candidates taken for each neighbour wanted; their cosines are then computed exactly.
        recall: share of the exact nearest 20 of a row, itself left out, that it finds: the lower of the means over two
            samples of 500 rows.
        covered: rows that it knows; those after them are searched exactly.
    """

    kind: str
    effort: int
    refine: int
    recall: float
    covered: int


class Structure:
    """A FAISS structure over unit vectors, and how it is asked."""

    def __init__(self, faiss_index: Any, settings: Settings, width: int) -> None:
        self.settings = settings
        self._index = faiss_index
        self.width = width
        self._faiss = faiss_build.load()
        self._is_on_gpu = False

    @property
    def most(self) -> int:
        """How many candidates it can be asked for; who needs more compares all rows."""
        if self.settings.kind == "hnsw":
            return _MOST_NODES
        return GPU_MOST // self.settings.refine if self._is_on_gpu else self.settings.covered

    def candidates(self, unit: Vectors, k: int, wanted: int | None = None) -> Rows:
        """Propose rows, whatever filters say: what may not come back is for the caller to drop.

        Args:
            unit: (q, d) queries.
            k: how many neighbours are wanted.
            wanted: how many to propose, where some will be dropped; the effort grows with them.

        Returns:
            (q, wanted · refine or less) rows, -1 where nothing was found.
        """
        wanted = wanted or k
        fetch = min(wanted * self.settings.refine, self.settings.covered)
        effort = -(-self.settings.effort * wanted // k)
        parameters = None  # a GPU has its own, set once
        if self.settings.kind == "hnsw":
            parameters = self._faiss.SearchParametersHNSW(efSearch=max(effort, fetch))
        elif not self._is_on_gpu:
            parameters = self._faiss.SearchParametersIVF(nprobe=effort)
        _, rows = self._index.search(_padded(unit, self.width), fetch, params=parameters)
        found: Rows = rows
        return found

    def to_gpu(self) -> "Structure":
        """Copy the structure to all GPUs, its lists in half precision, shared out where there are several.

        Raises:
            SearchError: it is of a kind that FAISS has on the CPU only.
        """
        if self.settings.kind == "hnsw":
            message = "an index of kind 'hnsw' is searched on the CPU: build it as flat, ivf or ivf_pq for device 'gpu'"
            raise SearchError(message)
        options = self._faiss.GpuMultipleClonerOptions()
        options.useFloat16 = True
        options.shard = True
        options.common_ivf_quantizer = True
        there = Structure(
            self._faiss.index_cpu_to_all_gpus(self._index, co=options), self.settings, self.width
        )
        there._is_on_gpu = True
        self._faiss.GpuParameterSpace().set_index_parameter(there._index, "nprobe", self.settings.effort)
        return there

    def save(self, path: Path) -> None:
        """Write the structure to a file.

        Raises:
            OSError: it cannot be written, as the disk is full say.
        """
        try:
            self._faiss.write_index(self._index, str(path))
        except RuntimeError as error:
            raise OSError(str(error).splitlines()[0]) from error

    @classmethod
    def load(cls, path: Path, settings: Settings, width: int) -> "Structure":
        """Read a structure.

        Raises:
            SearchError: the file cannot be read, or is of another structure.
        """
        faiss = faiss_build.load()
        try:
            found = faiss.read_index(str(path))
        except RuntimeError as error:
            message = (
                f"index {path} cannot be read ({str(error).splitlines()[0]}): build it again with --rebuild"
            )
            raise SearchError(message) from error
        if found.ntotal != settings.covered or found.d != width:
            message = (
                f"index {path} holds {found.ntotal} vectors of {found.d}, not {settings.covered} of {width}"
            )
            raise SearchError(message)
        return cls(found, settings, width)


def build(vectors: Vectors, kind: str, recall: float) -> Structure:
    """Make a structure, and find the least effort that reaches a recall.

    Args:
        vectors: (n, d) of length 1; may be a memory map.
        kind: `hnsw`, `ivf` or `ivf_pq`.
        recall: wanted, from 0 to 1; the one that was reached is in the settings.

    Raises:
        UnknownNameError: no such kind.
        SearchError: the recall is no share.
    """
    if kind not in KINDS[1:]:
        raise unknown(kind, "kind of structure", KINDS[1:])
    check_recall(recall)
    n, d = vectors.shape
    # Product quantizers cut a vector into pieces of equal length: zeros at its end change no product.
    width = -(-d // 8) * 8 if kind == "ivf_pq" else d
    made = _empty(kind, n, width)
    if not made.is_trained:
        most = max(256, min(n, 64 * max(1, _lists(n)), _TRAINING // (4 * width)))
        chosen = np.sort(np.random.default_rng(_SEED).permutation(n)[:most])
        # FAISS wants 39 vectors for each of 16 centroids; of fewer, each is given again.
        made.train(_padded(vectors[np.resize(chosen, max(640, len(chosen)))], width))
    for block in _blocks(vectors):
        made.add(_padded(block, width))
    structure = Structure(made, Settings(kind, 0, 1, 0.0, n), width)
    return _tuned(structure, vectors, recall)


def check_recall(recall: float) -> None:
    """Refuse a recall that is no share.

    Raises:
        SearchError: it is not above 0 and at most 1.
    """
    if not 0 < recall <= 1:
        message = f"recall {recall}: give a share above 0 and at most 1, such as 0.99"
        raise SearchError(message)


def _blocks(vectors: Vectors) -> Iterator[Vectors]:
    """Cut vectors into blocks of bounded size."""
    rows = max(1, _BLOCK // (4 * vectors.shape[1]))
    for first in range(0, len(vectors), rows):
        yield np.ascontiguousarray(vectors[first : first + rows])


def _lists(n: int) -> int:
    """Choose how many lists: 4·√n, as FAISS advises, and at least 39 vectors to train each."""
    return int(min(4 * n**0.5, max(1, n // 39)))


def _empty(kind: str, n: int, width: int) -> Any:
    faiss = faiss_build.load()
    by = faiss.METRIC_INNER_PRODUCT
    if kind == "hnsw":
        # Half precision halves what is held beside the vectors; the cosines come from the vectors themselves.
        made = faiss.IndexHNSWSQ(width, faiss.ScalarQuantizer.QT_fp16, 32, by)
        made.hnsw.efConstruction = 128
        return made
    lists = max(1, _lists(n))
    coarse = faiss.IndexFlatIP(width)
    if kind == "ivf":
        made = faiss.IndexIVFScalarQuantizer(coarse, width, lists, faiss.ScalarQuantizer.QT_fp16, by, False)
    else:
        pieces = next(m for m in range(min(64, width // 4), 0, -1) if width % m == 0)
        made = faiss.IndexIVFPQ(coarse, width, lists, pieces, 8 if n >= 10_000 else 4, by)
    made.own_fields = True
    coarse.this.disown()
    made.cp.seed = _SEED
    return made


def _tuned(structure: Structure, vectors: Vectors, wanted: float) -> Structure:
    """Raise effort, then the number of candidates, until the recall is there or nothing is left to raise."""
    n = structure.settings.covered
    drawn = np.random.default_rng(_SEED).permutation(n)[: 2 * _SAMPLE]
    samples = [_Sample.of(vectors, np.sort(half)) for half in (drawn[::2], drawn[1::2]) if len(half)]
    kind = structure.settings.kind
    most = min(n, _MOST_NODES) if kind == "hnsw" else max(1, _lists(n))
    # Rows that it was not tuned on find a little less: a fifth of what may be missed is kept in hand.
    wanted += 0.2 * (1 - wanted)
    refines = (4, 16, 64) if kind == "ivf_pq" else (1,)
    best = structure
    for refine in refines:
        effort = 16 if kind == "hnsw" else 1
        while True:
            effort = min(effort, most)
            asked = Structure(
                structure._index, replace(structure.settings, effort=effort, refine=refine), structure.width
            )
            recall = min(sample.recall(asked, vectors) for sample in samples)
            if recall > best.settings.recall:
                best = Structure(structure._index, replace(asked.settings, recall=recall), structure.width)
            if recall >= wanted or effort == most:
                break
            effort = max(effort + 1, int(effort * 1.4))
        if best.settings.recall >= wanted:
            break
    return best


class _Sample(NamedTuple):
    """Rows that recall is measured with: their numbers, how many neighbours each, how near these are at the least."""

    rows: Rows
    k: int
    enough: Vectors

    @classmethod
    def of(cls, vectors: Vectors, rows: Rows) -> "_Sample":
        """Search exactly with these rows."""
        faiss = faiss_build.load()
        k = min(RECALL_AT, len(vectors) - 1)
        near, at = faiss.knn(
            np.ascontiguousarray(vectors[rows]), vectors, k + 1, metric=faiss.METRIC_INNER_PRODUCT
        )
        # Without the row itself, which of rows that are equal to it may not have come first, or at all.
        near[at == rows[:, None]] = np.inf
        ordered = np.sort(
            np.where(np.isinf(near).any(axis=1, keepdims=True), near, _first_gone(near)), axis=1
        )
        # By similarity, not by row: of rows that are equally near any will do.
        return cls(rows, k, ordered[:, :1] - np.float32(slack(vectors.shape[1])))

    def recall(self, structure: Structure, vectors: Vectors) -> float:
        """Measure the share of the nearest that a structure proposes."""
        if self.k == 0:
            return 1.0
        queries = np.ascontiguousarray(vectors[self.rows])
        found = structure.candidates(queries, self.k + 1)
        is_other = (found >= 0) & (found != self.rows[:, None])
        is_near = (cosines(vectors, np.maximum(found, 0), queries) >= self.enough) & is_other
        return float(np.minimum(is_near.sum(axis=1), self.k).mean()) / self.k


def _first_gone(near: Vectors) -> Vectors:
    """Take the best of each query away, as if it were the query itself."""
    made = near.copy()
    made[:, 0] = np.inf
    return made


def _padded(vectors: Vectors, width: int) -> Vectors:
    short = width - vectors.shape[1]
    return np.ascontiguousarray(vectors if short == 0 else np.pad(vectors, ((0, 0), (0, short))))
