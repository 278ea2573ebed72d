"""Mean average precision: of replicates, of shared labels, against negative controls, across batches and sources.

Every metric here has, for each query, row, value (average precision), normalised_value (on a scale on which chance
is 0), n_matches and n_total; and for each group the column that names it, value (the mean), n_queries,
normalised_value, p_value and q_value (Benjamini–Hochberg over the groups). Parameters of all:

- ties: ``averaged`` (the mean over all orders of what is equally near), ``copairs`` (matches go first) or ``threshold``
  (scikit-learn: equals are retrieved together).
- null, seed: draws of chance for the p-values, and their seed; null=0: no p-values.
- count_equal: whether a draw that equals the value counts against it, which makes p-values valid where few orders
  are possible; copairs counts larger ones only.
"""

from collections.abc import Collection, Hashable, Sequence

import numpy as np
from numpy.typing import NDArray

from warehouse.errors import EvaluationError
from warehouse.metrics.directions import directed
from warehouse.metrics.mean_precision import Chance, LabelPrecision, plan_labels
from warehouse.metrics.pair_rules import average_precision, mean_average_precision
from warehouse.metrics.passes import Vectors, one_pass
from warehouse.metrics.registry import Metric
from warehouse.metrics.relations import Groups
from warehouse.metrics.replicate_precision import map_replicates, map_vs_controls, plan_replicates
from warehouse.metrics.score import Labels, Score, check_length, label_sets

__all__ = [
    "METRICS",
    "average_precision",
    "map_correlation",
    "map_cross_batch",
    "map_cross_source",
    "map_labels",
    "map_replicates",
    "map_vs_controls",
    "mean_average_precision",
]

Profiles = NDArray[np.floating]
Batches = Sequence[Collection[str]]


def map_labels(
    X: Profiles,
    labels: Labels,
    compounds: Sequence[Hashable] | None = None,
    ids: Sequence[str] | None = None,
    *,
    ties: str = "averaged",
    null: int = 10_000,
    seed: int = 0,
    count_equal: bool = False,
    not_same_compound: bool = False,
    layout: str = "profile",
) -> Score:
    """Mean average precision of profiles that share a label, among all labelled profiles.

    Args:
        X: (n, d) profiles.
        labels: n sets of labels, or n texts; a profile without label is neither query nor in the library.
        compounds: n compounds, for `not_same_compound`.
        ids: n names for messages.
        ties: rule for equal distances.
        null: draws for p-values.
        seed: of the draws.
        count_equal: rule of the p-values.
        not_same_compound: leave other concentrations of the query's compound out of its library.
        layout: ``profile``: a match shares a label, one value a query; ``label``: one value for each query and
            label, as copairs has it: matches have this label, non-matches none of the query's.

    Returns:
        A score over queries, the profiles (and labels) with a match; `per_group` has label.

    Raises:
        EvaluationError: a profile is zero or not finite, or no profile has a match.
        UnknownNameError: `ties` or `layout` is in no list.

    Source:
        Kalinin et al. 2025 for AP; Moshkov et al. 2024 for query, library and match (there interpolated); copairs
        0.5.5 `multilabel.average_precision` for the layout by label.
    """
    vectors = Vectors.of(X, ids)
    plan = plan_map(
        vectors,
        labels,
        compounds,
        ties=ties,
        null=null,
        seed=seed,
        count_equal=count_equal,
        not_same_compound=not_same_compound,
        layout=layout,
    )
    return one_pass(vectors, [plan])[0]


def plan_map(
    vectors: Vectors,
    labels: Labels,
    compounds: Sequence[Hashable] | None = None,
    *,
    ties: str = "averaged",
    null: int = 10_000,
    seed: int = 0,
    count_equal: bool = False,
    not_same_compound: bool = False,
    layout: str = "profile",
) -> LabelPrecision:
    """Plan of `map_labels`."""
    same: tuple[Groups, ...] = ()
    if not_same_compound:
        if compounds is None:
            message = "map(not_same_compound=true) needs the compounds of the profiles: give them"
            raise EvaluationError(message)
        check_length("compounds", compounds, len(vectors))
        same = (Groups.of(compounds),)
    chance = Chance(null, seed, count_equal)
    return plan_labels(
        vectors, labels, "map", "label", "query", ties, chance, unless=same, out=same, layout=layout
    )


def map_cross_batch(
    X: Profiles,
    labels: Labels,
    batches: Batches,
    ids: Sequence[str] | None = None,
    *,
    ties: str = "averaged",
    null: int = 10_000,
    seed: int = 0,
    count_equal: bool = False,
) -> Score:
    """Mean average precision of a treatment's profiles of other batches among all profiles of other treatments.

    A profile of the same treatment that shares a batch is left out; those of other treatments stay, whatever their
    batch: a batch effect that makes them near lowers the value.

    Args:
        X: (n, d) profiles, one a treatment and batch.
        labels: n treatments as sets or texts; empty for negative controls.
        batches: n sets, the batches of the wells in each profile. A profile without is not compared.
        ids: n names for messages.
        ties: rule for equal distances.
        null: draws for p-values.
        seed: of the draws.
        count_equal: rule of the p-values.

    Returns:
        A score over queries, the profiles whose treatment is in another batch; `per_group` has treatment.

    Raises:
        EvaluationError: a profile is zero or not finite, or no treatment is in two batches.
        UnknownNameError: `ties` is in no list.

    Source:
        Kim et al. 2025, perturbation mAP on profiles aggregated by batch.
    """
    vectors = Vectors.of(X, ids)
    plan = plan_cross_batch(
        vectors, labels, batches, ties=ties, null=null, seed=seed, count_equal=count_equal
    )
    return one_pass(vectors, [plan])[0]


def plan_cross_batch(
    vectors: Vectors,
    labels: Labels,
    batches: Batches,
    *,
    ties: str = "averaged",
    null: int = 10_000,
    seed: int = 0,
    count_equal: bool = False,
) -> LabelPrecision:
    """Plan of `map_cross_batch`."""
    chance = Chance(null, seed, count_equal)
    return plan_labels(
        vectors, labels, "map_cross_batch", "treatment", "query", ties, chance, across=("batch", batches)
    )


def map_cross_source(
    X: Profiles,
    labels: Labels,
    sources: Batches,
    ids: Sequence[str] | None = None,
    *,
    ties: str = "averaged",
    null: int = 10_000,
    seed: int = 0,
    count_equal: bool = False,
) -> Score:
    """As `map_cross_batch`, across sources: matches are the treatment's profiles of other sources.

    Args:
        X: (n, d) profiles, one a treatment and source.
        labels: n treatments as sets or texts; empty for negative controls.
        sources: n sets. A profile without is not compared.
        ids: n names for messages.
        ties: rule for equal distances.
        null: draws for p-values.
        seed: of the draws.
        count_equal: rule of the p-values.

    Returns:
        A score over queries; `per_group` has treatment.

    Raises:
        EvaluationError: a profile is zero or not finite, or no treatment is in two sources.
        UnknownNameError: `ties` is in no list.

    Source:
        Kim et al. 2025, perturbation mAP on profiles aggregated by source.
    """
    vectors = Vectors.of(X, ids)
    plan = plan_cross_source(
        vectors, labels, sources, ties=ties, null=null, seed=seed, count_equal=count_equal
    )
    return one_pass(vectors, [plan])[0]


def plan_cross_source(
    vectors: Vectors,
    labels: Labels,
    sources: Batches,
    *,
    ties: str = "averaged",
    null: int = 10_000,
    seed: int = 0,
    count_equal: bool = False,
) -> LabelPrecision:
    """Plan of `map_cross_source`."""
    chance = Chance(null, seed, count_equal)
    return plan_labels(
        vectors, labels, "map_cross_source", "treatment", "query", ties, chance, across=("source", sources)
    )


def map_correlation(
    X: Profiles,
    labels: Labels,
    ids: Sequence[str] | None = None,
    *,
    ties: str = "threshold",
    null: int = 10_000,
    seed: int = 0,
    count_equal: bool = False,
) -> Score:
    """As `map_labels`, by Pearson's correlation of profiles, and by default with scikit-learn's rule for ties.

    Args:
        X: (n, d) profiles.
        labels: n sets of labels, or n texts.
        ids: n names for messages.
        ties: rule for equal distances.
        null: draws for p-values.
        seed: of the draws.
        count_equal: rule of the p-values.

    Returns:
        A score over queries, the profiles with a match; `per_group` has label.

    Raises:
        EvaluationError: a profile is not finite or the same in all features, or no profile has a match.
        UnknownNameError: `ties` is in no list.

    Source:
        Kim et al. 2025, target and gene-family mAP on consensus profiles: scikit-learn's average precision over
        correlation distances without the diagonal, profiles without a match skipped.
    """
    check_length("labels", labels, len(X))
    labelled = np.array([bool(row) for row in label_sets(labels)], dtype=bool)
    vectors = directed(X, ids, "correlation", labelled)
    chance = Chance(null, seed, count_equal)
    plan = plan_labels(vectors, labels, "map_correlation", "label", "query", ties, chance)
    return one_pass(vectors, [plan])[0]


METRICS: tuple[Metric, ...] = (
    Metric(
        name="map",
        function=map_labels,
        needs=("labels", "compounds"),
        higher_is_better=True,
        range=(0.0, 1.0),
        paper="Kalinin et al. 2025 (mAP); Moshkov et al. 2024 for matches by shared label",
        level="treatment",
        plan=plan_map,
    ),
    Metric(
        name="map_replicates",
        function=map_replicates,
        needs=("labels",),
        higher_is_better=True,
        range=(0.0, 1.0),
        paper="Kalinin et al. 2025 (replicability)",
        level="well",
        plan=plan_replicates,
        label_kind="treatment",
    ),
    Metric(
        name="map_vs_controls",
        function=map_vs_controls,
        needs=("treatments", "plates", "controls"),
        higher_is_better=True,
        range=(0.0, 1.0),
        paper="Kalinin et al. 2025 (phenotypic activity)",
        level="well",
    ),
    Metric(
        name="map_cross_batch",
        function=map_cross_batch,
        needs=("labels", "batches"),
        higher_is_better=True,
        range=(0.0, 1.0),
        paper="Kim et al. 2025 (perturbation mAP)",
        level="batch",
        plan=plan_cross_batch,
        label_kind="treatment",
    ),
    Metric(
        name="map_cross_source",
        function=map_cross_source,
        needs=("labels", "sources"),
        higher_is_better=True,
        range=(0.0, 1.0),
        paper="Kim et al. 2025 (cross-source perturbation mAP)",
        level="source",
        plan=plan_cross_source,
        label_kind="treatment",
    ),
    Metric(
        name="map_correlation",
        function=map_correlation,
        needs=("labels",),
        higher_is_better=True,
        range=(0.0, 1.0),
        paper="Kim et al. 2025 (target mAP)",
        level="consensus",
    ),
)
