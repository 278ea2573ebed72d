"""Treatments that are like nothing annotated, and whether profiles would show that a label is new."""

from collections.abc import Hashable, Iterator, Sequence

import numpy as np
import polars as pl
from numpy.typing import NDArray

from warehouse.metrics.registry import Metric
from warehouse.metrics.score import (
    Labels,
    Score,
    check_length,
    codes,
    label_sets,
    require_queries,
    unit_vectors,
)
from warehouse.nearest import statistics

Floats = NDArray[np.float64]
Rows = NDArray[np.int64]

BLOCK = 2**21  # similarities held at a time
#: q-value below which a treatment is called novel.
NOVEL = 0.05
_LONE = "label: the library without it has less than two compounds"


def novelty(
    X: NDArray[np.floating],
    labels: Labels,
    compounds: Sequence[Hashable],
    ids: Sequence[str] | None = None,
) -> Score:
    """Mean over labels of the AUROC with which distance tells the treatments of a label nobody knows yet.

    Each label in turn is held out: no treatment that has it is in the library. Then every annotated treatment, of
    that label or not, is as far as 1 − the cosine to its nearest library treatment of another compound. The AUROC
    is the chance that one of the held-out label is farther than one of the labels that are known, ties counting
    half: 1 where profiles show that the label is new, 0.5 where they do not.

    Args:
        X: (n, d) treatment profiles.
        labels: n sets of labels, or n texts; a treatment without label is asked about, and is in no library.
        compounds: n compounds; a treatment is never compared with another concentration of its own.
        ids: n names for messages.

    Returns:
        A score over labels: `per_group` has label, value (AUROC), n (treatments that have it). `per_query` has the
        treatments *without* label, by what is annotated: row, neighbour (row of the nearest annotated treatment of
        another compound; of equals the first), value (the cosine), p_value (share of annotated treatments as far
        from all others, the treatment counted in), q_value (Benjamini–Hochberg), is_novel (q < 0.05); the score is
        no mean of these. `left_out` counts the labels that cannot be held out, because without them the library is
        empty or of one compound.

    Raises:
        EvaluationError: a profile is zero or not finite, a length differs, or no label can be held out.

    Source:
        Bray et al. 2022, "Novel phenotype detection": treatments unlike every annotated MoA, each method by a rule
        of its own. Holding a label out, to score that, is ours.
    """
    n = len(X)
    check_length("labels", labels, n)
    check_length("compounds", compounds, n)
    sets = label_sets(labels)
    unit = unit_vectors(X, ids)
    compound = codes(compounds)
    annotated = np.flatnonzero([bool(row) for row in sets])
    kinds = sorted({tuple(sorted(sets[row])) for row in annotated})
    names = sorted({label for kind in kinds for label in kind})
    found: list[tuple[str, float, int]] = []
    left: dict[str, int] = {}
    if len(annotated):
        code = {kind: number for number, kind in enumerate(kinds)}
        nearest = _nearest_of_each(
            unit, compound, annotated, [code[tuple(sorted(sets[row]))] for row in annotated]
        )
        best = nearest[annotated].argmax(axis=1)
        top = nearest[annotated, best]
    for name in names:
        has = np.array([name in kind for kind in kinds], dtype=bool)
        # Only of treatments whose nearest has the label, the nearest without it is another.
        near, own = top.copy(), has[best]
        near[own] = nearest[np.ix_(annotated[own], ~has)].max(axis=1, initial=-np.inf)
        out = np.array([name in sets[row] for row in annotated], dtype=bool)
        there = ~np.isneginf(near)
        # Without two compounds in the library, none of its own treatments has another to be near to; with two, all
        # treatments have.
        if not there.all() or out.all():
            left[_LONE] = left.get(_LONE, 0) + 1
            continue
        found.append((name, _auroc(-near[out], -near[~out]), int(out.sum())))
    require_queries("novelty", len(found), left)
    table = pl.DataFrame(found, schema={"label": pl.String, "value": pl.Float64, "n": pl.Int64}, orient="row")
    value = float(table["value"].to_numpy().mean())
    return Score(value, len(table), None, _novel(unit, compound, annotated, nearest), table, left, "group")


def _nearest_of_each(unit: Floats, compound: Rows, annotated: Rows, kind: Sequence[int]) -> Floats:
    """Cosine (n, kinds) of every row to the nearest annotated row of each set of labels and of another compound."""
    order = np.argsort(kind, kind="stable")
    columns = annotated[order]
    starts = np.flatnonzero(np.diff(np.asarray(kind)[order], prepend=-1))
    made = np.empty((len(unit), len(starts)))
    for rows, near in _blocks(unit, compound, np.arange(len(unit)), columns):
        made[rows] = np.maximum.reduceat(near, starts, axis=1)
    return made


def _blocks(unit: Floats, compound: Rows, rows: Rows, columns: Rows) -> Iterator[tuple[Rows, Floats]]:
    """Yield some rows and their cosines with the columns, -inf for the row itself and for the same compound."""
    step = max(1, BLOCK // len(columns))
    for first in range(0, len(rows), step):
        some = rows[first : first + step]
        # Rounded, so that equal profiles are equally near whatever the order of a sum.
        near = np.round(unit[some] @ unit[columns].T, 12)
        same = (compound[some, None] == compound[columns]) & (compound[some, None] >= 0)
        near[same | (some[:, None] == columns)] = -np.inf
        yield some, near


def _auroc(farther: Floats, nearer: Floats) -> float:
    """Chance that one of the first is larger than one of the second; equals count half."""
    from scipy.stats import rankdata

    ranks = rankdata(np.concatenate([farther, nearer]))[: len(farther)]
    wins = ranks.sum() - len(farther) * (len(farther) + 1) / 2
    return float(wins / (len(farther) * len(nearer)))


def _novel(unit: Floats, compound: Rows, annotated: Rows, nearest: Floats) -> pl.DataFrame:
    """Give the rows without label their nearest annotated row of another compound, and how novel they are."""
    queries = np.setdiff1d(np.arange(len(unit)), annotated)
    near = nearest.max(axis=1)
    p_values, q_values = statistics.novelty(near[queries], near[annotated])
    neighbour = [
        annotated[similarity.argmax(axis=1)] for _, similarity in _blocks(unit, compound, queries, annotated)
    ]
    made = {
        "row": queries,
        "neighbour": np.concatenate([*neighbour, np.empty(0, np.int64)]),
        "value": near[queries],
        "p_value": p_values,
        "q_value": q_values,
        "is_novel": q_values < NOVEL,
    }
    return pl.DataFrame(made)


METRICS: tuple[Metric, ...] = (
    Metric(
        name="novelty",
        function=novelty,
        needs=("labels", "compounds"),
        higher_is_better=True,
        range=(0.0, 1.0),
        paper="Bray et al. 2022 (novel phenotypes), scored by holding labels out",
        level="treatment",
    ),
)
