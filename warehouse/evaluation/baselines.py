"""What a score is worth: the same metric where profiles say nothing, or nothing but how many cells there are."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import polars as pl
from numpy.typing import NDArray

from warehouse.errors import EvaluationError
from warehouse.evaluation.asked import AskedMetric
from warehouse.evaluation.tables import permuted
from warehouse.metrics import Score
from warehouse.metrics.passes import Arrays, Vectors, feed

#: Features of random vectors: enough that no two are alike, few enough for a quick pass.
MOST_RANDOM = 64

Needs = Mapping[str, object]

#: Two directions at a right angle whose elements add up to 0: in their plane a correlation is a cosine.
_ACROSS = np.array([1.0, -1.0, 0.0]) / np.sqrt(2)
_UP = np.array([1.0, 1.0, -2.0]) / np.sqrt(6)
#: What a library raises at numbers that it cannot work with; another metric is not kept from its score by it.
_FAILURES = (EvaluationError, ValueError, ArithmeticError, MemoryError, np.linalg.LinAlgError)


@dataclass(frozen=True)
class Baseline:
    """What a metric comes to by one baseline.

    Attributes:
        mean: of the draws.
        best: of the draws: a score must be better to be above the baseline.
        draws: how many there were.
    """

    mean: float
    best: float
    draws: int


@dataclass(frozen=True)
class Job:
    """A metric that is asked for, and what it is given beside the profiles."""

    asked: AskedMetric
    needs: Needs


def score_all(
    X: NDArray[np.floating],
    ids: list[str],
    jobs: list[Job],
    arrays: Arrays | None = None,
) -> list[Score | EvaluationError]:
    """Compute metrics; those of pairs share one pass over the similarities.

    Returns:
        A score a job, or why there is none.
    """
    made: list[Score | EvaluationError | None] = [None] * len(jobs)
    plans = {}
    vectors = None
    for place, job in enumerate(jobs):
        metric = job.asked.metric
        given = {**job.needs, **job.asked.parameters}
        try:
            if metric.plan is None:
                made[place] = metric.function(X, ids=ids, **given)
            else:
                vectors = vectors or Vectors.of(X, ids)
                plans[place] = metric.plan(vectors, **given)
        except _FAILURES as error:
            made[place] = _told(error)
    if vectors is not None and plans:
        feed(vectors, list(plans.values()), arrays)
    for place, plan in plans.items():
        try:
            made[place] = plan.score()
        except _FAILURES as error:
            made[place] = _told(error)
    return [one for one in made if one is not None]


def _told(error: Exception) -> EvaluationError:
    if isinstance(error, EvaluationError):
        return error
    message = f"cannot be computed with these parameters on these profiles ({type(error).__name__}: {error})"
    return EvaluationError(message)


def baselines(
    X: NDArray[np.floating],
    ids: list[str],
    jobs: list[Job],
    counts: NDArray[np.float64],
    draws: int,
    seed: int,
    arrays: Arrays | None = None,
) -> list[dict[str, Baseline | None]]:
    """Compute the baselines of metrics.

    - `shuffled`: all that is known of the rows (labels, compounds, batches) is dealt to the profiles by chance.
    - `random`: vectors of normal numbers in the place of the profiles.
    - `cell_count`: profiles that say how many cells a well has, and nothing else: an angle, from 0 to 90 degrees by
      rank, so that profiles are the more alike the nearer their counts. None where a count is not known.

    Args:
        X: (n, d) profiles.
        ids: n names.
        jobs: metrics, and what they are given.
        counts: (n,) cells a well, NaN where not known.
        draws: of shuffled and random, for metrics of pairs; others, which cost more, have one draw.
        seed: of all draws.
        arrays: back end of the pass.

    Returns:
        Per job, each of its baselines by name; None where it could not be computed.
    """
    values: list[dict[str, list[float]]] = [{name: [] for name in job.asked.metric.baselines} for job in jobs]

    def run(name: str, X: NDArray[np.floating], work: list[tuple[int, Job]]) -> None:
        found = score_all(X, ids, [job for _, job in work], arrays)
        for (place, _), score in zip(work, found, strict=True):
            if isinstance(score, Score):
                values[place][name].append(score.value)

    plain = [(place, _without_null(job)) for place, job in enumerate(jobs)]
    shuffled = [
        (place, _shuffled(job, len(X), seed, draw))
        for place, job in plain
        if "shuffled" in job.asked.metric.baselines
        for draw in range(_draws(job, draws))
    ]
    if shuffled:
        run("shuffled", X, shuffled)
    plain = [(place, _without_clusters(job)) for place, job in plain]
    for draw in range(draws):
        work = [
            each
            for each in plain
            if "random" in each[1].asked.metric.baselines and draw < _draws(each[1], draws)
        ]
        if work:
            size = (len(X), min(X.shape[1], MOST_RANDOM))
            run("random", np.random.default_rng([seed, draw, 1]).standard_normal(size), work)
    work = [each for each in plain if "cell_count" in each[1].asked.metric.baselines]
    if work and np.isfinite(counts).all():
        run("cell_count", _angles(counts), work)
    better = [max if job.asked.metric.higher_is_better else min for job in jobs]
    return [
        {
            name: Baseline(float(np.mean(own)), float(best(own)), len(own)) if own else None
            for name, own in each.items()
        }
        for each, best in zip(values, better, strict=True)
    ]


def own_baselines(asked: AskedMetric, score: Score) -> dict[str, Baseline | None]:
    """Read the baselines that a metric of batch effects brings itself: rows of `per_group` with that name."""
    found = score.per_group
    if found is None or "baseline" not in found.columns:
        return {}
    at = asked.parameters.get("k")
    if "k" in found.columns and at in found["k"]:
        found = found.filter(pl.col("k") == at)
    rows = found.filter(pl.col("baseline").is_not_null()).select("baseline", "value").iter_rows()
    return {name: None if value is None else Baseline(value, value, 1) for name, value in rows}


def is_above(value: float, found: Mapping[str, Baseline | None], higher_is_better: bool) -> bool | None:
    """Tell whether a value is better than every draw of every baseline; None where there is none."""
    best = [baseline.best for baseline in found.values() if baseline is not None]
    if not best or not np.isfinite(value):
        return None
    return bool(value > max(best) if higher_is_better else value < min(best))


def _draws(job: Job, draws: int) -> int:
    return draws if job.asked.metric.plan is not None else min(draws, 1)


def _without_null(job: Job) -> Job:
    """Leave out p-values, which a baseline's draws are not asked for."""
    asked = job.asked
    if "null" not in asked.parameters:
        return job
    return Job(AskedMetric(asked.metric, {**asked.parameters, "null": 0}), job.needs)


def _without_clusters(job: Job) -> Job:
    """Leave out clusters that are brought: they are of the profiles, and others are clustered."""
    return Job(job.asked, {need: None if need == "clusters" else own for need, own in job.needs.items()})


def _shuffled(job: Job, n: int, seed: int, draw: int) -> Job:
    order = np.random.default_rng([seed, draw, 0]).permutation(n)
    return Job(job.asked, {need: permuted(need, values, order) for need, values in job.needs.items()})


def _angles(counts: NDArray[np.float64]) -> NDArray[np.float64]:
    """Turn counts (n,) into vectors (n, 3) whose cosine, and correlation, falls with the difference of their ranks."""
    _, rank = np.unique(counts, return_inverse=True)
    angle = rank[:, None] / max(rank.max(initial=0), 1) * np.pi / 2
    made: NDArray[np.float64] = np.cos(angle) * _ACROSS + np.sin(angle) * _UP
    return made
