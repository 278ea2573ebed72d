"""How mixed batches are among nearest neighbours: graph connectivity, LISI, kBET.

Rows, baselines and `per_group` are those of `warehouse.metrics.batch_effects`.
"""

from collections.abc import Callable, Collection, Iterator, Sequence

import numpy as np
import polars as pl
from numpy.typing import NDArray

from warehouse.errors import EvaluationError
from warehouse.metrics.grouped_rows import Floats, Grouped, Rows, grouped, of_one_batch, scenes
from warehouse.metrics.neighbour_graph import (
    Graph,
    composition_p,
    inverse_simpson,
    largest_components,
    nearest_euclidean,
    require_k,
)
from warehouse.metrics.score import Labels, Score, no_queries
from warehouse.names import unknown

#: Neighbours of the curves in Kim et al., Supplementary Fig. 10.
CONNECTIVITY_CURVE = (1, 2, 3, 5, 10, 15)
LISI_CURVE = (15, 30, 60, 90)
#: Share of rejections by chance in kBET.
ALPHA = 0.05


def graph_connectivity(
    X: NDArray[np.floating],
    batches: Sequence[Collection[str]],
    controls: Sequence[bool],
    ids: Sequence[str] | None = None,
    *,
    k: int = 15,
    connection: str = "weak",
    distance: str = "cosine",
    keep_controls: bool = False,
    seed: int = 0,
) -> Score:
    """Graph connectivity: share of a batch in the largest component of its own graph. Lower is better.

    Near 1, the rows of a batch hang together: a batch effect. (scib reads the same number of *labels*, where it is
    good to hang together.)

    Args:
        X: (n, d) profiles.
        batches: n sets; rows with none or several are left out.
        controls: n booleans, negative controls.
        ids: n names for messages.
        k: nearest neighbours of a row, itself not counted.
        connection: ``weak`` (an edge joins both ways) or ``strong`` (there must be a way back: scib-metrics).
        distance: ``cosine`` (Kim) or ``euclidean``.
        keep_controls: count negative controls too.
        seed: of the baselines.

    Returns:
        A score, the mean over batches. `per_group` has the curve: baseline, k (1, 2, 3, 5, 10, 15 and the k asked
        for, as far as there are rows), value, least (of a batch).

    Raises:
        EvaluationError: a length differs, a row that is used is not finite or (cosine) all zeros, there is one batch
            only, or there are not more than k rows.
        UnknownNameError: no such connection or distance.

    Source:
        Kim et al. 2025, Methods, GC; Luecken et al. 2022.
    """
    if connection not in ("weak", "strong"):
        raise unknown(connection, "connection", ("weak", "strong"))
    own = of_one_batch(
        "graph_connectivity", X, batches, controls, ids, keep_controls=keep_controls, distance=distance
    )
    require_k("graph_connectivity", k, len(own))
    curve = sorted({k, *(one for one in CONNECTIVITY_CURVE if one < len(own))})
    rows = []
    for baseline, graph, codes in _graphs("graph_connectivity", own, max(curve), seed):
        for one in curve:
            share = largest_components(graph, codes, one, connection == "strong")
            rows.append((baseline, one, float(share.mean()), float(share.min())))
    per_group = pl.DataFrame(rows, schema=_schema("least"), orient="row")
    return Score(_value(per_group, k), len(own), None, no_queries(), per_group, own.left_out, None)


def ilisi(
    X: NDArray[np.floating],
    batches: Sequence[Collection[str]],
    controls: Sequence[bool],
    ids: Sequence[str] | None = None,
    *,
    k: int = 90,
    perplexity: int = 0,
    distance: str = "euclidean",
    keep_controls: bool = False,
    seed: int = 0,
) -> Score:
    """Integration LISI: effective number of batches around a row, scaled to 0 (one) to 1 (all). Higher is better.

    Args:
        X: (n, d) profiles.
        batches: n sets; rows with none or several are left out.
        controls: n booleans, negative controls.
        ids: n names for messages.
        k: nearest neighbours of a row, itself not counted, as in harmonypy 2. Its version 0.0.9, Kim's, and
            scib-metrics count it among the k and then leave it out: that is ``k=89, perplexity=30``.
        perplexity: of the neighbours' weights; 0: a third of k, rounded down.
        distance: ``euclidean`` (harmonypy), or ``cosine``: Euclidean between profiles scaled to length 1.
        keep_controls: count negative controls too.
        seed: of the baselines.

    Returns:
        A score, (median - 1) / (batches - 1). `per_query` has each row's LISI, from 1 to the number of batches;
        `per_group` the curve: baseline, k (15, 30, 60, 90 and the k asked for, as far as there are rows), value, and
        the median as it is.

    Raises:
        EvaluationError: a length differs, a row that is used is not finite or (cosine) all zeros, there is one batch
            only, perplexity is less than 2 or more than k, or there are not more than k rows.
        UnknownNameError: no such distance.

    Source:
        Korsunsky et al. 2019; Kim et al. 2025, Methods, LISI; scaled as Luecken et al. 2022.
    """
    own = of_one_batch("ilisi", X, batches, controls, ids, keep_controls=keep_controls, distance=distance)
    return _lisi("ilisi", own, k, perplexity, seed, lambda median, groups: (median - 1) / (groups - 1))


def clisi(
    X: NDArray[np.floating],
    labels: Labels,
    ids: Sequence[str] | None = None,
    *,
    k: int = 90,
    perplexity: int = 0,
    distance: str = "euclidean",
    seed: int = 0,
) -> Score:
    """LISI of labels: effective number of labels around a row, scaled to 0 (all) to 1 (one). Higher is better.

    It says what a correction of batches has cost. Its baselines are those of labels: ``separated`` is the best and
    ``shuffled`` the worst that can be.

    Args:
        X: (n, d) profiles.
        labels: n sets of labels; rows with none (negative controls) or several are left out.
        ids: n names for messages.
        k: as for `ilisi`.
        perplexity: as for `ilisi`.
        distance: as for `ilisi`.
        seed: of the baselines.

    Returns:
        A score, (labels - median) / (labels - 1); `per_query` and `per_group` as for `ilisi`.

    Raises:
        EvaluationError: as `ilisi`.
        UnknownNameError: no such distance.

    Source:
        Korsunsky et al. 2019; scaled as Luecken et al. 2022.
    """
    own = grouped("clisi", X, labels, ids, what="label", distance=distance)
    return _lisi("clisi", own, k, perplexity, seed, lambda median, groups: (groups - median) / (groups - 1))


def kbet(
    X: NDArray[np.floating],
    batches: Sequence[Collection[str]],
    controls: Sequence[bool],
    ids: Sequence[str] | None = None,
    *,
    k: int = 0,
    distance: str = "euclidean",
    keep_controls: bool = False,
    seed: int = 0,
) -> Score:
    """Share of rows whose neighbours are of other batches than rows at large, by chi² at .05. Lower is better.

    Every row is tested, and not a tenth of them many times as in the R package; neighbourhoods overlap, so that the
    share is a measure and no test.

    Args:
        X: (n, d) profiles.
        batches: n sets; rows with none or several are left out.
        controls: n booleans, negative controls.
        ids: n names for messages.
        k: nearest neighbours of a row, itself not counted; 0: a quarter of the mean size of a batch, within 10 to 70
            (scib) and the number of other rows.
        distance: ``euclidean``, or ``cosine``: Euclidean between profiles scaled to length 1.
        keep_controls: count negative controls too.
        seed: of the baselines.

    Returns:
        A score, the mean over rows. `per_query` has value (1 rejected, 0 not) and p; `per_group` baseline, k, value.

    Raises:
        EvaluationError: a length differs, a row that is used is not finite or (cosine) all zeros, there is one batch
            only, or there are not more than k rows.
        UnknownNameError: no such distance.

    Source:
        Büttner et al. 2019, kBET, Methods; k as in Luecken et al. 2022.
    """
    own = of_one_batch("kbet", X, batches, controls, ids, keep_controls=keep_controls, distance=distance)
    if k:
        require_k("kbet", k, len(own))
    near = k or min(max(len(own) // len(own.names) // 4, 10), 70, len(own) - 1)
    found = [
        (baseline, composition_p(graph, codes, near))
        for baseline, graph, codes in _graphs("kbet", own, near, seed)
    ]
    rows = [(baseline, near, float((p < ALPHA).mean())) for baseline, p in found]
    per_group = pl.DataFrame(rows, schema=_schema(), orient="row")
    _, p = found[0]
    per_query = own.per_query(p < ALPHA, p=p)
    return Score(
        _value(per_group, near), len(own), int((p < ALPHA).sum()), per_query, per_group, own.left_out
    )


def _lisi(
    metric: str,
    own: Grouped,
    k: int,
    perplexity: int,
    seed: int,
    scaled: Callable[[float, int], float],
) -> Score:
    wide = perplexity or k // 3
    if k < len(own):
        require_k(metric, k, len(own))
    else:
        fits = [one for one in LISI_CURVE if one < len(own)]
        hint = f"ask for {metric}(k={max(fits)})" if fits else "there are too few for this metric"
        message = f"{metric}: k={k} neighbours of each of {len(own)} rows: {hint}"
        raise EvaluationError(message)
    if not 2 <= wide <= k:
        message = f"{metric}: perplexity {wide} with k={k}: give one from 2 to k, and k from 6 on where it gives none"
        raise EvaluationError(message)
    # Each k and its perplexity.
    curve = {one: one // 3 for one in LISI_CURVE if one < len(own)} | {k: wide}
    rows = []
    of_rows = np.empty(0)
    for baseline, graph, codes in _graphs(metric, own, max(curve), seed):
        for one in sorted(curve):
            values = inverse_simpson(graph, codes, one, curve[one])
            median = float(np.median(values))
            rows.append((baseline, one, scaled(median, len(own.names)), median))
            if baseline is None and one == k:
                of_rows = values
    per_group = pl.DataFrame(rows, schema=_schema("median"), orient="row")
    return Score(_value(per_group, k), len(own), None, own.per_query(of_rows), per_group, own.left_out, None)


def _graphs(metric: str, own: Grouped, k: int, seed: int) -> Iterator[tuple[str | None, Graph, Rows]]:
    """The graph of k neighbours and the groups of each scene; the same profiles are searched once."""
    searched: tuple[Floats, Graph] | None = None
    for baseline, X, codes in scenes(own, seed):
        if searched is None or searched[0] is not X:
            searched = X, nearest_euclidean(metric, X, k)
        yield baseline, searched[1], codes


def _schema(*more: str) -> dict[str, type[pl.DataType]]:
    return {"baseline": pl.String, "k": pl.Int64, "value": pl.Float64, **dict.fromkeys(more, pl.Float64)}


def _value(per_group: pl.DataFrame, k: int) -> float:
    return float(per_group.filter(pl.col("baseline").is_null() & (pl.col("k") == k))["value"].item())
