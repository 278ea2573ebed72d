"""Scoring feature sets: read a level, call the metrics of the registry, put baselines beside them, store the scores."""

import math
from collections.abc import Sequence

import duckdb

from warehouse import feature_sets as feature_sets_of
from warehouse import profiles
from warehouse.errors import EvaluationError, ProfileError, WellhouseError
from warehouse.evaluation import records, tables
from warehouse.evaluation.asked import AskedMetric, asked_metric, asked_set, check_seed
from warehouse.evaluation.baselines import Baseline, Job, baselines, is_above, own_baselines, score_all
from warehouse.evaluation.inputs import Inputs
from warehouse.evaluation.records import Evaluation
from warehouse.evaluation.tables import Table
from warehouse.lake import Lake
from warehouse.metrics import Score
from warehouse.metrics.passes import Arrays
from warehouse.metrics.score import no_queries
from warehouse.profiles import LABEL_KINDS
from warehouse.runs import Run

#: Draws of a baseline, for metrics of pairs: where profiles say nothing, a score is better than all five of them
#: once in six times at most. Metrics that cluster, train or rank within plates have one draw: every other time at most.
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
    check_seed(seed)
    asked = [asked_metric(text, seed) for text in metrics]
    given = inputs or Inputs()
    setting = records.Setting(labels, where, batch_key, seed, given.marks())
    own_run = Run(
        "evaluate",
        {
            "feature_sets": list(feature_sets), "recipe": recipe, "labels": labels, "where": where, "level": level,
            "batch_key": batch_key, "metrics": list(metrics), "baselines": baselines, "seed": seed,
            "inputs": setting.inputs, "device": "cpu" if arrays is None else "given",
        },
    )  # fmt: skip
    run = run or own_run
    made: list[Evaluation] = []
    errors: dict[int, WellhouseError] = {}
    with lake.reading():
        snapshot = lake.snapshot()
        for text in feature_sets:
            feature_set, own = asked_set(text, recipe)
            mark = records.fingerprint(lake, feature_set, own)
            scored: dict[int, Evaluation] = {}
            for at in dict.fromkeys(level or metric.metric.level for metric in asked):
                places = [i for i, metric in enumerate(asked) if (level or metric.metric.level) == at]
                some = [asked[i] for i in places]
                try:
                    table = tables.read(lake, feature_set, own, at, where, labels, batch_key, given)
                    found = _score(table, some, baselines, seed, arrays, setting)
                except (EvaluationError, ProfileError) as error:
                    slug = profiles.find_recipe(lake, feature_sets_of.find(lake, feature_set), own).name
                    found = [_failed(feature_set, slug, at, one, error, setting) for one in some]
                    errors[len(made) + places[0]] = _named(some[0], error)
                scored |= {place: each.of(snapshot, mark) for place, each in zip(places, found, strict=True)}
            made += [scored[place] for place in range(len(asked))]
    if made and all(each.failure is not None for each in made):
        raise errors.get(0) or EvaluationError(made[0].failure)

    def work(connection: duckdb.DuckDBPyConnection) -> None:
        run.record(lake)
        for evaluation in made:
            records.store(connection, evaluation, run)

    lake.transaction(work)
    if run is own_run:
        run.finish(lake, {"evaluations": len(made)})
    return made


def _score(
    table: Table,
    asked: list[AskedMetric],
    draws: int,
    seed: int,
    arrays: Arrays | None,
    setting: records.Setting,
) -> list[Evaluation]:
    X, ids = table.profiles.matrix, table.profiles.names()
    of = (table.profiles.feature_set.name, table.profiles.recipe, table.profiles.level)
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
        if isinstance(score, EvaluationError):
            made.append(
                _failed(
                    table.profiles.feature_set.name,
                    table.profiles.recipe,
                    table.profiles.level,
                    one,
                    score,
                    setting,
                )
            )
            continue
        above = is_above(score.value, own, metric.higher_is_better)
        own |= own_baselines(one, score)
        made.append(
            Evaluation(
                feature_set=of[0],
                recipe=of[1],
                asked=one,
                level=of[2],
                label_kind=records.label_kind(one, table.labels),
                score=score,
                names=tuple(ids),
                setting=setting,
                baselines=own,
                is_above=above,
                notes=tuple(table.notes),
            )
        )
    return made


def _needs(table: Table, asked: AskedMetric) -> dict[str, object]:
    metric = asked.metric
    needs = table.needs(metric.needs, metric.label_kind)
    labels = needs.get("labels")
    if isinstance(labels, list) and not any(labels):
        kind = metric.label_kind or table.labels
        what = (
            "has a label of kind {!r}: bring labels with --annotations"
            if kind in LABEL_KINDS
            else "has a {}: are there only negative controls, or no layout?"
        )
        message = f"no {table.name} {what.format(kind)}"
        raise EvaluationError(message)
    return needs


def _named(asked: AskedMetric, error: WellhouseError) -> WellhouseError:
    """Say which metric could not be scored."""
    if isinstance(error, ProfileError) or str(error).startswith(asked.metric.name):
        return error
    message = f"{asked.metric.name}: {error}"
    return EvaluationError(message)


def _failed(
    feature_set: str,
    recipe: str,
    level: str,
    asked: AskedMetric,
    error: WellhouseError,
    setting: records.Setting,
) -> Evaluation:
    """Make the evaluation that says why there is no score."""
    failure = str(_named(asked, error))
    return Evaluation(
        feature_set=feature_set,
        recipe=recipe,
        asked=asked,
        level=level,
        label_kind=records.label_kind(asked, setting.labels),
        score=Score(math.nan, 0, None, no_queries(), None, {}, None),
        names=(),
        setting=setting,
        baselines={},
        is_above=None,
        failure=failure,
    )
