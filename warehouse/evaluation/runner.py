"""Scoring feature sets: read a level, call the metrics of the registry, put baselines beside them, store the scores."""

import math
from collections.abc import Sequence

import duckdb
import polars as pl

from warehouse.errors import EvaluationError
from warehouse.evaluation import records, tables
from warehouse.evaluation.asked import AskedMetric, asked_metric, asked_set
from warehouse.evaluation.baselines import Baseline, Job, baselines, is_above, own_baselines, score_all
from warehouse.evaluation.inputs import Inputs
from warehouse.evaluation.records import Evaluation
from warehouse.evaluation.tables import Table
from warehouse.lake import Lake
from warehouse.metrics import Score
from warehouse.metrics.passes import Arrays
from warehouse.runs import Run

#: Draws of a baseline: a score that chance reaches is better than the best of five once in six times.
DRAWS = 5


def evaluate(
    lake: Lake,
    feature_sets: Sequence[str],
    metrics: Sequence[str],
    *,
    recipe: str = "none",
    labels: str = "moa",
    level: str | None = None,
    where: str | None = None,
    batch_key: str = "batch",
    baselines: int = DRAWS,
    inputs: Inputs | None = None,
    arrays: Arrays | None = None,
    seed: int = 0,
    run: Run | None = None,
) -> list[Evaluation]:
    """Score feature sets and store the scores in `evaluations`, in one transaction.

    Metrics of pairs at one level share one pass over its similarities, their shuffled baselines too.

    Args:
        lake: open for writing.
        feature_sets: names, or ``name:recipe`` where one has a recipe of its own.
        metrics: names, with parameters where they are not the default: ``knn(k=11)``.
        recipe: steps or name of a recipe that was fitted, or `none`.
        labels: kind of annotation that metrics with labels go by; `treatment` and `compound` are kinds, too.
        level: of `profiles.LEVELS`, of all metrics; None: each reads its own.
        where: an SQL predicate over the level that a metric reads.
        batch_key: what counts as the same batch: `batch`, `plate` or `source`.
        baselines: draws of each baseline; 0: none.
        inputs: files that some metrics need.
        arrays: back end of the pass over similarities; None: NumPy.
        seed: of the baselines' draws, and of metrics that draw.
        run: that this belongs to; None for one of its own.

    Returns:
        One evaluation a feature set and metric, in the order asked for. A metric that cannot be scored keeps no other
        from being stored: its `failure` says why, its value is NULL.

    Raises:
        UnknownNameError: a name that is in no list.
        EvaluationError: no metric can be scored; the message says what the first one lacks.
    """
    asked = [asked_metric(text, seed) for text in metrics]
    given = inputs or Inputs()
    setting = records.Setting(labels, where, batch_key, seed, given.marks())
    made: list[Evaluation] = []
    with lake.reading():
        snapshot = lake.snapshot()
        for text in feature_sets:
            feature_set, own = asked_set(text, recipe)
            read: dict[str, Table] = {}
            for metric in asked:
                at = level or metric.metric.level
                if at not in read:
                    read[at] = _read(lake, feature_set, own, at, setting, given, metric)
            mark = records.fingerprint(lake, feature_set, own)
            scored: dict[int, Evaluation] = {}
            for at, table in read.items():
                places = [i for i, metric in enumerate(asked) if (level or metric.metric.level) == at]
                found = _score(table, [asked[i] for i in places], baselines, seed, arrays, setting)
                scored |= {
                    place: evaluation.of(snapshot, mark)
                    for place, evaluation in zip(places, found, strict=True)
                }
            made += [scored[place] for place in range(len(asked))]
    failures = [each.failure for each in made if each.failure is not None]
    if failures and len(failures) == len(made):
        raise EvaluationError(failures[0])
    own_run = Run(
        "evaluate",
        {
            "feature_sets": list(feature_sets), "recipe": recipe, "labels": labels, "where": where,
            "level": level, "batch_key": batch_key, "metrics": list(metrics),
        },
    )  # fmt: skip
    run = run or own_run

    def work(connection: duckdb.DuckDBPyConnection) -> None:
        run.record(lake)
        for evaluation in made:
            records.store(connection, evaluation, run)

    lake.transaction(work)
    if run is own_run:
        run.finish(lake, {"evaluations": len(made)})
    return made


def _read(
    lake: Lake,
    feature_set: str,
    recipe: str,
    level: str,
    setting: records.Setting,
    inputs: Inputs,
    metric: AskedMetric,
) -> Table:
    try:
        return tables.read(
            lake, feature_set, recipe, level, setting.where, setting.labels, setting.batch_key, inputs
        )
    except EvaluationError as error:
        message = f"{metric.metric.name}: {error}"
        raise EvaluationError(message) from error


def _score(
    table: Table,
    asked: list[AskedMetric],
    draws: int,
    seed: int,
    arrays: Arrays | None,
    setting: records.Setting,
) -> list[Evaluation]:
    X, ids = table.profiles.matrix, table.profiles.names()
    found: dict[int, Score | EvaluationError] = {}
    jobs: dict[int, Job] = {}
    for place, one in enumerate(asked):
        try:
            jobs[place] = Job(one, _needs(table, one))
        except EvaluationError as error:
            found[place] = error
    found |= zip(jobs, score_all(X, ids, list(jobs.values()), arrays), strict=True)
    good = {place: job for place, job in jobs.items() if isinstance(found[place], Score)}
    beside: dict[int, dict[str, Baseline | None]] = {}
    if draws and good:
        counts = tables.cell_counts(table.profiles.rows)
        beside |= zip(good, baselines(X, ids, list(good.values()), counts, draws, seed, arrays), strict=True)
    made = []
    for place, one in enumerate(asked):
        metric, score, own = one.metric, found[place], beside.get(place, {})
        failure = None
        if isinstance(score, EvaluationError):
            failure = str(score) if str(score).startswith(metric.name) else f"{metric.name}: {score}"
            score = Score(math.nan, 0, None, pl.DataFrame(), None, {failure: len(ids)}, None)
        above = is_above(score.value, own, metric.higher_is_better)
        own |= own_baselines(one, score)
        kind = (metric.label_kind or table.labels) if "labels" in metric.needs else None
        made.append(
            Evaluation(
                feature_set=table.profiles.feature_set.name,
                recipe=table.profiles.recipe,
                asked=one,
                level=table.profiles.level,
                label_kind=kind,
                score=score,
                names=tuple(ids),
                setting=setting,
                baselines=own,
                is_above=above,
                notes=tuple(table.notes),
                failure=failure,
            )
        )
    return made


def _needs(table: Table, asked: AskedMetric) -> dict[str, object]:
    metric = asked.metric
    try:
        needs = table.needs(metric.needs, metric.label_kind)
    except EvaluationError as error:
        message = f"{metric.name}: {error}"
        raise EvaluationError(message) from error
    labels = needs.get("labels")
    if isinstance(labels, list) and not any(labels):
        message = (
            f"{metric.name}: no {table.name} has a label of kind {metric.label_kind or table.labels!r}: "
            "bring labels with --annotations"
        )
        raise EvaluationError(message)
    return needs
