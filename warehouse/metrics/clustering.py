"""Clusters against labels: ARI, AMI and silhouettes, as Bray et al. compare them.

Rows of exactly one label are clustered; the others are left out and counted. Clustering goes through the rows in the
order of their elements, so that the order in which they come changes nothing. Clusters that a method brings itself
(IIC and DeepCluster do) take the place of a clustering.
"""

import warnings
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from warehouse.errors import EvaluationError
from warehouse.metrics.gene_families import check_average, gene_family_clusters
from warehouse.metrics.grouped_rows import Floats, Grouped, Rows, grouped, numbered
from warehouse.metrics.registry import Metric
from warehouse.metrics.score import Labels, Score, check_length, label_sets, no_queries
from warehouse.names import unknown

METHODS = ("kmeans", "agglomerative", "complete", "ward", "spectral", "birch")
#: Methods that hold the distances of all pairs (birch those of its subclusters, as many as rows where profiles are
#: far apart), and rows at most for them: 3 GiB.
PAIRED = ("agglomerative", "complete", "ward", "birch")
MOST_PAIRED = 20_000
#: Elements held at a time by a silhouette, and its megabytes in scikit-learn.
BLOCK = 2**22
WORKING_MEMORY = 128


def ari(
    X: NDArray[np.floating],
    labels: Labels,
    clusters: Sequence[str | None] | None = None,
    ids: Sequence[str] | None = None,
    *,
    method: str = "kmeans",
    n_clusters: int = 0,
    distance: str = "cosine",
    seed: int = 0,
) -> Score:
    """Adjusted Rand index of clusters and labels: 1 where they are the same, 0 as by chance.

    Args:
        X: (n, d) profiles.
        labels: n sets of labels; rows with none or several are left out.
        clusters: n clusters that a method brings itself, in the place of a clustering; rows without one are left out.
        ids: n names for messages.
        method: ``kmeans`` (ten starts), ``agglomerative`` (average linkage), ``complete`` or ``ward`` linkage,
            ``spectral`` (on the graph of ten neighbours), ``birch``.
        n_clusters: to make; 0: as many as there are labels.
        distance: ``cosine``, for which profiles are scaled to length 1 (methods that know Euclidean distances only
            then take these between the scaled profiles), or ``euclidean``.
        seed: of the clustering.

    Returns:
        A score; n counts rows.

    Raises:
        EvaluationError: a length differs, a row that is used is not finite or (cosine) all zeros, there is one label
            only, there are more clusters than rows (spectral: than rows less one), or more than 20,000 rows for
            `PAIRED` methods.
        UnknownNameError: no such method or distance.

    Source:
        Hubert & Arabie 1985; Bray et al. 2022, Methods, "Clustering of compounds based on MoA" (ARI).
    """
    from sklearn.metrics import adjusted_rand_score

    own, found = _clustered("ari", X, labels, clusters, ids, method, n_clusters, distance, seed)
    return _plain(float(adjusted_rand_score(own.codes, found)), own)


def ami(
    X: NDArray[np.floating],
    labels: Labels,
    clusters: Sequence[str | None] | None = None,
    ids: Sequence[str] | None = None,
    *,
    method: str = "kmeans",
    n_clusters: int = 0,
    average: str = "max",
    distance: str = "cosine",
    seed: int = 0,
) -> Score:
    """Adjusted mutual information of clusters and labels: 1 where they are the same, 0 as by chance.

    Args:
        X: (n, d) profiles.
        labels: n sets of labels, as for `ari`.
        clusters: n clusters that a method brings itself, or None, as for `ari`.
        ids: n names for messages.
        method: as for `ari`.
        n_clusters: to make; 0: as many as there are labels.
        average: of the two entropies that the information is set against: ``max`` (Bray's), ``arithmetic``
            (scikit-learn's default, and so Kim's), ``geometric`` or ``min``.
        distance: as for `ari`.
        seed: of the clustering.

    Returns:
        A score; n counts rows.

    Raises:
        EvaluationError: as `ari`.
        UnknownNameError: no such method, distance or average.

    Source:
        Vinh et al. 2010; Bray et al. 2022, Methods: AMI = (MI - E(MI)) / (max{H(X), H(Y)} - E(MI)).
    """
    from sklearn.metrics import adjusted_mutual_info_score

    check_average(average)
    own, found = _clustered("ami", X, labels, clusters, ids, method, n_clusters, distance, seed)
    return _plain(float(adjusted_mutual_info_score(own.codes, found, average_method=average)), own)


def silhouette_labels(
    X: NDArray[np.floating],
    labels: Labels,
    ids: Sequence[str] | None = None,
    *,
    distance: str = "cosine",
) -> Score:
    """Mean silhouette of rows with their labels as clusters: 1 compact and apart, -1 nearer to another label.

    Args:
        X: (n, d) profiles.
        labels: n sets of labels; rows with none or several are left out.
        ids: n names for messages.
        distance: ``cosine`` (1 - cosine) or ``euclidean``.

    Returns:
        A score, the mean over rows; a row that is alone with its label has 0.

    Raises:
        EvaluationError: a length differs, a row that is used is not finite or (cosine) all zeros, there is one label
            only, or no two rows share one.
        UnknownNameError: no such distance.

    Source:
        Rousseeuw 1987; Bray et al. 2022, Methods: (b - a) / max(a, b) with ground truth MoA clusters.
    """
    own = grouped("silhouette_labels", X, labels, ids, what="label", distance=distance)
    return _silhouette_score("silhouette_labels", own, own.codes, "label")


def silhouette_clusters(
    X: NDArray[np.floating],
    labels: Labels,
    clusters: Sequence[str | None] | None = None,
    ids: Sequence[str] | None = None,
    *,
    method: str = "kmeans",
    n_clusters: int = 0,
    distance: str = "cosine",
    seed: int = 0,
) -> Score:
    """Mean silhouette of rows with predicted clusters: how well apart the clusters are, whatever they mean.

    Args:
        X: (n, d) profiles.
        labels: n sets of labels, which say which rows count and, with n_clusters=0, how many clusters there are.
        clusters: n clusters that a method brings itself, or None, as for `ari`.
        ids: n names for messages.
        method: as for `ari`.
        n_clusters: to make; 0: as many as there are labels.
        distance: as for `ari`; of the silhouette too.
        seed: of the clustering.

    Returns:
        A score, the mean over rows.

    Raises:
        EvaluationError: as `ari`; or all rows fall into one cluster, or each into its own.
        UnknownNameError: no such method or distance.

    Source:
        Rousseeuw 1987; Bray et al. 2022, Methods: (b - a) / max(a, b) with predicted clusters.
    """
    own, found = _clustered(
        "silhouette_clusters", X, labels, clusters, ids, method, n_clusters, distance, seed
    )
    return _silhouette_score("silhouette_clusters", own, found, "cluster")


def silhouettes(X: Floats, codes: Rows, distance: str) -> Floats:
    """Silhouette of each row, (n,), in memory that grows with n only.

    Args:
        X: (n, d); of length 1 each for cosine.
        codes: (n,) clusters from 0, at least two.
        distance: ``cosine`` or ``euclidean``.

    Source:
        Rousseeuw 1987. The mean of 1 - u·v over a cluster is 1 - u·(mean of v): cosine needs no pairs.
    """
    if distance != "cosine":
        from sklearn import config_context
        from sklearn.metrics import silhouette_samples

        with config_context(working_memory=WORKING_MEMORY):
            sampled: Floats = silhouette_samples(X, codes)
        return sampled
    count = np.bincount(codes)
    sums = np.zeros((len(count), X.shape[1]))
    np.add.at(sums, codes, X)
    made = np.zeros(len(X))
    step = max(1, BLOCK // len(count))
    for first in range(0, len(X), step):
        part = slice(first, first + step)
        own = codes[part]
        here = np.arange(len(own))
        total = count - X[part] @ sums.T
        # To 12 decimals: equal profiles are at distance 0 and not at that of their last digits.
        a = np.round(total[here, own] / np.maximum(count[own] - 1, 1), 12)
        total /= count
        total[here, own] = np.inf
        b = np.round(total.min(axis=1), 12)
        larger = np.maximum(a, b)
        defined = (count[own] > 1) & (larger > 0)
        made[part][defined] = ((b - a) / np.where(defined, larger, 1))[defined]
    return made


def _silhouette_score(metric: str, own: Grouped, codes: Rows, what: str) -> Score:
    count = int(codes.max()) + 1
    if not 2 <= count < len(codes):
        message = (
            f"{metric}: {len(codes)} rows in {count} {what}{'s' * (count > 1)}: a silhouette needs at least two "
            f"{what}s, and two rows that share one"
        )
        raise EvaluationError(message)
    values = silhouettes(own.X, codes, own.distance)
    return Score(float(values.mean()), len(values), None, own.per_query(values), None, own.left_out, "query")


def _plain(value: float, own: Grouped) -> Score:
    return Score(value, len(own), None, no_queries(), None, own.left_out, None)


def _clustered(
    metric: str,
    X: NDArray[np.floating],
    labels: Labels,
    clusters: Sequence[str | None] | None,
    ids: Sequence[str] | None,
    method: str,
    n_clusters: int,
    distance: str,
    seed: int,
) -> tuple[Grouped, Rows]:
    """Return rows of one label, and the cluster of each from 0."""
    if method not in METHODS:
        raise unknown(method, "method of clustering", METHODS)
    reasons = None
    if clusters is not None:
        check_length("clusters", clusters, len(X))
        check_length("labels", labels, len(X))
        alone = [len(found) == 1 for found in label_sets(labels)]
        reasons = [
            "no cluster" if one and given is None else None
            for one, given in zip(alone, clusters, strict=True)
        ]
    own = grouped(metric, X, labels, ids, what="label", distance=distance, reasons=reasons)
    if clusters is not None:
        return own, numbered([str(clusters[row]) for row in own.rows])[0]
    count = n_clusters or len(own.names)
    # As many eigenvectors as rows are more than the solver gives.
    most = len(own) - (method == "spectral")
    if not 2 <= count <= most:
        message = (
            f"{metric}: n_clusters={count} of {len(own)} rows with method={method}: ask for at least 2 and at most "
            f"{most}"
        )
        raise EvaluationError(message)
    if method in PAIRED and len(own) > MOST_PAIRED:
        message = (
            f"{metric}: method={method} holds the distances of all pairs, too many of {len(own)} rows (at most "
            f"{MOST_PAIRED}): take method=kmeans"
        )
        raise EvaluationError(message)
    return own, numbered(_labels_of(own, method, count, seed))[0]


def _labels_of(own: Grouped, method: str, count: int, seed: int) -> list[str]:
    """Cluster the rows by scikit-learn; a cluster's number as text."""
    from sklearn.exceptions import ConvergenceWarning
    from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

    maker = _makers(own, count, seed)[method]()
    # In one thread, sums come in one order: the same clusters each time.
    with warnings.catch_warnings(), threadpool_limits(1, user_api="openmp"):
        # Fewer distinct profiles than clusters, a graph in several parts: both have an answer.
        warnings.simplefilter("ignore", ConvergenceWarning)
        warnings.filterwarnings("ignore", message="Graph is not fully connected")
        warnings.filterwarnings("ignore", message="k >= N for N \\* N square matrix")
        found = maker.fit_predict(own.X)  # type: ignore[attr-defined]
    return [str(cluster) for cluster in found]


def _makers(own: Grouped, count: int, seed: int) -> dict[str, Callable[[], object]]:
    from sklearn import cluster

    def linked(linkage: str) -> Callable[[], object]:
        return lambda: cluster.AgglomerativeClustering(count, metric=own.distance, linkage=linkage)

    spread = float(np.sqrt(np.square(own.X - own.X.mean(axis=0)).sum(axis=1).mean()))
    return {
        "kmeans": lambda: cluster.KMeans(count, n_init=10, random_state=seed),
        "agglomerative": linked("average"),
        "complete": linked("complete"),
        "ward": lambda: cluster.AgglomerativeClustering(count, linkage="ward"),
        "spectral": lambda: cluster.SpectralClustering(
            count, affinity="nearest_neighbors", n_neighbors=min(10, len(own)), random_state=seed
        ),
        # Subclusters of a quarter of the profiles' own spread, whatever their unit.
        "birch": lambda: cluster.Birch(threshold=max(spread / 4, 1e-12), n_clusters=count),
    }


def _metric(
    name: str, function: Callable[..., Score], needs: tuple[str, ...], baselines: tuple[str, ...]
) -> Metric:
    return Metric(
        name=name,
        function=function,
        needs=needs,
        higher_is_better=True,
        range=(-1.0, 1.0),
        paper="Bray et al. 2022",
        level="treatment",
        baselines=baselines,
    )


METRICS: tuple[Metric, ...] = (
    _metric("ari", ari, ("labels", "clusters"), ("shuffled", "random", "cell_count")),
    _metric("ami", ami, ("labels", "clusters"), ("shuffled", "random", "cell_count")),
    _metric("silhouette_labels", silhouette_labels, ("labels",), ("shuffled", "random", "cell_count")),
    # Labels say only how many clusters there are: dealing them otherwise changes nothing.
    _metric("silhouette_clusters", silhouette_clusters, ("labels", "clusters"), ("random", "cell_count")),
    Metric(
        name="gene_family_clusters",
        function=gene_family_clusters,
        needs=("labels",),
        higher_is_better=True,
        range=(-1.0, 1.0),
        paper="Kim et al. 2025",
        level="consensus",
        label_kind="gene_family",
        # Two angles of a cell count correlate by ±1 only.
        baselines=("shuffled", "random"),
    ),
)
