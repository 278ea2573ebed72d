"""The graph of nearest neighbours, and what it says of groups of its vertices."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from warehouse.errors import EvaluationError

Floats = NDArray[np.float64]
Rows = NDArray[np.int64]

#: Neighbours found beyond those asked for, among which distances computed exactly decide.
SPARE = 8
#: Elements of an array held at a time: 32 MiB.
BLOCK = 2**22
#: Elements of differences between rows held at a time: they stay in the cache.
CACHED = 2**17
#: Where the search for a row's bandwidth stops, as in harmonypy: entropy in nats, and steps.
TOLERANCE = 1e-5
STEPS = 50
#: Distances up to this, and from its inverse on, are in reach of the search.
USUAL = 1e6


@dataclass(frozen=True)
class Graph:
    """Each row's nearest others, nearest first.

    Attributes:
        neighbours: (n, k) int64 row numbers, the row itself not among them.
        distances: (n, k) float64, Euclidean.
    """

    neighbours: Rows
    distances: Floats


def nearest_euclidean(metric: str, X: Floats, k: int) -> Graph:
    """Find each row's k nearest others by Euclidean distance, exactly.

    Of rows at the same distance the first comes first, unless more than `SPARE` stand at the distance of the last
    neighbour. Memory grows with n × k.

    Args:
        metric: its name, for messages.
        X: (n, d).
        k: neighbours a row, itself not counted.

    Raises:
        EvaluationError: k is less than 1, or there are not more than k rows.
    """
    from sklearn.neighbors import NearestNeighbors

    n = len(X)
    require_k(metric, k, n)
    found = NearestNeighbors(n_neighbors=min(k + SPARE, n - 1), algorithm="brute").fit(X)
    candidates = np.sort(found.kneighbors(return_distance=False), axis=1)
    neighbours = np.empty((n, k), np.int64)
    distances = np.empty((n, k))
    step = max(1, CACHED // (candidates.shape[1] * max(X.shape[1], 1)))
    for first in range(0, n, step):
        part = slice(first, first + step)
        # The search expands (a - b)², which cannot tell near rows apart.
        between = X[candidates[part]] - X[part, None, :]
        gaps = np.sqrt(np.einsum("ijk,ijk->ij", between, between))
        order = np.argsort(gaps, axis=1, kind="stable")[:, :k]
        neighbours[part] = np.take_along_axis(candidates[part], order, axis=1)
        distances[part] = np.take_along_axis(gaps, order, axis=1)
    return Graph(neighbours, distances)


def require_k(metric: str, k: int, n: int) -> None:
    """Raise `EvaluationError` unless each of n rows has k others."""
    if not 1 <= k < n:
        message = f"{metric}: {k} neighbours of each of {n} rows: ask for at least 1 and at most {n - 1}"
        raise EvaluationError(message)


def inverse_simpson(graph: Graph, codes: Rows, k: int, perplexity: float) -> Floats:
    """Effective number of groups around each row, (n,) from 1 to the number of groups.

    Neighbours weigh exp(-β·distance), with β such that the weights have this perplexity.

    Args:
        graph: of at least k neighbours.
        codes: (n,) groups from 0.
        k: nearest neighbours.
        perplexity: below k; otherwise all weigh the same.

    Source:
        Korsunsky et al. 2019, LISI; harmonypy's `compute_lisi`, whose β search and tolerance these are.
    """
    n, groups = len(codes), int(codes.max()) + 1
    made = np.empty(n)
    step = max(1, BLOCK // max(k, groups))
    for first in range(0, n, step):
        part = slice(first, min(first + step, n))
        weights = _weights(graph.distances[part, :k], perplexity)
        share = _by_group(codes[graph.neighbours[part, :k]], weights, groups)
        made[part] = 1 / np.square(share).sum(axis=1)
    return made


def largest_components(graph: Graph, codes: Rows, k: int, strong: bool) -> Floats:
    """Share of each group's vertices, (groups,), in the largest component of the group's own part of the graph.

    Args:
        graph: of at least k neighbours.
        codes: (n,) groups from 0.
        k: neighbours that a row has an edge to.
        strong: edges are followed from a row to its neighbour only, not back.
    """
    from scipy.sparse import csr_array
    from scipy.sparse.csgraph import connected_components

    n = len(codes)
    rows = np.repeat(np.arange(n), k)
    columns = graph.neighbours[:, :k].ravel()
    # Edges within a group only: components of the whole are then those of each group's part.
    within = codes[rows] == codes[columns]
    edges = csr_array((np.ones(within.sum(), bool), (rows[within], columns[within])), shape=(n, n))
    _, component = connected_components(edges, directed=True, connection="strong" if strong else "weak")
    size = np.bincount(component)
    largest = np.zeros(int(codes.max()) + 1)
    np.maximum.at(largest, codes, size[component])
    return largest / np.bincount(codes)


def composition_p(graph: Graph, codes: Rows, k: int) -> Floats:
    """Give p of each row's neighbourhood, (n,), by Pearson's chi² of its groups against those of all rows.

    Source:
        Büttner et al. 2019, kBET: κ = Σ_l (n_l - k·f_l)² / (k·f_l), chi² with one degree less than groups.
    """
    from scipy.stats import chi2

    n, groups = len(codes), int(codes.max()) + 1
    expected = k * np.bincount(codes) / n
    made = np.empty(n)
    step = max(1, BLOCK // max(k, groups))
    for first in range(0, n, step):
        part = slice(first, min(first + step, n))
        near = codes[graph.neighbours[part, :k]]
        counted = _by_group(near, np.ones(near.shape), groups)
        made[part] = chi2.sf((np.square(counted - expected) / expected).sum(axis=1), groups - 1)
    return made


def _by_group(near: Rows, weights: Floats, groups: int) -> Floats:
    """Sum weights (b, k) of neighbours by their group (b, k) to (b, groups)."""
    flat = np.arange(len(near))[:, None] * groups + near
    summed = np.asarray(np.bincount(flat.ravel(), weights.ravel(), len(near) * groups), np.float64)
    shaped: Floats = summed.reshape(len(near), groups)
    return shaped


def _weights(distances: Floats, perplexity: float) -> Floats:
    """Weights (b, k) that sum to 1 and have this perplexity, or come as near as `STEPS` halvings bring them."""
    # From the nearest neighbour on: weights are the same, and none of them is lost to underflow.
    beyond = distances - distances.min(axis=1, keepdims=True)
    # harmonypy begins at 1, which is too far off for distances of another unit.
    far = beyond.max(axis=1)
    beta = np.where((far > 0) & ((far < 1 / USUAL) | (far > USUAL)), 1 / np.where(far > 0, far, 1), 1.0)
    low, high = np.full(len(beyond), -np.inf), np.full(len(beyond), np.inf)
    weights, excess = _entropy(beyond, beta, perplexity)
    for _ in range(STEPS):
        open_ = np.abs(excess) >= TOLERANCE
        if not open_.any():
            break
        up, down = open_ & (excess > 0), open_ & (excess <= 0)
        low[up], high[down] = beta[up], beta[down]
        with np.errstate(invalid="ignore"):
            middle = (low + high) / 2
        beta[up] = np.where(np.isinf(high[up]), beta[up] * 2, middle[up])
        beta[down] = np.where(np.isinf(low[down]), beta[down] / 2, middle[down])
        weights[open_], excess[open_] = _entropy(beyond[open_], beta[open_], perplexity)
    return weights


def _entropy(beyond: Floats, beta: Floats, perplexity: float) -> tuple[Floats, Floats]:
    """Weights (b, k) at a bandwidth each, and their entropy (b,) above that of the perplexity."""
    weights = np.exp(-beyond * beta[:, None])
    total = weights.sum(axis=1)
    entropy = np.log(total) + beta * (beyond * weights).sum(axis=1) / total
    return weights / total[:, None], entropy - np.log(perplexity)
