"""How well profiles predict the outcome of assays that have few labels each: one network for all of them."""

from collections.abc import Hashable, Sequence

import numpy as np
import polars as pl
from numpy.typing import NDArray

from warehouse.errors import EvaluationError
from warehouse.metrics.classification import MOST_EPOCHS, MOST_UNITS
from warehouse.metrics.learning import (
    Floats,
    Mask,
    draw_folds,
    finite_profiles,
    given_folds,
    groups_of,
    in_canonical_order,
    scaled,
)
from warehouse.metrics.network import OPTIMIZERS, MaskedNetwork
from warehouse.metrics.registry import Metric
from warehouse.metrics.score import Score, check_length, count_reasons, no_queries, require_queries
from warehouse.names import unknown

#: Of assays by their number of labels, as Kim et al. group them: from this one on.
BINS = {"<50": 0, "50–100": 50, "100–500": 100, "500–1000": 500, "1000–3000": 1000, ">3000": 3001}
#: AUROCs above which assays are counted.
LIMITS = (0.9, 0.8, 0.7)
#: One in so many of the training compounds tells when to stop: a tenth of all, where a fifth is the test.
VALIDATION = 8
#: Parts that compounds are dealt into where no folds are given; a test split is one of them.
PARTS = 5


def bioactivity(
    X: NDArray[np.floating],
    assays: NDArray[np.floating],
    assay_names: Sequence[str],
    compounds: Sequence[Hashable],
    folds: Sequence[int] | NDArray[np.integer] | None = None,
    ids: Sequence[str] | None = None,
    *,
    splits: int = 3,
    hidden: int = 512,
    dropout: float = 0.5,
    epochs: int = 100,
    batch: int = 256,
    learning_rate: float = 1e-3,
    weight_decay: float = 1e-4,
    patience: int = 0,
    optimizer: str = "adam",
    seed: int = 0,
) -> Score:
    """Mean AUROC over assays of a network of three hidden layers, on rows it was not trained on.

    Where folds are drawn, these are of other compounds.

    The paper's network is `hidden=2048, optimizer=sgd, learning_rate=0.01`: the defaults are a smaller one and Adam,
    which need fewer steps where compounds are few. As there, training goes on to the last epoch.

    Args:
        X: (n, d) profiles, scaled by the training rows.
        assays: (n, A) of 1 active, 0 inactive, NaN no label.
        assay_names: A names.
        compounds: n compounds, which no split that is drawn parts; None: the profile stands for itself.
        folds: (n,) in which test split each row is, -1 for none; each in turn is predicted from the others, whatever
            compounds they share. None: compounds are dealt into five, and `splits` of these are predicted.
        ids: n names for messages.
        splits: number of test splits, 1 to 5, where they are drawn.
        hidden: units of each hidden layer.
        dropout: of hidden units; a tenth of the features too, unless it is 0.
        epochs: the most passes over the training rows.
        batch: rows of a step.
        learning_rate: of the optimiser.
        weight_decay: of the weights.
        patience: 0: all but the test rows are trained on, to the end. Else an eighth of the training compounds is
            kept aside, and it stops after so many epochs without a lower loss on them; with dropout the loss rises
            before it falls, so that less than 30 stops before anything is learnt.
        optimizer: `adam` or `sgd`.
        seed: of splits, weights, batches and dropout.

    Returns:
        A score over assays; `per_group` has assay, value (AUROC), f1 (active from 0.5 on), both the mean over the
        splits in which they could be computed (n_splits), n_labels and n_active (compounds), bin. An assay whose
        test rows have one class in every split, or that no training row has, cannot be scored and is counted.
        `bioactivity_table` sums up. The same for any order of the rows.

    Raises:
        EvaluationError: a profile is not finite, a label is not 0, 1 or NaN, a number does not fit, or no assay
            can be scored.
        UnknownNameError: the optimiser is in no list.

    Source:
        Kim et al. 2025, Methods, "Bioactivity prediction", after Hofmarcher et al. 2019.
    """
    n = len(X)
    check_length("assays", assays, n)
    check_length("compounds", compounds, n)
    Y = _checked(assays, assay_names)
    _check_numbers(splits, hidden, dropout, epochs, batch, learning_rate, weight_decay, patience, optimizer)
    reasons: list[str | None] = [None if row.any() else "no assay label" for row in ~np.isnan(Y)]
    fold = np.full(n, -1) if folds is None else given_folds("bioactivity", folds, n)
    if folds is not None:
        reasons = [
            reason or ("in no fold" if f < 0 else None) for reason, f in zip(reasons, fold, strict=True)
        ]
    used = np.array([reason is None for reason in reasons], dtype=bool)
    profiles = finite_profiles(X, ids, used)
    require_queries("bioactivity", int(used.sum()), count_reasons(reasons))
    groups = np.array(groups_of(compounds, profiles), dtype=object)
    rows = in_canonical_order(np.flatnonzero(used), profiles, groups.tolist(), [row.tobytes() for row in Y])
    profiles, Y, fold, groups = profiles[rows], Y[rows], fold[rows], groups[rows].astype(str)
    if folds is None:
        fold = draw_folds("bioactivity", groups.tolist(), PARTS, seed)
    network = MaskedNetwork(
        hidden, dropout, epochs, batch, learning_rate, weight_decay, patience, optimizer, seed, np.float32
    )
    tests = np.unique(fold) if folds is not None else np.arange(splits)
    auroc, f1 = np.full((2, len(tests), Y.shape[1]), np.nan)
    for place, number in enumerate(tests.tolist()):
        auroc[place], f1[place] = _split(network, profiles, Y, groups, fold == number)
    scored = ~np.isnan(auroc).all(axis=0)
    left = count_reasons(reasons)
    if not scored.all():
        left["assay: one class in every test split, or no training label"] = int((~scored).sum())
    require_queries("bioactivity", int(scored.sum()), left)
    table = _table(assay_names, auroc, f1, Y, groups).filter(pl.Series(scored))
    value = float(table["value"].to_numpy().mean())
    empty = no_queries()
    return Score(value, len(table), None, empty, table, left, "group")


def bioactivity_table(score: Score) -> pl.DataFrame:
    """Sum a score of `bioactivity` up, for all assays and for each bin of their number of labels.

    Returns:
        bin (`all` first), n_assays, auroc and auroc_sd (over assays, ddof 1), f1, and the number of assays with an
        AUROC above 0.9, 0.8 and 0.7: above_0.9, above_0.8, above_0.7.

    Source:
        Kim et al. 2025, Table 1 and Supplementary Fig. 8.
    """
    if score.per_group is None:
        message = "the score has no assays: give one of bioactivity"
        raise EvaluationError(message)
    found = score.per_group
    every = pl.concat([found.with_columns(bin=pl.lit("all")), found])
    order = pl.Enum(["all", *BINS])
    return (
        every.group_by(pl.col("bin").cast(order))
        .agg(
            pl.len().cast(pl.Int64).alias("n_assays"),
            pl.col("value").mean().alias("auroc"),
            pl.col("value").std().alias("auroc_sd"),
            pl.col("f1").mean(),
            *[(pl.col("value") > limit).sum().cast(pl.Int64).alias(f"above_{limit}") for limit in LIMITS],
        )
        .sort("bin")
        .with_columns(pl.col("bin").cast(pl.String))
    )


def _split(
    network: MaskedNetwork, X: Floats, Y: Floats, groups: NDArray[np.str_], test: Mask
) -> tuple[Floats, Floats]:
    """AUROC and F1 of each assay on the test rows, (A,) each; NaN where it has one class, or no training label."""
    from sklearn.metrics import f1_score, roc_auc_score

    held = np.zeros(len(X), dtype=bool)
    if network.patience:
        names = np.unique(groups[~test])
        drawn = np.random.default_rng(network.seed).permutation(names)[: max(1, len(names) // VALIDATION)]
        held = ~test & np.isin(groups, drawn)
    training = ~test & ~held
    auroc, f1 = np.full((2, Y.shape[1]), np.nan)
    known = ~np.isnan(Y[training]).all(axis=0)
    if not known.any():
        return auroc, f1
    inputs = scaled(X, training)
    # Overflow shows in the predictions.
    with np.errstate(over="ignore", invalid="ignore"):
        network.fit(inputs[training], Y[training], inputs[held], Y[held])
        logits = network.logits(inputs[test])
    if not np.isfinite(logits).all():
        largest = float(np.abs(inputs[test]).max(initial=0.0))
        message = (
            f"bioactivity: the network's predictions are no numbers any more, with learning_rate "
            f"{network.learning_rate:g} and test profiles of up to {largest:g} standard deviations of the training "
            "rows: take a lower learning rate, or leave such profiles out"
        )
        raise EvaluationError(message)
    for assay in np.flatnonzero(known):
        truth = Y[test, assay]
        labelled = ~np.isnan(truth)
        if len(np.unique(truth[labelled])) == 2:
            auroc[assay] = roc_auc_score(truth[labelled], logits[labelled, assay])
            # Called active from a logit of 0 on: a probability of one half.
            f1[assay] = f1_score(truth[labelled], logits[labelled, assay] >= 0, zero_division=0.0)
    return auroc, f1


def _table(
    names: Sequence[str], auroc: Floats, f1: Floats, Y: Floats, groups: NDArray[np.str_]
) -> pl.DataFrame:
    counted = np.maximum((~np.isnan(auroc)).sum(axis=0), 1)
    n_labels = [len(set(groups[~np.isnan(column)])) for column in Y.T]
    n_active = [len(set(groups[column == 1])) for column in Y.T]
    starts = list(BINS.values())
    return pl.DataFrame(
        {
            "assay": list(names),
            "value": np.nansum(auroc, axis=0) / counted,
            "f1": np.nansum(f1, axis=0) / counted,
            "n_splits": (~np.isnan(auroc)).sum(axis=0),
            "n_labels": n_labels,
            "n_active": n_active,
            "bin": [list(BINS)[int(np.searchsorted(starts, count, side="right")) - 1] for count in n_labels],
        },
        schema_overrides={"n_splits": pl.Int64, "n_labels": pl.Int64, "n_active": pl.Int64},
    )


def _checked(assays: NDArray[np.floating], names: Sequence[str]) -> Floats:
    Y = np.asarray(assays, dtype=np.float64)
    if Y.ndim != 2 or Y.shape[1] != len(names):
        message = f"assays of shape {Y.shape} do not fit {len(names)} names: give one column a name"
        raise EvaluationError(message)
    faulty = ~(np.isnan(Y) | (Y == 0) | (Y == 1))
    if faulty.any():
        row, column = np.argwhere(faulty)[0]
        message = (
            f"assay {names[column]!r} is {Y[row, column]:g} in row {row} ({int(faulty.sum())} such values): "
            "give 1 for active, 0 for inactive, nothing where it was not measured"
        )
        raise EvaluationError(message)
    return Y


def _check_numbers(
    splits: int,
    hidden: int,
    dropout: float,
    epochs: int,
    batch: int,
    learning_rate: float,
    weight_decay: float,
    patience: int,
    optimizer: str,
) -> None:
    if optimizer not in OPTIMIZERS:
        raise unknown(optimizer, "optimizer", OPTIMIZERS)
    if not 1 <= splits <= PARTS:
        message = f"bioactivity: {splits} test splits: take 1 to {PARTS}, or give folds"
        raise EvaluationError(message)
    if min(hidden, epochs, batch) < 1 or patience < 0 or not 0 <= dropout < 1:
        message = (
            f"bioactivity: hidden {hidden}, epochs {epochs}, batch {batch}, patience {patience}, dropout {dropout}: "
            "take 1 or more of the first three, patience from 0 on, dropout from 0 to below 1"
        )
        raise EvaluationError(message)
    if hidden > MOST_UNITS or epochs > MOST_EPOCHS:
        message = (
            f"bioactivity: hidden {hidden}, epochs {epochs}: take at most {MOST_UNITS} and {MOST_EPOCHS}"
        )
        raise EvaluationError(message)
    if not 0 < learning_rate <= 1 or not 0 <= weight_decay <= 1:
        message = (
            f"bioactivity: learning_rate {learning_rate:g}, weight_decay {weight_decay:g}: take a learning rate above "
            "0 and up to 1, and a weight decay from 0 to 1"
        )
        raise EvaluationError(message)


METRICS: tuple[Metric, ...] = (
    Metric(
        name="bioactivity",
        function=bioactivity,
        needs=("assays", "assay_names", "compounds", "folds"),
        higher_is_better=True,
        range=(0.0, 1.0),
        paper="Kim et al. 2025 (bioactivity prediction), after Hofmarcher et al. 2019",
        level="consensus",
        summary=bioactivity_table,
    ),
)
