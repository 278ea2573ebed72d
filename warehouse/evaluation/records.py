"""Scores as rows of `evaluations`: written, looked for, shown."""

import hashlib
import json
import math
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import duckdb
import polars as pl

from warehouse import __version__, profiles
from warehouse import feature_sets as feature_sets_of
from warehouse.evaluation.asked import AskedMetric, asked_metric
from warehouse.evaluation.baselines import Baseline
from warehouse.lake import Lake, now
from warehouse.metrics import Score
from warehouse.nearest.level_rows import marks
from warehouse.runs import Run

#: Beside a score that is not above its baselines.
MARK = "not above chance"


@dataclass(frozen=True)
class Setting:
    """What all metrics of a call are computed under.

    Attributes:
        labels: kind of label asked for.
        where: predicate over the level.
        batch_key: what counts as the same batch.
        seed: of the baselines' draws.
        inputs: kind of file to hash of its content.
    """

    labels: str
    where: str | None = None
    batch_key: str = "batch"
    seed: int = 0
    inputs: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Evaluation:
    """One metric of one feature set: the value, and what it rests on.

    Attributes:
        feature_set: scored.
        recipe: its steps' name in the lake.
        asked: the metric and all its parameters.
        level: of the profiles that were read.
        label_kind: of the labels used, or None.
        score: value, n, what was left out and why, per query.
        names: of the level's rows, by the numbers in `score.per_query`.
        setting: labels, predicate, batch key.
        baselines: name to what it came to; None where it could not be computed.
        is_above: better than every draw of all of them; None where there are none.
        notes: what to tell about files that were brought.
        failure: why there is no score; None where there is one.
        snapshot: of the lake, as it was read.
        fingerprint: of all that decides the score.
    """

    feature_set: str
    recipe: str
    asked: AskedMetric
    level: str
    label_kind: str | None
    score: Score
    names: tuple[str, ...]
    setting: Setting
    baselines: dict[str, Baseline | None]
    is_above: bool | None
    notes: tuple[str, ...] = ()
    failure: str | None = None
    snapshot: int = -1
    fingerprint: str = ""

    @property
    def metric(self) -> str:
        """The metric's name, without parameters."""
        return self.asked.metric.name

    def of(self, snapshot: int, fingerprint: str) -> "Evaluation":
        """Say what of the lake it was computed on."""
        return replace(self, snapshot=snapshot, fingerprint=fingerprint)


def fingerprint(lake: Lake, feature_set: str, recipe: str) -> str:
    """Hash all that decides a score: the profiles, their layouts, the labels, and the code.

    Raises:
        UnknownNameError: no such feature set.
        RecipeError: it has no such recipe.
    """
    target = feature_sets_of.find(lake, feature_set)
    made_of = marks(lake, target, profiles.find_recipe(lake, target, recipe))
    labels = lake.connection.execute("SELECT * FROM main.annotations ORDER BY ALL").fetchall()
    parts = (made_of.whole, sorted(made_of.plates.items()), labels, __version__)
    return hashlib.blake2b(repr(parts).encode(), digest_size=16).hexdigest()


def store(connection: duckdb.DuckDBPyConnection, evaluation: Evaluation, run: Run) -> None:
    """Write one row of `evaluations`, inside the caller's transaction."""
    score, asked = evaluation.score, evaluation.asked
    baselines = {
        name: None if found is None else {"mean": found.mean, "best": found.best, "draws": found.draws}
        for name, found in evaluation.baselines.items()
    }
    connection.execute(
        "INSERT INTO main.evaluations (evaluation, feature_set, recipe, level, metric, label_kind, value, n, "
        "parameters, left_out, snapshot, run, evaluated_at, fingerprint, code_version, baselines, is_above) "
        "VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        [
            uuid.uuid4().hex,
            evaluation.feature_set,
            evaluation.recipe,
            evaluation.level,
            evaluation.metric,
            evaluation.label_kind,
            score.value if math.isfinite(score.value) else None,
            score.n,
            json.dumps({**conditions(asked, evaluation.setting), "correct": score.correct}),
            json.dumps(score.left_out if evaluation.failure is None else {"not scored": evaluation.failure}),
            evaluation.snapshot,
            run.run,
            now(),
            evaluation.fingerprint,
            __version__,
            json.dumps(baselines) if baselines else None,
            evaluation.is_above,
        ],
    )


def scored(
    lake: Lake,
    feature_set: str,
    metric: str,
    *,
    recipe: str = "none",
    labels: str = "moa",
    where: str | None = None,
    batch_key: str = "batch",
) -> bool:
    """Tell whether a metric was computed, or refused, on the profiles, layouts and labels of now, by this version."""
    asked = asked_metric(metric)
    slug = profiles.find_recipe(lake, feature_sets_of.find(lake, feature_set), recipe).name
    found = lake.connection.execute(
        "SELECT label_kind, parameters FROM main.evaluations "
        "WHERE feature_set = ? AND recipe = ? AND metric = ? AND level = ? AND fingerprint = ?",
        [feature_set, slug, asked.metric.name, asked.metric.level, fingerprint(lake, feature_set, recipe)],
    ).fetchall()
    wanted = conditions(asked, Setting(labels, where, batch_key))
    return any(
        kind == label_kind(asked, labels) and same_conditions(parameters, wanted)
        for kind, parameters in found
    )


def label_kind(asked: AskedMetric, labels: str) -> str | None:
    """The kind of label that a metric goes by where `labels` is asked for; None where it has none."""
    metric = asked.metric
    return (metric.label_kind or labels) if "labels" in metric.needs else None


def same_conditions(stored: str, wanted: dict[str, object]) -> bool:
    """Tell whether stored parameters are those that are wanted; the seed of baselines, and counts, aside."""
    found = json.loads(stored)
    return all(found.get(key) == wanted[key] for key in ("where", "batch_key", "parameters", "inputs"))


def conditions(asked: AskedMetric, setting: Setting) -> dict[str, object]:
    """What two scores must have in common to be compared, as it is stored in `parameters`; and the seed."""
    return {
        "where": setting.where,
        "batch_key": setting.batch_key,
        "parameters": asked.parameters,
        # Of the files of a call, those that this metric looks at.
        "inputs": {name: mark for name, mark in setting.inputs.items() if name in asked.metric.needs},
        "seed": setting.seed,
    }


def as_frame(evaluations: Sequence[Evaluation]) -> pl.DataFrame:
    """List evaluations, one row each: value, its baselines beside it, n, what was left out."""
    named = ("shuffled", "random", "cell_count", "separated")
    rows = [
        {
            "feature_set": each.feature_set,
            "recipe": each.recipe,
            "metric": each.asked.text,
            "level": each.level,
            "labels": each.label_kind,
            "value": None if each.failure else each.score.value,
            **{name: _mean(each.baselines.get(name)) for name in named},
            "mark": "not scored" if each.failure else MARK if each.is_above is False else None,
            "correct": each.score.correct,
            "n": each.score.n,
            "left_out": "; ".join(f"{count} {reason}" for reason, count in each.score.left_out.items()),
            "snapshot": each.snapshot,
        }
        for each in evaluations
    ]
    floats = dict.fromkeys(("value", *named), pl.Float64)
    return pl.DataFrame(
        rows, schema_overrides={"correct": pl.Int64, "labels": pl.String, "mark": pl.String, **floats}
    )


def _mean(baseline: Baseline | None) -> float | None:
    return None if baseline is None else baseline.mean


def details_frame(evaluation: Evaluation) -> pl.DataFrame:
    """Give one row per treatment or label where the metric has such, else one per query, by name."""
    score = evaluation.score
    if score.per_group is not None:
        return score.per_group
    names = pl.Series("name", evaluation.names, dtype=pl.String)
    rows = {name for name in ("row", "neighbour") if name in score.per_query.columns}
    return score.per_query.with_columns(
        names.gather(score.per_query[name]).alias("name" if name == "row" else name) for name in sorted(rows)
    ).select(*(["name"] if "row" in rows else []), pl.all().exclude("name", "row"))
