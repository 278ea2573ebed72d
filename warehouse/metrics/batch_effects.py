"""How far profiles tell which batch they are of.

Each metric counts rows of exactly one batch, negative controls left out unless `keep_controls` (Kim et al. leave them
out of all evaluations). Beside its value stand two baselines of its own in `per_group`, where `baseline` is NULL for
the profiles themselves: ``separated``, clouds of normal numbers that do not touch, one a batch, as bad as can be; and
``shuffled``, the profiles with batches dealt at random, as good as can be.

"Batch" is what the caller groups by: batch, plate or source.
"""

from collections.abc import Callable, Collection, Sequence

import numpy as np
import polars as pl
from numpy.typing import NDArray

from warehouse.errors import EvaluationError
from warehouse.metrics.batch_mixing import clisi, graph_connectivity, ilisi, kbet
from warehouse.metrics.batch_models import batch_classifier, pc_regression
from warehouse.metrics.clustering import silhouettes
from warehouse.metrics.grouped_rows import BASELINES, Grouped, of_one_batch, plural, scenes
from warehouse.metrics.registry import Metric
from warehouse.metrics.score import Score, check_length


def batch_silhouette(
    X: NDArray[np.floating],
    batches: Sequence[Collection[str]],
    controls: Sequence[bool],
    ids: Sequence[str] | None = None,
    *,
    distance: str = "cosine",
    keep_controls: bool = False,
    seed: int = 0,
) -> Score:
    """Mean silhouette of rows with their batches as clusters: 1 apart, 0 or less mixed. Lower is better.

    Args:
        X: (n, d) profiles.
        batches: n sets; rows with none or several are left out.
        controls: n booleans, negative controls.
        ids: n names for messages.
        distance: ``cosine`` (1 - cosine), or ``euclidean`` (much slower, as it takes all pairs).
        keep_controls: count negative controls too.
        seed: of the baselines.

    Returns:
        A score, the mean over rows. `per_query` has the silhouette of each row; `per_group` baseline, value.

    Raises:
        EvaluationError: a length differs, a row that is used is not finite or (cosine) all zeros, there is one batch
            only, or each row has a batch of its own.
        UnknownNameError: no such distance.

    Source:
        Rousseeuw 1987; Kim et al. 2025, Methods, silhouette score.
    """
    own = _of_batches("batch_silhouette", "batch", X, batches, controls, ids, distance, keep_controls)
    return _over_rows(own, seed)


def source_silhouette(
    X: NDArray[np.floating],
    sources: Sequence[Collection[str]],
    controls: Sequence[bool],
    ids: Sequence[str] | None = None,
    *,
    distance: str = "cosine",
    keep_controls: bool = False,
    seed: int = 0,
) -> Score:
    """`batch_silhouette` with sources (laboratories) in the place of batches. Lower is better."""
    own = _of_batches("source_silhouette", "source", X, sources, controls, ids, distance, keep_controls)
    return _over_rows(own, seed)


def batch_silhouette_scib(
    X: NDArray[np.floating],
    batches: Sequence[Collection[str]],
    treatments: Sequence[str | None],
    controls: Sequence[bool],
    ids: Sequence[str] | None = None,
    *,
    distance: str = "cosine",
    keep_controls: bool = False,
    seed: int = 0,
) -> Score:
    """Mean of 1 - |silhouette| by batch, within each treatment: 1 mixed, 0 apart. Higher is better.

    The silhouette of a row is taken among the rows of its own treatment, so that what differs between treatments
    does not count; then the mean over a treatment's rows, and over treatments.

    Args:
        X: (n, d) profiles.
        batches: n sets; rows with none or several are left out.
        treatments: n treatments; rows of none are left out, and of those that are in one batch only or have each row
            in another batch.
        controls: n booleans, negative controls.
        ids: n names for messages.
        distance: ``cosine`` (1 - cosine), or ``euclidean`` (scib).
        keep_controls: count negative controls too.
        seed: of the baselines.

    Returns:
        A score, the mean over treatments. `per_query` has 1 - |s| of each row, treatment; `per_group` baseline, value.

    Raises:
        EvaluationError: a length differs, a row that is used is not finite or (cosine) all zeros, there is one batch
            only, each row has a batch of its own, or no treatment is left.
        UnknownNameError: no such distance.

    Source:
        Luecken et al. 2022, batch ASW.
    """
    metric = "batch_silhouette_scib"
    own = _of_batches(metric, "batch", X, batches, controls, ids, distance, keep_controls, treatments)
    return _within_treatments(metric, own, [treatments[row] for row in own.rows], "batch", seed)


def source_silhouette_scib(
    X: NDArray[np.floating],
    sources: Sequence[Collection[str]],
    treatments: Sequence[str | None],
    controls: Sequence[bool],
    ids: Sequence[str] | None = None,
    *,
    distance: str = "cosine",
    keep_controls: bool = False,
    seed: int = 0,
) -> Score:
    """`batch_silhouette_scib` with sources (laboratories) in the place of batches. Higher is better."""
    metric = "source_silhouette_scib"
    own = _of_batches(metric, "source", X, sources, controls, ids, distance, keep_controls, treatments)
    return _within_treatments(metric, own, [treatments[row] for row in own.rows], "source", seed)


def _of_batches(
    metric: str,
    what: str,
    X: NDArray[np.floating],
    batches: Sequence[Collection[str]],
    controls: Sequence[bool],
    ids: Sequence[str] | None,
    distance: str,
    keep_controls: bool,
    treatments: Sequence[str | None] | None = None,
) -> Grouped:
    """Keep the rows of one batch, of which at least two share theirs."""
    ties = None
    if treatments is not None:
        check_length("treatments", treatments, len(X))
        ties = [name or "" for name in treatments]
    own = of_one_batch(
        metric,
        X,
        batches,
        controls,
        ids,
        keep_controls=keep_controls,
        what=what,
        distance=distance,
        ties=ties,
    )
    if len(own.names) == len(own):
        message = f"{metric}: each of {len(own)} rows has a {what} of its own: a silhouette needs two that share one"
        raise EvaluationError(message)
    return own


def _over_rows(own: Grouped, seed: int) -> Score:
    found = [silhouettes(profiles, codes, own.distance) for _, profiles, codes in scenes(own, seed)]
    rows = [
        (baseline, float(s.mean()))
        for baseline, s in zip((None, "shuffled", "separated"), found, strict=True)
    ]
    per_group = pl.DataFrame(rows, schema=BASELINES, orient="row")
    return Score(rows[0][1], len(own), None, own.per_query(found[0]), per_group, own.left_out, "query")


def _within_treatments(
    metric: str, own: Grouped, treatments: Sequence[str | None], what: str, seed: int
) -> Score:
    """1 - |s| by treatment; baselines count a treatment's rows where the profiles do."""
    treatment = np.array([name or "" for name in treatments])
    _, codes_of, counts = np.unique(treatment, return_inverse=True, return_counts=True)
    parts = np.split(np.argsort(codes_of, kind="stable"), np.cumsum(counts)[:-1])
    parts = [part for part in parts if treatment[part[0]]]
    parts = [part for part in parts if 1 < len(np.unique(own.codes[part])) < len(part)]
    if not parts:
        message = (
            f"{metric}: no treatment has rows in two {plural(what)} and two rows in one: take {what}_silhouette, "
            "which needs no treatments"
        )
        raise EvaluationError(message)
    values = np.full(len(own), np.nan)
    rows = []
    for baseline, profiles, codes in scenes(own, seed):
        means = []
        for part in parts:
            local = np.unique(codes[part], return_inverse=True)[1]
            # Dealt at random, a treatment's rows can come to be of one batch, or each of another.
            if not 1 < local.max() + 1 < len(part):
                continue
            mixed = 1 - np.abs(silhouettes(profiles[part], local, own.distance))
            means.append(mixed.mean())
            if baseline is None:
                values[part] = mixed
        rows.append((baseline, float(np.mean(means)) if means else None))
    kept = np.isfinite(values)
    per_query = own.per_query(values, treatment=treatment).filter(pl.col("value").is_not_nan())
    lost = {
        "no treatment": int((treatment == "").sum()),
        f"treatment not in two {plural(what)} with two rows in one": int((~kept & (treatment != "")).sum()),
    }
    left_out = own.left_out | {reason: count for reason, count in lost.items() if count}
    per_group = pl.DataFrame(rows, schema=BASELINES, orient="row")
    value = per_group["value"][0]
    return Score(value, int(kept.sum()), None, per_query, per_group, left_out, None)


def _metric(
    name: str,
    function: Callable[..., Score],
    needs: tuple[str, ...],
    paper: str,
    higher_is_better: bool = False,
    lowest: float = 0.0,
) -> Metric:
    return Metric(
        name=name,
        function=function,
        needs=needs,
        higher_is_better=higher_is_better,
        range=(lowest, 1.0),
        paper=paper,
        level="well",
        baselines=(),
    )


_KIM = "Kim et al. 2025"
_SCIB = "Luecken et al. 2022 (batch ASW)"
METRICS: tuple[Metric, ...] = (
    _metric("batch_silhouette", batch_silhouette, ("batches", "controls"), _KIM, lowest=-1.0),
    _metric("source_silhouette", source_silhouette, ("sources", "controls"), _KIM, lowest=-1.0),
    _metric(
        "batch_silhouette_scib", batch_silhouette_scib, ("batches", "treatments", "controls"), _SCIB, True
    ),
    _metric(
        "source_silhouette_scib", source_silhouette_scib, ("sources", "treatments", "controls"), _SCIB, True
    ),
    _metric("graph_connectivity", graph_connectivity, ("batches", "controls"), _KIM),
    _metric("ilisi", ilisi, ("batches", "controls"), "Korsunsky et al. 2019; Kim et al. 2025", True),
    _metric("clisi", clisi, ("labels",), "Korsunsky et al. 2019; Luecken et al. 2022", True),
    _metric("kbet", kbet, ("batches", "controls"), "Büttner et al. 2019"),
    _metric(
        "batch_classifier",
        batch_classifier,
        ("batches", "treatments", "plates", "controls"),
        "Gorodkin 2004 (MCC)",
        lowest=-1.0,
    ),
    _metric(
        "pc_regression", pc_regression, ("batches", "controls"), "Büttner et al. 2019; Luecken et al. 2022"
    ),
)
