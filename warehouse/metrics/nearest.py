"""Accuracy of the labels of the nearest neighbours, leaving out the same compound, the same batch, or both.

*Which batches does a profile have?* Those of the wells that make it up. On BBBC021 with the week as batch this
gives NSB 67 of 92. The batches in which a treatment was ever imaged do not: taxol at 0.3 µM stands on plates of all
ten weeks, but wells of one week enter its profile; by ten weeks it has no candidate left (67 of 91). Batches of the
compound instead of the treatment come to the same 67 of 92 there, as no compound's profiled wells span two weeks;
they are not used.

*What is left out for its batch?* Both readings of NSB are there. ``reading="batch"``: all that shares a batch with
the query, so that only other batches can answer. ``reading="batch_and_label"``: only what shares a batch *and* a
label; wrong answers from the query's own batch stay, so that a batch effect costs more.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from warehouse.metrics.neighbours import Batches, Names, planned
from warehouse.metrics.passes import Pairwise, Vectors, one_pass
from warehouse.metrics.registry import Metric
from warehouse.metrics.score import Labels, Score, check_length
from warehouse.names import unknown

X2D = NDArray[np.floating]

EXCLUSIONS = ("none", "nsc", "nsb")


def nsc(X: X2D, labels: Labels, compounds: Names, ids: Sequence[str] | None = None) -> Score:
    """Share of treatments whose nearest treatment of another compound, by cosine, has one of their labels (NSC).

    Args:
        X: (n, d) treatment profiles.
        labels: n sets of labels, or n texts; a treatment without label is neither query nor candidate.
        compounds: n compounds; a treatment is never compared with another concentration of its own.
        ids: n names for messages.

    Returns:
        A score; `per_query` has row, value (1 right, 0 wrong), neighbour (row number), similarity (cosine). Of equally
        near neighbours the first row counts.

    Raises:
        EvaluationError: a profile is zero or not finite, a length differs, or no query is left.

    Source:
        Ljosa et al. 2013; Bray et al. 2022, Methods (NSC).
    """
    vectors = Vectors.of(X, ids)
    return one_pass(vectors, [nsc_plan(vectors, labels, compounds)])[0]


def nsc_plan(vectors: Vectors, labels: Labels, compounds: Names) -> Pairwise:
    """Plan `nsc`."""
    return planned(vectors, "nsc", labels, compounds=compounds)


def nsb(
    X: X2D,
    labels: Labels,
    compounds: Names,
    batches: Batches,
    ids: Sequence[str] | None = None,
    *,
    reading: str = "batch",
) -> Score:
    """Share of treatments whose nearest treatment of another compound and batch has one of their labels (NSB).

    As `nsc`, and further:

    Args:
        X: (n, d) treatment profiles.
        labels: n sets of labels. One found in one batch only is dropped (on BBBC021 cholesterol-lowering and kinase
            inhibitors), and with it the treatments that have no other: 103 become 92.
        compounds: n compounds.
        batches: n sets: the batches of the wells that make up each profile.
        ids: n names for messages.
        reading: ``"batch"``: no candidate shares a batch with the query; ``"batch_and_label"``: none shares a batch
            and a label.

    Returns:
        A score as of `nsc`.

    Raises:
        EvaluationError: as `nsc`.
        UnknownNameError: `reading` is in no list.

    Source:
        Ando et al. 2017; Bray et al. 2022, Methods (NSB: "further excludes any compounds from the same batch").
    """
    vectors = Vectors.of(X, ids)
    return one_pass(vectors, [nsb_plan(vectors, labels, compounds, batches, reading=reading)])[0]


def nsb_plan(
    vectors: Vectors, labels: Labels, compounds: Names, batches: Batches, *, reading: str = "batch"
) -> Pairwise:
    """Plan `nsb`."""
    return planned(vectors, "nsb", labels, compounds=compounds, batches=batches, reading=reading, bray=True)


def nscb(
    X: X2D,
    labels: Labels,
    compounds: Names,
    batches: Batches,
    ids: Sequence[str] | None = None,
    *,
    reading: str = "batch",
) -> Score:
    """The same number as `nsb` under the name of Xun et al. (not same compound or batch).

    Their published .967 takes the list of plates as the batch, others' the week: ask for the batch key `plate` to
    compare with it. Arguments, score and errors are those of `nsb`.

    Source:
        Xun et al. 2023 (NSCB, 1-NN).
    """
    vectors = Vectors.of(X, ids)
    return one_pass(vectors, [nscb_plan(vectors, labels, compounds, batches, reading=reading)])[0]


def nscb_plan(
    vectors: Vectors, labels: Labels, compounds: Names, batches: Batches, *, reading: str = "batch"
) -> Pairwise:
    """Plan `nscb`."""
    return planned(vectors, "nscb", labels, compounds=compounds, batches=batches, reading=reading, bray=True)


def nsb_wells(
    X: X2D,
    labels: Labels,
    batches: Batches,
    ids: Sequence[str] | None = None,
    *,
    k: int = 1,
    reading: str = "batch",
    unmatched: str = "left_out",
) -> Score:
    """Share of wells whose nearest well of another batch has their label: their treatment, for replicates (Kim's NSB).

    Args:
        X: (n, d) wells.
        labels: n sets of labels; a well without one (a control) is neither query nor candidate.
        batches: n sets of batches.
        ids: n names for messages.
        k: how many neighbours vote, as in `knn`.
        reading: as of `nsb`.
        unmatched: what a well is that none of its candidates could match: ``"left_out"`` and counted (no features
            could find what is not there), or ``"wrong"``. It stays a candidate for others.

    Returns:
        A score as of `nsc`; with k above 1, `per_query` has predicted and votes too, as of `knn`.

    Raises:
        EvaluationError: as `nsc`, or k is less than 1.
        UnknownNameError: `reading` or `unmatched` is in no list.

    Source:
        Kim et al. 2025, Methods (NSB accuracy, on well profiles).
    """
    vectors = Vectors.of(X, ids)
    plan = nsb_wells_plan(vectors, labels, batches, k=k, reading=reading, unmatched=unmatched)
    return one_pass(vectors, [plan])[0]


def nsb_wells_plan(
    vectors: Vectors,
    labels: Labels,
    batches: Batches,
    *,
    k: int = 1,
    reading: str = "batch",
    unmatched: str = "left_out",
) -> Pairwise:
    """Plan `nsb_wells`."""
    return planned(vectors, "nsb_wells", labels, batches=batches, k=k, reading=reading, unmatched=unmatched)


def nsbp(
    X: X2D,
    labels: Labels,
    treatments: Names,
    batches: Batches,
    ids: Sequence[str] | None = None,
    *,
    k: int = 1,
    reading: str = "batch",
    unmatched: str = "left_out",
) -> Score:
    """Share of wells whose nearest well of another batch and another perturbation has one of their labels (NSBP).

    Args:
        X: (n, d) wells.
        labels: n sets of labels: targets, say.
        treatments: n perturbations; a well is never compared with another of its own.
        batches: n sets of batches.
        ids: n names for messages.
        k: how many neighbours vote, as in `knn`.
        reading: as of `nsb`.
        unmatched: as of `nsb_wells`.

    Returns:
        A score as of `nsc`; with k above 1, `per_query` has predicted and votes too, as of `knn`.

    Raises:
        EvaluationError: as `nsc`, or k is less than 1.
        UnknownNameError: `reading` or `unmatched` is in no list.

    Source:
        Kim et al. 2025, Methods (not-same-batch-or-perturbation accuracy, on well profiles).
    """
    vectors = Vectors.of(X, ids)
    plan = nsbp_plan(vectors, labels, treatments, batches, k=k, reading=reading, unmatched=unmatched)
    return one_pass(vectors, [plan])[0]


def nsbp_plan(
    vectors: Vectors,
    labels: Labels,
    treatments: Names,
    batches: Batches,
    *,
    k: int = 1,
    reading: str = "batch",
    unmatched: str = "left_out",
) -> Pairwise:
    """Plan `nsbp`."""
    return planned(
        vectors,
        "nsbp",
        labels,
        treatments=treatments,
        batches=batches,
        k=k,
        reading=reading,
        unmatched=unmatched,
    )


def knn(
    X: X2D,
    labels: Labels,
    compounds: Names,
    batches: Batches,
    ids: Sequence[str] | None = None,
    *,
    k: int = 11,
    exclude: str = "nsc",
    reading: str = "batch",
) -> Score:
    """Share of profiles whose k nearest others, by cosine, vote for one of their labels.

    A neighbour has a vote for each of its labels. The label with the most votes wins; of several, the one whose
    nearest voter is nearest, and those that this one voter brings win together. With k = 1 this is `nsc` or `nsb`.
    Where fewer than k are allowed, these vote.

    Args:
        X: (n, d) profiles.
        labels: n sets of labels, or n texts; a profile without label is neither query nor candidate.
        compounds: n compounds.
        batches: n sets of batches.
        ids: n names for messages.
        k: how many neighbours vote.
        exclude: ``"none"``; ``"nsc"``: the same compound; ``"nsb"``: further the same batch, and labels of one batch.
            For the same batch and perturbation, there is `nsbp` with a k.
        reading: as of `nsb`, for ``exclude="nsb"``.

    Returns:
        A score as of `nsc`; `per_query` has, further, predicted (labels, joined by "; ") and votes (for each of them).

    Raises:
        EvaluationError: as `nsc`, or k is less than 1.
        UnknownNameError: `exclude` or `reading` is in no list.

    Source:
        Xun et al. 2023 (KNN accuracy, k = 11 and 1); exclusions of Bray et al. 2022.
    """
    vectors = Vectors.of(X, ids)
    plan = knn_plan(vectors, labels, compounds, batches, k=k, exclude=exclude, reading=reading)
    return one_pass(vectors, [plan])[0]


def knn_plan(
    vectors: Vectors,
    labels: Labels,
    compounds: Names,
    batches: Batches,
    *,
    k: int = 11,
    exclude: str = "nsc",
    reading: str = "batch",
) -> Pairwise:
    """Plan `knn`."""
    if exclude not in EXCLUSIONS:
        raise unknown(exclude, "rule of exclusion", EXCLUSIONS)
    check_length("compounds", compounds, len(vectors))
    check_length("batches", batches, len(vectors))
    rules: dict[str, object] = {} if exclude == "none" else {"compounds": compounds}
    if exclude == "nsb":
        rules |= {"batches": batches, "bray": True}
    return planned(vectors, "knn", labels, k=k, reading=reading, **rules)  # type: ignore[arg-type]


METRICS: tuple[Metric, ...] = (
    Metric(
        name="nsc",
        function=nsc,
        needs=("labels", "compounds"),
        higher_is_better=True,
        range=(0.0, 1.0),
        paper="Ljosa et al. 2013; Bray et al. 2022 (NSC)",
        level="treatment",
        plan=nsc_plan,
    ),
    Metric(
        name="nsb",
        function=nsb,
        needs=("labels", "compounds", "batches"),
        higher_is_better=True,
        range=(0.0, 1.0),
        paper="Ando et al. 2017; Bray et al. 2022 (NSB)",
        level="treatment",
        plan=nsb_plan,
    ),
    Metric(
        name="nscb",
        function=nscb,
        needs=("labels", "compounds", "batches"),
        higher_is_better=True,
        range=(0.0, 1.0),
        paper="Xun et al. 2023 (NSCB)",
        level="treatment",
        plan=nscb_plan,
    ),
    Metric(
        name="nsb_wells",
        function=nsb_wells,
        needs=("labels", "batches"),
        higher_is_better=True,
        range=(0.0, 1.0),
        paper="Kim et al. 2025 (perturbation NSB)",
        level="well",
        plan=nsb_wells_plan,
        label_kind="treatment",
    ),
    Metric(
        name="nsbp",
        function=nsbp,
        needs=("labels", "treatments", "batches"),
        higher_is_better=True,
        range=(0.0, 1.0),
        paper="Kim et al. 2025 (target NSBP)",
        level="well",
        plan=nsbp_plan,
    ),
    Metric(
        name="knn",
        function=knn,
        needs=("labels", "compounds", "batches"),
        higher_is_better=True,
        range=(0.0, 1.0),
        paper="Xun et al. 2023 (KNN); Bray et al. 2022 for what is left out",
        level="treatment",
        plan=knn_plan,
    ),
)
