"""Scoring feature sets: read a level, call the metrics of the registry, write `evaluations`."""

import hashlib
import json
import uuid
from collections.abc import Sequence
from dataclasses import dataclass

import duckdb
import numpy as np
import polars as pl

from warehouse import __version__, metrics, profiles
from warehouse import feature_sets as feature_sets_of
from warehouse.errors import EvaluationError
from warehouse.lake import Lake, now
from warehouse.metrics import Metric, Score
from warehouse.names import unknown
from warehouse.profiles import LABEL_KINDS, Profiles
from warehouse.runs import Run


@dataclass(frozen=True)
class Evaluation:
    """One metric of one feature set: the value, and what it rests on.

    Attributes:
        feature_set: scored.
        recipe: its steps.
        metric: name in the registry.
        level: of the profiles that were read.
        label_kind: of the labels used, or None.
        score: value, n, what was left out and why, per query.
        snapshot: of the lake, as it was read.
    """

    feature_set: str
    recipe: str
    metric: str
    level: str
    label_kind: str | None
    score: Score
    snapshot: int


def evaluate(
    lake: Lake,
    feature_sets: Sequence[str],
    names: Sequence[str],
    *,
    recipe: str = "none",
    labels: str = "moa",
    where: str | None = None,
    run: Run | None = None,
) -> list[Evaluation]:
    """Score feature sets and store the scores in `evaluations`, in one transaction.

    Args:
        lake: open for writing.
        feature_sets: names.
        names: of metrics.
        recipe: steps or name of a recipe that was fitted, or `none`.
        labels: kind of annotation that metrics with labels go by.
        where: an SQL predicate over the level that a metric reads (wells or treatments).
        run: that this belongs to; None for one of its own.

    Returns:
        One evaluation a feature set and metric, in the order asked for.

    Raises:
        UnknownNameError: a name that is in no list.
        EvaluationError: nothing can be scored; the message says what is missing.
    """
    if labels not in LABEL_KINDS:
        raise unknown(labels, "kind of label", LABEL_KINDS)
    chosen = [metrics.get(name) for name in names]
    made = []
    with lake.reading():
        snapshot = lake.snapshot()
        marks = {name: _fingerprint(lake, name, recipe) for name in feature_sets}
        for feature_set in feature_sets:
            read: dict[str, Profiles] = {}
            for metric in chosen:
                if metric.level not in read:
                    read[metric.level] = profiles.read(
                        lake, feature_set, recipe=recipe, level=metric.level, where=where
                    )
                made.append(_score(metric, read[metric.level], recipe, labels, snapshot))
    settings = {"feature_sets": list(feature_sets), "recipe": recipe, "labels": labels, "where": where}
    own = Run("evaluate", {**settings, "metrics": list(names)})
    run = run or own

    def work(connection: duckdb.DuckDBPyConnection) -> None:
        run.record(lake)
        for evaluation in made:
            _store(connection, evaluation, run, where, marks[evaluation.feature_set])

    lake.transaction(work)
    if run is own:
        run.finish(lake, {"evaluations": len(made)})
    return made


def scored(
    lake: Lake,
    feature_set: str,
    metric: str,
    *,
    recipe: str = "none",
    labels: str = "moa",
    where: str | None = None,
) -> bool:
    """Tell whether a metric was computed on the profiles, layouts and labels as they are now, by this version."""
    target = feature_sets_of.find(lake, feature_set)
    kind = labels if "labels" in metrics.get(metric).needs else None
    query = (
        "SELECT count(*) FROM main.evaluations WHERE feature_set = ? AND recipe = ? AND metric = ? "
        "AND label_kind IS NOT DISTINCT FROM ? "
        "AND json_extract_string(parameters, 'where') IS NOT DISTINCT FROM ? AND fingerprint = ?"
    )
    slug = profiles.find_recipe(lake, target, recipe).name
    mark = _fingerprint(lake, feature_set, recipe)
    return bool(lake.value(query, [feature_set, slug, metric, kind, where, mark]))


def _fingerprint(lake: Lake, feature_set: str, recipe: str) -> str:
    """Hash all that decides a score: the profiles, their layouts, the labels, and the code."""
    target = feature_sets_of.find(lake, feature_set)
    slug = profiles.find_recipe(lake, target, recipe).name
    labels = lake.connection.execute("SELECT * FROM main.annotations ORDER BY ALL").fetchall()
    parts = (profiles.fingerprint(lake, feature_set, slug), labels, __version__)
    return hashlib.blake2b(repr(parts).encode(), digest_size=16).hexdigest()


def _score(metric: Metric, table: Profiles, recipe: str, labels: str, snapshot: int) -> Evaluation:
    if table.rows.is_empty():
        name = table.feature_set.name
        message = f"{metric.name}: feature set {name!r} has no {metric.level} to score: look at --where"
        raise EvaluationError(message)
    needs = {need: _values(need, table.rows, labels) for need in metric.needs}
    if "labels" in needs and not any(needs["labels"]):
        message = (
            f"{metric.name}: no {metric.level} of feature set {table.feature_set.name!r} has a label of kind "
            f"{labels!r}: bring labels with --annotations"
        )
        raise EvaluationError(message)
    _refuse_missing(metric, table)
    score = metric.function(table.matrix, ids=table.names(), **needs)
    kind = labels if "labels" in needs else None
    return Evaluation(table.feature_set.name, table.recipe, metric.name, metric.level, kind, score, snapshot)


def _refuse_missing(metric: Metric, table: Profiles) -> None:
    """Refuse missing elements by name: an average over fewer features would be another similarity."""
    missing = np.isnan(table.matrix)
    if missing.any():
        row, feature = np.argwhere(missing)[0]
        message = (
            f"{metric.name}: {table.names()[row]} has no value for feature {table.feature_names[feature]!r} "
            f"({int(missing.any(axis=1).sum())} of {len(missing)} {metric.level}s miss one): correct the feature "
            "set with a recipe that deals with missing values"
        )
        raise EvaluationError(message)


def _values(need: str, rows: pl.DataFrame, labels: str) -> list[object]:
    """Give a metric what it asks for, one value a row."""
    if need == "labels":
        return [set(found or ()) for found in rows[labels].to_list()]
    if need == "batches":
        return [set(found) for found in rows["batches"].to_list()]
    if need == "plates":
        return list(rows.select(pl.concat_str("source", "batch", "plate", separator="/")).to_series())
    if need == "controls":
        return [kind == "negative" for kind in rows["control_type"]]
    columns = {"compounds": "compound", "treatments": "treatment"}
    return rows[columns[need]].to_list()


def _store(
    connection: duckdb.DuckDBPyConnection, evaluation: Evaluation, run: Run, where: str | None, mark: str
) -> None:
    score = evaluation.score
    connection.execute(
        "INSERT INTO main.evaluations VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        [
            uuid.uuid4().hex,
            evaluation.feature_set,
            evaluation.recipe,
            evaluation.level,
            evaluation.metric,
            evaluation.label_kind,
            score.value,
            score.n,
            json.dumps({"where": where, "correct": score.correct}),
            json.dumps(score.left_out),
            evaluation.snapshot,
            run.run,
            now(),
            mark,
        ],
    )


def as_frame(evaluations: Sequence[Evaluation]) -> pl.DataFrame:
    """List evaluations, one row each, as they are stored: value, n, how many were right, what was left out."""
    return pl.DataFrame(
        [
            {
                "feature_set": each.feature_set,
                "recipe": each.recipe,
                "metric": each.metric,
                "labels": each.label_kind,
                "value": each.score.value,
                "correct": each.score.correct,
                "n": each.score.n,
                "left_out": "; ".join(f"{count} {reason}" for reason, count in each.score.left_out.items()),
                "snapshot": each.snapshot,
            }
            for each in evaluations
        ],
        schema_overrides={"correct": pl.Int64, "labels": pl.String},
    )


def details_frame(evaluation: Evaluation) -> pl.DataFrame:
    """Give one row per treatment or label where the metric has such, else one per query."""
    per_group = evaluation.score.per_group
    return evaluation.score.per_query if per_group is None else per_group
