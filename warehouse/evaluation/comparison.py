"""Feature sets side by side: a paired bootstrap over the queries that they have in common."""

from collections.abc import Sequence

import numpy as np
import polars as pl

from warehouse.errors import EvaluationError
from warehouse.evaluation.records import Evaluation

DRAWS = 2000
#: Resampled values held at a time.
_AT_ONCE = 2**22
SCHEMA = {
    "metric": pl.String,
    "level": pl.String,
    "labels": pl.String,
    "feature_set": pl.String,
    "recipe": pl.String,
    "value": pl.Float64,
    "low": pl.Float64,
    "high": pl.Float64,
    "than": pl.String,
    "difference": pl.Float64,
    "difference_low": pl.Float64,
    "difference_high": pl.Float64,
    "n": pl.Int64,
    "note": pl.String,
}


def compare(evaluations: Sequence[Evaluation], draws: int = DRAWS, seed: int = 0) -> pl.DataFrame:
    """Set feature sets side by side, metric by metric, with intervals.

    Queries (groups, for a metric that is a mean over groups) are drawn with replacement, the same ones for all
    feature sets of a metric, `draws` times; intervals are percentiles 2.5 and 97.5. Queries that only one of two
    feature sets has do not count for their difference, and are counted in `note`. Queries share a library and
    compounds, and so are not independent: the intervals are somewhat too narrow.

    Args:
        evaluations: of one or more feature sets; the first one of each metric is what the others are compared with.
        draws: resamplings.
        seed: of the resamplings.

    Returns:
        One row an evaluation: metric, level, labels, feature_set, recipe, value with low and high, difference to
        `than` (feature set:recipe) with its low and high, over n common queries. Intervals are NULL for a metric
        that is no mean of queries.

    Raises:
        EvaluationError: fewer than 100 draws.

    Source:
        Efron & Tibshirani 1993, percentile intervals.
    """
    if draws < 100:
        message = f"{draws} draws give no 95 % interval: take 100 at least"
        raise EvaluationError(message)
    rows: list[dict[str, object]] = []
    metrics: dict[tuple[str, str, str | None], list[Evaluation]] = {}
    for each in evaluations:
        metrics.setdefault((each.asked.text, each.level, each.label_kind), []).append(each)
    for found in metrics.values():
        rows += _side_by_side(found, draws, seed)
    return pl.DataFrame(rows, schema=SCHEMA)


def _side_by_side(evaluations: list[Evaluation], draws: int, seed: int) -> list[dict[str, object]]:
    first, *_ = evaluations
    reference = _values(first)
    rows = []
    for each in evaluations:
        own = _values(each)
        row: dict[str, object] = {
            "metric": each.asked.text,
            "level": each.level,
            "labels": each.label_kind,
            "feature_set": each.feature_set,
            "recipe": each.recipe,
            "value": None if each.failure else each.score.value,
            "n": each.score.n,
        }
        if each is not first:
            row["than"] = _name(first)
        if each.failure is not None:
            row["note"] = each.failure
        elif own is None:
            row["note"] = "no mean of queries: no interval"
            if each is not first and first.failure is None:
                row["difference"] = each.score.value - first.score.value
        else:
            row["low"], row["high"] = _interval([own], draws, seed)
            if each is not first and reference is not None:
                row |= _difference(own, reference, draws, seed)
        if each is not first and first.failure is not None and "note" not in row:
            row["note"] = f"{_name(first)} has no score"
        rows.append(row)
    return rows


def _difference(own: pl.DataFrame, reference: pl.DataFrame, draws: int, seed: int) -> dict[str, object]:
    mine = own.join(reference, on="key", how="semi").sort("key")
    theirs = reference.join(own, on="key", how="semi").sort("key")
    lost = len(own) + len(reference) - 2 * len(mine)
    found: dict[str, object] = {"n": len(mine)}
    if lost:
        what = "1 query is" if lost == 1 else f"{lost} queries are"
        found["note"] = f"{what} of one of the two only"
    if mine.is_empty():
        return found
    low, high = _interval([mine, theirs], draws, seed)
    return found | {"difference": _mean(mine) - _mean(theirs), "difference_low": low, "difference_high": high}


def _mean(values: pl.DataFrame) -> float:
    return float(values["total"].to_numpy().sum() / values["count"].to_numpy().sum())


def _interval(sets: list[pl.DataFrame], draws: int, seed: int) -> tuple[float | None, float | None]:
    """Percentiles 2.5 and 97.5 of a mean, or of the difference of two, keys resampled; none of a single key."""
    n = len(sets[0])
    if n < 2:
        return None, None
    # The same draws for every feature set with as many keys.
    random = np.random.default_rng([seed, n])
    step = max(1, _AT_ONCE // n)
    means = []
    for done in range(0, draws, step):
        drawn = random.integers(n, size=(min(step, draws - done), n))
        one, *other = (
            each["total"].to_numpy()[drawn].sum(axis=1) / each["count"].to_numpy()[drawn].sum(axis=1)
            for each in sets
        )
        means.append(one - other[0] if other else one)
    low, high = np.percentile(np.concatenate(means), [2.5, 97.5])
    return float(low), float(high)


def _values(evaluation: Evaluation) -> pl.DataFrame | None:
    """What the value is the mean of: `total` and `count` of each `key`, sorted; None where it is no mean.

    A row that is the query of several labels is one key: it is drawn, or not, with all of them.
    """
    score = evaluation.score
    if evaluation.failure is not None:
        return None
    if score.unit == "query":
        names = pl.Series(evaluation.names, dtype=pl.String)
        found = pl.DataFrame({"key": names.gather(score.per_query["row"]), "value": score.per_query["value"]})
    elif score.unit == "group" and score.per_group is not None:
        naming = score.per_group.columns[: score.per_group.columns.index("value")]
        key = pl.concat_str(pl.col(naming).cast(pl.String), separator="/").alias("key")
        found = score.per_group.select(key, "value")
    else:
        return None
    both = (pl.col("value").sum().alias("total"), pl.len().cast(pl.Float64).alias("count"))
    return found.drop_nulls().group_by("key").agg(both).sort("key")


def _name(evaluation: Evaluation) -> str:
    return f"{evaluation.feature_set}:{evaluation.recipe}"
