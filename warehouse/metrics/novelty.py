"""Treatments that are like nothing annotated, and whether profiles would show that a label is new."""

from collections.abc import Hashable, Iterator, Sequence

import numpy as np
import polars as pl
from numpy.typing import NDArray

from warehouse.metrics.directions import members
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
    controls: Sequence[bool],
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
        controls: n booleans; negative controls are neither asked about nor in the library.
        ids: n names for messages.

    Returns:
        A score over labels: `per_group` has label, value (AUROC), n (treatments that have it). `per_query` has the
        treatments *without* label, by what is annotated: row, neighbour (row of the nearest annotated treatment of
        another compound; of equals the first), value (the cosine), p_value (share of annotated treatments as far
        from all others, the treatment counted in), q_value (Benjamini–Hochberg), is_novel (q < 0.05); the score is
        no mean of these. `left_out` counts negative controls, and the labels that cannot be held out, because without
        them the library is empty or of one compound. Memory grows with n.

    Raises:
        EvaluationError: a profile that is not left out is zero or not finite, a length differs, or no label can be
            held out.

    Source:
        Bray et al. 2022, "Novel phenotype detection": treatments unlike every annotated MoA, each method by a rule
        of its own. Holding a label out, to score that, is ours.
    """
    n = len(X)
    for what, values in (("labels", labels), ("compounds", compounds), ("controls", controls)):
        check_length(what, values, n)
    is_control = np.asarray(controls, dtype=bool)
    sets = [
        frozenset() if control else row for row, control in zip(label_sets(labels), is_control, strict=True)
    ]
    unit = unit_vectors(X, ids, ~is_control)
    compound = codes(compounds)
    annotated = np.flatnonzero([bool(row) for row in sets])
    queries = np.flatnonzero([not row for row in sets] & ~is_control)
    left = {"negative control": int(is_control.sum())} if is_control.any() else {}
    found: list[tuple[str, float, int]] = []
    near, without = _nearest(unit, compound, annotated, [tuple(sorted(sets[row])) for row in annotated])
    for label, own in members([sets[row] for row in annotated]).items():
        out = np.zeros(len(annotated), dtype=bool)
        out[own] = True
        # Only of treatments whose nearest has the label, the nearest without it is another.
        apart = near.copy()
        places, values = without.get(label, ([], []))
        apart[places] = values
        # Without two compounds in the library, none of its own treatments has another to be near to; with two, all
        # treatments have.
        if np.isneginf(apart).any() or out.all():
            left[_LONE] = left.get(_LONE, 0) + 1
            continue
        found.append((label, _auroc(-apart[out], -apart[~out]), int(out.sum())))
    require_queries("novelty", len(found), left)
    table = pl.DataFrame(found, schema={"label": pl.String, "value": pl.Float64, "n": pl.Int64}, orient="row")
    value = float(table["value"].to_numpy().mean())
    return Score(
        value, len(table), None, _novel(unit, compound, queries, annotated, near), table, left, "group"
    )


def _nearest(
    unit: Floats, compound: Rows, annotated: Rows, kinds: Sequence[tuple[str, ...]]
) -> tuple[Floats, dict[str, tuple[list[int], list[float]]]]:
    """Find how near each of m annotated rows is to another compound, with and without a label in the library.

    Args:
        unit: (n, d) of length 1.
        compound: (n,) codes.
        annotated: (m,) rows.
        kinds: m sets of labels.

    Returns:
        (m,) cosines to the nearest annotated row of another compound, -inf where there is none; and by label those
        places of m whose nearest has it, with the cosine to the nearest that has not.
    """
    of_kind = {kind: number for number, kind in enumerate(sorted(set(kinds)))}
    having: dict[str, list[int]] = {}
    for kind, number in of_kind.items():
        for label in kind:
            having.setdefault(label, []).append(number)
    kind_of = np.array([of_kind[kind] for kind in kinds], dtype=np.int64)
    order = np.argsort(kind_of, kind="stable")
    starts = np.flatnonzero(np.diff(kind_of[order], prepend=-1))
    named = list(of_kind)
    near = np.full(len(annotated), -np.inf)
    without: dict[str, tuple[list[int], list[float]]] = {}
    place = 0
    for _, block in _blocks(unit, compound, annotated, annotated[order]):
        for by_kind in np.maximum.reduceat(block, starts, axis=1):
            best = int(by_kind.argmax())
            near[place] = by_kind[best]
            for label in named[best]:
                kept = by_kind[having[label]]
                by_kind[having[label]] = -np.inf
                places, values = without.setdefault(label, ([], []))
                places.append(place)
                values.append(float(by_kind.max()))
                by_kind[having[label]] = kept
            place += 1
    return near, without


def _blocks(unit: Floats, compound: Rows, rows: Rows, columns: Rows) -> Iterator[tuple[Rows, Floats]]:
    """Yield some rows and their cosines with the columns, -inf for the row itself and for the same compound."""
    step = max(1, BLOCK // max(1, len(columns)))
    for first in range(0, len(rows), step):
        some = rows[first : first + step]
        # Rounded, so that equal profiles are equally near whatever the order of a sum.
        near = np.round(unit[some] @ unit[columns].T, 12)
        same = (compound[some, None] == compound[columns]) & (compound[some, None] >= 0)
        near[same | (some[:, None] == columns)] = -np.inf
        yield some, near


def _auroc(farther: Floats, nearer: Floats) -> float:
    """Chance that one of the first is larger than one of the second; equals count half.

    scikit-learn's `roc_auc_score` takes four times as long, and there are as many as labels.
    """
    from scipy.stats import rankdata

    ranks = rankdata(np.concatenate([farther, nearer]))[: len(farther)]
    wins = ranks.sum() - len(farther) * (len(farther) + 1) / 2
    return float(wins / (len(farther) * len(nearer)))


def _novel(unit: Floats, compound: Rows, queries: Rows, annotated: Rows, known: Floats) -> pl.DataFrame:
    """Give the rows without label their nearest annotated row of another compound, and how novel they are.

    Args:
        unit: (n, d) of length 1.
        compound: (n,) codes.
        queries: the rows without label.
        annotated: (m,) rows.
        known: (m,) cosine of each of these to its nearest.
    """
    near, neighbour = np.empty(len(queries)), np.empty(len(queries), np.int64)
    place = 0
    for some, block in _blocks(unit, compound, queries, annotated):
        part = slice(place, place + len(some))
        best = block.argmax(axis=1)
        near[part], neighbour[part] = block[np.arange(len(some)), best], annotated[best]
        place += len(some)
    p_values, q_values = statistics.novelty(near, known)
    made = {
        "row": queries,
        "neighbour": neighbour,
        "value": near,
        "p_value": p_values,
        "q_value": q_values,
        "is_novel": q_values < NOVEL,
    }
    return pl.DataFrame(made)


METRICS: tuple[Metric, ...] = (
    Metric(
        name="novelty",
        function=novelty,
        needs=("labels", "compounds", "controls"),
        higher_is_better=True,
        range=(0.0, 1.0),
        paper="Bray et al. 2022 (novel phenotypes), scored by holding labels out",
        level="treatment",
    ),
)
