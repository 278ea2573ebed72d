"""What models tell of the batch from the profiles: a classifier, and the regression of principal components.

Rows, baselines and `per_group` are those of `warehouse.metrics.batch_effects`.
"""

from collections.abc import Callable, Collection, Sequence

import numpy as np
import polars as pl
from numpy.typing import NDArray

from warehouse.errors import EvaluationError
from warehouse.metrics.grouped_rows import (
    BASELINES,
    Floats,
    Grouped,
    Rows,
    numbered,
    of_one_batch,
    scenes,
)
from warehouse.metrics.score import Score, check_length, no_queries
from warehouse.names import unknown

CLASSIFIERS = ("lda", "logistic", "knn")
GROUPINGS = ("treatments", "plates")
#: That vote, of classifier=knn.
NEIGHBOURS = 5


def batch_classifier(
    X: NDArray[np.floating],
    batches: Sequence[Collection[str]],
    treatments: Sequence[str | None],
    plates: Sequence[str],
    controls: Sequence[bool],
    ids: Sequence[str] | None = None,
    *,
    classifier: str = "lda",
    across: str = "treatments",
    folds: int = 5,
    keep_controls: bool = False,
    seed: int = 0,
) -> Score:
    """Matthews correlation of the batch with what a classifier says of it: 1 known, 0 by chance. Lower is better.

    Each row is classified by a model that has seen no row of its treatment: where treatments differ from batch to
    batch, replicates would give the batch away. With ``across=plates`` it has seen no row of its plate: a batch must
    then be known from other plates of it, and a batch of one plate never is.

    Args:
        X: (n, d) profiles; classifiers scale each feature by its own spread.
        batches: n sets; rows with none or several are left out.
        treatments: n treatments; a row of none, or a negative control, is held out by itself.
        plates: n plates.
        controls: n booleans, negative controls.
        ids: n names for messages.
        classifier: ``lda`` (linear discriminants, covariance shrunk by Ledoit & Wolf), ``logistic`` or ``knn`` (5
            neighbours).
        across: what is held out as a whole: ``treatments`` or ``plates``.
        folds: of the cross-validation, in which batches are as even as groups allow.
        keep_controls: count negative controls too.
        seed: of folds and baselines.

    Returns:
        A score of all rows at once. `per_query` has value (1 if right), batch, predicted; `per_group` baseline, value.

    Raises:
        EvaluationError: a length differs, a row that is used is not finite, there is one batch only, or there are too
            few groups or rows for so many folds or for the classifier.
        UnknownNameError: no such classifier or grouping.

    Source:
        Gorodkin 2004 (MCC of several classes); scikit-learn's `matthews_corrcoef`.
    """
    from sklearn.metrics import matthews_corrcoef

    if classifier not in CLASSIFIERS:
        raise unknown(classifier, "classifier", CLASSIFIERS)
    if across not in GROUPINGS:
        raise unknown(across, "grouping", GROUPINGS)
    check_length("treatments", treatments, len(X))
    check_length("plates", plates, len(X))
    ties = [f"{treatment} on {plate}" for treatment, plate in zip(treatments, plates, strict=True)]
    own = of_one_batch("batch_classifier", X, batches, controls, ids, keep_controls=keep_controls, ties=ties)
    alone = [
        f"row {place}"
        if across == "treatments" and (controls[row] or treatments[row] is None)
        else f"group {(treatments if across == 'treatments' else plates)[row]}"
        for place, row in enumerate(own.rows)
    ]
    held_out, names = numbered(alone)
    smallest, largest = np.bincount(own.codes).min(), np.bincount(own.codes).max()
    most = min(len(names), largest)
    if not 2 <= folds <= most or len(own) <= 2 * len(own.names):
        message = (
            f"batch_classifier: {folds} folds of {len(own)} rows in {len(names)} {across} and {len(own.names)} batches "
            f"of {smallest} to {largest} rows: "
            + (
                f"ask for 2 to {most} folds, or give more rows a batch"
                if most > 1
                else "give more rows a batch"
            )
        )
        raise EvaluationError(message)
    predictions = [
        (baseline, _predicted(own, profiles, codes, held_out, classifier, folds, seed), codes)
        for baseline, profiles, codes in scenes(own, seed)
    ]
    rows = [
        (baseline, float(matthews_corrcoef(codes, predicted))) for baseline, predicted, codes in predictions
    ]
    _, predicted, codes = predictions[0]
    right = predicted == codes
    name = np.array(own.names)
    per_query = own.per_query(right, batch=name[codes], predicted=name[predicted])
    per_group = pl.DataFrame(rows, schema=BASELINES, orient="row")
    return Score(rows[0][1], len(own), int(right.sum()), per_query, per_group, own.left_out, None)


def pc_regression(
    X: NDArray[np.floating],
    batches: Sequence[Collection[str]],
    controls: Sequence[bool],
    ids: Sequence[str] | None = None,
    *,
    components: int = 50,
    keep_controls: bool = False,
    seed: int = 0,
) -> Score:
    """Share of the variance of principal components that the batch explains, 0 to 1. Lower is better.

    Args:
        X: (n, d) profiles; features are centred and not scaled.
        batches: n sets; rows with none or several are left out.
        controls: n booleans, negative controls.
        ids: n names for messages.
        components: the first so many, as far as there are; 0: all.
        keep_controls: count negative controls too.
        seed: of the baselines.

    Returns:
        A score, Σ variance·R² / Σ variance over components, R² of the regression of a component on the batches.
        `per_group` has baseline, value.

    Raises:
        EvaluationError: a length differs, a row that is used is not finite, there is one batch only, profiles are all
            the same, or components is less than 0.

    Source:
        Büttner et al. 2019, principal component regression; Luecken et al. 2022.
    """
    if components < 0:
        message = f"pc_regression: components={components}: give 0 for all, or how many"
        raise EvaluationError(message)
    own = of_one_batch("pc_regression", X, batches, controls, ids, keep_controls=keep_controls)
    rows = [
        (baseline, _explained(profiles, codes, components)) for baseline, profiles, codes in scenes(own, seed)
    ]
    per_group = pl.DataFrame(rows, schema=BASELINES, orient="row")
    return Score(rows[0][1], len(own), None, no_queries(), per_group, own.left_out, None)


def _predicted(
    own: Grouped, X: Floats, codes: Rows, held_out: Rows, classifier: str, folds: int, seed: int
) -> Rows:
    """Cross-validated prediction of each row's code, (n,); groups are held out as a whole."""
    import warnings

    from sklearn.model_selection import StratifiedGroupKFold

    predicted = np.empty(len(own), np.int64)
    splits = StratifiedGroupKFold(folds, shuffle=True, random_state=seed)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The least populated class")
        for train, test in splits.split(X, codes, held_out):
            known = len(np.unique(codes[train]))
            if known == 1:
                predicted[test] = codes[train[0]]
                continue
            # A covariance needs a row more than batches.
            least = {"lda": known + 1, "knn": NEIGHBOURS}.get(classifier, known)
            if len(train) < least:
                message = (
                    f"batch_classifier: {len(train)} training rows in a fold of {folds}, where classifier={classifier} "
                    f"needs {least}: ask for more folds or another classifier, or give more rows"
                )
                raise EvaluationError(message)
            predicted[test] = _model(classifier).fit(X[train], codes[train]).predict(X[test])  # type: ignore[attr-defined]
    return predicted


def _model(classifier: str) -> object:
    from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
    from sklearn.linear_model import LogisticRegression
    from sklearn.neighbors import KNeighborsClassifier
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    models: dict[str, Callable[[], object]] = {
        "lda": lambda: LinearDiscriminantAnalysis(solver="lsqr", shrinkage="auto"),
        "logistic": lambda: LogisticRegression(max_iter=1000),
        "knn": lambda: KNeighborsClassifier(NEIGHBOURS),
    }
    return make_pipeline(StandardScaler(), models[classifier]())


def _explained(X: Floats, codes: Rows, components: int) -> float:
    """Share of the variance of the first components that groups explain."""
    n, d = X.shape
    centred = X - X.mean(axis=0)
    # Rotations of the features, most variance first; the smaller of two equivalent problems.
    if n > d:
        rotation = np.linalg.eigh(centred.T @ centred)[1][:, ::-1]
    else:
        rotation = np.linalg.svd(centred, full_matrices=False)[2].T
    rotation = rotation[:, : components or None]
    scores = centred @ rotation
    count = np.bincount(codes)
    sums = np.zeros((len(count), scores.shape[1]))
    np.add.at(sums, codes, scores)
    total = float(np.square(scores).sum())
    if total == 0:
        message = f"pc_regression: all {n} profiles are the same: they have no variance to explain"
        raise EvaluationError(message)
    # Weighted by its variance, a component's R² is the sum of squares between groups.
    return float((np.square(sums) / count[:, None]).sum() / total)
