"""Average precision of a treatment's replicates: among all treated wells, and against negative controls."""

from collections.abc import Hashable, Sequence

import numpy as np
import polars as pl
from numpy.typing import NDArray

from warehouse.metrics.mean_precision import Chance, LabelPrecision, Reasons, by_query, plan_labels
from warehouse.metrics.passes import Host, Vectors, one_pass
from warehouse.metrics.ranking import Ranking
from warehouse.metrics.relations import Groups, Relation
from warehouse.metrics.score import Labels, Score, check_length, codes, count_reasons, require_queries


def map_replicates(
    X: NDArray[np.floating],
    labels: Labels,
    ids: Sequence[str] | None = None,
    *,
    ties: str = "averaged",
    null: int = 10_000,
    seed: int = 0,
    count_equal: bool = False,
) -> Score:
    """Mean average precision of a treatment's replicates among all treated wells.

    Args:
        X: (n, d) wells.
        labels: n treatments as sets or texts; empty for wells without one and for negative controls.
        ids: n names for messages.
        ties: rule for equal distances.
        null: draws for p-values.
        seed: of the draws.
        count_equal: rule of the p-values.

    Returns:
        A score over treatments, `per_group` with treatment.

    Raises:
        EvaluationError: a profile is zero or not finite, or no treatment has two wells.
        UnknownNameError: `ties` is in no list.

    Source:
        Kalinin et al. 2025, replicability of a perturbation against other perturbations.
    """
    vectors = Vectors.of(X, ids)
    plan = plan_replicates(vectors, labels, ties=ties, null=null, seed=seed, count_equal=count_equal)
    return one_pass(vectors, [plan])[0]


def plan_replicates(
    vectors: Vectors,
    labels: Labels,
    *,
    ties: str = "averaged",
    null: int = 10_000,
    seed: int = 0,
    count_equal: bool = False,
) -> LabelPrecision:
    """Plan of `map_replicates`."""
    chance = Chance(null, seed, count_equal)
    return plan_labels(vectors, labels, "map_replicates", "treatment", "group", ties, chance)


def map_vs_controls(
    X: NDArray[np.floating],
    treatments: Sequence[Hashable],
    plates: Sequence[Hashable],
    controls: Sequence[bool] | NDArray[np.bool_],
    ids: Sequence[str] | None = None,
    *,
    ties: str = "averaged",
    null: int = 10_000,
    seed: int = 0,
    count_equal: bool = False,
) -> Score:
    """Mean average precision of a treatment's replicates against the negative controls of their plate.

    Args:
        X: (n, d) wells.
        treatments: n treatments, None for a well without one; what a control has here does not matter.
        plates: n plates; wells are compared within a plate only.
        controls: n booleans, true for a negative control.
        ids: n names for messages.
        ties: rule for equal distances.
        null: draws for p-values.
        seed: of the draws.
        count_equal: rule of the p-values.

    Returns:
        A score over treatments, `per_group` with treatment; a well with no replicate or no control is no query.

    Raises:
        EvaluationError: a profile that is compared is zero or not finite, or no well has a replicate and a control.
        UnknownNameError: `ties` is in no list.

    Source:
        Kalinin et al. 2025, phenotypic activity.
    """
    vectors = Vectors.of(X, ids)
    n = len(vectors)
    for what, values in (("treatments", treatments), ("plates", plates), ("controls", controls)):
        check_length(what, values, n)
    control = np.asarray(controls, dtype=bool)
    treatment, plate = np.where(control, -1, codes(treatments)), codes(plates)
    vectors.require((treatment >= 0) | control)
    reasons: Reasons = ["no treatment" if t < 0 else None for t in treatment]
    for row in np.flatnonzero(control).tolist():
        reasons[row] = None
    on_plate = np.where((treatment >= 0) & (plate >= 0), treatment * (plate.max(initial=0) + 1) + plate, -1)
    match = Groups.of_codes(np.unique(on_plate, return_inverse=True)[1] - int((on_plate < 0).any()))
    value, matches, total = np.full(n, np.nan), np.zeros(n, np.int64), np.zeros(n, np.int64)
    order = np.argsort(plate, kind="stable")
    for rows in np.split(order, np.flatnonzero(np.diff(plate[order])) + 1):
        here = np.zeros(n, dtype=bool)
        here[rows] = plate[rows] >= 0
        ranking = Ranking(vectors, Relation(here & (treatment >= 0), here & control, match), ties)
        ranking.run(Host())
        value[rows], matches[rows], total[rows] = (
            ranking.value[rows],
            ranking.matches[rows],
            ranking.total[rows],
        )
    queries = np.flatnonzero(treatment >= 0)
    for row in queries.tolist():
        if matches[row] == 0 or matches[row] == total[row]:
            reasons[row] = (
                "no replicate on its plate" if matches[row] == 0 else "no negative control on its plate"
            )
    queries = np.array([row for row in queries.tolist() if reasons[row] is None], dtype=np.int64)
    left = count_reasons(reasons)
    # Controls are no query that was left out, but they explain why there is none.
    why = {**left, "negative control": int(control.sum())} if control.any() else left
    require_queries("map_vs_controls", len(queries), why)
    per_query = by_query(queries, value[queries], matches[queries], total[queries])
    per_query.insert_column(1, pl.Series("treatment", [treatments[row] for row in queries.tolist()]))
    groups = Chance(null, seed, count_equal).groups(per_query, ["treatment"])
    return Score(
        float(groups["value"].to_numpy().mean()), len(groups), None, per_query, groups, left, "group"
    )
