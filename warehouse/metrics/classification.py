"""Labels predicted by a classifier that was trained on other folds: k nearest neighbours, and a perceptron.

Xun et al. 2023 take scikit-learn's `MLPClassifier` (max_iter 1000) over five folds of single cells (BBBC048), and a
vote of k = 11 (COOS7 by its own training and test sets, CYCLoPs) or k = 1 (BBBC021) neighbours. Their folds may part
the cells of one sample; here a compound is never in training and in test at once, unless the folds that are given
say so. They do not say whether features were scaled: here they are, by the training folds, as a switch.
"""

import warnings
from collections.abc import Callable, Hashable, Sequence
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from warehouse.errors import EvaluationError
from warehouse.metrics.learning import (
    Floats,
    Rows,
    finite_profiles,
    given_folds,
    groups_of,
    in_canonical_order,
    require_groups,
    scaled,
)
from warehouse.metrics.registry import Metric
from warehouse.metrics.score import (
    Labels,
    Score,
    check_length,
    count_reasons,
    label_sets,
    require_queries,
)
from warehouse.names import unknown

DISTANCES = ("euclidean", "cosine")
#: Of a layer, and of a training: beyond them a number is a slip.
MOST_UNITS = 65_536
MOST_EPOCHS = 1_000_000

#: Makes a classifier for (training rows, fold): scikit-learn's, with fit and predict.
Maker = Callable[[int, int], Any]


def knn_classification(
    X: NDArray[np.floating],
    labels: Labels,
    compounds: Sequence[Hashable],
    folds: Sequence[int] | NDArray[np.integer] | None = None,
    ids: Sequence[str] | None = None,
    *,
    k: int = 11,
    distance: str = "euclidean",
    scale: bool = True,
    splits: int = 5,
    seed: int = 0,
) -> Score:
    """Accuracy of the vote of the k nearest profiles of other folds.

    Args:
        X: (n, d) profiles.
        labels: n labels, or sets of one; rows with none or several are left out.
        compounds: n compounds, which no fold that is drawn parts; None: the profile stands for itself. Folds that
            are given may part them.
        folds: (n,) which fold each row is held out in, -1 for none, taken as they are; None: they are drawn.
        ids: n names for messages.
        k: neighbours that vote, each with one voice; between labels with as many, the first by name wins.
        distance: `euclidean` or `cosine`.
        scale: features to mean 0 and standard deviation 1 over the training rows.
        splits: number of folds, where they are drawn: labels spread evenly over them, compounds whole.
        seed: of the draw.

    Returns:
        A score over held-out rows; `per_query` has row, value (1 for right, else 0), label, predicted, fold;
        `per_group` one row a label (value is recall; precision, f1, n) and a fold (value is accuracy; n), told
        apart by `group`. A row whose label no row of the other folds has is left out: nobody could predict it.

    Raises:
        EvaluationError: a profile is not finite, there is one label only, k or the number of folds does not fit,
            or no row is left.
        UnknownNameError: the distance is in no list.

    Source:
        Xun et al. 2023, Methods, "k = 11, 11 and 1" after Hua et al. 2021.
    """
    if distance not in DISTANCES:
        raise unknown(distance, "distance", DISTANCES)

    def make(training: int, fold: int) -> Any:
        from sklearn.neighbors import KNeighborsClassifier

        if not 0 < k <= training:
            message = (
                f"knn_classification: k is {k}, and fold {fold} has {training} training rows: take 1 to that"
            )
            raise EvaluationError(message)
        return KNeighborsClassifier(k, metric=distance)

    return _held_out("knn_classification", X, labels, compounds, folds, ids, make, scale, splits, seed)


def mlp_classification(
    X: NDArray[np.floating],
    labels: Labels,
    compounds: Sequence[Hashable],
    folds: Sequence[int] | NDArray[np.integer] | None = None,
    ids: Sequence[str] | None = None,
    *,
    hidden: str = "100",
    epochs: int = 1000,
    scale: bool = True,
    splits: int = 5,
    seed: int = 0,
) -> Score:
    """Accuracy of scikit-learn's multilayer perceptron, trained on the other folds.

    Args:
        X: (n, d) profiles.
        labels: n labels, or sets of one; rows with none or several are left out.
        compounds: n compounds, which no fold that is drawn parts; None: the profile stands for itself. Folds that
            are given may part them.
        folds: (n,) which fold each row is held out in, -1 for none, taken as they are; None: they are drawn.
        ids: n names for messages.
        hidden: units of each hidden layer: `100`, or `256x128` for two.
        epochs: the most passes over the training rows; it stops earlier where the loss no longer falls.
        scale: features to mean 0 and standard deviation 1 over the training rows.
        splits: number of folds, where they are drawn: labels spread evenly over them, compounds whole.
        seed: of the draw and of the weights.

    Returns:
        As `knn_classification`.

    Raises:
        EvaluationError: as there, or `hidden` or `epochs` is no number above 0 or beyond what can be trained, or the
            profiles are too large to learn from unscaled.

    Source:
        Xun et al. 2023, Methods: `MLPClassifier`, max_iter 1000, five folds; its other settings left as they are.
    """
    units = str(hidden).split("x")
    if (
        not all(text.isdecimal() and 0 < int(text) <= MOST_UNITS for text in units)
        or not 0 < epochs <= MOST_EPOCHS
    ):
        message = (
            f"mlp_classification: hidden is {hidden!r} and epochs {epochs}: give units such as '100' or '256x128', at "
            f"most {MOST_UNITS} a layer, and 1 to {MOST_EPOCHS} epochs"
        )
        raise EvaluationError(message)

    def make(training: int, fold: int) -> Any:
        from sklearn.neural_network import MLPClassifier

        return MLPClassifier(tuple(map(int, units)), max_iter=epochs, random_state=seed)

    return _held_out("mlp_classification", X, labels, compounds, folds, ids, make, scale, splits, seed)


def _held_out(
    metric: str,
    X: NDArray[np.floating],
    labels: Labels,
    compounds: Sequence[Hashable],
    folds: Sequence[int] | NDArray[np.integer] | None,
    ids: Sequence[str] | None,
    make: Maker,
    scale: bool,
    splits: int,
    seed: int,
) -> Score:
    n = len(X)
    check_length("labels", labels, n)
    check_length("compounds", compounds, n)
    sets = label_sets(labels)
    reasons: list[str | None] = [
        "no label" if not row else "several labels" if len(row) > 1 else None for row in sets
    ]
    label = np.array([min(row, default="") for row in sets], dtype=object)
    fold = np.full(n, -1) if folds is None else given_folds(metric, folds, n)
    if folds is not None:
        reasons = [
            reason or ("in no fold" if f < 0 else None) for reason, f in zip(reasons, fold, strict=True)
        ]
    used = np.array([reason is None for reason in reasons], dtype=bool)
    profiles = finite_profiles(X, ids, used)
    groups = groups_of(compounds, profiles)
    rows = in_canonical_order(np.flatnonzero(used), profiles, groups, label.tolist())
    _require_labels(metric, label[rows], count_reasons(reasons))
    if folds is None:
        fold[rows] = _stratified(metric, label[rows], [groups[row] for row in rows], splits, seed)

    predicted = np.full(n, None, dtype=object)
    for number in np.unique(fold[rows]).tolist():
        test, training = rows[fold[rows] == number], rows[fold[rows] != number]
        known = set(label[training])
        for row in test:
            if label[row] not in known:
                reasons[row] = "label in no other fold"
            elif len(known) == 1:
                reasons[row] = "one label only in the other folds"
        test = test[[reasons[row] is None for row in test]]
        if len(test):
            predicted[test] = _predict(
                metric, make(len(training), number), profiles, label, training, test, scale
            )
    queries = np.sort(rows[[reasons[row] is None for row in rows]])
    left = count_reasons(reasons)
    require_queries(metric, len(queries), left)
    right = predicted[queries] == label[queries]
    per_query = pl.DataFrame(
        {
            "row": queries,
            "value": right.astype(np.float64),
            "label": label[queries].tolist(),
            "predicted": predicted[queries].tolist(),
            "fold": fold[queries],
        }
    )
    correct = int(right.sum())
    return Score(correct / len(queries), len(queries), correct, per_query, _groups(per_query), left)


def _require_labels(metric: str, label: NDArray[np.object_], left: dict[str, int]) -> None:
    require_queries(metric, len(label), left)
    if len(set(label)) == 1:
        message = (
            f"{metric}: all {len(label)} rows have the label {label[0]!r}: there is nothing to tell apart"
        )
        raise EvaluationError(message)


def _stratified(metric: str, label: NDArray[np.object_], groups: list[str], splits: int, seed: int) -> Rows:
    """Draw folds that keep a group whole and spread the labels evenly, for rows in canonical order."""
    from sklearn.model_selection import StratifiedGroupKFold

    require_groups(metric, len(set(groups)), splits)
    _, code, members = np.unique(label.astype(str), return_inverse=True, return_counts=True)
    if members.max() < splits:
        message = (
            f"{metric}: no label has more than {members.max()} rows, for {splits} folds: take fewer folds"
        )
        raise EvaluationError(message)
    fold = np.full(len(label), -1)
    folds = StratifiedGroupKFold(splits, shuffle=True, random_state=seed)
    with warnings.catch_warnings():
        # That a label has fewer rows than folds: its rows are counted where they cannot be predicted.
        warnings.simplefilter("ignore", UserWarning)
        for number, (_, held_out) in enumerate(folds.split(code, code, groups)):
            fold[held_out] = number
    return fold


def _predict(
    metric: str,
    classifier: Any,
    profiles: Floats,
    label: NDArray[np.object_],
    training: Rows,
    test: Rows,
    scale: bool,
) -> NDArray[np.object_]:
    from sklearn.exceptions import ConvergenceWarning

    both = profiles[np.concatenate([training, test])]
    if scale:
        both = scaled(both, np.arange(len(training)))
    with warnings.catch_warnings():
        # That the loss was still falling after the epochs that were asked for.
        warnings.simplefilter("ignore", ConvergenceWarning)
        try:
            classifier.fit(both[: len(training)], label[training].astype(str))
        except ValueError as error:
            if "non-finite" not in str(error):
                raise
            message = (
                f"{metric}: profiles of up to {np.abs(both).max():g} are too large to learn from: take scale=true, or "
                "apply a recipe that scales them"
            )
            raise EvaluationError(message) from None
    return np.asarray(classifier.predict(both[len(training) :]), dtype=object)


def _groups(per_query: pl.DataFrame) -> pl.DataFrame:
    """Recall, precision and F1 of each label that was held out; accuracy of each fold."""
    from sklearn.metrics import precision_recall_fscore_support

    names = per_query["label"].unique().sort().to_list()
    precision, recall, f1, members = precision_recall_fscore_support(
        per_query["label"].to_list(), per_query["predicted"].to_list(), labels=names, zero_division=0.0
    )
    by_label = pl.DataFrame(
        {
            "group": ["label"] * len(names),
            "name": names,
            "value": recall,
            "precision": precision,
            "f1": f1,
            "n": members.astype(np.int64),
        }
    )
    by_fold = per_query.group_by("fold").agg(pl.col("value").mean(), n=pl.len().cast(pl.Int64)).sort("fold")
    by_fold = by_fold.select(
        pl.lit("fold").alias("group"), pl.col("fold").cast(pl.String).alias("name"), "value", "n"
    )
    return pl.concat([by_label, by_fold], how="diagonal")


_NEEDS = ("labels", "compounds", "folds")

METRICS: tuple[Metric, ...] = (
    Metric(
        name="knn_classification",
        function=knn_classification,
        needs=_NEEDS,
        higher_is_better=True,
        range=(0.0, 1.0),
        paper="Xun et al. 2023 (KNN classification accuracy, k = 1 and 11)",
        level="treatment",
    ),
    Metric(
        name="mlp_classification",
        function=mlp_classification,
        needs=_NEEDS,
        higher_is_better=True,
        range=(0.0, 1.0),
        paper="Xun et al. 2023 (MLP classification accuracy, five folds)",
        level="treatment",
    ),
)
