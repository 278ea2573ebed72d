"""Hierarchical clusters of genes against gene families, as Kim et al. score them."""

from collections import Counter
from collections.abc import Sequence

import numpy as np
import polars as pl
from numpy.typing import NDArray

from warehouse.errors import EvaluationError
from warehouse.metrics.grouped_rows import Floats, grouped
from warehouse.metrics.score import Labels, Score, check_length, label_sets, no_queries, row_name
from warehouse.names import unknown

#: Of two entropies, that mutual information is set against; of scikit-learn.
AVERAGES = ("max", "arithmetic", "geometric", "min")


def gene_family_clusters(
    X: NDArray[np.floating],
    labels: Labels,
    ids: Sequence[str] | None = None,
    *,
    least: int = 4,
    most: int = 10,
    families: int = 20,
    average: str = "arithmetic",
) -> Score:
    """AMI of gene families and hierarchical clusters of genes, cut into as many clusters as there are families.

    Families of `least` to `most` genes are kept, of these the `families` with the highest mean Pearson correlation
    between their members. The matrix of all correlations between their genes is clustered by complete linkage on the
    Euclidean distance between its rows. Choosing families in the space that is scored flatters it, and flatters
    random profiles too: the baselines are chosen for in the same way.

    Args:
        X: (n, d) consensus profiles, one a gene.
        labels: n sets of families; genes with none or several are left out.
        ids: n names for messages.
        least: genes of a family.
        most: genes of a family.
        families: at most; of equally correlated ones the first by name.
        average: of the two entropies, as for `ami`.

    Returns:
        A score; n counts genes. `per_group` has the curve: `n_clusters` from 2 to the number of genes less one,
        `value`. Where distances tie, a cut can have fewer clusters than asked.

    Raises:
        EvaluationError: a length differs, a gene's profile is constant or not finite, or least, most and families
            do not fit, or fewer than two families are left.
        UnknownNameError: no such average.

    Source:
        Kim et al. 2025, Methods, "Hierarchical clustering of genetic perturbations".
    """
    from scipy.cluster.hierarchy import fcluster, linkage
    from sklearn.metrics import adjusted_mutual_info_score

    check_average(average)
    metric = "gene_family_clusters"
    if not (2 <= least <= most and families >= 2):
        message = (
            f"{metric}: least={least}, most={most}, families={families}: a family has at least 2 genes, and no more "
            "than most, and there are at least 2 families"
        )
        raise EvaluationError(message)
    check_length("labels", labels, len(X))
    sizes = Counter(next(iter(found)) for found in label_sets(labels) if len(found) == 1)
    # A direction is all that correlations see.
    own = grouped(
        metric, X, labels, ids, what="label", distance="cosine", reasons=_sized(labels, sizes, least, most)
    )
    X = np.asarray(X, dtype=np.float64)[own.rows]
    # By the largest element first, so that no square over- or underflows.
    largest = np.abs(X).max(axis=1, keepdims=True, initial=0.0)
    unit = X / np.where(largest > 0, largest, 1)
    unit -= unit.mean(axis=1, keepdims=True)
    length = np.linalg.norm(unit, axis=1, keepdims=True)
    flat = length[:, 0] <= 1e-12
    if flat.any():
        row = int(own.rows[np.argmax(flat)])
        message = (
            f"{metric}: profile {row_name(row, ids)} has the same value in all {X.shape[1]} features "
            f"({int(flat.sum())} such profiles): it correlates with none; leave it out"
        )
        raise EvaluationError(message)
    unit /= length
    within = [_within(unit[own.codes == code]) for code in range(len(own.names))]
    best = sorted(range(len(own.names)), key=lambda code: (-round(within[code], 12), own.names[code]))[
        :families
    ]
    kept = np.isin(own.codes, best)
    family, unit = own.codes[kept], unit[kept]
    tree = linkage(unit @ unit.T, method="complete", metric="euclidean")
    counts = range(2, len(family))
    curve = [
        float(adjusted_mutual_info_score(family, fcluster(tree, count, "maxclust"), average_method=average))
        for count in counts
    ]
    beyond = int((~kept).sum())
    left_out = own.left_out | ({f"family beyond the first {families}": beyond} if beyond else {})
    per_group = pl.DataFrame({"n_clusters": list(counts), "value": curve})
    return Score(curve[len(best) - 2], len(family), None, no_queries(), per_group, left_out, None)


def check_average(average: str) -> None:
    """Raise `UnknownNameError` unless mutual information can be set against this average of entropies."""
    if average not in AVERAGES:
        raise unknown(average, "average of entropies", AVERAGES)


def _sized(labels: Labels, sizes: Counter[str], least: int, most: int) -> list[str | None]:
    """Why a row's family is not of the size asked for."""
    reasons: list[str | None] = []
    for found in label_sets(labels):
        size = sizes[next(iter(found))] if len(found) == 1 else least
        if size < least:
            reasons.append(f"family of fewer than {least}")
        else:
            reasons.append(f"family of more than {most}" if size > most else None)
    return reasons


def _within(unit: Floats) -> float:
    """Mean correlation between different rows of (m, d), m > 1."""
    m = len(unit)
    return float((np.square(unit.sum(axis=0)).sum() - m) / (m * (m - 1)))
